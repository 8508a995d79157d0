"""What a suite would cost, before it runs: a few steps are measured here, the rest is arithmetic on
its jobs.

Seconds are of one device: a GPU, or one CPU core with one thread, then in CPU time, so that other
work on the machine does not count. A training step of b images takes c0 + c1 b, through two
measured batch sizes; scores grow linearly with the images.
"""

import heapq
import io
import math
import statistics
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
from PIL import Image

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
from mzlib.training import Recipe, ResidentSet, default_device, one_thread, predict, train
from mzlib.zoo import Expert
from mzlib.zoo.architectures import create

DEVICES = (1, 8, 64)
SIDES = (500, 375)  # pixels of a usual JPEG file
PIXELS = {"cpu": 2**18, "cuda": 2**21}  # in a measured batch, at most: it must fit in any memory


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
    """Median over repeats after one warm-up; on a CPU those that this process computes."""
    on_gpu = device.type == "cuda"
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter() if on_gpu else time.process_time()
        run()
        if on_gpu:
            torch.cuda.synchronize()
        taken.append((time.perf_counter() if on_gpu else time.process_time()) - start)
    return statistics.median(taken[1:])


@cache
def measure(architecture: str, size: int, batch_size: int, device: torch.device) -> Costs:
    """By the training loop and `predict` themselves, on random pixels."""
    large = max(4, min(batch_size, PIXELS[device.type] // size**2))
    small = large // 2
    pixels = _pixels(large, size)
    model = create(architecture, 10, size).to(device)

    def step(batch: int) -> float:
        data = ResidentSet(pixels[:batch], np.arange(batch) % 10, flip=True, device=device)
        recipe = Recipe(lr=0.01, epochs=2, batch_size=batch)
        return seconds(lambda: train(model, data, recipe, seed=0, progress=False), device) / 2

    of_small = step(small)
    of_large = step(large)
    slope = (of_large - of_small) / (large - small)
    slope = min(max(slope, 0.0), of_large / large)  # noise must not turn a cost negative
    forward = seconds(lambda: predict(model, pixels, device), device) / large
    return Costs(of_large - slope * large, slope, forward, large)


def _pixels(n: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), np.uint8)


@cache
def scoring(
    suite: Suite, architecture: str, selectors: tuple[str, ...], classes: int, device: torch.device
) -> float:
    """Seconds an image of one score job, measured on random pixels and an expert with random
    weights.
    """
    size = suite.image_size
    n = max(16, min(256, 2**20 // size**2))
    images = _pixels(n, size)
    labels = np.arange(n) % min(classes, n // 4)
    net = create(suite.reference_architecture, classes, size).eval()
    model = create(architecture, 50, size).eval()
    card = {"source": "", "image_size": size, "accuracy": 0.5, "class_names": [""] * 50}
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


def counts(suite: Suite) -> pd.DataFrame:
    """train, test, classes of every task: of Table 4 or of the tasks on this machine."""
    names = [*suite.sources, *suite.targets]
    if suite.collection:
        table = pd.DataFrame(paper.SETS).T
    else:
        table = list_tasks().set_index("name")
    table = table.reindex(names)[["train", "test", "classes"]]
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

    def __init__(self, suite: Suite, device: torch.device):
        self.suite = suite
        self.device = device
        self.counts = counts(suite)
        self.classes = int(self.counts.loc[list(suite.targets), "classes"].median())
        self.reference_nets: set[tuple] = set()  # task, shots, seed: trained once for all experts

    def costs(self, architecture: str) -> Costs:
        """As measured."""
        kinds = ("expert", "finetune", "generic", "multi_domain")
        batch = max(self.suite.recipe(kind).batch_size for kind in kinds)
        return measure(architecture, self.suite.image_size, batch, self.device)

    def amounts(self, job: Job) -> tuple[list[int], int, int]:
        """Images an epoch of each training run, images of forward passes, images that are scored;
        all classes of a task count as equally large (`mzlib.evidence.subset`).
        """
        settings = job.settings
        if job.stage == "zoo":
            tasks = self.counts.loc[settings.get("sources") or [settings["source"]]]
            forwarded = int((tasks["train"] + tasks["test"]).sum())
            if "weights" in settings:
                return [], forwarded, 0
            return [settings.get("images", images) for images in tasks["train"]], forwarded, 0
        train, test, classes = map(int, self.counts.loc[job.task])
        held_out = classes * min(10, train // classes // 5)
        images = train - held_out
        if job.shots != "full":
            images = min(images, int(job.shots) * classes)
        if job.stage == "finetune":
            return [images], test + held_out, 0
        per_class = settings["images_per_class"]
        if per_class != "all":
            images = min(images, int(per_class) * classes)
        return [], 0, images

    def of(self, job: Job) -> dict:
        """A row for a table: key, stage, wave (its jobs wait for none of it), seconds on one
        device, images read.
        """
        architecture = self.suite.architecture(job.expert)
        costs = self.costs(architecture)
        recipe = Recipe(**job.settings["recipe"])
        runs, forwarded, scored = self.amounts(job)
        spent = forwarded * costs.forward + sum(costs.training(run, recipe) for run in runs)
        if scored:
            selectors = tuple(job.settings["selectors"])
            image = scoring(self.suite, architecture, selectors, self.classes, self.device)
            spent += scored * image
            net = (job.task, job.shots, job.seed)
            uses_it = any("reference_features" in SELECTORS[s].needs.values() for s in selectors)
            if uses_it and net not in self.reference_nets:
                self.reference_nets.add(net)
                (run,), *_ = self.amounts(replace(job, stage="finetune"))  # as a fine-tune is
                spent += self.costs(self.suite.reference_architecture).training(run, recipe)
        wave = 2
        if job.stage == "zoo":
            wave = 0 if job.settings.get("source") == self.suite.generic else 1
        images = forwarded + recipe.epochs * sum(runs) + scored
        row = {"key": job.key, "stage": job.stage, "wave": wave}
        return row | {"seconds": spent, "images": images}


def wall_clock(table: pd.DataFrame, devices: int) -> float:
    """Seconds when every job takes one device, longest first, wave after wave."""
    total = 0.0
    for _, wave in table.groupby("wave"):
        free = [0.0] * devices
        for spent in wave["seconds"].sort_values(ascending=False):
            heapq.heapreplace(free, free[0] + spent)
        total += max(free)
    return total


def stored(job: Job, classes: pd.Series) -> int:
    """Bytes of a saved expert's weights: in fp16, counters in int64."""
    sources = job.settings.get("sources") or [job.settings["source"]]
    with torch.device("meta"):
        state = new_network(job, {name: int(classes[name]) for name in sources}).state_dict()
    return sum(
        v.numel() * (2 if v.is_floating_point() else v.element_size()) for v in state.values()
    )


def price(
    name: str, stages: Iterable[str] = STAGES, only: str = "*", retry_failed: bool = False
) -> str:
    """The bill of what `run_suite` with these arguments would run now, with what it assumes."""
    suite = load_suite(name)
    store = Store(suite.name)
    chosen, failed = choice(suite, store, stages, only, retry_failed)
    done = set().union(*(store.done(stage) for stage in STAGES))
    jobs = sum(to_do(suite, store, chosen, False, failed), [])
    facts = {
        "chosen": len(chosen),
        "done": sum(job.key in done for job in chosen),
        "failed": sum(job.key in failed for job in chosen),
        "jobs": len(jobs),
    }
    if jobs:
        with one_thread():
            facts |= _measured(suite, jobs)
    template = Path(__file__).with_name("bill.txt.j2").read_text("utf-8")
    return jinja2.Template(template).render(facts)


def _measured(suite: Suite, jobs: list[Job]) -> dict:
    """What the template says of jobs that would run."""
    device = default_device()
    on_gpu = device.type == "cuda"
    estimate = Estimate(suite, device)
    table = pd.DataFrame([estimate.of(job) for job in jobs])
    decode = decoding(suite.image_size) if suite.collection else 0.0
    if not on_gpu:
        table["seconds"] += decode * table["images"]
    unit = "gpu_hours" if on_gpu else "core_hours"
    number = lambda v: f"{v:,.2f}" if v >= 0.1 else f"{v:.2g}"  # noqa: E731
    nets = {suite.architecture(job.expert) for job in jobs}
    if estimate.reference_nets:
        nets.add(suite.reference_architecture)
    experts = [job for job in jobs if job.stage == "zoo"]
    size = sum(stored(job, estimate.counts["classes"]) for job in experts)
    return {
        "bill": _bill(table, unit).to_string(index=False, float_format=number),
        "unit": unit,
        "on_gpu": on_gpu,
        "gigabytes": size / 1e9,
        "experts": len(experts),
        "sets": [{"name": name, **facts} for name, facts in paper.SETS.items()],
        "measured": {net: estimate.costs(net) for net in sorted(nets)},
        "decode": decode,
        "sides": SIDES,
    }


def _bill(table: pd.DataFrame, unit: str) -> pd.DataFrame:
    """Hours, a row a stage and one for all."""
    rows = []
    for stage, part in table.groupby("stage", sort=False):
        row = {"stage": stage, "jobs": len(part), unit: part["seconds"].sum() / 3600}
        row["longest_job"] = part["seconds"].max() / 3600
        rows.append(row | {f"wall_{n}": wall_clock(part, n) / 3600 for n in DEVICES})
    bill = pd.DataFrame(rows)
    longest = bill["longest_job"].max()
    rows.append({"stage": "all", **bill.drop(columns="stage").sum(), "longest_job": longest})
    return pd.DataFrame(rows).astype({"jobs": int})
