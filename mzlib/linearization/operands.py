"""Parameters that all images meet alike: layer scales, class tokens, tables of positions.

The operand t(p) of an elementwise operation with what is computed from the images is a function of
parameters alone: γ in γ·x, e in x + e, a table read out and added to an attention map. It is given
to every image as a copy t_i, so that one backward pass yields all ∂/∂t_i, and the per-sample
gradients (∂t/∂p)ᵀ ∂/∂t_i follow without another pass through the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .model import LinearizationError

# names of torch's functions; "add" is "add_" too
ELEMENTWISE = {"add", "sub", "mul", "div", "addcmul", "scaled_dot_product_attention"}
EXPANDING = {"expand", "expand_as", "repeat"}
JOINING = {"cat", "concat"}


class Operands(TorchFunctionMode):
    """For a forward pass: gives every image its own copy of what `parameters` alone determine.

    `met` lists the operands and their copies [rows, …]. `images` have a row each or, cut into
    windows, several that follow each other. `linear`: by the id of a weight, what is to be done
    with the input and output of `F.linear` that a network calls itself. `planned`: where no copy
    can be given, LinearizationError is raised, as two images of noise needed none there.
    """

    def __init__(self, parameters: Sequence[Tensor], images: int, planned: bool = False) -> None:
        super().__init__()
        self.parameters = parameters
        self.images = images
        self.planned = planned
        self.linear: dict[int, Callable[[Tensor, Tensor], Tensor]] = {}
        self.met: list[tuple[Tensor, Tensor]] = []
        self.derived = {id(p): p for p in parameters}  # kept, lest another gets the id
        self.repeated: dict[int, Tensor] = {}  # by the id of a derived tensor: whose row it repeats

    def __torch_function__(
        self, func: Callable, types: Iterable, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        called = getattr(func, "__name__", "")
        name = called.removesuffix("_")
        given = list(tensors([args, kwargs]))
        derived = [t for t in given if id(t) in self.derived]
        of_images = [t for t in given if self.is_of_images(t)]
        if name == "linear" and id(given[0]) not in self.derived:
            func = self.linear_map
        elif derived and of_images:
            copies = {}
            for t in derived:
                if name == called or t is not given[0]:  # what changes in place stays itself
                    copies[id(t)] = self.copied(t, name, of_images)
                    if self.planned and copies[id(t)] is t and name in ELEMENTWISE | JOINING:
                        raise LinearizationError(
                            "expected parameters that meet every image alike, got one that does "
                            f"not ({called}): leave it out with layers=[names of others]"
                        )
            args = replaced(args, copies)
            kwargs = replaced(kwargs, copies)
        result = func(*args, **kwargs)
        for t in tensors([result]):
            if of_images:
                mark(t)
            elif derived and t.requires_grad:
                self.derived[id(t)] = t
                source = derived[0]
                repeats = t.ndim == source.ndim and len(source) == 1
                if name in EXPANDING and repeats:
                    self.repeated[id(t)] = source
        return result

    def is_of_images(self, t: Tensor) -> bool:
        """Whether it was computed from images; autograd functions in Python lose the mark."""
        if hasattr(t, "of_images"):
            return True
        return t.requires_grad and id(t) not in self.derived

    def linear_map(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """`F.linear` with a bias by image, whose input and output may be noted."""
        if bias is not None and id(bias) in self.derived and not bias.is_leaf:
            output = F.linear(input, weight)
            by_image = self.copied(bias, "add", [output])
            output = output + by_image
        else:
            output = F.linear(input, weight, bias)
        note = self.linear.get(id(weight))
        return note(input, output) if note else output

    def copied(self, operand: Tensor, name: str, of_images: list[Tensor]) -> Tensor:
        """A copy with a row an image, or the operand where rows are no images."""
        rows = operand
        source = self.repeated.get(id(operand))
        if source is None and name in ELEMENTWISE:
            largest = max(of_images, key=Tensor.dim)
            missing = largest.ndim - operand.ndim
            if missing < 0 or (missing == 0 and len(operand) != 1):
                return operand
            source = operand
            row = operand[(None,) * missing]
            count = len(largest)
            rows = row.expand(count, *row.shape[1:])
        elif source is None or name not in ELEMENTWISE | JOINING:
            return operand
        if len(rows) % self.images:
            return operand
        copy = rows.clone()
        self.met.append((source, copy))
        return mark(copy)

    def gradients(
        self, found: Sequence[Tensor | None], parameters: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """Per-sample gradients [images, p] of parameters, from those of the copies in `met`; None
        for one that no copy depends on.
        """
        size = self.images
        operands = []
        parts = []
        for (operand, copy), g in zip(self.met, found):
            of_rows = torch.zeros_like(copy) if g is None else g
            by_image = of_rows.unflatten(0, (size, 1, -1))
            summed = by_image.sum(2)
            missing = (1,) * (copy.ndim - operand.ndim)
            part = summed.sum_to_size(size, *missing, *operand.shape)
            parts.append(part.reshape(size, *operand.shape))
            operands.append(operand)
        gradients: list[Tensor | None] = [None] * len(parameters)
        if operands and parameters:
            options = {"retain_graph": True, "is_grads_batched": True, "allow_unused": True}
            gradients = list(torch.autograd.grad(operands, parameters, parts, **options))
        return [None if g is None else g.reshape(size, -1) for g in gradients]


def mark(t: Tensor) -> Tensor:
    """The tensor, which depends on the images from now on."""
    t.of_images = True  # type: ignore[attr-defined]
    return t


def tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dictionaries."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from tensors(value)
        elif isinstance(value, dict):
            yield from tensors(value.values())


def replaced(value: Any, by_id: dict[int, Tensor]) -> Any:
    """The nested value with other tensors in the places of those with these ids."""
    if isinstance(value, tuple | list):
        return type(value)(replaced(part, by_id) for part in value)
    if isinstance(value, dict):
        return {key: replaced(part, by_id) for key, part in value.items()}
    return by_id.get(id(value), value)
