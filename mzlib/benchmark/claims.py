"""The paper's claims against a suite's results, and against the paper's own numbers, by one rule.

A claim has one *primary* statement, "this mean over targets lies above (below) that threshold", in
the words of `book/paper/claims.csv`, and *secondary* ones, which are listed and decide nothing.
`claims.toml` beside this file has them all; `Findings` computes their values, each a target's mean
over seeds; means have an `interval` of `mzlib.benchmark.statistics`.

A claim is *supported* when its primary mean lies on the claimed side and the p-value (Student's t,
adjusted by Holm's method for all claims that were tested) is below .05, *not supported* when it
lies on the other side with such a p-value, else *undecided*; *not testable* with fewer than two
values.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from pandas import DataFrame, Series

from mzlib.benchmark.evaluate import seeds_of, truth
from mzlib.benchmark.results import Results, compare, complete, searched, tuned
from mzlib.benchmark.scoring import seconds_alone, zoo_costs
from mzlib.benchmark.statistics import chosen_elsewhere, holm, interval, p_value, smallest_effect
from mzlib.benchmark.suite import Suite

CLAIMS = tomllib.loads(Path(__file__).with_name("claims.toml").read_text("utf-8"))
PAPER_SELECTORS = (
    "lfc",
    "lgc",
    "leep",
    "feature_metrics",
    "domain_similarity",
    "rsa",
    "random",
)
LEVEL = 0.05
NOTHING = Series(dtype=float)


@dataclass(frozen=True)
class Statement:
    """`text`: values [n] (one for each target) have a mean above `threshold` (below, where `above`
    is false).
    """

    text: str
    values: np.ndarray
    threshold: float = 0.0
    above: bool = True
    unit: str = " points"

    @cached_property
    def mean(self) -> float:
        """Of the values; NaN without any."""
        return float(np.mean(self.values)) if len(self.values) else np.nan

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the mean."""
        return interval(self.values)

    @property
    def on_its_side(self) -> bool:
        """Whether the mean lies where the claim says."""
        return (self.mean > self.threshold) == self.above

    @property
    def holds(self) -> bool | None:
        """Whether the whole interval lies on the claimed side; None where it holds the threshold,
        or does not exist.
        """
        low, high = self.interval
        decided = low > self.threshold or high < self.threshold
        return self.on_its_side if decided else None

    def __str__(self) -> str:
        if not len(self.values):
            return f"{self.text}: not computed"
        side = f"(claimed {'above' if self.above else 'below'} {self.threshold:g})"
        if len(self.values) == 1:
            return f"{self.text}: {self.mean:.2f}{self.unit}, one value {side}"
        low, high = self.interval
        return (
            f"{self.text}: {self.mean:.2f}{self.unit} [{low:.2f}, {high:.2f}] "
            f"over {len(self.values)} {side}"
        )


def verdicts(primary: Mapping[str, Statement]) -> DataFrame:
    """Claim -> mean, low, high, values, p (adjusted by Holm), smallest_effect, verdict, of its
    primary statement.

    smallest_effect: how far from the threshold a mean would have to lie to be seen with 80 % power
    by a test of this claim alone, without Holm's correction.
    """
    statements = list(primary.values())
    rows = [(s.mean, *s.interval, len(s.values)) for s in statements]
    columns = ["mean", "low", "high", "values"]
    table = DataFrame(rows, pd.Index(list(primary), name="id"), columns)
    p = [p_value(s.values, s.threshold) for s in statements]
    table["p"] = holm(np.array(p))
    table["smallest_effect"] = [smallest_effect(s.values) for s in statements]
    sides = np.array([s.on_its_side for s in statements])
    table["verdict"] = np.where(sides, "supported", "not supported")
    table.loc[table["p"] >= LEVEL, "verdict"] = "undecided"
    table.loc[table["p"].isna(), "verdict"] = "not testable"
    table.loc[table["values"] == 0, "verdict"] = "not computed"
    return table


class Findings:
    """What the claims are made of, from the results of one suite: a value for each target that has
    one. Accuracies and gains in points (percent).
    """

    def __init__(
        self,
        results: Results,
        suite: Suite,
    ):
        self.results = results
        self.suite = suite
        self.experts = results.zoo.set_index("expert")
        self.tunes = {zoo: complete(results.finetune, suite, zoo) for zoo in ("single", "multi")}
        self._metrics = {
            zoo: compare(results, suite, zoo, protocols=["paper"], correlations=["spearman"])
            for zoo, tunes in self.tunes.items()
            if len(tunes)
        }
        self.tunes["repeat"] = complete(results.beside, suite, "repeat", beside=True)

    def mean_of(
        self,
        metric: str,
        of: Sequence[str],
        shots: str,
        zoo: str = "single",
        images: str = "25",
    ) -> Series:
        """Mean of a metric of `evaluate` over some selectors; without targets that one lacks."""
        if zoo not in self._metrics:
            return NOTHING
        table = self._metrics[zoo].query(
            "metric == @metric and shots == @shots and images_per_class == @images"
        )
        unit = 100 if metric.endswith("gain") else 1
        means = unit * table.pivot_table("value", "task", "selector")
        return means.reindex(columns=of).dropna().mean(axis=1)

    def best_of(self, metric: str, of: Sequence[str], shots: str) -> Series:
        """That of the best selector among some, for each target chosen on the others: chosen on
        all, the luckiest of equals would win.
        """
        values = {selector: self.mean_of(metric, [selector], shots) for selector in of}
        return chosen_elsewhere(DataFrame(values))

    def accuracy(self, shots: str, zoo: str = "single", as_tuned: bool = False) -> DataFrame:
        """Targets × experts: accuracy at the best rate, mean over seeds (see `best_domain`)."""
        table = truth(self.tunes[zoo]).query("shots == @shots")
        if as_tuned:
            table = table.merge(tuned(self.results, self.suite)[["task", "shots", "seed"]])
        return 100 * table.pivot_table("accuracy", "task", "expert")

    def is_generic(self, accuracy: DataFrame) -> np.ndarray:
        """Which columns are no domain experts, but experts on the generic source, of any
        architecture, or random starts: bool [E].
        """
        beside = accuracy.columns.isin(self.suite.starting_points("beside"))
        sources = self.experts["source"].reindex(accuracy.columns)
        return beside | np.array(sources == self.suite.generic)

    def best_domain(self, shots: str, as_tuned: bool = False) -> Series:
        """Accuracy of the best domain expert; as_tuned: with the seeds of `reference_tuned`."""
        table = self.accuracy(shots, as_tuned=as_tuned)
        return table.loc[:, ~self.is_generic(table)].max(axis=1)

    def best_of_multi_domain(self, shots: str, targets: Sequence[str] = ()) -> Series:
        """The same of the best domain of the multi-domain expert, on some targets (none: all); mean
        over its trainings.
        """
        trainings = [self.accuracy(shots, zoo) for zoo in ("multi", "repeat")]
        table = pd.concat(trainings, axis=1)
        of_network = table.rename(columns=lambda name: name.partition(":")[0]).T
        best = of_network.groupby(level=0).max().mean()
        return best[best.index.isin(targets)] if targets else best

    def best_other(self, shots: str) -> Series:
        """The same of the best generic expert or, where they were fine-tuned, other architecture
        and random start, at the zoo's rate.
        """
        table = self.accuracy(shots)
        generic = table.loc[:, self.is_generic(table)]
        rows = self._others.query("shots == @shots")
        others = 100 * rows.pivot_table("accuracy", "task", "expert")
        return pd.concat([generic, others], axis=1).max(axis=1)

    @cached_property
    def _others(self) -> DataFrame:
        """Fine-tunes of other architectures and from random starts."""
        runs = self.results.beside.astype({"shots": str})
        return runs[runs["expert"].isin(self.suite.starting_points("beside"))]

    def reference(self, shots: str) -> Series:
        """The same of the generic expert that the suite compares with."""
        return self.accuracy(shots).get(self.suite.reference, NOTHING)

    def reference_tuned(self, shots: str) -> Series:
        """The same at the best of its rates."""
        rows = tuned(self.results, self.suite).query("shots == @shots")
        return 100 * rows.groupby("task")["accuracy"].mean()

    def kept(self, shots: str, protocol: str, generic: bool) -> Series:
        """Test accuracy of what a protocol keeps, mean over seeds: of the domain experts, or (with
        `generic`) of all that `best_other` is picked from, with the seeds that these have.
        """
        place = ["task", "shots", "seed"]
        runs = self.tunes["single"]
        places = runs[place].merge(self._others[place]).drop_duplicates()
        runs = pd.concat([runs, self._others]).merge(places)
        return self._kept(runs, shots, protocol, generic)

    def kept_of_search(self, shots: str, protocol: str, generic: bool) -> Series:
        """The same where all were tried at the same rates (`searched`), expert and rate kept by the
        protocol; generic: of the expert that the suite compares with.
        """
        return self._kept(self._search, shots, protocol, generic)

    @cached_property
    def _search(self) -> DataFrame:
        """`searched` without the generic experts that the suite does not compare with."""
        runs = searched(self.results, self.suite)
        of_generic = runs["expert"].map(self.experts["source"]) == self.suite.generic
        return runs[~of_generic | (runs["expert"] == self.suite.reference)]

    def _kept(self, runs: DataFrame, shots: str, protocol: str, generic: bool) -> Series:
        found = {}
        table = truth(runs, protocol).query("shots == @shots")
        for task, rows in table.groupby("task"):
            wide, seeds = seeds_of(rows, protocol, self.suite.reference)
            side = self.is_generic(wide) == generic
            kept = []
            for cell in seeds.values():
                if np.isfinite(cell.criterion).all():
                    cell = cell.among(side)
                    kept.append(100 * cell.accuracy[cell.criterion.argmax()])
            found[task] = np.mean(kept) if kept else np.nan
        return Series(found, dtype=float)

    def share_above_generic(self, shots: str) -> Series:
        """Share of the domain experts that are better than every generic expert."""
        table = self.accuracy(shots)
        generic = self.is_generic(table)
        best = table.loc[:, generic].max(axis=1)
        return table.loc[:, ~generic].gt(best, axis=0).mean(axis=1)

    def relative_seconds(self, shots: str, selector: str = "", passes: bool = False) -> Series:
        """Seconds to score the zoo from 25 images a class, with this selector alone, over those to
        fine-tune the generic expert (`zoo_costs`); without a selector: to fine-tune the zoo.
        passes: those of the forward passes only, which another selector of the job had asked for.
        """
        costs = self._costs[passes]
        costs = costs[costs["stage"] == ("score the zoo" if selector else "brute force")]
        costs = costs.query("shots == @shots and selector == @selector")
        return costs.set_index("task")["relative"]

    @cached_property
    def _costs(self) -> dict[bool, DataFrame]:
        """`zoo_costs` at 25 images a class of selectors alone, and (True) of the passes only."""
        scores = self.results.scores
        scores = scores[scores["images_per_class"].astype(str) == "25"]
        alone = seconds_alone(scores)
        seconds = {False: alone, True: alone - scores["seconds"]}
        return {
            passes: zoo_costs(
                scores.assign(seconds=those), self.tunes["single"], self.suite.reference
            )
            for passes, those in seconds.items()
        }

    def _scores(self, scores: DataFrame, shots: str, of: Sequence[str]) -> DataFrame:
        """Rows of 25 images a class."""
        words = scores.astype(
            {
                "shots": str,
                "images_per_class": str,
            }
        )
        return words.query("shots == @shots and images_per_class == '25' and selector in @of")

    def agreement(self, of: Sequence[str], shots: str) -> Series:
        """Spearman's correlation over the zoo between two selectors' scores."""
        table = self._scores(self.results.scores, shots, of)
        wide = table.pivot_table("score", ["task", "expert"], "selector")
        one, other = of
        if not {one, other} <= set(wide):
            return NOTHING
        return wide.groupby("task").apply(lambda rows: rows[one].corr(rows[other], "spearman"))

    def source_accuracy(self, of: Sequence[str], small: bool | None = None) -> Series:
        """Accuracy on each source of the best of some kinds of experts of one architecture; of the
        four sources with fewest images only, or of all but these.
        """
        architecture = self.suite.architecture(self.suite.reference)
        zoo = self.results.zoo
        zoo = zoo[zoo["architecture"] == architecture]
        table = 100 * zoo.pivot_table("accuracy", "source", "pretraining")
        best = table.reindex(columns=of).dropna(axis=1, how="all").max(axis=1)
        if small is None:
            return best
        sizes = zoo.drop_duplicates("source").set_index("source")["train_images"]
        is_small = best.index.isin(sizes.nsmallest(4).index)
        return best[is_small == small]

    def spread(self, shots: str, zoo: str) -> Series:
        """Standard deviation of the accuracy over the domains of the multi-domain expert, or over
        experts of its architecture from scratch.
        """
        table = self.accuracy(shots, zoo)
        if zoo == "single":
            family = self.suite.reference.partition("-")[0]
            scratch = self.experts["pretraining"][table.columns] == "scratch"
            alike = np.array(scratch) & table.columns.str.startswith(family)
            table = table.loc[:, alike]
        return table.std(axis=1)

    def lfc(self, shots: str, of: str) -> Series:
        """LFC of the expert that turns out best (`best`), its mean over the zoo (`mean`), or
        whether no other has a higher one (`whether highest`).
        """
        accuracy = self.accuracy(shots)
        table = self._scores(self.results.scores, shots, ["lfc"])
        lfc = table.pivot_table("score", "task", "expert")
        lfc = lfc.reindex_like(accuracy).dropna(how="all")
        if of == "mean":
            return lfc.mean(axis=1)
        winners = accuracy.idxmax(axis=1)
        best = Series({task: row[winners[task]] for task, row in lfc.iterrows()})
        if of == "best":
            return best
        return best.eq(lfc.max(axis=1)).astype(float)


def _statement(findings: Findings, row: Mapping, shots: str) -> Statement:
    """A row of `claims.toml` in one regime (empty: where it has none)."""
    regime = {"shots": shots} if shots else {}
    arguments = row.get("arguments", {}) | regime
    values = getattr(findings, row["values"])(**arguments)
    if "minus" in row:
        other = dict(row["minus"])
        if "values" in other:  # another method, which has arguments of its own
            values = values - getattr(findings, other.pop("values"))(**regime | other)
        else:
            values = values - getattr(findings, row["values"])(**arguments | other)
    side = {key: row[key] for key in ("threshold", "above", "unit") if key in row}
    return Statement(row["text"].format(shots=shots), values.dropna().to_numpy(), **side)


def check_claims(results: Results, suite: Suite) -> dict[str, list[Statement]]:
    """Claim id (of the paper's `claims.csv`) -> its statements on these results, the primary one
    first; without values where the results have nothing on it.
    """
    findings = Findings(results, suite)
    found = {}
    for name, claim in CLAIMS.items():
        found[name] = [
            _statement(findings, row, shots)
            for row in claim["statements"]
            for shots in row.get("shots", [""])
        ]
    return found


def claims_table(found: Mapping[str, list[Statement]], printed: DataFrame) -> DataFrame:
    """`verdicts` of our primary statements (`check_claims`) beside those of the paper's own numbers
    (`results/benchmarks/paper_claims.csv`: claim, value): columns with the suffix `_paper`.
    """
    ours = {name: statements[0] for name, statements in found.items()}
    theirs = {}
    for name, own in ours.items():
        values = printed.loc[printed["claim"] == name, "value"]
        theirs[name] = replace(own, values=values.to_numpy())
    return verdicts(ours).join(verdicts(theirs).add_suffix("_paper"))
