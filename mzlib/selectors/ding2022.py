"""PACTran: Ding et al. 2022, "PACTran: PAC-Bayesian metrics for transferability estimation",
arXiv:2203.05126.
"""

import torch

from mzlib.errors import Missing
from mzlib.selectors._checks import Array, features_and_labels, score, varying
from mzlib.selectors._linalg import left_svd


def fit(x: torch.Tensor, labels: torch.Tensor, number: int, strength: float):
    """(least CE(xW + b) + ‖W‖²/(2λ) over W and b, posteriors [N, C] there); labels in 0…C−1, λ =
    strength.
    """
    parameters = x.new_zeros(x.shape[1] + 1, number, requires_grad=True)

    def logits():
        return x @ parameters[:-1] + parameters[-1]

    def loss():
        penalty = parameters[:-1].square().sum() / (2 * strength)
        return torch.nn.functional.cross_entropy(logits(), labels) + penalty

    def step():
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser = torch.optim.LBFGS(
        [parameters], max_iter=200, tolerance_grad=1e-7, line_search_fn="strong_wolfe"
    )
    with torch.enable_grad():
        optimiser.step(step)
    with torch.no_grad():
        return loss(), logits().softmax(1)


def pactran(features: Array, labels: Array, factor: float = 1.0, prior: float = 1.0) -> float:
    """PAC-Bayes bound on the loss of a linear classifier, negated: loss of the fit plus a flatness
    term.

    Ding et al. 2022, eq. 14 (PACTran-Gaussian): −[min_W CE(W, b) + ‖W‖²/(2λ) + (CD/2λ)(σ₀²) log(λ
    tr H/(CD))], λ = factor · N, σ₀² = prior/D, H the summed diagonal Hessian of the loss. Features
    minus their mean, as in the code. The paper searches factor and prior on a grid; one for each is
    our choice.
    features [N, D], labels int [N]; O(ND·min(N, D)) + O(N·min(N, D)·C) per L-BFGS step, float64;
    `Missing`: constant features.
    """
    if not (factor > 0 and prior > 0):
        raise Missing(f"expected factor and prior above 0, got {factor} and {prior}")
    features, labels, sizes = features_and_labels(features, labels)
    n, d = features.shape
    values, u = left_svd(varying(features))
    x = u * values.sqrt()  # a rotation: same loss, min(N, D) columns
    strength = factor * n
    loss, q = fit(x, labels, len(sizes), strength)
    entries = d * len(sizes)
    # tr H = Σ_i Σ_c q_ic (1 − q_ic) (‖x_i‖² + 1) + CD/λ
    hessian = ((q - q.square()).sum(1) * (x.square().sum(1) + 1)).sum() + entries / strength
    flatness = entries * prior / (2 * strength * d) * (hessian * strength / entries).log()
    return score(-(loss + flatness))
