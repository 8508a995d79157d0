"""NCTI: Wang et al. 2023, "How far pre-trained models are from neural collapse on the target
dataset", ICCV.
"""

import numpy as np
import torch

from mzlib.errors import Missing
from mzlib.selectors._checks import Array, features_and_labels, need_pairs, score, varying
from mzlib.selectors._linalg import by_class_size, class_means, of_own_class, principal
from mzlib.selectors.shao2022 import minmax


def ncti(features: Array, labels: Array) -> tuple[float, float, float]:
    """Distance from neural collapse, three terms that `ncti_combine` scales: it ranks a zoo, not an
    expert.

    Wang et al. 2023, eq. 5-9, as the authors' code: on PCA(64) features, (nuclear norm of the
    features projected to the C−1 discriminant directions, mean posterior of the true class, log Σ_c
    nuclear norm of the class's posteriors), shrinkage exp(−variance of the first 32 components),
    none when that is below 10⁻¹⁰; PCA as in `gbc`.
    features [N, D], labels int [N]; O(ND·min(N, D)), float64; `Missing`: N < 64, one image per
    class.
    """
    features, labels, sizes = features_and_labels(features, labels)
    need_pairs(sizes)
    n = len(labels)
    number = len(sizes)
    if n < 64:
        raise Missing(f"expected at least 64 images for PCA(64), got {n}, sample more images")
    values, u = principal(varying(features), 64)
    x = u * values.sqrt()
    means = class_means(x, labels, sizes)
    deviations = x - means[labels]
    variance = values[:32].sum() / (n - 1)
    s = (-variance).exp()
    s = torch.where(s > 1e-10, s, 0.0)

    def shrink(covariance):
        identity = torch.eye(len(covariance)).to(covariance)
        average = covariance.diagonal().mean()
        return (1 - s) * covariance + s * average * identity

    within = deviations.T @ deviations / n
    scale, axes = torch.linalg.eigh(shrink(within))
    if scale[-1] <= 1e-24 * values[0]:
        raise Missing(
            "expected images that differ within a class, got the same features for all of them"
        )
    kept = scale > 1e-10 * scale[-1]
    deviation = scale[kept].sqrt()
    white = axes[:, kept] / deviation  # S_W becomes I
    centres = means @ white
    points = x @ white
    halves = centres.square().sum(1) / 2
    offsets = (sizes / n).log() - halves
    logits = points @ centres.T + offsets
    posterior = logits.softmax(1)
    whole = shrink(x.T @ x / n)
    total = white.T @ whole @ white
    directions = torch.linalg.eigh(total).eigenvectors
    leading = directions[:, 1 - number :]
    blocks = by_class_size(posterior, labels, sizes)
    compact = sum(torch.linalg.svdvals(block).sum() for block in blocks)
    projected = points @ leading
    spread = torch.linalg.svdvals(projected).sum()
    sure = of_own_class(posterior, labels).mean()
    return score(spread), score(sure), score(compact.log())


def ncti_combine(columns: np.ndarray) -> np.ndarray:
    """[E, 3] components -> [E] scores: spread + accuracy − compactness, each scaled over the zoo to
    [0, 1].
    """
    return minmax(columns) @ [1.0, 1.0, -1.0]
