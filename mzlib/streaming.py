"""Image files that are decoded when a batch asks for them, for data sets that memory cannot hold.

`ImageFiles` stands where an array of pixels would (`task.train.images`), `FileSet` where a
`ResidentSet` would: one training loop serves both. Transforms are timm's: random resized crop
(Szegedy et al. 2015) and flip to train on, resize to 8/7 of the side and centre crop for everything
else (256 -> 224 pixels); the paper does not state its own.
"""

import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm.data
import torch
from numpy import ndarray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mzlib.errors import MzlibError
from mzlib.pixels import formats, rgb, whole
from mzlib.training import ResidentSet, normalize, sent

TRANSFORM: dict[str, Any] = {
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "use_prefetcher": True,
}  # prefetcher: uint8, not normalised
IN_PROCESS = 512  # fewer images than this are not worth starting worker processes for


@dataclass(frozen=True)
class ImageFiles:
    """paths: bytes [N] (one array: worker processes share it); size: pixels a side. Looks like
    uint8 [N, size, size, 3].
    """

    paths: ndarray
    size: int

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the pixels."""
        return len(self), self.size, self.size, 3

    def __getitem__(self, index: ndarray) -> "ImageFiles":
        return ImageFiles(self.paths[index], self.size)

    def __array__(self, dtype: Any = None, copy: Any = None) -> ndarray:
        return np.concatenate([batch.numpy() for batch in self.batches(256)])

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Yield uint8 [B, size, size, 3] in order, as the evaluation transform sees them."""
        transform = timm.data.create_transform(self.size, **TRANSFORM)
        index = torch.arange(len(self))
        seeds = torch.zeros_like(index)
        yield from _loaded(self.paths, transform, torch.stack([index, seeds], 1).split(batch_size))


class FileSet(ResidentSet):
    """Labelled `ImageFiles`, read and augmented by worker processes; every image's augmentation has
    a seed of its own, so that the number of workers changes no number.
    """

    images: Any

    def epoch(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple]:
        """As `ResidentSet.epoch`."""
        transform = timm.data.create_transform(
            self.images.size, is_training=True, color_jitter=0, hflip=self.flip / 2, **TRANSFORM
        )
        batches = self.index_batches(batch_size, generator)
        seeds = [torch.randint(2**31, (len(index),), generator=generator) for index in batches]
        loaded = _loaded(
            self.images.paths, transform, [torch.stack(pair, 1) for pair in zip(batches, seeds)]
        )
        for index, images in zip(batches, loaded):
            device = self.labels.device
            pixels = sent(images, device)
            labels = self.labels[sent(index, device)]
            yield normalize(pixels, self.mean, self.std), labels


def training_set(images: Any, labels: ndarray, **options) -> ResidentSet:
    """A `ResidentSet` of pixels uint8 [N, H, W, 3] or a `FileSet` of `ImageFiles`."""
    kind = FileSet if isinstance(images, ImageFiles) else ResidentSet
    return kind(images, labels, **options)


@dataclass(frozen=True)
class _Decoded(Dataset):
    """(index, seed) -> uint8 [size, size, 3]; the global random state is left as it was."""

    paths: ndarray
    transform: Callable

    def __getitem__(self, item: tuple[int, int]) -> Tensor:
        index, seed = item
        path = self.paths[index]
        before = random.getstate()
        with (
            whole(os.fsdecode(path)),
            Image.open(path, formats=formats()) as image,
            torch.random.fork_rng(devices=[]),
        ):
            random.seed(seed)  # timm's crop draws from here, torchvision's flip from torch
            torch.default_generator.manual_seed(seed)
            try:
                return self.transform(rgb(image)).permute(1, 2, 0)
            finally:
                random.setstate(before)


def workers(images: int) -> int:
    """Processes that decode: $MZLIB_LOADERS, or this slot's share of the cores, from 1 to 8; none
    for few images.
    """
    share = (os.cpu_count() or 1) // int(os.environ.get("MZLIB_SLOTS", "1"))
    wanted = os.environ.get("MZLIB_LOADERS") or str(max(1, min(8, share)))
    if not wanted.isdecimal():
        raise MzlibError(
            f"expected MZLIB_LOADERS to be a number of processes, got {wanted!r}: do export "
            "MZLIB_LOADERS=4"
        )
    return 0 if images < IN_PROCESS else int(wanted)


def _loaded(paths: ndarray, transform: Callable, batches: Sequence[Tensor]) -> DataLoader:
    """Batches of rows (index, seed), decoded in that order."""
    return DataLoader(
        _Decoded(paths, transform),
        batch_sampler=[batch.tolist() for batch in batches],
        num_workers=workers(sum(map(len, batches))),
        generator=torch.Generator(),
    )  # not the global one
