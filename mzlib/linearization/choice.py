"""With respect to which parameters the outputs are differentiated."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .model import LinearizationError, Output, evaluating, hooked


def select(net: Output, images: Tensor, layers: str | Iterable[str]) -> dict[str, nn.Parameter]:
    """The gradient-requiring parameters meant by `layers`: "all", "last_conv", or names of modules or parameters."""
    asking = {name: p for name, p in net.model.named_parameters() if p.requires_grad}
    if not asking:
        raise LinearizationError(
            "expected gradient-requiring parameters, got none: do model.requires_grad_(True)"
        )
    if layers == "all":
        return asking
    if layers == "last_conv":
        layers = [last_convolution(net, images)]
    elif isinstance(layers, str):
        raise LinearizationError(
            f'expected layers="last_conv", "all" or a list of names, got {layers!r}'
        )
    chosen = {}
    for wanted in layers:
        found = {n: p for n, p in asking.items() if n == wanted or n.startswith(wanted + ".")}
        if not found:
            raise LinearizationError(
                f"expected a layer with gradient-requiring parameters, got {wanted!r}: "
                "see model.named_parameters()"
            )
        chosen |= found
    return chosen


def last_convolution(net: Output, images: Tensor) -> str:
    """The last Conv2d called, the projections of residual shortcuts apart (they run beside the main path)."""
    called: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, module in net.model.named_modules()
        if isinstance(module, nn.Conv2d) and not {"downsample", "shortcut"} & set(name.split("."))
    ]
    with evaluating(net), torch.no_grad(), hooked(hooks):
        net(images[:1])
    if not called:
        raise LinearizationError(
            'expected a convolution for layers="last_conv", got none: do layers="all" or names'
        )
    return called[-1]
