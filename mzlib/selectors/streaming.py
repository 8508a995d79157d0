"""Scores of data sets that do not fit in memory: `update(batch)`, `merge(other)`, `compute()`, in O(D² + CD) memory.

Exact to rounding, in any order of batches and of merges. LEEP and leave-one-out ridge apply the finished table to each
image once more, so their `compute(batches)` takes the batches a second time; no single pass can do them exactly.
"""

import torch

from mzlib.errors import Missing
from mzlib.selectors._inputs import (
    class_sums,
    gram,
    label_values,
    matrix,
    need_pairs,
    probabilities,
    score,
    shrink_inverse,
)
from mzlib.selectors.bao2019 import between_share, ledoit_wolf
from mzlib.selectors.deshpande2021 import lfc_from_moments
from mzlib.selectors.nguyen2020 import conditional_entropy, log_expected_prediction, predicted
from mzlib.selectors.renggli2020 import loo_scores, loo_terms


class _ByClass:
    """Tables with one row per label value seen so far; `classes` are the sorted values."""

    def _seen(self, other) -> bool:
        """Whether `merge` has anything to add."""
        if type(other) is not type(self):
            raise Missing(f"expected another {type(self).__name__}, got {type(other).__name__}")
        return hasattr(other, "classes")

    def _fit(self, name: str, width: int) -> None:
        if hasattr(self, "classes") and getattr(self, name).shape[-1] != width:
            raise Missing(
                f"expected {getattr(self, name).shape[-1]} columns as in the batches before, got {width}"
            )

    def _put(self, classes, **tables) -> None:
        """Add the rows of `tables` [C, …] to those of the same label values."""
        if hasattr(self, "classes"):
            classes = torch.cat([self.classes, classes])
            tables = {
                name: torch.cat([getattr(self, name), table]) for name, table in tables.items()
            }
        self.classes, row = classes.unique(return_inverse=True)
        for name, table in tables.items():
            setattr(
                self,
                name,
                table.new_zeros(len(self.classes), *table.shape[1:]).index_add_(0, row, table),
            )

    def _ready(self) -> None:
        if not hasattr(self, "classes") or len(self.classes) < 2:
            raise Missing(
                "expected at least two classes in all batches together, got fewer, update with more images"
            )

    def _again(self, batches, check, images: int):
        """(check(array), rows of its labels in the tables) of every batch, which must be those of the updates."""
        for array, labels in batches:
            array = check(array)
            labels = label_values(labels, array)
            rows = torch.searchsorted(self.classes, labels).clamp_max(len(self.classes) - 1)
            images -= len(labels)
            if (self.classes[rows] != labels).any():
                raise Missing(
                    "expected the batches of the updates once more, got a label that was not among them"
                )
            yield array, rows
        if images:
            raise Missing(
                f"expected the batches of the updates once more, got {abs(images)} images {'fewer' if images > 0 else 'more'}"
            )


class _Moments(_ByClass):
    """Class sizes and sums, overall mean, and about it the scatter Σ x̃x̃ᵀ, Σ ‖x̃‖²x̃ and Σ ‖x̃‖⁴; float64."""

    eps = 0.0  # of the coarsest batch

    def update(self, features, labels):
        """Add a batch: features [B, D] (products in their own precision), labels int [B]; O(BD²). Returns self. `Missing`:
        not finite, another D than before."""
        features = matrix(features, "features", dtype=None)
        self._fit("mean", features.shape[1])
        self.eps = max(self.eps, torch.finfo(features.dtype).eps)
        values, labels, sizes = label_values(labels, features).unique(
            return_inverse=True, return_counts=True
        )
        sizes = sizes.double()
        sums = class_sums(features, labels, len(values)).double()
        mean = sums.sum(0) / len(features)
        x = features - mean.to(features.dtype)
        norms2 = torch.linalg.vector_norm(x, dim=1) ** 2
        self._add(
            values,
            sizes,
            sums,
            mean,
            gram(x.T).double(),
            (norms2 @ x).double(),
            norms2.double().square().sum(),
        )
        return self

    def merge(self, other):
        """Add what another accumulator of the same kind has seen; O(D² + CD). Returns self. `Missing`: another kind or D."""
        if self._seen(other):
            self._fit("mean", len(other.mean))
            self.eps = max(self.eps, other.eps)
            self._add(
                other.classes,
                other.sizes,
                other.sums,
                other.mean,
                other.scatter,
                other.cubes,
                other.fourth,
            )
        return self

    def _add(self, classes, sizes, sums, mean, scatter, cubes, fourth) -> None:
        n = int(sizes.sum())
        parts = [(n, mean, scatter, cubes, fourth)]
        if hasattr(self, "classes"):
            parts.append((int(self.sizes.sum()), self.mean, self.scatter, self.cubes, self.fourth))
        total = sum(part[0] for part in parts)
        self.mean = sum(part[0] * part[1] for part in parts) / total
        self.scatter, self.cubes, self.fourth = 0, 0, 0
        for n, mean, scatter, cubes, fourth in parts:  # moments about another mean: x̃ -> x̃ + δ
            delta = mean - self.mean
            along, trace, d2 = scatter @ delta, scatter.trace(), delta @ delta
            self.scatter = self.scatter + scatter.addr(delta, delta, alpha=n)
            self.cubes = self.cubes + cubes + trace * delta + 2 * along + n * d2 * delta
            self.fourth = (
                self.fourth
                + fourth
                + 4 * delta @ along
                + n * d2**2
                + 4 * cubes @ delta
                + 2 * d2 * trace
            )
        self._put(classes, sizes=sizes, sums=sums)

    def _centred_sums(self) -> torch.Tensor:
        self._ready()
        if (
            self.scatter.diagonal() <= (10 * self.eps * self.mean).square() * self.sizes.sum()
        ).all():
            raise Missing("expected features that differ between images, got the same ones for all")
        return self.sums - self.sizes[:, None] * self.mean


class StreamingLFC(_Moments):
    """`lfc` in one pass."""

    def compute(self) -> float:
        """`lfc` of all images so far; O(D²). `Missing` as `lfc`."""
        sums = self._centred_sums()
        along = self.mean @ self.scatter @ self.mean
        return lfc_from_moments(sums, self.sizes, self.mean, self.scatter.square().sum(), along)


class StreamingHScore(_Moments):
    """`hscore` in one pass."""

    def compute(self) -> float:
        """`hscore` of all images so far; O(D³). `Missing` as `hscore`."""
        sums, n, d, trace = (
            self._centred_sums(),
            self.sizes.sum(),
            len(self.mean),
            self.scatter.trace(),
        )
        alpha = ledoit_wolf(n, d, self.scatter.square().sum(), self.fourth, trace)
        solved = shrink_inverse(self.scatter, (1 - alpha) / n, alpha * trace / (n * d), sums.T)
        return between_share(alpha, sums, self.sizes, solved)


class StreamingRidgeLOO(_Moments):
    """`ridge_loo` in two passes."""

    def compute(self, batches) -> float:
        """`ridge_loo` of all images; `batches`: the (features, labels) pairs of all updates, once more, in any order;
        O(D³ + 19·NDC). `Missing` as `ridge_loo`, and for other batches."""
        sums = self._centred_sums()
        need_pairs(self.sizes)
        values, vectors = torch.linalg.eigh(self.scatter)
        values, crossed, terms = values.clamp_min(0), (sums @ vectors).T, []
        n = int(self.sizes.sum())
        for features, rows in self._again(batches, lambda array: matrix(array, "features"), n):
            self._fit("mean", features.shape[1])
            terms.append(
                torch.stack(
                    loo_terms((features - self.mean) @ vectors, values, crossed, rows, self.sizes)
                )
            )
        return loo_scores(*sum(terms), n)[0]


class StreamingNCE(_ByClass):
    """`nce` in one pass: a table of target by predicted source class."""

    hard = True

    def update(self, source_probabilities, labels):
        """Add a batch: source_probabilities [B, S], labels int [B]; O(BS), float64. Returns self. `Missing`: no
        probabilities, another S than before."""
        theta = probabilities(source_probabilities)
        self._fit("joint", theta.shape[1])
        values, labels = label_values(labels, theta).unique(return_inverse=True)
        self._put(
            values, joint=class_sums(predicted(theta) if self.hard else theta, labels, len(values))
        )
        return self

    def merge(self, other):
        """Add what another accumulator of the same kind has seen; O(CS). Returns self. `Missing`: another kind or S."""
        if self._seen(other):
            self._fit("joint", other.joint.shape[1])
            self._put(other.classes, joint=other.joint)
        return self

    def compute(self) -> float:
        """`nce` of all images so far; O(CS). `Missing`: one class."""
        self._ready()
        return score(-conditional_entropy(self.joint))


class StreamingLEEP(StreamingNCE):
    """`leep` in two passes: the table P̂(y, z), then its use on each image."""

    hard = False

    def compute(self, batches) -> float:
        """`leep` of all images; `batches`: the (source_probabilities, labels) pairs of all updates, once more, in any order;
        O(NS). `Missing`: one class, other batches."""
        self._ready()
        n = round(float(self.joint.sum()))
        return score(
            sum(
                log_expected_prediction(self.joint, *batch)
                for batch in self._again(batches, self._theta, n)
            )
            / n
        )

    def _theta(self, array):
        theta = probabilities(array)
        self._fit("joint", theta.shape[1])
        return theta
