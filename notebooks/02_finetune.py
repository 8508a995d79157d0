# %% [markdown]
# # Fine-tuning on the toy suite
#
# [Open in Colab](https://colab.research.google.com/github/mzlib/mzlib/blob/main/notebooks/02_finetune.ipynb)
#
# **These are the accuracies that selectors try to predict.** Each expert gets a fresh head, and all its weights are fine-tuned on
# each target task, with all training images or a few per class. Parameters: `suite`, `task`, `shots`.

# %% tags=["parameters"]
suite = "mini"
task = "digits"
shots = "20"
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
from mzlib.benchmark import figures
from mzlib.benchmark import load_results, run_suite
from mzlib.benchmark.evaluate import truth

# what is missing for this task: nothing, as a rule
run_suite(suite, stages=["finetune"], only=f"/{task}/{shots}/")
results = load_results(suite)
runs = results.finetune
accuracy = truth(runs, "paper")
figures.provenance_line(suite, results.provenance)

# %% [markdown]
# ## How much does the choice matter?
#
# Test error of every expert on every target, as in [Figure 2](../finetuning.md) but for the toy suite. Further left is better; the
# spread within a target is what a good selector can gain. Each marker has the learning rate that is best on test images, as in
# the paper.

# %% tags=["hide-input", "functions"]
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

from mzlib.benchmark import figures
from mzlib.benchmark.figures.plots import one
from mzlib.benchmark.figures.style import GROUPS, error_axis, groups


def errors_of(accuracy, zoo, generic):
    """`truth(…)` of one setting in the shape of the paper's Fig. 2 and 3, means over seeds.

    Returns: target, expert, source, architecture, group (of `GROUPS`), test_error (%).
    """
    runs = one(accuracy, "suite", "shots")
    mean = runs.groupby(["task", "expert"])["accuracy"].mean().reset_index()
    table = mean.merge(zoo[["expert", "source", "architecture"]], on="expert")
    table["group"] = table["expert"].map(groups(zoo, generic))
    table["test_error"] = 100 * (1 - table["accuracy"])
    return table.rename(columns={"task": "target"}).drop(columns="accuracy")


# %% tags=["hide-input", "functions"]
def fig2(parts):
    """Test error (%) of every expert, a row a target: the paper's Fig. 2 and 3; a panel a part.

    parts: title -> `errors_of(…)`, or the paper's in that shape; targets by their errors' spread.
    """
    figures.use_style()
    rows = [table["target"].nunique() for table in parts.values()]
    height = 1.2 + 0.6 * len(parts) + 0.2 * sum(rows)
    figure, panels = plt.subplots(
        len(parts),
        figsize=(5, height),
        height_ratios=rows,
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    colours = {group: colour for group, (_, colour) in GROUPS.items()}
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
                palette=colours,
                marker=markers[architecture],
                size=4.5,
                alpha=0.75,
                legend=False,
                ax=ax,
            )
        ax.set_yticks(range(len(order)), map(figures.display_name, order), fontsize=8)
        ax.set(xscale="log", ylabel="", xlabel="", title=title)
        error_axis(ax)
    names = []
    for word, marker in (("dot", "o"), ("triangle", "^")):
        bearing = [figures.display_name(name) for name in architectures if markers[name] == marker]
        if bearing:
            names.append(f"{word}: {', '.join(bearing)}")
    ax.set_xlabel("test error (%), log scale\n" + "; ".join(names))
    present = set(everything["group"])
    shown = [GROUPS[group] for group in GROUPS if group in present]
    squares = partial(Line2D, [], [], ls="", marker="s")
    handles = [squares(color=colour, label=name) for name, colour in shown]
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return panels[:, 0]


# %% tags=["hide-input"] mystnb={"image": {"alt": "Test error of every expert on every target, by architecture, pre-training and source"}}
def spread_of(errors):
    """Points between the worst and the best expert, mean over targets."""
    return errors.groupby("target")["test_error"].agg(np.ptp).mean()


shots = str(shots)
single = ~accuracy["expert"].str.contains(":")
in_regime = accuracy["shots"] == shots
here = errors_of(accuracy[single & in_regime], results.zoo, chosen.reference)
fig2({f"{suite}, {shots} images per class": here})
figures.download(
    here,
    "errors",
    "On the average target, the test error of the worst expert is "
    f"{spread_of(here):.0f} points above that of the best.",
)

# %% [markdown]
# ## The domains of the multi-domain expert
#
# The same for the starting points of the Multi-BN expert, one per source, with all training images.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Test error of every domain of the multi-domain expert on every target"}}
multi = accuracy[~single & (accuracy["shots"] == "full")]
if len(multi):
    domains = errors_of(multi, results.zoo, chosen.multi_domain_reference)
    fig2({suite: domains})
    caption = (
        "On the average target, the best and the worst domain are "
        f"{spread_of(domains):.0f} points apart."
    )
    display(figures.download(domains, "domain-errors", caption))
else:
    print(f"the suite {suite} fine-tunes no multi-domain expert")

# %% [markdown]
# ## One task
#
# Accuracies (%) on the task of this page, best first. Under `paper` the learning rate is picked on test images; under
# `validation`, on images held out of the training set, as you would in practice.

# %% tags=["hide-input"]
table = results.zoo.set_index("expert")[[]]
for protocol in ("paper", "validation"):
    here = truth(runs, protocol).query("task == @task and shots == @shots")
    table[protocol] = 100 * here.groupby("expert")["accuracy"].mean()
table = table.dropna(how="all")
figures.show(
    table.sort_values("paper", ascending=False),
    f"finetune-{task}-{shots}",
    caption=f"Accuracy (%) of every expert on {task}, by what picked the learning rate.",
)

# %% [markdown]
# ## Different tasks, different best experts
#
# The best expert for each task and regime, and its gain over the generic expert in points.

# %% tags=["hide-input"]
mean = accuracy[single].groupby(["shots", "task", "expert"])["accuracy"].mean()
best = mean[mean.groupby(["shots", "task"]).idxmax()].reset_index("expert")
generic = mean.xs(chosen.reference, level="expert")
best["gain over generic"] = 100 * (best["accuracy"] - generic)
figures.show(
    best.assign(accuracy=100 * best["accuracy"]),
    "best-experts",
    caption=f"{best['expert'].nunique()} different experts are best somewhere.",
)
