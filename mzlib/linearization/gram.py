"""Kernels of per-sample gradients: the Gram matrix, its product with labels, and the paper's random projection."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import repeat

import torch
from torch import Tensor, nn

from . import layers as L
from .model import (
    LinearizationError,
    Output,
    check_finite,
    check_images,
    cotangents,
    evaluating,
    fast_layout,
    select,
)
from .tangents import Block, Tangents


def ntk_gram(
    model: nn.Module,
    images: Tensor,
    other: Tensor | None = None,
    *,
    layers: str | Iterable[str] = "last_conv",
    outputs: str = "features",
    probes: int | str = 1,
    seed: int = 0,
    batch_size: int = 64,
    memory_budget: int = 1 << 30,
) -> Tensor:
    """Neural tangent kernel Θ_ij = ⟨g_i, g_j⟩ of per-sample gradients, accumulated layer by layer.

    Deshpande et al. 2021 (arXiv:2102.00084), eq. 2, with our reading of the scalar that the paper leaves open: the
    trace kernel Θ = Σ_d ⟨∇φ_d(x_i), ∇φ_d(x_j)⟩ over the penultimate features (`outputs="features"`) or the logits.
    `probes=k` estimates it without bias by g_i = ∇(v·φ(x_i)) for k Rademacher v drawn from `seed`, shared by all
    images; one probe is exact for the last convolution of residual and dense networks, where a filter reaches
    one feature only. `probes="exact"` runs over all outputs.

    images, other: float [N, 3, H, W], [M, 3, H, W], normalised, of the model's dtype and device. Returns Θ(images,
    images) [N, N], or Θ(images, other) [N, M] in that dtype. `layers`: "last_conv", "all", or names of modules or
    parameters; parameters that ask for no gradient are not part of the kernel. The model is evaluated in eval mode
    (batch norm with its running statistics) and left as it was found.

    Cost per probe: one forward pass, one backward pass to the layers' outputs, and a pair of images the least of
    P²(d_in + d_out) and d_in·d_out multiply-adds a layer (P positions). Memory: 4·N·M bytes for the result, and
    `memory_budget` bytes for all else: where the N tangents do not fit in half of it, pairs of blocks of images are
    recomputed, about N·(bytes an image)/budget extra passes. `batch_size` is an upper limit; batches shrink to
    their share of the budget and when the device runs out of memory.

    Layers without a closed form and parameters owned directly by a block (class token, layer scale) are
    differentiated by `vmap(grad)`. Raises `LinearizationError` for images that do not fit the model, unknown names,
    no gradient-requiring parameter, a layer that can be differentiated by neither way, and NaN or Inf.
    """
    symmetric = other is None
    other = images if symmetric else other
    check_images(model, other)
    tangents = Tangents(
        model, images, layers, outputs, memory_budget=memory_budget, batch_size=batch_size
    )
    gram = images.new_zeros(len(images), len(other))
    # one block when all tangents fit; else pairs of blocks, each of half the room
    size = (
        tangents.room
        if len(images) + (0 if symmetric else len(other)) <= tangents.room
        else tangents.room // 2
    )
    with torch.no_grad():
        for v in cotangents(tangents.dimension, probes, seed):
            for r in range(0, len(images), size):
                rows = tangents.block(images[r : r + size], v)
                for c in range(r if symmetric else 0, len(other), size):
                    diagonal = symmetric and c == r
                    cols = rows if diagonal else tangents.block(other[c : c + size], v)
                    add_block(gram[r : r + size, c : c + size], tangents, rows, cols, diagonal)
    check_finite(gram)
    return gram.triu_().add_(gram.triu(1).T) if symmetric else gram


def add_block(gram: Tensor, tangents: Tangents, rows: Block, cols: Block, symmetric: bool) -> None:
    """gram += Σ over layers; with `symmetric` (rows are cols) the part below the diagonal is left unfinished."""
    L.add_product(gram, rows.flat, cols.flat, symmetric)
    for module, weights in tangents.weights.items():
        for w in weights:
            if w.way == "pairs":
                L.add_pairwise(gram, module, rows.raw[module], cols.raw[module], symmetric)
            elif w.way == "pieces":
                images = len(rows.flat) + (0 if symmetric else len(cols.flat))
                columns = min(1536, tangents.work // (images * gram.element_size()))
                right = (
                    repeat(None)
                    if symmetric
                    else L.weight_pieces(module, *cols.raw[module], columns)
                )
                for left, other in zip(L.weight_pieces(module, *rows.raw[module], columns), right):
                    L.add_product(gram, left, left if other is None else other, symmetric)


def label_gradient_product(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    layers: str | Iterable[str] = "all",
    outputs: str = "features",
    probes: int | str = 1,
    seed: int = 0,
    batch_size: int = 64,
) -> Tensor:
    """YᵀΘY of eq. 7 for all one-vs-rest label vectors at once, without any per-sample gradient.

    Deshpande et al. 2021 (arXiv:2102.00084), eq. 7 with Y_ik = +1 if image i has the k-th label, else −1: since
    YᵀΘY = ‖Σ_i y_i g_i‖², batches of one class give the class sums s_k of gradients and Σ_i y_ik g_i = 2s_k − Σ_l s_l.
    Arguments as in `ntk_gram`; labels int [N]. Returns [K, K] in the order of `labels.unique()`; its diagonal
    is y_kᵀΘy_k, its sum over pairs serves other codings.

    Cost: one forward + backward pass over the images per probe; 2·K·P numbers of memory for P chosen parameters.
    Raises `LinearizationError` as `ntk_gram`, and for one class.
    """
    net, classes = Output(model, outputs), labels.unique()
    check_images(model, images)
    if len(labels) != len(images) or len(classes) < 2:
        raise LinearizationError(
            f"expected {len(images)} labels of two classes or more, got {len(labels)} of "
            f"{len(classes)}: one class has no rest"
        )
    with evaluating(model):
        chosen = select(net, images, layers)
        with torch.no_grad():
            dimension = net(images[:1]).shape[1]
    with evaluating(model, frozen=True):
        for parameter in chosen.values():
            parameter.requires_grad_(True)
        size, product = (
            sum(p.numel() for p in chosen.values()),
            images.new_zeros(len(classes), len(classes)),
        )
        for v in cotangents(dimension, probes, seed):
            sums = images.new_zeros(len(classes), size)
            for k, label in enumerate(classes):
                for batch in images[labels == label].split(batch_size):
                    gradients = torch.autograd.grad(
                        (net(fast_layout(batch)) @ v.to(images)).sum(),
                        list(chosen.values()),
                        materialize_grads=True,
                    )
                    for part, g in zip(sums[k].split([g.numel() for g in gradients]), gradients):
                        part += g.flatten()
            signed = 2 * sums - sums.sum(0)
            product += signed @ signed.T
    return check_finite(product)


def random_projection(
    model: nn.Module,
    images: Tensor,
    *,
    layers: str | Iterable[str] = "last_conv",
    outputs: str = "features",
    dimension: int = 10_000,
    seed: int = 0,
    batch_size: int = 64,
    memory_budget: int = 1 << 30,
) -> Tensor:
    """Per-sample gradients g_i = ∇(v·φ(x_i)) projected at random, as the paper does to "10K dimensions" (Sec. 3.3).

    Returns R g_i [N, dimension] with R_ab = ±1/√dimension, so that E⟨R g_i, R g_j⟩ = ⟨g_i, g_j⟩ = Θ_ij of
    `ntk_gram(…, probes=1, seed=seed)`, with a relative error of about 1/√dimension. R is drawn from `seed` in blocks
    of rows, once per group of images that fits in memory, and never stored whole. The distribution is our choice:
    the paper leaves it open.

    Cost: N·P·dimension multiply-adds for P parameters, where the exact Gram needs at most N²·P/2.
    """
    tangents = Tangents(
        model, images, layers, outputs, memory_budget=memory_budget, batch_size=batch_size
    )
    v = next(cotangents(tangents.dimension, 1, seed))
    projected = images.new_zeros(len(images), dimension)
    with torch.no_grad():
        for start in range(0, len(images), tangents.room):
            generator = torch.Generator().manual_seed(seed)
            block = tangents.block(images[start : start + tangents.room], v)
            for gradients in explicit(tangents, block, columns=1024):
                octets = torch.randint(
                    256,
                    (gradients.shape[1], -(-dimension // 8), 1),
                    generator=generator,
                    dtype=torch.uint8,
                )  # eight signs a draw
                signs = (octets >> torch.arange(8, dtype=torch.uint8) & 1).flatten(1)[:, :dimension]
                signs = signs.to(images).mul_(2).sub_(1)
                projected[start : start + tangents.room].addmm_(
                    gradients, signs, alpha=dimension**-0.5
                )
    return check_finite(projected)


def explicit(tangents: Tangents, block: Block, columns: int) -> Iterator[Tensor]:
    """All per-sample gradients of a block, in pieces of about `columns` parameters: [n, ≈columns]."""
    yield from block.flat.split(columns, dim=1)
    for module, weights in tangents.weights.items():
        for w in weights:
            if w.way != "flat":
                yield from L.weight_pieces(module, *block.raw[module], columns)
