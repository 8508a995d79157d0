"""The paper's numbers (`book/paper/*.csv`) in the shape of ours, for the same figures."""

from pathlib import Path

import numpy as np
import pandas as pd

from mzlib.errors import MzlibError
from mzlib.provenance import home

# The groups of the paper's Fig. 2 and 3 as keys of `style.GROUPS`.
GROUP = {
    "imagenet": "generic",
    "single_imagenet": "generic",
    "single_other": "scratch",
    "multi_imagenet": "multi_generic",
}


def paper(name: str) -> pd.DataFrame:
    """A table of `book/paper/`, as printed there.

    Raises MzlibError where it is missing (a package that was installed without the book).
    """
    for root in (home(), Path(__file__).parents[3]):
        file = root / "book/paper" / f"{name}.csv"
        if file.is_file():
            return pd.read_csv(file, dtype={"shots": str, "images_per_class": str})
    raise MzlibError(
        f"expected the paper's numbers in {home() / 'book/paper'}, got none: "
        "run in a clone of the repository"
    )


def _gains() -> pd.DataFrame:
    """Fig. 4 (suite `paper, single`), Fig. 5 (`paper, multi`) and Fig. 7 (`paper, samples`; six
    targets, its 25 images repeat Fig. 4): target, metric, selector, value (fractions) and setting;
    the extremes stand with `lfc`, as `evaluate` gives them to every selector.
    """
    single = paper("fig4_top3_gain").assign(suite="paper, single", images_per_class="25", top_k=3)
    multi = paper("fig5_multi_domain_gain").assign(suite="paper, multi", images_per_class="25")
    samples = paper("fig7_sampling_ablation").assign(suite="paper, samples", top_k=3)
    rows = pd.concat([single, multi, samples], ignore_index=True).fillna({"shots": "full"})
    rows = rows.replace({"images_per_class": {"full": "all"}})
    extreme = rows["selector"].isin(["best", "worst"])
    kind = ("top" + rows["top_k"].astype(str)).mask(extreme, rows["selector"])
    rows["metric"] = kind + "_gain"
    rows["selector"] = rows["selector"].mask(extreme, "lfc")
    rows["value"] = rows["accuracy_gain"] / 100
    return rows.drop(columns=["top_k", "accuracy_gain"]).assign(protocol="paper").drop_duplicates()


def paper_metrics() -> pd.DataFrame:
    """Gains per target as rows of `evaluate`, in fractions; see `paper_averages` for the suites."""
    rows = _gains().rename(columns={"target": "task"}).query("task != 'average'")
    return rows.assign(seed=0, finetune_seed=0, reason="")


def paper_averages() -> pd.DataFrame:
    """The printed averages of Fig. 4 (suite `paper, single`), 5 (`paper, multi`) and 7 (`paper,
    samples`) and the means of Fig. 6, as rows of `summarize`.

    No intervals; gains in fractions. Computed means of the printed rows differ in the last digit.
    """
    gains = _gains().query("target == 'average'").drop(columns="target")
    other = paper("fig6_trials_and_spearman")
    other = other.assign(suite="paper, " + other.pop("zoo"), images_per_class="25")
    rows = pd.concat([gains, other], ignore_index=True).rename(columns={"value": "mean"})
    return rows.assign(protocol="paper", low=np.nan, high=np.nan, tasks=8)


def paper_errors(shots: str) -> pd.DataFrame:
    """Fig. 2 of a regime (`full`, `20`, `5`) or Fig. 3 (`multi`), as rows of `errors_of` (%)."""
    if shots == "multi":
        table = paper("fig3_multi_domain_error").assign(architecture="resnet101")
    else:
        table = paper("fig2_finetune_error").query("shots == @shots")
    return table.assign(group=table["group"].replace(GROUP))
