"""Does `until_settled` find the top 3 of the full computation, at which share of its cost? A row a
task and selector.

Usage: python benchmarks/until_settled.py [CSV [TARGET …]]; with targets, only their rows are new.
Needs the committed zoo and the targets of `thumb64` under MZLIB_DATA. `cost` is the share of
forward passes that `mzlib.rank` states, with an empty cache; seconds are of one thread, in CPU
time; `same`: the same set of three. The rounds and the level of the rule were chosen with LFC on
the images of seed 0: seed 1 and LEEP had no part.
"""

import itertools
import os
import sys
import tempfile
import time

import pandas as pd
import torch

import mzlib
from mzlib import api
from mzlib.benchmark.suite import load_suite
from mzlib.provenance import machine
from mzlib.zoo.external import candidates


def main(path: str = "results/benchmarks/until_settled.csv", *targets: str) -> None:
    path = os.path.abspath(path)
    torch.set_num_threads(1)
    rows = []
    experts = [candidate.load() for candidate in candidates(api.DEFAULT_ZOO)]
    for target in targets or load_suite("thumb64").targets:
        task = mzlib.load_task(target, 64)
        for seed, selector in itertools.product((0, 1), ("lfc", "leep")):
            found = {}
            seconds = {}
            for k in (0, 3):
                with tempfile.TemporaryDirectory() as empty:  # of what is kept from run to run
                    os.environ |= {"MZLIB_HOME": empty, "MZLIB_CACHE": f"{empty}/cache"}
                    start = time.process_time()
                    found[k] = mzlib.rank(
                        task, experts, [selector], until_settled=k, seed=seed, progress=False
                    )
                    seconds[k] = time.process_time() - start
            top = {
                k: set(
                    ranking.table.sort_values(["images", "score"], ascending=False)["expert"].head(
                        3
                    )
                )
                for k, ranking in found.items()
            }
            rows.append(
                {
                    "task": target,
                    "selector": selector,
                    "seed": seed,
                    "experts": len(experts),
                    "images": found[3].facts["images"],
                    "same": top[0] == top[3],
                    "shared": len(top[0] & top[3]),
                    "cost": found[3].facts["cost"],
                    "cpu_seconds": seconds[3],
                    "full_cpu_seconds": seconds[0],
                }
            )
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    print(
        table.groupby(["selector", "seed"])[
            ["same", "shared", "cost", "cpu_seconds", "full_cpu_seconds"]
        ].mean()
    )
    table = table.assign(target="same >= 0.9 at cost <= 0.4, means over tasks", **machine())
    if targets:
        before = pd.read_csv(path)
        others = before[~before["task"].isin(targets)]
        table = pd.concat([others, table]).sort_values("task", kind="stable")
    table.to_csv(path, index=False, float_format="%.4g")


if __name__ == "__main__":
    main(*sys.argv[1:])
