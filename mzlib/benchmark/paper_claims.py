"""The primary statements of the claims on the paper's own printed numbers (`book/paper/*.csv`).

Where the paper prints one mean without its targets (Fig. 6, Table 3), there is one value, and no
test.
"""

import numpy as np
import pandas as pd

from mzlib.benchmark.claims import ENOUGH, FEW, USUALLY, Statement
from mzlib.benchmark.figures.paper import paper


def _gains(name: str, **where: str | int) -> pd.DataFrame:
    """Targets × selectors of printed gains in points."""
    table = paper(name)
    for column, value in where.items():
        table = table[table[column] == value]
    table = table[table["target"] != "average"]
    return table.pivot(index="target", columns="selector", values="accuracy_gain")


def _errors(shots: str) -> dict[str, pd.DataFrame]:
    """Group -> targets × experts of the printed test errors of Fig. 2."""
    table = paper("fig2_finetune_error").query("shots == @shots")
    table = table.assign(expert=table["architecture"] + table["rank"].astype(str))
    return {
        group: rows.pivot(index="target", columns="expert", values="test_error")
        for group, rows in table.assign(
            group=table["group"].where(table["group"] == "imagenet", "domain"),
            expert=table["group"] + table["expert"],
        ).groupby("group")
    }


def _figure1(panel: str, ours: str, others: str) -> np.ndarray:
    """Error of the best of the other methods minus that of the zoo, 20 shots, by target."""
    table = paper("fig1_test_error").query("panel == @panel and shots == '20'")
    wide = table.pivot(index="target", columns="method", values="test_error")
    other = wide[[name for name in wide if name != ours and name.startswith(tuple(others.split()))]]
    return (other.min(axis=1) - wide[ours]).to_numpy()


def _mean_of_figure6(metric: str, selector: str) -> float:
    table = paper("fig6_trials_and_spearman")
    row = table.query(
        "zoo == 'single' and shots == '20' and metric == @metric and selector == @selector"
    )
    return float(row["value"].item())


def _single_values() -> dict[str, Statement]:
    """The claims whose primary number is printed without its targets."""
    cost = paper("table3_cost").query("shots == '20' and stage == 'score_zoo'")
    cost = cost.loc[cost["selector"] == "lfc", "relative_cost"].to_numpy()
    trials = np.array([_mean_of_figure6("trials_to_best", "lfc")])
    others = ("lgc", "leep", "feature_metrics", "domain_similarity", "rsa")
    runner_up = max(_mean_of_figure6("spearman", name) for name in others)
    lead = np.array([_mean_of_figure6("spearman", "lfc") - runner_up])
    related = paper("fig8_lfc_during_finetuning").query("epoch == 0")
    highest = related.loc[related["lfc"].idxmax(), "source"] == "nwpu_resisc45"
    return {
        "C05": Statement("Table 3, 20 shots, LFC", cost, 1, above=False, unit=" ×"),
        "C08": Statement("Fig. 6 (a), 20 shots, LFC", trials, 7, above=False, unit=""),
        "C09": Statement("Fig. 6 (b), 20 shots", lead, unit=""),
        "C14": Statement("Fig. 8", np.array([float(highest)]), USUALLY, unit=""),
    }


def paper_statements() -> dict[str, Statement]:
    """Claim -> its primary statement, as `mzlib.benchmark.claims` has it for ours."""
    few = _gains("fig4_top3_gain", shots="20")
    full = _gains("fig4_top3_gain", shots="full")
    fewer = (few["best"] - full["best"]).dropna()
    good = few[["lfc", "lgc", "leep"]].mean(axis=1)
    bad = few[["domain_similarity", "rsa", "random"]].mean(axis=1)
    errors = _errors("20")
    better = errors["domain"].lt(errors["imagenet"].min(axis=1), axis=0).mean(axis=1)
    sources = paper("table2_multi_domain")
    sources = sources.pivot(index="source", columns="variant", values="top1_accuracy")
    multi_bn = sources["multi_bn"] - sources[["shared", "adapter"]].max(axis=1)
    multi = paper("fig3_multi_domain_error")
    multi = multi.pivot_table("test_error", "target", "group", aggfunc="min")
    multi = multi["single_imagenet"] - multi[["multi_imagenet", "multi_other"]].min(axis=1)
    domains = _gains("fig5_multi_domain_gain", top_k=3)
    domains = domains[["lfc", "leep"]].mean(axis=1) - domains[["feature_metrics", "random"]].mean(
        axis=1
    )
    every = _gains("fig7_sampling_ablation", images_per_class="full")["lfc"]
    more = every - _gains("fig7_sampling_ablation", images_per_class="25")["lfc"]
    untuned = _figure1("a", "model_zoo", "imagenet random")
    tuned = _figure1("b", "model_zoo_hpo", "imagenet_hpo")
    stand_in = (few["lfc"] - few["lgc"]).to_numpy()
    statements = {
        "C01": Statement("Fig. 1 (a), 20 shots", untuned),
        "C02": Statement("Fig. 1 (b), 20 shots", tuned),
        "C03": Statement("Fig. 4", fewer.to_numpy()),
        "C04": Statement("Fig. 2, 20 shots", better.to_numpy(), FEW, above=False, unit=""),
        "C06": Statement("Fig. 4, 20 shots", (good - bad).to_numpy()),
        "C07": Statement("Fig. 4, 20 shots", stand_in, -ENOUGH),
        "C10": Statement("Table 2", multi_bn.to_numpy()),
        "C11": Statement("Fig. 3", multi.to_numpy()),
        "C12": Statement("Fig. 5, top 3", domains.to_numpy()),
        "C13": Statement("Fig. 7", more.to_numpy(), ENOUGH, above=False),
    }
    return dict(sorted((statements | _single_values()).items()))
