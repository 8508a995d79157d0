"""Labelled images: what a ranking or a fine-tuning asks of them, in memory or in files, and their
few-shot subsets.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from mzlib.errors import MzlibError
from mzlib.pixels import resized

LARGEST = 20_000  # images scored by default, unless a number per class is given
PER_CLASS = 25  # scored by default, as in the paper


@runtime_checkable
class LabelledImages(Protocol):
    """Images with labels, a training part that may be scored and a test part that may not.

    All indices are into one numbering of both parts. `Task` holds its images in memory at one size;
    `mzlib.images.Images` lists files and converts them to what each expert wants to see.
    """

    @property
    def name(self) -> str:
        """For people."""

    @property
    def path(self) -> str:
        """What finds the images again on the command line."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of every class."""

    @property
    def labels(self) -> np.ndarray:
        """int64 [N], into `class_names`."""

    @property
    def targets(self) -> np.ndarray | None:
        """None where an image has one class. Else numbers, float64 [N, 1], or which label an image
        bears, bool [N, K]: then `labels` are groups alike in these, to draw and to leave out by.
        """

    @property
    def held_out(self) -> np.ndarray:
        """bool [N]: the test part."""

    @property
    def given_split(self) -> bool:
        """Whether whoever made the images chose the test part."""

    @property
    def flip(self) -> bool:
        """Whether a mirrored image keeps its label."""

    @property
    def notes(self) -> list[str]:
        """What a reader should know, a line each."""

    def sample(
        self, images_per_class: int | str | None, seed: int, shots: int | str = "full"
    ) -> np.ndarray:
        """Sorted int64 indices of the training images to score, at most so many of each class
        (`per_class`).
        """

    def reference(self, scored: np.ndarray, shots: int | str, seed: int) -> np.ndarray:
        """Sorted int64 indices of the images that a small reference net is trained on (RSA): all of
        the regime `shots` where they are in memory, else those that are scored.
        """

    def pixels(
        self,
        index: np.ndarray,
        config: dict | None = None,
        cache: Path | None = None,
        progress: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(uint8 [n, H, W, 3], readable bool [len(index)]): the n readable images of sorted
        indices, as an expert with timm's data configuration `config` (`mzlib.images.input_config`)
        sees them; None: as they are stored, files at 64 pixels. cache: a folder for converted
        files.
        """

    def shown(self, i: int) -> str:
        """Where image i lies, fit for a terminal."""

    def overlap(self) -> list[str]:
        """A warning where test images are also training images, else nothing."""


@dataclass(frozen=True)
class Split:
    """Images uint8 [N, H, W, 3] (or `mzlib.streaming.ImageFiles`) and labels int64 [N], both
    read-only.
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        for held in (self.images, self.labels):
            if isinstance(held, np.ndarray):  # not files
                held.flags.writeable = False  # one copy serves all jobs of a process


@dataclass(frozen=True)
class Task:
    """A classification task in memory: `LabelledImages` whose training images come first in the
    numbering.

    flip: labels survive a horizontal flip; card: role, licence, origin, citation …
    """

    name: str
    domain: str
    class_names: tuple[str, ...]
    train: Split
    test: Split
    flip: bool = False
    card: dict = field(default_factory=dict)
    given_split: bool = True
    targets: None = None

    @property
    def path(self) -> str:
        """What finds the task on the command line: its name."""
        return self.name

    @property
    def notes(self) -> list[str]:
        """None: nothing was left out."""
        return []

    @cached_property
    def labels(self) -> np.ndarray:
        """Of both parts, int64 [N]."""
        return np.concatenate([self.train.labels, self.test.labels])

    @cached_property
    def held_out(self) -> np.ndarray:
        """bool [N]: the test part, which comes last."""
        return np.arange(len(self.labels)) >= len(self.train.labels)

    def sample(
        self, images_per_class: int | str | None, seed: int, shots: int | str = "full"
    ) -> np.ndarray:
        """As `LabelledImages.sample`, of the training images of the regime `shots` (`subset`)."""
        number = per_class(images_per_class, len(self.class_names))
        return subset(self, shots, seed).sample(number, seed)

    def reference(self, scored: np.ndarray, shots: int | str, seed: int) -> np.ndarray:
        """As `LabelledImages.reference`."""
        return subset(self, shots, seed).train

    def pixels(
        self,
        index: np.ndarray,
        config: dict | None = None,
        cache: Path | None = None,
        progress: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `LabelledImages.pixels`, of indices that are all of one part.

        An expert from outside, whose configuration names its mean, gets stored pixels: it resizes
        them itself (`mzlib.evidence.prepared`).
        """
        in_test = bool(len(index)) and bool(self.held_out[index[0]])
        part = self.test if in_test else self.train
        within = index - len(self.train.labels) if in_test else index
        everything = np.array_equal(within, np.arange(len(part.labels)))  # not copied
        images = part.images if everything else part.images[within]
        if config and "mean" not in config:
            images = resized(images, config["input_size"][-1])
        return images, np.ones(len(index), bool)

    def shown(self, i: int) -> str:
        """As `LabelledImages.shown`."""
        return f"{self.name}, image {i}"

    def overlap(self) -> list[str]:
        """As `LabelledImages.overlap`: tasks were checked when they were made."""
        return []


@dataclass(frozen=True)
class Subset:
    """Images of a task's training split: `train` to fine-tune on, `validation` held out from it for
    choosing the rate.

    train, validation: int64 indices into `task.train`.
    """

    task: Task
    train: np.ndarray
    validation: np.ndarray

    def sample(self, images_per_class: int | str, seed: int) -> np.ndarray:
        """Indices of at most `images_per_class` ("all": every one) training images of each class,
        for scoring.
        """
        shots = images_per_class if images_per_class == "all" else int(images_per_class)
        return self.train[few_shot(self.task.train.labels[self.train], shots, seed)]


def subset(task: Task, shots: int | str, seed: int) -> Subset:
    """The `shots` regime of a task ("full", or images per class).

    Validation images are drawn first, min(10, a fifth of the class) of each class, none from
    classes under 5 images, so that all regimes share them; the few-shot subsets are nested in what
    remains. The paper has no validation split.
    """
    labels = task.train.labels
    held_out = [np.empty(0, np.int64)]
    for label, number in enumerate(np.bincount(labels)):
        if number >= 5:
            members = np.flatnonzero(labels == label)
            held_out.append(members[few_shot(labels[members], min(10, int(number) // 5), seed)])
    validation = np.sort(np.concatenate(held_out))
    pool = np.setdiff1d(np.arange(len(labels)), validation)
    chosen = few_shot(labels[pool], shots if shots == "full" else int(shots), seed)
    return Subset(task, pool[chosen], validation)


def per_class(asked: int | str | None, classes: int) -> int | str:
    """Images of each class to score: what was asked for (a number, also as text, or "all"), by
    default 25, of many classes fewer, so that they are at most 20,000 in all, but two of each.
    """
    if asked is None:
        return min(PER_CLASS, max(2, LARGEST // classes))
    if asked == "all":
        return asked
    if isinstance(asked, str) and asked.isdecimal():
        asked = int(asked)
    if isinstance(asked, bool) or not isinstance(asked, int | np.integer) or asked < 1:
        raise MzlibError(
            f"expected images per class to be 'all' or a positive number, got {asked!r}"
        )
    return int(asked)


def few_shot(labels: np.ndarray, shots: int | str | None, seed: int) -> np.ndarray:
    """Sorted int64 indices of at most `shots` images of each class, drawn by `seed`; None,
    "full" or "all": every one.

    Nested: with one seed the indices of 5 shots are among those of 20 shots. A class with fewer
    images keeps them all.

    Raises:
    ValueError: `labels` is not a vector of integers or `shots` not a positive whole number.

    Examples:
        >>> few_shot(np.array([0, 0, 0, 1, 1, 2]), shots=2, seed=0)
        array([0, 2, 3, 4, 5])
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"expected integer labels [N], got {labels.dtype} {list(labels.shape)}")
    if shots in (None, "full", "all"):
        return np.arange(len(labels))
    if isinstance(shots, bool) or not isinstance(shots, int | np.integer) or shots < 1:
        raise ValueError(
            f'expected shots to be a whole number of at least 1, None or "full", got {shots!r}'
        )
    chosen = [np.empty(0, np.int64)]
    for label in np.unique(labels):
        # a generator a class: its order depends neither on shots nor on other classes
        rng = np.random.default_rng([seed, label % 2**32])
        chosen.append(rng.permutation(np.flatnonzero(labels == label))[:shots])
    return np.sort(np.concatenate(chosen))


def stratified_split(
    labels: np.ndarray, share: float = 0.2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of a train and a test part; `share` of each class, at least one image, goes to
    test.
    """
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    test = np.concatenate([rng.permutation(m)[: max(1, round(share * len(m)))] for m in members])
    return np.setdiff1d(np.arange(len(labels)), test), np.sort(test)
