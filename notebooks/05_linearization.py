# %% [markdown]
# # Linearization: what the kernel predicts about fine-tuning
#
# [Open in Colab](https://colab.research.google.com/github/mzlib/mzlib/blob/main/notebooks/05_linearization.ipynb)
#
# **The paper's scores rest on one idea: close to its pre-trained weights a network is linear in them, so the kernel of its
# gradients predicts how fine-tuning will go.** This page examines that kernel for one expert and one task, compares its
# prediction with real training, and measures what two approximations cost: features in place of gradients, and random
# projection. [The method](../method.md) has the formulas. Parameters: `suite`, `task`, `expert`.

# %% tags=["parameters"]
suite = "mini"
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
from mzlib.benchmark import figures
from mzlib.benchmark import load_results, run_suite
from mzlib.benchmark.data import load_task
from mzlib.benchmark.stages import zoo_folder
from mzlib.evidence import Evidence, prepared, subset
from mzlib.zoo import load_expert

scratch = [name for name in chosen.starting_points() if name.endswith("-scratch")]
experts = list(dict.fromkeys([expert, *scratch, chosen.reference]))[:3]
for name in experts:  # trains those of the three whose weights are not here
    network = name.partition(":")[0]
    run_suite(suite, stages=["zoo"], only=f"zoo/{network}", weights=True)
results = load_results(suite)
target = load_task(task, chosen.image_size)
regime = subset(target, "full", 0)


def evidence(name, images_per_class):
    index = regime.sample(images_per_class, 0)
    images = target.train.images[index]
    labels = target.train.labels[index]
    return Evidence(load_expert(name, zoo_folder(suite)), images, labels)


figures.provenance_line(suite, results.provenance)

# %% tags=["hide-input", "functions"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from mzlib.benchmark.figures import display_name, use_style
from mzlib.selectors.deshpande2021 import lgc

GREY = "#7c7c7c"
COLOURS = ("#2480c0", "#d55e00", "#009e73", "#cc79a7")
use_style()


def panels(rows, columns, height, **options):
    options = {"figsize": (5, height), "layout": "constrained", **options}
    return plt.subplots(rows, columns, squeeze=False, **options)


def centred(labels):
    """One-hot labels minus their mean over images, float64 [N, K]: the residual of the best
    constant prediction.
    """
    _, class_of = labels.unique(return_inverse=True)
    one_hot = torch.nn.functional.one_hot(class_of).double()
    return one_hot - one_hot.mean(0)


def label_spectrum(gram, labels):
    """eigenvalue (share of the trace) and label_share Σ_c (δY_c·v)²/‖δY‖² of each eigenvector,
    largest first.
    """
    values, vectors = torch.linalg.eigh(gram.double())
    share = (vectors.T @ centred(labels)).square().sum(1)
    table = pd.DataFrame({"eigenvalue": values / values.sum(), "label_share": share / share.sum()})
    return table[::-1].reset_index(drop=True)


def gradient_descent(model, images, targets, *, learning_rate, steps):
    """Full-batch descent of the model itself, in place, in eval mode, with the loss of
    `finetune_linearized` [steps].
    """
    optimizer = torch.optim.SGD(model.eval().parameters(), lr=learning_rate)
    history = []
    for _ in range(steps):
        loss = (model(images) - targets).square().sum() / (2 * len(images))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.detach())
    return torch.stack(history)


def layer_table(kernels, labels):
    """layer, lgc; label_share, gradient_share: of the sums of δYᵀΘδY and of tr Θ over the
    layers.
    """
    y = centred(labels)
    rows = []
    for name, gram in kernels.items():
        label_product = float((y * (gram.double() @ y)).sum())
        rows.append((name, lgc(gram, labels), label_product, float(gram.trace())))
    table = pd.DataFrame(rows, columns=["layer", "lgc", "label_share", "gradient_share"])
    for share in ("label_share", "gradient_share"):
        table[share] /= table[share].sum()
    return table


def projection_error(projected, gram, labels):
    """dimension; kernel_error ‖Θ̂ − Θ‖/‖Θ‖ and lgc_error of projected gradients [N, d] against the
    exact kernel.
    """
    projected = projected.double()
    near = projected @ projected.T
    gram = gram.double()
    return {
        "dimension": projected.shape[1],
        "kernel_error": float((near - gram).norm() / gram.norm()),
        "lgc_error": lgc(near, labels) - lgc(gram, labels),
    }


def projections_of(gram, dimension, draws, generator):
    """Projected gradients [N, d]: R with N(0, 1/d) entries gives R g_i the law of the rows of
    √Θ Z/√d, Z [N, d] normal.
    """
    values, vectors = torch.linalg.eigh(gram.double())
    root = vectors * values.clamp(min=0).sqrt()
    for _ in range(draws):
        z = torch.randn(len(gram), dimension, generator=generator, dtype=torch.float64)
        yield root @ z / dimension**0.5


# %% [markdown]
# (kernels)=
# ## Two kernels and the labels
#
# Each small square is a kernel over 25 training images per class, sorted by class (white lines); above it the correlation with
# the labels (eq. 8). Look for brighter blocks along the diagonal: images of one class that resemble each other (features) or
# pull the weights in the same direction (gradients). We differentiate the penultimate features, because the paper names no
# scalar. For all layers we estimate the kernel with 4 random probes; for the last convolution one probe is exact.


# %% tags=["hide-input", "functions"]
def kernel(gram, labels, title, ax):
    """A kernel [N, N], images sorted by class, lines between classes."""
    order = np.argsort(labels, kind="stable")
    low, high = np.quantile(gram, [0.01, 0.99])
    cells = gram[np.ix_(order, order)]
    # as small as the kernel in a vector graphic
    ax.imshow(cells, cmap="cividis", vmin=low, vmax=high, interpolation="none")
    last_of_class = np.flatnonzero(np.diff(np.sort(labels)))
    for edge in last_of_class + 0.5:
        ax.axhline(edge, color="white", lw=0.5)
        ax.axvline(edge, color="white", lw=0.5)
    ax.set(xticks=[], yticks=[], title=title)
    return ax


def fig8(grid, labels):
    """Kernels (row -> title -> tensor [N, N]) in rows and columns, eq. 8 after each title: the
    layout of the paper's Fig. 8.
    """
    columns = max(map(len, grid.values()))
    _, axes = panels(len(grid), columns, 0.2 + 1.95 * len(grid))
    for (name, row), line in zip(grid.items(), axes):
        for (column, gram), ax in zip(row.items(), line):
            kernel(gram.numpy(), labels.numpy(), f"{column} {lgc(gram, labels):.2f}", ax)
        line[0].set_ylabel(name)
    return axes


# %% tags=["hide-input"] mystnb={"image": {"alt": "Kernels of features and gradients, images sorted by class"}}
from mzlib.linearization import ntk_gram

here = evidence(expert, 25)
labels = here.labels.cpu()
x = prepared(here.expert, here.images)
grams = {
    "features\nLFC": here.features @ here.features.T,
    "last convolution\nLGC": here.last_conv_kernel,
    "all layers\nLGC": ntk_gram(here.model, x, layers="all", probes=4),
}
fig8({expert: grams}, labels)
values = {name.replace("\n", ", "): lgc(gram, labels) for name, gram in grams.items()}
correlations = "; ".join(f"{name} {value:.2f}" for name, value in values.items())
figures.download(
    pd.Series(values, name="correlation").to_frame(),
    "two-kernels",
    f"Correlation with the labels: {correlations}.",
)

# %% [markdown]
# (spectrum)=
# ## Eigenvalues and label alignment
#
# Gradient descent learns along the eigenvectors of the kernel, those with large eigenvalues first (eq. 1), and generalizes
# well when the labels lie along them (eq. 4). Top: the eigenvalues fall over several orders of magnitude. Bottom: the share of
# the centred labels within the span of the first $k$ eigenvectors. The further above the dotted line (labels unrelated to the
# kernel), the better the alignment. The first eigenvector has by far the largest eigenvalue, but it is almost constant over
# images and carries almost nothing of the labels.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Eigenvalues of each kernel and the part of the labels along them"}}
figure, axes = panels(2, 1, 4.2, sharex=True)
rank = np.arange(1, len(labels) + 1)
tenth = {}
for (title, gram), colour in zip(grams.items(), COLOURS):
    name = title.partition("\n")[0]
    table = label_spectrum(gram, labels)
    tenth[name] = table["label_share"][: len(table) // 10].sum()
    eigenvalue = table["eigenvalue"]
    axes[0, 0].plot(rank, eigenvalue.where(eigenvalue > 1e-8), color=colour, label=name)
    axes[1, 0].plot(rank, table["label_share"].cumsum(), color=colour)
axes[1, 0].plot(rank, rank / len(rank), ":", color=GREY)
axes[0, 0].set(xscale="log", yscale="log", ylabel="eigenvalue / trace")
axes[1, 0].set(xlabel="eigenvectors, largest eigenvalue first", ylabel="share of the labels")
figure.legend(loc="outside upper center", ncols=3)
shares = ", ".join(f"{share:.0%} ({name})" for name, share in tenth.items())
figures.download(
    pd.Series(tenth, name="share").to_frame(),
    "spectrum",
    f"Share of the labels within the first tenth of the eigenvectors: {shares}.",
)

# %% [markdown]
# (training-loss)=
# ## Predicted against actual training loss
#
# Eq. 1 (grey) uses only the kernel at the pre-trained weights. We compare it with gradient descent on the linearized model,
# which must follow it up to the step size, and on the network itself (full batch, squared loss, fresh head, batch norm in
# evaluation mode). Time is in units of $1/\lambda_1$, so that a step above 2 overshoots along the first eigenvector.
# First the paper's setting: one output and labels ±1 (here, the first half of the classes against the second). Look where the
# network leaves the line: its kernel changes as it trains, and it learns *faster* than eq. 1 predicts.

# %% tags=["hide-input"]
from copy import deepcopy

from mzlib.linearization import Dynamics, finetune_linearized
from mzlib.zoo import with_fresh_head

few = evidence(expert, max(2, 80 // len(target.class_names)))
images = prepared(few.expert, few.images)
n = len(few.labels)
half = torch.where(few.labels < len(target.class_names) / 2, 1.0, -1.0)[:, None]


def training_loss(targets, steps=40):
    """Eq. 1 (grey) and runs of gradient descent (markers): squared loss per image against ηλ₁t."""
    outputs = targets.shape[1]
    model = with_fresh_head(few.model, outputs, seed=0)
    theta = ntk_gram(model, images, layers="all", outputs="logits", probes="exact") / outputs
    rate = float(1 / torch.linalg.eigvalsh(theta)[-1])
    flow = Dynamics(theta, targets, model(images).detach())
    time = torch.linspace(0, steps, 200)
    predicted = flow.losses(time, rate) / n
    _, losses = finetune_linearized(model, images, targets, learning_rate=n * rate, steps=steps)
    runs = {"linearized, step 1": (torch.arange(steps), 2 * losses)}
    for step in (1, 3):
        at = step * torch.arange(int(steps / step))
        losses = gradient_descent(
            deepcopy(model),
            images,
            targets,
            learning_rate=n * rate * step,
            steps=len(at),
        )
        runs[f"network, step {step}"] = (at, 2 * losses)
    figure, ((ax,),) = panels(1, 1, 3.6)
    ax.plot(time, predicted, color=GREY, lw=4, alpha=0.5, label="eq. 1")
    for (name, run), colour, marker in zip(runs.items(), COLOURS, "o^s"):
        ax.plot(*run, marker=marker, ms=4, lw=0.7, mfc="none", color=colour, label=name)
    ax.set(
        xlabel="time ηt, in units of 1/λ₁",
        ylabel="squared loss per image",
        ylim=(0, 1.3 * float(predicted.max())),
    )
    figure.legend(loc="outside upper center", ncols=2)
    last = {name: float(run[1][-1]) for name, run in runs.items()}
    ends = "; ".join(f"{name} {value:.3f}" for name, value in last.items())
    return figures.download(
        pd.Series(last, name="loss").to_frame(),
        f"training-loss-{outputs}",
        f"Loss at the end: eq. 1 {float(predicted[-1]):.3f}; {ends}.",
    )


# %% tags=["hide-input"] mystnb={"image": {"alt": "Predicted and actual training loss against time, two step sizes"}}
training_loss(half)

# %% [markdown]
# With one output per class (one-hot labels), there is one kernel for each *pair* of outputs. Eq. 1 with a single kernel, the
# mean over outputs, ignores their differences, so even the linearized model may leave the line. It hardly does as long as the
# fresh head is small: most of the kernel is then the head's own half, $\Theta_F$, which is the same for every output.

# %% tags=["hide-cell"] mystnb={"image": {"alt": "The same with one output per class"}}
one_hot = torch.nn.functional.one_hot(few.labels, len(target.class_names))
training_loss(one_hot.float())

# %% [markdown]
# (eq5)=
# ## Fast training and good generalization: eq. 5
#
# One marker per expert and task at 20 images per class. The kernel covers all layers, estimated with one probe; the labels
# are one-hot and centred, which is the residual of the best constant prediction (our choice). No marker may lie below the
# dotted line: good generalization forces fast initial training. How much that *says* is another matter. The distance to the
# line is the slack, and both sides contain the scale of the gradients, which differs between experts for reasons unrelated to
# the task.

# %% tags=["hide-cell"] mystnb={"image": {"alt": "Both sides of the inequality for every expert and task, logarithmic axes"}}
scores = results.scores
if len(scores):
    scores = scores.query("shots == '20' and images_per_class == '25'")
    scores = scores.pivot_table("score", ["task", "expert"], "selector").reset_index()


def absent(*selectors):
    lacking = [name for name in selectors if name not in scores]
    if lacking:
        print(f"the score table of {suite} has none of {', '.join(lacking)}: nothing to draw here")
    return lacking


if not absent("label_alignment", "inverse_label_alignment"):
    scores["left side"] = 1 / scores["label_alignment"]
    scores["right side"] = -scores["inverse_label_alignment"]
    figure, ((ax,),) = panels(1, 1, 4.2)
    for i, (name, rows) in enumerate(scores.groupby("task")):
        ax.plot(
            rows["left side"],
            rows["right side"],
            "o^sDvP*X"[i % 8],
            ms=4,
            mfc="none",
            color=COLOURS[i % 4],
            label=display_name(name),
        )
    # equality: all labels along eigenvectors of one eigenvalue
    ends = ax.get_xlim()
    ax.plot(ends, ends, ":", color=GREY)
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="left side: slow training →",
        ylabel="right side: bad generalization →",
    )
    figure.legend(loc="outside upper center", ncols=3)
    slack = (-scores["inverse_label_alignment"] * scores["label_alignment"]).dropna()
    below = (slack < 1).sum()
    caption = (
        f"{below} of {len(slack)} markers lie below the line. "
        f"In the median the right side is {slack.median():,.0f} times the left side."
    )
    sides = scores[["task", "expert", "label_alignment", "inverse_label_alignment"]]
    display(figures.download(sides, "eq5", caption))

# %% [markdown]
# (layers)=
# ## Layer by layer
#
# Appendix A argues that features can stand in for gradients because the kernel is a sum over layers that discounts early
# layers. Left: LGC of each convolution's kernel, from input to output. Right: each layer's share of the label product
# $Y^\top\Theta Y$ (centred labels) beside its share of the squared gradients, which is its weight in the sum. If early layers
# counted less, the bars at the top would be short. If they knew less about the labels, their blue bars would be shorter than
# the grey ones. With the default parameters, the second holds and LGC rises with depth, but the first does not: the shortcuts
# (`downsample`) have the most weight. We use one random probe per layer, exact only for the last convolution on the main path.

# %% tags=["hide-cell"] mystnb={"image": {"alt": "LGC of each convolution, and its part of the label product and of the squared gradients"}}
convolutions = [
    name for name, module in here.model.named_modules() if isinstance(module, torch.nn.Conv2d)
]
kernels = {name: ntk_gram(here.model, x, layers=[name]) for name in convolutions}
by_layer = layer_table(kernels, labels)
figure, (axes,) = panels(1, 2, 1 + 0.25 * len(by_layer), sharey=True)
axes[0].plot(by_layer["lgc"], by_layer["layer"], "o-", color=COLOURS[0], ms=4)
at = np.arange(len(by_layer))
axes[1].barh(at - 0.2, 100 * by_layer["label_share"], 0.4, color=COLOURS[0], label="of YᵀΘY")
axes[1].barh(at + 0.2, 100 * by_layer["gradient_share"], 0.4, color=GREY, label="of tr Θ")
leftmost = min(0, 1.1 * by_layer["lgc"].min())
axes[0].set(xlabel="LGC", xlim=(leftmost, None), ylim=(len(by_layer) - 0.5, -0.5))
axes[1].set(xlabel="share (%)")
axes[1].legend()
first = by_layer["lgc"].iloc[0]
last = by_layer["lgc"].iloc[-1]
figures.download(
    by_layer,
    "layers",
    f"LGC is {first:.2f} at the first convolution and {last:.2f} at the last.",
)

# %% [markdown]
# (lfc-lgc)=
# ## Does LFC stand for LGC?
#
# The paper proposes LFC as a cheap approximation of LGC but never compares the two. Each panel shows one task, each marker one
# expert. The title gives Spearman's correlation of LFC with LGC of the last convolution, then with LGC of all layers. Selection
# depends only on the *order* of the experts: near 1, LFC would pick the same ones.

# %% tags=["hide-cell"] mystnb={"image": {"alt": "Scatter of LFC against LGC, one panel per task"}}
if not absent("lfc", "lgc", "lgc_full"):
    rho_of = {}
    number = scores["task"].nunique()
    figure, axes = panels(-(-number // 2), 2, 0.8 + 0.9 * number)
    for ax in axes.flat[number:]:
        ax.set_axis_off()
    for (name, rows), ax in zip(scores.groupby("task"), axes.flat):
        for selector, colour, marker in (("lgc", COLOURS[0], "o"), ("lgc_full", COLOURS[1], "^")):
            ax.plot(
                rows["lfc"],
                rows[selector],
                marker,
                ms=4,
                mfc="none",
                color=colour,
                label=display_name(selector),
            )
        rho = rows[["lfc", "lgc", "lgc_full"]].corr("spearman").loc["lfc"]
        rho_of[name] = rho
        ax.set_title(f"{display_name(name)}: {rho['lgc']:.2f}, {rho['lgc_full']:.2f}")
    figure.supxlabel("LFC", fontsize=10)
    figure.supylabel("LGC", fontsize=10)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    mean = pd.DataFrame(rho_of).mean(axis=1)
    caption = (
        "Averaged over tasks, the rank correlation of LFC with LGC is "
        f"{mean['lgc']:.2f} (last convolution) and {mean['lgc_full']:.2f} (all layers)."
    )
    pairs = scores[["task", "expert", "lfc", "lgc", "lgc_full"]]
    display(figures.download(pairs, "lfc-lgc", caption))

# %% [markdown]
# (projection)=
# ## Exact against projected gradients
#
# The paper projects gradients at random to 10,000 dimensions; we compute their kernel exactly. Dots: ten Gaussian projections
# per dimension, drawn from the kernel, on which alone their distribution depends. Cross: one real projection with random
# signs, by `random_projection`. The error of the kernel falls with the square root of the dimension. Little of it reaches LGC,
# which averages over all pairs. With few dimensions LGC comes out too low, because the noise inflates its denominator.

# %% tags=["hide-cell"] mystnb={"image": {"alt": "Error of the kernel and of LGC against the dimension of the projection"}}
from mzlib.linearization import random_projection

exact = here.last_conv_kernel
generator = torch.Generator().manual_seed(0)
rows = []
for dimension in (100, 300, 1000, 3000, 10_000):
    for projected in projections_of(exact, dimension, 10, generator):
        rows.append(projection_error(projected, exact, labels))
errors = pd.DataFrame(rows)
real = random_projection(here.model, x, dimension=100)
error_of_real = pd.DataFrame([projection_error(real, exact, labels)])
dots = {"marker": ".", "color": COLOURS[0], "alpha": 0.5}
cross = {"marker": "x", "color": COLOURS[1], "ms": 9, "mew": 2}
figure, axes = panels(2, 1, 4.4, sharex=True)
for table, style in ((errors, dots), (error_of_real, cross)):
    axes[0, 0].plot(table["dimension"], 100 * table["kernel_error"], ls="", **style)
    axes[1, 0].plot(table["dimension"], table["lgc_error"], ls="", **style)
axes[0, 0].set(yscale="log", ylabel="error of the kernel (%)")
axes[1, 0].axhline(0, color=GREY, lw=1)
axes[1, 0].set(xscale="log", xlabel="dimensions of the projection", ylabel="error of LGC")
widest = errors["dimension"].max()
at_widest = errors[errors["dimension"] == widest].abs().mean()
figures.download(
    errors,
    "projection",
    f"At the paper's {widest:,} dimensions, the kernel is off by "
    f"{at_widest['kernel_error']:.1%} and LGC by {at_widest['lgc_error']:.4f}.",
)

# %% [markdown]
# ## The kernel during fine-tuning
#
# The feature kernel at the start, halfway through and at the end of fine-tuning, for experts of three sources, LFC above each:
# a toy beside [Figure 8](../kernels.md). Blocks should grow along the diagonal. An expert that has blocks from the start has
# less to learn, which is what LFC bets on. Fine-tuning uses all training images of the task and the suite's recipe.

# %% tags=["hide-input", "functions"]
from mzlib.benchmark.figures import paper
from mzlib.evidence import prepared
from mzlib.training import ResidentSet, train
from mzlib.zoo import features, with_fresh_head


def features_during_finetuning(expert, data, recipe, images, *, seed):
    """Epoch -> features [N, D] of uint8 `images` before, half-way through and after fine-tuning (in
    place).
    """
    model = with_fresh_head(expert.model, int(data.labels.max()) + 1, seed)
    epochs = recipe.total_epochs(data.batches_per_epoch(recipe.batch_size))
    seen = {}

    def look(epoch, epochs):
        if epoch in (0, epochs // 2, epochs):
            model.eval()
            with torch.no_grad():
                seen[epoch] = features(model, prepared(expert, images))
            model.train()

    look(0, epochs)
    train(model, data, recipe, seed=seed, progress=False, after_epoch=look)
    return seen


def fig8_table(grid, labels):
    """LFC at start, half and end of fine-tuning of each row of `fig8`, under them the paper's."""
    stages = ["start", "half", "end"]
    has_half = max(map(len, grid.values())) == 3  # not after one epoch
    shown = stages if has_half else ["start", "end"]
    rows = [[lgc(gram, labels) for gram in row.values()] for row in grid.values()]
    ours = pd.DataFrame(rows, list(grid), shown)
    theirs = paper("fig8_lfc_during_finetuning")
    theirs = theirs.pivot(index="source", columns="epoch", values="lfc")
    theirs = theirs.set_axis(stages, axis=1)
    theirs = theirs.rename(lambda source: f"{display_name(source)} (paper, UC Merced)")
    return pd.concat([ours, theirs[shown]]).rename_axis("expert")


# %% tags=["hide-cell"] mystnb={"image": {"alt": "Feature kernels at the start, halfway through and at the end of fine-tuning, for three experts of the toy suite"}}
grid = {}
recipe = chosen.recipe("finetune")
for name in experts:
    sample = evidence(name, 25)
    data = ResidentSet(
        target.train.images[regime.train],
        target.train.labels[regime.train],
        flip=target.flip,
        device=torch.device("cpu"),
    )
    seen = features_during_finetuning(sample.expert, data, recipe, sample.images, seed=0)
    grid[name] = {f"epoch {epoch}\nLFC": f @ f.T for epoch, f in seen.items()}
drawn = fig8(grid, labels)

# %% [markdown]
# The paper's numbers (UC Merced, epochs 0, 15, 30) stand below ours: compare only the rise.

# %% tags=["hide-input"]
figures.show(
    fig8_table(grid, labels),
    "fig8-lfc",
    decimals=2,
    caption="LFC at the start, halfway through and at the end of fine-tuning; "
    "the toy suite's experts above the paper's.",
)

# %% [markdown]
# (networks)=
# ## Which networks it works on
#
# One network of each module of timm and some of torchvision, with random weights.

# %% tags=["hide-input"]
from IPython.display import HTML, Markdown

from mzlib.provenance import home


def networks(path):
    """What was measured on them: a sentence, and the table, folded."""
    sweep = pd.read_csv(path)
    works = sweep["works"].eq(True)
    compared = sweep["error"].dropna()
    timed = sweep["all_over_forward_backward"].dropna()
    torchvision = sweep["network"].str.startswith("torchvision.").sum()
    failed = []
    for row in sweep[~works].itertuples():
        reason = "out of time" if pd.isna(row.works) else "refused, with the reason"
        failed.append(f"{row.network} ({reason})")
    others = f"; the others: {', '.join(failed)}" if failed else ""
    display(
        Markdown(
            f"The kernel of the last layer is found on {works.sum()} of {len(sweep)} networks "
            f"({torchvision} of them from torchvision){others}. "
            f"On {len(compared)} networks it was compared with explicit gradients, "
            f"and the largest error is {compared.max():.0e}. "
            f"The kernel of all layers was timed on {len(timed)}: it costs "
            f"{timed.median():.1f} forward and backward passes in the median "
            f"and {timed.max():.1f} at most."
        )
    )
    columns = {
        "layer": "layer",
        "probes": "probes",
        "error": "error",
        "all_over_forward_backward": "all layers (× forward and backward)",
        "last_over_forward": "last layer (× forward)",
        "pixels": "pixels",
        "parameters": "parameters (M)",
    }
    shown = sweep.assign(
        probes=sweep["probes"].astype("Int64"),
        pixels=sweep["pixels"].astype("Int64"),
        parameters=sweep["parameters"] / 1e6,
        error=sweep["error"].map("{:.0e}".format, na_action="ignore").fillna("–"),
        layer=sweep["layer"].fillna("–"),
    )
    table = figures.show(
        shown.set_index("network")[list(columns)].rename(columns=columns),
        "networks-swept",
        caption='Layer: the one that layers="last" takes; probes: how many it took. '
        "Error: largest relative deviation of the kernel from explicit float64 gradients, "
        "for networks of less than 16 million parameters. "
        "Costs: CPU seconds on one thread. "
        "A dash: not measured within the time given to a network.",
    )
    return HTML(f"<details><summary>All {len(sweep)} networks</summary>{table.data}</details>")


committed = home() / "results/benchmarks/linearization_sweep.csv"
if committed.is_file():
    shown = networks(committed)
else:
    shown = Markdown("The table comes with the repository; this notebook runs outside it.")
shown
