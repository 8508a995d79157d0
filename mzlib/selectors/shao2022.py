"""SFDA: Shao et al. 2022, "Not all models are equal", arXiv:2207.03036."""

import numpy as np
from torch import Tensor

from mzlib.errors import Missing
from mzlib.selectors._checks import Array, components, features_and_labels, need_pairs, score
from mzlib.selectors._linalg import class_means, of_own_class, remembered, shrunk_solve


@remembered
def posteriors(
    features: Tensor, labels: Tensor, sizes: Tensor, shrinkage=None
) -> tuple[Tensor, Tensor]:
    """(posteriors [N, C] of linear discriminant analysis with covariance (1−s)S_W + s·tr(S_W)/D·I,
    s); s = max(exp(−5λ), 10⁻¹⁰), λ the largest eigenvalue of S_W by three double power steps (Shao
    et al., eq. 6).
    """
    need_pairs(sizes)
    n, d = features.shape
    size = features.square().mean()
    features = features - features.mean(0)  # far from zero the logits below would cancel
    means = class_means(features, labels, sizes)
    within = features - means.index_select(0, labels)
    spread = within.square().sum() / (n * d)
    if spread <= 1e-24 * size:
        raise Missing(
            "expected images that differ within a class, got the same features for all of them"
        )
    if shrinkage is None:
        largest = _largest_eigenvalue(within)
        shrinkage = (-5 * largest).exp().clamp_min(1e-10)
    weight = (1 - shrinkage) / n
    solved = shrunk_solve(within, weight, shrinkage * spread, means.T)
    halves = (means * solved.T).sum(1) / 2
    offsets = (sizes / n).log() - halves
    logits = features @ solved + offsets
    return logits.softmax(1), shrinkage


def _largest_eigenvalue(within: Tensor) -> Tensor:
    """xᵀ S_W y of S_W = withinᵀwithin/N after the authors' three double power steps from S_W 1."""

    def step(v):
        return within.T @ (within @ v) / len(within)

    x = within.T @ within.sum(1)
    x /= len(within)
    for _ in range(3):
        y = step(x)
        y /= y.norm().clamp_min(1e-12)
        x = step(y)
        x /= x.norm().clamp_min(1e-12)
    return x @ step(y)


def sfda(features: Array, labels: Array) -> float:
    """Self-challenging Fisher space: how sure is a shrunk linear discriminant of the true classes
    after mixing?

    Shao et al. 2022, eq. 5-9, as the authors' code: fit, soften (softmax of the posteriors), move
    each image towards the mean of the other classes' means by one minus its confidence, fit again
    with that shrinkage, mean posterior of the true class (no logarithm). Saturates at 1.0 when N <
    D and the shrinkage is weak. Not scale-invariant.
    features [N, D], labels int [N]; O(ND·min(N, D)), float64; `Missing`: one image per class.
    """
    features, labels, sizes = features_and_labels(features, labels)
    posterior, shrinkage = posteriors(features, labels, sizes)
    softened = posterior.softmax(1)
    sure = of_own_class(softened, labels)[:, None]
    means = class_means(features, labels, sizes)
    others = (means.sum(0) - means) / (len(sizes) - 1)
    away = others.index_select(0, labels)
    mixed = sure * features + (1 - sure) * away
    posterior, _ = posteriors(mixed, labels, sizes, shrinkage)
    of_truth = of_own_class(posterior, labels)
    return score(of_truth.mean())


def minmax(columns: np.ndarray) -> np.ndarray:
    """Each column of [E, k] scaled to [0, 1] over the experts; equal values become 0."""
    columns = components(columns)
    above = columns - columns.min(0)
    span = above.max(0)
    span[span == 0] = 1
    return above / span
