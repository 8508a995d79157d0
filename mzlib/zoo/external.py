"""What `--zoo` may name: zoos, checkpoints, folders of these, and classifiers of timm by name or
glob, each loaded when its turn comes.
"""

import difflib
import fnmatch
import hashlib
import os
import socket
import urllib.request
from collections import Counter
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
from mzlib.zoo.expert import Candidate, Expert, card_digest, load_expert
from mzlib.zoo.packaged import load_lite, packaged
from mzlib.zoo.recommended import RECOMMENDED, cached, is_cached

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
    found = [
        expert for path in (folder, *sorted(folder.iterdir())) for expert in _at(path.absolute())
    ]
    if not found:
        raise MzlibError(
            f"expected checkpoints ({', '.join(CHECKPOINTS)}) in {folder}, got "
            f"{len(os.listdir(folder))} other files"
        )
    return Zoo(found, "")


def _at(path: Path, choice: str = "") -> list[Candidate]:
    """The expert in a file or in timm's folder, else none.

    choice: the domain of an expert of our own, the architecture of another checkpoint.
    """
    if (path / "config.json").is_file():
        return [Candidate(path.name, partial(load_timm_folder, path), str(path))]
    if path.suffix not in CHECKPOINTS or not path.is_file():
        return []
    if path.suffix == ".safetensors" and path.with_suffix(".json").is_file():
        return [_own(f"{path.stem}:{choice}" if choice else path.stem, path.parent)]
    return [Candidate(path.stem, partial(load_checkpoint, path, choice), str(path))]


def _own(name: str, folder: Path) -> Candidate:
    load = partial(load_expert, name, folder)
    return Candidate(name, load, str(folder / name), card_digest(name, folder))


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
    for i, item in enumerate(dict.fromkeys(items), 1):
        if isinstance(item, Expert):
            origin = f"{item.name} ({i})"
            found.append(Candidate(item.name, partial(replace, item), origin, item.digest))
        elif item:
            found += _named(str(item))
    if not found:
        raise MzlibError(f"expected experts, got {zoo!r}: give timm:NAME, a zoo or a folder")
    return _distinct(list({candidate.origin: candidate for candidate in found}.values()))


def _distinct(found: list[Candidate]) -> list[Candidate]:
    """Experts of one name are called by their path, below the folder that holds all of them."""
    count = Counter(candidate.name for candidate in found)
    paths = {c.origin: os.path.abspath(c.origin) for c in found if count[c.name] > 1}
    if not paths:
        return found
    above = os.path.commonpath([os.path.dirname(path) for path in paths.values()])
    return [
        _renamed(c, os.path.relpath(paths[c.origin], above)) if c.origin in paths else c
        for c in found
    ]


def _renamed(candidate: Candidate, name: str) -> Candidate:
    return replace(candidate, name=name, load=lambda: replace(candidate.load(), name=name))


def _named(item: str) -> list[Candidate]:
    zoos = zoo_folders()
    item = f"timm:{item.removeprefix('hf-hub:timm/')}" if item.startswith("hf-hub:timm/") else item
    if item.startswith("timm:"):
        return [Candidate(name, partial(load_external, name), name) for name in _matching(item)]
    if item == "recommended":
        return [found for name in RECOMMENDED for found in _named(f"timm:{name}")]
    if item == "imagenet":
        return packaged() or [Candidate(item, partial(load_lite, 0), item)]
    if item in zoos:
        return open_zoo(zoos[item]).experts
    path = Path(item).expanduser().absolute()
    if path.is_dir():
        return open_zoo(path).experts
    file, _, choice = str(path).rpartition(":")
    at = _at(path) or _at(Path(file), choice)
    if at:
        return at
    committed = [expert for folder in zoos.values() for expert in open_zoo(folder).experts]
    committed += packaged()
    single = [candidate for candidate in committed if candidate.name == item]
    if single:
        return single[-1:]
    raise MzlibError(_what_was_meant(item, [*zoos, *(expert.name for expert in committed)]))


def _what_was_meant(item: str, ours: list[str]) -> str:
    """One line for a name that is nothing."""
    origin, _, rest = item.rpartition(":")
    expected = "a zoo, an expert, timm:NAME, a folder or a checkpoint"
    near = difflib.get_close_matches(item, ours, 3, 0.4)
    if origin == "hf-hub":
        expected = "hf-hub:timm/NAME, of other repositories a folder"
    elif origin == "torchvision":
        expected = "timm:NAME, for torchvision's weights are in timm"
        near = _tagged(f"{rest.partition('_Weights')[0].lower()}.tv*")
    elif timm.is_model(item) or item in timm.list_pretrained():
        expected = "timm:NAME for an architecture of timm"
        near = _tagged(f"{item}*")
    return f"expected {expected}, got {item!r}{_hint(near)}"


def _tagged(pattern: str) -> list[str]:
    return [f"timm:{name}" for name in timm.list_models(pattern, pretrained=True)]


def _hint(names: list[str]) -> str:
    return f"; did you mean {' or '.join(names[:3])}?" if names else ""


def _matching(name: str) -> list[str]:
    """The names that a glob over timm's pretrained weights stands for, or the name itself."""
    pattern = name.removeprefix("timm:")
    names = timm.list_models(pretrained=True)
    found = fnmatch.filter(names, pattern)
    if any(known.startswith(f"{pattern}.") for known in names):
        found = [pattern]  # without a tag: timm's default weights
    if not found:
        near = difflib.get_close_matches(pattern.strip("*"), names, 3, 0.4)
        raise MzlibError(
            f"could not load the expert {name!r}: timm has no pretrained model of that name"
            + _hint(near)
        )
    return [f"timm:{found_name}" for found_name in found]


def load_external(name: str) -> Expert:
    """`timm:<model.tag>`; MzlibError for a name or weights that cannot be had."""
    _matching(name)
    identifier = name.removeprefix("timm:")
    try:
        here = is_cached(name, cached())
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
