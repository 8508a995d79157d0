"""How well a selector's scores order the experts by the accuracy that fine-tuning reaches: tables
in, tables out.

Three protocols say who picks the learning rate and, among the experts that were fine-tuned, the
one that is kept:

* `paper`: both on the test images, as Deshpande et al. 2021. An oracle: three noisy accuracies have
  a maximum above their mean.
* `validation`: both on validation images, which is what a person can do. Gains are test accuracy.
* `other seed`: the expert is kept by its test accuracy with another seed (another sample, head and
  order of batches), and judged with this one.

A seed draws the sample that is scored and that is fine-tuned on: the scores of one seed meet the
fine-tunes of the same seed; a seed that only one side has meets all of the other's, unless the
scores of other seeds exist. With all training images there is no such sample, and every seed of the
scores meets every seed of the fine-tunes, so that selectors of more and of fewer seeds are judged
by the same fine-tunes.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
from numpy import ndarray
from pandas import DataFrame

from mzlib.benchmark.metrics import (
    CORRELATIONS,
    correlation,
    kept_of_top,
    noise_ceiling,
    rounded,
    trials_to_best,
    within_groups,
)
from mzlib.errors import Missing, MzlibError

PROTOCOLS = ("paper", "validation", "other seed")
CHANCE = "random"  # the selector whose constant score means "any order"
KEYS = ["suite", "task", "shots", "images_per_class", "selector"]
CELL = ["suite", "task", "shots"]
NO_SCORES = DataFrame(columns=["images_per_class", "selector", "seed", "expert", "score"])
COLUMNS = [*KEYS, "seed", "finetune_seed", "protocol", "experts", "metric", "value", "reason"]


def _label(value: object) -> str:
    """`shots` and `images_per_class` hold numbers and words ("full", "all"): 20, 20.0 and "20" are
    one label.
    """
    number = isinstance(value, int | float | np.number) and value == value
    return str(int(value)) if number else str(value)


def truth(finetune: DataFrame, protocol: str = "paper") -> DataFrame:
    """Fine-tuned accuracy per (suite, task, shots, seed, expert) from one row per learning rate.

    `paper` and `other seed`: the best test accuracy over the learning rates. `validation`: the test
    accuracy at the rate with the best `val_accuracy` (mean over tied rates); NaN where no rate was
    validated. Column `val_accuracy`: of the rate that was picked.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"expected a protocol of {PROTOCOLS}, got {protocol!r}")
    table = finetune.assign(shots=finetune["shots"].map(_label))
    criterion = "val_accuracy" if protocol == "validation" else "accuracy"
    runs = table.groupby([*CELL, "seed", "expert"])
    picked = table[table[criterion] == runs[criterion].transform("max")]
    # every run stays, so that one without a validated rate is a NaN and not a missing row
    found = picked.groupby([*CELL, "seed", "expert"])[["accuracy", "val_accuracy"]].mean()
    every_run = runs.size().index
    return found.apply(rounded).reindex(every_run).reset_index()


@dataclass(frozen=True)
class Cell:
    """The fine-tunes of one task and regime with one seed, experts in the columns' order.

    accuracy: float [E], test; criterion: float [E], by which one of several fine-tuned experts is
    kept, NaN where the protocol has none; is_generic: bool [E], the generic expert.
    """

    accuracy: ndarray
    criterion: ndarray
    is_generic: ndarray

    @property
    def generic(self) -> float:
        """Accuracy of the generic expert; NaN where it was not fine-tuned."""
        return float(self.accuracy[self.is_generic].sum()) if self.is_generic.any() else np.nan

    def among(self, present: ndarray) -> "Cell":
        """The same for some of the experts."""
        return Cell(self.accuracy[present], self.criterion[present], self.is_generic[present])


def _metrics(
    selector: str,
    score: ndarray,
    cell: Cell,
    groups: ndarray | None,
    ks: Iterable[int],
    correlations: Iterable[str],
) -> Iterator[tuple[str, float, str]]:
    """(metric, value, reason) of one selector on one cell: score [E]; accuracies finite."""
    scored = np.isfinite(score)
    levels = np.unique(score[scored])
    place = np.where(scored, np.searchsorted(levels, score), -1)  # without a score: the last
    chance = selector == CHANCE and scored.all() and len(levels) == 1
    measures = {name: partial(correlation, name) for name in correlations}
    if groups is not None:
        measures["within"] = partial(within_groups, groups)
    for name, measure in measures.items():
        try:
            yield name, 0.0 if chance else measure(score, cell.accuracy), ""
        except Missing as missing:
            yield name, np.nan, str(missing)
    if "spearman" in measures:
        worst = 0.0
        with suppress(Missing):
            worst = correlation("spearman", place, cell.accuracy)
        yield "spearman_or_worst", worst, ""
    # what a person may do: the generic expert, and the selector's first two besides
    generic_first = np.where(cell.is_generic, len(levels), place)
    criterion = np.nan_to_num(cell.criterion)
    kept = kept_of_top(score, criterion, cell.accuracy)
    beside = kept_of_top(generic_first, criterion, cell.accuracy)
    no_score = "" if scored.any() else "no expert has a score"
    no_generic = "" if np.isfinite(cell.generic) else "the generic expert was not fine-tuned here"
    no_criterion = "" if np.isfinite(cell.criterion).all() else "nothing to keep an expert by"
    gainless = no_generic or no_criterion
    values = [
        ("coverage", scored.mean(), ""),
        ("trials_to_best", trials_to_best(score, cell.accuracy), no_score),
        ("best_gain", kept[-1] - cell.generic, gainless),
        ("worst_gain", cell.accuracy.min() - cell.generic, no_generic),
        ("generic_and_2_gain", beside[:3][-1] - cell.generic, no_score or gainless),
    ]
    for k in ks:
        best = kept[:k][-1]  # k beyond the zoo is the whole zoo
        values += [
            (f"top{k}_gain", best - cell.generic, no_score or gainless),
            (f"regret_at_{k}", cell.accuracy.max() - best, no_score or no_criterion),
        ]
    for name, value, reason in values:
        value = np.nan if reason else float(value)
        yield name, value, reason


def seeds_of(group: DataFrame, protocol: str, generic: str) -> tuple[DataFrame, dict]:
    """Seeds × experts of accuracies, and seed -> `Cell`, from `truth` of one task and regime."""
    both = group.pivot(
        index="seed",
        columns="expert",
        values=["accuracy", "val_accuracy"],
    )
    wide = both["accuracy"].dropna(how="all")
    is_generic = np.array(wide.columns == generic)
    cells = {}
    for seed, accuracy in wide.iterrows():
        if protocol == "validation":
            criterion = both.loc[seed, "val_accuracy"]
        elif protocol == "other seed":
            criterion = wide.drop(index=seed).mean().apply(rounded)
        else:
            criterion = accuracy
        cells[seed] = Cell(accuracy.to_numpy(), criterion.to_numpy(float), is_generic)
    return wide, cells


def _pairs(score_seeds: set, tuned_seeds: set, every_score_seed: set, shots: str) -> list[tuple]:
    """Which seed of a selector's scores meets which of the fine-tunes: of few shots, two seeds that
    both sides know meet their own only, also where this selector lacks one of them.
    """
    common = set() if shots == "full" else every_score_seed & tuned_seeds
    pairs = product(sorted(score_seeds), sorted(tuned_seeds))
    return [pair for pair in pairs if len({*pair}) == 1 or not common.issuperset(pair)]


def _ceiling_rows(wide: DataFrame, groups: dict[str, str] | None) -> Iterator[dict]:
    """Two rows, `<metric>` and `<metric>_upper`, of each correlation."""
    known = wide.dropna(axis=1)
    measures = {"spearman": partial(correlation, "spearman")}
    if groups is not None:
        measures["within"] = partial(within_groups, known.columns.map(groups).to_numpy())
    for metric, measure in measures.items():
        reason = ""
        try:
            low, high = noise_ceiling(known.to_numpy(), measure)
        except Missing as missing:
            low = high = np.nan
            reason = str(missing)
        for name, bound in {metric: low, f"{metric}_upper": high}.items():
            yield {
                "selector": "noise_ceiling",
                "images_per_class": "",
                "experts": wide.shape[1],
                "reason": reason,
                "metric": name,
                "value": bound,
            }


def _labelled(scores: DataFrame) -> DataFrame:
    """The scores with labels as words; MzlibError where an expert has two in one setting."""
    labels = ["shots", "images_per_class"]
    scores = scores.assign(**{name: scores[name].map(_label) for name in labels})
    if scores.duplicated([*KEYS, "seed", "expert"]).any():
        raise MzlibError(
            "expected one score per expert, task, shots, images_per_class, seed and selector, "
            "got several"
        )
    return scores


def evaluate(
    scores: DataFrame,
    finetune: DataFrame,
    *,
    generic: str,
    protocols: Iterable[str] = PROTOCOLS,
    ks: Iterable[int] = (1, 3),
    correlations: Iterable[str] = tuple(CORRELATIONS),
    groups: dict[str, str] | None = None,
) -> DataFrame:
    """Every metric of every selector on every task and seed.

    `scores` has columns suite, expert, task, shots, images_per_class, seed, selector, score (NaN:
    missing); `finetune` suite, expert, task, shots, lr, seed, accuracy, val_accuracy (see `truth`);
    `generic` is the id of the expert in the part of the paper's ResNet-101 ImageNet expert; `ks`
    are the short lists of `top{k}_gain` and `regret_at_{k}`; `groups` (expert -> group) adds the
    metric `within`. `generic_and_2_gain` is the gain of the generic expert and the first two picks
    together.

    Returns: tidy rows suite, task, shots, images_per_class, selector, seed, finetune_seed,
    protocol, experts (how many were fine-tuned there), metric, value, reason (why a value is NaN).
    Gains and regrets in the unit of accuracy; `spearman_or_worst` ranks an expert without a score
    last, and is 0 without any. The rows of selector `noise_ceiling` (metrics `spearman` and
    `within`, the lower bounds, `spearman_upper` and `within_upper`) have no seed.

    Raises: MzlibError, if `finetune` lacks the generic expert or an expert is scored twice in one
    setting.
    """
    tuned_experts = sorted(set(finetune["expert"]))
    if generic not in tuned_experts:
        raise MzlibError(
            f"expected a fine-tuned expert as generic, got {generic!r}; "
            f"choose one of {tuned_experts}"
        )
    by_task = dict(list(_labelled(scores).groupby(CELL)))
    rows: list[dict] = []
    for protocol in protocols:
        for key, group in truth(finetune, protocol).groupby(CELL):
            where = {
                **dict(zip(CELL, key)),
                "protocol": protocol,
            }
            wide, cells = seeds_of(group, protocol, generic)
            rows += [where | row for row in _ceiling_rows(wide, groups)]
            here = by_task.get(key, NO_SCORES)
            for setting, score, cell in _settings(here, wide, cells, key[-1]):
                present = np.isfinite(cell.accuracy)  # among those that were fine-tuned there
                experts = wide.columns[present]
                among = None if groups is None else np.array([groups[e] for e in experts])
                tuned = cell.among(present)
                selector = setting["selector"]
                found = _metrics(selector, score[present], tuned, among, ks, correlations)
                shared = where | setting | {"experts": len(experts)}
                rows += [shared | dict(zip(COLUMNS[-3:], row)) for row in found]
    return DataFrame(rows)[COLUMNS]


def _settings(
    scores: DataFrame,
    wide: DataFrame,
    cells: dict,
    shots: str,
) -> Iterator[tuple[dict, ndarray, Cell]]:
    """(setting, scores [E] in the columns' order, cell) of every selector on one task."""
    index = ["images_per_class", "selector", "seed"]
    scored = scores.pivot(
        index=index,
        columns="expert",
        values="score",
    )
    scored = scored.reindex(columns=wide.columns)
    every_seed = set(scored.index.unique("seed"))
    for (images, selector), samples in scored.groupby(level=[0, 1]):
        by_seed = dict(zip(samples.index.get_level_values("seed"), samples.to_numpy(float)))
        for seed, tuned_seed in _pairs(set(by_seed), set(cells), every_seed, shots):
            setting = {
                "images_per_class": images,
                "selector": selector,
                "seed": seed,
            }
            yield setting | {"finetune_seed": tuned_seed}, by_seed[seed], cells[tuned_seed]
