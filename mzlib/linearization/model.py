"""What is differentiated, and in which state of the model."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mzlib.errors import MzlibError
from mzlib.memory import full_float32, keeping_freed_memory, repeatable


class LinearizationError(MzlibError, ValueError):
    """A model, image tensor or argument that cannot be linearized as asked."""


# what a network raises for images that it cannot take
UNFIT = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class Output(nn.Module):
    """The function that is differentiated: penultimate features φ(x) [N, D], or logits [N, K].

    Features are what timm calls the pre-logits; in other models, what the last linear layer takes,
    if its output is the model's. A compiled model is replaced by its original, one made in
    inference mode by a copy. `with_logits`: a pass that gives features leaves its logits too.
    """

    def __init__(self, model: nn.Module, outputs: str) -> None:
        super().__init__()
        if outputs not in ("features", "logits"):
            raise LinearizationError(f'expected outputs="features" or "logits", got {outputs!r}')
        if isinstance(model, torch.jit.ScriptModule):
            raise LinearizationError(
                "expected a module in Python, got a scripted or traced one: pass its original"
            )
        model = getattr(model, "_orig_mod", model)
        if any(p.is_inference() for p in model.parameters()):
            model = copy.deepcopy(model)
        self.model = model
        self.outputs = outputs
        self.with_logits = False
        self.logits: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        """φ or logits of a batch; of one image as the first of two.

        Alone it may take another, wrong, route: torch's batch norm in eval mode differentiates one
        image in a memory layout that its gradient need not have.
        """
        batch = images if len(images) > 1 else images.repeat(2, 1, 1, 1)
        try:
            outputs = self._features(batch) if self.outputs == "features" else self.model(batch)
        except (LinearizationError, NotImplementedError):
            raise  # say what is wrong; both are among UNFIT too
        except UNFIT as error:
            if is_out_of_memory(error):
                raise
            raise unfit(self.model, images, error) from error
        outputs = getattr(outputs, "logits", outputs)  # of Hugging Face models
        if not isinstance(outputs, Tensor) or outputs.ndim != 2:
            got = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise LinearizationError(
                f"expected outputs [N, D], got {got}: name another `outputs`, or pool them"
            )
        return outputs if len(images) > 1 else outputs[:1]

    def _features(self, images: Tensor) -> Tensor:
        if hasattr(self.model, "forward_head"):
            maps = self.model.forward_features(images)
            if self.with_logits:
                self.logits = self.model.forward_head(maps)
            return self.model.forward_head(maps, pre_logits=True)
        linear = [m for m in self.model.modules() if isinstance(m, nn.Linear)]
        calls = []
        with hooked(m.register_forward_hook(lambda *call: calls.append(call)) for m in linear[-1:]):
            outputs = self.model(images)
        self.logits = getattr(outputs, "logits", outputs)
        if not calls or calls[-1][2] is not self.logits:
            raise LinearizationError(
                "expected a model with forward_head as in timm, or that ends in a linear layer, "
                f'got {type(self.model).__name__}: do outputs="logits"'
            )
        return calls[-1][1][0]


def is_out_of_memory(error: Exception) -> bool:
    """Whether a GPU's or the CPU's memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def tolerance(dtype: torch.dtype) -> float:
    """Relative difference that is rounding, not another function."""
    return max(1e-3, 30 * torch.finfo(dtype).eps)


def unfit(model: nn.Module, images: Tensor, error: Exception) -> LinearizationError:
    """What a model says of images that it cannot take, on one line."""
    reason = " ".join(str(error).split())[:200]
    return LinearizationError(
        f"expected images that {type(model).__name__} can take, got {list(images.shape)} "
        f"({type(error).__name__}: {reason}): resize them, or take another model"
    )


@contextmanager
def exact() -> Iterator[None]:
    """Gradients, and products with all their digits, whatever the caller's context: inference mode,
    autocast, TF32.
    """
    with (
        keeping_freed_memory(),
        full_float32(),
        repeatable(),
        torch.inference_mode(False),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield


@contextmanager
def evaluating(model: nn.Module, asking: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """Eval mode in which only the parameters `asking` ask for gradients; all is put back.

    Gradient checkpointing is off. What a forward pass has left in caches (attention biases in timm)
    or written to buffers does not outlive the context.
    """
    modules = list(model.modules())  # once: to walk through a network takes a millisecond
    training = [(module, module.training) for module in modules]
    parameters = [(module, dict(module._parameters)) for module in modules]
    required = [(p, p.requires_grad) for p in model.parameters()]
    buffers = [(buffer, buffer._version, buffer.clone()) for buffer in model.buffers()]
    checkpointing = [m for m in modules if getattr(m, "grad_checkpointing", False) is True]
    try:
        forget_caches(modules)
        for module in checkpointing:
            module.grad_checkpointing = False
        for parameter, _ in required:
            parameter.requires_grad_(False)
        for parameter in asking:
            parameter.requires_grad_(True)
        with full_float32(), torch.enable_grad():
            yield
    finally:
        forget_caches(modules)
        for module, own in parameters:  # functional_call leaves tensors in modules of two names
            module._parameters.update(own)
        for module, was_training in training:
            if was_training:
                module.training = True
        for parameter, flag in required:
            parameter.requires_grad_(flag)
        for module in checkpointing:
            module.grad_checkpointing = True
        for buffer, version, value in buffers:
            if buffer._version != version:
                buffer.copy_(value)


def forget_caches(modules: Iterable[nn.Module]) -> None:
    """Leave the modules in eval mode without their caches: timm forgets them in train mode."""
    try:
        for module in modules:
            if getattr(module.train, "__func__", None) is not nn.Module.train:  # its own
                module.train()
                module.eval()
            if module.training:
                module.training = False
    except NotImplementedError as error:  # torch.export
        raise LinearizationError(
            "expected a module in Python, got an exported one: pass its original"
        ) from error


@contextmanager
def hooked(handles: Iterable) -> Iterator[None]:
    """Hooks for the time of the context; more may join a list of them."""
    if not isinstance(handles, list):
        handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def checked(model: nn.Module, images: Tensor) -> Tensor:
    """The images as plain data; raises LinearizationError for others than the model's."""
    like = next(model.parameters())
    fit = images.dtype == like.dtype and images.device == like.device
    if images.ndim != 4 or len(images) == 0 or not fit:
        raise LinearizationError(
            f"expected images [N ≥ 1, 3, H, W] of the model's {like.dtype} on {like.device}, got "
            f"{list(images.shape)} of {images.dtype} on {images.device}: convert and normalise "
            "them first"
        )
    return images.clone() if images.is_inference() else images.detach()


def check_independent(model: nn.Module, together: Tensor, alone: Tensor) -> None:
    """Raises LinearizationError if an image's outputs beside another differ from those beside
    itself, as after batch norm without statistics.
    """
    difference = (together - alone).norm()
    if difference > tolerance(alone.dtype) * alone.norm():
        raise LinearizationError(
            "expected outputs of an image that depend on no other, got "
            f"{type(model).__name__} with others (batch norm without statistics?): "
            "set track_running_stats=True and train"
        )


def check_finite(result: Tensor, dtype: torch.dtype) -> Tensor:
    """The result, or LinearizationError for NaN or Inf in it."""
    if not torch.isfinite(result).all():
        overflow = " (float16 overflows above 65504: do model.float())"
        raise LinearizationError(
            "expected finite gradients, got NaN or Inf: check the images and the weights"
            + (overflow if dtype == torch.float16 else "")
        )
    return result


def cotangents(dimension: int, probes: int | str, seed: int) -> Tensor:
    """v [k, D] in float64 with E Σ vvᵀ = I: Rademacher/√probes, or for "exact" the unit vectors."""
    if probes == "exact":
        return torch.eye(dimension, dtype=torch.float64)
    if not (isinstance(probes, int) and probes > 0):
        raise LinearizationError(f'expected probes > 0 or "exact", got {probes!r}')
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same on every device
    bits = torch.randint(2, (probes, dimension), generator=generator)
    signs = 2 * bits.double() - 1
    return signs / probes**0.5


def fast_layout(images: Tensor) -> Tensor:
    """On a CPU convolutions are up to twice as fast with the channels last."""
    on_cpu = images.device.type == "cpu"
    return images.contiguous(memory_format=torch.channels_last) if on_cpu else images
