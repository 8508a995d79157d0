"""An expert: a network trained on a source, as weights (safetensors, fp16) beside a JSON card.

`<folder>/<name>.safetensors` holds the state dict and, under `source.*`, the class means of the source training set in the
expert's own features; `<folder>/<name>.json` is the card. The card is written last: an expert without one does not exist.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save
from torch import nn

from mzlib.errors import MzlibError
from mzlib.provenance import put
from mzlib.training import predicted
from mzlib.zoo.architectures import create, is_known
from mzlib.zoo.multi_domain import MultiDomainNet

TEXT = ("a text", lambda v: isinstance(v, str))
WHOLE = ("a positive whole number", lambda v: type(v) is int and v > 0)
NAMES = (
    "a list of names",
    lambda v: isinstance(v, list) and all(isinstance(name, str) for name in v),
)
KNOWN = ("an architecture of timm", is_known)
INPUT = {  # an expert's preprocessing, in timm's words
    "input_size": (
        "[3, height, width]",
        lambda v: _three(v) and v[0] == 3 and all(map(WHOLE[1], v)),
    ),
    "mean": ("three numbers", lambda v: _three(v)),
    "std": ("three positive numbers", lambda v: _three(v) and min(v) > 0),
    "crop_pct": ("a positive number", lambda v: type(v) in (int, float) and 0 < v < math.inf),
    "interpolation": (
        "a filter",
        lambda v: v in ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"),
    ),
    "crop_mode": ("a mode", lambda v: v in ("center", "squash", "border")),
}
CARD = {
    "architecture": KNOWN,
    "source": TEXT,
    "pretraining": TEXT,
    "class_names": NAMES,
    "image_size": WHOLE,
    "sha256": TEXT,
    "accuracy": ("a number or null", lambda v: v is None or type(v) in (int, float)),
}


@dataclass(frozen=True)
class Expert:
    """A pre-trained network with what selectors may want to know of its source.

    model: in eval mode on the CPU, with its source classifier (num_classes 0 when it has none).
    class_means: float32 [S, D], class_counts: int64 [S] of the source training set, or None when unknown.
    card: JSON-able facts: architecture, source, pretraining, domain, class_names, accuracy on the source test set, …
    """

    name: str
    model: nn.Module
    card: dict
    class_means: torch.Tensor | None = None
    class_counts: torch.Tensor | None = None
    digest: str = field(default="")

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


def features(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Penultimate features [B, D] of a timm model: what its classifier sees (paper App. C)."""
    return model.forward_head(model.forward_features(images), pre_logits=True)


def with_fresh_head(model: nn.Module, num_classes: int, seed: int, std: float = 0.01) -> nn.Module:
    """Replace the classifier by one with weights i.i.d. N(0, std²) and zero bias (the paper does not state its own)."""
    model.reset_classifier(num_classes)
    head = model.get_classifier()
    with torch.no_grad():
        head.weight.normal_(0, std, generator=torch.Generator().manual_seed(seed))
        head.bias.zero_()
    return model


def class_statistics(
    model: nn.Module, images: np.ndarray, labels: np.ndarray, **normalization
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean penultimate feature float32 [S, D] and size int64 [S] of every class of uint8 images [N, H, W, 3]."""
    device, y, start = next(model.parameters()).device, torch.tensor(labels), 0
    counts = torch.bincount(y)
    sums = torch.zeros(len(counts), model.head_hidden_size)
    for f in predicted(lambda x: features(model, x), images, device, **normalization):
        sums.index_add_(0, y[start : start + len(f)], f.cpu())
        start += len(f)
    return sums / counts[:, None], counts


def half(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict as it is stored: floating tensors in fp16; raises MzlibError for values fp16 cannot hold."""
    stored = {
        k: v.detach().cpu().half().contiguous() if v.is_floating_point() else v.cpu()
        for k, v in state.items()
    }
    broken = [k for k, v in stored.items() if not torch.isfinite(v).all()]
    if broken:
        raise MzlibError(
            f"expected weights that fp16 can hold, got overflow or NaN in {broken[0]}: train at a lower rate"
        )
    return stored


def save_expert(folder: Path, name: str, state: dict[str, torch.Tensor], card: dict) -> None:
    """Write weights, then card, each as a whole."""
    weights = save(state)
    card = {**card, "name": name, "sha256": hashlib.sha256(weights).hexdigest()}
    put(folder / f"{name}.safetensors", weights)
    put(folder / f"{name}.json", json.dumps(card, indent=1, ensure_ascii=False) + "\n")


def _three(value) -> bool:
    several = isinstance(value, list | tuple) and len(value) == 3
    return several and all(type(v) in (int, float) and abs(v) < math.inf for v in value)


def check(table, rules: dict[str, tuple[str, Callable]], where, optional: bool = False) -> None:
    """Raises MzlibError naming a key of `rules` for which `table` has a wrong value, or none, unless they are optional."""
    if not isinstance(table, dict):
        raise MzlibError(f"{where}: expected a table, got {str(table)[:60]!r}")
    for key, (what, good) in rules.items():
        if not (good(table[key]) if key in table else optional):
            raise MzlibError(
                f"{where}: expected {what} for {key!r}, got {repr(table[key])[:60] if key in table else 'none'}"
            )


def told(error: Exception) -> str:
    """The kind of an error and the first sentence of its message, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).partition('. ')[0].split()[:40])}"


def read_expert(folder: Path, name: str) -> tuple[dict[str, torch.Tensor], dict]:
    """(state dict in float32, card) of a saved expert; MzlibError when absent, damaged or unlike its card's checksum."""
    try:
        card = json.loads((folder / f"{name}.json").read_text("utf-8"))
        content = (folder / f"{name}.safetensors").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        there = ", ".join(sorted(p.stem for p in folder.glob("*.json"))) or "none"
        raise MzlibError(f"expected an expert {name!r} in {folder}, found: {there}") from None
    except (ValueError, RecursionError) as error:
        raise MzlibError(
            f"expected a JSON card in {folder / name}.json, got {error}: train the expert again"
        ) from None
    check(card, {"sha256": TEXT}, folder / f"{name}.json")
    if hashlib.sha256(content).hexdigest() != card["sha256"]:
        raise MzlibError(
            f"expected the weights that {name}.json describes, {name}.safetensors differs: train it again"
        )
    try:
        state = load(content)
    except Exception as error:  # safetensors' own, or of a type or shape that torch has not
        raise MzlibError(
            f"expected safetensors in {folder / name}.safetensors, got {told(error)}"
        ) from error
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}, card


def load_expert(name: str, folder: Path | None = None) -> Expert:
    """An expert by name: `resnet-gtsrb-scratch`, `multi_bn:gtsrb` (one domain of a multi-domain expert) from `folder`, or
    from outside `timm:resnet50.a1_in1k`, `torchvision:ResNet50_Weights.IMAGENET1K_V2` (downloaded by those libraries)."""
    if folder is None and name.startswith(("timm:", "torchvision:")):
        from mzlib.zoo.external import (
            load_external,
        )  # imports torchvision, seconds that most calls need not pay

        return load_external(name)
    stem, _, domain = name.partition(":")
    (state, card), path = read_expert(folder, stem), folder / f"{stem}.json"
    check(card, {"domains": ("a table", lambda v: isinstance(v, dict))}, path, optional=True)
    domains = card.get("domains", {})
    if set(domains) and domain not in domains or domain and not domains:
        raise MzlibError(
            f"expected a domain of {stem} ({', '.join(domains) or 'it has none to choose'}), got {domain!r}"
        )
    for facts in domains.values():
        check(facts, {"class_names": NAMES}, path)
    card |= {**domains[domain], "source": domain} if domain else {}
    check(card, CARD, path)
    check(
        card,
        {key: INPUT[key] for key in ("mean", "std")},
        path,
        optional=not {"mean", "std"} & set(card),
    )
    check(card.get("input", {}), INPUT, path, optional="input" not in card)
    source = {k: state.pop(k) for k in list(state) if k.startswith("source.")}
    prefix, classes = f"source.{domain}." if domain else "source.", len(card["class_names"])
    try:
        if domain:
            counts = {d: len(facts["class_names"]) for d, facts in domains.items()}
            model = MultiDomainNet(
                card["architecture"], counts, card["variant"], card["image_size"]
            )
        else:
            model = create(card["architecture"], classes, card["image_size"])
        model.load_state_dict(state)
        model = model.single(domain) if domain else model
        means, counts = (source[f"{prefix}class_{what}"] for what in ("means", "counts"))
        if means.shape != (classes, model.head_hidden_size) or counts.shape != (classes,):
            raise ValueError(
                f"class means {[*means.shape]} and counts {[*counts.shape]} of {classes} classes"
            )
    except Exception as error:  # timm and torch raise anything
        raise MzlibError(f"expected weights that fit the card {path}, got {told(error)}") from error
    return Expert(name, model.eval(), card, means, counts, digest=card["sha256"] + domain)
