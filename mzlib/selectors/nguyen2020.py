"""Likelihood of the target labels through the expert's own classifier.

LEEP: Nguyen et al. 2020, arXiv:2002.12462. NCE: Tran et al. 2019, arXiv:1908.08142.
"""

from collections.abc import Iterator

import torch

from mzlib.selectors._checks import Array, classes, numbers, probabilities, score
from mzlib.selectors._linalg import class_sums

BLOCK = 4096  # rows of probabilities that are lifted to float64 at once


def _blocks(theta: torch.Tensor, labels: torch.Tensor) -> Iterator[tuple]:
    """Rows of θ in float64, scaled to sum to one exactly, with their labels."""
    for rows, part in zip(theta.split(BLOCK), labels.split(BLOCK)):
        rows = rows.double()
        yield rows / rows.sum(1, keepdim=True), part


def expected_log_prediction(theta: torch.Tensor, labels: torch.Tensor, number: int) -> float:
    """(1/N) Σ_i log Σ_z P̂(y_i|z) θ_iz for θ [N, S], labels in 0…C−1; source classes that never
    occur contribute nothing.
    """
    joint = sum(
        class_sums(rows, part, number) for rows, part in _blocks(theta, labels)
    )  # N P̂(y, z)
    conditional = joint / joint.sum(0).clamp_min(torch.finfo(joint.dtype).tiny)  # P̂(y|z)
    logs = ((conditional[part] * rows).sum(1).log().sum() for rows, part in _blocks(theta, labels))
    return float(sum(logs)) / len(labels)


def conditional_entropy(joint: torch.Tensor) -> torch.Tensor:
    """H(Y|Z) in nats of a table [C, S] of counts or masses; 0·log 0 = 0, empty columns contribute
    0.
    """
    joint = joint.double() / joint.sum()
    return torch.special.entr(joint).sum() - torch.special.entr(joint.sum(0)).sum()


def leep(source_probabilities: Array, labels: Array) -> float:
    """Log expected empirical prediction: how well do the expert's source classes predict the target
    labels?

    Nguyen et al. 2020, eq. 1-2: (1/N) Σ_i log Σ_z P̂(y_i|z) θ_iz with P̂(y, z) = (1/N) Σ_{i: y_i=y}
    θ_iz. Natural logarithm; ≤ 0. Some public code drops the logarithm: that is another score.
    source_probabilities [N, S] (softmax), labels int [N]; O(N·S), sums in float64; `Missing`: one
    class, no probabilities.
    """
    theta = probabilities(source_probabilities)
    labels, sizes = classes(labels, theta)
    return score(expected_log_prediction(theta, labels, len(sizes)))


def nce(source_probabilities: Array, labels: Array) -> float:
    """Negative conditional entropy −H(Y|Z) of the target labels given the expert's predicted source
    class (nats).

    Tran et al. 2019, eq. 8 with Z = argmax_z θ_z (the first of equal maxima). In [−log C, 0].
    source_probabilities [N, S], or the predicted classes themselves, int [N]; labels int [N];
    O(N·S); `Missing` as `leep`.
    """
    theta = numbers(source_probabilities)
    if theta.ndim == 1 and not theta.is_floating_point():
        predicted = theta.unique(return_inverse=True)[1]
    else:
        predicted = probabilities(theta).argmax(1)
    labels, sizes = classes(labels, predicted)
    shape = len(sizes), int(predicted.max()) + 1
    counts = (labels * shape[1] + predicted).bincount(minlength=shape[0] * shape[1])
    return score(-conditional_entropy(counts.view(shape)))
