"""Transport between source and target features. Domain similarity: Cui et al. 2018, arXiv:1806.06193.
OTCE: Tan et al. 2021, arXiv:2103.13843."""

import math

import ot
import torch

from mzlib.errors import Missing
from mzlib.selectors._inputs import class_sums, features_and_labels, matrix, numbers, score
from mzlib.selectors.nguyen2020 import conditional_entropy

MIN_IMAGES = 5  # classes with fewer are dropped, as Deshpande et al. 2021, App. C


def _source(features, means, counts):
    """Source class means [S, D] and counts [S], in float64 on the features' device."""
    means = matrix(means, "source class means").to(features.device)
    counts = numbers([MIN_IMAGES] * len(means) if counts is None else counts).to(means)
    if (
        means.shape[1] != features.shape[1]
        or counts.shape != (len(means),)
        or not ((counts >= 0).all() and 0 < counts.sum() < torch.inf)
    ):
        raise Missing(
            f"expected source class means [S, {features.shape[1]}] and S counts from 0 up, got {tuple(means.shape)} "
            f"and {tuple(counts.shape)}, take both from the same expert"
        )
    return means, counts


def domain_similarity(
    features, labels, source_class_means, source_class_counts=None, gamma: float = 0.01
) -> float:
    """How near is the target task to the data the expert was trained on, in the expert's own features?

    Cui et al. 2018, eq. 1-3: exp(−γ · EMD) between class-mean features of source and target, weighted by class
    share, Euclidean ground distance, γ = 0.01. In (0, 1].
    features [N, D], labels int [N], source_class_means [S, D], source_class_counts int [S] (None: equal, none
    dropped); one exact transport of C × S, float64; `Missing`: no class left on a side, other D, counts of no images.
    """
    features, labels, sizes = features_and_labels(features, labels)
    source, counts = _source(features, source_class_means, source_class_counts)
    means = class_sums(features, labels, len(sizes)) / sizes[:, None]
    kept, kept_source = sizes >= MIN_IMAGES, counts >= MIN_IMAGES
    if not kept.any() or not kept_source.any():
        raise Missing(
            f"expected a class with at least {MIN_IMAGES} images in source and target, got none"
        )
    distances = torch.cdist(
        means[kept], source[kept_source], compute_mode="donot_use_mm_for_euclid_dist"
    )
    shares = [(c / c.sum()).cpu().numpy() for c in (sizes[kept], counts[kept_source])]
    return score(
        math.exp(-gamma * float(ot.emd2(*shares, distances.cpu().numpy(), numItermax=1_000_000)))
    )


def otce(features, labels, source_class_means, source_class_counts=None) -> tuple[float, float]:
    """Optimal-transport conditional entropy, two terms that `otce_combine` standardises over the zoo.

    Tan et al. 2021, eq. 2-6: couple source and target features by optimal transport (squared Euclidean cost), then
    (W, H(Y_t|Y_s)) of the coupling, nats. Source images are represented by their class means, weighted by class size:
    that is what travels with an expert.
    features [N, D], labels int [N], source_class_means [S, D], source_class_counts int [S] (None: equal); one
    exact transport of S × N, float64; `Missing`: one class, other D, counts of no images.
    """
    features, labels, sizes = features_and_labels(features, labels)
    means, counts = _source(features, source_class_means, source_class_counts)
    costs = torch.cdist(means, features).square()
    shares = (counts / counts.sum()).cpu().numpy(), ot.unif(len(features))
    plan = torch.as_tensor(ot.emd(*shares, costs.cpu().numpy(), numItermax=1_000_000)).to(features)
    return score((plan * costs).sum()), score(
        conditional_entropy(class_sums(plan.T, labels, len(sizes)))
    )


def otce_combine(columns):
    """[E, 2] components -> [E] scores −(W + H)/2, each standardised over the zoo: the paper standardises over auxiliary
    tasks and learns the weights there; without such tasks the weights are equal."""
    deviations = columns.std(0)
    return -((columns - columns.mean(0)) / (deviations + (deviations == 0))).mean(1)
