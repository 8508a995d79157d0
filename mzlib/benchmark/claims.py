"""The paper's claims against a suite's results: estimates with intervals, and a verdict by one rule.

A claim is a list of statements "this mean lies above (below) that threshold". Every mean is over targets (each the mean of
its seeds), with a 95 % bootstrap interval over them. A statement holds when the whole interval lies on its side, fails when
the whole interval lies on the other, and is open otherwise or where the results do not have it. A claim is *supported* when all its
statements hold, *not supported* when one fails, *undecided* otherwise, and *not computed* when no statement has results.
Thresholds that the paper leaves to words ("few", "close to") are named where they stand.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from mzlib.benchmark.evaluate import truth
from mzlib.benchmark.results import Results, compare, complete, tuned
from mzlib.benchmark.scoring import of_one_machine, seconds_alone
from mzlib.benchmark.statistics import interval
from mzlib.benchmark.suite import Suite

PAPER_SELECTORS = ("lfc", "lgc", "leep", "feature_metrics", "domain_similarity", "rsa", "random")
REGIMES = ("full", "20")
FEW = 0.2  # "only a few members": the paper's own examples are 1 to 10 of 28, a median of 4
CLOSE = 3.0  # points: "close to" in the claim on Multi-BN; the paper's examples are within 0.6
ENOUGH = 0.5  # points: what more images may add while 25 a class are "enough"


@dataclass(frozen=True)
class Statement:
    """`text`: values [n] (one for each target) have a mean above `threshold` (below, where `above` is false)."""

    text: str
    values: np.ndarray
    threshold: float = 0.0
    above: bool = True
    unit: str = " points"

    @cached_property
    def mean(self) -> float:
        return float(np.mean(self.values)) if len(self.values) else np.nan

    @cached_property
    def interval(self) -> tuple[float, float]:
        return interval(self.values)

    @property
    def holds(self) -> bool | None:
        low, high = self.interval
        if low > self.threshold or high < self.threshold:
            return bool(low > self.threshold) == self.above
        return None  # also for NaN: fewer than two targets

    def __str__(self) -> str:
        if not len(self.values):
            return f"{self.text}: not computed"
        low, high = self.interval
        return (
            f"{self.text}: {self.mean:.2f}{self.unit} [{low:.2f}, {high:.2f}] over {len(self.values)} "
            f"(claimed {'above' if self.above else 'below'} {self.threshold:g})"
        )


def verdict(statements: list[Statement]) -> str:
    """`supported`, `not supported`, `undecided` or `not computed`, by the rule of this module."""
    if not any(len(s.values) for s in statements):
        return "not computed"
    holds = [s.holds for s in statements]
    return "not supported" if False in holds else "supported" if all(holds) else "undecided"


class Findings:
    """What the claims are made of, from the results of one suite. Accuracies and gains in points (percent)."""

    def __init__(self, results: Results, suite: Suite):
        self.results, self.suite = results, suite
        self.experts = results.zoo.set_index("expert")
        self.tunes = {zoo: complete(results.finetune, suite, zoo) for zoo in ("single", "multi")}
        self._best = {zoo: truth(tunes) for zoo, tunes in self.tunes.items()}
        self._metrics = {
            zoo: compare(results, suite, zoo, protocols=["paper"], correlations=["spearman"])
            for zoo in self.tunes
            if len(self.tunes[zoo])
        }

    def metric(
        self, name: str, selector: str, shots: str, zoo: str = "single", images: str = "25"
    ) -> pd.Series:
        """Target -> mean over seeds of a metric of `evaluate`; empty where the results do not have it."""
        columns = ["metric", "selector", "shots", "images_per_class", "task", "value"]
        table = self._metrics.get(zoo, pd.DataFrame(columns=columns))
        rows = table[
            (table["metric"] == name)
            & (table["selector"] == selector)
            & (table["shots"] == shots)
            & (table["images_per_class"] == images)
        ]
        return rows.dropna(subset="value").groupby("task")["value"].mean()

    def gain(
        self, selector: str, shots: str, k: int = 3, zoo: str = "single", images: str = "25"
    ) -> pd.Series:
        return 100 * self.metric(f"top{k}_gain", selector, shots, zoo, images)

    def best_gain(self, shots: str, zoo: str = "single") -> pd.Series:
        return 100 * self.metric("best_gain", "random", shots, zoo)

    def accuracy(self, shots: str, zoo: str = "single") -> pd.DataFrame:
        """Targets × experts: accuracy (%) at the best rate, mean over seeds (the paper's protocol)."""
        table = self._best[zoo].query("shots == @shots")
        return 100 * table.pivot_table(index="task", columns="expert", values="accuracy")

    def generic(self, accuracy: pd.DataFrame) -> list[str]:
        """The experts on the generic source, of any architecture."""
        return [e for e in accuracy if self.experts.loc[e, "source"] == self.suite.generic]


def _minus(a: pd.Series, b: pd.Series) -> np.ndarray:
    return (a - b).dropna().to_numpy()


def c01(f: Findings) -> Iterator[Statement]:
    for shots in ("20", "5"):
        table = f.accuracy(shots)
        generic = f.generic(table)
        best = table.drop(columns=generic).max(axis=1)
        yield Statement(
            f"best domain expert minus best generic expert of any architecture, {shots} shots",
            _minus(best, table[generic].max(axis=1)),
        )


def c02(f: Findings) -> Iterator[Statement]:
    generic = tuned(f.results, f.suite)
    for shots in ("20", "5"):
        table = f.accuracy(shots)
        best = table.drop(columns=f.generic(table)).max(axis=1)
        one = 100 * generic[generic["shots"] == shots].groupby("task")["accuracy"].mean()
        yield Statement(
            f"best domain expert minus tuned generic expert, {shots} shots", _minus(best, one)
        )


def c03(f: Findings) -> Iterator[Statement]:
    for shots in REGIMES:
        yield Statement(f"best gain, {shots}", f.best_gain(shots).to_numpy())
    for shots in ("20", "5"):
        yield Statement(
            f"best gain at {shots} shots minus at full",
            _minus(f.best_gain(shots), f.best_gain("full")),
        )


def c04(f: Findings) -> Iterator[Statement]:
    for shots in REGIMES:
        table = f.accuracy(shots)
        generic = f.generic(table)
        better = table.drop(columns=generic).gt(table[generic].max(axis=1), axis=0)
        yield Statement(
            f"share of domain experts above every generic expert, {shots}",
            better.mean(axis=1).to_numpy(),
            FEW,
            above=False,
            unit="",
        )


def c05(f: Findings) -> Iterator[Statement]:
    scores, tunes = of_one_machine(f.results.scores, f.tunes["single"])
    scores = scores.assign(seconds=seconds_alone(scores)).astype(
        {"shots": str, "images_per_class": str}
    )
    for shots in REGIMES:
        tune = tunes.query("shots == @shots")
        tune = tune.pivot_table(index="task", columns="expert", values="seconds")
        one = tune.get(f.suite.reference, pd.Series(dtype=float))
        yield Statement(
            f"brute force over one fine-tune, {shots}",
            (tune.sum(axis=1) / one).to_numpy(),
            40,
            unit=" ×",
        )
        scored = scores[
            scores["expert"].isin(tune.columns)
            & (scores["shots"] == shots)
            & (scores["images_per_class"] == "25")
        ]
        for selector in ("lfc", "leep"):
            rows = (
                scored[scored["selector"] == selector]
                .groupby(["task", "seed"])["seconds"]
                .sum()
                .groupby("task")
                .mean()
            )
            yield Statement(
                f"scoring the zoo with {selector} over one fine-tune, {shots}",
                (rows / one).dropna().to_numpy(),
                1,
                above=False,
                unit=" ×",
            )


def c06(f: Findings) -> Iterator[Statement]:
    for shots in REGIMES:
        for selector in ("lfc", "lgc", "leep"):
            for other in ("domain_similarity", "rsa", "random"):
                yield Statement(
                    f"top-3 gain of {selector} minus {other}, {shots}",
                    _minus(f.gain(selector, shots), f.gain(other, shots)),
                )


def c07(f: Findings) -> Iterator[Statement]:
    for shots in REGIMES:
        both = [f.metric("spearman", s, shots) for s in ("lfc", "lgc")]
        yield Statement(f"Spearman of lfc minus lgc, {shots}", _minus(*both), -0.05, unit="")
        table = f.results.scores.astype({"shots": str}).query(
            "shots == @shots and selector in ['lfc', 'lgc']"
        )
        wide = table.pivot_table(
            index=["task", "seed", "expert"], columns="selector", values="score", aggfunc="first"
        )
        if {"lfc", "lgc"} <= set(wide):
            agree = (
                wide.groupby("task").apply(lambda t: t["lfc"].corr(t["lgc"], "spearman")).dropna()
            )
            yield Statement(
                f"Spearman between lfc and lgc over the zoo, {shots}",
                agree.to_numpy(),
                0.8,
                unit="",
            )


def c08(f: Findings) -> Iterator[Statement]:
    for shots in REGIMES:
        for selector in ("lfc", "lgc", "leep"):
            yield Statement(
                f"trials to best of {selector}, {shots}",
                f.metric("trials_to_best", selector, shots).to_numpy(),
                7,
                above=False,
                unit="",
            )
    for selector in ("lfc", "leep"):
        yield Statement(
            f"trials to best of {selector} in the multi-domain expert, full",
            f.metric("trials_to_best", selector, "full", "multi").to_numpy(),
            3,
            above=False,
            unit="",
        )


def c09(f: Findings) -> Iterator[Statement]:
    for shots in REGIMES:
        for other in ("lgc", "leep", "feature_metrics", "domain_similarity", "rsa"):
            yield Statement(
                f"Spearman of lfc minus {other}, {shots}",
                _minus(f.metric("spearman", "lfc", shots), f.metric("spearman", other, shots)),
                unit="",
            )


def c10(f: Findings) -> Iterator[Statement]:
    family = next(iter(f.suite.families.values())).architecture
    zoo = f.results.zoo[f.results.zoo["architecture"] == family]
    table = 100 * zoo.pivot_table(index="source", columns="pretraining", values="accuracy")
    small = zoo.drop_duplicates("source").set_index("source")["train_images"].nsmallest(4).index
    if {"multi_bn", "shared", "adapter", "scratch"} <= set(table):
        for other in ("shared", "adapter"):
            yield Statement(
                f"Multi-BN minus {other} on the sources", _minus(table["multi_bn"], table[other])
            )
        gap = table["multi_bn"] - table["scratch"]
        yield Statement(
            "Multi-BN minus single-domain on the four smallest sources",
            gap[small].to_numpy(),
            -CLOSE,
        )
        yield Statement(
            "Multi-BN minus single-domain on the other sources",
            gap.drop(small).to_numpy(),
            above=False,
        )


def c11(f: Findings) -> Iterator[Statement]:
    shots = "full" if len(f.accuracy("full", "multi")) else "20"
    multi, single = f.accuracy(shots, "multi"), f.accuracy(shots)
    if len(multi) and len(single):
        yield Statement(
            f"best domain of the multi-domain expert minus the generic expert, {shots}",
            _minus(multi.max(axis=1), single[f.suite.reference]),
        )
        prefix = f.suite.reference.partition("-")[0]
        scratch = [
            e
            for e in single
            if e.startswith(prefix) and f.experts.loc[e, "pretraining"] == "scratch"
        ]
        yield Statement(
            f"spread (standard deviation) over domains minus over experts from scratch, {shots}",
            _minus(multi.std(axis=1), single[scratch].std(axis=1)),
            above=False,
        )


def c12(f: Findings) -> Iterator[Statement]:
    shots = "full" if len(f.accuracy("full", "multi")) else "20"
    for k in (1, 3):
        for selector in ("lfc", "leep"):
            for other in ("feature_metrics", "random"):
                yield Statement(
                    f"top-{k} gain of {selector} minus {other}, multi-domain, {shots}",
                    _minus(f.gain(selector, shots, k, "multi"), f.gain(other, shots, k, "multi")),
                )


def c13(f: Findings) -> Iterator[Statement]:
    for selector in ("lfc", "leep", "rsa"):
        more = _minus(f.gain(selector, "full", images="all"), f.gain(selector, "full"))
        text = f"top-3 gain of {selector} with all images minus with 25 a class"
        yield Statement(f"{text}, growth", more)
        if selector != "rsa":
            yield Statement(f"{text}, little", more, ENOUGH, above=False)


def c14(f: Findings) -> Iterator[Statement]:
    accuracy, lfc = (
        f.accuracy("20"),
        f.results.scores.astype({"shots": str}).query("shots == '20' and selector == 'lfc'"),
    )
    lfc = lfc.pivot_table(index="task", columns="expert", values="score")
    common = [t for t in accuracy.index if t in lfc.index]
    values = [
        lfc.loc[t, accuracy.loc[t].idxmax()] - lfc.loc[t, list(accuracy)].mean() for t in common
    ]
    yield Statement(
        "LFC of the expert that turns out best minus the mean of the zoo, 20 shots",
        np.array(values),
        unit="",
    )


CLAIMS: dict[str, Callable[[Findings], Iterator[Statement]]] = {
    "C01": c01,
    "C02": c02,
    "C03": c03,
    "C04": c04,
    "C05": c05,
    "C06": c06,
    "C07": c07,
    "C08": c08,
    "C09": c09,
    "C10": c10,
    "C11": c11,
    "C12": c12,
    "C13": c13,
    "C14": c14,
}
FIGURES = {
    "C01": "fig1",
    "C02": "fig1",
    "C03": "fig2",
    "C04": "fig2",
    "C05": "table3",
    "C06": "fig4",
    "C07": "fig6",
    "C08": "fig6",
    "C09": "fig6",
    "C10": "table2",
    "C11": "fig3",
    "C12": "fig5",
    "C13": "fig7",
    "C14": "fig8",
}

PAGES = {
    "table1": "experts",
    "table2": "experts",
    "fig1": "finetuning",
    "fig2": "finetuning",
    "fig3": "finetuning",
    "table3": "cost",
    "fig4": "choosing",
    "fig5": "choosing",
    "fig6": "choosing",
    "fig7": "choosing",
    "fig8": "kernels",
    "table4": "datasets",
}  # the book's page of each artefact


def check_claims(results: Results, suite: Suite) -> dict[str, list[Statement]]:
    """Claim id (of the paper's `claims.csv`) -> its statements on these results."""
    findings = Findings(results, suite)
    return {name: list(claim(findings)) for name, claim in CLAIMS.items()}
