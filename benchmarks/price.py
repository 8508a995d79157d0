"""The bill of `paper` on this machine, and the estimate for thumb64 against a slice of it that is run now.

Usage: python benchmarks/price.py; needs the tasks of thumb64 under MZLIB_DATA and its experts. The slice: both architectures trained
from scratch on the smallest source, 12 fine-tunes drawn from all of seed 0, all scores of one target at 20 shots. Estimate and run
are CPU time of one thread. Writes results/benchmarks/price_check.csv (a row a stage) and price_paper.txt (what --dry-run prints).
"""

import os
import random
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from mzlib.benchmark import load_suite
from mzlib.benchmark.jobs import Job
from mzlib.benchmark.price import counts, estimate, kind, measured, price
from mzlib.benchmark.stages import RUN
from mzlib.benchmark.suite import Suite
from mzlib.provenance import home, machine, results_folder


def part(suite: Suite) -> list[Job]:
    smallest = counts(suite).loc[list(suite.sources), "train"].idxmin()
    tunes = [job for job in suite.finetune_jobs(beside=False) if job.seed == 0]
    return [
        *(job for job in suite.zoo_jobs() if job.expert.endswith(f"-{smallest}-scratch")),
        *random.Random(0).sample(tunes, 12),
        *(
            job
            for job in suite.score_jobs()
            if (job.task, job.shots, job.seed) == ("rsscn7", "20", 0)
        ),
    ]


def check(name: str) -> pd.DataFrame:
    suite, cpu = load_suite(name), torch.device("cpu")
    tasks = counts(suite)
    networks = {kind(job, suite) for job in part(suite)}
    costs = {network: measured(*network, suite.image_size, cpu) for network in networks}
    estimates = {job.key: estimate(job, tasks, *costs[kind(job, suite)]) for job in part(suite)}
    rows, zoo = [], home() / "zoo" / name
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # the experts are there, but what is trained takes no one's place
        os.environ["MZLIB_HOME"], copy = folder, Path(folder, "zoo", name)
        copy.mkdir(parents=True)
        for file in zoo.resolve().iterdir():
            (copy / file.name).symlink_to(file)
        for job in part(suite):
            start = time.process_time()
            RUN[job.stage](suite, job, cpu, False)
            rows.append(
                (job.stage, 1, estimates[job.key] / 3600, (time.process_time() - start) / 3600)
            )
            print(job, *(f"{3600 * hours:.2f}" for hours in rows[-1][2:]), flush=True)
    del os.environ["MZLIB_HOME"]
    return (
        pd.DataFrame(rows, columns=["stage", "jobs", "estimated_hours", "real_hours"])
        .groupby("stage", sort=False)
        .sum()
        .reset_index()
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, table = results_folder("benchmarks"), check("thumb64")
    table.assign(target="within 25 %", **machine()).to_csv(
        folder / "price_check.csv", index=False, float_format="%.4g"
    )
    print(table, flush=True)
    bill = price("paper")
    (folder / "price_paper.txt").write_text(bill + "\n")
    print(bill)
