"""The committed results of the suite `mini`: complete, well above chance, and a choice that matters."""

from pathlib import Path

import pytest

from mzlib.benchmark import evaluate, load_results, load_suite, truth

ROOT = Path(__file__).parents[1]
CHECKED = pytest.mark.skipif(
    not (ROOT / "results" / "mini" / "provenance.json").is_file(), reason="no results of mini here"
)
pytestmark = CHECKED


@pytest.fixture
def results(monkeypatch):
    monkeypatch.setenv("MZLIB_HOME", str(ROOT))
    return load_results("mini")


def test_the_committed_tables_are_those_of_the_present_suite_and_code(results):
    suite = load_suite("mini")
    for stage, table in (
        ("zoo", results.zoo),
        ("finetune", results.finetune),
        ("score", results.scores),
    ):
        assert {job.key for job in suite.jobs(stage)} == set(table["key"]), (
            f"run `mzlib run mini` and commit {stage}.csv"
        )
        assert results.provenance[stage]["machines"]


def test_every_expert_is_far_above_chance_on_its_source(results):
    single = results.zoo[~results.zoo["expert"].str.contains(":")]
    assert (single["accuracy"] > 5 / single["classes"]).all(), single[["expert", "accuracy"]]
    assert (results.zoo["accuracy"] > 3 / results.zoo["classes"]).all()


def test_different_tasks_have_different_best_experts(results):
    for shots, sources in (
        ("20", 3),
        ("full", 2),
    ):  # with all images experts differ less, and seeds decide more
        accuracy = truth(results.finetune, "paper").query("shots == @shots")
        best = accuracy.loc[accuracy.groupby("task")["accuracy"].idxmax()].merge(
            results.zoo[["expert", "source"]]
        )
        assert best["source"].nunique() >= sources, best


def test_fine_tuning_a_good_expert_pays(results):
    metrics = evaluate(results.scores, results.finetune, generic=load_suite("mini").reference)
    gain = metrics.query(
        "metric == 'best_gain' and selector == 'lfc' and protocol == 'validation' and shots == '20'"
    )
    assert gain["value"].mean() > 0.02
