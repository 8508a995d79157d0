"""How well a selector's scores order the experts by the accuracy that fine-tuning reaches: pure functions of tables.

The paper's metrics (Deshpande et al. 2021, Sec. 4.3) are the top-k accuracy gain over the generic expert, trials to
best and Spearman's correlation. What the paper leaves open is settled here, once:

* Tied scores stand for an order drawn at random among the tied experts. Gains, regret, cost and trials are the exact
  expectation over those orders, so the selector `random` (one score for all) reports all orders, not one draw.
* Several experts may share the best accuracy: trials stop at the first of them.
* An expert whose score is missing (NaN, infinite) is left out of correlations and comes after all scored experts;
  `coverage` is the share of the fine-tuned experts that have a score.
* A constant score has no correlation (missing), except for `random`, where 0 is the mean over all orders.
* A seed of the scores meets the fine-tunes of the same seed; a seed that only one side has meets all of the other's.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import product

import numpy as np
import pandas as pd
from scipy import stats

from mzlib.errors import Missing, MzlibError

CORRELATIONS = {
    "spearman": lambda score, accuracy: _spearman(
        score, accuracy
    ),  # scipy's takes ten times as long, for its p-value
    "kendall": lambda score, accuracy: (
        stats.kendalltau(score, accuracy, method="asymptotic").statistic
    ),  # tau-b
    "pearson": lambda score, accuracy: stats.pearsonr(score, accuracy).statistic,
    # Two conventions are in print: top ranks by score and by accuracy, averaged; top ranks by accuracy alone.
    "weighted_tau": lambda score, accuracy: stats.weightedtau(score, accuracy).statistic,
    "weighted_tau_accuracy": lambda score, accuracy: (
        stats.weightedtau(accuracy, score, rank=None).statistic
    ),
}
PROTOCOLS = ("paper", "clean")
CHANCE = "random"  # the selector whose constant score means "any order"
KEYS = ["suite", "task", "shots", "images_per_class", "selector"]
SETTING = ["suite", "shots", "images_per_class", "protocol", "selector", "metric"]


def correlation(name: str, score: np.ndarray, accuracy: np.ndarray) -> float:
    """Correlation `name` (a key of `CORRELATIONS`) of scores and accuracies, both float [E], over the finite pairs.

    Raises: Missing, with fewer than three such experts or a constant score or accuracy.
    """
    both = np.isfinite(score) & np.isfinite(accuracy)
    if both.sum() < 3:
        raise Missing(f"expected at least 3 experts with a score, got {both.sum()}")
    for what, values in (("score", score[both]), ("accuracy", accuracy[both])):
        if np.ptp(values) == 0:
            raise Missing(f"the {what} is the same for every expert")
    return float(CORRELATIONS[name](score[both], accuracy[both]))


def _ties(score: np.ndarray) -> Iterator[np.ndarray]:
    """Indices of equally scored experts, best score first; experts without a score come last, as one tie."""
    order = np.where(np.isfinite(score), score, -np.inf)
    for value in np.unique(order)[::-1]:
        yield np.flatnonzero(order == value)


def best_of_top(score: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """Expected best accuracy among the k top-scored experts, k = 1 … E: float [E] from two float [E].

    Drawing m of the g tied experts at the boundary, P(best of the draw = j-th lowest) = C(j-1, m-1) / C(g, m).
    """
    if np.isfinite(score).all() and len(np.unique(score)) == len(score):  # no ties: no expectation
        return np.maximum.accumulate(accuracy[np.argsort(-score)])
    best, sure = (
        [],
        -np.inf,
    )  # `sure`: best accuracy among experts that are in the top k for certain
    for tie in _ties(score):
        ascending, g = np.maximum(np.sort(accuracy[tie]), sure), len(tie)
        best += [
            sum(math.comb(j - 1, m - 1) * ascending[j - 1] for j in range(m, g + 1))
            / math.comb(g, m)
            for m in range(1, g + 1)
        ]
        sure = ascending[-1]
    return np.array(best)


def trials_to_best(score: np.ndarray, accuracy: np.ndarray) -> float:
    """Expected number of experts fine-tuned, in score order, until one that reaches the best accuracy is met.

    With h experts above the tie that holds b of the best among its g experts: h + (g + 1) / (b + 1).
    """
    above = 0
    for tie in _ties(score):
        if winners := np.sum(accuracy[tie] == accuracy.max()):
            break
        above += len(tie)
    return above + (len(tie) + 1) / (winners + 1)


def regret_against_cost(
    score: np.ndarray,
    accuracy: np.ndarray,
    finetune_seconds: np.ndarray,
    scoring_seconds: float = 0.0,
) -> pd.DataFrame:
    """What fine-tuning the k top-scored experts costs and what it misses: columns k, seconds, regret; k = 1 … E.

    Seconds: scoring the zoo, then k fine-tunes (mean over a tie). Regret: best accuracy of the zoo - `best_of_top`.
    """
    each = np.concatenate(
        [np.full(len(tie), np.mean(finetune_seconds[tie])) for tie in _ties(score)]
    )
    return pd.DataFrame(
        {
            "k": np.arange(1, len(each) + 1),
            "seconds": scoring_seconds + np.cumsum(each),
            "regret": accuracy.max() - best_of_top(score, accuracy),
        }
    )


def noise_ceiling(accuracy: np.ndarray, name: str = "spearman") -> tuple[float, float]:
    """Bounds on a perfect selector's correlation with the accuracies of one seed: float [S, E] -> (low, high).

    Each seed against the mean of the other seeds (low: that mean is noisy too) and of all seeds (high: it contains the
    seed), averaged: Nili et al. 2014, "A toolbox for representational similarity analysis". A seed covers all that is
    drawn with it: few-shot subset, head, order of batches. Raises Missing with fewer than two seeds.
    """
    if len(accuracy) < 2:
        raise Missing(f"expected at least 2 seeds of fine-tuning, got {len(accuracy)}")
    mean = accuracy.mean(axis=0).round(9)  # rounding keeps ties
    others = [np.delete(accuracy, s, axis=0).mean(axis=0).round(9) for s in range(len(accuracy))]
    return tuple(
        float(np.mean([correlation(name, m, row) for m, row in zip(means, accuracy)]))
        for means in (others, [mean] * len(accuracy))
    )


def _label(value: object) -> str:
    """`shots` and `images_per_class` hold numbers and words ("full", "all"): 20, 20.0 and "20" are one label."""
    return (
        str(int(value))
        if isinstance(value, (int, float, np.number)) and value == value
        else str(value)
    )


def truth(finetune: pd.DataFrame, protocol: str = "paper") -> pd.DataFrame:
    """Fine-tuned accuracy per (suite, task, shots, seed, expert) from one row per learning rate.

    `paper`: the best test accuracy over the learning rates, i.e. the rate is picked on the test set. `clean`: the
    test accuracy at the rate with the best `val_accuracy` (mean over tied rates); NaN where no rate was validated.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"expected a protocol of {PROTOCOLS}, got {protocol!r}")
    table = finetune.assign(shots=finetune["shots"].map(_label))
    runs = table.groupby(keys := ["suite", "task", "shots", "seed", "expert"])
    if protocol == "paper":
        return runs["accuracy"].max().reset_index()
    picked = table["val_accuracy"] == runs["val_accuracy"].transform("max")
    return (
        table.assign(accuracy=table["accuracy"].where(picked))
        .groupby(keys)["accuracy"]
        .mean()
        .reset_index()
    )


def _metrics(
    selector: str,
    score: np.ndarray,
    accuracy: np.ndarray,
    generic: float,
    ks: Iterable[int],
    correlations: Iterable[str],
) -> Iterator[tuple[str, float, str]]:
    """(metric, value, reason) of one selector on one task and seed: score and accuracy [E], accuracy finite."""
    scored = np.isfinite(score)
    for name in correlations:
        try:
            chance = selector == CHANCE and scored.all() and np.ptp(score) == 0
            yield name, 0.0 if chance else correlation(name, score, accuracy), ""
        except Missing as missing:
            yield name, np.nan, str(missing)
    no_score = "" if scored.any() else "no expert has a score"
    no_generic = "" if np.isfinite(generic) else "the generic expert was not fine-tuned here"
    top = best_of_top(score, accuracy)
    values = [
        ("coverage", scored.mean(), ""),
        ("trials_to_best", trials_to_best(score, accuracy), no_score),
        ("best_gain", accuracy.max() - generic, no_generic),
        ("worst_gain", accuracy.min() - generic, no_generic),
    ]
    for k in ks:
        best = top[min(k, len(top)) - 1]  # k beyond the zoo is the whole zoo
        values += [
            (f"top{k}_gain", best - generic, no_score or no_generic),
            (f"regret_at_{k}", accuracy.max() - best, no_score),
        ]
    yield from (
        (name, np.nan if reason else float(value), reason) for name, value, reason in values
    )


def evaluate(
    scores: pd.DataFrame,
    finetune: pd.DataFrame,
    *,
    generic: str,
    protocols: Iterable[str] = PROTOCOLS,
    ks: Iterable[int] = (1, 3),
    correlations: Iterable[str] = tuple(CORRELATIONS),
) -> pd.DataFrame:
    """Every metric of every selector on every task and seed.

    `scores` has columns suite, expert, task, shots, images_per_class, seed, selector, score (NaN: missing); `finetune`
    suite, expert, task, shots, lr, seed, accuracy, val_accuracy (see `truth`); `generic` is the id of the expert in
    the part of the paper's ResNet-101 ImageNet expert; `ks` are the short lists of `top{k}_gain` and `regret_at_{k}`.

    Returns: tidy rows suite, task, shots, images_per_class, selector, seed, finetune_seed, protocol, experts (how many
    were fine-tuned there), metric, value, reason (why a value is NaN). Gains and regrets in the unit of accuracy. The
    rows of selector `noise_ceiling` (metrics `spearman`, the lower bound, and `spearman_upper`) have no seed.

    Raises: MzlibError, if `finetune` lacks the generic expert or an expert is scored twice in one setting.
    """
    if generic not in set(finetune["expert"]):
        raise MzlibError(
            f"expected a fine-tuned expert as generic, got {generic!r}; "
            f"choose one of {sorted(set(finetune['expert']))}"
        )
    scores = scores.assign(
        shots=scores["shots"].map(_label), images_per_class=scores["images_per_class"].map(_label)
    )
    if scores.duplicated([*KEYS, "seed", "expert"]).any():
        raise MzlibError(
            "expected one score per expert, task, shots, images_per_class, seed and selector, got several"
        )
    by_task, rows = dict(list(scores.groupby(["suite", "task", "shots"]))), []
    for protocol in protocols:
        for key, group in truth(finetune, protocol).groupby(["suite", "task", "shots"]):
            wide = group.pivot(index="seed", columns="expert", values="accuracy").dropna(
                how="all"
            )  # seeds × experts
            where = {**dict(zip(KEYS, key)), "protocol": protocol}
            try:
                bounds, reason = noise_ceiling(wide.dropna(axis=1).to_numpy()), ""
            except Missing as missing:
                bounds, reason = (np.nan, np.nan), str(missing)
            rows += [
                {
                    **where,
                    "images_per_class": "",
                    "selector": "noise_ceiling",
                    "experts": wide.shape[1],
                    "metric": name,
                    "value": bound,
                    "reason": reason,
                }
                for name, bound in zip(("spearman", "spearman_upper"), bounds)
            ]
            scored = (
                by_task.get(key, scores.head(0))
                .pivot(
                    index=["images_per_class", "selector", "seed"], columns="expert", values="score"
                )
                .reindex(columns=wide.columns)
            )
            samples, tuned = (
                defaultdict(dict),
                dict(zip(wide.index, wide.to_numpy())),
            )  # seed -> value of each expert
            for (images, selector, seed), values in zip(scored.index, scored.to_numpy(float)):
                samples[images, selector][seed] = values
            for (images, selector), by_seed in samples.items():
                common = by_seed.keys() & tuned.keys()
                for seed, tuned_seed in product(by_seed, tuned):
                    if seed != tuned_seed and {seed, tuned_seed} <= common:
                        continue
                    present = np.isfinite(accuracy := tuned[tuned_seed])
                    setting = {
                        **where,
                        "images_per_class": images,
                        "selector": selector,
                        "seed": seed,
                        "finetune_seed": tuned_seed,
                        "experts": int(present.sum()),
                    }
                    metrics = _metrics(
                        selector,
                        by_seed[seed][present],
                        accuracy[present],
                        wide.loc[tuned_seed].get(generic, np.nan),
                        ks,
                        correlations,
                    )
                    rows += [
                        {**setting, "metric": m, "value": value, "reason": reason}
                        for m, value, reason in metrics
                    ]
    return pd.DataFrame(rows)[
        [*KEYS, "seed", "finetune_seed", "protocol", "experts", "metric", "value", "reason"]
    ]


def _resamples(counts: tuple[int, ...], draws: int, rng: np.random.Generator) -> np.ndarray:
    """Weights [draws, sum(counts)] of a two-level bootstrap: tasks with replacement, then seeds within each."""
    n, tasks = np.array(counts), len(counts)
    task = rng.integers(tasks, size=(draws, tasks, 1))
    seed = np.floor(rng.random((draws, tasks, n.max())) * n[task]).astype(
        int
    )  # uniform on 0 … n_task - 1
    weight = np.where(np.arange(n.max()) < n[task], 1 / (tasks * n[task]), 0)
    unit = np.arange(draws)[:, None, None] * n.sum() + (np.cumsum(n) - n)[task] + seed
    return np.bincount(unit.ravel(), weight.ravel(), minlength=draws * n.sum()).reshape(
        draws, n.sum()
    )


def summarize(
    metrics: pd.DataFrame, rng: np.random.Generator, draws: int = 2000, level: float = 0.95
) -> pd.DataFrame:
    """Means over tasks of `evaluate`'s values with percentile bootstrap intervals over tasks × seeds.

    The mean is over tasks of the mean over seeds, missing values left out. A resample takes tasks with replacement
    and, within every task taken, its seeds with replacement; settings with the same tasks and seeds share resamples.
    One value alone has no interval (NaN). Returns: suite, shots, images_per_class, protocol, selector, metric, mean,
    low, high, tasks (that have a value), missing (share of the values that are NaN).
    """
    rows, weights, tail = [], {}, (1 - level) / 2
    for setting, part in metrics.sort_values("task", kind="stable").groupby(SETTING):
        values, tasks = part["value"].to_numpy(float), pd.factorize(part["task"])[0]
        values, tasks = values[present := ~np.isnan(values)], tasks[present]
        counts = np.bincount(tasks)
        counts = tuple(counts[counts > 0].tolist())
        each = np.repeat(
            1 / np.array(counts) / len(counts), counts
        )  # the mean over tasks of the mean over seeds
        row = dict(
            zip(SETTING, setting),
            mean=each @ values if len(values) else np.nan,
            low=np.nan,
            high=np.nan,
            tasks=len(counts),
            missing=1 - len(values) / len(part),
        )
        if len(values) > 1 and counts not in weights:
            weights[counts] = _resamples(counts, draws, rng)
        if len(values) > 1:
            row["low"], row["high"] = np.quantile(weights[counts] @ values, [tail, 1 - tail])
        rows.append(row)
    return pd.DataFrame(rows)


def _spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's correlations along the last axis of [..., E] and [..., E]; NaN with a missing value or a constant."""
    a, b = (
        ranks - ranks.mean(-1, keepdims=True)
        for ranks in (stats.rankdata(x, axis=-1) for x in (a, b))
    )
    with np.errstate(invalid="ignore"):
        return (a * b).sum(-1) / np.sqrt(np.square(a).sum(-1) * np.square(b).sum(-1))


def zoo_halves(
    scores: pd.DataFrame, accuracy: pd.DataFrame, rng: np.random.Generator, draws: int = 200
) -> pd.DataFrame:
    """Spearman's correlation, mean over tasks, of every selector in disjoint random halves of the zoo.

    scores, accuracy (`truth`): one setting; means over seeds; the experts that were fine-tuned on every task. A task where
    a half has a missing score, or the same one for all, is left out of the mean. Returns: draw, half (0, 1), selector, value.

    Raises: Missing, with fewer than 3 experts a half.
    """
    tuned = accuracy.pivot_table(index="task", columns="expert", values="accuracy").dropna(axis=1)
    if (size := tuned.shape[1] // 2) < 3:
        raise Missing(
            f"expected at least 6 fine-tuned experts to halve the zoo, got {tuned.shape[1]}"
        )
    wide = scores.pivot_table(index=["task", "selector"], columns="expert", values="score").reindex(
        columns=tuned.columns
    )
    selectors = wide.index.unique("selector")
    index = np.array(
        [rng.permutation(tuned.shape[1])[: 2 * size].reshape(2, size) for _ in range(draws)]
    )
    by_task = [
        _spearman(
            wide.loc[task].reindex(selectors).to_numpy()[:, index],
            tuned.loc[task].to_numpy()[index],
        )
        for task in wide.index.unique("task").intersection(tuned.index)
    ]
    mean = np.ma.masked_invalid(by_task).mean(axis=0).filled(np.nan)  # [selectors, draws, 2]
    axes = pd.MultiIndex.from_product(
        [selectors, range(draws), (0, 1)], names=["selector", "draw", "half"]
    )
    return pd.Series(mean.ravel(), axes, name="value").dropna().reset_index()


def agreement_with_all_images(scores: pd.DataFrame) -> pd.DataFrame:
    """Spearman's correlation over experts of each sample's scores with the same selector's from all images (seed 0).

    scores: one regime, several `images_per_class`, among them `all`. Returns: task, selector, images_per_class, seed, value.
    """
    wide = scores.pivot(
        index=["task", "selector", "images_per_class", "seed"], columns="expert", values="score"
    )
    every = wide.xs(("all", 0), level=("images_per_class", "seed")).reindex(
        wide.index.droplevel([2, 3])
    )
    return pd.Series(
        _spearman(wide.to_numpy(), every.to_numpy()), wide.index, name="value"
    ).reset_index()


def interval(values: np.ndarray, level: float = 0.95, draws: int = 2000) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` [n]; NaN with fewer than two values."""
    if len(values) < 2:
        return np.nan, np.nan
    means = np.random.default_rng(0).choice(values, (draws, len(values))).mean(axis=1)
    return tuple(np.quantile(means, [(1 - level) / 2, (1 + level) / 2]))
