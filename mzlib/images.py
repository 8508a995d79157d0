"""Your labelled images: listed, not loaded; converted once for each preprocessing into a file of
uint8 pixels.

Where they may lie: `mzlib.layouts`. How any file becomes RGB: `mzlib.pixels`. Data sets of other
libraries: `mzlib.adapters`.
"""

import hashlib
import json
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from numpy import ndarray
from PIL import Image
from tqdm.auto import tqdm

from mzlib import pixels
from mzlib.dataset import LabelledImages, Split, Task, few_shot, per_class, stratified_split
from mzlib.errors import MzlibError, Unwritable
from mzlib.layouts import list_rows
from mzlib.provenance import written
from mzlib.tables import MISSING, Asked, content_of, printable

UNREADABLE = 0.1  # share of unreadable files above which there is no answer
NATIVE = {  # of the zoo's own experts
    "interpolation": "lanczos",
    "crop_pct": 1.0,
    "crop_mode": "center",
}
READ, STRETCHED, DARK, DAMAGED, TOO_LARGE = range(5)  # what became of an image
READABLE = (READ, STRETCHED, DARK)
TENTHS = 10  # groups of images with numeric labels
UNASKED = 64  # pixels a side of an image that no expert asked for
VERSION = 4  # raised when the same file gives other pixels or is told of otherwise


@dataclass(frozen=True)
class Images:
    """A listing, as `mzlib.dataset.LabelledImages`: `places[i]` is (file, None) or (table, row) of
    image i.

    labels: int64 [N] into class_names; held_out: bool [N], as given by folders, files or a column,
    else a fifth of each class. columns: that were asked for, as of `open_images`. path: "" of
    images that an object holds.
    notes: what a reader should know; what reading the images brings to light is added.
    """

    path: str
    name: str
    class_names: tuple[str, ...]
    places: list[tuple[Any, int | None]]
    labels: ndarray
    held_out: ndarray
    given_split: bool
    notes: list[str] = field(default_factory=list)
    flip: bool = False
    targets: ndarray | None = None
    columns: dict[str, str] = field(default_factory=dict)

    def sample(
        self,
        images_per_class: int | str | None,
        seed: int,
        shots: int | str = "full",
    ) -> ndarray:
        """As `LabelledImages.sample`; nested in the number."""
        train = np.flatnonzero(~self.held_out)
        train = train[few_shot(self.labels[train], shots, seed)]
        number = per_class(images_per_class, len(self.class_names))
        return train[few_shot(self.labels[train], number, seed)]

    def reference(self, scored: ndarray, shots: int | str, seed: int) -> ndarray:
        """As `LabelledImages.reference`: the images that are scored, for no others are decoded."""
        return scored

    def pixels(
        self,
        index: ndarray,
        config: dict | None = None,
        cache: Path | None = None,
        progress: bool = False,
    ) -> tuple[ndarray, ndarray]:
        """As `LabelledImages.pixels`, the pixels in a memory map, by timm's evaluation transform.

        They are kept in `cache` by content, so that a second call decodes nothing; without a cache
        until they are no longer used.
        Raises MzlibError when more than a tenth cannot be read, Unwritable without room for them.
        """
        config = config or input_config({"image_size": UNASKED})
        height, width = config["input_size"][1:]
        if not len(index):
            return np.empty((0, height, width, 3), np.uint8), np.empty(0, bool)
        if cache is None:
            with TemporaryDirectory() as folder:  # a map of a removed file stays readable
                return self.pixels(index, config, Path(folder), progress)
        facts = {key: config[key] for key in ("input_size", *NATIVE)}
        facts |= {"mean": config.get("mean"), "version": VERSION}
        content = b"".join(self.digests(index)) + json.dumps(facts).encode()
        stem = cache / hashlib.sha256(content).hexdigest()[:24]
        outcome = _kept(stem, len(index), height * width * 3)
        if outcome is None:
            try:
                outcome = self._convert(index, config, stem, progress)
            except OSError as error:
                raise Unwritable(
                    f"expected to keep converted images in {cache}, got {error}; make room or "
                    "permit it"
                ) from error
        readable = np.isin(outcome, READABLE)
        self._tell(index, outcome)
        lost = int((~readable).sum())
        if lost > UNREADABLE * len(index):
            raise MzlibError(f"{self.name}: {self._too_many(index[~readable], len(index))}")
        shape = (len(index) - lost, height, width, 3)
        return np.memmap(stem.with_suffix(".pixels"), np.uint8, "c", shape=shape), readable

    def _too_many(self, lost: ndarray, number: int) -> str:
        """What is said of lost images, too many of `number`."""
        gone = [i for i in lost if self._is_gone(i)]
        if gone and gone[0] == lost[0]:
            return (
                f"expected files of images, got {len(gone)} of {number} that are not there, first "
                f"{self.shown(gone[0])}; paths count from the table's folder and need their "
                "extension"
            )
        return (
            f"expected at most {UNREADABLE:.0%} unreadable images, got {len(lost)} of {number}, "
            f"first {self.shown(lost[0])}; replace or remove them"
        )

    def _is_gone(self, i: int) -> bool:
        source = self.places[i][0]
        return isinstance(source, str) and not os.path.lexists(source)

    def read(self, index: Iterable[int]) -> Iterator[bytes]:
        """Encoded images at sorted indices, b"" where there is none; tables stream by."""
        for source, group in groupby(index, lambda i: self.places[i][0]):
            rows = [self.places[i][1] for i in group]
            if isinstance(source, str):
                yield from (content_of(source) for _ in rows)
                continue
            with pixels.whole(printable(str(source))):
                yield from source.read(rows)

    def digests(self, index: ndarray) -> list[bytes]:
        """SHA-256 of every encoded image."""
        return [hashlib.sha256(content).digest() for content in self.read(index)]

    def _convert(self, index: ndarray, config: dict, stem: Path, progress: bool) -> ndarray:
        """Write `<stem>.pixels` and `<stem>.npy`, what became of every image, which is returned."""
        side = round(3 * max(config["input_size"]) / config["crop_pct"])  # resizing has a choice
        converted = in_threads(self.read(index), transform_of(config), side)
        bar = {
            "total": len(index),
            "unit": "image",
            "disable": not progress,
            "leave": False,
        }
        outcome = []
        with (
            written(stem.with_suffix(".pixels")) as temporary,
            open(temporary, "wb") as out,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # Pillow's, of damaged metadata: the image counts
            for array, what in tqdm(converted, "reading images", **bar):
                outcome.append(what)
                out.write(b"" if array is None else array.tobytes())
        with written(stem.with_suffix(".npy")) as temporary, open(temporary, "wb") as out:
            np.save(out, np.array(outcome, np.uint8))
        return np.array(outcome, np.uint8)

    def _tell(self, index: ndarray, outcome: ndarray) -> None:
        """Note, once, what is not simply unreadable (the ranking names those)."""
        reasons = {
            TOO_LARGE: f"images would take more than {pixels.BUDGET >> 20} MiB to decode and were "
            "skipped",
            STRETCHED: "16-bit images use a sixteenth of their range or less and were stretched",
            DARK: f"images are nearly black, no value above {pixels.DARK} of 255, and were taken "
            "as they are (class numbers of masks? colours of 12 bits in 16?)",
        }
        for what, reason in reasons.items():
            found = index[outcome == what]
            if len(found) and not any(reason in note for note in self.notes):
                self.notes.append(f"{len(found)} {reason}, first {self.shown(found[0])}")

    def shown(self, i: int) -> str:
        """Where image i lies, fit for a terminal."""
        source, row = self.places[i]
        return printable(str(source) if row is None else f"{source}, row {row}")

    def repeated(self) -> int:
        """How many test images are also, byte by byte, training images; files are compared where
        their sizes agree.
        """
        size = np.array([_size(source) for source, _ in self.places])
        shared = np.intersect1d(size[self.held_out], size[~self.held_out])
        compared = np.isin(size, shared)
        known = set(self.digests(np.flatnonzero(compared & ~self.held_out)))
        held_out = self.digests(np.flatnonzero(compared & self.held_out))
        return sum(digest in known for digest in held_out)

    def overlap(self) -> list[str]:
        """The warning that `repeated` gives rise to, if any."""
        repeated = self.repeated()
        if not repeated:
            return []
        return [
            f"{repeated} of {self.held_out.sum()} test images are also training images: test "
            "accuracy will flatter"
        ]


def _kept(stem: Path, number: int, image_bytes: int) -> ndarray | None:
    """What became of every image, where an earlier call has left it and all their pixels."""
    try:
        outcome = np.load(stem.with_suffix(".npy"))
        size = stem.with_suffix(".pixels").stat().st_size
    except (OSError, ValueError, EOFError):  # not there, truncated, or of something else
        return None
    fits = outcome.shape == (number,) and outcome.dtype == np.uint8
    readable = int(np.isin(outcome, READABLE).sum())
    return outcome if fits and size == readable * image_bytes else None


def in_threads(
    contents: Iterable[bytes],
    transform: Callable,
    side: int,
) -> Iterator[tuple[ndarray | None, int]]:
    """`decode` of encoded images, in order, by a thread a core, as many at a time as fit into
    `mzlib.pixels.BUDGET` bytes.
    """
    number = os.cpu_count() or 1
    waiting: deque[tuple[Future, int]] = deque()  # with the bytes that each takes, oldest first
    held = 0  # bytes of all of them
    with ThreadPoolExecutor(number) as pool:
        for content in contents:
            image: Image.Image | Exception
            try:
                image, price = pixels.opened(content, side)
            except Exception as error:  # Pillow's parsers raise anything on damaged bytes
                image = error
                price = 0
            while waiting and (held + price > pixels.BUDGET or len(waiting) >= 64 * number):
                future, paid = waiting.popleft()
                held -= paid
                yield future.result()
            waiting.append((pool.submit(decode, image, transform), price))
            held += price
        for future, _ in waiting:
            yield future.result()


def decode(image: Image.Image | Exception, transform: Callable) -> tuple[ndarray | None, int]:
    """(An open image as the transform's uint8 [H, W, 3], one of READABLE), or (None, why not)."""
    if isinstance(image, Exception):
        too_large = isinstance(image, Image.DecompressionBombError)
        return None, TOO_LARGE if too_large else DAMAGED
    try:
        with image:
            converted = pixels.rgb(image)
            what = STRETCHED if pixels.is_shallow(image) else READ
        array = transform(converted).permute(1, 2, 0).numpy()
        is_dark = what == READ and array.max() <= pixels.DARK
        return array, DARK if is_dark else what
    except Exception:  # Pillow's parsers raise anything on damaged bytes
        return None, DAMAGED


def transform_of(config: dict) -> Callable:
    """timm's evaluation transform for a data configuration, to uint8 [3, H, W]."""
    import timm.data

    options = {key: config[key] for key in ("input_size", "mean", *NATIVE) if key in config}
    return timm.data.create_transform(**options, use_prefetcher=True)


def input_config(card: dict) -> dict:
    """timm's data configuration of an expert: its own, or the native one of the zoo."""
    size = card.get("image_size")
    return card.get("input") or {"input_size": (3, size, size), **NATIVE}


def _size(source: Any) -> int:
    """Of a file, in bytes; 0 of a table."""
    try:
        return os.stat(source).st_size if isinstance(source, str) else 0
    except (OSError, ValueError):
        return -1


def as_labelled_images(source: Any, labels: str = "classes") -> LabelledImages:
    """Whatever holds labelled images, as `LabelledImages`: a path (`open_images`), a `Task`, or a
    data set of another library (`mzlib.adapters`): arrays (images, labels), a torch `Dataset`,
    torchvision's `ImageFolder`, a `datasets.Dataset` or a dictionary of them by split. labels: as
    of `open_images`.
    """
    if isinstance(source, LabelledImages):
        return source
    if isinstance(source, str | Path):
        return open_images(source, labels=labels)
    from mzlib.adapters import adapted_rows

    name = type(source).__name__
    rows, notes = adapted_rows(source, labels)
    return replace(listed(name, name, rows, notes, labels), path="")


def as_task(source: LabelledImages, size: int) -> Task:
    """All readable images in memory, `size` pixels a side, as the zoo's own experts see them."""
    parts = []
    for part in (~source.held_out, source.held_out):
        index = np.flatnonzero(part)
        images, readable = source.pixels(index, input_config({"image_size": size}))
        parts.append(Split(np.array(images), source.labels[index[readable]]))
    train, test = parts
    card = {"domain": "image folder", "origin": source.path}
    names = source.class_names
    return Task(source.name, card["domain"], names, train, test, source.flip, card)


def open_images(
    path: Any,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    labels: str = "classes",
) -> LabelledImages:
    """List the labelled images at `path`; reads labels only, no image. What is no path is opened as
    by `as_labelled_images`. image_column, label_column: of a table whose columns have other names
    than `mzlib.tables.IMAGE` and `LABEL`. labels: what is there: "classes", one an image;
    "several", any number of labels an image, `a|b` in the column or columns of 0 and 1; "numeric",
    measurements.

    Raises MzlibError: nothing there, no image, one class, a test class without training images, a
    damaged table, labels of another kind.
    """
    if not isinstance(path, str | os.PathLike):
        return as_labelled_images(path, labels)
    if not str(path):
        raise MzlibError("expected a path, got ''")
    path = Path(path).expanduser()
    shown = printable(str(path))
    try:
        if not path.exists():
            raise ValueError("nothing there")
        rows, notes = list_rows(path, Asked(image_column, label_column, labels))
    except Exception as error:  # parsers of damaged tables raise anything
        got = printable(str(error).strip()) or type(error).__name__
        raise MzlibError(f"{shown}: expected labelled images, got {got}") from error
    name = printable(path.resolve().name)
    images = listed(shown, name, rows, [*map(printable, notes)], labels)
    asked = {"image_column": image_column, "label_column": label_column}
    return replace(images, columns={key: name for key, name in asked.items() if name})


def listed(path: str, name: str, rows: list, notes: list[str], kind: str = "classes") -> Images:
    """Rows (place, label, split) as `Images`; raises MzlibError where they are no task."""
    if kind not in GROUPED:
        raise MzlibError(f"expected labels of {', '.join(GROUPED)}, got {kind!r}")
    splits = np.array([split for _, _, split in rows], dtype="U10")
    held_out, kept = _held_out(splits, path, notes)
    rows = [row for row, keep in zip(rows, kept) if keep]
    held_out = held_out[kept]
    found, labels, targets = GROUPED[kind]([label for _, label, _ in rows], path)
    names = [printable(label) for label in found]
    if len(names) < 2:
        got = f"images of one class, {names[0]!r}" if names else "no image"
        raise MzlibError(
            f"{path}: expected images of two or more classes (a folder each, or a table of image "
            f"and label), got {'; '.join([got, *notes])}"
        )
    given = bool(held_out.any())
    if given and targets is None:
        only = np.setdiff1d(labels[held_out], labels[~held_out])
        if len(only):
            raise MzlibError(
                f"{path}: expected every class of test in train, got {names[only[0]]!r} "
                "in test only; add training images or remove it"
            )
    if not given:
        several = np.flatnonzero(np.bincount(labels)[labels] > 1)  # one alone: to train on
        if len(several):
            held_out[several[stratified_split(labels[several])[1]]] = True
    alone = np.flatnonzero(np.bincount(labels[~held_out]) == 1)
    if len(alone) and targets is None:
        notes.append(
            f"{len(alone)} of {len(names)} classes have one training image, first "
            f"{names[alone[0]]!r}"
        )
    notes += _doubtful(names)
    places = [place for place, _, _ in rows]
    shown = tuple(names)
    return Images(path, name, shown, places, labels, held_out, given, notes, targets=targets)


UNLABELLED = {*MISSING, "na", "n/a", "none", "?", "-", "unlabeled", "unlabelled"}  # or classes


def _doubtful(names: list[str]) -> list[str]:
    """Notes on classes that may be one, or none."""
    alike: dict[str, list[str]] = {}
    for name in names:
        form = " ".join(name.split()).casefold()
        alike.setdefault(form, []).append(name)
    notes = []
    several = [group for group in alike.values() if len(group) > 1]
    if several:
        first, second = several[0][:2]
        more = f" ({len(several) - 1} more such)" if several[1:] else ""
        notes.append(f"{first!r} and {second!r} are two classes{more}: spell them alike if not")
    for form, (name, *_) in alike.items():
        if form in UNLABELLED:
            notes.append(
                f"{name!r} is a class: leave its images out if it says that they have none"
            )
    return notes


Groups = tuple[list[str], ndarray, ndarray | None]  # names, labels, targets


def _by_class(texts: list[str], path: str) -> Groups:
    labels, names = pd.factorize(np.array(texts, object), sort=True)
    return list(names), labels, None


def _by_rarest(texts: list[str], path: str) -> Groups:
    """Labels between bars; an image's group is the rarest that it bears."""
    borne = [{part.strip() for part in text.split("|")} - {""} for text in texts]
    names = sorted(set().union(*borne))
    targets = np.array([[name in labels for name in names] for labels in borne], bool)
    if len(names) == 0:
        return [], np.zeros(len(texts), int), targets
    if len(names) > 1 and (targets.sum(1) == 1).all():
        raise MzlibError(
            f"{path}: expected several labels an image, as a|b, got one each, first "
            f"{printable(texts[0])!r}: write them so, or leave out --multi-label"
        )
    without = ~targets.any(1)
    groups = np.where(targets, targets.sum(0), len(targets) + 1).argmin(1)
    groups = np.where(without, len(names), groups)
    return names + ["no label"] * bool(without.any()), groups, targets


def _by_tenth(texts: list[str], path: str) -> Groups:
    """Numbers; an image's group is one of up to ten of equal size, by its number."""
    read = pd.to_numeric(pd.Series(texts, dtype=str), errors="coerce").to_numpy(float)
    odd = [text for text, finite in zip(texts, np.isfinite(read)) if not finite]
    if odd or len(set(read)) == 1:
        got = f"{printable(odd[0])!r}" if odd else "the same for all"
        raise MzlibError(f"{path}: expected a numeric label an image, got {got}")
    numbers = np.array([float(text) for text in texts])  # pandas 2 rounds some in their last digit
    places = np.argsort(np.argsort(numbers, kind="stable"))
    groups = places * min(TENTHS, max(2, len(numbers) // 5)) // len(numbers)
    by_group = pd.Series(numbers).groupby(groups)
    names = [f"{low:.4g} to {high:.4g}" for low, high in zip(by_group.min(), by_group.max())]
    return names, groups, numbers[:, None]


GROUPED = {
    "classes": _by_class,
    "several": _by_rarest,
    "numeric": _by_tenth,
}


def _held_out(splits: ndarray, path: str, notes: list[str]) -> tuple[ndarray, ndarray]:
    """bool [N] twice: the images of the test part, and those that are used: of two held-out parts
    it is "test".
    """
    test, validation = splits == "test", splits == "validation"
    if not len(splits) or not (test | validation).any():
        return np.zeros(len(splits), bool), np.ones(len(splits), bool)
    if (test | validation).all():
        raise MzlibError(
            f"{path}: expected training images beside those that are held out (a split train), "
            f"got {splits[0]} only"
        )
    if not (test.any() and validation.any()):
        return test | validation, np.ones(len(splits), bool)
    notes.append(f"{validation.sum()} validation images beside those of test were left aside")
    return test, ~validation
