"""Leave-one-out accuracy of simple classifiers on frozen features: nearest neighbours (Renggli et
al. 2020, arXiv:2010.06402; Sorkhei et al. 2025), ridge regression (classical), and ridge with the
kernel of linearized fine-tuning (this project, from Deshpande et al. 2021, Sec. 3.1).
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mzlib.errors import Missing
from mzlib.selectors._checks import (
    Array,
    classes,
    features_and_labels,
    matrix,
    need_pairs,
    score,
    unit,
    varying,
)
from mzlib.selectors._linalg import eigh, gram, left_svd, one_hot, remembered, tied_accuracy

LAMBDAS = torch.logspace(-6, 3, 19, dtype=torch.float64)  # times the mean eigenvalue tr K / N
TIE = 8  # roundings of a product, within which two are equally near
BLOCK = 4096  # images whose similarities to all others are held at once


def knn(features: Array, labels: Array, k: int = 1, metric: str = "cosine") -> float:
    """Leave-one-out accuracy of k nearest neighbours by majority vote.

    Renggli et al. 2020, Sec. 3 (k = 1); metric "cosine" or "euclidean". Equally near neighbours
    share the places that are left, and equal votes count as a fair draw, so the order of images and
    names of classes do not matter. Equally near means up to the rounding of the products, 1e-6 of
    the squared lengths in float32. k above the smallest class size is allowed: those classes then
    lose by count.
    features [N, D], labels int [N], 1 ≤ k < N; O(N²D), products in their precision, of what is left
    when their mean (cosine: the mean of their directions) is taken away; `Missing`: one image per
    class, k ≥ N.

    Examples:
        >>> features = [[2.0, 0.0], [1.8, 0.2], [0.1, 1.0], [0.0, 1.2]]
        >>> labels = [0, 0, 1, 1]
        >>> knn(features, labels)
        1.0
    """
    features, labels, sizes = features_and_labels(features, labels, dtype=None)
    need_pairs(sizes)
    n = len(labels)
    if k not in range(1, n) or metric not in ("cosine", "euclidean"):
        raise Missing(
            f"expected 1 <= k < {n} images and metric cosine or euclidean, got k = {k} and {metric}"
        )
    hits = 0.0
    for start, neighbours, shares in nearest(points_of(features, metric), k):
        votes = shares.new_zeros(len(shares), len(sizes))
        votes.scatter_add_(1, labels[neighbours], shares)
        own = labels[start : start + BLOCK]
        hits += tied_accuracy(votes, own).sum()
    return score(hits / n)


def points_of(features: Tensor, metric: str) -> Tensor:
    """Points whose Euclidean distances order neighbours as the metric does, in the features'
    precision less their mean: ‖a−b‖²/2 is one less the cosine of unit vectors.
    """
    points = unit(features).to(torch.float64, copy=True)
    if metric == "cosine":
        lengths = torch.linalg.vector_norm(points, dim=1, keepdim=True)
        points /= torch.where(lengths > 0, lengths, 1.0)
    points -= points.mean(0)
    return points.to(features.dtype)


def nearest(points: Tensor, k: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Block by block: the first row, neighbours [B, m] of each point and the share of a vote [B, m]
    of each, k in all: 1 for those that are surely among the k nearest, what is left for those that
    tie with the k-th, 0 beyond.
    """
    n = len(points)
    norms = torch.linalg.vector_norm(points, dim=1)
    for start in range(0, n, BLOCK):
        block = points[start : start + BLOCK]
        own = norms[start : start + BLOCK, None]
        # −‖a−b‖²/2 + ‖a‖²/2, of which the second is the same for all b
        nearness = gram(points) if len(block) == n else block @ points.T
        nearness -= norms**2 / 2
        nearness.diagonal(start).fill_(-torch.inf)
        if len(block) == n and nearness.device.type == "cpu":
            farthest = norms.max()
            slack = TIE * torch.finfo(points.dtype).eps * farthest * (own + farthest)
            untied = _untied(nearness.numpy(), k, slack.numpy())
            if untied is not None:
                yield start, untied, torch.ones(untied.shape, dtype=torch.float64)
                break
        reach = min(k + 2, n - 1)  # topk of a few takes a fraction of the time of more
        while True:  # until all that tie with the k-th are within reach
            best, neighbours = nearness.topk(reach)
            kth = best[:, k - 1 : k]
            others = norms[neighbours]
            rounding = others * (own + others)
            rounding *= TIE * torch.finfo(points.dtype).eps
            slack = torch.maximum(rounding, rounding[:, k - 1 : k])
            beyond = best[:, -1:] < kth - slack[:, -1:]
            if reach == n - 1 or beyond.all():
                break
            reach = min(4 * reach, n - 1)
        sure = best > kth + slack
        tied = (best - kth).abs() <= slack
        left = k - sure.sum(1, keepdim=True)
        places = left.double() / tied.sum(1, keepdim=True)
        yield start, neighbours, sure + tied * places


def _untied(nearness: np.ndarray, k: int, slack: np.ndarray) -> Tensor | None:
    """The k nearest [N, k] in any order, None if the next after them is within slack [N, 1]
    anywhere: numpy partitions in a quarter of the time of torch's topk.
    """
    n = nearness.shape[1]
    ordered = np.partition(nearness, n - k - 1, axis=1)
    kth = ordered[:, n - k :].min(1, keepdims=True)
    following = ordered[:, n - k - 1, None]
    if not (following < kth - slack).all():
        return None
    neighbours = np.nonzero(nearness >= kth)[1]
    return torch.from_numpy(neighbours.reshape(n, k))


def left_out_errors(values: Tensor, vectors: Tensor, targets: Tensor) -> Tensor:
    """Leave-one-out errors [N, m] of ridge regression with an intercept on targets [N, m] of mean
    0, for the kernel U diag(v) Uᵀ, at the λ of least squared error.

    With P = U√v the hat matrix is H = 1/N + P (PᵀP + λI)⁻¹ Pᵀ and the left-out error is
    e_i/(1 − h_ii).
    """
    n, m = targets.shape
    projections = vectors * values.sqrt()
    squares = projections.square()
    crossed = projections.T @ targets
    least = torch.inf
    ridges = LAMBDAS.to(values.device) * values.sum() / n
    together = max(1, 2**20 // targets.numel())
    for part in ridges.split(together):
        inverse = 1 / (values[:, None] + part)  # [k, L]
        slack = 1 - 1 / n - squares @ inverse  # 1 − h_ii, [N, L]
        weights = crossed[:, None] * inverse[..., None]
        fitted = projections @ weights.flatten(1)
        residuals = targets[:, None] - fitted.view(n, -1, m)
        errors = residuals / slack.clamp_min(1e-12)[..., None]  # [N, L, m]
        totals = errors.square().sum((0, 2))
        lowest = int(totals.argmin())
        if totals[lowest] < least:
            least = totals[lowest]
            best = errors[:, lowest]
    return best


def _leave_one_out(values, vectors, labels, sizes) -> tuple[float, float]:
    """(accuracy, −squared error per image) of ridge regression on one-hot labels.

    For hits the left-out class shares give way to those of all images, which adds z̃_i/(N−1): else
    the class of the image left out is always one short, and features of pure noise score 0 instead
    of chance.
    """
    need_pairs(sizes)
    n = len(labels)
    shares = sizes / n
    targets = one_hot(labels, len(sizes)) - shares
    errors = left_out_errors(values, vectors, targets)
    predicted = targets * n / (n - 1) + shares - errors
    hits = tied_accuracy(predicted, labels)
    squares = errors.square()
    return score(hits.sum() / n), score(-squares.sum() / n)


@remembered
def _ridge(features, labels, sizes) -> tuple[float, float]:
    values, vectors = left_svd(varying(features))
    return _leave_one_out(values, vectors, labels, sizes)


def ridge_loo(features: Array, labels: Array) -> float:
    """Leave-one-out accuracy of ridge regression (with intercept) on one-hot labels.

    Closed form from the hat matrix, e_i/(1 − h_ii) (Allen 1974); λ of least leave-one-out squared
    error among 19 values from 10⁻⁶ to 10³ times tr K/N, so the score is scale-invariant. Hits use
    the class shares of all images (`_leave_one_out`): noise scores chance, not 0.
    features [N, D], labels int [N]; O(ND·min(N, D) + 19·N·min(N, D)·C), float64, kernel form for
    N < D; `Missing`: one image per class, constant features.
    """
    return _ridge(*features_and_labels(features, labels))[0]


def ridge_loo_mse(features: Array, labels: Array) -> float:
    """Negative leave-one-out squared error per image of ridge regression on one-hot labels, summed
    over classes.

    Closed form (Allen 1974) at the same λ, with the arguments, cost and errors of `ridge_loo`;
    scale-invariant, ≤ 0.

    Examples:
        >>> features = [[2.0, 0.0], [1.8, 0.2], [0.1, 1.0], [0.0, 1.2]]
        >>> labels = [0, 0, 1, 1]
        >>> round(ridge_loo_mse(features, labels), 4)
        -0.0084
    """
    return _ridge(*features_and_labels(features, labels))[1]


def ntk_loo(
    features: Array, kernel: Array, labels: Array, head_variance: float | None = None
) -> float:
    """Leave-one-out accuracy of linearized fine-tuning: `ridge_loo` with the neural tangent kernel.

    This project, from Deshpande et al. 2021, Sec. 3.1 and eq. 2: K = FFᵀ + s²Θ_w: a fresh linear
    head plus a linearized backbone, in expectation over heads with entries of variance s² (default
    1/(3D), the initialisation of torch.nn.Linear).
    features [N, D], kernel Θ_w [N, N] (trace kernel over features), labels int [N]; O(N³), float64;
    `Missing`: one image per class, constant kernel.
    """
    features = matrix(features, "features")
    kernel = matrix(kernel, "kernel")
    labels, sizes = classes(labels, features)
    if kernel.shape != (len(labels), len(labels)):
        raise Missing(
            f"expected a [{len(labels)}, {len(labels)}] kernel, got {tuple(kernel.shape)}, "
            "use one sample"
        )
    variance = head_variance
    if variance is None:
        variance = 1 / (3 * features.shape[1])
    symmetric = (kernel + kernel.T) / 2
    total = gram(features) + variance * symmetric
    means = total.mean(0)
    centred = total - means - means[:, None] + means.mean()
    values, vectors = eigh(centred)
    if values[0] <= 1e-12 * total.abs().max():
        raise Missing("expected a kernel that differs between pairs of images, got a constant one")
    return _leave_one_out(values.clamp_min(0), vectors, labels, sizes)[0]
