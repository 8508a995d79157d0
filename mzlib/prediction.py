"""Classify new images with a model that `mzlib.finetuning` has saved."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from mzlib.errors import MzlibError
from mzlib.evidence import batch_size
from mzlib.images import Images, input_config, printable
from mzlib.training import default_device
from mzlib.training import predict as logits_of
from mzlib.zoo.checkpoints import load_timm_folder


def predict(
    path: str | Path,
    model: str | Path,
    *,
    device: torch.device | str | None = None,
    cache: Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """A row an image below `path` (a folder, or one file): image, label, probability.

    model: the folder of a fine-tuned expert. probability: softmax of the label that is said.
    Raises MzlibError: no image, no model, more than a tenth of the images unreadable.
    """
    expert = load_timm_folder(Path(model))
    network: Any = expert.model
    names = _class_names(Path(model), network.num_classes)
    files = _files(Path(path).expanduser())
    every = np.arange(len(files))
    images = Images(
        str(path),
        printable(Path(path).name),
        names,
        [(str(file), None) for file in files],
        labels=every,
        held_out=every < 0,
        given_split=True,
    )
    pixels, readable = images.pixels(every, input_config(expert.card), cache, progress)
    on = default_device(device)
    normalization = {key: expert.card[key] for key in ("mean", "std")}
    logits = logits_of(network.to(on), pixels, on, batch_size(pixels, on), **normalization)
    probabilities, labels = logits.softmax(1).cpu().max(1)
    kept = [printable(str(file)) for file, good in zip(files, readable) if good]
    return pd.DataFrame(
        {
            "image": kept,
            "label": [names[label] for label in labels],
            "probability": probabilities.numpy().astype(float),
        }
    )


def _class_names(folder: Path, classes: int) -> tuple[str, ...]:
    """Of the model, by its config; numbers where it has none."""
    names = json.loads((folder / "config.json").read_text("utf-8")).get("label_names")
    if isinstance(names, list) and len(names) == classes:
        return tuple(map(str, names))
    return tuple(map(str, range(classes)))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    known = Image.registered_extensions()
    files = [f for f in path.rglob("*") if f.suffix.lower() in known and f.is_file()]
    if not files:
        raise MzlibError(f"expected images in {printable(str(path))}, got none")
    return sorted(files)
