"""Per-sample gradients of one layer from its input x and its output's gradient g.

Both are [images, …, channels].
A convolution or linear layer with unfolded inputs A_i [P, d_in] and output gradients G_i [P, d_out]
at P positions (per group) has the weight gradient G_iᵀA_i; a normalisation layer has Σ_p g·x̂; a
weight-standardised convolution (arXiv:1903.10520, scaled: arXiv:2101.08692) that of its own
weights, led back through the standardisation.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

SIDE = 512  # of a block on a Gram matrix's diagonal

_FORWARDS = {
    nn.Conv2d.forward: "affine",
    nn.Linear.forward: "affine",
    nn.LayerNorm.forward: "layer_norm",
    nn.GroupNorm.forward: "group_norm",
    nn.RMSNorm.forward: "rms_norm",
    _BatchNorm.forward: "batch_norm",
}
# timm's variants override forward but not what weight and bias do; whatever is claimed here,
# `Tangents` checks
_NAMES = {
    "Conv2dSame": "affine",
    "StdConv2d": "standardized",
    "StdConv2dSame": "standardized",
    "ScaledStdConv2d": "standardized",
    "ScaledStdConv2dSame": "standardized",
    "BatchNormAct2d": "batch_norm",
    "GroupNorm": "group_norm",
    "GroupNorm1": "group_norm",
    "RmsNorm": "rms_norm",
    "RmsNormFp32": "rms_norm",
    "LayerNorm": "layer_norm",
    "LayerNorm2d": "layer_norm",
    "Linear": "affine",
}


def family(module: nn.Module) -> str | None:
    """The layer's kind: a value of `_NAMES`; None for one without a closed form."""
    kind = type(module)
    by_forward = _FORWARDS.get(kind.forward)
    by_name = _NAMES.get(kind.__name__)
    return by_forward or by_name


def output_module(module: nn.Module) -> nn.Module:
    """The module whose output is the affine map's: BatchNormAct2d has an activation after it."""
    return module.drop if type(module).__name__ == "BatchNormAct2d" else module


def channels_last(module: nn.Module, t: Tensor) -> Tensor:
    """The module's input or output as [images, …, channels], a view."""
    spatial = isinstance(module, nn.Conv2d | nn.GroupNorm | _BatchNorm)
    spatial = spatial or type(module).__name__ == "LayerNorm2d"
    return t.movedim(1, -1) if spatial else t


def unfold(module: nn.Module, x: Tensor) -> Tensor:
    """A [images, groups, P, d_in], d_in in the order of memory: kernel offset, then channel."""
    if isinstance(module, nn.Linear):
        channels = x.shape[-1]
        return x.reshape(len(x), 1, -1, channels)
    windows = patches(module, x)
    positions = windows.shape[1:3].numel()
    by_group = windows.unflatten(5, (module.groups, -1))
    group_first = by_group.permute(0, 5, 1, 2, 3, 4, 6)
    return group_first.reshape(len(x), module.groups, positions, -1)


def patches(module: Any, x: Tensor) -> Tensor:
    """What each position of a convolution's output sees, a view: [images, rows, columns, kernel
    rows, kernel columns, channels].
    """
    x = padded(module, x)
    of_image, of_channel, *of_pixel = x.stride()  # in memory
    counts = []
    moves = []  # in memory, from one output to the next
    offsets = []  # from one place of the kernel to the next
    for i, step in enumerate(of_pixel):
        stride = module.stride[i]
        dilation = module.dilation[i]
        reach = (module.kernel_size[i] - 1) * dilation
        size = x.shape[2 + i]
        last = size - reach - 1
        counts.append(last // stride + 1)
        moves.append(step * stride)
        offsets.append(step * dilation)
    channels = x.shape[1]
    shape = [len(x), *counts, *module.kernel_size, channels]
    strides = [of_image, *moves, *offsets, of_channel]
    return x.as_strided(shape, strides)


def by_channel(module: nn.Module, gradients: Tensor) -> Tensor:
    """Of [..., d_in] in the order of `unfold`, the same as the weight has it: channel first."""
    offsets = module.weight[0, 0].numel()
    by_offset = gradients.unflatten(-1, (offsets, -1))
    return by_offset.mT.flatten(-2)


def padded(module: nn.Module, x: Tensor) -> Tensor:
    """The input of a convolution, [images, channels, H, W], with all its padding."""
    x = x.movedim(-1, 1)
    sides = module._reversed_padding_repeated_twice
    is_same = type(module).__name__.endswith("Same")
    if is_same and getattr(module, "same_pad", True):
        sides = []  # TensorFlow's: ⌈size/stride⌉ outputs, the odd row at the end
        for i in (1, 0):
            size = x.shape[2 + i]
            stride = module.stride[i]
            outputs = -(-size // stride)
            reach = (module.kernel_size[i] - 1) * module.dilation[i]
            moved = (outputs - 1) * stride
            seen = moved + reach + 1
            missing = max(0, seen - size)
            before = missing // 2
            after = missing - before
            sides += [before, after]
    if not any(sides):
        return x
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(x, sides, mode=mode)


def standardized(module: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Ŵ [groups, d_out, d_in], rows of mean 0 and deviation 1, and a/σ [groups, d_out, 1].

    The layer's weights are aŴ.
    """
    weight = module.weight.detach().to(dtype)
    filters = weight.flatten(1)
    rows = filters.unflatten(0, (module.groups, -1))
    variance = rows.var(2, correction=0, keepdim=True)
    deviation = (variance + module.eps).sqrt()
    factor = deviation.reciprocal()
    if hasattr(module, "gain"):
        gain = module.gain.detach().view_as(factor)
        factor *= gain * module.scale
    centred = rows - rows.mean(2, keepdim=True)
    return centred / deviation, factor


def before_standardization(module: nn.Module, gradients: Tensor, rows: slice) -> Tensor:
    """Of gradients by the rows of aŴ [n, groups, rows, d_in], those by the raw rows, in place;
    d_in as in `unfold`.

    Of one row: Jᵀg with J = (a/σ)(1 − 11ᵀ/d_in − ŵŵᵀ/d_in).
    """
    weights, factor = standardized(module, gradients.dtype)
    channels = module.weight.shape[1]
    by_channel = weights.unflatten(2, (channels, -1))
    by_offset = by_channel.mT.flatten(2)
    weights = by_offset[:, rows]
    gradients -= gradients.mean(3, keepdim=True)
    along = (gradients * weights).mean(3, keepdim=True)
    gradients -= along * weights
    gradients *= factor[:, rows]
    return gradients


def cotangent(module: nn.Module, g: Tensor) -> Tensor:
    """G [images, groups, P, d_out]."""
    groups = getattr(module, "groups", 1)
    channels = g.shape[-1]
    by_position = g.reshape(len(g), -1, channels)
    by_group = by_position.unflatten(2, (groups, -1))
    return by_group.transpose(1, 2)


def weight_gradient(module: nn.Module, x: Tensor, g: Tensor) -> Tensor:
    """G_iᵀA_i of every image, flattened as the weight is: [images, p]."""
    positions = g.shape[1:-1].numel()
    groups = getattr(module, "groups", 1)
    d_in = module.weight[0].numel()
    unfolded = positions * groups * d_in
    fitting = max(1, 2**19 // unfolded)  # 2 MB of A stay in the cache
    step = len(x) if x.is_cuda else fitting
    parts = []
    is_depthwise = groups > 1 and module.weight.shape[:2] == (groups, 1)
    pairs = zip(x.split(step), g.split(step))
    for x_part, g_part in pairs:
        if is_depthwise and family(module) == "affine":
            parts.append(depthwise_gradient(module, x_part, g_part))
            continue
        inputs = unfold(module, x_part)
        outputs = cotangent(module, g_part)
        part = outputs.transpose(2, 3) @ inputs
        if family(module) == "standardized":
            part = before_standardization(module, part, slice(None))
        parts.append(by_channel(module, part))
    return torch.cat(parts).flatten(1)


def depthwise_gradient(module: nn.Module, x: Tensor, g: Tensor) -> Tensor:
    """`weight_gradient` of filters that see a channel each, one offset after the other."""
    windows = patches(module, x).flatten(3, 4)
    sums = []
    for window in windows.unbind(3):
        products = window * g
        sums.append(products.sum((1, 2)))
    return torch.stack(sums, 2)


def gradient(module: nn.Module, kind: str, x: Tensor, g: Tensor) -> Tensor:
    """Per-sample gradient of the module's `kind`, flattened: [images, p].

    "weight", "bias", or the "gain" of a scaled weight-standardised convolution.
    """
    if kind == "weight" and family(module) in ("affine", "standardized"):
        return weight_gradient(module, x, g)
    if kind == "gain":
        # the output is linear in it
        rows, _ = standardized(module, x.dtype)
        weight = rows.view_as(module.weight) * module.scale
        output = F.conv2d(
            padded(module, x),
            weight,
            stride=module.stride,
            dilation=module.dilation,
            groups=module.groups,
        )
        g = output.movedim(1, -1) * g
    elif kind == "weight" and family(module) == "batch_norm":
        # x̂ = (x − μ)/√(σ² + ε), μ and σ² being constants in eval mode
        scale = torch.rsqrt(module.running_var + module.eps)
        centred = x - module.running_mean
        g = centred.mul_(g).mul_(scale)
    elif kind == "weight" and family(module) == "group_norm":
        first = x.movedim(-1, 1)
        normalised = F.group_norm(first, module.num_groups, eps=module.eps)
        g = g * normalised.movedim(1, -1)
    elif kind == "weight" and family(module) == "rms_norm":
        normalised = F.rms_norm(x, module.normalized_shape, eps=module.eps)
        g = g * normalised
    elif kind == "weight":
        normalised = F.layer_norm(x, module.normalized_shape, eps=module.eps)
        g = g * normalised
    size = getattr(module, kind).numel()
    by_position = g.reshape(len(g), -1, size)
    return by_position.sum(1)


def weight_pieces(
    module: nn.Module, x: Tensor, g: Tensor, columns: int, room: int = sys.maxsize
) -> Iterator[Tensor]:
    """Per-sample weight gradients in pieces of ≈`columns` numbers an image, from ≈`room` numbers of
    unfolded inputs at a time: some outputs by some inputs, [images, groups, outputs, d_in] with
    d_in as in `unfold`.
    """
    # a thin product is three times as fast with the positions last in G and the channels last in A
    g = cotangent(module, g).transpose(2, 3)
    g = g.contiguous()
    groups = g.shape[1]
    x = x.unflatten(-1, (groups, -1))  # [images, …, groups, channels a group]
    offsets = module.weight[0, 0].numel()
    is_standardized = family(module) == "standardized"  # which takes whole rows
    positions = groups * g.shape[3]
    most = max(1, min(columns, 512, room // positions) // offsets)
    if is_standardized:
        most = x.shape[-1]
    for inputs in x.split(most, dim=-1):
        of_groups = inputs.flatten(-2)
        unfolded = unfold(module, of_groups).contiguous()
        of_one_output = unfolded[0, :, 0].numel()
        outputs = max(1, columns // of_one_output)
        for start in range(0, g.shape[2], outputs):
            rows = slice(start, start + outputs)
            part = g[:, :, rows] @ unfolded
            if is_standardized:
                part = before_standardization(module, part, rows)
            yield part


def used_positions(module: nn.Module, g: Tensor) -> Tensor:
    """Positions with a gradient: one of ViT's 197 in a layer that only the class token follows."""
    used = cotangent(module, g).ne(0)
    by_image = used.any(3).any(1)
    by_position = by_image.any(0)
    return by_position.nonzero().flatten()


def costs_of_inputs(module: Any, x: Tensor, positions: int) -> tuple[int, int]:
    """Multiply-adds of A_i A_jᵀ at so many positions of either image, a group: of the unfolded
    inputs; of ⟨x_i(a), x_j(b)⟩ for all places a, b of the inputs [..., H, W, channels] and M of
    `meetings`.
    """
    unfolded = positions**2 * module.weight[0].numel()
    if not isinstance(module, nn.Conv2d):
        return unfolded, unfolded
    places = x.shape[1:-1].numel()
    channels = module.weight.shape[1]
    return unfolded, places**2 * (channels + positions**2)


def by_place(module: nn.Module, x: Tensor, positions: int) -> bool:
    """Whether the second of `costs_of_inputs` is less: much of what is unfolded may be padding."""
    unfolded, of_places = costs_of_inputs(module, x, positions)
    return of_places < unfolded


def meetings(module: nn.Module, x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """M [P·Q, (H·W)²] by which A_i A_jᵀ[p, q] = Σ_ab M[pq, ab] ⟨x_i(a), x_j(b)⟩, of the positions
    p in `rows` and q in `cols`: how many offsets of the kernel take p to a and q to b.
    """
    size = x.shape[1:-1]
    places = torch.eye(size.numel(), dtype=x.dtype, device=x.device)
    seen = patches(module, places.view(1, *size, -1))
    seen = seen[0].flatten(0, 1).flatten(1, 2)  # position, offset, place
    pairs = torch.einsum("poa,qob->pqab", seen[rows], seen[cols])
    return pairs.flatten(2).flatten(0, 1)


def pairwise_cost(module: nn.Module, x: Tensor, g: Tensor) -> int:
    """Multiply-adds a pair of images of `add_pairwise`; to read and add an entry costs about 40."""
    positions = len(used_positions(module, g))
    groups = getattr(module, "groups", 1)
    d_out = g.shape[-1] // groups
    of_inputs = min(costs_of_inputs(module, x, positions))
    return groups * (of_inputs + positions**2 * (d_out + 40))


def add_pairwise(
    gram: Tensor,
    module: nn.Module,
    rows: tuple[Tensor, Tensor],
    cols: tuple[Tensor, Tensor],
    symmetric: bool,
) -> None:
    """gram[i, j] += ⟨A_i A_jᵀ, G_i G_jᵀ⟩ in tiles; with `symmetric` not below the diagonal."""
    used_rows = used_positions(module, rows[1])
    used_cols = used_positions(module, cols[1])
    met = None
    if by_place(module, rows[0], max(len(used_rows), len(used_cols))):
        met = meetings(module, rows[0], used_rows, used_cols)

    def by_position(t: Tensor) -> Tensor:
        # [n, groups, P, d] -> [groups, P·n, d], images innermost so that sums over positions are
        # vectorised
        images_inside = t.permute(1, 2, 0, 3)
        return images_inside.flatten(1, 2)

    def operands(pair: tuple[Tensor, Tensor], images: slice, used: Tensor) -> list[Tensor]:
        x, g = pair
        of_outputs = cotangent(module, g[images]).index_select(2, used)
        if met is None:
            of_inputs = unfold(module, x[images]).index_select(2, used)
        else:
            of_inputs = cotangent(module, x[images])
        return [by_position(of_inputs), by_position(of_outputs)]

    side = 4096 if gram.is_cuda else 512  # tiles of 1 MB stay in the cache
    step = max(8, side // max(1, len(used_rows)))
    for r in range(0, gram.shape[0], step):
        down = slice(r, r + step)
        x_rows, g_rows = operands(rows, down, used_rows)
        first = r if symmetric else 0
        for c in range(first, gram.shape[1], step):
            across = slice(c, c + step)
            x_cols, g_cols = operands(cols, across, used_cols)
            tile = gram[down, across]
            of_inputs = products(x_rows, x_cols, tile.shape)
            if met is not None:
                of_inputs = met @ of_inputs
            of_outputs = products(g_rows, g_cols, tile.shape)
            sums = of_outputs.mul_(of_inputs).sum((0, 1))
            tile += sums.view_as(tile)


def products(rows: Tensor, cols: Tensor, images: torch.Size) -> Tensor:
    """Of [groups, P·n, d] and [groups, Q·m, d] the inner products [groups, P·Q, n·m] of `images`
    (n, m).
    """
    n, m = images
    table = rows @ cols.mT
    by_image = table.unflatten(1, (-1, n)).unflatten(3, (-1, m))
    positions_first = by_image.transpose(2, 3).flatten(3)
    return positions_first.flatten(1, 2)


def add_product(gram: Tensor, rows: Tensor, cols: Tensor, symmetric: bool) -> None:
    """gram += rows colsᵀ; with `symmetric` (rows are cols) not below the block diagonal."""
    if not symmetric:
        gram.addmm_(rows, cols.T)
        return
    for start in range(0, len(rows), SIDE):
        stop = start + SIDE
        block = rows[start:stop]
        down = gram[start:stop]
        diagonal = down[:, start:stop]
        diagonal += square(block)
        others = rows[stop:]
        down[:, stop:].addmm_(block, others.T)


def square(rows: Tensor) -> Tensor:
    """rows rowsᵀ; numpy's BLAS computes one triangle only (syrk)."""
    if rows.device.type != "cpu":
        return rows @ rows.T
    array = rows.numpy()
    with np.errstate(over="ignore", invalid="ignore"):  # `check_finite` says that there are Infs
        return torch.from_numpy(array @ array.T)
