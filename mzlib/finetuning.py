"""Fine-tune an expert on your images with the paper's recipe, measure it on the test images, save
it where timm can load it.

Validation images pick the epoch. Of 200 training images and more a fifth of each class is held out
for that; fewer are split into folds, and a last run on all of them takes the epoch that the folds
agree on. Folds, too, where several experts of few images a class are compared.
"""

import copy
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy import ndarray
from safetensors.torch import save_file
from scipy.stats import binomtest
from timm.models import save_for_hf
from torch import Tensor
from torch.nn import Module

from mzlib.dataset import LabelledImages, few_shot
from mzlib.errors import MzlibError
from mzlib.evidence import batch_size as batch_size_of
from mzlib.evidence import normalization, resized
from mzlib.images import input_config
from mzlib.provenance import machine
from mzlib.training import (
    PAPER,
    Checkpoint,
    Recipe,
    ResidentSet,
    accuracy,
    default_device,
    predict,
    train,
)
from mzlib.uncertainty import leave_group_out
from mzlib.zoo import Expert, heads, with_fresh_head
from mzlib.zoo.architectures import is_known

FEW = 200  # training images under which folds are made
FOLDS = 5
SHARE = 5  # one in so many images of a class is for validation
UNFINISHED = ".training"  # the folder of a run that has not ended
OWN_RATE = 0.05  # of the committed networks: what their suite fine-tunes with
MOST = 50  # validation images of a class
FOLDED = 30  # images a class up to which folds, not held-out images, compare experts
CARD = Path(__file__).with_name("model_card.md.j2")


@dataclass(frozen=True)
class Past:
    """What fine-tunes of the first three experts of a ranking on past targets tell.

    slope: how much more accurate an expert is than the one ranked after it; between: variance of
    the accuracies about that line; noise: variance of validation minus test accuracy, in units of
    the binomial one.
    """

    slope: float
    between: float
    noise: float


# `mzlib rank`'s order on the 54 targets of thumb64, four folds (benchmarks/validation_rules.py)
THUMB64 = Past(slope=0.00571, between=0.000592, noise=0.921)


@dataclass(frozen=True)
class Finetuned:
    """A fine-tuned expert and how good it is.

    accuracy: share of test images, with its 95 % interval low to high (Wilson 1927); balanced: mean
    of the accuracies within classes; confusion: int [K, K], true classes by predicted ones.
    validation: accuracy on validation_images after `epoch`, which it picked (over all folds).
    losses: mean training loss of every epoch.
    """

    expert: Expert
    accuracy: float
    low: float
    high: float
    balanced: float
    confusion: ndarray
    test_images: int
    validation: float
    validation_images: int
    epoch: int
    losses: list[float]
    seconds: float
    folder: Path
    notes: list[str]


@dataclass(frozen=True)
class Labelled:
    """Pixels uint8 [N, S, S, 3] as the expert sees them, and labels int64 [N]."""

    pixels: ndarray
    labels: ndarray

    def part(self, index: ndarray) -> "Labelled":
        """The images at these positions."""
        return Labelled(self.pixels[index], self.labels[index])


def default_rate(card: dict) -> float:
    """0.05 for the networks of this project's zoo, else the paper's 0.005 (for its ResNet-101)."""
    return OWN_RATE if card["architecture"].startswith("mzlib_") else PAPER.lr


def shrunk(validated: ndarray, images: int, past: Past) -> ndarray:
    """Posterior means [n] of the test accuracies of n experts, best ranked first, from their
    accuracies float [n] on so many validation images: empirical Bayes towards the ranking.

    prior:     accuracy_i ~ N(mean + slope · ((n - 1) / 2 - i), between), i = 0, 1, …
    seen:      validated_i ~ N(accuracy_i, noise · mean (1 - mean) / images)
    posterior: prior mean + between / (between + variance of the noise) · (validated - prior mean)
    """
    place = np.arange(len(validated))
    mean = validated.mean()
    expected = mean + past.slope * (place.mean() - place)
    variance = past.noise * mean * (1 - mean) / images
    total = past.between + variance
    weight = past.between / total if total else 0.0
    return expected + weight * (validated - expected)


def choose_best(tried: Sequence[Finetuned]) -> Finetuned:
    """The one to keep of several experts, best ranked first: of the highest validation accuracy,
    shrunk towards the ranking (`shrunk`); among equals the one that ranks higher. The test images
    have no say.

    Of the rules compared on thumb64 with 30 images a class (benchmarks/validation_rules.py) this
    one gains most with `mzlib rank`'s order, and with folds more than the best on held-out images.
    """
    validated = np.array([done.validation for done in tried])
    images = min(done.validation_images for done in tried)
    return tried[int(np.argmax(shrunk(validated, images, THUMB64)))]


def use_folds(images: LabelledImages) -> bool:
    """Whether to compare experts over folds: 30 training images a class or fewer."""
    training = (~images.held_out).sum()
    return bool(training <= FOLDED * len(images.class_names))


def finetune(
    images: LabelledImages,
    expert: Expert,
    *,
    out: str | Path = "finetuned",
    lr: float | None = None,
    epochs: int = PAPER.epochs,
    batch_size: int = PAPER.batch_size,
    flip: bool = False,
    freeze: bool = False,
    folds: bool = False,
    time_limit: float | None = None,
    force: bool = False,
    seed: int = 0,
    device: torch.device | str | None = None,
    cache: Path | None = None,
    progress: bool = True,
) -> Finetuned:
    """Fine-tune with a fresh head on the training images; save the model as `<out>/<expert>/`.

    Recipe of Deshpande et al. 2021 (`mzlib.training`): SGD, Nesterov momentum 0.9, 30 epochs, rate
    x0.1 at 1/2 and 5/6. lr: by default 0.05 for the small networks of this project's zoo, 0.005 for
    all others. flip: a mirrored image keeps its label. freeze: only the head learns. folds:
    validate over five folds (six runs) also of 200 images and more, as of fewer always. time_limit:
    seconds after which no epoch begins. force: write over a model that is there. cache: a folder
    for converted images. A run that was interrupted, or killed, goes on when it is called again.

    The folder holds model.safetensors (of the best epoch), config.json, README.md, confusion.csv
    and last.safetensors: `timm.create_model("local-dir:<folder>", pretrained=True)`, for an
    architecture of the zoo after `import mzlib.zoo`. The expert is left as it is.

    Raises MzlibError: an expert that timm cannot rebuild, too high a rate, a test set without
    images, a folder that is taken or cannot be written.
    """
    start = time.monotonic()
    _check(images, expert)
    _check_recipe(lr, epochs, batch_size)
    folder = Path(out) / "".join(c if c.isalnum() or c in "-_." else "_" for c in expert.name)
    _claim(folder, force)
    training, lost = _part(images, ~images.held_out, expert.card, cache, progress)
    test, lost_of_test = _part(images, images.held_out, expert.card, cache, progress)
    recipe = Recipe(lr or default_rate(expert.card), epochs, batch_size)
    settings = {"lr": recipe.lr, "epochs": epochs, "batch_size": batch_size}
    settings |= {"flip": flip, "freeze": freeze, "folds": folds, "seed": seed}
    facts = _facts(expert, training, settings)
    _resume(folder, facts, force)
    label = f"{images.name}, {expert.name}" if progress else ""
    place = folder / UNFINISHED
    on = default_device(device)
    classes = len(images.class_names)
    trainer = Trainer(expert, classes, recipe, flip, freeze, folds, seed, on, place, facts, label)
    run = trainer.all(training, start + time_limit if time_limit else math.inf)
    run.model.load_state_dict(run.best)
    result = _measured(images, expert, trainer, run, test)
    notes = [*images.notes, *lost, *lost_of_test, *images.overlap(), *result.notes]
    result = replace(result, notes=notes, seconds=time.monotonic() - start, folder=folder)
    _save(result, images, settings, run.last, len(training.labels))
    return result


def _check(images: LabelledImages, expert: Expert) -> None:
    if images.targets is not None:
        raise MzlibError(
            f"{images.name}: expected one class an image to fine-tune for, got numbers or several "
            "labels: take the best expert to a training loop of your own"
        )
    if not is_known(_architecture(expert)) or "domains" in expert.card:
        raise MzlibError(
            f"expected an expert that timm can rebuild, got {expert.name}: take a single-domain "
            "expert, or a network of timm (of torchvision's it has copies: timm:*.tv_in1k, "
            "timm:*.tv2_in1k)"
        )
    if not images.held_out.any():
        raise MzlibError(
            f"{images.name}: expected test images, got classes of one image each; add images"
        )


def _check_recipe(lr: float | None, epochs: int, batch_size: int) -> None:
    for setting, value in {"epochs": epochs, "batch_size": batch_size}.items():
        if value < 1 or value != int(value):
            raise MzlibError(f"expected {setting} to be a whole number above 0, got {value}")
    if lr is not None and not lr > 0:
        raise MzlibError(f"expected a rate above 0, got {lr}")


def _architecture(expert: Expert) -> str:
    """By timm's name, if it has one."""
    known = getattr(expert.model, "pretrained_cfg", None) or {}
    return known.get("architecture") or expert.card["architecture"]


def _claim(folder: Path, force: bool) -> None:
    """Make the folder of an unfinished run; MzlibError where a model is, or nothing can be put."""
    try:
        held = [entry.name for entry in folder.iterdir()] if folder.exists() else []
        if held and UNFINISHED not in held and not force:
            raise MzlibError(
                f"expected a new folder for the model, got {str(folder)!r}, which holds "
                f"{sorted(held)[0]}: do --out with another folder, or --force to write over it"
            )
        (folder / UNFINISHED).mkdir(parents=True, exist_ok=True)
        (folder / UNFINISHED / "writable").write_bytes(b"")
    except OSError as error:
        raise MzlibError(
            f"expected a folder that can be written, got {str(folder)!r}: {error.strerror}"
        ) from error


def _facts(expert: Expert, training: Labelled, settings: dict) -> str:
    """What a run depends on, as JSON."""
    digest = hashlib.sha256(np.ascontiguousarray(training.labels).tobytes())
    for pixels in training.pixels:
        digest.update(pixels.tobytes())
    known = {"expert": expert.digest or expert.name, "images": digest.hexdigest()}
    return json.dumps(known | settings)


def _resume(folder: Path, facts: str, force: bool) -> None:
    """Note whose run it is; MzlibError where the folder holds an unfinished one of another kind."""
    file = folder / UNFINISHED / "run.json"
    if file.is_file() and file.read_text("utf-8") != facts:
        if not force:
            raise MzlibError(
                f"{str(folder)!r} holds an unfinished run with other images or settings: repeat "
                "these to go on with it, or do --force to start over"
            )
        shutil.rmtree(folder / UNFINISHED)
        (folder / UNFINISHED).mkdir()
    file.write_text(facts, "utf-8")


def _part(
    images: LabelledImages, part: ndarray, card: dict, cache: Path | None, progress: bool
) -> tuple[Labelled, list[str]]:
    """The training or the test images (part: bool [N]), and which could not be read."""
    index = np.flatnonzero(part)
    pixels, readable = images.pixels(index, input_config(card), cache, progress)
    lost = [f"could not be read and was skipped: {images.shown(i)}" for i in index[~readable]]
    if "mean" in card and pixels.shape[1] != card["image_size"]:  # a task at its own size
        pixels = _resized(pixels, card["image_size"])
    if pixels.shape[1] != pixels.shape[2]:
        raise MzlibError(f"expected an expert of square images, got {list(pixels.shape[1:3])}")
    return Labelled(pixels, images.labels[index[readable]]), lost


def _resized(pixels: ndarray, size: int) -> ndarray:
    """As `mzlib.evidence.prepared` resizes."""
    parts = []
    for start in range(0, len(pixels), 256):
        x = torch.tensor(pixels[start : start + 256]).permute(0, 3, 1, 2).float()
        x = resized(x, size)
        parts.append(x.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def splits(labels: ndarray, seed: int, folds: bool = False) -> list[tuple[ndarray, ndarray]]:
    """Positions (to train on, to validate on): one pair; or five folds, where these are asked for
    and of fewer than 200 images.
    """
    everything = np.arange(len(labels))
    if len(labels) >= FEW and not folds:
        shares = []
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            number = min(MOST, len(members) // SHARE)
            if number:
                shares.append(members[few_shot(np.zeros(len(members), int), number, seed)])
        if shares:
            held_out = np.sort(np.concatenate(shares))
            return [(np.setdiff1d(everything, held_out), held_out)]
    kept = leave_group_out(labels, FOLDS, seed)
    return [(part, np.setdiff1d(everything, part)) for part in kept]


def best_epoch(hits: list[int], losses: list[float]) -> int:
    """Counted from 1: the most right answers, then the smallest loss, then the first."""
    return 1 + max(range(len(hits)), key=lambda i: (hits[i], -losses[i]))


@dataclass
class Run:
    """A trained model; state dicts of its best and its last epoch; what validation said by epoch.

    hits: right answers, by epoch; validated: of how many images; epoch: the best one.
    """

    model: Module
    losses: list[float]
    best: dict[str, Tensor]
    last: dict[str, Tensor]
    hits: list[int]
    validation_losses: list[float]
    validated: int
    epoch: int


@dataclass
class Trainer:
    """Runs the recipe with one expert; every run leaves a checkpoint in `folder`."""

    expert: Expert
    classes: int
    recipe: Recipe
    flip: bool
    freeze: bool
    folds: bool
    seed: int
    device: torch.device
    folder: Path
    facts: str
    label: str

    def fresh(self) -> Module:
        """A copy of the expert with a new head; frozen, the rest of it does not learn."""
        model: Any = with_fresh_head(copy.deepcopy(self.expert.model), self.classes, self.seed)
        if self.freeze:
            model.requires_grad_(False)
            for head in heads(model):
                head.requires_grad_(True)
            model.eval()
            model.train = lambda mode=True: model  # batch norm keeps its statistics
        return model.to(self.device)

    def logits(self, model: Module, pixels: ndarray) -> Tensor:
        """Float32 [N, K]."""
        size = batch_size_of(pixels, self.device)
        return predict(model, pixels, self.device, size, **normalization(self.expert)).cpu()

    def all(self, training: Labelled, ends_at: float) -> Run:
        """Hold-out: one run whose best epoch is kept. Folds: these, and a run on all images."""
        parts = splits(training.labels, self.seed, self.folds)
        if len(parts) == 1:
            train_on, validate_on = parts[0]
            return self.run("run", training.part(train_on), ends_at, training.part(validate_on))
        runs = []
        for i, (train_on, validate_on) in enumerate(parts):
            left = (ends_at - time.monotonic()) / (len(parts) + 1 - i)
            held_out = training.part(validate_on)
            fold = training.part(train_on)
            runs.append(self.run(f"fold {i + 1}", fold, time.monotonic() + left, held_out))
        epochs = min(len(run.hits) for run in runs)
        hits = np.sum([run.hits[:epochs] for run in runs], axis=0)
        losses = np.sum([run.validation_losses[:epochs] for run in runs], axis=0)
        epoch = best_epoch(hits.tolist(), losses.tolist())
        whole = self.run("run", training, ends_at, keep=epoch)
        validated = sum(run.validated for run in runs)
        return replace(
            whole, hits=hits.tolist(), validation_losses=losses.tolist(), validated=validated
        )

    def run(
        self,
        name: str,
        training: Labelled,
        ends_at: float,
        validation: Labelled | None = None,
        keep: int = 0,
    ) -> Run:
        """Train; keep the state of the epoch that validation finds best, or of epoch `keep`."""
        model = self.fresh()
        checkpoint = Checkpoint(self.folder / f"{name.replace(' ', '-')}.pt", self.facts)
        data = ResidentSet(
            training.pixels,
            training.labels,
            flip=self.flip,
            device=self.device,
            **normalization(self.expert),
        )

        def look(epoch: int, epochs: int) -> bool:
            kept = checkpoint.extra
            best = min(epoch, keep)
            if validation is not None:
                hits, loss = self._quality(model, validation)
                kept["hits"] = [*kept.get("hits", []), hits]
                kept["losses"] = [*kept.get("losses", []), loss]
                best = best_epoch(kept["hits"], kept["losses"])
            if best == epoch:
                kept["best"] = _snapshot(model)
                kept["epoch"] = epoch
            waited = validation is not None and epoch - best >= max(1, epochs // 2)
            return waited or time.monotonic() > ends_at

        losses = train(
            model,
            data,
            self.recipe,
            seed=self.seed,
            label=f"{self.label}, {name}",
            progress=bool(self.label),
            after_epoch=look,
            checkpoint=checkpoint,
        )
        kept = checkpoint.extra
        return Run(
            model,
            losses,
            kept["best"],
            _snapshot(model),
            kept.get("hits", []),
            kept.get("losses", []),
            len(validation.labels) if validation is not None else 0,
            kept["epoch"],
        )

    def _quality(self, model: Module, validation: Labelled) -> tuple[int, float]:
        """Right answers and summed cross-entropy."""
        model.eval()
        logits = self.logits(model, validation.pixels)
        model.train()
        labels = torch.tensor(validation.labels)
        hits = int((logits.argmax(1) == labels).sum())
        return hits, float(F.cross_entropy(logits, labels, reduction="sum"))


def _snapshot(model: Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def _measured(
    images: LabelledImages, expert: Expert, trainer: Trainer, run: Run, test: Labelled
) -> Finetuned:
    logits = trainer.logits(run.model, test.pixels)
    found = logits.argmax(1).numpy()
    top1, by_class = accuracy(logits, test.labels)
    hits = int((found == test.labels).sum())
    interval = binomtest(hits, len(found)).proportion_ci(method="wilson")
    confusion = np.zeros((len(images.class_names),) * 2, int)
    np.add.at(confusion, (test.labels, found), 1)
    largest = int(confusion.sum(1).argmax())
    share = confusion.sum(1)[largest] / len(found)
    notes = []
    if interval.low <= share:
        notes.append(
            f"{expert.name} may be no better than always to say {images.class_names[largest]} "
            f"({share:.0%} of the test images): give more images, or try another expert or rate"
        )
    return Finetuned(
        expert=Expert(expert.name, run.model, expert.card),
        accuracy=top1,
        low=interval.low,
        high=interval.high,
        balanced=float(np.nanmean(by_class)),
        confusion=confusion,
        test_images=len(found),
        validation=run.hits[run.epoch - 1] / run.validated,
        validation_images=run.validated,
        epoch=run.epoch,
        losses=run.losses,
        seconds=0.0,
        folder=Path(),
        notes=notes,
    )


def _save(
    result: Finetuned,
    images: LabelledImages,
    settings: dict,
    last: dict[str, Tensor],
    train_images: int,
) -> None:
    """Write all files beside the checkpoints, then move them to their place, the config at last."""
    card = result.expert.card
    model: Any = result.expert.model.cpu()
    names = list(images.class_names)
    config = input_config(card) | normalization(result.expert)
    config.pop("num_classes", None)
    config["architecture"] = _architecture(result.expert)
    known = getattr(model, "pretrained_cfg", None) or {}
    model.pretrained_cfg = known | {"architecture": config["architecture"]}  # timm < 1.0.31 asks it
    unfinished = result.folder / UNFINISHED
    written = unfinished / "written"
    save_for_hf(
        model.to(memory_format=torch.contiguous_format),
        str(written),
        safe_serialization=True,
        model_config={"num_classes": len(names), "label_names": names, "pretrained_cfg": config},
    )
    save_file({name: v.contiguous() for name, v in last.items()}, written / "last.safetensors")
    table = pd.DataFrame(result.confusion, index=names, columns=names)
    table.rename_axis("true class, by predicted class").to_csv(written / "confusion.csv")
    (written / "README.md").write_text(_readme(result, images, settings, train_images), "utf-8")
    for file in sorted(written.iterdir(), key=lambda file: file.name == "config.json"):
        os.replace(file, result.folder / file.name)
    shutil.rmtree(unfinished)


def _readme(result: Finetuned, images: LabelledImages, settings: dict, train_images: int) -> str:
    facts = {
        "expert": result.expert.name,
        "architecture": result.expert.card["architecture"],
        "images": images.name,
        "training images": train_images,
        "test images": result.test_images,
        "validation accuracy": f"{result.validation:.4f}, which picked epoch {result.epoch}",
        "test accuracy": f"{result.accuracy:.4f} (95 % interval {result.low:.4f} to "
        f"{result.high:.4f})",
        "class-balanced test accuracy": f"{result.balanced:.4f}",
        "classes": len(images.class_names),
        **settings,
        "seconds": round(result.seconds, 1),
        **machine(),
    }
    template = jinja2.Template(CARD.read_text("utf-8"), keep_trailing_newline=True)
    place = repr(f"local-dir:{result.folder}")
    return template.render(expert=result.expert.name, facts=facts, place=place)
