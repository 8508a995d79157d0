"""Similarity of representations. RSA: Dwivedi & Roig 2019, arXiv:1904.11740. DDS: Dwivedi et al.
2020, arXiv:2008.02107. PARC: Bolya et al. 2021, arXiv:2111.06977. CKA: Kornblith et al. 2019,
arXiv:1905.00414.

RSA and DDS compare with a small net trained on the target task: its training is part of their cost.
"""

import torch
from torch import Tensor

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
from mzlib.selectors._linalg import class_sums, directions, gram, remembered, smaller_gram

LEVELS = 2**20  # distances are ranked to a millionth of their range: rounding errors break no ties


def _similarities(features: Tensor) -> tuple[Tensor, float, float]:
    """corr(f(x_i), f(x_j)) [N, N] off the diagonal, and its range there.

    A row that is constant over the features has no correlation and counts as uncorrelated with all
    others.
    """
    centred = features - features.mean(1, keepdim=True)
    norms = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    lengths = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    eps = torch.finfo(features.dtype).eps
    varies = norms > 10 * eps * lengths
    scales = torch.where(varies, 1 / norms, 0.0)
    similar = gram(centred.mul_(scales))
    similar.fill_diagonal_(float(similar[0, 1]))
    low, high = similar.aminmax()
    if high - low <= 100 * eps:
        raise Missing(
            "expected dissimilarities that differ between pairs of images, got equal ones for all"
        )
    return similar, float(low), float(high)


@remembered
def _pair_ranks(features: Tensor) -> Tensor:
    """Average ranks, minus their mean, of corr(f(x_i), f(x_j)) over the pairs i < j; float64."""
    similar, low, high = _similarities(features)
    n = len(similar)
    upper = torch.triu_indices(n, n, 1, device=similar.device)
    scale = (LEVELS - 1) / (high - low)
    above = similar[*upper] - low
    levels = (above * scale).round_().int()
    if len(levels) < LEVELS // 4:  # a histogram with a bin a level would take longer than a sort
        levels = levels.unique(return_inverse=True)[1]
    counts = levels.bincount().double()
    centre = (counts + counts.sum()) / 2
    ranks = counts.cumsum(0) - centre
    return ranks[levels]


@remembered
def _cosine_kernel(features: Tensor) -> Tensor:
    """Of directions less their mean, with a diagonal of zeros: HSIC₁ is the same for K_ij + r_i +
    r_j, and nothing cancels.
    """
    centred = varying(directions(unit(features)))
    return gram(centred).fill_diagonal_(0)


def _pair(features, reference_features, least: int) -> tuple[Tensor, Tensor]:
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
    pair = _pair(features, reference_features, 3)
    a, b = map(_pair_ranks, pair)
    norms = a.norm() * b.norm()
    return score(a @ b / norms)


def parc(features: Array, labels: Array) -> float:
    """Pairwise annotation representation comparison: are images of one class more alike than images
    of two?

    Bolya et al. 2021, eq. 3-4: Spearman of the upper triangles of 1 − corr of the rows of F
    (columns standardised) and of one-hot labels, average ranks; the authors print 100 times this.
    The label side has two values only; the authors' code ranks `corrcoef` of one-hot rows, whose
    rounding breaks those ties (.0071 for .0431 with 1,000 classes).
    features [N, D], labels int [N]; O(N²D), in the features' precision; `Missing`: one image per
    class, pairs all equally far.
    """
    features, labels, sizes = features_and_labels(features, labels, dtype=None)
    need_pairs(sizes)
    features = unit(features)
    centred = varying(features)
    deviations = centred.square().mean(0).sqrt()
    largest = features.abs().amax(0)
    tiny = torch.finfo(centred.dtype).eps * largest
    varies = deviations > tiny
    centred *= torch.where(varies, 1 / deviations, 0.0)  # a constant feature adds nothing
    ranks = _pair_ranks(centred)
    same = [labels[i] == labels[i + 1 :] for i in range(len(labels))]
    same = torch.cat(same)  # of pairs i < j
    # Spearman with two values on the label's side: its covariance is Σ ranks of the pairs that
    # share a label, its variance p(1 − p)
    share = same.double().mean()
    variance = share * (1 - share)
    of_labels = (len(same) * variance).sqrt()
    covariance = ranks[same].sum()
    return score(covariance / (of_labels * ranks.norm()))


def _unbiased_hsic(k: Tensor, other: Tensor) -> Tensor:
    """HSIC₁ of Song et al. 2012 of two [N, N] kernels with zeros on the diagonal:
    (tr KL + 1ᵀK1 1ᵀL1/((n−1)(n−2)) − 2/(n−2) 1ᵀKL1) / (n(n−3)).
    """
    n = len(k)
    a = k.sum(0)
    b = other.sum(0)
    means = a.sum() * b.sum() / (n - 1)
    corners = (means - 2 * (a @ b)) / (n - 2)
    products = (k * other).sum()
    return (products + corners) / (n * (n - 3))


def dds(features: Array, reference_features: Array) -> float:
    """Duality diagram similarity: do the expert and a small net trained on the task span alike
    image geometries?

    Dwivedi et al. 2020, Sec. 3, with cosine kernels and the unbiased CKA (HSIC₁ of Song et al.
    2012). At most 1. Public codes z-score the features first: that is another number.
    features [N, D], reference_features [N, D'], N ≥ 4; O(N²(D + D')), float64; `Missing`: all
    images alike.
    """
    pair = _pair(features, reference_features, 4)
    kernels = [_cosine_kernel(x) for x in pair]
    norms = [_unbiased_hsic(kernel, kernel) for kernel in kernels]
    for norm, kernel in zip(norms, kernels):
        if norm <= 1e-14 * kernel.square().mean():
            raise Missing(
                "expected kernels that differ between pairs of images, got a constant one"
            )
    shared = _unbiased_hsic(*kernels)
    product = norms[0] * norms[1]
    return score(shared / product.sqrt())


def cka(features: Array, labels: Array) -> float:
    """Linear CKA of the features with the one-hot labels; a variant of this project beside LFC.

    Kornblith et al. 2019, eq. 3: ‖F̃ᵀZ̃‖² / (‖F̃ᵀF̃‖ ‖Z̃ᵀZ̃‖), both minus their column means. In
    [0, 1].
    features [N, D], labels int [N]; O(ND·min(N, D)), float64; `Missing`: one class, constant
    features.
    """
    features, labels, sizes = features_and_labels(features, labels)
    centred = varying(unit(features))
    chance = torch.outer(sizes, sizes) / len(labels)
    labels_gram = torch.diag(sizes) - chance  # Z̃ᵀZ̃
    sums = class_sums(centred, labels, len(sizes))
    shared = sums.square().sum()
    norm = smaller_gram(centred).norm()
    return score(shared / (norm * labels_gram.norm()))
