"""Label-feature and label-gradient correlation (LFC, LGC) and the two sides of eq. 5: Deshpande et
al. 2021, arXiv:2102.00084.
"""

import torch
from torch import Tensor

from mzlib.errors import Missing
from mzlib.linearization import Dynamics, LinearizationError
from mzlib.selectors._checks import (
    Array,
    classes,
    features_and_labels,
    matrix,
    score,
    unit,
    varying,
)
from mzlib.selectors._linalg import class_sums, directions, one_hot, remembered, smaller_gram

RIDGE = 1e-3  # of the mean eigenvalue: none that is lost in the kernel's rounding decides (ours)


def _pearson(covariance, deviation, sizes) -> float:
    """⟨K−μ, ZZᵀ⟩ / (‖K−μ‖ ‖ZZᵀ−p‖): the labels' side of eq. 8 is N√(p(1−p)), the same for ±1 and
    for {0, 1}.
    """
    n = sizes.sum()
    p = (sizes / n).square().sum()  # share of pairs (i, j) with equal labels
    of_labels = n * (p * (1 - p)).sqrt()
    return score(covariance / (deviation * of_labels))


def lfc(features: Array, labels: Array) -> float:
    """Label-feature correlation: do images that share a label have similar features?

    Deshpande et al. 2021, eq. 8 with the feature kernel of eq. 6: the Pearson correlation over all
    N² entries (diagonal included) between K = FFᵀ and K_Y = ±1. Raw features, one scalar mean; in
    [−1, 1].
    features [N, D], labels int [N]; O(ND·min(N, D)) without an N×N matrix, products and row sums in
    the features' precision, the rest in float64; `Missing`: one class, constant features.

    Examples:
        >>> features = [[2.0, 0.0], [1.8, 0.2], [0.1, 1.0], [0.0, 1.2]]
        >>> labels = [0, 0, 1, 1]
        >>> round(lfc(features, labels), 4)
        0.7861
    """
    features, labels, sizes = features_and_labels(features, labels, dtype=None)
    features = unit(features)
    mean = features.mean(0).double()
    centred = varying(features)
    sums = class_sums(centred, labels, len(sizes)).double()  # s̃_c
    shares = sizes / sizes.sum()
    sums -= shares[:, None] * sums.sum(0)  # what rounding left of Σ_c s̃_c = 0
    along_mean = centred @ mean.to(centred.dtype)  # u
    along_mean = along_mean.double()
    kernel = smaller_gram(centred)
    rows = torch.linalg.vector_norm(kernel, dim=1).double()
    # Eq. 8 from centred moments, where nothing cancels: with F = F̃ + 1mᵀ and u = F̃m, K − μ =
    # F̃F̃ᵀ + u1ᵀ + 1uᵀ, so ‖K−μ‖² = ‖F̃ᵀF̃‖² + 2N‖u‖² and ⟨K−μ, ZZᵀ⟩ = Σ_c ‖s̃_c‖² + 2 Σ_c n_c
    # s̃_c·m
    shift2 = along_mean.square().sum()
    deviation2 = rows.square().sum() + 2 * len(labels) * shift2
    of_mean = sizes @ (sums @ mean)
    covariance = sums.square().sum() + 2 * of_mean
    return _pearson(covariance, deviation2.sqrt(), sizes)


def lfc_centred(features: Array, labels: Array) -> float:
    """LFC of the features minus their mean over images: does the part that differs between images
    follow the labels?

    A variant of this project of Deshpande et al. 2021, eq. 8, not in the paper; arguments, cost and
    errors of `lfc`.
    """
    features = matrix(features, "features", None)
    return lfc(varying(unit(features)), labels)


def lfc_cosine(features: Array, labels: Array) -> float:
    """LFC of the features' directions f/‖f‖: do images that share a label point the same way? Zero
    rows stay zero.

    A variant of this project of Deshpande et al. 2021, eq. 8; arguments, cost and errors of `lfc`,
    all in float64.
    """
    features = matrix(features, "features")
    return lfc(directions(unit(features)), labels)


def _kernel_and_labels(kernel, labels) -> tuple[Tensor, Tensor, Tensor]:
    kernel = matrix(kernel, "kernel")
    if kernel.shape[0] != kernel.shape[1]:
        raise Missing(
            f"expected a square [N, N] kernel, got shape {tuple(kernel.shape)}, "
            "pass the Gram matrix"
        )
    return (kernel, *classes(labels, kernel))


def lgc(kernel: Array, labels: Array) -> float:
    """Label-gradient correlation: do images that share a label pull the weights the same way?

    Deshpande et al. 2021, eq. 8: Pearson correlation over all N² entries between the Gram matrix of
    per-image gradients and K_Y = ±1. The same function serves any kernel (last convolution, all
    layers, FFᵀ gives `lfc`).
    kernel [N, N], labels int [N]; O(N²), float64; `Missing`: one class, constant kernel.

    Examples:
        >>> kernel = [[2.0, 1.5, 0.1], [1.5, 2.0, 0.2], [0.1, 0.2, 1.0]]
        >>> round(lgc(kernel, labels=[0, 0, 1]), 4)
        0.9317
    """
    kernel, labels, sizes = _kernel_and_labels(kernel, labels)
    deviations = kernel - kernel.mean()
    if deviations.abs().max() <= 1e-12 * kernel.abs().max():
        raise Missing("expected a kernel that differs between pairs of images, got a constant one")
    columns = class_sums(deviations, labels, len(sizes))  # Zᵀ(K−μ)
    blocks = class_sums(columns.T, labels, len(sizes))  # Zᵀ(K−μ)Z
    norm = torch.linalg.matrix_norm(deviations)
    return _pearson(blocks.trace(), norm, sizes)


@remembered
def _jensen(kernel, labels, sizes) -> tuple[float, float]:
    """The two sides of eq. 5 with δY one-hot and centred per class, summed over classes: the
    residual of the best constant prediction (our choice: the paper scores before there is a head,
    and keeps Y in place of δY).
    """
    targets = one_hot(labels, len(sizes))
    targets -= targets.mean(0)
    ridge = RIDGE * float(kernel.trace()) / len(kernel)
    positive = not torch.linalg.cholesky_ex(kernel).info
    if positive and torch.equal(kernel, kernel.T):  # both sides without eigenvalues
        shifted = kernel.clone()
        shifted.diagonal().add_(ridge)
        norm = targets.square().sum()
        moved = targets * (shifted @ targets)
        factor = torch.linalg.cholesky(shifted)
        solved = targets * torch.cholesky_solve(targets, factor)
        return float(norm / moved.sum()), float(solved.sum() / norm)
    try:
        return Dynamics(kernel, targets, ridge=ridge).jensen()
    except LinearizationError as error:
        raise Missing(str(error)) from error


def label_alignment(kernel: Array, labels: Array) -> float:
    """Initial slope of the training loss, δYᵀΘδY/‖δY‖²: how fast does linearized fine-tuning begin?

    Deshpande et al. 2021, eq. 3: the inverse of the left side of eq. 5. It has the kernel's scale.
    kernel [N, N], positive semi-definite, labels int [N]; O(N³), float64; `Missing`: one class, a
    kernel that is not one.
    """
    return 1 / _jensen(*_kernel_and_labels(kernel, labels))[0]


def inverse_label_alignment(kernel: Array, labels: Array) -> float:
    """Generalization score −δYᵀΘ⁻¹δY/‖δY‖²: do the labels lie along the kernel's large
    eigenvectors?

    Deshpande et al. 2021, eq. 4 with its sign turned: minus the right side of eq. 5, so never above
    −1/`label_alignment`. It has the kernel's inverse scale. Arguments, cost and errors of
    `label_alignment`; `Missing` also for a kernel of zeros.
    """
    right = _jensen(*_kernel_and_labels(kernel, labels))[1]
    if right == float("inf"):
        raise Missing(
            "expected a kernel with an eigenvalue above 0, got zeros: eq. 4 is infinite there"
        )
    return -right
