"""Test images that look like a training image, in every task on this machine: results/benchmarks/near_duplicates.csv.

MZLIB_DATA=... python benchmarks/near_duplicates.py    (3 minutes on one core)
"""

from pathlib import Path

import pandas as pd

from mzlib.benchmark.data import duplicates, list_tasks

if __name__ == "__main__":
    tasks = list_tasks()
    here = tasks[tasks["available"]].sort_values(["origin", "name"])
    table = pd.DataFrame([duplicates.summary(name) for name in here["name"]])
    path = Path(__file__).parents[1] / "results/benchmarks/near_duplicates.csv"
    table.to_csv(path, index=False)
