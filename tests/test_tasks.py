"""Tasks by name, their few-shot subsets, the embedded suite, the Parquet cache and image folders."""

import hashlib
import io
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mzlib import pixels
from mzlib.benchmark import data as tasks
from mzlib.benchmark.data import embedded, list_tasks, load_task, store
from mzlib.dataset import few_shot
from mzlib.errors import MzlibError

REAL = os.environ.get("MZLIB_DATA")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("MZLIB_DATA", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


# few-shot subsets

labels_of_any_balance = st.lists(st.integers(0, 6), min_size=1, max_size=120).map(np.array)


@given(labels_of_any_balance, st.integers(1, 30), st.integers(0, 30), st.integers(0, 2**32))
def test_few_shot_is_stratified_nested_and_sorted(labels, shots, more, seed):
    few, many = few_shot(labels, shots, seed), few_shot(labels, shots + more, seed)
    assert few.dtype == np.int64 and (np.diff(few) > 0).all()
    for label in np.unique(labels):
        assert (labels[few] == label).sum() == min(shots, (labels == label).sum())
    assert set(few) <= set(many) <= set(few_shot(labels, "full", seed))
    assert np.array_equal(few, few_shot(labels, shots, seed))


@given(labels_of_any_balance, st.integers(0, 2**32))
def test_few_shot_of_a_class_does_not_depend_on_the_labels_of_the_others(labels, seed):
    merged = np.where(labels > 2, 3, labels)
    for label in range(3):
        a, b = few_shot(labels, 4, seed), few_shot(merged, 4, seed)
        assert np.array_equal(a[labels[a] == label], b[merged[b] == label])


def test_few_shot_full_none_and_seeds():
    labels = np.repeat(np.arange(4), 50)
    assert np.array_equal(few_shot(labels, None, 0), np.arange(200))
    assert np.array_equal(few_shot(labels, "full", 0), np.arange(200))
    assert len({few_shot(labels, 5, seed).tobytes() for seed in range(20)}) == 20
    drawn = np.bincount(
        np.concatenate([few_shot(labels, 5, seed) for seed in range(400)]), minlength=200
    )
    assert abs(drawn - 40).max() < 6 * np.sqrt(40 * 0.9)  # every image has its 1-in-10 chance


@pytest.mark.parametrize("shots", [0, -1, 2.5, "five", True])
def test_few_shot_refuses_other_shots(shots):
    with pytest.raises(ValueError, match="expected shots"):
        few_shot(np.array([0, 1]), shots, 0)


@pytest.mark.parametrize("labels", [np.zeros((2, 2), int), np.array([0.5, 1.0])])
def test_few_shot_refuses_other_labels(labels):
    with pytest.raises(ValueError, match="integer labels"):
        few_shot(labels, 5, 0)


# the embedded suite


@pytest.mark.parametrize("name", list(embedded.TABLES))
def test_embedded_task(name, cache):
    task = load_task(name)
    counts = list_tasks().set_index("name").loc[name]
    assert [len(task.train.labels), len(task.test.labels)] == [counts.train, counts.test]
    assert len(task.class_names) == counts.classes
    for split in (task.train, task.test):
        assert (
            split.images.shape == (len(split.labels), 32, 32, 3) and split.images.dtype == np.uint8
        )
        assert split.labels.dtype == np.int64
        number = np.bincount(split.labels)
        assert len(number) == len(task.class_names) and number.min() == number.max()
        with pytest.raises(ValueError, match="read-only"):
            split.images[0] = 0
    digests = [{i.tobytes() for i in split.images} for split in (task.train, task.test)]
    assert not digests[0] & digests[1]
    if name != "digits":
        assert len(digests[0]) == len(task.train.labels)
        assert _nearest_neighbour(task) < 0.4, "pixels alone must not solve a rendered task"
        colour = [s.images.mean((1, 2)) for s in (task.train, task.test)]
        assert _nearest(colour, task) < 0.35, "colour alone must not solve a rendered task"


def _nearest(features, task):
    train, test = (f.reshape(len(f), -1).astype(np.float32) for f in features)
    distance = (train**2).sum(1) - 2 * test @ train.T
    return (task.train.labels[distance.argmin(1)] == task.test.labels).mean()


def _nearest_neighbour(task):
    small = [
        [np.asarray(Image.fromarray(i).resize((12, 12))) for i in s.images]
        for s in (task.train, task.test)
    ]
    return _nearest([np.stack(s) for s in small], task)


def test_embedded_images_are_the_same_in_another_process():
    names = ["glyphs", "ferns", "arrangements", "fabrics"]
    code = (
        "import hashlib; from mzlib.benchmark.data import load_task\n"
        f"print(*(hashlib.sha256(load_task(n).train.images.tobytes()).hexdigest() for n in {names}))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    other = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    here = [
        hashlib.sha256(embedded.render(name, "train")[0].tobytes()).hexdigest() for name in names
    ]
    assert other.stdout.split() == here


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    task, data = load_task("digits"), load_digits()
    small = task.train.images[..., 0].reshape(-1, 8, 4, 8, 4).mean((2, 4))
    for label in range(10):
        for ours, original in zip(
            small[task.train.labels == label], data.images[data.target == label]
        ):
            assert np.corrcoef(ours.ravel(), original.ravel())[0, 1] > 0.98
    assert not task.flip and task.card["role"] == "target"


def test_embedded_tasks_can_shrink_but_not_grow():
    assert load_task("ferns", 16).test.images.shape == (480, 16, 16, 3)
    assert load_task("ferns") is load_task("ferns")  # kept for the next job
    with pytest.raises(MzlibError, match="at most the stored 32 pixels, got 64"):
        load_task("ferns", 64)
    with pytest.raises(MzlibError, match="at least 1"):
        load_task("ferns", 0)


def test_sources_and_targets_have_a_card():
    fields = {"role", "flip", "domain", "license", "source", "citation", "origin"}
    assert all(fields <= set(card) for card in tasks.CARDS.values())
    unflippable = {
        "digits",
        "gtsrb",
        "svhn",
        "font_characters",
        "omniglot_alphabets",
        "mnist_digits",
        "kannada_digits",
    }
    assert not any(
        tasks.CARDS[name]["flip"]
        for name in unflippable | {"pcb_defects", "glyphs", "symbols", "textures"}
    )
    assert all(
        tasks.CARDS[name]["flip"] for name in ("tiny_imagenet", "flowers102", "eurosat", "scenes")
    )


# names


def test_unknown_names_are_answered_with_near_and_available_ones(cache):
    with pytest.raises(
        MzlibError, match=r"got 'glyhps'; did you mean glyphs.*Available here: textures, .*digits"
    ):
        load_task("glyhps")
    with pytest.raises(MzlibError, match="path of an image folder, got 'no/such/folder'"):
        load_task("no/such/folder")


def test_known_but_absent_tasks_say_how_to_get_them(cache):
    with pytest.raises(MzlibError, match="run `mzlib data get dtd`"):
        load_task("dtd")
    with pytest.raises(MzlibError, match="github.com/Jaime-Rangel.*MZLIB_DATA"):
        load_task("plankton")


def test_default_cache_and_home(monkeypatch):
    monkeypatch.setenv("MZLIB_DATA", "~/somewhere")
    assert str(store.root()) == os.path.expanduser("~/somewhere")
    monkeypatch.setenv("MZLIB_DATA", "")
    assert store.root().name == "mzlib" and store.root().is_absolute()


def test_list_without_a_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("MZLIB_DATA", str(tmp_path / "absent"))
    table = list_tasks().set_index("name")
    assert list(table.columns) == [
        "domain",
        "role",
        "origin",
        "available",
        "train",
        "test",
        "classes",
    ]
    assert table.available.sum() == len(embedded.TABLES) and table.available["digits"]
    assert set(table.origin) == {"embedded", "github", "derived", "torchvision"}
    assert table.loc[~table.available, "train"].isna().all()


# the Parquet cache


def picture(seed, size=(20, 20), kind="PNG", **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


def write_task(
    folder, labels=(0, 1, 0, 1), images=None, names=("cat", "dog"), columns=("image", "label")
):
    folder.mkdir()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    metadata = {"class_names": json.dumps(names)} if names else None
    for shift, split in enumerate(("train", "test")):
        pictures = images or [picture(100 * shift + i) for i in range(len(labels))]
        rows = pa.array([{"bytes": p, "path": f"{i}.png"} for i, p in enumerate(pictures)], kind)
        table = pa.table(dict(zip(columns, [rows, pa.array(labels, pa.int64())])))
        pq.write_table(table.replace_schema_metadata(metadata), folder / f"{split}.parquet")


def test_cached_task(cache):
    write_task(cache / "mine")
    (cache / "mine/meta.json").write_text('{"domain": "noise", "role": "target"}')
    task = load_task("mine")
    assert (task.name, task.domain, task.class_names, task.flip) == (
        "mine",
        "noise",
        ("cat", "dog"),
        False,
    )
    assert np.array_equal(task.train.images[1], np.asarray(Image.open(io.BytesIO(picture(1)))))
    assert np.array_equal(task.test.labels, [0, 1, 0, 1])
    half = load_task("mine", 10).train.images
    lanczos = Image.fromarray(task.train.images[0]).resize((10, 10), Image.Resampling.LANCZOS)
    assert np.array_equal(half[0], np.asarray(lanczos))
    row = list_tasks().set_index("name").loc["mine"]
    assert row.available and (row.train, row.test, row.classes, row.domain) == (4, 4, 2, "noise")
    with pytest.raises(MzlibError, match="at most the stored 20 pixels, got 64"):
        load_task("mine", 64)


def test_larger_than_downloaded_says_how_to_get_it(cache):
    write_task(cache / "eurosat")
    with pytest.raises(MzlibError, match="run `mzlib data get eurosat --size 128`"):
        load_task("eurosat", 128)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"names": None}, "class_names in the schema metadata"),
        ({"columns": ("picture", "label")}, "columns image and label"),
        ({"labels": (1, 1, 1, 1)}, "two or more labels"),
        ({"labels": (0, 1, 2, 1)}, "all below 2, got .0, 1, 2"),
        ({"labels": (0, -1, 0, 1)}, "all below 2, got .-1, 0, 1"),
        ({"labels": ()}, "two or more labels"),
        (
            {"images": [picture(0), picture(1), picture(2)[:200], picture(3)]},
            "train.parquet, 2.png: expected a whole",
        ),
        (
            {"images": [picture(0), b"text", picture(2), picture(3)]},
            "train.parquet, 1.png: expected a whole",
        ),
        (
            {"images": [picture(0), None, picture(2), picture(3)]},
            "train.parquet, 1.png: expected a whole",
        ),
        (
            {"images": [picture(0), picture(1, (20, 21)), picture(2), picture(3)]},
            "images of one size",
        ),
    ],
)
def test_damaged_tables(cache, options, message):
    write_task(cache / "mine", **options)
    with pytest.raises(MzlibError, match=message):
        load_task("mine")


@pytest.mark.parametrize("keep", [0, 50, -100])
def test_truncated_parquet(cache, keep):
    write_task(cache / "mine")
    file = cache / "mine/test.parquet"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(MzlibError, match="test.parquet: expected a whole file"):
        load_task("mine")


def test_a_damaged_task_does_not_hide_the_others(cache):
    write_task(cache / "mine")
    write_task(cache / "broken")
    (cache / "broken/train.parquet").write_bytes(b"PAR1")
    available = list_tasks().set_index("name").available
    assert available["mine"] and not available["broken"]
    with pytest.raises(MzlibError, match="Available here: .*mine$"):
        load_task("min3")


# image folders


def write_folder(root, classes, kind="png"):
    for c, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{i}.{kind}").write_bytes(picture(100 * c + i, (40, 24)))
    return root


def test_folder_is_split_within_classes(tmp_path):
    root = write_folder(tmp_path / "pets", {"cat": 10, "dog": 5, "eel": 2})
    (root / "cat/.hidden").write_text("no image")
    task = load_task(root, 12)
    assert (task.name, task.class_names, task.flip) == ("pets", ("cat", "dog", "eel"), False)
    assert np.bincount(task.train.labels).tolist() == [8, 4, 1] and np.bincount(
        task.test.labels
    ).tolist() == [2, 1, 1]
    assert task.train.images.shape == (13, 12, 12, 3)
    both = {i.tobytes() for s in (task.train, task.test) for i in s.images}
    assert len(both) == 17  # a partition
    assert load_task(root).test.images.shape == (4, 64, 64, 3)


def test_a_folder_does_not_pass_for_a_known_task(tmp_path, cache, monkeypatch):
    write_folder(tmp_path / "dtd", {"a": 2, "b": 2})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MzlibError, match="mzlib data get dtd"):
        load_task("dtd")
    assert load_task("./dtd", 8).name == "dtd"


def test_folder_with_its_own_split(tmp_path):
    write_folder(tmp_path / "train", {"a": 3, "b": 1})
    write_folder(tmp_path / "test", {"a": 1, "b": 2})
    task = load_task(tmp_path, 8)
    assert np.bincount(task.train.labels).tolist() == [3, 1] and np.bincount(
        task.test.labels
    ).tolist() == [1, 2]
    write_folder(tmp_path / "test", {"c": 1})
    tasks._load.cache_clear()
    with pytest.raises(MzlibError, match="every class of test in train, got 'c'"):
        load_task(tmp_path, 8)


def test_folder_images_are_cropped_upright_and_rgb(tmp_path):
    root = write_folder(tmp_path / "odd", {"a": 2, "b": 2})
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20], wide[:5] = 255, wide[:5] // 2
    wide[:5, 10:20] = 128  # the centre square: grey above white; what is cropped off: black
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: turn by 90 degrees clockwise
    Image.fromarray(np.rot90(wide)).save(root / "a/0.png", exif=exif)
    Image.fromarray(wide[..., 0]).convert("P").save(root / "a/1.png")
    square = pixels.decode(root / "a/0.png", "a", 10)
    assert square.shape == (10, 10, 3) and (square[0] == 128).all() and (square[-1] == 255).all()
    assert np.array_equal(pixels.decode(root / "a/1.png", "a", 10), square)
    assert pixels.decode(root / "b/0.png", "b", 48).shape == (
        48,
        48,
        3,
    )  # smaller images are enlarged
    Image.new("RGBA", (9, 9), (255, 0, 0, 0)).save(root / "b/1.png")
    assert load_task(root, 8).train.images.shape == (2, 8, 8, 3)


@pytest.mark.parametrize(
    "classes, message",
    [
        ({}, "got no image"),
        ({"a": 3}, "images of one class, 'a'"),
        ({"a": 3, "b": 0}, "images of one class, 'a'; 1 folders without an image"),
    ],
)
def test_folders_that_are_no_task(tmp_path, classes, message):
    with pytest.raises(MzlibError, match=message):
        load_task(write_folder(tmp_path, classes))


@pytest.mark.parametrize(
    "content", [b"not an image", picture(5)[:300], b"", picture(5, kind="JPEG")[:400]]
)
def test_folder_with_a_damaged_file_names_it(tmp_path, content):
    root = write_folder(tmp_path / "f", {"a": 3, "b": 3})
    (root / "b/9.png").write_bytes(content)
    with pytest.raises(
        MzlibError, match=r"unreadable images, got 1 of ., first .*b/9.png; replace or"
    ):
        load_task(root)


# real images


@pytest.mark.skipif(not REAL, reason="MZLIB_DATA is not set: no real images here")
def test_real_tasks_match_their_cards():
    table = list_tasks().set_index("name")
    cached = [p.name for p in store.root().iterdir() if store.exists(p)]
    assert cached and table.available[cached].all()
    for name in cached:
        meta = store.meta(store.root() / name)
        assert all(table.loc[name, key] == meta[key] for key in ("train", "test", "classes")), name


@pytest.mark.parametrize("name", ["wbc", "dtd10_textures", "bccd_cells", "leaf_disease10"])
def test_a_real_task_loads(name):
    if not REAL or not store.exists(store.root() / name):
        pytest.skip(f"no {name} under MZLIB_DATA")
    task, meta = load_task(name), store.meta(store.root() / name)
    for split in ("train", "test"):
        part = getattr(task, split)
        assert part.images.shape == (meta[split], 64, 64, 3) and part.images.std() > 20
        assert set(np.unique(part.labels)) == set(range(meta["classes"]))
    assert task.domain == meta["domain"] and task.card["license"] == meta["license"]
