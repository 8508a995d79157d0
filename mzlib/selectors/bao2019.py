"""H-score: Bao et al. 2019, ICIP; shrunk as Ibrahim et al. 2021, arXiv:2110.06893, for few images."""

import torch

from mzlib.selectors._inputs import (
    class_sums,
    features_and_labels,
    score,
    shrunk_solve,
    smaller_gram,
    unit,
    varying,
)


def ledoit_wolf(n: int, d: int, scatter_norm2, fourth, trace):
    """Shrinkage α of the covariance S/n towards (tr S/(n d)) I, Ledoit & Wolf 2004, from ‖S‖², Σ‖x‖⁴ and tr S."""
    deviation = scatter_norm2 / n**2 - (trace / n) ** 2 / d  # ‖S/n − μI‖²
    noise = (fourth / n - scatter_norm2 / n**2) / n  # what n images leave uncertain
    alpha = (noise / deviation).clamp(0, 1) if deviation > 0 else torch.zeros_like(noise)
    return torch.where(alpha > 1e-12, alpha, 0.0)  # N = 2 has none: singular when D > 1


def hscore(features, labels) -> float:
    """H-score: how much of the features' variance, whitened, lies between the class means?

    Bao et al. 2019, eq. 2: tr(Σ_F⁻¹ Σ_{E[F|y]}), with Σ_F shrunk by Ledoit-Wolf and (1−α) on the between part
    (Ibrahim et al. 2021). The pseudo-inverse form is C−1 for every F once N ≤ D+1 and is never used.
    features [N, D], labels int [N]; O(ND·min(N, D)), float64; `Missing`: one class, constant features.
    """
    features, labels, sizes = features_and_labels(features, labels)
    centred = varying(unit(features))
    (n, d), sums = centred.shape, class_sums(centred, labels, len(sizes))
    norms2 = centred.square().sum(1)
    alpha = ledoit_wolf(
        n, d, smaller_gram(centred).square().sum(), norms2.square().sum(), norms2.sum()
    )
    solved = shrunk_solve(centred, (1 - alpha) / n, alpha * norms2.sum() / (n * d), sums.T)
    return between_share(alpha, sums, sizes, solved)


def between_share(alpha, sums, sizes, solved) -> float:
    """(1−α) tr(Σ_α⁻¹ Σ_c s_c s_cᵀ / n_c) / (N − 1) from centred class sums s_c [C, D] and solved = Σ_α⁻¹ s_cᵀ."""
    return score((1 - alpha) * ((sums * solved.T).sum(1) / sizes).sum() / (sizes.sum() - 1))
