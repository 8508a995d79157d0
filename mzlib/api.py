"""The door: names of tasks, suites and experts become objects, for the library that takes only
these.

This file and the command line are the only ones that know both the library and the benchmark.
"""

from collections.abc import Iterable
from pathlib import Path

import torch

from mzlib import finetuning, ranking
from mzlib.benchmark.data import CARDS, load_task, store
from mzlib.benchmark.run import run_suite
from mzlib.benchmark.stages import zoo_folder
from mzlib.benchmark.suite import Suite, load_suite, suite_files
from mzlib.dataset import LabelledImages
from mzlib.finetuning import Finetuned
from mzlib.images import as_labelled_images, open_images
from mzlib.provenance import home
from mzlib.ranking import DEFAULT_SELECTORS, Ranking
from mzlib.report import check_writable, write_report
from mzlib.training import PAPER
from mzlib.zoo import Expert, load_expert
from mzlib.zoo.external import Candidate, candidates

DEFAULT_ZOO = "thumb64"  # the suite whose experts are committed


def load_zoo(name: str, progress: bool = True) -> list[Expert]:
    """All starting points of a suite's zoo; experts whose weights are not here are trained first,
    no others.
    """
    suite = load_suite(name)
    experts = {expert.partition(":")[0] for expert in suite.starting_points()}
    run_suite(
        name,
        stages=["zoo"],
        only=[f"zoo/{expert}" for expert in experts],
        weights=True,
        retry_failed=True,
        progress=progress,
    )
    return [load_expert(expert, zoo_folder(suite.name)) for expert in suite.starting_points()]


def open_task(task: LabelledImages | str | Path, size: int | None = None) -> LabelledImages:
    """The task of that name, or the listing of the images at that path; what is neither name nor
    path, as labelled images (arrays, data sets of torch and Hugging Face).
    """
    if not isinstance(task, str | Path):
        return as_labelled_images(task)
    is_name = str(task) in CARDS or store.exists(store.root() / task)
    if not is_name and Path(task).expanduser().exists():
        return open_images(task)
    return load_task(task, size)


def _experts(
    zoo: str | Path | Iterable[Expert | str] | None, suite: Suite | None, progress: bool
) -> list[Candidate]:
    if zoo is None:
        return candidates(DEFAULT_ZOO)
    if suite is not None:
        return candidates(load_zoo(suite.name, progress))
    return candidates(str(zoo) if isinstance(zoo, Path) else zoo)


def rank(
    task: LabelledImages | str | Path,
    zoo: str | Path | Iterable[Expert | str] | None = None,
    selectors: str | Iterable[str] = DEFAULT_SELECTORS,
    *,
    images_per_class: int | str | None = None,
    shots: int | str = "full",
    until_settled: int = 0,
    report: str | Path | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Ranking:
    """Score every expert on training images of the task, never on test images
    (`mzlib.ranking.rank`).

    task: a name, or a folder, Parquet or CSV file of images (`mzlib.images`), or images that are
    open. zoo: the committed experts by default; a suite's name (what is missing is trained),
    experts, or whatever `mzlib.zoo.external.candidates` knows. report: a file for the HTML page.
    What is computed is kept in `runs/` under `home()`.

    Raises MzlibError for an unknown task, suite, expert or selector, and where no expert could be
    scored.
    """
    named = isinstance(zoo, str) and zoo in suite_files()
    suite = load_suite(zoo) if named else load_suite(DEFAULT_ZOO) if zoo is None else None
    selectors = ranking.known_selectors(selectors)
    if report:
        check_writable(report)
    result = ranking.rank(
        open_task(task, suite.image_size if named else None),
        _experts(zoo, suite, progress),
        selectors,
        images_per_class=images_per_class,
        shots=shots,
        until_settled=until_settled,
        generic=suite.generic if suite else "",
        recipe=suite.recipe("finetune") if suite else PAPER,
        seed=seed,
        device=device,
        cache=home() / "runs",
        progress=progress,
    )
    if isinstance(zoo, str | Path):
        result.facts["zoo"] = str(zoo)
    if report:
        write_report(result, report)
    return result


def finetune(
    task: LabelledImages | str | Path,
    expert: Expert | str,
    *,
    zoo: str | None = None,
    **options,
) -> Finetuned:
    """Fine-tune an expert by name or object (`mzlib.finetuning.finetune`, which has the options).

    zoo: where to look for the expert (default: the committed ones).
    """
    if isinstance(expert, str):
        named = {candidate.name: candidate for candidate in candidates(zoo or DEFAULT_ZOO)}
        expert = (named.get(expert) or candidates(expert)[0]).load()
    return finetuning.finetune(open_task(task), expert, cache=home() / "runs" / "images", **options)
