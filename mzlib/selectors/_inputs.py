"""What every selector asks of its arrays, checked in one place, and the array operations they share."""

import math

import numpy as np
import torch
from scipy.linalg import eigh as scipy_eigh
from scipy.linalg import eigh_tridiagonal, lapack

from mzlib.errors import Missing


def numbers(array) -> torch.Tensor:
    """Array, list or tensor of real numbers -> tensor without gradient, on its own device."""
    try:
        tensor = (
            array.detach()
            if isinstance(array, torch.Tensor)
            else torch.as_tensor(np.require(array, None, ["C", "W"]))
        )
    except (TypeError, ValueError) as error:
        raise Missing(
            f"expected an array of numbers, got {type(array).__name__}: {error}"
        ) from None
    if tensor.is_complex() or np.ma.is_masked(array):
        raise Missing(
            f"expected an array of real numbers without a mask, got {getattr(array, 'dtype', '?')} {type(array).__name__}"
        )
    return tensor


def matrix(array, name: str, dtype: torch.dtype | None = torch.float64) -> torch.Tensor:
    """[N, k] array or tensor of any number type -> finite tensor of `dtype` on its own device.

    `dtype=None` keeps float32 and float64, lifts half precision to float32 and integers to float64.
    """
    tensor = numbers(array)
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise Missing(
            f"expected {name} as a non-empty [N, D] matrix, got shape {tuple(tensor.shape)}, flatten it"
        )
    if dtype is None:
        dtype = (
            torch.float64
            if not tensor.is_floating_point() or tensor.dtype == torch.float64
            else torch.float32
        )
    tensor = tensor.to(dtype)
    low, high = tensor.aminmax()
    limit = torch.finfo(dtype).max ** 0.25  # fourth powers must not overflow
    if not (low >= -limit and high <= limit):
        bad = int((~tensor.isfinite()).sum())
        raise Missing(
            f"expected finite {name} up to {limit:.0e}, got {bad} NaN or infinite entries and "
            f"{int((tensor.abs() > limit).sum()) - int(tensor.isinf().sum())} too large, check the expert"
        )
    return tensor


def label_values(labels, like: torch.Tensor) -> torch.Tensor:
    """Integer labels [N] of any values, int64 on the device of `like` [N, …]."""
    labels = numbers(labels)
    if labels.ndim != 1 or len(labels) != len(like) or labels.is_floating_point():
        raise Missing(
            f"expected {len(like)} integer labels, one per row, got {labels.dtype} {tuple(labels.shape)}"
        )
    return labels.to(like.device, torch.int64)


def classes(labels, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(labels renamed to 0…C−1 [N], class sizes [C] in float64); two classes at least."""
    values, labels, sizes = label_values(labels, like).unique(
        return_inverse=True, return_counts=True
    )
    if len(values) < 2:
        raise Missing(
            f"expected at least two classes, got one (label {int(values[0])}), sample more classes"
        )
    return labels, sizes.double()


def features_and_labels(features, labels, dtype: torch.dtype | None = torch.float64):
    """(features [N, D], labels in 0…C−1 [N], class sizes [C]), checked."""
    features = matrix(features, "features", dtype)
    return (features, *classes(labels, features))


def probabilities(array) -> torch.Tensor:
    """Source probabilities [N, S] in float64, rows scaled to sum to one exactly."""
    theta = matrix(array, "source probabilities")
    totals = theta.sum(1, keepdim=True)
    if bool((theta < 0).any()) or bool(
        (totals - 1).abs().max() > 0.02
    ):  # 0.02: rows of a softmax kept in float16
        raise Missing(
            "expected source probabilities >= 0 with rows that sum to 1, got others, pass softmax outputs"
        )
    return theta / totals


def need_pairs(sizes: torch.Tensor) -> None:
    """Leave-one-out and within-class statistics need a class with two images."""
    if sizes.max() < 2:
        raise Missing(
            "expected a class with at least two images, got one image per class, sample more images"
        )


def class_sums(rows: torch.Tensor, labels: torch.Tensor, number: int) -> torch.Tensor:
    """Zᵀ rows: [N, k] -> [C, k] sums over the images of each class."""
    return rows.new_zeros(number, rows.shape[1]).index_add_(0, labels, rows)


def one_hot(labels: torch.Tensor, number: int) -> torch.Tensor:
    """Z ∈ {0, 1}^{N×C} in float64."""
    return torch.nn.functional.one_hot(labels, number).double()


def by_class_size(rows: torch.Tensor, labels: torch.Tensor, sizes: torch.Tensor):
    """Blocks [c, n, k] of the c classes with n images each, so that loops over classes become batches without padding;
    split so that one [c, s, s] Gram batch, s = min(n, k), stays under half a gigabyte."""
    order, starts = labels.argsort(stable=True), (sizes.cumsum(0) - sizes).long()
    for n in sizes.long().unique().tolist():
        index = starts[sizes == n][:, None] + torch.arange(n, device=rows.device)
        for part in index.split(max(1, 2**26 // min(n, rows.shape[1]) ** 2)):
            yield rows[order[part]]


def unit_of(features: torch.Tensor) -> float:
    """A power of two near the largest entry, where products of four entries could overflow or vanish; else 1."""
    largest = float(torch.stack(features.aminmax()).abs().max())
    return 1.0 if 1e-6 < largest < 1e6 or not largest else 2.0 ** math.floor(math.log2(largest))


def unit(features: torch.Tensor) -> torch.Tensor:
    """Features over `unit_of` them: no rounding."""
    scale = unit_of(features)
    return features if scale == 1 else features / scale


def directions(rows: torch.Tensor) -> torch.Tensor:
    """Rows over their length; rows of zeros stay zero."""
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / torch.where(lengths > 0, lengths, 1.0)


def varying(features: torch.Tensor) -> torch.Tensor:
    """Features minus their mean over images; all constant ones have no score."""
    centred = features - features.mean(0)
    centred -= centred.mean(0)  # what rounding left of the mean
    rounding = 10 * torch.finfo(features.dtype).eps
    size, deviation = (torch.stack(x.aminmax()).abs().max() for x in (features, centred))
    if (
        deviation <= rounding * size
        and (centred.abs().amax(0) <= rounding * features.abs().amax(0)).all()
    ):
        raise Missing("expected features that differ between images, got the same ones for all")
    return centred


def gram(rows: torch.Tensor) -> torch.Tensor:
    """rows rowsᵀ [N, N]; on the CPU through numpy, whose BLAS computes one triangle only (syrk): half the work."""
    if rows.is_cuda:
        return rows @ rows.T
    return torch.from_numpy((array := rows.numpy()) @ array.T)


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """ab; on the CPU through numpy, whose BLAS takes less time than torch's for a narrow factor."""
    return a @ b if a.is_cuda else torch.from_numpy(a.numpy() @ b.numpy())


def smaller_gram(rows: torch.Tensor) -> torch.Tensor:
    """rowsᵀrows or rows rowsᵀ, whichever is smaller: they share non-zero eigenvalues and Frobenius norm."""
    return gram(rows) if rows.shape[0] <= rows.shape[1] else gram(rows.T)


def eigh(symmetric: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues [n] descending and eigenvectors [n, n]; on the CPU by scipy's LAPACK, which takes half the time of torch's."""
    if symmetric.is_cuda:
        values, vectors = torch.linalg.eigh(symmetric)
    else:
        values, vectors = map(
            torch.from_numpy, scipy_eigh(symmetric.numpy(), driver="evd", check_finite=False)
        )
    return values.flip(0), vectors.flip(1)


def _tridiagonal(symmetric: torch.Tensor):
    """S = QTQᵀ on the CPU -> diagonal of T, what lies beside it, and the function ("N" or "T", x [n, m]) -> Qx or Qᵀx."""
    reflectors, diagonal, beside, tau, _ = lapack.dsytrd(
        symmetric.numpy(), lower=1, lwork=64 * len(symmetric)
    )

    def turn(transposed: str, x: np.ndarray) -> np.ndarray:
        x = x.copy()
        x[1:] = lapack.dormqr(
            "L", transposed, reflectors[1:, :-1], tau, x[1:], lwork=64 * (x.shape[1] + 64)
        )[0]
        return x

    return diagonal, beside, turn


def eigen_coordinates(
    symmetric: torch.Tensor, right: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues [n] descending and Vᵀ right [n, m] of a symmetric V diag(values) Vᵀ and right [n, m], both float64; on the CPU
    by T = WΛWᵀ and Wᵀ(Qᵀ right), so that V = QW is never formed."""
    if symmetric.is_cuda or len(symmetric) < 64:
        values, vectors = eigh(symmetric)
        return values, vectors.T @ right
    diagonal, beside, turn = _tridiagonal(symmetric)
    values, vectors = eigh_tridiagonal(diagonal, beside, lapack_driver="stevd")
    return torch.from_numpy(values).flip(0), torch.from_numpy(
        vectors.T @ turn("T", right.numpy())
    ).flip(0)


def leading_eigh(symmetric: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The fewest leading pairs of `eigh` that hold `share` of the trace; on the CPU the other eigenvectors are never formed."""
    small = symmetric.is_cuda or len(symmetric) < 64
    if small:
        values, vectors = eigh(symmetric)
    else:
        diagonal, beside, turn = _tridiagonal(symmetric)
        values = torch.from_numpy(eigh_tridiagonal(diagonal, beside, eigvals_only=True)).flip(0)
    values = _positive(values)
    kept = int((values.cumsum(0) < share * values.sum()).sum()) + 1
    if not small:
        last = len(values) - 1
        found = eigh_tridiagonal(
            diagonal,
            beside,
            select="i",
            select_range=(last + 1 - kept, last),
            lapack_driver="stemr",
        )[1]
        vectors = torch.from_numpy(turn("N", found)).flip(1)
    return values[:kept], vectors[:, :kept]


def left_svd(rows: torch.Tensor, share: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """rows = U diag(√v) Vᵀ -> (v [k] descending, U [N, k]), k ≤ min(N, D), from the smaller Gram matrix; all pairs, or the fewest
    leading ones that hold `share` of Σv."""
    smaller = smaller_gram(rows)
    values, vectors = leading_eigh(smaller, share) if share else eigh(smaller)
    values = _positive(values)
    if rows.shape[0] <= rows.shape[1]:
        return values, vectors
    kept = values > 1e-14 * values[0]  # beyond that a direction is rounding noise
    return values[kept], rows @ (vectors[:, kept] / values[kept].sqrt())


def _positive(values: torch.Tensor) -> torch.Tensor:
    if values[0] <= 0:
        raise Missing(
            "expected features whose squares are above zero, got zeros or too small ones, rescale them"
        )
    return values.clamp_min(0)


def class_coordinates(
    rows: torch.Tensor, labels: torch.Tensor, number: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """v [k] of `left_svd` and UᵀZ [k, C], Z the one-hot labels, without U."""
    if rows.shape[0] <= rows.shape[1]:
        values, x = eigen_coordinates(gram(rows), one_hot(labels, number))
        return _positive(values), x
    values, x = eigen_coordinates(gram(rows.T), class_sums(rows, labels, number).T)
    kept = _positive(values) > 1e-14 * values[0]
    return values[kept], x[kept] / values[kept, None].sqrt()


def principal(
    rows: torch.Tensor, number: int, exact: int = 1024
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `number` leading pairs of `left_svd`; when both sides exceed `exact`, by Rayleigh-Ritz in a block Krylov space of
    rows rowsᵀ (fixed start, single precision): variances to 1e-3 for features with a spectrum, to some per cent for a flat one."""
    if min(rows.shape) <= exact:
        values, vectors = left_svd(rows.double())
        return values[:number], vectors[:, :number]
    scale = unit_of(rows)
    scaled = (rows if scale == 1 else rows / scale).float()
    start, basis, images = torch.Generator().manual_seed(0), scaled[:, :0], scaled[:0]
    image = torch.randn(number + 8, rows.shape[1], generator=start).to(rows.device)
    for _ in range(4):
        block = _product(scaled, image.T)
        block = torch.linalg.qr(block - basis @ (basis.T @ block)).Q
        block -= basis @ (
            basis.T @ block
        )  # what rounding left: its square is what orthonormality loses
        image = _product(block.T, scaled)
        basis, images = torch.cat([basis, block], dim=1), torch.cat([images, image])
    values, vectors = eigh((images @ images.T).double())
    return values[:number] * scale**2, basis.double() @ vectors[:, :number]


def shrink_inverse(scatter: torch.Tensor, weight, ridge, right: torch.Tensor) -> torch.Tensor:
    """(weight · scatter + ridge · I)⁻¹ right; a singular matrix has no score."""
    solved, info = torch.linalg.solve_ex(
        weight * scatter + ridge * torch.eye(len(scatter)).to(scatter), right
    )
    if int(info):
        raise Missing(
            "expected an invertible (shrunk) covariance, got a singular one, sample more images"
        )
    return solved


def shrunk_solve(rows: torch.Tensor, weight, ridge, right: torch.Tensor) -> torch.Tensor:
    """(weight · rowsᵀrows + ridge · I)⁻¹ right for rows [N, D], right [D, m]; on the N×N side (Woodbury) when N < D."""
    if rows.shape[1] <= rows.shape[0]:
        return shrink_inverse(gram(rows.T), weight, ridge, right)
    if not ridge > 0:
        raise Missing(
            "expected more images than features or some shrinkage, got neither, sample more images"
        )
    return (
        right - weight * rows.T @ shrink_inverse(gram(rows), weight, ridge, rows @ right)
    ) / ridge


def tied_accuracy(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Expected hits [N] when ties for the highest of the class scores [N, C] are broken at random."""
    best = scores >= scores.max(1, keepdim=True).values - 1e-9 * scores.abs().max()
    return best.gather(1, labels[:, None])[:, 0].double() / best.sum(1)


def score(value) -> float:
    """The Python float of a score; what overflowed is missing, never a silent NaN."""
    value = float(value)
    if not math.isfinite(value):
        raise Missing(
            f"expected a finite score, got {value}: inputs too large or too small for this definition"
        )
    return value
