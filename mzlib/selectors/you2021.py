"""LogME: You et al. 2021, arXiv:2102.11005; You et al. 2022, arXiv:2110.10545."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mzlib.selectors._checks import Array, features_and_labels, score
from mzlib.selectors._linalg import class_sums, gram_eigh

FAR = 1e6  # ‖mean‖² over the variance from where squares of features lose what differs in them


def logme(features: Array, labels: Array) -> float:
    """Log of maximum evidence: how well does a Bayesian linear model on the features explain the
    one-hot labels?

    You et al. 2021, eq. 2-3: mean over classes of max_{α,β} log p(z_c | F, α, β) per image. With t
    = α/β, v the squared singular values and x = Uᵀz, β is solved for and one curve in t is left,
    2N·evidence = Σ_k log t/(t+v_k) − N log(m(t)/N) − N(1 + log 2π), m(t) = Σ_k x_k² t/(t+v_k) +
    ‖z‖² − ‖x‖²; zero singular values add log 1, the (D−k)·log α term that N < D needs. The maximum
    over t is global (grid of 50 points a decade over 20, then a parabola), not a fixed point that
    may stop early; 10⁻⁵ is added to m(t), so that noise-free fits stay finite (the authors' code
    adds it to the two parts of m(t) instead).
    features [N, D], labels int [N]; O(ND·min(N, D)), float64; `Missing`: one class, features of
    zeros.

    Examples:
        >>> features = [[2.0, 0.0], [1.8, 0.2], [0.1, 1.0], [0.0, 1.2]]
        >>> labels = [0, 0, 1, 1]
        >>> round(logme(features, labels), 4)
        -0.2149
    """
    features, labels, sizes = features_and_labels(features, labels)

    def targets_times(rows: Tensor) -> Tensor:
        return class_sums(rows, labels, len(sizes))

    v, x2 = spectrum(features, targets_times)
    best = evidence(v, x2, sizes, len(labels))
    return score(best)


def spectrum(features: Tensor, targets_times: Callable) -> tuple[Tensor, Tensor]:
    """Squared singular values v [k] and (UᵀZ)² [k, C] of the features, with Zᵀrows = targets_times(
    rows): from the smaller Gram matrix, or from an SVD where squares say too little.
    """
    n, d = features.shape
    mean = features.mean(0)
    centred = features - mean
    variance = centred.square().sum() / n
    if mean.square().sum() > FAR * variance:
        u, s, _ = torch.linalg.svd(features, full_matrices=False)
        x = targets_times(u).T
        return s.square(), x.square()
    v, vectors = gram_eigh(features)
    if n < d:
        x = targets_times(vectors).T
        return v, x.square()
    # U = F V v^(−1/2) is not formed: UᵀZ = v^(−1/2) Vᵀ FᵀZ
    scaled = (targets_times(features) @ vectors).T
    return v, scaled.square() / v[:, None]


def evidence(v: Tensor, x2: Tensor, norms2: Tensor, n: int) -> Tensor:
    """Mean over targets of the highest evidence per image (log), of v [k], x² [k, C], ‖z‖² [C]."""
    second = v[:2].min() / v[0]  # far from zero the grid goes down to it
    below = float(second.clamp_min(1e-32).log10()) - 8
    low = min(-14.0, below)
    points = 1 + round(50 * (6 - low))
    grid = torch.logspace(low, 6, points, dtype=v.dtype, device=v.device)
    t = v[0] * grid[:, None]
    share = t / (t + v)
    inside = share @ x2
    outside = norms2 - x2.sum(0)  # of the features' span
    misfit = inside + outside.clamp_min(0) + 1e-5  # m(t) [T, C]
    complexity = share.log().sum(1, keepdim=True)
    fit = (misfit / n).log()
    curve = (complexity - n * fit) / (2 * n)
    # the parabola through the highest point y₀ and its neighbours has its top at
    # y₀ + (y₋ − y₊)² / 8(2y₀ − y₋ − y₊)
    highest = curve.argmax(0, keepdim=True)
    peak = highest.clamp(1, len(t) - 2)
    top = curve.gather(0, peak)[0]
    left = curve.gather(0, peak - 1)[0]
    right = curve.gather(0, peak + 1)[0]
    bend = 2 * top - left - right
    square = (left - right) ** 2
    rise = square / (8 * bend.clamp_min(1e-300))
    best = torch.where(bend > 0, top + rise, curve.amax(0))
    constant = (1 + math.log(2 * math.pi)) / 2
    return best.mean() - constant
