"""The per-sample gradients of chosen parameters, kept layer by layer in their smallest form.

One forward and one backward pass give every layer's input x_i and output gradient g_i, from which all per-sample
gradients follow. A layer is kept as those two or, where that is smaller, as the gradient; no N×P Jacobian exists.
Parameters without a closed form (class token, layer scale, tied or reused weights) take `vmap(grad)`: exact, slower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import layers as L
from .model import LinearizationError, Output, check_images, evaluating, fast_layout, hooked, select


class Weight(NamedTuple):
    """One parameter ("weight" or "bias" of a module) and how it is kept: "flat" as gradients; as (x, g) to be made
    into gradients later ("pieces") or never ("pairs")."""

    kind: str
    way: str
    columns: slice  # of Block.flat, empty unless "flat"


class Block(NamedTuple):
    """The tangents of n images: gradients [n, columns] and (x, g) by module."""

    flat: Tensor
    raw: dict[nn.Module, tuple[Tensor, Tensor]]


def is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class Tangents:
    """Plans how each chosen parameter is differentiated and kept, then computes blocks of images.

    Every closed form is checked against autograd on the first two images; a parameter that fails it (tied or reused
    weights, a layer that does something else with its weight) joins those differentiated by `vmap(grad)`.
    Memory: half of `memory_budget` for blocks, a quarter for the activations of a batch, a quarter for contractions.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        layers: str | Iterable[str],
        outputs: str,
        *,
        memory_budget: int,
        batch_size: int = 64,
    ) -> None:
        self.net = Output(model, outputs)
        check_images(model, images)
        with evaluating(model):
            self._plan(model, images[:2], select(self.net, images, layers))
        self.room = max(
            2, memory_budget // 2 // (images.element_size() * max(self.kept, 1))
        )  # images at a time
        self.work = memory_budget // 4
        # each activation is kept once forward and met once more by a gradient of its size backward
        self.batch = max(1, min(batch_size, memory_budget // 4 // max(2 * self.activations, 1)))

    def _plan(self, model: nn.Module, few: Tensor, chosen: dict[str, nn.Parameter]) -> None:
        names = {id(parameter): name for name, parameter in chosen.items()}
        kinds = {
            module: [k for k in ("weight", "bias") if id(getattr(module, k, None)) in names]
            for module in model.modules()
            if L.family(module)
        }
        self.weights = {module: found for module, found in kinds.items() if found}
        sizes: list[int] = []
        with hooked(
            m.register_forward_hook(lambda m, a, out: sizes.append(getattr(out, "nbytes", 0)))
            for m in model.modules()
            if not any(True for _ in m.children())
        ):
            outputs = self.net(few)
        if outputs.ndim != 2:
            raise LinearizationError(
                f"expected outputs [N, D], got {list(outputs.shape)}: name another `outputs`"
            )
        self.dimension, self.activations = outputs.shape[1], sum(sizes) // len(few)
        v = (
            torch.linspace(-1, 1, self.dimension).sin().to(outputs) + 1.5
        )  # any cotangent with no zero will do
        signs = torch.tensor([1.0, -0.5]).to(outputs)[: len(few)]  # tells one image from the other
        truth = torch.autograd.grad(signs @ (outputs @ v), list(chosen.values()), allow_unused=True)
        truth = {name: t.flatten() for name, t in zip(chosen, truth) if t is not None}
        if not truth:
            raise LinearizationError(
                f"expected layers that the outputs depend on, got {list(chosen)[:4]}: name others"
            )
        seen: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}
        with evaluating(model, frozen=True):
            self._run(few, v, lambda module, x, g: seen.setdefault(module, []).append((x, g)))

        def right(module: nn.Module, kind: str, name: str) -> bool:
            if name not in truth or len(seen.get(module, ())) != 1:
                return False
            mine = signs @ L.gradient(module, kind, *seen[module][0])
            return bool((mine - truth[name]).norm() <= 1e-3 * truth[name].norm())

        self.weights, self.columns, self.kept = {}, 0, 0
        for module, found in kinds.items():
            for kind in found:
                name = names[id(getattr(module, kind))]
                if right(module, kind, name):
                    x, g = (t[:1] for t in seen[module][0])
                    size, way = truth.pop(name).numel(), "flat"
                    if L.family(module) == "affine" and kind == "weight":
                        if L.pairwise_cost(module, x, g) < size:
                            way = "pairs"
                        elif x.numel() + g.numel() < size:
                            way = "pieces"
                    end = self.columns + (size if way == "flat" else 0)
                    self.weights.setdefault(module, []).append(
                        Weight(kind, way, slice(self.columns, end))
                    )
                    self.columns, self.kept = (
                        end,
                        self.kept + (0 if way == "flat" else x.numel() + g.numel()),
                    )
        self.others = {name: chosen[name] for name in truth}
        self.columns += sum(p.numel() for p in self.others.values())
        self.kept += self.columns  # numbers kept per image

    def block(self, images: Tensor, v: Tensor) -> Block:
        """Tangents of `images` [n, 3, H, W] for ∇(v·φ)."""
        block, start = Block(images.new_empty(len(images), self.columns), {}), 0
        with evaluating(self.net, frozen=True):
            while start < len(images):
                rows = slice(start, start + self.batch)
                try:
                    self._fill(block, images[rows], v.to(images), rows)
                except RuntimeError as error:
                    if self.batch == 1 or not is_out_of_memory(error):
                        raise
                    self.batch //= 2  # and the same images again
                    torch.cuda.empty_cache()
                else:
                    start = rows.stop
        return block

    def _fill(self, block: Block, images: Tensor, v: Tensor, rows: slice) -> None:
        def keep(module: nn.Module, x: Tensor, g: Tensor) -> None:
            for w in self.weights[module]:
                if w.way == "flat":
                    block.flat[rows, w.columns] = L.gradient(module, w.kind, x, g)
                else:
                    if module not in block.raw:
                        block.raw[module] = tuple(
                            t.new_empty((len(block.flat), *t.shape[1:])) for t in (x, g)
                        )
                    for kept, new in zip(block.raw[module], (x, g)):
                        kept[rows] = new

        def value(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
            return functional_call(self.net, parameters, (image[None],))[0] @ v

        if self.weights:
            self._run(images, v, keep)
        if self.others:
            parameters = {f"model.{name}": p.detach() for name, p in self.others.items()}
            try:
                with sdpa_kernel(SDPBackend.MATH):  # the fused ones have no batching rule
                    gradients = vmap(grad(value), in_dims=(None, 0))(parameters, images)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                raise LinearizationError(
                    f"expected layers that torch.func.vmap can differentiate, got the parameters {list(self.others)} "
                    f"({error}): leave them out with layers=[names of the other layers]"
                ) from error
            found = torch.cat([g.flatten(1) for g in gradients.values()], 1)
            block.flat[rows, self.columns - found.shape[1] :] = found

    def _run(
        self, images: Tensor, v: Tensor, keep: Callable[[nn.Module, Tensor, Tensor], None]
    ) -> None:
        """Forward and backward of Σ_i v·φ(x_i), calling keep(module, x, g) for every layer as its g arrives."""
        inputs: dict[nn.Module, Tensor] = {}
        leaves: list[Tensor] = []

        def by_image(
            module: nn.Module, t: Tensor
        ) -> Tensor:  # windows of an image are its positions
            t = L.channels_last(module, t)
            return t if len(t) == len(images) else t.reshape(len(images), -1, t.shape[-1])

        def after(module: nn.Module, output: Tensor) -> Tensor:
            x = inputs.pop(module).detach()
            if not output.requires_grad:  # the graph begins at the first layer
                leaves.append(output.detach().requires_grad_())
                output = leaves[-1].clone()  # a leaf may not be changed in place
            if len(x) == len(images) or isinstance(module, nn.Linear):
                held = [x]  # and let go by the hook, layer by layer
                # a hook, not the gradient of the tensor: an activation in place would turn that into its own
                output.register_hook(
                    lambda g: keep(module, by_image(module, held.pop()), by_image(module, g))
                )
            return output

        before = [
            m.register_forward_pre_hook(lambda m, args: inputs.__setitem__(m, args[0]))
            for m in self.weights
        ]
        with hooked(
            before
            + [
                L.output_module(m).register_forward_hook(lambda _, a, out, m=m: after(m, out))
                for m in self.weights
            ]
        ):
            total = (self.net(fast_layout(images)) @ v).sum()
            if leaves:
                torch.autograd.grad(total, leaves, allow_unused=True)
