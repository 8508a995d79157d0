"""H-score: Bao et al. 2019, ICIP; shrunk as Ibrahim et al. 2021, arXiv:2110.06893."""

import torch
from torch import Tensor

from mzlib.errors import Missing
from mzlib.selectors._checks import Array, features_and_labels, score, unit, varying
from mzlib.selectors._linalg import class_sums, left_svd, shrunk_solve, smaller_gram


def ledoit_wolf(n: int, d: int, scatter_norm2: Tensor, fourth: Tensor, trace: Tensor) -> Tensor:
    """Shrinkage α of the covariance S/n towards (tr S/(n d)) I, Ledoit & Wolf 2004, from ‖S‖²,
    Σ‖x‖⁴ and tr S.
    """
    squares = scatter_norm2 / n**2
    deviation = squares - (trace / n) ** 2 / d  # ‖S/n − μI‖²
    noise = (fourth / n - squares) / n  # what n images leave uncertain
    if deviation <= 0:
        return torch.zeros_like(noise)
    share = noise / deviation
    alpha = share.clamp(0, 1)
    return torch.where(alpha > 1e-12, alpha, 0.0)  # N = 2 has none: singular when D > 1


def hscore(features: Array, labels: Array) -> float:
    """H-score: how much of the features' variance, whitened, lies between the class means?

    Bao et al. 2019, eq. 2: tr(Σ_F⁻¹ Σ_{E[F|y]}), with Σ_F shrunk by Ledoit-Wolf and (1−α) on the
    between part (Ibrahim et al. 2021). The pseudo-inverse form is C−1 for every F once N ≤ D+1 and
    is never used.
    features [N, D], labels int [N]; O(ND·min(N, D)), float64; `Missing`: one class, constant
    features.

    Examples:
        >>> features = [[2.0, 0.0], [1.8, 0.2], [0.1, 1.0], [0.0, 1.2]]
        >>> labels = [0, 0, 1, 1]
        >>> round(hscore(features, labels), 4)
        1.3019
    """
    features, labels, sizes = features_and_labels(features, labels)
    centred = varying(unit(features))
    n, d = centred.shape
    norms2 = centred.square().sum(1)
    trace = norms2.sum()
    scatter = smaller_gram(centred)
    scatter_norm2 = scatter.square().sum()
    fourth = norms2.square().sum()
    alpha = ledoit_wolf(n, d, scatter_norm2, fourth, trace)
    kept = 1 - alpha
    # (1−α) tr(Σ_α⁻¹ Σ_c s_c s_cᵀ / n_c) / (N − 1), s_c the class sums and Σ_α = (1−α) S/n + α tr
    # S/(nd) I
    sums = class_sums(centred, labels, len(sizes))
    ridge = alpha * trace / (n * d)
    solved = shrunk_solve(centred, kept / n, ridge, sums.T, scatter)
    between = (sums * solved.T).sum(1) / sizes
    total = kept * between.sum()
    return score(total / (n - 1))


def hscore_pinv(features: Array, labels: Array) -> float:
    """H-score as published, with the pseudo-inverse and no shrinkage: for comparison with `hscore`.

    Bao et al. 2019, eq. 2: tr(Σ_F⁺ Σ_{E[F|y]}) = Σ_c ‖Σ_{i∈c} u_i‖²/n_c, u_i the rows of U in
    F̃ = U diag(σ) Vᵀ. With N ≤ D+1 it is C−1 for every expert: it has no score there.
    features [N, D], labels int [N]; O(ND²), float64; `Missing`: N ≤ rank + 1, constant features.
    """
    features, labels, sizes = features_and_labels(features, labels)
    centred = varying(unit(features))
    values, u = left_svd(centred)
    above = values > 1e-14 * values[0]
    rank = int(above.sum())
    if len(u) <= rank + 1:
        raise Missing(
            f"expected more images than features, got {len(u)} images and features of rank {rank}: "
            f"the score is {len(sizes) - 1} for every expert there, use hscore"
        )
    sums = class_sums(u, labels, len(sizes))
    between = sums.square().sum(1) / sizes
    return score(between.sum())
