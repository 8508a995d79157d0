"""Rankings that know how the experts did on other targets (`mzlib.selectors.history`), fitted from
a suite's results and judged without leaks.

`benchmarks/history.py` judges them further and writes `zoo/thumb64/history.json` anew.
"""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from mzlib.benchmark.evaluate import truth
from mzlib.benchmark.metrics import spearman
from mzlib.benchmark.suite import Suite
from mzlib.selectors.history import History, history, neighbour_history, prior, shares

SCORE = "ridge_loo_mse"
IMAGES = "25"
# What may be chosen, always on other targets than the one that is judged.
GRID = [
    {"sharpness": sharpness, "own": own}
    for sharpness, own in product((0.0, 2.0, 5.0, 10.0), (0.25, 0.5, 1.0))
]
LEAST_TARGETS = 3


def group_of(row: Any) -> str:
    """Architecture and start of an expert, from its row of the zoo's table."""
    return f"{row.architecture}, {row.pretraining}"


def groups(zoo: pd.DataFrame, generic: str) -> dict[str, str]:
    """Expert -> architecture and start; the experts on the generic source are a start of their
    own.
    """
    return {
        row.expert: f"{row.architecture}, is generic" if row.source == generic else group_of(row)
        for row in zoo.itertuples()
    }


def collect(
    finetune: pd.DataFrame,
    scores: pd.DataFrame,
    zoo: pd.DataFrame,
    generic: str,
    shots: str,
) -> History:
    """The history of one regime: targets on which every expert was fine-tuned and scored (25 images
    a class), means over seeds.

    finetune: complete cells; scores: with the selector `ridge_loo_mse`.
    """
    accuracy = truth(finetune, "paper").query("shots == @shots")
    accuracy = accuracy.pivot_table(index="task", columns="expert", values="accuracy")
    score = scores.astype({"shots": str, "images_per_class": str})
    score = score.query("shots == @shots and images_per_class == @IMAGES and selector == @SCORE")
    score = score.pivot_table(index="task", columns="expert", values="score")
    score = score.reindex(index=accuracy.index, columns=accuracy.columns)
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


def baseline_scores(
    finetune: pd.DataFrame,
    scores: pd.DataFrame,
    zoo: pd.DataFrame,
    suite: Suite,
) -> pd.DataFrame:
    """Rows of scores of `history`, `prior` and `neighbour_history` for every complete target, each
    from all *other* targets of its regime, with the constants chosen on those (nested).

    A row for every seed of the target's fine-tunes, so that they meet what other selectors meet.
    """
    tables = []
    for shots in finetune["shots"].astype(str).unique():
        past = collect(finetune, scores, zoo, suite.generic, shots)
        everyone = np.arange(len(past.experts))
        seeds = finetune[finetune["shots"].astype(str) == shots].groupby("task")["seed"].unique()
        if len(past.targets) <= LEAST_TARGETS:
            continue
        for i, target in enumerate(past.targets):
            rest = past.without([target])
            values = {
                "history": history(rest),
                "prior": prior(rest),
                "neighbour_history": neighbour_history(chosen(rest), everyone, past.scores[i]),
            }
            for selector, seed in product(values, seeds[target]):
                where = {
                    "task": target,
                    "shots": shots,
                    "seed": seed,
                    "selector": selector,
                }
                table = pd.DataFrame({"expert": past.experts, "score": values[selector]})
                tables.append(table.assign(**where))
    rows = pd.concat(tables) if tables else pd.DataFrame()
    return rows.assign(suite=suite.name, images_per_class=IMAGES, reason="")
