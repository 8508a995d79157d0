"""Weighted alpha: Martin, Peng & Mahoney 2021, "Predicting trends in the quality of
state-of-the-art neural networks without access to training or testing data", Nature Communications
12, 4122.
"""

import math
from collections.abc import Iterable

import numpy as np
import torch

from mzlib.errors import Missing
from mzlib.selectors._checks import Array, matrix, numbers, score

LEAST = 50  # eigenvalues of a layer that is fitted
ZERO = 1e-5  # eigenvalues below are none


def _eigenvalues(weight: Array) -> np.ndarray:
    """Ascending eigenvalues of WᵀW of a linear layer [out, in]; of a convolution [out, in, h, w]
    those of its h·w matrices together, each times √(hw/2), as the authors' WeightWatcher does.
    """
    weight = numbers(weight)
    if weight.ndim not in (2, 4):
        raise Missing(f"expected weights [out, in] or [out, in, h, w], got {tuple(weight.shape)}")
    weight = matrix(weight.flatten(1), "weights").reshape(weight.shape)
    slices = weight.flatten(2).permute(2, 0, 1) if weight.ndim == 4 else weight[None]
    norm = len(slices) / 2 if weight.ndim == 4 else 1.0
    singular = torch.linalg.svdvals(slices)
    values = norm * singular.square()
    return np.sort(values.cpu().numpy().ravel())


def power_law(values: np.ndarray) -> float:
    """Exponent α of the tail of ascending positive values (Clauset et al. 2009): α = 1 + n/Σ
    log(x/x₀) of the n values from x₀ up, for the x₀ whose fit is nearest to them
    (Kolmogorov-Smirnov).
    """
    logs = np.log(values)
    exponents = []
    distances = []
    for start in range(len(values) - 1):
        tail = logs[start:] - logs[start]
        n = len(tail)
        total = tail.sum()
        alpha = 1 + n / total if total > 0 else np.inf
        exponents.append(alpha)
        fitted = 1 - np.exp((1 - alpha) * tail) if total > 0 else np.ones(n)
        seen = np.arange(n) / n
        distances.append(np.abs(fitted - seen).max())
    return exponents[int(np.argmin(distances))]


def weighted_alpha(weight_matrices: Iterable[Array]) -> float:
    """How heavy are the tails of the layers' spectra? From the weights alone: no image, no label.

    Martin et al. 2021, α̂ = mean over layers of α_l log₁₀ λ_l, λ the largest eigenvalue of WᵀW and
    α the exponent of the power law of its eigenvalues; here −α̂, since smaller means better
    trained. Layers with fewer than 50 eigenvalues above 10⁻⁵ are left out. weight_matrices: those
    of linear layers [out, in] and convolutions [out, in, h, w]; one SVD a matrix, float64;
    `Missing`: no layer with enough eigenvalues.
    """
    found = []
    for weight in weight_matrices:
        values = _eigenvalues(weight)
        values = values[values > ZERO]
        if len(values) >= LEAST:
            exponent = float(power_law(values))  # inf of equal values
            found.append(exponent * math.log10(values[-1]))
    if not found:
        raise Missing(
            f"expected a layer with {LEAST} eigenvalues or more, got none, too small a net"
        )
    return score(-float(np.mean(found)))
