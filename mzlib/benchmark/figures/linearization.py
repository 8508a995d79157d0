"""Figures of the linearized model and the small computations behind them; a kernel is a tensor [N, N]."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import LogLocator
from torch import Tensor, nn

from mzlib.benchmark.figures.paper import paper
from mzlib.benchmark.figures.plots import kernel
from mzlib.benchmark.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    axes,
    display_name,
    use_style,
)
from mzlib.selectors.deshpande2021 import lgc

COLOURS = (BLUE, ORANGE, GREEN, PINK)


def _panels(rows: int, columns: int, height: float, **options) -> tuple[plt.Figure, np.ndarray]:
    use_style()
    return plt.subplots(
        rows, columns, figsize=(5, height), layout="constrained", squeeze=False, **options
    )


def centred(labels: Tensor) -> Tensor:
    """One-hot labels minus their mean over images, float64 [N, K]: the residual δY of the best constant prediction."""
    one_hot = nn.functional.one_hot(labels.unique(return_inverse=True)[1]).double()
    return one_hot - one_hot.mean(0)


def label_spectrum(gram: Tensor, labels: Tensor) -> pd.DataFrame:
    """eigenvalue (share of the trace) and label_share Σ_c (δY_c·v)²/‖δY‖² of each eigenvector, largest first."""
    values, vectors = torch.linalg.eigh(gram.double())
    share = (vectors.T @ centred(labels)).square().sum(1)
    return pd.DataFrame({"eigenvalue": values / values.sum(), "label_share": share / share.sum()})[
        ::-1
    ].reset_index(drop=True)


def spectrum(kernels: Mapping[str, Tensor], labels: Tensor) -> np.ndarray:
    """Eigenvalues of kernels, and the share of the labels along the first k eigenvectors; dotted: labels without kernel."""
    figure, panels = _panels(2, 1, 5, sharex=True)
    rank = np.arange(1, len(labels) + 1)
    for (name, gram), colour in zip(kernels.items(), COLOURS):
        table = label_spectrum(gram, labels)
        panels[0, 0].plot(
            rank, table["eigenvalue"].where(table["eigenvalue"] > 1e-8), color=colour, label=name
        )
        panels[1, 0].plot(rank, table["label_share"].cumsum(), color=colour)
    panels[1, 0].plot(rank, rank / len(rank), ":", color=GREY)
    panels[0, 0].set(xscale="log", yscale="log", ylabel="eigenvalue / trace")
    panels[1, 0].set(xlabel="eigenvectors, largest eigenvalue first", ylabel="share of the labels")
    figure.legend(loc="outside upper center", ncols=len(kernels))
    return panels


def gradient_descent(
    model: nn.Module, images: Tensor, targets: Tensor, *, learning_rate: float, steps: int
) -> Tensor:
    """Full-batch descent of the model itself, in place, in eval mode, with the loss of `finetune_linearized` [steps]."""
    optimizer, history = torch.optim.SGD(model.eval().parameters(), lr=learning_rate), []
    for _ in range(steps):
        loss = (model(images) - targets).square().sum() / (2 * len(images))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.detach())
    return torch.stack(history)


def training_loss(
    predicted: tuple, actual: Mapping[str, tuple], ax: plt.Axes | None = None
) -> plt.Axes:
    """Eq. 1 (line) and runs of gradient descent (markers), each (times ηλ₁t [T], squared loss per image [T])."""
    ax = axes(ax, 3.6)
    ax.plot(*predicted, color=GREY, lw=4, alpha=0.5, label="eq. 1")
    for (name, run), colour, marker in zip(actual.items(), COLOURS, "o^sD"):
        ax.plot(*run, marker=marker, ms=4, lw=0.7, mfc="none", color=colour, label=name)
    ax.set(
        xlabel="time ηt, in units of 1/λ₁",
        ylabel="squared loss per image",
        ylim=(0, 1.3 * float(predicted[1].max())),
    )
    ax.figure.legend(loc="outside upper center", ncols=2)
    return ax


def eq5(scores: pd.DataFrame, ax: plt.Axes | None = None) -> plt.Axes:
    """Left against right side of eq. 5, a marker an expert and task; `scores`: a row each, the selectors in columns."""
    left, right, ax = (
        1 / scores["label_alignment"],
        -scores["inverse_label_alignment"],
        axes(ax, 4.2),
    )
    for i, (task, rows) in enumerate(scores.groupby("task")):
        ax.plot(
            left[rows.index],
            right[rows.index],
            "o^sDvP*X"[i % 8],
            ms=4,
            mfc="none",
            color=COLOURS[i % 4],
            label=display_name(task),
        )
    ends = [min(left.min(), right.min()), max(left.max(), right.max())]
    ax.plot(
        ends, ends, ":", color=GREY
    )  # equality: all labels along eigenvectors of one eigenvalue
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="left side: slow training →",
        ylabel="right side: bad generalization →",
    )
    ax.figure.legend(loc="outside upper center", ncols=3)
    return ax


def lfc_against_lgc(
    scores: pd.DataFrame, gradients: Sequence[str] = ("lgc", "lgc_full")
) -> np.ndarray:
    """A panel a task: LFC against LGC of every expert, Spearman correlations in the title; `scores` as for `eq5`."""
    tasks = dict(list(scores.groupby("task")))
    figure, panels = _panels(-(-len(tasks) // 2), 2, 0.8 + 0.9 * len(tasks))
    for ax in panels.flat[len(tasks) :]:
        ax.set_axis_off()
    for (task, rows), ax in zip(tasks.items(), panels.flat):
        for name, colour, marker in zip(gradients, COLOURS, "o^"):
            ax.plot(
                rows["lfc"],
                rows[name],
                marker,
                ms=4,
                mfc="none",
                color=colour,
                label=display_name(name),
            )
        rho = ", ".join(
            f"{rows['lfc'].corr(rows[name], method='spearman'):.2f}" for name in gradients
        )
        ax.set_title(f"{display_name(task)}: {rho}")
    figure.supxlabel("LFC", fontsize=10)
    figure.supylabel("LGC", fontsize=10)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return panels


def layer_table(kernels: Mapping[str, Tensor], labels: Tensor) -> pd.DataFrame:
    """layer, lgc; label_share, gradient_share: of the sums of δYᵀΘδY and of tr Θ over the layers."""
    y = centred(labels)
    table = pd.DataFrame(
        [
            (name, lgc(gram, labels), float((y * (gram.double() @ y)).sum()), float(gram.trace()))
            for name, gram in kernels.items()
        ],
        columns=["layer", "lgc", "label_share", "gradient_share"],
    )
    return table.assign(
        **{share: table[share] / table[share].sum() for share in ("label_share", "gradient_share")}
    )


def layers(table: pd.DataFrame) -> np.ndarray:
    """LGC of each layer, and its shares (%) of the label product and of the squared gradients; input at the top."""
    _, (panels,) = _panels(1, 2, 1 + 0.25 * len(table), sharey=True)
    panels[0].plot(table["lgc"], table["layer"], "o-", color=BLUE, ms=4)
    for name, colour, label, shift in (
        ("label_share", BLUE, "of YᵀΘY", -0.2),
        ("gradient_share", GREY, "of tr Θ", 0.2),
    ):
        panels[1].barh(
            np.arange(len(table)) + shift, 100 * table[name], 0.4, color=colour, label=label
        )
    panels[0].set(
        xlabel="LGC", ylim=(len(table) - 0.5, -0.5), xlim=(min(0, 1.1 * table["lgc"].min()), None)
    )
    panels[1].set(xlabel="share (%)")
    panels[1].legend()
    return panels


def projection_error(projected: Tensor, gram: Tensor, labels: Tensor) -> dict[str, float]:
    """dimension; kernel_error ‖Θ̂ − Θ‖/‖Θ‖ and lgc_error of projected gradients [N, d] against the exact kernel."""
    near, gram = projected.double() @ projected.double().T, gram.double()
    return {
        "dimension": projected.shape[1],
        "kernel_error": float((near - gram).norm() / gram.norm()),
        "lgc_error": lgc(near, labels) - lgc(gram, labels),
    }


def projection(
    gram: Tensor,
    labels: Tensor,
    dimensions: Sequence[int],
    real: Sequence[Tensor] = (),
    *,
    draws: int = 10,
    seed: int = 0,
) -> np.ndarray:
    """Errors of Gaussian random projections of the gradients (dots: draws) and of the projections `real` [N, d] (crosses).

    For R with N(0, 1/d) entries R g_i has the law of the rows of √Θ Z/√d, Z [N, d] normal, so that Θ is all it takes.
    """
    (values, vectors), generator = (
        torch.linalg.eigh(gram.double()),
        torch.Generator().manual_seed(seed),
    )
    root, (_, panels) = vectors * values.clamp(min=0).sqrt(), _panels(2, 1, 4.4, sharex=True)
    drawn = [
        root @ torch.randn(len(gram), d, generator=generator, dtype=torch.float64) / d**0.5
        for d in dimensions
        for _ in range(draws)
    ]
    for projections, style in (
        (drawn, {"marker": ".", "color": BLUE, "alpha": 0.5}),
        (real, {"marker": "x", "color": ORANGE, "ms": 9, "mew": 2}),
    ):
        table = pd.DataFrame([projection_error(p, gram, labels) for p in projections])
        for ax, name, scale in zip(
            panels.flat, ("kernel_error", "lgc_error"), (100, 1) if len(table) else ()
        ):
            ax.plot(table["dimension"], scale * table[name], ls="", **style)
    panels[0, 0].set(yscale="log", ylabel="error of the kernel (%)")
    panels[0, 0].yaxis.set(
        major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_formatter=""
    )
    panels[1, 0].axhline(0, color=GREY, lw=1)
    panels[1, 0].set(xscale="log", xlabel="dimensions of the projection", ylabel="error of LGC")
    return panels


def fig8(grid: Mapping[str, Mapping[str, Tensor]], labels: Tensor) -> np.ndarray:
    """Kernels in rows and columns, eq. 8 in each title (columns named "… LFC"): the layout of the paper's Fig. 8."""
    _, panels = _panels(len(grid), max(map(len, grid.values())), 0.2 + 1.95 * len(grid))
    for (name, row), line in zip(grid.items(), panels):
        for (column, gram), ax in zip(row.items(), line):
            kernel(gram.numpy(), labels.numpy(), title=f"{column} {lgc(gram, labels):.2f}", ax=ax)
        line[0].set_ylabel(name)
    return panels


def fig8_table(grid: Mapping[str, Mapping[str, Tensor]], labels: Tensor) -> pd.DataFrame:
    """LFC at start, half and end of fine-tuning of each row of `fig8`, under them the paper's three experts."""
    columns = (
        ["start", "half", "end"] if max(map(len, grid.values())) == 3 else ["start", "end"]
    )  # one epoch has no half
    ours = pd.DataFrame(
        [[lgc(gram, labels) for gram in row.values()] for row in grid.values()], list(grid), columns
    )
    theirs = paper("fig8_lfc_during_finetuning").pivot(
        index="source", columns="epoch", values="lfc"
    )
    theirs = theirs.set_axis(["start", "half", "end"], axis=1)[columns].rename(
        lambda source: f"{display_name(source)} (paper, UC Merced)"
    )
    return pd.concat([ours, theirs]).rename_axis("expert")
