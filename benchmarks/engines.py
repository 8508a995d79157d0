"""Scoring throughput of the engines: the score jobs of `mini` on one target, in this process and on local workers.

Usage: python benchmarks/engines.py [CSV]; wants an idle machine. Experts are taken from the zoo folder and trained when they are not
there. A row an engine: wall seconds with its start, jobs a second, and the ratio to serial.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from mzlib.benchmark import load_suite, run_suite
from mzlib.provenance import home, machine

ENGINES = {"serial": {"engine": "serial"}, "local, 1 worker": {"workers": 1}, "local, 2 workers": {"workers": 2}}
ONLY = "/digits/"


def main(path: str) -> None:
    path, zoo, rows = os.path.abspath(path), home().resolve() / "zoo", []
    run_suite("mini", stages=["zoo"], weights=True)
    jobs = [job for job in load_suite("mini").score_jobs() if ONLY in str(job)]
    for name, options in ENGINES.items():
        with tempfile.TemporaryDirectory() as folder:  # nothing is done there yet
            os.environ["MZLIB_HOME"] = folder
            (Path(folder) / "zoo").symlink_to(zoo)
            start = time.perf_counter()
            assert run_suite("mini", stages=["score"], only=ONLY, progress=False, **options) == 0
            rows.append({"engine": name, "jobs": len(jobs), "seconds": time.perf_counter() - start})
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows).assign(per_second=lambda t: t["jobs"] / t["seconds"], speedup=lambda t: t["seconds"].iloc[0] / t["seconds"])
    print(table)
    table.assign(target="two workers >= 1.7 times serial on two idle cores", **machine()).to_csv(path, index=False, float_format="%.4g")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "results/benchmarks/engines.csv")
