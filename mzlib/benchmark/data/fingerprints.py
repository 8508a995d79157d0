"""Have the data of a task changed since the results of a suite were computed from them?

`results/<suite>/fingerprints.json` says what the tasks were when the suite first ran with them:
digests of the train and the test split, and whether labels survive a flip. The key of a job holds
what differs from that record, and nothing where nothing does, so that results stay valid as long as
their data do. A task that is not on this machine counts as unchanged; so does, by the digests in
its `meta.json`, a copy that `mzlib data get` made of the recorded images.
"""

import hashlib
import json
import time
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from mzlib.benchmark.data import CARDS, embedded, store
from mzlib.errors import MzlibError
from mzlib.provenance import home


def fingerprint(name: str) -> dict[str, str | bool]:
    """train, test (SHA-256) and flip of a task, as far as they are known on this machine.

    Of files of the Parquet cache their bytes count, of an embedded task the parameters it is drawn
    with.
    """
    folder = store.root() / name
    card = CARDS.get(name, {})
    if name in embedded.TABLES:
        digests = dict.fromkeys(store.SPLITS, embedded.digest(name))
    elif store.exists(folder):
        meta = store.meta(folder)
        card = meta | card
        digests = file_digests(folder)
        if digests == meta.get("sha256"):
            digests = {}
    else:
        return {"flip": card["flip"]} if "flip" in card else {}
    return {**digests, "flip": card.get("flip", False)}


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the Parquet file of each split."""
    paths = {split: folder / f"{split}.parquet" for split in store.SPLITS}
    states = {split: path.stat() for split, path in paths.items()}
    return {s: _digest(paths[s], states[s].st_mtime_ns, states[s].st_size) for s in paths}


@lru_cache(maxsize=None)
def _digest(path: Path, changed: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record(suite: str) -> Path:
    """Where a suite's record lies."""
    return home() / "results" / suite / "fingerprints.json"


def recorded(suite: str) -> dict[str, dict]:
    """Task -> fingerprint when the suite first ran with it."""
    path = record(suite)
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        raise MzlibError(
            f"expected fingerprints of tasks in {path}, got {error}; restore or remove it"
        ) from None


def unrecorded(suite: str, names: Iterable[str]) -> dict[str, dict]:
    """Task -> fingerprint and today's date, of the tasks here that the record does not have."""
    known = recorded(suite)
    today = time.strftime("%Y-%m-%d", time.gmtime())
    found = {name: fingerprint(name) for name in names if name not in known}
    return {name: now | {"recorded": today} for name, now in found.items() if "train" in now}


def changed(suite: str, names: Iterable[str], parts: Iterable[str]) -> dict[str, dict]:
    """Task -> these parts of its fingerprint, of the tasks in which they differ from the record."""
    known = recorded(suite)
    differing = {}
    for name in names:
        found = fingerprint(name)
        now = {part: found[part] for part in parts if part in found}
        then = known.get(name, now)
        if any(then.get(part) != value for part, value in now.items()):
            differing[name] = now
    return differing
