"""Rank experts for labelled images without fine-tuning any: the question that this project is
about.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from mzlib.dataset import LabelledImages, few_shot
from mzlib.errors import Missing, MzlibError, one_line
from mzlib.evidence import Evidence
from mzlib.images import input_config
from mzlib.memory import keeping_freed_memory
from mzlib.reference import reference_net
from mzlib.selectors import SELECTORS, Selector
from mzlib.selectors.targets import NUMERIC, fitted, selectors_for
from mzlib.training import PAPER, Recipe, default_device
from mzlib.uncertainty import ROWS, bias, margin, replicates, zoo_scores
from mzlib.zoo import Expert
from mzlib.zoo.external import Candidate

DEFAULT_SELECTORS = ("ridge_loo_mse", "lfc", "lgc")
# Groups of the jackknife where a score takes a second, else 20: fewer make wider intervals.
GROUPS = {"pactran": 4, "pactran_gaussian": 4, "parc": 8, "nleep": 8}
ROUNDS = (2, 4, 8, 12, 16)  # images per class seen before all of them, with `until_settled`
COLUMNS = ["score", "low", "high", "rank", "rank_low", "rank_high", "score_all"]
ALONE = "this score compares experts: expected two or more that differ"
# Where score_all within the half width of the interval covers the score on all images about 95 % of
# the time: results/benchmarks/coverage.csv. Elsewhere the bias is not of order 1/N.
CORRECTED = {"lfc", "lfc_centred", "lfc_cosine", "leep", "cka"}


class Sample:
    """The training images that are scored; what cannot be read is left out for all experts alike.

    index: int64 [N] into the numbering of `source`; labels: int64 [N]; lost: indices of unreadable
    images; training: how many training images there are.
    """

    def __init__(
        self,
        source: LabelledImages,
        images_per_class: int | str | None,
        shots: int | str,
        seed: int,
        cache: Path | None,
        progress: bool,
    ):
        self.source = source
        self._regime = (shots, seed)
        self._options: dict[str, Any] = {"cache": cache, "progress": progress}
        self._pixels: dict[str, np.ndarray] = {}
        drawn = source.sample(images_per_class, seed, shots)
        _, readable = source.pixels(drawn, **self._options)
        self.lost = drawn[~readable]
        self.index = drawn[readable]
        self.labels = source.labels[self.index]
        self.kind = kind_of(source)
        self.targets, self._dropped = _targets(source, self.index)
        self.training = int((~source.held_out).sum())

    def images(self, card: dict) -> np.ndarray:
        """Uint8 [N, H, W, 3] as the expert with that card sees them."""
        config = input_config(card)
        key = json.dumps(config, sort_keys=True)
        if key not in self._pixels:
            self._pixels[key], _ = self.source.pixels(self.index, config, **self._options)
        return self._pixels[key]

    def reference_net(self, recipe: Recipe, device: torch.device) -> torch.nn.Module:
        """The small net of RSA, trained on these images as stored, files at 64 pixels."""
        shots, seed = self._regime
        index = self.source.reference(self.index, shots, seed)
        images, readable = self.source.pixels(index, **self._options)
        labels = self.source.labels[index[readable]]
        classes = len(self.source.class_names)
        return reference_net(
            images, labels, classes, recipe, flip=self.source.flip, seed=seed, device=device
        )

    def notes(self) -> list[str]:
        """What a reader should know of the images, one line each."""
        notes = list(self.source.notes)
        if len(self.lost):
            shown = ", ".join(self.source.shown(i) for i in self.lost[:5])
            more = ", …" if len(self.lost) > 5 else ""
            drawn = len(self.lost) + len(self.index)
            lost = f"{len(self.lost)} of {drawn} images could not be read"
            notes.append(f"{lost} and were skipped: {shown}{more}")
        if self._dropped:
            names = ", ".join(self._dropped)
            notes.append(f"labels without two images that bear them and two that do not: {names}")
        return notes + (self.source.overlap() if self.source.given_split else [])


def kind_of(source: LabelledImages) -> str:
    """Of `mzlib.selectors.targets.KINDS`."""
    if source.targets is None:
        return "classes"
    return "several" if source.targets.dtype == bool else "numeric"


def _targets(source: LabelledImages, index: np.ndarray) -> tuple[np.ndarray | None, list[str]]:
    """Those of these images, or None, and names of labels that these cannot be scored by."""
    if source.targets is None:
        return None, []
    targets = source.targets[index]
    if targets.dtype != bool:
        return targets, []
    fewer = np.minimum(targets.sum(0), (~targets).sum(0))
    enough = fewer >= 2
    dropped = [name for name, kept in zip(source.class_names, enough) if not kept]
    if not enough.any():
        raise MzlibError(
            f"{source.name}: expected two images that bear a label and two that do not, got none "
            "such; add images"
        )
    return targets[:, enough], dropped


class Pooled:
    """Evidence on several parts of a sample, where selectors need rows only: features and
    probabilities.
    """

    def __init__(self, parts: list[Evidence]):
        self.parts = parts

    def __getattr__(self, name: str):
        if name in ROWS:
            return torch.cat([getattr(part, name) for part in self.parts])
        if name.endswith("_kernel"):
            raise Missing("no kernel of images that were seen in rounds")
        return getattr(self.parts[0], name)


@dataclass
class Scores:
    """What one expert got, by selector: replicates [1 + G, k], or the reason why there are none;
    seconds. layer: whose gradients make the kernel of LGC; probes: the standard error of LGC from
    its random probes, 0 where it has none.
    """

    expert: str
    source: str = ""
    images: int = 0
    forward_seconds: float = 0.0
    layer: str = ""
    probes: float = 0.0
    failed: bool = False
    replicates: dict[str, np.ndarray] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class Scorer:
    """Scores experts on parts of one sample; one reference net serves them all."""

    sample: Sample
    selectors: dict[str, Selector]
    generic: str
    recipe: Recipe
    seed: int
    device: torch.device
    cache: Path | None

    @property
    def first(self) -> str:
        """The selector that orders."""
        return next(iter(self.selectors))

    @cached_property
    def reference(self) -> torch.nn.Module:
        """The small net of RSA."""
        return self.sample.reference_net(self.recipe, self.device)

    def evidence(self, expert: Expert, at: np.ndarray | None = None) -> Evidence:
        """On the images at positions `at` of the sample, by default on all."""
        images = self.sample.images(expert.card)
        labels = self.sample.labels
        targets = self.sample.targets
        if at is not None and len(at) < len(labels):
            images = images[at]
            labels = labels[at]
            targets = None if targets is None else targets[at]
        needed = {name for selector in self.selectors.values() for name in selector.needs.values()}
        return Evidence(
            expert,
            images,
            labels,
            targets=targets,
            seed=self.seed,
            device=self.device,
            cache=self.cache,
            asked=needed,
            reference=lambda: self.reference,
            is_generic=bool(self.generic) and expert.card["source"] == self.generic,
        )

    def score(self, candidate: Candidate, parts: list[np.ndarray]) -> Scores:
        """All selectors on the images of all parts; whatever one expert raises is the reason of its
        row.
        """
        result = Scores(candidate.name)
        try:
            expert = candidate.load()
            pieces = [self.evidence(expert, at) for at in parts]
        except Exception as error:  # noqa: BLE001
            result.failed = True
            result.reasons = dict.fromkeys(self.selectors, _reason(error))
            return result
        result.source = expert.card["source"]
        result.images = sum(len(at) for at in parts)
        evidence = pieces[0] if len(pieces) == 1 else Pooled(pieces)
        for name, selector in self.selectors.items():
            start = time.perf_counter()
            groups = GROUPS.get(name, 20)
            try:
                values = replicates(selector, evidence, groups, self.seed)
                result.replicates[name] = values
                if name == "lgc":
                    result.layer = evidence.last_layer
                    result.probes = evidence.last_conv_kernel_error
            except Exception as error:  # noqa: BLE001
                result.failed |= name == self.first and not isinstance(error, Missing)
                result.reasons[name] = _reason(error)
            result.seconds[name] = time.perf_counter() - start
        if "_outputs" in vars(pieces[0]):  # a forward pass was made
            result.forward_seconds = sum(piece.seconds for piece in pieces)
        return result


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, MzlibError) else one_line(error)


@dataclass
class Ranking:
    """What `rank` found.

    table: a row an expert and selector: expert, source, task, selector, score, low, high, rank,
    rank_low, rank_high, score_all, images, seconds, layer (of the gradients of LGC), reason; sorted
    by the first selector.
    low, high: 95 % interval of the grouped jackknife, of the score on other images of this number.
    score_all: what the score on all training images is expected to be, give or take as much, where
    that can be said (`CORRECTED`). rank: 1 is best, ties share the mean; rank_low to rank_high: the
    ranks that the intervals of paired differences leave open. Missing values are NaN, `reason` says
    why.
    facts: experts (how many), images (of the sample), labels (what they are), cost (share of the
    forward passes of all experts on all images), seconds, forward_seconds (by expert), notes (of
    the images), interrupted, zoo (as it was named, or "").
    """

    table: pd.DataFrame
    facts: dict
    sample: Sample
    scorer: Scorer
    experts: dict[str, Candidate]

    def evidence(self, name: str) -> Evidence:
        """What the expert of that name says about the whole sample, computed when asked for."""
        return self.scorer.evidence(self.experts[name].load())

    @property
    def tied(self) -> list[str]:
        """The experts that may be first, best first."""
        return self.first.loc[self.first["rank_low"] == 1, "expert"].tolist()

    @property
    def first(self) -> pd.DataFrame:
        """The rows of the first selector that have a score, best first."""
        return _ranked(self.table)

    @property
    def best(self) -> str:
        """The first expert's name."""
        return self.first["expert"].iloc[0]

    @property
    def verdict(self) -> str:
        """One sentence: is the first rank settled?"""
        return verdict(self.table, self.scorer.selectors)

    @property
    def layers(self) -> dict[str, int]:
        """Whose gradients LGC took -> of how many experts."""
        named = self.table.loc[self.table["layer"] != "", "layer"]
        return named.value_counts().to_dict()

    def to_frame(self) -> pd.DataFrame:
        """A copy of the table."""
        return self.table.copy()

    def summary(self) -> pd.DataFrame:
        """A row an expert: rank ("2-4" where it is not settled), source, scores, the first with its
        interval, seconds.
        """
        table = self.table
        selectors = table["selector"].unique()
        whole = [len(selectors) <= 2 or name == selectors[0] for name in table["selector"]]
        rows = zip(table.itertuples(), whole)
        texts = [_score(row, interval) for row, interval in rows]
        long = table.assign(text=texts)
        wide = long.pivot(index="expert", columns="selector", values="text")
        leading = table[table["selector"] == selectors[0]]
        ranks = [span(row) for row in leading.itertuples()]
        named = leading[["expert", "source"]]
        result = named.join(wide[selectors], on="expert")
        result.insert(0, "rank", ranks)
        seconds = table.groupby("expert")["seconds"].sum().round(2)
        return result.join(seconds, on="expert").reset_index(drop=True)

    def __str__(self) -> str:
        return f"{self.summary().to_string(index=False)}\n{self.verdict}"

    def _repr_html_(self) -> str:
        """For notebooks: the verdict above the summary, names escaped."""
        from html import escape

        return f"<p>{escape(self.verdict)}</p>{self.summary().to_html(index=False)}"

    def plot(self, ax: Any = None) -> Any:
        """Scores of the first selector with their intervals, best on top; returns the matplotlib
        Axes.
        """
        import matplotlib.pyplot as plt

        rows = self.first.iloc[::-1]
        if ax is None:
            _, ax = plt.subplots(figsize=(6, 1 + 0.25 * len(rows)))
        reach = rows["high"] - rows["score"]
        ax.errorbar(rows["score"], rows["expert"], xerr=reach.fillna(0), fmt="o")
        title = self.scorer.selectors[rows["selector"].iloc[0]].title
        ax.set_xlabel(f"{title}, with 95 % interval")
        return ax


def span(row: Any) -> str:
    """The ranks left open, as "2" or "2-4"; "-" without a score."""
    if np.isnan(row.rank_low):
        return "-"
    low = f"{row.rank_low:.0f}"
    return low if row.rank_low == row.rank_high else f"{low}-{row.rank_high:.0f}"


def _score(row: Any, with_interval: bool) -> str:
    if np.isnan(row.score):
        return "-"
    low = f"{row.low:.4g}"
    high = f"{row.high:.4g}"
    told_apart = with_interval and row.high > row.low and low != high
    return f"{row.score:.4g} [{low}, {high}]" if told_apart else f"{row.score:.4g}"


@keeping_freed_memory()
def rank(
    images: LabelledImages,
    experts: Iterable[Candidate | Expert],
    selectors: str | Iterable[str | Selector] = DEFAULT_SELECTORS,
    *,
    images_per_class: int | str | None = None,
    shots: int | str = "full",
    until_settled: int = 0,
    generic: str = "",
    recipe: Recipe = PAPER,
    seed: int = 0,
    device: torch.device | str | None = None,
    cache: Path | None = None,
    progress: bool = True,
) -> Ranking:
    """Score every expert on training images, never on test images.

    selectors: ids of `mzlib.selectors.SELECTORS`, or "all" that have a meaning for these labels
    (`mzlib.selectors.targets`); the first one orders.
    images_per_class: at most so many, or "all"; by default 25, fewer where that makes more than
    20,000.
    until_settled: k > 0 takes images in rounds and drops experts that the first selector does not
    place in the first k.
    generic: the source of the experts that count as generic; recipe: of RSA's reference net.
    cache: folder in which converted images and what experts compute are kept: other selectors on
    the same images cost no forward pass. Ctrl-C ends it with what has been scored.

    Raises MzlibError for an unknown selector, and where no expert could be scored.
    """
    start = time.perf_counter()
    known = known_selectors(selectors, kind_of(images))
    if until_settled:
        _check_rounds(next(iter(known.values())))
    zoo = [c if isinstance(c, Candidate) else _loaded(c) for c in experts]
    pixels = cache / "images" if cache else None
    evidence = cache / "evidence" if cache else None
    sample = Sample(images, images_per_class, shots, seed, pixels, progress)
    on = default_device(device)
    scorer = Scorer(sample, known, generic, recipe, seed, on, evidence)
    results: dict[str, Scores] = {}
    interrupted = False
    try:
        for scores in _scored(scorer, zoo, until_settled, seed, progress):
            results[scores.expert] = scores
    except KeyboardInterrupt:
        if not results:
            raise
        interrupted = True
    table = _table(list(results.values()), known, sample, until_settled)
    if _ranked(table).empty:
        why = table["reason"].iloc[0]
        raise MzlibError(f"expected a score for an expert at least, got none: {why}")
    facts = _facts(results, sample) | {
        "zoo": "",
        "interrupted": interrupted,
        "experts": len(zoo),
        "seconds": time.perf_counter() - start,
    }
    named = {candidate.name: candidate for candidate in zoo}
    return Ranking(table, facts, sample, scorer, named)


def _loaded(expert: Expert) -> Candidate:
    return Candidate(expert.name, lambda: expert)


def _facts(results: dict[str, Scores], sample: Sample) -> dict:
    seen = [scores.images for scores in results.values() if scores.images]
    return {
        "images": len(sample.labels),
        "labels": _described(sample),
        "notes": sample.notes(),
        "cost": sum(seen) / (len(seen) * len(sample.labels)),
        "forward_seconds": {name: scores.forward_seconds for name, scores in results.items()},
    }


def _described(sample: Sample) -> str:
    targets = sample.targets
    if targets is None:
        return f"{len(sample.source.class_names)} classes"
    if sample.kind == "several":
        return f"{targets.shape[1]} labels, any number of them an image"
    return f"numeric labels from {targets.min():.4g} to {targets.max():.4g}"


def known_selectors(
    selectors: str | Iterable[str | Selector], kind: str = "classes"
) -> dict[str, Selector]:
    """Selectors by id, each once, for labels of that kind, from ids, one text of ids between commas
    ("all": all that have a meaning), or selectors of your own; MzlibError for others.
    """
    asked = selectors.split(",") if isinstance(selectors, str) else list(selectors)
    if asked == ["all"]:
        asked = selectors_for(kind)
    known = SELECTORS | NUMERIC
    unknown = [item for item in asked if isinstance(item, str) and item not in known]
    if unknown or not asked:
        raise MzlibError(
            f"expected selectors of {', '.join(selectors_for(kind))}, got {unknown or 'none'}"
        )
    found = [known[item] if isinstance(item, str) else item for item in asked]
    return {selector.id: fitted(selector, kind) for selector in found}


def _check_rounds(first: Selector) -> None:
    if first.combine or "kernel" in first.needs:
        raise MzlibError(
            "expected a first selector of features or probabilities, one score an expert, got "
            f"{first.id}: put lfc or leep first"
        )


def _scored(
    scorer: Scorer, zoo: list[Candidate], until_settled: int, seed: int, progress: bool
) -> Iterator[Scores]:
    """Scores of every expert, again after each round for those that are still contenders."""
    labels = scorer.sample.labels
    in_rounds = 0 < until_settled < len(zoo)
    draws = [few_shot(labels, number, seed) for number in ROUNDS] if in_rounds else []
    parts: list[np.ndarray] = []
    alive = zoo
    spent: dict[str, dict[str, float]] = {}
    for seen in [*draws, np.arange(len(labels))]:
        before = np.concatenate([np.empty(0, int), *parts])
        if parts and (len(seen) == len(before) or len(alive) <= until_settled):
            continue
        parts.append(np.setdiff1d(seen, before))
        results = {}
        bar = {"desc": f"scoring {scorer.sample.source.name}", "unit": "expert", "leave": False}
        for candidate in tqdm(alive, disable=not progress, **bar):
            scores = scorer.score(candidate, parts)
            for name, seconds in spent.get(candidate.name, {}).items():
                scores.seconds[name] += seconds
            spent[candidate.name] = scores.seconds
            results[candidate.name] = scores
            yield scores
        alive = [candidate for candidate in alive if not results[candidate.name].failed]
        found = [results[candidate.name].replicates for candidate in alive]
        first = scorer.first
        if in_rounds and found and all(first in values for values in found):
            # A score that needs more images than these keeps every expert in.
            leading = np.stack([values[first][..., 0] for values in found])
            kept = contenders(leading, until_settled, len(seen) / len(labels))
            alive = [candidate for candidate, stays in zip(alive, kept) if stays]


def contenders(scores: np.ndarray, k: int, seen: float, level: float = 0.9) -> np.ndarray:
    """Bool [E]: whether the expert may still be among the first k, from replicates [E, 1 + G] on a
    share `seen` of the images: fewer than k experts are better for sure. The finite population
    corrects the margin: at seen = 1 all is known.
    """
    better = surely_better(scores, level, np.sqrt(1 - seen))
    return better.sum(1) < k


def surely_better(
    scores: np.ndarray,
    level: float = 0.95,
    shrink: float = 1.0,
    probes: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Bool [E, E]: whether j's score is above i's by more than the margin of the paired difference
    (t·s.e., grouped jackknife), from replicates [E, 1 + G]: the same images are left out for all
    experts. probes [E]: standard errors that experts do not share.
    """
    own = np.broadcast_to(probes, len(scores))
    better = []
    for row, error in zip(scores, own):
        differences = scores[:, 1:] - row[1:]
        reach = margin(differences, level, np.hypot(own, error))
        better.append(scores[:, 0] - row[0] > shrink * reach)
    return np.stack(better)


def _table(
    results: list[Scores], selectors: dict[str, Selector], sample: Sample, until_settled: int
) -> pd.DataFrame:
    """Scores with intervals and ranks; experts that were dropped early come after those that saw
    more images.
    """
    rows = []
    for selector in selectors.values():
        ahead = 0
        for images in sorted({scores.images for scores in results}, reverse=True):
            group = [scores for scores in results if scores.images == images]
            numbers = _numbers(group, selector, images / sample.training)
            if ahead:  # that they come later is all that is known
                numbers["rank"] += ahead
                numbers["rank_low"] = until_settled + 1
                numbers["rank_high"] = len(results)
            ahead += len(numbers)
            rows += [_row(scores, selector.id, sample.source.name, numbers) for scores in group]
    ids = list(selectors)
    table = pd.DataFrame(rows)
    leading = table[table["selector"] == ids[0]]
    ranks = leading.set_index("expert")["rank"]
    by_rank = table["expert"].map(ranks).fillna(np.inf)
    by_selector = table["selector"].map(ids.index)
    order = np.lexsort((by_selector, by_rank))
    return table.iloc[order].reset_index(drop=True)


def _numbers(group: list[Scores], selector: Selector, share: float) -> pd.DataFrame:
    """Score, interval and ranks of the experts with a score, a row each, on the same images, which
    are this share of all.
    """
    there = [scores for scores in group if selector.id in scores.replicates]
    if not there:
        return pd.DataFrame(columns=COLUMNS, dtype=float)
    replicated = [scores.replicates[selector.id] for scores in there]
    values = zoo_scores(selector, np.stack(replicated))
    score = values[:, 0]
    probes = np.array([s.probes if selector.id == "lgc" else 0.0 for s in there])
    reach = margin(values[:, 1:], error=probes)
    better = surely_better(values, probes=probes)
    numbers = pd.DataFrame({"score": score, "low": score - reach, "high": score + reach})
    numbers.index = pd.Index([scores.expert for scores in there])
    numbers["rank"] = numbers["score"].rank(ascending=False)
    numbers["rank_low"] = 1.0 + better.sum(1)
    numbers["rank_high"] = float(len(there)) - better.sum(0)
    known = selector.id in CORRECTED and "labels" in selector.needs.values()
    numbers["score_all"] = np.nan
    if known:
        unseen = 1 - min(share, 1)
        numbers["score_all"] = score - bias(values) * unseen
    return numbers


def _row(scores: Scores, selector: str, task: str, numbers: pd.DataFrame) -> dict:
    own = dict.fromkeys(COLUMNS, np.nan)
    if scores.expert in numbers.index:
        own = numbers.loc[scores.expert].to_dict()
    reason = scores.reasons.get(selector, "")
    if np.isnan(own["score"]) and not reason:
        reason = ALONE
    return {
        "expert": scores.expert,
        "source": scores.source,
        "task": task,
        "selector": selector,
        **own,
        "images": scores.images,
        "seconds": round(scores.seconds.get(selector, 0.0), 4),
        "layer": scores.layer if selector == "lgc" else "",
        "reason": reason,
    }


def _ranked(table: pd.DataFrame) -> pd.DataFrame:
    rows = table[table["selector"] == table["selector"].iloc[0]]
    return rows.dropna(subset="score")


def verdict(table: pd.DataFrame, selectors: Mapping[str, Selector] = SELECTORS) -> str:
    """One sentence: is the first rank settled? Of what was ranked; a second one counts what was
    not.
    """
    rows = _ranked(table)
    title = selectors[rows["selector"].iloc[0]].title
    tied = rows[rows["rank_low"] == 1]["expert"].tolist()
    without = table["expert"].nunique() - len(rows)
    missing = f" {without} of {without + len(rows)} experts have no {title}." if without else ""
    if len(rows) == 1 and without:
        return f"By {title}, only {tied[0]} could be ranked.{missing}"
    if len(tied) < 2:
        return f"By {title}, rank 1 is settled: {rows['expert'].iloc[0]}.{missing}"
    more = ", …" if len(tied) > 3 else ""
    return (
        f"By {title}, {len(tied)} experts are tied for rank 1 ({', '.join(tied[:3])}{more}): "
        f"their paired differences are within the 95 % interval.{missing}"
    )
