"""The rule of the claims, and the claims on small results of known content."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mzlib.benchmark import cells, compare, complete, load_suite, tuned
from mzlib.benchmark.claims import (
    CLAIMS,
    FIGURES,
    PAGES,
    Findings,
    Statement,
    check_claims,
    claims_table,
    verdicts,
)
from mzlib.benchmark.figures import fig1_errors, paper
from mzlib.benchmark.paper_claims import paper_statements
from mzlib.benchmark.results import Results
from mzlib.benchmark.statistics import p_value
from mzlib.errors import MzlibError

UP, DOWN, WIDE = np.array([1.0, 1.2, 1.1]), np.array([-1.0, -1.2, -1.1]), np.array([-1.0, 1.0, 0.1])


@pytest.mark.parametrize(
    "values, above, holds",
    [
        (UP, True, True),
        (DOWN, True, False),
        (UP, False, False),
        (DOWN, False, True),
        (WIDE, True, None),
        (UP[:1], True, None),
        (UP[:0], True, None),
    ],
)
def test_a_statement_holds_when_its_whole_interval_is_on_its_side(values, above, holds):
    assert Statement("x", values, above=above).holds is holds


def test_threshold_and_text():
    statement = Statement("brute force", np.array([30.0, 31.0, 32.0]), 40, unit=" ×")
    assert statement.holds is False and statement.mean == 31
    assert str(statement).startswith("brute force: 31.00 × [28.52, 33.48]") and "above 40" in str(
        statement
    )
    assert str(Statement("x", np.array([]))) == "x: not computed"


def test_verdicts_by_hand():
    """Two far above, one far below, one wide, one of a single value, one without any."""
    primary = {
        "up": Statement("x", 10 + UP),
        "down": Statement("x", 10 + UP, above=False),
        "below": Statement("x", 10 * DOWN, above=False),
        "wide": Statement("x", WIDE),
        "one": Statement("x", UP[:1]),
        "none": Statement("x", UP[:0]),
    }
    table = verdicts(primary)
    assert table["verdict"].to_dict() == {
        "up": "supported",
        "down": "not supported",
        "below": "supported",
        "wide": "undecided",
        "one": "not testable",
        "none": "not computed",
    }
    raw = p_value(10 + UP)
    assert table.loc["up", "p"] == pytest.approx(4 * raw)  # Holm: four were tested
    assert table.loc["wide", "smallest_effect"] > 1


def test_the_papers_own_numbers_under_the_same_rule():
    statements = paper_statements()
    table = verdicts(statements)
    assert set(table.index) == set(CLAIMS)
    assert table.loc[["C05", "C08", "C09", "C14"], "verdict"].eq("not testable").all()
    assert table.loc["C04", "verdict"] == table.loc["C10", "verdict"] == "supported"
    assert table.loc["C05", "mean"] == 1.09  # Table 3, LFC, 20 shots
    assert table.loc["C09", "mean"] == pytest.approx(0.526 - 0.439, abs=1e-3)  # Fig. 6 (b)
    assert statements["C12"].values.shape == (8,)
    assert "primary" in paper("claims")


def made_up(suite, *, without=0):
    """Results of the suite `tiny` in which the generic expert is always 10 points below the others and lfc knows it."""
    zoo = pd.DataFrame(
        [
            dict(
                suite="tiny",
                expert=name,
                architecture="mzlib_resnet",
                accuracy=0.5,
                train_images=100,
                source=name.partition(":")[2] or name.split("-")[1],
                pretraining="multi_bn" if ":" in name else "scratch",
            )
            for name in suite.starting_points()
        ]
    )
    tune, score = [], []
    points, beside = (
        [*suite.starting_points(), *suite.starting_points("beside")],
        suite.finetune_jobs(beside=True),
    )
    zoo_jobs = suite.finetune_jobs(beside=False)
    for job in zoo_jobs[: len(zoo_jobs) - without] + beside:
        good = job.expert != suite.reference
        accuracy = 0.6 + 0.1 * good + 0.001 * points.index(job.expert)
        tune.append(
            dict(
                key=job.key,
                suite="tiny",
                expert=job.expert,
                task=job.task,
                shots=job.shots,
                lr=job.settings["lr"],
                seed=job.seed,
                accuracy=accuracy,
                val_accuracy=accuracy,
                seconds=2.0,
                hardware="one",
            )
        )
        for selector, value in (("lfc", accuracy), ("rsa", -accuracy), ("random", 0.0)):
            score.append(
                dict(
                    key=job.key,
                    suite="tiny",
                    expert=job.expert,
                    task=job.task,
                    shots=job.shots,
                    images_per_class="25",
                    seed=job.seed,
                    selector=selector,
                    score=value,
                    reason="",
                    seconds=0.5,
                    hardware="one",
                )
            )
    score = pd.DataFrame(score).drop_duplicates(
        ["expert", "task", "shots", "selector", "seed"], ignore_index=True
    )
    tune = pd.DataFrame(tune)
    apart = tune["key"].isin({job.key for job in beside})
    return Results(
        zoo, tune[~apart], score[~score["key"].isin(tune[apart]["key"])], {}, tune[apart]
    )


@pytest.fixture
def suite():
    return load_suite(str(Path(__file__).parent / "data" / "tiny.toml"))


def test_half_a_zoo_is_left_out(suite):
    whole, partial = made_up(suite), made_up(suite, without=1)
    for zoo in ("single", "multi"):
        table = cells(whole.finetune, suite, zoo)
        assert (table["done"] == table["jobs"]).all()
        assert len(complete(whole.finetune, suite, zoo)) == table["jobs"].sum()
    last = suite.finetune_jobs(beside=False)[-1]
    kind = "multi" if ":" in last.expert else "single"
    lost = cells(partial.finetune, suite, kind).query("done < jobs")
    assert (
        len(lost) == 1 and lost["task"].item() == last.task and lost["shots"].item() == last.shots
    )
    assert (
        len(complete(partial.finetune, suite, kind))
        == len(complete(whole.finetune, suite, kind)) - lost["jobs"].item()
    )


def test_compare_is_over_the_zoo_asked_for(suite):
    metrics = compare(made_up(suite), suite, "single", protocols=["paper"])
    gains = metrics[(metrics["metric"] == "best_gain") & (metrics["selector"] == "lfc")]["value"]
    assert len(gains) and (gains > 0.1).all()
    domains = compare(made_up(suite), suite, "multi", protocols=["paper"])
    assert (domains["experts"] == len(suite.sources)).all()
    with pytest.raises(MzlibError, match="generic"):
        compare(
            Results(
                *[
                    made_up(suite).zoo,
                    made_up(suite).finetune.head(0),
                    made_up(suite).scores,
                    {},
                    made_up(suite).beside,
                ]
            ),
            suite,
        )


def test_findings_follow_from_the_rows(suite):
    findings = Findings(made_up(suite), suite)
    shots = next(iter(dict.fromkeys(j.shots for j in suite.finetune_jobs())))
    assert (findings.best_gain(shots) > 10).all()
    assert findings.gain("leep", shots).empty
    assert (findings.accuracy(shots)[suite.reference] < 61).all()
    spearman = findings.metric("spearman", "rsa", shots)
    np.testing.assert_allclose(spearman, -1)


def test_every_claim_of_the_paper_is_checked_and_linked(suite):
    found = check_claims(made_up(suite), suite)
    assert set(found) == set(CLAIMS) == set(paper("claims")["id"]) == set(FIGURES)
    assert set(FIGURES.values()) <= set(PAGES)
    table = claims_table(found, paper_statements())
    assert list(table.index) == list(CLAIMS)
    known = {"supported", "not supported", "undecided", "not testable", "not computed"}
    assert set(table["verdict"]) | set(table["verdict_paper"]) <= known
    empty = check_claims(
        Results(
            made_up(suite).zoo,
            made_up(suite).finetune.head(0),
            made_up(suite).scores,
            {},
            made_up(suite).beside,
        ),
        suite,
    )
    nothing = claims_table(empty, {})["verdict"]
    assert nothing["C03"] == nothing["C09"] == "not computed"


def test_what_stands_beside_the_zoo_is_in_no_ranking(suite):
    results = made_up(suite)
    random = {"resnet-random"}
    assert set(suite.starting_points("beside")) == random and not random & set(
        suite.starting_points()
    )
    assert random < set(results.beside["expert"]) and not random & set(results.finetune["expert"])
    assert not random & {j.expert for j in suite.score_jobs()}


def test_fig1_compares_the_zoo_with_what_stands_beside_it_and_with_a_tuned_rate(suite):
    results = made_up(suite)
    results.beside.loc[results.beside["expert"] == suite.reference, "accuracy"] = 0.65
    table = fig1_errors(results, suite)
    error = table.set_index(["panel", "target", "shots", "method"])["test_error"]
    assert error["b", "fabrics", "5", "generic_resnet_hpo"] == pytest.approx(35)
    assert error["b", "fabrics", "5", "generic_resnet"] == pytest.approx(40)
    assert (
        error["a", "fabrics", "5", "model_zoo"] < 31
        and "digits" not in tuned(results, suite)["task"].to_list()
    )
    assert set(table["method"]) >= {"model_zoo", "generic_resnet", "random_resnet"}
