"""What a suite would cost, before it runs: its networks are measured on a few images here, the rest
is arithmetic on the images of its jobs.

Seconds are of one device: a GPU, or one CPU core with one thread, then in CPU time, so that other
work on the machine does not count. Reading and decoding images is not included.
"""

import heapq
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
import torch
from pandas import DataFrame
from torch.utils import benchmark

from mzlib.benchmark.data import list_tasks, paper
from mzlib.benchmark.jobs import STAGES, Job, Store
from mzlib.benchmark.run import choice, to_do
from mzlib.benchmark.stages import images_per_epoch, new_network
from mzlib.benchmark.suite import Suite, load_suite
from mzlib.errors import MzlibError
from mzlib.training import Recipe, ResidentSet, default_device, predict, train
from mzlib.zoo.architectures import create

DEVICES = (1, 8, 64)
PIXELS = {"cpu": 2**18, "cuda": 2**21}  # in a measured batch, at most: it must fit in any memory


def seconds(run: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """Mean after a warm-up; on a CPU those that one thread computes."""
    clock = benchmark.timer if device.type == "cuda" else time.process_time
    return benchmark.Timer("run()", globals={"run": run}, timer=clock).timeit(repeats).mean


def kind(job: Job, suite: Suite) -> tuple[str, int]:
    """What the seconds of an image depend on: the architecture and the size of a batch."""
    recipe = job.settings.get("recipe")
    batch_size = recipe["batch_size"] if recipe else suite.recipe("finetune").batch_size
    return suite.architecture(job.expert), batch_size


def measured(
    architecture: str, batch_size: int, size: int, device: torch.device
) -> tuple[float, float]:
    """Seconds an image of training and of a forward pass, by the training loop and `predict`
    themselves, on random pixels.
    """
    batch = min(batch_size, PIXELS[device.type] // size**2)
    images = np.random.default_rng(0).integers(0, 256, (2 * batch, size, size, 3), np.uint8)
    model = create(architecture, 10, size).to(device)
    recipe = Recipe(lr=0.01, epochs=1, batch_size=batch)

    def epoch(n: int) -> float:
        data = ResidentSet(images[:n], np.arange(n) % 10, flip=True, device=device)
        return seconds(lambda: train(model, data, recipe, seed=0, progress=False), device)

    # without what a run takes before its first step; noise must not turn a cost negative
    step = max(0.0, epoch(2 * batch) - epoch(batch))
    forward = seconds(lambda: predict(model, images, device), device)
    return step / batch, forward / (2 * batch)


def counts(suite: Suite) -> DataFrame:
    """train, test, classes of every task: of Table 4 or of the tasks on this machine."""
    known = DataFrame(paper.SETS).T if suite.collection else list_tasks().set_index("name")
    table = known.loc[[*suite.sources, *suite.targets], ["train", "test", "classes"]]
    absent = table.index[table["train"].isna()]
    if len(absent):
        raise MzlibError(
            f"expected the tasks of {suite.name} on this machine, to count their images, "
            f"{', '.join(absent)} are not here: run `mzlib data get --suite {suite.name}` or set "
            "MZLIB_DATA"
        )
    return table.astype(int)


def amounts(job: Job, tasks: DataFrame) -> tuple[int, int]:
    """Images an epoch, or of a scored sample, and images of forward passes beside.

    tasks: `counts`, whose classes count as equally large (`mzlib.evidence.subset`).
    """
    settings = job.settings
    if job.stage == "zoo":
        sources = tasks.loc[_sources(job)]
        forwarded = int(sources["train"].sum() + sources["test"].sum())
        if "weights" in settings:
            return 0, forwarded
        return sum(images_per_epoch(job, sources["train"].to_dict()).values()), forwarded
    train, test, classes = map(int, tasks.loc[job.task])
    held_out = classes * min(10, train // classes // 5)
    images = train - held_out
    for limit in (job.shots, settings.get("images_per_class", "all")):
        if limit.isdecimal():
            images = min(images, int(limit) * classes)
    if job.stage == "score":
        return images, 0
    return images, test + held_out


def estimate(job: Job, tasks: DataFrame, training: float, forward: float) -> float:
    """Seconds of a job by those of an image. A scored image counts as one that is trained on once:
    it takes a forward pass, and LGC's gradient a backward one.
    """
    images, forwarded = amounts(job, tasks)
    epochs = 1
    if job.stage != "score" and images:
        recipe = Recipe(**job.settings["recipe"])
        epochs = recipe.total_epochs(math.ceil(images / recipe.batch_size))
    return epochs * images * training + forwarded * forward


def wall_clock(table: DataFrame, devices: int) -> float:
    """Seconds when every job takes one device, longest first, wave after wave."""
    total = 0.0
    for _, wave in table.groupby("wave"):
        free = [0.0] * devices
        for spent in wave["seconds"].sort_values(ascending=False):
            heapq.heapreplace(free, free[0] + spent)
        total += max(free)
    return total


def _sources(job: Job) -> list[str]:
    return job.settings.get("sources") or [job.settings["source"]]


def stored(job: Job, classes: pd.Series) -> int:
    """Bytes of a saved expert's weights, in fp16."""
    with torch.device("meta"):
        net = new_network(job, {name: int(classes[name]) for name in _sources(job)})
    return 2 * sum(value.numel() for value in net.state_dict().values())


def price(
    name: str,
    stages: Iterable[str] = STAGES,
    only: str = "*",
    retry_failed: bool = False,
) -> str:
    """The bill of what `run_suite` with these arguments would run now, with what it assumes."""
    suite = load_suite(name)
    store = Store(suite.name)
    chosen, failed = choice(suite, store, stages, only, retry_failed)
    done = set().union(*(store.done(stage) for stage in STAGES))
    waves = to_do(suite, store, chosen, False, failed)
    facts = {
        "chosen": len(chosen),
        "done": sum(job.key in done for job in chosen),
        "failed": sum(job.key in failed for job in chosen),
        "jobs": sum(map(len, waves)),
    }
    if any(waves):
        facts |= _bill(suite, waves)
    template = Path(__file__).with_name("bill.txt.j2").read_text("utf-8")
    return jinja2.Template(template).render(facts)


def _bill(suite: Suite, waves: list[list[Job]]) -> dict:
    """What the template says of jobs that would run."""
    device = default_device()
    unit = "gpu_hours" if device.type == "cuda" else "core_hours"
    tasks = counts(suite)
    costs = {}
    rows = []
    size = 0
    for i, wave in enumerate(waves):
        for job in wave:
            network = kind(job, suite)
            if network not in costs:
                costs[network] = measured(*network, suite.image_size, device)
            spent = estimate(job, tasks, *costs[network])
            rows.append({"stage": job.stage, "wave": i, "seconds": spent})
            if job.stage == "zoo":
                size += stored(job, tasks["classes"])
    table = DataFrame(rows)
    stages = table.assign(hours=table["seconds"] / 3600).groupby("stage", sort=False)
    bill = stages["hours"].agg(jobs="size", **{unit: "sum"})
    for n in DEVICES:
        bill[f"wall_{n}"] = [wall_clock(jobs, n) / 3600 for _, jobs in stages]
    bill.loc["all"] = bill.sum()
    return {
        "bill": bill.astype({"jobs": int}).to_string(float_format="{:,.2f}".format),
        "unit": unit,
        "bytes": size,
        "sets": paper.SETS if suite.collection else {},
        "costs": costs,
    }
