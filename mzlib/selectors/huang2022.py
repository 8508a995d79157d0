"""Class separation of Gaussians. TransRate: Huang et al. 2022, arXiv:2106.09362. GBC: Pándy et al.
2022, arXiv:2111.12780.
"""

import torch

from mzlib.errors import Missing
from mzlib.selectors._checks import (
    Array,
    features_and_labels,
    need_pairs,
    need_positive,
    score,
    unit,
    varying,
)
from mzlib.selectors._linalg import (
    by_class_size,
    class_means,
    class_sums,
    directions,
    gram,
    principal,
    smaller_gram,
)


def coding_rate(blocks: torch.Tensor, eps: float) -> torch.Tensor:
    """½ log det(I + XᵀX/(nε)) for each block X of [c, n, D], on the smaller of the two sides."""
    n, d = blocks.shape[-2:]
    x = blocks if n <= d else blocks.mT
    inner = gram(x[0])[None] if len(x) == 1 else x @ x.mT
    inner /= n * eps
    inner.diagonal(dim1=-2, dim2=-1).add_(1)
    factor, info = torch.linalg.cholesky_ex(inner)
    if info.any():
        raise Missing(
            "expected features whose squares are at most about 1e16 times eps, got larger ones: "
            "rescale them"
        )
    roots = factor.diagonal(dim1=-2, dim2=-1)
    return roots.log().sum(-1)


def transrate(features: Array, labels: Array, eps: float = 1e-4) -> float:
    """Mutual information between features and labels by coding rates: large overall spread, small
    within classes.

    Huang et al. 2022, eq. 7-8: R(F) − (1/C) Σ_c R(F_c), R(F) = ½ log det(I + FᵀF/(Nε)), F minus its
    overall mean. The mean over classes is not weighted by class size. Not scale-invariant.
    features [N, D], labels int [N]; O(ND·min(N, D)), float64; `Missing`: one class, constant
    features.
    """
    need_positive(eps=eps)
    features, labels, sizes = features_and_labels(features, labels)
    centred = varying(features)
    blocks = by_class_size(centred, labels, sizes)
    within = sum(coding_rate(block, eps).sum() for block in blocks)
    overall = coding_rate(centred[None], eps)[0]
    return score(overall - within / len(sizes))


def transrate_authors(features: Array, labels: Array, eps: float = 1e-4) -> float:
    """TransRate as the authors' repository computes it (github.com/Long-Kai/TransRate).

    [R(Z) − Σ_c (n_c/n) R(Z_c)] / rank Z, with R and ε as in `transrate`, and Z the features less
    their overall mean, each row scaled to length one: so, unlike `transrate`, invariant to scale,
    weighted by class size, and per direction of the features. (Their selection of models projects
    the features first and chooses ε by data set.)
    features [N, D], labels int [N]; O(ND·min(N, D)), float64; `Missing`: one class, constant
    features.
    """
    need_positive(eps=eps)
    features, labels, sizes = features_and_labels(features, labels)
    z = directions(varying(unit(features)))
    n, d = z.shape
    values = torch.linalg.eigvalsh(smaller_gram(z))
    values = values.clamp_min(0)
    noise = torch.finfo(z.dtype).eps * d
    above = values > noise * values[-1]
    scaled = values / (n * eps)
    total = scaled.log1p().sum() / 2  # coding_rate of z
    within = 0.0
    for block in by_class_size(z, labels, sizes):
        images = block.shape[1]
        within += images * coding_rate(block, eps).sum()
    return score((total - within / n) / above.sum())


def gbc(features: Array, labels: Array, components: int = 64) -> float:
    """Gaussian Bhattacharyya coefficient: how much do the classes, as Gaussians, overlap?

    Pándy et al. 2022, eq. 2-5: −Σ_{a≠b} exp(−D_B(a, b)) over ordered pairs of classes, on PCA
    features of at most min(64, N−1, D) dimensions, spherical class covariances: D_B =
    ‖m_a−m_b‖²/(8v̄) + (d/2) log(v̄/√(v_a v_b)). A class of one image uses the pooled variance. In
    [−C(C−1), 0].
    features [N, D], labels int [N]; O(ND·min(N, D) + C²d), float64; when N and D both exceed 1024
    the PCA is that of `principal`, O(NDd) in float32; `Missing`: one image per class, constant
    features.
    """
    features, labels, sizes = features_and_labels(features, labels)
    need_pairs(sizes)
    number = len(sizes)
    centred = varying(unit(features))
    kept = min(components, len(centred) - 1)
    values, u = principal(centred, kept)
    x = u * values.sqrt()
    means = class_means(x, labels, sizes)
    deviations = x - means[labels]
    squares = deviations.square().mean(1, keepdim=True)
    within = class_sums(squares, labels, number)[:, 0]
    pooled = within.sum() / sizes[sizes > 1].sum()
    floor = 1e-10 * x.square().mean()
    variances = torch.where(sizes > 1, within / sizes, pooled)
    variances = variances.clamp_min(floor)
    other = variances[:, None]
    average = (other + variances) / 2  # v̄ of each pair of classes
    product = other * variances
    gaps = torch.cdist(means, means).square()
    unlike = average.log() - product.log() / 2
    distances = gaps / (8 * average) + x.shape[1] / 2 * unlike
    overlap = (-distances).exp().sum()
    return score(number - overlap)  # a class with itself adds exp(0)
