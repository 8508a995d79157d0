"""Figures from tidy tables; a function draws one artefact on `ax` (default: a new figure) and returns the axes."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from mzlib.benchmark.statistics import summarize
from mzlib.benchmark.figures.style import (
    BLUE,
    GREEN,
    GREY,
    GROUPS,
    MARKERS,
    ORANGE,
    PINK,
    axes,
    display_name,
    error_axis,
    groups,
    selector_order,
)
from mzlib.errors import MzlibError
from mzlib.selectors import SELECTORS


def _one(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The table itself, if each of `columns` has one value in it: figures do not average over settings in silence."""
    for column in columns:
        values = sorted(set(table[column].astype(str)))
        if len(values) != 1:
            raise MzlibError(
                f"expected rows of one {column}, got {values or 'none'}: select one before drawing"
            )
    return table


def _legend(ax: plt.Axes, zoo: pd.DataFrame, kind: pd.Series) -> None:
    dots = [
        Line2D([], [], ls="", marker="s", color=colour, label=name)
        for group, (name, colour) in GROUPS.items()
        if group in set(kind)
    ]
    dots += [
        Line2D(
            [], [], ls="", marker=MARKERS.get(a, "D"), mfc="none", color=GREY, label=display_name(a)
        )
        for a in sorted(set(zoo["architecture"]))
    ]
    ax.figure.legend(handles=dots, loc="outside upper center", ncols=2)


def fig2(
    accuracy: pd.DataFrame, zoo: pd.DataFrame, *, generic: str, ax: plt.Axes | None = None
) -> plt.Axes:
    """Test error of every fine-tuned expert on every target: the paper's Fig. 2 (Fig. 3 with multi-domain experts).

    A block a target, in it a row a source (which the paper does not show); marker: architecture; colour: pre-training;
    bar: range over seeds; vertical line: the generic expert. `accuracy` is `truth(…)` in one setting.
    """
    zoo = zoo[zoo["expert"].isin(set(_one(accuracy, "suite", "shots")["expert"]))]
    kind, sources, tasks = (
        groups(zoo, generic),
        list(dict.fromkeys(zoo["source"])),
        sorted(set(accuracy["task"])),
    )
    errors = 100 * (
        1 - accuracy.groupby(["task", "expert"])["accuracy"].agg(["mean", "max", "min"])
    )
    errors = errors.clip(
        lower=errors[errors > 0].min().min() / 2
    )  # no error at all: the left edge of the log axis
    pitch = len(sources) + 1.6
    ax = axes(ax, 0.9 + 0.155 * len(tasks) * pitch)
    for (task, expert), error in errors.iterrows():
        row = zoo[zoo["expert"] == expert].iloc[0]
        colour, y = (
            GROUPS[kind[expert]][1],
            tasks.index(task) * pitch + 1 + sources.index(row["source"]),
        )
        ax.hlines(y, error["max"], error["min"], color=colour, lw=1, alpha=0.5)
        ax.plot(
            error["mean"], y, MARKERS.get(row["architecture"], "D"), color=colour, ms=5, mfc="none"
        )
        if expert == generic:
            ax.vlines(error["mean"], y - 0.5, y + len(sources) - 0.5, color=colour, lw=1, alpha=0.6)
    labels = {block * pitch: task for block, task in enumerate(tasks)}
    labels |= {
        block * pitch + 1 + i: source
        for block in range(len(tasks))
        for i, source in enumerate(sources)
    }
    ax.set_yticks(list(labels), [display_name(name) for name in labels.values()], fontsize=7.5)
    for label in ax.get_yticklabels()[: len(tasks)]:
        label.set(fontsize=10, fontweight="bold")
    ax.set(xscale="log", ylim=(len(tasks) * pitch - 0.6, -0.8), xlabel="test error (%), log scale")
    error_axis(ax)
    _legend(ax, zoo, kind)
    return ax


def fig1(errors: pd.DataFrame, *, ax: plt.Axes | None = None) -> plt.Axes:
    """Test error (%, log scale) over images per class, a line a method: one target of a panel of the paper's Fig. 1.

    errors: columns target, method, shots (numbers, then `full`), test_error. Lines from random weights are dashed.
    """
    shots = sorted(set(_one(errors, "target")["shots"]), key=lambda s: (s == "full", s.zfill(9)))
    ax = axes(ax, 3.6)
    for i, (method, rows) in enumerate(errors.groupby("method", sort=False)):
        line = rows.set_index("shots")["test_error"].reindex(shots)
        ours, colour = method.startswith("model_zoo"), (BLUE, GREEN, PINK, GREY)[i % 4]
        ax.plot(
            range(len(shots)),
            line,
            "--" if method.startswith("random") else "-",
            marker="osD^vP"[i % 6],
            mfc="none",
            ms=5,
            color=ORANGE if ours else colour,
            lw=2.5 if ours else 1.2,
            label=display_name(method),
        )
    ax.set_xticks(range(len(shots)), shots)
    ax.set(
        yscale="log",
        xlabel="training images per class",
        ylabel="test error (%)",
        title=display_name(errors["target"].iloc[0]),
    )
    error_axis(ax, "y")
    ax.figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return ax


def gains(metrics: pd.DataFrame, k: int = 3) -> pd.DataFrame:
    """Points gained over the generic expert: targets × (best, worst, each selector's top k), last row the average.

    `metrics` is `evaluate(…)` in one setting; means over seeds, then over targets.
    """
    metrics = _one(
        metrics[metrics["selector"] != "noise_ceiling"],
        "suite",
        "shots",
        "images_per_class",
        "protocol",
    )
    mean = 100 * metrics.pivot_table(
        index="task", columns=["metric", "selector"], values="value", dropna=False
    )
    extremes = {name: mean[f"{name}_gain"].mean(axis=1) for name in ("best", "worst")}
    table = pd.DataFrame(extremes).join(mean[f"top{k}_gain"][selector_order(metrics["selector"])])
    return pd.concat([table, table.mean().to_frame("average").T])


def fig4(metrics: pd.DataFrame, *, k: int = 3, ax: plt.Axes | None = None) -> plt.Axes:
    """Heat map of `gains`: the paper's Fig. 4, 5 and 7, a row a target; under each average its 95 % interval.

    Intervals are those of `summarize`: a bootstrap over targets, and over seeds within them.
    """
    table = gains(metrics, k)
    names = {"best": "best_gain", "worst": "worst_gain"}
    summary = summarize(
        metrics[metrics["metric"].isin([*names.values(), f"top{k}_gain"])], np.random.default_rng(0)
    )
    interval = 100 * summary.set_index(["metric", "selector"])[["low", "high"]]
    ax = axes(ax, 1.5 + 0.25 * len(table), width=1.6 + 0.4 * max(table.shape[1], 8))
    limit = (
        np.nanquantile(table.drop(columns="worst").abs(), 0.9) or 1
    )  # the worst expert must not bleach all others
    ax.imshow(table, cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto")
    for (i, j), value in np.ndenumerate(table.to_numpy()):
        if np.isfinite(value):
            colour = "white" if abs(value) > 0.7 * limit else "black"
            ax.text(
                j,
                i,
                f"{round(value, 1) + 0.0:+.1f}",
                ha="center",
                va="center",
                fontsize=8,
                color=colour,
            )
    for j, column in enumerate(table):
        metric = names.get(column, f"top{k}_gain")
        low, high = (
            interval.loc[metric].iloc[0] if column in names else interval.loc[(metric, column)]
        )
        ax.text(j, len(table) - 0.4, f"{low:+.1f}\n{high:+.1f}", ha="center", va="top", fontsize=7)
    ax.set_xticks(
        range(table.shape[1]),
        map(display_name, table),
        rotation=35,
        ha="left",
        rotation_mode="anchor",
    )
    ax.set_yticks(range(len(table)), map(display_name, table.index))
    ax.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    ax.set_xlabel("\n\n95 % interval of the average, points", fontsize=8)
    ax.axvline(1.5, color=GREY, lw=2)
    ax.axhline(len(table) - 1.5, color=GREY, lw=2)
    ax.spines[:].set_visible(False)
    return ax


def fig7(metrics: pd.DataFrame, *, k: int = 3, ax: plt.Axes | None = None) -> plt.Axes:
    """Mean gain of the top k against the images per class that the score has seen: the averages of the paper's Fig. 7.

    `metrics` is `evaluate(…)` in one regime with several `images_per_class`; bars: 95 % intervals of `summarize`.
    """
    summary = summarize(metrics[metrics["metric"] == f"top{k}_gain"], np.random.default_rng(0))
    sizes = sorted(set(summary["images_per_class"]), key=lambda s: (s == "all", s.zfill(9)))
    selectors = selector_order(_one(summary, "suite", "shots", "protocol")["selector"])
    ax = axes(ax, 0.6 + 0.3 * len(selectors))
    for i, size in enumerate(sizes):
        rows = 100 * summary[summary["images_per_class"] == size].set_index("selector")[
            ["mean", "low", "high"]
        ].reindex(selectors)
        y, colour = (
            np.arange(len(rows)) + 0.22 * (i - (len(sizes) - 1) / 2),
            (GREEN, BLUE, ORANGE, PINK)[i % 4],
        )
        ax.hlines(y, rows["low"], rows["high"], color=colour, lw=1.5)
        ax.plot(rows["mean"], y, "o", ms=4, color=colour, label=f"{size} images a class")
    ax.set_yticks(range(len(selectors)), map(display_name, selectors))
    ax.set(ylim=(len(selectors) - 0.5, -0.5), xlabel=f"{display_name(f'top{k}_gain')} (points)")
    ax.grid(axis="x", color=GREY, alpha=0.25, lw=0.6)
    ax.figure.legend(loc="outside upper center", ncols=len(sizes))
    return ax


def fig6(
    summary: pd.DataFrame,
    metrics: pd.DataFrame | None = None,
    *,
    metric: str = "spearman",
    ax: plt.Axes | None = None,
) -> plt.Axes:
    """Bars of a metric's mean over targets with intervals, best selector first: the paper's Fig. 6.

    `summary` is `summarize(metrics)` in one setting; with `metrics`, a dot a target (mean over seeds). Grey bars: baselines;
    dotted line: chance; band: noise ceiling; orange line: the best expert's gain. Gains and regrets in points.
    """
    points = metric.endswith("_gain") or metric.startswith("regret")
    unit = 100 if points else 1
    rows = summary.set_index(["metric", "selector"])[["mean", "low", "high"]] * unit
    _one(
        summary[summary["selector"] != "noise_ceiling"],
        "suite",
        "shots",
        "images_per_class",
        "protocol",
    )
    bars = rows.loc[metric].drop(index="noise_ceiling", errors="ignore").dropna(subset="mean")
    bars = bars.sort_values("mean", ascending=metric.startswith(("trials", "regret")))
    ax = axes(ax, 0.9 + 0.25 * len(bars))
    baselines = [name for name, selector in SELECTORS.items() if selector.kind == "baseline"]
    colours = [GREY if name in baselines else BLUE for name in bars.index]
    ax.barh(range(len(bars)), bars["mean"], color=colours, alpha=0.45, height=0.7)
    ax.hlines(range(len(bars)), bars["low"], bars["high"], color=colours, lw=2.5)
    if metrics is not None:
        dots = unit * metrics[metrics["metric"] == metric].groupby(["selector", "task"])[
            "value"
        ].mean().unstack().reindex(bars.index)
        for i, (_, values) in enumerate(dots.iterrows()):
            ax.plot(values, [i] * len(values), "o", ms=2.2, color=colours[i], alpha=0.5, mew=0)
    if metric.endswith("_gain"):
        best = rows.loc["best_gain", "mean"].iloc[0]
        ax.axvline(best, color=ORANGE, lw=1.5)
        ax.text(best, -0.7, "best expert ", ha="right", fontsize=8)
    ceiling = rows["mean"].reindex(
        [(metric, "noise_ceiling"), (f"{metric}_upper", "noise_ceiling")]
    )
    if ceiling.notna().all():
        ax.axvspan(*ceiling, color=GREY, alpha=0.25, lw=0)
        ax.text(ceiling.mean(), -0.7, "noise ceiling", ha="center", fontsize=8)
    ax.set_yticks(range(len(bars)), map(display_name, bars.index))
    name = display_name(metric) + (" (points)" if points else "")
    ax.set(ylim=(len(bars) - 0.4, -1), xlabel=f"{name}, mean over {summary['tasks'].max()} targets")
    if "random" in bars.index:
        ax.axvline(bars.loc["random", "mean"], color=GREY, ls=":")
    ax.tick_params(axis="y", length=0)
    return ax


def score_against_accuracy(
    scores: pd.DataFrame,
    accuracy: pd.DataFrame,
    zoo: pd.DataFrame,
    *,
    generic: str,
    ax: plt.Axes | None = None,
) -> plt.Axes:
    """Score (x) against fine-tuned accuracy (y, %) of every expert, one selector, one task, means over seeds.

    Labelled by source, best first, as far as labels do not overlap. `accuracy` is `truth(…)` in the same setting.
    """
    selector = _one(scores, "suite", "task", "shots", "images_per_class", "selector")[
        "selector"
    ].iloc[0]
    table = zoo.set_index("expert")[["source", "architecture"]].assign(
        score=scores.groupby("expert")["score"].mean(),
        group=groups(zoo, generic),
        accuracy=100
        * _one(accuracy, "suite", "task", "shots").groupby("expert")["accuracy"].mean(),
    )
    table = table.dropna().sort_values("accuracy", ascending=False)
    ax, labelled = axes(ax, 4.2), []
    for row in table.itertuples():
        ax.plot(
            row.score,
            row.accuracy,
            MARKERS.get(row.architecture, "D"),
            color=GROUPS[row.group][1],
            mfc="none",
        )
    for row in table.itertuples():
        x, y = ax.transData.transform((row.score, row.accuracy))
        if all(abs(x - a) > 50 or abs(y - b) > 10 for a, b in labelled):
            ax.text(row.score, row.accuracy, f"  {display_name(row.source)}", fontsize=7)
            labelled.append((x, y))
    ax.set(
        xlabel=f"{display_name(selector)} (higher is better)",
        ylabel="accuracy after fine-tuning (%)",
    )
    ax.grid(color=GREY, alpha=0.25, lw=0.6)
    _legend(ax, table, table["group"])
    return ax


def kernel(
    gram: np.ndarray, labels: np.ndarray, *, title: str = "", ax: plt.Axes | None = None
) -> plt.Axes:
    """A kernel [N, N] with images sorted by class and lines between classes; the paper's Fig. 8. Colours: 1-99 %."""
    order, (low, high) = np.argsort(labels, kind="stable"), np.quantile(gram, [0.01, 0.99])
    ax = axes(ax, 3.4, width=3.4)
    ax.imshow(
        np.asarray(gram)[np.ix_(order, order)],
        cmap="cividis",
        vmin=low,
        vmax=high,
        interpolation="nearest",
    )
    for edge in np.flatnonzero(np.diff(np.sort(labels))) + 0.5:
        ax.axhline(edge, color="white", lw=0.5)
        ax.axvline(edge, color="white", lw=0.5)
    ax.set(xticks=[], yticks=[], title=title)
    return ax


def contact_sheet(
    images: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    per_class: int = 1,
    ax: plt.Axes | None = None,
) -> plt.Axes:
    """The first `per_class` images of each class, uint8 [N, H, W, 3]: a column a class, at most 16 classes."""
    columns = [
        images[np.flatnonzero(labels == c)[:per_class]] for c in range(min(len(class_names), 16))
    ]
    ax = axes(ax, 0.1 + 4.8 * per_class / len(columns))
    ax.imshow(
        np.pad(columns, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
        .transpose(1, 2, 0, 3, 4)
        .reshape(per_class * (images.shape[1] + 2), -1, 3)
    )
    ax.set_anchor("W")
    ax.set_axis_off()
    return ax
