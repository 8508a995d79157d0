"""Scores of linear classifiers fitted to the features. SFDA: Shao et al. 2022, arXiv:2207.03036. NCTI: Wang et al.
2023, ICCV. ETran: Gholami et al. 2023, arXiv:2308.02027. PACTran: Ding et al. 2022, arXiv:2203.05126."""

import torch

from mzlib.errors import Missing
from mzlib.selectors._inputs import (
    by_class_size,
    class_sums,
    features_and_labels,
    left_svd,
    need_pairs,
    principal,
    score,
    shrunk_solve,
    varying,
)


def _discriminant(features, labels, sizes, shrinkage=None):
    """(posteriors [N, C] of linear discriminant analysis with covariance (1−s)S_W + s·tr(S_W)/D·I, s);
    s = max(exp(−5λ), 10⁻¹⁰), λ the largest eigenvalue of S_W by three double power steps (Shao et al., eq. 6)."""
    need_pairs(sizes)
    n, d = features.shape
    means = class_sums(features, labels, len(sizes)) / sizes[:, None]
    within = features - means[labels]
    spread = within.square().sum() / (n * d)
    if spread <= 1e-24 * features.square().mean():
        raise Missing(
            "expected images that differ within a class, got the same features for all of them"
        )
    if shrinkage is None:
        step, x = lambda v: within.T @ (within @ v) / n, within.T @ within.sum(1) / n
        for _ in range(3):
            y = torch.nn.functional.normalize(step(x), dim=0)
            x = torch.nn.functional.normalize(step(y), dim=0)
        shrinkage = (-5 * (x @ step(y))).exp().clamp_min(1e-10)
    solved = shrunk_solve(within, (1 - shrinkage) / n, shrinkage * spread, means.T)
    logits = features @ solved - (means * solved.T).sum(1) / 2 + (sizes / n).log()
    return logits.softmax(1), shrinkage


def sfda(features, labels) -> float:
    """Self-challenging Fisher space: how sure is a shrunk linear discriminant of the true classes after mixing?

    Shao et al. 2022, eq. 5-9, as the authors' code: fit, soften (softmax of the posteriors), move each image towards
    the mean of the other classes' means by one minus its confidence, fit again with that shrinkage, mean posterior of
    the true class (no logarithm). Saturates at 1.0 when N < D and the shrinkage is weak. Not scale-invariant.
    features [N, D], labels int [N]; O(ND·min(N, D)), float64; `Missing`: one image per class.
    """
    features, labels, sizes = features_and_labels(features, labels)
    posterior, shrinkage = _discriminant(features, labels, sizes)
    sure = posterior.softmax(1).gather(1, labels[:, None])
    means = class_sums(features, labels, len(sizes)) / sizes[:, None]
    others = (means.sum(0) - means) / (len(sizes) - 1)
    mixed, _ = _discriminant(
        sure * features + (1 - sure) * others[labels], labels, sizes, shrinkage
    )
    return score(mixed.gather(1, labels[:, None]).mean())


def ncti(features, labels) -> tuple[float, float, float]:
    """Distance from neural collapse, three terms that `ncti_combine` scales: it ranks a zoo, not an expert.

    Wang et al. 2023, eq. 5-9, as the authors' code: on PCA(64) features, (nuclear norm of the features projected to the
    C−1 discriminant directions, mean posterior of the true class, log Σ_c nuclear norm of the class's posteriors),
    shrinkage exp(−variance of the first 32 components), none when that is below 10⁻¹⁰; PCA as in `gbc`.
    features [N, D], labels int [N]; O(ND·min(N, D)), float64; `Missing`: N < 64, one image per class.
    """
    features, labels, sizes = features_and_labels(features, labels)
    need_pairs(sizes)
    n, number = len(labels), len(sizes)
    if n < 64:
        raise Missing(f"expected at least 64 images for PCA(64), got {n}, sample more images")
    values, u = principal(varying(features), 64)
    x = u * values.sqrt()
    means = class_sums(x, labels, number) / sizes[:, None]
    deviations = x - means[labels]
    s = (-values[:32].sum() / (n - 1)).exp()
    s = torch.where(s > 1e-10, s, 0.0)

    def shrink(covariance):
        return (1 - s) * covariance + s * covariance.diagonal().mean() * torch.eye(
            len(covariance)
        ).to(covariance)

    scale, axes = torch.linalg.eigh(shrink(deviations.T @ deviations / n))
    kept = scale > 1e-10 * scale[-1]
    if scale[-1] <= 1e-24 * values[0]:
        raise Missing(
            "expected images that differ within a class, got the same features for all of them"
        )
    white = axes[:, kept] / scale[kept].sqrt()  # S_W becomes I
    centres = means @ white
    posterior = (x @ white @ centres.T - centres.square().sum(1) / 2 + (sizes / n).log()).softmax(1)
    directions = torch.linalg.eigh(white.T @ shrink(x.T @ x / n) @ white).eigenvectors[
        :, -(number - 1) :
    ]
    compact = sum(
        torch.linalg.svdvals(block).sum() for block in by_class_size(posterior, labels, sizes)
    )
    spread = torch.linalg.svdvals(x @ white @ directions).sum()
    return score(spread), score(posterior.gather(1, labels[:, None]).mean()), score(compact.log())


def minmax(columns):
    """Each column of [E, k] scaled to [0, 1] over the experts; a column of equal values becomes 0."""
    low, high = columns.min(0), columns.max(0)
    return (columns - low) / (high - low + (high == low))


def ncti_combine(columns):
    """[E, 3] components -> [E] scores: spread + accuracy − compactness, each scaled over the zoo to [0, 1]."""
    return minmax(columns) @ [1.0, 1.0, -1.0]


def etran(features, labels) -> tuple[float, float]:
    """Energy and discriminant score, two terms that `etran_combine` scales over the zoo: it ranks a zoo, not an expert.

    Gholami et al. 2023, eq. 3-7: mean log-sum-exp of the features over the 0.5 % of images where it is least (at least
    one image: the authors' code takes none when N < 200), and the mean posterior of the true class of the shrunk linear
    discriminant (their code's eigenvectors of a non-symmetric matrix reduce it to nearest means; here it is solved).
    features [N, D], labels int [N]; O(ND·min(N, D)), float64; `Missing`: one image per class.
    """
    features, labels, sizes = features_and_labels(features, labels)
    posterior, _ = _discriminant(features, labels, sizes)
    energy = features.logsumexp(1).sort().values[: max(1, 5 * len(labels) // 1000)].mean()
    return score(energy), score(posterior.gather(1, labels[:, None]).mean())


def etran_combine(columns):
    """[E, 2] components -> [E] scores: 0.15 energy + 0.85 discriminant, each scaled over the zoo (authors' weights)."""
    return minmax(columns) @ [0.15, 0.85]


def pactran(features, labels, factor: float = 1.0, prior: float = 1.0) -> float:
    """PAC-Bayes bound on the loss of a linear classifier, negated: loss of the fit plus a flatness term.

    Ding et al. 2022, eq. 14 (PACTran-Gaussian): −[min_W CE(W, b) + ‖W‖²/(2λ) + (CD/2λ)(σ₀²) log(λ tr H/(CD))],
    λ = factor · N, σ₀² = prior/D, H the summed diagonal Hessian of the loss. Features minus their mean, as in the code.
    The paper searches factor and prior on a grid; one for each is our choice.
    features [N, D], labels int [N]; O(ND·min(N, D)) + O(N·min(N, D)·C) per L-BFGS step, float64; `Missing`: constant features.
    """
    if not (factor > 0 and prior > 0):
        raise Missing(f"expected factor and prior above 0, got {factor} and {prior}")
    features, labels, sizes = features_and_labels(features, labels)
    (n, d), number = features.shape, len(sizes)
    values, u = left_svd(varying(features))
    x = u * values.sqrt()  # a rotation: same loss, min(N, D) columns
    parameters = x.new_zeros(x.shape[1] + 1, number, requires_grad=True)
    strength, entries = factor * n, d * number
    optimiser = torch.optim.LBFGS(
        [parameters], max_iter=200, tolerance_grad=1e-7, line_search_fn="strong_wolfe"
    )

    def loss():
        logits = x @ parameters[:-1] + parameters[-1]
        return torch.nn.functional.cross_entropy(logits, labels) + parameters[
            :-1
        ].square().sum() / (2 * strength)

    def step():
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(step)
    with torch.no_grad():
        q = (x @ parameters[:-1] + parameters[-1]).softmax(1)
        hessian = ((q - q.square()).sum(1) * (x.square().sum(1) + 1)).sum() + entries / strength
        flatness = entries * prior / (2 * strength * d) * (hessian * strength / entries).log()
        return score(-(loss() + flatness))
