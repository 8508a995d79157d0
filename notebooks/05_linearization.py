# %% [markdown]
# # Linearization: what the kernel says about fine-tuning
#
# [Open in Colab](https://colab.research.google.com/github/mzlib/mzlib/blob/main/notebooks/05_linearization.ipynb)
#
# **The paper's scores rest on one idea: near its pre-trained weights a network is linear in them, so the kernel of its
# gradients predicts how fine-tuning will go.** This page looks at that kernel on one expert and one task, tests the prediction
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
    os.system("git clone -q --depth 1 --branch v0.2.0 https://github.com/mzlib/mzlib && pip install -q ./mzlib")
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
# ## What is computed and drawn
#
# The functions of this page: the residual of the best constant prediction, the share of the labels along eigenvectors, the
# loss of gradient descent, and the errors of projected gradients.

# %% tags=["hide-input", "functions"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from mzlib.benchmark.figures import display_name, use_style
from mzlib.selectors.deshpande2021 import lgc

GREY, COLOURS = "#7c7c7c", ("#2480c0", "#d55e00", "#009e73", "#cc79a7")
use_style()


def panels(rows, columns, height, **options):
    return plt.subplots(rows, columns, figsize=(5, height), layout="constrained", squeeze=False, **options)


def centred(labels):
    """One-hot labels minus their mean over images, float64 [N, K]: the residual of the best constant prediction."""
    one_hot = torch.nn.functional.one_hot(labels.unique(return_inverse=True)[1]).double()
    return one_hot - one_hot.mean(0)


def label_spectrum(gram, labels):
    """eigenvalue (share of the trace) and label_share Σ_c (δY_c·v)²/‖δY‖² of each eigenvector, largest first."""
    values, vectors = torch.linalg.eigh(gram.double())
    share = (vectors.T @ centred(labels)).square().sum(1)
    table = pd.DataFrame({"eigenvalue": values / values.sum(), "label_share": share / share.sum()})
    return table[::-1].reset_index(drop=True)


def gradient_descent(model, images, targets, *, learning_rate, steps):
    """Full-batch descent of the model itself, in place, in eval mode, with the loss of `finetune_linearized` [steps]."""
    optimizer, history = torch.optim.SGD(model.eval().parameters(), lr=learning_rate), []
    for _ in range(steps):
        loss = (model(images) - targets).square().sum() / (2 * len(images))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.detach())
    return torch.stack(history)


def layer_table(kernels, labels):
    """layer, lgc; label_share, gradient_share: of the sums of δYᵀΘδY and of tr Θ over the layers."""
    y = centred(labels)
    rows = [(name, lgc(gram, labels), float((y * (gram.double() @ y)).sum()), float(gram.trace()))
            for name, gram in kernels.items()]
    table = pd.DataFrame(rows, columns=["layer", "lgc", "label_share", "gradient_share"])
    for share in ("label_share", "gradient_share"):
        table[share] /= table[share].sum()
    return table


def projection_error(projected, gram, labels):
    """dimension; kernel_error ‖Θ̂ − Θ‖/‖Θ‖ and lgc_error of projected gradients [N, d] against the exact kernel."""
    near, gram = projected.double() @ projected.double().T, gram.double()
    return {"dimension": projected.shape[1], "kernel_error": float((near - gram).norm() / gram.norm()),
            "lgc_error": lgc(near, labels) - lgc(gram, labels)}


def projections_of(gram, dimension, draws, generator):
    """Projected gradients [N, d]: R with N(0, 1/d) entries gives R g_i the law of the rows of √Θ Z/√d, Z [N, d] normal."""
    values, vectors = torch.linalg.eigh(gram.double())
    root = vectors * values.clamp(min=0).sqrt()
    for _ in range(draws):
        yield root @ torch.randn(len(gram), dimension, generator=generator, dtype=torch.float64) / dimension**0.5

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
figures.fig8({expert: grams}, labels)
values = {name.replace("\n", ", "): lgc(gram, labels) for name, gram in grams.items()}
figures.download(pd.Series(values, name="correlation").to_frame(), "two-kernels", "Correlation with the labels: " + "; ".join(f"{name} {value:.2f}" for name, value in values.items()) + ".")

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
figure, axes = panels(2, 1, 5, sharex=True)
rank = np.arange(1, len(labels) + 1)
tenth = {}
for (name, gram), colour in zip(grams.items(), COLOURS):
    table = label_spectrum(gram, labels)
    tenth[name.partition("\n")[0]] = table["label_share"][: len(table) // 10].sum()
    axes[0, 0].plot(rank, table["eigenvalue"].where(table["eigenvalue"] > 1e-8), color=colour, label=name.partition("\n")[0])
    axes[1, 0].plot(rank, table["label_share"].cumsum(), color=colour)
axes[1, 0].plot(rank, rank / len(rank), ":", color=GREY)
axes[0, 0].set(xscale="log", yscale="log", ylabel="eigenvalue / trace")
axes[1, 0].set(xlabel="eigenvectors, largest eigenvalue first", ylabel="share of the labels")
figure.legend(loc="outside upper center", ncols=3)
figures.download(pd.Series(tenth, name="share").to_frame(), "spectrum", "The first tenth of the eigenvectors holds of the labels: " + ", ".join(f"{share:.0%} ({name})" for name, share in tenth.items()) + ".")

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

from mzlib.linearization import Dynamics, finetune_linearized
from mzlib.zoo import with_fresh_head

few = evidence(expert, max(2, 80 // len(target.class_names)))
images, n = prepared(few.expert, few.images), len(few.labels)
half = torch.where(few.labels < len(target.class_names) / 2, 1.0, -1.0)[:, None]

# %% tags=["hide-input"]
def training_loss(targets, steps=40):
    """Eq. 1 (grey) and runs of gradient descent (markers): squared loss per image against ηλ₁t."""
    model = with_fresh_head(few.model, targets.shape[1], seed=0)
    theta = ntk_gram(model, images, layers="all", outputs="logits", probes="exact") / targets.shape[1]
    rate, flow = float(1 / torch.linalg.eigvalsh(theta)[-1]), Dynamics(theta, targets, model(images).detach())
    time, at = torch.linspace(0, steps, 200), {step: step * torch.arange(int(steps / step)) for step in (1, 3)}
    _, losses = finetune_linearized(model, images, targets, learning_rate=n * rate, steps=steps)
    runs = {"linearized, step 1": (at[1], 2 * losses)}
    for step in at:
        losses = gradient_descent(deepcopy(model), images, targets, learning_rate=n * rate * step, steps=len(at[step]))
        runs[f"network, step {step}"] = (at[step], 2 * losses)
    figure, ((ax,),) = panels(1, 1, 3.6)
    predicted = flow.losses(time, rate) / n
    ax.plot(time, predicted, color=GREY, lw=4, alpha=0.5, label="eq. 1")
    for (name, run), colour, marker in zip(runs.items(), COLOURS, "o^s"):
        ax.plot(*run, marker=marker, ms=4, lw=0.7, mfc="none", color=colour, label=name)
    ax.set(xlabel="time ηt, in units of 1/λ₁", ylabel="squared loss per image", ylim=(0, 1.3 * float(predicted.max())))
    figure.legend(loc="outside upper center", ncols=2)
    last = {name: float(run[1][-1]) for name, run in runs.items()}
    ends = "; ".join(f"{name} {value:.3f}" for name, value in last.items())
    return figures.download(pd.Series(last, name="loss").to_frame(), f"training-loss-{targets.shape[-1]}", f"Loss at the end: eq. 1 {float(predicted[-1]):.3f}; {ends}.")

# %% tags=["hide-input"] mystnb={"image": {"alt": "Predicted and actual training loss against time, two step sizes"}}
training_loss(half)

# %% [markdown]
# With one output a class (one-hot labels) there is one kernel for each *pair* of outputs. Eq. 1 with a single kernel, the
# mean over outputs, leaves out that they differ, so that even the linearized model is free to leave the line. It hardly
# does while the fresh head is small: most of the kernel is then the head's own half, $\Theta_F$, the same for every output.

# %% tags=["hide-cell"] mystnb={"image": {"alt": "The same with one output a class"}}
training_loss(torch.nn.functional.one_hot(few.labels, len(target.class_names)).float())

# %% [markdown]
# (eq5)=
# ## Fast training and good generalization: eq. 5
#
# One marker per expert and task (20 images a class), the kernel of all layers by one cotangent, labels one-hot and centred (our choice: the residual of the
# best constant prediction). No marker may lie below the dotted line: good generalization forces fast initial training. How
# much the inequality *says* is another matter: the distance to the line is the slack, and both sides contain the scale of
# the gradients, which differs between experts for reasons that have nothing to do with the task.

# %% tags=["hide-cell"] mystnb={"image": {"alt": "Both sides of the inequality for every expert and task, logarithmic axes"}}
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
    figure, ((ax,),) = panels(1, 1, 4.2)
    for i, (name, rows) in enumerate(scores.groupby("task")):
        ax.plot(1 / rows["label_alignment"], -rows["inverse_label_alignment"], "o^sDvP*X"[i % 8], ms=4, mfc="none",
                color=COLOURS[i % 4], label=display_name(name))
    ends = [*ax.get_xlim()]
    ax.plot(ends, ends, ":", color=GREY)  # equality: all labels along eigenvectors of one eigenvalue
    ax.set(xscale="log", yscale="log", xlabel="left side: slow training →", ylabel="right side: bad generalization →")
    figure.legend(loc="outside upper center", ncols=3)
    slack = (-scores["inverse_label_alignment"] * scores["label_alignment"]).dropna()
    display(figures.download(scores[["task", "expert", "label_alignment", "inverse_label_alignment"]], "eq5", f"{(slack < 1).sum()} of {len(slack)} markers lie below the line; the right side is {slack.median():,.0f} times the left in the median."))

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

# %% tags=["hide-cell"] mystnb={"image": {"alt": "LGC of each convolution, and its part of the label product and of the squared gradients"}}
convolutions = [name for name, module in here.model.named_modules() if isinstance(module, torch.nn.Conv2d)]
by_layer = layer_table({name: ntk_gram(here.model, x, layers=[name]) for name in convolutions}, labels)
figure, (axes,) = panels(1, 2, 1 + 0.25 * len(by_layer), sharey=True)
axes[0].plot(by_layer["lgc"], by_layer["layer"], "o-", color=COLOURS[0], ms=4)
at = np.arange(len(by_layer))
axes[1].barh(at - 0.2, 100 * by_layer["label_share"], 0.4, color=COLOURS[0], label="of YᵀΘY")
axes[1].barh(at + 0.2, 100 * by_layer["gradient_share"], 0.4, color=GREY, label="of tr Θ")
axes[0].set(xlabel="LGC", ylim=(len(by_layer) - 0.5, -0.5), xlim=(min(0, 1.1 * by_layer["lgc"].min()), None))
axes[1].set(xlabel="share (%)")
axes[1].legend()
first, last = (by_layer["lgc"].iloc[i] for i in (0, -1))
figures.download(by_layer, "layers", f"LGC is {first:.2f} at the first convolution and {last:.2f} at the last.")

# %% [markdown]
# (lfc-lgc)=
# ## Does LFC stand for LGC?
#
# The paper proposes LFC as a cheap approximation of LGC and never compares the two. One panel per task, one marker per
# expert; above each panel the Spearman correlation of LFC with LGC (last convolution), then with LGC of all layers. What
# counts for selection is the *order* of the experts: a correlation near 1 says that LFC would pick the same ones.

# %% tags=["hide-cell"] mystnb={"image": {"alt": "Scatter of LFC against LGC, one panel per task"}}
if not absent("lfc", "lgc", "lgc_full"):
    tasks = dict(list(scores.groupby("task")))
    figure, axes = panels(-(-len(tasks) // 2), 2, 0.8 + 0.9 * len(tasks))
    for ax in axes.flat[len(tasks):]:
        ax.set_axis_off()
    for (name, rows), ax in zip(tasks.items(), axes.flat):
        for selector, colour, marker in (("lgc", COLOURS[0], "o"), ("lgc_full", COLOURS[1], "^")):
            ax.plot(rows["lfc"], rows[selector], marker, ms=4, mfc="none", color=colour, label=display_name(selector))
        rho = rows[["lfc", "lgc", "lgc_full"]].corr("spearman").loc["lfc"]
        ax.set_title(f"{display_name(name)}: {rho['lgc']:.2f}, {rho['lgc_full']:.2f}")
    figure.supxlabel("LFC", fontsize=10)
    figure.supylabel("LGC", fontsize=10)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    mean = pd.concat([rows[["lfc", "lgc", "lgc_full"]].corr("spearman").loc[["lfc"]] for rows in tasks.values()]).mean()
    display(figures.download(scores[["task", "expert", "lfc", "lgc", "lgc_full"]], "lfc-lgc",
                             f"LFC orders the experts as LGC does with {mean['lgc']:.2f} (last convolution) and {mean['lgc_full']:.2f} (all layers), mean over tasks."))

# %% [markdown]
# (projection)=
# ## Exact against projected gradients
#
# The paper projects gradients at random to 10,000 dimensions; we compute their kernel exactly. Dots: ten Gaussian projections
# for each dimension (their law depends on the kernel alone, so they are drawn from it); cross: one real
# projection, with signs, by `random_projection`. The error of the kernel falls with the square root of the dimension; look
# at how little of it reaches LGC, which averages over all pairs. Few dimensions lower LGC: their noise adds to its denominator.

# %% tags=["hide-cell"] mystnb={"image": {"alt": "Error of the kernel and of LGC against the dimension of the projection"}}
from mzlib.linearization import random_projection

exact, generator = here.last_conv_kernel, torch.Generator().manual_seed(0)
drawn = [p for d in (100, 300, 1000, 3000, 10_000) for p in projections_of(exact, d, 10, generator)]
real = random_projection(here.model, x, dimension=100)
figure, axes = panels(2, 1, 4.4, sharex=True)
for projected, style in ((drawn, {"marker": ".", "color": COLOURS[0], "alpha": 0.5}),
                         ([real], {"marker": "x", "color": COLOURS[1], "ms": 9, "mew": 2})):
    table = pd.DataFrame([projection_error(p, exact, labels) for p in projected])
    axes[0, 0].plot(table["dimension"], 100 * table["kernel_error"], ls="", **style)
    axes[1, 0].plot(table["dimension"], table["lgc_error"], ls="", **style)
axes[0, 0].set(yscale="log", ylabel="error of the kernel (%)")
axes[1, 0].axhline(0, color=GREY, lw=1)
axes[1, 0].set(xscale="log", xlabel="dimensions of the projection", ylabel="error of LGC")
errors = pd.DataFrame([projection_error(p, exact, labels) for p in drawn])
widest = errors[errors["dimension"] == errors["dimension"].max()]
figures.download(errors, "projection", f"At {errors['dimension'].max():,} dimensions, the paper's, the kernel is off by {widest['kernel_error'].mean():.1%} and LGC by {widest['lgc_error'].abs().mean():.4f}.")

# %% [markdown]
# ## The kernel during fine-tuning
#
# The paper's Fig. 8: the feature kernel at the start, half-way and at the end of fine-tuning, for experts of three sources,
# LFC above each. Blocks should grow along the diagonal. An expert whose blocks are there from the start has less to learn,
# which is what LFC bets on. Ours: all training images of the task, the suite's recipe, features in evaluation mode.

# %% tags=["hide-cell"] mystnb={"image": {"alt": "Feature kernels at the start, half-way and at the end of fine-tuning, for three experts"}}
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
