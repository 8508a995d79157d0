"""The paper's claims against a suite's results, and against the paper's own numbers, by one rule.

A claim has one *primary* statement, "this mean over targets lies above (below) that threshold", in
the words of `book/paper/claims.csv`, and *secondary* ones, which are listed and decide nothing.
Every value is a target's mean over seeds; means have an `interval` of `mzlib.benchmark.statistics`.

A claim is *supported* when its primary mean lies on the claimed side and the p-value (Student's t,
adjusted by Holm's method for all claims that were tested) is below .05, *not supported* when it
lies on the other side with such a p-value, else *undecided*; *not testable* with fewer than two
values. Thresholds that the paper leaves to words ("few", "close to") are named where they stand.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from mzlib.benchmark.evaluate import truth
from mzlib.benchmark.results import Results, compare, complete, tuned
from mzlib.benchmark.scoring import of_one_machine, seconds_alone
from mzlib.benchmark.statistics import holm, interval, p_value, smallest_effect
from mzlib.benchmark.suite import Suite

PAPER_SELECTORS = ("lfc", "lgc", "leep", "feature_metrics", "domain_similarity", "rsa", "random")
REGIMES = ("full", "20")
FEW = 0.2  # "only a few members": the paper's own examples are 1 to 10 of 28, a median of 4
CLOSE = 3.0  # points: "close to" in the claim on Multi-BN; the paper's examples are within 0.6
ENOUGH = 0.5  # points: what more images may add while 25 a class are "enough", LFC lose to LGC
USUALLY = 0.5  # share of targets: "shows … the highest LFC"
LEVEL = 0.05


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
        if low > self.threshold or high < self.threshold:
            return bool(low > self.threshold) == self.above
        return None

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


def verdicts(primary: dict[str, Statement]) -> pd.DataFrame:
    """Claim -> mean, low, high, values, p (adjusted by Holm), smallest_effect, verdict, of its
    primary statement.

    smallest_effect: how far from the threshold a mean would have to lie to be seen with 80 % power.
    """
    raw = [p_value(statement.values, statement.threshold) for statement in primary.values()]
    rows = {}
    for (name, statement), p in zip(primary.items(), holm(np.array(raw))):
        low, high = statement.interval
        if not len(statement.values):
            verdict = "not computed"
        elif np.isnan(p):
            verdict = "not testable"
        elif p >= LEVEL:
            verdict = "undecided"
        else:
            verdict = "supported" if statement.on_its_side else "not supported"
        rows[name] = {
            "mean": statement.mean,
            "low": low,
            "high": high,
            "values": len(statement.values),
            "p": p,
            "smallest_effect": smallest_effect(statement.values),
            "verdict": verdict,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("id")


class Findings:
    """What the claims are made of, from the results of one suite. Accuracies and gains in points
    (percent).
    """

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
        """Target -> mean over seeds of a metric of `evaluate`; empty where the results do not have
        it.
        """
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
        """Target -> top-k gain over the generic expert."""
        return 100 * self.metric(f"top{k}_gain", selector, shots, zoo, images)

    def best_gain(self, shots: str, zoo: str = "single") -> pd.Series:
        """Target -> gain of the best expert of the zoo."""
        return 100 * self.metric("best_gain", "random", shots, zoo)

    def accuracy(self, shots: str, zoo: str = "single") -> pd.DataFrame:
        """Targets × experts: accuracy (%) at the best rate, mean over seeds."""
        table = self._best[zoo].query("shots == @shots")
        return 100 * table.pivot_table(index="task", columns="expert", values="accuracy")

    def beside(self, shots: str) -> pd.DataFrame:
        """Targets × other architectures and random starts at the zoo's rate: accuracy (%)."""
        rows = self.results.beside.astype({"shots": str}).query("shots == @shots")
        rows = rows[rows["expert"] != self.suite.reference]
        return 100 * rows.pivot_table(index="task", columns="expert", values="accuracy")

    def kept_domain_minus_generic(self, shots: str, protocol: str) -> np.ndarray:
        """Test accuracy (points) of the domain expert that is kept when all are fine-tuned, minus
        that of the generic expert that is kept, for each target: mean over seeds.
        """
        table = truth(self.tunes["single"], protocol).query("shots == @shots")
        values: dict[str, list[float]] = {}
        for (task, seed), rows in table.groupby(["task", "seed"]):
            rows = rows.set_index("expert")
            criterion = rows["val_accuracy"]
            if protocol == "other seed":
                others = table[(table["task"] == task) & (table["seed"] != seed)]
                criterion = others.groupby("expert")["accuracy"].mean().reindex(rows.index)
            if criterion.isna().any():
                continue
            generic = rows.index.isin(self.generic(rows.T))
            kept = [rows["accuracy"][criterion[side].idxmax()] for side in (~generic, generic)]
            values.setdefault(task, []).append(100 * (kept[0] - kept[1]))
        return np.array([np.mean(seeds) for seeds in values.values()])

    def agreement(self, one: str, other: str, shots: str) -> np.ndarray:
        """Spearman's correlation over the zoo between two selectors' scores, for each target."""
        table = self.results.scores.astype({"shots": str, "images_per_class": str})
        table = table.query("shots == @shots and images_per_class == '25'")
        table = table[table["selector"].isin([one, other])]
        wide = table.pivot_table(index=["task", "expert"], columns="selector", values="score")
        if not {one, other} <= set(wide):
            return np.empty(0)
        both = wide.groupby("task").apply(lambda rows: rows[one].corr(rows[other], "spearman"))
        return both.dropna().to_numpy()

    def generic(self, accuracy: pd.DataFrame) -> list[str]:
        """The experts on the generic source, of any architecture."""
        return [e for e in accuracy if self.experts.loc[e, "source"] == self.suite.generic]


def _minus(a: pd.Series, b: pd.Series) -> np.ndarray:
    return (a - b).dropna().to_numpy()


def _mean(values: dict[str, pd.Series], names: tuple[str, ...]) -> pd.Series:
    """Target -> mean over some selectors; a target that one of them lacks is left out."""
    return pd.concat([values[name] for name in names], axis=1).dropna().mean(axis=1)


def c01(f: Findings) -> Iterator[Statement]:
    """Domain experts against other architectures at one rate (Fig. 1 a)."""
    for shots in ("20", "5"):
        table = f.accuracy(shots)
        generic = f.generic(table)
        best = table.drop(columns=generic).max(axis=1)
        other = pd.concat([table[generic], f.beside(shots)], axis=1)
        # where no other architecture was fine-tuned, the generic experts of the zoo stand for them
        yield Statement(
            f"best domain expert minus best other architecture, {shots} shots, rate fixed",
            _minus(best, other.max(axis=1)),
        )
        for protocol in ("validation", "other seed"):
            yield Statement(
                f"best domain expert minus best generic expert, {shots} shots, both kept by "
                f"{protocol}",
                f.kept_domain_minus_generic(shots, protocol),
            )


def c02(f: Findings) -> Iterator[Statement]:
    """Domain experts against a tuned generic expert (Fig. 1 b). The zoo has one rate and the
    generic expert four: the searches are unequal, in favour of the generic expert.
    """
    generic = tuned(f.results, f.suite)
    for shots in ("20", "5"):
        table = f.accuracy(shots)
        best = table.drop(columns=f.generic(table)).max(axis=1)
        one = 100 * generic[generic["shots"] == shots].groupby("task")["accuracy"].mean()
        yield Statement(
            f"best domain expert (one rate) minus generic expert at the best of its rates, "
            f"{shots} shots",
            _minus(best, one),
        )


def c03(f: Findings) -> Iterator[Statement]:
    """Larger gains with fewer images (Fig. 2, 4); no gain is negative, by construction."""
    for shots in ("20", "5"):
        yield Statement(
            f"best gain at {shots} shots minus at full",
            _minus(f.best_gain(shots), f.best_gain("full")),
        )
    for shots in REGIMES:
        yield Statement(f"best gain, {shots} (never negative)", f.best_gain(shots).to_numpy())


def c04(f: Findings) -> Iterator[Statement]:
    """Few experts are above the generic ones (Fig. 2)."""
    for shots in ("20", "full"):
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
    """What scoring costs (Table 3). Our seconds count the forward passes of the zoo, each expert
    alone; the paper does not say what it counts.
    """
    scores, tunes = of_one_machine(f.results.scores, f.tunes["single"])
    scores = scores.assign(seconds=seconds_alone(scores))
    scores = scores.astype({"shots": str, "images_per_class": str})
    for shots in ("20", "full"):
        tune = tunes.query("shots == @shots")
        tune = tune.pivot_table(index="task", columns="expert", values="seconds")
        one = tune.get(f.suite.reference, pd.Series(dtype=float))
        here = scores[scores["expert"].isin(tune.columns) & (scores["shots"] == shots)]
        here = here[here["images_per_class"] == "25"]
        for selector in ("lfc", "leep"):
            rows = here[here["selector"] == selector]
            zoo = rows.groupby(["task", "seed"])["seconds"].sum().groupby("task").mean()
            yield Statement(
                f"scoring the zoo with {selector} over one fine-tune, {shots}",
                (zoo / one).dropna().to_numpy(),
                1,
                above=False,
                unit=" ×",
            )
        yield Statement(
            f"brute force over one fine-tune, {shots}",
            (tune.sum(axis=1) / one).to_numpy(),
            40,
            unit=" ×",
        )


def c06(f: Findings) -> Iterator[Statement]:
    """The paper's selectors against the others, three picks (Fig. 4)."""
    good = ("lfc", "lgc", "leep")
    bad = ("domain_similarity", "rsa", "random")
    for shots in ("20", "full"):
        gains = {selector: f.gain(selector, shots) for selector in (*good, *bad)}
        yield Statement(
            f"top-3 gain, mean of LFC, LGC and LEEP minus mean of domain similarity, RSA and "
            f"random, {shots}",
            _minus(_mean(gains, good), _mean(gains, bad)),
        )
    metrics = f.gain("feature_metrics", "full"), f.gain("lfc", "full")
    yield Statement("top-3 gain of feature metrics minus lfc, full", _minus(*metrics))
    metrics = f.gain("lfc", "20"), f.gain("feature_metrics", "20")
    yield Statement("top-3 gain of lfc minus feature metrics, 20", _minus(*metrics))


def c07(f: Findings) -> Iterator[Statement]:
    """LFC in the place of LGC."""
    for shots in ("20", "full"):
        gains = f.gain("lfc", shots), f.gain("lgc", shots)
        yield Statement(f"top-3 gain of lfc minus lgc, {shots}", _minus(*gains), -ENOUGH)
    for shots in REGIMES:
        both = f.metric("spearman", "lfc", shots), f.metric("spearman", "lgc", shots)
        yield Statement(f"Spearman of lfc minus lgc, {shots}", _minus(*both), -0.05, unit="")
        yield Statement(
            f"Spearman between lfc and lgc over the zoo, {shots}",
            f.agreement("lfc", "lgc", shots),
            0.8,
            unit="",
        )


def c08(f: Findings) -> Iterator[Statement]:
    """Trials to best (Fig. 6 a)."""
    for shots in ("20", "full"):
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
    """Rank correlation with accuracy (Fig. 6 b)."""
    others = ("lgc", "leep", "feature_metrics", "domain_similarity", "rsa")
    for shots in ("20", "full"):
        lfc = f.metric("spearman", "lfc", shots)
        values = {other: f.metric("spearman", other, shots) for other in others}
        best = max(others, key=lambda other: values[other].mean() if len(values[other]) else -2)
        yield Statement(
            f"Spearman of lfc minus the best of the paper's others ({best}), {shots}",
            _minus(lfc, values[best]),
            unit="",
        )
        for other in others:
            if other != best:
                yield Statement(
                    f"Spearman of lfc minus {other}, {shots}", _minus(lfc, values[other]), unit=""
                )


def c10(f: Findings) -> Iterator[Statement]:
    """Multi-domain variants on the sources (Table 2). One seed of the multi-domain experts."""
    family = next(iter(f.suite.families.values())).architecture
    zoo = f.results.zoo[f.results.zoo["architecture"] == family]
    table = 100 * zoo.pivot_table(index="source", columns="pretraining", values="accuracy")
    small = zoo.drop_duplicates("source").set_index("source")["train_images"].nsmallest(4).index
    if not {"multi_bn", "shared", "adapter", "scratch"} <= set(table):
        return
    others = table[["shared", "adapter"]].max(axis=1)
    yield Statement(
        "source accuracy of Multi-BN minus the better of shared and adapter",
        _minus(table["multi_bn"], others),
    )
    gap = table["multi_bn"] - table["scratch"]
    yield Statement(
        "Multi-BN minus single-domain on the four smallest sources", gap[small].to_numpy(), -CLOSE
    )
    yield Statement(
        "Multi-BN minus single-domain on the other sources",
        gap.drop(small).to_numpy(),
        above=False,
    )


def c11(f: Findings) -> Iterator[Statement]:
    """Starting from a domain of the multi-domain expert (Fig. 3)."""
    shots = "full" if len(f.accuracy("full", "multi")) else "20"
    multi = f.accuracy(shots, "multi")
    single = f.accuracy(shots)
    if not (len(multi) and len(single)):
        return
    yield Statement(
        f"best domain of the multi-domain expert minus the generic expert, {shots}",
        _minus(multi.max(axis=1), single[f.suite.reference]),
    )
    named = multi.index.intersection(["magnetic_tile", "flowers5", "leaf_disease10"])
    yield Statement(
        f"the same on our counterparts of the four named targets, {shots}",
        _minus(multi.max(axis=1)[named], single[f.suite.reference]),
    )
    prefix = f.suite.reference.partition("-")[0]
    scratch = [
        expert
        for expert in single
        if expert.startswith(prefix) and f.experts.loc[expert, "pretraining"] == "scratch"
    ]
    yield Statement(
        f"spread (standard deviation) over domains minus over experts from scratch, {shots}",
        _minus(multi.std(axis=1), single[scratch].std(axis=1)),
        above=False,
    )


def c12(f: Findings) -> Iterator[Statement]:
    """Choosing a domain of the multi-domain expert (Fig. 5)."""
    shots = "full" if len(f.accuracy("full", "multi")) else "20"
    for k in (3, 1):
        selectors = ("lfc", "leep", "feature_metrics", "random")
        gains = {selector: f.gain(selector, shots, k, "multi") for selector in selectors}
        yield Statement(
            f"top-{k} gain, mean of LFC and LEEP minus mean of feature metrics and random, "
            f"multi-domain, {shots}",
            _minus(_mean(gains, selectors[:2]), _mean(gains, selectors[2:])),
        )


def c13(f: Findings) -> Iterator[Statement]:
    """25 images a class against all (Fig. 7)."""
    for selector in ("lfc", "leep", "rsa"):
        more = _minus(f.gain(selector, "full", images="all"), f.gain(selector, "full"))
        text = f"top-3 gain of {selector} with all images minus with 25 a class"
        yield Statement(text, more, ENOUGH, above=False)
        yield Statement(f"{text}, growth", more)


def c14(f: Findings) -> Iterator[Statement]:
    """The related expert has the highest LFC (Fig. 8)."""
    accuracy = f.accuracy("20")
    lfc = f.results.scores.astype({"shots": str}).query("shots == '20' and selector == 'lfc'")
    lfc = lfc.pivot_table(index="task", columns="expert", values="score")
    common = [task for task in accuracy.index if task in lfc.index]
    highest = []
    above = []
    for task in common:
        scores = lfc.loc[task, list(accuracy)]
        best = accuracy.loc[task].idxmax()
        highest.append(float(scores[best] == scores.max()))
        above.append(scores[best] - scores.mean())
    yield Statement(
        "share of targets whose best expert has the highest LFC of the zoo, 20 shots",
        np.array(highest),
        USUALLY,
        unit="",
    )
    yield Statement(
        "LFC of the expert that turns out best minus the mean of the zoo, 20 shots",
        np.array(above),
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
    """Claim id (of the paper's `claims.csv`) -> its statements on these results, the primary one
    first; none where the results have nothing on it.
    """
    findings = Findings(results, suite)
    return {name: list(claim(findings)) for name, claim in CLAIMS.items()}


def claims_table(found: dict[str, list[Statement]], papers: dict[str, Statement]) -> pd.DataFrame:
    """`verdicts` of our primary statements (`check_claims`) beside those of the paper's own numbers
    (`mzlib.benchmark.paper_claims.paper_statements`): columns with the suffix `_paper`.
    """
    absent = Statement("not computed", np.empty(0))
    ours = verdicts({name: rows[0] if rows else absent for name, rows in found.items()})
    theirs = verdicts({name: papers.get(name, absent) for name in found})
    return ours.join(theirs.add_suffix("_paper"))
