"""Kernels of per-sample gradients: Gram matrix, product with labels, projection."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import layers as L
from .choice import select
from .model import (
    LinearizationError,
    Output,
    check_finite,
    check_independent,
    checked,
    cotangents,
    evaluating,
    exact,
    fast_layout,
)
from .tangents import Block, Tangents

TOGETHER = 8  # cotangents that share one forward pass
MOST = 32  # probes of a kernel for which one is not exact


@dataclass(frozen=True)
class Kernel:
    """A kernel and how it came about.

    gram: float [N, N]. layers: names of the modules whose parameters were differentiated. probes:
    random cotangents averaged over. standard_error: of LGC (Pearson correlation with the labels'
    kernel) over the draw of the probes, 0 where one probe is exact, NaN without labels.
    image_by_image: share of the parameters that have no closed form and cost a forward and two
    backward passes an image. features, logits: [N, D], [N, S] of the same pass, if asked for and
    made in one piece; all_layers: `ntk_gram(layers="all")` of it, likewise.
    """

    gram: Tensor
    layers: list[str]
    probes: int
    standard_error: float
    image_by_image: float
    features: Tensor | None = None
    logits: Tensor | None = None
    all_layers: Tensor | None = None


@exact()
def tangent_kernel(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    layers: str | Iterable[str] = "last",
    outputs: str = "features",
    standard_error: float = 0.01,
    seed: int = 0,
    batch_size: int = 64,
    memory_budget: int | None = None,
    with_outputs: bool = False,
    with_all_layers: bool = False,
) -> Kernel:
    """The kernel of `ntk_gram` with as many probes as it takes, and the facts about it.

    One probe where that is exact: every parameter reaches one output only, seen when the kernel of
    two images stays the same as the signs of half of the outputs turn. Otherwise groups of 8
    probes share a forward pass until the jackknife standard error of LGC for `labels` [N] is at
    most `standard_error`, 32 at the most; one group without labels. `with_outputs` keeps the
    features and logits that the first pass meets, so that LFC and LGC share it; `with_all_layers`
    the kernel of all layers from one probe, if one is enough for `layers` and the tangents of all
    fit in memory. Other arguments, cost and errors as in `ntk_gram`; memory N² numbers a probe.
    """
    options: dict[str, Any] = {"memory_budget": memory_budget, "batch_size": batch_size}
    tangents = Tangents(model, images, layers, outputs, **options)
    images = tangents.images
    vs = cotangents(tangents.dimension, MOST, seed) * MOST**0.5
    if is_exact(tangents, vs[0]):
        vs = vs[:1]
    tangents.net.with_logits = with_outputs and outputs == "features"
    of_all = None
    if with_all_layers and len(vs) == 1:
        whole = Tangents(model, images, "all", outputs, **options)
        of_all = kernel_beside(tangents, whole, vs)
    n = len(images)
    grams = images.new_zeros(0, n, n, dtype=tangents.dtype)
    error = 0.0
    for group in vs.split(TOGETHER):
        new = grams.new_zeros(len(group), *grams.shape[1:])
        add_kernels(new, tangents, images, images, group, symmetric=True)
        tangents.net.with_logits = False
        grams = torch.cat([grams, mirrored(new)])
        check_finite(grams, images.dtype)
        if len(vs) > 1:
            error = float("nan") if labels is None else lgc_standard_error(grams, labels)
        if not error > standard_error:
            break
    found: list[Any] = [torch.cat(parts) for parts in zip(*tangents.answers)]
    if not found or len(found[0]) != n:  # blocks were met more than once
        found = [None, None]
    share = tangents.image_by_image_share
    gram = grams.mean(0)
    facts: tuple[Any, ...] = (tangents.layers, len(grams), error, share, *found)
    return Kernel(gram, *facts, all_layers=of_all)


def kernel_beside(tangents: Tangents, whole: Tangents, vs: Tensor) -> Tensor | None:
    """The kernel of `whole` from one pass over the images, which leaves `tangents` what they would
    have met in one of their own; None, and no pass, where its tangents do not fit in memory.
    """
    images = tangents.images
    n = len(images)
    if n > whole.room(1):
        return None
    whole.net.with_logits = tangents.net.with_logits
    (block,) = whole.block(images, vs)
    tangents.met = tangents.part_of(whole, block)
    if tangents.met is not None:
        tangents.answers = whole.answers
    gram = images.new_zeros(n, n, dtype=whole.dtype)
    add_block(gram, whole, block, block, symmetric=True)
    return check_finite(mirrored(gram), images.dtype)


def mirrored(upper: Tensor) -> Tensor:
    """The symmetric matrices [..., N, N] of which this has the upper triangles, in place."""
    upper.triu_()
    return upper.add_(upper.triu(1).mT)


def is_exact(tangents: Tangents, v: Tensor) -> bool:
    """Whether one Rademacher cotangent v [D] gives the trace kernel itself.

    Σ_de v_d v_e ⟨∇φ_d(x), ∇φ_e(y)⟩ is free of v if no two outputs share a parameter: turning the
    signs of a random half of the outputs, four times, then changes nothing.
    """
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(2, (4, len(v)), generator=generator)
    signs = 2 * bits - 1
    turned = v * signs
    vs = torch.cat([v[None], turned])
    pair = tangents.pair
    grams = pair.new_zeros(len(vs), 2, 2, dtype=tangents.dtype)
    add_kernels(grams, tangents, pair, pair, vs, symmetric=True)
    halves = grams.triu()
    changes = halves - halves[0]
    largest = changes.flatten(1).norm(dim=1).max()
    return bool(largest <= 1e-4 * halves[0].norm())


def lgc_standard_error(grams: Tensor, labels: Tensor) -> float:
    """Standard error of LGC by the jackknife over probes: grams [k, N, N], labels [N]."""
    equal = labels[:, None] == labels
    same = equal.to(grams.device, torch.float64)
    same -= same.mean()
    total = grams.sum(0, dtype=torch.float64)
    left_out = []
    for gram in grams:
        kernel = total - gram
        kernel -= kernel.mean()
        covariance = (kernel * same).sum()
        norms = kernel.norm() * same.norm()
        left_out.append(covariance / norms)
    variance = torch.stack(left_out).var(correction=0)
    of_the_mean = variance * (len(grams) - 1)
    return float(of_the_mean.sqrt())


@exact()
def ntk_gram(
    model: nn.Module,
    images: Tensor,
    other: Tensor | None = None,
    *,
    layers: str | Iterable[str] = "last",
    outputs: str = "features",
    probes: int | str = 1,
    seed: int = 0,
    batch_size: int = 64,
    memory_budget: int | None = None,
) -> Tensor:
    """Neural tangent kernel Θ_ij = ⟨g_i, g_j⟩ of per-sample gradients, accumulated layer by layer.

    Deshpande et al. 2021 (arXiv:2102.00084), eq. 2, with our reading of the scalar that the paper
    leaves open: the trace kernel Θ = Σ_d ⟨∇φ_d(x_i), ∇φ_d(x_j)⟩ over the penultimate features
    (`outputs="features"`) or the logits. `probes=k` estimates it without bias by g_i = ∇(v·φ(x_i))
    for k Rademacher v drawn from `seed`, shared by all images; one probe is exact for the last
    convolution of residual and dense networks, where a filter reaches one feature only
    (`tangent_kernel` finds out and draws as many as needed). `probes="exact"` runs over all
    outputs.

    images, other: float [N, 3, H, W], [M, 3, H, W], normalised, of the model's dtype and device.
    Returns Θ(images, images) [N, N], or Θ(images, other) [N, M] in that dtype, float32 for half
    precision. `layers`: "last", the last convolution or linear layer on the main path to the
    outputs (`choice.last_layer`), "last_conv", "all", or names of modules or parameters; parameters
    that ask for no gradient are not part of the kernel. The model is run in eval mode and left as
    it was found.

    Cost per probe: one forward pass, one backward pass to the layers' outputs, and a pair of images
    the least of P²(d_in + d_out) and d_in·d_out multiply-adds a layer (P positions). Memory: 4·N·M
    bytes for the result, and `memory_budget` bytes (None: a quarter of what is free, half of what
    is free on a GPU) for all else: where the N tangents do not fit in half of it, pairs of blocks
    of images are recomputed, about N·(bytes an image)/budget extra passes. `batch_size` is an upper
    limit; batches shrink to their share of the budget and when the device runs out of memory.

    Raises `LinearizationError` for images that do not fit the model or go ways that noise does not,
    unknown names, no gradient-requiring parameter, batch norm without statistics, NaN and Inf.

    Examples:
        The logit is w·x + b: ⟨∇f(x), ∇f(y)⟩ = x·y + 1.

        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(3, 1))
        >>> images = torch.tensor([[1.0, 2, 3], [1, 0, 0]]).view(2, 3, 1, 1)
        >>> ntk_gram(model, images, layers="all", outputs="logits")
        tensor([[15.,  2.],
                [ 2.,  2.]])
    """
    options: dict[str, Any] = {"memory_budget": memory_budget, "batch_size": batch_size}
    tangents = Tangents(model, images, layers, outputs, **options)
    rows = tangents.images
    columns = rows if other is None else checked(tangents.net.model, other)
    gram = rows.new_zeros(len(rows), len(columns), dtype=tangents.dtype)
    symmetric = other is None
    vs = cotangents(tangents.dimension, probes, seed)
    for group in vs.split(TOGETHER):
        sums = gram.expand(len(group), -1, -1)
        add_kernels(sums, tangents, rows, columns, group, symmetric)
    check_finite(gram, images.dtype)
    return mirrored(gram) if symmetric else gram


def add_kernels(
    grams: Tensor, tangents: Tangents, images: Tensor, other: Tensor, vs: Tensor, symmetric: bool
) -> None:
    """grams[k] += ⟨g_i, g_j⟩ for ∇(v_k·φ); with `symmetric` not below the diagonal."""
    # one block when all tangents fit; else pairs of blocks, each of half the room
    needed = len(images) + (0 if symmetric else len(other))
    room = tangents.room(len(vs))
    size = room if needed <= room else room // 2
    for r in range(0, len(images), size):
        rows = tangents.block(images[r : r + size], vs)
        for c in range(r if symmetric else 0, len(other), size):
            diagonal = symmetric and c == r
            columns = rows if diagonal else tangents.block(other[c : c + size], vs)
            parts = grams[:, r : r + size, c : c + size]
            add_blocks(parts, tangents, rows, columns, diagonal)
            del columns  # before the next ones: the budget is for two


def add_blocks(
    grams: Tensor, tangents: Tangents, rows: list[Block], cols: list[Block], symmetric: bool
) -> None:
    """`add_block` for every cotangent."""
    for gram, row_block, column_block in zip(grams, rows, cols):
        add_block(gram, tangents, row_block, column_block, symmetric)


def add_block(gram: Tensor, tangents: Tangents, rows: Block, cols: Block, symmetric: bool) -> None:
    """gram += Σ over layers; with `symmetric` (rows are cols) not below the diagonal."""
    L.add_product(gram, rows.flat, cols.flat, symmetric)
    images = len(rows.flat) + (0 if symmetric else len(cols.flat))
    of_a_column = images * gram.element_size()
    room = tangents.work // (2 * of_a_column)  # for gradients, and as much for unfolded inputs
    columns = min(1 << 16, room)
    for module, weights in tangents.weights.items():
        ways = [weight.way for weight in weights]
        if "pairs" in ways:
            L.add_pairwise(gram, module, rows.raw[module], cols.raw[module], symmetric)
        if "pieces" not in ways:
            continue
        left = L.weight_pieces(module, *rows.raw[module], columns, room)
        if symmetric:
            for piece in left:
                flat = piece.flatten(1)
                L.add_product(gram, flat, flat, symmetric)
            continue
        right = L.weight_pieces(module, *cols.raw[module], columns, room)
        for row_piece, column_piece in zip(left, right):
            down = row_piece.flatten(1)
            across = column_piece.flatten(1)
            L.add_product(gram, down, across, symmetric)


@exact()
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

    Deshpande et al. 2021 (arXiv:2102.00084), eq. 7 with Y_ik = +1 if image i has the k-th label,
    else −1: since YᵀΘY = ‖Σ_i y_i g_i‖², batches of one class give the class sums s_k of gradients
    and Σ_i y_ik g_i = 2s_k − Σ_l s_l. Arguments as in `ntk_gram`; labels int [N]. Returns [K, K] in
    the order of `labels.unique()`; its diagonal is y_kᵀΘy_k, its sum over pairs serves other
    codings.

    Cost: one forward + backward pass over the images per probe; 2·K·P numbers of memory for P
    chosen parameters. Raises `LinearizationError` as `ntk_gram`, and for one class.
    """
    net = Output(model, outputs)
    images = checked(net.model, images)
    classes = labels.unique()
    if len(labels) != len(images) or len(classes) < 2:
        raise LinearizationError(
            f"expected {len(images)} labels of two classes or more, got {len(labels)} of "
            f"{len(classes)}: one class has no rest"
        )
    choice = select(net, images, layers)
    with evaluating(net), torch.no_grad():
        together = net(choice.pair)
    check_independent(net.model, together[1:], choice.outputs)
    chosen = list(choice.parameters.values())
    size = sum(p.numel() for p in chosen)
    dimension = together.shape[1]
    count = len(classes)
    product = images.new_zeros(count, count, dtype=torch.float64)
    for v in cotangents(dimension, probes, seed):
        # Σ_i y_ik g_i = 2 s_k − Σ_l s_l loses digits: in float64
        sums = product.new_zeros(count, size)
        for class_sum, label in zip(sums, classes):
            own = images[labels == label]
            for batch in own.split(batch_size):
                with evaluating(net, chosen):
                    values = net(fast_layout(batch)) @ v.to(images)
                    total = values.sum()
                    gradients = torch.autograd.grad(total, chosen, materialize_grads=True)
                class_sum += torch.cat([g.flatten() for g in gradients])
        signed = 2 * sums - sums.sum(0)
        product += signed @ signed.T
    return check_finite(product, images.dtype)


@exact()
def random_projection(
    model: nn.Module,
    images: Tensor,
    *,
    layers: str | Iterable[str] = "last",
    outputs: str = "features",
    dimension: int = 10_000,
    seed: int = 0,
    batch_size: int = 64,
    memory_budget: int | None = None,
) -> Tensor:
    """Per-sample gradients g_i = ∇(v·φ(x_i)) projected at random.

    The paper does so to "10K dimensions" (Sec. 3.3).
    Returns R g_i [N, dimension] with R_ab = ±1/√dimension, so that E⟨R g_i, R g_j⟩ = ⟨g_i, g_j⟩ =
    Θ_ij of `ntk_gram(…, probes=1, seed=seed)`, with a relative error of about 1/√dimension. R is
    drawn from `seed` in blocks of rows, once per group of images that fits in memory, and never
    stored whole. The distribution is our choice: the paper leaves it open.

    Cost: N·P·dimension multiply-adds for P parameters, where the exact Gram needs at most N²·P/2.
    """
    tangents = Tangents(
        model, images, layers, outputs, memory_budget=memory_budget, batch_size=batch_size
    )
    images = tangents.images
    vs = cotangents(tangents.dimension, 1, seed)
    projected = images.new_zeros(len(images), dimension, dtype=tangents.dtype)
    room = tangents.room(1)
    for start in range(0, len(images), room):
        generator = torch.Generator().manual_seed(seed)
        part = slice(start, start + room)
        (block,) = tangents.block(images[part], vs)
        for gradients in explicit(tangents, block, columns=1024):
            signs = random_signs(gradients.shape[1], dimension, generator).to(gradients)
            projected[part].addmm_(gradients, signs, alpha=dimension**-0.5)
    return check_finite(projected, images.dtype)


def random_signs(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """±1 as int8 [rows, columns], eight signs a draw."""
    draws = (rows, -(-columns // 8), 1)
    octets = torch.randint(256, draws, generator=generator, dtype=torch.uint8)
    places = torch.arange(8, dtype=torch.uint8)
    bits = octets >> places & 1
    of_row = bits.flatten(1)[:, :columns]
    return of_row.to(torch.int8) * 2 - 1


def explicit(tangents: Tangents, block: Block, columns: int) -> Iterator[Tensor]:
    """All per-sample gradients of a block, in pieces [n, ≈columns]."""
    yield from block.flat.split(columns, dim=1)
    for module, weights in tangents.weights.items():
        for weight in weights:
            if weight.way != "flat":
                for piece in L.weight_pieces(module, *block.raw[module], columns):
                    yield L.by_channel(module, piece).flatten(1)
