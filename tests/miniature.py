"""Miniatures of the paper's data sets: a few small images in each set's real folder layout.

Written as the owners' archives are, by their pages and by other readers of them; `paper.toml`,
which they test, is not read.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

CLASSES, TRAIN, TEST = 3, 6, 2  # images per class

# Where an image lies, test images last where the owner has them apart. c, k: class from 0, from 1;
# i: image of the class;
# n: image of the set, from 1; h: the same as 16 hexadecimal digits.
PLACES = {
    "nwpu_resisc45": ["NWPU-RESISC45/class{c}/class{c}_{i:03d}.jpg"],
    "food101": ["food-101/images/class_{c}/{n}.jpg"],
    "logo_2k": ["Logo-2K+/Food/brand {c}/{i}.jpg"],
    "google_landmark": ["train/{h[0]}/{h[1]}/{h[2]}/{h}.jpg"],
    "inaturalist2019": ["train_val2019/Plants/{c}/{h}.jpg"],
    "imaterialist": ["train/{h}.jpg", "val/{h}.jpg"],
    "imagenet": ["train/n{k:08d}/n{k:08d}_{i}.JPEG", "val/n{k:08d}/ILSVRC2012_val_{n:08d}.JPEG"],
    "places365": ["data_256_standard/a/class{c}/{i:08d}.jpg", "val_256/Places365_val_{n:08d}.jpg"],
    "magnetic_tile": ["MT_class{c}/Imgs/exp{i}_num_{n}.jpg"],
    "uc_merced": ["UCMerced_LandUse/Images/class{c}/class{c}{i:02d}.tif"],
    "oxford_flowers102": ["flowers-102/jpg/image_{n:05d}.jpg"],
    "cucumber": ["{c}/test_batch-{i}.png"],
    "euro_flood": ["imgs_small/{n}.jpg"],
    "oxford_iiit_pets": ["oxford-iiit-pet/images/Breed_{c}_{i}.jpg"],
    "dtd": ["dtd/dtd/images/class{c}/class{c}_{i:04d}.jpg"],
    "icassava": ["train/c{c}/train-c{c}-{i}.jpg"],
    "cub200": ["CUB_200_2011/images/{k:03d}.Bird/Bird_{i:04d}_{n}.jpg"],
    "belga_logos": ["images/{n:08d}.jpg"],
    "stanford_cars": [
        "stanford_cars/cars_train/{n:05d}.jpg",
        "stanford_cars/cars_test/{n:05d}.jpg",
    ],
}
# Lists in text files: of the training images (False), the test images (True) or all (None), a line
# of each, a first line.
LISTS = {
    "food101": [
        ("food-101/meta/train.txt", False, "class_{c}/{n}"),
        ("food-101/meta/test.txt", True, "class_{c}/{n}"),
    ],
    "logo_2k": [
        ("List/train_images_root.txt", False, "Food/brand {c}/{i}.jpg"),
        ("List/test_images_root.txt", True, "Food/brand {c}/{i}.jpg"),
    ],
    "google_landmark": [("train.csv", None, "{h},http://none,{c}", "id,url,landmark_id")],
    "places365": [
        ("places365_train_standard.txt", False, "/a/class{c}/{i:08d}.jpg {c}"),
        ("places365_val.txt", True, "Places365_val_{n:08d}.jpg {c}"),
    ],
    "oxford_iiit_pets": [
        ("oxford-iiit-pet/annotations/trainval.txt", False, "Breed_{c}_{i} {k} 1 1"),
        ("oxford-iiit-pet/annotations/test.txt", True, "Breed_{c}_{i} {k} 1 1"),
    ],
    "cub200": [
        ("CUB_200_2011/images.txt", None, "{n} {k:03d}.Bird/Bird_{i:04d}_{n}.jpg"),
        ("CUB_200_2011/train_test_split.txt", None, "{n} {train}"),
    ],
    "belga_logos": [("labels.csv", None, "images/{n:08d}.jpg,logo {c}", "path,label")],
}


def write(name: str, folder: Path, seed: int = 0) -> None:
    """The data set `name` in `folder`: 3 classes, each a colour under noise, of 6 training and 2
    test images, 48 x 40 pixels.
    """
    rng = np.random.default_rng(seed)
    rows = [
        {
            "c": c,
            "k": c + 1,
            "i": i,
            "n": (n := c * (TRAIN + TEST) + i + 1),
            "h": f"{n * 0x9E3779B97F4A7C15 % 2**64:016x}",
            "test": i >= TRAIN,
            "train": int(i < TRAIN),
        }
        for c in range(CLASSES)
        for i in range(TRAIN + TEST)
    ]
    hues = rng.integers(40, 216, (CLASSES, 3))
    for row in rows:
        path = folder / PLACES[name][-1 if row["test"] else 0].format(**row)
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(hues[row["c"]] + rng.normal(0, 30, (40, 48, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path)
    for file, test, line, *head in LISTS.get(name, ()):
        _text(
            folder / file,
            [*head, *(line.format(**row) for row in rows if test in (None, row["test"]))],
        )
    if name in NOTES:
        NOTES[name](folder, rows)


def write_all(folder: Path) -> None:
    """Every set that is not there yet."""
    for seed, name in enumerate(PLACES):
        if not (folder / name).is_dir():
            write(name, folder / name, seed)


def _text(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def _inaturalist(folder, rows):
    for test, file in ((False, "train2019.json"), (True, "val2019.json")):
        part = [row for row in rows if row["test"] == test]
        images = [
            {"id": row["n"], "file_name": PLACES["inaturalist2019"][0].format(**row), "width": 48}
            for row in part
        ]
        notes = [{"id": row["n"], "image_id": row["n"], "category_id": row["c"]} for row in part]
        _text(folder / file, [json.dumps({"info": {}, "images": images, "annotations": notes})])


def _imaterialist(folder, rows):
    for test, file in ((False, "train.json"), (True, "val.json")):
        images = [
            {"id": f"{row['h']}.jpg", "url": "", "class": row["c"]}
            for row in rows
            if row["test"] == test
        ]
        _text(
            folder / file, [json.dumps({"images": [*images, images[0] | {"id": "gone.jpg"}]})]
        )  # no longer at its address


def _flood(folder, rows):
    _text(folder / "relevance/depth.txt", [str(row["n"]) for row in rows if row["c"] == 0])


def _flowers(folder, rows):
    where = np.array(
        [2 if row["test"] else int(row["i"] == 0) for row in rows]
    )  # 0: trnid, 1: valid, 2: tstid
    savemat(folder / "flowers-102/imagelabels.mat", {"labels": [[row["k"] for row in rows]]})
    parts = {
        key: [np.flatnonzero(where == v) + 1] for v, key in enumerate(("trnid", "valid", "tstid"))
    }
    savemat(folder / "flowers-102/setid.mat", parts)


def _cars(folder, rows):
    base = folder / "stanford_cars"
    (base / "devkit").mkdir()
    savemat(
        base / "devkit/cars_meta.mat",
        {"class_names": np.array([f"car {c}" for c in range(CLASSES)], object)},
    )
    for test, file in (
        (False, "devkit/cars_train_annos.mat"),
        (True, "cars_test_annos_withlabels.mat"),
    ):
        notes = [
            (1, 1, 48, 40, row["k"], f"{row['n']:05d}.jpg") for row in rows if row["test"] == test
        ]
        fields = [
            *((f"bbox_{k}", int) for k in ("x1", "y1", "x2", "y2")),
            ("class", int),
            ("fname", object),
        ]
        savemat(base / file, {"annotations": np.array(notes, fields)})


NOTES = {
    "inaturalist2019": _inaturalist,
    "imaterialist": _imaterialist,
    "euro_flood": _flood,
    "oxford_flowers102": _flowers,
    "stanford_cars": _cars,
}
