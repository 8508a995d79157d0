"""The values of the claims' primary statements in the paper's own printed numbers (`book/paper/*.csv`), which the claims page judges
beside ours. Where the paper prints one mean without its targets (Fig. 6, Table 3), there is one value, and no test.

Usage: python benchmarks/paper_claims.py; writes results/benchmarks/paper_claims.csv (claim, value; seconds).
"""

import numpy as np
import pandas as pd

from mzlib.benchmark.figures.paper import paper
from mzlib.provenance import results_folder


def _gains(name: str, **where: str | int) -> pd.DataFrame:
    """Targets × selectors of printed gains in points."""
    table = paper(name)
    for column, value in where.items():
        table = table[table[column] == value]
    table = table[table["target"] != "average"]
    return table.pivot(index="target", columns="selector", values="accuracy_gain")


def _figure1(panel: str, ours: str, *others: str) -> pd.Series:
    """Error of the best of the other methods minus that of the zoo, 20 shots."""
    table = paper("fig1_test_error").query("panel == @panel and shots == '20'")
    wide = table.pivot(index="target", columns="method", values="test_error")
    other = wide.loc[:, wide.columns.str.startswith(others)].drop(columns=ours, errors="ignore")
    return other.min(axis=1) - wide[ours]


def _share_better() -> pd.Series:
    """Fig. 2, 20 shots: share of the domain experts below every ImageNet expert's error."""
    table = paper("fig2_finetune_error").query("shots == '20'")
    of_imagenet = table["group"] == "imagenet"
    best = table[of_imagenet].groupby("target")["test_error"].min()
    domain = table[~of_imagenet]
    return (domain["test_error"] < domain["target"].map(best)).groupby(domain["target"]).mean()


def _figure6(metric: str) -> pd.Series:
    """Selector -> printed mean, single-domain zoo, 20 shots."""
    table = paper("fig6_trials_and_spearman")
    table = table.query("zoo == 'single' and shots == '20' and metric == @metric")
    return table.set_index("selector")["value"]


def paper_values() -> dict[str, np.ndarray]:
    """Claim -> values [n] of its primary statement (see `claims.toml`), a target each."""
    few = _gains("fig4_top3_gain", shots="20")
    full = _gains("fig4_top3_gain", shots="full")
    others = ["domain_similarity", "rsa", "random"]
    cost = paper("table3_cost").query("shots == '20' and stage == 'score_zoo'")
    sources = paper("table2_multi_domain")
    sources = sources.pivot(index="source", columns="variant", values="top1_accuracy")
    multi = paper("fig3_multi_domain_error")
    multi = multi.pivot_table("test_error", "target", "group", aggfunc="min")
    domains = _gains("fig5_multi_domain_gain", top_k=3)
    picked = domains[["lfc", "leep"]].mean(axis=1)
    samples = [_gains("fig7_sampling_ablation", images_per_class=n)["lfc"] for n in ("full", "25")]
    spearman = _figure6("spearman")
    rivals = ["lgc", "leep", "feature_metrics", "domain_similarity", "rsa"]
    lfc = paper("fig8_lfc_during_finetuning").query("epoch == 0").set_index("source")["lfc"]
    values = {
        "C01": _figure1("a", "model_zoo", "imagenet", "random"),
        "C02": _figure1("b", "model_zoo_hpo", "imagenet_hpo"),
        "C03": (few["best"] - full["best"]).dropna(),
        "C04": _share_better(),
        "C05": cost.loc[cost["selector"] == "lfc", "relative_cost"],
        "C06": few[["lfc", "lgc", "leep"]].mean(axis=1) - few[others].mean(axis=1),
        "C07": few["lfc"] - few["lgc"],
        "C08": _figure6("trials_to_best")[["lfc"]],
        "C09": [spearman["lfc"] - spearman[rivals].max()],
        "C10": sources["multi_bn"] - sources[["shared", "adapter"]].max(axis=1),
        "C11": multi["single_imagenet"] - multi[["multi_imagenet", "multi_other"]].min(axis=1),
        "C12": picked - domains[["feature_metrics", "random"]].mean(axis=1),
        "C13": samples[0] - samples[1],
        "C14": [lfc.idxmax() == "nwpu_resisc45"],
    }
    return {claim: np.array(numbers, float) for claim, numbers in values.items()}


if __name__ == "__main__":
    rows = [(claim, value) for claim, values in paper_values().items() for value in values]
    table = pd.DataFrame(rows, columns=["claim", "value"])
    table.to_csv(results_folder("benchmarks") / "paper_claims.csv", index=False)
