# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Linearization: what the kernel says about fine-tuning
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/mzlib/mzlib/blob/main/notebooks/05_linearization.ipynb)
#
# The paper's scores rest on one idea: near its pre-trained weights a network is linear in them, so the kernel of its
# gradients predicts how fine-tuning will go. This page looks at that kernel on one expert and one task, tests the prediction
# against real training, and asks of two approximations, features for gradients and random projection, what they cost.
# The formulas are in [the method](../method.md). Parameters: `suite`, `task`, `expert`.

# %% tags=["parameters"]
suite = "mini"
task = "digits"
expert = "resnet-glyphs-scratch"
known = {name for name in globals() if not name.startswith("_")}

# %% tags=["hide-input"]
import os
import sys

if "google.colab" in sys.modules:
    os.system("git clone -q --depth 1 https://github.com/mzlib/mzlib && pip install -q ./mzlib")
    os.chdir("mzlib")

from mzlib.benchmark.notebooks import check_parameters

chosen = check_parameters(known, globals())

# %% tags=["hide-input"]
from mzlib.benchmark import figures
from mzlib.benchmark import load_results, run_suite

scratch = [name for name in chosen.starting_points() if name.endswith("-scratch")]
experts = list(dict.fromkeys([expert, *scratch, chosen.reference]))[:3]
for name in experts:  # trains those of the three whose weights are not here
    run_suite(suite, stages=["zoo"], only=f"zoo/{name.partition(':')[0]}", weights=True)
results = load_results(suite)
figures.provenance_line(suite, results.provenance)

# %% tags=["hide-input"]
from mzlib.benchmark.stages import zoo_folder
from mzlib.evidence import Evidence, prepared, subset
from mzlib.benchmark.data import load_task
from mzlib.zoo import load_expert

target = load_task(task, chosen.image_size)
regime = subset(target, "full", 0)
def evidence(name, images_per_class):
    index = regime.sample(images_per_class, 0)
    images, labels = target.train.images[index], target.train.labels[index]
    return Evidence(load_expert(name, zoo_folder(suite)), images, labels)

# %% [markdown]
# (kernels)=
# ## Two kernels and the labels
#
# Each small square is a kernel over 25 training images a class, sorted by class (white lines); above it the correlation with
# the labels, eq. 8. Look for brighter blocks along the diagonal: images of a class that resemble each other (features) or
# pull the weights the same way (gradients). The gradients are those of the penultimate features, our choice where the paper
# names no scalar. For all layers they are estimated with 4 random cotangents; for the last convolution one is exact.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Kernels of features and gradients, images sorted by class"}}
from mzlib.linearization import ntk_gram

here = evidence(expert, 25)
labels, x = here.labels.cpu(), prepared(here.expert, here.images)
grams = {"features\nLFC": here.features @ here.features.T, "last convolution\nLGC": here.last_conv_kernel,
         "all layers\nLGC": ntk_gram(here.model, x, layers="all", probes=4)}
figures.fig8({expert: grams}, labels);

# %% [markdown]
# (spectrum)=
# ## Eigenvalues and label alignment
#
# Gradient descent learns along eigenvectors of the kernel, those of large eigenvalues first (eq. 1), and generalizes well
# when the labels lie along them (eq. 4). Above: the eigenvalues fall over several orders of magnitude. Below: the share of the
# labels, centred, that the first $k$ eigenvectors hold. The further above the dotted line (labels that know nothing of the
# kernel), the better the alignment. The first eigenvector has by far the largest eigenvalue, is almost the same for all
# images and holds almost nothing of the labels.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Eigenvalues of each kernel and the part of the labels along them"}}
figures.spectrum({name.partition("\n")[0]: gram for name, gram in grams.items()}, labels);

# %% [markdown]
# (training-loss)=
# ## Predicted against actual training loss
#
# Eq. 1 (grey) uses nothing but the kernel at the pre-trained weights. Against it: gradient descent on the linearized model,
# which must follow it up to the size of a step, and on the network itself, batch norm in evaluation mode, full batch, squared
# loss, a fresh head. Time is in units of $1/\lambda_1$, so that a step above 2 overshoots along the first eigenvector.
#
# First the paper's setting, one output and labels ±1 (here: first half of the classes against second half). Look where the
# network leaves the line: its kernel changes as it trains, and it learns *faster* than eq. 1 says.

# %% tags=["hide-input"]
from copy import deepcopy

import torch

from mzlib.linearization import Dynamics, finetune_linearized
from mzlib.zoo import with_fresh_head

few = evidence(expert, max(2, 80 // len(target.class_names)))
images, n = prepared(few.expert, few.images), len(few.labels)
half = torch.where(few.labels < len(target.class_names) / 2, 1.0, -1.0)[:, None]

# %% tags=["hide-input"]
def compare(targets, steps=40):
    model = with_fresh_head(few.model, targets.shape[1], seed=0)
    theta = ntk_gram(model, images, layers="all", outputs="logits", probes="exact") / targets.shape[1]
    rate, flow = float(1 / torch.linalg.eigvalsh(theta)[-1]), Dynamics(theta, targets, model(images).detach())
    time, at = torch.linspace(0, steps, 200), {step: step * torch.arange(int(steps / step)) for step in (1, 3)}
    _, losses = finetune_linearized(model, images, targets, learning_rate=n * rate, steps=steps)
    runs = {"linearized, step 1": (at[1], 2 * losses)}
    for step in at:
        losses = figures.gradient_descent(deepcopy(model), images, targets, learning_rate=n * rate * step, steps=len(at[step]))
        runs[f"network, step {step}"] = (at[step], 2 * losses)
    return (time, flow.losses(time, rate) / n), runs

# %% tags=["hide-input"] mystnb={"image": {"alt": "Predicted and actual training loss against time, two step sizes"}}
figures.training_loss(*compare(half));

# %% [markdown]
# With one output a class (one-hot labels) there is one kernel for each *pair* of outputs. Eq. 1 with a single kernel, the
# mean over outputs, leaves out that they differ, so that even the linearized model is free to leave the line. It hardly
# does while the fresh head is small: most of the kernel is then the head's own half, $\Theta_F$, the same for every output.

# %% tags=["hide-input"] mystnb={"image": {"alt": "The same with one output a class"}}
figures.training_loss(*compare(torch.nn.functional.one_hot(few.labels, len(target.class_names)).float()));

# %% [markdown]
# (eq5)=
# ## Fast training and good generalization: eq. 5
#
# One marker per expert and task (20 images a class), the kernel of all layers by one cotangent, labels one-hot and centred (our choice: the residual of the
# best constant prediction). No marker may lie below the dotted line: good generalization forces fast initial training. How
# much the inequality *says* is another matter: the distance to the line is the slack, and both sides contain the scale of
# the gradients, which differs between experts for reasons that have nothing to do with the task.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Both sides of the inequality for every expert and task, logarithmic axes"}}
scores = results.scores
if len(scores):
    scores = scores.query("shots == '20' and images_per_class == '25'").pivot_table(
        index=["task", "expert"], columns="selector", values="score").reset_index()
def absent(*selectors):
    lacking = [s for s in selectors if s not in scores]
    if lacking:
        print(f"the score table of {suite} has none of {', '.join(lacking)}: nothing to draw here")
    return lacking
if not absent("label_alignment", "inverse_label_alignment"):
    figures.eq5(scores)

# %% [markdown]
# (layers)=
# ## Layer by layer
#
# Appendix A argues that features can stand for gradients because the kernel is a sum over layers in which early layers are
# discounted. Left: LGC of each convolution's kernel, from input to output. Right: each layer's part of the label product
# $Y^\top\Theta Y$ (labels centred) beside its part of the squared gradients, its weight in the sum. Early layers that count
# less would have short bars at the top; early layers that know less of the labels, a blue bar shorter than the grey one. By
# default the second holds, and LGC rises with depth, but not the first: it is the shortcuts (`downsample`) that weigh most.
# One random cotangent a layer, exact for the main path's last convolution only.

# %% tags=["hide-input"] mystnb={"image": {"alt": "LGC of each convolution, and its part of the label product and of the squared gradients"}}
convolutions = [name for name, module in here.model.named_modules() if isinstance(module, torch.nn.Conv2d)]
by_layer = figures.layer_table({name: ntk_gram(here.model, x, layers=[name]) for name in convolutions}, labels)
figures.layers(by_layer);

# %% [markdown]
# (lfc-lgc)=
# ## Does LFC stand for LGC?
#
# The paper proposes LFC as a cheap approximation of LGC and never compares the two. One panel per task, one marker per
# expert; above each panel the Spearman correlation of LFC with LGC (last convolution), then with LGC of all layers. What
# counts for selection is the *order* of the experts: a correlation near 1 says that LFC would pick the same ones.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Scatter of LFC against LGC, one panel per task"}}
if not absent("lfc", "lgc", "lgc_full"):
    figures.lfc_against_lgc(scores)

# %% [markdown]
# (projection)=
# ## Exact against projected gradients
#
# The paper projects gradients at random to 10,000 dimensions; we compute their kernel exactly. Dots: ten Gaussian projections
# for each dimension (their law depends on the kernel alone, so they are drawn from it); cross: one real
# projection, with signs, by `random_projection`. The error of the kernel falls with the square root of the dimension; look
# at how little of it reaches LGC, which averages over all pairs. Few dimensions lower LGC: their noise adds to its denominator.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Error of the kernel and of LGC against the dimension of the projection"}}
from mzlib.linearization import random_projection

real = [random_projection(here.model, x, dimension=100)]
figures.projection(here.last_conv_kernel, labels, [100, 300, 1000, 3000, 10_000], real);

# %% [markdown]
# ## The kernel during fine-tuning
#
# The paper's Fig. 8: the feature kernel at the start, half-way and at the end of fine-tuning, for experts of three sources,
# LFC above each. Blocks should grow along the diagonal. An expert whose blocks are there from the start has less to learn,
# which is what LFC bets on. Ours: all training images of the task, the suite's recipe, features in evaluation mode.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Feature kernels at the start, half-way and at the end of fine-tuning, for three experts"}}
from mzlib.benchmark.kernels import features_during_finetuning
from mzlib.training import ResidentSet

grid = {}
for name in experts:
    one, train = evidence(name, 25), regime.train
    data = ResidentSet(target.train.images[train], target.train.labels[train], flip=target.flip, device=torch.device("cpu"))
    seen = features_during_finetuning(one.expert, data, chosen.recipe("finetune"), one.images, seed=0)
    grid[name] = {f"epoch {epoch}\nLFC": f @ f.T for epoch, f in seen.items()}
figures.fig8(grid, labels);

# %% [markdown]
# The numbers beside the paper's (UC Merced, epochs 0, 15 and 30; other experts and another task, so only the rise
# compares). In the paper two of three fall again in the second half.

# %% tags=["hide-input"]
figures.show(figures.fig8_table(grid, labels), "fig8-lfc", decimals=2)
