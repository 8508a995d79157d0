"""What a job of each stage does: train an expert, fine-tune one, score one. Each returns the rows
of its table.
"""

import json
import math
import time
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch.nn import Module

from mzlib.benchmark.jobs import Job
from mzlib.benchmark.scoring import score_rows
from mzlib.benchmark.suite import Suite
from mzlib.dataset import Task
from mzlib.errors import MzlibError
from mzlib.evidence import Evidence, subset
from mzlib.provenance import home, machine, put
from mzlib.reference import reference_net
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
    path = zoo_folder(suite.zoo) / "index.json"
    content = json.dumps(index, indent=1) + "\n"
    if not path.is_file() or path.read_text("utf-8") != content:
        put(path, content)


def train_expert(suite: Suite, job: Job, device: torch.device, progress: bool) -> list[dict]:
    """Train, store in fp16, and measure what was stored; one row per domain."""
    settings = job.settings
    multi_domain = "variant" in settings
    tasks = {name: suite.task(name) for name in settings.get("sources") or [settings["source"]]}
    net, own = _untrained(job, tasks, zoo_folder(job.suite))
    net.to(device)
    start = time.perf_counter()
    losses = [] if "weights" in settings else _train(net, job, tasks, own, device, progress)
    seconds = round(time.perf_counter() - start, 2)
    state = to_fp16(net.state_dict())
    net.load_state_dict(state)  # from here on, what a reader will load
    rows = []
    domains = {}
    for name, task in tasks.items():
        model = net.single(name) if multi_domain else net
        facts, statistics = _source_facts(model.eval(), task, own)
        domains[name] = facts
        prefix = f"source.{name}" if multi_domain else "source"
        state |= to_fp16({f"{prefix}.{key}": value for key, value in statistics.items()})
        row = {
            "suite": job.suite,
            "expert": f"{job.expert}:{name}" if multi_domain else job.expert,
            "architecture": settings["architecture"],
            "pretraining": settings["variant" if multi_domain else "pretraining"],
            "source": name,
            "domain": task.domain,
            "classes": len(task.class_names),
            "train_images": len(task.train.labels),
            "test_images": len(task.test.labels),
            "accuracy": round(facts["accuracy"], 5),
            "parameters": sum(p.numel() for p in net.parameters()),
            "epochs": len(losses),
            "loss_curve": curve(losses),
            "seconds": seconds,
        }
        rows.append(row)
    if multi_domain:
        about = {"variant": settings["variant"], "domains": domains}
    else:
        about = {"source": settings["source"], **domains[settings["source"]]}
    card = {
        "architecture": settings["architecture"],
        "pretraining": rows[0]["pretraining"],
        **about,
        "image_size": settings["image_size"],
        "training": settings,
        "seconds": seconds,
        "machine": machine(),
        "job": job.key,
        **own,
    }
    save_expert(zoo_folder(job.suite), job.expert, state, card)
    return rows


def _train(
    net: Module,
    job: Job,
    tasks: dict[str, Task],
    own: dict,
    device: torch.device,
    progress: bool,
) -> list[float]:
    """The losses of the epochs of a zoo job."""
    train_images = {name: len(task.train.labels) for name, task in tasks.items()}
    per_epoch = images_per_epoch(job, train_images)
    sets = {
        name: training_set(
            task.train.images,
            task.train.labels,
            flip=task.flip,
            device=device,
            per_epoch=per_epoch[name],
            **own,
        )
        for name, task in tasks.items()
    }
    data = sets if "variant" in job.settings else sets[job.settings["source"]]
    recipe = Recipe(**job.settings["recipe"])
    return train(net, data, recipe, seed=job.seed, label=str(job), progress=progress)


def images_per_epoch(job: Job, train_images: dict[str, int]) -> dict[str, int]:
    """Images that an epoch of a zoo job draws of each source.

    A single-domain expert sees each image once. A multi-domain expert sees a fixed number of every
    source, or as many in all its epochs as the source's own expert in all of its own:

        images = ceil(train_images * epochs of the own expert / epochs)

    train_images: of each source.
    """
    settings = job.settings
    if "images" in settings:
        return dict.fromkeys(train_images, settings["images"])
    if "images_as" not in settings:
        return dict(train_images)
    epochs = settings["recipe"]["epochs"]
    drawn = {}
    for source, images in train_images.items():
        recipe = Recipe(**settings["images_as"][source])
        steps = math.ceil(images / recipe.batch_size)
        drawn[source] = math.ceil(images * recipe.total_epochs(steps) / epochs)
    return drawn


def _untrained(job: Job, tasks: dict[str, Task], zoo: Path) -> tuple[Module, dict]:
    """The network a zoo job starts from: new, an expert of this zoo under a fresh head, or one that
    was trained elsewhere; and its `normalization`.
    """
    settings = job.settings
    classes = {name: len(task.class_names) for name, task in tasks.items()}
    if not {"weights", "start"} & settings.keys():
        return new_network(job, classes), {}
    source = settings["source"]
    if "weights" in settings:
        expert = load_external(settings["weights"])
        theirs = expert.model.get_classifier().out_features
        if theirs != classes[source]:
            raise MzlibError(
                f"expected {settings['weights']} to have the {classes[source]} classes "
                f"of {source}, it has {theirs}"
            )
    else:
        expert = load_expert(settings["start"], zoo)
        with_fresh_head(expert.model, classes[source], job.seed)
    return expert.model, normalization(expert)


def new_network(job: Job, classes: dict[str, int]) -> Module:
    """The network of a zoo job with random weights; classes: of each source."""
    settings = job.settings
    architecture = settings["architecture"]
    size = settings["image_size"]
    if "variant" in settings:
        build = partial(MultiDomainNet, architecture, classes, settings["variant"], size)
    else:
        build = partial(create, architecture, classes[settings["source"]], size)
    return seeded(build, job.seed)


def normalization(expert: Expert) -> dict:
    """mean and std of an expert's input where they are its own: of weights from outside, and of
    experts that start there.
    """
    return {key: expert.card[key] for key in ("mean", "std") if key in expert.card}


def _source_facts(model: Module, task: Task, own: dict) -> tuple[dict, dict[str, torch.Tensor]]:
    """What the card says of a source, and the statistics of its classes."""
    device = next(model.parameters()).device
    top1, _ = accuracy(predict(model, task.test.images, device, **own), task.test.labels)
    means, counts = class_statistics(model, task.train.images, task.train.labels, **own)
    facts = {
        "domain": task.domain,
        "class_names": list(task.class_names),
        "accuracy": top1,
        "licence": task.card.get("license", "unknown"),
    }
    return facts, {"class_means": means, "class_counts": counts}


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
    task = suite.task(job.task)
    index = subset(task, job.shots, job.seed)
    images = task.train.images
    labels = task.train.labels
    expert = load_expert(job.expert, zoo_folder(suite.zoo))
    own = normalization(expert)
    model = with_fresh_head(expert.model, len(task.class_names), job.seed).to(device)
    lr = job.settings["lr"]
    recipe = Recipe(**job.settings["recipe"] | {"lr": lr})
    start = time.perf_counter()
    options = {"flip": task.flip, "device": device, **own}
    data = training_set(images[index.train], labels[index.train], **options)
    losses = train(model, data, recipe, seed=job.seed, label=str(job), progress=progress)
    seconds = time.perf_counter() - start
    top1, by_class = accuracy(predict(model, task.test.images, device, **own), task.test.labels)
    held_out = predict(model, images[index.validation], device, **own)
    validation, _ = accuracy(held_out, labels[index.validation])
    row = {
        "suite": suite.name,
        "expert": job.expert,
        "task": job.task,
        "shots": job.shots,
        "lr": lr,
        "seed": job.seed,
        "accuracy": round(top1, 5),
        "val_accuracy": round(validation, 5),
        "train_images": len(index.train),
        "epochs": len(losses),
        "loss_curve": curve(losses),
        "class_accuracy": " ".join(f"{a:.3g}" for a in by_class),
        "seconds": round(seconds, 2),
    }
    return [row]


@lru_cache(maxsize=2)
def _reference_net(
    suite: Suite, task: str, shots: str, seed: int, data: str, device: torch.device
) -> Module:
    """`reference_net`, once for all experts that a worker scores on a task as long as its data do
    not change.
    """
    target = suite.task(task)
    index = subset(target, shots, seed).train
    return reference_net(
        target.train.images[index],
        target.train.labels[index],
        len(target.class_names),
        suite.recipe("finetune"),
        flip=target.flip,
        seed=seed,
        device=device,
        architecture=suite.reference_architecture,
    )


def score(suite: Suite, job: Job, device: torch.device, progress: bool) -> list[dict]:
    """All selectors of the job on one sample of the regime's training images."""
    per_class = job.settings["images_per_class"]
    regime = (suite, job.task, job.shots, job.seed, str(job.settings.get("data")))
    task = suite.task(job.task)
    expert = load_expert(job.expert, zoo_folder(suite.zoo))
    index = subset(task, job.shots, job.seed).sample(per_class, job.seed)
    evidence = Evidence(
        expert,
        task.train.images[index],
        task.train.labels[index],
        seed=job.seed,
        device=device,
        is_generic=expert.card["source"] == suite.generic,
        reference=lambda: _reference_net(*regime, device),
    )
    row = {
        "suite": suite.name,
        "expert": job.expert,
        "task": job.task,
        "shots": job.shots,
        "images_per_class": per_class,
        "seed": job.seed,
        "images": len(index),
    }
    return [row | scored for scored in score_rows(evidence, job.settings["selectors"])]


RUN = {"zoo": train_expert, "finetune": finetune, "score": score}


def expert_is_stored(suite: str, name: str, key: str) -> bool:
    """Whether the weights that zoo job `key` makes lie in the zoo folder."""
    try:
        _, card = read_expert(zoo_folder(suite), name.partition(":")[0])
    except MzlibError:
        return False
    return card.get("job") == key
