"""Does `until_settled` find the top 3 of the full computation, at which share of its cost? A row a task and selector.

Usage: python benchmarks/until_settled.py [CSV]; needs the committed zoo and the targets of `thumb64` under MZLIB_DATA. The share
of forward passes and the seconds are those of `mzlib.rank` itself, with an empty cache; `same`: the same set of three.
"""

import os
import sys
import tempfile

import pandas as pd
import torch

import mzlib
from mzlib import ranking
from mzlib.benchmark.suite import load_suite
from mzlib.provenance import machine
from mzlib.zoo.external import candidates


def main(path: str) -> None:
    path = os.path.abspath(path)
    torch.set_num_threads(1)
    rows, experts = [], [candidate.load() for candidate in candidates(ranking.DEFAULT_ZOO)]
    for target in load_suite("thumb64").targets:
        task = mzlib.load_task(target, 64)
        for selector in ("lfc", "leep"):
            tables = {}
            for k in (0, 3):
                with tempfile.TemporaryDirectory() as empty:  # nothing is kept from one to the other
                    os.environ["MZLIB_HOME"] = empty
                    tables[k] = mzlib.rank(task, experts, [selector], until_settled=k, progress=False)
            top = {k: set(table.sort_values(["images", "score"], ascending=False)["expert"].head(3)) for k, table in tables.items()}
            rows.append({"task": target, "selector": selector, "experts": len(experts), "images": tables[3].attrs["images"],
                         "same": top[0] == top[3], "shared": len(top[0] & top[3]), "cost": tables[3].attrs["cost"],
                         "seconds": tables[3].attrs["seconds"], "full_seconds": tables[0].attrs["seconds"]})
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    print(table.groupby("selector")[["same", "shared", "cost", "seconds", "full_seconds"]].mean())
    table.assign(target="same >= 0.9 at cost <= 0.4, means over tasks", **machine()).to_csv(path, index=False, float_format="%.4g")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "results/benchmarks/until_settled.csv")
