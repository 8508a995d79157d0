"""Similarity of representations. RSA: Dwivedi & Roig 2019, arXiv:1904.11740. DDS: Dwivedi et al.
2020, arXiv:2008.02107. PARC: Bolya et al. 2021, arXiv:2111.06977. CKA: Kornblith et al. 2019,
arXiv:1905.00414.

RSA and DDS compare with a small net trained on the target task: its training is part of their cost.
"""

import torch

from mzlib.errors import Missing
from mzlib.selectors._checks import (
    Array,
    features_and_labels,
    matrix,
    need_pairs,
    score,
    unit,
    varying,
)
from mzlib.selectors._linalg import class_sums, directions, gram, smaller_gram

LEVELS = 2**20  # distances are ranked to a millionth of their range: rounding errors break no ties


def _similarities(features: torch.Tensor) -> tuple[torch.Tensor, float, float]:
    """corr(f(x_i), f(x_j)) [N, N] with −2 on the diagonal, and the range of the rest.

    A row that is constant over the features has no correlation and counts as uncorrelated with all
    others.
    """
    centred = features - features.mean(1, keepdim=True)
    norms = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    lengths = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    eps = torch.finfo(features.dtype).eps
    similar = gram(centred.mul_(torch.where(norms > 10 * eps * lengths, 1 / norms, 0.0)))
    low, high = similar.fill_diagonal_(float(similar[0, 1])).aminmax()
    if high - low <= 100 * eps:
        raise Missing(
            "expected dissimilarities that differ between pairs of images, got equal ones for all"
        )
    return similar.fill_diagonal_(-2), float(low), float(high)


def _levels(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """low … high as 0 … LEVELS − 1, what is below low as 0; int32."""
    return ((values - low) * ((LEVELS - 1) / (high - low))).clamp_min_(0).round_().int()


def _ranks(counts: torch.Tensor) -> torch.Tensor:
    """Average rank of each level, minus the mean rank, from the pairs at each: no sort."""
    return counts.cumsum(0) - (counts + counts.sum()) / 2


def _pair_ranks(features: torch.Tensor) -> torch.Tensor:
    """Average ranks, minus their mean, of corr(f(x_i), f(x_j)) over the pairs i < j; float64."""
    similar, low, high = _similarities(features)
    upper = torch.triu_indices(*similar.shape, 1, device=similar.device)
    levels = _levels(similar[*upper], low, high)
    return _ranks(levels.bincount(minlength=LEVELS).double())[levels]


def _pair(features, reference_features, least: int) -> tuple[torch.Tensor, torch.Tensor]:
    features = matrix(features, "features")
    reference = matrix(reference_features, "reference features")
    if len(features) != len(reference) or len(features) < least:
        raise Missing(
            f"expected the same >= {least} images twice, got {len(features)} and {len(reference)} "
            "rows"
        )
    return features, reference


def rsa(features: Array, reference_features: Array) -> float:
    """Do the expert and a small net trained on the task find the same pairs of images (dis)similar?

    Dwivedi & Roig 2019; eq. 9-11 of Deshpande et al. 2021: Spearman correlation of the upper
    triangles of 1 − corr(f(x_i), f(x_j)) for the two nets, average ranks for ties. In [−1, 1].
    features [N, D], reference_features [N, D'], N ≥ 3; O(N²(D + D')), float64; `Missing`: pairs all
    equally far.
    """
    a, b = (_pair_ranks(x) for x in _pair(features, reference_features, 3))
    return score(a @ b / (a.norm() * b.norm()))


def parc(features: Array, labels: Array) -> float:
    """Pairwise annotation representation comparison: are images of one class more alike than images
    of two?

    Bolya et al. 2021, eq. 3-4: Spearman of the upper triangles of 1 − corr of the rows of F
    (columns standardised) and of one-hot labels, average ranks; the authors print 100 times this.
    The label side has two values only.
    features [N, D], labels int [N]; O(N²D), in the features' precision; `Missing`: one image per
    class, pairs all equally far.
    """
    features, labels, sizes = features_and_labels(features, labels, dtype=None)
    need_pairs(sizes)
    features = unit(features)
    centred = varying(features)
    deviations = centred.square().mean(0).sqrt()
    tiny = 10 * torch.finfo(centred.dtype).eps * features.abs().amax(0)
    centred *= torch.where(
        deviations > tiny, 1 / deviations, 0.0
    )  # a constant feature adds nothing
    similar, low, high = _similarities(centred[labels.argsort()])
    ends = sizes.cumsum(0).long().tolist()
    blocks = [similar[a:b, a:b].reshape(-1) for a, b in zip([0, *ends], ends)]

    def counts(values):
        """Pairs at each level, from each pair twice and the diagonal, which is at level 0."""
        parts = values.split(2**22)
        found = sum(_levels(part, low, high).bincount(minlength=LEVELS) for part in parts).double()
        found[0] -= len(labels)
        return found / 2

    # Spearman with a label side of two values: cov = Σ ranks of the pairs that share a label, var =
    # p(1 − p) on that side
    pairs = counts(similar.view(-1))
    same = counts(torch.cat(blocks))
    ranks = _ranks(pairs)
    share = same.sum() / pairs.sum()
    variances = (pairs @ ranks.square()) * share * (1 - share) * pairs.sum()
    return score(same @ ranks / variances.sqrt())


def _unbiased_hsic(k: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """HSIC₁ of Song et al. 2012 of two [N, N] kernels with zeros on the diagonal:
    (tr KL + 1ᵀK1 1ᵀL1/((n−1)(n−2)) − 2/(n−2) 1ᵀKL1) / (n(n−3)).
    """
    n = len(k)
    sums = k.sum(0), other.sum(0)
    corners = sums[0].sum() * sums[1].sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (
        sums[0] @ sums[1]
    )
    return ((k * other).sum() + corners) / (n * (n - 3))


def dds(features: Array, reference_features: Array) -> float:
    """Duality diagram similarity: do the expert and a small net trained on the task span alike
    image geometries?

    Dwivedi et al. 2020, Sec. 3, with cosine kernels and the unbiased CKA (HSIC₁ of Song et al.
    2012). At most 1.
    features [N, D], reference_features [N, D'], N ≥ 4; O(N²(D + D')), float64; `Missing`: all
    images alike.
    """
    pair = _pair(features, reference_features, 4)
    kernels = [gram(directions(unit(x))).fill_diagonal_(0) for x in pair]
    norms = [_unbiased_hsic(kernel, kernel) for kernel in kernels]
    if min(norms) <= 1e-14:
        raise Missing("expected kernels that differ between pairs of images, got a constant one")
    return score(_unbiased_hsic(*kernels) / (norms[0] * norms[1]).sqrt())


def cka(features: Array, labels: Array) -> float:
    """Linear CKA of the features with the one-hot labels; a variant of this project beside LFC.

    Kornblith et al. 2019, eq. 3: ‖F̃ᵀZ̃‖² / (‖F̃ᵀF̃‖ ‖Z̃ᵀZ̃‖), both minus their column means. In
    [0, 1].
    features [N, D], labels int [N]; O(ND·min(N, D)), float64; `Missing`: one class, constant
    features.
    """
    features, labels, sizes = features_and_labels(features, labels)
    centred = varying(unit(features))
    labels_gram = torch.diag(sizes) - torch.outer(sizes, sizes) / len(labels)  # Z̃ᵀZ̃
    shared = class_sums(centred, labels, len(sizes)).square().sum()
    return score(shared / (smaller_gram(centred).norm() * labels_gram.norm()))
