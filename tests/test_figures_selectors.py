"""Figures that compare selectors, from small made-up results: they show what the tables say."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from notebook_functions import functions_of
from scipy import stats

from mzlib.benchmark.evaluate import evaluate, truth
from mzlib.benchmark.scoring import seconds_alone
from mzlib.benchmark.statistics import summarize
from mzlib.errors import Missing, MzlibError
from mzlib.selectors import hscore, logme

notebook = functions_of("04_all_selectors")
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
    """scores (25 images and all) and finetune of a made-up suite; `leep` follows its own noise."""
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
    return here, truth(finetune), metrics, summarize(metrics)


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
    ax = notebook.by_task(metrics)
    image = ax.collections[0].get_array()
    image = np.asarray(image).reshape(len(rows_of(ax)), -1)
    assert rows_of(ax)[0] == "LFC" and len(rows_of(ax)) == 4
    expected = [rho(here, accuracy, "leep", task) for task in TASKS]
    np.testing.assert_allclose(image[rows_of(ax).index("LEEP")], [*expected, np.mean(expected)])
    assert (np.diff(image[:, -1]) <= 0).all()
    with pytest.raises(MzlibError, match="one protocol"):
        notebook.by_task(pd.concat([metrics, metrics.assign(protocol="validation")]))


def test_halves_are_disjoint_and_correlations_those_of_scipy(one):
    here, accuracy, *_ = one
    table = notebook.zoo_halves(here, accuracy, np.random.default_rng(3), draws=5)
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
    table = notebook.zoo_halves(gone, accuracy, np.random.default_rng(0), draws=20)
    assert (
        table.query("selector == 'knn'").groupby("draw").size() == 1
    ).all()  # the half without e03
    with pytest.raises(Missing, match="at least 6 fine-tuned experts to halve the zoo, got 5"):
        notebook.zoo_halves(here, accuracy[accuracy["expert"] < "e05"], np.random.default_rng(0))


def test_agreement_with_all_images_by_hand(results):
    scores, _ = results
    table = notebook.agreement_with_all_images(scores).set_index(
        ["task", "selector", "images_per_class"]
    )["value"]
    assert table.xs("all", level="images_per_class").to_numpy() == pytest.approx(1)
    wide = scores.query("task == 'ferns' and selector == 'leep'").pivot(
        index="expert", columns="images_per_class", values="score"
    )
    assert table["ferns", "leep", "25"] == pytest.approx(
        stats.spearmanr(wide["25"], wide["all"]).statistic
    )


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


def test_half_zoos_draw_places_in_order_without_baselines(one):
    here, accuracy, *_ = one
    halves = notebook.zoo_halves(here, accuracy, np.random.default_rng(0), draws=50)
    ax = notebook.half_zoos(halves)
    assert rows_of(ax) == ["LFC", "1-NN", "LEEP"]
    tau = notebook.half_tau(halves)
    assert (tau > 0).mean() > 0.9 and f"{tau.median():.2f}" in ax.get_title()


def cells_of(ax):
    rows = len(rows_of(ax))
    return np.asarray(ax.collections[0].get_array()).reshape(rows, -1)


def test_over_images_puts_both_correlations_side_by_side(results):
    scores, finetune = results
    metrics = evaluate(
        scores, finetune, generic="e00", protocols=["paper"], correlations=["spearman"]
    )
    agreement = notebook.agreement_with_all_images(scores)
    left, right = notebook.over_images(metrics, agreement)
    assert [label.get_text() for label in left.get_xticklabels()] == ["25", "all"]
    assert rows_of(left) == ["LFC", "1-NN", "LEEP"]
    knn = metrics.query("metric == 'spearman' and selector == 'knn'")
    mean = knn.groupby("images_per_class")["value"].mean()
    np.testing.assert_allclose(cells_of(left)[1], mean[["25", "all"]])
    own = agreement.query("selector == 'knn' and images_per_class == '25'")["value"].mean()
    np.testing.assert_allclose(right.collections[0].get_array().reshape(3, 2)[1], [own, 1])


def test_cost_front_holds_what_nobody_beats(results, one):
    here, _, _, summary = one
    table = notebook.seconds_and_quality(here, summary, results[1])
    assert np.isnan(table.at["source_accuracy", "seconds"])
    np.testing.assert_allclose(table["seconds"].dropna(), 12 * np.array([0.5, 0.502, 0.51]))
    ax = notebook.cost_against_quality(here, summary, results[1])
    points = ax.collections[0].get_offsets()
    np.testing.assert_allclose(sorted(points[:, 0]), 12 * np.array([0.5, 0.502, 0.51]))
    mean = summary.query("metric == 'spearman'").set_index("selector")["mean"]
    # The cheapest is also the best.
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), [mean["lfc"]])
    assert {t.get_text() for t in ax.texts} == {"one fine-tune", "all fine-tunes"}
    _, *below = ax.get_xlabel().split("\n")
    assert below == ["on the line: LFC", "dotted: Source accuracy, which sees no image"]


def test_agreement_puts_like_beside_like(one):
    here, accuracy, *_ = one
    ax = notebook.agreement(here, accuracy).ax_heatmap
    rows = rows_of(ax)
    image = np.asarray(ax.collections[0].get_array()).reshape(5, 5)
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
    book = functions_of("04_all_selectors")
    assert book.textbook_hscore(*wide) == pytest.approx(3)
    assert book.textbook_hscore(*tall) == pytest.approx(hscore(*tall), rel=0.01)
    assert book.textbook_logme(*wide) > logme(*wide) + 1
    assert book.textbook_logme(*tall) == pytest.approx(logme(*tall), abs=1e-4)
    x, y = features_and_labels(20, 60)
    assert (
        book.textbook_nleep(x, y)
        == pytest.approx(0, abs=1e-6)
        == book.textbook_nleep(x, np.roll(y, 1))
    )
    with pytest.raises(Missing, match="at least 20 images"):
        book.textbook_nleep(x[:16], y[:16])


def test_few_images_as_printed_and_guarded():
    book = functions_of("04_all_selectors")
    table = book.few_images_table(*features_and_labels(120, 50), [1, 5, 30])
    assert table["images"].unique().tolist() == [4, 20, 120] and len(table) == 3 * 2 * 3 * 2
    rows = table.query("selector == 'hscore' and formula == 'as printed' and labels == 'true'")
    assert rows["score"].iloc[:2].to_numpy() == pytest.approx(3)
