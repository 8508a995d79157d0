"""Which part of the data an image is in: by the name of a folder or file, by the columns of a
table, by the folders in a path.

Names of splits are those of `SPLITS`, in capitals or not: nothing that its owner has held out may
pass for an image to score.
"""

import re
from functools import lru_cache

SPLITS = {
    "train": ("train", "training", "trn"),
    "test": ("test", "testing", "tst", "publictest", "privatetest"),
    "validation": ("val", "valid", "validation", "dev", "eval"),
}
SPLIT = ("split", "set", "subset")
# words in names of columns that may hold splits, those of the second line as likely something else
DIVIDING = {"split", "partition", "phase", "usage", "fold"}
PERHAPS_SPLIT = DIVIDING | {"set", "dataset", "train", "test", "tvt", "type", "group", "mode"}
FLAG = re.compile(r"(is_?)?(\w+?)(_image|_set)?")  # is_valid of fastai, is_training_image of CUB
ANSWERS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@lru_cache(1024)
def split_of(name: str) -> str:
    """The split that a name stands for, "" when it stands for none."""
    word = name.strip().lower()
    return next((split for split, names in SPLITS.items() if word in names), "")


def may_split(column: str) -> bool:
    """Whether a column may say which part of the data an image is in, by its name."""
    is_split = column.strip().lower() in SPLIT
    return is_split or not PERHAPS_SPLIT.isdisjoint(_words(column)) or bool(_flagged(column))


def _words(column: str) -> list[str]:
    return re.split(r"[\W\d_]+", column.lower())


def _flagged(column: str) -> str:
    """The split that a column of yes or no is about, or ""."""
    found = FLAG.fullmatch(column.strip().lower())
    return split_of(found[2]) if found else ""


def splits_of(
    columns: dict[str, list], files: list[str], is_labelled: bool
) -> tuple[list, list[str], list[str]]:
    """Each image's split by columns that may say so or, where none does, by the folders of files;
    the names of the columns that do; and notes of those that seemed to.

    A column called split counts, another one where it holds nothing but splits, then columns of yes
    and no. is_labelled: a column called train is no class of a one-hot table.
    """
    for word in SPLIT:
        for column, cells in columns.items():
            if column.strip().lower() == word:
                return cells, [column], []
    for column, cells in columns.items():
        if _names_splits(column, cells):
            return cells, [column], []
    flags = {}
    telling = []
    for column, cells in columns.items():
        flag = _flagged(column)
        is_question = column.lower().startswith("is")
        is_answered = is_labelled and all(answered(cell) is not None for cell in cells)
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


def answered(cell: object) -> bool | None:
    """Whether a cell says yes or no; None: neither."""
    return ANSWERS.get(str(cell).strip().lower().removesuffix(".0"))


def _answer(column: str, cell: object) -> bool:
    answer = answered(cell)
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
