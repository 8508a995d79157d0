"""Networks in files: state dicts of any trainer, read without running code, and timm's folders."""

import difflib
import hashlib
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import nn

from mzlib.errors import MzlibError, expecting
from mzlib.zoo.architectures import is_known
from mzlib.zoo.cards import Input, TimmConfig, checked, read_json
from mzlib.zoo.expert import Expert

CHECKPOINTS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")
# Under which trainers keep the state dict, better first: timm, Lightning, and what people write.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "net", "ema")
GREY = torch.tensor([0.299, 0.587, 0.114])  # of red, green, blue (ITU-R 601, as Pillow's "L")

State = dict[str, torch.Tensor]


def load_checkpoint(path: Path, architecture: str = "") -> Expert:
    """A state dict in a file as an expert; never runs code from it.

    architecture: timm's name; by default what the file is named after, up to the first dash
    (`resnet18-birds.safetensors`).
    Prefixes of trainers (`model.`, `module.`) are taken off, a classifier in a Sequential of one
    linear layer is read, one of several is left out (the expert then has no source classifier), a
    network of grey images sees the luminance, position embeddings are resampled by timm.
    Raises MzlibError: no such file or architecture, pickled code, weights that do not fit.
    """
    architecture = architecture or path.stem.partition("-")[0]
    if not is_known(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), 3, 0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise MzlibError(
            f"expected {path} to be named after its timm architecture (resnet18-birds.safetensors),"
            f" or given as {path.name}:ARCHITECTURE, or the card of an expert of mzlib beside it "
            f"({path.stem}.json), got {architecture!r}{hint}"
        )
    with expecting(path, "a state dict of tensors", "; save it as safetensors"):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        state = _state_dict(path)
    model = timm.create_model(architecture)
    with expecting(path, f"weights that fit {architecture}"):
        grey = _fill(model, state)
    facts = timm.data.resolve_data_config({}, pretrained_cfg=model.pretrained_cfg)
    if grey:  # trained with one mean and one deviation
        facts |= {key: [sum(facts[key]) / 3] * 3 for key in ("mean", "std")}
    return expert_of(path.stem, model, architecture, facts, path.parent.name, "local", digest)


def expert_of(
    name: str,
    model: nn.Module,
    architecture: str,
    config: dict,
    source: str,
    pretraining: str,
    digest: str,
    **facts,
) -> Expert:
    """An expert that is not our own, with a card of what is known. config: timm's, of its input."""
    config = {
        key: list(value) if isinstance(value, tuple) else value for key, value in config.items()
    }
    card = {
        "name": name,
        "architecture": architecture,
        "source": source,
        "pretraining": pretraining,
        "domain": "unknown",
        "image_size": config["input_size"][-1],
        "mean": config["mean"],
        "std": config["std"],
        "input": config,
        "class_names": [],
        "accuracy": None,
        **facts,
    }
    return Expert(name, model.eval(), card, digest=digest)


def load_timm_folder(folder: Path) -> Expert:
    """A folder with timm's `config.json` and `model.safetensors`, as `mzlib finetune` writes it."""
    file = folder / "config.json"
    with expecting(file, "timm's configuration of the model.safetensors beside it"):
        checked(read_json(file), TimmConfig, file)
        digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
        config = timm.data.resolve_data_config({}, model=model)
    checked(config, Input, file)
    architecture = model.pretrained_cfg.get("architecture", folder.name)
    return expert_of(folder.name, model, architecture, config, "local", "local", digest)


def _state_dict(path: Path) -> State:
    """The tensors in the file, out of what a trainer wrapped them in."""
    if path.suffix == ".safetensors":
        return load_file(path)
    held = torch.load(path, map_location="cpu", weights_only=True)
    for key in WRAPPERS:
        if isinstance(held, dict) and isinstance(held.get(key), dict):
            held = held[key]
            break
    if not isinstance(held, dict):
        raise TypeError(f"a {type(held).__name__}")
    state = {key: value for key, value in held.items() if isinstance(value, torch.Tensor)}
    if not state:
        raise ValueError(f"no tensors among {', '.join(map(str, list(held)[:5])) or 'nothing'}")
    return state


def _fill(model: nn.Module, state: State) -> bool:
    """Load the state dict, head included, after what trainers do to names and shapes is undone.

    Returns whether the network was trained on grey images.
    """
    state = _without_prefix(state, model.state_dict())
    grey = _to_rgb(state, model.pretrained_cfg.get("first_conv"))
    classifier = model.pretrained_cfg.get("classifier")
    names = [classifier] if isinstance(classifier, str) else list(classifier or ())
    for name in names:
        _flatten_head(state, name)
    weights = [state[f"{name}.weight"] for name in names if f"{name}.weight" in state]
    model.reset_classifier(len(weights[0]) if weights else 0)
    expected = model.state_dict()
    fits = all(key in expected and expected[key].shape == t.shape for key, t in state.items())
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if not fits and convert:  # timm's own: other names, position embeddings of another size
        takes_model = len(inspect.signature(convert).parameters) > 1
        state = convert(state, model) if takes_model else convert(state)
    model.load_state_dict(state)
    return grey


def _without_prefix(state: State, wanted: Iterable[str]) -> State:
    """The keys below the prefix of the first wanted one; all where it is not there."""
    first = next(iter(wanted))
    found = [key for key in state if f".{key}".endswith(f".{first}")]
    prefix = min(found, key=len, default=first).removesuffix(first)
    return {
        key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)
    }


def _to_rgb(state: State, first_conv: str | tuple | None) -> bool:
    """First convolutions of one channel become those of three that see the luminance."""
    names = [first_conv] if isinstance(first_conv, str) else list(first_conv or ())
    keys = [f"{name}.weight" for name in names if f"{name}.weight" in state]
    grey = [key for key in keys if state[key].ndim == 4 and state[key].shape[1] == 1]
    for key in grey:
        state[key] = state[key] * GREY.to(state[key].dtype).view(1, 3, 1, 1)
    return bool(grey)


def _flatten_head(state: State, name: str) -> None:
    """`fc.1.weight` of dropout and a linear layer is `fc.weight`; heads of more layers go."""
    inner = [key for key in state if key.startswith(f"{name}.") and key.split(".")[-2].isdigit()]
    if not inner:
        return
    layers = {key.rpartition(".")[0] for key in inner}
    parts = {key: state.pop(key) for key in inner}
    if len(layers) == 1 and parts[f"{next(iter(layers))}.weight"].ndim == 2:
        state |= {f"{name}.{key.rpartition('.')[2]}": tensor for key, tensor in parts.items()}
