"""What the experts did on other targets, as a score for this one.

`prior` and `history` never look at the target: a benchmark that does not show them shows nothing
(on `thumb64` the mean rank on other targets correlates with accuracy as well as the best published
score). `neighbour_history` lets a past target vote the more, the more its scores order the experts
as this target's scores do, and adds the vote to the score's own ranks.

The same idea as in Guided Recommendation (Li et al. 2023) and TransferGraph (2024), which learn
from past fine-tunes with meta-features or a graph; here nothing is trained, the similarity of two
targets is one rank correlation. Renggli et al. 2020 call the combination of a target-blind and a
target-aware choice "hybrid".
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from mzlib.errors import MzlibError
from mzlib.selectors.registry import FEATURES, Selector
from mzlib.selectors.renggli2020 import ridge_loo_mse

OUTSIDE = -1  # position of an expert that the history does not know
LEAST = 3  # known experts: below, no order can be compared


@dataclass(frozen=True)
class History:
    """Past targets of a zoo: what fine-tuning reached, and what a score had said.

    experts: what identifies each (digest of its weights); groups: of which architecture and start
    it is; targets: their names; accuracy, scores: float [T, E], fine-tuned accuracy and the score
    `selector` of every expert on every past target. sharpness, own: see `neighbour_history`. about:
    where it comes from.
    """

    experts: tuple[str, ...]
    groups: tuple[str, ...]
    targets: tuple[str, ...]
    accuracy: np.ndarray
    scores: np.ndarray
    selector: str = "ridge_loo_mse"
    sharpness: float = 5.0
    own: float = 1.0
    about: dict = field(default_factory=dict)

    def without(self, targets: Sequence[str] = (), experts: Sequence[str] = ()) -> "History":
        """The same without some targets, and as if it had never seen some experts."""
        rows = [i for i, target in enumerate(self.targets) if target not in targets]
        columns = [i for i, expert in enumerate(self.experts) if expert not in experts]
        cells = np.ix_(rows, columns)
        return replace(
            self,
            experts=tuple(self.experts[i] for i in columns),
            groups=tuple(self.groups[i] for i in columns),
            targets=tuple(self.targets[i] for i in rows),
            accuracy=self.accuracy[cells],
            scores=self.scores[cells],
        )

    def positions(self, experts: Sequence[str]) -> np.ndarray:
        """Int [E]: where the history has each expert, `OUTSIDE` where it has not."""
        known = {expert: i for i, expert in enumerate(self.experts)}
        found = [known.get(expert, OUTSIDE) for expert in experts]
        return np.array(found, int)

    def knows(self, experts: Sequence[str]) -> int:
        """Of how many of these it holds what they reached."""
        return int((self.positions(experts) != OUTSIDE).sum())

    def save(self, path: Path) -> None:
        """As JSON of a few kilobytes."""
        table = asdict(self)
        accuracy = np.round(self.accuracy, 5)
        table["accuracy"] = accuracy.tolist()
        table["scores"] = [[float(f"{s:.6g}") for s in row] for row in self.scores]
        path.write_text(json.dumps(table) + "\n", "utf-8")

    @classmethod
    def load(cls, path: Path) -> "History":
        """Raises MzlibError for a file that is no history."""
        try:
            table = json.loads(path.read_text("utf-8"))
            for key in ("experts", "groups", "targets"):
                table[key] = tuple(table[key])
            for key in ("accuracy", "scores"):
                table[key] = np.array(table[key], float)
            loaded = cls(**table)
            shape = (len(loaded.targets), len(loaded.experts))
            if not loaded.accuracy.shape == loaded.scores.shape == shape:
                raise ValueError(f"tables that are not {shape}")
            if not np.isfinite([loaded.accuracy, loaded.scores]).all():
                raise ValueError("accuracies or scores that are missing")
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise MzlibError(
                f"expected a history of fine-tunes in {path}, got {error}; fit it again"
            ) from error
        return loaded

    def selector_entry(self) -> Selector:
        """`neighbour_history` of this history as a selector: an expert's components are its score
        and its position here, which `combine` turns into scores over the zoo.
        """

        def components(
            features: torch.Tensor, labels: torch.Tensor, digest: str
        ) -> tuple[float, float]:
            position = self.positions([digest])[0]
            return ridge_loo_mse(features, labels), float(position)

        def combine(values: np.ndarray) -> np.ndarray:
            scores, positions = values.T
            return neighbour_history(self, positions.astype(int), scores)

        needs = FEATURES | {"digest": "digest"}
        title = "Neighbours' history"
        return Selector(
            "neighbour_history", title, components, needs, "this project", combine=combine
        )


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks 1 … E along the last axis of [..., E], E for the highest; ties share the mean; NaN in a
    row makes the row NaN. (scipy's, by all pairs: a zoo is small, and this is called often.)
    """
    one = values[..., :, None]
    other = values[..., None, :]
    below = (one > other).sum(-1)
    equal = (one == other).sum(-1)
    unknown = np.isnan(values).any(-1, keepdims=True)
    shared = below + (equal + 1) / 2
    return np.where(unknown, np.nan, shared)


def shares(values: np.ndarray) -> np.ndarray:
    """`ranks` as shares in (0, 1).

    Examples:
        >>> shares(np.array([0.2, 0.9, 0.9, 0.1]))
        array([0.375, 0.75 , 0.75 , 0.125])
    """
    return (ranks(values) - 0.5) / values.shape[-1]


def history(past: History) -> np.ndarray:
    """Float [E]: mean rank of every expert of the history on the past targets, as a share.

        value = mean over past targets t of (rank of the accuracy on t - 1/2) / E

    Without past targets NaN.
    """
    return shares(past.accuracy).mean(axis=0)


def prior(past: History) -> np.ndarray:
    """Float [E]: `history` averaged over all experts of one architecture and start, which tie: what
    is known before an expert has ever been fine-tuned.
    """
    each = history(past)
    groups = np.array(past.groups)
    means = [each[groups == group].mean() for group in groups]
    return np.array(means)


def _rank_correlations(scores: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each row of [T, E] with [E]; 0 where one of them is constant."""
    a = shares(scores) - 0.5
    b = shares(score) - 0.5
    norms2 = np.square(a).sum(-1)
    norm = np.sqrt(norms2 * np.square(b).sum())
    none = np.zeros(len(a))
    return np.divide(a @ b, norm, out=none, where=norm > 0)


def neighbour_history(past: History, position: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Float [E] from the experts' positions in the history (int [E]) and their scores on this
    target (float [E], higher is better, NaN: missing), of the selector that the history holds.

        w_t   = exp(sharpness · Spearman(scores of t, scores here))
        vote  = Σ_t w_t · rank share of the accuracy on t / Σ_t w_t
        value = vote + own · rank share of the score here

    The vote is taken among the experts that the history knows; any other has its score's share in
    the vote's place, so it is ranked by its score alone. With fewer than three known experts, or no
    past target, all are. An expert without a score has none here.
    """
    own = np.full(len(score), np.nan)
    scored = np.isfinite(score)
    own[scored] = shares(score[scored])
    vote = own.copy()
    known = scored & (position != OUTSIDE)
    if known.sum() >= LEAST and len(past.targets):
        columns = position[known]
        alike = _rank_correlations(past.scores[:, columns], score[known])
        weights = np.exp(past.sharpness * alike)
        reached = shares(past.accuracy[:, columns])
        vote[known] = weights @ reached / weights.sum()
    return vote + past.own * own
