"""Test images that look like a training image: within every task on this machine, and of the targets
of thumb64 among the images that its experts were trained on.

MZLIB_DATA=... python benchmarks/near_duplicates.py    (10 minutes on one core)

Writes near_duplicates.csv and near_duplicates_of_sources.csv to results/benchmarks.
"""

import pandas as pd

from mzlib.benchmark import load_suite
from mzlib.benchmark.data import duplicates, list_tasks, load_task
from mzlib.provenance import home


def within_tasks() -> pd.DataFrame:
    """A row a task."""
    tasks = list_tasks()
    here = tasks[tasks["available"]].sort_values(["origin", "name"])
    return pd.DataFrame([duplicates.summary(name) for name in here["name"]])


def of_sources(name: str) -> pd.DataFrame:
    """A row a source: its training images, the targets and test images compared with them, how many
    of these images have a near-duplicate there.
    """
    suite = load_suite(name)
    rows = []
    tests = {target: duplicates.Looks(load_task(target).test.images) for target in suite.targets}
    for source in suite.sources:
        trained = duplicates.Looks(load_task(source).train.images)
        others = [looks for target, looks in tests.items() if target != source]
        rows.append(
            {
                "source": source,
                "train": len(trained.hashes),
                "targets": len(others),
                "test": sum(len(looks.hashes) for looks in others),
                "near_duplicates": sum(len(duplicates.similar(looks, trained)) for looks in others),
            }
        )
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    folder = home() / "results/benchmarks"
    of_sources("thumb64").to_csv(folder / "near_duplicates_of_sources.csv", index=False)
    within_tasks().to_csv(folder / "near_duplicates.csv", index=False)
