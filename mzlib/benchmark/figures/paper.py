"""The paper's numbers (Deshpande et al. 2021; `book/paper/*.csv`) in the shape of ours, for the same figures."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from mzlib.benchmark.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    axes,
    display_name,
    error_axis,
)
from mzlib.errors import MzlibError
from mzlib.provenance import home


def paper(name: str) -> pd.DataFrame:
    """A table of `book/paper/`, as printed there: under `home()`, or in the checkout that the package lies in.

    Raises MzlibError where neither folder has it (a package that was installed without the book).
    """
    files = [root / "book/paper" / f"{name}.csv" for root in (home(), Path(__file__).parents[2])]
    if not any(file.is_file() for file in files):
        raise MzlibError(
            f"expected the paper's numbers in {files[0]}: run in a clone of the repository"
        )
    return pd.read_csv(
        next(file for file in files if file.is_file()),
        dtype={"shots": str, "images_per_class": str},
    )


def paper_table1() -> pd.DataFrame:
    """Source accuracy (%) of the paper's single-domain experts, in the shape of `table1`."""
    table = paper("table1_single_domain")
    start = table["imagenet_pretrained"].map({True: "ImageNet", False: "scratch"}).fillna("")
    table = table.assign(pretraining=start, source=table["source"].map(display_name))
    order = list(dict.fromkeys(table["source"]))
    return table.pivot(
        index=["architecture", "pretraining"], columns="source", values="top1_accuracy"
    )[order]


def paper_table2() -> pd.DataFrame:
    """Source accuracy (%) of the paper's multi-domain variants, in the shape of `table2`."""
    table = paper("table2_multi_domain")
    names = {
        "single_domain": "Single domain",
        "shared": "Shared",
        "multi_bn": "Multi-BN",
        "adapter": "Adapter",
    }
    wide = table.pivot(index="source", columns="variant", values="top1_accuracy")
    return (
        wide.loc[table["source"].unique(), list(names)].rename(display_name).rename(columns=names)
    )


def paper_metrics() -> pd.DataFrame:
    """Gains per target of Fig. 4 (suite `paper, single`), Fig. 5 (`paper, multi`) and Fig. 7, as rows of `evaluate`.

    values: fractions. Fig. 7 has all its images per class (25, 50, all) and six of the eight targets; its 25 repeats Fig. 4.
    """
    single = paper("fig4_top3_gain").assign(suite="paper, single", images_per_class="25", k=3)
    multi = paper("fig5_multi_domain_gain").rename(columns={"top_k": "k"})
    multi = multi.assign(suite="paper, multi", shots="full", images_per_class="25")
    samples = paper("fig7_sampling_ablation").assign(suite="paper, samples", shots="full", k=3)
    rows = pd.concat([single, multi, samples], ignore_index=True).rename(columns={"target": "task"})
    rows = rows[rows["task"] != "average"].replace({"images_per_class": {"full": "all"}})
    extreme = rows["selector"].isin(["best", "worst"])
    rows["metric"] = np.where(
        extreme, rows["selector"] + "_gain", "top" + rows["k"].astype(str) + "_gain"
    )
    return (
        rows.assign(
            selector=rows["selector"].mask(extreme, "lfc"),
            seed=0,
            finetune_seed=0,
            protocol="paper",
            reason="",
            value=rows["accuracy_gain"] / 100,
        )
        .drop(columns=["k", "accuracy_gain"])
        .drop_duplicates()
    )


def paper_summary() -> pd.DataFrame:
    """The means of Fig. 6 (suites `paper, single` and `paper, multi`), as rows of `summarize`; they have no interval."""
    table = paper("fig6_trials_and_spearman").rename(columns={"value": "mean"})
    return table.assign(
        suite="paper, " + table["zoo"],
        images_per_class="25",
        protocol="paper",
        low=np.nan,
        high=np.nan,
        tasks=8,
    ).drop(columns="zoo")


def paper_errors(shots: str) -> pd.DataFrame:
    """Fig. 2 of one regime (`full`, `20`, `5`) or Fig. 3 (`multi`): columns target, architecture, group, test_error (%)."""
    if shots == "multi":
        return paper("fig3_multi_domain_error").assign(architecture="resnet101")
    table = paper("fig2_finetune_error")
    return table[table["shots"] == shots]


PAPER_GROUPS = {  # of Fig. 2, then of Fig. 3
    "scratch": ("expert, from scratch", GREEN),
    "pretrained": ("expert, from ImageNet", BLUE),
    "imagenet": ("ImageNet", ORANGE),
    "single_other": ("expert, from scratch", GREEN),
    "single_imagenet": ("ImageNet", ORANGE),
    "multi_other": ("multi-domain expert", PINK),
    "multi_imagenet": ("same, ImageNet domain", GREY),
}


def paper_fig2(errors: pd.DataFrame, *, ax: plt.Axes | None = None) -> plt.Axes:
    """The paper's Fig. 2 and 3 as they are printed: a row a target and kind of expert, no source known; `paper_errors`."""
    targets, kinds = (
        list(dict.fromkeys(errors["target"])),
        [g for g in PAPER_GROUPS if g in set(errors["group"])],
    )
    ax = axes(ax, 0.9 + 0.13 * len(targets) * (len(kinds) + 1))
    for (group, architecture), rows in errors.groupby(["group", "architecture"]):
        y = [targets.index(t) * (len(kinds) + 1) + kinds.index(group) for t in rows["target"]]
        ax.plot(
            rows["test_error"],
            y,
            "^" if architecture.startswith("densenet") else "o",
            ls="",
            ms=4.5,
            mfc="none",
            color=PAPER_GROUPS[group][1],
            label=f"{PAPER_GROUPS[group][0]}, {architecture}",
        )
    ax.set_yticks(
        [i * (len(kinds) + 1) + (len(kinds) - 1) / 2 for i in range(len(targets))],
        map(display_name, targets),
    )
    ax.set(
        xscale="log",
        ylim=(len(targets) * (len(kinds) + 1) - 1, -1),
        xlabel="test error (%), log scale",
    )
    error_axis(ax)
    ax.figure.legend(loc="outside upper center", ncols=2)
    return ax
