"""Figures that compare selectors: quality, stability, cost, agreement; tidy tables in, axes out."""

from textwrap import wrap

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from pandas import DataFrame
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from mzlib.benchmark.figures.plots import SETTING, one, unseeing
from mzlib.benchmark.figures.style import (
    BLUE,
    GREY,
    ORANGE,
    axes,
    display_name,
    error_axis,
    heat_map,
    use_style,
)
from mzlib.benchmark.scoring import of_one_machine, seconds_alone
from mzlib.selectors import SELECTORS

BASELINES = [name for name, selector in SELECTORS.items() if selector.kind == "baseline"]


def by_task(metrics: DataFrame, *, ax: Axes | None = None) -> Axes:
    """Spearman's correlation of every selector on every task, best mean first; see `evaluate`.

    Rows are the selectors, or the tasks where these are more.
    """
    rows = metrics.query("metric == 'spearman' and selector not in ('noise_ceiling', 'random')")
    table = one(rows, *SETTING).pivot_table("value", "selector", "task")
    best_first = table.mean(axis=1).sort_values(ascending=False).index
    table = table.loc[best_first]
    by_rows = table.shape[1] > len(table)
    if by_rows:
        easy_first = table.mean().sort_values(ascending=False).index
        table = table[easy_first].T
        table.loc["average"] = table.mean()
    else:
        table["average"] = table.mean(axis=1)
    numbers = table.shape[1] < 12
    height = 1.0 if numbers else 2.2
    ax = axes(ax, height + 0.175 * len(table))
    heat_map(ax, table, form=".2f" if numbers else "")
    line = ax.axhline if by_rows else ax.axvline
    line(max(table.shape) - 1, color=GREY, lw=2)
    return ax


def _seeing(halves: DataFrame) -> DataFrame:
    """Without the baselines that look at no image of the target."""
    baselines = unseeing(halves["selector"].unique())
    return halves[~halves["selector"].isin(baselines)]


def half_zoos(halves: DataFrame, ax: Axes | None = None) -> Axes:
    """Place of every selector among the others in random halves of the zoo (box; line: 90 %).

    `halves` is `zoo_halves(…)`; title: Kendall's τ-b of the order in the two halves of a draw.
    """
    halves = _seeing(halves)
    by_half = halves.groupby(["draw", "half"])
    place = halves.assign(
        place=by_half["value"].rank(ascending=False),
        name=halves["selector"].map(display_name),
    )
    order = place.groupby("name")["place"].median().sort_values().index
    ax = axes(ax, 1.1 + 0.175 * len(order))
    sns.boxplot(
        place,
        x="place",
        y="name",
        order=order,
        whis=(5, 95),
        fliersize=0,
        color=BLUE,
        ax=ax,
    )
    low, middle, high = half_tau(halves).quantile([0.05, 0.5, 0.95])
    ax.set_title(f"order in the other half: τ = {middle:.2f} [{low:.2f}, {high:.2f}]")
    ax.set(xlabel="place in half the zoo", ylabel="")
    ax.tick_params(axis="y", labelsize=8)
    return ax


def half_tau(halves: DataFrame) -> pd.Series:
    """Kendall's τ-b between the selectors' qualities in the two halves of each draw."""
    seeing = _seeing(halves)
    wide = seeing.pivot(
        index=["draw", "selector"],
        columns="half",
        values="value",
    ).dropna()
    return wide.groupby("draw").apply(lambda pair: pair[0].corr(pair[1], "kendall"))


def cost_against_quality(
    scores: DataFrame,
    summary: DataFrame,
    finetune: DataFrame,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Seconds to score the zoo on one task (log) against mean Spearman, tables of one regime.

    A selector alone (`seconds_alone`), evidence included. Line: no other is both cheaper and
    better, named below. Dotted: the best ranking that sees no image; dashed: one fine-tune, and all
    of them.
    """
    scores, finetune = of_one_machine(scores, finetune)
    seconds = scores.assign(seconds=seconds_alone(scores))
    seconds = seconds.groupby(["selector", "task", "seed"])["seconds"].sum()
    table = summary[summary["metric"] == "spearman"]
    table = table.set_index("selector")[["mean"]]
    free = table["mean"].reindex(unseeing(table.index)).dropna()
    table["seconds"] = seconds.groupby("selector").mean()
    table = table.dropna().drop(index=free.index, errors="ignore")
    table = table.sort_values("seconds")
    best_so_far = table["mean"].shift(fill_value=-2).cummax()
    front = table[table["mean"] > best_so_far]
    ax = axes(ax, 3.8)
    sns.scatterplot(table, x="seconds", y="mean", color=BLUE, s=25, ax=ax)
    ax.step(front["seconds"], front["mean"], "o-", where="post", ms=4, color=ORANGE, lw=1.2)
    below = [f"on the line: {', '.join(map(display_name, front.index))}"]
    cost = finetune.groupby(["task", "expert"])["seconds"].mean()
    lines = {
        "one fine-tune": cost.mean(),
        "all fine-tunes": cost.groupby("task").sum().mean(),
    }
    for label, at in lines.items():
        ax.axvline(at, color=GREY, ls="--", lw=1)
        ax.text(at, 1.01, label, ha="center", fontsize=8, transform=ax.get_xaxis_transform())
    if len(free):
        ax.axhline(free.max(), color=GREY, ls=":")
        below.append(f"dotted: {display_name(free.idxmax())}, which sees no image")
    wrapped = [line for words in below for line in wrap(words, 70)]
    ax.set(xscale="log", ylabel="mean Spearman")
    ax.set_xlabel("\n".join(["seconds to score the zoo on one task", *wrapped]))
    error_axis(ax)
    return ax


def agreement(scores: DataFrame, accuracy: DataFrame) -> sns.matrix.ClusterGrid:
    """Spearman's correlation over experts between every two selectors and the accuracy, mean over
    tasks of one setting; ordered by a tree (average linkage of 1 − correlation).

    Selectors without a score, or with one for all experts, on some task are left out.
    """
    use_style()
    one(scores, "suite", "shots", "images_per_class")
    reached = accuracy.assign(selector="accuracy", score=accuracy["accuracy"])
    both = pd.concat([scores, reached])
    wide = both.pivot_table("score", ["task", "expert"], "selector")
    tells_apart = wide.groupby("task").nunique().gt(1).all()
    wide = wide.loc[wide["accuracy"].notna(), tells_apart]
    of_tasks = wide.groupby("task").corr("spearman")
    table = of_tasks.groupby("selector").mean().loc[wide.columns]
    distance = squareform((1 - table).to_numpy(), checks=False)
    tree = linkage(distance, "average", optimal_ordering=True)
    grid = sns.clustermap(
        table.rename(index=display_name),
        row_linkage=tree,
        col_linkage=tree,
        cmap="PuOr_r",
        vmin=-1,
        vmax=1,
        figsize=(5, 1.3 + 0.17 * len(table)),
        dendrogram_ratio=(0.02, 0.12),
        cbar_pos=(0.02, 0.02, 0.25, 0.02),
        cbar_kws={"orientation": "horizontal"},
        xticklabels=False,
        yticklabels=True,
        tree_kws={"colors": GREY},
    )
    grid.ax_row_dendrogram.set_visible(False)
    grid.ax_heatmap.set(xlabel="", ylabel="")
    grid.ax_heatmap.tick_params(axis="y", labelsize=8, length=0)
    for label in grid.ax_heatmap.get_yticklabels():
        if label.get_text() == "accuracy":
            label.set_fontweight("bold")
    return grid
