"""The two compact architectures of the zoo, registered with timm.

`timm.create_model("mzlib_resnet", num_classes=10)`. They stand for the paper's ResNet-101 and
DenseNet-169 (Deshpande et al. 2021, Sec. 4.1) at a size of which 30 fit in a repository: 0.7 M and
0.35 M parameters. Both take RGB images of 32 px and more, as float tensors [N, 3, H, W].
"""

from typing import Any

import timm
from timm.models import load_pretrained, register_model
from timm.models.densenet import DenseNet
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from mzlib.training import MEAN, STD


def _facts(pretrained_cfg: Any) -> dict[str, Any]:
    """Of timm's configuration of weights: a dict, a dataclass; a tag or None say nothing."""
    if isinstance(pretrained_cfg, dict):
        return pretrained_cfg
    return getattr(pretrained_cfg, "__dict__", {})


def _classes(num_classes: int | None, pretrained_cfg: Any) -> int:
    """As asked, else of the folder's weights (timm before 1.0.31 asks for none), else 1,000."""
    if num_classes is not None:
        return num_classes
    return _facts(pretrained_cfg).get("num_classes") or 1000


def _finished(model: Any, image_size: int, pretrained: bool, pretrained_cfg: Any) -> nn.Module:
    """The model with its data configuration, and a folder's weights (`local-dir:`) if asked for."""
    model.pretrained_cfg = {
        "input_size": (3, image_size, image_size),
        "mean": MEAN,
        "std": STD,
        "interpolation": "lanczos",
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
    model.default_cfg = model.pretrained_cfg
    if pretrained and not pretrained_cfg:
        raise ValueError(
            "expected pretrained=False, got True: mzlib.zoo.load_expert loads the zoo's weights"
        )
    if pretrained:
        known = _facts(pretrained_cfg)
        load_pretrained(model, known)
        if known.get("label_names"):
            model.pretrained_cfg["label_names"] = known["label_names"]
    return model


@register_model
def mzlib_resnet(
    pretrained: bool = False,
    *,
    num_classes: int | None = None,
    image_size: int = 64,
    pretrained_cfg: Any = None,
    **_: Any,
) -> nn.Module:
    """Residual net: one BasicBlock a stage, widths 24-48-96-192, deep-tiered stem; features
    [N, 192].
    """
    model = ResNet(
        BasicBlock,
        [1, 1, 1, 1],
        channels=(24, 48, 96, 192),
        stem_type="deep_tiered",
        stem_width=12,
        avg_down=True,
        num_classes=_classes(num_classes, pretrained_cfg),
    )
    return _finished(model, image_size, pretrained, pretrained_cfg)


@register_model
def mzlib_densenet(
    pretrained: bool = False,
    *,
    num_classes: int | None = None,
    image_size: int = 64,
    pretrained_cfg: Any = None,
    **_: Any,
) -> nn.Module:
    """DenseNet-BC: growth rate 12, blocks of 3-6-12-8 layers; penultimate features [N, 193]."""
    classes = _classes(num_classes, pretrained_cfg)
    model = DenseNet(growth_rate=12, block_config=(3, 6, 12, 8), num_classes=classes)
    return _finished(model, image_size, pretrained, pretrained_cfg)


def is_known(architecture: Any) -> bool:
    """Whether `create` can make it of what is here: a name of timm's, with or without a tag."""
    plain = isinstance(architecture, str) and "." not in architecture
    return timm.is_model(architecture) if plain else architecture in timm.list_pretrained()


def create(architecture: str, num_classes: int, image_size: int) -> Any:
    """A network with random weights: one of the two above, or any of timm's that takes every image
    size (resnet101, …).
    """
    size = {"image_size": image_size} if architecture in ("mzlib_resnet", "mzlib_densenet") else {}
    return timm.create_model(architecture, num_classes=num_classes, **size)
