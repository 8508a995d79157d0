"""Scores for numeric targets: features [N, D], targets [N] or [N, m] of real numbers.

LogME: You et al. 2021, arXiv:2102.11005, Sec. 4.2. Ridge and nearest neighbours: leave-one-out R²
of the classical predictors. LFC: Deshpande et al. 2021, eq. 8, with a kernel of the targets.
"""

import torch
from torch import Tensor

from mzlib.errors import Missing
from mzlib.selectors._checks import Array, matrix, numbers, score, unit, varying
from mzlib.selectors._linalg import gram, left_svd
from mzlib.selectors.renggli2020 import left_out_errors, nearest, points_of
from mzlib.selectors.you2021 import evidence, spectrum


def _features_and_targets(features: Array, targets: Array, dtype=torch.float64):
    """(features [N, D], targets [N, m] of mean 0 and deviation 1 in float64), checked."""
    features = matrix(features, "features", dtype)
    targets = numbers(targets)
    if targets.ndim == 1:
        targets = targets[:, None]
    targets = matrix(targets, "targets")
    if len(targets) != len(features):
        raise Missing(f"expected {len(features)} targets, one per row, got {len(targets)}")
    centred = varying(targets.to(features.device))
    variances = centred.square().mean(0)
    deviations = variances.sqrt()
    if not (deviations > 0).all():
        raise Missing("expected targets that differ between images, got the same for all")
    return features, centred / deviations


def logme_regression(features: Array, targets: Array) -> float:
    """`logme` with numeric targets in place of one-hot labels: mean over targets of the maximum log
    evidence per image. Targets are taken at mean 0 and deviation 1, so that their unit is no part
    of the score. O(ND·min(N, D)), float64; `Missing`: constant targets, features of zeros.
    """
    features, targets = _features_and_targets(features, targets)

    def targets_times(rows: Tensor) -> Tensor:
        return targets.T @ rows

    v, x2 = spectrum(features, targets_times)
    norms2 = targets.square().sum(0)
    best = evidence(v, x2, norms2, len(targets))
    return score(best)


def ridge_r2(features: Array, targets: Array) -> float:
    """Leave-one-out R² of ridge regression with intercept, 1 − Σ e²/Σ(z − z̄₋ᵢ)² with z̄₋ᵢ the mean
    of the others, at the λ of least error among those of `ridge_loo`; mean over targets weighted
    equally. O(ND·min(N, D)), float64; `Missing`: constant targets or features.
    """
    features, targets = _features_and_targets(features, targets)
    values, vectors = left_svd(varying(features))
    errors = left_out_errors(values, vectors, targets)
    mean = errors.square().mean()
    return _r2(mean, len(targets))


def knn_r2(features: Array, targets: Array, k: int = 5) -> float:
    """Leave-one-out R² of the mean target of the k nearest neighbours by cosine; ties share places
    as in `knn`. O(N²D); `Missing`: k ≥ N, constant targets.
    """
    features, targets = _features_and_targets(features, targets, None)
    n = len(targets)
    if k not in range(1, n):
        raise Missing(f"expected 1 <= k < {n} images, got k = {k}")
    points = points_of(features, "cosine")
    error = 0.0
    for start, neighbours, shares in nearest(points, k):
        votes = shares[..., None] * targets[neighbours]
        means = votes.sum(1) / k
        own = targets[start : start + len(means)]
        errors = own - means
        error += errors.square().sum()
    return _r2(error / targets.numel(), n)


def _r2(error, n: int) -> float:
    """1 − error over that of the mean of all others, (n/(n−1))² for targets of deviation 1."""
    of_others = (n / (n - 1)) ** 2
    return score(1 - error / of_others)


def lfc_numeric(features: Array, targets: Array) -> float:
    """Label-feature correlation with numeric labels: Pearson correlation over all N² entries
    between FFᵀ and the kernel ZZᵀ of standardised targets; for two classes coded ±1 in equal
    numbers it is `lfc`. O(N²(D + m)); `Missing`: constant targets or features.
    """
    features, targets = _features_and_targets(features, targets)
    varying(features)
    a = gram(unit(features))
    b = gram(targets)
    a -= a.mean()
    b -= b.mean()
    shared = (a * b).sum()
    norms = a.norm() * b.norm()
    return score(shared / norms)
