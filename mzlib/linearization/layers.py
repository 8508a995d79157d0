"""Per-sample gradients of one layer from its input x and the gradient g at its output, [images, …, channels] both.

A convolution or linear layer with unfolded inputs A_i [P, d_in] and output gradients G_i [P, d_out] at P positions
(per group) has the weight gradient G_iᵀA_i; a normalisation layer has Σ_p g·x̂. Channels come last in memory as in
shape: copies then move whole channels, about twice as fast on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_FORWARDS = {
    nn.Conv2d.forward: "affine",
    nn.Linear.forward: "affine",
    nn.LayerNorm.forward: "layer_norm",
    nn.BatchNorm2d.forward: "batch_norm",
}
# timm's variants override forward but not what weight and bias do; whatever is claimed here, `Tangents` checks
_NAMES = {
    "BatchNormAct2d": "batch_norm",
    "LayerNorm": "layer_norm",
    "LayerNorm2d": "layer_norm",
    "Linear": "affine",
}


def family(module: nn.Module) -> str | None:
    """ "affine", "batch_norm", "layer_norm", or None for a layer without a closed form here."""
    return _FORWARDS.get(type(module).forward) or _NAMES.get(type(module).__name__)


def output_module(module: nn.Module) -> nn.Module:
    """The module whose output is the affine map's: BatchNormAct2d applies `drop` and then an activation after it."""
    return module.drop if type(module).__name__ == "BatchNormAct2d" else module


def channels_last(module: nn.Module, t: Tensor) -> Tensor:
    """The module's input or output as [images, …, channels], a view."""
    first = (
        isinstance(module, (nn.Conv2d, nn.BatchNorm2d)) or type(module).__name__ == "LayerNorm2d"
    )
    return t.movedim(1, -1) if first else t


def windows(module: nn.Module, x: Tensor) -> Tensor:
    """What each kernel offset sees of x: a view [images, P₁, P₂, k₁, k₂, C]; linear: [images, P, 1, 1, 1, C]."""
    if isinstance(module, nn.Linear):
        return x.reshape(len(x), -1, 1, 1, 1, x.shape[-1])
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x.movedim(-1, 1), module._reversed_padding_repeated_twice, mode=mode).movedim(1, -1)
    image, *space, channel = x.stride()
    positions = [
        (n - d * (k - 1) - 1) // s + 1
        for n, d, k, s in zip(x.shape[1:], module.dilation, module.kernel_size, module.stride)
    ]
    strided = [s * stride for s, stride in zip(module.stride, space)]
    dilated = [d * stride for d, stride in zip(module.dilation, space)]
    return x.as_strided(
        (len(x), *positions, *module.kernel_size, x.shape[-1]), (image, *strided, *dilated, channel)
    )


def unfold(module: nn.Module, x: Tensor) -> Tensor:
    """A [images, groups, P, d_in], d_in in the order of kernel offset, then channel."""
    seen, groups = windows(module, x), getattr(module, "groups", 1)
    if groups == 1:
        return seen.flatten(3).flatten(1, 2)[:, None]
    seen = seen.unflatten(5, (groups, -1)).permute(
        0, 5, 3, 4, 6, 1, 2
    )  # few channels a group: positions inside
    return seen.reshape(len(x), groups, -1, seen.shape[5] * seen.shape[6]).transpose(2, 3)


def cotangent(module: nn.Module, g: Tensor) -> Tensor:
    """G [images, groups, P, d_out]."""
    groups = getattr(module, "groups", 1)
    return g.reshape(len(g), -1, groups, g.shape[-1] // groups).transpose(1, 2)


def weight_gradient(module: nn.Module, x: Tensor, g: Tensor) -> Tensor:
    """G_iᵀA_i [images, groups, d_out, d_in], d_in in the order of `unfold`."""
    g = cotangent(module, g).transpose(2, 3)
    if not isinstance(module, nn.Conv2d) or module.groups > 1 or module.stride[0] > 1:
        return g @ unfold(module, x)
    # with stride 1 all kernel rows see the same strips of windows, shifted by `down`: copied once, not once a row
    seen = windows(module, x)
    (n, height, width, rows, *inner), (image, line, position, _, *steps) = seen.shape, seen.stride()
    reach, down = height + module.dilation[0] * (rows - 1), module.dilation[0] * width
    strips = (
        seen.as_strided((n, 1, reach, width, *inner), (image, 0, line, position, *steps))
        .flatten(4)
        .flatten(2, 3)
    )
    return torch.cat(
        [g @ strips[:, :, i * down : i * down + height * width] for i in range(rows)], 3
    )


def gradient(module: nn.Module, kind: str, x: Tensor, g: Tensor) -> Tensor:
    """Per-sample gradient of the module's `kind` ("weight" or "bias"), flattened: [images, p]."""
    if kind == "weight" and family(module) == "affine":
        size = g[0, ..., 0].numel() * module.weight[0].numel() * getattr(module, "groups", 1)
        step = len(x) if x.is_cuda else max(1, 2**19 // size)  # 2 MB of windows stay in the cache
        found = torch.cat(
            [weight_gradient(module, a, b) for a, b in zip(x.split(step), g.split(step))]
        )
        return found.unflatten(3, (-1, module.weight.shape[1])).transpose(3, 4).flatten(1)
    scale = None
    if kind == "weight" and family(module) == "batch_norm":
        # x̂ = (x − μ)/√(σ² + ε), μ and σ² being constants in eval mode
        g = (x - module.running_mean).mul_(g)
        scale = torch.rsqrt(module.running_var + module.eps)
    elif kind == "weight":
        g = g * F.layer_norm(x, module.normalized_shape, eps=module.eps)
    sums = g.reshape(len(g), -1, getattr(module, kind).numel()).sum(1)
    return sums if scale is None else sums * scale


def weight_pieces(module: nn.Module, x: Tensor, g: Tensor, columns: int) -> Iterator[Tensor]:
    """Per-sample weight gradients in pieces [images, ≈columns]: a kernel offset and a slice of output channels each."""
    g, seen = cotangent(module, g).transpose(2, 3), windows(module, x)
    for offset in product(range(seen.shape[3]), range(seen.shape[4])):
        inputs = cotangent(module, seen[:, :, :, *offset])
        step = max(1, columns // (g.shape[1] * inputs.shape[3]))
        for part in g.chunk(-(-g.shape[2] // step), dim=2):
            yield (part @ inputs).flatten(1)


def by_shifts(module: nn.Module) -> bool:
    """Whether A_iA_jᵀ is summed from shifts of x_ix_jᵀ, as ⟨A_i(p), A_j(q)⟩ = Σ_o ⟨x_i(p + o), x_j(q + o)⟩."""
    return (
        isinstance(module, nn.Conv2d)
        and module.stride == (1, 1)
        and module.kernel_size != (1, 1)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def pairwise_cost(module: nn.Module, x: Tensor, g: Tensor) -> int:
    """Multiply-adds a pair of images of `add_pairwise`; an entry of a P×P matrix costs about 20 to read and add."""
    _, groups, positions, d_out = cotangent(module, g).shape
    d_in, offsets = unfold(module, x).shape[3], 1
    if by_shifts(module):
        offsets = module.kernel_size[0] * module.kernel_size[1]
        d_in = d_in * x[0, ..., 0].numel() ** 2 // (offsets * positions**2)
    return positions**2 * groups * (d_in + d_out + 20 + 20 * offsets)


def add_pairwise(
    gram: Tensor,
    module: nn.Module,
    rows: tuple[Tensor, Tensor],
    cols: tuple[Tensor, Tensor],
    symmetric: bool,
) -> None:
    """gram[i, j] += ⟨A_i A_jᵀ, G_i G_jᵀ⟩ in tiles of images; with `symmetric` those on and above the diagonal."""

    def operands(batch: tuple[Tensor, Tensor], start: int) -> list[Tensor]:
        x, g = (t[start : start + step] for t in batch)
        x = cotangent(module, x) if by_shifts(module) else unfold(module, x)
        # [n, groups, P, d] -> [groups, P·n, d], images innermost so that sums over positions are vectorised
        return [t.permute(1, 2, 0, 3).flatten(1, 2) for t in (x, cotangent(module, g))]

    (n, m), positions = gram.shape, cotangent(module, rows[1]).shape[2]
    step = max(8, 512 // positions)  # tiles of 1 MB stay in the cache
    for r in range(0, n, step):
        x_r, g_r = operands(rows, r)
        for c in range(r if symmetric else 0, m, step):
            x_c, g_c = (x_r, g_r) if symmetric and c == r else operands(cols, c)
            height, width = min(step, n - r), min(step, m - c)
            tile, inner = g_r @ g_c.transpose(1, 2), x_r @ x_c.transpose(1, 2)
            if by_shifts(module):
                space = rows[0].shape[1:3], rows[1].shape[1:3]
                inner = shift_sum(module, inner, *space, height, width).view(tile.shape)
            sums = tile.mul_(inner).view(-1, positions, height, positions, width).sum((0, 1, 3))
            gram[r : r + height, c : c + width] += sums


def shift_sum(
    module: nn.Conv2d, products: Tensor, size: torch.Size, out: torch.Size, n: int, m: int
) -> Tensor:
    """Σ_o ⟨x_i(p + o), x_j(q + o)⟩ over kernel offsets o, from products [groups, H·W·n, H·W·m] of the raw inputs."""
    products = products.view(-1, *size, n, *size, m)
    total = products.new_zeros(len(products), *out, n, *out, m)
    for i in range(module.kernel_size[0]):
        for j in range(module.kernel_size[1]):
            to, source = [], []
            for axis, k in enumerate((i, j)):
                shift = k * module.dilation[axis] - module.padding[axis]
                low, high = max(0, -shift), max(0, min(out[axis], size[axis] - shift))
                to.append(slice(low, max(low, high)))
                source.append(slice(low + shift, max(low, high) + shift))
            total[:, to[0], to[1], :, to[0], to[1]] += products[
                :, source[0], source[1], :, source[0], source[1]
            ]
    return total


def add_product(gram: Tensor, rows: Tensor, cols: Tensor, symmetric: bool) -> None:
    """gram += rows colsᵀ; with `symmetric` only on and above the block diagonal, about half of the multiply-adds."""
    step = max(64, -(-len(rows) // 8)) if symmetric else len(rows)
    for r in range(0, len(rows), step):
        c = r if symmetric else 0
        gram[r : r + step, c:].addmm_(rows[r : r + step], cols[c:].T)
