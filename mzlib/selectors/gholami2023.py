"""ETran: Gholami et al. 2023, "Energy-based transferability estimation", arXiv:2308.02027."""

import numpy as np
import torch

from mzlib.selectors._checks import Array, features_and_labels, matrix, score
from mzlib.selectors._linalg import of_own_class
from mzlib.selectors.shao2022 import minmax, posteriors


def etran_energy(features: Array) -> float:
    """ETran's energy alone, which needs no label: mean log-sum-exp of the features over the 0.5 %
    of images where it is least.

    Gholami et al. 2023, eq. 3-4; at least one image (the authors' code takes none when N < 200).
    Not scale-invariant. features [N, D]; O(ND), float64; `Missing`: empty or not finite.
    """
    features = matrix(features, "features")
    blocks = features.split(1024)  # a whole one has a temporary of the features' size
    energies = torch.cat([block.logsumexp(1) for block in blocks])
    share = 5 * len(energies) // 1000
    number = max(1, share)
    least = energies.topk(number, largest=False).values
    return score(least.mean())


def etran(features: Array, labels: Array) -> tuple[float, float]:
    """Energy and discriminant score, two terms that `etran_combine` scales over the zoo: it ranks a
    zoo, not an expert.

    Gholami et al. 2023, eq. 3-7: mean log-sum-exp of the features over the 0.5 % of images where it
    is least (at least one image: the authors' code takes none when N < 200), and the mean posterior
    of the true class of the shrunk linear discriminant (their code's eigenvectors of a
    non-symmetric matrix reduce it to nearest means; here it is solved).
    features [N, D], labels int [N]; O(ND·min(N, D)), float64; `Missing`: one image per class.
    """
    features, labels, sizes = features_and_labels(features, labels)
    posterior, _ = posteriors(features, labels, sizes)
    sure = of_own_class(posterior, labels)
    energy = etran_energy(features)
    return energy, score(sure.mean())


def etran_combine(columns: np.ndarray) -> np.ndarray:
    """[E, 2] components -> [E] scores: 0.15 energy + 0.85 discriminant, each scaled over the zoo
    (authors' weights).
    """
    return minmax(columns) @ [0.15, 0.85]
