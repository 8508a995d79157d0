"""Tasks on disk: the Parquet cache (`NAME/train.parquet`, `test.parquet`, `meta.json`).

A Parquet file has the columns image struct<bytes: binary, path: string> and label int64; class
names are a JSON list under `class_names` in its schema metadata.
"""

import io
import json
import os
from pathlib import Path

import numpy as np
import pooch
import pyarrow.parquet as pq

from mzlib.errors import MzlibError
from mzlib.pixels import decode, whole

SPLITS = ("train", "test")
CONVERSION = "RGB, upright by EXIF, centre square crop, LANCZOS to {size}x{size}, WebP quality 82"


def root() -> Path:
    """The cache folder: $MZLIB_DATA, or the user's cache folder when that is unset or empty."""
    return Path(os.environ.get("MZLIB_DATA") or pooch.os_cache("mzlib")).expanduser().absolute()


def exists(folder: Path) -> bool:
    """Whether both splits of a task are there."""
    return all((folder / f"{split}.parquet").is_file() for split in SPLITS)


def state(folder: Path) -> tuple[int, ...]:
    """What changes when a task's files do."""
    files = [*(folder / f"{split}.parquet" for split in SPLITS), folder / "meta.json"]
    return tuple(path.stat().st_mtime_ns if path.is_file() else 0 for path in files)


def meta(folder: Path) -> dict:
    """What `meta.json` says of a cached task; empty without one."""
    file = folder / "meta.json"
    return json.loads(file.read_text("utf-8")) if file.is_file() else {}


def counts(folder: Path) -> dict[str, int]:
    """Numbers of images and classes, from the Parquet footers only."""
    (train, names), (test, _) = (_open(folder / f"{split}.parquet") for split in SPLITS)
    return {
        "train": train.metadata.num_rows,
        "test": test.metadata.num_rows,
        "classes": len(names),
    }


def _open(path: Path) -> tuple[pq.ParquetFile, list[str]]:
    """A Parquet file and its class names."""
    with whole(path):
        file = pq.ParquetFile(path)
    columns, metadata = file.schema_arrow.names, file.schema_arrow.metadata or {}
    if not {"image", "label"} <= set(columns) or b"class_names" not in metadata:
        expected = "columns image and label, and class_names in the schema metadata"
        raise MzlibError(
            f"{path}: expected {expected}, got columns {columns}, metadata {sorted(metadata)}"
        )
    return file, json.loads(metadata[b"class_names"])


def read(folder: Path) -> tuple[list[str], list[tuple[np.ndarray, np.ndarray]]]:
    """Class names, and (images uint8 [N, H, W, 3], labels int64 [N]) of train and test, of a cached
    task.
    """
    splits = []
    for path in (folder / f"{split}.parquet" for split in SPLITS):
        names, rows, labels = columns(path)
        present = np.unique(labels).tolist()
        if len(present) < 2 or not set(present) <= set(range(len(names))):
            raise MzlibError(
                f"{path}: expected two or more labels, all below {len(names)}, got {present[:5]}"
            )
        images = [decode(io.BytesIO(row["bytes"] or b""), f"{path}, {row['path']}") for row in rows]
        shapes = {image.shape for image in images}
        if len(shapes) > 1:
            raise MzlibError(f"{path}: expected images of one size, got {sorted(shapes)[:3]}")
        splits.append((np.stack(images), labels))
    return names, splits


def columns(path: Path) -> tuple[list[str], list[dict], np.ndarray]:
    """Class names, images (bytes, path) as stored and labels int64 of a Parquet file."""
    file, names = _open(path)
    with whole(path):
        table = file.read(["image", "label"])
    return names, table["image"].to_pylist(), table["label"].to_numpy().astype(np.int64)
