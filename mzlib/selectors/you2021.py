"""LogME: You et al. 2021, arXiv:2102.11005; You et al. 2022, arXiv:2110.10545."""

import math

import torch

from mzlib.selectors._inputs import class_coordinates, features_and_labels, score


def logme(features, labels) -> float:
    """Log of maximum evidence: how well does a Bayesian linear model on the features explain the one-hot labels?

    You et al. 2021, eq. 2-3: mean over classes of max_{α,β} log p(z_c | F, α, β) per image. With t = α/β, v the squared
    singular values and x = Uᵀz, β is solved for and one curve in t is left,
    2N·evidence = Σ_k log t/(t+v_k) − N log(m(t)/N) − N(1 + log 2π), m(t) = Σ_k x_k² t/(t+v_k) + ‖z‖² − ‖x‖²;
    zero singular values add log 1, the (D−k)·log α term that N < D needs. The maximum over t is global (grid of 1,001
    points over 20 decades, then a parabola), not a fixed point that may stop early; 10⁻⁵ is added to m(t), so
    that noise-free fits stay finite (the authors' code adds it to the two parts of m(t) instead).
    features [N, D], labels int [N]; O(ND·min(N, D)), float64; `Missing`: one class, features of zeros.
    """
    features, labels, sizes = features_and_labels(features, labels)
    n, (v, x) = len(labels), class_coordinates(features, labels, len(sizes))
    x2 = x.square()  # [k, C]
    t = v[0] * torch.logspace(-14, 6, 1001, dtype=v.dtype, device=v.device)[:, None]
    share = t / (t + v)
    misfit = share @ x2 + (sizes - x2.sum(0)).clamp_min(0) + 1e-5  # [T, C]
    curve = (share.log().sum(1, keepdim=True) - n * (misfit / n).log()) / (2 * n)
    peak = curve.argmax(0, keepdim=True).clamp(1, len(t) - 2)
    left, top, right = (curve.gather(0, peak + step)[0] for step in (-1, 0, 1))
    bend = 2 * top - left - right
    best = torch.where(
        bend > 0, top + (left - right) ** 2 / (8 * bend.clamp_min(1e-300)), curve.max(0).values
    )
    return score(best.mean() - (1 + math.log(2 * math.pi)) / 2)
