"""Experts from outside the zoo, with the preprocessing they were trained with: classifiers of timm and torchvision by name or
glob, checkpoints of your own (safetensors, or state dicts read without running code), and lists of all these."""

import difflib
import fnmatch
import hashlib
import json
import os
import socket
import tomllib
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import timm
import torch
import torchvision
import yaml
from torch import nn

from mzlib.errors import MzlibError
from mzlib.zoo.architectures import is_known
from mzlib.zoo.expert import INPUT, KNOWN, TEXT, Expert, check, load_expert, told

CHECKPOINTS = (".safetensors", ".pth", ".pt", ".bin", ".tar")
LISTS = (".toml", ".yaml", ".yml")
_unreachable = set()  # origins whose download has failed in this process


@dataclass(frozen=True)
class Candidate:
    """An expert that is loaded when its turn comes."""

    name: str
    load: Callable[[], Expert]


class _Penultimate(nn.Module):
    """timm's interface on a torchvision classifier whose last child is its classifier."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.classifier_name, last = list(model.named_children())[-1]
        stack = list(last) if isinstance(last, nn.Sequential) else [last]
        self.neck, self.classifier = nn.Sequential(*stack[:-1]), stack[-1]
        setattr(model, self.classifier_name, nn.Identity())
        self.backbone = model

    def forward_features(self, x):
        return self.backbone(x)

    def forward_head(self, x, pre_logits=False):
        x = self.neck(x)
        return x if pre_logits else self.classifier(x)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))

    def get_classifier(self):
        return self.classifier

    def reset_classifier(self, num_classes):
        self.classifier = (
            nn.Linear(self.classifier.in_features, num_classes) if num_classes else nn.Identity()
        )


def load_external(name: str) -> Expert:
    """`timm:<model.tag>` or `torchvision:<Weights.ENTRY>`; MzlibError for a name or weights that cannot be had."""
    origin, _, identifier = name.partition(":")
    _known(name)
    try:
        here = any(identifier in entry for entry in cached(origin))
        if not here and (origin in _unreachable or not _online(origin)):
            raise OSError(
                "its host cannot be reached"
            )  # an attempt takes a minute and prints its retries
        if origin == "timm":
            model = timm.create_model(identifier, pretrained=True)
            config = timm.data.resolve_data_config({}, model=model)
        else:
            weights = torchvision.models.get_weight(identifier)
            builder = type(weights).__name__.removesuffix("_Weights").lower()
            weights.get_state_dict = partial(
                type(weights).get_state_dict, weights, weights_only=True
            )  # builders run pickles
            model = _Penultimate(torchvision.models.get_model(builder, weights=weights))
            preset = weights.transforms()
            config = {
                "input_size": (3, preset.crop_size[0], preset.crop_size[0]),
                "mean": preset.mean,
                "std": preset.std,
                "interpolation": preset.interpolation.value,
                "crop_mode": "center",
                "crop_pct": preset.crop_size[0] / preset.resize_size[0],
            }
    except Exception as error:  # of the libraries, or of what they load
        why = "damaged? remove it from the library's cache"
        if isinstance(error, OSError):
            _unreachable.add(origin)
            why = f"no network? {origin} weights cached here: {', '.join(cached(origin)) or 'none'}"
        raise MzlibError(f"could not load the expert {name!r}: {told(error)} ({why})") from error
    return _expert(
        name,
        model,
        identifier,
        config,
        "imagenet",
        origin,
        hashlib.sha256(name.encode()).hexdigest(),
    )


def _expert(name, model, architecture, config, source, pretraining, digest) -> Expert:
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
    }
    return Expert(name, model.eval(), card, digest=digest)


def _online(origin: str) -> bool:
    """Whether the host of the weights answers; behind a proxy, who knows."""
    if urllib.request.getproxies():
        return True
    host = "huggingface.co" if origin == "timm" else "download.pytorch.org"
    try:
        socket.create_connection((host, 443), timeout=10).close()
    except OSError:
        return False
    return True


def cached(origin: str) -> list[str]:
    """Names of the pretrained weights that lie in the library's cache on this machine."""
    if origin == "timm":
        from huggingface_hub import constants

        return sorted(
            p.name.removeprefix("models--timm--")
            for p in Path(constants.HF_HUB_CACHE).glob("models--timm--*")
            if any(p.glob("snapshots/*/*"))
        )
    return sorted(p.name for p in Path(torch.hub.get_dir(), "checkpoints").glob("*.pth"))


def _names(origin: str) -> list[str]:
    if origin == "timm":
        return timm.list_models(pretrained=True)
    models = torchvision.models
    return [
        f"{type(weights).__name__}.{weights.name}"
        for model in models.list_models(module=models)
        for weights in models.get_model_weights(model)
    ]


def _known(name: str) -> list[str]:
    """The names that a glob over pretrained weights stands for, or the name itself; MzlibError when there is none."""
    origin, _, pattern = name.partition(":")
    names = _names(origin)
    found = (
        fnmatch.filter(names, pattern)
        if set(pattern) & set("*?[")
        else [pattern]
        if (
            pattern in names
            or origin == "timm"
            and timm.is_model(pattern)
            and any(n.startswith(f"{pattern}.") for n in names)
        )
        else []
    )
    if not found:
        near = difflib.get_close_matches(pattern.strip("*"), names, 3, 0.4)
        raise MzlibError(
            f"could not load the expert {name!r}: {origin} has no pretrained model of that name"
            + (f"; did you mean {' or '.join(near)}?" if near else "")
        )
    return [f"{origin}:{found_name}" for found_name in found]


def load_checkpoint(path: Path, architecture: str = "", name: str = "", **config) -> Expert:
    """A state dict in a file as an expert; never runs code from it.

    architecture: timm's name; by default what the file is named after, up to the first dash (`resnet18-birds.safetensors`).
    config: what differs from timm's data configuration: `mean`, `std`, `input_size`, `crop_pct`, `interpolation`.
    Raises MzlibError: no such file or architecture, pickled code, weights that do not fit.
    """
    architecture = architecture or path.stem.partition("-")[0]
    if not is_known(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), 3, 0.4)
        raise MzlibError(
            f"expected {path} to be named after its timm architecture (resnet18-birds.safetensors), got "
            f"{architecture!r}{'; did you mean ' + ' or '.join(near) + '?' if near else ''}"
        )
    try:
        state = timm.models.load_state_dict(str(path), use_ema=False, weights_only=True)
        content = hashlib.sha256(path.read_bytes()).hexdigest()
    except Exception as error:  # torch's readers raise anything on damaged bytes
        raise MzlibError(
            f"expected a state dict of tensors in {path}, got {told(error)}; save it as safetensors"
        ) from error
    model = timm.create_model(architecture)
    head = model.pretrained_cfg.get("classifier")
    try:
        weight = (
            state.get(f"{head}.weight") if isinstance(head, str) else model.get_classifier().weight
        )
        model.reset_classifier(len(weight) if weight is not None else 0)
        model.load_state_dict(state)
    except Exception as error:
        raise MzlibError(
            f"expected weights of {architecture} in {path}, they do not fit: {told(error)}"
        ) from error
    config = timm.data.resolve_data_config({}, pretrained_cfg=model.pretrained_cfg) | config
    return _expert(
        name or path.stem, model, architecture, config, path.parent.name, "local", content
    )


def load_timm_folder(folder: Path) -> Expert:
    """A folder with timm's `config.json` and `model.safetensors`, as `mzlib finetune` writes it."""
    file, table = folder / "config.json", ("a table", lambda v: isinstance(v, dict))
    try:
        facts = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MzlibError(f"expected timm's config.json in {folder}, got {told(error)}") from error
    check(facts, {"architecture": KNOWN}, file)
    check(
        facts,
        {
            "num_classes": ("a number of classes", lambda v: type(v) is int and v >= 0),
            "pretrained_cfg": table,
            "model_args": table,
        },
        file,
        optional=True,
    )
    try:
        content = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
        config = timm.data.resolve_data_config({}, model=model)
    except Exception as error:  # timm raises anything on another's arguments
        raise MzlibError(
            f"expected model.safetensors that fits {file}, got {told(error)}"
        ) from error
    check(config, INPUT, file)
    return _expert(
        folder.name,
        model,
        model.pretrained_cfg.get("architecture", folder.name),
        config,
        "local",
        "local",
        content,
    )


def candidates(zoo: str | Iterable[Expert | str]) -> list[Candidate]:
    """What `--zoo` names, in order, each once: `timm:NAME`, `torchvision:WEIGHTS`, globs over both, a suite's name, a checkpoint,
    a folder of checkpoints, a .toml or .yaml list of these; names are separated by commas.

    Raises MzlibError for whatever is none of these; weights are not looked for before `load`.
    """
    items = (
        [item.strip() for item in zoo.split(",") if item.strip()]
        if isinstance(zoo, str)
        else list(zoo)
    )
    found = [
        c
        for item in items
        for c in (
            _expand(item) if isinstance(item, str) else [Candidate(item.name, lambda e=item: e)]
        )
    ]
    if not found:
        raise MzlibError(
            f"expected experts, got {zoo!r}: give timm:NAME, torchvision:WEIGHTS, a suite, a folder or a list"
        )
    return list({candidate.name: candidate for candidate in found}.values())


def _expand(item: str, within: tuple[Path, ...] = ()) -> list[Candidate]:
    """within: the lists that name this one."""
    from mzlib.benchmark.suite import suite_files  # here: a benchmark is made of experts

    path = Path(item).expanduser()
    if item.startswith(("timm:", "torchvision:")):
        return [Candidate(name, partial(load_external, name)) for name in _known(item)]
    if item in suite_files():
        return _committed(item)
    if path.suffix in LISTS and path.is_file():
        return _listed(path, within)
    if path.is_dir():
        return _folder(path)
    if path.suffix in CHECKPOINTS and path.is_file():
        return [Candidate(path.stem, partial(load_checkpoint, path))]
    if single := [c for c in _committed("thumb64") if c.name == item]:
        return single
    near = difflib.get_close_matches(
        item, [*suite_files(), *(c.name for c in _committed("thumb64"))], 3, 0.4
    )
    raise MzlibError(
        f"expected a suite of {', '.join(suite_files())}, an expert, timm:NAME, torchvision:WEIGHTS, a folder, a "
        f"checkpoint or a list of experts, got {item!r}{'; did you mean ' + ' or '.join(near) + '?' if near else ''}"
    )


def _committed(suite: str) -> list[Candidate]:
    """The single-domain experts of a suite, from the zoo folder here or of the checkout that this package lies in."""
    from mzlib.benchmark.suite import load_suite
    from mzlib.provenance import home

    names = [name for name in load_suite(suite).starting_points() if ":" not in name]
    folders = [root / "zoo" / suite for root in (home(), Path(__file__).parents[2])]
    folder = next(
        (f for f in folders if any((f / f"{name}.json").is_file() for name in names)), folders[0]
    )
    return [Candidate(name, partial(load_expert, name, folder)) for name in names]


def _folder(folder: Path) -> list[Candidate]:
    found = []
    for path in sorted(folder.iterdir()):
        if (path / "config.json").is_file():
            found.append(Candidate(path.name, partial(load_timm_folder, path)))
        elif path.suffix in CHECKPOINTS:
            own = path.suffix == ".safetensors" and path.with_suffix(".json").is_file()
            found.append(
                Candidate(
                    path.stem,
                    partial(load_expert, path.stem, folder)
                    if own
                    else partial(load_checkpoint, path),
                )
            )
    if (folder / "config.json").is_file():
        found = [Candidate(folder.name, partial(load_timm_folder, folder))]
    if not found:
        raise MzlibError(
            f"expected checkpoints ({', '.join(CHECKPOINTS)}) in {folder}, got {len(os.listdir(folder))} other files"
        )
    return found


def _listed(path: Path, within: tuple[Path, ...]) -> list[Candidate]:
    """`experts = ["timm:resnet18.a1_in1k", …]`, or tables with `checkpoint` and the arguments of `load_checkpoint`."""
    within = (*within, path.resolve())
    if within[-1] in within[:-1]:
        raise MzlibError(f"{path}: expected a list of other experts, got one that names itself")
    try:
        text = path.read_text("utf-8")
        table = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise MzlibError(f"{path}: expected a list of experts, got {told(error)}") from error
    entries = table.get("experts") if isinstance(table, dict) else table
    if not isinstance(entries, list) or not entries:
        raise MzlibError(f"{path}: expected a list `experts`, got {str(table)[:60]!r}")
    found, rules = [], {"checkpoint": TEXT, "architecture": KNOWN, "name": TEXT, **INPUT}
    for entry in entries:
        if isinstance(entry, str) and entry:
            here = path.parent / entry
            found += _expand(entry if ":" in entry or not here.exists() else str(here), within)
        elif isinstance(entry, dict) and "checkpoint" in entry:
            if unknown := [key for key in entry if key not in rules]:
                raise MzlibError(
                    f"{path}: unknown key {unknown[0]!r}, expected some of {', '.join(rules)}"
                )
            check(entry, rules, path, optional=True)
            rest = {key: value for key, value in entry.items() if key != "checkpoint"}
            file = path.parent / entry["checkpoint"]
            found.append(
                Candidate(entry.get("name") or file.stem, partial(load_checkpoint, file, **rest))
            )
        else:
            raise MzlibError(
                f"{path}: expected names of experts or tables with `checkpoint`, got {entry!r}"
            )
    return found
