"""Transport between source and target features. Domain similarity: Cui et al. 2018,
arXiv:1806.06193. OTCE: Tan et al. 2021, arXiv:2103.13843.
"""

import math

import numpy as np
import torch
from torch import Tensor

from mzlib.errors import Missing
from mzlib.selectors._checks import Array, components, features_and_labels, matrix, numbers, score
from mzlib.selectors._linalg import class_means, class_sums
from mzlib.selectors.nguyen2020 import conditional_entropy

MIN_IMAGES = 5  # classes with fewer are dropped, as Deshpande et al. 2021, App. C


def _source(features, means, counts) -> tuple[Tensor, Tensor]:
    """Source class means [S, D] and counts [S], in float64 on the features' device."""
    means = matrix(means, "source class means").to(features.device)
    counts = numbers([MIN_IMAGES] * len(means) if counts is None else counts).to(means)
    fits = means.shape[1] == features.shape[1] and counts.shape == (len(means),)
    if not (fits and float(counts.amin()) >= 0 and 0 < float(counts.sum()) < torch.inf):
        raise Missing(
            f"expected source class means [S, {features.shape[1]}] and S counts from 0 up, got "
            f"{tuple(means.shape)} and {tuple(counts.shape)}, take both from the same expert"
        )
    return means, counts


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    """In numpy, where POT computes and small arrays take less time."""
    return [tensor.cpu().numpy() for tensor in tensors]


def transport(weights: np.ndarray, others: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """The plan [a, b] of least total cost that moves mass `weights` [a] to `others` [b], both
    scaled to 1; exact, by POT.
    """
    import ot  # loads half of the scientific stack

    if not np.isfinite(costs).all():
        raise Missing("expected finite distances, got others: inputs too large for this definition")
    left = weights / weights.sum()
    right = others / others.sum()
    unused = dict(center_dual=False, check_marginals=False)
    return ot.emd(left, right, costs, numItermax=1_000_000, **unused)


@np.errstate(over="ignore", invalid="ignore")  # `transport` says that they are not finite
def distances(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Euclidean distances [a, b] of rows [a, D] and [b, D] by one product of matrices, from the
    first row on, which is near both: then little cancels.
    """
    origin = rows[0]
    rows = rows - origin
    others = others - origin
    squares = rows @ others.T
    squares *= -2
    squares += np.einsum("ij,ij->i", rows, rows)[:, None]
    squares += np.einsum("ij,ij->i", others, others)
    return np.sqrt(squares.clip(0))


def domain_similarity(
    features: Array,
    labels: Array,
    source_class_means: Array,
    source_class_counts: Array | None = None,
    gamma: float = 0.01,
) -> float:
    """How near is the target task to the data the expert was trained on, in the expert's own
    features?

    Cui et al. 2018, eq. 1-3: exp(−γ · EMD) between class-mean features of source and target,
    weighted by class share, Euclidean ground distance, γ = 0.01. In (0, 1].
    features [N, D], labels int [N], source_class_means [S, D], source_class_counts int [S] (None:
    equal, none dropped); one exact transport of C × S, float64, means in the features' precision;
    `Missing`: no class left on a side, other D, counts of no images.
    """
    features, labels, sizes = features_and_labels(features, labels, dtype=None)
    source, counts = _source(features, source_class_means, source_class_counts)
    means, source, sizes, counts = _arrays(
        class_means(features, labels, sizes), source, sizes, counts
    )
    kept = sizes * (sizes >= MIN_IMAGES)
    kept_source = counts * (counts >= MIN_IMAGES)
    if not (kept.any() and kept_source.any()):
        raise Missing(
            f"expected a class with at least {MIN_IMAGES} images in source and target, got none"
        )
    costs = distances(means, source)
    plan = transport(kept, kept_source, costs)
    moved = np.vdot(plan, costs)
    return score(math.exp(-gamma * moved))


def otce(
    features: Array,
    labels: Array,
    source_class_means: Array,
    source_class_counts: Array | None = None,
) -> tuple[float, float]:
    """Optimal-transport conditional entropy, two terms that `otce_combine` standardises over the
    zoo.

    Tan et al. 2021, eq. 2-6: couple source and target features by optimal transport (squared
    Euclidean cost), then (W, H(Y_t|Y_s)) of the coupling, nats. Source images are represented by
    their class means, weighted by class size: that is what travels with an expert.
    features [N, D], labels int [N], source_class_means [S, D], source_class_counts int [S] (None:
    equal); one exact transport of S × N, float64; `Missing`: one class, other D, counts of no
    images.
    """
    features, labels, sizes = features_and_labels(features, labels)
    means, counts = _source(features, source_class_means, source_class_counts)
    origin = features.mean(0)  # far from it little would be left of the differences
    costs = torch.cdist(means - origin, features - origin).square()
    each = torch.ones_like(features[:, 0])
    plan = torch.as_tensor(transport(*_arrays(counts, each, costs))).to(costs)
    joint = class_sums(plan.T, labels, len(sizes))
    moved = (plan * costs).sum()
    return score(moved), score(conditional_entropy(joint))


def otce_combine(columns: np.ndarray) -> np.ndarray:
    """[E, 2] components -> [E] scores −(W + H)/2, each standardised over the zoo: the paper
    standardises over auxiliary tasks and learns the weights there; without such tasks the weights
    are equal.
    """
    columns = components(columns)
    centred = columns - columns.mean(0)
    deviations = columns.std(0)
    deviations[np.ptp(columns, axis=0) == 0] = 1
    return -(centred / deviations).mean(1)
