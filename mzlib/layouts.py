"""Where labelled images lie: class folders, text tables, Parquet and Arrow files.

Every reader returns rows (place, label, split). A place is (file, None), or (table, row) where the
table holds the images; split is "train", "test", "validation" or, where none is given, "". Names
of splits are those of `SPLITS`, in capitals or not: nothing that its owner has held out may pass
for an image to score. All raise OSError, or ValueError with what was found instead.
"""

import csv
import io
import json
import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from mzlib.pixels import BUDGET, extensions

SPLITS = {
    "train": ("train", "training", "trn"),
    "test": ("test", "testing", "tst"),
    "validation": ("val", "valid", "validation", "dev", "eval"),
}
IMAGE = ("path", "file", "file_name", "filename", "filepath", "image_path", "image", "img")
LABEL = ("label", "labels", "class", "target", "fine_label", "class_name", "category")
SPLIT = ("split", "set", "subset")
MISSING = ("", "nan", "null")  # labels that are none
HEIC = (".heic", ".heif", ".hif")
NO_IMAGE = "files or links skipped that are no images"

Row = tuple[tuple[Any, int | None], str, str]
Listing = tuple[list[Row], list[str]]  # and notes: what a reader should know, a line each


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
    if kind in (".csv", ".tsv", ".jsonl"):
        return _text(path, asked)
    if kind in (".parquet", ".arrow"):
        return _tables(path.parent, [path], asked)
    raise ValueError(
        "no image: expected a folder, a .parquet or a .csv, .tsv or .jsonl file of labelled images"
    )


# class folders


def _folder(path: Path, asked: Asked) -> Listing:
    tables = _table_files(path)
    if tables:
        return _tables(path, tables, asked)
    rows, notes = _metadata(path, asked)
    if rows:
        return rows, notes
    folders = _folders(path)
    parts = _split_folders(folders)
    if len(folders) == 1 and (_folders(folders[0]) or _has_table(folders[0])):  # one way down
        rows, notes = _folder(folders[0], asked)
        return rows, [f"read from {folders[0]}, the only folder there", *notes]
    skipped: dict[str, list] = defaultdict(list)  # paths by what is said of them
    if not parts:
        _refuse_repeated(folders)
        return _classes(path, "", skipped), _notes(skipped)
    for folder in folders:
        split = split_of(folder.name)
        if split:
            rows += _classes(folder, split, skipped)
        else:
            skipped["folders beside those of the split left aside"].append(folder)
    return rows, _notes(skipped)


def _notes(skipped: dict[str, list]) -> list[str]:
    return [f"{len(paths)} {reason}, first {paths[0]}" for reason, paths in skipped.items()]


def _folders(path: Path) -> list[Path]:
    """Sub-folders, without hidden ones and what macOS leaves in archives."""
    try:
        entries = sorted(path.iterdir())
    except OSError:
        return []
    return [p for p in entries if p.name[0] != "." and p.name != "__MACOSX" and p.is_dir()]


def _split_folders(folders: list[Path]) -> set[str]:
    """The splits of folders; none where they are classes, one of which may be called train, too."""
    parts = {split_of(folder.name) for folder in folders}
    classes = {folder.name for folder in folders if not split_of(folder.name)}
    parts.discard("")
    if "train" in parts and (len(parts) > 1 or not classes):
        return parts
    for folder in folders:
        inner = {sub.name for sub in _folders(folder)}
        held_out = split_of(folder.name) in ("test", "validation")
        if held_out and (not classes or inner & classes):
            raise ValueError(
                f"held-out images in {folder.name} but no folder train: put the others into train"
            )
    return set()


def _refuse_repeated(folders: list[Path]) -> None:
    """Folders that all hold the same folders are parts of a data set, not its classes."""
    inner = [{sub.name for sub in _folders(folder)} for folder in folders]
    if len(inner) < 2 or not all(inner):
        return
    common = set.intersection(*inner)
    if len(common) >= max(2, len(set.union(*inner)) / 2):
        raise ValueError(
            f"folders ({', '.join(folder.name for folder in folders[:3])}) that all hold "
            f"{', '.join(sorted(common)[:3])}: if these are the classes, name the folders train "
            "and test, or give one of them"
        )


def _classes(root: Path, split: str, skipped: dict[str, list]) -> list[Row]:
    """Rows of the class folders below `root`, or of the table there."""
    rows, _ = _metadata(root, Asked()) if split else ([], [])
    if rows:
        return [(place, label, split) for place, label, _ in rows]
    for entry in sorted(root.iterdir()):
        if entry.suffix.lower() in extensions() and entry.is_file():
            skipped["images outside the class folders left aside"].append(entry)
    for folder in _folders(root):
        files = list(_walk(str(folder), {os.path.realpath(root)}, skipped))
        if not files:
            skipped["folders without an image left aside"].append(folder)
        rows += [((file, None), folder.name, split) for file in files]
    return rows


def _walk(folder: str, above: set, skipped: dict[str, list]) -> Iterator[str]:
    """Image files by extension, links followed, except one to a folder that holds it."""
    here = os.path.realpath(folder)
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        skipped["folders skipped that cannot be opened"].append(folder)
        return
    if here in above:
        skipped[NO_IMAGE].append(folder)
        return
    for entry in entries:
        kind = os.path.splitext(entry.name)[1].lower()
        if entry.name[0] == ".":
            continue
        if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
            yield from _walk(entry.path, above | {here}, skipped)
        elif kind in HEIC and kind not in extensions():
            skipped["HEIC files skipped (do pip install pillow-heif)"].append(entry.path)
        elif kind not in extensions():
            skipped[NO_IMAGE].append(entry.path)
        elif (entry.is_symlink() or not entry.is_file()) and is_special(entry.path):
            skipped["named pipes or devices skipped"].append(entry.path)
        else:
            yield entry.path


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


METADATA = ("metadata.csv", "metadata.jsonl")  # beside images, as Hugging Face has it


def _has_table(folder: Path) -> bool:
    return bool(_table_files(folder)) or any((folder / name).is_file() for name in METADATA)


def _metadata(folder: Path, asked: Asked) -> Listing:
    """Of the table beside images; no rows where there is none, or none with labels."""
    files = [folder / name for name in METADATA if (folder / name).is_file()]
    return _text(files[0], asked) if files else ([], [])


def _text(path: Path, asked: Asked) -> Listing:
    """A .csv (with any separator), .tsv or .jsonl file; no rows of metadata without labels."""
    content = path.read_bytes()
    utf16 = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    text = content.decode("utf-16" if utf16 else "utf-8-sig", "surrogateescape")
    if path.suffix.lower() == ".jsonl":
        header, table = _json_lines(text)
    else:
        header, table = _separated(text)
    if not header:
        return [], []
    if asked[:2] == (None, None) and len(header) == 2 and _is_image(header[0], path.parent):
        header, table = ["path", "label"], [header, *table]  # no header
    image = _column(header, asked.image, IMAGE)
    label = _column(header, asked.label, LABEL)
    split = _column(header, None, SPLIT)
    others = [i for i in range(len(header)) if i not in (image, split)]
    if label is None and path.stem == "metadata":
        return [], []
    if label is None and image is not None and len(others) > 1:
        table = _with_one_hot(header, table, others, asked.kind)
        label = len(header)
    image, label = _expected(header, image, label)
    cells = max(image, label, split or 0)
    short = next((row for row in table if len(row) <= cells), None)
    if short:
        raise ValueError(f"a line without path and label: {','.join(map(str, short))!r}")
    files = [str(row[image]) for row in table]
    splits = [row[split] for row in table] if split is not None else _splits_of_paths(files)
    places = [(str(path.parent / file), None) for file in files]
    return _labelled(places, [row[label] for row in table], splits, asked.kind)


def _json_lines(text: str) -> tuple[list[str], list[list]]:
    try:
        records: list[Any] = [json.loads(line) for line in text.split("\n") if line.strip()]
    except RecursionError:
        records = [None]
    if not all(isinstance(record, dict) for record in records):
        raise ValueError('lines that are no objects: expected {"file_name": …, "label": …}')
    header = list(dict.fromkeys(key for record in records for key in record))
    return header, [[record.get(key) for key in header] for record in records]


def _separated(text: str) -> tuple[list[str], list[list[str]]]:
    separator = max(",;\t|", key=text.split("\n", 1)[0].count)
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    except csv.Error as error:
        raise ValueError(str(error)) from error
    table = [[cell.strip() for cell in line] for line in lines if any(line)]
    return (table[0], table[1:]) if table else ([], [])


def _is_image(name: str, folder: Path) -> bool:
    return os.path.splitext(name)[1].lower() in extensions() or os.path.isfile(folder / name)


def _column(header: Sequence[str], asked: str | None, known: Sequence[str]) -> int | None:
    """Where the column is that was asked for, else the first of the known names."""
    if asked is not None:
        if asked not in header:
            raise ValueError(f"a table of the columns {_names(header)}: expected {asked!r}")
        return header.index(asked)
    words = [name.strip().lower() for name in header]
    return next((words.index(name) for name in known if name in words), None)


def _names(header: Sequence[str]) -> str:
    return ", ".join(header[:20]) + (", …" if len(header) > 20 else "")


def _expected(header: Sequence[str], image: int | None, label: int | None) -> tuple[int, int]:
    if image is None or label is None or image == label:
        raise ValueError(
            f"a table of the columns {_names(header)}: expected image and label (or "
            f"{', '.join(IMAGE[:-2])}; {', '.join(LABEL[1:])}), or the options image_column and "
            "label_column"
        )
    return image, label


def _with_one_hot(
    header: list[str], table: list[list], columns: list[int], kind: str
) -> list[list]:
    """The table with one more column: the name of the one among `columns` that is 1, between bars
    of several.
    """
    whole = [row for row in table if len(row) == len(header)]
    cells = [[str(row[i]).lower() for i in columns] for row in whole]
    if not set().union(*cells) <= {"0", "1", "0.0", "1.0", "false", "true"}:
        _expected(header, None, None)
    ones = [[i for i, cell in zip(columns, row) if cell in ("1", "1.0", "true")] for row in cells]
    several = sum(len(found) != 1 for found in ones)
    if several and kind != "several":
        raise ValueError(
            f"columns of 0 and 1 in which {several} of {len(whole)} images have no class or "
            "several: expected one class an image (or do --multi-label)"
        )
    names = ["|".join(header[i] for i in found) or "|" for found in ones]
    return [[*row, name] for row, name in zip(whole, names)]


def _splits_of_paths(files: list[str]) -> list[str]:
    """Of a table without a split: by top folders, where all are named after one."""
    tops = [split_of(re.split(r"[/\\]", file.removeprefix("./"))[0]) for file in files]
    return tops if all(tops) else [""] * len(files)


def _labelled(places: list[tuple], labels: list, splits: list, kind: str) -> Listing:
    """Rows; those without a label are left out and counted."""
    rows: list[Row] = []
    for place, label, split in zip(places, labels, splits):
        text = _label(label)
        word = split_of(str(split or ""))
        if split and not word:
            known = ", ".join(name for names in SPLITS.values() for name in names)
            raise ValueError(f"a split called {split!r}: expected one of {known}")
        if text is not None:
            rows.append((place, text, word))
    if kind == "classes":
        _refuse_fractions([text for _, text, _ in rows])
    without = len(places) - len(rows)
    return rows, [f"{without} images without a label left out"] if without else []


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


def _batches(path: str, columns: list[str] | None) -> Iterator:
    """Record batches of those columns; without columns an empty one that has the schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.lower().endswith(".parquet"):
        with pq.ParquetFile(path, buffer_size=2**20) as file:
            if columns is None:
                yield file.schema_arrow.empty_table()
            else:
                yield from file.iter_batches(64, columns=columns)
        return
    with pa.memory_map(path) as file, pa.ipc.open_stream(file) as stream:
        if columns is None:
            yield stream.schema.empty_table()
        for batch in stream if columns else ():
            yield batch.select(columns)


def _table_files(folder: Path) -> list[Path]:
    """Parquet or Arrow files of a folder, or of the folders of its splits."""
    for kind in ("parquet", "arrow"):
        for inside in (".", "data", "default"):
            here = sorted((folder / inside).glob(f"*.{kind}"))
            below = sorted((folder / inside).glob(f"*/*.{kind}"))
            files = here or [file for file in below if split_of(file.parent.name)]
            if files:
                return files
    return []


def _split_of_file(file: Path, root: Path) -> str:
    """By a word of the file's name, else by its folder."""
    words = re.split(r"[^a-z]+", file.stem.lower())
    named = [split_of(word) for word in words if split_of(word)]
    return named[0] if named else split_of(file.parent.name) if file.parent != root else ""


def _tables(root: Path, files: list[Path], asked: Asked) -> Listing:
    named = [_split_of_file(file, root) for file in files]
    if any(named) and not all(named):
        raise ValueError(f"{files[named.index('')]} beside files of a split: expected its split")
    columns = [_table(file, split, asked) for file, split in zip(files, named)]
    return _labelled(*(list(chain(*parts)) for parts in zip(*columns)), asked.kind)


def _table(file: Path, split: str, asked: Asked) -> tuple[list, list, list]:
    """Places, labels and splits of one file."""
    schema = next(_batches(str(file), None)).schema
    header = schema.names
    given = _column(header, None, SPLIT)
    image, label = _expected(
        header, _image_column(schema, asked.image), _column(header, asked.label, LABEL)
    )
    by_path = str(schema.types[image]).removeprefix("large_") == "string"
    wanted = [label] + [image] * by_path + ([] if given is None else [given])
    columns: dict[str, list] = {header[i]: [] for i in wanted}
    for batch in _batches(str(file), list(columns)):
        for name, values in columns.items():
            values += batch[name].to_pylist()
    labels = _named(columns[header[label]], _class_names(schema.metadata or {}, header[label]))
    splits = [split] * len(labels) if given is None else columns[header[given]]
    if by_path:
        files = columns[header[image]]
        return [(str(file.parent / (name or "")), None) for name in files], labels, splits
    table = Table(str(file), header[image])
    return [(table, row) for row in range(len(labels))], labels, splits


def _image_column(schema: Any, asked: str | None) -> int | None:
    """The column asked for, else the first of a known name, images before paths to them."""
    known = [i for i, name in enumerate(schema.names) if name.strip().lower() in IMAGE]
    found = known if asked is None else [_column(schema.names, asked, IMAGE)]
    kinds = {i: str(schema.types[i]).removeprefix("large_") for i in found}
    for i in found:
        if kinds[i] == "binary" or re.match(r"struct<.*\b(bytes|path): ", kinds[i]):
            return i
    for i in found:
        if kinds[i] == "string":
            return i
    if found:
        raise ValueError(
            f"a column {schema.names[found[0]]} of {kinds[found[0]]:.60}: expected encoded images "
            "(bytes, or a struct with bytes) or paths"
        )
    return None


def _named(labels: list, names: list[str]) -> list:
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
    except (KeyError, TypeError, ValueError, RecursionError):
        return []
    named = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if named else []
