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
    os.system("git clone -q --depth 1 --branch v0.2.0 https://github.com/mzlib/mzlib && pip install -q ./mzlib")
    os.chdir("mzlib")

from mzlib.benchmark.notebooks import check_parameters

chosen = check_parameters(known, globals())

# %% tags=["hide-input"]
from mzlib.benchmark import figures
from mzlib.benchmark import load_results, run_suite
from mzlib.benchmark.evaluate import truth

run_suite(suite, stages=["finetune"], only=f"/{task}/{shots}/")  # what is missing for this task: nothing, as a rule
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

# %% tags=["hide-input"] mystnb={"image": {"alt": "Test error of every expert on every target, by architecture, pre-training and source"}}
single = ~accuracy["expert"].str.contains(":")
here = figures.errors_of(accuracy[single & (accuracy["shots"] == str(shots))], results.zoo, chosen.reference)
figures.fig2({f"{suite}, {shots} images per class": here})
spread = here.groupby("target")["test_error"].agg(lambda errors: errors.max() - errors.min())
figures.download(here, "errors", f"On the average target, the test error of the worst expert is {spread.mean():.0f} points above that of the best.")

# %% [markdown]
# ## The domains of the multi-domain expert
#
# The same for the starting points of the Multi-BN expert, one per source, with all training images.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Test error of every domain of the multi-domain expert on every target"}}
multi = accuracy[~single & (accuracy["shots"] == "full")]
if len(multi):
    domains = figures.errors_of(multi, results.zoo, chosen.multi_domain_reference)
    figures.fig2({suite: domains})
    spread = domains.groupby("target")["test_error"].agg(lambda errors: errors.max() - errors.min())
    display(figures.download(domains, "domain-errors", f"On the average target, the best and the worst domain are {spread.mean():.0f} points apart."))
else:
    print(f"the suite {suite} fine-tunes no multi-domain expert")

# %% [markdown]
# ## One task
#
# Accuracies (%) on the task of this page, best first. Under `paper` the learning rate is picked on test images; under
# `validation`, on images held out of the training set, as you would in practice.

# %% tags=["hide-input"]
both = {p: truth(runs, p).query("task == @task and shots == @shots").groupby("expert")["accuracy"].mean()
        for p in ("paper", "validation")}
table = 100 * results.zoo.set_index("expert")[[]].assign(**both).dropna(how="all")
figures.show(table.sort_values("paper", ascending=False), f"finetune-{task}-{shots}", caption=f"Accuracy (%) of every expert on {task}, by what picked the learning rate.")

# %% [markdown]
# ## Different tasks, different best experts
#
# The best expert for each task and regime, and its gain over the generic expert in points.

# %% tags=["hide-input"]
mean = accuracy[single].groupby(["shots", "task", "expert"])["accuracy"].mean()
best = mean[mean.groupby(["shots", "task"]).idxmax()].reset_index("expert")
best["gain over generic"] = 100 * (best["accuracy"] - mean.xs(chosen.reference, level="expert"))
figures.show(best.assign(accuracy=100 * best["accuracy"]), "best-experts", caption=f"{best['expert'].nunique()} different experts are best somewhere.")
