"""The paper's own data sets (Deshpande et al. 2021, Table 4), listed where their owners' archives
unpack them.

`paper.toml` says of each set where its files lie below `<root>/<name>/`; images stay there and are
decoded when a batch asks for them (`mzlib.streaming`). A `labels.csv` of path,label[,split] in a
set's folder replaces its layout.
"""

import csv
import json
import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.io import loadmat
from tqdm.auto import tqdm

from mzlib.benchmark.data import store
from mzlib.dataset import Split, Task, stratified_split
from mzlib.errors import MzlibError, one_line
from mzlib.streaming import ImageFiles

SETS = tomllib.loads(Path(__file__).with_name("paper.toml").read_text("utf-8"))
Row = tuple[
    Path, str, bool | None
]  # file, label, whether a test image (None: the set has no split of its own)


def root() -> Path:
    """Where the data sets lie, a folder each: $MZLIB_PAPER, or `paper/` in the task cache."""
    return Path(os.environ.get("MZLIB_PAPER") or store.root() / "paper")


@lru_cache(maxsize=32)
def load(name: str, size: int, folder: Path) -> Task:
    """The data set in `<folder>/<name>/` as a task of `ImageFiles` of `size` pixels."""
    paths, labels, test, _ = listing(name, folder / name)
    class_names, codes = np.unique(labels, return_inverse=True)
    parts = (Split(ImageFiles(paths[part], size), codes[part]) for part in (~test, test))
    return Task(
        name,
        SETS[name]["domain"],
        tuple(class_names.tolist()),
        *parts,
        SETS[name]["flip"],
        SETS[name],
    )


def listing(name: str, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """Paths (bytes), labels (str) and whether a test image, each [N], sorted by path; whether the
    split was drawn here, the set having none. Opens no image.

    Raises MzlibError: no such set or folder, a list that is missing or malformed, a split of some
    images only, no test images, a file in both splits, a test class without training images.
    """
    if name not in SETS:
        raise MzlibError(f"expected one of the paper's data sets ({', '.join(SETS)}), got {name!r}")
    spec = SETS[name]
    rows = _rows(name, folder, spec)
    files, labels, splits = zip(*rows)
    paths = np.array([os.fsencode(path) for path in files])
    labels = np.array(labels)
    splits = np.array(splits, object)
    without = splits == None  # noqa: E711  (elementwise)
    drawn = bool(without.all())
    if drawn:
        test = np.zeros(len(rows), bool)
        share = spec["test"] / (spec["train"] + spec["test"])
        test[stratified_split(labels, share)[1]] = True
    else:
        test = splits == True  # noqa: E712
    alone = np.setdiff1d(labels[test], labels[~test])
    both = np.intersect1d(paths[test], paths[~test])
    wrong = ""
    if without.any() and not drawn:
        first = os.fsdecode(paths[without][0])
        wrong = f"a split for all images or for none, got none for {first}, say train or test"
    elif not test.any():
        wrong = f"test images, too, in {folder}, got {len(rows)} for training; "
        wrong += f"get it so: {spec['get']}"
    elif len(alone):
        wrong = f"training images of every class, got none of {str(alone[0])!r}"
    elif len(both):
        wrong = f"a file in train or in test, got {os.fsdecode(both[0])} in both, list it once"
    if wrong:
        raise MzlibError(f"{name}: expected {wrong}")
    return paths, labels, test, drawn


def _rows(name: str, folder: Path, spec: dict) -> list[Row]:
    """What the layout's reader finds, sorted by path."""
    layout = "table" if (folder / "labels.csv").is_file() else spec["layout"]
    rows = []
    if not folder.is_dir():
        wrong = f"the data set in {folder}, got no such folder"
    else:
        wrong = f"images of {spec['classes']} classes in {folder}, got "
        try:
            rows = sorted(LAYOUTS[layout](folder, spec), key=lambda row: os.fspath(row[0]))
            wrong += f"{len(rows)} images"
        except Exception as error:  # noqa: BLE001  (a parser raises anything on a damaged list)
            wrong = f"the layout {layout!r} in {folder}, got {one_line(error)}"
    if len({label for _, label, _ in rows}) < 2:
        raise MzlibError(f"{name}: expected {wrong}; get it so: {spec['get']}")
    return rows


def check(name: str, folder: Path, progress: bool = True) -> list[str]:
    """What is found in `folder`, then a line for each thing wrong: counts unlike Table 4, files
    that cannot be decoded (20).
    """
    paths, labels, test, drawn = listing(name, folder)
    spec = SETS[name]
    ours = {"train": sum(~test), "test": sum(test), "classes": len(np.unique(labels))}
    note = f" ({spec['note']})" if "note" in spec else ""
    # a share of every class is rounded: one image a class to and fro
    rounded = drawn and len(labels) == spec["train"] + spec["test"]
    lines = []
    for key, count in ours.items():
        tolerance = spec["classes"] if rounded and key != "classes" else 0
        is_owners = count == spec.get(f"owners_{key}")
        if abs(count - spec[key]) > tolerance and not is_owners:
            lines.append(f"{count:,} {key}, Table 4 has {spec[key]:,}{note}")
    broken = []
    with (
        ThreadPoolExecutor() as pool,
        tqdm(
            desc=f"reading {name}",
            total=len(paths),
            unit="image",
            disable=not progress,
            leave=False,
        ) as bar,
    ):
        for start in range(0, len(paths), 1024):  # not all of a set's millions wait in the queue
            block = paths[start : start + 1024].tolist()
            damages = pool.map(_damage, block)
            broken += [f"{os.fsdecode(path)}: {why}" for path, why in zip(block, damages) if why]
            bar.update(len(block))
    found = (
        f"{ours['train']:,} train and {ours['test']:,} test images of {ours['classes']:,} classes, "
        f"{len(broken):,} unreadable"
    )
    found += note if ours["test"] == spec.get("owners_test") else ""
    return [found, *lines, *broken[:20]]


def _damage(path: bytes) -> str:
    try:
        with Image.open(path) as image:
            image.draft(None, (64, 64))  # a JPEG is read to its end at an eighth of the work
            image.load()
    except Exception as error:  # noqa: BLE001  (Pillow's parsers raise anything on damaged bytes)
        return f"{type(error).__name__}: {str(error)[:80]}"
    return ""


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]


def _folders(folder: Path, spec: dict) -> Iterator[Row]:
    for split, pattern in spec.get("splits", {"": spec.get("files")}).items():
        depth = pattern.split("/").index("{class}")
        for path in folder.glob(pattern.replace("{class}", "*")):
            yield path, path.relative_to(folder).parts[depth], split == "test" if split else None


def _lists(folder: Path, spec: dict) -> Iterator[Row]:
    for split, listed in spec["lists"].items():
        for line in _lines(folder / listed):
            if not (match := re.fullmatch(spec["line"], line)):
                raise ValueError(f"the line {line[:60]!r} in {listed}")
            yield (
                folder / spec["images"][split].format(**match.groupdict()),
                match["label"],
                split == "test",
            )


def _table(folder: Path, spec: dict) -> Iterator[Row]:
    with open(folder / "labels.csv", encoding="utf-8-sig", newline="") as lines:
        for row in csv.DictReader(lines):
            if (
                not row["path"]
                or not row["label"]
                or (split := row.get("split") or "") not in ("", *store.SPLITS)
            ):
                raise ValueError(f"the row {','.join(map(str, row.values()))!r} in labels.csv")
            yield folder / row["path"], row["label"], split == "test" if split else None


def _coco(folder: Path, spec: dict) -> Iterator[Row]:
    for split, listed in spec["lists"].items():
        table = json.loads((folder / listed).read_text("utf-8"))
        files = {image["id"]: image["file_name"] for image in table["images"]}
        for note in table["annotations"]:
            yield folder / files[note["image_id"]], f"{note['category_id']:04d}", split == "test"


def _products(folder: Path, spec: dict) -> Iterator[Row]:
    """Of the images that the owner's lists name those that are here: the lists are of addresses,
    and many have gone.
    """
    for split in ("train", "val"):
        here = set(os.listdir(folder / split))
        for image in json.loads((folder / f"{split}.json").read_text("utf-8"))["images"]:
            if image["id"] in here:
                yield folder / split / image["id"], f"{image['class']:04d}", split == "val"


def _landmarks(folder: Path, spec: dict) -> Iterator[Row]:
    table = pd.read_csv(folder / "train.csv", usecols=["id", "landmark_id"], dtype=str)
    if table.isna().any(axis=None):
        raise ValueError("an empty id or landmark_id in train.csv")
    most = {
        label for label, _ in Counter(sorted(table["landmark_id"])).most_common(spec["classes"])
    }
    for row in table[table["landmark_id"].isin(most)].itertuples():
        yield (
            folder / "train" / row.id[0] / row.id[1] / row.id[2] / f"{row.id}.jpg",
            row.landmark_id,
            None,
        )


def _flood(folder: Path, spec: dict) -> Iterator[Row]:
    relevant = set(_lines(folder / "relevance/depth.txt"))
    for path in (folder / "imgs_small").glob("*.jpg"):
        yield path, "depth" if path.stem in relevant else "other", None


def _flowers(folder: Path, spec: dict) -> Iterator[Row]:
    labels = loadmat(folder / "flowers-102/imagelabels.mat")["labels"][0]
    for key, numbers in loadmat(folder / "flowers-102/setid.mat").items():
        for i in numbers[0] if key in ("trnid", "valid", "tstid") else ():
            yield (
                folder / f"flowers-102/jpg/image_{i:05d}.jpg",
                f"{labels[i - 1]:03d}",
                key == "tstid",
            )


def _cub(folder: Path, spec: dict) -> Iterator[Row]:
    files, train = (
        [line.split()[1] for line in _lines(folder / "CUB_200_2011" / name)]
        for name in ("images.txt", "train_test_split.txt")
    )
    for file, flag in zip(files, train, strict=True):
        yield folder / "CUB_200_2011/images" / file, file.partition("/")[0], flag == "0"


def _cars(folder: Path, spec: dict) -> Iterator[Row]:
    base = folder / "stanford_cars"
    names = loadmat(base / "devkit/cars_meta.mat", squeeze_me=True)["class_names"]
    for notes, images in (
        ("devkit/cars_train_annos.mat", "cars_train"),
        ("cars_test_annos_withlabels.mat", "cars_test"),
    ):
        for note in loadmat(base / notes, squeeze_me=True)["annotations"]:
            yield (
                base / images / str(note["fname"]),
                str(names[note["class"] - 1]),
                images == "cars_test",
            )


LAYOUTS = {
    "folders": _folders,
    "lists": _lists,
    "table": _table,
    "coco": _coco,
    "products": _products,
    "landmarks": _landmarks,
    "flood": _flood,
    "flowers": _flowers,
    "cub": _cub,
    "cars": _cars,
}
