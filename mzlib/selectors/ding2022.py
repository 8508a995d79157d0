"""PACTran: Ding et al. 2022, "PACTran: PAC-Bayesian metrics for transferability estimation",
arXiv:2203.05126; what the paper leaves open as in the authors' code.
"""

import numpy as np
import torch

from mzlib.errors import Missing
from mzlib.selectors._checks import (
    Array,
    classes,
    components,
    features_and_labels,
    probabilities,
    score,
    varying,
)
from mzlib.selectors._linalg import class_sums, left_svd, one_hot

GRID = ((0.1, (1.0, 10.0)), (1.0, (10.0, 100.0)), (10.0, (100.0, 1000.0)))  # factor, priors


def _fit(x: torch.Tensor, labels: torch.Tensor, number: int, strength: float):
    """(least loss CE(xW + b) + ‖W‖²/(2λ), rows -> logits there), λ = strength, by L-BFGS.

    The Hessian's diagonal is near h‖x_j‖² + 1/λ, h = (1/C)(1 − 1/C)/N, for column j: columns are
    scaled to make it even, W = scale · V.
    """
    from scipy.optimize import minimize  # slow to import

    n = len(x)
    curvature = x.square().sum(0) * (1 - 1 / number) / number / n
    scale = (1 + curvature * strength).rsqrt()
    z = x * scale
    penalty = scale.square()[:, None] / strength
    onehot = one_hot(labels, number)

    def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = torch.from_numpy(flat).to(z).view(-1, number)  # V over b
        v = parameters[:-1]
        logs = torch.addmm(parameters[-1], z, v).log_softmax(1)
        residual = (logs.exp() - onehot) / n
        gradient = torch.addmm(penalty * v, z.T, residual)
        gradient = torch.cat([gradient, residual.sum(0, keepdim=True)])
        loss = (penalty * v.square()).sum() / 2 - (logs * onehot).sum() / n
        return float(loss), gradient.cpu().numpy().ravel()

    options = dict(maxiter=500, gtol=1e-9, ftol=0.0)
    start = np.zeros((z.shape[1] + 1) * number)
    found = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options=options)
    parameters = torch.from_numpy(found.x).to(z).view(-1, number)
    return found.fun, lambda rows: (rows * scale) @ parameters[:-1] + parameters[-1]


def _bounds(x, labels, number: int, entries: int, factor: float, priors) -> tuple[list, object]:
    """Negative bounds, one a prior, and the classifier; x [N, k] is a rotation of the features."""
    strength = factor * len(x)
    loss, classifier = _fit(x, labels, number, strength)
    q = classifier(x).softmax(1)
    # tr H = Σ_i Σ_c q_ic (1 − q_ic) (‖x_i‖² + 1) + CD/λ
    hessian = ((q - q.square()).sum(1) * (x.square().sum(1) + 1)).sum() + entries / strength
    flatness = number / (2 * strength) * (hessian * strength / entries).log()
    return [score(-(loss + prior * flatness)) for prior in priors], classifier


def pactran(features: Array, labels: Array, factor: float = 1.0, prior: float = 1.0) -> float:
    """PAC-Bayes bound on the loss of a linear classifier, negated: loss of the fit plus a flatness
    term.

    Ding et al. 2022, eq. 14 (PACTran-Gaussian): −[min_W CE(W, b) + ‖W‖²/(2λ) + (CD/2λ)(σ₀²)
    log(λ tr H/(CD))], λ = factor · N, σ₀² = prior/D, H the summed diagonal Hessian of the loss.
    Features minus their mean, as in the code. One factor and one prior are our choice, and (1, 1)
    is not on the authors' grid: `pactran_gaussian` selects on it.
    features [N, D], labels int [N]; O(ND·min(N, D)) + O(N·min(N, D)·C) per L-BFGS step, float64;
    `Missing`: constant features.
    """
    if not (factor > 0 and prior > 0):
        raise Missing(f"expected factor and prior above 0, got {factor} and {prior}")
    features, labels, sizes = features_and_labels(features, labels)
    values, u = left_svd(varying(features))
    x = u * values.sqrt()  # a rotation: same loss, min(N, D) columns
    entries = features.shape[1] * len(sizes)
    return _bounds(x, labels, len(sizes), entries, factor, (prior,))[0][0]


def pactran_gaussian(features: Array, labels: Array, seed: int = 0) -> tuple[float, ...]:
    """`pactran` for each (factor, prior) of the authors' grid, and the held-out accuracy by which
    `pactran_gaussian_combine` selects one of them for the whole zoo.

    Grid: factor .1 with prior 1 and 10, 1 with 10 and 100, 10 with 100 and 1,000. Accuracy: of the
    fitted linear classifier on the other half of the images, the best of the three factors. Halves
    are drawn in proportion of classes (the authors' are not).
    features [N, D], labels int [N]; six fits as in `pactran`; `Missing` as there.
    """
    features, labels, sizes = features_and_labels(features, labels)
    number = len(sizes)
    entries = features.shape[1] * number
    values, u = left_svd(varying(features))
    x = u * values.sqrt()
    draw = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = draw.to(labels.device)[labels[draw.to(labels.device)].argsort(stable=True)]
    fitted, held_out = order[::2], order[1::2]
    mean = x[fitted].mean(0)
    scores, accuracies = [], []
    for factor, priors in GRID:
        scores += _bounds(x, labels, number, entries, factor, priors)[0]
        strength = factor * len(fitted)
        _, classifier = _fit(x[fitted] - mean, labels[fitted], number, strength)
        hits = classifier(x[held_out] - mean).argmax(1) == labels[held_out]
        accuracies.append(score(hits.double().mean()))
    return *scores, max(accuracies)


def pactran_gaussian_combine(columns: np.ndarray) -> np.ndarray:
    """[E, 7] components -> [E] scores: those of the pair whose order of the experts agrees best
    with their held-out accuracy (Kendall's τ, the first of equal ones), as the authors select.
    """
    from scipy.stats import kendalltau  # slow to import

    columns = components(columns)
    agreement = [kendalltau(column, columns[:, -1]).statistic for column in columns.T[:-1]]
    return columns[:, np.nan_to_num(agreement, nan=-1.0).argmax()]


def _weights(theta: torch.Tensor, labels: torch.Tensor, sizes: torch.Tensor, step):
    """Ten rounds of the authors' variational updates: (prior a₀ [C, 1], a [C, S], q and log q [N,
    S], log s), q_i ∝ s_i · exp(step(a)[y_i]).
    """
    prior = (sizes / sizes.sum())[:, None] + 1e-10
    logs = (theta + 1e-10).log()
    q = theta
    for _ in range(10):
        a = prior + class_sums(q, labels, len(sizes))
        log_q = (logs + step(a)[labels]).log_softmax(1)
        q = log_q.exp()
    return prior, a, q, log_q, logs


def pactran_dirichlet(source_probabilities: Array, labels: Array) -> float:
    """PAC-Bayes bound on the log loss through the expert's own classifier, negated, where each
    source class has a Dirichlet distribution over target classes.

    Ding et al. 2022, PACTran-Dirichlet as in the authors' code with α = 1, per image and class:
    [Σ_z log B(a_z)/B(a₀) − Σ_iz q_iz log(q_iz/s_iz)]/(NC), a_z = a₀ + Σ_i z_i q_iz, a₀ the class
    shares, q_iz ∝ s_iz exp(ψ(a_{y_i z}) − ψ(Σ_y a_yz)), ten rounds from q = s.
    source_probabilities [N, S], labels int [N]; O(N·S), float64; `Missing` as `leep`.
    """
    theta = probabilities(source_probabilities).double()
    labels, sizes = classes(labels, theta)
    prior, a, q, log_q, logs = _weights(
        theta, labels, sizes, lambda a: a.digamma() - a.sum(0).digamma()
    )
    before = prior.lgamma().sum() - prior.sum().lgamma()  # log B(a₀)
    after = a.lgamma().sum(0) - a.sum(0).lgamma()
    bound = (after - before).sum() - (q * (log_q - logs)).sum()
    return score(bound / (len(labels) * len(sizes)))


def pactran_gamma(source_probabilities: Array, labels: Array) -> float:
    """As `pactran_dirichlet`, with independent Gamma distributions of rate 1 for the rates at which
    source classes give target classes.

    Ding et al. 2022, PACTran-Gamma as in the authors' code with α = β = 1, per image and class:
    −[Σ_yz log Γ(a₀)/Γ(a_yz) + Σ_i (Σ_z q_iz log(q_iz/s_iz) + log Σ_z s_iz Σ_y a_yz − 1)]/(NC) − 1,
    q_iz ∝ s_iz exp ψ(a_{y_i z}).
    source_probabilities [N, S], labels int [N]; O(N·S), float64; `Missing` as `leep`.
    """
    theta = probabilities(source_probabilities).double()
    labels, sizes = classes(labels, theta)
    prior, a, q, log_q, logs = _weights(theta, labels, sizes, torch.digamma)
    rates = (prior.lgamma() - a.lgamma()).sum()
    images = ((q * (log_q - logs)).sum(1) + (theta @ a.sum(0)).log() - 1).sum()
    return score(-(rates + images) / (len(labels) * len(sizes)) - 1)
