"""Tables of labelled images: text (with any separator), JSON lines, Parquet and Arrow files.

Every reader returns rows (place, label, split). A place is (file, None), or (table, row) where the
table holds the images; split is "train", "test", "validation" or, where none is given, "". All
raise OSError, or ValueError with what was found instead.
"""

import json
import os
import re
import stat
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from pandas import DataFrame

from mzlib.pixels import BUDGET, extensions
from mzlib.splits import SPLITS, answered, may_split, split_of, splits_of

IMAGE = ("path", "file", "file_name", "filename", "filepath", "image_path", "image", "img")
LABEL = ("label", "labels", "class", "target", "fine_label", "class_name", "category")
MISSING = ("", "nan", "null")  # labels that are none
WINDOWS = "cp1252"  # what a text is taken for that is no Unicode
TEXTS = (".csv", ".tsv", ".jsonl")
PLAIN = re.compile("string|bool|u?int|float|double")  # kinds of columns that may hold splits
METADATA = ("metadata.csv", "metadata.jsonl")  # beside images, as Hugging Face has it

Row = tuple[tuple[Any, int | None], str, str]
Listing = tuple[list[Row], list[str]]  # and notes: what a reader should know, a line each


class Asked(NamedTuple):
    """Names of the columns of images and labels; labels of `mzlib.selectors.targets.KINDS`."""

    image: str | None = None
    label: str | None = None
    kind: str = "classes"


def printable(text: str) -> str:
    """The text with control characters, line ends and bytes that are no Unicode escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


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


def text_table(path: Path, asked: Asked, beside: bool = False) -> Listing:
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
    perhaps = [name for name in header if name not in (image, label) and may_split(name)]
    columns = {name: table[name].tolist() for name in perhaps}
    splits, dividing, unused = splits_of(columns, files, label is not None)
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
    numbers = cells.map(answered)
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


def table_files(folder: Path) -> list[Path]:
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


def tables_in(folder: Path, asked: Asked) -> Listing:
    """No rows where there are no tables, or none with labels."""
    files = table_files(folder)
    if files and files[0].name in METADATA:
        return text_table(files[0], asked, beside=True)
    return binary_tables(folder, files, asked)


def _split_of_file(file: Path, root: Path) -> str:
    """By a word of the file's name, else by its folder."""
    words = [split_of(word) for word in re.split(r"[^a-z]+", file.stem.lower())]
    folder = split_of(file.parent.name) if file.parent != root else ""
    return next(filter(None, words), folder)


def binary_tables(root: Path, files: list[Path], asked: Asked) -> Listing:
    """Of Parquet or Arrow files below `root`, which may be called after splits."""
    named = [_split_of_file(file, root) for file in files]
    if any(named) and not all(named):
        raise ValueError(f"{files[named.index('')]} beside files of a split: expected its split")
    places: list = []
    labels: list = []
    splits: list = []
    unused: dict[str, None] = {}
    for file, split in zip(files, named):
        of_file = _table(file, asked)
        places += of_file[0]
        labels += of_file[1]
        splits += [own or split for own in of_file[2]]
        unused |= dict.fromkeys(of_file[3])
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
    others = [name for name in schema.names if name not in (image, label)]
    parts = [name for name in others if may_split(name) and PLAIN.match(_kind(schema, name))]
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
    splits, _, unused = splits_of({name: columns[name] for name in parts}, files, True)
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
