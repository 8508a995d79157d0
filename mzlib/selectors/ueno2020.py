"""Feature metrics (sparsity of the features): Ueno & Kondo 2020, "A base model selection
methodology for efficient fine-tuning", ICLR 2020 submission (OpenReview BylT8RNKPH). Deshpande et
al. 2021 name the two sparsity measures no further; ours are stated below.
"""

import torch

from mzlib.selectors._checks import Array, matrix, score, unit


def zero_share(features: Array) -> float:
    """Share of exact zeros among the entries of the features; in [0, 1]. The first of our two
    measures of sparsity.

    After Ueno & Kondo 2020, who name theirs no further. features [N, D]; O(ND); `Missing`: empty or
    not finite.
    """
    features = matrix(features, "features", None)
    zeros = features == 0
    return score(zeros.double().mean())


def hoyer_sparsity(features: Array) -> float:
    """Mean over images of Hoyer's sparsity (√D − ‖f‖₁/‖f‖₂)/(√D − 1): 0 for equal entries, 1 for a
    single one.

    Hoyer 2004, JMLR 5, Sec. 3.1. Features [N, D]; rows of zeros and D = 1 count as 0. O(ND),
    float64; `Missing`: empty or not finite.
    """
    features = unit(matrix(features, "features"))
    root = features.shape[1] ** 0.5
    norms = features.norm(dim=1)
    if root == 1:
        return 0.0
    lengths = features.abs().sum(1)
    spread = lengths / norms.clamp_min(1e-300)
    sparsity = (root - spread) / (root - 1)
    each = torch.where(norms > 0, sparsity, 0.0)
    return score(each.mean())


def feature_metrics(features: Array, *, weight: float = 0.5) -> float:
    """Sparsity of the expert's features on the target images; labels are not used.

    Ueno & Kondo 2020 as restated by Deshpande et al. 2021, App. C: a linear combination of two
    sparsity measures. Ours: weight · share of zeros + (1 − weight) · Hoyer sparsity, equal weights
    by default (no fit to the answer).
    features [N, D]; O(ND), float64; `Missing`: empty or not finite.
    """
    zeros = zero_share(features)
    hoyer = hoyer_sparsity(features)
    return score(weight * zeros + (1 - weight) * hoyer)
