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
from mzlib.layouts import HEIC, Skipped, image_files, told
from mzlib.pixels import extensions
from mzlib.tables import printable
from mzlib.training import default_device
from mzlib.training import predict as logits_of
from mzlib.zoo.checkpoints import load_timm_folder

IMAGES = "images (a file or a folder)"
MODEL = "a folder that mzlib finetune has written (it holds config.json)"
CONFIG = "config.json"


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
    are missing of an image that cannot be read. `attrs["notes"]` of the table: what was skipped and
    what else a reader should know, a line each.
    Raises MzlibError: no image, no model, more than a tenth of the images unreadable.
    """
    path = _path(path, IMAGES)
    files, notes = _files(path)
    folder = _model_folder(_path(model, MODEL))
    expert = load_timm_folder(folder)
    network: Any = expert.model
    names = _class_names(folder, network.num_classes)
    every = np.arange(len(files))
    images = Images(
        str(path),
        printable(path.name),
        names,
        [(file, None) for file in files],
        labels=every,
        held_out=every < 0,
        given_split=True,
        notes=notes,
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
    table = pd.DataFrame({"image": [printable(file) for file in files]}).join(said)
    table.attrs["notes"] = images.notes
    return table


def _path(given: Any, expected: str) -> Path:
    if isinstance(given, str | Path) and str(given):
        return Path(given).expanduser()
    got = repr(given) if isinstance(given, str) else f"an object of {type(given).__name__}"
    raise MzlibError(f"expected {expected}, got {got}")


def _model_folder(folder: Path) -> Path:
    """The folder; raises MzlibError where it holds no model, with those below it that do."""
    if (folder / CONFIG).is_file():
        return folder
    below = sorted(file.parent.name for file in folder.glob(f"*/{CONFIG}"))[:3]
    got = "; it has the folders " + ", ".join(below) if below else ""
    raise MzlibError(f"expected {MODEL}, got {printable(str(folder) + got)}")


def _class_names(folder: Path, classes: int) -> tuple[str, ...]:
    """Of the model, by its config; numbers where it has none."""
    names = json.loads((folder / CONFIG).read_text("utf-8")).get("label_names")
    if isinstance(names, list) and len(names) == classes:
        return tuple(map(str, names))
    return tuple(map(str, range(classes)))


def _files(path: Path) -> tuple[list[str], list[str]]:
    """Images to classify, also those beside others that are named as their masks, and a note on
    each kind of file that is skipped.
    """
    shown = printable(str(path))
    if path.is_file():
        if path.suffix.lower() not in ("", *extensions()):
            advice = "; do pip install pillow-heif" if path.suffix.lower() in HEIC else ""
            raise MzlibError(f"expected {IMAGES}, got {shown}{advice}")
        return [str(path)], []
    if not path.exists():
        raise MzlibError(f"expected {IMAGES}, got {shown}, where nothing is")
    skipped: Skipped = defaultdict(list)
    files = image_files(str(path), "", skipped, of_class=False)
    notes = told(skipped)
    if not files:
        raise MzlibError(f"expected images in {shown}, got {'; '.join(['none', *notes])}")
    return files, notes
