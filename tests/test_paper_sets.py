"""The paper's data sets, each on a miniature of its real folder layout; torchvision's own readers as the oracle."""

import os
import random

import miniature
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from mzlib.benchmark.data import paper
from mzlib.benchmark.figures import paper as printed
from mzlib.cli import main
from mzlib.errors import MzlibError
from mzlib.streaming import FileSet, ImageFiles, training_set
from mzlib.training import ResidentSet, normalize, predict

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    miniature.write_all(folder)
    return folder


def test_the_table_has_the_counts_of_table_4():
    table = printed("table4_datasets").set_index("dataset")
    assert list(table.index) == list(paper.SETS)
    for name, row in table.iterrows():
        spec = paper.SETS[name]
        assert [spec["train"], spec["test"], spec["classes"], spec["role"]] == [
            row.train_images,
            row.test_images,
            row.classes,
            row.role,
        ]


@pytest.mark.parametrize("name", paper.SETS)
def test_every_layout_is_read(sets, name):
    task = paper.load(name, 32, sets)
    classes, total = (
        2 if name == "euro_flood" else miniature.CLASSES,
        miniature.CLASSES * (miniature.TRAIN + miniature.TEST),
    )
    assert (
        len(task.class_names) == classes and len(task.train.labels) + len(task.test.labels) == total
    )
    paths = [*map(os.fsdecode, task.train.images.paths), *map(os.fsdecode, task.test.images.paths)]
    assert len(set(paths)) == total and all(os.path.isfile(path) for path in paths)
    assert set(task.test.labels) <= set(task.train.labels)
    if not paper.listing(name, sets / name)[3]:
        assert np.bincount(task.test.labels).tolist() == [miniature.TEST] * miniature.CLASSES
    # images of a class share a colour, so a wrong label shows
    means = np.asarray(task.train.images).mean((1, 2))
    for label in range(classes if name != "euro_flood" else 0):
        assert means[task.train.labels == label].std(0).max() < 10


@pytest.mark.parametrize(
    ("name", "read"),
    [
        (
            "oxford_iiit_pets",
            lambda root, split: torchvision.datasets.OxfordIIITPet(
                root, {"train": "trainval"}.get(split, split)
            ),
        ),
        ("stanford_cars", lambda root, split: torchvision.datasets.StanfordCars(root, split)),
        (
            "imagenet",
            lambda root, split: torchvision.datasets.ImageFolder(
                root / {"test": "val"}.get(split, split)
            ),
        ),
        (
            "places365",
            lambda root, split: torchvision.datasets.Places365(
                root, {"train": "train-standard", "test": "val"}[split], small=True
            ),
        ),
    ],
)
def test_listings_agree_with_torchvision(sets, name, read, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.Places365, "_check_integrity", lambda *_: True)
    monkeypatch.setattr(torchvision.datasets.Places365, "load_categories", lambda *_: ([], {}))
    task = paper.load(name, 32, sets)
    for split in ("train", "test"):
        theirs, ours = read(sets / name, split), getattr(task, split)
        expected = next(
            (getattr(theirs, k) for k in ("samples", "_samples", "imgs") if hasattr(theirs, k)),
            None,
        ) or list(zip(theirs._images, theirs._labels))
        assert sorted((os.fspath(path), label) for path, label in expected) == [
            (os.fsdecode(path), label) for path, label in zip(ours.images.paths, ours.labels)
        ]


def test_a_label_file_replaces_a_layout(tmp_path):
    miniature.write("dtd", tmp_path / "dtd")
    some = sorted((tmp_path / "dtd").rglob("*.jpg"))[::2]
    lines = [
        f"{path.relative_to(tmp_path / 'dtd')},{path.parent.name},{'test' if i % 2 else 'train'}"
        for i, path in enumerate(some)
    ]
    (tmp_path / "dtd/labels.csv").write_text("\n".join(["path,label,split", *lines]))
    task = paper.load("dtd", 32, tmp_path)
    assert (len(task.train.labels), len(task.test.labels)) == (6, 6)


def test_only_the_landmarks_with_most_images_are_taken(tmp_path, monkeypatch):
    miniature.write("google_landmark", tmp_path)
    with open(tmp_path / "train.csv", "a") as table:
        table.write("abcx,http://none,99\n")
    monkeypatch.setitem(paper.SETS["google_landmark"], "classes", 3)
    assert set(paper.listing("google_landmark", tmp_path)[1]) == {"0", "1", "2"}


def test_errors_name_the_set_the_folder_and_what_to_do(tmp_path):
    with pytest.raises(
        MzlibError, match="food101: expected the layout 'lists' in .*FileNotFoundError.*torchvision"
    ):
        paper.listing("food101", tmp_path)
    with pytest.raises(MzlibError, match="expected one of the paper's data sets .*got 'food'"):
        paper.listing("food", tmp_path)
    miniature.write("food101", tmp_path)
    (tmp_path / "food-101/meta/train.txt").write_text("no slash here\n")
    with pytest.raises(MzlibError, match="the line 'no slash here' in food-101/meta/train.txt"):
        paper.listing("food101", tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        (
            "dtd",
            "labels.csv",
            "path,label\nno-label.jpg\n",
            "the row 'no-label.jpg,None' in labels.csv",
        ),
        (
            "dtd",
            "labels.csv",
            "path,label,split\na.jpg,x,Test\n",
            "the row 'a.jpg,x,Test' in labels.csv",
        ),
        (
            "dtd",
            "labels.csv",
            "path,label,split\na.jpg,x,train\nb.jpg,y,\n",
            "expected a split for all images or for none.*b.jpg",
        ),
        (
            "dtd",
            "labels.csv",
            "path,label,split\na.jpg,x,train\na.jpg,x,test\nb.jpg,y,train\n",
            "got .*a.jpg in both, list it once",
        ),
        (
            "dtd",
            "labels.csv",
            "path,label,split\na.jpg,x,train\nb.jpg,y,train\n",
            "expected test images, too, .* got 2 for training",
        ),
        ("inaturalist2019", "val2019.json", "[]", "TypeError"),
        ("inaturalist2019", "val2019.json", '{"images": [7], "annotations": []}', "TypeError"),
        ("imaterialist", "val.json", '{"images": [{"id": []}]}', "TypeError"),
        (
            "oxford_flowers102",
            "flowers-102/setid.mat",
            "junk",
            "MatReadError: Mat file appears to be truncated",
        ),
        (
            "google_landmark",
            "train.csv",
            "id,url,landmark_id\nabc,http://none,\n",
            "an empty id or landmark_id in train.csv",
        ),
    ],
)
def test_a_damaged_list_is_one_line(tmp_path, name, file, text, message):
    miniature.write(name, tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(MzlibError, match=message) as error:
        paper.check(name, tmp_path, progress=False)
    assert "\n" not in str(error.value)


def test_check_goes_on_after_a_set_that_is_not_there(sets, monkeypatch, capsys):
    assert (
        main(
            [
                "data",
                "check",
                "food101",
                "nope",
                "stanford_cars",
                "--root",
                str(sets.parent / "none"),
            ]
        )
        == 1
    )
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and "'nope'" in lines[1]
    assert all(
        f"expected the data set in {sets.parent / 'none'}" in lines[i] and "get it so: " in lines[i]
        for i in (0, 2)
    )
    monkeypatch.setenv("MZLIB_DATA", str(sets))
    assert main(["data", "check", "nope", "rsscn7"]) == 1
    out, err = capsys.readouterr()
    assert "got 'nope'" in err and out == f"rsscn7: not in {sets}\n"


def test_check_names_counts_and_unreadable_files(tmp_path, capsys):
    miniature.write("uc_merced", tmp_path / "uc_merced")
    broken = sorted((tmp_path / "uc_merced").rglob("*.tif"))[0]
    broken.write_bytes(broken.read_bytes()[:300])
    assert main(["data", "check", "uc_merced", "--root", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert (
        "18 train, Table 4 has 1,575" in out
        and "3 classes, Table 4 has 21" in out
        and str(broken) in out
    )
    assert main(["data", "check", "dtd", "--root", str(tmp_path)]) == 1
    assert "torchvision.datasets.DTD" in capsys.readouterr().err


def test_check_counts_every_image_whoever_draws_the_split(sets, tmp_path, monkeypatch):
    miniature.write("dtd", tmp_path)
    monkeypatch.setitem(
        paper.SETS, "dtd", paper.SETS["dtd"] | {"train": 17, "test": 7, "classes": 3}
    )  # 24 images, 18 + 6
    assert paper.check("dtd", tmp_path, progress=False)[1:] == []
    next(tmp_path.rglob("*.jpg")).unlink()
    assert "6 test, Table 4 has 7" in paper.check("dtd", tmp_path, progress=False)[1]
    monkeypatch.setitem(
        paper.SETS,
        "cub200",
        paper.SETS["cub200"] | {"train": 18, "test": 5, "owners_test": 6, "classes": 3},
    )
    [found] = paper.check("cub200", sets / "cub200", progress=False)
    assert "6 test images of 3 classes, 0 unreadable (Table 4 has 5,793 test images" in found


def test_check_queues_few_images_at_a_time(monkeypatch):
    waiting, most = set(), 0

    def pool_map(self, run, paths):
        nonlocal most
        waiting.update(paths)
        most = max(most, len(waiting))
        return (waiting.discard(path) for path in paths)

    paths = np.array([b"%d" % i for i in range(5000)])
    monkeypatch.setattr(
        paper, "listing", lambda *_: (paths, paths.astype(str), np.arange(5000) < 2500, True)
    )
    monkeypatch.setattr(paper.ThreadPoolExecutor, "map", pool_map)
    assert (
        "0 unreadable" in paper.check("dtd", None, progress=False)[0]
        and most <= 1024
        and not waiting
    )


def test_check_is_silent_about_a_set_as_table_4_has_it(sets, monkeypatch, capsys):
    for name, counts in {"dtd": (18, 6), "cub200": (18, 6)}.items():
        monkeypatch.setitem(
            paper.SETS, name, paper.SETS[name] | dict(zip(("train", "test"), counts), classes=3)
        )
        assert paper.check(name, sets / name, progress=False)[1:] == []
    assert main(["data", "check", "dtd", "--root", str(sets)]) == 0
    assert "18 train and 6 test images of 3 classes" in capsys.readouterr().out


def test_file_batches_do_not_depend_on_the_number_of_workers(sets, monkeypatch):
    task = paper.load("food101", 32, sets)
    options = dict(flip=True, device=CPU, per_epoch=20)
    before = random.getstate(), torch.get_rng_state()
    here = list(
        training_set(task.train.images, task.train.labels, **options).epoch(
            8, torch.Generator().manual_seed(1)
        )
    )
    assert before[0] == random.getstate() and torch.equal(before[1], torch.get_rng_state())
    monkeypatch.setattr("mzlib.streaming.IN_PROCESS", 0)
    monkeypatch.setenv("MZLIB_LOADERS", "2")
    there = list(
        training_set(task.train.images, task.train.labels, **options).epoch(
            8, torch.Generator().manual_seed(1)
        )
    )
    assert [len(y) for _, y in here] == [7, 7, 6]
    for (x, y), (u, v) in zip(here, there, strict=True):
        assert torch.equal(x, u) and torch.equal(y, v) and x.shape[1:] == (3, 32, 32)
    assert not torch.equal(
        here[0][0],
        next(
            FileSet(task.train.images, task.train.labels, **options).epoch(
                8, torch.Generator().manual_seed(2)
            )
        )[0],
    )


def test_files_are_batched_like_pixels(sets):
    """Same order of images and same labels as a ResidentSet; the same numbers from `predict`."""
    task = paper.load("dtd", 32, sets)
    files, pixels = task.train.images, np.asarray(task.train.images)
    assert (
        files.shape == pixels.shape
        and isinstance(files[2:5], ImageFiles)
        and len(files[np.array([0, 3])]) == 2
    )
    labels = [
        [
            y
            for _, y in kind(images, np.arange(len(pixels)), flip=False, device=CPU).epoch(
                5, torch.Generator().manual_seed(0)
            )
        ][0]
        for kind, images in ((FileSet, files), (ResidentSet, pixels))
    ]
    assert torch.equal(*labels)
    assert torch.equal(
        predict(lambda x: x.flatten(1), files, CPU, 5),
        predict(lambda x: x.flatten(1), pixels, CPU, 7),
    )
    with Image.open(
        os.fsdecode(files.paths[0])
    ) as image:  # 48 x 40: to 43 x 36 on the short side, then the middle 32 x 32
        by_hand = np.asarray(image.resize((43, 36), Image.Resampling.BICUBIC).crop((6, 2, 38, 34)))
    assert np.array_equal(by_hand, pixels[0])
    assert normalize(torch.tensor(pixels)).shape == (len(pixels), 3, 32, 32)


def test_an_unreadable_training_image_is_named(tmp_path):
    miniature.write("dtd", tmp_path / "dtd")
    task = paper.load("dtd", 32, tmp_path)
    victim = os.fsdecode(task.train.images.paths[0])
    with open(victim, "wb") as file:
        file.write(b"no image")
    with pytest.raises(MzlibError, match=f"{victim}: expected a whole file"):
        np.asarray(task.train.images)
