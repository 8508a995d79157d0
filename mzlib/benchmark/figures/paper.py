"""The paper's numbers (`book/paper/*.csv`) in the shape of ours, for the same figures."""

from pathlib import Path

import numpy as np
import pandas as pd
from pandas import DataFrame

from mzlib.errors import MzlibError
from mzlib.provenance import home

# The groups of the paper's Fig. 2 and 3 as keys of `style.GROUPS`.
GROUP = {
    "imagenet": "generic",
    "single_imagenet": "generic",
    "single_other": "scratch",
    "multi_imagenet": "multi_generic",
}


def paper(name: str) -> DataFrame:
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


def _gains() -> DataFrame:
    """Fig. 4 (suite `paper, single`), Fig. 5 (`paper, multi`) and Fig. 7 (`paper, samples`; six
    targets, its 25 images repeat Fig. 4): target, metric, selector, value (fractions) and setting;
    the extremes stand with `lfc`, as `evaluate` gives them to every selector.
    """
    single = paper("fig4_top3_gain").assign(suite="paper, single", images_per_class="25", top_k=3)
    multi = paper("fig5_multi_domain_gain").assign(suite="paper, multi", images_per_class="25")
    samples = paper("fig7_sampling_ablation").assign(suite="paper, samples", top_k=3)
    rows = pd.concat([single, multi, samples], ignore_index=True)
    rows = rows.fillna({"shots": "full"})
    rows = rows.replace({"images_per_class": {"full": "all"}})
    extreme = rows["selector"].isin(["best", "worst"])
    top = "top" + rows.pop("top_k").astype(str)
    rows["metric"] = top.mask(extreme, rows["selector"]) + "_gain"
    rows["selector"] = rows["selector"].mask(extreme, "lfc")
    rows["value"] = rows.pop("accuracy_gain") / 100
    rows["protocol"] = "paper"
    return rows.drop_duplicates()


def paper_metrics() -> DataFrame:
    """Gains per target as rows of `evaluate`, in fractions; see `paper_averages` for the suites."""
    rows = _gains().query("target != 'average'")
    rows = rows.rename(columns={"target": "task"})
    return rows.assign(seed=0, finetune_seed=0, reason="")


def paper_averages() -> DataFrame:
    """The printed averages of Fig. 4 (suite `paper, single`), 5 (`paper, multi`) and 7 (`paper,
    samples`) and the means of Fig. 6, as rows of `summarize`.

    No intervals; gains in fractions. Computed means of the printed rows differ in the last digit.
    """
    gains = _gains().query("target == 'average'").drop(columns="target")
    other = paper("fig6_trials_and_spearman")
    other["suite"] = "paper, " + other.pop("zoo")
    other["images_per_class"] = "25"
    rows = pd.concat([gains, other], ignore_index=True)
    rows = rows.rename(columns={"value": "mean"})
    return rows.assign(protocol="paper", low=np.nan, high=np.nan, tasks=8)


def paper_errors(shots: str) -> DataFrame:
    """Fig. 2 of a regime (`full`, `20`, `5`) or Fig. 3 (`multi`), as rows of `errors_of` (%)."""
    if shots == "multi":
        table = paper("fig3_multi_domain_error")
        table["architecture"] = "resnet101"
    else:
        table = paper("fig2_finetune_error").query("shots == @shots")
    groups = table["group"].replace(GROUP)
    return table.assign(group=groups)
