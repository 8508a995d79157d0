"""What a suite would cost, before it runs: a few steps are measured here, the rest is arithmetic on
its jobs.

Seconds are of one device: a GPU, or one CPU core with one thread, then in CPU time, so that other
work on the machine does not count. A training step of b images takes c0 + c1 b, through two
measured batch sizes; scores grow linearly with the images.
"""

import heapq
import io
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
import timm.data
import torch
from pandas import DataFrame
from PIL import Image
from torch.utils import benchmark

from mzlib.benchmark.data import list_tasks, paper
from mzlib.benchmark.jobs import STAGES, Job, Store
from mzlib.benchmark.run import choice, to_do
from mzlib.benchmark.scoring import score_rows
from mzlib.benchmark.stages import new_network
from mzlib.benchmark.suite import Suite, load_suite
from mzlib.errors import MzlibError
from mzlib.evidence import Evidence
from mzlib.selectors import SELECTORS
from mzlib.streaming import TRANSFORM
from mzlib.training import Recipe, ResidentSet, default_device, predict, train
from mzlib.zoo import Expert
from mzlib.zoo.architectures import create

DEVICES = (1, 8, 64)
SIDES = (500, 375)  # pixels of a usual JPEG file
PIXELS = {
    "cpu": 2**18,
    "cuda": 2**21,
}  # in a measured batch, at most: it must fit in any memory


@dataclass(frozen=True)
class Costs:
    """Seconds of one architecture.

    A training step of b images takes per_step + per_image b; a forward pass `forward` an image.
    batch: the largest b measured.
    """

    per_step: float
    per_image: float
    forward: float
    batch: int

    def training(self, images: int, recipe: Recipe) -> float:
        """Seconds of a training run on so many images an epoch."""
        steps = math.ceil(images / recipe.batch_size)
        epoch = steps * self.per_step + images * self.per_image
        return recipe.total_epochs(steps) * epoch


def seconds(run: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """Mean after a warm-up; on a CPU those that one thread computes."""
    clock = benchmark.timer if device.type == "cuda" else time.process_time
    return benchmark.Timer("run()", globals={"run": run}, timer=clock).timeit(repeats).mean


def measure(architecture: str, size: int, batch_size: int, device: torch.device) -> Costs:
    """By the training loop and `predict` themselves, on random pixels."""
    large = max(4, min(batch_size, PIXELS[device.type] // size**2))
    small = large // 2
    pixels = _pixels(large, size)
    model = create(architecture, 10, size).to(device)

    def step(batch: int) -> float:
        data = ResidentSet(pixels[:batch], np.arange(batch) % 10, flip=True, device=device)
        recipe = Recipe(
            lr=0.01,
            epochs=1,
            batch_size=batch,
        )
        return seconds(lambda: train(model, data, recipe, seed=0, progress=False), device)

    of_large = step(large)
    slope = (of_large - step(small)) / (large - small)
    slope = min(max(slope, 0.0), of_large / large)  # noise must not turn a cost negative
    forward = seconds(lambda: predict(model, pixels, device), device) / large
    return Costs(of_large - slope * large, slope, forward, large)


def _pixels(n: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), np.uint8)


@cache
def scoring(
    suite: Suite,
    architecture: str,
    selectors: tuple[str, ...],
    classes: int,
    device: torch.device,
) -> float:
    """Seconds an image of one score job, on random pixels and an expert with random weights."""
    size = suite.image_size
    n = max(16, min(256, 2**20 // size**2))
    images = _pixels(n, size)
    labels = np.arange(n) % min(classes, n // 4)
    net = create(suite.reference_architecture, classes, size).eval()
    model = create(architecture, 50, size).eval()
    card = {
        "source": "",
        "image_size": size,
        "accuracy": 0.5,
        "class_names": [""] * 50,
    }
    expert = Expert("", model, card, torch.rand(50, model.head_hidden_size), torch.full((50,), 100))

    def job() -> None:
        evidence = Evidence(expert, images, labels, reference=lambda: net, device=device)
        score_rows(evidence, selectors)

    return seconds(job, device, repeats=1) / n


def decoding(size: int) -> float:
    """CPU seconds to decode, crop and resize one training image, a JPEG of usual sides."""
    transform = timm.data.create_transform(size, is_training=True, color_jitter=0, **TRANSFORM)
    file = io.BytesIO()
    Image.fromarray(_pixels(1, 24)[0]).resize(SIDES).save(file, "JPEG", quality=90)
    return seconds(lambda: transform(Image.open(file).convert("RGB")), torch.device("cpu"), 15)


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


class Estimate:
    """What the jobs of a suite take on one device; what must be known for it is measured once."""

    def __init__(
        self,
        suite: Suite,
        device: torch.device,
    ):
        self.suite = suite
        self.device = device
        self.counts = counts(suite)
        self.classes = int(self.counts.loc[list(suite.targets), "classes"].median())
        self.measured: dict[str, Costs] = {}
        self.reference_nets: set[tuple] = set()  # task, shots, seed: trained once for all experts

    def costs(self, architecture: str) -> Costs:
        """As measured."""
        if architecture not in self.measured:
            kinds = ("expert", "finetune", "generic", "multi_domain")
            batch = max(self.suite.recipe(kind).batch_size for kind in kinds)
            costs = measure(architecture, self.suite.image_size, batch, self.device)
            self.measured[architecture] = costs
        return self.measured[architecture]

    def amounts(self, job: Job) -> tuple[list[int], int, int]:
        """Images an epoch of each training run, images of forward passes, images that are scored;
        all classes of a task count as equally large (`mzlib.evidence.subset`).
        """
        settings = job.settings
        if job.stage == "zoo":
            tasks = self.counts.loc[_sources(job)]
            runs = [settings.get("images", images) for images in tasks["train"]]
            forwarded = int(tasks[["train", "test"]].sum(axis=None))
            return [] if "weights" in settings else runs, forwarded, 0
        train, test, classes = map(int, self.counts.loc[job.task])
        held_out = classes * min(10, train // classes // 5)
        limits = [job.shots, settings["images_per_class"] if job.stage == "score" else "all"]
        numbers = [int(limit) * classes for limit in limits if limit.isdecimal()]
        images = min([train - held_out, *numbers])
        if job.stage == "finetune":
            return [images], test + held_out, 0
        return [], 0, images

    def of(self, job: Job) -> dict:
        """key, stage, seconds on one device, images read."""
        architecture = self.suite.architecture(job.expert)
        costs = self.costs(architecture)
        recipe = Recipe(**job.settings["recipe"])
        runs, forwarded, scored = self.amounts(job)
        spent = forwarded * costs.forward + sum(costs.training(run, recipe) for run in runs)
        if scored:
            selectors = tuple(job.settings["selectors"])
            image = scoring(self.suite, architecture, selectors, self.classes, self.device)
            spent += scored * image + self._reference_net(job, selectors, recipe)
        images = forwarded + recipe.epochs * sum(runs) + scored
        return {
            "key": job.key,
            "stage": job.stage,
            "seconds": spent,
            "images": images,
        }

    def _reference_net(self, job: Job, selectors: Iterable[str], recipe: Recipe) -> float:
        """Seconds to train the net of RSA, as a fine-tune is; 0 where it is not or was needed."""
        net = (job.task, job.shots, job.seed)
        uses_it = any("reference_features" in SELECTORS[s].needs.values() for s in selectors)
        if net in self.reference_nets or not uses_it:
            return 0.0
        self.reference_nets.add(net)
        (run,), *_ = self.amounts(replace(job, stage="finetune"))
        return self.costs(self.suite.reference_architecture).training(run, recipe)


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
    store_of = Store(suite.name)
    chosen, failed = choice(suite, store_of, stages, only, retry_failed)
    done = set().union(*(store_of.done(stage) for stage in STAGES))
    waves = to_do(suite, store_of, chosen, False, failed)
    facts = {
        "chosen": len(chosen),
        "done": sum(job.key in done for job in chosen),
        "failed": sum(job.key in failed for job in chosen),
        "jobs": sum(map(len, waves)),
    }
    if any(waves):
        facts |= _measured(suite, waves)
    template = Path(__file__).with_name("bill.txt.j2").read_text("utf-8")
    return jinja2.Template(template).render(facts)


def _measured(suite: Suite, waves: list[list[Job]]) -> dict:
    """What the template says of jobs that would run."""
    device = default_device()
    on_gpu = device.type == "cuda"
    estimate = Estimate(suite, device)
    rows = [estimate.of(job) | {"wave": i} for i, wave in enumerate(waves) for job in wave]
    table = DataFrame(rows)
    decode = decoding(suite.image_size) if suite.collection else 0.0
    if not on_gpu:
        table["seconds"] += decode * table["images"]
    unit = "gpu_hours" if on_gpu else "core_hours"
    number = lambda v: f"{v:,.2f}" if v >= 0.1 else f"{v:.2g}"  # noqa: E731
    experts = [job for wave in waves[:2] for job in wave]
    size = sum(stored(job, estimate.counts["classes"]) for job in experts)
    return {
        "bill": _bill(table, unit).to_string(index=False, float_format=number),
        "unit": unit,
        "on_gpu": on_gpu,
        "gigabytes": size / 1e9,
        "experts": len(experts),
        "sets": [
            {
                "name": name,
                **facts,
            }
            for name, facts in paper.SETS.items()
        ],
        "measured": dict(sorted(estimate.measured.items())),
        "decode": decode,
        "sides": SIDES,
    }


def _bill(table: DataFrame, unit: str) -> DataFrame:
    """Hours, a row a stage and one for all."""
    stages = table.assign(hours=table["seconds"] / 3600).groupby("stage", sort=False)
    bill = stages["hours"].agg(jobs="size", **{unit: "sum"}, longest_job="max")
    for n in DEVICES:
        bill[f"wall_{n}"] = [wall_clock(part, n) / 3600 for _, part in stages]
    longest = bill["longest_job"].max()
    bill.loc["all"] = bill.sum().replace({"longest_job": longest})
    return bill.astype({"jobs": int}).reset_index()
