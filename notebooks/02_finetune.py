# %% [markdown]
# # Fine-tuning every expert on every task
#
# [Open in Colab](https://colab.research.google.com/github/mzlib/mzlib/blob/main/notebooks/02_finetune.ipynb)
#
# **This is the truth that selectors try to foresee.** Each expert gets a fresh head, and all its weights are fine-tuned on each
# target task, with all training images or with a few of each class. Parameters: `suite`, `task`, `shots`.

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
# Test error of every expert on every target: a toy beside [Figure 2](../finetuning.md). The further left a marker, the better; the
# spread within a target is what a good selector can win. The learning rate of each marker is the best on test images, as in the paper.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Test error of every expert on every target, by architecture, pre-training and source"}}
single = ~accuracy["expert"].str.contains(":")
here = figures.errors_of(accuracy[single & (accuracy["shots"] == str(shots))], results.zoo, chosen.reference)
figures.fig2({f"{suite}, {shots} images a class": here})
spread = here.groupby("target")["test_error"].agg(lambda errors: errors.max() - errors.min())
figures.download(here, "errors", f"The worst expert errs {spread.mean():.0f} points more often than the best, on the average target.")

# %% [markdown]
# ## The domains of the multi-domain expert
#
# The same for the starting points of the Multi-BN expert, one for each source, with all training images.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Test error of every domain of the multi-domain expert on every target"}}
multi = accuracy[~single & (accuracy["shots"] == "full")]
if len(multi):
    domains = figures.errors_of(multi, results.zoo, chosen.multi_domain_reference)
    figures.fig2({suite: domains})
    spread = domains.groupby("target")["test_error"].agg(lambda errors: errors.max() - errors.min())
    display(figures.download(domains, "domain-errors", f"The domains lie {spread.mean():.0f} points apart on the average target."))
else:
    print(f"the suite {suite} fine-tunes no multi-domain expert")

# %% [markdown]
# ## One task
#
# The experts on the task of this page, best first. `paper`: the rate picked on test images; `validation`: on validation images
# that are held out from the training split, which is what one can do in practice.

# %% tags=["hide-input"]
both = {p: truth(runs, p).query("task == @task and shots == @shots").groupby("expert")["accuracy"].mean()
        for p in ("paper", "validation")}
table = 100 * results.zoo.set_index("expert")[[]].assign(**both).dropna(how="all")
figures.show(table.sort_values("paper", ascending=False), f"finetune-{task}-{shots}")

# %% [markdown]
# ## Different tasks, different best experts
#
# The best expert of each task and regime, and by how many points it beats the generic expert.

# %% tags=["hide-input"]
mean = accuracy[single].groupby(["shots", "task", "expert"])["accuracy"].mean()
best = mean[mean.groupby(["shots", "task"]).idxmax()].reset_index("expert")
best["gain over generic"] = 100 * (best["accuracy"] - mean.xs(chosen.reference, level="expert"))
figures.show(best.assign(accuracy=100 * best["accuracy"]), "best_experts")
