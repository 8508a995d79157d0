"""A labelled data set: images and labels with a train and a test split, and its few-shot subsets."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Split:
    """Images uint8 [N, H, W, 3] (or `mzlib.streaming.ImageFiles`) and labels int64 [N], both read-only."""

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        for held in (self.images, self.labels):
            if isinstance(held, np.ndarray):  # not files
                held.flags.writeable = False  # one copy serves all jobs of a process


@dataclass(frozen=True)
class Task:
    """A classification task; `flip`: labels survive a horizontal flip; `card`: role, licence, origin, citation …"""

    name: str
    domain: str
    class_names: tuple[str, ...]
    train: Split
    test: Split
    flip: bool = False
    card: dict = field(default_factory=dict)


def few_shot(labels: np.ndarray, shots: int | str | None, seed: int) -> np.ndarray:
    """Sorted int64 indices of at most `shots` images of each class, drawn by `seed`; None or "full": all of them.

    Nested: with one seed the indices of 5 shots are among those of 20 shots. A class with fewer images keeps them all.

    Raises:
        ValueError: `labels` is not a vector of integers or `shots` not a positive whole number.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"expected integer labels [N], got {labels.dtype} {list(labels.shape)}")
    if shots is None or shots == "full":
        return np.arange(len(labels))
    if isinstance(shots, bool) or not isinstance(shots, int | np.integer) or shots < 1:
        raise ValueError(
            f'expected shots to be a whole number of at least 1, None or "full", got {shots!r}'
        )
    chosen = [  # a generator per class: its order depends neither on `shots` nor on the other classes
        np.random.default_rng([seed, label % 2**32]).permutation(np.flatnonzero(labels == label))[
            :shots
        ]
        for label in np.unique(labels)
    ]
    return np.sort(np.concatenate([np.empty(0, np.int64), *chosen]))


def stratified_split(
    labels: np.ndarray, share: float = 0.2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of a train and a test part; `share` of each class, at least one image, goes to test."""
    rng, members = (
        np.random.default_rng(seed),
        [np.flatnonzero(labels == label) for label in np.unique(labels)],
    )
    test = np.concatenate([rng.permutation(m)[: max(1, round(share * len(m)))] for m in members])
    return np.setdiff1d(np.arange(len(labels)), test), np.sort(test)
