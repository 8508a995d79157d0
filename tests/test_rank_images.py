"""Reading labelled images of any kind: layouts, conversion rules, files that are no images, mangled bytes."""

import csv
import io
import json
import os
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm.data
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mzlib.dataset import LabelledImages, Split, Task
from mzlib.errors import MzlibError
from mzlib.images import DAMAGED, TOO_LARGE, in_threads, input_config, open_images, printable
from mzlib.pixels import rgb

CONFIG = input_config({"image_size": 16})


def picture(seed, size=(24, 20), kind="PNG", **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


def write(root, classes, start=0):
    for c, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (root / name / f"{i}.png").write_bytes(picture(start + 100 * c + i))
    return root


def pixels(images, tmp_path, index=None):
    index = np.arange(len(images.labels)) if index is None else index
    return images.pixels(index, CONFIG, tmp_path / "kept")


# layouts


def test_class_folders_are_split_within_classes_and_singles_are_trained_on(tmp_path):
    images = open_images(write(tmp_path / "pets", {"cat": 10, "dog": 5, "eel": 1}))
    assert (images.name, images.class_names, images.given_split) == (
        "pets",
        ("cat", "dog", "eel"),
        False,
    )
    assert np.bincount(images.labels[images.held_out], minlength=3).tolist() == [2, 1, 0]
    assert images.notes == ["1 of 3 classes have one training image, first 'eel'"]
    few, many = images.sample(2, 0), images.sample(4, 0)
    assert np.bincount(images.labels[few]).tolist() == [2, 2, 1] and set(few) < set(many)
    assert not images.held_out[images.sample("all", 0)].any()


def test_classes_that_may_be_one_or_none_are_told(tmp_path):
    lines = [f"{i}.png,{'cat Cat dog NA ?'.split()[i % 5]}" for i in range(15)]
    write(tmp_path, {".": 15})
    (tmp_path / "labels.csv").write_text("\n".join(["image,label", *lines]))
    images = open_images(tmp_path / "labels.csv")
    assert images.class_names == ("?", "Cat", "NA", "cat", "dog")
    assert images.notes == [
        "'Cat' and 'cat' are two classes: spell them alike if not",
        "'?' is a class: leave its images out if it says that they have none",
        "'NA' is a class: leave its images out if it says that they have none",
    ]


def test_an_alphabet_in_both_cases_is_one_note(tmp_path):
    images = open_images(write(tmp_path, dict.fromkeys("ABCabc", 3)))
    assert images.notes == ["'A' and 'a' are two classes (2 more such): spell them alike if not"]


@pytest.mark.parametrize("other", ["test", "val", "validation"])
def test_given_splits(tmp_path, other):
    write(tmp_path / "train", {"a": 3, "b": 2})
    write(tmp_path / other, {"a": 1, "b": 2}, start=1000)
    images = open_images(tmp_path)
    assert images.given_split and images.class_names == ("a", "b")
    assert images.held_out.sum() == 3 and images.repeated() == 0
    (tmp_path / other / "a" / "copy.png").write_bytes(
        (tmp_path / "train" / "b" / "0.png").read_bytes()
    )
    assert open_images(tmp_path).repeated() == 1
    write(tmp_path / other, {"new": 1})
    with pytest.raises(MzlibError, match="every class of test in train, got 'new'"):
        open_images(tmp_path)


@pytest.mark.parametrize("as_struct", [True, False])
@pytest.mark.parametrize("names", ["huggingface", "own", "text"])
def test_parquet(tmp_path, as_struct, names):
    content = [picture(i) for i in range(200)]  # more than one batch of the reader
    cells = [{"bytes": c, "path": None} for c in content] if as_struct else content
    labels, metadata = [i % 2 for i in range(200)], {}
    if names == "huggingface":
        metadata = {
            "huggingface": json.dumps({"info": {"features": {"label": {"names": ["x", "y"]}}}})
        }
    elif names == "own":
        metadata = {"class_names": json.dumps(["x", "y"])}
    else:
        labels = ["xy"[i] for i in labels]
    (tmp_path / "data").mkdir()
    for split, part in (("train", slice(0, 150)), ("test", slice(150, 200))):
        table = pa.table({"image": cells[part], "label": labels[part]}).replace_schema_metadata(
            metadata
        )
        pq.write_table(table, tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    images = open_images(tmp_path)
    assert images.class_names == ("x", "y") and images.given_split and images.held_out.sum() == 50
    assert len(images.labels) == 200 and images.labels[:2].tolist() in ([0, 1], [1, 0])
    index = np.array([1, 60, 61, 130, 199])
    order = [*range(150, 200), *range(150)]  # test-… sorts first
    assert list(images.read(index)) == [content[order[i]] for i in index]
    assert pixels(images, tmp_path, index)[0].shape == (5, 16, 16, 3)


def test_csv_with_and_without_header(tmp_path):
    write(tmp_path, {"a": 3, "b": 3})
    rows = [(f"{c}/{i}.png", c) for c in "ab" for i in range(3)]
    for header in ([], [("label", "path", "split")]):
        with open(tmp_path / "list.csv", "w", newline="") as file:
            csv.writer(file).writerows(
                [
                    *header,
                    *(
                        [
                            (
                                c,
                                f,
                                "test" if f.startswith(("a/0", "b/0")) else "train",
                            )
                            for f, c in rows
                        ]
                        if header
                        else rows
                    ),
                ]
            )
        images = open_images(tmp_path / "list.csv")
        assert (
            images.class_names == ("a", "b")
            and images.held_out.sum() == 2
            and images.given_split == bool(header)
        )
        assert pixels(images, tmp_path)[1].all()
    (tmp_path / "list.csv").write_text("a/0.png,a\nb/0.png\n")
    with pytest.raises(MzlibError, match="'a'; 1 images without a label left out"):
        open_images(tmp_path / "list.csv")


# what is no answer


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({}, "got no image"),
        ({"a": 3}, "images of one class, 'a'"),
        ({"a": 0, "b": 0}, "got no image"),
    ],
)
def test_folders_that_are_no_task(tmp_path, classes, message):
    (tmp_path / "f").mkdir()
    with pytest.raises(MzlibError, match=message):
        open_images(write(tmp_path / "f", classes))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "labelled images, got No columns"),
        (
            "a.csv",
            b"\x00,\x00\n",
            # pandas 3, and pandas 2
            r"a table of the columns (\\x00, \\x00.1|Unnamed: 0, Unnamed: 1): expected image and label",
        ),
        ("a.csv", b'"', "got Error tokenizing data"),
        ("a.parquet", b"PAR1", "expected labelled images"),
        ("a.parquet", b"", "expected labelled images"),
        ("a.txt", b"hello", "expected a folder, a .parquet or a .csv"),
        ("a", b"hello", "expected a folder"),
    ],
)
def test_tables_that_are_none(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MzlibError, match=message):
        open_images(tmp_path / name)


def test_parquet_with_other_columns_or_labels(tmp_path):
    pq.write_table(pa.table({"picture": [b""], "label": [0]}), tmp_path / "a.parquet")
    with pytest.raises(MzlibError, match="columns picture, label: expected image and label"):
        open_images(tmp_path)
    table = pa.table({"image": [b"", b""], "label": [0, -1]}).replace_schema_metadata(
        {"class_names": '["x", "y"]'}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(MzlibError, match="the label -1: expected numbers below 2"):
        open_images(tmp_path)


def test_other_files_loops_and_broken_links_are_skipped(tmp_path):
    root = write(tmp_path / "f", {"a": 4, "b": 4})
    (root / "a" / "notes.txt").write_text("no image")
    (root / "a" / ".hidden.png").write_bytes(b"")
    (root / "a" / "loop").symlink_to(root / "a", target_is_directory=True)
    (root / "a" / "up").symlink_to(root, target_is_directory=True)
    (root / "b" / "self.png").symlink_to(root / "b" / "self.png")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.png").write_bytes(picture(7))
    (root / "b" / "more").symlink_to(
        tmp_path / "elsewhere", target_is_directory=True
    )  # a link is no loop
    images = open_images(root)
    assert np.bincount(images.labels).tolist() == [4, 6]
    assert images.notes[0].startswith("3 files or links skipped that are no images, first ")
    assert (~pixels(images, tmp_path)[1]).sum() == 1  # the link to itself


def test_ten_thousand_classes(tmp_path):
    with open(tmp_path / "list.csv", "w") as file:
        file.writelines(f"{i}.png,class {i % 10_000}\n" for i in range(30_000))
    images = open_images(tmp_path / "list.csv")
    assert (
        len(images.class_names) == 10_000
        and images.held_out.sum() == 10_000
        and len(images.sample(2, 0)) == 20_000
    )


NAMES = [
    "plain",
    "a b",
    "ü",
    "猫",
    "🐈",
    "عربي",
    "<b>&'\"",
    "$x$",
    "%s{0}",
    "-rf",
    "new\nline",
    "tab\t",
    "\x1b[31m",
    "\u202ertl",
    os.fsdecode(b"\xff\xfe"),
]


def test_file_and_class_names_of_any_unicode(tmp_path):
    root = tmp_path / "f"
    for i, name in enumerate(NAMES):
        (root / name).mkdir(parents=True)
        for j in range(2):
            (root / name / f"{name}{j}.png").write_bytes(picture(10 * i + j))
    images = open_images(root)
    assert len(images.class_names) == len(NAMES) and pixels(images, tmp_path)[1].all()
    for name in images.class_names:
        assert name.isprintable() and name.encode()
    images.shown(0).encode()


@given(st.text(st.characters(codec=None, exclude_categories=()), max_size=20))
def test_printable_is_safe_for_a_terminal(text):
    shown = printable(text)
    assert (
        shown.isprintable()
        and shown.encode() is not None
        and (shown == text or not text.isprintable())
    )


# files that cannot be read


def test_unreadable_files_are_skipped_up_to_a_share(tmp_path):
    root = write(tmp_path / "f", {"a": 10, "b": 10})
    (root / "a" / "0.png").write_bytes(b"not an image")
    (root / "b" / "1.png").write_bytes(picture(5)[:200])
    images = open_images(root)
    kept, readable = pixels(images, tmp_path)
    assert (~readable).nonzero()[0].tolist() == [0, 11] and len(kept) == 18
    (root / "a" / "2.png").write_bytes(b"")
    with pytest.raises(
        MzlibError, match=r"at most 10% unreadable images, got 3 of 20, first .*a/0.png"
    ):
        pixels(images, tmp_path)


def test_files_that_are_not_there_are_not_called_unreadable(tmp_path):
    write(tmp_path, {"a": 12})
    lines = [f"{'b' if i < 5 else 'a'}/{i}{'' if i < 2 else '.png'},{i % 2}" for i in range(12)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *lines]))
    (tmp_path / "a" / "7.png").write_bytes(b"not an image")
    message = (
        r"t.csv: expected files of images, got 5 of 12 that are not there, first .*/b/0; paths "
        "count from the table's folder and need their extension$"
    )
    with pytest.raises(MzlibError, match=message):
        pixels(open_images(tmp_path / "t.csv"), tmp_path)


def test_conversion_is_kept_by_content(tmp_path, monkeypatch):
    images = open_images(write(tmp_path / "f", {"a": 3, "b": 3}))
    first = np.array(pixels(images, tmp_path)[0])
    with monkeypatch.context() as patch:
        patch.setattr("mzlib.images.decode", None)  # nothing is decoded a second time
        assert np.array_equal(pixels(images, tmp_path)[0], first)
    (tmp_path / "f" / "a" / "0.png").write_bytes(picture(99))
    changed = np.array(pixels(images, tmp_path)[0])
    assert not np.array_equal(changed[0], first[0]) and np.array_equal(changed[1:], first[1:])
    assert not list((tmp_path / "kept").glob("*tmp*"))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"]), st.data())
def test_mangled_bytes_are_an_image_or_unreadable(tmp_path, kind, data):
    content = bytearray(picture(0, kind=kind))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = (
        bytes(content[: data.draw(st.integers(0, len(content)))])
        if data.draw(st.booleans())
        else bytes(content)
    )
    transform = timm.data.create_transform(
        CONFIG["input_size"], interpolation="lanczos", crop_pct=1.0, use_prefetcher=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        [(found, what)] = in_threads([content], transform, 48)
    assert (found is None) == (what in (DAMAGED, TOO_LARGE))
    assert found is None or found.shape == (16, 16, 3) and found.dtype == np.uint8


# conversion rules


def test_every_mode_becomes_rgb():
    ramp = np.linspace(0, 65535, 256).reshape(16, 16)
    eight = (ramp / 257).round().astype(np.uint8)
    for image in (
        Image.fromarray(eight),
        Image.fromarray(ramp.astype(np.uint16)),
        Image.fromarray(ramp.astype(np.int32)),
        Image.fromarray(eight).convert("LA"),
    ):
        assert np.abs(np.asarray(rgb(image)).astype(int) - eight[..., None]).max() <= 1, image.mode
    floats = np.array(rgb(Image.fromarray(np.array([[-1.0, np.nan], [0.0, 1.0]], np.float32))))[
        ..., 0
    ]
    assert floats.tolist() == [[0, 128], [128, 255]]
    assert (
        np.array(rgb(Image.fromarray(np.full((4, 4), 5.0, np.float32)))).max() == 0
    )  # no range: black
    assert (
        np.array(rgb(Image.new("RGBA", (2, 2), (255, 0, 0, 0)))).min() == 255
    )  # transparent: white
    assert np.array(rgb(Image.new("RGBA", (2, 2), (255, 0, 0, 255))))[0, 0].tolist() == [255, 0, 0]
    assert np.array(rgb(Image.new("CMYK", (2, 2), (0, 255, 255, 0))))[0, 0].tolist() == [255, 0, 0]
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 0, 255, 0])
    assert np.array(rgb(palette))[0, 0].tolist() == [0, 255, 0]
    palette.info["transparency"] = 1
    assert np.array(rgb(palette))[0, 0].tolist() == [255, 255, 255]
    assert np.array(rgb(Image.new("1", (2, 2), 1))).min() == 255
    assert all(rgb(Image.new(mode, (2, 2))).mode == "RGB" for mode in ("YCbCr", "HSV", "I;16", "L"))


def test_stored_oddities(tmp_path):
    root = tmp_path / "f"
    (root / "a").mkdir(parents=True)
    (root / "b").mkdir()
    half = np.zeros((16, 16, 3), np.uint8)
    half[:8] = 255  # white above black
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(half).copy()).save(root / "a/exif.png", exif=exif)
    frames = [Image.fromarray(half), Image.new("RGB", (16, 16), "red")]
    frames[0].save(root / "a/animated.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(half[..., 0].astype(np.uint16) * 257).save(root / "a/sixteen.png")
    Image.fromarray(half).convert("CMYK").save(root / "a/cmyk.tif")
    Image.new("RGB", (3, 4000), "white").save(
        root / "b/tall.png"
    )  # would be resized to 16 x 21,333
    Image.fromarray(half).save(root / "b/upper.PNG")
    images = open_images(root)
    x, readable = pixels(images, tmp_path)
    assert readable.all()
    shown = {os.path.basename(file): image for (file, _), image in zip(images.places, x)}
    for name in ("exif.png", "animated.gif", "sixteen.png", "cmyk.tif", "upper.PNG"):
        assert np.array_equal(shown[name], half), name
    assert shown["tall.png"].min() == 255


def test_each_expert_sees_images_as_timm_would_show_them(tmp_path):
    images = open_images(write(tmp_path / "f", {"a": 2, "b": 2}))
    config = {
        "input_size": (3, 12, 12),
        "interpolation": "bicubic",
        "crop_pct": 0.75,
        "crop_mode": "center",
    }
    x, _ = images.pixels(np.arange(4), config, tmp_path / "kept")
    transform = timm.data.create_transform(**config, mean=(0, 0, 0), std=(1, 1, 1))
    for (file, _), image in zip(images.places, x):
        assert np.array_equal(
            transform(Image.open(file)).permute(1, 2, 0).mul(255).round().byte().numpy(), image
        )


def test_a_task_and_a_listing_answer_alike(tmp_path):
    listing = open_images(write(tmp_path / "f", {"a": 10, "b": 5}))
    train, test = np.flatnonzero(~listing.held_out), np.flatnonzero(listing.held_out)
    parts = [
        Split(listing.pixels(at, CONFIG)[0], listing.labels[at].copy()) for at in (train, test)
    ]
    task = Task("f", "files", listing.class_names, *parts)
    for source in (task, listing):
        assert isinstance(source, LabelledImages)
        assert np.bincount(source.labels[source.held_out]).tolist() == [2, 1]
        few, more = source.sample(2, 0), source.sample("3", 0)
        assert set(few) < set(more) and not source.held_out[more].any()
        assert np.bincount(source.labels[few]).tolist() == [2, 2]
        with pytest.raises(MzlibError, match="got 0"):
            source.sample("0", 0)
    for part in (train, test):
        at = np.flatnonzero(task.held_out) if part is test else np.flatnonzero(~task.held_out)
        ours, readable = task.pixels(at, CONFIG)
        assert readable.all() and np.array_equal(ours, listing.pixels(part, CONFIG)[0])
        assert np.array_equal(task.pixels(at[1:2], CONFIG)[0], ours[1:2])
    assert np.array_equal(listing.reference(few, "full", 0), few)
    assert len(task.reference(few, "full", 0)) == len(train) - 1  # without a validation image
