"""Fine-tune an expert on your images with the paper's recipe, measure it on the test images, save
it where timm can load it.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest
from timm.models import save_for_hf

from mzlib.dataset import LabelledImages
from mzlib.errors import MzlibError
from mzlib.evidence import batch_size as batch_size_of
from mzlib.images import input_config
from mzlib.provenance import machine
from mzlib.training import MEAN, PAPER, STD, Recipe, ResidentSet, default_device, predict, train
from mzlib.zoo import Expert, with_fresh_head


@dataclass(frozen=True)
class Finetuned:
    """accuracy: share of test images, with its 95 % interval (Wilson 1927); losses: mean training
    loss of every epoch.
    """

    expert: Expert
    accuracy: float
    low: float
    high: float
    test_images: int
    losses: list[float]
    seconds: float
    folder: Path
    notes: list[str]


def finetune(
    images: LabelledImages,
    expert: Expert,
    *,
    cache: Path | None = None,
    out: str | Path = "finetuned",
    lr: float = PAPER.lr,
    epochs: int = PAPER.epochs,
    batch_size: int = PAPER.batch_size,
    flip: bool = False,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Finetuned:
    """Fine-tune all weights with a fresh head on the training images; save the model as
    `<out>/<expert>/`.

    Recipe of Deshpande et al. 2021 (`mzlib.training`): SGD, Nesterov momentum 0.9, 30 epochs, rate
    x0.1 at 1/2 and 5/6.
    flip: a mirrored image keeps its label. cache: a folder for converted images. The folder holds
    model.safetensors, config.json and README.md: `timm.create_model("local-dir:<folder>",
    pretrained=True)`, for an architecture of the zoo after `import mzlib.zoo`. Raises MzlibError:
    an expert that timm cannot rebuild, too high a rate, a test set without images.
    """
    device = default_device(device)
    card = expert.card
    if card["pretraining"] == "torchvision" or "domains" in card:
        raise MzlibError(
            f"expected an expert that timm can rebuild, got {expert.name}: take a single-domain "
            "expert, or for torchvision's weights timm's copy of them (timm:*.tv_in1k, "
            "timm:*.tv2_in1k)"
        )
    train_x, train_y, lost = _part(images, ~images.held_out, card, cache, progress)
    test_x, test_y, lost_of_test = _part(images, images.held_out, card, cache, progress)
    if not len(test_y):
        raise MzlibError(
            f"{images.name}: expected test images, got classes of one image each; add images"
        )
    model = with_fresh_head(expert.model, len(images.class_names), seed).to(device)
    normalization = {"mean": card.get("mean", MEAN), "std": card.get("std", STD)}
    start = time.perf_counter()
    losses = train(
        model,
        ResidentSet(train_x, train_y, flip=flip, device=device, **normalization),
        Recipe(lr, epochs, batch_size),
        seed=seed,
        label=f"{images.name}, {expert.name}",
        progress=progress,
    )
    seconds = time.perf_counter() - start
    logits = predict(model, test_x, device, batch_size_of(test_x, device), **normalization)
    hits = int((logits.argmax(1).cpu().numpy() == test_y).sum())
    interval = binomtest(hits, len(test_y)).proportion_ci(method="wilson")
    result = Finetuned(
        Expert(expert.name, model, card),
        hits / len(test_y),
        interval.low,
        interval.high,
        len(test_y),
        losses,
        seconds,
        Path(out) / "".join(c if c.isalnum() or c in "-_." else "_" for c in expert.name),
        [*images.notes, *lost, *lost_of_test, *images.overlap()],
    )
    settings = {"lr": lr, "epochs": epochs, "batch_size": batch_size, "flip": flip, "seed": seed}
    _save(result, images, settings, len(train_y))
    return result


def _part(
    images: LabelledImages, part: np.ndarray, card: dict, cache: Path | None, progress: bool
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Pixels, labels, and what could not be read, of the training or the test part (bool [N])."""
    index = np.flatnonzero(part)
    pixels, readable = images.pixels(index, input_config(card), cache, progress)
    lost = [f"could not be read and was skipped: {images.shown(i)}" for i in index[~readable]]
    return pixels, images.labels[index[readable]], lost


def _save(result: Finetuned, images: LabelledImages, settings: dict, train_images: int) -> None:
    card, model = result.expert.card, result.expert.model.cpu()
    config = input_config(card) | {"mean": card.get("mean", MEAN), "std": card.get("std", STD)}
    architecture = model.pretrained_cfg.get("architecture") or card["architecture"]
    save_for_hf(
        model.to(memory_format=torch.contiguous_format),
        result.folder,
        safe_serialization=True,
        model_config={
            "num_classes": len(images.class_names),
            "label_names": list(images.class_names),
            "pretrained_cfg": {k: v for k, v in config.items() if k != "num_classes"}
            | {"architecture": architecture},
        },
    )
    facts = {
        "expert": result.expert.name,
        "architecture": card["architecture"],
        "images": images.name,
        "training images": train_images,
        "test images": result.test_images,
        "test accuracy": f"{result.accuracy:.4f} (95 % interval {result.low:.4f} to "
        f"{result.high:.4f})",
        "classes": len(images.class_names),
        **settings,
        "seconds": round(result.seconds, 1),
        **machine(),
    }
    lines = "\n".join(
        f"| {key} | {str(value).replace('|', chr(92) + '|')} |" for key, value in facts.items()
    )
    (result.folder / "README.md").write_text(
        f"# {result.expert.name}, fine-tuned\n\n| | |\n|---|---|\n{lines}\n\n"
        "```python\nimport mzlib.zoo, timm\n\n"
        f"model = timm.create_model({f'local-dir:{result.folder}'!r}, pretrained=True)\n```\n",
        "utf-8",
    )
