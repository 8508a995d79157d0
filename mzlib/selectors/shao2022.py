"""SFDA: Shao et al. 2022, "Not all models are equal", arXiv:2207.03036."""

import numpy as np
import torch

from mzlib.errors import Missing
from mzlib.selectors._checks import Array, components, features_and_labels, need_pairs, score
from mzlib.selectors._linalg import class_means, of_own_class, remembered, shrunk_solve


@remembered
def posteriors(
    features: torch.Tensor, labels: torch.Tensor, sizes: torch.Tensor, shrinkage=None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(posteriors [N, C] of linear discriminant analysis with covariance (1−s)S_W + s·tr(S_W)/D·I,
    s); s = max(exp(−5λ), 10⁻¹⁰), λ the largest eigenvalue of S_W by three double power steps (Shao
    et al., eq. 6).
    """
    need_pairs(sizes)
    n, d = features.shape
    means = class_means(features, labels, sizes)
    within = features - means[labels]
    spread = within.square().sum() / (n * d)
    if spread <= 1e-24 * features.square().mean():
        raise Missing(
            "expected images that differ within a class, got the same features for all of them"
        )
    if shrinkage is None:
        shrinkage = (-5 * _largest_eigenvalue(within)).exp().clamp_min(1e-10)
    solved = shrunk_solve(within, (1 - shrinkage) / n, shrinkage * spread, means.T)
    halves = (means * solved.T).sum(1) / 2
    logits = features @ solved - halves + (sizes / n).log()
    return logits.softmax(1), shrinkage


def _largest_eigenvalue(within: torch.Tensor) -> torch.Tensor:
    """xᵀ S_W y of S_W = withinᵀwithin/N after the authors' three double power steps from S_W 1."""

    def step(v):
        return within.T @ (within @ v) / len(within)

    x = within.T @ within.sum(1) / len(within)
    for _ in range(3):
        y = torch.nn.functional.normalize(step(x), dim=0)
        x = torch.nn.functional.normalize(step(y), dim=0)
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
    sure = of_own_class(posterior.softmax(1), labels)[:, None]
    means = class_means(features, labels, sizes)
    others = (means.sum(0) - means) / (len(sizes) - 1)
    mixed = sure * features + (1 - sure) * others[labels]
    posterior, _ = posteriors(mixed, labels, sizes, shrinkage)
    return score(of_own_class(posterior, labels).mean())


def minmax(columns: np.ndarray) -> np.ndarray:
    """Each column of [E, k] scaled to [0, 1] over the experts; equal values become 0."""
    columns = components(columns)
    low = columns.min(0)
    span = columns.max(0) - low
    return (columns - low) / (span + (span == 0))
