"""Your labelled images: listed, not loaded; converted once for each preprocessing into a file of uint8 pixels.

Class folders (`CLASS/**/*.jpg`, also below `train/` and `test/`), Parquet with the columns `image` (bytes, or a struct with
bytes, as Hugging Face writes it) and `label`, or a CSV of `path,label[,split]`. How any file becomes RGB: `store.rgb`.
"""

import csv
import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from io import BytesIO
from itertools import groupby, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import timm.data
from PIL import Image
from tqdm.auto import tqdm

from mzlib.dataset import few_shot, per_class, stratified_split
from mzlib.errors import MzlibError
from mzlib.pixels import rgb

UNREADABLE = 0.1  # share of unreadable files above which there is no answer
ELONGATED = 20  # images longer than this times their short side are cropped to it, or resizing would fill the memory
HELD_OUT = ("test", "val", "valid", "validation")  # the first of these folders beside train/
NATIVE = {
    "interpolation": "lanczos",
    "crop_pct": 1.0,
    "crop_mode": "center",
}  # of the zoo's own experts


@dataclass(frozen=True)
class Images:
    """A listing: `places[i]` is (file, None) or (Parquet file, row) of image i.

    Fulfils `mzlib.dataset.LabelledImages`; held_out is as given by folders, files or a column, else a fifth of each class.
    """

    path: str
    name: str
    class_names: tuple[str, ...]
    places: list[tuple[str, int | None]]
    labels: np.ndarray
    held_out: np.ndarray
    given_split: bool
    notes: list[str] = field(default_factory=list)
    flip: bool = False

    @property
    def test(self) -> np.ndarray:
        return self.held_out

    def sample(
        self, images_per_class: int | str | None, seed: int, shots: int | str = "full"
    ) -> np.ndarray:
        """As `LabelledImages.sample`; nested in the number."""
        train = np.flatnonzero(~self.held_out)
        train = train[few_shot(self.labels[train], shots, seed)]
        number = per_class(images_per_class, len(self.class_names))
        return train[few_shot(self.labels[train], None if number == "all" else number, seed)]

    def reference(self, scored: np.ndarray, shots: int | str, seed: int) -> np.ndarray:
        """As `LabelledImages.reference`: the images that are scored, for no others are decoded."""
        return scored

    def pixels(
        self, index: np.ndarray, config: dict, cache: Path | None = None, progress: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `LabelledImages.pixels`; without a cache the pixels are kept until they are no longer used."""
        if not len(index):
            return np.empty((0, *config["input_size"][1:], 3), np.uint8), np.empty(0, bool)
        if cache is not None:
            return self.convert(index, config, cache, progress)
        with TemporaryDirectory() as folder:  # a map of a removed file stays readable
            return self.convert(index, config, Path(folder), progress)

    def read(self, index: Iterable[int]) -> Iterator[bytes]:
        """Encoded images at sorted indices, b"" where there is none; Parquet files stream by, 64 rows at a time."""
        for file, group in groupby(index, lambda i: self.places[i][0]):
            rows = [self.places[i][1] for i in group]
            yield from _rows(file, rows) if rows[0] is not None else map(_bytes, [file] * len(rows))

    def digests(self, index: np.ndarray) -> list[bytes]:
        """SHA-256 of every encoded image."""
        return [hashlib.sha256(content).digest() for content in self.read(index)]

    def convert(
        self, index: np.ndarray, config: dict, folder: Path, progress: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """(pixels uint8 [n, H, W, 3] in a memory map, readable bool [N]) as timm's evaluation transform for `config` sees
        the images `index`. Kept in `folder` by content, so that a second call decodes nothing.

        Raises MzlibError when more than a tenth cannot be read.
        """
        facts = json.dumps(
            {
                **{k: config[k] for k in ("input_size", *NATIVE)},
                "mean": config.get("mean"),
                "version": 1,
            }
        )
        key = hashlib.sha256(b"".join(self.digests(index)) + facts.encode()).hexdigest()[:24]
        pixels, mask = folder / f"{key}.pixels", folder / f"{key}.readable.npy"
        if not mask.is_file() or not pixels.is_file():
            self._convert(index, config, pixels, mask, progress)
        readable, (_, height, width) = np.load(mask), config["input_size"]
        if (lost := int((~readable).sum())) > UNREADABLE * len(index):
            raise MzlibError(
                f"{self.name}: expected at most {UNREADABLE:.0%} unreadable images, got {lost} of {len(index)}, "
                f"first {self.shown(index[~readable][0])}; replace or remove them"
            )
        return np.memmap(
            pixels, np.uint8, "c", shape=(int(readable.sum()), height, width, 3)
        ), readable

    def _convert(self, index, config, pixels: Path, mask: Path, progress: bool) -> None:
        pixels.parent.mkdir(parents=True, exist_ok=True)
        temporary, readable = pixels.with_suffix(f".{os.getpid()}.tmp"), []
        transform = timm.data.create_transform(
            **{k: config[k] for k in ("input_size", "mean", *NATIVE) if k in config},
            use_prefetcher=True,
        )
        convert = partial(
            decode,
            transform=transform,
            draft=round(3 * max(config["input_size"]) / config["crop_pct"]),
        )
        try:
            with (
                open(temporary, "wb") as out,
                ThreadPoolExecutor(os.cpu_count()) as pool,
                warnings.catch_warnings(),
                tqdm(
                    total=len(index),
                    desc="reading images",
                    unit="image",
                    disable=not progress,
                    leave=False,
                ) as bar,
            ):
                warnings.simplefilter("ignore")  # Pillow's, of damaged metadata: the image counts
                encoded = self.read(index)
                while batch := list(islice(encoded, 128)):
                    for array in pool.map(convert, batch):
                        readable.append(array is not None)
                        out.write(array.tobytes() if array is not None else b"")
                    bar.update(len(batch))
            os.replace(temporary, pixels)
        finally:
            temporary.unlink(missing_ok=True)
        np.save(temporary.with_suffix(".npy"), np.array(readable))
        os.replace(temporary.with_suffix(".npy"), mask)

    def shown(self, i: int) -> str:
        """Where image i lies, fit for a terminal."""
        file, row = self.places[i]
        return printable(file if row is None else f"{file}, row {row}")

    def repeated(self) -> int:
        """How many test images are also, byte by byte, training images; files are compared where their sizes agree."""
        size = [_size(file) if row is None else 0 for file, row in self.places]
        shared = {s for s, test in zip(size, self.held_out) if test} & {
            s for s, test in zip(size, self.held_out) if not test
        }
        train, test = (
            np.array([i for i in np.flatnonzero(part) if size[i] in shared], int)
            for part in (~self.held_out, self.held_out)
        )
        known = set(self.digests(train))
        return sum(digest in known for digest in self.digests(test))

    def overlap(self) -> list[str]:
        """The warning that `repeated` gives rise to, if any."""
        repeated = self.repeated()
        return [
            f"{repeated} of {self.held_out.sum()} test images are also training images: test accuracy will flatter"
        ] * bool(repeated)


def decode(content: bytes, transform, draft: int) -> np.ndarray | None:
    """An encoded image as the transform's uint8 [H, W, 3]; None when it cannot be read. JPEGs are decoded at the smallest of
    their own scales with at least `draft` pixels a side."""
    try:
        with Image.open(BytesIO(content)) as image:
            image.draft(None, (draft, draft))
            image = rgb(image)
        width, height = (min(side, ELONGATED * min(image.size)) for side in image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
        return transform(image).permute(1, 2, 0).numpy()
    except Exception:  # noqa: BLE001  (Pillow's parsers raise anything on damaged bytes)
        return None


def input_config(card: dict) -> dict:
    """timm's data configuration of an expert: its own, or the native one of the zoo."""
    return card.get("input") or {
        "input_size": (3, card["image_size"], card["image_size"]),
        **NATIVE,
    }


def printable(text: str) -> str:
    """The text with control characters, line ends and bytes that are no Unicode escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def open_images(path: str | Path) -> Images:
    """List the labelled images at `path`; reads labels only, no image.

    Raises MzlibError: nothing there, no image, one class, a test class without training images, a damaged table.
    """
    path = Path(path).expanduser()
    try:
        rows, notes = _list(path)
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise MzlibError(
            f"{printable(str(path))}: expected labelled images, got {printable(str(error))}"
        ) from error
    names = sorted({label for _, label, _ in rows})
    if len(names) < 2:
        got = f"images of one class, {printable(names[0])!r}" if names else "no image"
        raise MzlibError(
            f"{printable(str(path))}: expected images of two or more classes (a folder each, or a table of image and "
            f"label), got {got}{'; ' + '; '.join(notes) if notes else ''}"
        )
    code = {name: i for i, name in enumerate(names)}
    labels = np.array([code[label] for _, label, _ in rows])
    test = np.array([in_test for _, _, in_test in rows])
    if given := 0 < test.sum() < len(rows):
        if only := sorted(set(labels[test]) - set(labels[~test])):
            raise MzlibError(
                f"{printable(str(path))}: expected every class of test in train, got {printable(names[only[0]])!r} in "
                "test only; add training images or remove it"
            )
    else:
        test, several = (
            np.zeros(len(rows), bool),
            np.flatnonzero(np.bincount(labels)[labels] > 1),
        )  # one alone: to train on
        test[several[stratified_split(labels[several])[1]]] = True
    if alone := [names[c] for c in np.flatnonzero(np.bincount(labels[~test]) == 1)]:
        notes.append(
            f"{len(alone)} of {len(names)} classes have one training image, first {printable(alone[0])!r}"
        )
    return Images(
        str(path),
        printable(path.resolve().name),
        tuple(map(printable, names)),
        [place for place, _, _ in rows],
        labels,
        test,
        given,
        notes,
    )


def _list(path: Path) -> tuple[list, list[str]]:
    """Rows ((file, row), label, whether given as a test image), and notes."""
    if path.suffix.lower() in (".csv", ".parquet") and path.is_file():
        return (_csv(path) if path.suffix.lower() == ".csv" else _parquet([path])), []
    if not path.is_dir():
        raise MzlibError(
            f"expected a folder, a .parquet or a .csv file of labelled images, got {printable(str(path))!r}"
        )
    if tables := sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet")):
        return _parquet(tables), []
    held_out = next((split for split in HELD_OUT if (path / split).is_dir()), "")
    rows, other = [], []
    for split in ("train", held_out) if held_out and (path / "train").is_dir() else ("",):
        for label in sorted(
            p.name for p in (path / split).iterdir() if p.is_dir() and p.name[0] != "."
        ):
            files = _walk(path / split / label, {_identity(path / split)}, other)
            rows += [((file, None), label, split in HELD_OUT) for file in files]
    return rows, [
        f"{len(other)} files or links skipped that are no images, first {printable(other[0])}"
    ] if other else []


def _identity(folder) -> tuple[int, int]:
    return (status := os.stat(folder)).st_dev, status.st_ino


def _walk(folder, above: set, other: list[str]) -> Iterator[str]:
    """Image files below a folder by extension, links followed, except one to a folder that holds it; others to `other`."""
    if (here := _identity(folder)) in above:
        other.append(str(folder))
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name[0] == ".":
            continue
        if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
            yield from _walk(entry.path, above | {here}, other)
        elif os.path.splitext(entry.name)[1].lower() in _extensions():
            yield entry.path
        else:
            other.append(entry.path)


@cache
def _extensions() -> set[str]:
    return {
        extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN
    }


def _csv(path: Path) -> list:
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        table = [row for row in csv.reader(lines) if row]
    header = [name.strip().lower() for name in table[0]] if table else []
    columns = [
        header.index(name) if name in header else None for name in ("path", "label", "split")
    ]
    if None in columns[:2]:
        columns = [0, 1, None]
    else:
        table = table[1:]
    if short := [row for row in table if len(row) <= max(c for c in columns if c is not None)]:
        raise ValueError(f"a line without path and label: {','.join(short[0])!r}")
    file, label, split = columns
    return [
        (
            (str(path.parent / row[file]), None),
            row[label],
            split is not None and row[split].startswith("test"),
        )
        for row in table
    ]


def _parquet(files: list[Path]) -> list:
    rows = []
    for path in files:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        if not {"image", "label"} <= set(schema.names):
            raise ValueError(
                f"a Parquet table with the columns {', '.join(schema.names)}: expected image and label"
            )
        labels = file.read(["label"])["label"].to_pylist()
        if names := _class_names(schema.metadata or {}):
            if odd := [
                label
                for label in labels
                if not (isinstance(label, int) and 0 <= label < len(names))
            ]:
                raise ValueError(f"the label {odd[0]!r}: expected numbers below {len(names)}")
            labels = [names[label] for label in labels]
        rows += [
            ((str(path), row), str(label), path.stem.startswith("test"))
            for row, label in enumerate(labels)
        ]
    return rows


def _class_names(metadata: dict[bytes, bytes]) -> list[str]:
    """From this project's metadata or Hugging Face's ClassLabel; [] when there are none."""
    if b"class_names" in metadata:
        return json.loads(metadata[b"class_names"])
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return features.get("label", {}).get("names", [])


def _rows(file: str, rows: list[int]) -> Iterator[bytes]:
    """The images of sorted rows of a Parquet file."""
    try:
        batches, start, position = (
            pq.ParquetFile(file, buffer_size=2**20).iter_batches(64, columns=["image"]),
            0,
            0,
        )
        for batch in batches:
            while position < len(rows) and rows[position] < start + len(batch):
                cell = batch["image"][rows[position] - start].as_py()
                yield (cell["bytes"] if isinstance(cell, dict) else cell) or b""
                position += 1
            start += len(batch)
    except (OSError, pa.ArrowException) as error:
        raise MzlibError(
            f"{printable(file)}: expected a whole Parquet file, got {error}; fetch it again"
        ) from error


def _bytes(file: str) -> bytes:
    try:
        with open(file, "rb") as content:
            return content.read()
    except (OSError, ValueError):
        return b""


def _size(file: str) -> int:
    try:
        return os.stat(file).st_size
    except (OSError, ValueError):
        return -1
