"""With respect to which parameters the outputs are differentiated."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from .model import LinearizationError, Output, evaluating, hooked


class Choice(NamedTuple):
    """Parameters by name; an image of noise [1, 3, H, W] and its outputs [1, D] beside itself.

    What is found out with noise is a property of the network, not of the images.
    """

    parameters: dict[str, nn.Parameter]
    image: Tensor
    outputs: Tensor

    @property
    def pair(self) -> Tensor:
        """Two images that no layer can confuse, [2, 3, H, W]; the noise is the second."""
        other = self.image.flip(-1) * 0.7
        return torch.cat([other, self.image])


def select(net: Output, images: Tensor, layers: str | Iterable[str]) -> Choice:
    """The gradient-requiring parameters meant by `layers`: "last", "last_conv", "all", or names."""
    asking = {name: p for name, p in net.model.named_parameters() if p.requires_grad}
    if not asking:
        raise LinearizationError(
            "expected gradient-requiring parameters, got none: do model.requires_grad_(True)"
        )
    if isinstance(layers, str) and layers not in ("last", "last_conv", "all"):
        raise LinearizationError(
            f'expected layers="last", "last_conv", "all" or a list of names, got {layers!r}'
        )
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(images[:1].shape, generator=generator)
    noise = drawn.to(images)
    if layers == "last":
        name, outputs = last_layer(net, noise, generator)
        layers = [name]
    elif layers == "last_conv":
        name, outputs = last_convolution(net, noise)
        layers = [name]
    else:
        with evaluating(net), torch.no_grad():
            outputs = net(noise)
    if layers == "all":
        return Choice(real(asking), noise, outputs)
    chosen = {}
    for wanted in layers:
        within = wanted + "."
        found = {}
        for name, parameter in asking.items():
            if name == wanted or name.startswith(within):
                found[name] = parameter
        if not found:
            raise LinearizationError(
                f"expected a layer with gradient-requiring parameters, got {wanted!r}: "
                "see model.named_parameters()"
            )
        chosen |= found
    return Choice(real(chosen), noise, outputs)


def real(parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """The parameters; raises LinearizationError for complex ones."""
    for name, parameter in parameters.items():
        if parameter.is_complex():
            raise LinearizationError(
                f"expected real parameters, got {parameter.dtype} {name}: name the layers of others"
            )
    return parameters


SHARE = 0.01  # of the average layer's part of the kernel's trace: less is a gate or a side branch


def last_layer(net: Output, image: Tensor, generator: torch.Generator) -> tuple[str, Tensor]:
    """The last convolution or linear layer on the main path to the outputs, no classifier; and the
    outputs of the image.

    On the main path is a layer that the outputs depend on, with at least a hundredth of the average
    layer's part of the kernel's trace (squeeze-excite gates have less), and that depends on the
    layer called before it (the projection of a residual shortcut does not).
    """
    names = {}
    weights = {}
    for name, module in net.model.named_modules():
        own = asking_weights(module) if isinstance(module, nn.Linear | _ConvNd) else []
        if own:
            names[module] = name
            weights[module] = own
    asked = [weight for own in weights.values() for weight in own]
    called: list[nn.Module] = []
    results: list[torch.autograd.graph.Node] = []

    def note(module: nn.Module, _: tuple, output: Tensor) -> None:
        called.append(module)
        results.append(output.grad_fn)

    hooks = [module.register_forward_hook(note) for module in names]
    with evaluating(net, asked), hooked(hooks):
        outputs = net(torch.cat([image, image]))
        if not called or not outputs.requires_grad:
            raise LinearizationError(
                'expected a convolution or linear layer for "last", got none: do layers="all"'
            )
        bits = torch.randint(2, outputs[0].shape, generator=generator)
        signs = 2 * bits.to(outputs) - 1
        value = outputs[0] @ signs
        found = iter(torch.autograd.grad(value, asked, materialize_grads=True))
    # ‖∇(v·φ)‖² of a layer estimates its part of the trace Σ_d ‖∇φ_d‖²
    parts = dict.fromkeys(weights, 0.0)
    for module, own in weights.items():
        for _ in own:
            norm = torch.linalg.vector_norm(next(found), dtype=torch.float64)
            parts[module] += float(norm.square())
    average = sum(parts.values()) / len(set(called))
    least = SHARE * average
    name = names[max(parts, key=parts.get)]
    for i in reversed(range(len(called))):
        classifies = net.outputs == "logits" and results[i] is outputs.grad_fn
        follows = i == 0 or reaches(results[i], results[i - 1])
        if parts[called[i]] >= least and follows and not classifies:
            name = names[called[i]]
            break
    return name, outputs[:1].detach()


def asking_weights(module: nn.Module) -> list[nn.Parameter]:
    """Its weight, or the parameters that a parametrization makes it from (to read the weight would
    make it, and in train mode change the parametrization's buffers); those that ask for gradients.
    """
    named = dict(module.named_parameters())
    if "weight" in named:
        named = {"weight": named["weight"]}
    return [p for name, p in named.items() if p.requires_grad and name != "bias"]


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


def last_convolution(net: Output, image: Tensor) -> tuple[str, Tensor]:
    """The last Conv2d called, apart from the projections of shortcuts (beside the main path); and
    the outputs of the image.
    """
    called: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, module in net.model.named_modules()
        if isinstance(module, nn.Conv2d) and not {"downsample", "shortcut"} & set(name.split("."))
    ]
    with evaluating(net), torch.no_grad(), hooked(hooks):
        outputs = net(image)
    if not called:
        raise LinearizationError(
            'expected a convolution for layers="last_conv", got none: do layers="all" or names'
        )
    return called[-1], outputs
