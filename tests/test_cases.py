"""What people bring, and what is right: layouts, tables and files that were once misread, lost or a traceback."""

import io
import json
import os
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mzlib import layouts, pixels
from mzlib.benchmark.data import load_task
from mzlib.dataset import Split, Task
from mzlib.errors import MzlibError, Unwritable
from mzlib.images import as_labelled_images, input_config, open_images

CONFIG = input_config({"image_size": 16})
CASES = Path(__file__).parents[2] / "shared" / "cases"


def picture(seed, kind="PNG"):
    x = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), np.uint8)
    Image.fromarray(x).save(buffer := io.BytesIO(), kind)
    return buffer.getvalue()


def write(root, *files, start=0):
    """Pictures at those paths; "c/3" stands for c/0.png, c/1.png, c/2.png."""
    for name in files:
        folder, _, number = name.rpartition("/")
        names = [f"{folder}/{i}.png" for i in range(int(number))] if number.isdecimal() else [name]
        for i, file in enumerate(names):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_bytes(picture(start + 50 * len(name) + i))
    return root


def held_out(images):
    """Names of the files that are held out."""
    return sorted(os.path.basename(images.places[i][0]) for i in np.flatnonzero(images.held_out))


def counts(images):
    """Training and held-out images of every class."""
    parts = (~images.held_out, images.held_out)
    return [
        np.bincount(images.labels[p], minlength=len(images.class_names)).tolist() for p in parts
    ]


# folders


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING", "trn"])
@pytest.mark.parametrize(
    "other", ["Test", "testing", "tst", "Val", "valid", "validation", "DEV", "eval"]
)
def test_split_folders_by_all_their_names(tmp_path, train, other):
    images = open_images(
        write(tmp_path, f"{train}/a/3", f"{train}/b/2", f"{other}/a/1", f"{other}/b/2")
    )
    assert images.given_split and images.class_names == ("a", "b")
    assert counts(images) == [[3, 2], [1, 2]]


def test_of_two_held_out_parts_the_test_images_are_tested_on(tmp_path):
    images = open_images(
        write(tmp_path, *(f"{s}/{c}/2" for s in ("train", "val", "test") for c in "ab"))
    )
    assert counts(images) == [[2, 2], [2, 2]]
    assert all("/test/" in images.places[i][0] for i in np.flatnonzero(images.held_out))
    assert images.notes == ["4 validation images beside those of test were left aside"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["test/a/2", "test/b/2"], "held-out images in test but no folder train"),
        (["test/a/2", "test/b/2", "val/a/2", "val/b/2"], "no folder train"),
        (["a/2", "b/2", "Test/a/2", "Test/b/2"], "held-out images in Test but no folder train"),
        (["one/a/2", "one/b/2", "two/a/2", "two/b/2"], r"folders \(one, two\) that all hold a, b"),
        (["learning/a/2", "learning/b/2", "holdout/a/2", "holdout/b/2"], "name the folders train"),
        (["one/a/2", "one/b/2", "two/a/2", "two/b/2", "docs/x.txt"], r"folders \(one, two\) that"),
        (["seg_pred/2", "seg_train/x/a/2", "seg_test/y/a/2"], "folders seg_train and seg_test: if"),
        (["annotations/2", "train2017/2", "val2017/2"], "folders train2017 and val2017: if these"),
        (["train/2", "test1/2"], "folders train and test1: if these are parts of the data, name"),
        (["Training_Set/a/2", "Test_Set/a/2"], "folders Training_Set and Test_Set: if these"),
        (
            ["a/train/2", "a/test/2", "b/train/2", "b/val/2"],
            "folders of train and of test in .*/a: give",
        ),
        (["pets/train/a/2", "pets/test/a/2", "docs/x.txt"], "test in .*/pets: give that one alone"),
        (["a/images/train/2", "a/images/test/2", "b/2"], "test in .*/a/images: give that one"),
        (["a/2", "b/2", "cells/a/2", "cells/b/2"], "cells holds a, b again: remove it"),
        (["JPEGImages/2", "SegmentationClass/2"], "folders JPEGImages and SegmentationClass, no"),
        (["train/2", "train_masks/2"], "folders train and train_masks, no classes"),
        (["images/2", "ground_truth/2"], "folders images and ground_truth, no classes"),
        (
            ["training/images/2", "training/1st_manual/2", "test/images/2", "test/1st_manual/2"],
            "folders images and 1st_manual, no classes",
        ),
        (
            ["train/raw/a/2", "train/raw/b/2", "train/more/a/2", "train/more/b/2", "test/a/2"],
            "that all hold a, b",
        ),
    ],
)
def test_layouts_that_would_be_another_task_are_refused(tmp_path, files, message):
    with pytest.raises(MzlibError, match=message) as error:
        open_images(write(tmp_path, *files))
    assert "\n" not in str(error.value)


def test_a_class_may_be_called_train(tmp_path):
    names = ("bus", "test tube", "train", "training shoes")
    images = open_images(write(tmp_path, *(f"{name}/3" for name in names)))
    assert images.class_names == names and not images.given_split


def test_folders_that_systems_leave_are_passed_over(tmp_path):
    write(tmp_path, "a/3", "b/3", "a/@eaDir/3", "b/__MACOSX/3", "@eaDir/2")
    assert np.bincount(open_images(tmp_path).labels).tolist() == [3, 3]


def test_masks_are_no_images_and_no_class(tmp_path):
    write(tmp_path, "benign/3", "normal/3")
    for name in ("0_mask", "0_Mask_1", "1_seg", "9_mask"):  # there is no image 9
        (tmp_path / f"benign/{name}.png").write_bytes(picture(7))
    images = open_images(tmp_path)
    assert np.bincount(images.labels).tolist() == [4, 3]
    assert images.notes[0].startswith("3 masks of other images skipped, first ")
    write(tmp_path / "outlined", "Images/3", "masks/3")
    with pytest.raises(MzlibError, match="folders Images and masks, no classes: expected a folder"):
        open_images(tmp_path / "outlined")


@pytest.mark.parametrize("split", ["", "train/"])
def test_masks_in_a_folder_beside_the_images_of_a_class_are_skipped(tmp_path, split):
    for name in ("covid", "normal"):
        write(tmp_path, f"{split}{name}/images/3", f"{split}{name}/masks/3")
    images = open_images(tmp_path)
    assert np.bincount(images.labels).tolist() == [3, 3]
    masks = tmp_path / split / "covid" / "masks"
    assert f"2 folders of masks skipped, first {masks}" in images.notes


def test_a_class_may_be_called_after_masks(tmp_path):
    names = ("face_no_mask", "face_with_mask", "face_with_mask_badly", "manual", "train")
    write(tmp_path, *(f"{name}/2" for name in names))
    assert open_images(tmp_path).class_names == names


def test_a_table_beside_folders_is_told_of(tmp_path):
    """HAM10000 comes as two folders of images and a table; loose images are counted, too."""
    write(tmp_path / "ham", "part_1/2", "part_2/2")
    (tmp_path / "ham" / "labels.csv").write_text("image,dx\n")
    write(tmp_path / "down", "sets/a/2", "sets/b/2", "loose.png")
    (tmp_path / "down" / "labels.csv").write_text("image,dx\n")
    for name, loose in (("ham", 0), ("down", 1)):
        notes = open_images(tmp_path / name).notes
        table = tmp_path / name / "labels.csv"
        told = f"1 tables beside folders not read (give the one with the labels), first {table}"
        assert told in notes
        assert sum("images outside the class folders" in note for note in notes) == loose


def test_columns_asked_for_count_in_split_folders_and_need_a_table(tmp_path):
    write(tmp_path, "train/4", "test/4")
    for split in ("train", "test"):
        lines = [f"{i}.png,same,{'xy'[i % 2] if i else ''},{i / 4}\n" for i in range(4)]
        (tmp_path / split / "metadata.csv").write_text(
            "file_name,label,breed,age\n" + "".join(lines)
        )
    images = open_images(tmp_path, label_column="breed")
    assert images.class_names == ("x", "y") and counts(images) == [[1, 2], [1, 2]]
    assert images.notes[0] == "test: 1 images without a label left out"
    ages = open_images(tmp_path, label_column="age", labels="numeric").targets
    assert ages[:, 0].tolist() == 2 * [0, 0.25, 0.5, 0.75]
    with pytest.raises(MzlibError, match="no table in .*: expected one of the columns"):
        open_images(write(tmp_path / "plain", "a/2", "b/2"), label_column="breed")


@pytest.mark.parametrize("down", ["pets", "pets/pets", "train", "x/train"])
def test_one_way_down_is_taken_and_said(tmp_path, down):
    write(tmp_path, f"{down}/cat/4", f"{down}/dog/4")
    (tmp_path / "__MACOSX").mkdir()
    images = open_images(tmp_path)
    assert images.class_names == ("cat", "dog") and not images.given_split
    assert f"read from {tmp_path / down}, the only folder there" in images.notes[-1]


def test_empty_classes_loose_files_and_other_folders_are_noted(tmp_path):
    write(tmp_path, "train/a/2", "train/b/2", "test/a/1", "test/b/1", "train/loose.png", "docs/1")
    (tmp_path / "train" / "empty").mkdir()
    notes = open_images(tmp_path).notes
    assert notes == [
        f"1 folders beside those of the split left aside, first {tmp_path}/docs",
        f"1 images outside the class folders left aside, first {tmp_path}/train/loose.png",
        f"1 folders without an image left aside, first {tmp_path}/train/empty",
    ]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("place", ["root", "splits"])
def test_image_folders_with_metadata(tmp_path, kind, place):
    write(tmp_path, "train/4", "test/2")

    def lines(folder, names):
        pairs = [(name, "ab"[i % 2]) for i, name in enumerate(names)]
        if kind == "csv":
            text = "file_name,label\n" + "\n".join(f"{f},{c}" for f, c in pairs)
        else:
            text = "\n".join(json.dumps({"file_name": f, "label": c}) for f, c in pairs)
        (folder / f"metadata.{kind}").write_text(text)

    if place == "root":
        names = [f"{s}/{i}.png" for s, n in (("train", 4), ("test", 2)) for i in range(n)]
        lines(tmp_path, names)
    else:
        lines(tmp_path / "train", [f"{i}.png" for i in range(4)])
        lines(tmp_path / "test", [f"{i}.png" for i in range(2)])
    images = open_images(tmp_path)
    assert images.given_split and counts(images) == [[2, 2], [1, 1]]
    assert images.pixels(np.arange(6), CONFIG)[1].all()


def test_metadata_without_labels_beside_class_folders(tmp_path):
    write(tmp_path, "a/2", "b/2")
    (tmp_path / "metadata.csv").write_text("file_name,caption\na/0.png,a cat\n")
    assert open_images(tmp_path).class_names == ("a", "b")


def test_named_pipes_and_folders_that_cannot_be_opened(tmp_path, monkeypatch):
    write(tmp_path, "a/3", "b/3", "b/closed/1")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    scandir = os.scandir

    def refusing(folder):
        if str(folder).endswith("closed"):
            raise PermissionError(13, "no", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    images = open_images(tmp_path)
    assert images.notes == [
        f"1 named pipes or devices skipped, first {tmp_path}/a/pipe.png",
        f"1 folders skipped that cannot be opened, first {tmp_path}/b/closed",
    ]
    assert counts(images) == [[2, 2], [1, 1]]
    (tmp_path / "list.csv").write_text(
        "a/pipe.png,a\n" + "".join(f"{c}/{i}.png,{c}\n" for c in "ab" for i in range(3))
    )
    listing = open_images(tmp_path / "list.csv")
    assert list(listing.read([0])) == [b""]  # and no waiting for a writer
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(MzlibError, match="no image: expected a folder"):
        open_images(tmp_path / "pipe.csv")


def test_heic_is_read_or_named(tmp_path, monkeypatch):
    write(tmp_path, "a/3", "b/3")
    (tmp_path / "a" / "phone.HEIC").write_bytes(b"")
    monkeypatch.setattr(layouts, "extensions", lambda: frozenset({".png"}))
    assert open_images(tmp_path).notes == [
        f"1 HEIC files skipped (do pip install pillow-heif), first {tmp_path}/a/phone.HEIC"
    ]
    monkeypatch.undo()
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a" / "phone.HEIC")
    images = open_images(tmp_path)
    x, readable = images.pixels(np.arange(7), CONFIG)
    assert readable.all() and not images.notes
    at = [os.path.basename(file) for file, _ in images.places].index("phone.HEIC")
    assert x[at, 8, 8, 0] > 240 and x[at, 8, 8, 1] < 15


def test_ffmpeg_ghostscript_and_others_are_never_started(tmp_path):
    write(tmp_path, "a/9", "b/9")
    (tmp_path / "a" / "evil.jpg").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    )
    for name in ("film.mpg", "data.h5", "drawing.eps"):
        (tmp_path / "a" / name).write_bytes(b"x")
    images = open_images(tmp_path)
    assert images.notes[0].startswith("3 files or links skipped that are no images")
    readable = images.pixels(np.arange(19), CONFIG)[1]
    assert (~readable).sum() == 1
    assert not {"EPS", "WMF", "MPEG", "HDF5", "GRIB"} & set(pixels.formats())


# tables


ROWS = [(f"img/{c}{i}.png", c) for c in "xy" for i in range(4)]


def table(lines, separator=","):
    return "\n".join(separator.join(line) for line in lines) + "\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", table([("path", "label"), *ROWS])),
        ("t.csv", table(ROWS)),
        ("t.csv", table([("path", "label"), *ROWS], ";")),
        ("t.tsv", table([("File", "CLASS"), *ROWS], "\t")),
        ("t.csv", table([("img", "labels"), *ROWS], "\t")),
        (
            "t.csv",
            table(
                [
                    ("id", "filename", "w", "Target"),
                    *((str(i), f, "9", c) for i, (f, c) in enumerate(ROWS)),
                ]
            ),
        ),
        ("t.csv", "\ufeff" + table([("image", "fine_label"), *ROWS]).replace("\n", "\r\n")),
        ("t.csv", table([("file_name", "label"), *ROWS]).encode("utf-16")),
        (
            "t.csv",
            table(
                [
                    ("path", "x", "y"),
                    *((f, str(int(c == "x")), str(int(c == "y"))) for f, c in ROWS),
                ]
            ),
        ),
        ("t.jsonl", "\n".join(json.dumps({"file_name": f, "label": c}) for f, c in ROWS)),
        ("t.jsonl", "\n".join(json.dumps({"label": [c], "n": 1, "image": f}) for f, c in ROWS)),
        (
            "t.jsonl",
            "\n".join(json.dumps({"img": f, "class": c}) for f, c in ROWS).encode("utf-16"),
        ),
        (
            "t.jsonl",
            b"".join(
                b'{"by": "Andr\xe9", "file": "%s", "label": "%s"}\n' % (f.encode(), c.encode())
                for f, c in ROWS
            ),
        ),
    ],
)
def test_tables_by_the_names_of_their_columns(tmp_path, name, content):
    write(tmp_path, *(file for file, _ in ROWS))
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    images = open_images(tmp_path / name)
    assert images.class_names == ("x", "y") and counts(images) == [[3, 3], [1, 1]]
    assert [Path(file).name[0] for file, _ in images.places] == list("xxxxyyyy")
    assert images.pixels(np.arange(8), CONFIG)[1].all()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("name,width,height,kind", r"columns name, width, height, kind: expected image and label"),
        (
            "filename,width,height,kind",
            r"columns filename, width, height, kind: expected image and label",
        ),
        ("name,kind", "columns name, kind: expected image and label"),
        ("path,path", "columns path, path.1: expected image and label"),
    ],
)
def test_a_header_that_is_not_understood_is_shown(tmp_path, header, message):
    cells = ["640"] * (header.count(",") - 1)
    lines = [",".join([f, *cells, c]) for f, c in ROWS]
    (tmp_path / "t.csv").write_text("\n".join([header, *lines]))
    with pytest.raises(MzlibError, match=message):
        open_images(tmp_path / "t.csv")
    images = (
        open_images(
            tmp_path / "t.csv",
            image_column=header.split(",")[0],
            label_column=header.split(",")[-1],
        )
        if header != "path,path"
        else None
    )
    assert images is None or images.class_names == ("x", "y")


def test_columns_that_are_asked_for(tmp_path):
    (tmp_path / "t.csv").write_text(
        "path,label,crop,breed\n" + "".join(f"{f},pet,c/{f},{c}\n" for f, c in ROWS)
    )
    images = open_images(tmp_path / "t.csv", image_column="crop", label_column="breed")
    assert images.class_names == ("x", "y") and images.places[0][0] == str(
        tmp_path / "c/img/x0.png"
    )
    with pytest.raises(MzlibError, match="columns path, label, crop, breed: expected 'race'"):
        open_images(tmp_path / "t.csv", label_column="race")


@pytest.mark.parametrize("train", ["train", "TRAIN", "Training", " trn"])
@pytest.mark.parametrize("other", ["TEST", "tst", "Val", "validation", "dev"])
@pytest.mark.parametrize("column", ["split", "Set", "subset"])
def test_a_split_column_is_kept(tmp_path, train, other, column):
    lines = [f"{f},{c},{other if f[-5] == '0' else train}\n" for f, c in ROWS]
    (tmp_path / "t.csv").write_text(f"path,label,{column}\n" + "".join(lines))
    images = open_images(tmp_path / "t.csv")
    assert images.given_split and held_out(images) == ["x0.png", "y0.png"]
    assert not images.held_out[images.sample("all", 0)].any()


def test_splits_that_cannot_be_told(tmp_path):
    (tmp_path / "t.csv").write_text(
        "path,label,split\n" + "".join(f"{f},{c},part {c}\n" for f, c in ROWS)
    )
    with pytest.raises(
        MzlibError, match="a split called 'part x': expected one of train, training"
    ):
        open_images(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text(
        "path,label,split\n" + "".join(f"{f},{c},TEST\n" for f, c in ROWS)
    )
    with pytest.raises(MzlibError, match="expected training images beside those that are held out"):
        open_images(tmp_path / "t.csv")


def test_a_table_without_a_split_of_files_in_split_folders(tmp_path):
    files = [f"{'Test' if f[-5] == '0' else 'train'}/{f}" for f, _ in ROWS]
    labels = [c for _, c in ROWS]
    (tmp_path / "t.csv").write_text(table(zip(files, labels)))
    parquet(tmp_path / "t.parquet", labels, files)
    for name in ("t.csv", "t.parquet"):
        assert held_out(open_images(tmp_path / name)) == ["x0.png", "y0.png"]


PERHAPS = ["data set", "Partition", "fold", "data_split", "train/test", "Split_1", "type", "Usage"]


@pytest.mark.parametrize("column", PERHAPS)
def test_a_column_of_nothing_but_splits_is_one(tmp_path, column):
    splits = ["test" if f[-5] == "0" else "train" for f, _ in ROWS]
    cells = {"path": [f for f, _ in ROWS], "label": [c for _, c in ROWS], column: splits}
    pq.write_table(pa.table(cells), tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text(table([list(cells), *zip(*cells.values())]))
    for name in ("t.csv", "t.parquet"):
        assert held_out(open_images(tmp_path / name)) == ["x0.png", "y0.png"]
    blank = [split.replace("train", "") for split in splits]
    (tmp_path / "t.csv").write_text(
        table([list(cells), *zip(cells["path"], cells["label"], blank)])
    )
    assert held_out(open_images(tmp_path / "t.csv")) == ["x0.png", "y0.png"]
    (tmp_path / "t.csv").write_text(table([list(cells), *((f, c, "3") for f, c in ROWS)]))
    assert not open_images(tmp_path / "t.csv").given_split


def held_out_by(tmp_path, name, cells):
    """Names of the held-out files of a table of ROWS with further columns."""
    cells = {"path": [f for f, _ in ROWS], "label": [c for _, c in ROWS]} | cells
    pq.write_table(pa.table(cells), tmp_path / "t.parquet")
    pd.DataFrame(cells).to_csv(tmp_path / "t.csv", index=False)
    images = open_images(tmp_path / name)
    return held_out(images) if images.given_split else images.notes


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_columns_that_seem_to_be_splits(tmp_path, name):
    """A second one counts, FER2013's names are known, numbers are told of, odd ones refused."""
    first = [f[-5] == "0" for f, _ in ROWS]
    splits = ["test" if held else "train" for held in first]
    numbers = [1 if held else 0 for held in first]
    kept = ["x0.png", "y0.png"]
    assert held_out_by(tmp_path, name, {"fold": numbers, "data set": splits}) == kept
    usage = ["PrivateTest" if held else "Training" for held in first]
    assert held_out_by(tmp_path, name, {"Usage": usage}) == kept
    notes = held_out_by(tmp_path, name, {"partition": numbers, "group": numbers})
    assert notes == ["column partition holds no names of splits and was not used"]
    pictures = [[1, 2, 3] for _ in first]  # not read: it might be large
    assert held_out_by(tmp_path, name, {"test_image": pictures, "set": splits}) == kept
    vehicles = ["train" if held else "car" for held in first]
    assert held_out_by(tmp_path, name, {"type": vehicles}) == []
    with pytest.raises(MzlibError, match="'extra' in column usage: expected the name of a split"):
        held_out_by(tmp_path, name, {"usage": ["extra", *splits[1:-1], "test"]})


def test_a_class_of_one_hot_columns_may_be_called_train(tmp_path):
    rows = [f"{f},{c == 'x'},{c == 'y'}\n" for f, c in ROWS]
    (tmp_path / "t.csv").write_text("path,bus,train\n" + "".join(rows))
    images = open_images(tmp_path / "t.csv")
    assert images.class_names == ("bus", "train") and not images.given_split


@pytest.mark.parametrize(
    "place", ["data/{}/{}", "../data/{}/{}", "/kaggle/input/{}/{}", ".\\{}\\{}", "cat/{}/{}"]
)
def test_folders_of_splits_anywhere_in_a_path(tmp_path, place):
    files = [place.format("Test" if f[-5] == "0" else "train", f[4:]) for f, _ in ROWS]
    labels = [c for _, c in ROWS]
    (tmp_path / "t.csv").write_text(table(zip(files, labels)))
    parquet(tmp_path / "t.parquet", labels, files)
    for name in ("t.csv", "t.parquet"):
        images = open_images(tmp_path / name)
        assert images.given_split and images.held_out.tolist() == [f[-5] == "0" for f, _ in ROWS]
    (tmp_path / "t.csv").write_text(table([*zip(files, labels), ("data/more/9.png", "x")]))
    with pytest.raises(
        MzlibError, match="beside those of train and test: expected a split of each"
    ):
        open_images(tmp_path / "t.csv")


def test_lines_that_are_no_images(tmp_path):
    """A header again, where tables were joined, and lines of JSON without an image."""
    lines = [("path", "label"), *ROWS]
    (tmp_path / "t.csv").write_text(table([*lines, *lines[:1]]))
    images = open_images(tmp_path / "t.csv")
    assert images.class_names == ("x", "y") and len(images.labels) == 8
    assert images.notes == ["1 lines that repeat the header left out"]
    objects = [json.dumps({"path": f, "label": c}) for f, c in ROWS]
    objects += ['{"path": null, "label": "x"}', '{"label": "y"}']
    (tmp_path / "t.jsonl").write_text("\n".join(objects))
    images = open_images(tmp_path / "t.jsonl")
    assert len(images.labels) == 8 and images.notes == ["2 lines without an image left out"]


def test_metadata_that_is_given_and_labels_with_bars(tmp_path):
    rows = [f"{f},{c == 'x'},{c == 'y'}\n" for f, c in ROWS]
    (tmp_path / "metadata.csv").write_text("file_name,x,y\n" + "".join(rows))
    assert open_images(tmp_path / "metadata.csv").class_names == ("x", "y")
    (tmp_path / "t.csv").write_text(table([(f, "x|y" if f[-5] == "0" else c) for f, c in ROWS]))
    told = "2 images have a label with a bar (of several labels? do --multi-label)"
    assert open_images(tmp_path / "t.csv").notes[0] == told


FLAGGED = [
    ({"is_valid": "yes"}, ["x0.png", "y0.png"]),  # fastai
    ({"is_training_image": "no"}, ["x0.png", "y0.png"]),  # CUB
    ({"isTest": "yes", "fold": "3"}, ["x0.png", "y0.png"]),
    ({"is_train": "no", "is_val": "yes", "is_test": "other"}, ["x0.png", "y0.png"]),
    ({"test": "yes"}, ["x0.png", "y0.png"]),  # Stanford Cars
]


@pytest.mark.parametrize("columns, expected", FLAGGED)
@pytest.mark.parametrize("yes, no", [("True", "False"), ("1", "0"), (True, False), (1.0, 0.0)])
@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_columns_of_yes_and_no_are_a_split(tmp_path, name, columns, expected, yes, no):
    held = [f[-5] == "0" for f, _ in ROWS]
    cells = {"path": [f for f, _ in ROWS], "label": [c for _, c in ROWS]}
    answers = {"yes": held, "no": [not h for h in held], "other": [False] * len(held)}
    for column, answer in columns.items():
        cells[column] = [yes if a else no for a in answers.get(answer, ())] or [answer] * len(held)
    pq.write_table(pa.table(cells), tmp_path / "t.parquet")
    pd.DataFrame(cells).to_csv(tmp_path / "t.csv", index=False)
    assert held_out(open_images(tmp_path / name)) == expected


def test_columns_of_yes_and_no_that_say_nothing_or_both(tmp_path):
    def lines(header, *cells):
        rows = [f"{f},{c},{','.join(cells)}\n" for f, c in ROWS]
        (tmp_path / "t.csv").write_text(f"path,label,{header}\n" + "".join(rows))
        return tmp_path / "t.csv"

    with pytest.raises(MzlibError, match="'maybe' in column is_valid: expected 0 or 1"):
        open_images(lines("is_valid", "maybe"))
    with pytest.raises(MzlibError, match="said to be in validation and in test"):
        open_images(lines("is_valid,is_test", "1", "1"))
    assert not open_images(lines("is_dog", "1")).given_split


def test_a_split_of_yes_and_no_is_no_class_of_one_hot_columns(tmp_path):
    rows = [f"{f},{int(c == 'x')},{int(c == 'y')},{int(f[-5] == '0')}\n" for f, c in ROWS]
    (tmp_path / "t.csv").write_text("path,x,y,is_valid\n" + "".join(rows))
    images = open_images(tmp_path / "t.csv")
    assert images.class_names == ("x", "y") and held_out(images) == ["x0.png", "y0.png"]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_labels_in_the_encoding_of_excel_on_windows(tmp_path, encoding, suffix):
    rows = [(f, "Äpfel" if c == "x" else "Nüsse") for f, c in ROWS]
    text = pd.DataFrame(rows, columns=["path", "label"])
    if suffix == "csv":
        content = text.to_csv(index=False)
    else:
        content = text.to_json(orient="records", lines=True, force_ascii=False)
    (tmp_path / f"t.{suffix}").write_bytes(content.encode(encoding))
    images = open_images(tmp_path / f"t.{suffix}")
    assert images.class_names == ("Nüsse", "Äpfel")
    told = [f"t.{suffix} is no UTF-8, read as cp1252: look at its class names"]
    assert images.notes == (told if encoding == "cp1252" else [])


def test_paths_of_windows_and_spaces_before_quotes(tmp_path):
    write(tmp_path, *(file for file, _ in ROWS))
    files = [f.replace("/", "\\") for f, _ in ROWS]
    (tmp_path / "t.csv").write_text(
        table(((f, f'"{c}, big"') for f, (_, c) in zip(files, ROWS)), ", ")
    )
    images = open_images(tmp_path / "t.csv")
    assert images.class_names == ("x, big", "y, big")
    assert images.pixels(np.arange(8), CONFIG)[1].all()
    as_categories = pa.array(files).dictionary_encode()
    parquet(tmp_path / "t.parquet", [c for _, c in ROWS], as_categories)
    assert open_images(tmp_path / "t.parquet").pixels(np.arange(8), CONFIG)[1].all()


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_lines_of_one_image_are_one_or_refused(tmp_path, name):
    def lines(rows):
        parquet(tmp_path / "t.parquet", [c for _, c in rows], [f for f, _ in rows])
        (tmp_path / "t.csv").write_text(table([("image", "label"), *rows]))
        return tmp_path / name

    images = open_images(lines([*ROWS, *ROWS[:3]]))
    assert len(images.labels) == 8 and images.notes == ["3 lines that repeat an image"]
    boxes = lines([*ROWS, (ROWS[0][0], "y")])
    with pytest.raises(MzlibError, match="x0.png with the labels 'x' and 'y': expected one an"):
        open_images(boxes)
    images = open_images(boxes, labels="several")
    assert images.targets.sum(1).tolist() == [2] + 7 * [1]
    images = open_images(lines([*ROWS, ("", "x")]))
    assert len(images.labels) == 8 and images.notes == ["1 lines without an image left out"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_images_without_a_label_are_left_out_and_counted(tmp_path, kind):
    labels = ["x", None, "y", "x", "y", float("nan")]
    if kind == "csv":
        cells = ["" if label is None else str(label) for label in labels]
        (tmp_path / "t.csv").write_text(
            "path,label\n" + "".join(f"{i}.png,{c}\n" for i, c in enumerate(cells))
        )
    elif kind == "jsonl":
        lines = [json.dumps({"path": f"{i}.png", "label": c}) for i, c in enumerate(labels)]
        (tmp_path / "t.jsonl").write_text("\n".join(lines))
    else:
        labels = [0.0, None, 1.0, 0.0, 1.0, float("nan")]
        pq.write_table(pa.table({"image": [b""] * 6, "label": labels}), tmp_path / "t.parquet")
    images = open_images(tmp_path / f"t.{kind}")
    assert images.class_names == (("0", "1") if kind == "parquet" else ("x", "y"))
    assert len(images.labels) == 4 and images.notes[0] == "2 images without a label left out"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,a,b\nx.png,1,1\ny.png,0,1\n", "1 of 2 images have no class or several"),
        ("path,a,b\nx.png,7,1\ny.png,0,1\n", "columns path, a, b: expected image and label"),
        (
            "path,label\n" + "".join(f"{i}.png,{i}.37\n" for i in range(9)),
            "a measurement: expected classes",
        ),
        ("path,label\na.png\nb.png,x\n", "one class, 'x'; 1 images without a label left out"),
        ("path,label\na.png,big, red\nb.png,big, blue\n", "lines of more cells than the header"),
        (b"\xff\xfea", "truncated data"),
    ],
)
def test_text_tables_that_are_none(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(MzlibError, match=message) as error:
        open_images(tmp_path / "t.csv")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", ["[1, 2]", '{"file_name": "a.png", "label": {"id": 3}}', "{", "[" * 5000, "3"]
)
def test_json_lines_that_are_none(tmp_path, content):
    (tmp_path / "t.jsonl").write_text(content)
    with pytest.raises(MzlibError, match="expected labelled images"):
        open_images(tmp_path / "t.jsonl")


def test_one_image_a_class_is_listed_to_train_on(tmp_path):
    (tmp_path / "t.csv").write_text("path,label\na.png,a\nb.png,b\n")
    images = open_images(tmp_path / "t.csv")
    assert counts(images) == [[1, 1], [0, 0]]
    assert images.pixels(np.flatnonzero(images.held_out), CONFIG)[0].shape == (0, 16, 16, 3)


# Parquet and Arrow


def parquet(path, labels, images=None, names=None, column="image", label="label"):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [picture(i) for i in range(len(labels))] if images is None else images
    content = pa.table({column: images, label: labels})
    if names is not None:
        info = {"info": {"features": {label: {"names": names, "_type": "ClassLabel"}}}}
        content = content.replace_schema_metadata({"huggingface": json.dumps(info)})
    if path.suffix == ".parquet":
        pq.write_table(content, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, content.schema) as stream:
            stream.write_table(content, max_chunksize=2)


@pytest.mark.parametrize(
    ("train", "other"),
    [
        ("data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"),
        ("Train.parquet", "Dev.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("default/train-0.parquet", "default/test-0.parquet"),
        ("plain_text/train-0.parquet", "plain_text/test-0.parquet"),
        ("train/0000.parquet", "Valid/0000.parquet"),
        ("train/data-00000-of-00001.arrow", "test/data-00000-of-00001.arrow"),  # save_to_disk
    ],
)
def test_tables_held_out_by_the_names_of_files(tmp_path, train, other):
    parquet(tmp_path / train, [0, 1, 0, 1, 0], names=["cat", "dog"], column="img", label="labels")
    parquet(tmp_path / other, [1, 0], names=["cat", "dog"], column="img", label="labels")
    images = open_images(tmp_path)
    assert images.given_split and images.class_names == ("cat", "dog")
    assert counts(images) == [[3, 2], [1, 1]]
    at = np.flatnonzero(~images.held_out)
    assert list(images.read(at[[1, 4]])) == [picture(1), picture(4)]


def test_a_saved_dataset_without_splits(tmp_path):
    parquet(tmp_path / "data-00000-of-00002.arrow", [0, 1, 0, 1], names=["cat", "dog"])
    parquet(tmp_path / "data-00001-of-00002.arrow", [0, 1], names=["cat", "dog"])
    (tmp_path / "state.json").write_text("{}")
    parquet(tmp_path / "cache-1f.arrow", [1, 1])  # of a map over it
    (tmp_path / "._data-00000-of-00002.arrow").write_bytes(b"\0\5\x16\7")  # of macOS
    images = open_images(tmp_path)
    assert (
        images.class_names == ("cat", "dog") and len(images.labels) == 6 and not images.given_split
    )
    assert list(images.read([0, 3, 5])) == [picture(0), picture(3), picture(1)]


@pytest.mark.parametrize("as_struct", [False, True])
def test_parquet_of_paths(tmp_path, as_struct):
    write(tmp_path, *(file for file, _ in ROWS))
    cells = [{"bytes": None, "path": f} if as_struct else f for f, _ in ROWS]
    parquet(tmp_path / "t.parquet", [c for _, c in ROWS], cells)
    images = open_images(tmp_path / "t.parquet")
    assert images.pixels(np.arange(8), CONFIG)[1].all() and images.class_names == ("x", "y")


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([[1, 2], [3, 4]], "a column image of list<.*>: expected encoded images"),
        ([1, 2], "a column image of int64: expected encoded images"),
        ([{"height": 3}, {"height": 4}], "a column image of struct<height: int64>: expected"),
    ],
)
def test_parquet_images_of_other_types(tmp_path, cells, message):
    parquet(tmp_path / "t.parquet", [0, 1], cells)
    with pytest.raises(MzlibError, match=message):
        open_images(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    "metadata",
    [
        '{"info": null}',
        "[]",
        "{",
        "3",
        '{"info": {"features": {"label": {"names": 3}}}}',
        "[" * 5000,
    ],
)
@pytest.mark.parametrize("key", ["huggingface", "class_names"])
def test_parquet_metadata_of_no_use_is_passed_over(tmp_path, metadata, key):
    content = pa.table({"image": [b"", b""], "label": [4, 7]})
    pq.write_table(content.replace_schema_metadata({key: metadata}), tmp_path / "t.parquet")
    assert open_images(tmp_path / "t.parquet").class_names == ("4", "7")


@pytest.mark.parametrize("labels", [[[0, 1], [1]], [b"x", b"y"], [{"a": 1}, {"a": 2}]])
def test_parquet_labels_of_other_types(tmp_path, labels):
    parquet(tmp_path / "t.parquet", labels)
    with pytest.raises(MzlibError, match="expected one name or number an image"):
        open_images(tmp_path / "t.parquet")


def test_parquet_that_ends_early(tmp_path):
    parquet(tmp_path / "t.parquet", [0, 1] * 50)
    images = open_images(tmp_path / "t.parquet")
    content = bytearray((tmp_path / "t.parquet").read_bytes())
    content[100:5000] = b"\0" * 4900
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(MzlibError, match="expected a whole file|unreadable images"):
        images.pixels(np.arange(100), CONFIG)


# pixels


def as_file(image, kind="PNG", **options):
    image.save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


def converted(tmp_path, *contents):
    """Pixels [n, 16, 16, 3], readable and notes of those files."""
    for i, content in enumerate(contents):
        (tmp_path / f"{i}.img").write_bytes(content)
    (tmp_path / "t.csv").write_text(
        "path,label\n" + "".join(f"{i}.img,{i % 2}\n" for i in range(len(contents)))
    )
    images = open_images(tmp_path / "t.csv")
    x, readable = images.pixels(np.arange(len(contents)), CONFIG, tmp_path / "kept")
    return np.array(x), readable, images.notes


def exif(*entries):
    """Little-endian EXIF of (tag, type, count, value or bytes) entries."""
    body = b"".join(
        struct.pack("<HHI", tag, kind, count)
        + (value if isinstance(value, bytes) else struct.pack("<i", value))
        for tag, kind, count, value in entries
    )
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + body + b"\0" * 4


@pytest.mark.parametrize(
    "other", [(0x128, 8, 1, -5), (0x103, 2, 4, b"abc\0"), (0x11A, 5, 1, 9999), (0x0111, 77, 3, 1)]
)
def test_only_the_orientation_is_read_of_exif(tmp_path, other):
    half = np.zeros((16, 16, 3), np.uint8)
    half[:8] = 255
    entries = sorted([(0x112, 3, 1, 6), other])
    turned = as_file(
        Image.fromarray(np.rot90(half).copy()), "JPEG", exif=exif(*entries), quality=95
    )
    x, readable, _ = converted(tmp_path, turned, turned)
    assert readable.all() and abs(x[0].astype(int) - half).max() < 30


def test_twelve_bits_in_a_file_of_sixteen(tmp_path):
    ramp = np.linspace(0, 4095, 256).reshape(16, 16)
    full = as_file(Image.fromarray((ramp * 16).astype(np.uint16)))
    shallow = as_file(Image.fromarray(ramp.astype(np.uint16)))
    x, _, notes = converted(tmp_path, shallow, full)
    assert abs(x[0].astype(int) - (ramp * 255 / 4095).round()[..., None]).max() <= 1
    assert abs(x[1].astype(int) - x[0]).max() <= 1
    assert any("1 16-bit images use a sixteenth of their range or less" in note for note in notes)
    black = as_file(Image.fromarray(np.zeros((16, 16), np.uint16)))
    x, _, notes = converted(tmp_path, black, full)
    assert x[0].max() == 0 and not any("16-bit" in note for note in notes)


def test_images_that_come_out_nearly_black_are_told_of(tmp_path):
    """Pillow reads the upper byte of a colour's 16 bits, and a mask holds class numbers."""
    ramp = np.linspace(0, 4095, 256).reshape(16, 16)
    rows = [b"\0" + np.stack([row, row, row], 1).astype(">u2").tobytes() for row in ramp]
    twelve_bits = png_file(16, 16, 16, 2, {b"IDAT": zlib.compress(b"".join(rows))})
    mask = as_file(Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16) // 17))
    night = as_file(Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16) // 16 + 1))
    x, readable, notes = converted(tmp_path, twelve_bits, mask, night)
    assert readable.all() and [i.max() for i in x] == [15, 15, 16]
    assert any("2 images are nearly black, no value above 15 of 255" in note for note in notes)


def test_a_jpeg_of_182_megapixels_is_decoded_at_an_eighth(tmp_path):
    image = Image.new("L", (13_500, 13_500), 200)
    image.paste(50, (0, 0, 13_500, 6_750))
    content = as_file(image, "JPEG")
    del image
    x, readable, _ = converted(tmp_path, content, picture(0))
    assert readable.all() and x[0, 2, 8, 0] == 50 and x[0, 13, 8, 0] == 200


def png_of(width, height, mode=3):
    """A PNG of zeros, compressed row by row: small however large it is."""
    row = zlib.compressobj(9)
    zeros = b"\0" * (1 + width * {3: 1, 6: 4}[mode])
    body = b"".join(row.compress(zeros) for _ in range(height)) + row.flush()
    palette = {b"PLTE": bytes([9, 99, 199]), b"tRNS": b"\x80"} if mode == 3 else {}
    return png_file(width, height, 8, mode, palette | {b"IDAT": body})


def png_file(width, height, bits, mode, chunks):
    """A PNG of these chunks: what Pillow does not write."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, mode, 0, 0, 0)
    every = {b"IHDR": header} | chunks | {b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*pair) for pair in every.items())


def test_a_large_image_of_few_bytes_is_laid_over_white(tmp_path):
    content = png_of(5_000, 4_000)
    assert len(content) < 50_000
    x, readable, _ = converted(tmp_path, content, picture(0))
    over_white = (np.array([9, 99, 199]) * 128 + 255 * 127) / 255
    assert readable.all() and abs(x[0].astype(int) - over_white.round()).max() <= 1


def test_decoding_is_bounded_by_bytes(tmp_path, monkeypatch):
    """As many at a time as fit, and an image that never fits is skipped with its reason."""
    sizes, now, lock = [], 0, threading.Lock()
    rgb = pixels.rgb

    def watched(image):
        nonlocal now
        with lock:
            now += image.width * image.height
            sizes.append(now)
        result = rgb(image)
        with lock:
            now -= image.width * image.height
        return result

    monkeypatch.setattr(pixels, "rgb", watched)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(pixels, "BUDGET", 1_500_000)
    bmp = as_file(Image.new("RGB", (200, 200), "red"), "BMP")  # 120,054 bytes; some 0.6 MB in all
    large = as_file(Image.new("RGB", (2_000, 2_000), "red"), "PNG")
    x, readable, notes = converted(tmp_path, *[bmp] * 20, large)
    assert readable.tolist() == [True] * 20 + [False] and max(sizes) <= 2 * 200 * 200
    assert any(
        "1 images would take more than 1 MiB to decode and were skipped" in note for note in notes
    )


@pytest.mark.parametrize("damage", ["mask cut", "pixels cut", "foreign mask", "no pixels"])
def test_kept_pixels_that_are_damaged_are_made_again(tmp_path, damage):
    contents = [picture(i) for i in range(4)]
    first = converted(tmp_path, *contents)[0]
    mask, stored = next(tmp_path.glob("kept/*.npy")), next(tmp_path.glob("kept/*.pixels"))
    if damage == "mask cut":
        mask.write_bytes(mask.read_bytes()[:-2])
    elif damage == "pixels cut":
        stored.write_bytes(stored.read_bytes()[:-5])
    elif damage == "foreign mask":
        np.save(mask, np.ones(7))
    else:
        stored.unlink()
    assert np.array_equal(converted(tmp_path, *contents)[0], first)


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "kept").write_text("a file where the folder would be")
    with pytest.raises(Unwritable, match="expected to keep converted images in .*kept"):
        converted(tmp_path, picture(0), picture(1))


# data sets of other libraries


X = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8)
Y = np.arange(12) % 2


class Set(torch.utils.data.Dataset):
    """(image, label) by number, as torch has it."""

    def __init__(self, image, classes=None):
        self.image = image
        if classes is not None:
            self.classes = classes

    def __len__(self):
        return 12

    def __getitem__(self, i):
        if i >= 12:
            raise IndexError
        return self.image(i), int(Y[i])


class ClassLabel:
    names = ["cat", "dog"]


class Image_:
    pass


Image_.__name__ = "Image"


class HuggingFace:
    """What is used of a `datasets.Dataset`."""

    column_names = ["img", "fine_label", "coarse_label"]
    features = {"img": Image_(), "fine_label": ClassLabel(), "coarse_label": None}

    def __len__(self):
        return 12

    def __getitem__(self, i):
        if i == "fine_label":
            return Y.tolist()
        return {"img": Image.fromarray(X[i]), "fine_label": int(Y[i])}


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ((X, Y), "01"),
        ((torch.tensor(X), torch.tensor(Y)), "01"),
        ((X.transpose(0, 3, 1, 2), Y.tolist()), "01"),
        ((X / 255, Y), "01"),
        (Set(lambda i: Image.fromarray(X[i])), "01"),
        (Set(lambda i: torch.tensor(X[i]).permute(2, 0, 1) / 255, ["cat", "dog"]), ("cat", "dog")),
        (HuggingFace(), ("cat", "dog")),
        ([X, Y], "01"),
        ([(X[i], Y[i]) for i in range(12)], "01"),
        ((X, Y[:, None].astype(float)), "01"),
        (Set(lambda i: X[i], np.array(["cat", "dog"])), ("cat", "dog")),
        ((X, np.array(["cat", "dog"])[Y]), ("cat", "dog")),
    ],
)
def test_data_sets_of_other_libraries(source, names):
    images = as_labelled_images(source)
    assert images.class_names == tuple(names) and images.labels.tolist() == Y.tolist()
    assert images.held_out.sum() == 2
    x, readable = images.pixels(np.arange(12), CONFIG)
    assert readable.all() and np.array_equal(x, X)
    assert "image" in images.shown(3) or "row 3" in images.shown(3)


@pytest.mark.parametrize("size", [24, 32, 64])
def test_a_task_in_memory_shows_an_expert_what_the_same_images_as_files_do(size):
    task = load_task("digits")  # 32 pixels: networks of 64 must not see them as they are stored
    config = input_config({"image_size": size})
    index = np.linspace(0, len(task.train.labels) - 1, 8).astype(int)
    seen, readable = task.pixels(index, config)
    files = as_labelled_images((task.train.images[index], task.train.labels[index]))
    assert readable.all() and seen.shape == (8, size, size, 3)
    assert np.array_equal(seen, files.pixels(np.arange(8), config)[0])


def test_of_several_columns_a_data_set_takes_the_one_that_its_file_would():
    class Both(HuggingFace):
        column_names = ["img", "class", "label"]
        features = {"img": Image_(), "class": None, "label": ClassLabel()}

        def __getitem__(self, i):
            if isinstance(i, str):
                return Y.tolist() if i == "label" else ["same"] * 12
            return {"img": Image.fromarray(X[i])}

    assert as_labelled_images(Both()).class_names == ("cat", "dog")


def test_labels_of_arrays_that_are_missing_or_several():
    for missing in (np.where(np.arange(12) < 2, np.nan, Y), [None, None, *Y[2:]]):
        images = as_labelled_images((X, missing))
        assert images.class_names == ("0", "1") and len(images.labels) == 10
        assert images.notes == ["2 images without a label left out"]
        assert np.array_equal(images.pixels(np.arange(10), CONFIG)[0], X[2:])
    borne = np.stack([Y, 1 - Y, np.arange(12) > 5], 1)
    for labels in (borne, [np.flatnonzero(row).tolist() for row in borne]):
        images = as_labelled_images((X, labels), labels="several")
        assert np.array_equal(images.targets, borne.astype(bool))


def test_other_data_sets_with_splits_and_folders_of_torchvision(tmp_path):
    datasets = pytest.importorskip("torchvision.datasets")
    write(tmp_path, "cat/4", "dog/4")
    images = as_labelled_images(datasets.ImageFolder(str(tmp_path)))
    assert images.class_names == ("cat", "dog") and counts(images) == [[3, 3], [1, 1]]
    assert images.places == open_images(tmp_path).places
    images = as_labelled_images({"train": (X, Y), "test": (X[:4], Y[:4])})
    assert images.given_split and images.held_out.sum() == 4 and images.repeated() == 4
    task = Task("t", "d", ("a", "b"), Split(X.copy(), Y.copy()), Split(X[:2].copy(), Y[:2].copy()))
    assert as_labelled_images(task) is task
    assert as_labelled_images(tmp_path).class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (3, "expected a path, a pair"),
        ((X, Y[:5]), "a label for each of 12 images, got 5"),
        ({"fold1": (X, Y)}, "expected splits named train"),
        (
            Set(lambda i: (torch.tensor(X[i]) / 64 - 2).permute(2, 0, 1)),
            "a transform that normalises",
        ),
        ([1, 2, 3], "got list: 'int' object"),
        ((X, np.eye(2)[Y]), r"tuple: the label \[1.0, 0.0\]: expected one name or number an image"),
        ((X, [b"a", b"b"] * 6), "the label b'a': expected one name"),
        (Set(lambda i: X[i], ["cat"]), "Set: the label 1: expected numbers below 1"),
        ([{"image": x, "label": 0} for x in X], "expected .* a torch Dataset .*, got list: 1"),
        (((x for x in X), Y), "expected .* a pair"),
    ],
)
def test_other_objects_are_one_line(source, message):
    with pytest.raises(MzlibError, match=message):
        images = as_labelled_images(source)
        images.pixels(np.arange(len(images.labels)), CONFIG)


# damaged inputs


def test_a_sample_of_the_fuzz_shows_no_traceback(monkeypatch):
    """Of `benchmarks/fuzz.py`, which has made 100,000."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import fuzz

    counts, tracebacks = fuzz.fuzz(300, seed=1)
    assert counts["inputs"].sum() >= 300 and not tracebacks, tracebacks[:1]
    counts = counts.set_index("kind").loc[["images", "text tables"]]
    assert counts[["answers", "refusals"]].min().min() > 0


# the shared cases


@pytest.mark.skipif(not CASES.is_dir(), reason="../shared/cases is not here")
@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("split_val.csv", 18, 6),
        ("split_Test.csv", 18, 6),
        ("hf_train_validation", 12, 12),
        ("train_only", 18, 6),
        ("semicolon.csv", 18, 6),
        ("onehot.csv", 18, 6),
        ("image_is_path.parquet", 18, 6),
        ("one_image_per_class.csv", 2, 0),
        ("twelve_bit", 10, 2),
        ("eps_named_jpg", 13, 4),
    ],
)
def test_shared_cases(name, train, test):
    images = open_images(CASES / name)
    assert [(~images.held_out).sum(), images.held_out.sum()] == [train, test]
    index = images.sample("10", 0)
    x, readable = images.pixels(index, CONFIG)
    assert len(x) >= 0.9 * len(index) and x.reshape(len(x), -1).max(1).min() > 60
