"""Data sets of other libraries as labelled images: arrays, torch and torchvision data sets, Hugging
Face's.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mzlib.errors import MzlibError
from mzlib.pixels import rgb
from mzlib.splits import split_of
from mzlib.tables import IMAGE, LABEL, Listing, column_of, labelled, named, printable

KINDS = (
    "a path, a pair (images, labels), a torch Dataset of (image, label), a torchvision "
    "ImageFolder, a datasets.Dataset or a dictionary of these by split"
)


@dataclass(frozen=True, eq=False)
class Collection:
    """Images that an object holds: item i of `held`, or its entry `key`."""

    held: Any
    key: Any
    name: str

    def __str__(self) -> str:
        return self.name

    def read(self, rows: list[int]) -> Iterator[bytes]:
        """Encoded images, without loss; b"" where the object has none."""
        for row in rows:
            item = self.held[int(row)]
            yield encoded(item if self.key is None else item[self.key], str(self))


def adapted_rows(source: Any, kind: str = "classes") -> Listing:
    """(place, label, split) of every image of another library's data set, and notes; nothing is
    decoded before it is needed. kind: of the labels (`mzlib.selectors.targets.KINDS`).
    """
    parts = dict(source) if isinstance(source, Mapping) else {"": source}
    places: list[tuple] = []
    labels: list = []
    splits: list[str] = []
    for part, held in parts.items():
        split = split_of(str(part))
        if part and not split:
            raise MzlibError(f"expected splits named train, test or validation, got {part!r}")
        name = f"{type(held).__name__} {part}".strip()
        rows = _rows(held, name, kind)
        places += [place for place, _ in rows]
        labels += [label for _, label in rows]
        splits += [split] * len(rows)
    try:
        return labelled(places, labels, splits, kind)
    except ValueError as error:
        raise MzlibError(f"{type(source).__name__}: {error}") from None


def _rows(held: Any, name: str, kind: str) -> list[tuple]:
    """(place, label) of every image."""
    if hasattr(held, "samples") and hasattr(held, "classes"):  # torchvision's folders: files
        return [((str(file), None), str(held.classes[label])) for file, label in held.samples]
    if hasattr(held, "features") and hasattr(held, "column_names"):
        return _hugging_face(held, name)
    if _is_pair(held):
        images, labels = held
        if kind == "several" and getattr(labels, "ndim", 1) == 2:
            labels = [np.flatnonzero(row).tolist() for row in np.asarray(labels)]
        return _numbered(Collection(images, None, name), labels)
    try:
        labels = getattr(held, "targets", None)
        if labels is None or len(labels) != len(held):
            labels = [held[i][1] for i in range(len(held))]
    except (TypeError, LookupError) as error:  # no length, or items that are no pairs
        raise MzlibError(f"expected {KINDS}, got {name}: {error}") from error
    return _numbered(Collection(held, 0, name), labels, getattr(held, "classes", None))


def _is_pair(held: Any) -> bool:
    """Whether it is (images, labels), not two samples."""
    if not isinstance(held, tuple | list) or len(held) != 2 or not hasattr(held[0], "__len__"):
        return False
    return hasattr(held[1], "ndim") or isinstance(held[1], list)


def _numbered(
    images: Collection,
    labels: Sequence,
    names: Sequence[str] | None = None,
) -> list[tuple]:
    if len(labels) != len(images.held):
        raise MzlibError(
            f"expected a label for each of {len(images.held)} images, got {len(labels)}"
        )
    values = [label.tolist() if hasattr(label, "tolist") else label for label in labels]
    if names is not None and not all(isinstance(value, str) for value in values):
        try:
            values = named(values, list(names))
        except ValueError as error:
            raise MzlibError(f"{images}: {error}") from None
    return [((images, i), value) for i, value in enumerate(values)]


def _hugging_face(held: Any, name: str) -> list[tuple]:
    columns = held.column_names
    kinds = {key: type(held.features[key]).__name__ for key in columns}
    images = [key for key in columns if kinds[key] == "Image" or key.lower() in IMAGE]
    label = column_of(columns, None, LABEL)
    if not images or not label:
        raise MzlibError(f"expected the columns image and label, got {', '.join(columns)}")
    image = max(images, key=lambda key: kinds[key] == "Image")
    names = getattr(held.features[label], "names", None)
    return _numbered(Collection(held, image, name), list(held[label]), names)


def encoded(image: Any, name: str) -> bytes:
    """An image as a file without loss: PIL's, or an array or tensor [H, W], [H, W, C] or [C, H, W],
    uint8 or floats from 0 to 1.
    """
    if image is None:
        return b""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(_array(image, name))
    buffer = io.BytesIO()
    rgb(image).save(buffer, "PPM")
    return buffer.getvalue()


def _array(image: Any, name: str) -> np.ndarray:
    x = np.asarray(image)
    channels = (1, 3, 4)
    if x.ndim == 3 and x.shape[0] in channels and x.shape[2] not in channels:
        x = x.transpose(1, 2, 0)
    if x.ndim == 3 and x.shape[2] == 1:
        x = x[..., 0]
    if np.issubdtype(x.dtype, np.floating) and x.size and 0 <= x.min() and x.max() <= 1:
        x = (x * 255).round().astype(np.uint8)
    if x.dtype != np.uint8 or x.ndim != 2 and x.shape[2:] not in ((3,), (4,)):
        raise MzlibError(
            f"{printable(name)}: expected images of PIL, or uint8 or floats from 0 to 1, [H, W, 3] "
            f"or [3, H, W], got {x.dtype} {list(x.shape)}; leave out a transform that normalises"
        )
    return np.ascontiguousarray(x)
