"""RankMe: Garrido et al. 2023, "RankMe: assessing the downstream performance of pretrained
self-supervised representations by their rank", ICML, arXiv:2210.02885.
"""

import torch

from mzlib.selectors._checks import Array, matrix, score, unit
from mzlib.selectors._linalg import smaller_gram


def rankme(features: Array) -> float:
    """Effective rank of the features, without labels.

    Garrido et al. 2023, eq. 1-2: exp(−Σ_k p_k log p_k), p_k = σ_k/Σσ + 10⁻⁷, σ the singular values
    of the features as they are (no mean taken away). At most about min(N, D): it grows with the
    number of images as long as N < D, so compare experts on the same ones.
    features [N, D]; O(ND·min(N, D)), float64; `Missing`: empty, not finite, all zeros.
    """
    features = unit(matrix(features, "features"))
    gram = smaller_gram(features)
    values = torch.linalg.eigvalsh(gram)
    singular = values.clamp_min(0).sqrt()
    p = singular / singular.sum() + 1e-7
    entropy = torch.special.entr(p).sum()
    return score(entropy.exp())
