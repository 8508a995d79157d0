"""Data sets of Python whose labels would be read otherwise than their owner means them."""

import numpy as np
import pytest
import torch

import mzlib
from mzlib.errors import MzlibError
from mzlib.images import as_labelled_images

X = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8)
Y = np.arange(12) % 3
BORNE = np.stack([Y > 0, Y < 2, np.arange(12) > 5], 1)


class Items(torch.utils.data.Dataset):
    """As torchvision's, with labels that a function changes, read item by item."""

    classes = ["zero", "one", "two"]

    def __init__(self, target_transform=None, labels=Y):
        self.target_transform = target_transform
        self.labels = labels

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        label = self.labels[i]
        return X[i], label if self.target_transform is None else self.target_transform(label)


class Stored(Items):
    """Whose labels can be had without its images."""

    @property
    def targets(self):
        return self.labels


def borne(images):
    """The names of the labels of every image."""
    names = np.array(images.class_names)
    return [names[: row.size][row].tolist() for row in images.targets]


@pytest.mark.parametrize("kind", [Stored, Items])
def test_labels_are_those_that_the_data_set_gives_after_its_target_transform(kind):
    assert as_labelled_images(kind()).class_names == ("one", "two", "zero")
    images = as_labelled_images(kind(lambda label: "odd" if label == 1 else "even"))
    assert [images.class_names[i] for i in images.labels] == ["even", "odd", "even"] * 4
    images = as_labelled_images(kind(lambda label: torch.tensor(2 - int(label))))
    assert images.class_names == ("0", "1", "2") and images.labels.tolist() == [2, 1, 0] * 4
    images = as_labelled_images(kind(lambda label: int(label) / 4), labels="numeric")
    assert np.array_equal(images.targets[:, 0], Y / 4)


def test_labels_of_torchvisions_folders_after_their_target_transform(tmp_path):
    datasets = pytest.importorskip("torchvision.datasets")
    for name in ("cat", "dog", "fox"):
        (tmp_path / name).mkdir()
        for i in range(3):
            (tmp_path / name / f"{i}.png").touch()
    folders = datasets.ImageFolder(str(tmp_path), target_transform=lambda label: int(label > 0))
    images = as_labelled_images(folders)
    assert images.class_names == ("0", "1")
    assert images.labels.tolist() == [0] * 3 + [1] * 6
    assert [place[0] for place in images.places] == [file for file, _ in folders.samples]


@pytest.mark.parametrize(
    "source",
    [
        (X, BORNE),
        (X, BORNE.astype(float)),
        (X, torch.tensor(BORNE.astype(int))),
        Stored(labels=BORNE),
        Items(labels=BORNE),
        Items(labels=torch.tensor(BORNE.astype(int))),
    ],
)
def test_rows_of_0_and_1_say_which_labels_an_image_bears(source, monkeypatch):
    monkeypatch.setattr(Items, "classes", None)
    images = as_labelled_images(source, labels="several")
    expected = [[str(k) for k in np.flatnonzero(row)] for row in BORNE]
    assert borne(images) == expected


@pytest.mark.parametrize(
    ("rows", "got"),
    [
        (2 * BORNE.astype(int) - 1, "-1"),
        (BORNE * 0.9, "0.9"),
        (np.where(BORNE, 1.0, np.nan), "nan"),
        (np.array([["red", "dark"]] * 12), "red"),
    ],
)
@pytest.mark.parametrize("held", [lambda rows: (X, rows), lambda rows: Items(labels=rows)])
def test_rows_of_other_values_do_not_say_which_labels_an_image_bears(rows, got, held):
    with pytest.raises(MzlibError, match=f"expected 0 or 1 for each label of an image, got {got}:"):
        as_labelled_images(held(rows), labels="several")


def test_a_tuple_of_labels_is_one_of_labels():
    names = tuple(np.array(["a", "b", "c"])[Y])
    images = as_labelled_images((X, names))
    assert images.class_names == ("a", "b", "c") and np.array_equal(images.labels, Y)
    pairs = [(X[0], "a"), (X[1], "b")]  # two samples
    assert as_labelled_images(pairs).class_names == ("a", "b")
    assert as_labelled_images(tuple(pairs)).class_names == ("a", "b")


class Streaming:
    """As Hugging Face's: no length, no item by its number, columns that may be unknown."""

    features = {"image": None, "label": None}

    def __init__(self, columns):
        self.column_names = columns

    def __iter__(self):
        return iter(())


@pytest.mark.parametrize("columns", [None, ["image", "label"]])
def test_a_streaming_data_set_is_one_line(columns):
    with pytest.raises(MzlibError, match="a data set with a length, got a streaming one: load Str"):
        as_labelled_images({"train": Streaming(columns)})


def test_open_images_takes_what_rank_takes():
    images = mzlib.open_images((X, np.linspace(0, 1, 12)), labels="numeric")
    assert np.array_equal(images.targets[:, 0], np.linspace(0, 1, 12))
    assert borne(mzlib.open_images((X, BORNE), labels="several"))[0] == ["1"]
    with pytest.raises(MzlibError, match="expected a path, a pair .*, got NoneType"):
        mzlib.open_images(None)
