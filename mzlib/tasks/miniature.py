"""Miniatures of the paper's data sets: a few small images in each set's real folder layout, for `--scale tiny` and the tests."""

import json
import re
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from mzlib.tasks.paper import SETS

CLASSES, TRAIN, TEST = 3, 6, 2  # images per class
NAMES = {"oxford_iiit_pets": "Breed_{}", "magnetic_tile": "MT_{}", "logo_2k": "Food/brand {}", "inaturalist2019": "{}"}


def write(name: str, folder: Path, seed: int = 0) -> None:
    """The data set `name` in `folder`: 3 classes, each a colour under noise, of 6 training and 2 test images, 48 x 40 pixels."""
    spec, rng = SETS[name], np.random.default_rng(seed)
    rows = [(NAMES.get(name, "class{}").format(c), c, i, i >= TRAIN) for c in range(CLASSES) for i in range(TRAIN + TEST)]
    placed = _WRITERS[spec["layout"]](name, folder, spec, rows)
    hues = rng.integers(40, 216, (CLASSES, 3))
    for path, (_, c, _, _) in zip(placed, rows, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(hues[c] + rng.normal(0, 30, (40, 48, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path)


def write_all(folder: Path) -> None:
    """Every set that is not there yet."""
    for seed, name in enumerate(SETS):
        if not (folder / name).is_dir():
            write(name, folder / name, seed)


def _text(path: Path, lines) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def _folders(name, folder, spec, rows):
    placed = []
    for label, _, i, test in rows:
        pattern = spec["splits"]["test" if test else "train"] if "splits" in spec else spec["files"]
        parent, _, file = pattern.replace("{class}", label).rpartition("/")
        placed.append(folder / parent / f"{i}{file[1:] or '.jpg'}")
    return placed


def _lists(name, folder, spec, rows):
    line = {"food101": "{0}/{1}", "logo_2k": "{0}/{1}.jpg", "places365": "/a/{0}/{1:08d}.jpg {2}", "oxford_iiit_pets": "{0}_{1} {3} 1 1"}
    lines = [line[name].format(label, i, c, c + 1) for label, c, i, _ in rows]
    for split, file in spec["lists"].items():
        _text(folder / file, (line for line, row in zip(lines, rows) if row[3] == (split == "test")))
    matches = [re.fullmatch(spec["line"], line) for line in lines]
    return [folder / spec["images"]["test" if row[3] else "train"].format(**match.groupdict()) for match, row in zip(matches, rows)]


def _table(name, folder, spec, rows):
    _text(folder / "labels.csv", ["path,label", *(f"images/{c}-{i}.jpg,{label}" for label, c, i, _ in rows)])
    return [folder / f"images/{c}-{i}.jpg" for _, c, i, _ in rows]


def _coco(name, folder, spec, rows):
    for split, file in spec["lists"].items():
        part = [(f"train_val2019/Plants/{c}/{c}-{i}.jpg", c, 10 * c + i) for _, c, i, test in rows if test == (split == "test")]
        _text(folder / file, [json.dumps({"images": [{"id": k, "file_name": path} for path, _, k in part],
                                          "annotations": [{"image_id": k, "category_id": c} for _, c, k in part]})])
    return [folder / f"train_val2019/Plants/{c}/{c}-{i}.jpg" for _, c, i, _ in rows]


def _landmarks(name, folder, spec, rows):
    _text(folder / "train.csv", ["id,url,landmark_id", *(f"abc{c}{i},http://none,{c}" for _, c, i, _ in rows)])
    return [folder / f"train/a/b/c/abc{c}{i}.jpg" for _, c, i, _ in rows]


def _flood(name, folder, spec, rows):
    _text(folder / "relevance/depth.txt", (f"{c}{i}" for _, c, i, _ in rows if c == 0))
    return [folder / f"imgs_small/{c}{i}.jpg" for _, c, i, _ in rows]


def _flowers(name, folder, spec, rows):
    base = folder / "flowers-102"
    base.mkdir(parents=True)
    number = np.arange(1, len(rows) + 1)
    test, valid = np.array([row[3] for row in rows]), np.array([row[2] == 0 for row in rows])
    savemat(base / "imagelabels.mat", {"labels": [[row[1] + 1 for row in rows]]})
    savemat(base / "setid.mat", {"trnid": [number[~test & ~valid]], "valid": [number[valid]], "tstid": [number[test]]})
    return [base / f"jpg/image_{i:05d}.jpg" for i in number]


def _cub(name, folder, spec, rows):
    base = folder / "CUB_200_2011"
    files = [f"{c + 1:03d}.{label}/{label}_{i}.jpg" for label, c, i, _ in rows]
    _text(base / "images.txt", (f"{k} {file}" for k, file in enumerate(files, 1)))
    _text(base / "train_test_split.txt", (f"{k} {int(not row[3])}" for k, row in enumerate(rows, 1)))
    return [base / "images" / file for file in files]


def _cars(name, folder, spec, rows):
    base, placed = folder / "stanford_cars", []
    (base / "devkit").mkdir(parents=True)
    savemat(base / "devkit/cars_meta.mat", {"class_names": np.array([f"car {c}" for c in range(CLASSES)], object)})
    notes = {False: [], True: []}
    for _, c, i, test in rows:
        notes[test].append((f"{c}{i}.jpg", c + 1))
        placed.append(base / ("cars_test" if test else "cars_train") / f"{c}{i}.jpg")
    for test, file in ((False, "devkit/cars_train_annos.mat"), (True, "cars_test_annos_withlabels.mat")):
        savemat(base / file, {"annotations": np.array(notes[test], [("fname", object), ("class", int)])})
    return placed


_WRITERS = {"folders": _folders, "lists": _lists, "table": _table, "coco": _coco, "landmarks": _landmarks, "flood": _flood,
            "flowers": _flowers, "cub": _cub, "cars": _cars}
