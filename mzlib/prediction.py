"""Classify new images with a model that `mzlib.finetuning` has saved."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mzlib.errors import MzlibError
from mzlib.evidence import batch_size
from mzlib.images import Images, input_config
from mzlib.layouts import image_files
from mzlib.tables import printable
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

    model: the folder of a fine-tuned expert. probability: softmax of the label that is said. Both
    are missing of an image that cannot be read.
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
        [(file, None) for file in files],
        labels=every,
        held_out=every < 0,
        given_split=True,
    )
    pixels, readable = images.pixels(every, input_config(expert.card), cache, progress)
    on = default_device(device)
    normalization = {key: expert.card[key] for key in ("mean", "std")}
    logits = logits_of(network.to(on), pixels, on, batch_size(pixels, on), **normalization)
    probabilities, labels = logits.softmax(1).cpu().max(1)
    said = pd.DataFrame(
        {
            "label": [names[label] for label in labels],
            "probability": probabilities.numpy().astype(float),
        },
        index=every[readable],
    )
    return pd.DataFrame({"image": [printable(file) for file in files]}).join(said)


def _class_names(folder: Path, classes: int) -> tuple[str, ...]:
    """Of the model, by its config; numbers where it has none."""
    names = json.loads((folder / "config.json").read_text("utf-8")).get("label_names")
    if isinstance(names, list) and len(names) == classes:
        return tuple(map(str, names))
    return tuple(map(str, range(classes)))


def _files(path: Path) -> list[str]:
    files = [str(path)] if path.is_file() else image_files(str(path), "", defaultdict(list))
    if not files:
        raise MzlibError(f"expected images in {printable(str(path))}, got none")
    return files
