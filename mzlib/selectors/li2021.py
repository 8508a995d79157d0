"""N-LEEP: Li et al. 2021, "Ranking neural checkpoints", arXiv:2011.11200."""

import math

import torch
from torch import Tensor

from mzlib.selectors._checks import Array, features_and_labels, score, varying
from mzlib.selectors._linalg import class_sums, left_svd, one_hot
from mzlib.selectors.nguyen2020 import expected_log_prediction

VARIANCE = 0.8  # share that the PCA keeps
COMPONENTS = 5  # a class
PASSIVE = 1e-12  # responsibilities below this add nothing to a covariance


def _seeds(x: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """k-means++: each next centre is an image drawn in proportion to its squared distance to the
    nearest one so far.
    """
    centres = x[:1].repeat(number, 1)
    anywhere = torch.ones_like(x[:, 0])
    distances = torch.full_like(anywhere, torch.inf)
    chance = anywhere
    for j in range(number):
        pick = torch.multinomial(chance.cpu(), 1, generator=generator)
        centre = x[int(pick)]
        centres[j] = centre
        to_this = (x - centre).square().sum(1)
        distances = torch.minimum(distances, to_this)
        chance = distances if distances.any() else anywhere
    return centres


def _kmeans(x: Tensor, number: int, seed: int) -> Tensor:
    """Cluster of each row [N] by Lloyd's iteration from k-means++ seeds."""
    generator = torch.Generator().manual_seed(seed)
    centres = _seeds(x, number, generator)
    clusters = torch.full((len(x),), -1, device=x.device)
    for _ in range(100):
        previous = clusters
        halves = centres.square().sum(1) / 2
        clusters = (halves - x @ centres.T).argmin(1)
        if torch.equal(previous, clusters):
            break
        counts = clusters.bincount(minlength=number)[:, None]
        means = class_sums(x, clusters, number) / counts
        centres = torch.where(counts > 0, means, centres)
    return clusters


def _log_densities(x: Tensor, weights: Tensor, ridge: float) -> Tensor:
    """log π_k N(x_i; μ_k, Σ_k) [N, K] after the M step of responsibilities `weights` [N, K], Σ_k =
    cov + ridge · I.

    Only the m images with weight in some component count for its covariance, εI + AᵀA with A [m,
    d]; with m < d its determinant and inverse come from the m×m side (a component has a handful of
    images in the few-shot regime).
    """
    n, d = x.shape
    totals = weights.sum(0).clamp_min(1e-300)
    means = weights.T @ x / totals[:, None]
    active = (weights > PASSIVE).sum(0)
    m = int(active.max())
    share, images = weights.T.topk(m)  # [K, m]
    share /= totals[:, None]
    lengths = share.sqrt()
    normal = d * math.log(2 * math.pi) / 2
    constant = (totals / n).log() - normal
    result = torch.empty_like(weights)
    components = torch.arange(len(totals), device=x.device)
    side = min(m, d)
    together = max(1, 2**23 // (side * n))
    for part in components.split(together):
        mean = means[part]
        deviations = x[images[part]] - mean[:, None]
        a = lengths[part, :, None] * deviations  # [c, m, d]
        small = a @ a.mT if m < d else a.mT @ a
        small.diagonal(dim1=1, dim2=2).add_(ridge)
        factor = torch.linalg.cholesky(small)
        roots = factor.diagonal(dim1=1, dim2=2)
        log_det = 2 * roots.log().sum(1)
        if m < d:
            log_det += (d - m) * math.log(ridge)
            whiten = torch.linalg.solve_triangular(factor, a, upper=False)
        else:
            whiten = factor.inverse()
        white = whiten @ x.T - whiten @ mean[..., None]
        squares = white.square().sum(1)  # [c, N]
        if m < d:
            distances = torch.cdist(mean, x).square()
            squares = (distances - squares) / ridge
        logs = constant[part] - log_det / 2
        result[:, part] = logs - squares.T / 2
    return result


def nleep(features: Array, labels: Array, seed: int = 0) -> float:
    """LEEP with the clusters of a Gaussian mixture in place of source classes: needs no source
    classifier.

    Li et al. 2021, Sec. 3.2: posteriors of a mixture of 5C Gaussians (full covariances) on the PCA
    features that hold 80 % of the variance, then `leep`. At most N/2 components; k-means++ start;
    10⁻⁶ of the mean variance is added to the diagonals (so the score is scale-invariant); stops
    when the mean log-likelihood gains less than 10⁻³.
    One seed is no ranking: between two, Spearman's correlation of the scores of a zoo was −.03 to
    .94 on real sets, and the number of steps grows with N (2 to 38). Average several, as in
    `fmean(nleep(features, labels, seed) for seed in range(10))`; the id `nleep` keeps seed 0 of the
    committed tables.
    features [N, D], labels int [N], seed of the k-means start (the one random selector: image order
    matters); O(ND·min(N, D)) + O(N·K·m·d) per step, float64; `Missing`: one class, constant
    features.
    """
    features, labels, sizes = features_and_labels(features, labels)
    values, u = left_svd(varying(features))
    wanted = VARIANCE * values.sum()
    below = values.cumsum(0) < wanted
    kept = int(below.sum()) + 1
    lengths = values[:kept].sqrt()
    x = u[:, :kept] * lengths
    most = len(x) // 2
    number = max(1, min(COMPONENTS * len(sizes), most))
    ridge = 1e-6 * float(x.square().mean())
    theta = one_hot(_kmeans(x, number, seed), number)
    level = -math.inf
    for _ in range(100):
        logs = _log_densities(x, theta, ridge)
        theta = logs.softmax(1)
        previous = level
        each = logs.logsumexp(1)
        level = float(each.mean())
        if abs(level - previous) < 1e-3:
            break
    value = expected_log_prediction(theta, theta.sum(1), labels, len(sizes))
    return score(value)
