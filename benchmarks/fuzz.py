"""What becomes of damaged inputs: one line for people to read, never a traceback.

Usage: python benchmarks/fuzz.py [NUMBER [CSV [SEED]]] (default: 3,000 inputs). Of them 19 in 20 are
images, mutated bytes that are decoded as `mzlib rank` decodes them; the others go through the
command line's own entry: text tables, Parquet files (odd types, odd metadata, mutated bytes), cards
and weights of experts, suites. A row a kind: inputs, answers (exit code 0, or an image), refusals
(one line, exit code 1, or an image that cannot be read), tracebacks, seconds.
"""

import io
import json
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mzlib.cli import main
from mzlib.images import READ, STRETCHED, in_threads, input_config, transform_of
from mzlib.provenance import machine

SHARES = {"images": 0.95, "text tables": 0.03, "parquet": 0.015, "experts": 0.004, "suites": 0.001}
ROOT = Path(__file__).parents[1]
EXPERT = ROOT / "zoo" / "thumb64" / "resnet-grocery-scratch"
TOKENS = (
    b"\0,;,\t,\n,\r\n,\",',path,label,split,TRAIN,test,val,nan,null,None,-1,1e999,[,{,}],\xff\xfe,"
    b"\xef\xbb\xbf,a.png,../,/dev/zero,0,1,true,\x1b[31m,\xed\xa0\x80,\xf0\x9f\x90\x88,3.7"
).split(b",")
OBJECTS = [None, True, -1, 0, 2**70, 1.5, float("nan"), "", "x", "\0", [], [3, 8, 8], {}, {"a": 1}]


def picture(rng: np.random.Generator, mode: str = "RGB", size: int = 20) -> Image.Image:
    """Noise in that mode."""
    x = rng.integers(0, 256, (size, size, 3), np.uint8)
    if mode == "I;16":
        return Image.fromarray(x[..., 0].astype(np.uint16) * 16)
    return Image.fromarray(x).convert(mode)


def image_files(rng: np.random.Generator) -> list[bytes]:
    """A small file of every format and mode that is common."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x0128] = 2
    kinds = [("JPEG", "RGB", {"exif": exif}), ("JPEG", "CMYK", {}), ("JPEG", "L", {})]
    kinds += [("JPEG", "RGB", {"progressive": True}), ("PNG", "RGBA", {"exif": exif})]
    kinds += [("PNG", mode, {}) for mode in ("P", "1", "I;16", "LA")]
    kinds += [("GIF", "P", {}), ("WEBP", "RGBA", {"exif": exif}), ("BMP", "RGB", {})]
    kinds += [("TIFF", "RGB", {"exif": exif}), ("TIFF", "RGB", {"compression": "tiff_lzw"})]
    kinds += [("PPM", "RGB", {}), ("TGA", "RGB", {}), ("PCX", "RGB", {}), ("ICO", "RGBA", {})]
    kinds += [("AVIF", "RGB", {}), ("JPEG2000", "RGB", {})]
    files = []
    for kind, mode, options in kinds:
        buffer = io.BytesIO()
        picture(rng, mode).save(buffer, kind, **options)
        files.append(buffer.getvalue())
    return files


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """One to four changes: a byte, a bit, a number, a token, a part cut out, doubled or moved."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        a, b = sorted(rng.integers(0, len(content) + 1, 2).tolist())
        change = rng.integers(7)
        if change == 0 and content:
            content[min(a, len(content) - 1)] = rng.integers(256)
        elif change == 1 and content:
            content[min(a, len(content) - 1)] ^= 1 << int(rng.integers(8))
        elif change == 2:
            content[a : a + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"])
        elif change == 3:
            content[a:a] = TOKENS[rng.integers(len(TOKENS))]
        elif change == 4:
            del content[a : min(b, a + 40)]
        elif change == 5:
            content[a:a] = content[a : min(b, a + 40)]
        elif rng.integers(4) == 0:
            del content[a:]
    return bytes(content)


def chosen(among: list, rng: np.random.Generator) -> object:
    """One of them, half of the time the first, which is what is expected."""
    return among[0 if rng.random() < 0.5 else rng.integers(len(among))]


def odd(value: object, rng: np.random.Generator, depth: int = 0) -> object:
    """JSON or TOML data with some values replaced or left out."""
    if depth and rng.random() < 0.02:
        return OBJECTS[rng.integers(len(OBJECTS))]
    if isinstance(value, dict):
        kept = {key: odd(v, rng, depth + 1) for key, v in value.items() if rng.random() > 0.01}
        return kept | ({"unheard": 1} if rng.random() < 0.02 else {})
    return [odd(v, rng, depth + 1) for v in value] if isinstance(value, list) else value


class Fuzz:
    """Counts of what inputs of every kind came to, in a home folder of their own."""

    def __init__(self, folder: Path, seed: int):
        self.folder = folder
        self.rng = np.random.default_rng(seed)
        self.counts = {kind: Counter() for kind in SHARES}
        self.tracebacks: list[str] = []
        self.images = image_files(self.rng)
        (folder / "suites").mkdir()
        (folder / "zoo").mkdir()
        for i in range(12):
            (folder / "pictures" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            picture(self.rng).save(folder / "pictures" / "ab"[i % 2] / f"{i}.png")
        self.card = json.loads(EXPERT.with_suffix(".json").read_text())
        self.weights = EXPERT.with_suffix(".safetensors").read_bytes()
        (folder / "zoo" / "e.json").write_text(json.dumps(self.card))
        (folder / "zoo" / "e.safetensors").write_bytes(self.weights)

    def command(self, kind: str, *argv: str) -> None:
        """Run `mzlib <argv>` and count what it came to."""
        out, err = io.StringIO(), io.StringIO()
        try:
            with redirect_stdout(out), redirect_stderr(err):
                code = main(list(argv))
            self.counts[kind]["answers" if code == 0 else "refusals"] += 1
        except BaseException:
            self.counts[kind]["tracebacks"] += 1
            self.tracebacks.append(f"{kind}: {' '.join(argv)}\n{traceback.format_exc()}")

    def rank(self, kind: str, images: Path, zoo: Path) -> None:
        """`mzlib rank` of one image a class."""
        options = ("--images-per-class", "2", "--selectors", "lfc", "--quiet")
        self.command(kind, "rank", str(images), "--zoo", str(zoo), *options)

    def of_images(self, number: int) -> None:
        """Mutated image files, through the very decoding of a ranking."""
        transform = transform_of(input_config({"image_size": 16}))
        for start in range(0, number, 1000):
            seeds = self.rng.integers(len(self.images), size=min(1000, number - start))
            contents = [mutated(self.images[i], self.rng) for i in seeds]
            try:
                for _, what in in_threads(contents, transform, 48):
                    readable = what in (READ, STRETCHED)
                    self.counts["images"]["answers" if readable else "refusals"] += 1
            except Exception:
                self.counts["images"]["tracebacks"] += 1
                self.tracebacks.append(f"images\n{traceback.format_exc()}")

    def of_text_tables(self, number: int) -> None:
        """Mutated .csv, .tsv and .jsonl files of a few layouts."""
        files = [f"pictures/{'ab'[i % 2]}/{i}.png" for i in range(12)]
        labels = [["cat", "dog"][i % 2] for i in range(12)]
        plain = list(zip(files, labels))
        with_split = [(f, c, ["train", "TEST"][i > 9]) for i, (f, c) in enumerate(plain)]
        one_hot = [(f, int(c == "cat"), int(c == "dog")) for f, c in plain]
        tables = [("path,label", plain), ("File,Class,Split", with_split), ("img,cat,dog", one_hot)]
        texts = {"csv": [], "tsv": [], "jsonl": []}
        for header, rows in tables:
            for suffix, separator in (("csv", ","), ("csv", ";"), ("tsv", "\t")):
                lines = [
                    header.replace(",", separator),
                    *(separator.join(map(str, r)) for r in rows),
                ]
                texts[suffix].append("\n".join(lines).encode())
            keys = header.split(",")
            lines = [json.dumps(dict(zip(keys, row))) for row in rows]
            texts["jsonl"].append("\n".join(lines).encode())
        texts["csv"].append(texts["csv"][0].decode().encode("utf-16"))
        for _ in range(number):
            suffix = ("csv", "csv", "tsv", "jsonl")[self.rng.integers(4)]
            seeds = texts[suffix]
            path = self.folder / f"t.{suffix}"
            path.write_bytes(mutated(seeds[self.rng.integers(len(seeds))], self.rng))
            self.rank("text tables", path, self.folder / "zoo")

    def of_parquet(self, number: int) -> None:
        """Tables of odd types and metadata, half of them with mutated bytes."""
        files = [self.images[i] for i in (0, 1, 2, 4, 5, 9, 11, 12)]
        images = [files, [{"bytes": file, "path": "x"} for file in files], [{"path": "x.png"}] * 8]
        images += [["pictures/a/0.png"] * 8, [[1, 2]] * 8, [[[1.5]]] * 8, [3] * 8, [None] * 8]
        images += [[{"height": 1}] * 8, [True] * 8, pa.array(["a.png"] * 8).dictionary_encode()]
        images += [[files[0], None, b"", b"x"] * 2, [{"bytes": None, "path": None}] * 8]
        labels = [[0, 1] * 4, ["a", "b"] * 4, [0.0, 1.5] * 4, [None] * 8, [[0], [1]] * 4]
        labels += [[[], [1, 2]] * 4, [b"a", b"b"] * 4, [True, False] * 4, [{"a": 1}] * 8]
        labels += [[0, None] * 4, [-1, 5] * 4, pd.to_datetime(["2020", "2021"] * 4)]
        labels += [pa.array(["a", "b"] * 4).dictionary_encode(), [float("nan"), 1.0] * 4]
        names = {"info": {"features": {"label": {"names": ["cat", "dog"]}}}}
        metadata = [None, json.dumps(names), "{", "null", '{"info": null}', "[" * 4000]
        for _ in range(number):
            columns = {
                chosen(["image", "img", "path", "Image"], self.rng): images,
                chosen(["label", "labels", "CLASS", "x"], self.rng): labels,
            }
            if self.rng.random() < 0.2:
                columns["split"] = [["train", "test"] * 4, ["a"] * 8, [None] * 8, [3] * 8]
            table = pa.table({key: chosen(kinds, self.rng) for key, kinds in columns.items()})
            about = chosen(metadata, self.rng)
            if about is not None:
                key = ["huggingface", "class_names"][self.rng.integers(2)]
                table = table.replace_schema_metadata({key: about})
            path = self.folder / "t.parquet"
            pq.write_table(table, path)
            if self.rng.random() < 0.5:
                path.write_bytes(mutated(path.read_bytes(), self.rng))
            self.rank("parquet", path, self.folder / "zoo")

    def of_experts(self, number: int) -> None:
        """Cards with odd values or bytes, weights with mutated headers."""
        zoo = self.folder / "odd"
        zoo.mkdir()
        for _ in range(number):
            card, weights = json.dumps(odd(self.card, self.rng)).encode(), self.weights
            if self.rng.random() < 0.3:
                card = mutated(card, self.rng)
            if self.rng.random() < 0.3:
                weights = mutated(weights[:4000], self.rng) + weights[4000:]
            (zoo / "e.json").write_bytes(card)
            (zoo / "e.safetensors").write_bytes(weights)
            self.rank("experts", self.folder / "pictures", zoo)

    def of_suites(self, number: int) -> None:
        """Mutated bytes of suites."""
        suites = [path.read_bytes() for path in sorted((ROOT / "suites").glob("*.toml"))]
        for i in range(number):  # each under a name of its own: suites are kept by name
            content = mutated(suites[self.rng.integers(len(suites))], self.rng)
            (self.folder / "suites" / f"odd{i}.toml").write_bytes(content)
            self.command("suites", "status", f"odd{i}")
            (self.folder / "suites" / f"odd{i}.toml").unlink()


def fuzz(number: int, seed: int = 0) -> tuple[pd.DataFrame, list[str]]:
    """What `number` inputs came to, a row a kind, and the tracebacks."""
    rows = []
    before = {key: os.environ.get(key) for key in ("MZLIB_HOME", "MZLIB_CACHE", "MZLIB_DEBUG")}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.environ |= {"MZLIB_HOME": folder, "MZLIB_CACHE": f"{folder}/cache"}
        os.environ["MZLIB_DEBUG"] = "1"  # which shows what has no line
        try:
            state = Fuzz(Path(folder), seed)
            for kind, share in SHARES.items():
                start = time.perf_counter()
                getattr(state, f"of_{kind.replace(' ', '_')}")(max(1, round(share * number)))
                counts = {
                    key: state.counts[kind][key] for key in ("answers", "refusals", "tracebacks")
                }
                seconds = round(time.perf_counter() - start, 1)
                rows.append(
                    {"kind": kind, "inputs": sum(counts.values()), **counts, "seconds": seconds}
                )
        finally:
            for key, value in before.items():
                os.environ.pop(key, None)
                os.environ |= {} if value is None else {key: value}
    return pd.DataFrame(rows).assign(seed=seed, **machine()), state.tracebacks


if __name__ == "__main__":
    arguments = [*sys.argv[1:], *["3000", "", "0"][len(sys.argv) - 1 :]]
    table, found = fuzz(int(arguments[0]), int(arguments[2]))
    print(*found[:20], sep="\n")
    print(table.to_string(index=False))
    if arguments[1]:
        table.to_csv(arguments[1], index=False)
    sys.exit(bool(found))
