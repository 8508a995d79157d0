"""N-LEEP: Li et al. 2021, "Ranking neural checkpoints", arXiv:2011.11200."""

import math

import torch

from mzlib.selectors._checks import Array, features_and_labels, score, varying
from mzlib.selectors._linalg import class_sums, left_svd
from mzlib.selectors.nguyen2020 import expected_log_prediction

VARIANCE = 0.8  # share that the PCA keeps
COMPONENTS = 5  # a class
PASSIVE = 1e-12  # responsibilities below this add nothing to a covariance


def _seeds(x: torch.Tensor, number: int, generator: torch.Generator) -> torch.Tensor:
    """k-means++: each next centre is an image drawn in proportion to its squared distance to the
    nearest one so far.
    """
    centres = x[:1].repeat(number, 1)
    distances = x.new_full((len(x),), torch.inf)
    for j in range(number):
        chance = torch.where(distances.isinf(), 1.0, distances).cpu()
        if not chance.any():
            chance = torch.ones_like(chance)
        pick = int(torch.multinomial(chance, 1, generator=generator))
        centres[j] = x[pick]
        distances = torch.minimum(distances, (x - centres[j]).square().sum(1))
    return centres


def _kmeans(x: torch.Tensor, number: int, seed: int) -> torch.Tensor:
    """Cluster of each row [N] by Lloyd's iteration from k-means++ seeds."""
    centres = _seeds(x, number, torch.Generator().manual_seed(seed))
    clusters = torch.full((len(x),), -1, device=x.device)
    for _ in range(100):
        previous = clusters
        clusters = (centres.square().sum(1) / 2 - x @ centres.T).argmin(1)
        if torch.equal(previous, clusters):
            break
        counts = clusters.bincount(minlength=number)[:, None]
        centres = torch.where(counts > 0, class_sums(x, clusters, number) / counts, centres)
    return clusters


def _log_densities(x: torch.Tensor, weights: torch.Tensor, ridge: float) -> torch.Tensor:
    """log π_k N(x_i; μ_k, Σ_k) [N, K] after the M step of responsibilities `weights` [N, K], Σ_k =
    cov + ridge · I.

    Only the m images with weight in some component count for its covariance, εI + AᵀA with A [m,
    d]; with m < d its determinant and inverse come from the m×m side (a component has a handful of
    images in the few-shot regime).
    """
    n, d = x.shape
    totals = weights.sum(0).clamp_min(1e-300)
    means = weights.T @ x / totals[:, None]
    m = int((weights > PASSIVE).sum(0).max())
    share, active = weights.T.topk(m)  # [K, m]
    result = torch.empty_like(weights)
    components = torch.arange(weights.shape[1], device=x.device)
    for part in components.split(max(1, 2**23 // (min(m, d) * n))):
        deviations = x[active[part]] - means[part, None]
        a = (share[part] / totals[part, None]).sqrt()[..., None] * deviations  # [c, m, d]
        small = a @ a.mT if m < d else a.mT @ a
        small.diagonal(dim1=1, dim2=2).add_(ridge)
        factor = torch.linalg.cholesky(small)
        log_det = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
        if m < d:
            log_det += (d - m) * math.log(ridge)
            whiten = torch.linalg.solve_triangular(factor, a, upper=False)
        else:
            whiten = factor.inverse()
        squares = (whiten @ x.T - whiten @ means[part, :, None]).square().sum(1)  # [c, N]
        if m < d:
            squares = (torch.cdist(means[part], x).square() - squares) / ridge
        constant = (totals[part] / n).log() - (d * math.log(2 * math.pi) + log_det) / 2
        result[:, part] = constant - squares.T / 2
    return result


def nleep(features: Array, labels: Array, seed: int = 0) -> float:
    """LEEP with the clusters of a Gaussian mixture in place of source classes: needs no source
    classifier.

    Li et al. 2021, Sec. 3.2: posteriors of a mixture of 5C Gaussians (full covariances) on the PCA
    features that hold 80 % of the variance, then `leep`. At most N/2 components; k-means++ start;
    10⁻⁶ of the mean variance is added to the diagonals (so the score is scale-invariant); stops
    when the mean log-likelihood gains less than 10⁻³.
    features [N, D], labels int [N], seed of the k-means start (the one random selector: image order
    matters); O(ND·min(N, D)) + O(N·K·m·d) per step, float64; `Missing`: one class, constant
    features.
    """
    features, labels, sizes = features_and_labels(features, labels)
    values, u = left_svd(varying(features))
    kept = int((values.cumsum(0) < VARIANCE * values.sum()).sum()) + 1
    x = u[:, :kept] * values[:kept].sqrt()
    number = max(1, min(COMPONENTS * len(sizes), len(x) // 2))
    ridge = 1e-6 * float(x.square().mean())
    theta = torch.nn.functional.one_hot(_kmeans(x, number, seed), number).to(x.dtype)
    level = -math.inf
    for _ in range(100):
        logs = _log_densities(x, theta, ridge)
        theta = logs.softmax(1)
        previous, level = level, float(logs.logsumexp(1).mean())
        if abs(level - previous) < 1e-3:
            break
    return score(expected_log_prediction(theta, labels, len(sizes)))
