"""Data sets of other libraries as labelled images: arrays, torch and torchvision data sets, Hugging
Face's.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    transform = getattr(held, "target_transform", None)
    names = getattr(held, "classes", None) if transform is None else None  # of labels as stored
    if hasattr(held, "samples") and hasattr(held, "classes"):  # torchvision's folders: files
        labels = _transformed([label for _, label in held.samples], transform)
        files = [(str(file), None) for file, _ in held.samples]
        return list(zip(files, _values(labels, name, kind, names)))
    if hasattr(held, "features") and hasattr(held, "column_names"):
        return _hugging_face(held, name, kind)
    if _is_pair(held):
        images, labels = held
        return _numbered(Collection(images, None, name), labels, kind)
    try:
        labels = getattr(held, "targets", None)
        if labels is None or len(labels) != len(held):
            labels = [held[i][1] for i in range(len(held))]
        else:
            labels = _transformed(labels, transform)
    except (TypeError, LookupError) as error:  # no length, or items that are no pairs
        raise MzlibError(f"expected {KINDS}, got {name}: {error}") from error
    return _numbered(Collection(held, 0, name), labels, kind, names)


def _is_pair(held: Any) -> bool:
    """Whether it is (images, labels), not two samples."""
    if not isinstance(held, tuple | list) or len(held) != 2 or not hasattr(held[0], "__len__"):
        return False
    if isinstance(held[1], tuple):  # a sample has two entries
        return len(held[0]) == len(held[1]) != 2
    return hasattr(held[1], "ndim") or isinstance(held[1], list)


def _transformed(labels: Any, transform: Callable | None) -> Any:
    """Labels as the data set's items bear them."""
    if transform is None:
        return labels
    return [transform(_plain(label)) for label in labels]


def _plain(label: Any) -> Any:
    return label.tolist() if hasattr(label, "tolist") else label


def _borne(labels: Any) -> Any:
    """The numbers of the labels that each image bears, of rows of 0 and 1; else as they are."""
    rows = np.asarray(labels) if getattr(labels, "ndim", 1) == 2 else labels
    shapes = {getattr(row, "shape", ()) for row in rows}
    if len(shapes) != 1 or len(shapes.pop()) != 1:
        return labels
    flags = np.stack([np.asarray(row) for row in rows])
    odd = flags[~np.isin(flags, (0, 1))]
    if len(odd):
        raise MzlibError(
            f"expected 0 or 1 for each label of an image, got {odd[0]}: say which labels it bears"
        )
    return [np.flatnonzero(row).tolist() for row in flags]


def _values(labels: Any, name: str, kind: str, names: Sequence[str] | None) -> list:
    """Labels as Python's own objects, by the names of their classes where there are names."""
    values = [_plain(label) for label in (_borne(labels) if kind == "several" else labels)]
    if names is None or all(isinstance(value, str) for value in values):
        return values
    try:
        return named(values, list(names))
    except ValueError as error:
        raise MzlibError(f"{name}: {error}") from None


def _numbered(
    images: Collection,
    labels: Sequence,
    kind: str,
    names: Sequence[str] | None = None,
) -> list[tuple]:
    if len(labels) != len(images.held):
        raise MzlibError(
            f"expected a label for each of {len(images.held)} images, got {len(labels)}"
        )
    values = _values(labels, str(images), kind, names)
    return [((images, i), value) for i, value in enumerate(values)]


def _hugging_face(held: Any, name: str, kind: str) -> list[tuple]:
    columns = held.column_names
    if columns is None or not hasattr(held, "__len__") or not hasattr(held, "__getitem__"):
        raise MzlibError(
            f"expected a data set with a length, got a streaming one: load {name} without streaming"
        )
    kinds = {key: type(held.features[key]).__name__ for key in columns}
    images = [key for key in columns if kinds[key] == "Image" or key.lower() in IMAGE]
    label = column_of(columns, None, LABEL)
    if not images or not label:
        raise MzlibError(f"expected the columns image and label, got {', '.join(columns)}")
    image = max(images, key=lambda key: kinds[key] == "Image")
    names = getattr(held.features[label], "names", None)
    return _numbered(Collection(held, image, name), list(held[label]), kind, names)


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
