"""PACTran: Ding et al. 2022, "PACTran: PAC-Bayesian metrics for transferability estimation",
arXiv:2203.05126; what the paper leaves open as in the authors' code.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mzlib.selectors._checks import (
    Array,
    classes,
    components,
    features_and_labels,
    need_positive,
    probabilities,
    score,
    varying,
)
from mzlib.selectors._linalg import class_sums, left_svd, principal, remembered

TOLERANCE = 1e-7  # length of the gradient where a fit ends
NEAR = 0.01  # above this length single precision tells where to go
SINGLE = 20  # steps in single precision at most
MANY = 1024  # images, of which all principal axes would take longer than a fit
LEADING = 32  # principal axes that then have columns of their own
GRID = ((0.1, (1.0, 10.0)), (1.0, (10.0, 100.0)), (10.0, (100.0, 1000.0)))  # factor, priors


class _Loss:
    """CE(W [x 1]ᵀ) + ‖W‖²/(2λ) of W = V · scale [C, k + 1] and its derivatives by V; λ = strength,
    no penalty on the last column, the intercept. The scale of a column is halfway between one for
    all and the one that makes the diagonal of the Hessian even: it takes the fewest steps.

    On the CPU in numpy, which for matrices this thin takes half the time of torch.
    """

    def __init__(self, x: Tensor, labels: Tensor, number: int, strength: float):
        # a weaker penalty lets the same gradient stand for a longer way to go
        self.aim = 0.8 * TOLERANCE * min(1.0, len(x) / strength)
        rows = torch.nn.functional.pad(x, (0, 1), value=1.0)
        penalty = torch.full_like(rows[0], 1 / strength)
        penalty[-1] = 0
        curvature = rows.square().mean(0) / number + penalty
        level = curvature.mean()
        self.scale = level**-0.5 * (curvature / level) ** -0.3
        rows *= self.scale
        penalty *= self.scale.square()
        self.own_class = _own(labels), _own(torch.arange(len(labels), device=labels.device))
        self.double = _own(rows), _own(rows.T), _own(penalty)
        rows = rows.float()
        self.single = _own(rows), _own(rows.T.contiguous()), _single(penalty)

    def __call__(self, v: Any, exact: bool) -> tuple[float, Any, Any]:
        """(loss, class probabilities q [C, N], gradient) at V; not exact: in single precision."""
        rows, columns, penalty = self.double if exact else self.single
        v = v if exact else _single(v)
        logs = torch.as_tensor(v @ columns).log_softmax(0)
        of_class = _own(logs)[self.own_class]
        pull = penalty * v
        loss = (v * pull).sum() / 2 - of_class.sum() / len(rows)
        q = _own(logs.exp_())
        excess = _own(logs.clone())
        excess[self.own_class] -= 1
        gradient = excess @ rows
        gradient /= len(rows)
        gradient += pull
        return float(loss), q, gradient

    def newton_step(self, q: Any, gradient: Any) -> Any:
        """−H⁻¹ gradient to some per cent, or as near as the fit's end needs, by conjugate gradients
        in single precision: the loss and its gradient decide where the steps end.
        """
        rows, columns, penalty = self.single
        q = _single(q)
        norm = float((gradient**2).sum()) ** 0.5
        residual = _single(-gradient / norm)
        direction = 1 * residual
        step = 0 * residual
        squares = 1.0
        goal = max(self.aim / norm, min(0.5, norm**0.5)) ** 2
        for _ in range(1000):
            # the softmax has the derivative diag(q) − qqᵀ
            change = direction @ columns
            change -= (q * change).sum(0)
            change *= q
            bent = change @ rows
            bent /= len(rows)
            bent += penalty * direction
            length = squares / float((direction * bent).sum())
            step += length * direction
            residual -= length * bent
            before = squares
            squares = float((residual * residual).sum())
            if squares <= goal:
                break
            direction *= squares / before
            direction += residual
        return norm * step


def _own(tensor: Tensor) -> Any:
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def _single(array: Any) -> Any:
    return _own(torch.as_tensor(array).float())


@remembered
def _fit(x: Tensor, labels: Tensor, number: int, strength: float) -> tuple[float, Tensor]:
    """(least loss of `_Loss`, W [C, k + 1] there), by truncated Newton steps."""
    loss = _Loss(x, labels, number, strength)
    v = _own(x.new_zeros(number, x.shape[1] + 1))
    exact = False
    value, q, gradient = loss(v, exact)
    for steps in range(100):
        near = float((gradient**2).sum()) <= NEAR**2
        if not exact and (near or steps == SINGLE):
            exact = True
            value, q, gradient = loss(v, exact)
        if float((gradient**2).sum()) <= TOLERANCE**2:
            break
        step = loss.newton_step(q, gradient)
        rounding = 1e-13 if exact else 1e-6
        for _ in range(30):  # half as far until the loss is no higher
            there = loss(v + step, exact)
            if there[0] <= value * (1 + rounding):
                break
            step = step / 2
        v = v + step
        value, q, gradient = there
    return value, torch.as_tensor(v) * loss.scale


def _logits(x: Tensor, w: Tensor) -> Tensor:
    weights = w[:, :-1]
    return x @ weights.T + w[:, -1]


def _bounds(
    x: Tensor, labels: Tensor, number: int, entries: int, factor: float, priors: tuple
) -> list[float]:
    """Negative bounds, one a prior; x [N, k] is a rotation of the features."""
    strength = factor * len(x)
    loss, w = _fit(x, labels, number, strength)
    q = _logits(x, w).softmax(1)
    # tr H = Σ_i Σ_c q_ic (1 − q_ic) (‖x_i‖² + 1) + CD/λ
    curvature = (q - q.square()).sum(1)
    norms2 = x.square().sum(1)
    of_penalty = entries / strength
    hessian = curvature @ (norms2 + 1) + of_penalty
    flatness = (hessian / of_penalty).log()
    weight = number / (2 * strength)
    bounds = [loss + prior * weight * flatness for prior in priors]
    return [score(-bound) for bound in bounds]


def pactran(features: Array, labels: Array, factor: float = 1.0, prior: float = 1.0) -> float:
    """PAC-Bayes bound on the loss of a linear classifier, negated: loss of the fit plus a flatness
    term.

    Ding et al. 2022, eq. 14 (PACTran-Gaussian): −[min_W CE(W, b) + ‖W‖²/(2λ) + (CD/2λ)(σ₀²)
    log(λ tr H/(CD))], λ = factor · N, σ₀² = prior/D, H the summed diagonal Hessian of the loss.
    Features minus their mean, as in the code. One factor and one prior are our choice, and (1, 1)
    is not on the authors' grid: `pactran_gaussian` selects on it.
    features [N, D], labels int [N]; O(ND·min(N, D)) + O(N·min(N, D)·C) a step, float64; `Missing`:
    constant features.
    """
    need_positive(factor=factor, prior=prior)
    features, labels, sizes = features_and_labels(features, labels)
    number = len(sizes)
    x = _rotated(features)
    entries = features.shape[1] * number
    (bound,) = _bounds(x, labels, number, entries, factor, (prior,))
    return bound


def _rotated(features: Tensor) -> Tensor:
    """Features less their mean, which has the same loss in the min(N, D) columns of its principal
    axes and takes fewer steps there. Where all of these would take longer than the fit, the leading
    ones U beside what they leave, [X − XUUᵀ, XU]: X times a matrix B with BBᵀ = 1, so that the W of
    least length that gives the same logits has the same length.
    """
    centred = varying(features)
    n, d = centred.shape
    if n > MANY and d < 2 * n:
        _, u = principal(centred, LEADING, exact=256)
        axes = torch.linalg.qr(centred.T @ u).Q
        along = centred @ axes
        beyond = torch.addmm(centred, along, axes.T, alpha=-1)
        return torch.cat([beyond, along], dim=1)
    values, u = left_svd(centred)
    return u * values.sqrt()


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
    x = _rotated(features)
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randperm(len(labels), generator=generator)
    draw = draw.to(labels.device)
    by_class = labels[draw].argsort(stable=True)
    order = draw[by_class]
    fitted = order[::2]
    held_out = order[1::2]
    centred = x - x[fitted].mean(0)
    scores = []
    accuracies = []
    for factor, priors in GRID:
        scores += _bounds(x, labels, number, entries, factor, priors)
        strength = factor * len(fitted)
        _, w = _fit(centred[fitted], labels[fitted], number, strength)
        predicted = _logits(centred[held_out], w).argmax(1)
        hits = predicted == labels[held_out]
        accuracy = hits.double().mean()
        accuracies.append(score(accuracy))
    return *scores, max(accuracies)


def pactran_gaussian_combine(columns: np.ndarray) -> np.ndarray:
    """[E, 7] components -> [E] scores: those of the pair whose order of the experts agrees best
    with their held-out accuracy (Kendall's τ, the first of equal ones), as the authors select.
    """
    from scipy.stats import kendalltau  # slow to import

    *bounds, accuracy = components(columns).T
    agreement = [kendalltau(bound, accuracy).statistic for bound in bounds]
    known = np.nan_to_num(agreement, nan=-1.0)
    return bounds[known.argmax()]


def _weights(theta: Tensor, labels: Tensor, sizes: Tensor, step: Callable):
    """Ten rounds of the authors' variational updates: (prior a₀ [C, 1], a [C, S], q and log q [N,
    S], log s), q_i ∝ s_i · exp(step(a)[y_i]).
    """
    shares = sizes / sizes.sum()
    prior = shares[:, None] + 1e-10
    logs = (theta + 1e-10).log()
    q = theta
    for _ in range(10):
        a = prior + class_sums(q, labels, len(sizes))
        posterior = logs + step(a)[labels]
        log_q = posterior.log_softmax(1)
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

    def log_beta(a: Tensor) -> Tensor:
        total = a.sum(0)
        return a.lgamma().sum(0) - total.lgamma()

    def step(a: Tensor) -> Tensor:
        total = a.sum(0)
        return a.digamma() - total.digamma()

    prior, a, q, log_q, logs = _weights(theta, labels, sizes, step)
    gain = log_beta(a) - log_beta(prior)
    divergence = q * (log_q - logs)
    bound = gain.sum() - divergence.sum()
    entries = len(labels) * len(sizes)
    return score(bound / entries)


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
    rates = prior.lgamma() - a.lgamma()
    divergence = q * (log_q - logs)
    expected = theta @ a.sum(0)
    images = divergence.sum(1) + expected.log() - 1
    loss = rates.sum() + images.sum()
    entries = len(labels) * len(sizes)
    return score(-loss / entries - 1)
