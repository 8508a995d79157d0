"""Label-feature and label-gradient correlation (LFC, LGC): Deshpande et al. 2021, arXiv:2102.00084, Sec. 3.2-3.3."""

import torch

from mzlib.errors import Missing
from mzlib.selectors._inputs import class_sums, classes, features_and_labels, matrix, score, smaller_gram, varying


def _pearson(covariance, deviation, sizes) -> float:
    """⟨K−μ, ZZᵀ⟩ / (‖K−μ‖ ‖ZZᵀ−p‖): the labels' side of eq. 8 is N√(p(1−p)), the same for ±1 and for {0, 1}."""
    p = (sizes / sizes.sum()).square().sum()  # share of pairs (i, j) with equal labels
    return score(covariance / (deviation * sizes.sum() * (p * (1 - p)).sqrt()))


def lfc_from_moments(sums, sizes, mean, scatter_norm2, along_mean2) -> float:
    """Eq. 8 from centred moments, where nothing cancels: with F = F̃ + 1mᵀ and u = F̃m,
    K − μ = F̃F̃ᵀ + u1ᵀ + 1uᵀ, so ‖K−μ‖² = ‖F̃ᵀF̃‖² + 2N‖u‖² and ⟨K−μ, ZZᵀ⟩ = Σ_c ‖s̃_c‖² + 2 Σ_c n_c s̃_c·m."""
    covariance = sums.square().sum() + 2 * (sizes @ (sums @ mean))
    return _pearson(covariance, (scatter_norm2 + 2 * sizes.sum() * along_mean2).sqrt(), sizes)


def lfc(features, labels) -> float:
    """Label-feature correlation: do images that share a label have similar features?

    Deshpande et al. 2021, eq. 8 with the feature kernel of eq. 6: the Pearson correlation over all N² entries
    (diagonal included) between K = FFᵀ and K_Y = ±1. Raw features, one scalar mean; in [−1, 1].
    features [N, D], labels int [N]; O(ND·min(N, D)) without an N×N matrix, products and row sums in the features'
    precision, the rest in float64; `Missing`: one class, constant features.
    """
    features, labels, sizes = features_and_labels(features, labels, dtype=None)
    mean, centred = features.mean(0).double(), varying(features)
    sums = class_sums(centred, labels, len(sizes)).double()
    sums -= (sizes / sizes.sum())[:, None] * sums.sum(0)  # what rounding left of Σ F̃ = 0
    along_mean2 = (centred @ mean.to(centred.dtype)).double().square().sum()
    norm2 = torch.linalg.vector_norm(smaller_gram(centred), dim=1).double().square().sum()
    return lfc_from_moments(sums, sizes, mean, norm2, along_mean2)


def lfc_centred(features, labels) -> float:
    """LFC of the features minus their mean over images; a variant of this project, not in the paper. See `lfc`."""
    return lfc(varying(matrix(features, "features", None)), labels)


def lfc_cosine(features, labels) -> float:
    """LFC of the features' directions f/‖f‖ (zero rows stay zero); a variant of this project. See `lfc`."""
    return lfc(torch.nn.functional.normalize(matrix(features, "features", None), dim=1), labels)


def lfc_unnormalised(features, labels) -> float:
    """Label-feature product Yᵀ Θ_F Y = 2 Σ_c ‖s_c‖² − ‖s‖² with s_c the class sums (Sec. 3.2, below eq. 7)."""
    features, labels, sizes = features_and_labels(features, labels)
    sums = class_sums(features, labels, len(sizes))
    return score(2 * sums.square().sum() - sums.sum(0).square().sum())


def _kernel_and_labels(kernel, labels):
    kernel = matrix(kernel, "kernel")
    if kernel.shape[0] != kernel.shape[1]:
        raise Missing(f"expected a square [N, N] kernel, got shape {tuple(kernel.shape)}, pass the Gram matrix")
    return (kernel, *classes(labels, kernel))


def lgc(kernel, labels) -> float:
    """Label-gradient correlation: do images that share a label pull the weights the same way?

    Deshpande et al. 2021, eq. 8: Pearson correlation over all N² entries between the Gram matrix of per-image
    gradients and K_Y = ±1. The same function serves any kernel (last convolution, all layers, FFᵀ gives `lfc`).
    kernel [N, N], labels int [N]; O(N²), float64; `Missing`: one class, constant kernel.
    """
    kernel, labels, sizes = _kernel_and_labels(kernel, labels)
    deviations = kernel - kernel.mean()
    if deviations.abs().max() <= 1e-12 * kernel.abs().max():
        raise Missing("expected a kernel that differs between pairs of images, got a constant one")
    blocks = class_sums(class_sums(deviations, labels, len(sizes)).T, labels, len(sizes))  # Zᵀ(K−μ)Z
    return _pearson(blocks.trace(), torch.linalg.matrix_norm(deviations), sizes)


def lgc_unnormalised(kernel, labels) -> float:
    """Label-gradient product Yᵀ Θ Y = Θ · K_Y of Sec. 3.2, eq. 7 (K_Y = ±1). Kernel [N, N], labels int [N]."""
    kernel, labels, sizes = _kernel_and_labels(kernel, labels)
    blocks = class_sums(class_sums(kernel, labels, len(sizes)).T, labels, len(sizes))
    return score(2 * blocks.trace() - blocks.sum())
