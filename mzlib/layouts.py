"""Where labelled images lie: a table (`mzlib.tables`) or class folders, parts of the data or not.

Returns rows as the tables' readers do and raises what they raise.
"""

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

from mzlib.pixels import extensions
from mzlib.splits import SPLITS, split_of
from mzlib.tables import (
    TEXTS,
    Asked,
    Listing,
    Row,
    binary_tables,
    is_special,
    printable,
    table_files,
    tables_in,
    text_table,
)

HEIC = (".heic", ".heif", ".hif")
NO_IMAGE = "files or links skipped that are no images"
LOOSE = "images outside the class folders left aside"
TABLE = "tables beside folders not read (give the one with the labels)"
# 7_mask.png of 7.png, as in BUSI
MASK = re.compile(r"(.+)[-_. ](mask|seg|segmentation|gt|label)(_\d+)?", re.IGNORECASE)
PICTURES = re.compile(r"(jpeg)?(image|img)s?", re.IGNORECASE)
OUTLINES = re.compile(
    r".*(mask|segmentation|annotation|label|manual|ground.?truth).*|gt", re.IGNORECASE
)
LEFT = ("__MACOSX", "@eaDir")  # what macOS leaves in archives, thumbnails of Synology

Skipped = defaultdict[str, list]  # paths by what is said of them


def list_rows(path: Path, asked: Asked = Asked()) -> Listing:
    """The labelled images at `path`."""
    if path.is_dir():
        return _folder(path, asked)
    kind = path.suffix.lower() if path.is_file() else ""  # a pipe would be waited for
    if kind in TEXTS:
        return text_table(path, asked)
    if kind in (".parquet", ".arrow"):
        return binary_tables(path.parent, [path], asked)
    raise ValueError(
        "no image: expected a folder, a .parquet or a .csv, .tsv or .jsonl file of labelled images"
    )


def _folder(path: Path, asked: Asked) -> Listing:
    rows, notes = tables_in(path, asked)
    if rows:
        return rows, notes
    folders = _folders(path)
    has_splits = _are_splits(folders)
    skipped: Skipped = defaultdict(list)
    _leave_aside(path, TEXTS, TABLE, skipped)
    if len(folders) == 1 and (_folders(folders[0]) or table_files(folders[0])):  # one way down
        _leave_aside(path, extensions(), LOOSE, skipped)
        rows, notes = _folder(folders[0], asked)
        return rows, [f"read from {folders[0]}, the only folder there", *told(skipped), *notes]
    if not has_splits:
        _refuse_parts(folders)
        rows = _classes(path, "", skipped, asked)
    for folder in folders if has_splits else []:
        split = split_of(folder.name)
        if not split:
            skipped["folders beside those of the split left aside"].append(folder)
            continue
        in_table, said = tables_in(folder, asked)
        rows += [(place, label, split) for place, label, _ in in_table]
        notes += [f"{folder.name}: {note}" for note in said]
        if not in_table:
            _refuse_parts(_folders(folder))
            rows += _classes(folder, split, skipped, asked)
    return rows, notes + told(skipped)


def told(skipped: Skipped) -> list[str]:
    """What a reader should know of it, a line each."""
    return [
        f"{len(paths)} {reason}, first {printable(str(paths[0]))}"
        for reason, paths in skipped.items()
    ]


def _is_hidden(name: str) -> bool:
    return name[0] == "." or name in LEFT


def _folders(path: Path) -> list[Path]:
    """Sub-folders, without hidden ones."""
    try:
        with os.scandir(path) as entries:  # which knows what is a folder without another look
            names = [entry.name for entry in entries if entry.is_dir()]
    except OSError:
        return []
    return [path / name for name in sorted(names) if not _is_hidden(name)]


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
    _leave_aside(root, extensions(), LOOSE, skipped)
    rows: list[Row] = []
    for folder in _folders(root):
        files = image_files(str(folder), os.path.realpath(root), skipped)
        if not files:
            skipped["folders without an image left aside"].append(folder)
        rows += [((file, None), folder.name, split) for file in files]
    return rows


def _leave_aside(root: Path, kinds: Collection[str], reason: str, skipped: Skipped) -> None:
    """The files of these kinds directly in `root`."""
    for entry in sorted(root.iterdir()):
        if entry.suffix.lower() in kinds and entry.is_file():
            skipped[reason].append(entry)


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
