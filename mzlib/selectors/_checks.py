"""What every selector asks of its arrays, checked in one place: a tensor of real numbers, or
`Missing` with the reason.
"""

import math

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from mzlib.errors import Missing

Array = Tensor | ArrayLike


def numbers(array: Array) -> Tensor:
    """Array, list or tensor of real numbers -> tensor without gradient, on its own device."""
    if isinstance(array, Tensor):
        tensor = array.detach()
    else:
        try:
            given = np.asanyarray(array, order="C")
            tensor = torch.as_tensor(given if given.flags.writeable else given.copy())
        except (RuntimeError, TypeError, ValueError) as error:
            raise Missing(
                f"expected an array of numbers, got {type(array).__name__}: {error}"
            ) from None
    is_dense = tensor.layout == torch.strided
    is_masked = isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array)
    if tensor.is_complex() or is_masked or not is_dense:
        raise Missing(
            f"expected a dense array of real numbers without a mask, got {tensor.dtype} "
            f"{type(array).__name__} ({tensor.layout})"
        )
    return tensor


def matrix(array: Array, name: str, dtype: torch.dtype | None = torch.float64) -> Tensor:
    """[N, k] array or tensor of any number type -> finite tensor of `dtype` on its own device.

    `dtype=None` keeps float32 and float64, lifts half precision to float32 and integers to float64,
    and takes what `unit` brings back into range.
    """
    given = numbers(array)
    tensor = _matrix(given, name, dtype)
    if given.dtype == torch.float32 and math.isfinite(given.sum()):
        return tensor  # no float32 is beyond a limit, and one pass is half of two in float64
    power = 1.0 if dtype is None else 0.25  # fourth powers must not overflow
    limit = torch.finfo(tensor.dtype).max ** power
    low, high = tensor.aminmax()
    if not (low >= -limit and high <= limit):
        infinite = int(tensor.isinf().sum())
        bad = infinite + int(tensor.isnan().sum())
        large = int((tensor.abs() > limit).sum()) - infinite
        raise Missing(
            f"expected finite {name} up to {limit:.0e}, got {bad} NaN or infinite entries and "
            f"{large} too large, check the expert"
        )
    return tensor


def _matrix(array: Array, name: str, dtype: torch.dtype | None) -> Tensor:
    """`matrix` of any numbers, NaN too."""
    tensor = numbers(array)
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise Missing(
            f"expected {name} as a non-empty [N, D] matrix, got shape {tuple(tensor.shape)}, "
            "flatten it"
        )
    if dtype is None:
        half = tensor.dtype in (torch.float16, torch.bfloat16)
        dtype = torch.float32 if half or tensor.dtype == torch.float32 else torch.float64
    return tensor.to(dtype)


def _words(labels: Array) -> Array:
    """Labels that are words -> their place in the alphabet; others as they are."""
    if isinstance(labels, Tensor):
        return labels
    try:
        array = np.asarray(labels)
    except (RuntimeError, ValueError):
        return labels  # `numbers` says what they are
    if array.dtype.kind in "UO" and all(isinstance(label, str) for label in array.flat):
        return np.unique(array, return_inverse=True)[1].reshape(array.shape)
    return labels


def classes(labels: Array, like: Tensor) -> tuple[Tensor, Tensor]:
    """Labels [N] or [N, 1], whole numbers of any type or words -> (renamed to 0…C−1 [N], class
    sizes [C] in float64) on the device of `like` [N, …]; two classes at least.
    """
    labels = numbers(_words(labels))
    if labels.shape == (len(like), 1):
        labels = labels[:, 0]
    labels = labels.to(like.device)
    whole = labels.long()
    if labels.shape != like.shape[:1] or labels.is_floating_point() and not (whole == labels).all():
        raise Missing(
            f"expected {len(like)} labels, one per row, whole numbers or words, got {labels.dtype} "
            f"{tuple(labels.shape)}"
        )
    labels = whole
    lowest, highest = map(int, labels.aminmax())
    if lowest == 0 and 0 < highest < len(labels):
        sizes = labels.bincount()
        if sizes.all():
            return labels, sizes.double()  # they have these names, and nothing need be sorted
    values, renamed, sizes = labels.unique(return_inverse=True, return_counts=True)
    if len(values) < 2:
        raise Missing(
            f"expected at least two classes, got one (label {int(values[0])}), sample more classes"
        )
    return renamed, sizes.double()


def features_and_labels(features: Array, labels: Array, dtype: torch.dtype | None = torch.float64):
    """(features [N, D], labels in 0…C−1 [N], class sizes [C]), checked."""
    features = matrix(features, "features", dtype)
    return (features, *classes(labels, features))


def distributions(array: Array) -> tuple[Tensor, Tensor]:
    """(source probabilities [N, S] in float32 or float64, checked, the sums [N] of their rows),
    which are one within 10⁻⁵.
    """
    theta = _matrix(array, "source probabilities", None)
    totals = theta.sum(1)
    low, high = map(float, totals.aminmax())
    near = low >= 0.98 and high <= 1.02  # rows of a softmax kept in float16
    if not (near and float(theta.amin()) >= 0):
        matrix(theta, "source probabilities", None)  # says where there are NaN
        raise Missing(
            "expected source probabilities >= 0 with rows that sum to 1, got others, "
            "pass softmax outputs"
        )
    if max(1 - low, high - 1) < 1e-5:
        return theta, totals
    theta = theta / totals[:, None]
    return theta, theta.sum(1)


def probabilities(array: Array) -> Tensor:
    """`distributions` without the sums."""
    return distributions(array)[0]


def need_positive(**options: float) -> None:
    """Options of a selector that are above 0."""
    for name, value in options.items():
        if not value > 0:
            raise Missing(f"expected {name} above 0, got {value}")


def need_pairs(sizes: Tensor) -> None:
    """Leave-one-out and within-class statistics need a class with two images."""
    if sizes.max() < 2:
        raise Missing(
            "expected a class with at least two images, got one image per class, sample more images"
        )


def unit_of(features: Tensor) -> float:
    """A power of two near the largest entry, where products of four entries could overflow or
    vanish; else 1.
    """
    largest = _largest(features)
    if 1e-6 < largest < 1e6 or largest == 0:
        return 1.0
    return 2.0 ** math.floor(math.log2(largest))


def unit(features: Tensor) -> Tensor:
    """Features over `unit_of` them: no rounding."""
    scale = unit_of(features)
    return features if scale == 1 else features / scale


def _largest(features: Tensor) -> float:
    """max |x|, without a copy."""
    low, high = features.aminmax()
    return max(float(high), -float(low))


def _largest_in(columns: Tensor) -> Tensor:
    """max |x| of each column, without a copy; `aminmax` takes ten times as long by columns."""
    return torch.maximum(columns.amax(0), -columns.amin(0))


def varying(features: Tensor) -> Tensor:
    """Features minus their mean over images; all constant ones have no score."""
    centred = features - features.mean(0)
    centred -= centred.mean(0)  # what rounding left of the mean
    rounding = 10 * torch.finfo(features.dtype).eps
    if _largest(centred[:1]) > rounding * _largest(features):
        return centred  # one image is proof enough
    if (_largest_in(centred) <= rounding * _largest_in(features)).all():
        raise Missing("expected features that differ between images, got the same ones for all")
    return centred


def score(value: Tensor | float) -> float:
    """The Python float of a score; what overflowed is missing, never a silent NaN."""
    value = float(value)
    if not math.isfinite(value):
        raise Missing(
            f"expected a finite score, got {value}: inputs too large or too small for this "
            "definition"
        )
    return value


def components(columns: Array) -> np.ndarray:
    """[E, k] components of a zoo's experts in float64; NaN for one alone, whom nothing scales.

    Values of a column that are equal up to rounding become equal: posteriors of 1, where a
    discriminant parts all images of every expert, would else be scaled to 0 and 1.
    """
    columns = np.array(columns, dtype=float)
    if len(columns) < 2:
        return np.full_like(columns, np.nan)
    span = np.ptp(columns, axis=0)
    equal = span < 1e-12 * abs(columns).max(0)  # not where one is infinite
    columns[:, equal] = columns[0, equal]
    return columns
