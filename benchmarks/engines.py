"""Throughput of the engines: the score jobs (all starting points) and the 20-shot fine-tunes (single-domain experts) of `mini` on one
target, in this process, on local workers and on Ray.

Usage: python benchmarks/engines.py [CSV]; wants an idle machine. Experts are taken from the zoo folder and trained when they are not
there. A row a stage and engine: wall seconds with its start, jobs a second, the ratio to serial, and whether the table is the serial
one's, cell by cell but for seconds. A slot is one worker with one thread; more slots than cores show what sharing one device brings.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from mzlib.benchmark import load_suite, run_suite
from mzlib.provenance import home, machine

ENGINES = {
    "serial": {"engine": "serial"},
    "local": {"workers": 1},
    "local, 2 slots": {"workers": 2},
    "local, 4 slots": {"workers": 4},
    "ray, 2 slots": {"engine": "ray", "workers": 2},
}
ONLY = {"score": "/digits/", "finetune": "/digits/20/"}


def main(path: str) -> None:
    path, zoo, suite, rows = os.path.abspath(path), home().resolve() / "zoo", load_suite("mini"), []
    run_suite("mini", stages=["zoo"], weights=True)
    for stage, only in ONLY.items():
        serial = None
        jobs = sum(only in str(job) for job in suite.jobs(stage))
        for name, options in ENGINES.items():
            with tempfile.TemporaryDirectory() as folder:  # nothing is done there yet
                os.environ["MZLIB_HOME"] = folder
                (Path(folder) / "zoo").symlink_to(zoo)
                start = time.perf_counter()
                assert run_suite("mini", stages=[stage], only=only, progress=False, **options) == 0
                spent, result = (
                    time.perf_counter() - start,
                    next(Path(folder, "results/mini").glob(f"{stage}.csv*")),
                )
                result = pd.read_csv(result, dtype=str).drop(columns=["seconds", "hardware"])
                serial = result if serial is None else serial
                rows.append(
                    {
                        "stage": stage,
                        "engine": name,
                        "jobs": jobs,
                        "seconds": spent,
                        "same": result.equals(serial),
                    }
                )
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    table["per_second"] = table["jobs"] / table["seconds"]
    table["speedup"] = table.groupby("stage")["seconds"].transform("first") / table["seconds"]
    table.assign(cores=os.cpu_count(), **machine()).to_csv(path, index=False, float_format="%.4g")
    print(table)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "results/benchmarks/engines.csv")
