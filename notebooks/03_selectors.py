# %% [markdown]
# # Selectors on the toy suite
#
# [Open in Colab](https://colab.research.google.com/github/mzlib/mzlib/blob/main/notebooks/03_selectors.ipynb)
#
# **A selector scores every expert on a small sample of the training images: 25 per class, as in the paper.** This page shows
# the scores for one task, and how well each selector does over all tasks of the suite. You can score any task that `mzlib data
# list` shows as available, or a folder of images. Parameters: `suite`, `task`, `shots`, `images_per_class`, `selector`. The page
# covers the paper's selectors, the baselines and the chosen selector; [another page](04_all_selectors) covers all of them.

# %% tags=["parameters"]
suite = "mini"
task = "digits"
shots = "20"
images_per_class = "25"
selector = "lfc"
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
from dataclasses import replace

from IPython.display import Markdown

from mzlib.benchmark import figures
from mzlib.benchmark import compare, complete, load_results, run_suite, summarize, truth
from mzlib.benchmark.learned import SCORE
from mzlib.api import rank

shots = str(shots)
images_per_class = str(images_per_class)
sample_size = {"shots": shots, "images_per_class": images_per_class}
run_suite(suite, stages=["score"], only=f"/{task}/{shots}")  # scores what is missing
results = load_results(suite)
of_the_paper = {"lfc", "lgc", "leep", "rsa", "domain_similarity", "feature_metrics"}
shown = of_the_paper | {selector, *figures.BASELINES, "history", "prior", "noise_ceiling"}
figures.provenance_line(suite, results.provenance)

# %% [markdown]
# ## The experts for this task
#
# Sorted by the chosen selector, best first. A dash means that a score does not apply to an expert.

# %% tags=["hide-input"]
scores = results.scores.query("selector in @shown")
here = scores.query(
    "task == @task and shots == @shots and images_per_class == @images_per_class and seed == 0"
)
if here.empty:  # a task or a setting outside the suite: score the suite's zoo on it now
    here = rank(task, suite, chosen.score[0].selectors, **sample_size).table
names = [name for name in here["selector"].unique() if name != "random"]
wide = here.pivot(index="expert", columns="selector", values="score")[names]
best_first = wide[selector].sort_values(ascending=False).index
figures.show(
    wide.loc[best_first].rename(columns=figures.display_name),
    f"scores-{task}-{shots}",
    decimals=3,
    caption=f"Scores of every expert on {task}; only the order within a column has a meaning.",
)

# %% [markdown]
# If the task's images and the experts' weights are on this machine, the same scores are now computed anew:

# %% tags=["hide-input"]
from mzlib.benchmark.stages import expert_is_stored
from mzlib.errors import MzlibError
from mzlib.benchmark.data import load_task

try:
    load_task(task, chosen.image_size)
    absent = [
        name
        for name, key in chosen.starting_points().items()
        if not expert_is_stored(chosen.zoo, name, key)
    ]
    if absent:
        raise MzlibError(
            f"the weights of {len(absent)} experts are not here; "
            f"`mzlib run {suite} --stage zoo` trains them in minutes"
        )
    found = rank(task, suite, [selector], **sample_size, progress=False)
    facts = found.facts
    live = found.table.set_index("expert")["score"].rename("live")
    both = wide[selector].to_frame("table").join(live, how="inner")
    difference = (both["live"] - both["table"]).abs().max()
    rho = both.corr("spearman").loc["table", "live"]
    said = (
        f"{figures.display_name(selector)} of {facts['experts']} experts "
        f"on {facts['images']} images took {facts['seconds']:.1f} s. "
        f"It differs from the table by at most {difference:.2g}, "
        f"with rank correlation {rho:.3f}."
    )
except MzlibError as error:
    said = f"The scores were not computed anew here: {error}."
Markdown(said)

# %% [markdown]
# ## Score against fine-tuned accuracy
#
# A good selector puts the experts on a rising line. What matters most is that the highest marker is among those furthest right.

# %% tags=["hide-input", "functions"]
import seaborn as sns

from mzlib.benchmark import figures
from mzlib.benchmark.figures.style import GROUPS, axes, groups


def score_against_accuracy(scores, accuracy, zoo, generic):
    """Score against fine-tuned accuracy (%) of every expert: one selector, one task; the three best
    are named by source.
    """
    table = zoo.set_index("expert")[["source", "architecture"]].assign(kind=groups(zoo, generic))
    table["architecture"] = table["architecture"].map(figures.display_name)
    table["score"] = scores.groupby("expert")["score"].mean()
    table["accuracy"] = 100 * accuracy.groupby("expert")["accuracy"].mean()
    table = table.dropna().sort_values("accuracy", ascending=False)
    kinds = {key: name for key, (name, _) in GROUPS.items()}
    table = table.replace({"kind": kinds})
    ax = axes(None, 3.6)
    sns.scatterplot(
        table,
        x="score",
        y="accuracy",
        hue="kind",
        style="architecture",
        palette=dict(GROUPS.values()),
        ax=ax,
    )
    for row in table.head(3).itertuples():
        ax.text(row.score, row.accuracy, f"  {figures.display_name(row.source)}", fontsize=8)
    selector = figures.display_name(scores["selector"].iloc[0])
    ax.set_xlabel(f"{selector} (higher is better)")
    ax.set_ylabel("accuracy after fine-tuning (%)")
    ax.legend(fontsize=8)
    return ax


# %% tags=["hide-input"] mystnb={"image": {"alt": "Scatter of the score of every expert against its accuracy after fine-tuning"}}
accuracy = truth(results.finetune).query("task == @task and shots == @shots")
if len(accuracy):
    chosen_scores = here[here["selector"] == selector]
    score_against_accuracy(chosen_scores, accuracy, results.zoo, chosen.reference)
    score = chosen_scores.groupby("expert")["score"].mean()
    reached = accuracy.groupby("expert")["accuracy"].mean()
    both = score.to_frame().join(reached)
    rho = both.corr("spearman").loc["score", "accuracy"]
    caption = (
        f"The rank correlation between {figures.display_name(selector)} "
        f"and the accuracy on {task} is {rho:.2f}."
    )
    display(figures.download(both, "score-accuracy", caption))
else:
    print(
        f"{task} was not fine-tuned in this setting, so there is nothing to compare the scores with"
    )

# %% [markdown]
# ## The gain of three picks
#
# Fine-tune the three experts that a selector ranks first and keep the best: the gain over the generic expert in points, as in
# [Figure 4](../choosing.md). *Best* and *worst* are the extremes of the zoo. The maps cover single-domain experts and the targets on
# which every expert was fine-tuned. In the first, rate and winner are picked on test images, as in the paper; in the second on
# validation images, as you would have to. `Random` is the exact expectation over all orders; `History` and `Prior` rank by the
# results on the other targets.

# %% tags=["hide-input", "functions"]
import numpy as np
import pandas as pd

from mzlib.benchmark.figures.plots import SETTING, one


def gains(metrics):
    """Points gained over the generic expert: targets × (best, worst, each selector's top three).

    `metrics` is `evaluate(…)` in one setting; means over seeds; the last row is the mean.
    """
    metrics = one(metrics[metrics["selector"] != "noise_ceiling"], *SETTING)
    mean = 100 * metrics.pivot_table("value", "task", ["metric", "selector"], dropna=False)
    selectors = figures.selector_order(metrics["selector"])
    extremes = {
        "best": mean["best_gain"].mean(axis=1),
        "worst": mean["worst_gain"].mean(axis=1),
    }
    table = pd.DataFrame(extremes).join(mean["top3_gain"][selectors])
    table.loc["average"] = table.mean()
    return table.rename_axis(None)


def fig4(metrics):
    """Heat map of `gains`: the paper's Fig. 4, 5 and 7, a row a target."""
    table = gains(metrics)
    # The worst expert must not bleach all others.
    limit = np.nanquantile(table.drop(columns="worst").abs(), 0.9) or 1
    width = 1.6 + 0.4 * max(table.shape[1], 8)
    height = 1.5 + 0.25 * len(table)
    ax = axes(None, height, width)
    figures.heat_map(ax, table.round(1) + 0.0, limit=limit, form="+.1f")
    ax.axvline(2, color=figures.GREY, lw=2)
    ax.axhline(len(table) - 1, color=figures.GREY, lw=2)
    return ax


# %% tags=["hide-input"] mystnb={"image": {"alt": "Heat maps of the gain of the top three by every selector on every target, by test and by validation images"}}
asked = results.scores["selector"].isin(shown | {SCORE})
metrics = compare(replace(results, scores=results.scores[asked]), chosen, "single")
metrics = metrics.query("selector in @shown")
setting = "shots == @shots and images_per_class in [@images_per_class, '']"
kept = {"paper": "test", "validation": "validation"}
for protocol, images in kept.items():
    judged = metrics.query(setting + " and protocol == @protocol")
    fig4(judged)
    gained = gains(judged)
    average = gained.loc["average"]
    caption = (
        f"Rate and winner picked on {images} images. On average over {len(gained) - 1} targets, "
        f"three picks by {figures.display_name(selector)} gain {average[selector]:+.1f} points; "
        f"the best expert gains {average['best']:+.1f}."
    )
    display(figures.download(gained, f"gains-{protocol}", caption))

# %% [markdown]
# ## Rank correlation and trials to the best expert
#
# Means with 95 % intervals over tasks, as in [Figure 6](../choosing.md). The dotted line is chance: selectors beat it to the right for
# correlation and to the left for trials. With so few tasks the intervals are wide; where they overlap, the order of the bars
# is open.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Bars with intervals, one per selector: rank correlation, and trials to the best expert"}}
summary = summarize(metrics).query(setting)
paper = summary[summary["protocol"] == "paper"]
figures.fig6(paper, metric="spearman")
figures.fig6(paper, metric="trials_to_best")
trials = paper[paper["metric"] == "trials_to_best"].set_index("selector")["mean"]
figures.download(
    paper,
    "means",
    f"{figures.display_name(selector)} reaches the best expert "
    f"after {trials[selector]:.1f} fine-tunes on average; "
    f"random order needs {trials['random']:.1f}.",
)

# %% [markdown]
# All metrics under all protocols:


# %% tags=["hide-input"]
def written(row):
    """Mean and interval as text, the mean alone where there is no interval."""
    text = f"{row['mean']:.2f}"
    if np.isnan(row["low"]):
        return text
    return f"{text} [{row['low']:.2f}, {row['high']:.2f}]"


table = summary.dropna(subset="mean")
table = table.assign(value=table.apply(written, axis=1))
table["selector"] = table["selector"].map(figures.display_name)
wide = table.pivot(index=["protocol", "selector"], columns="metric", values="value")
metrics_shown = [
    "spearman",
    "kendall",
    "weighted_tau",
    "pearson",
    "top1_gain",
    "top3_gain",
    "trials_to_best",
    "regret_at_1",
]
wide = wide[[name for name in metrics_shown if name in wide]]
figures.show(
    wide.rename(columns=figures.display_name),
    f"metrics-{shots}",
    caption="Every metric under every protocol, with 95 % intervals over tasks.",
)

# %% [markdown]
# ## Cost
#
# Seconds to score the whole zoo on one task, and cost relative to one fine-tune of the generic expert ([costs on real
# images](../cost.md)). The first selector that asks for the features pays for the forward pass.

# %% tags=["hide-input", "functions"]
from mzlib.benchmark.scoring import zoo_costs
from mzlib.benchmark.statistics import interval


def table3(scores, finetune, *, generic):
    """`zoo_costs` relative to one fine-tune of the generic expert (paper Table 3).

    Rows: shots, stage, selector. Columns: mean over targets, low, high, seconds (the mean of the
    cost itself) and targets, their number.
    """
    table = zoo_costs(scores, finetune, generic)
    keys = ["shots", "stage", "selector"]
    rows = {}
    for key, cell in table.groupby(keys):
        # no value where the one fine-tune ran on another machine
        relative = cell["relative"].dropna()
        low, high = interval(relative.to_numpy())
        rows[key] = (relative.mean(), low, high, cell["seconds"].mean(), len(relative))
    columns = ["relative cost", "low", "high", "seconds", "targets"]
    found = pd.DataFrame(rows.values(), pd.MultiIndex.from_tuples(rows, names=keys), columns)
    stage_order = list(table["stage"].unique())
    selector_order = figures.selector_order(table["selector"])

    def place(key):
        shots, stage, selector = key
        return shots, stage_order.index(stage), selector_order.index(selector)

    by_stage = sorted(rows, key=place)
    return found.loc[by_stage].rename(index=figures.display_name, level="selector")


# %% tags=["hide-input"]
sample = scores.query("images_per_class == @images_per_class and not expert.str.contains(':')")
runs = complete(results.finetune, chosen, "single")
cost = table3(sample, runs, generic=chosen.reference)
intervals = cost[["relative cost", "low", "high"]].to_numpy()
cost["relative cost"] = [figures.with_interval(*row) for row in intervals]
figures.show(
    cost[["relative cost", "seconds", "targets"]],
    "table3",
    decimals=2,
    caption="Cost relative to one fine-tune of the generic expert, with 95 % intervals over tasks.",
)
