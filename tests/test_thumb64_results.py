"""The committed benchmark on real images: weights and tables fit the suite, and a job that is run again gives its row again."""

import importlib
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mzlib.benchmark import cells, compare, load_results, load_suite, run_suite
from mzlib.benchmark.claims import check_claims
from mzlib.benchmark.data import list_tasks
from mzlib.benchmark.stages import expert_is_stored
from mzlib.benchmark.statistics import interval
from mzlib.finetuning import THUMB64

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    not (ROOT / "results" / "thumb64" / "zoo.csv").is_file(), reason="no results of thumb64 here"
)


@pytest.fixture
def results(monkeypatch):
    monkeypatch.setenv("MZLIB_HOME", str(ROOT))
    return load_results("thumb64")


def test_the_zoo_is_committed_and_the_suites(results):
    """The single-domain experts; the multi-domain ones are in the tables only."""
    suite = load_suite("thumb64")
    single = results.zoo[~results.zoo["expert"].str.contains(":")]
    assert len(single) == 30
    for job in suite.zoo_jobs():
        if job.expert in suite.starting_points("single"):
            assert expert_is_stored("thumb64", job.expert, job.key), (
                f"{job}: weights and tables differ"
            )
    weights = sum(
        f.stat().st_size
        for name in single["expert"]
        for f in (ROOT / "zoo" / "thumb64").glob(f"{name}.*")
    )
    assert weights < 36 * 2**20
    assert (single["accuracy"] > 5 / single["classes"]).all(), single[["expert", "accuracy"]]


def test_the_rows_are_jobs_of_the_suite_and_20_targets_are_complete_at_20_shots(results):
    suite = load_suite("thumb64")
    for stage in ("finetune", "score"):
        rows = pd.read_csv(
            next((ROOT / "results" / "thumb64").glob(f"{stage}.csv*")), usecols=["key"]
        )
        assert set(rows["key"]) <= {job.key for job in suite.jobs(stage)}, (
            f"run `mzlib run thumb64 --stage {stage}`"
        )
        assert results.provenance[stage]["machines"]
    table = cells(results.finetune, suite, "single").query("shots == '20' and seed == 0")
    assert (table["done"] == table["jobs"]).sum() >= 20  # the rest is listed as missing
    found = check_claims(results, suite)
    assert all(len(found[name][0].values) for name in ("C01", "C06", "C09", "C10"))


def test_what_choose_best_says_of_other_rules_and_its_constants(monkeypatch):
    table = pd.read_csv(ROOT / "results/benchmarks/validation_rules.csv")
    gains = {
        selector: part.pivot(index="task", columns="rule", values="gain")
        for selector, part in table.groupby("selector")
    }
    for selector, gain in gains.items():
        low, _ = interval((gain["kfold_calibrated"] - gain["holdout"]).to_numpy())
        assert low > 0, selector
    of_default = gains["neighbour_history"].drop(columns=["test", "elsewhere"])
    assert of_default.mean().idxmax() == "kfold_calibrated"
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    rules = importlib.import_module("validation_rules")
    picks, _ = rules.first_three(load_suite("thumb64"))
    assert asdict(rules.shipped(picks)) == pytest.approx(asdict(THUMB64), rel=1e-3)


@pytest.mark.skipif(
    not list_tasks().set_index("name")["available"]["rsscn7"],
    reason="the data of thumb64 are not on this machine",
)
def test_deleted_rows_come_back_the_same(results, tmp_path, monkeypatch):
    """To 4 points of 1,050 test images and 2 % of a score: bf16 products differ from one kind of CPU to another."""
    expert = "resnet-scenes15-generic"
    for folder in ("suites", "results/thumb64"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "thumb64").symlink_to(ROOT / "zoo" / "thumb64")
    monkeypatch.setenv("MZLIB_HOME", str(tmp_path))
    for stage in ("finetune", "score"):
        path = next((tmp_path / "results" / "thumb64").glob(f"{stage}.csv*"))
        table = pd.read_csv(path, dtype={"shots": str, "images_per_class": str}, low_memory=False)
        table[
            (table["expert"] != expert) | (table["task"] != "rsscn7") | (table["shots"] != "20")
        ].to_csv(path, index=False)
    assert (
        run_suite(
            "thumb64",
            stages=["finetune", "score"],
            only=f"{expert}/rsscn7/20",
            engine="serial",
            progress=False,
        )
        == 0
    )
    again, where = (
        load_results("thumb64"),
        f"expert == '{expert}' and task == 'rsscn7' and shots == '20'",
    )
    tuned = [
        r.finetune.query(where).set_index(["lr", "seed"])["accuracy"].sort_index()
        for r in (results, again)
    ]
    pd.testing.assert_series_equal(*tuned, atol=0.04, rtol=0)
    scores = [
        r.scores.query(where + " and selector in ['lfc', 'leep', 'lgc']")
        .set_index(["selector", "images_per_class", "seed"])["score"]
        .sort_index()
        for r in (results, again)
    ]
    assert len(scores[0]) >= 3
    pd.testing.assert_series_equal(*scores, rtol=0.02)


def test_the_domains_of_one_expert_are_compared_with_their_history(results):
    """On the *other* targets; `prior` knows the generic domain from the rest, and no more."""
    suite = load_suite("thumb64")
    is_full = results.finetune["shots"].astype(str) == "full"
    full = replace(results, finetune=results.finetune[is_full])
    metrics = compare(full, suite, "multi", protocols=["paper"], correlations=["spearman"])
    rho = metrics.query("metric == 'spearman' and images_per_class == '25'")
    rho = rho.pivot_table("value", "task", "selector")
    assert rho[["history", "prior", "neighbour_history"]].notna().all(axis=None)
    assert len(rho) == metrics["task"].nunique() and (metrics["experts"] == 8).all()
    assert np.allclose(rho["prior"].abs(), rho["generic_first"].abs())
