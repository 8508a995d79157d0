"""With respect to which parameters the outputs are differentiated."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from .model import LinearizationError, Output, evaluating, hooked


def select(net: Output, images: Tensor, layers: str | Iterable[str]) -> dict[str, nn.Parameter]:
    """The gradient-requiring parameters meant by `layers`: "last", "last_conv", "all", or names."""
    asking = {name: p for name, p in net.model.named_parameters() if p.requires_grad}
    if not asking:
        raise LinearizationError(
            "expected gradient-requiring parameters, got none: do model.requires_grad_(True)"
        )
    if layers == "all":
        return asking
    if layers == "last":
        layers = [last_layer(net, images)]
    elif layers == "last_conv":
        layers = [last_convolution(net, images)]
    elif isinstance(layers, str):
        raise LinearizationError(
            f'expected layers="last", "last_conv", "all" or a list of names, got {layers!r}'
        )
    chosen = {}
    for wanted in layers:
        within = wanted + "."
        found = {n: p for n, p in asking.items() if n == wanted or n.startswith(within)}
        if not found:
            raise LinearizationError(
                f"expected a layer with gradient-requiring parameters, got {wanted!r}: "
                "see model.named_parameters()"
            )
        chosen |= found
    return chosen


SHARE = 0.01  # of the average layer's part of the kernel's trace: less is a gate or a side branch


def last_layer(net: Output, images: Tensor) -> str:
    """The last convolution or linear layer on the main path to the outputs, no classifier.

    On the main path is a layer that the outputs depend on, with at least a hundredth of the average
    layer's part of the kernel's trace (squeeze-excite gates have less), and that depends on the
    layer called before it (the projection of a residual shortcut does not). It is found on an image
    of noise, so that it is a property of the network.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(images[:1].shape, generator=generator)
    noise = torch.cat([noise, noise]).to(images)
    names = {
        module: name
        for name, module in net.model.named_modules()
        if isinstance(module, nn.Linear | _ConvNd) and module.weight.requires_grad
    }
    called: list[nn.Module] = []
    results: list[torch.autograd.graph.Node] = []

    def note(module: nn.Module, _: tuple, output: Tensor) -> None:
        called.append(module)
        results.append(output.grad_fn)

    weights = {module: module.weight for module in names}
    hooks = [module.register_forward_hook(note) for module in names]
    with evaluating(net, weights.values()), hooked(hooks):
        outputs = net(noise)
        if not called or not outputs.requires_grad:
            raise LinearizationError(
                'expected a convolution or linear layer for "last", got none: do layers="all"'
            )
        bits = torch.randint(2, outputs[0].shape, generator=generator)
        signs = 2 * bits.to(outputs) - 1
        found = torch.autograd.grad(
            outputs[0] @ signs, list(weights.values()), materialize_grads=True
        )
    # ‖∇(v·φ)‖² of a layer estimates its part of the trace Σ_d ‖∇φ_d‖²
    parts = {}
    for module, g in zip(weights, found):
        squares = g.double().square()
        parts[module] = float(squares.sum())
    least = SHARE * sum(parts.values()) / len(set(called))
    for i in reversed(range(len(called))):
        classifies = net.outputs == "logits" and results[i] is outputs.grad_fn
        follows = i == 0 or reaches(results[i], results[i - 1])
        if parts[called[i]] >= least and follows and not classifies:
            return names[called[i]]
    return names[max(parts, key=parts.get)]


def reaches(start: torch.autograd.graph.Node, goal: torch.autograd.graph.Node) -> bool:
    """Whether the result of `start` was computed from that of `goal`."""
    seen = set()
    stack = [start]
    while stack:
        node = stack.pop()
        if node is goal:
            return True
        if node is not None and node not in seen:
            seen.add(node)
            stack.extend(following for following, _ in node.next_functions)
    return False


def last_convolution(net: Output, images: Tensor) -> str:
    """The last Conv2d called, apart from the projections of shortcuts (beside the main path)."""
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
