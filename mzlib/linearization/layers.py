"""Per-sample gradients of one layer from its input x and its output's gradient g.

Both are [images, …, channels].
A convolution or linear layer with unfolded inputs A_i [P, d_in] and output gradients G_i [P, d_out]
at P positions (per group) has the weight gradient G_iᵀA_i; a normalisation layer has Σ_p g·x̂.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

_FORWARDS = {
    nn.Conv2d.forward: "affine",
    nn.Linear.forward: "affine",
    nn.LayerNorm.forward: "layer_norm",
    _BatchNorm.forward: "batch_norm",
}
# timm's variants override forward but not what weight and bias do; whatever is claimed here,
# `Tangents` checks
_NAMES = {
    "BatchNormAct2d": "batch_norm",
    "LayerNorm": "layer_norm",
    "LayerNorm2d": "layer_norm",
    "Linear": "affine",
}


def family(module: nn.Module) -> str | None:
    """The layer's kind: affine, batch_norm, layer_norm; None for one without a closed form."""
    return _FORWARDS.get(type(module).forward) or _NAMES.get(type(module).__name__)


def output_module(module: nn.Module) -> nn.Module:
    """The module whose output is the affine map's: BatchNormAct2d has an activation after it."""
    return module.drop if type(module).__name__ == "BatchNormAct2d" else module


def channels_last(module: nn.Module, t: Tensor) -> Tensor:
    """The module's input or output as [images, …, channels], a view."""
    spatial = isinstance(module, nn.Conv2d | _BatchNorm)
    spatial = spatial or type(module).__name__ == "LayerNorm2d"
    return t.movedim(1, -1) if spatial else t


def unfold(module: nn.Module, x: Tensor) -> Tensor:
    """A [images, groups, P, d_in], d_in in the order of the weight: channel, then kernel offset."""
    if isinstance(module, nn.Linear):
        return x.reshape(len(x), 1, -1, x.shape[-1])
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x.movedim(-1, 1), module._reversed_padding_repeated_twice, mode=mode)
    columns = F.unfold(x, module.kernel_size, module.dilation, stride=module.stride)
    return columns.unflatten(1, (module.groups, -1)).transpose(2, 3)


def cotangent(module: nn.Module, g: Tensor) -> Tensor:
    """G [images, groups, P, d_out]."""
    groups = getattr(module, "groups", 1)
    by_group = g.reshape(len(g), -1, groups, g.shape[-1] // groups)
    return by_group.transpose(1, 2)


def weight_gradient(module: nn.Module, x: Tensor, g: Tensor) -> Tensor:
    """G_iᵀA_i of every image, flattened as the weight is: [images, p]."""
    positions = g.shape[1:-1].numel()
    unfolded = positions * module.weight[0].numel() * getattr(module, "groups", 1)
    step = len(x) if x.is_cuda else max(1, 2**19 // unfolded)  # 2 MB of A stay in the cache
    parts = [
        cotangent(module, g_part).transpose(2, 3) @ unfold(module, x_part)
        for x_part, g_part in zip(x.split(step), g.split(step))
    ]
    return torch.cat(parts).flatten(1)


def gradient(module: nn.Module, kind: str, x: Tensor, g: Tensor) -> Tensor:
    """Per-sample gradient of the module's `kind` ("weight" or "bias"), flattened: [images, p]."""
    if kind == "weight" and family(module) == "affine":
        return weight_gradient(module, x, g)
    if kind == "weight" and family(module) == "batch_norm":
        # x̂ = (x − μ)/√(σ² + ε), μ and σ² being constants in eval mode
        scale = torch.rsqrt(module.running_var + module.eps)
        g = (x - module.running_mean).mul_(g).mul_(scale)
    elif kind == "weight":
        g = g * F.layer_norm(x, module.normalized_shape, eps=module.eps)
    return g.reshape(len(g), -1, getattr(module, kind).numel()).sum(1)


def weight_pieces(module: nn.Module, x: Tensor, g: Tensor, columns: int) -> Iterator[Tensor]:
    """Per-sample weight gradients in pieces [images, ≈columns]: some inputs by some outputs."""
    # a thin product is three times as fast with the positions last in G and the channels last in A
    g = cotangent(module, g).transpose(2, 3).contiguous()
    x = x.unflatten(-1, (g.shape[1], -1))  # [images, …, groups, channels a group]
    offsets = module.weight[0, 0].numel()
    for inputs in x.split(max(1, min(columns, 512) // offsets), dim=-1):
        unfolded = unfold(module, inputs.flatten(-2)).contiguous()
        outputs = max(1, columns // unfolded[0, :, 0].numel())
        for part in g.split(outputs, dim=2):
            yield (part @ unfolded).flatten(1)


def used_positions(module: nn.Module, g: Tensor) -> Tensor:
    """Positions with a gradient: one of ViT's 197 in a layer that only the class token follows."""
    used = cotangent(module, g).ne(0)
    return used.any(3).any(1).any(0).nonzero()[:, 0]


def pairwise_cost(module: nn.Module, g: Tensor) -> int:
    """Multiply-adds a pair of images of `add_pairwise`; to read and add an entry costs about 40."""
    positions = len(used_positions(module, g))
    groups = getattr(module, "groups", 1)
    d_in = module.weight[0].numel()
    d_out = g.shape[-1] // groups
    return positions**2 * groups * (d_in + d_out + 40)


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

    def operands(pair: tuple[Tensor, Tensor], images: slice, used: Tensor) -> list[Tensor]:
        x, g = pair
        both = unfold(module, x[images]), cotangent(module, g[images])
        # [n, groups, P, d] -> [groups, P·n, d], images innermost so that sums over positions are
        # vectorised
        return [t.index_select(2, used).permute(1, 2, 0, 3).flatten(1, 2) for t in both]

    step = max(8, 512 // max(1, len(used_rows)))  # tiles of 1 MB stay in the cache
    for r in range(0, gram.shape[0], step):
        a_rows, g_rows = operands(rows, slice(r, r + step), used_rows)
        for c in range(r if symmetric else 0, gram.shape[1], step):
            a_cols, g_cols = operands(cols, slice(c, c + step), used_cols)
            tile = gram[r : r + step, c : c + step]
            products = g_rows @ g_cols.mT
            products *= a_rows @ a_cols.mT
            by_position = products.unflatten(1, (-1, len(tile)))
            by_position = by_position.unflatten(3, (-1, tile.shape[1]))
            tile += by_position.sum((0, 1, 3))


def add_product(gram: Tensor, rows: Tensor, cols: Tensor, symmetric: bool) -> None:
    """gram += rows colsᵀ; with `symmetric` only on and above the block diagonal."""
    step = max(64, -(-len(rows) // 8)) if symmetric else len(rows)
    for r in range(0, len(rows), step):
        c = r if symmetric else 0
        gram[r : r + step, c:].addmm_(rows[r : r + step], cols[c:].T)
