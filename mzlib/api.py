"""The door: names of tasks, suites and experts become objects, for the library that takes only
these.

This file and the command line are the only ones that know both the library and the benchmark.
"""

import atexit
import copy
import hashlib
import math
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile, mkdtemp
from types import ModuleType
from typing import Any

import timm
import torch
from torch import nn

from mzlib import finetuning, provenance, ranking
from mzlib.dataset import LabelledImages, Task
from mzlib.errors import MzlibError
from mzlib.evidence import fingerprint
from mzlib.finetuning import Finetuned
from mzlib.images import as_labelled_images
from mzlib.prediction import predict
from mzlib.ranking import DEFAULT_SELECTORS, Ranking
from mzlib.report import check_writable, write_report
from mzlib.selectors import SELECTORS, Selector
from mzlib.selectors.history import LEAST, History
from mzlib.selectors.targets import NUMERIC
from mzlib.training import PAPER
from mzlib.zoo import Expert, load_expert
from mzlib.zoo.checkpoints import expert_of
from mzlib.zoo.external import Candidate, candidates, zoo_folders
from mzlib.zoo.packaged import packaged
from mzlib.zoo.recommended import download_bytes, within

__all__ = ["choose", "finetune", "load_zoo", "open_task", "predict", "rank"]
DEFAULT_ZOO = "thumb64"  # the suite whose experts are committed
Zoo = str | Path | nn.Module | Mapping[str, nn.Module] | Iterable[Expert | nn.Module | str] | None
Confirm = Callable[[int], None] | None  # is told the bytes of a download before it, may raise
MOST_TIED = 5  # experts that `choose` fine-tunes unless it is told how many


def _companion(module: str) -> ModuleType:
    """A module of the benchmark; MzlibError where what it needs is not installed."""
    try:
        return import_module(f"mzlib.benchmark.{module}")
    except ModuleNotFoundError as error:
        raise MzlibError(
            f"tasks and suites need {error.name}, which is not installed: do pip install "
            "'mzlib[benchmark]', or give a folder of images and experts"
        ) from error


def _has_companion() -> bool:
    with suppress(MzlibError):
        return bool(_companion("suite"))
    return False


def load_zoo(name: str, progress: bool = True) -> list[Expert]:
    """All starting points of a suite's zoo; experts whose weights are not here are trained first,
    no others. Outside a checkout those that came with the package are taken.
    """
    suite = _companion("suite").load_suite(name)
    experts = {expert.partition(":")[0] for expert in suite.starting_points()}
    folder = _companion("stages").zoo_folder(suite.zoo)
    shipped = zoo_folders().get(suite.zoo, folder)
    if shipped != folder and all((shipped / f"{e}.safetensors").is_file() for e in experts):
        return [load_expert(expert, shipped) for expert in suite.starting_points()]
    _companion("run").run_suite(
        suite.zoo,
        stages=["zoo"],
        only=[f"zoo/{expert}" for expert in experts],
        weights=True,
        retry_failed=True,
        progress=progress,
    )
    _companion("stages").write_index(suite)
    return [load_expert(expert, folder) for expert in suite.starting_points()]


def open_task(task: Any, size: int | None = None) -> LabelledImages:
    """The task of that name, the listing of the images at that path, or a data set of another
    library (`mzlib.images.as_labelled_images`). A name that is both is the task's; `./name` is the
    folder.
    """
    is_path = isinstance(task, Path) or (isinstance(task, str) and Path(task).expanduser().exists())
    if _is_task(task) or (isinstance(task, str) and not is_path):
        return _companion("data").load_task(task, size)
    return as_labelled_images(task)


def _opened(task: Any, zoo: Zoo) -> LabelledImages:
    """`open_task` at the image size of the suite whose zoo was asked for by name."""
    suite = _suite(zoo) if zoo else None
    return open_task(task, suite.image_size if suite else None)


def _is_task(task: Any) -> bool:
    plain = isinstance(task, str) and task not in ("", ".", "..") and Path(task).name == task
    if not plain or not _has_companion():
        return False
    data = _companion("data")
    return task in data.CARDS or data.store.exists(data.store.root() / task)


def _same_name(task: Any) -> list[str]:
    """A note where a name could have meant something else."""
    if not _is_task(task) or not Path(task).exists():
        return []
    return [f"{task} is a task and a folder here; the task was taken, ./{task} is the folder"]


def cache_folder() -> tuple[Path, list[str]]:
    """Where converted images and evidence are kept, and a note where nothing can be."""
    folder = provenance.cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        provenance.tidy(folder)
        with TemporaryFile(dir=folder):
            return folder, []
    except OSError as error:
        passing = mkdtemp(prefix="mzlib-")
        atexit.register(shutil.rmtree, passing, ignore_errors=True)
        return Path(passing), [f"{folder} cannot be written ({error.strerror}): nothing is kept"]


def _suite(zoo: Zoo) -> Any:
    """The suite whose zoo that is, if it is one's."""
    if zoo is not None and not isinstance(zoo, str) or not _has_companion():
        return None
    suites = _companion("suite")
    name = DEFAULT_ZOO if zoo is None else zoo
    return suites.load_suite(name) if name in suites.suite_files() else None


def _agreed(
    zoo: Zoo, experts: list[Candidate], max_params: float, max_gflops: float, confirm: Confirm
) -> list[Candidate]:
    """The experts within limits, when a download of many networks' weights was agreed to."""
    kept = within(experts, max_params, max_gflops) if max_params or max_gflops else experts
    if experts and not kept:
        raise MzlibError("expected experts within --max-params and --max-gflops, got none")
    many = isinstance(zoo, str) and re.search(r"recommended|[*?[]", zoo)
    size = download_bytes(kept) if many and confirm else 0
    if confirm and size:
        confirm(size)
    return kept


def _experts(zoo: Zoo, suite: Any, progress: bool) -> list[Candidate]:
    if zoo is None:
        return _default()
    if suite is not None:
        return candidates(load_zoo(suite.name, progress))
    if isinstance(zoo, str | Path):
        return candidates(str(zoo))
    named = zoo.items() if isinstance(zoo, Mapping) else [("", model) for model in _several(zoo)]
    experts = [as_expert(m, name) if isinstance(m, nn.Module) else m for name, m in named]
    return candidates(experts)


def _default() -> list[Candidate]:
    """The committed experts, and those of the package index where they are installed."""
    return candidates(DEFAULT_ZOO) + packaged()


def _several(zoo: nn.Module | Iterable) -> list:
    return [zoo] if isinstance(zoo, nn.Module | Expert) else list(zoo)


def as_expert(model: nn.Module, name: str = "") -> Expert:
    """A network as an expert: of timm with its own preprocessing, another classifier that ends in a
    linear layer with that of ImageNet at 224 pixels. The expert is a copy, without what
    DataParallel or torch.compile wrap around a network.
    """
    for wrapper in ("module", "_orig_mod"):
        model = getattr(model, wrapper, model)
    known = getattr(model, "pretrained_cfg", None) or {}
    config = timm.data.resolve_data_config({}, pretrained_cfg=known or {"num_classes": 0})
    architecture = known.get("architecture") or type(model).__name__
    model = copy.deepcopy(model)
    digest = hashlib.sha256(f"{config} {fingerprint(model)}".encode())
    name = name or known.get("tag", "") and f"{architecture}.{known['tag']}" or architecture
    return expert_of(name, model, architecture, config, "unknown", "local", digest.hexdigest())


def default_order(
    experts: list[Candidate], until_settled: int = 0, kind: str = "classes", target: str = ""
) -> tuple[list[str | Selector], str]:
    """The best order that applies, and why it was taken.

    Where the history of the committed experts knows `LEAST` of these, by their digests: what
    fine-tuning reached on past targets, with a score of these images; experts that it does not know
    have their score alone. Otherwise all have.

    target: the name of the benchmark's task that is ranked, whose own outcome must not tell.
    """
    first, *papers = DEFAULT_SELECTORS
    if kind == "numeric":
        return [*NUMERIC], "Ordered by the leave-one-out R² of ridge regression on the features."
    if until_settled:  # rounds see no kernel, and order by one score an expert
        return [first, "lfc"], f"Ordered by {SELECTORS[first].title}; LFC is the paper's."
    beside = "LFC and LGC beside it are the paper's"
    past = _past(experts) if kind == "classes" else None
    if past is None:
        lack = f"at least {LEAST} of these experts" if kind == "classes" else "such labels"
        return [first, *papers], (
            "Ordered by the leave-one-out error of ridge regression on the features, for want of a "
            f"history of {lack}; {beside}."
        )
    past = past.without([target])
    outside = len(experts) - past.knows(_digests(experts))
    alone = f"{outside} of {len(experts)} experts, without such a past, by ridge regression alone; "
    return [past.selector_entry(), *papers], (
        "Ordered by ridge regression on these images and by how the same experts did on "
        f"{len(past.targets)} other data sets, most by those where they scored alike; "
        f"{alone if outside else ''}{beside}."
    )


def _order(
    selectors: str | Iterable[str | Selector] | None,
    experts: list[Candidate],
    until_settled: int,
    images: LabelledImages,
) -> tuple[str | Iterable[str | Selector], str]:
    """The selectors that were asked for, or `default_order`."""
    if selectors is not None:
        return selectors, ""
    target = images.name if isinstance(images, Task) else ""
    return default_order(experts, until_settled, ranking.kind_of(images), target)


def _digests(experts: list[Candidate]) -> list[str]:
    return [expert.digest for expert in experts]


def _past(experts: list[Candidate]) -> History | None:
    """The history of the committed experts, None where it knows too few of these."""
    folder = zoo_folders().get(DEFAULT_ZOO)
    if not folder or not (folder / "history.json").is_file():
        return None
    past = History.load(folder / "history.json")
    return past if past.knows(_digests(experts)) >= LEAST else None


def rank(
    task: Any,
    zoo: Zoo = None,
    selectors: str | Iterable[str | Selector] | None = None,
    *,
    images_per_class: int | str | None = None,
    shots: int | str = "full",
    until_settled: int = 0,
    max_params: float = 0,
    max_gflops: float = 0,
    confirm: Confirm = None,
    report: str | Path | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Ranking:
    """Score every expert on training images of the task, never on others (`mzlib.ranking.rank`).

    task: a name, or a folder, Parquet or CSV file of images (`mzlib.images`), or a data set of
    torch, torchvision or Hugging Face; numeric labels or several an image by `mzlib.open_images(…,
    labels="numeric")`. zoo: the committed experts by default; a suite's name (what is missing is
    trained), experts, networks, or whatever `mzlib.zoo.external.candidates` knows; networks of timm
    of at most max_params million parameters and max_gflops billion multiply-adds an image (0: any).
    confirm: asked before recommended networks or those of a glob are downloaded.
    selectors: by default `default_order`. report: a file for the HTML page. What is computed is
    kept in `mzlib.provenance.cache_folder()`.

    Raises MzlibError for an unknown task, suite, expert or selector, and for no score at all.
    """
    suite = _suite(zoo)
    images = _opened(task, zoo)
    if selectors is not None:
        selectors = selectors if isinstance(selectors, str) else list(selectors)
        ranking.known_selectors(selectors, ranking.kind_of(images))
    if report:
        check_writable(report)
    experts = _agreed(zoo, _experts(zoo, suite, progress), max_params, max_gflops, confirm)
    order, why = _order(selectors, experts, until_settled, images)
    cache, notes = cache_folder()
    result = ranking.rank(
        images,
        experts,
        order,
        images_per_class=images_per_class,
        shots=shots,
        until_settled=until_settled,
        generic=suite.generic if suite else "",
        recipe=suite.recipe("finetune") if suite else PAPER,
        seed=seed,
        device=device,
        cache=cache,
        progress=progress,
    )
    result.facts["why"] = why
    result.facts["notes"] = [*_same_name(task), *notes, *result.facts["notes"]]
    if isinstance(zoo, str | Path):
        result.facts["zoo"] = str(zoo)
    if report:
        write_report(result, report)
    return result


def finetune(
    task: Any, expert: Expert | nn.Module | str, *, zoo: str | None = None, **options
) -> Finetuned:
    """Fine-tune an expert by name or object (`mzlib.finetuning.finetune`, which has the options).

    zoo: where to look for the expert (default: the committed ones).
    """
    if isinstance(expert, str):
        named = {
            candidate.name: candidate for candidate in (candidates(zoo) if zoo else _default())
        }
        found = [named[expert]] if expert in named else candidates(expert)
        if len(found) > 1:
            raise MzlibError(
                f"expected the name of one expert, got {expert!r}, which are {len(found)}: "
                f"{found[0].name}, …"
            )
        expert = found[0].load()
    if isinstance(expert, nn.Module):
        expert = as_expert(expert)
    cache, notes = cache_folder()
    done = finetuning.finetune(open_task(task), expert, cache=cache / "images", **options)
    return replace(done, notes=[*_same_name(task), *notes, *done.notes])


@dataclass(frozen=True)
class Choice:
    """What `choose` found: the ranking, the experts that were fine-tuned, and the one to keep."""

    ranking: Ranking
    tried: list[Finetuned]
    kept: Finetuned
    notes: list[str]


def choose(
    task: Any,
    zoo: Zoo = None,
    *,
    top: int | None = None,
    time_limit: float | None = None,
    selectors: str | Iterable[str | Selector] | None = None,
    max_params: float = 0,
    max_gflops: float = 0,
    confirm: Confirm = None,
    report: str | Path | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
    **options,
) -> Choice:
    """Rank, fine-tune the first `top` (default: those tied for rank 1, at most 5), keep the best.

    The best by `mzlib.finetuning.choose_best`; of at most 30 training images a class several
    experts are compared over five folds. time_limit: seconds for all of it: no expert begins
    that would end after it, if it takes as long as the one before. selectors, max_params,
    max_gflops, confirm: of `rank`. report: a file for the page. options: of
    `mzlib.finetuning.finetune`.

    Raises MzlibError as `rank` does, and where no expert could be fine-tuned.
    """
    ends_at = time.monotonic() + (time_limit or math.inf)
    shared: dict[str, Any] = dict(seed=seed, device=device, progress=progress)
    if report:
        check_writable(report)
    images = _opened(task, zoo)
    limits: dict[str, Any] = dict(max_params=max_params, max_gflops=max_gflops, confirm=confirm)
    found = rank(images, zoo, selectors, **limits, **shared)
    found.facts["notes"] = [*_same_name(task), *found.facts["notes"]]
    names = found.tied[:MOST_TIED] if top is None else found.first["expert"].head(top).tolist()
    options.setdefault("folds", len(names) > 1 and finetuning.use_folds(images))
    tried: list[Finetuned] = []
    notes = []
    for name in names:
        left = ends_at - time.monotonic()
        if tried and left < tried[-1].seconds:
            notes.append(f"no time was left to fine-tune {name}")
            continue
        limit = max(left, 1.0) if time_limit else None
        try:
            expert = found.experts[name].load()
            tried.append(finetune(images, expert, time_limit=limit, **shared, **options))
        except MzlibError as error:
            notes.append(f"{name} was not fine-tuned: {error}")
    if not tried:
        raise MzlibError(f"expected an expert that can be fine-tuned, got none: {notes[0]}")
    kept = finetuning.choose_best(tried)
    if report:
        write_report(found, report, tried, kept)
    return Choice(found, tried, kept, notes)
