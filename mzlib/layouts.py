"""Where labelled images lie: class folders, text tables, Parquet and Arrow files.

Every reader returns rows (place, label, split). A place is (file, None), or (table, row) where the
table holds the images; split is "train", "test", "validation" or, where none is given, "". Names
of splits are those of `SPLITS`, in capitals or not: nothing that its owner has held out may pass
for an image to score. All raise OSError, or ValueError with what was found instead.
"""

import json
import os
import re
import stat
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from pandas import DataFrame

from mzlib.pixels import BUDGET, extensions

SPLITS = {
    "train": ("train", "training", "trn"),
    "test": ("test", "testing", "tst", "publictest", "privatetest"),
    "validation": ("val", "valid", "validation", "dev", "eval"),
}
IMAGE = ("path", "file", "file_name", "filename", "filepath", "image_path", "image", "img")
LABEL = ("label", "labels", "class", "target", "fine_label", "class_name", "category")
SPLIT = ("split", "set", "subset")
# words in names of columns that may hold splits, those of the second line as likely something else
DIVIDING = {"split", "partition", "phase", "usage", "fold"}
PERHAPS_SPLIT = DIVIDING | {"set", "dataset", "train", "test", "tvt", "type", "group", "mode"}
FLAG = re.compile(r"(is_?)?(\w+?)(_image|_set)?")  # is_valid of fastai, is_training_image of CUB
ANSWERS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
MISSING = ("", "nan", "null")  # labels that are none
WINDOWS = "cp1252"  # what a text is taken for that is no Unicode
HEIC = (".heic", ".heif", ".hif")
NO_IMAGE = "files or links skipped that are no images"
TEXTS = (".csv", ".tsv", ".jsonl")
METADATA = ("metadata.csv", "metadata.jsonl")  # beside images, as Hugging Face has it
# 7_mask.png of 7.png, as in BUSI
MASK = re.compile(r"(.+)[-_. ](mask|seg|segmentation|gt|label)(_\d+)?", re.IGNORECASE)
PICTURES = re.compile(r"(jpeg)?(image|img)s?", re.IGNORECASE)
OUTLINES = re.compile(
    r".*(mask|segmentation|annotation|label|manual|ground.?truth).*|gt", re.IGNORECASE
)
LEFT = ("__MACOSX", "@eaDir")  # what macOS leaves in archives, thumbnails of Synology

Row = tuple[tuple[Any, int | None], str, str]
Listing = tuple[list[Row], list[str]]  # and notes: what a reader should know, a line each
Skipped = defaultdict[str, list]  # paths by what is said of them


class Asked(NamedTuple):
    """Names of the columns of images and labels; labels of `mzlib.selectors.targets.KINDS`."""

    image: str | None = None
    label: str | None = None
    kind: str = "classes"


@lru_cache(1024)
def split_of(name: str) -> str:
    """The split that a name stands for, "" when it stands for none."""
    word = name.strip().lower()
    return next((split for split, names in SPLITS.items() if word in names), "")


def printable(text: str) -> str:
    """The text with control characters, line ends and bytes that are no Unicode escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def list_rows(path: Path, asked: Asked = Asked()) -> Listing:
    """The labelled images at `path`."""
    if path.is_dir():
        return _folder(path, asked)
    kind = path.suffix.lower() if path.is_file() else ""  # a pipe would be waited for
    if kind in TEXTS:
        return _text(path, asked)
    if kind in (".parquet", ".arrow"):
        return _tables(path.parent, [path], asked)
    raise ValueError(
        "no image: expected a folder, a .parquet or a .csv, .tsv or .jsonl file of labelled images"
    )


# class folders


def _folder(path: Path, asked: Asked) -> Listing:
    rows, notes = _tables_in(path, asked)
    if rows:
        return rows, notes
    folders = _folders(path)
    has_splits = _are_splits(folders)
    skipped: Skipped = defaultdict(list)
    for entry in sorted(path.iterdir()):
        if entry.suffix.lower() in TEXTS and entry.is_file():
            skipped["tables beside folders not read (give the one with the labels)"].append(entry)
    if len(folders) == 1 and (_folders(folders[0]) or _table_files(folders[0])):  # one way down
        _skip_loose(path, skipped)
        rows, notes = _folder(folders[0], asked)
        return rows, [f"read from {folders[0]}, the only folder there", *_told(skipped), *notes]
    if not has_splits:
        _refuse_parts(folders)
        rows = _classes(path, "", skipped, asked)
    for folder in folders if has_splits else []:
        split = split_of(folder.name)
        if not split:
            skipped["folders beside those of the split left aside"].append(folder)
            continue
        in_table, said = _tables_in(folder, asked)
        rows += [(place, label, split) for place, label, _ in in_table]
        notes += [f"{folder.name}: {note}" for note in said]
        if not in_table:
            _refuse_parts(_folders(folder))
            rows += _classes(folder, split, skipped, asked)
    return rows, notes + _told(skipped)


def _told(skipped: Skipped) -> list[str]:
    return [f"{len(paths)} {reason}, first {paths[0]}" for reason, paths in skipped.items()]


def _is_hidden(name: str) -> bool:
    return name[0] == "." or name in LEFT


def _folders(path: Path) -> list[Path]:
    """Sub-folders, without hidden ones."""
    try:
        entries = sorted(path.iterdir())
    except OSError:
        return []
    return [entry for entry in entries if not _is_hidden(entry.name) and entry.is_dir()]


def _are_splits(folders: list[Path]) -> bool:
    """Whether folders are parts of a data set, not classes, one of which may be called train."""
    parts = {split_of(folder.name) for folder in folders} - {""}
    classes = {folder.name for folder in folders if not split_of(folder.name)}
    if "train" in parts and (len(parts) > 1 or not classes):
        return True
    for folder in folders:
        inner = {sub.name for sub in _folders(folder)}
        held_out = split_of(folder.name) in ("test", "validation")
        if held_out and (not classes or inner & classes):
            raise ValueError(
                f"held-out images in {folder.name} but no folder train: put the others into train"
            )
    return False


def _refuse_parts(folders: list[Path]) -> None:
    """Folders that are parts of a data set, not its classes: they hold images and masks, are called
    training_set and test_set, one holds the others again, or all hold the same folders.
    """
    names = [folder.name for folder in folders]
    outlines = _outlines(names)
    if outlines:
        raise ValueError(
            f"folders {_pictures(names)[0]} and {outlines[0]}, no classes: expected a folder for "
            "each class"
        )
    training = _around(names, "train")
    held_out = _around(names, "test") | _around(names, "validation")
    for word in training.keys() & held_out.keys():
        raise ValueError(
            f"folders {training[word]} and {held_out[word]}: if these are parts of the data, name "
            "them train and test"
        )
    inner = {}
    for folder in folders:
        held = {sub.name for sub in _folders(folder)}
        again = sorted(held.intersection(names))
        if len(again) > 1:
            raise ValueError(
                f"{folder.name} holds {', '.join(again[:3])} again: remove it, or give it alone"
            )
        if held or _holds_image(folder):
            inner[folder.name] = held.difference(_outlines(held), _pictures(held))
    sets = list(inner.values())
    if len(sets) < 2 or not all(sets):
        return
    common = set.intersection(*sets)
    if len(common) >= max(2, len(set.union(*sets)) / 2):
        raise ValueError(
            f"folders ({', '.join([*inner][:3])}) that all hold {', '.join(sorted(common)[:3])}: "
            "if these are the classes, name the folders train and test, or give one of them"
        )


def _pictures(names: Iterable[str]) -> list[str]:
    """Folders called images, or as a split is."""
    return [name for name in names if PICTURES.fullmatch(name) or split_of(name)]


def _outlines(names: Collection[str]) -> list[str]:
    """Folders of what is drawn over images: masks beside images, train_masks beside train."""
    beside = tuple(name if split_of(name) else "" for name in _pictures(names))
    return [name for name in names if OUTLINES.fullmatch(name) and name.startswith(beside)]


def _around(names: list[str], split: str) -> dict[str, str]:
    """Letters around a word for the split -> the name that has them: "*set" of training_set."""
    found: dict[str, str] = {}
    for name in names:
        letters = re.sub(r"[\W\d_]", "", name.lower())
        found |= {letters.replace(word, "*", 1): name for word in SPLITS[split] if word in letters}
    return found


def _holds_image(folder: Path) -> bool:
    _, _, files = next(os.walk(folder), ("", [], []))
    return any(not _no_image(str(folder / file)) for file in files)


def _classes(root: Path, split: str, skipped: Skipped, asked: Asked) -> list[Row]:
    """Rows of the class folders below `root`."""
    if asked.image or asked.label:
        raise ValueError(f"no table in {root}: expected one of the columns that were asked for")
    _skip_loose(root, skipped)
    rows: list[Row] = []
    for folder in _folders(root):
        files = image_files(str(folder), os.path.realpath(root), skipped)
        if not files:
            skipped["folders without an image left aside"].append(folder)
        rows += [((file, None), folder.name, split) for file in files]
    return rows


def _skip_loose(root: Path, skipped: Skipped) -> None:
    for entry in sorted(root.iterdir()):
        if entry.suffix.lower() in extensions() and entry.is_file():
            skipped["images outside the class folders left aside"].append(entry)


def image_files(folder: str, root: str, skipped: Skipped, of_class: bool = True) -> list[str]:
    """By extension, links followed, but no folder twice and none that holds the class folders.

    of_class: no masks, and no folders of train and of test.
    """

    def closed(error: OSError) -> None:
        skipped["folders skipped that cannot be opened"].append(error.filename)

    seen = {root}
    found = []
    for place, folders, files in os.walk(folder, onerror=closed, followlinks=True):
        here = os.path.realpath(place)
        folders[:] = [name for name in folders if not _is_hidden(name)]
        masks = []
        if of_class:
            _refuse_splits(place, folders)
            masks = _outlines(folders)
        for name in masks:
            skipped["folders of masks skipped"].append(os.path.join(place, name))
            folders.remove(name)
        if here in seen:
            skipped[NO_IMAGE].append(place)
            folders.clear()
            continue
        seen.add(here)
        stems = {os.path.splitext(name)[0] for name in files} if of_class else set()
        for name in sorted(files):
            file = os.path.join(place, name)
            reason = _no_image(file) or _mask_of(name, stems)
            if reason:
                skipped[reason].append(file)
            elif name[0] != ".":
                found.append(file)
    return sorted(found, key=lambda file: file.split(os.sep))


def _refuse_splits(place: str, folders: list[str]) -> None:
    """A class may not hold train and test images: they would be mixed."""
    parts = {split_of(name) for name in folders}
    if "train" in parts and not parts <= {"train", ""}:
        raise ValueError(
            f"folders of train and of test in {place}: give that one alone or, where it is a "
            "class, have train/CLASS and test/CLASS"
        )


def _no_image(file: str) -> str:
    """Why a file is none."""
    kind = os.path.splitext(file)[1].lower()
    if kind not in extensions():
        return "HEIC files skipped (do pip install pillow-heif)" if kind in HEIC else NO_IMAGE
    return "named pipes or devices skipped" if is_special(file) else ""


def _mask_of(name: str, stems: set[str]) -> str:
    """Why a file beside those with other names is no image to score."""
    outline = MASK.fullmatch(os.path.splitext(name)[0])
    return "masks of other images skipped" if outline and outline[1] in stems else ""


def is_special(file: str) -> bool:
    """Whether it is there and neither a file nor a folder: to open a pipe would wait for ever."""
    try:
        mode = os.stat(file).st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def content_of(file: str) -> bytes:
    """A file's bytes, b"" of one that cannot be read."""
    try:
        if is_special(file):
            return b""
        with open(file, "rb") as content:
            return content.read(BUDGET + 1)  # more is too large, whatever it is
    except (OSError, ValueError):
        return b""


# text tables


def _text(path: Path, asked: Asked, beside: bool = False) -> Listing:
    """A .csv (with any separator), .tsv or .jsonl file; no rows where it lies beside images and has
    no labels.
    """
    encoding = _encoding(path)
    if path.suffix.lower() == ".jsonl":
        lines = path.read_text(encoding, "surrogateescape").split("\n")
        table = DataFrame([json.loads(line) for line in lines if line.strip()], dtype=object)
    else:
        table = _separated(path, asked, encoding)
    table.columns = [str(name).strip() for name in table.columns]
    header = list(table.columns)
    repeats = (table == header).all(axis=1)
    table = table[~repeats].reset_index(drop=True)
    image = column_of(header, asked.image, IMAGE)
    label = column_of(header, asked.label, LABEL)
    if label is None and beside:
        return [], []
    files = [] if image is None else [_label(file) or "" for file in table[image]]
    perhaps = [name for name in header if name not in (image, label) and _may_split(name)]
    columns = {name: table[name].tolist() for name in perhaps}
    splits, dividing, unused = _splits(columns, files, label is not None)
    others = [name for name in header if name not in (image, *dividing)]
    if label is None and image is not None and len(others) > 1:
        label = "label"
        table[label] = _from_one_hot(table[others], header, asked.kind)
    image, label = _expected(header, image, label)
    rows, notes = labelled(_places(path, files), table[label].tolist(), splits, asked.kind)
    notes += unused
    if repeats.any():
        notes.append(f"{repeats.sum()} lines that repeat the header left out")
    if encoding == WINDOWS:
        notes.append(f"{path.name} is no UTF-8, read as {WINDOWS}: look at its class names")
    return rows, notes


def _encoding(path: Path) -> str:
    """Of a text file; Excel on Windows saves in its own."""
    content = path.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    try:
        content.decode()
    except UnicodeDecodeError:
        return WINDOWS
    return "utf-8-sig"


def _places(table: Path, files: list[str]) -> list[tuple | None]:
    """Of files as a table names them, by where it lies; with backslashes, as Windows has them."""
    places: list[tuple | None] = []
    for file in files:
        if not file:
            places.append(None)
            continue
        found = str(table.parent / file)
        if "\\" in file and not os.path.lexists(found):
            found = str(table.parent / file.replace("\\", "/"))
        places.append((found, None))
    return places


def _separated(path: Path, asked: Asked, encoding: str) -> DataFrame:
    """Cells as text; a file of two columns that begins with an image has no header."""
    with open(path, "rb") as file:
        start = file.readline()
    known = b",;\t" if asked.kind == "several" else b",;\t|"
    separator = max(known, key=start.count)
    options: dict[str, Any] = {
        "sep": chr(separator),
        "encoding": encoding,
        "encoding_errors": "surrogateescape",
        "dtype": object,
        "keep_default_na": False,
        "index_col": False,
        "skipinitialspace": True,
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(path, **options)
    except pd.errors.ParserWarning:
        raise ValueError("lines of more cells than the header: quote what has commas") from None
    first = str(table.columns[0]).strip()
    is_image = os.path.splitext(first)[1].lower() in extensions() or (path.parent / first).is_file()
    if asked[:2] == (None, None) and table.shape[1] == 2 and is_image:
        return pd.read_csv(path, **options, names=["path", "label"])
    return table


def column_of(header: Sequence[str], asked: str | None, known: Sequence[str]) -> str | None:
    """The column that was asked for, else the one of the first of the known names."""
    if asked is not None and asked not in header:
        raise ValueError(f"a table of the columns {_names(header)}: expected {asked!r}")
    columns = {name.strip().lower(): name for name in reversed(header)}
    return asked or next((columns[name] for name in known if name in columns), None)


def _names(header: Sequence[str]) -> str:
    return ", ".join(header[:20]) + (", …" if len(header) > 20 else "")


def _expected(header: Sequence[str], image: str | None, label: str | None) -> tuple[str, str]:
    if image is None or label is None or image == label:
        raise ValueError(
            f"a table of the columns {_names(header)}: expected image and label (or "
            f"{', '.join(IMAGE[:-2])}; {', '.join(LABEL[1:])}), or the options image_column and "
            "label_column"
        )
    return image, label


def _from_one_hot(cells: DataFrame, header: Sequence[str], kind: str) -> pd.Series:
    """The name of the column that is 1, in each row of columns of 0 and 1; of several, all names
    between bars.
    """
    numbers = cells.map(_answered)
    if numbers.isna().any(axis=None):
        _expected(header, None, None)
    numbers = numbers.astype(int)
    if kind == "several":
        return numbers.eq(1).apply(lambda row: "|".join(row.index[row]) or "|", axis=1)
    several = int((numbers.sum(axis=1) != 1).sum())
    if several:
        raise ValueError(
            f"columns of 0 and 1 in which {several} of {len(cells)} images have no class or "
            "several: expected one class an image (or do --multi-label)"
        )
    return numbers.idxmax(axis=1)


def _may_split(column: str) -> bool:
    """Whether a column may say which part of the data an image is in, by its name."""
    is_split = column.strip().lower() in SPLIT
    return is_split or not PERHAPS_SPLIT.isdisjoint(_words(column)) or bool(_flagged(column))


def _words(column: str) -> list[str]:
    return re.split(r"[\W\d_]+", column.lower())


def _flagged(column: str) -> str:
    """The split that a column of yes or no is about, or ""."""
    found = FLAG.fullmatch(column.strip().lower())
    return split_of(found[2]) if found else ""


def _splits(
    columns: dict[str, list], files: list[str], is_labelled: bool
) -> tuple[list, list[str], list[str]]:
    """Each image's split by columns that may say so or, where none does, by the folders of files;
    the names of the columns that do; and notes of those that seemed to.

    A column called split counts, another one where it holds nothing but splits, then columns of yes
    and no. is_labelled: a column called train is no class of a one-hot table.
    """
    for column in sorted(columns, key=lambda name: name.strip().lower() not in SPLIT):
        is_split = column.strip().lower() in SPLIT
        if is_split or _names_splits(column, columns[column]):
            return columns[column], [column], []
    flags = {}
    telling = []
    for column, cells in columns.items():
        flag = _flagged(column)
        is_question = column.lower().startswith("is")
        is_answered = is_labelled and all(_answered(cell) is not None for cell in cells)
        if flag and (is_question or is_answered):
            flags[flag] = [_answer(column, cell) for cell in cells]
            telling.append(column)
    if flags:
        splits = [_split_by(dict(zip(flags, answers))) for answers in zip(*flags.values())]
        return splits, telling, []
    splits = _splits_of_paths(files)
    unused = []
    for column in columns:
        if not any(splits) and not DIVIDING.isdisjoint(_words(column)):
            unused.append(f"column {column} holds no names of splits and was not used")
    return splits, [], unused


def _names_splits(column: str, cells: list) -> bool:
    """Whether a column holds names of splits and, where an image may be trained on, nothing."""
    splits = {}
    for cell in cells:
        if cell and cell == cell:
            splits[str(cell)] = split_of(str(cell))
    found = set(splits.values())
    if "" in found and "train" in found and len(found) > 2:
        odd = next(cell for cell, split in splits.items() if not split)
        raise ValueError(f"{odd!r:.60} in column {column}: expected the name of a split")
    return bool(found) and "" not in found


def _splits_of_paths(files: list[str]) -> list[str]:
    """By the first folders of paths that all have a split's name; else "" of each."""
    paths = []
    for file in files:
        parts = re.split(r"[/\\]", file)
        paths.append([part for part in parts if part not in ("", ".")])
    longest = max(map(len, paths), default=0)
    for depth in range(longest - 1):
        names = [path[depth] if depth + 1 < len(path) else "" for path in paths]
        splits = [split_of(name) for name in names]
        found = {split for split, path in zip(splits, paths) if path}
        if "" not in found:
            return splits
        if "train" in found and len(found) > 2:
            odd = next(name for name in names if not split_of(name))
            raise ValueError(
                f"images in {odd or 'no folder'} beside those of train and test: expected a split "
                "of each"
            )
    return [""] * len(files)


def _answered(cell: object) -> bool | None:
    return ANSWERS.get(str(cell).strip().lower().removesuffix(".0"))


def _answer(column: str, cell: object) -> bool:
    answer = _answered(cell)
    if answer is None:
        raise ValueError(f"{cell!r} in column {column}: expected 0 or 1, true or false")
    return answer


def _split_by(answers: dict[str, bool]) -> str:
    """The split of an image by what is said of it: in validation or not, …"""
    named = [split for split, answer in answers.items() if answer]
    if len(named) > 1:
        raise ValueError(f"an image that is said to be in {' and in '.join(named)}")
    rest = "test" if "train" in answers else "train"
    return named[0] if named else rest


def labelled(places: Sequence[tuple | None], labels: list, splits: list, kind: str) -> Listing:
    """Rows; lines without image or label are left out and counted, lines of one image are one."""
    found: dict[tuple, str] = {}
    without = 0
    nowhere = places.count(None)
    for place, label, split in zip(places, labels, splits):
        if kind == "several" and isinstance(label, list):
            label = "|".join(map(str, label)) or "|"
        text = _label(label)
        name = _label(split) or ""
        if name and not split_of(name):
            known = ", ".join(name for names in SPLITS.values() for name in names)
            raise ValueError(f"a split called {name!r}: expected one of {known}")
        if text is None or place is None:
            without += place is not None
            continue
        key = (place, split_of(name))
        before = found.get(key, text)
        if before != text and kind != "several":
            raise ValueError(
                f"{place[0]} with the labels {before!r} and {text!r}: expected one an image (or do "
                "--multi-label)"
            )
        found[key] = text if before == text else f"{before}|{text}"
    rows: list[Row] = [(place, text, split) for (place, split), text in found.items()]
    barred = 0
    if kind == "classes":
        texts = [text for _, text, _ in rows]
        _refuse_fractions(texts)
        barred = sum("|" in text for text in texts)
    told = {
        "images have a label with a bar (of several labels? do --multi-label)": barred,
        "images without a label left out": without,
        "lines without an image left out": nowhere,
        "lines that repeat an image": len(places) - nowhere - without - len(rows),
    }
    return rows, [f"{number} {what}" for what, number in told.items() if number]


def _label(value: object) -> str | None:
    """A label as text; None where there is none."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list | dict | bytes):
        raise ValueError(f"the label {value!r:.60}: expected one name or number an image")
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # whole numbers beside nulls come as floats
    text = "" if value is None else str(value).strip()
    return None if text.lower() in MISSING else text


def _refuse_fractions(labels: list[str]) -> None:
    """Numbers with fractions, nearly as many as images, are measurements."""
    distinct = set(labels)
    try:
        fractions = [label for label in distinct if float(label) % 1]
    except ValueError:
        return
    if len(fractions) > len(labels) / 2:
        raise ValueError(
            f"the label {fractions[0]}, a measurement: expected classes (or do --regression)"
        )


# Parquet and Arrow files


@dataclass(frozen=True)
class Table:
    """The images in a column of a Parquet or Arrow file: bytes, or structs of bytes and path."""

    path: str
    column: str

    def __str__(self) -> str:
        return self.path

    def read(self, rows: list[int]) -> Iterator[bytes]:
        """Encoded images of sorted rows, b"" where there is none; the file streams by."""
        wanted = iter(rows)
        start = 0
        row = next(wanted, None)
        for batch in _batches(self.path, [self.column]):
            while row is not None and row < start + len(batch):
                yield self._content(batch[self.column][row - start].as_py())
                row = next(wanted, None)
            if row is None:
                return
            start += len(batch)

    def _content(self, cell: Any) -> bytes:
        if not isinstance(cell, dict):
            return cell or b""
        beside = os.path.join(os.path.dirname(self.path), cell.get("path") or "")
        return cell.get("bytes") or content_of(beside)


def _batches(path: str, columns: Sequence[str]) -> Iterator:
    """Record batches of those columns; without columns an empty table that has the schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.lower().endswith(".parquet"):
        with pq.ParquetFile(path, buffer_size=2**20) as file:
            if not columns:
                yield file.schema_arrow.empty_table()
            yield from file.iter_batches(64, columns=columns) if columns else ()
        return
    with pa.memory_map(path) as file, pa.ipc.open_stream(file) as stream:
        if not columns:
            yield stream.schema.empty_table()
        for batch in stream if columns else ():
            yield batch.select(columns)


def _table_files(folder: Path) -> list[Path]:
    """Parquet or Arrow files of a folder, or of the folders of its splits, or the text table beside
    its images.
    """
    for kind in ("parquet", "arrow"):
        for inside in (".", "data", "default"):
            here = _files(folder / inside, f"*.{kind}")
            below = _files(folder / inside, f"*/*.{kind}")
            files = here or [file for file in below if split_of(file.parent.name)]
            if files:
                return files
    return [folder / name for name in METADATA if (folder / name).is_file()][:1]


def _files(folder: Path, pattern: str) -> list[Path]:
    """Without hidden ones and what the library datasets has cached beside its own."""
    found = sorted(folder.glob(pattern))
    return [file for file in found if not file.name.startswith((".", "cache-"))]


def _tables_in(folder: Path, asked: Asked) -> Listing:
    """No rows where there are no tables, or none with labels."""
    files = _table_files(folder)
    if files and files[0].name in METADATA:
        return _text(files[0], asked, beside=True)
    return _tables(folder, files, asked)


def _split_of_file(file: Path, root: Path) -> str:
    """By a word of the file's name, else by its folder."""
    words = [split_of(word) for word in re.split(r"[^a-z]+", file.stem.lower())]
    folder = split_of(file.parent.name) if file.parent != root else ""
    return next(filter(None, words), folder)


def _tables(root: Path, files: list[Path], asked: Asked) -> Listing:
    named = [_split_of_file(file, root) for file in files]
    if any(named) and not all(named):
        raise ValueError(f"{files[named.index('')]} beside files of a split: expected its split")
    places: list = []
    labels: list = []
    splits: list = []
    unused: dict[str, None] = {}
    for file, split in zip(files, named):
        in_file, labels_of, splits_of, notes_of = _table(file, asked)
        places += in_file
        labels += labels_of
        splits += [own or split for own in splits_of]
        unused |= dict.fromkeys(notes_of)
    rows, notes = labelled(places, labels, splits, asked.kind)
    return rows, notes + ([] if any(splits) else [*unused])


def _table(file: Path, asked: Asked) -> tuple[list, list, list, list]:
    """Places, labels, splits ("": not given) and notes of one file."""
    schema = next(_batches(str(file), ())).schema
    image, label = _expected(
        schema.names,
        _image_column(schema, asked.image),
        column_of(schema.names, asked.label, LABEL),
    )
    by_path = _kind(schema, image) == "string"
    parts = [name for name in schema.names if name not in (image, label) and _may_split(name)]
    columns: dict[str, list] = {name: [] for name in (label, *parts)}
    if by_path:
        columns[image] = []
    for batch in _batches(str(file), [*columns]):
        for name in columns:
            columns[name] += batch[name].to_pylist()
    files = [name or "" for name in columns[image]] if by_path else [""] * len(columns[label])
    table = Table(str(file), image)
    in_table = [(table, row) for row in range(len(files))]
    places = _places(file, files) if by_path else in_table
    names = _class_names(schema.metadata or {}, label)
    splits, _, unused = _splits({name: columns[name] for name in parts}, files, True)
    return places, named(columns[label], names), splits, unused


def _kind(schema: Any, column: str) -> str:
    kind = schema.field(column).type
    if str(kind).startswith("dictionary"):
        kind = kind.value_type
    return str(kind).removeprefix("large_")


def _image_column(schema: Any, asked: str | None) -> str | None:
    """The column asked for, else the first of a known name, images before paths to them."""
    known = [name for name in schema.names if name.strip().lower() in IMAGE]
    columns = known if asked is None else [asked]
    for kinds in (r"binary$|struct<.*\b(bytes|path): ", "string$"):
        for name in columns:
            if name in schema.names and re.match(kinds, _kind(schema, name)):
                return name
    if columns and columns[0] in schema.names:
        raise ValueError(
            f"a column {columns[0]} of {_kind(schema, columns[0]):.60}: expected encoded images "
            "(bytes, or a struct with bytes) or paths"
        )
    return column_of(schema.names, asked, IMAGE)


def named(labels: list, names: Sequence[str]) -> list:
    """Labels by the names of their classes, where there are names."""
    if not names:
        return labels
    values = [_label(label) for label in labels]
    odd = [v for v in values if v is not None and not (v.isdecimal() and int(v) < len(names))]
    if odd:
        raise ValueError(f"the label {odd[0]:.60}: expected numbers below {len(names)}")
    return [None if value is None else names[int(value)] for value in values]


def _class_names(metadata: dict[bytes, bytes], column: str) -> list[str]:
    """From this project's metadata or Hugging Face's ClassLabel; [] when there are none."""
    try:
        if b"class_names" in metadata:
            names = json.loads(metadata[b"class_names"])
        else:
            names = json.loads(metadata[b"huggingface"])["info"]["features"][column]["names"]
        return [str(name) for name in names] if isinstance(names, list) else []
    except (KeyError, TypeError, ValueError, RecursionError):
        return []
