"""Array operations that selectors share: sums over classes, Gram matrices, their eigenvectors,
ridge systems.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import wraps
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mzlib.errors import Missing
from mzlib.selectors._checks import unit_of

MEMORY = 2**28  # bytes of results that are remembered, of 512 calls at most
LARGE = 2**22  # numbers that take longer to fetch from a GPU than it takes to decompose them
_results: OrderedDict[bytes, tuple[Any, int]] = OrderedDict()  # beside their bytes
_lock = threading.Lock()


def remembered(function: Callable) -> Callable:
    """The function, which knows its last results by the content of its arguments.

    Many selectors need the same decomposition of an expert's features, of all images and of all but
    a group. What is returned must not be changed in place.
    """

    @wraps(function)
    def recall(*arguments):
        digest = hashlib.sha256(function.__qualname__.encode())
        for argument in arguments:
            if not isinstance(argument, Tensor):
                digest.update(repr(argument).encode())
            elif argument.numel() > LARGE and argument.device.type != "cpu":
                return function(*arguments)
            else:
                facts = f"{argument.dtype} {list(argument.shape)} {argument.device}"
                digest.update(facts.encode())
                digest.update(argument.cpu().contiguous().numpy())
        key = digest.digest()
        with _lock:
            if key in _results:
                _results.move_to_end(key)
                return _results[key][0]
        result = function(*arguments)
        _remember(key, result)
        return result

    return recall


def _remember(key: bytes, result: Any) -> None:
    with _lock:
        _results[key] = result, _bytes(result)
        held = sum(map(itemgetter(1), _results.values()))
        while len(_results) > 512 or held > MEMORY:
            _, (_, size) = _results.popitem(last=False)
            held -= size


def _bytes(result: Any) -> int:
    if isinstance(result, tuple):
        return sum(map(_bytes, result))
    return getattr(result, "nbytes", 64)


def class_sums(rows: Tensor, labels: Tensor, number: int) -> Tensor:
    """Zᵀ rows: [N, k] -> [C, k] sums over the images of each class."""
    if rows.is_cuda:  # index_add_ adds in any order there, and the last digits with it
        return one_hot(labels, number).to(rows.dtype).T @ rows
    return rows.new_zeros(number, rows.shape[1]).index_add_(0, labels, rows)


def class_means(rows: Tensor, labels: Tensor, sizes: Tensor) -> Tensor:
    """[N, k] -> [C, k] means over the images of each class."""
    return class_sums(rows, labels, len(sizes)) / sizes[:, None]


def of_own_class(table: Tensor, labels: Tensor) -> Tensor:
    """The entry [N] of each row of [N, C] that belongs to the image's class."""
    return table.gather(1, labels[:, None])[:, 0]


def one_hot(labels: Tensor, number: int) -> Tensor:
    """Z ∈ {0, 1}^{N×C} in float64."""
    return torch.nn.functional.one_hot(labels, number).double()


def by_class_size(rows: Tensor, labels: Tensor, sizes: Tensor) -> Iterator:
    """Blocks [c, n, k] of the c classes with n images each, so that loops over classes become
    batches without padding; split so that one [c, s, s] Gram batch, s = min(n, k), stays under half
    a gigabyte.
    """
    order = labels.argsort(stable=True)
    starts = (sizes.cumsum(0) - sizes).long()
    for n in sizes.long().unique().tolist():
        offsets = torch.arange(n, device=rows.device)
        first = starts[sizes == n]
        index = first[:, None] + offsets
        side = min(n, rows.shape[1])
        together = max(1, 2**26 // side**2)
        for part in index.split(together):
            yield rows[order[part]]


def directions(rows: Tensor) -> Tensor:
    """Rows over their length; rows of zeros stay zero."""
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / torch.where(lengths > 0, lengths, 1.0)


def gram(rows: Tensor) -> Tensor:
    """rows rowsᵀ [N, N]; on the CPU through numpy, whose BLAS computes one triangle only (syrk):
    half the work.
    """
    if rows.device.type != "cpu":
        return rows @ rows.T
    array = rows.numpy()
    return torch.from_numpy(array @ array.T)


def smaller_gram(rows: Tensor) -> Tensor:
    """rowsᵀrows or rows rowsᵀ, whichever is smaller: they share non-zero eigenvalues and Frobenius
    norm.
    """
    n, d = rows.shape
    return gram(rows if n < d else rows.T)


def eigh(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [n] descending and eigenvectors [n, n] of a symmetric matrix; on the CPU by
    divide and conquer in numpy, which lets other threads run (scipy does not).
    """
    if symmetric.device.type != "cpu":
        values, vectors = torch.linalg.eigh(symmetric)
    else:
        pair = np.linalg.eigh(symmetric.numpy())
        values, vectors = map(torch.from_numpy, pair)
    return values.flip(0), vectors.flip(1)


@remembered
def gram_eigh(rows: Tensor) -> tuple[Tensor, Tensor]:
    """`eigh` of `smaller_gram`, of its eigenvalues those above rounding noise when N ≥ D, none
    below zero.
    """
    n, d = rows.shape
    values, vectors = eigh(smaller_gram(rows))
    if values[0] <= 0:
        raise Missing(
            "expected features whose squares are above zero, got zeros or too small ones, "
            "rescale them"
        )
    if n < d:
        return values.clamp_min(0), vectors
    kept = values > 1e-14 * values[0]
    return values[kept], vectors[:, kept]


def left_svd(rows: Tensor, number: int | None = None) -> tuple[Tensor, Tensor]:
    """rows = U diag(√v) Vᵀ -> (v [k] descending, U [N, k]) from the smaller Gram matrix, k ≤ min(N,
    D), or the `number` leading ones.
    """
    n, d = rows.shape
    values, vectors = gram_eigh(rows)
    values = values[:number]
    vectors = vectors[:, :number]
    if n < d:
        return values, vectors
    return values, rows @ (vectors / values.sqrt())


def principal(rows: Tensor, number: int, exact: int = 1024) -> tuple[Tensor, Tensor]:
    """The `number` leading pairs of `left_svd`; when both sides exceed `exact`, by Rayleigh-Ritz in
    a block Krylov space of rows rowsᵀ (fixed start, single precision): variances to 1e-3 for
    features with a spectrum, to some per cent for a flat one.
    """
    if min(rows.shape) <= exact:
        return left_svd(rows.double(), number)
    scale = unit_of(rows)
    if scale != 1:
        rows = rows / scale
    scaled = rows.float()
    start = torch.Generator().manual_seed(0)
    image = torch.randn(number + 8, rows.shape[1], generator=start)
    image = image.to(rows.device)
    basis = scaled[:, :0]  # Q [N, j], orthonormal
    images = scaled[:0]  # Qᵀ rows [j, D]
    for _ in range(4):
        block = scaled @ image.T
        block -= basis @ (basis.T @ block)
        block = torch.linalg.qr(block).Q
        # what rounding left, and orthonormality loses its square
        block -= basis @ (basis.T @ block)
        image = block.T @ scaled
        basis = torch.cat([basis, block], dim=1)
        images = torch.cat([images, image])
    inner = images @ images.T
    values, vectors = eigh(inner.double())
    leading = vectors[:, :number]
    return values[:number] * scale**2, basis.double() @ leading


def shrunk_solve(
    rows: Tensor,
    weight: Tensor | float,
    ridge: Tensor | float,
    right: Tensor,
    scatter: Tensor | None = None,
) -> Tensor:
    """(weight · rowsᵀrows + ridge · I)⁻¹ right for rows [N, D], right [D, m]; a singular matrix has
    no score.

    With N < D by Woodbury: (right − weight · rowsᵀ (weight · rows rowsᵀ + ridge · I)⁻¹ rows right)
    / ridge. scatter: the `smaller_gram` of the rows, where it is known.
    """
    n, d = rows.shape
    if n < d and not ridge > 0:
        raise Missing(
            "expected more images than features or some shrinkage, got neither, sample more images"
        )
    if scatter is None:
        scatter = smaller_gram(rows)
    system = weight * scatter
    system.diagonal().add_(ridge)
    factor, info = torch.linalg.cholesky_ex(system)
    if int(info):
        raise Missing(
            "expected an invertible (shrunk) covariance, got a singular one, sample more images"
        )
    if n >= d:
        return torch.cholesky_solve(right, factor)
    solved = torch.cholesky_solve(rows @ right, factor)
    return (right - weight * rows.T @ solved) / ridge


def tied_accuracy(scores: Tensor, labels: Tensor) -> Tensor:
    """Expected hits [N] when ties for the highest class score [N, C] are drawn at random."""
    rounding = 1e-9 * scores.abs().max()
    best = scores >= scores.amax(1, keepdim=True) - rounding
    return of_own_class(best, labels).double() / best.sum(1)
