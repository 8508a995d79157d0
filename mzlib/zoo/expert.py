"""An expert: a network trained on a source, as weights (safetensors, fp16) beside a JSON card.

`<folder>/<name>.safetensors` holds the state dict and, under `source.*`, the class means of the
source training set in the expert's own features; `<folder>/<name>.json` is the card. The card is
written last: an expert without one does not exist.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save
from torch import nn

from mzlib.errors import MzlibError, expecting
from mzlib.provenance import put
from mzlib.training import predicted
from mzlib.zoo.architectures import create
from mzlib.zoo.cards import Card, Stored, checked, read_json
from mzlib.zoo.heads import features, heads
from mzlib.zoo.multi_domain import MultiDomainNet


@dataclass(frozen=True, eq=False)
class Expert:
    """A pre-trained network with what selectors may want to know of its source.

    model: in eval mode on the CPU, with its source classifier (num_classes 0 when it has none).
    card: JSON-able facts: architecture, source, pretraining, domain, class_names, accuracy on the
    source test set, …
    class_means: float32 [S, D], class_counts: int64 [S] of the source training set, or None when
    unknown. digest: of the file that it was read from, or "".
    """

    name: str
    model: nn.Module
    card: dict
    class_means: torch.Tensor | None = None
    class_counts: torch.Tensor | None = None
    digest: str = ""

    @property
    def parameter_count(self) -> int:
        """Of the backbone: those of the source classifier go with it when one fine-tunes."""
        classifier = {p for head in heads(self.model) for p in head.parameters()}
        return sum(p.numel() for p in self.model.parameters() if p not in classifier)


@dataclass(frozen=True)
class Candidate:
    """An expert that is loaded when its turn comes.

    origin: where it is, told in full. digest: of the expert, as far as its card tells it unread.
    """

    name: str
    load: Callable[[], Expert]
    origin: str = ""
    digest: str = ""


def class_statistics(
    model: nn.Module, images: np.ndarray, labels: np.ndarray, **normalization
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean penultimate feature float32 [S, D] and size int64 [S] of every class of uint8 images
    [N, H, W, 3].
    """
    device = next(model.parameters()).device
    classes = torch.tensor(labels)
    counts = torch.bincount(classes)
    sums = torch.zeros(len(counts), model.head_hidden_size)
    start = 0
    for batch in predicted(lambda x: features(model, x), images, device, **normalization):
        sums.index_add_(0, classes[start : start + len(batch)], batch.cpu())
        start += len(batch)
    return sums / counts[:, None], counts


def to_fp16(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict as it is stored: floating tensors in fp16; MzlibError where fp16 overflows."""
    stored = {
        name: tensor.detach().cpu().half().contiguous()
        if tensor.is_floating_point()
        else tensor.cpu()
        for name, tensor in state.items()
    }
    broken = [name for name, tensor in stored.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise MzlibError(
            f"expected weights that fp16 can hold, got overflow or NaN in {broken[0]}: train at a "
            "lower rate"
        )
    return stored


def save_expert(folder: Path, name: str, state: dict[str, torch.Tensor], card: dict) -> None:
    """Write weights, then card, each as a whole."""
    weights = save(state)
    card = {**card, "name": name, "sha256": hashlib.sha256(weights).hexdigest()}
    put(folder / f"{name}.safetensors", weights)
    put(folder / f"{name}.json", json.dumps(card, indent=1, ensure_ascii=False) + "\n")


def read_expert(folder: Path, name: str) -> tuple[dict[str, torch.Tensor], dict]:
    """(state dict in float32, card) of a saved expert.

    MzlibError when it is absent, damaged or unlike its card's checksum.
    """
    try:
        card = read_json(folder / f"{name}.json")
        content = (folder / f"{name}.safetensors").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        found = ", ".join(sorted(p.stem for p in folder.glob("*.safetensors"))) or "none"
        raise MzlibError(f"expected an expert {name!r} in {folder}, found: {found}") from None
    if hashlib.sha256(content).hexdigest() != checked(card, Stored, folder / f"{name}.json").sha256:
        raise MzlibError(
            f"expected the weights that {name}.json describes, {name}.safetensors differs: train "
            "it again"
        )
    with expecting(folder / f"{name}.safetensors", "safetensors"):
        state = load(content)
    floats = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    return floats, card


def card_digest(name: str, folder: Path) -> str:
    """The digest that `load_expert` would give, from the card alone; "" where there is no card."""
    stem, _, domain = name.partition(":")
    path = folder / f"{stem}.json"
    try:
        return checked(read_json(path), Stored, path).sha256 + domain
    except (MzlibError, OSError):  # which `load_expert` will tell
        return ""


def load_expert(name: str, folder: Path) -> Expert:
    """An expert of a folder: `resnet-gtsrb-scratch`, or `multi_bn:gtsrb`, one domain of several."""
    stem, _, domain = name.partition(":")
    path = folder / f"{stem}.json"
    state, card = read_expert(folder, stem)
    domains = checked(card, Stored, path).domains
    if domains and domain not in domains or domain and not domains:
        choices = ", ".join(domains) or "it has none to choose"
        raise MzlibError(f"expected a domain of {stem} ({choices}), got {domain!r}")
    if domain:
        card |= {**card["domains"][domain], "source": domain}
    checked(card, Card, path)
    prefix = f"source.{domain}." if domain else "source."
    statistics = {key: state.pop(key) for key in list(state) if key.startswith("source.")}
    with expecting(path, "the card of the weights beside it"):
        counts = {source: len(facts.class_names) for source, facts in domains.items()}
        model = _network(card, counts, domain, state)
        means = statistics[f"{prefix}class_means"]
        sizes = statistics[f"{prefix}class_counts"]
    return Expert(name, model.eval(), card, means, sizes, digest=card["sha256"] + domain)


def _network(card: dict, class_counts: dict[str, int], domain: str, state: dict) -> nn.Module:
    """The network of the card with these weights; of a multi-domain one, that of the domain."""
    architecture = card["architecture"]
    size = card["image_size"]
    if not domain:
        model = create(architecture, len(card["class_names"]), size)
        model.load_state_dict(state)
        return model
    net = MultiDomainNet(architecture, class_counts, card["variant"], size)
    net.load_state_dict(state)
    return net.single(domain)
