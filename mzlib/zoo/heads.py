"""A classifier's two ends, whatever timm calls them: penultimate features, logits, a fresh head."""

from typing import Any

import torch
from torch import nn

from mzlib.errors import MzlibError
from mzlib.linearization.model import Output


def features(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Penultimate features [B, D]: what the classifier sees (paper App. C).

    Of two heads with inputs of their own, as in distilled transformers, timm's mean of both.
    """
    return outputs(model, images)[0]


def outputs(model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(features [B, D], logits [B, S]) of float images [B, 3, H, W], by one pass of the backbone.

    In eval mode the logits are those of `model(images)`; of a model without a head, the features.
    """
    if not hasattr(model, "forward_head"):  # not of timm
        net = Output(model, "features")
        return net(images), _logits(net.logits)[: len(images)]
    maps = model.forward_features(images)
    return _pooled(model, maps), _logits(model.forward_head(maps))


def _pooled(model: nn.Module, maps: torch.Tensor) -> torch.Tensor:
    pooled = model.forward_head(maps, pre_logits=True)
    if isinstance(pooled, tuple | list):  # a token for each of two heads
        pooled = torch.stack(tuple(pooled)).mean(0)
    return pooled.flatten(1)


def _logits(answer: Any) -> torch.Tensor:
    """Of several heads in training mode, the mean; Hugging Face wraps its own."""
    answer = getattr(answer, "logits", answer)
    if isinstance(answer, tuple | list):
        answer = torch.stack(tuple(answer)).mean(0)
    return answer.flatten(1)


def heads(model: nn.Module) -> list[nn.Module]:
    """The layers that give logits: one, two of a distilled model, none without a classifier."""
    if getattr(model, "num_classes", None) == 0:
        return []
    if hasattr(model, "get_classifier"):
        found = model.get_classifier()
    else:
        found = model.get_submodule(_last_linear(model))
    parts = list(found) if isinstance(found, tuple | list) else [found]
    layers = [layer for part in parts for layer in part.modules()]
    return [layer for layer in layers if isinstance(layer, nn.Linear | nn.Conv2d)]


def _last_linear(model: nn.Module) -> str:
    """The name of the classifier of a network that is not of timm."""
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if not names:
        raise MzlibError(f"expected a model with a linear layer, got {type(model).__name__}")
    return names[-1]


def with_fresh_head(model: nn.Module, num_classes: int, seed: int, std: float = 0.01) -> nn.Module:
    """Replace the classifier by one with weights i.i.d. N(0, std²) and zero bias.

    The paper does not state its own distribution. Of two heads each is drawn.
    """
    if hasattr(model, "reset_classifier"):
        model.reset_classifier(num_classes)
    else:
        name = _last_linear(model)
        width = model.get_submodule(name).in_features
        model.set_submodule(name, nn.Linear(width, num_classes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for head in heads(model):
            drawn = torch.empty_like(head.weight, device="cpu").normal_(0, std, generator=generator)
            head.weight.copy_(drawn)
            if head.bias is not None:
                head.bias.zero_()
    return model
