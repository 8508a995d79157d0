"""Data sets from their public origin, converted once into the Parquet cache: torchvision
(`cards.toml` says how) or a
GitHub repository at a commit (`manifest` says which of its files, so that the images are those of
the frozen sets).
"""

import gzip
import io
import json
import re
import shutil
import tarfile
import urllib.request
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from PIL import Image
from tqdm.auto import tqdm

from mzlib import pixels
from mzlib.benchmark import data as tasks
from mzlib.benchmark.data import manifest, store
from mzlib.dataset import stratified_split
from mzlib.errors import MzlibError

GITHUB = "https://github.com"
LIMIT = (
    2**28
)  # bytes of a file in an archive, and of what is packed in it: far above all recorded ones
ROWS = 1000  # images in a row group
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
COLUMNS = pa.schema([("image", IMAGE), ("label", pa.int64())])


def get_task(name: str, size: int = 64, root: str | Path | None = None) -> Path:
    """`get_together` for one data set."""
    return get_together([name], size, root)[0]


def get_together(names: list[str], size: int = 64, root: str | Path | None = None) -> list[Path]:
    """Folders of data sets of one origin (their cards' `source`) in `root` (default: the cache),
    downloaded in one go
    and converted unless they are there in that size.

    Works in `root/.NAME.partial` and renames at the end: a task is in the cache completely or not
    at all, and what a
    killed run left behind is removed by the next one. torchvision needs the disk space of the
    original archive and its
    contents; a repository's archive is read as it comes and never written to disk.

    Raises:
        MzlibError: nothing to download for a name, no network, damaged or incomplete download,
        other counts per class
            than recorded, `root` cannot be written.
    """
    root = Path(root).expanduser().absolute() if root else store.root()
    missing = [name for name in names if not _done(root / name, size)]
    if not missing:
        return [root / name for name in names]
    for name in missing:
        if tasks.CARDS.get(name, {}).get("origin") not in tasks.DOWNLOADS:
            raise MzlibError(f"no download for this task: {tasks.not_found(name, root)}")
    card = tasks.CARDS[missing[0]]
    work = (
        missing[0]
        if "torchvision" in card
        else re.sub(r"\W+", "-", card["source"].removeprefix("https://"))
    )
    partial = root / f".{work}.partial"
    try:
        root.mkdir(parents=True, exist_ok=True)
        # a second process waits here, then finds the tasks done
        held = FileLock(root / f".{work}.lock").acquire()
    except OSError as error:
        raise MzlibError(
            f"{root}: expected a folder one can write to, got {error}; set MZLIB_DATA to one"
        ) from error
    with held:
        missing = [name for name in missing if not _done(root / name, size)]
        try:
            shutil.rmtree(partial, ignore_errors=True)
            if missing:
                (partial / "raw").mkdir(parents=True)
                (_torchvision if "torchvision" in card else _github)(missing, size, partial)
            for name in missing:
                if (root / name).exists():
                    (root / name).rename(partial / f"old {name}")
                (partial / name).rename(root / name)
        except (
            Exception
        ) as error:  # of urllib, torchvision, tarfile, zipfile, scipy, Pillow or the file system
            advice = (
                f"nothing was kept; check network and disk, then run `mzlib data get "
                f"{' '.join(missing)}` again"
            )
            what = f"{', '.join(missing)}: expected to download {card['source']}"
            raise MzlibError(f"{what}, got {error!r}; {advice}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    tasks._load.cache_clear()
    return [root / name for name in names]


def _done(folder: Path, size: int) -> bool:
    return (
        store.exists(folder) and store.meta(folder).get("size", 64) >= size
    )  # the project's frozen sets: 64 px


def _torchvision(names: list[str], size: int, partial: Path) -> None:
    import torchvision  # slow to import, and only needed here

    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)  # no path or link out
    (name,), raw = names, partial / "raw"
    card = tasks.CARDS[name]
    make = getattr(torchvision.datasets, card["torchvision"])
    parts = {
        s: [make(raw, download=True, **keywords) for keywords in card[f"{s}_parts"]]
        for s in store.SPLITS
    }
    rows = {
        split: [(part, i) for part in parts[split] for i in range(len(part))]
        for split in store.SPLITS
    }
    how = "official (train and validation parts joined)"
    if not rows["test"]:
        chosen, how = (
            stratified_split(np.array(parts["train"][0].targets)),
            "80/20 within classes, seed 0",
        )
        rows = {
            split: [rows["train"][i] for i in part] for split, part in zip(store.SPLITS, chosen)
        }

    def read(split):
        for at, (part, i) in enumerate(rows[split]):
            image, label = part[i]
            yield _encode(image, size), f"{split}/{at:06d}.webp", int(label)

    class_names = card.get("class_names") or list(parts["train"][0].classes)
    meta = {"size": size, "split": how, "commit": f"torchvision {torchvision.__version__}"}
    _write(
        partial / name,
        class_names,
        meta,
        {split: (len(rows[split]), read(split)) for split in store.SPLITS},
    )


def _github(names: list[str], size: int, partial: Path) -> None:
    """One pass over the archive of the repository that `names` share; of its members only the
    recorded regular files
    are read, by exact name and into memory, so that no name or link in it can lead out of a folder.
    """
    repo, commit = re.fullmatch(
        r"https://github.com/(\S+) at commit (\w+)", tasks.CARDS[names[0]]["source"]
    ).groups()
    records = {name: manifest.rows(name) for name in names}
    images, wanted = {}, defaultdict(list)  # wanted: file -> (name, split, row, part)
    for name, splits in records.items():
        for split, (paths, labels) in splits.items():
            images[name, split] = [None] * len(paths)
            for row, path in enumerate(paths):
                file, _, part = path.partition("#")
                wanted[file].append((name, split, row, part))
    with urllib.request.urlopen(f"{GITHUB}/{repo}/archive/{commit}.tar.gz", timeout=60) as answer:
        length = int(answer.headers.get("Content-Length", 0)) or None  # GitHub does not say
        stream = tqdm.wrapattr(answer, "read", total=length, desc=repo)
        with stream as file, tarfile.open(fileobj=file, mode="r|gz") as archive:
            for member in archive:
                rows = wanted.pop(member.name.partition("/")[2], ()) if member.isfile() else ()
                if rows:
                    _limit(member.name, member.size)
                    content = archive.extractfile(member).read()
                    try:
                        get = _opener(member.name, content)
                        for name, split, row, part in rows:
                            images[name, split][row] = _encode(
                                get(part), size, "lossless" in tasks.CARDS[name]
                            )
                    except Exception as error:  # of Pillow, zipfile, gzip or numpy
                        raise ValueError(
                            f"{member.name}: expected an image, got {error!r}"
                        ) from error
                if not wanted:
                    break
    for name, splits in records.items():
        class_names = manifest.about(name)["class_names"]
        for split, (paths, labels) in splits.items():
            found = np.array([image is not None for image in images[name, split]])
            if not found.all():
                row = int(np.argmin(found))
                ours = labels == labels[row]
                raise ValueError(
                    f"{name}: expected {sum(ours)} {split} images of class "
                    f"{class_names[labels[row]]!r}, "
                    f"got {sum(ours & found)}; the first missing one is {paths[row]}"
                )
        meta = {
            "size": size,
            "split": "as recorded (mzlib/benchmark/data/manifest.parquet)",
            "commit": commit,
        }
        parts = {
            s: (len(paths), zip(images[name, s], paths, labels.tolist()))
            for s, (paths, labels) in splits.items()
        }
        _write(partial / name, class_names, meta, parts)


def _limit(member: str, size: int) -> None:
    if size > LIMIT:
        raise ValueError(f"{member}: expected at most {LIMIT} bytes, got {size}")


def _opener(path: str, content: bytes) -> Callable[[str], Image.Image]:
    """part -> image, of a file as in `manifest`."""
    if path.endswith("-ubyte.gz"):
        data = gzip.GzipFile(fileobj=io.BytesIO(content)).read(LIMIT)
        pixels = np.frombuffer(data, np.uint8, offset=16).reshape(
            np.frombuffer(data, ">i4", 3, offset=4)
        )
        return lambda part: Image.fromarray(pixels[int(part)])
    if path.endswith(".zip"):
        archive = zipfile.ZipFile(io.BytesIO(content))
        return lambda part: (
            _limit(part, archive.getinfo(part).file_size) or Image.open(archive.open(part))
        )
    image = Image.open(io.BytesIO(content))
    return lambda part: image.crop([int(x) for x in part.split(",")]) if part else image


def _encode(image: Image.Image, size: int, lossless: bool = False) -> bytes:
    small = pixels.square(image, size)
    small.save(lossy := io.BytesIO(), "WEBP", quality=82)
    if lossless:
        small.save(exact := io.BytesIO(), "WEBP", lossless=True)
    return (exact if lossless and exact.tell() <= 1.5 * lossy.tell() else lossy).getvalue()


def _write(
    folder: Path, class_names: list[str], meta: dict, parts: dict[str, tuple[int, Iterable]]
) -> None:
    """train.parquet, test.parquet, meta.json and README.md; parts: split -> number and (encoded
    image, path, label) of
    its images, of which ROWS at a time are taken into memory.
    """
    name, card = folder.name, tasks.CARDS[folder.name]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": class_names}}
    about = {"dataset": name, "role": card["role"], "license": card["license"]}
    about |= {"class_names": json.dumps(class_names),
             "huggingface": json.dumps({"info": {"features": features}})}  # fmt: skip
    folder.mkdir()
    for split, (number, images) in parts.items():
        images = iter(tqdm(images, f"{name} {split}", number, unit=" images"))
        with pq.ParquetWriter(
            folder / f"{split}.parquet", COLUMNS.with_metadata(about | {"split": split})
        ) as file:
            while rows := list(islice(images, ROWS)):
                structs = [{"bytes": encoded, "path": path} for encoded, path, _ in rows]
                file.write_table(pa.table([structs, [label for *_, label in rows]], schema=COLUMNS))
    meta = {"name": name, "repo": card["source"], "classes": len(class_names)} | meta
    meta |= {key: card[key] for key in ("role", "domain", "license", "citation")}
    meta |= {split: number for split, (number, _) in parts.items()}
    (folder / "meta.json").write_text(json.dumps(meta, ensure_ascii=False), "utf-8")
    conversion = store.CONVERSION.format(size=meta["size"])
    conversion += (
        ", or lossless where that takes at most 1.5 times the bytes" if card.get("lossless") else ""
    )
    lines = [f"- {key}: {value}" for key, value in (meta | {"conversion": conversion}).items()]
    (folder / "README.md").write_text("\n".join([f"# {name}", "", *lines, ""]), "utf-8")
