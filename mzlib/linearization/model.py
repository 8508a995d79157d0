"""What is differentiated, with respect to which parameters, and in which state of the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mzlib.errors import MzlibError


class LinearizationError(MzlibError, ValueError):
    """A model, image tensor or argument that cannot be linearized as asked."""


class Output(nn.Module):
    """The function that is differentiated: penultimate features φ(x) [N, D], or the classifier's logits [N, K]."""

    def __init__(self, model: nn.Module, outputs: str) -> None:
        super().__init__()
        if outputs not in ("features", "logits"):
            raise LinearizationError(f'expected outputs="features" or "logits", got {outputs!r}')
        if outputs == "features" and not hasattr(model, "forward_head"):
            raise LinearizationError(
                f"expected a timm-like model with forward_features and forward_head, got "
                f'{type(model).__name__}: do outputs="logits"'
            )
        self.model, self.outputs = model, outputs

    def forward(self, images: Tensor) -> Tensor:
        if self.outputs == "logits":
            return self.model(images)
        return self.model.forward_head(self.model.forward_features(images), pre_logits=True)


@contextmanager
def evaluating(model: nn.Module, frozen: bool = False) -> Iterator[None]:
    """Eval mode and, with `frozen`, no parameter asking for a gradient; every flag is put back, also on error."""
    training = [(module, module.training) for module in model.modules()]
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    tf32 = torch.backends.cudnn.allow_tf32
    try:
        model.eval()
        torch.backends.cudnn.allow_tf32 = (
            False  # its 10-bit mantissa would cost two of the five digits
        )
        for parameter in asking if frozen else ():
            parameter.requires_grad_(False)
        with torch.enable_grad():
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
        for module, flag in training:
            module.training = flag
        for parameter in asking:
            parameter.requires_grad_(True)


@contextmanager
def hooked(handles: Iterable) -> Iterator[None]:
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_images(model: nn.Module, images: Tensor) -> None:
    dtype = next(model.parameters()).dtype
    if images.ndim != 4 or len(images) == 0 or images.dtype != dtype:
        raise LinearizationError(
            f"expected images [N ≥ 1, 3, H, W] of the model's {dtype}, got "
            f"{list(images.shape)} of {images.dtype}: convert and normalise them first"
        )


def check_finite(result: Tensor) -> Tensor:
    if not torch.isfinite(result).all():
        raise LinearizationError(
            "expected finite gradients, got NaN or Inf: check the images and the weights"
        )
    return result


def select(net: Output, images: Tensor, layers: str | Iterable[str]) -> dict[str, nn.Parameter]:
    """The gradient-requiring parameters meant by `layers`: "all", "last_conv", or names of modules or parameters."""
    asking = {name: p for name, p in net.model.named_parameters() if p.requires_grad}
    if not asking:
        raise LinearizationError(
            "expected gradient-requiring parameters, got none: do model.requires_grad_(True)"
        )
    if layers == "all":
        return asking
    if isinstance(layers, str) and layers != "last_conv":
        raise LinearizationError(
            f'expected layers="last_conv", "all" or a list of names, got {layers!r}'
        )
    chosen = {}
    for wanted in [last_convolution(net, images)] if layers == "last_conv" else layers:
        found = {
            name: p for name, p in asking.items() if name == wanted or name.startswith(wanted + ".")
        }
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
    with (
        torch.no_grad(),
        hooked(
            module.register_forward_hook(lambda *_, name=name: called.append(name))
            for name, module in net.model.named_modules()
            if isinstance(module, nn.Conv2d)
            and not {"downsample", "shortcut"} & set(name.split("."))
        ),
    ):
        net(images[:1])
    if not called:
        raise LinearizationError(
            'expected a convolution for layers="last_conv", got none: do layers="all" or names'
        )
    return called[-1]


def cotangents(dimension: int, probes: int | str, seed: int) -> Iterator[Tensor]:
    """v [D] with E Σ vvᵀ = I: Rademacher/√probes, or with probes="exact" every basis vector in turn."""
    if probes != "exact" and not (isinstance(probes, int) and probes > 0):
        raise LinearizationError(f'expected probes > 0 or "exact", got {probes!r}')
    if probes == "exact":
        yield from torch.eye(dimension, dtype=torch.float64)
        return
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same on every device
    for _ in range(probes):
        yield (torch.randint(2, (dimension,), generator=generator).double() * 2 - 1) / probes**0.5


def fast_layout(images: Tensor) -> Tensor:
    """On a CPU convolutions are up to twice as fast with the channels last."""
    return (
        images.contiguous(memory_format=torch.channels_last)
        if images.device.type == "cpu"
        else images
    )
