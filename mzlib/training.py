"""The one training loop: experts, multi-domain experts and fine-tunes all go through `train`.

The data set lives on the device as uint8; one gather cuts, crops and flips a whole batch there
(`ResidentSet`). Recipe of Deshpande et al. 2021 (Sec. 4.1-4.2): SGD with Nesterov momentum 0.9,
weight decay 1e-4, step decay x0.1; fine-tuning decays at epochs 15 and 25 of 30, that is at 1/2 and
5/6 of the steps.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy import ndarray
from threadpoolctl import ThreadpoolController
from torch import Tensor
from torch.nn import Module
from tqdm.auto import tqdm

from mzlib.errors import MzlibError
from mzlib.memory import full_float32, keeping_freed_memory, repeatable
from mzlib.provenance import written

# Of pixel values in [0, 1], the same for every domain.
MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)
Statistics = Sequence[float]  # of the three channels


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of one training run; a suite's TOML file holds them.

    epochs: passes over the data; lengthened so that at least `min_steps` updates are made.
    milestones: fractions of all steps at which the learning rate is multiplied by 0.1.
    """

    lr: float
    epochs: int
    batch_size: int
    min_steps: int = 0
    milestones: tuple[float, ...] = (1 / 2, 5 / 6)
    momentum: float = 0.9
    weight_decay: float = 1e-4

    def total_epochs(self, steps_per_epoch: int) -> int:
        """Passes over the data that make `min_steps` updates."""
        return max(self.epochs, math.ceil(self.min_steps / steps_per_epoch))


PAPER = Recipe(lr=0.005, epochs=30, batch_size=32)  # fine-tuning, Sec. 4.2


def default_device(name: str | torch.device | None = None) -> torch.device:
    """The device of that name, by default a GPU where there is one; MzlibError where there is none
    of that name.
    """
    if isinstance(name, torch.device):
        return name
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise MzlibError(
            f"expected a device of this machine, got {name!r}: do --device cpu"
        ) from error
    return device


def seeded(build: Callable[[], Module], seed: int) -> Module:
    """`build()` with its random initial weights drawn from `seed`; the global state is left as it
    was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed is of GPUs too
        return build()


_libraries = cache(ThreadpoolController)  # to look for them takes a millisecond


@contextmanager
def one_thread(when: bool = True) -> Iterator[None]:
    """One CPU thread within the block, of torch and of numpy's and scipy's BLAS: several wait for
    each other, on small matrices, up to 50 times as long as they compute.
    """
    if not when:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _libraries().limit(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)


def autocast(device: torch.device) -> torch.autocast:
    """bf16 autocast where the hardware multiplies bf16 (every recent GPU; x86 CPUs with AVX512-BF16
    or AMX), else float32.
    """
    fast = (
        device.type == "cuda"
        or torch.cpu._is_avx512_bf16_supported()
        or torch.cpu._is_amx_tile_supported()
    )
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def normalize(images: Tensor, mean: Statistics = MEAN, std: Statistics = STD) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W], (x / 255 - mean) / std, channels-last."""
    mean, std = (sent(torch.tensor(v) * 255, images.device) for v in (mean, std))
    return ((images - mean) / std).permute(0, 3, 1, 2)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. A GPU is not waited for: it copies from pinned memory once it has
    computed what was asked of it before.
    """
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class ResidentSet:
    """Labelled images that stay on the device and are cut into augmented batches there.

    images: uint8 [N, H, W, 3]; labels: int64 [N]; flip: whether a horizontal flip keeps the label.
    per_epoch: images drawn an epoch (None: each once); more than N are drawn with replacement.
    mean, std: of `normalize`.
    """

    def __init__(
        self,
        images: ndarray,
        labels: ndarray,
        *,
        flip: bool,
        device: torch.device,
        per_epoch: int | None = None,
        mean: Statistics = MEAN,
        std: Statistics = STD,
    ):
        if len(images) < 2:
            raise MzlibError(f"expected at least 2 training images, got {len(images)}")
        self.images: Any = images
        if isinstance(images, np.memmap):  # stays in its file
            self.images = torch.from_numpy(images)
        elif isinstance(images, ndarray):
            self.images = torch.tensor(images, device=device)  # a copy
        self.labels = torch.tensor(labels, device=device)
        self.flip, self.per_epoch, self.mean, self.std = flip, per_epoch or len(images), mean, std

    def batches_per_epoch(self, batch_size: int) -> int:
        """The last one is counted."""
        return math.ceil(self.per_epoch / batch_size)

    def epoch(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (float32 [B, 3, H, W], int64 [B]); all batches of an epoch have nearly equal size,
        so none has one image (batch norm at 1 x 1 pixels needs two).
        """
        for index in self.index_batches(batch_size, generator):
            labels = self.labels[sent(index, self.labels.device)]
            yield self.augmented(index, generator), labels

    def index_batches(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Which images each batch of an epoch has."""
        n = len(self.images)
        if self.per_epoch > n:
            order = torch.randint(n, (self.per_epoch,), generator=generator)
        else:
            order = torch.randperm(n, generator=generator)[: self.per_epoch]
        return order.tensor_split(self.batches_per_epoch(batch_size))

    def augmented(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Random crop after reflection by 1/8 of the side, random flip: one gather for the batch,
        no padded copy.
        """
        b = len(index)
        size = self.images.shape[1]
        device = self.images.device
        pad = size // 8
        shift = sent(torch.randint(-pad, pad + 1, (2, b, 1), generator=generator), device)
        at = torch.arange(size, device=device) + shift
        rows, cols = size - 1 - (size - 1 - at.abs()).abs()  # reflected at both borders
        if self.flip:
            mirrored = sent(torch.rand(b, 1, generator=generator) < 0.5, device)
            cols = torch.where(mirrored, size - 1 - cols, cols)
        first = sent(index, device)[:, None, None] * size
        pixel = (first + rows[:, :, None]) * size + cols[:, None, :]  # [B, H, W]
        flat = self.images.view(-1, 3).index_select(0, pixel.view(-1))
        batch = sent(flat.view(b, size, size, 3), self.labels.device)
        return normalize(batch, self.mean, self.std)


def interleaved(
    sets: dict[str, ResidentSet], batch_size: int, generator: torch.Generator
) -> Iterator[tuple]:
    """One balanced multi-domain epoch: every batch is of one domain, domains in random order;
    yields (x, y, domain).
    """
    names = [name for name, s in sets.items() for _ in range(s.batches_per_epoch(batch_size))]
    running = {name: s.epoch(batch_size, generator) for name, s in sets.items()}
    for i in torch.randperm(len(names), generator=generator):
        yield *next(running[names[i]]), names[i]


class Checkpoint:
    """One file, written as a whole after every epoch, from which `train` goes on.

    facts: what the run depends on; the file of another run is not used. extra: kept with it.
    """

    def __init__(self, path: Path, facts: str):
        self.path = path
        self.facts = facts
        self.extra: dict = {}

    def save(
        self, parts: dict, generator: torch.Generator, losses: list[float], ended: bool
    ) -> None:
        """The state of model and optimizer, and where the run is."""
        state = {name: part.state_dict() for name, part in parts.items()}
        state |= {"generator": generator.get_state(), "losses": losses, "ended": ended}
        state |= {"facts": self.facts, "extra": self.extra}
        with written(self.path, alone=True) as temporary:
            torch.save(state, temporary)

    def restore(self, parts: dict, generator: torch.Generator) -> tuple[list[float], bool]:
        """(losses, whether the run had ended) of the file, with its state; or ([], False)."""
        try:
            held = torch.load(self.path, map_location="cpu", weights_only=True)
            if held["facts"] != self.facts:
                return [], False
        except Exception:  # not there, or damaged: torch's reader raises anything
            return [], False
        for name, part in parts.items():
            part.load_state_dict(held[name])
        generator.set_state(held["generator"])
        self.extra = held["extra"]
        return held["losses"], held["ended"]


@keeping_freed_memory()
@repeatable()
def train(
    model: Module,
    data: ResidentSet | dict[str, ResidentSet],
    recipe: Recipe,
    *,
    seed: int,
    label: str = "",
    progress: bool = True,
    after_epoch: Callable[[int, int], bool | None] = lambda epoch, epochs: None,
    checkpoint: Checkpoint | None = None,
) -> list[float]:
    """Train in place; returns the mean training loss of every epoch (cross-entropy, nats).

    data: one set, or one set per domain: then `model(images, domain)` is called. The model is left
    in eval mode. after_epoch: called with (epoch from 1, epochs), to look at the model on its way;
    True ends the training. checkpoint: where to go on, and where to leave the state.
    Raises MzlibError when the loss stops being finite.
    """
    device = next(model.parameters()).device
    model.to(memory_format=torch.channels_last).train()
    generator = torch.Generator().manual_seed(seed)
    sets = data.values() if isinstance(data, dict) else [data]
    steps = sum(s.batches_per_epoch(recipe.batch_size) for s in sets)
    epochs = recipe.total_epochs(steps)
    optimizer, schedule = _sgd(model, recipe, epochs * steps)
    parts = {"model": model, "optimizer": optimizer}
    losses: list[float] = []
    ended = False
    if checkpoint:
        losses, ended = checkpoint.restore(parts, generator)
        schedule.last_epoch = len(losses) * steps  # of its epochs, which are our steps
    bar = {"total": epochs * steps, "initial": len(losses) * steps, "unit": "step"}
    with tqdm(desc=label, disable=not progress, leave=False, **bar) as shown:
        while len(losses) < epochs and not ended:
            start = time.perf_counter()
            total = torch.zeros((), device=device)
            seen = 0
            for images, labels, *domain in _epoch(data, recipe.batch_size, generator):
                with autocast(device):
                    loss = F.cross_entropy(model(images, *domain), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.detach()
                seen += len(labels)
                shown.update()
            losses.append(total.item() / steps)  # the only synchronisation with the device
            if not math.isfinite(losses[-1]):
                raise MzlibError(
                    f"training diverged in epoch {len(losses)} at learning rate {recipe.lr}: use "
                    "a smaller one"
                )
            speed = seen / (time.perf_counter() - start)
            shown.set_postfix_str(f"loss {losses[-1]:.3f}, {speed:.0f} images/s")
            ended = bool(after_epoch(len(losses), epochs))
            if checkpoint:
                checkpoint.save(parts, generator, losses, ended)
    model.eval()
    return losses


def _sgd(model: Module, recipe: Recipe, steps: int):
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=True,
        weight_decay=recipe.weight_decay,
    )
    milestones = [round(share * steps) for share in recipe.milestones]
    return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)


def _epoch(data: ResidentSet | dict[str, ResidentSet], batch_size: int, generator: torch.Generator):
    if isinstance(data, dict):
        return interleaved(data, batch_size, generator)
    return data.epoch(batch_size, generator)


def in_batches(function: Callable, images: Any, batch_size: int) -> Iterator:
    """`function` of `batch_size` images at a time; of half as many from where the device runs out
    of memory.
    """
    start = 0
    while start < len(images):
        try:
            result = function(images[start : start + batch_size])
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size //= 2
            continue
        start += batch_size
        yield result


@torch.inference_mode()
def predict(
    function: Callable,
    images: Any,
    device: torch.device,
    batch_size: int = 256,
    mean: Statistics = MEAN,
    std: Statistics = STD,
) -> Tensor:
    """Apply `function` (float [B, 3, H, W] -> [B, K]) to uint8 images [N, H, W, 3] in batches;
    float32 [N, K].
    """
    return torch.cat(list(predicted(function, images, device, batch_size, mean, std)))


@torch.inference_mode()
def predicted(
    function: Callable,
    images: Any,
    device: torch.device,
    batch_size: int = 256,
    mean: Statistics = MEAN,
    std: Statistics = STD,
    exact: bool = False,
) -> Iterator[Tensor]:
    """What `predict` joins, batch by batch; images may be `mzlib.streaming.ImageFiles`.

    exact: in float32, also where bf16 is fast.
    """

    def forward(batch: Tensor) -> Tensor:
        pixels = sent(torch.tensor(np.asarray(batch)), device)
        with repeatable(), full_float32() if exact else autocast(device):
            return function(normalize(pixels, mean, std)).float()

    for held in [images] if isinstance(images, ndarray) else images.batches(batch_size):
        yield from in_batches(forward, held, batch_size)


def accuracy(logits: Tensor, labels: ndarray) -> tuple[float, list[float]]:
    """Top-1 accuracy (fraction) and the accuracy within every class (NaN for a class without
    images).
    """
    hit = logits.argmax(1).cpu().numpy() == labels
    counts = np.bincount(labels, minlength=logits.shape[1])
    with np.errstate(invalid="ignore"):
        return float(hit.mean()), (
            np.bincount(labels, weights=hit, minlength=logits.shape[1]) / counts
        ).tolist()
