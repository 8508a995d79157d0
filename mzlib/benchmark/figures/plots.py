"""The paper's figures from tidy tables, ours or the paper's; a function draws one artefact."""

from collections.abc import Mapping, Sequence
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from pandas import DataFrame

from mzlib.benchmark.figures.style import (
    BLUE,
    GREEN,
    GREY,
    GROUPS,
    ORANGE,
    PINK,
    axes,
    display_name,
    error_axis,
    groups,
    heat_map,
    selector_order,
    use_style,
)
from mzlib.errors import MzlibError
from mzlib.selectors import SELECTORS

SETTING = ("suite", "shots", "images_per_class", "protocol")
MARKERS = "os^Dv"
COLOURS = (ORANGE, BLUE, GREEN, PINK, GREY)
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
    baselines = [name for name, selector in SELECTORS.items() if selector.kind == "baseline"]
    return [name for name in selectors if name in (*baselines, *UNSEEING)]


# --- Fig. 2 and 3: test errors -------------------------------------------------------------------


def errors_of(accuracy: DataFrame, zoo: DataFrame, generic: str) -> DataFrame:
    """`truth(…)` of one setting in the shape of the paper's Fig. 2 and 3, means over seeds.

    Returns: target, expert, source, architecture, group (of `GROUPS`), test_error (%).
    """
    runs = one(accuracy, "suite", "shots")
    mean = runs.groupby(["task", "expert"])["accuracy"].mean().reset_index()
    table = mean.merge(zoo[["expert", "source", "architecture"]], on="expert")
    table["group"] = table["expert"].map(groups(zoo, generic))
    table["test_error"] = 100 * (1 - table["accuracy"])
    return table.rename(columns={"task": "target"}).drop(columns="accuracy")


def fig2(parts: Mapping[str, DataFrame]) -> np.ndarray:
    """Test error (%) of every expert, a row a target: the paper's Fig. 2 and 3; a panel a part.

    parts: title -> `errors_of(…)`, or the paper's in that shape; targets by their errors' spread.
    """
    use_style()
    rows = [table["target"].nunique() for table in parts.values()]
    figure, panels = plt.subplots(
        len(parts),
        figsize=(5, 1.2 + 0.6 * len(parts) + 0.2 * sum(rows)),
        height_ratios=rows,
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    everything = pd.concat(parts.values())
    architectures = sorted(everything["architecture"].unique())
    markers = {name: "^" if "dense" in name else "o" for name in architectures}
    for ax, (title, table) in zip(panels[:, 0], parts.items()):
        positive = table["test_error"][table["test_error"] > 0].min()
        table = table.assign(error=table["test_error"].clip(lower=positive / 2))
        spread = table.groupby("target")["test_error"].agg(np.ptp)
        order = spread.sort_values(ascending=False).index
        for architecture, some in table.groupby("architecture"):
            sns.stripplot(
                some,
                x="error",
                y="target",
                order=order,
                hue="group",
                palette={group: colour for group, (_, colour) in GROUPS.items()},
                marker=markers[architecture],
                size=4.5,
                alpha=0.75,
                legend=False,
                ax=ax,
            )
        ax.set_yticks(range(len(order)), map(display_name, order), fontsize=8)
        ax.set(xscale="log", ylabel="", xlabel="", title=title)
        error_axis(ax)
    names = []
    for word, marker in (("dot", "o"), ("triangle", "^")):
        bearing = [display_name(name) for name in architectures if markers[name] == marker]
        if bearing:
            names.append(f"{word}: {', '.join(bearing)}")
    ax.set_xlabel("test error (%), log scale\n" + "; ".join(names))
    shown = [GROUPS[group] for group in GROUPS if group in set(everything["group"])]
    squares = partial(Line2D, [], [], ls="", marker="s")
    handles = [squares(color=colour, label=name) for name, colour in shown]
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return panels[:, 0]


# --- Fig. 4 to 7: what selectors reach ----------------------------------------------------------


def gains(metrics: DataFrame) -> DataFrame:
    """Points gained over the generic expert: targets × (best, worst, each selector's top three).

    `metrics` is `evaluate(…)` in one setting; means over seeds; the last row is the mean.
    """
    metrics = one(metrics[metrics["selector"] != "noise_ceiling"], *SETTING)
    mean = 100 * metrics.pivot_table("value", "task", ["metric", "selector"], dropna=False)
    selectors = selector_order(metrics["selector"])
    best = mean["best_gain"].mean(axis=1)
    worst = mean["worst_gain"].mean(axis=1)
    table = DataFrame(
        {
            "best": best,
            "worst": worst,
        }
    )
    table = table.join(mean["top3_gain"][selectors])
    table.loc["average"] = table.mean()
    return table.rename_axis(None)


def fig4(metrics: DataFrame, *, ax: Axes | None = None) -> Axes:
    """Heat map of `gains`: the paper's Fig. 4, 5 and 7, a row a target."""
    table = gains(metrics)
    # The worst expert must not bleach all others.
    limit = np.nanquantile(table.drop(columns="worst").abs(), 0.9) or 1
    width = 1.6 + 0.4 * max(table.shape[1], 8)
    ax = axes(ax, 1.5 + 0.25 * len(table), width)
    heat_map(ax, table.round(1) + 0.0, limit=limit, form="+.1f")
    ax.axvline(2, color=GREY, lw=2)
    ax.axhline(len(table) - 1, color=GREY, lw=2)
    return ax


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


def beside(parts: Mapping[str, DataFrame], metric: str, *, ax: Axes | None = None) -> Axes:
    """Means of one metric with their intervals, a row a selector, a colour a part.

    parts: legend -> rows of `summarize` (or the paper's, without intervals) of one setting: the
    paper's Fig. 6, and the averages of its Fig. 4, 5 and 7. Differences of accuracies
    in points; selectors in the order of the first part.
    """
    tables = {name: _ranked(summary, metric) for name, summary in parts.items()}
    order = next(iter(tables.values())).index
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
    ax = axes(ax, 0.9 + 0.25 * len(bars))
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


# --- kernels -------------------------------------------------------------------------


def kernel(
    gram: np.ndarray,
    labels: np.ndarray,
    *,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """A kernel [N, N], images sorted by class, lines between classes: the paper's Fig. 8."""
    order = np.argsort(labels, kind="stable")
    low, high = np.quantile(gram, [0.01, 0.99])
    ax = axes(ax, 3.4, width=3.4)
    cells = gram[np.ix_(order, order)]
    ax.imshow(
        cells,
        cmap="cividis",
        vmin=low,
        vmax=high,
        interpolation="none",  # as small as the kernel in a vector graphic
    )
    for edge in np.flatnonzero(np.diff(np.sort(labels))) + 0.5:
        ax.axhline(edge, color="white", lw=0.5)
        ax.axvline(edge, color="white", lw=0.5)
    ax.set(xticks=[], yticks=[], title=title)
    return ax
