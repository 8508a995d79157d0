"""Fine-tune an expert on your images with the paper's recipe, measure it on the test images, save it where timm can load it."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest
from timm.models import save_for_hf

from mzlib.dataset import Task
from mzlib.errors import MzlibError
from mzlib.evidence import batch_size, prepared
from mzlib.images import Images, input_config
from mzlib.provenance import home, machine
from mzlib.ranking import DEFAULT_ZOO, PAPER, open_task
from mzlib.training import MEAN, STD, Recipe, ResidentSet, autocast, default_device, train
from mzlib.zoo import Expert, with_fresh_head


@dataclass(frozen=True)
class Finetuned:
    """accuracy: share of test images, with its 95 % interval (Wilson 1927); losses: mean training loss of every epoch."""

    expert: Expert
    accuracy: float
    low: float
    high: float
    test_images: int
    losses: list[float]
    seconds: float
    folder: Path
    notes: list[str]


class StreamedSet:
    """Labelled pixels in a file that are gathered and augmented batch by batch; stands in for `ResidentSet` in `train`."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, **options):
        self.images, self.labels, self.options = images, labels, options

    def batches_per_epoch(self, batch_size: int) -> int:
        return math.ceil(len(self.images) / batch_size)

    def epoch(self, batch_size: int, generator: torch.Generator):
        """As `ResidentSet.epoch`; each image once."""
        for index in torch.randperm(len(self.images), generator=generator).tensor_split(
            self.batches_per_epoch(batch_size)
        ):
            batch = ResidentSet(
                self.images[index.numpy()], self.labels[index.numpy()], **self.options
            )
            yield batch.augmented(torch.arange(len(index)), generator), batch.labels


def finetune(
    task: Task | Images | str | Path,
    expert: Expert | str,
    *,
    zoo: str | None = None,
    out: str | Path = "finetuned",
    lr: float = PAPER.lr,
    epochs: int = PAPER.epochs,
    batch_size: int = PAPER.batch_size,
    flip: bool = False,
    seed: int = 0,
    device: torch.device | None = None,
    progress: bool = True,
) -> Finetuned:
    """Fine-tune all weights with a fresh head on the training images; save the model as `<out>/<expert>/`.

    Recipe of Deshpande et al. 2021 (`mzlib.training`): SGD, Nesterov momentum 0.9, 30 epochs, rate x0.1 at 1/2 and 5/6.
    flip: a mirrored image keeps its label. zoo: where to look for the expert (default: the committed ones).
    The folder holds model.safetensors, config.json and README.md: `timm.create_model("local-dir:<folder>", pretrained=True)`,
    for an architecture of the zoo after `import mzlib.zoo`.
    Raises MzlibError: no such expert or images, one that timm cannot rebuild, too high a rate, a test set without images.
    """
    from mzlib.zoo.external import candidates

    device = device or default_device()
    if isinstance(expert, str):
        named = {c.name: c for c in candidates(zoo or DEFAULT_ZOO)}
        expert = (named.get(expert) or candidates(expert)[0]).load()
    card, source = expert.card, open_task(task)
    if card["pretraining"] == "torchvision" or "domains" in card:
        raise MzlibError(
            f"expected an expert that timm can rebuild, got {expert.name}: take a single-domain expert, or for "
            "torchvision's weights timm's copy of them (timm:*.tv_in1k, timm:*.tv2_in1k)"
        )
    (x, y), (test_x, test_y), notes = _splits(source, card, progress)
    if not len(test_y):
        raise MzlibError(
            f"{source.name}: expected test images, got classes of one image each; add images"
        )
    model = with_fresh_head(expert.model, len(source.class_names), seed).to(device)
    tuned = Expert(expert.name, model, card)
    start, (mean, std) = time.perf_counter(), (card.get("mean", MEAN), card.get("std", STD))
    losses = train(
        model,
        StreamedSet(x, y, flip=flip, device=device, mean=mean, std=std),
        Recipe(lr, epochs, batch_size),
        seed=seed,
        label=f"{source.name}, {expert.name}",
        progress=progress,
    )
    seconds, hits = (
        time.perf_counter() - start,
        int((_predict(tuned, test_x, device) == test_y).sum()),
    )
    interval = binomtest(hits, len(test_y)).proportion_ci(method="wilson")
    folder = Path(out) / "".join(c if c.isalnum() or c in "-_." else "_" for c in expert.name)
    result = Finetuned(
        tuned,
        hits / len(test_y),
        interval.low,
        interval.high,
        len(test_y),
        losses,
        seconds,
        folder,
        notes,
    )
    _save(
        result,
        source,
        dict(lr=lr, epochs=epochs, batch_size=batch_size, flip=flip, seed=seed),
        len(y),
    )
    return result


def _splits(source: Task | Images, card: dict, progress: bool):
    """(pixels, labels) to train on, the same to test on, and notes."""
    if isinstance(source, Task):
        return (
            (source.train.images, source.train.labels),
            (source.test.images, source.test.labels),
            [],
        )
    parts, notes = [], list(source.notes)
    for split in (~source.test, source.test):
        index = np.flatnonzero(split)
        pixels, readable = (
            source.convert(index, input_config(card), home() / "runs" / "images", progress)
            if len(index)
            else (index, index > 0)
        )
        parts.append((pixels, source.labels[index[readable]]))
        notes += [f"could not be read and was skipped: {source.shown(i)}" for i in index[~readable]]
    return *parts, notes + source.overlap()


@torch.inference_mode()
def _predict(expert: Expert, images: np.ndarray, device: torch.device) -> np.ndarray:
    """Class of every image [N]."""
    size, found = batch_size(images, device), []
    for start in range(0, len(images), size):
        with autocast(device):
            found.append(
                expert.model(
                    prepared(expert, torch.tensor(images[start : start + size], device=device))
                )
                .argmax(1)
                .cpu()
            )
    return torch.cat(found).numpy()


def _save(result: Finetuned, source: Task | Images, settings: dict, train_images: int) -> None:
    card, model = result.expert.card, result.expert.model.cpu()
    config = input_config(card) | {"mean": card.get("mean", MEAN), "std": card.get("std", STD)}
    architecture = model.pretrained_cfg.get("architecture") or card["architecture"]
    save_for_hf(
        model.to(memory_format=torch.contiguous_format),
        result.folder,
        safe_serialization=True,
        model_config={
            "num_classes": len(source.class_names),
            "label_names": list(source.class_names),
            "pretrained_cfg": {k: v for k, v in config.items() if k != "num_classes"}
            | {"architecture": architecture},
        },
    )
    facts = {
        "expert": result.expert.name,
        "architecture": card["architecture"],
        "images": source.name,
        "training images": train_images,
        "test images": result.test_images,
        "test accuracy": f"{result.accuracy:.4f} (95 % interval {result.low:.4f} to {result.high:.4f})",
        "classes": len(source.class_names),
        **settings,
        "seconds": round(result.seconds, 1),
        **machine(),
    }
    lines = "\n".join(
        f"| {key} | {str(value).replace('|', chr(92) + '|')} |" for key, value in facts.items()
    )
    (result.folder / "README.md").write_text(
        f"# {result.expert.name}, fine-tuned\n\n| | |\n|---|---|\n{lines}\n\n```python\nimport mzlib.zoo, timm\n\n"
        f"model = timm.create_model({f'local-dir:{result.folder}'!r}, pretrained=True)\n```\n",
        "utf-8",
    )
