"""Rankings that know how the experts did on other targets (`mzlib.selectors.history`), fitted from
a suite's results and judged without leaks.

`mzlib.benchmark.results.write_history("thumb64")` writes `zoo/thumb64/history.json` anew from the
committed tables.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd

from mzlib.benchmark.data import CARDS
from mzlib.benchmark.evaluate import truth
from mzlib.benchmark.metrics import spearman
from mzlib.benchmark.suite import Suite
from mzlib.selectors.history import OUTSIDE, History, history, neighbour_history, prior

SCORE = "ridge_loo_mse"
IMAGES = "25"
# What may be chosen, always on other targets than the one that is judged.
GRID = [
    {"sharpness": sharpness, "own": own}
    for sharpness, own in product((0.0, 2.0, 5.0, 10.0), (0.25, 0.5, 1.0))
]
LEAST_TARGETS = 3


def group_of(row) -> str:
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
    finetune: pd.DataFrame, scores: pd.DataFrame, zoo: pd.DataFrame, generic: str, shots: str
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


def _known(past: History, without: Iterable[str] = ()) -> np.ndarray:
    """Positions of all experts of a history, some of them made unknown."""
    position = np.arange(len(past.experts))
    position[np.isin(past.experts, list(without))] = OUTSIDE
    return position


def chosen(past: History) -> History:
    """The history with the pair of `GRID` that orders its own targets best, each left out in turn:
    the highest mean Spearman correlation with accuracy. Fewer than three targets: the default.
    """
    if len(past.targets) < LEAST_TARGETS:
        return past
    everyone = _known(past)
    means = []
    for pair in GRID:
        candidate = replace(past, **pair)
        values = []
        for i, target in enumerate(past.targets):
            rest = candidate.without([target])
            value = neighbour_history(rest, everyone, past.scores[i])
            values.append(spearman(value, past.accuracy[i]))
        means.append(np.nanmean(values))
    return replace(past, **GRID[int(np.argmax(means))])


def family(target: str) -> str:
    """Sets of one origin or one kind of image: `tiny`, `pacs`, else what the card's domain begins
    with.
    """
    prefix = target.partition("_")[0]
    if prefix in ("tiny", "pacs"):
        return prefix
    domain = CARDS.get(target, {}).get("domain", target)
    return domain.partition(":")[0].partition(" (")[0]


def baseline_scores(
    finetune: pd.DataFrame, scores: pd.DataFrame, zoo: pd.DataFrame, suite: Suite
) -> pd.DataFrame:
    """Rows of scores of `history`, `prior` and `neighbour_history` for every complete target, each
    from all *other* targets of its regime, with the constants chosen on those (nested).

    A row for every seed of the target's fine-tunes, so that they meet what other selectors meet.
    """
    rows = []
    for shots in finetune["shots"].astype(str).unique():
        past = collect(finetune, scores, zoo, suite.generic, shots)
        seeds = finetune[finetune["shots"].astype(str) == shots].groupby("task")["seed"].unique()
        if len(past.targets) <= LEAST_TARGETS:
            continue
        for i, target in enumerate(past.targets):
            rest = past.without([target])
            values = {
                "history": history(rest),
                "prior": prior(rest),
                "neighbour_history": neighbour_history(chosen(rest), _known(past), past.scores[i]),
            }
            for selector, seed in product(values, seeds[target]):
                rows += [
                    {
                        "suite": suite.name,
                        "expert": expert,
                        "task": target,
                        "shots": shots,
                        "images_per_class": IMAGES,
                        "seed": seed,
                        "selector": selector,
                        "score": value,
                        "reason": "",
                    }
                    for expert, value in zip(past.experts, values[selector])
                ]
    return pd.DataFrame(rows)


def _settings(past: History, sources: dict[str, str]) -> Iterator[tuple[str, int, History, list]]:
    """(setting, target, what may be known, experts that are new) of every way to leave out."""
    families = {target: family(target) for target in past.targets}
    rng = np.random.default_rng(0)
    for i, target in enumerate(past.targets):
        yield "other targets", i, past.without([target]), []
        kin = [other for other in past.targets if families[other] == families[target]]
        yield "other families", i, past.without(kin), []
        for source in sorted(set(sources.values())):
            new = [expert for expert in past.experts if sources[expert] == source]
            yield "a new source", i, past.without([target], new), new
        others = [other for other in past.targets if other != target]
        for number in (1, 3, 5, 10):
            if number < len(others):
                for _ in range(10):
                    kept = set(rng.choice(others, number, replace=False))
                    left = [other for other in past.targets if other not in kept]
                    yield f"{number} past targets", i, past.without(left), []


def without_leaks(past: History, sources: dict[str, str]) -> pd.DataFrame:
    """Spearman's correlation of `neighbour_history` and of its score alone with accuracy, for every
    target and way to leave out: other targets (nested choice of the constants), other families of
    targets, the expert's source (a new expert is ranked by its score), few past targets.

    Returns: setting, task, spearman, alone (of the score), difference; means over draws.
    """
    rows = []
    constants: dict[tuple, dict] = {}
    for setting, i, known, new in _settings(past, sources):
        if known.targets not in constants:
            best = chosen(known) if len(known.targets) > 10 else known
            constants[known.targets] = {"sharpness": best.sharpness, "own": best.own}
        known = replace(known, **constants[known.targets])
        position = known.positions(past.experts)
        value = neighbour_history(known, position, past.scores[i])
        rows.append(
            {
                "setting": setting,
                "task": past.targets[i],
                "spearman": float(spearman(value, past.accuracy[i])),
                "alone": float(spearman(past.scores[i], past.accuracy[i])),
            }
        )
    table = pd.DataFrame(rows).groupby(["setting", "task"], sort=False).mean().reset_index()
    return table.assign(difference=table["spearman"] - table["alone"])
