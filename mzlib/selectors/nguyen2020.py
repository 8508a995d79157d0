"""Likelihood of the target labels through the expert's own classifier.

LEEP: Nguyen et al. 2020, arXiv:2002.12462. NCE: Tran et al. 2019, arXiv:1908.08142.
"""

import torch

from mzlib.selectors._inputs import class_sums, classes, probabilities, score


def log_expected_prediction(
    joint: torch.Tensor, theta: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Σ_i log Σ_z P̂(y_i|z) θ_iz from joint [C, S] ∝ P̂(y, z); source classes that never occur contribute nothing."""
    conditional = joint / joint.sum(0).clamp_min(torch.finfo(joint.dtype).tiny)  # P̂(y|z)
    return (conditional[labels] * theta).sum(1).log().sum()


def conditional_entropy(joint: torch.Tensor) -> torch.Tensor:
    """H(Y|Z) in nats of a table [C, S] of counts or masses; 0·log 0 = 0, empty columns contribute 0."""
    joint = joint.double() / joint.sum()
    return torch.special.entr(joint).sum() - torch.special.entr(joint.sum(0)).sum()


def leep(source_probabilities, labels) -> float:
    """Log expected empirical prediction: how well do the expert's source classes predict the target labels?

    Nguyen et al. 2020, eq. 1-2: (1/N) Σ_i log Σ_z P̂(y_i|z) θ_iz with P̂(y, z) = (1/N) Σ_{i: y_i=y} θ_iz.
    Natural logarithm; ≤ 0. Some public code drops the logarithm: that is another score.
    source_probabilities [N, S] (softmax), labels int [N]; O(N·S), float64; `Missing`: one class, no probabilities.
    """
    theta = probabilities(source_probabilities)
    labels, sizes = classes(labels, theta)
    return score(
        log_expected_prediction(class_sums(theta, labels, len(sizes)), theta, labels) / len(labels)
    )


def nce(source_probabilities, labels) -> float:
    """Negative conditional entropy −H(Y|Z) of the target labels given the expert's predicted source class (nats).

    Tran et al. 2019, eq. 8 with Z = argmax_z θ_z (the first of equal maxima). In [−log C, 0].
    source_probabilities [N, S], labels int [N]; O(N·S), float64; `Missing` as `leep`.
    """
    theta = probabilities(source_probabilities)
    labels, sizes = classes(labels, theta)
    return score(-conditional_entropy(class_sums(predicted(theta), labels, len(sizes))))


def predicted(theta: torch.Tensor) -> torch.Tensor:
    """One-hot of the most probable source class [N, S]."""
    return torch.zeros_like(theta).scatter_(1, theta.argmax(1, keepdim=True), 1)
