"""How sure is a score, is it better than chance, does expert a outrank b? For any selector, without
new features.

Evidence is anything with the attributes that the selector needs, and `labels`. Images are left out
in stratified groups (jackknife), never repeated: a repeated image is its own nearest neighbour, so
under the bootstrap leave-one-out scores look better than they are.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats

from mzlib.errors import Missing
from mzlib.selectors.registry import Selector
from mzlib.training import one_thread

Evidence = Any  # of the selectors, by attribute
ROWS = {"labels", "targets", "features", "source_probabilities", "reference_features"}
FEW = 2000  # images, below which a thread has a replicate for itself
MOST = 8  # replicates at a time, each with copies of the features
_PAIRS = {"last_conv_kernel", "full_kernel"}


class Interval(NamedTuple):
    """Of a score."""

    score: float
    low: float
    high: float
    standard_error: float


class Null(NamedTuple):
    """A score against those of shuffled labels: their mean and deviation, z, one-sided p."""

    score: float
    mean: float
    deviation: float
    z: float
    p: float


def _numpy(array: Any) -> np.ndarray:
    if isinstance(array, torch.Tensor):
        return array.detach().cpu().numpy()
    return np.asarray(array)


def _value(
    selector: Selector, evidence: Evidence, index: np.ndarray | None = None, labels: Any = None
) -> Any:
    """The selector's value on the images `index`, or with other labels."""
    arguments = {}
    for parameter, attribute in selector.needs.items():
        others = attribute == "labels" and labels is not None
        array = labels if others else getattr(evidence, attribute)
        if index is not None and attribute in ROWS | _PAIRS:
            array = _at(array, index, pairs=attribute in _PAIRS)
        arguments[parameter] = array
    return selector.value(**arguments)


def _at(array: Any, index: np.ndarray, pairs: bool) -> Any:
    """The rows `index` of an array or tensor, and these columns of one that holds pairs."""
    at: Any = index
    if torch.is_tensor(array):
        at = torch.as_tensor(index, device=array.device)
    rows = array[at]
    return rows[:, at] if pairs else rows


def leave_group_out(labels: np.ndarray, groups: int = 20, seed: int = 0) -> list[np.ndarray]:
    """Index arrays, each without one of at most `groups` groups that hold every class in
    proportion.
    """
    rng = np.random.default_rng(seed)
    labels = _numpy(labels)
    by_class = []
    for value in np.unique(labels):
        own = np.flatnonzero(labels == value)
        by_class.append(rng.permutation(own))
    order = np.concatenate(by_class)
    groups = min(groups, len(order))
    group = np.arange(len(order)) % groups  # consecutive within classes
    return [np.sort(order[group != g]) for g in range(groups)]


def replicates(
    selector: Selector, evidence: Evidence, groups: int = 20, seed: int = 0
) -> np.ndarray:
    """[1 + G, k] float64: the selector's value (k components where it is scaled over the zoo, else
    1), under it those without one group each, NaN where undefined. Experts on the same images leave
    out the same ones. Raises `Missing` as the selector does.
    """
    needs = set(selector.needs.values())
    for attribute in needs:
        getattr(evidence, attribute)  # computed by all threads, before each takes a replicate
    parts = []
    if needs & (ROWS | _PAIRS):
        parts = leave_group_out(evidence.labels, groups, seed)

    def left(index: np.ndarray) -> np.ndarray:
        try:
            return _components(selector, evidence, index)
        except Missing:  # undefined without these images: no interval
            return np.array([np.nan])

    few = len(evidence.labels) < FEW
    workers = torch.get_num_threads() if few else 1
    with one_thread(few), ThreadPoolExecutor(min(workers, MOST)) as pool:
        point = _components(selector, evidence)
        rows = [point]
        for row in pool.map(left, parts):
            rows.append(np.broadcast_to(row, point.shape))
    return np.stack(rows)


def _components(
    selector: Selector, evidence: Evidence, index: np.ndarray | None = None
) -> np.ndarray:
    """[k] float64."""
    value = _value(selector, evidence, index)
    return np.atleast_1d(np.array(value, dtype=float))


def zoo_scores(selector: Selector, values: np.ndarray) -> np.ndarray:
    """Replicates [E, 1 + G, k] of the experts of a zoo -> scores [E, 1 + G].

    What combines a zoo's values may be a rank, which does not move when a twentieth of the images
    is left out though other images would move it. So values without a group g are first spread as
    far as those of other samples lie, m + √(G-1) (v_g - m) around their mean m (the grouped
    jackknife's variance is that of these), and the scores are drawn together again by √(G-1).
    """
    if selector.combine is None:
        return values[..., 0]
    whole = selector.combine(values[:, 0])
    left = values[:, 1:]
    groups = left.shape[1]
    if groups < 2:
        return whole[:, None]
    factor = np.sqrt(groups - 1)
    middle = left.mean(axis=1, keepdims=True)
    spread = middle + factor * (left - middle)
    scores = np.stack([selector.combine(spread[:, g]) for g in range(groups)], axis=1)
    middle = scores.mean(axis=1, keepdims=True)
    together = middle + (scores - middle) / factor
    return np.hstack([whole[:, None], together])


def standard_error(left: np.ndarray) -> np.ndarray:
    """Of the grouped jackknife, from the values without a group along the last axis; 0 when there
    are none.
    """
    *others, groups = left.shape
    if not groups:
        return np.zeros(others)
    return left.std(-1) * np.sqrt(groups - 1)


def margin(left: np.ndarray, level: float = 0.95, error: np.ndarray | float = 0.0) -> np.ndarray:
    """Half the width t·s.e. of the confidence interval, from the values without a group along the
    last axis, and a standard error that does not come from the images (of random probes).
    """
    both = np.hypot(standard_error(left), error)
    groups = left.shape[-1]
    if not groups:
        return both
    return both * stats.t.ppf((1 + level) / 2, groups - 1)


def bias(values: np.ndarray) -> np.ndarray:
    """What the value is too high by, to first order in 1/N: (G - 1)(mean without a group - value).

    values: [..., 1 + G] replicates, the value first (Quenouille 1956).
    """
    value = values[..., 0]
    left = values[..., 1:]
    groups = left.shape[-1]
    if not groups:
        return np.zeros_like(value)
    return (groups - 1) * (left.mean(-1) - value)


def _single(selector: Selector) -> None:
    if selector.combine is not None:
        raise Missing(
            f"expected a score per expert, got {selector.id}, which is scaled over the "
            "zoo: use compare"
        )


def interval(
    selector: Selector, evidence: Evidence, level: float = 0.95, groups: int = 20, seed: int = 0
) -> Interval:
    """Confidence interval score ± t·s.e. of the grouped jackknife (Tukey 1958). Cost: `groups`
    scores.

    NaN limits: undefined without some group. Raises `Missing` as the selector does.
    """
    _single(selector)
    values = replicates(selector, evidence, groups, seed)[:, 0]
    point = float(values[0])
    left = values[1:]
    reach = float(margin(left, level))
    error = float(standard_error(left))
    return Interval(point, point - reach, point + reach, error)


def permutation_null(
    selector: Selector, evidence: Evidence, number: int = 100, seed: int = 0
) -> Null:
    """Is the score better than with labels that mean nothing? z against `number` shuffles and
    one-sided p.

    Raises `Missing` when the selector does not use labels or does not change with them.
    """
    _single(selector)
    if "labels" not in selector.needs.values():
        raise Missing(
            f"expected a selector that uses labels, got {selector.id}, its null is the score itself"
        )
    if number < 2:
        raise Missing(f"expected at least 2 shuffles, got {number}")
    rng = np.random.default_rng(seed)
    labels = _numpy(evidence.labels)
    point = _value(selector, evidence)
    shuffled = []
    for _ in range(number):
        others = rng.permutation(labels)
        shuffled.append(_value(selector, evidence, labels=others))
    values = np.array(shuffled)
    mean = float(values.mean())
    deviation = float(values.std(ddof=1))
    if deviation <= 1e-12 * max(1.0, abs(point)):
        raise Missing(f"expected scores that change with the labels, got {point} for all shuffles")
    as_high = int((values >= point).sum())
    z = (point - mean) / deviation
    p = (1 + as_high) / (1 + number)
    return Null(point, mean, deviation, z, p)


def compare(selector: Selector, a: Evidence, b: Evidence, groups: int = 20, seed: int = 0) -> float:
    """Probability that expert a outranks expert b: Φ of the score difference over its jackknife
    standard error.

    The same images are left out for both (evidence of both on the same images). Cost: 2·`groups`
    scores. Raises `Missing` as the selector does, for evidence on other images, and when a score is
    undefined without some group.
    """
    if not np.array_equal(_numpy(a.labels), _numpy(b.labels)):
        raise Missing("expected evidence of both experts on the same images, got other labels")
    both = [replicates(selector, evidence, groups, seed) for evidence in (a, b)]
    scores = zoo_scores(selector, np.stack(both))
    difference = scores[0] - scores[1]
    point = float(difference[0])
    error = float(standard_error(difference[1:]))
    if not np.isfinite(error):
        raise Missing(
            "expected scores that exist without any group of images, got none without some: sample "
            "more images"
        )
    if error == 0:
        return float((np.sign(point) + 1) / 2)
    return float(stats.norm.cdf(point / error))
