"""What a suite would cost, before it runs: a few steps are measured here, the rest is arithmetic on
its jobs.

Seconds are of one device: a GPU, or one CPU core with one thread, then in CPU time, so that other
work on the machine does not
count. A training step of b images takes c0 + c1 b, through two measured batch sizes; scores grow
linearly with the images.
"""

import heapq
import io
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import timm.data
import torch
from PIL import Image

from mzlib.benchmark.data import list_tasks, paper
from mzlib.benchmark.jobs import STAGES, Job, Store
from mzlib.benchmark.run import choice, to_do
from mzlib.benchmark.scoring import score_rows
from mzlib.benchmark.stages import REFERENCE_ARCHITECTURE
from mzlib.benchmark.suite import Suite, load_suite
from mzlib.errors import MzlibError
from mzlib.evidence import Evidence
from mzlib.selectors import SELECTORS
from mzlib.streaming import TRANSFORM
from mzlib.training import Recipe, ResidentSet, default_device, one_thread, predict, train
from mzlib.zoo import Expert, MultiDomainNet
from mzlib.zoo.architectures import create

DEVICES = (1, 8, 64)
SIDES = (500, 375)  # pixels of a usual JPEG file
PIXELS = {"cpu": 2**18, "cuda": 2**25}  # in a measured batch, at most


@dataclass(frozen=True)
class Costs:
    """Of one architecture: seconds of a training step of b images, step[0] + step[1] b; seconds of
    a forward pass of an image;
    the largest b measured; whether more were tried and did not fit in memory.
    """

    step: tuple[float, float]
    forward: float
    batch: int
    halved: bool = False

    def training(self, images: int, recipe: Recipe, per_epoch: int | None = None) -> float:
        """Seconds of a training run on that many images."""
        images = per_epoch or images
        steps = -(-images // recipe.batch_size)
        return recipe.total_epochs(steps) * (steps * self.step[0] + images * self.step[1])


def seconds(run: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """Median over repeats after one warm-up."""
    synchronize, clock = (
        (torch.cuda.synchronize, time.perf_counter)
        if device.type == "cuda"
        else (lambda: None, time.process_time)
    )
    taken = []
    for _ in range(repeats + 1):
        synchronize()
        start = clock()
        run()
        synchronize()
        taken.append(clock() - start)
    return statistics.median(taken[1:])


def measure(architecture: str, size: int, batch_size: int, device: torch.device) -> Costs:
    """By the training loop and `predict` themselves, on random pixels; in half the batch where
    memory ends.
    """
    large = max(4, min(batch_size, PIXELS[device.type] // size**2))
    try:
        return _measured(architecture, size, large, device)
    except torch.OutOfMemoryError:
        if large < 8:
            raise
    return replace(measure(architecture, size, large // 2, device), halved=True)


def _measured(architecture: str, size: int, large: int, device: torch.device) -> Costs:
    pixels, labels = _pixels(large, size), np.arange(large) % 10
    model, steps = create(architecture, 10, size).to(device), {}
    for b in (large // 2, large):
        data = ResidentSet(pixels[:b], labels[:b], flip=True, device=device)
        steps[b] = (
            seconds(lambda: train(model, data, Recipe(0.01, 2, b), seed=0, progress=False), device)
            / 2
        )
    slope = (steps[large] - steps[large // 2]) / (large - large // 2)
    slope = min(max(slope, 0.0), steps[large] / large)  # noise must not turn a cost negative
    forward = seconds(lambda: predict(model, pixels, device), device) / large
    return Costs((steps[large] - slope * large, slope), forward, large)


def _pixels(n: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), np.uint8)


def scoring(
    suite: Suite, architecture: str, selectors: tuple[str, ...], classes: int, device: torch.device
) -> float:
    """Seconds an image of one score job, measured on random pixels and an expert with random
    weights.
    """
    size, n = suite.image_size, max(16, min(256, 2**20 // suite.image_size**2))
    labels, net = (
        np.arange(n) % min(classes, n // 4),
        create(suite.reference_net or REFERENCE_ARCHITECTURE, classes, size).eval(),
    )
    model = create(architecture, 50, size).eval()
    card = {"source": "", "image_size": size, "accuracy": 0.5, "class_names": [""] * 50}
    expert = Expert("", model, card, torch.rand(50, model.head_hidden_size), torch.full((50,), 100))
    images = _pixels(n, size)
    return (
        seconds(
            lambda: score_rows(
                Evidence(expert, images, labels, reference=lambda: net, device=device), selectors
            ),
            device,
            1,
        )
        / n
    )


def decoding(size: int) -> float:
    """CPU seconds to decode, crop and resize one training image, a JPEG of usual sides."""
    file, transform = (
        io.BytesIO(),
        timm.data.create_transform(size, is_training=True, color_jitter=0, **TRANSFORM),
    )
    smooth = Image.fromarray(_pixels(1, 24)[0]).resize(SIDES)
    smooth.save(file, "JPEG", quality=90)
    return (
        seconds(
            lambda: [transform(Image.open(file).convert("RGB")) for _ in range(5)],
            torch.device("cpu"),
        )
        / 5
    )


def counts(suite: Suite) -> pd.DataFrame:
    """train, test, classes of every task: of Table 4 or of the tasks on this machine."""
    names = [*suite.sources, *suite.targets]
    if suite.collection == "paper":
        table = pd.DataFrame(paper.SETS).T
    else:
        table = list_tasks().set_index("name")
    if absent := [
        name for name in names if name not in table.index or pd.isna(table.at[name, "train"])
    ]:
        raise MzlibError(
            f"expected the tasks of {suite.name} on this machine, to count their images, "
            f"{', '.join(absent)} are not "
            f"here: run `mzlib data get --suite {suite.name}` or set MZLIB_DATA"
        )
    return table.loc[names, ["train", "test", "classes"]].astype(int)


def job_seconds(
    suite: Suite, device: torch.device, workers: int = 1, jobs: list[Job] | None = None
) -> tuple[pd.DataFrame, dict[str, Costs]]:
    """A row a job: key, stage, wave (jobs of a wave wait for none of it), seconds on one device,
    images read.

    jobs: of the suite (None: all). workers: how many come across the jobs of one task and regime;
    each trains the reference net of RSA and DDS for itself.
    """
    of, jobs = (
        counts(suite),
        [job for stage in STAGES for job in suite.jobs(stage)] if jobs is None else jobs,
    )
    reference = suite.reference_net or REFERENCE_ARCHITECTURE
    batch = max(recipe.batch_size for recipe in suite.recipes.values())
    used = {job: suite.families[job.expert.partition("-")[0]].architecture for job in jobs}
    nets = {*used.values()} | {reference for job in jobs if job.stage == "score"}
    measured = {a: measure(a, suite.image_size, batch, device) for a in sorted(nets)}
    classes = int(of.loc[list(suite.targets), "classes"].median())
    per_image = {
        key: scoring(suite, *key, classes, device)
        for key in dict.fromkeys(
            (net, tuple(job.settings["selectors"]))
            for job, net in used.items()
            if job.stage == "score"
        )
    }
    rows, reference_nets = [], Counter()
    for job, architecture in used.items():
        costs, recipe = measured[architecture], Recipe(**job.settings["recipe"])
        if job.stage == "zoo":
            sources = job.settings.get("sources") or [job.settings["source"]]
            per_epoch = job.settings.get("images")
            forward = sum(of.loc[s, "train"] + of.loc[s, "test"] for s in sources)
            trained = sum(
                costs.training(of.loc[s, "train"], recipe, per_epoch) for s in sources
            ) * ("weights" not in job.settings)
            read = (
                sum(per_epoch or of.loc[s, "train"] for s in sources)
                * recipe.epochs
                * ("weights" not in job.settings)
                + forward
            )
            rows.append(
                (
                    job.key,
                    job.stage,
                    0 if job.settings.get("source") == suite.generic else 1,
                    trained + forward * costs.forward,
                    read,
                )
            )
            continue
        images, held_out = _regime(job, *of.loc[job.task, ["train", "classes"]])
        if job.stage == "finetune":
            forward = of.loc[job.task, "test"] + held_out
            rows.append(
                (
                    job.key,
                    job.stage,
                    2,
                    costs.training(images, recipe) + forward * costs.forward,
                    images * recipe.epochs + forward,
                )
            )
        else:
            per_class, selectors = (
                job.settings["images_per_class"],
                tuple(job.settings["selectors"]),
            )
            scored = (
                images
                if per_class == "all"
                else min(images, int(per_class) * of.loc[job.task, "classes"])
            )
            spent = scored * per_image[architecture, selectors]
            net = (job.task, job.shots, job.seed)
            if reference_nets[net] < workers and any(
                "reference_features" in SELECTORS[s].needs.values() for s in selectors
            ):
                reference_nets[net] += 1
                spent += measured[reference].training(images, recipe)
            rows.append((job.key, job.stage, 2, spent, scored))
    return pd.DataFrame(rows, columns=["key", "stage", "wave", "seconds", "images"]), measured


def _regime(job: Job, train: int, classes: int) -> tuple[int, int]:
    """Training and validation images of a regime, for classes of equal size
    (`mzlib.evidence.subset`).
    """
    held_out = classes * min(10, train // classes // 5)
    return min(
        train - held_out, train if job.shots == "full" else int(job.shots) * classes
    ), held_out


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
    """Bytes of a saved expert: weights and class means in fp16, counters in int64."""
    settings = job.settings
    of = {
        source: int(classes[source]) for source in settings.get("sources") or [settings["source"]]
    }
    with torch.device("meta"):
        net = (
            MultiDomainNet(
                settings["architecture"], of, settings["variant"], settings["image_size"]
            )
            if "variant" in settings
            else create(settings["architecture"], *of.values(), settings["image_size"])
        )
    width = getattr(net, "backbone", net).head_hidden_size
    return sum(
        v.numel() * (2 if v.is_floating_point() else v.element_size())
        for v in net.state_dict().values()
    ) + sum(of.values()) * (2 * width + 8)


def price(
    name: str, stages: Iterable[str] = STAGES, only: str = "*", retry_failed: bool = False
) -> str:
    """The bill of what `run_suite` with these arguments would run now, with what it assumes."""
    suite, device = load_suite(name), default_device()
    store = Store(suite.name)
    chosen, failed = choice(suite, store, stages, only, retry_failed)
    done = {stage: store.done(stage) for stage in STAGES}
    jobs = sum(to_do(suite, store, chosen, False, failed), [])
    lines = [
        f"Of {len(chosen):,} jobs chosen {sum(job.key in done[job.stage] for job in chosen):,} "
        f"are done and "
        f"{sum(job.key in failed for job in chosen):,} have failed; {len(jobs):,} would run, with "
        f"the experts that they need."
    ]
    if not jobs:
        return lines[0]
    with one_thread():
        table, measured = job_seconds(suite, device, jobs=jobs)
        decode = decoding(suite.image_size) if suite.collection else 0.0
    if device.type == "cpu":
        table["seconds"] += decode * table["images"]
    unit = "gpu_hours" if device.type == "cuda" else "core_hours"
    bill = pd.DataFrame(
        [
            {
                "stage": stage,
                "jobs": len(part),
                unit: part["seconds"].sum() / 3600,
                "longest_job": part["seconds"].max() / 3600,
                **{f"wall_{n}": wall_clock(part, n) / 3600 for n in DEVICES},
            }
            for stage, part in table.groupby("stage", sort=False)
        ]
    )
    total = bill.drop(columns="stage").sum().to_dict() | {
        "stage": "all",
        "longest_job": bill["longest_job"].max(),
    }
    bill = pd.concat([bill, pd.DataFrame([total])], ignore_index=True).astype({"jobs": int})
    classes, experts = counts(suite)["classes"], [job for job in jobs if job.stage == "zoo"]
    downloads = (
        f"; downloads {sum(s.get('gigabytes', 0) for s in paper.SETS.values()):,.0f} GB (unpacked "
        f"about as much again) "
        f"and those of {', '.join(n for n, s in paper.SETS.items() if 'gigabytes' not in s)}, of "
        f"unknown size"
    )
    lines += [
        "",
        bill.to_string(index=False, float_format=lambda v: f"{v:,.2f}" if v >= 0.1 else f"{v:.2g}"),
        "",
        f"{unit}: hours of one "
        f"{'GPU' if device.type == 'cuda' else 'CPU core (CPU time, one thread)'} of the kind "
        f"measured here; "
        "wall_N: hours with N of them, one job on each, longest first, generic experts before the "
        "others. Experts are not split.",
        f"Disk: {sum(stored(job, classes) for job in experts) / 1e9:,.2f} GB for {len(experts)} "
        f"experts (fp16)"
        f"{downloads if suite.collection == 'paper' else ''}.",
    ]
    for architecture, costs in measured.items():
        lines.append(
            f"{architecture}: a training step of b images {1000 * costs.step[0]:.1f} + "
            f"{1000 * costs.step[1]:.2f} b ms, "
            f"a forward pass {1000 * costs.forward:.2f} ms an image; measured with b up to "
            f"{costs.batch}"
            f"{', the largest that fits in memory' if costs.halved else ''}."
        )
    if decode:
        busy = max(costs.step[1] for costs in measured.values())
        lines.append(
            f"Decoding takes {1000 * decode:.1f} ms of a core an image ({SIDES[0]} x {SIDES[1]} "
            f"JPEG)"
            + (
                ", included above."
                if device.type == "cpu"
                else f", not included: {decode / busy:.1f} or more cores keep one GPU busy."
            )
        )
    return "\n".join(lines)
