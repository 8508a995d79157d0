"""Means of metrics, ours and the paper's, from tidy tables; what figures say of their rows."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from pandas import DataFrame

from mzlib.benchmark.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    axes,
    display_name,
)
from mzlib.errors import MzlibError
from mzlib.selectors import SELECTORS

SETTING = ("suite", "shots", "images_per_class", "protocol")
MARKERS = "os^Dv"
COLOURS = (ORANGE, BLUE, GREEN, PINK, GREY)
BASELINES = [name for name, selector in SELECTORS.items() if selector.kind == "baseline"]
UNSEEING = ("history", "prior")  # rankings that never see the target


def one(table: DataFrame, *columns: str) -> DataFrame:
    """The table itself, if each of `columns` has one value: no figure averages over settings."""
    for column in columns:
        values = sorted(set(table[column].astype(str)))
        if len(values) != 1:
            got = values or "none"
            raise MzlibError(f"expected rows of one {column}, got {got}: select one before drawing")
    return table


def in_points(metric: str) -> bool:
    """Whether a metric is a difference of accuracies, shown in points."""
    return metric.endswith("_gain") or metric.startswith("regret")


def unseeing(selectors: Sequence[str]) -> list[str]:
    """The baselines among `selectors`: they look at no image of the target."""
    return [name for name in selectors if name in (*BASELINES, *UNSEEING)]


def _ranked(summary: DataFrame, metric: str) -> DataFrame:
    """Selector -> mean, low, high of a metric in one setting, best first; differences of accuracies
    in points.
    """
    rows = summary.query("metric == @metric and selector != 'noise_ceiling'")
    rows = one(rows, *SETTING).set_index("selector")[["mean", "low", "high"]]
    less_is_better = metric.startswith(("trials", "regret"))
    rows = rows.sort_values("mean", ascending=less_is_better)
    return 100 * rows if in_points(metric) else rows


def _label(ax: Axes, selectors: Sequence[str], metric: str) -> None:
    """A row a selector from the top, and what is along it."""
    ax.set_yticks(range(len(selectors)), map(display_name, selectors), fontsize=9)
    ax.set(ylim=(len(selectors) - 0.5, -1))
    unit = " (points)" if in_points(metric) else ""
    ax.set_xlabel(display_name(metric) + unit)
    ax.tick_params(axis="y", length=0)


def beside(
    parts: Mapping[str, DataFrame],
    metric: str,
    *,
    generic: str = "generic expert alone",
    ax: Axes | None = None,
) -> Axes:
    """Means of one metric with their intervals, a row a selector, a colour a part.

    parts: legend -> rows of `summarize` (or the paper's, without intervals) of one setting: the
    paper's Fig. 6, and the averages of its Fig. 4, 5 and 7. Differences of accuracies
    in points; selectors in the order of the first part, then those that it lacks (the paper has no
    history) in the order of the next. generic: what has a gain of zero.
    """
    tables = {}
    order: list[str] = []
    for name, summary in parts.items():
        tables[name] = _ranked(summary, metric).dropna(subset="mean")
        order += [selector for selector in tables[name].index if selector not in order]
    row_height = 0.1 + 0.13 * len(tables)
    ax = axes(ax, 1.0 + row_height * len(order))
    middle = (len(tables) - 1) / 2
    for i, (name, table) in enumerate(tables.items()):
        table = table.reindex(order)
        y = np.arange(len(order)) + 0.24 * (i - middle)
        colour = COLOURS[i]
        ax.hlines(y, table["low"], table["high"], color=colour, lw=1.5)
        ax.plot(
            table["mean"],
            y,
            MARKERS[i],
            ls="",
            ms=4.5,
            color=colour,
            label=name,
        )
    _label(ax, order, metric)
    ax.grid(
        axis="both",
        color=GREY,
        alpha=0.2,
        lw=0.6,
    )
    if metric.endswith("_gain"):
        ax.axvline(0, color=GREY, lw=1.2, zorder=0)
        ax.text(0, -0.7, f" {generic}", fontsize=8)
    ax.figure.legend(loc="outside upper center", ncols=2)
    return ax


def fig6(summary: DataFrame, *, metric: str = "spearman", ax: Axes | None = None) -> Axes:
    """Bars of a metric's mean over targets with intervals, best selector first.

    `summary` is `summarize(…)` in one setting. Grey: see no image of the target; dotted: chance;
    band: noise ceiling; orange: the best expert's gain.
    """
    bars = _ranked(summary, metric).dropna(subset="mean")
    y = np.arange(len(bars))
    baselines = unseeing(bars.index)
    colours = [GREY if name in baselines else BLUE for name in bars.index]
    ax = axes(ax, 0.9 + 0.22 * len(bars))
    ax.barh(y, bars["mean"], color=colours, alpha=0.45, height=0.7)
    ax.hlines(y, bars["low"], bars["high"], color=colours, lw=2.5)
    means = summary.set_index(["metric", "selector"])["mean"]
    if metric.endswith("_gain"):
        best = 100 * means["best_gain"].iloc[0]
        ax.axvline(best, color=ORANGE, lw=1.5)
        ax.text(best, -0.7, "best expert ", ha="right", fontsize=8)
    ceiling = summary[summary["selector"] == "noise_ceiling"].set_index("metric")["mean"]
    ceiling = ceiling.reindex([metric, f"{metric}_upper"])
    if ceiling.notna().all():
        ax.axvspan(*ceiling, color=GREY, alpha=0.25, lw=0)
        ax.text(ceiling.mean(), -0.7, "noise ceiling", ha="center", fontsize=8)
    if "random" in bars.index:
        ax.axvline(bars.loc["random", "mean"], color=GREY, ls=":")
    _label(ax, bars.index, metric)
    targets = summary.loc[summary["metric"] == metric, "tasks"].max()
    ax.set_xlabel(f"{ax.get_xlabel()}, mean over {targets} targets")
    return ax
