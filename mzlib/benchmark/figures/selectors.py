"""Figures that compare selectors: quality, stability, cost, agreement, few images; tidy tables in, axes out."""

from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator
from scipy import stats
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import squareform
from sklearn.decomposition import PCA
from sklearn.isotonic import IsotonicRegression
from sklearn.mixture import GaussianMixture

from mzlib.benchmark.metrics import regret_against_cost
from mzlib.benchmark.figures.plots import _one
from mzlib.benchmark.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    axes,
    display_name,
    error_axis,
    use_style,
)
from mzlib.benchmark.scoring import of_one_machine, seconds_alone
from mzlib.dataset import few_shot
from mzlib.errors import Missing
from mzlib.selectors import SELECTORS, hscore, leep, logme, nleep
from mzlib.uncertainty import interval, permutation_null

BASELINES = [name for name, selector in SELECTORS.items() if selector.kind == "baseline"]


def _heat_map(ax: Axes, table: pd.DataFrame, *, limit: float = 1.0, numbers: bool = True) -> None:
    """Cells in orange (above zero) and violet (below), columns named on top; a missing one stays empty."""
    ax.imshow(table, cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto")
    for (i, j), value in np.ndenumerate(table.to_numpy(float)):
        if numbers and np.isfinite(value):
            ax.text(
                j,
                i,
                f"{value:.2f}".replace("0.", ".", 1),
                ha="center",
                va="center",
                fontsize=7,
                color="white" if abs(value) > 0.7 * limit else "black",
            )
    ax.set_xticks(
        range(table.shape[1]),
        map(display_name, table),
        rotation=40,
        ha="left",
        rotation_mode="anchor",
        fontsize=8,
    )
    ax.set_yticks(range(len(table)), map(display_name, table.index), fontsize=8)
    ax.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    ax.spines[:].set_visible(False)


def by_task(metrics: pd.DataFrame, *, metric: str = "spearman", ax: Axes | None = None) -> Axes:
    """A correlation of every selector on every task and its mean over tasks, best first; `metrics` is `evaluate(…)`."""
    rows = metrics[
        (metrics["metric"] == metric) & ~metrics["selector"].isin(["noise_ceiling", "random"])
    ]
    table = _one(rows, "suite", "shots", "images_per_class", "protocol").pivot_table(
        "value", "selector", "task"
    )
    table["average"] = table.mean(axis=1)
    table = table.sort_values("average", ascending=False)
    ax = axes(ax, 1.0 + 0.175 * len(table))
    _heat_map(ax, table, numbers=table.shape[1] < 12)
    ax.axvline(table.shape[1] - 1.5, color=GREY, lw=2)
    return ax


def half_zoos(halves: pd.DataFrame) -> np.ndarray:
    """Quality (median and 90 % of draws) of every selector in halves of the zoo, and its place among the selectors.

    `halves` is `zoo_halves(…)`; above: Kendall's τ-b of the selectors' order in the two halves of a draw, as in `half_tau`.
    """
    use_style()
    wide = halves.pivot(index=["draw", "half"], columns="selector", values="value").drop(
        columns=BASELINES, errors="ignore"
    )
    order = wide.median().sort_values(ascending=False).index
    figure, panels = plt.subplots(
        1, 2, figsize=(5, 1.1 + 0.175 * len(order)), layout="constrained", sharey=True
    )
    for ax, table, label in zip(
        panels, (wide, wide.rank(axis=1, ascending=False)), ("Spearman in half the zoo", "place")
    ):
        low, middle, high = table[order].quantile([0.05, 0.5, 0.95]).to_numpy()
        ax.hlines(range(len(order)), low, high, color=BLUE, lw=2, alpha=0.5)
        ax.plot(middle, range(len(order)), "o", ms=3.5, color=BLUE)
        ax.set_xlabel(label)
        ax.grid(axis="x", color=GREY, alpha=0.25, lw=0.6)
    panels[0].set_yticks(range(len(order)), map(display_name, order), fontsize=8)
    panels[0].set_ylim(len(order) - 0.4, -0.6)
    panels[0].axvline(0, color=GREY, ls=":")
    figure.suptitle(
        "order in the other half: τ = {:.2f} [{:.2f}, {:.2f}]".format(
            *half_tau(halves).quantile([0.5, 0.05, 0.95])
        ),
        fontsize=10,
        color=GREY,
    )
    return panels


def half_tau(halves: pd.DataFrame) -> pd.Series:
    """Kendall's τ-b between the selectors' qualities in the two halves of each draw; no baselines."""
    halves = halves[~halves["selector"].isin(BASELINES)]
    wide = halves.pivot(index=["draw", "selector"], columns="half", values="value").dropna()
    return wide.groupby("draw").apply(lambda pair: stats.kendalltau(pair[0], pair[1]).statistic)


def over_images(metrics: pd.DataFrame, agreement: pd.DataFrame) -> np.ndarray:
    """Two heat maps over images per class: correlation with accuracy, and with the selector's own scores from all images.

    metrics: `evaluate(…)` of one regime; agreement: `agreement_with_all_images(…)`; means over tasks of means over samples.
    """
    use_style()
    rows = metrics[
        (metrics["metric"] == "spearman") & ~metrics["selector"].isin(["noise_ceiling", *BASELINES])
    ]
    sizes = sorted(
        set(_one(rows, "suite", "shots", "protocol")["images_per_class"]),
        key=lambda s: (s == "all", s.zfill(9)),
    )
    quality, own = (
        table.groupby(["selector", "images_per_class", "task"])["value"]
        .mean()
        .groupby(level=[0, 1])
        .mean()
        .unstack()
        for table in (rows, agreement)
    )
    quality = quality.sort_values("all", ascending=False)
    _, panels = plt.subplots(
        1, 2, figsize=(5, 1.0 + 0.175 * len(quality)), layout="constrained", sharey=True
    )
    for ax, table, title in zip(panels, (quality, own), ("with accuracy", "with all images")):
        _heat_map(ax, table.reindex(index=quality.index, columns=sizes))
        ax.set_xticks(range(len(sizes)), sizes, rotation=0, ha="center")
        ax.set_title(title)
    return panels


def cost_against_quality(
    scores: pd.DataFrame, summary: pd.DataFrame, finetune: pd.DataFrame, *, ax: Axes | None = None
) -> Axes:
    """Seconds to score the zoo on one task (log) against mean Spearman; line: no other is both cheaper and better.

    A selector alone (`seconds_alone`), evidence included; all tables of one regime. Dotted: the best baseline; dashed: one
    fine-tune, and one of every expert.
    """
    scores, finetune = of_one_machine(scores, finetune)
    task = (
        scores.assign(seconds=seconds_alone(scores))
        .groupby(["selector", "task", "seed"])["seconds"]
        .sum()
    )
    table = summary[summary["metric"] == "spearman"].set_index("selector")[["mean", "low", "high"]]
    table = table.assign(seconds=task.groupby("selector").mean()).dropna(subset=["mean", "seconds"])
    baseline, table = (
        table[table.index.isin(BASELINES)],
        table[~table.index.isin(BASELINES)].sort_values("seconds"),
    )
    front = table[table["mean"] > table["mean"].shift(fill_value=-2).cummax()]
    ax = axes(ax, max(3.6, 1.0 + 0.15 * len(table)))
    ax.vlines(table["seconds"], table["low"], table["high"], color=BLUE, alpha=0.2, lw=1.5)
    ax.plot(table["seconds"], table["mean"], "o", ms=4, color=BLUE, mfc="none")
    ax.plot(
        front["seconds"], front["mean"], "o-", ms=4, color=ORANGE, drawstyle="steps-post", lw=1.2
    )
    table = table.sort_values("mean")
    line = (
        0.15 * (table["high"].max() - table["low"].min()) / (1.0 + 0.15 * len(table))
    )  # names keep a line's distance …
    apart = line * np.arange(len(table))
    heights = (
        IsotonicRegression().fit_transform(np.arange(len(table)), table["mean"] - apart) + apart
    )  # … near their points
    for (name, row), height in zip(table.iterrows(), heights):
        ax.annotate(
            display_name(name),
            row[["seconds", "mean"]],
            (-0.06, height),
            textcoords=ax.get_yaxis_transform(),
            ha="right",
            va="center",
            fontsize=7.5,
            color=ORANGE if name in front.index else GREY,
            arrowprops={
                "arrowstyle": "-",
                "color": GREY,
                "lw": 0.5,
                "alpha": 0.5,
                "shrinkA": 0,
                "shrinkB": 2,
            },
        )
    one = finetune.groupby(["task", "expert"])["seconds"].mean()
    for seconds, label in (
        (one.mean(), "one fine-tune"),
        (one.groupby("task").sum().mean(), "all fine-tunes"),
    ):
        ax.axvline(seconds, color=GREY, ls="--", lw=1)
        ax.text(
            seconds,
            0.01,
            label,
            rotation=90,
            ha="right",
            va="bottom",
            fontsize=8,
            transform=ax.get_xaxis_transform(),
        )
    if len(baseline):
        ax.axhline(baseline["mean"].max(), color=GREY, ls=":")
        ax.text(
            1,
            baseline["mean"].max(),
            display_name(baseline["mean"].idxmax()),
            ha="right",
            va="bottom",
            fontsize=8,
            transform=ax.get_yaxis_transform(),
        )
    ax.yaxis.tick_right()
    ax.yaxis.set_label_position("right")
    ax.spines[["left", "right"]].set_visible([False, True])
    ax.set(
        xscale="log",
        xlabel="seconds to score the zoo on one task",
        ylabel="Spearman correlation, mean over tasks",
    )
    error_axis(ax)
    return ax


def agreement(scores: pd.DataFrame, accuracy: pd.DataFrame) -> np.ndarray:
    """Spearman's correlation over experts between every two selectors, mean over tasks, and with the accuracy after
    fine-tuning; ordered by a tree (average linkage of 1 − correlation); one setting, means over seeds. Selectors that have
    no score, or one for all experts, on some task are left out."""
    scores = _one(scores, "suite", "shots", "images_per_class")
    both = pd.concat([scores, accuracy.assign(selector="accuracy", score=accuracy["accuracy"])])
    wide = both.pivot_table(index=["task", "expert"], columns="selector", values="score")
    wide = wide.loc[wide["accuracy"].notna(), wide.groupby("task").nunique().gt(1).all()]
    table = wide.groupby("task").corr("spearman").groupby("selector").mean().loc[wide.columns]
    tree = linkage(
        squareform((1 - table).to_numpy(), checks=False), "average", optimal_ordering=True
    )
    use_style()
    figure, panels = plt.subplots(
        2,
        1,
        figsize=(5, 1.3 + 0.17 * len(table)),
        layout="constrained",
        gridspec_kw={"height_ratios": [1, 0.2 * len(table)]},
    )
    leaves = dendrogram(tree, ax=panels[0], link_color_func=lambda _: GREY)["leaves"]
    panels[0].set_axis_off()
    _heat_map(panels[1], table.iloc[leaves, leaves], numbers=False)
    panels[1].set_xticks([])
    for label in panels[1].get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == "accuracy" else "normal")
    figure.colorbar(
        panels[1].images[0],
        ax=panels[1],
        location="bottom",
        label="Spearman correlation",
        shrink=0.6,
        aspect=30,
    )
    return panels


# --- textbook formulas, as printed, with nothing done for few images ---------------------------------------------------


def textbook_hscore(features: np.ndarray, labels: np.ndarray) -> float:
    """tr(Σ_F⁺ Σ_E[F|y]), Bao et al. 2019: C − 1 for every F when N ≤ D + 1."""
    means = np.stack([features[labels == c].mean(0) for c in np.unique(labels)])
    between = np.cov(means[np.unique(labels, return_inverse=True)[1]], rowvar=False)
    return float(
        np.trace(
            np.linalg.pinv(np.cov(features, rowvar=False), rcond=1e-10, hermitian=True) @ between
        )
    )


def textbook_logme(features: np.ndarray, labels: np.ndarray) -> float:
    """You et al. 2021, algorithm 1, with log det A summed over the min(N, D) singular values alone."""
    (n, d), (u, s, _) = features.shape, np.linalg.svd(features, full_matrices=False)
    evidence, v = [], s**2
    for c in np.unique(labels):
        x2, alpha, beta = (u.T @ (labels == c)) ** 2, 1.0, 1.0
        for _ in range(20):
            t = alpha / beta
            used, weights2 = (v / (t + v)).sum(), (v * x2 / (t + v) ** 2).sum()
            misfit = (x2 / (1 + v / t) ** 2).sum() + (labels == c).sum() - x2.sum()
            alpha, beta = used / (weights2 + 1e-5), (n - used) / (misfit + 1e-5)
        log_det = np.log(alpha + beta * v).sum()  # D − k terms log α are missing
        fit = beta * misfit + alpha * weights2
        evidence.append(
            (d * np.log(alpha) + n * np.log(beta / (2 * np.pi)) - log_det - fit) / (2 * n)
        )
    return float(np.mean(evidence))


def textbook_nleep(features: np.ndarray, labels: np.ndarray) -> float:
    """LEEP of a mixture of 5C Gaussians on PCA features, Li et al. 2021; needs 5C images, and then each is its own cluster."""
    if len(labels) < (number := 5 * len(np.unique(labels))):
        raise Missing(f"expected at least {number} images, one a component, got {len(labels)}")
    x = PCA(0.8, svd_solver="full").fit_transform(features)
    return leep(GaussianMixture(number, random_state=0).fit(x).predict_proba(x), labels)


FORMULAS: Mapping = {
    "hscore": (hscore, textbook_hscore),
    "logme": (logme, textbook_logme),
    "nleep": (nleep, textbook_nleep),
}


def few_images_table(
    features: np.ndarray, labels: np.ndarray, sizes: Sequence[int], seed: int = 0
) -> pd.DataFrame:
    """Scores of nested samples of `sizes` images per class, guarded and as printed, of true and of shuffled labels: `FORMULAS`,
    and the guarded one alone of every other selector that needs features and labels.

    features [N, D], labels int [N]. Returns: selector, formula, labels, images, score (NaN: missing).
    """
    rows, rng = [], np.random.default_rng(seed)
    others = {
        name: (s.function,)
        for name, s in SELECTORS.items()
        if set(s.needs) == {"features", "labels"} and s.combine is None
    }
    for index in (few_shot(labels, size, seed) for size in sizes):
        x = features[index].astype(float)
        for kind, y in (("true", labels[index]), ("shuffled", rng.permutation(labels[index]))):
            for name, formulas in (others | dict(FORMULAS)).items():
                for formula, function in zip(("guarded", "textbook"), formulas):
                    try:
                        value = function(x, y)
                    except Missing:
                        value = np.nan
                    rows.append((name, formula, kind, len(index), value))
    return pd.DataFrame(rows, columns=["selector", "formula", "labels", "images", "score"])


def few_images(table: pd.DataFrame, dimensions: int) -> np.ndarray:
    """A row a selector of `FORMULAS`: guarded (left) and textbook formula (right) over images; `few_images_table`. Vertical
    line: N = D."""
    use_style()
    names = list(FORMULAS)
    figure, panels = plt.subplots(
        len(names), 2, figsize=(5, 0.5 + 1.5 * len(names)), layout="constrained", sharex=True
    )
    for (name, formula, kind), rows in table[table["selector"].isin(names)].groupby(
        ["selector", "formula", "labels"], sort=False
    ):
        ax = panels[names.index(name), ["guarded", "textbook"].index(formula)]
        ax.plot(
            rows["images"],
            rows["score"],
            "o-" if kind == "true" else "s:",
            ms=3.5,
            mfc="none",
            color=(BLUE if formula == "guarded" else ORANGE) if kind == "true" else GREY,
        )
        ax.set(xscale="log", title=f"{display_name(name)}, {formula}")
    for ax in panels.flat:
        ax.axvline(dimensions, color=GREY, lw=1)
        ax.xaxis.set(major_formatter="{x:g}", minor_formatter="")
    figure.supxlabel("images N; line: N = D", fontsize=10)
    lines = panels[0, 0].get_lines()[:2] + panels[0, 1].get_lines()[:1]
    figure.legend(
        lines,
        ["true labels, guarded", "shuffled labels", "true labels, textbook"],
        loc="outside upper center",
        ncols=3,
    )
    return panels


def few_images_of_the_others(table: pd.DataFrame, dimensions: int) -> np.ndarray:
    """A panel a selector that has no textbook formula in `few_images`: true (blue) and shuffled labels (grey) over images."""
    use_style()
    names = [name for name in dict.fromkeys(table["selector"]) if name not in FORMULAS]
    figure, panels = plt.subplots(
        -(-len(names) // 3),
        3,
        figsize=(5, 0.5 + 1.15 * -(-len(names) // 3)),
        layout="constrained",
        sharex=True,
    )
    for ax, name in zip(panels.flat, names):
        for (kind,), rows in table[table["selector"] == name].groupby(["labels"]):
            ax.plot(
                rows["images"],
                rows["score"],
                "o-" if kind == "true" else "s:",
                ms=2.5,
                mfc="none",
                color=BLUE if kind == "true" else GREY,
            )
        ax.set_title(display_name(name).replace(", ", ",\n"), fontsize=8)
        ax.tick_params(labelsize=7)
        ax.axvline(dimensions, color=GREY, lw=1)
        ax.set_xscale("log")
        ax.xaxis.set(major_formatter="{x:g}", minor_formatter="")
    for ax in panels.flat[len(names) :]:
        ax.axis("off")
    figure.supxlabel("images N; line: N = D", fontsize=10)
    return panels


def regret_over_cost(
    scores: pd.DataFrame,
    finetune: pd.DataFrame,
    accuracy: pd.DataFrame,
    selectors: Iterable[str],
    *,
    ax: Axes | None = None,
) -> Axes:
    """Accuracy missed (points) against what was spent, in fine-tunes of a mean expert, scoring included: a point a short list
    k = 1 … E, means over tasks (`regret_against_cost`); one setting, one machine."""
    scores, finetune = of_one_machine(scores, finetune)
    scores = scores.assign(seconds=seconds_alone(scores))
    spent = finetune.groupby(["task", "expert"])["seconds"].mean()
    ax = axes(ax, 3.4)
    for name, colour, marker in zip(selectors, (BLUE, ORANGE, GREEN, PINK, GREY), "o^sDv"):
        curves = []
        for task, rows in scores[scores["selector"] == name].groupby("task"):
            zoo = (
                rows.groupby("expert")[["score", "seconds"]]
                .mean()
                .join(
                    accuracy[accuracy["task"] == task].groupby("expert")["accuracy"].mean(),
                    how="inner",
                )
            )
            curve = regret_against_cost(
                zoo["score"].to_numpy(),
                zoo["accuracy"].to_numpy(),
                (cost := spent[task].loc[zoo.index].to_numpy()),
                zoo["seconds"].sum(),
            )
            curves.append(curve.assign(seconds=curve["seconds"] / cost.mean()))
        mean = pd.concat(curves).groupby("k").mean()
        ax.plot(
            mean["seconds"],
            100 * mean["regret"],
            marker=marker,
            ms=3,
            mfc="none",
            lw=1.2,
            color=colour,
            label=display_name(name),
        )
    ax.set(
        xscale="log",
        xlabel="spent, in fine-tunes of a mean expert",
        ylabel="accuracy missed (points)",
        ylim=(0, None),
    )
    error_axis(ax)
    ax.legend()
    return ax


def null_table(
    evidence, selectors: Iterable[str], number: int = 20, groups: int = 10
) -> pd.DataFrame:
    """score, its 95 % interval low … high (`interval`), mean over shuffled labels and z against them (`permutation_null`);
    selectors that do not look at labels, that are scaled over the zoo, or that have no score here are left out."""
    rows = {}
    for name in selectors:
        try:
            null = permutation_null(SELECTORS[name], evidence, number)
            sure = interval(SELECTORS[name], evidence, groups=groups)
        except Missing:
            continue
        rows[name] = {
            "score": null.score,
            "low": sure.low,
            "high": sure.high,
            "null": null.mean,
            "z": null.z,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("selector")


def z_scores(tables: Mapping[str, pd.DataFrame], ax: Axes | None = None) -> Axes:
    """z against the permutation null of every selector, a marker an expert (`null_table` each); band: |z| < 2, chance."""
    table = pd.DataFrame({expert: rows["z"] for expert, rows in tables.items()})
    table = table.loc[table.mean(axis=1).sort_values(ascending=False).index]
    ax = axes(ax, 1.0 + 0.18 * len(table))
    for expert, colour, marker in zip(table, (BLUE, ORANGE), "o^"):
        ax.plot(
            table[expert],
            range(len(table)),
            marker,
            ms=5,
            mfc="none",
            color=colour,
            label=expert,
            clip_on=False,
        )
    ax.axvspan(-2, 2, color=GREY, alpha=0.25, lw=0)
    ax.set_yticks(range(len(table)), map(display_name, table.index), fontsize=8)
    ax.set_xscale("symlog", linthresh=2)
    ax.xaxis.set(major_locator=FixedLocator([-100, -10, 0, 10, 100, 1000]), major_formatter="{x:g}")
    ax.set(ylim=(len(table) - 0.4, -0.6), xlabel="z against shuffled labels")
    ax.grid(axis="x", color=GREY, alpha=0.25, lw=0.6)
    ax.figure.legend(loc="outside upper center", ncols=2)
    return ax
