"""Class separation of Gaussians. TransRate: Huang et al. 2022, arXiv:2106.09362. GBC: Pándy et al. 2022,
arXiv:2111.12780."""

import torch

from mzlib.errors import Missing
from mzlib.selectors._inputs import (
    by_class_size,
    class_sums,
    features_and_labels,
    gram,
    need_pairs,
    principal,
    score,
    unit,
    varying,
)


def _coding_rate(blocks: torch.Tensor, eps: float) -> torch.Tensor:
    """½ log det(I + XᵀX/(nε)) for each block X of [c, n, D], on the smaller of the two sides."""
    n, d = blocks.shape[-2:]
    x = blocks if n <= d else blocks.mT
    inner = (gram(x[0])[None] if len(x) == 1 else x @ x.mT) / (n * eps)
    inner.diagonal(dim1=-2, dim2=-1).add_(1)
    return torch.linalg.cholesky(inner).diagonal(dim1=-2, dim2=-1).log().sum(-1)


def transrate(features, labels, eps: float = 1e-4) -> float:
    """Mutual information between features and labels by coding rates: large overall spread, small within classes.

    Huang et al. 2022, eq. 7-8: R(F) − (1/C) Σ_c R(F_c), R(F) = ½ log det(I + FᵀF/(Nε)), F minus its overall mean.
    The mean over classes is not weighted by class size. Not scale-invariant.
    features [N, D], labels int [N]; O(ND·min(N, D)), float64; `Missing`: one class, constant features.
    """
    features, labels, sizes = features_and_labels(features, labels)
    if not eps > 0:
        raise Missing(f"expected eps above 0, got {eps}")
    centred = varying(features)
    within = sum(_coding_rate(block, eps).sum() for block in by_class_size(centred, labels, sizes))
    return score(_coding_rate(centred[None], eps)[0] - within / len(sizes))


def gbc(features, labels, components: int = 64) -> float:
    """Gaussian Bhattacharyya coefficient: how much do the classes, as Gaussians, overlap?

    Pándy et al. 2022, eq. 2-5: −Σ_{a≠b} exp(−D_B(a, b)) over ordered pairs of classes, on PCA features of at most
    min(64, N−1, D) dimensions, spherical class covariances: D_B = ‖m_a−m_b‖²/(8v̄) + (d/2) log(v̄/√(v_a v_b)).
    A class of one image uses the pooled variance. In [−C(C−1), 0].
    features [N, D], labels int [N]; O(ND·min(N, D) + C²d), float64; when N and D both exceed 1024 the PCA is that of
    `principal`, O(NDd) in float32; `Missing`: one image per class, constant features.
    """
    features, labels, sizes = features_and_labels(features, labels, dtype=None)
    need_pairs(sizes)
    centred = varying(unit(features))
    values, u = principal(centred, min(components, len(centred) - 1))
    x = u * values.sqrt()
    d, means = x.shape[1], class_sums(x, labels, len(sizes)) / sizes[:, None]
    squares = class_sums((x - means[labels]).square().mean(1, keepdim=True), labels, len(sizes))[
        :, 0
    ]
    pooled = squares.sum() / sizes[sizes > 1].sum()
    variances = torch.where(sizes > 1, squares / sizes, pooled).clamp_min(1e-10 * x.square().mean())
    average = (variances[:, None] + variances) / 2
    overlap = d / 2 * (average.log() - (variances[:, None] * variances).log() / 2)
    return score(
        len(sizes) - (-torch.cdist(means, means).square() / (8 * average) - overlap).exp().sum()
    )
