"""Likelihood of the target labels through the expert's own classifier.

LEEP: Nguyen et al. 2020, arXiv:2002.12462. NCE: Tran et al. 2019, arXiv:1908.08142.
"""

import torch
from torch import Tensor

from mzlib.selectors._checks import Array, classes, distributions, numbers, probabilities, score
from mzlib.selectors._linalg import class_sums

TOGETHER = 2**19  # products held at once


def expected_log_prediction(theta: Tensor, totals: Tensor, labels: Tensor, number: int) -> Tensor:
    """(1/N) Σ_i log Σ_z P̂(y_i|z) θ_iz for θ [N, S] with sums [N] of its rows, labels in 0…C−1;
    source classes that never occur contribute nothing. Products in θ's precision; what its rows
    lack of one is taken off the sums.
    """
    joint = class_sums(theta, labels, number)  # N P̂(y, z)
    tiny = torch.finfo(joint.dtype).tiny
    conditional = joint / joint.sum(0).clamp_min(tiny)  # P̂(y|z)
    rows = max(1, TOGETHER // theta.shape[1])
    expected = []
    for block, own in zip(theta.split(rows), labels.split(rows)):
        products = conditional.index_select(0, own).mul_(block)
        expected.append(products.sum(1))
    shares = torch.cat(expected).double().div_(totals)
    return shares.log_().mean()


def conditional_entropy(joint: Tensor) -> Tensor:
    """H(Y|Z) in nats of a table [C, S] of counts or masses; 0·log 0 = 0, empty columns contribute
    0.
    """
    joint = joint.double() / joint.sum()
    of_both = torch.special.entr(joint)
    of_source = torch.special.entr(joint.sum(0))
    return of_both.sum() - of_source.sum()


def _most_likely(theta: Tensor) -> Tensor:
    """The first of the largest in each row; on the CPU by numpy, ten times as fast as torch."""
    if theta.device.type != "cpu":
        return theta.argmax(1)
    return torch.from_numpy(theta.numpy().argmax(1))


def leep(source_probabilities: Array, labels: Array) -> float:
    """Log expected empirical prediction: how well do the expert's source classes predict the target
    labels?

    Nguyen et al. 2020, eq. 1-2: (1/N) Σ_i log Σ_z P̂(y_i|z) θ_iz with P̂(y, z) = (1/N) Σ_{i: y_i=y}
    θ_iz. Natural logarithm; ≤ 0. Some public code drops the logarithm: that is another score.
    source_probabilities [N, S] (softmax), labels int [N]; O(N·S), in their precision; `Missing`:
    one class, no probabilities.

    Examples:
        >>> source_probabilities = [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.1, 0.9]]
        >>> labels = [0, 0, 1, 1]
        >>> round(leep(source_probabilities, labels), 4)
        -0.3426
    """
    theta, totals = distributions(source_probabilities)
    labels, sizes = classes(labels, theta)
    value = expected_log_prediction(theta, totals, labels, len(sizes))
    return score(value)


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
        predicted = _most_likely(probabilities(theta))
    labels, sizes = classes(labels, predicted)
    columns = int(predicted.max()) + 1
    cells = labels * columns + predicted
    counts = cells.bincount(minlength=len(sizes) * columns)
    table = counts.view(-1, columns)
    return score(-conditional_entropy(table))
