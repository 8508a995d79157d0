"""The record of the frozen data sets: which files of a public repository make each,
`manifest.parquet`.

Columns task, split, path, label, with the rows in the order of the frozen copy (few-shot samples
are drawn by index). A path may end in `#part`: a box x0,y0,x1,y1 in an image, the number of an
image in an IDX file, a member of a zip archive. The schema metadata has class names and, per split,
the SHA-256 of the frozen copy's encoded images and labels.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from mzlib.benchmark.data import store

FILE = Path(__file__).with_name("manifest.parquet")


def about(name: str) -> dict:
    """`class_names` and `sha256` (split -> hex digest) of a recorded data set; empty for all
    others.
    """
    return json.loads(pq.read_schema(FILE).metadata[b"tasks"]).get(name, {})


def table(names: list[str]) -> pd.DataFrame:
    """task, split, path, label of the images of these data sets."""
    return pq.read_table(FILE, filters=[("task", "in", names)]).to_pandas()


def rows(name: str) -> dict[str, tuple[list[str], np.ndarray]]:
    """Paths in the repository and labels int64 of each split."""
    found = table([name]).astype({"label": np.int64})
    parts = {}
    for split in store.SPLITS:
        part = found[found["split"] == split]
        parts[split] = part["path"].tolist(), part["label"].to_numpy()
    return parts


def contents(folder: Path) -> tuple[dict, dict]:
    """What `about` and `rows` say, read from the Parquet files of a cached task."""
    found = {}
    digests = {}
    names = []
    for split in store.SPLITS:
        names, images, labels = store.columns(folder / f"{split}.parquet")
        found[split] = [image["path"] for image in images], labels
        content = [image["bytes"] or b"" for image in images]
        content.append(labels.astype("<i8").tobytes())
        digests[split] = hashlib.sha256(b"".join(content)).hexdigest()
    return {"class_names": names, "sha256": digests}, found


def compare(name: str, folder: Path) -> str:
    """One line: is the cached task the frozen copy, a rebuilt one of the same images, or something
    else?
    """
    if not store.exists(folder):
        return f"not in {folder.parent}"
    record = about(name)
    if not record:
        return "not recorded, nothing to compare with"
    here, found = contents(folder)
    recorded = rows(name)
    if here == record:
        return "the frozen copy or identical to it"
    same = [
        found[s][0] == recorded[s][0] and np.array_equal(found[s][1], recorded[s][1])
        for s in store.SPLITS
    ]
    if here["class_names"] == record["class_names"] and all(same):
        return (
            "rebuilt: the recorded images, labels and order, other pixels (another size or "
            "other library versions)"
        )
    return "neither the frozen copy nor the recorded images"
