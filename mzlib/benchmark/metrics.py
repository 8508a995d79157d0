"""The paper's metrics of one selector on one task, as functions of arrays (Deshpande et al. 2021,
Sec. 4.3), and what the paper leaves open.

* Tied scores stand for an order drawn at random among the tied experts. Gains, regret, cost and
  trials are the exact expectation over those orders.
* Several experts may share the best accuracy: trials stop at the first of them.
* An expert without a score (NaN, infinite) comes after all scored ones and is left out of
  correlations.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import numpy as np
from numpy import ndarray
from scipy import stats

from mzlib.errors import Missing
from mzlib.selectors.history import ranks


def spearman(a: ndarray, b: ndarray) -> ndarray:
    """Spearman's correlations along the last axis of float [..., E] and [..., E]; NaN with a
    missing value or a constant.
    """
    middle = (a.shape[-1] + 1) / 2  # the mean of all ranks
    a = ranks(a) - middle
    b = ranks(b) - middle
    norms = np.square(a).sum(-1) * np.square(b).sum(-1)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(-1) / np.sqrt(norms)


# of (score, accuracy); the two weighted τ are the two conventions in print: top ranks by score and
# by accuracy, averaged, or by accuracy alone
CORRELATIONS = {
    "spearman": spearman,
    "kendall": lambda s, a: stats.kendalltau(s, a, method="asymptotic").statistic,  # τ-b
    "pearson": lambda s, a: stats.pearsonr(s, a).statistic,
    "weighted_tau": lambda s, a: stats.weightedtau(s, a).statistic,
    "weighted_tau_accuracy": lambda s, a: stats.weightedtau(a, s, rank=None).statistic,
}


def correlation(name: str, score: ndarray, accuracy: ndarray) -> float:
    """Correlation `name` (a key of `CORRELATIONS`) of scores and accuracies, both float [E], over
    the finite pairs.

    Raises: Missing, with fewer than three such experts or a constant score or accuracy.
    """
    both = np.isfinite(score) & np.isfinite(accuracy)
    score = score[both]
    accuracy = accuracy[both]
    if len(score) < 3:
        raise Missing(f"expected at least 3 experts with a score, got {len(score)}")
    if np.ptp(score) == 0:
        raise Missing("the score is the same for every expert")
    if np.ptp(accuracy) == 0:
        raise Missing("the accuracy is the same for every expert")
    return float(CORRELATIONS[name](score, accuracy))


def within_groups(groups: ndarray, score: ndarray, accuracy: ndarray) -> float:
    """Spearman's correlation inside each group of experts (one architecture, one start), averaged
    with the groups' sizes as weights: what is left for the *source*, the paper's question.

    groups: labels [E]; score, accuracy: float [E]. Groups of fewer than three scored experts, or
    with one score or accuracy for all, are left out. Raises Missing when none is left.
    """
    values = []
    sizes = []
    for group in np.unique(groups):
        inside = groups == group
        with suppress(Missing):
            values.append(correlation("spearman", score[inside], accuracy[inside]))
            sizes.append(inside.sum())
    if not values:
        raise Missing(
            "expected a group of 3 or more experts of one architecture and start that differ in "
            "score and accuracy"
        )
    return float(np.average(values, weights=sizes))


def ties(score: ndarray) -> Iterator[ndarray]:
    """Indices of equally scored experts, best score first; experts without a score come last, as
    one tie.
    """
    order = np.where(np.isfinite(score), score, -np.inf)
    for value in np.unique(order)[::-1]:
        yield np.flatnonzero(order == value)


def kept_of_top(score: ndarray, criterion: ndarray, value: ndarray) -> ndarray:
    """Expected `value` of the expert that is kept when the k top-scored ones are fine-tuned and the
    one with the highest `criterion` is kept, k = 1 … E: float [E] from three float [E].

    Equal criteria: the better scored expert is kept; between equal scores too, one at random.
    Drawing m of the g tied experts at the boundary, the best of the draw is the j-th lowest of
    them with probability C(j-1, m-1) / C(g, m).

    Examples:
        >>> accuracy = np.array([0.8, 0.6, 0.7])
        >>> kept_of_top(np.array([0.3, 0.9, 0.5]), accuracy, accuracy)
        array([0.6, 0.7, 0.8])
    """
    if np.isfinite(score).all() and len(np.unique(score)) == len(score):  # no ties, one order
        order = np.argsort(-score)
        highest = np.maximum.accumulate(criterion[order])
        is_new = np.diff(highest, prepend=-np.inf) > 0  # better than all before
        places = np.where(is_new, np.arange(len(order)), 0)
        return value[order][np.maximum.accumulate(places)]
    kept: list[float] = []
    best = -np.inf  # criterion of the best expert that is in the top k for certain
    best_value = np.nan
    for tie in ties(score):
        order = tie[np.argsort(criterion[tie], kind="stable")]
        ascending = criterion[order]
        _, block = np.unique(ascending, return_inverse=True)
        means = np.bincount(block, value[order]) / np.bincount(block)
        values = means[block]
        # an earlier expert of the same or a higher criterion is kept instead
        values = np.where(ascending > best, values, best_value)
        g = len(tie)
        for m in range(1, g + 1):
            ways = [math.comb(j, m - 1) for j in range(m - 1, g)]
            chances = np.array(ways) / math.comb(g, m)
            kept.append(float(chances @ values[m - 1 :]))
        if ascending[-1] > best:
            best = ascending[-1]
            best_value = values[-1]
    return np.array(kept)


def trials_to_best(score: ndarray, accuracy: ndarray) -> float:
    """Expected number of experts fine-tuned, in score order, until one that reaches the best
    accuracy is met.

    With h experts above the tie that holds b of the best among its g experts:
    h + (g + 1) / (b + 1).
    """
    above = 0
    for tie in ties(score):
        winners = np.sum(accuracy[tie] == accuracy.max())
        if winners:
            break
        above += len(tie)
    return above + (len(tie) + 1) / (winners + 1)


def noise_ceiling(
    accuracy: ndarray,
    measure: Callable[[ndarray, ndarray], float] = partial(correlation, "spearman"),
) -> tuple[float, float]:
    """Bounds on a perfect selector's correlation with the accuracies of one seed: float [S, E] ->
    (low, high); measure: of (score, accuracy), such as `within_groups` of some groups.

    Each seed against the mean of the other seeds (low: that mean is noisy too) and of all seeds
    (high: it contains the seed), averaged: Nili et al. 2014, "A toolbox for representational
    similarity analysis". A seed covers all that is drawn with it: few-shot subset, head, order of
    batches. Raises Missing with fewer than two seeds.
    """
    if len(accuracy) < 2:
        raise Missing(f"expected at least 2 seeds of fine-tuning, got {len(accuracy)}")
    mean = rounded(accuracy.mean(axis=0))
    bounds = []
    for seed, row in enumerate(accuracy):
        others = np.delete(accuracy, seed, axis=0).mean(axis=0)
        bounds.append((measure(rounded(others), row), measure(mean, row)))
    low, high = np.mean(bounds, axis=0)
    return float(low), float(high)


def rounded(accuracy: ndarray) -> ndarray:
    """Means of accuracies as ties see them: mean(.7, .7, .7) is .7, not .6999999999999998."""
    return np.round(accuracy, 9)
