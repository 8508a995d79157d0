"""Where things lie, and on what they were computed."""

import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import platformdirs
import torch

from mzlib.errors import Unwritable

CACHE_LIMIT = 10 * 2**30  # bytes
STALE = 24 * 3600  # seconds after which nobody goes on writing a temporary file


def home() -> Path:
    """The folder that holds `suites/`, `results/` and `zoo/`.

    $MZLIB_HOME, or the nearest folder upwards from the working directory that has `suites/`, or the
    working directory.
    """
    if os.environ.get("MZLIB_HOME"):
        return Path(os.environ["MZLIB_HOME"]).expanduser()
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "suites").is_dir()), here)


def cache_folder() -> Path:
    """Where converted images and evidence are kept: $MZLIB_CACHE, or `mzlib` in the user's cache
    folder.
    """
    if os.environ.get("MZLIB_CACHE"):
        return Path(os.environ["MZLIB_CACHE"]).expanduser()
    return platformdirs.user_cache_path("mzlib")


def tidy(folder: Path, limit: int = CACHE_LIMIT) -> None:
    """Take out of a cache what a killed process left half written, and what was used least lately
    until at most `limit` bytes are there. Only files that are named by a digest, as ours are.
    """
    now = time.time()
    files = []
    for path in folder.rglob("*"):
        if not re.match("[0-9a-f]{24}", path.name):
            continue
        with suppress(OSError):  # another process tidies too
            state = path.stat()
            if not path.is_file():
                continue
            if path.suffix == ".tmp" and now - state.st_mtime > STALE:
                path.unlink()
            else:
                files.append((state.st_mtime, state.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= limit:
            break
        with suppress(OSError):
            path.unlink()
            total -= size


@contextmanager
def written(path: Path, alone: bool = False) -> Iterator[Path]:
    """A name for a file that becomes `path` as a whole at the end of the block, or not at all.

    alone: nobody else writes it now (a lock is held), so that what a killed process left is written
    over; else several processes may write the same content.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    if not alone:
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def put(path: Path, content: str | bytes) -> None:
    """Write a file as a whole or not at all: under a temporary name, then renamed.

    Who may write it at the same time holds a lock, so that what a killed process left is written
    over. Raises Unwritable.
    """
    try:
        with written(path, alone=True) as temporary:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise Unwritable(
            f"expected to write {path}, got {error}; make room or permit it, then run again"
        ) from None


def results_folder(suite: str) -> Path:
    """`results/<suite>` under `home()`, created when absent: the consolidated tables of a suite."""
    folder = home() / "results" / suite
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def machine() -> dict[str, str]:
    """Hardware and versions of this process, as strings for a table."""
    if torch.cuda.is_available():
        hardware = torch.cuda.get_device_name()
    else:
        known: dict = getattr(torch.cpu, "get_capabilities", dict)()  # new in torch 2.12
        name = known.get("cpu_name") or platform.processor() or platform.machine()
        hardware = f"{name}, {os.cpu_count()} cores"
    return {"hardware": hardware, **{name: _version(name) for name in ("mzlib", "torch", "timm")}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
