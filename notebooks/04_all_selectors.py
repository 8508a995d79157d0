# %% [markdown]
# # All selectors on the toy suite
#
# [Open in Colab](https://colab.research.google.com/github/mzlib/mzlib/blob/main/notebooks/04_all_selectors.ipynb)
#
# **Every selector that we implement, on the same experts, images and tasks.** How well does each order the experts? Does that
# order survive another zoo, or fewer images? What does it cost, which selectors agree, and what goes wrong with fewer images
# than features? The toy suite is an instrument, not a verdict: it shows whether a score works as its formula promises and where
# it breaks. Which score to trust on photographs is [a question for photographs](../all_selectors.md). Only single-domain experts
# take part. Parameters: for the tables `suite`, `shots`, `images_per_class` and `protocol` (`paper`: learning rate picked on test
# images; `validation`: on validation images); for what is computed live `task` and `expert`.

# %% tags=["parameters"]
suite = "mini"
shots = "20"
images_per_class = "25"
protocol = "paper"
task = "digits"
expert = "resnet-glyphs-scratch"
known = {name for name in globals() if not name.startswith("_")}

# %% tags=["hide-input"]
import os
import sys

if "google.colab" in sys.modules:
    os.system(
        "git clone -q --depth 1 --branch v0.2.0 https://github.com/mzlib/mzlib"
        " && pip install -q ./mzlib"
    )
    os.chdir("mzlib")

from mzlib.benchmark.notebooks import check_parameters

chosen = check_parameters(known, globals())

# %% tags=["hide-input"]
from IPython.display import Markdown

from mzlib.benchmark import figures
from mzlib.benchmark import compare, complete, evaluate, load_results, summarize, truth
from mzlib.errors import MzlibError

shots = str(shots)
images_per_class = str(images_per_class)
results = load_results(suite)
if results.scores.empty or results.finetune.empty:
    raise MzlibError(
        f"expected scores and fine-tunes of the suite {suite!r}, got none yet: "
        f"run `mzlib run {suite}`"
    )
scores = results.scores[~results.scores["expert"].str.contains(":")]
runs = complete(results.finetune, chosen, "single")
sample = scores.query("shots == @shots and images_per_class == @images_per_class")
runs_here = runs.query("shots == @shots")
accuracy = truth(runs_here, protocol)
metrics = compare(results, chosen, "single", protocols=[protocol])
metrics = metrics.query("shots == @shots and images_per_class in [@images_per_class, '']")
summary = summarize(metrics)
figures.provenance_line(suite, results.provenance)

# %% [markdown]
# ## All selectors, all tasks
#
# Spearman's correlation between scores and fine-tuned accuracies; selectors are sorted by their mean. Along a row, look for a
# selector that is good on average and fails on one task: it would mislead whoever has that task. Down a column, look for tasks
# where all cells are pale: their experts differ too little to be ranked.

# %% tags=["hide-input", "functions"]
from mzlib.benchmark import figures
from mzlib.benchmark.figures.plots import SETTING, one, unseeing
from mzlib.benchmark.figures.style import BLUE, GREY, ORANGE, axes, error_axis


def by_task(metrics):
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
    ax = axes(None, height + 0.175 * len(table))
    figures.heat_map(ax, table, form=".2f" if numbers else "")
    line = ax.axhline if by_rows else ax.axvline
    line(max(table.shape) - 1, color=GREY, lw=2)
    return ax


# %% tags=["hide-input"] mystnb={"image": {"alt": "Heat map of the rank correlation of every selector on every task"}}
by_task(metrics)
rho = metrics.query("metric == 'spearman' and selector != 'noise_ceiling'")
highest = rho.groupby("selector")["value"].mean().idxmax()
of_tasks = rho[rho["selector"] == highest].groupby("task")["value"].mean()
figures.download(
    rho,
    "by-task",
    f"Even the selector with the highest mean, {figures.display_name(highest)}, "
    f"ranges from {of_tasks.min():.2f} to {of_tasks.max():.2f}.",
)

# %% [markdown]
# Means with 95 % intervals over tasks. Grey bars are baselines that see no image of the task; a selector must beat them to be
# worth running. The noise ceiling, available if fine-tunes have several seeds, is what a perfect selector would reach.

# %% tags=["hide-cell"] mystnb={"image": {"alt": "Bars with intervals of the mean rank correlation, one per selector"}}
figures.fig6(summary)
rows = summary.query("metric == 'spearman'").set_index("selector")
best = rows.loc[rows["mean"].drop("noise_ceiling").idxmax()]
reach = (rows["high"] >= best["mean"]).sum() - 1
ceiling = metrics.query("selector == 'noise_ceiling' and metric == 'spearman'")["reason"]
no_ceiling = f"No noise ceiling: {ceiling.iloc[0]}." if ceiling.all() else ""
Markdown(
    f"On {accuracy['task'].nunique()} targets with {accuracy['expert'].nunique()} experts, "
    f"{figures.display_name(best.name)} has the highest mean: "
    f"{best['mean']:.2f} [{best['low']:.2f}, {best['high']:.2f}]. "
    f"The intervals of {reach} other selectors reach that mean. {no_ceiling}"
)

# %% [markdown]
# All metrics, with an interval for Spearman's correlation; gains and regrets are fractions:

# %% tags=["hide-input"]
shown = [
    "kendall",
    "weighted_tau",
    "weighted_tau_accuracy",
    "pearson",
    "top1_gain",
    "top3_gain",
    "trials_to_best",
    "regret_at_1",
    "coverage",
]
means = summary.pivot(index="selector", columns="metric", values="mean")[shown]
table = rows[["mean", "low", "high"]].rename(columns={"mean": "spearman"})
table = table.join(means).drop("noise_ceiling")
table = table.sort_values("spearman", ascending=False)
figures.show(
    table.rename(index=figures.display_name, columns=figures.display_name),
    f"all-selectors-{shots}",
    decimals=2,
    caption="Every metric of every selector, mean over tasks.",
)

# %% [markdown]
# ## Another zoo
#
# Would the same selectors win with other experts? We split the zoo into two random halves, many times, and judge every selector
# in each half. A box shows the rank of a selector among the others (whiskers: 90 % of the halves). Selectors whose boxes overlap
# swap places from zoo to zoo; read no table of winners more finely than that. Top: how well the order in one half predicts the
# order in the other.

# %% tags=["hide-input", "functions"]
import numpy as np
import pandas as pd
import seaborn as sns

from mzlib.benchmark.metrics import spearman
from mzlib.errors import Missing


def zoo_halves(scores, accuracy, rng, draws=200):
    """Spearman's correlation, mean over tasks, of every selector in disjoint random halves of the
    zoo.

    scores, accuracy (`truth`): one setting; means over seeds; the experts that were fine-tuned on
    every task. A task where a half has a missing score, or the same one for all, is left out of the
    mean. Returns: draw, half (0, 1), selector, value.

    Raises: Missing, with fewer than 3 experts a half.
    """
    tuned = accuracy.pivot_table("accuracy", "task", "expert").dropna(axis=1)
    experts = tuned.shape[1]
    size = experts // 2
    if size < 3:
        raise Missing(f"expected at least 6 fine-tuned experts to halve the zoo, got {experts}")
    wide = scores.pivot_table("score", ["task", "selector"], "expert")
    wide = wide.reindex(columns=tuned.columns)
    selectors = wide.index.unique("selector")
    orders = [rng.permutation(experts)[: 2 * size] for _ in range(draws)]
    index = np.reshape(orders, (draws, 2, size))
    by_task = []
    for task in wide.index.unique("task").intersection(tuned.index):
        score = wide.loc[task].reindex(selectors).to_numpy()[:, index]
        reached = tuned.loc[task].to_numpy()[index]
        by_task.append(spearman(score, reached))
    mean = np.ma.masked_invalid(by_task).mean(axis=0).filled(np.nan)  # [selectors, draws, 2]
    axes = pd.MultiIndex.from_product(
        [selectors, range(draws), (0, 1)],
        names=["selector", "draw", "half"],
    )
    return pd.Series(mean.ravel(), axes, name="value").dropna().reset_index()


# %% tags=["hide-input", "functions"]
def seeing(halves):
    """Without the baselines that look at no image of the target."""
    baselines = unseeing(halves["selector"].unique())
    return halves[~halves["selector"].isin(baselines)]


def half_tau(halves):
    """Kendall's τ-b between the selectors' qualities in the two halves of each draw."""
    wide = seeing(halves).pivot(index=["draw", "selector"], columns="half", values="value").dropna()
    return wide.groupby("draw").apply(lambda pair: pair[0].corr(pair[1], "kendall"))


def half_zoos(halves):
    """Place of every selector among the others in random halves of the zoo (box; line: 90 %).

    `halves` is `zoo_halves(…)`; title: Kendall's τ-b of the order in the two halves of a draw.
    """
    halves = seeing(halves)
    by_half = halves.groupby(["draw", "half"])
    place = halves.assign(
        place=by_half["value"].rank(ascending=False),
        name=halves["selector"].map(figures.display_name),
    )
    order = place.groupby("name")["place"].median().sort_values().index
    ax = axes(None, 1.1 + 0.175 * len(order))
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


# %% tags=["hide-cell"] mystnb={"image": {"alt": "Quality and place of every selector in random halves of the zoo"}}
try:
    halves = zoo_halves(sample, accuracy, np.random.default_rng(0))
    half_zoos(halves)
    described = halves.groupby("selector")["value"].describe()
    caption = (
        "The orders of the selectors in the two halves of the zoo agree "
        f"with a Kendall τ of {half_tau(halves).median():.2f} (median)."
    )
    display(figures.download(described, "halves", caption))
except Missing as reason:
    print(f"left out: {reason}")

# %% [markdown]
# ## Fewer images
#
# The regime with the most sample sizes, scored again with fewer images per class. Left: correlation with fine-tuned accuracy.
# Right: correlation with the same selector's scores on all images, which isolates sampling noise. A selector can be stable but
# wrong (high on the right, low on the left), or right only with many images. In an empty cell there is no correlation: one image
# per class is too few for a leave-one-out score, and a saturated score is the same for all experts.

# %% tags=["hide-input", "functions"]
import matplotlib.pyplot as plt


def agreement_with_all_images(scores):
    """Spearman's correlation over experts of each sample's scores with the same selector's from all
    images (seed 0).
    """
    sample = ["images_per_class", "seed"]
    wide = scores.pivot(index=["task", "selector", *sample], columns="expert", values="score")
    every = wide.xs(("all", 0), level=sample)
    every = every.reindex(wide.index.droplevel(sample))
    agreement = spearman(wide.to_numpy(), every.to_numpy())
    return wide.assign(value=agreement)["value"].reset_index()


def over_images(metrics, agreement):
    """Heat maps over images per class: correlation with accuracy, and with the selector's own
    scores from all images.
    """
    blind = metrics["selector"].isin([*figures.BASELINES, "noise_ceiling"])
    rows = metrics[(metrics["metric"] == "spearman") & ~blind]
    sizes = sorted(set(rows["images_per_class"]) - {"all"}, key=int)

    def by_size(table):
        of_tasks = table.pivot_table("value", ["selector", "task"], "images_per_class")
        return of_tasks.groupby("selector").mean()[[*sizes, "all"]]

    quality = by_size(rows).sort_values("all", ascending=False)
    own = by_size(agreement)
    height = 1.0 + 0.175 * len(quality)
    _, panels = plt.subplots(1, 2, figsize=(5, height), layout="constrained", sharey=True)
    figures.heat_map(panels[0], quality)
    figures.heat_map(panels[1], own.loc[quality.index])
    panels[0].set_title("with accuracy")
    panels[1].set_title("with all images")
    return panels


# %% tags=["hide-cell"] mystnb={"image": {"alt": "Heat maps of quality and self-agreement of every selector over images per class"}}
regime = scores.groupby("shots")["images_per_class"].nunique().idxmax()
runs_of_regime = runs[runs["shots"] == regime]
in_regime = scores["shots"] == regime
is_tuned = scores["expert"].isin(runs_of_regime["expert"])
few = scores[in_regime & is_tuned]
sizes = set(few["images_per_class"])
if len(sizes) > 1 and "all" in sizes:
    fewer = evaluate(
        few,
        runs_of_regime,
        generic=chosen.reference,
        protocols=[protocol],
        ks=(),
        correlations=["spearman"],
    )
    over_images(fewer, agreement_with_all_images(few))
    means = fewer.pivot_table("value", ["task", "selector", "metric"], "images_per_class")
    caption = (
        f"{regime} shots, {few['expert'].nunique()} experts. "
        "If a row is dark in both maps from the first column on, a few images were enough."
    )
    display(figures.download(means, "fewer-images", caption))
else:
    print(f"left out: the suite {suite} has one sample size only")

# %% [markdown]
# ## Cost
#
# The time to score the whole zoo on one task with one selector, forward pass included, against its rank correlation. No selector
# is both cheaper and better than one on the orange line. Selectors on features form a column, because the forward pass is
# nearly all they cost; those that need gradients or a reference network lie to the right. Beyond the first dashed line a selector costs
# more than one fine-tune; near the second, you might as well fine-tune every expert.

# %% tags=["hide-input", "functions"]
from textwrap import wrap

from mzlib.benchmark.scoring import of_one_machine, seconds_alone


def seconds_and_quality(scores, summary, finetune):
    """Mean Spearman of every selector and its seconds to score the zoo on one task, alone
    (`seconds_alone`), evidence included; those that see no image have none.
    """
    scores, _ = of_one_machine(scores, finetune)
    seconds = scores.assign(seconds=seconds_alone(scores))
    seconds = seconds.groupby(["selector", "task", "seed"])["seconds"].sum()
    table = summary[summary["metric"] == "spearman"].set_index("selector")[["mean"]]
    table["seconds"] = seconds.groupby("selector").mean()
    blind = table.index.intersection(unseeing(table.index))
    table.loc[blind, "seconds"] = np.nan
    return table.dropna(subset="mean").sort_values("seconds")


def cost_against_quality(scores, summary, finetune):
    """Seconds to score the zoo on one task (log) against mean Spearman, tables of one regime.

    Line: no other is both cheaper and better, named below. Dotted: the best ranking that sees no
    image; dashed: one fine-tune, and all of them.
    """
    _, finetune = of_one_machine(scores, finetune)
    every = seconds_and_quality(scores, summary, finetune)
    free = every["mean"].reindex(unseeing(every.index)).dropna()
    table = every.dropna()
    best_so_far = table["mean"].shift(fill_value=-2).cummax()
    front = table[table["mean"] > best_so_far]
    ax = axes(None, 3.8)
    sns.scatterplot(table, x="seconds", y="mean", color=BLUE, s=25, ax=ax)
    ax.step(front["seconds"], front["mean"], "o-", where="post", ms=4, color=ORANGE, lw=1.2)
    on_line = ", ".join(map(figures.display_name, front.index))
    below = [f"on the line: {on_line}"]
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
        below.append(f"dotted: {figures.display_name(free.idxmax())}, which sees no image")
    wrapped = [line for words in below for line in wrap(words, 70)]
    ax.set(xscale="log", ylabel="mean Spearman")
    ax.set_xlabel("\n".join(["seconds to score the zoo on one task", *wrapped]))
    error_axis(ax)
    return ax


# %% tags=["hide-cell"] mystnb={"image": {"alt": "Scatter of seconds to score the zoo against mean rank correlation, with the Pareto front"}}
cost_against_quality(sample, summary, runs_here)
figures.download(
    seconds_and_quality(sample, summary, runs_here),
    "cost-quality",
    "Only the selectors on the line are worth their cost: "
    "for every other selector, one of these is both cheaper and better.",
)

# %% [markdown]
# ## Which selectors agree
#
# Rank correlation between every two selectors over the experts, mean over tasks. The tree joins those that agree most; columns
# are ordered like rows. A dark block is one opinion, however many papers proposed it, and its members are not independent votes.
# *Accuracy* is what they all try to predict.

# %% tags=["hide-input", "functions"]
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform


def agreement(scores, accuracy):
    """Spearman's correlation over experts between every two selectors and the accuracy, mean over
    tasks of one setting; ordered by a tree (average linkage of 1 − correlation).

    Selectors without a score, or with one for all experts, on some task are left out.
    """
    figures.use_style()
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
        table.rename(index=figures.display_name),
        row_linkage=tree,
        col_linkage=tree,
        cmap="PuOr_r",
        vmin=-1,
        vmax=1,
        figsize=(5, 1.3 + 0.17 * len(table)),
        dendrogram_ratio=(0.02, 0.12),
        tree_kws={"colors": GREY},
        cbar_pos=(0.02, 0.02, 0.25, 0.02),
        cbar_kws={"orientation": "horizontal"},
        xticklabels=False,
        yticklabels=True,
    )
    grid.ax_row_dendrogram.set_visible(False)
    grid.ax_heatmap.set(xlabel="", ylabel="")
    grid.ax_heatmap.tick_params(axis="y", labelsize=8, length=0)
    for label in grid.ax_heatmap.get_yticklabels():
        if label.get_text() == "accuracy":
            label.set_fontweight("bold")
    return grid


# %% tags=["hide-cell"] mystnb={"image": {"alt": "Clustered heat map of rank correlations between selectors"}}
grid = agreement(sample, accuracy)
figures.download(
    grid.data2d,
    "agreement",
    "Dark blocks along the diagonal are families of selectors that rank the experts alike.",
)

# %% [markdown]
# ## Fewer images than features
#
# Three formulas break in the few-shot regime. We show them as printed (right) and as we compute them (left), for one expert and a
# growing number of images from one task. Grey: the same images with shuffled labels. A score is useful only where the coloured
# line departs from the grey one. As printed, the H-score equals the number of classes minus one for any features once
# $N \le D + 1$; LogME omits the $D - N$ zero singular values, and what is missing dominates; N-LEEP gives each image its own
# cluster and thus fits any labels.

# %% tags=["hide-input", "functions"]
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from mzlib.dataset import few_shot
from mzlib.selectors import hscore, leep, logme, nleep


def textbook_hscore(features, labels):
    """tr(Σ_F⁺ Σ_E[F|y]), Bao et al. 2019: C − 1 for every F when N ≤ D + 1."""
    classes, class_of = np.unique(labels, return_inverse=True)
    means = np.stack([features[labels == c].mean(0) for c in classes])
    between = np.cov(means[class_of], rowvar=False)
    total = np.cov(features, rowvar=False)
    inverse = np.linalg.pinv(total, rcond=1e-10, hermitian=True)
    return float(np.trace(inverse @ between))


def textbook_logme(features, labels):
    """You et al. 2021, algorithm 1, with log det A summed over the min(N, D) singular values
    alone.
    """
    n, d = features.shape
    u, s, _ = np.linalg.svd(features, full_matrices=False)
    evidence = []
    for c in np.unique(labels):
        target = labels == c
        x2 = (u.T @ target) ** 2
        alpha = 1.0
        beta = 1.0
        for _ in range(20):
            t = alpha / beta
            used = (s**2 / (t + s**2)).sum()
            weights2 = (s**2 * x2 / (t + s**2) ** 2).sum()
            misfit = (x2 / (1 + s**2 / t) ** 2).sum() + target.sum() - x2.sum()
            alpha = used / (weights2 + 1e-5)
            beta = (n - used) / (misfit + 1e-5)
        log_det = np.log(alpha + beta * s**2).sum()  # D − k terms log α are missing
        fit = beta * misfit + alpha * weights2
        prior = d * np.log(alpha) + n * np.log(beta / (2 * np.pi))
        evidence.append((prior - log_det - fit) / (2 * n))
    return float(np.mean(evidence))


def textbook_nleep(features, labels):
    """LEEP of a mixture of 5C Gaussians on PCA features, Li et al. 2021; with 5C images each is its
    own cluster.
    """
    number = 5 * len(np.unique(labels))
    if len(labels) < number:
        raise Missing(f"expected at least {number} images, one a component, got {len(labels)}")
    x = PCA(0.8, svd_solver="full").fit_transform(features)
    mixture = GaussianMixture(number, random_state=0).fit(x)
    return leep(mixture.predict_proba(x), labels)


FORMULAS = {
    ("hscore", "guarded"): hscore,
    ("hscore", "as printed"): textbook_hscore,
    ("logme", "guarded"): logme,
    ("logme", "as printed"): textbook_logme,
    ("nleep", "guarded"): nleep,
    ("nleep", "as printed"): textbook_nleep,
}


def few_images_table(features, labels, sizes):
    """Scores of nested samples of `sizes` images per class: selector, formula, labels (true,
    shuffled), images, score.
    """
    rows = []
    rng = np.random.default_rng(0)
    for size in sizes:
        index = few_shot(labels, size, 0)
        x = features[index].astype(float)
        true = labels[index]
        for kind, y in (("true", true), ("shuffled", rng.permutation(true))):
            for (name, formula), function in FORMULAS.items():
                try:
                    value = function(x, y)
                except Missing:
                    value = np.nan
                rows.append((name, formula, kind, len(index), value))
    return pd.DataFrame(rows, columns=["selector", "formula", "labels", "images", "score"])


# %% tags=["hide-input"]
from mzlib.benchmark import run_suite
from mzlib.benchmark.stages import zoo_folder
from mzlib.evidence import Evidence, subset
from mzlib.benchmark.data import load_task
from mzlib.zoo import load_expert

target = load_task(task, chosen.image_size)


def evidence(name, size):
    network = name.partition(":")[0]
    # trains it when its weights are not here
    run_suite(suite, stages=["zoo"], only=f"zoo/{network}", weights=True)
    index = subset(target, "full", 0).sample(size, 0)
    images = target.train.images[index]
    labels = target.train.labels[index]
    return Evidence(load_expert(name, zoo_folder(suite)), images, labels)


# %% tags=["hide-cell"] mystnb={"image": {"alt": "H-score, LogME and N-LEEP, guarded and as printed, over the number of images"}}
most = max(5, 1000 // len(target.class_names))
every = evidence(expert, most)
features = every.features.cpu().numpy()
labels = every.labels.cpu().numpy()
sizes = [n for n in (1, 2, 5, 10, 20, 50, 100, 200) if n <= np.bincount(labels).max()]
sampled = few_images_table(features, labels, sizes)
sampled["selector"] = sampled["selector"].map(figures.display_name)
grid = sns.relplot(
    sampled,
    x="images",
    y="score",
    hue="labels",
    style="labels",
    row="selector",
    col="formula",
    kind="line",
    markers=True,
    palette={"true": "#2480c0", "shuffled": figures.GREY},
    height=1.7,
    aspect=1.45,
    facet_kws={"sharey": False},
)
grid.set(xscale="log").set_titles("{row_name}, {col_name}").refline(x=features.shape[1])
sns.move_legend(grid, "upper center", bbox_to_anchor=(0.45, 1.05), ncols=2, title=None)
figures.download(
    sampled,
    "few-images",
    f"Left of the line (as many images as features, {features.shape[1]}), "
    "the printed formulas hardly distinguish true labels from shuffled ones.",
)

# %% [markdown]
# ## Is 0.3 good?
#
# A raw score means little by itself, because it depends on the number of classes, images and features. Shuffled labels provide a
# scale. For two experts on this task, $z$ is the distance of each score from the mean over shuffled labels, in standard
# deviations of the shuffles; the band marks chance. A large $z$ means that the features separate the classes. It does not mean
# that the selector ranks experts well, and for a saturated score it is small even though the score looks perfect.

# %% tags=["hide-cell"] mystnb={"image": {"alt": "z of every selector against shuffled labels, for two experts"}}
from mzlib.selectors import SELECTORS
from mzlib.uncertainty import compare, interval, permutation_null


def null_table(evidence, selectors, number=20, groups=10):
    """score, its 95 % interval, mean over shuffled labels and z against them; those that look at no
    label, that are scaled over the zoo, or that have no score here are left out.
    """
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


scratch = [name for name in chosen.starting_points() if name.endswith("-scratch")]
rival = next(name for name in scratch if name != expert)
pair = {name: evidence(name, 20) for name in (expert, rival)}
tested = [s for s in SELECTORS if s != "pactran"]  # its fit takes too long to be repeated here
tables = {name: null_table(seen, tested) for name, seen in pair.items()}
z = pd.concat(tables, names=["expert"])["z"].reset_index()
z["selector"] = z["selector"].map(figures.display_name)
order = z.groupby("selector")["z"].mean().sort_values(ascending=False).index
_, ax = plt.subplots(figsize=(5, 1.2 + 0.18 * len(order)), layout="constrained")
sns.stripplot(
    z,
    x="z",
    y="selector",
    order=order,
    hue="expert",
    jitter=False,
    palette=["#2480c0", "#d55e00"],
    ax=ax,
)
ax.axvspan(-2, 2, color=figures.GREY, alpha=0.25, lw=0)
ax.set_xscale("symlog", linthresh=2)
ax.set(xlabel="z against shuffled labels", ylabel="")
ax.tick_params(axis="y", labelsize=8)
sure = z.groupby("selector")["z"].min().gt(2)
figures.download(
    z,
    "null",
    f"For both experts, {sure.sum()} of {len(sure)} scores lie more than "
    "two standard deviations (grey band) above shuffled labels.",
)

# %% [markdown]
# The same for the first expert, with the 95 % interval of the score (by leaving out groups of images) and the probability that it
# outranks the second. Near 0 or 1 these images decide between the two experts; near one half they do not.

# %% tags=["hide-input"]
table = tables[expert]
outranks = {}
for name in table.index:
    try:
        outranks[name] = compare(SELECTORS[name], pair[expert], pair[rival], groups=10)
    except Missing:  # a score that does not exist without a group of the images
        outranks[name] = np.nan
table[f"P(above {rival})"] = pd.Series(outranks)
table = table.rename(figures.display_name)
tuned = accuracy[accuracy["task"] == task].groupby("expert")["accuracy"].mean()
reached = [f"{100 * tuned[name]:.1f} %" if name in tuned else "unknown" for name in pair]
display(
    Markdown(
        f"{expert} against {rival} on {task}; "
        f"after fine-tuning with {shots} shots: {' and '.join(reached)}."
    )
)
figures.show(
    table.map("{:.3g}".format, na_action="ignore").fillna("–"),
    f"null-{task}",
    caption="Null: the mean score over shuffled labels; "
    "z: how many deviations of the shuffles the score lies above it.",
)

# %% [markdown]
# ## What this page can and cannot show
#
# It shows that a score is implemented as defined, how many images it needs, what it costs, and which scores are nearly the same.
# With a handful of tasks and small networks, it cannot show which of two selectors is better if their intervals overlap or if
# half of the zoo reverses their order.
