"""Rankings that know how the experts did on other targets (`mzlib.selectors.history`), fitted from
a suite's results and judged without leaks.

`benchmarks/history.py` judges them further and writes `zoo/thumb64/history.json` anew.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from pandas import DataFrame

from mzlib.benchmark.evaluate import truth
from mzlib.benchmark.metrics import spearman
from mzlib.benchmark.suite import Suite
from mzlib.selectors.history import History, history, neighbour_history, prior, shares

SCORE = "ridge_loo_mse"
IMAGES = "25"
# What may be chosen, always on other targets than the one that is judged.
GRID = [
    {"sharpness": sharpness, "own": own}
    for sharpness in (0.0, 2.0, 5.0, 10.0)
    for own in (0.25, 0.5, 1.0)
]
LEAST_TARGETS = 3
STEPS = {"scratch": 0, "generic": 1, "is generic": 2}


def group_of(row: Any) -> str:
    """Architecture and start of an expert, from its row of the zoo's table."""
    return f"{row.architecture}, {row.pretraining}"


def groups(zoo: DataFrame, generic: str) -> dict[str, str]:
    """Expert -> architecture and start; the experts on the generic source are a start of their
    own.
    """
    return {
        row.expert: f"{row.architecture}, is generic" if row.source == generic else group_of(row)
        for row in zoo.itertuples()
    }


def three_steps(group: str) -> int:
    """The order that needs no result at all: experts on the generic source, then those pre-trained
    on it, then those from scratch. group: see `groups`.
    """
    return STEPS[group.partition(", ")[2]]


def collect(
    finetune: DataFrame,
    scores: DataFrame,
    zoo: DataFrame,
    generic: str,
    shots: str,
) -> History:
    """The history of one regime: targets on which every expert was fine-tuned and scored (25 images
    a class), means over seeds.

    finetune: complete cells; scores: with the selector `ridge_loo_mse`.
    """
    accuracy = truth(finetune, "paper").query("shots == @shots")
    accuracy = accuracy.pivot_table("accuracy", "task", "expert")
    score = samples(scores, shots).groupby("task").mean().reindex_like(accuracy)
    whole = accuracy.notna().all(axis=1) & score.notna().all(axis=1)
    of_expert = groups(zoo, generic)
    return History(
        tuple(accuracy.columns),
        tuple(of_expert[expert] for expert in accuracy.columns),
        tuple(accuracy.index[whole]),
        accuracy[whole].to_numpy(),
        score[whole].to_numpy(),
        SCORE,
    )


def chosen(past: History) -> History:
    """The history with the pair of `GRID` that orders its own targets best, each left out in turn:
    the highest mean Spearman correlation of `neighbour_history` with accuracy. Fewer than three
    targets: the default.
    """
    if len(past.targets) < LEAST_TARGETS:
        return past
    votes = shares(past.accuracy)
    own = shares(past.scores)
    alike = np.nan_to_num(spearman(past.scores[:, None], past.scores))  # [T, T]
    means = []
    for pair in GRID:
        weights = np.exp(pair["sharpness"] * alike)
        np.fill_diagonal(weights, 0)  # of itself a target knows nothing
        vote = weights @ votes / weights.sum(axis=1, keepdims=True)
        means.append(np.nanmean(spearman(vote + pair["own"] * own, past.accuracy)))
    return replace(past, **GRID[int(np.argmax(means))])


def samples(scores: DataFrame, shots: str) -> DataFrame:
    """The score of the history: (target, seed of the sample of 25 images a class) × experts."""
    words = scores.astype({"shots": str, "images_per_class": str})
    rows = words.query("shots == @shots and images_per_class == @IMAGES and selector == @SCORE")
    return rows.pivot_table("score", ["task", "seed"], "expert")


def baseline_scores(
    finetune: DataFrame,
    scores: DataFrame,
    zoo: DataFrame,
    suite: Suite,
) -> DataFrame:
    """Rows of scores of `history`, `prior` and `neighbour_history` for every complete target, each
    from all *other* targets of its regime, with the constants chosen on those (nested).

    A row for every seed of the target's score, which sees that seed's sample alone: so they meet
    the fine-tunes that other selectors meet, with no more images than these.
    """
    tables = []
    for shots in finetune["shots"].astype(str).unique():
        past = collect(finetune, scores, zoo, suite.generic, shots)
        if len(past.targets) <= LEAST_TARGETS:
            continue
        everyone = np.arange(len(past.experts))
        own_scores = samples(scores, shots)[list(past.experts)]
        for target in past.targets:
            rest = chosen(past.without([target]))
            blind = {"history": history(rest), "prior": prior(rest)}
            for seed, own in own_scores.loc[target].iterrows():
                seeing = neighbour_history(rest, everyone, own.to_numpy())
                values = DataFrame({**blind, "neighbour_history": seeing, "expert": past.experts})
                table = values.melt("expert", var_name="selector", value_name="score")
                tables.append(table.assign(task=target, shots=shots, seed=seed))
    rows = pd.concat(tables) if tables else DataFrame()
    return rows.assign(suite=suite.name, images_per_class=IMAGES, reason="")
