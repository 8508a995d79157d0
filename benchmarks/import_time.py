"""What importing the library costs beside torch alone, in one run.

    OMP_NUM_THREADS=1 python benchmarks/import_time.py [results/benchmarks/import_time.csv]

CPU seconds of `python -c ...` in a process of its own, medians of alternating repeats after one of
each; ratio = over `import torch`.
"""

import os
import subprocess
import sys
from statistics import median

import pandas as pd
from selector_speed import machine

REPEATS = 5
TARGET = {"from mzlib.selectors import lfc": "<= 1.3"}
STATEMENTS = ("import torch", "import mzlib", *TARGET)


def seconds(statement: str) -> float:
    """CPU seconds of a new interpreter."""
    before = os.times()
    subprocess.run([sys.executable, "-c", statement], check=True)
    after = os.times()
    user = after.children_user - before.children_user
    return user + after.children_system - before.children_system


def main(path: str) -> None:
    runs = [{statement: seconds(statement) for statement in STATEMENTS} for _ in range(REPEATS + 1)]
    found = {statement: median(run[statement] for run in runs[1:]) for statement in STATEMENTS}
    rows = [
        {
            "statement": statement,
            "seconds": value,
            "ratio": value / found["import torch"],
            "target": TARGET.get(statement, ""),
        }
        for statement, value in found.items()
    ]
    table = pd.DataFrame(rows).assign(**machine())
    print(table.to_string())
    table.to_csv(path, index=False, float_format="%.4g")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "results/benchmarks/import_time.csv")
