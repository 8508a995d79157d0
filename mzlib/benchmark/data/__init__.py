"""Tasks: uint8 images and labels with a train and a test split, by name, and their nested few-shot
subsets.

A name is looked up among the embedded tasks, then in the Parquet cache (`$MZLIB_DATA`, default the
user's cache folder), then taken as the path of a folder or table of images. `cards.toml` says of
the known tasks if labels survive a flip.
"""

import difflib
import tomllib
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import pandas as pd

from mzlib.benchmark.data import embedded, store
from mzlib.dataset import Split, Task
from mzlib.errors import MzlibError
from mzlib.images import as_task, open_images
from mzlib.pixels import resized

DOWNLOADS = ("torchvision", "github")  # origins that `mzlib data get` knows
CARDS = tomllib.loads(Path(__file__).with_name("cards.toml").read_text("utf-8"))


def load_task(name: str | Path, size: int | None = None) -> Task:
    """The task of that name (or in that image folder) with images of `size` pixels a side (default:
    as stored, a
    folder's: 64). The last 16 tasks are kept, so a worker that runs many jobs on a task decodes it
    once.

    Raises:
        MzlibError: no such task on this machine, damaged data, or `size` above what is stored.
    """
    if size is not None and size < 1:
        raise MzlibError(f"expected an image size of at least 1 pixel, got {size}")
    root = store.root()
    return _load(str(name), size, root, store.state(root / name))


@lru_cache(maxsize=16)
def _load(name: str, size: int | None, root: Path, state: tuple) -> Task:
    card = CARDS.get(name, {})
    advice = "there is no larger copy"
    if name in embedded.TABLES:
        class_names = list(embedded.TABLES[name])
        splits = [embedded.render(name, split) for split in store.SPLITS]
        advice = "embedded tasks are drawn at 32 pixels"
    elif store.exists(root / name):
        class_names, splits = store.read(root / name)
        card = store.meta(root / name) | card
        if card.get("origin") in DOWNLOADS:
            advice = f"run `mzlib data get {name} --size {size}`"
    elif not card and Path(name).expanduser().exists():
        return as_task(open_images(name), size or 64)
    else:
        raise MzlibError(not_found(name, root))
    stored = splits[0][0].shape[1]
    if size is not None and size > stored:
        raise MzlibError(
            f"{name}: expected a size of at most the stored {stored} pixels, got {size}; {advice}"
        )
    if size is not None and size < stored:
        splits = [(resized(images, size), labels) for images, labels in splits]
    train, test = (Split(*split) for split in splits)
    domain = card.get("domain", "unknown")
    return Task(name, domain, tuple(class_names), train, test, card.get("flip", False), card)


def not_found(name: str, root: Path) -> str:
    """Why a name names no task in the cache `root`, and what to do."""
    table = list_tasks()
    if name in CARDS:
        why = f"expected the task {name} in {root / name}, got nothing there; "
        why += _how_to_get(name, CARDS[name])
    else:
        why = f"expected the name of a task or the path of an image folder, got {name!r}"
        near = difflib.get_close_matches(name, table.name, 3, 0.5)
        if near:
            why += f"; did you mean {' or '.join(near)}?"
    return f"{why}. Available here: {', '.join(table.name[table.available])}"


def _how_to_get(name: str, card: dict) -> str:
    if card["origin"] in DOWNLOADS:
        return (
            f"run `mzlib data get {name}` (from {card['source']}) or set MZLIB_DATA to where it is"
        )
    if card["origin"] == "derived":
        return (
            f"its images were made from {card['source']} ({card['derived']}) and are nowhere to "
            "download: make them so, or set MZLIB_DATA to where they are"
        )
    return "it is embedded, just load it"


def list_tasks() -> pd.DataFrame:
    """All known tasks: name, domain, role, origin, available; where available the numbers train,
    test and classes.
    """
    rows = []
    root = store.root()
    cached = sorted(p.name for p in root.glob("[!.]*") if store.exists(p))
    for name in dict.fromkeys([*CARDS, *cached]):
        card = CARDS.get(name, {"origin": "cache"})
        counts = {}
        if name in embedded.TABLES:
            counts = embedded.counts(name)
        elif name in cached:
            card = store.meta(root / name) | card
            with suppress(MzlibError):  # a damaged file: not available, and loading it says why
                counts = store.counts(root / name)
        about = {key: card.get(key) for key in ("domain", "role", "origin")}
        rows.append({"name": name, **about, "available": bool(counts), **counts})
    return pd.DataFrame(rows).astype({"train": "Int64", "test": "Int64", "classes": "Int64"})
