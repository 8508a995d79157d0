"""Figures that compare selectors, from small made-up results: what they show equals what the tables say."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from scipy import stats

from mzlib.benchmark import figures
from mzlib.benchmark.evaluate import (
    agreement_with_all_images,
    evaluate,
    truth,
    zoo_halves,
)
from mzlib.benchmark.figures.selectors import textbook_hscore, textbook_logme, textbook_nleep
from mzlib.benchmark.figures.style import ORANGE
from mzlib.benchmark.scoring import seconds_alone
from mzlib.benchmark.statistics import summarize
from mzlib.errors import Missing, MzlibError
from mzlib.selectors import hscore, logme

TASKS, EXPERTS = ("digits", "ferns", "symbols"), [f"e{i:02d}" for i in range(12)]
NOISE = {
    "lfc": 0.05,
    "knn": 0.3,
    "leep": 3.0,
    "source_accuracy": 1.0,
}  # lfc is the best, leep says nothing


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def results():
    """scores (25 images and all), finetune of a made-up suite; `knn` follows `lfc`, `leep` its own noise."""
    rng, scores, finetune = np.random.default_rng(0), [], []
    for task in TASKS:
        quality = rng.normal(size=len(EXPERTS))
        finetune += [("toy", e, task, "20", 0.1, 0, q, q, 2.0) for e, q in zip(EXPERTS, quality)]
        for selector, noise in NOISE.items():
            for size, more in (("25", 0.3), ("all", 0.0)):
                score = (
                    quality
                    + noise * rng.normal(size=len(EXPERTS))
                    + more * noise * rng.normal(size=len(EXPERTS))
                )
                seconds = {"lfc": 0.5, "knn": 0.01, "leep": 0.002}.get(selector, 0.0)
                scores += [
                    (f"{e}{task}{size}", "toy", e, task, "20", size, 0, selector, s, "", seconds)
                    for e, s in zip(EXPERTS, score)
                ]
    keys = ["suite", "expert", "task", "shots"]
    return (
        pd.DataFrame(
            scores,
            columns=[
                "key",
                *keys,
                "images_per_class",
                "seed",
                "selector",
                "score",
                "reason",
                "seconds",
            ],
        ).assign(hardware="one"),
        pd.DataFrame(
            finetune, columns=[*keys, "lr", "seed", "accuracy", "val_accuracy", "seconds"]
        ).assign(hardware="one"),
    )


@pytest.fixture(scope="module")
def one(results):
    """The setting with 25 images: scores, truth, metrics, summary."""
    scores, finetune = results
    here = scores[scores["images_per_class"] == "25"]
    metrics = evaluate(here, finetune, generic="e00", protocols=["paper"])
    return here, truth(finetune), metrics, summarize(metrics, np.random.default_rng(0))


def rows_of(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


def rho(here, accuracy, selector, task):
    score = here[(here["selector"] == selector) & (here["task"] == task)].set_index("expert")[
        "score"
    ]
    return stats.spearmanr(
        score, accuracy[accuracy["task"] == task].set_index("expert")["accuracy"][score.index]
    ).statistic


def test_by_task_shows_every_correlation_best_mean_first(one):
    here, accuracy, metrics, _ = one
    ax = figures.by_task(metrics)
    image = ax.images[0].get_array()
    assert rows_of(ax)[0] == "LFC" and len(rows_of(ax)) == 4
    expected = [rho(here, accuracy, "leep", task) for task in TASKS]
    np.testing.assert_allclose(image[rows_of(ax).index("LEEP")], [*expected, np.mean(expected)])
    assert (np.diff(image[:, -1]) <= 0).all()
    with pytest.raises(MzlibError, match="one protocol"):
        figures.by_task(pd.concat([metrics, metrics.assign(protocol="validation")]))


def test_halves_are_disjoint_and_correlations_those_of_scipy(one):
    here, accuracy, *_ = one
    table = zoo_halves(here, accuracy, np.random.default_rng(3), draws=5)
    assert len(table) == 5 * 2 * len(NOISE)
    order = np.random.default_rng(3).permutation(len(EXPERTS))
    for half, index in enumerate((order[:6], order[6:])):
        inside = {EXPERTS[i] for i in index}
        expected = np.mean(
            [rho(here[here["expert"].isin(inside)], accuracy, "knn", task) for task in TASKS]
        )
        got = table[(table["draw"] == 0) & (table["half"] == half) & (table["selector"] == "knn")][
            "value"
        ].item()
        assert got == pytest.approx(expected)


def test_halves_leave_out_missing_scores_and_small_zoos(one):
    here, accuracy, *_ = one
    gone = here.assign(
        score=here["score"].where((here["selector"] != "knn") | (here["expert"] != "e03"))
    )
    table = zoo_halves(gone, accuracy, np.random.default_rng(0), draws=20)
    assert (
        table.query("selector == 'knn'").groupby("draw").size() == 1
    ).all()  # the half without e03
    with pytest.raises(Missing, match="at least 6 fine-tuned experts to halve the zoo, got 5"):
        zoo_halves(here, accuracy[accuracy["expert"] < "e05"], np.random.default_rng(0))


def test_half_zoos_draw_medians_in_order_without_baselines(one):
    here, accuracy, *_ = one
    halves = zoo_halves(here, accuracy, np.random.default_rng(0), draws=50)
    left, right = figures.half_zoos(halves)
    assert rows_of(left) == ["LFC", "1-NN", "LEEP"]
    np.testing.assert_allclose(
        left.get_lines()[0].get_xdata()[:2],
        halves.groupby("selector")["value"].median()[["lfc", "knn"]],
    )
    assert right.get_lines()[0].get_xdata()[0] == 1
    assert (figures.half_tau(halves) > 0).mean() > 0.9


def test_agreement_with_all_images_by_hand(results):
    scores, _ = results
    table = agreement_with_all_images(scores).set_index(["task", "selector", "images_per_class"])[
        "value"
    ]
    assert table.xs("all", level="images_per_class").to_numpy() == pytest.approx(1)
    wide = scores.query("task == 'ferns' and selector == 'leep'").pivot(
        index="expert", columns="images_per_class", values="score"
    )
    assert table["ferns", "leep", "25"] == pytest.approx(
        stats.spearmanr(wide["25"], wide["all"]).statistic
    )


def test_over_images_puts_both_correlations_side_by_side(results):
    scores, finetune = results
    metrics = evaluate(
        scores, finetune, generic="e00", protocols=["paper"], correlations=["spearman"]
    )
    agreement = agreement_with_all_images(scores)
    left, right = figures.over_images(metrics, agreement)
    assert [label.get_text() for label in left.get_xticklabels()] == ["25", "all"] and rows_of(
        left
    ) == ["LFC", "1-NN", "LEEP"]
    mean = (
        metrics.query("metric == 'spearman' and selector == 'knn'")
        .groupby("images_per_class")["value"]
        .mean()
    )
    np.testing.assert_allclose(left.images[0].get_array()[1], mean[["25", "all"]])
    own = agreement.query("selector == 'knn' and images_per_class == '25'")["value"].mean()
    np.testing.assert_allclose(right.images[0].get_array()[1], [own, 1])


def test_alone_a_selector_pays_for_its_evidence():
    table = pd.DataFrame(
        [
            ("a", "lfc", 0.5),
            ("a", "leep", 0.1),
            ("a", "rsa", 2.0),
            ("a", "dds", 0.2),
            ("a", "random", 0.0),
            ("b", "lgc_full", 3.0),
            ("b", "ntk_loo", 1.0),
            ("b", "leep", 0.1),
        ],
        columns=["key", "selector", "seconds"],
    )
    assert seconds_alone(table).tolist() == pytest.approx([0.5, 0.6, 2.5, 2.7, 0.0, 3.0, 4.0, 1.1])


def test_cost_front_holds_what_nobody_beats(results, one):
    here, _, _, summary = one
    ax = figures.cost_against_quality(here, summary, results[1])
    points, front = ax.get_lines()[:2]
    np.testing.assert_allclose(sorted(points.get_xdata()), 12 * np.array([0.5, 0.502, 0.51]))
    mean = summary.query("metric == 'spearman'").set_index("selector")["mean"]
    np.testing.assert_allclose(front.get_ydata(), [mean["lfc"]])  # the cheapest is also the best
    assert {t.get_text() for t in ax.texts} >= {
        "LFC",
        "LEEP",
        "1-NN",
        "one fine-tune",
        "all fine-tunes",
        "Source accuracy",
    }
    assert [t.get_text() for t in ax.texts if to_hex(t.get_color()) == ORANGE] == ["LFC"]
    heights = sorted(t.xyann[1] for t in ax.texts if hasattr(t, "xyann"))
    assert min(np.diff(heights)) > 0.02


def test_regret_falls_to_nothing_when_everything_is_tried(results, one):
    here, accuracy, *_ = one
    ax = figures.regret_over_cost(here, results[1], accuracy, ["lfc", "leep"])
    lfc, leep = ax.get_lines()
    assert (np.diff(lfc.get_ydata()) <= 1e-12).all() and lfc.get_ydata()[-1] == pytest.approx(0)
    np.testing.assert_allclose(
        lfc.get_xdata(), np.arange(1, 13) + 12 * 0.5 / 2
    )  # 12 scores, in fine-tunes of 2 s
    assert lfc.get_ydata()[0] < leep.get_ydata()[0]


def test_agreement_puts_like_beside_like(one):
    here, accuracy, *_ = one
    _, ax = figures.agreement(here, accuracy)
    rows, image = rows_of(ax), ax.images[0].get_array()
    assert len(rows) == 5 and abs(rows.index("LFC") - rows.index("accuracy")) == 1
    expected = np.mean([rho(here, accuracy, "leep", task) for task in TASKS])
    assert image[rows.index("LEEP"), rows.index("accuracy")] == pytest.approx(expected)
    np.testing.assert_allclose(image, image.T)
    np.testing.assert_allclose(np.diag(image), 1)


def features_and_labels(n, d, seed=0, classes=4):
    rng, labels = np.random.default_rng(seed), np.arange(n) % classes
    return rng.normal(size=(n, d)) + 0.8 * rng.normal(size=(classes, d))[labels], labels


def test_textbook_formulas_break_below_d_and_agree_above():
    wide, tall = features_and_labels(40, 100), features_and_labels(4000, 10)
    assert textbook_hscore(*wide) == pytest.approx(3)
    assert textbook_hscore(*tall) == pytest.approx(hscore(*tall), rel=0.01)
    assert textbook_logme(*wide) > logme(*wide) + 1
    assert textbook_logme(*tall) == pytest.approx(logme(*tall), abs=1e-4)
    x, y = features_and_labels(20, 60)
    assert textbook_nleep(x, y) == pytest.approx(0, abs=1e-6) == textbook_nleep(x, np.roll(y, 1))
    with pytest.raises(Missing, match="at least 20 images"):
        textbook_nleep(x[:16], y[:16])


def test_few_images_draws_both_formulas_of_each_selector():
    table = figures.few_images_table(*features_and_labels(120, 50), [1, 5, 30])
    assert (
        table["images"].unique().tolist() == [4, 20, 120]
        and (table["formula"] == "textbook").sum() == 3 * 2 * 3
    )
    others = [ax for ax in figures.few_images_of_the_others(table, 50).flat if ax.get_title()]
    assert len(others) > 12 and all(len(ax.get_lines()) == 3 for ax in others)
    panels = figures.few_images(table, 50)
    assert panels.shape == (3, 2) and "H-score, guarded" == panels[0, 0].get_title()
    rows = table.query("selector == 'hscore' and formula == 'textbook' and labels == 'true'")
    np.testing.assert_allclose(panels[0, 1].get_lines()[0].get_ydata(), rows["score"])
    assert rows["score"].iloc[:2].to_numpy() == pytest.approx(3)


def test_null_table_and_z_scores():
    class Sample:
        features, labels = features_and_labels(40, 10)

    table = figures.null_table(Sample, ["lfc", "zero_share", "ncti", "knn"], number=10, groups=5)
    assert list(table.index) == ["lfc", "knn"]  # no labels in one, scaled over the zoo the other
    assert (table["z"] > 3).all() and table["score"].between(table["low"], table["high"]).all()
    ax = figures.z_scores({"a": table, "b": table.assign(z=0.0)})
    np.testing.assert_allclose(sorted(ax.get_lines()[0].get_xdata()), sorted(table["z"]))
