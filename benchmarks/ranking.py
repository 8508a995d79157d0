"""`mzlib rank` of a folder of 500 images x 10 classes against the 30 committed experts, and its
memory beside 50,000 images.

Usage: python benchmarks/ranking.py [CSV]; needs the committed zoo and a task under MZLIB_DATA. Each
measurement is a process of its own with an empty cache; seconds are after imports, cpu_seconds of
all threads; load: of the machine in the minute before it ended, other work on the same cores too.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
from PIL import Image

from mzlib.benchmark.data import load_task
from mzlib.dataset import few_shot
from mzlib.provenance import home, machine

TASK = "dtd10_textures"
ROUND = """
import json, os, resource, sys, time
import mzlib, mzlib.api
from mzlib.selectors import SELECTORS
start, cpu = time.perf_counter(), time.process_time()
selectors = list(SELECTORS) if sys.argv[2] == "all" else sys.argv[2].split(",")
mzlib.api.packaged = list  # not the networks of the package index, where they are installed
found = mzlib.rank(sys.argv[1], None, selectors, report="report.html", progress=False)
table = found.table
experts = int(table.dropna(subset="score")["expert"].nunique())
print(json.dumps({"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu,
                  "load": os.getloadavg()[0], "experts": experts,
                  "images": found.facts["images"], "scores": int(table["score"].notna().sum()),
                  "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))
"""


def folder(root: Path, copies: int) -> Path:
    """50 images a class as PNG files, each `copies` times."""
    task = load_task(TASK)
    for i in few_shot(task.train.labels, 50, 0):
        place = root / task.class_names[task.train.labels[i]]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(task.train.images[i]).save(place / f"{i}-0.png")
        for copy in range(1, copies):
            os.link(place / f"{i}-0.png", place / f"{i}-{copy}.png")
    return root


def measure(place: Path, selectors: str) -> dict:
    with tempfile.TemporaryDirectory() as empty:
        for name in ("suites", "zoo"):
            os.symlink(home().resolve() / name, Path(empty, name))
        done = subprocess.run(
            [sys.executable, "-c", ROUND, str(place), selectors],
            cwd=empty,
            check=True,
            text=True,
            capture_output=True,
            env=os.environ | {"MZLIB_HOME": empty, "MZLIB_CACHE": f"{empty}/cache"},
        )
    return json.loads(done.stdout.splitlines()[-1])


def main(path: str) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as root:
        few, many = folder(Path(root, "few"), 1), folder(Path(root, "many"), 100)
        for place, files, selectors, target in (
            (few, 500, "lfc,leep", "<= 15 s"),
            (few, 500, "all", "<= 45 s"),
            (many, 50_000, "lfc,leep", "<= 2 GB"),
        ):
            rows.append(
                {
                    "files": files,
                    "classes": 10,
                    "selectors": selectors,
                    **measure(place, selectors),
                    "target": target,
                }
            )
            print(rows[-1], flush=True)
            pd.DataFrame(rows).assign(**machine()).to_csv(path, index=False, float_format="%.4g")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "results/benchmarks/ranking.csv")
