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
from mzlib.layouts import IMAGE, LABEL, Row, printable, split_of
from mzlib.pixels import rgb

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


def adapted_rows(source: Any) -> list[Row]:
    """(place, label, split) of every image of another library's data set; nothing is decoded before
    it is needed.
    """
    parts = dict(source) if isinstance(source, Mapping) else {"": source}
    rows = []
    for part, held in parts.items():
        split = split_of(part)
        if part and not split:
            raise MzlibError(f"expected splits named train, test or validation, got {part!r}")
        name = f"{type(held).__name__} {part}".strip()
        rows += [(place, label, split) for place, label in _rows(held, name)]
    return rows


def _rows(held: Any, name: str) -> list[tuple]:
    """(place, label) of every image."""
    if hasattr(held, "samples") and hasattr(held, "classes"):  # torchvision's folders: files
        return [((str(file), None), str(held.classes[label])) for file, label in held.samples]
    if hasattr(held, "features") and hasattr(held, "column_names"):
        return _hugging_face(held, name)
    if isinstance(held, tuple) and len(held) == 2 and np.ndim(held[1]) == 1:
        images, labels = held
        return _numbered(Collection(images, None, name), len(images), labels)
    if hasattr(held, "__getitem__") and hasattr(held, "__len__") and not isinstance(held, str):
        return _torch(held, name)
    raise MzlibError(f"expected {KINDS}, got {type(held).__name__}")


def _numbered(
    images: Collection, number: int, labels: Sequence, names: Sequence[str] = ()
) -> list[tuple]:
    if len(labels) != number:
        raise MzlibError(f"expected a label for each of {number} images, got {len(labels)}")
    values = [label.item() if hasattr(label, "item") else label for label in labels]
    if names:
        values = [names[value] for value in values]
    return [((images, i), str(value)) for i, value in enumerate(values)]


def _torch(held: Any, name: str) -> list:
    """Labels by the attribute where torchvision keeps them, else item by item."""
    known = [getattr(held, key, None) for key in ("targets", "labels", "_labels")]
    labels = next((found for found in known if found is not None and np.ndim(found) == 1), None)
    if labels is None or len(labels) != len(held):
        labels = []
        for i in range(len(held)):
            item = held[i]
            if not isinstance(item, tuple | list) or len(item) < 2:
                raise MzlibError(f"expected {KINDS}, got items of {type(item).__name__}")
            labels.append(item[1])
    names = getattr(held, "classes", None) or []
    return _numbered(Collection(held, 0, name), len(held), labels, list(names))


def _hugging_face(held: Any, name: str) -> list:
    columns = held.column_names
    image = next((key for key in columns if type(held.features[key]).__name__ == "Image"), None)
    image = image or next((key for key in columns if key.lower() in IMAGE), None)
    label = next((key for key in columns if key.lower() in LABEL and key != image), None)
    if image is None or label is None:
        raise MzlibError(f"expected the columns image and label, got {', '.join(columns)}")
    names = getattr(held.features[label], "names", None) or []
    return _numbered(Collection(held, image, name), len(held), list(held[label]), names)


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
    channels_first = x.ndim == 3 and x.shape[0] in (1, 3, 4) and x.shape[2] not in (1, 3, 4)
    if channels_first:
        x = x.transpose(1, 2, 0)
    if x.ndim == 3 and x.shape[2] == 1:
        x = x[..., 0]
    if np.issubdtype(x.dtype, np.floating) and x.size and 0 <= x.min() and x.max() <= 1:
        x = (x * 255).round().astype(np.uint8)
    if x.dtype != np.uint8 or x.ndim not in (2, 3) or x.shape[2:] not in ((), (3,), (4,)):
        raise MzlibError(
            f"{printable(name)}: expected images of PIL, or uint8 or floats from 0 to 1, [H, W, 3] "
            f"or [3, H, W], got {x.dtype} {list(x.shape)}; leave out a transform that normalises"
        )
    return np.ascontiguousarray(x)
