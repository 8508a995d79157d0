"""Leave-one-out accuracy of simple classifiers on frozen features: nearest neighbours (Renggli et al. 2020,
arXiv:2010.06402; Sorkhei et al. 2025), ridge regression (classical), and ridge with the kernel of linearized
fine-tuning (this project, from Deshpande et al. 2021, Sec. 3.1)."""

import torch

from mzlib.errors import Missing
from mzlib.selectors._inputs import (
    classes,
    directions,
    eigh,
    features_and_labels,
    gram,
    left_svd,
    matrix,
    need_pairs,
    one_hot,
    score,
    tied_accuracy,
    unit,
    varying,
)

LAMBDAS = torch.logspace(-6, 3, 19, dtype=torch.float64)  # times the mean eigenvalue tr K / N


def knn(features, labels, k: int = 1, metric: str = "cosine") -> float:
    """Leave-one-out accuracy of k nearest neighbours by majority vote.

    Renggli et al. 2020, Sec. 3 (k = 1); metric "cosine" or "euclidean". Equally near neighbours share the places that
    are left, and equal votes count as a fair draw, so the order of images and names of classes do not matter.
    k above the smallest class size is allowed: those classes then lose by count.
    features [N, D], labels int [N], 1 ≤ k < N; O(N²D), products in their precision, of what is left when their mean
    (cosine: the mean of their directions) is taken away; `Missing`: one image per class, k ≥ N.
    """
    features, labels, sizes = features_and_labels(features, labels, dtype=None)
    need_pairs(sizes)
    if k not in range(1, len(labels)) or metric not in ("cosine", "euclidean"):
        raise Missing(
            f"expected 1 <= k < {len(labels)} images and metric cosine or euclidean, got k = {k} and {metric}"
        )
    n, hits, exact = len(labels), 0.0, unit(features).double()
    exact = (
        directions(exact) if metric == "cosine" else exact
    )  # ‖a−b‖²/2 is one less the cosine of unit vectors
    features = (exact - exact.mean(0)).to(features.dtype)
    norms = torch.linalg.vector_norm(features, dim=1)
    for start in range(0, n, 4096):  # bounds the N×N similarities
        part, own = features[start : start + 4096], norms[start : start + 4096, None]
        near = (
            gram(part) if len(part) == n else part @ features.T
        ) - norms**2 / 2  # −‖a−b‖²/2, less ‖a‖²/2, which all b share
        near.diagonal(start).fill_(-torch.inf)
        reach = min(k + 8, n - 1)
        while True:
            best, neighbour = near.topk(reach)
            rounding = (
                8 * torch.finfo(features.dtype).eps * norms[neighbour] * (own + norms[neighbour])
            )
            last, tolerance = best[:, k - 1 : k], torch.maximum(rounding, rounding[:, k - 1 : k])
            if reach == n - 1 or bool((best[:, -1:] < last - tolerance[:, -1:]).all()):
                break  # all that tie with the k-th are in
            reach = min(4 * reach, n - 1)
        sure, tied = best > last + tolerance, (best - last).abs() <= tolerance
        places = (k - sure.sum(1, keepdim=True)).double() / tied.sum(1, keepdim=True)
        votes = places.new_zeros(len(part), len(sizes)).scatter_add_(
            1, labels[neighbour], sure + tied * places
        )
        hits += tied_accuracy(votes, labels[start : start + 4096]).sum()
    return score(hits / n)


def loo_terms(projections, values, crossed, labels, sizes):
    """Σ of squared leave-one-out errors and of hits over these images, each [λ], from the eigenbasis of the kernel.

    projections P [n, k] with K = PPᵀ over all images and eigenvalues `values` [k]; crossed = PᵀZ over all images.
    Hat matrix with intercept H = 1/N + P (PᵀP + λI)⁻¹ Pᵀ; the left-out error is e_i/(1 − h_ii). For hits the left-out
    class shares give way to those of all images, which adds z̃_i/(N−1): else the class of the image left out is always
    one short and features of pure noise score 0 instead of chance.
    """
    n, shares = sizes.sum(), sizes / sizes.sum()
    targets, squares, errors, hits = (
        one_hot(labels, len(sizes)) - shares,
        projections.square(),
        [],
        [],
    )
    for ridge in LAMBDAS.to(values.device) * values.sum() / n:
        slack = (1 - 1 / n - squares @ (1 / (values + ridge))).clamp_min(1e-12)
        left_out = (targets - projections @ (crossed / (values + ridge)[:, None])) / slack[:, None]
        errors.append(left_out.square().sum())
        hits.append(tied_accuracy(targets * n / (n - 1) + shares - left_out, labels).sum())
    return torch.stack(errors), torch.stack(hits)


def loo_scores(errors, hits, n) -> tuple[float, float]:
    """(accuracy, −squared error per image), both at the λ of least squared error."""
    best = errors.argmin()
    return score(hits[best] / n), score(-errors[best] / n)


def _leave_one_out(values, vectors, labels, sizes):
    need_pairs(sizes)
    projections = vectors * values.sqrt()
    crossed = projections.T @ one_hot(labels, len(sizes))
    return loo_scores(*loo_terms(projections, values, crossed, labels, sizes), len(labels))


def ridge_loo(features, labels) -> float:
    """Leave-one-out accuracy of ridge regression (with intercept) on one-hot labels.

    Closed form from the hat matrix, e_i/(1 − h_ii) (Allen 1974); λ of least leave-one-out squared error among
    19 values from 10⁻⁶ to 10³ times tr K/N, so the score is scale-invariant. Hits use the class shares of all images
    (`loo_terms`): noise scores chance, not 0.
    features [N, D], labels int [N]; O(ND·min(N, D) + 19·N·min(N, D)·C), float64, kernel form for N < D;
    `Missing`: one image per class, constant features.
    """
    features, labels, sizes = features_and_labels(features, labels)
    return _leave_one_out(*left_svd(varying(features)), labels, sizes)[0]


def ridge_loo_mse(features, labels) -> float:
    """Negative leave-one-out squared error per image of ridge regression on one-hot labels, summed over classes.

    Closed form (Allen 1974) at the same λ, with the arguments, cost and errors of `ridge_loo`; scale-invariant, ≤ 0."""
    features, labels, sizes = features_and_labels(features, labels)
    return _leave_one_out(*left_svd(varying(features)), labels, sizes)[1]


def ntk_loo(features, kernel, labels, head_variance: float | None = None) -> float:
    """Leave-one-out accuracy of linearized fine-tuning: `ridge_loo` with the neural tangent kernel.

    This project, from Deshpande et al. 2021, Sec. 3.1 and eq. 2:
    K = FFᵀ + s²Θ_w: a fresh linear head plus a linearized backbone, in expectation over heads with entries of variance
    s² (default 1/(3D), the initialisation of torch.nn.Linear).
    features [N, D], kernel Θ_w [N, N] (trace kernel over features), labels int [N]; O(N³), float64; `Missing`: one
    image per class, constant kernel.
    """
    features, kernel = matrix(features, "features"), matrix(kernel, "kernel")
    labels, sizes = classes(labels, features)
    if kernel.shape != (len(labels), len(labels)):
        raise Missing(
            f"expected a [{len(labels)}, {len(labels)}] kernel, got {tuple(kernel.shape)}, use one sample"
        )
    variance = 1 / (3 * features.shape[1]) if head_variance is None else head_variance
    total = gram(features) + variance * (kernel + kernel.T) / 2
    centred = total - total.mean(0) - total.mean(1, keepdim=True) + total.mean()
    values, vectors = eigh(centred)
    if values[0] <= 1e-12 * total.abs().max():
        raise Missing("expected a kernel that differs between pairs of images, got a constant one")
    return _leave_one_out(values.clamp_min(0), vectors, labels, sizes)[0]
