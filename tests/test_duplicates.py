"""Near-duplicates between train and test: planted ones are found, look-alikes under one rule only are not."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mzlib.benchmark import load_suite
from mzlib.benchmark.data import CARDS, duplicates, load_task
from mzlib.cli import main
from mzlib.dataset import Split, Task

TABLE = Path(__file__).parents[1] / "results/benchmarks/near_duplicates.csv"


def smooth(rng, side=64):
    """A random picture with structure at all scales, as a photograph has."""
    coarse = rng.integers(0, 256, (6, 6, 3), np.uint8)
    fine = rng.normal(0, 6, (side, side, 3))
    picture = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
    return np.clip(picture + fine, 0, 255).astype(np.uint8)


def task(train, test, test_labels=None):
    train_labels = np.arange(len(train)) % 2
    labels = np.zeros(len(test), int) if test_labels is None else np.array(test_labels)
    return Task(
        "t", "d", ("a", "b"), Split(np.stack(train), train_labels), Split(np.stack(test), labels)
    )


def test_other_exposures_are_found_and_other_pictures_are_not():
    rng = np.random.default_rng(0)
    train, others = [smooth(rng) for _ in range(12)], [smooth(rng) for _ in range(6)]
    darker = (train[3] * 0.7).astype(np.uint8)
    noisy = np.clip(train[8] + rng.normal(0, 8, train[8].shape), 0, 255).astype(np.uint8)
    found = duplicates.near_duplicates(task(train, [*others, darker, noisy], [0] * 6 + [0, 0]))
    assert found["test"].tolist() == [6, 7] and found["train"].tolist() == [3, 8]
    assert found["same_label"].tolist() == [False, True]
    assert (found["correlation"] > 0.985).all() and (found["distance"] <= 6).all()


def test_a_correlation_alone_is_no_duplicate():
    """One bright half on both: the thumbnails agree, the faint patterns that the hash sees do not."""
    rng = np.random.default_rng(1)
    half = np.zeros((64, 64, 3))
    half[:32] = 200
    pictures = [(half + smooth(rng).astype(float) * 0.08).astype(np.uint8) for _ in range(2)]
    a, b = (duplicates.Looks(np.stack([picture])) for picture in pictures)
    assert (a.thumbnails @ b.thumbnails.T).item() > 0.985
    assert duplicates.near_duplicates(task([pictures[0]] * 2, [pictures[1]])).empty


def test_blank_images_are_like_nothing():
    blank = np.full((32, 32, 3), 7, np.uint8)
    assert duplicates.near_duplicates(task([blank] * 2, [blank])).empty


def test_the_definition_in_float64_over_all_pairs():
    rng = np.random.default_rng(2)
    train = [smooth(rng) for _ in range(5)]
    test = [np.clip(p * rng.uniform(0.5, 1.3), 0, 255).astype(np.uint8) for p in train[:3]]
    grey = lambda p: np.asarray(  # noqa: E731
        Image.fromarray(p).convert("L").resize((24, 24), Image.Resampling.LANCZOS), float
    ).ravel()
    slow = [max(np.corrcoef(grey(t), grey(p))[0, 1] for p in train) for t in test]
    found = duplicates.near_duplicates(task(train, test))
    assert found["correlation"].to_numpy() == pytest.approx(np.array(slow)[found["test"]], abs=1e-5)


def test_the_committed_table_has_every_set_of_the_benchmark():
    table = pd.read_csv(TABLE).set_index("task")
    recorded = {n for n, card in CARDS.items() if card["origin"] in ("github", "derived")}
    assert recorded <= set(table.index)
    assert table.at["magnetic_tile", "share"] < 0.01  # 39 % under the former split


def test_no_expert_was_trained_on_a_test_image_of_a_target():
    table = pd.read_csv(TABLE.with_name("near_duplicates_of_sources.csv")).set_index("source")
    suite = load_suite("thumb64")
    assert tuple(table.index) == tuple(suite.sources)
    assert (table["targets"] == len(suite.targets)).all()
    assert table["test"].nunique() == 1 and table["near_duplicates"].sum() == 0


@pytest.mark.skipif("MZLIB_DATA" not in os.environ, reason="needs the frozen sets in MZLIB_DATA")
@pytest.mark.parametrize("name", ["voice_emotions", "wbc"])
def test_the_committed_table_is_what_is_computed(name):
    assert (
        duplicates.summary(name)
        == pd.read_csv(TABLE).set_index("task", drop=False).loc[name].to_dict()
    )


def test_any_task_is_checked(tmp_path, monkeypatch, capsys):
    """One that is embedded, one's own folder; only what is nowhere is refused."""
    monkeypatch.setenv("MZLIB_DATA", str(tmp_path / "cache"))
    for split, numbers in (("train", (0, 1)), ("test", (1, 2))):
        for label in ("a", "b"):
            folder = tmp_path / "mine" / split / label
            folder.mkdir(parents=True)
            for number in numbers:
                picture = smooth(np.random.default_rng([number, label == "a"]))
                Image.fromarray(picture).save(folder / f"{number}.png")
    mine = str(tmp_path / "mine")
    assert main(["data", "check", "digits", mine, "rsscn7"]) == 0
    embedded, own, absent = capsys.readouterr().out.splitlines()
    counts = load_task("digits")
    assert embedded.startswith("digits: embedded")
    assert f" of {len(counts.test.labels):,} test images" in embedded
    assert "2 of 4 test images (50.0%) look like a training image, 0 of them" in own
    assert absent == f"rsscn7: not in {tmp_path / 'cache'}"
    assert main(["data", "check", "nope"]) == 1
