"""The per-sample gradients of chosen parameters, kept layer by layer in their smallest form.

One forward and one backward pass give every layer's input x_i and output gradient g_i, from which
all per-sample gradients follow. A layer is kept as those two or, where that is smaller, as the
gradient; no N×P Jacobian exists. Parameters that all images meet alike (class tokens, layer scales,
tables of positions: `operands`) follow from the same passes. All others (tied or reused weights)
are differentiated image by image: exact in every network, slower, and in the memory of two images.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import closing, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from . import layers as L
from .choice import Choice, select
from .model import (
    LinearizationError,
    Output,
    check_independent,
    checked,
    evaluating,
    fast_layout,
    hooked,
    is_out_of_memory,
    tolerance,
)
from .operands import Operands, mark


class Weight(NamedTuple):
    """One parameter ("weight", "bias" or "gain" of a module) and how it is kept.

    "flat" as gradients; as (x, g) to be made into gradients later ("pieces") or never ("pairs").
    """

    kind: str
    way: str
    columns: slice  # of Block.flat, empty unless "flat"


class Block(NamedTuple):
    """The tangents of n images for one cotangent: gradients [n, columns] and (x, g) by module."""

    flat: Tensor
    raw: dict[nn.Module, tuple[Tensor, Tensor]]


# of the cotangent's number, module, x and g, or None for both where a layer does not see images one
# by one
Keep = Callable[[int, nn.Module, Tensor | None, Tensor | None], None]
Found = Sequence[Tensor | None]  # gradients
Seen = dict[nn.Module, list[tuple[Tensor, Tensor]]]  # a layer's x and g, once a call


def free_memory(device: torch.device) -> int:
    """Bytes free on the device; 4 GiB where nobody can tell, and never counted as less."""
    free = 0
    if device.type == "cuda" and torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info(device)
        # what torch keeps of freed tensors counts as free
        reserved = torch.cuda.memory_reserved(device)
        free += reserved - torch.cuda.memory_allocated(device)
    else:
        with suppress(OSError, ValueError):  # Linux
            words = Path("/proc/meminfo").read_text().split()
            place = words.index("MemAvailable:")
            kibibytes = words[place + 1]
            free = 1024 * int(kibibytes)
    return max(4 << 30, free)


def unlike_plan(module: nn.Module) -> LinearizationError:
    """A layer that does not treat later images as it did the first two."""
    return LinearizationError(
        f"expected a {type(module).__name__} that sees the same positions of every image, "
        "got one that does not: leave it out with layers=[names of others]"
    )


def numbers(parameters: Iterable[nn.Parameter]) -> int:
    """How many numbers they hold."""
    return sum(p.numel() for p in parameters)


class Tangents:
    """Plans how each chosen parameter is differentiated and kept, then computes blocks of images.

    Every closed form is checked against autograd on two images; a parameter that fails it (tied or
    reused weights, a layer that does something else with its weight) joins those differentiated
    image by image. Memory: half of `memory_budget` for blocks, a quarter for the activations of a
    batch, a quarter for contractions. Half precision is kept, and contracted, as float32.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        layers: str | Iterable[str],
        outputs: str,
        *,
        memory_budget: int | None = None,
        batch_size: int = 64,
    ) -> None:
        self.net = Output(model, outputs)
        self.images = checked(self.net.model, images)
        self.dtype = torch.promote_types(images.dtype, torch.float32)
        self.weights: dict[nn.Module, list[Weight]] = {}
        self.shapes: dict[nn.Module, tuple[torch.Size, torch.Size]] = {}  # of an image's x and g
        self.raw: list[nn.Module] = []  # of which x and g are kept
        self.copied: list[nn.Parameter] = []  # whose operands get a copy an image
        self.windowed: set[nn.Module] = set()  # layers that see parts of images as a batch
        self.columns = 0
        self.inputs = 0  # numbers an image that all cotangents share
        self.kept = 0  # numbers an image and cotangent
        self.activations = 0  # bytes an image
        self.unmet: list[nn.Parameter] = []  # of which the outputs seem to be free
        self.met: Block | None = None  # of all images, in a pass for more than these parameters
        self.answers: list[tuple[Tensor, Tensor]] = []  # features and logits, if `net.with_logits`
        choice = select(self.net, self.images, layers)
        chosen = choice.parameters
        self.pair = choice.pair
        self.dimension = choice.outputs.shape[1]
        self._plan(choice)
        owners = [name.rpartition(".")[0] for name in chosen]
        self.layers = list(dict.fromkeys(owners))
        self.image_by_image_share = numbers(self.others) / numbers(chosen.values())
        share = 2 if images.is_cuda else 4  # a CPU's memory is of other programs too
        free = free_memory(images.device)
        self.budget = free // share if memory_budget is None else memory_budget
        self.work = self.budget // 4
        # each activation is kept once forward and met once more by a gradient of its size backward
        of_an_image = max(1, 2 * self.activations)
        fitting = min(batch_size, self.work // of_an_image)
        if not images.is_cuda:  # more are no faster
            pixels = images[0, 0].numel()
            fitting = min(fitting, max(16, (1 << 20) // pixels))
        self.batch = max(1, fitting)

    def room(self, cotangents: int) -> int:
        """Images whose tangents are kept at a time."""
        numbers = self.inputs + self.kept * cotangents
        bytes_an_image = self.dtype.itemsize * max(numbers, 1)
        return max(2, self.budget // 2 // bytes_an_image)

    def _plan(self, choice: Choice) -> None:
        """Fills `weights` with layers of right closed form, `copied` with parameters whose operands
        are, `others` with the other ones.
        """
        chosen = choice.parameters
        names = {id(parameter): name for name, parameter in chosen.items()}
        candidates = self._claimed(names)
        self.weights = dict.fromkeys(candidates, [])  # whose layers are looked at
        operands = Operands(list(chosen.values()), len(self.pair))
        truth, seen, of_copies = self._look(choice, operands)
        whole = torch.cat(list(truth.values()))
        self._norm = whole.norm()
        self.weights = {}
        self.unmet = [p for name, p in chosen.items() if name not in truth]
        for module, kinds in candidates.items():
            for kind in kinds:
                parameter = getattr(module, kind)
                name = names[id(parameter)]
                calls = seen.get(module, [])
                if len(calls) != 1 or name not in truth:
                    continue
                x, g = calls[0]
                if isinstance(module, nn.Conv2d) and x.ndim != 4:
                    continue  # of heads or windows of an image, whose positions are no grid now
                is_small = truth[name].norm() <= 1e-5 * self._norm
                if module in self.windowed and is_small:
                    continue
                of_images = L.gradient(module, kind, x, g)
                found = self._signs @ of_images
                if self._agree(found, truth[name]):
                    self._lay_out(module, kind, x, g)
                    del truth[name]
        left = {name: chosen[name] for name in truth}
        gradients = operands.gradients(of_copies, list(left.values()))
        for name, of_images in zip(left, gradients):
            if of_images is None:
                continue  # no copy says what it does, even where noise has a gradient of zero
            found = self._signs @ of_images.to(self.dtype)
            if self._agree(found, truth[name]):
                self.copied.append(left[name])
                del truth[name]
        self.others = [chosen[name] for name in truth]
        self.columns += numbers(self.copied) + numbers(self.others)
        self.kept += self.columns

    def _look(self, choice: Choice, operands: Operands) -> tuple[dict[str, Tensor], Seen, Found]:
        """One forward pass of the pair, which says what the plan must know of the network.

        Returns by name Σ_i s_i² ∇(v·φ(x_i)) by autograd for the parameters that the outputs depend
        on, and of Σ_i s_i v·φ(x_i) every layer's x and g, and the gradients of the operands'
        copies. From these follow g_i with Σ_i s_i g_i equal to the first. With s_i in the backward
        pass and in the sum images that a layer's layout mixes are found out even where their
        gradients are equal (a table of as many rows as windows only by a gradient not zero).
        """
        pair = self.pair
        chosen = choice.parameters
        # any cotangent without a zero will do; the signs tell one image from the other
        line = torch.linspace(-1, 1, self.dimension)
        v = line.sin() + 1.5
        twice = v.to(pair).expand(2, -1)
        signs = torch.tensor([1.0, -0.5], dtype=self.dtype)
        self._signs = signs.to(pair.device)
        squares = self._signs.square()
        weights = torch.stack([squares, self._signs])
        seen: Seen = {}
        sizes: list[int] = []

        def count(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            if getattr(output, "requires_grad", False):
                sizes.append(output.nbytes)

        def note(number: int, module: nn.Module, x: Tensor | None, g: Tensor | None) -> None:
            if number == 1 and x is not None:
                seen.setdefault(module, []).append((x, g))

        hooks = []
        for module in self.net.model.modules():
            if not any(module.children()):
                hooks.append(module.register_forward_hook(count))
        truth = {}
        asked = list(chosen.values())
        run = self._run(pair, twice, note, operands, weights, asked)
        with evaluating(self.net, asked), hooked(hooks), closing(run) as passes:
            outputs, found = next(passes)
            check_independent(self.net.model, outputs[1:], choice.outputs)
            for name, g in zip(chosen, found):
                if g is not None:
                    flat = g.flatten()
                    truth[name] = flat.to(self.dtype)
            del found
            ((_, found),) = passes
        if not truth:
            raise LinearizationError(
                f"expected layers that the outputs depend on, got {list(chosen)[:4]}: name others"
            )
        sizes += [copy.nbytes for _, copy in operands.met]
        self.activations = sum(sizes) // len(pair)
        return truth, seen, found[len(asked) :]

    def _claimed(self, names: Collection[int]) -> dict[nn.Module, list[str]]:
        """Modules that may have a closed form, and what they call the parameters of these ids."""
        claimed: dict[nn.Module, list[str]] = {}
        for module in self.net.model.modules():
            if not L.family(module) or module._parameters.get("weight") is None:
                continue  # a weight that is made from others is another tensor at every use
            for kind in ("weight", "bias", "gain"):
                if id(module._parameters.get(kind)) in names:
                    claimed.setdefault(module, []).append(kind)
        return claimed

    def _agree(self, found: Tensor, truth: Tensor) -> bool:
        """Up to rounding: a bias of attention's keys has a gradient of nothing else."""
        dtype = self.pair.dtype
        rounding = 30 * torch.finfo(dtype).eps * self._norm
        allowed = tolerance(dtype) * truth.norm() + rounding
        error = (found - truth).norm()
        return bool(error <= allowed)

    def _lay_out(self, module: nn.Module, kind: str, x: Tensor, g: Tensor) -> None:
        """Decides how a parameter with a closed form is kept: flat, pairs or pieces."""
        size = getattr(module, kind).numel()
        inputs = x[0].numel()
        outputs = g[0].numel()
        raw = inputs + outputs
        way = "flat"
        kept = L.family(module) if kind == "weight" else None
        if kept == "affine" and L.pairwise_cost(module, x, g) < size:
            way = "pairs"
        elif kept in ("affine", "standardized") and raw < size:
            way = "pieces"
        start = self.columns
        self.shapes[module] = (x.shape[1:], g.shape[1:])
        if way == "flat":
            self.columns += size
        else:
            self.raw.append(module)
            self.inputs += inputs
            self.kept += outputs
        weight = Weight(kind, way, slice(start, self.columns))
        self.weights.setdefault(module, []).append(weight)

    def block(self, images: Tensor, vs: Tensor) -> list[Block]:
        """Tangents of `images` [n, 3, H, W] for ∇(v·φ), a block for every v of `vs` [k, D]."""
        if self.met is not None:
            return [self.met]
        n = len(images)
        blocks = []
        for _ in vs:
            flat = images.new_zeros(n, self.columns, dtype=self.dtype)
            blocks.append(Block(flat, {}))
        for module in self.raw:
            x, g = self.shapes[module]
            inputs = flat.new_zeros(n, *x)
            for block in blocks:
                outputs = flat.new_zeros(n, *g)
                block.raw[module] = inputs, outputs
        start = 0
        while start < n:
            rows = slice(start, start + self.batch)
            try:
                self._fill(blocks, images[rows], vs.to(images), rows)
            except RuntimeError as error:
                if self.batch == 1 or not is_out_of_memory(error):
                    raise
                self.batch //= 2  # and the same images again
                torch.cuda.empty_cache()
            else:
                start = rows.stop
        return blocks

    def part_of(self, whole: Tangents, block: Block) -> Block | None:
        """The tangents of these parameters among the block's; None where it keeps others."""
        if self.others or self.copied:
            return None
        flat = block.flat.new_empty(len(block.flat), self.columns)
        for module, weights in self.weights.items():
            there = whole.weights.get(module, [])
            by_kind = {weight.kind: weight for weight in there}
            for weight in weights:
                same = by_kind.get(weight.kind)
                if same is None or same.way != weight.way:
                    return None
                flat[:, weight.columns] = block.flat[:, same.columns]
        return Block(flat, block.raw)

    def _fill(self, blocks: list[Block], images: Tensor, vs: Tensor, rows: slice) -> None:
        kept: list[set[nn.Module]] = [set() for _ in blocks]

        def keep(k: int, module: nn.Module, x: Tensor | None, g: Tensor | None) -> None:
            if x is None or g is None or module in kept[k]:
                raise unlike_plan(module)
            kept[k].add(module)
            self._keep(blocks[k], rows, module, x, g)

        if self.weights or self.copied:
            operands = Operands(self.copied, max(len(images), 2), planned=True)
            run = self._run(images, vs, keep, operands, asked=self.unmet)
            with evaluating(self.net, self.copied + self.unmet), closing(run) as passes:
                for (features, found), block in zip(passes, blocks):
                    if any(g is not None for g in found[: len(self.unmet)]):
                        raise LinearizationError(
                            "expected layers that every image meets, got some that images of noise "
                            "do not: name the layers of others"
                        )
                    of_copies = found[len(self.unmet) :]
                    gradients = operands.gradients(of_copies, self.copied)
                    self._keep_copied(block, rows, gradients)
            for modules in kept:
                for module in self.weights.keys() - modules:
                    raise unlike_plan(module)
            if self.net.with_logits:
                logits = self.net.logits.detach()[: len(images)]
                self.answers.append((features, logits))
        if self.others:
            start = rows.start
            for two in images.split(2):
                stop = start + len(two)
                gradients = self._image_by_image(two, vs)
                for block, found in zip(blocks, gradients):
                    first = self.columns - found.shape[1]
                    block.flat[start:stop, first:] = found
                start = stop

    def _keep_copied(self, block: Block, rows: slice, gradients: list[Tensor | None]) -> None:
        start = self.columns - numbers(self.others) - numbers(self.copied)
        for parameter, g in zip(self.copied, gradients):
            stop = start + parameter.numel()
            if g is not None:
                own = block.flat[rows, start:stop]
                own.copy_(g[: len(own)])
            start = stop

    def _keep(self, block: Block, rows: slice, module: nn.Module, x: Tensor, g: Tensor) -> None:
        if (x.shape[1:], g.shape[1:]) != self.shapes[module]:
            raise unlike_plan(module)
        for weight in self.weights[module]:
            if weight.way == "flat":
                gradients = L.gradient(module, weight.kind, x, g)
                block.flat[rows, weight.columns] = gradients
                continue
            raw = block.raw[module]
            for kept, new in zip(raw, (x, g)):
                kept[rows] = new

    def _image_by_image(self, images: Tensor, vs: Tensor) -> Tensor:
        """Gradients of the parameters without a closed form, [k, images, p]."""
        with evaluating(self.net, self.others):
            values = self.net(images) @ vs.T
            rows = []
            for value in values.T.flatten():
                found = torch.autograd.grad(
                    value, self.others, retain_graph=True, materialize_grads=True
                )
                row = torch.cat([g.flatten() for g in found])
                rows.append(row.to(self.dtype))
        gradients = torch.stack(rows)
        return gradients.unflatten(0, (len(vs), len(images)))

    def _by_image(self, module: nn.Module, t: Tensor, n: int) -> Tensor | None:
        """[images, …, channels]; windows of an image are its positions; None: no images."""
        last = L.channels_last(module, t.detach())
        t = last.to(self.dtype)
        met = max(n, 2)  # a lone image runs twice
        if len(t) == 0 or len(t) % met or t.ndim < 2:
            return None
        if len(t) > met:
            self.windowed.add(module)
            channels = t.shape[-1]
            t = t.reshape(met, -1, channels)
        return t[:n]

    def _run(
        self,
        images: Tensor,
        vs: Tensor,
        keep: Keep,
        operands: Operands,
        weights: Tensor | None = None,
        asked: Sequence[Tensor] = (),
    ) -> Generator[tuple[Tensor, Found], None, None]:
        """A forward pass, then for every v_k a backward pass of Σ_i w_ki v_k·φ(x_i).

        Calls `keep` as a layer's g arrives. Gives after every backward pass φ(x_i) and the
        gradients of `asked` and of the operands' copies. To be run through in `evaluating`.
        """
        number = -1  # of the cotangent; none while the network runs, which may differentiate itself
        leaves: list[Tensor] = []

        def note(module: nn.Module, x: Tensor | None, g: Tensor | None) -> None:
            if number >= 0:
                keep(number, module, x, g)

        with hooked(self._watch(len(images), note, leaves, operands)):
            batch = fast_layout(images)
            given = mark(batch[:])
            is_needed = operands.parameters or operands.linear
            with operands if is_needed else nullcontext():
                outputs = self.net(given)
            values = outputs @ vs.T
            if weights is not None:
                values = values * weights.T.to(values)
            totals = values.sum(0)
            copies = [copy for _, copy in operands.met]
            wanted = [*asked, *copies]
            targets = wanted + leaves
            for number, total in enumerate(totals):
                found: Found = [None] * len(targets)
                if total.requires_grad and targets:
                    # in a plan what is asked for and the operands share a graph
                    more = number + 1 < len(vs) or weights is not None
                    found = torch.autograd.grad(
                        total, targets, retain_graph=more, allow_unused=True
                    )
                yield outputs.detach(), found[: len(wanted)]

    def _watch(
        self, n: int, note: Callable, leaves: list[Tensor], operands: Operands
    ) -> list[RemovableHandle]:
        """Hooks by which `note` learns of every layer's x and g.

        Linear layers are watched where `F.linear` is called, by whomever. Where the graph begins,
        the layer's output becomes one of `leaves`.
        """
        inputs: dict[nn.Module, Tensor] = {}
        hooks: list[RemovableHandle] = []

        def before(module: nn.Module, args: tuple) -> None:
            inputs[module] = args[0]

        def after(module: nn.Module, _: nn.Module, args: tuple, output: Tensor) -> Tensor:
            return watched(module, inputs.pop(module), output)

        def watched(module: nn.Module, given: Tensor, output: Tensor) -> Tensor:
            x = self._by_image(module, given, n)
            if not torch.is_grad_enabled():
                return output  # no part of the graph
            if not output.requires_grad:  # the graph begins at the first layer
                leaves.append(output.detach().requires_grad_())
                output = leaves[-1].clone()  # a leaf may not be changed in place

            def hook(g: Tensor) -> None:
                note(module, x, self._by_image(module, g, n))

            # a hook, not the gradient of the tensor: an activation in place would turn that into
            # its own
            hooks.append(output.register_hook(hook))
            return output

        for module in self.weights:
            if isinstance(module, nn.Linear):
                operands.linear[id(module.weight)] = partial(watched, module)
                continue
            last = L.output_module(module)
            hook = partial(after, module)
            hooks.append(module.register_forward_pre_hook(before))
            hooks.append(last.register_forward_hook(hook))
        return hooks
