"""Data sets from their public origin, converted once into the Parquet cache: torchvision
(`cards.toml` says how) or a GitHub repository at a commit (`manifest` says which of its files, so
that the images are those of the frozen sets).
"""

import gzip
import io
import json
import re
import shutil
import tarfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from PIL import Image
from tqdm.auto import tqdm

from mzlib import pixels
from mzlib.benchmark import data as tasks
from mzlib.benchmark.data import fingerprints, manifest, store
from mzlib.dataset import stratified_split
from mzlib.errors import MzlibError

GITHUB = "https://github.com"
# bytes of a file in an archive, and of what is packed in it: far above all recorded ones
LIMIT = 2**28
ROWS = 1000  # images in a row group
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
COLUMNS = pa.schema([("image", IMAGE), ("label", pa.int64())])
Row = tuple[bytes, str, int]  # encoded image, path, label


def get_together(names: list[str], size: int = 64, root: str | Path | None = None) -> list[Path]:
    """Folders of data sets of one origin (their cards' `source`) in `root` (default: the cache),
    downloaded in one go and converted unless they are there in that size.

    Works in `root/.NAME.partial` and renames at the end: a task is in the cache completely or not
    at all, and what a killed run left behind is removed by the next one. torchvision needs the disk
    space of the original archive and its contents; a repository's archive is read as it comes and
    never written to disk.

    Raises:
        MzlibError: nothing to download for a name, no network, damaged or incomplete download,
            other counts per class than recorded, `root` cannot be written.
    """
    root = Path(root).expanduser().absolute() if root else store.root()
    missing = _missing(names, size, root)
    if missing:
        for name in missing:
            if tasks.CARDS.get(name, {}).get("origin") not in tasks.DOWNLOADS:
                raise MzlibError(f"no download for this task: {tasks.not_found(name, root)}")
        card = tasks.CARDS[missing[0]]
        origin = missing[0] if "torchvision" in card else card["source"]
        work = re.sub(r"\W+", "-", origin.removeprefix("https://"))
        try:
            root.mkdir(parents=True, exist_ok=True)
            held = FileLock(root / f".{work}.lock").acquire()
        except OSError as error:
            raise MzlibError(
                f"{root}: expected a folder one can write to, got {error}; set MZLIB_DATA to one"
            ) from error
        with held:  # a second process waited here, and finds the tasks done
            _fetch(_missing(names, size, root), size, root, root / f".{work}.partial")
    return [root / name for name in names]


def _missing(names: list[str], size: int, root: Path) -> list[str]:
    """Of these data sets those that are not there in that size; frozen ones have 64 pixels."""

    def has(folder: Path) -> bool:
        return store.exists(folder) and store.meta(folder).get("size", 64) >= size

    return [name for name in names if not has(root / name)]


def _fetch(names: list[str], size: int, root: Path, partial: Path) -> None:
    try:
        shutil.rmtree(partial, ignore_errors=True)
        if names:
            (partial / "raw").mkdir(parents=True)
            by_torchvision = "torchvision" in tasks.CARDS[names[0]]
            (_torchvision if by_torchvision else _github)(names, size, partial)
        for name in names:
            if (root / name).exists():
                (root / name).rename(partial / f"old {name}")
            (partial / name).rename(root / name)
    except Exception as error:  # of urllib, torchvision, tarfile, Pillow, scipy, the file system
        several = ", ".join(names)
        raise MzlibError(
            f"{several}: expected to download {tasks.CARDS[names[0]]['source']}, got {error!r}; "
            "nothing was kept; check network and disk, then run "
            f"`mzlib data get {' '.join(names)}` again"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _torchvision(names: list[str], size: int, partial: Path) -> None:
    import torchvision  # slow to import, and only needed here

    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)  # no path or link out
    (name,) = names
    card = tasks.CARDS[name]
    make = getattr(torchvision.datasets, card["torchvision"])
    rows = {}
    for split in store.SPLITS:
        parts = [make(partial / "raw", download=True, **k) for k in card[f"{split}_parts"]]
        rows[split] = [(part, i) for part in parts for i in range(len(part))]
    first, _ = rows["train"][0]
    how = "official (train and validation parts joined)"
    if not rows["test"]:
        how = "80/20 within classes, seed 0"
        chosen = stratified_split(np.array(first.targets))
        rows = {s: [rows["train"][i] for i in part] for s, part in zip(store.SPLITS, chosen)}

    def read(split: str) -> Iterator[Row]:
        for at, (part, i) in enumerate(rows[split]):
            image, label = part[i]
            yield _encode(image, size), f"{split}/{at:06d}.webp", int(label)

    class_names = card.get("class_names") or list(first.classes)
    meta = {
        "size": size,
        "split": how,
        "commit": f"torchvision {torchvision.__version__}",
    }
    sized = {split: (len(rows[split]), read(split)) for split in store.SPLITS}
    _write(partial / name, class_names, meta, sized)


def _github(names: list[str], size: int, partial: Path) -> None:
    """One pass over the archive of the repository that `names` share; of its members only the
    recorded regular files are read, by exact name and into memory, so that no name or link in it
    can lead out of a folder.
    """
    origin = r"https://github.com/(\S+) at commit (\w+)"
    repo, commit = re.fullmatch(origin, tasks.CARDS[names[0]]["source"]).groups()
    rows = manifest.table(names)
    rows[["file", "_", "part"]] = rows["path"].str.partition("#")
    wanted = rows.groupby("file").indices
    images = [b""] * len(rows)
    with urllib.request.urlopen(f"{GITHUB}/{repo}/archive/{commit}.tar.gz", timeout=60) as answer:
        length = int(answer.headers.get("Content-Length", 0)) or None  # GitHub does not say
        stream = tqdm.wrapattr(answer, "read", total=length, desc=repo)
        with stream as file, tarfile.open(fileobj=file, mode="r|gz") as archive:
            for member in archive:
                name = member.name.partition("/")[2]
                if name in wanted and member.isfile():
                    _limit(member.name, member.size)
                    content = archive.extractfile(member).read()
                    for at, encoded in _images(name, content, rows.iloc[wanted.pop(name)], size):
                        images[at] = encoded
                if not wanted:
                    break
    rows["image"] = images
    how = "as recorded (mzlib/benchmark/data/manifest.parquet)"
    for name, ours in rows.groupby("task", sort=False):
        class_names = manifest.about(name)["class_names"]
        _check_complete(name, ours, class_names)
        parts = {}
        for split in store.SPLITS:
            part = ours[ours["split"] == split]
            parts[split] = (len(part), zip(part["image"], part["path"], part["label"].tolist()))
        _write(
            partial / name,
            class_names,
            {
                "size": size,
                "split": how,
                "commit": commit,
            },
            parts,
        )


def _images(
    name: str,
    content: bytes,
    rows: pd.DataFrame,
    size: int,
) -> Iterator[tuple[int, bytes]]:
    """(row of the manifest, encoded image) of every image in a file."""
    try:
        get = _opener(name, content)
        for row in rows.itertuples():
            yield row.Index, _encode(get(row.part), size, "lossless" in tasks.CARDS[row.task])
    except Exception as error:  # of Pillow, zipfile, gzip or numpy
        raise ValueError(f"{name}: expected an image, got {error!r}") from error


def _check_complete(name: str, rows: pd.DataFrame, class_names: list[str]) -> None:
    absent = rows[rows["image"] == b""]
    if len(absent):
        first = absent.iloc[0]
        in_class = (rows["split"] == first["split"]) & (rows["label"] == first["label"])
        found = int((in_class & (rows["image"] != b"")).sum())
        raise ValueError(
            f"{name}: expected {int(in_class.sum())} {first['split']} images of class "
            f"{class_names[first['label']]!r}, got {found}; the first missing one is "
            f"{first['path']}"
        )


def _limit(member: str, size: int) -> None:
    if size > LIMIT:
        raise ValueError(f"{member}: expected at most {LIMIT} bytes, got {size}")


def _opener(name: str, content: bytes) -> Callable[[str], Image.Image]:
    """part -> image, of a file as in `manifest`."""
    if name.endswith("-ubyte.gz"):
        data = gzip.GzipFile(fileobj=io.BytesIO(content)).read(LIMIT)
        shape = np.frombuffer(data, ">i4", 3, offset=4)
        grey = np.frombuffer(data, np.uint8, offset=16).reshape(shape)
        return lambda part: Image.fromarray(grey[int(part)])
    if name.endswith(".zip"):
        archive = zipfile.ZipFile(io.BytesIO(content))

        def unpacked(part: str) -> Image.Image:
            _limit(part, archive.getinfo(part).file_size)
            return Image.open(archive.open(part))

        return unpacked
    image = Image.open(io.BytesIO(content))
    return lambda part: image.crop([int(x) for x in part.split(",")]) if part else image


def _encode(image: Image.Image, size: int, lossless: bool = False) -> bytes:
    """WebP; without loss, where wanted, if that takes at most 1.5 times the bytes."""
    small = pixels.square(image, size)
    lossy = io.BytesIO()
    small.save(lossy, "WEBP", quality=82)
    if lossless:
        exact = io.BytesIO()
        small.save(exact, "WEBP", lossless=True)
        if exact.tell() <= 1.5 * lossy.tell():
            return exact.getvalue()
    return lossy.getvalue()


def _write(
    folder: Path,
    class_names: list[str],
    meta: dict,
    parts: dict[str, tuple[int, Iterable[Row]]],
) -> None:
    """train.parquet, test.parquet and meta.json; parts: split -> number and rows of its
    images, of which ROWS at a time are taken into memory.
    """
    card = tasks.CARDS[folder.name]
    about = {
        "dataset": folder.name,
        "role": card["role"],
        "license": card["license"],
    }
    about["class_names"] = json.dumps(class_names)
    meta = {
        "name": folder.name,
        "repo": card["source"],
        "classes": len(class_names),
    } | meta
    meta |= {key: card[key] for key in ("role", "domain", "license", "citation")}
    folder.mkdir()
    for split, (number, rows) in parts.items():
        meta[split] = number
        rows = iter(tqdm(rows, f"{folder.name} {split}", number, unit=" images"))
        schema = COLUMNS.with_metadata(about | {"split": split})
        with pq.ParquetWriter(folder / f"{split}.parquet", schema) as file:
            while block := list(islice(rows, ROWS)):
                structs = [{"bytes": encoded, "path": path} for encoded, path, _ in block]
                labels = [label for *_, label in block]
                file.write_table(pa.table([structs, labels], schema=COLUMNS))
    meta["sha256"] = fingerprints.file_digests(folder)
    meta["conversion"] = store.CONVERSION.format(size=meta["size"])
    if card.get("lossless"):
        meta["conversion"] += ", or lossless where that takes at most 1.5 times the bytes"
    (folder / "meta.json").write_text(json.dumps(meta, ensure_ascii=False, indent=1), "utf-8")
