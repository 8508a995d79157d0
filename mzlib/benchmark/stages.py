"""What a job of each stage does: train an expert, fine-tune one, score one. Each returns the rows
of its table.
"""

import json
import time
from functools import lru_cache
from pathlib import Path

import torch

from mzlib.benchmark.jobs import Job
from mzlib.benchmark.scoring import score_rows
from mzlib.benchmark.suite import Suite
from mzlib.dataset import Task
from mzlib.errors import MzlibError
from mzlib.evidence import Evidence, subset
from mzlib.provenance import home, machine, put
from mzlib.reference import REFERENCE_ARCHITECTURE, reference_net
from mzlib.streaming import training_set
from mzlib.training import Recipe, accuracy, predict, seeded, train
from mzlib.zoo import (
    Expert,
    MultiDomainNet,
    class_statistics,
    load_expert,
    read_expert,
    save_expert,
    to_fp16,
    with_fresh_head,
)
from mzlib.zoo.architectures import create
from mzlib.zoo.external import load_external


def zoo_folder(suite: str) -> Path:
    """Where a suite's experts lie."""
    return home() / "zoo" / suite


def write_index(suite: Suite) -> None:
    """`index.json` of the suite's zoo, from which `mzlib.zoo.external.open_zoo` needs no suite."""
    single = [name for name in suite.starting_points() if ":" not in name]
    index = {"generic": suite.generic, "experts": single}
    path = zoo_folder(suite.name) / "index.json"
    content = json.dumps(index, indent=1) + "\n"
    if not path.is_file() or path.read_text("utf-8") != content:
        put(path, content)


def train_expert(suite: Suite, job: Job, device: torch.device, progress: bool) -> list[dict]:
    """Train, store in fp16, and measure what was stored; one row per domain."""
    settings, recipe = job.settings, Recipe(**job.settings["recipe"])
    if "variant" in settings:
        return _train_multi_domain(suite, job, device, progress)
    task = suite.task(settings["source"])
    classes = len(task.class_names)
    if "weights" in settings:  # trained elsewhere
        expert = load_external(settings["weights"])
        if (theirs := expert.model.get_classifier().out_features) != classes:
            raise MzlibError(
                f"expected {settings['weights']} to have the {classes} classes of {task.name}, it "
                f"has {theirs}"
            )
    elif "start" in settings:
        expert = load_expert(settings["start"], zoo_folder(suite.name))
        with_fresh_head(expert.model, classes, job.seed)
    else:
        expert = Expert(
            job.expert,
            seeded(lambda: create(settings["architecture"], classes, suite.image_size), job.seed),
            {},
        )
    model, of, losses = expert.model.to(device), normalization(expert), []
    start = time.perf_counter()
    if "weights" not in settings:
        losses = train(
            model,
            training_set(task.train.images, task.train.labels, flip=task.flip, device=device, **of),
            recipe,
            seed=job.seed,
            label=str(job),
            progress=progress,
        )
    seconds = time.perf_counter() - start
    state = to_fp16(model.state_dict())
    model.load_state_dict(state)  # from here on, what a reader will load
    facts, statistics = _source_facts(model, task, of)
    row = {
        "suite": suite.name,
        "expert": job.expert,
        "architecture": settings["architecture"],
        "pretraining": settings["pretraining"],
        **_row(task, facts),
        "parameters": sum(p.numel() for p in model.parameters()),
        "epochs": len(losses),
        "loss_curve": curve(losses),
        "seconds": round(seconds, 2),
    }
    card = {
        "architecture": settings["architecture"],
        "source": task.name,
        "pretraining": row["pretraining"],
        **facts,
        "image_size": settings["image_size"],
        "training": settings,
        "seconds": row["seconds"],
        "machine": machine(),
        "job": job.key,
        **of,
    }
    save_expert(
        zoo_folder(suite.name),
        job.expert,
        {**state, **to_fp16({f"source.{k}": v for k, v in statistics.items()})},
        card,
    )
    return [row]


def _train_multi_domain(suite: Suite, job: Job, device: torch.device, progress: bool) -> list[dict]:
    settings, recipe = job.settings, Recipe(**job.settings["recipe"])
    tasks = {name: suite.task(name) for name in settings["sources"]}
    net = seeded(
        lambda: MultiDomainNet(
            settings["architecture"],
            {n: len(t.class_names) for n, t in tasks.items()},
            settings["variant"],
            settings["image_size"],
        ),
        job.seed,
    )
    start = time.perf_counter()
    sets = {
        name: training_set(
            t.train.images, t.train.labels, flip=t.flip, device=device, per_epoch=settings["images"]
        )
        for name, t in tasks.items()
    }
    losses = train(net.to(device), sets, recipe, seed=job.seed, label=str(job), progress=progress)
    seconds = time.perf_counter() - start
    state, rows, domains, statistics = to_fp16(net.state_dict()), [], {}, {}
    net.load_state_dict(state)
    for name, task in tasks.items():
        domains[name], own = _source_facts(net.single(name).eval(), task, {})
        statistics |= {f"source.{name}.{k}": v for k, v in own.items()}
        rows.append(
            {
                "suite": suite.name,
                "expert": f"{job.expert}:{name}",
                "architecture": settings["architecture"],
                "pretraining": settings["variant"],
                **_row(task, domains[name]),
                "parameters": sum(p.numel() for p in net.parameters()),
                "epochs": len(losses),
                "loss_curve": curve(losses),
                "seconds": round(seconds, 2),
            }
        )
    card = {
        "architecture": settings["architecture"],
        "pretraining": settings["variant"],
        "variant": settings["variant"],
        "image_size": settings["image_size"],
        "domains": domains,
        "training": settings,
        "seconds": round(seconds, 2),
        "machine": machine(),
        "job": job.key,
    }
    save_expert(zoo_folder(suite.name), job.expert, {**state, **to_fp16(statistics)}, card)
    return rows


def normalization(expert: Expert) -> dict:
    """mean and std of an expert's input where they are its own: of weights from outside, and of
    experts that start there.
    """
    return {key: expert.card[key] for key in ("mean", "std") if key in expert.card}


def _source_facts(
    model: torch.nn.Module, task: Task, of: dict
) -> tuple[dict, dict[str, torch.Tensor]]:
    device = next(model.parameters()).device
    top1, _ = accuracy(predict(model, task.test.images, device, **of), task.test.labels)
    means, counts = class_statistics(model, task.train.images, task.train.labels, **of)
    facts = {
        "domain": task.domain,
        "class_names": list(task.class_names),
        "accuracy": top1,
        "licence": task.card.get("license", "unknown"),
    }
    return facts, {"class_means": means, "class_counts": counts}


def _row(task: Task, facts: dict) -> dict:
    return {
        "source": task.name,
        "domain": task.domain,
        "classes": len(task.class_names),
        "train_images": len(task.train.labels),
        "test_images": len(task.test.labels),
        "accuracy": round(facts["accuracy"], 5),
    }


def curve(values: list[float], points: int = 10) -> str:
    """At most `points` values, evenly spaced and with the last, 4 significant digits, separated by
    spaces.
    """
    at = torch.linspace(0, len(values) - 1, min(points, len(values))).round().int().tolist()
    return " ".join(f"{values[i]:.4g}" for i in at)


def finetune(suite: Suite, job: Job, device: torch.device, progress: bool) -> list[dict]:
    """Fine-tune all weights with a fresh head on the subset of the regime; accuracy on the full
    test set.
    """
    settings, task = job.settings, suite.task(job.task)
    sub = subset(task, job.shots, job.seed)
    expert = load_expert(job.expert, zoo_folder(suite.name))
    of = normalization(expert)
    model = with_fresh_head(expert.model, len(task.class_names), job.seed).to(device)
    images, labels = task.train.images, task.train.labels
    recipe = Recipe(**settings["recipe"] | {"lr": settings["lr"]})
    start = time.perf_counter()
    losses = train(
        model,
        training_set(images[sub.train], labels[sub.train], flip=task.flip, device=device, **of),
        recipe,
        seed=job.seed,
        label=str(job),
        progress=progress,
    )
    seconds = time.perf_counter() - start
    top1, by_class = accuracy(predict(model, task.test.images, device, **of), task.test.labels)
    validation, _ = accuracy(
        predict(model, images[sub.validation], device, **of), labels[sub.validation]
    )
    return [
        {
            "suite": suite.name,
            "expert": job.expert,
            "task": job.task,
            "shots": job.shots,
            "lr": settings["lr"],
            "seed": job.seed,
            "accuracy": round(top1, 5),
            "val_accuracy": round(validation, 5),
            "train_images": len(sub.train),
            "epochs": len(losses),
            "loss_curve": curve(losses),
            "class_accuracy": " ".join(f"{a:.3g}" for a in by_class),
            "seconds": round(seconds, 2),
        }
    ]


@lru_cache(maxsize=2)
def _reference_net(
    suite: Suite, task: str, shots: str, seed: int, recipe: Recipe, device: torch.device
) -> torch.nn.Module:
    """`reference_net`, once for all experts that a worker scores on a task."""
    target = suite.task(task)
    index = subset(target, shots, seed).train
    return reference_net(
        target.train.images[index],
        target.train.labels[index],
        len(target.class_names),
        recipe,
        flip=target.flip,
        seed=seed,
        device=device,
        architecture=suite.reference_net or REFERENCE_ARCHITECTURE,
    )


def score(suite: Suite, job: Job, device: torch.device, progress: bool) -> list[dict]:
    """All selectors of the job on one sample of the regime's training images."""
    settings = job.settings
    task = suite.task(job.task)
    recipe = suite.recipe("finetune")
    expert = load_expert(job.expert, zoo_folder(suite.name))
    index = subset(task, job.shots, job.seed).sample(settings["images_per_class"], job.seed)
    evidence = Evidence(
        expert,
        task.train.images[index],
        task.train.labels[index],
        seed=job.seed,
        device=device,
        is_generic=expert.card["source"] == suite.generic,
        reference=lambda: _reference_net(suite, job.task, job.shots, job.seed, recipe, device),
    )
    return [
        {
            "suite": suite.name,
            "expert": job.expert,
            "task": job.task,
            "shots": job.shots,
            "images_per_class": settings["images_per_class"],
            "seed": job.seed,
            "images": len(index),
            **row,
        }
        for row in score_rows(evidence, settings["selectors"])
    ]


RUN = {"zoo": train_expert, "finetune": finetune, "score": score}


def expert_is_stored(suite: str, name: str, key: str) -> bool:
    """Whether the weights that zoo job `key` makes lie in the zoo folder."""
    try:
        return read_expert(zoo_folder(suite), name.partition(":")[0])[1].get("job") == key
    except MzlibError:
        return False
