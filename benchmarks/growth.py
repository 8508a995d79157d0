"""How scoring time grows, measured one axis at a time, and a simulated zoo of 10,000 models x 100 tasks on many workers.

Usage: python benchmarks/growth.py; writes results/benchmarks/growth.csv (axis, value, what, seconds: CPU seconds of one thread,
median of 3) and growth_simulation.csv (kept, workers, hours, share: of all forward passes). The simulation takes its job times
from results/thumb64: seconds of a forward pass with LFC and of a fine-tune, as a matrix of experts x tasks that is repeated at
random. Nothing says yet which share of 10,000 models a round drops, so that share (`kept`: of the models, after every round of
mzlib.ranking.ROUNDS images a class) is a parameter; three models a task stay and are fine-tuned.
"""

import numpy as np
import pandas as pd
import torch

from mzlib.benchmark import load_results, load_suite
from mzlib.benchmark.price import seconds, wall_clock
from mzlib.provenance import home, machine, results_folder
from mzlib.ranking import ROUNDS
from mzlib.selectors import SELECTORS
from mzlib.training import predict
from mzlib.zoo import features, load_expert
from mzlib.zoo.architectures import create

CPU = torch.device("cpu")
MODELS, TASKS, TOP, FULL = 10_000, 100, 3, 25
BASE = {"experts": 1, "images": 512, "features": 192, "classes": 10, "image size": 64}
AXES = {
    "experts": (1, 2, 4, 8),
    "images": (128, 256, 512, 1024, 2048),
    "features": (64, 192, 512, 1024, 2048),
    "classes": (2, 10, 50, 200),
    "image size": (32, 64, 96, 128),
}
WORKERS = (1, 10, 100, 1000)
KEPT = (1.0, 0.75, 0.5)


def growth() -> list[dict]:
    rng, rows, model = np.random.default_rng(0), [], create("mzlib_resnet", 50, 64).eval()
    for axis, values in AXES.items():
        for value in values:
            at = BASE | {axis: value}
            n, labels = at["images"], torch.arange(at["images"]) % at["classes"]
            f = torch.tensor(rng.standard_normal((n, at["features"])), dtype=torch.float32).relu()
            p = torch.tensor(rng.dirichlet(np.ones(50), n), dtype=torch.float32)
            given = {"features": f, "source_probabilities": p, "labels": labels}
            runs = {
                s.title: lambda s=s: [
                    s.function(**{k: given[v] for k, v in s.needs.items()})
                    for _ in range(at["experts"])
                ]
                for s in map(SELECTORS.get, ("lfc", "leep", "logme"))
            }
            if axis in ("experts", "images", "image size"):
                pixels = rng.integers(0, 256, (n, at["image size"], at["image size"], 3), np.uint8)
                runs["forward pass"] = lambda: [
                    predict(lambda x: features(model, x), pixels, CPU) for _ in range(at["experts"])
                ]
            for what, run in runs.items():
                rows.append(
                    {"axis": axis, "value": value, "what": what, "seconds": seconds(run, CPU)}
                )
    return rows


def simulation() -> list[dict]:
    suite, results, rng = load_suite("thumb64"), load_results("thumb64"), np.random.default_rng(0)
    scores = results.scores.query(
        "selector == 'lfc' and shots == '20' and images_per_class == '25'"
    )
    passes = scores.pivot_table(index="expert", columns="task", values="seconds")
    tunes = results.finetune.query("shots == '20'").pivot_table(
        index="expert", columns="task", values="seconds"
    )
    experts = [
        name for name in suite.starting_points() if name in passes.index and name in tunes.index
    ]
    who, which = rng.integers(len(experts), size=MODELS), rng.integers(passes.shape[1], size=TASKS)
    one, tune = (t.loc[experts, passes.columns].to_numpy()[who][:, which] for t in (passes, tunes))
    load = seconds(lambda: load_expert(suite.reference, home() / "zoo/thumb64"), CPU)
    order, rows = np.argsort(rng.random((MODELS, TASKS)), axis=0).argsort(axis=0), []
    seen = np.array([0, *ROUNDS, FULL]) / FULL
    for kept in KEPT:
        waves, alive, spent = [], MODELS, 0.0
        for wave, share in enumerate(np.diff(seen) if kept < 1 else [1.0]):
            work = (
                (order < alive) * one * share
            )  # a job: all tasks of one model in this round, its weights loaded once
            spent, alive = spent + work.sum(), max(TOP, round(alive * kept))
            waves.append(pd.DataFrame({"wave": wave, "seconds": work.sum(1)[work.any(1)] + load}))
        waves.append(pd.DataFrame({"wave": len(seen), "seconds": tune[order < TOP]}))
        jobs = pd.concat(waves)
        rows += [
            {
                "kept": kept,
                "workers": w,
                "hours": wall_clock(jobs, w) / 3600,
                "share": spent / one.sum(),
            }
            for w in WORKERS
        ]
    return rows + [
        {
            "kept": np.nan,
            "workers": w,
            "hours": max(tune.sum() / w, tune.max()) / 3600,
            "share": 0.0,
        }
        for w in WORKERS
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, run in (("growth", growth), ("growth_simulation", simulation)):
        table = pd.DataFrame(run())
        print(table.to_string())
        table.assign(**machine()).to_csv(
            results_folder("benchmarks") / f"{name}.csv", index=False, float_format="%.4g"
        )
