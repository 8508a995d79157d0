"""Figures and tables from small made-up results: what they show equals what the tables say."""

import itertools

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from notebook_functions import functions_of

from mzlib.benchmark import figures
from mzlib.benchmark.evaluate import evaluate, truth
from mzlib.benchmark.figures.style import GREY, GROUPS, STYLE
from mzlib.benchmark.statistics import summarize
from mzlib.errors import MzlibError

second = functions_of("02_finetune")
third = functions_of("03_selectors")
GENERIC = "mzlib_resnet.mixture.scratch"
SOURCES = ["mixture", "textures", "glyphs", "scenes", "fractals"]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def make_results(
    seeds=2, tasks=("digits", "symbols", "weaves", "polygons", "roads", "ferns"), rng_seed=0
):
    """zoo, finetune and scores of a made-up suite of the shape of `mini`."""
    rng = np.random.default_rng(rng_seed)
    zoo = [
        dict(
            suite="mini",
            expert=f"{a}.{s}.{p}",
            architecture=a,
            source=s,
            pretraining=p,
            accuracy=rng.uniform(0.6, 1),
        )
        for a, s, p in itertools.product(
            ["mzlib_resnet", "mzlib_densenet"], SOURCES, ["scratch", "generic"]
        )
        if (s, p) != ("mixture", "generic")
    ]
    zoo += [
        dict(
            suite="mini",
            expert=f"{p}.{s}",
            architecture="mzlib_resnet",
            source=s,
            pretraining=p,
            accuracy=rng.uniform(0.6, 1),
        )
        for p in ("shared", "multi_bn", "adapter")
        for s in SOURCES
    ]
    zoo = pd.DataFrame(zoo)
    tuned = zoo[~zoo["pretraining"].isin(["shared", "adapter"])]["expert"]
    finetune, scores = [], []
    for task, expert in itertools.product(tasks, tuned):
        quality = rng.uniform(0.4, 0.99)
        for seed in range(seeds):
            for lr in (0.05, 0.01):
                accuracy = np.clip(quality + 0.03 * rng.normal(), 0, 0.995)
                finetune.append(
                    ("mini", expert, task, 20, lr, seed, accuracy, accuracy - 0.02, 2.5)
                )
            for k, selector in enumerate(
                ["lfc", "leep", "rsa", "domain_similarity", "source_accuracy", "random"]
            ):
                score = 0.0 if selector == "random" else quality / (k + 1) + 0.1 * rng.normal()
                scores.append(
                    ("mini", expert, task, 20, 25, seed, selector, score, "", 0.01 * (k + 1))
                )
    keys = ["suite", "expert", "task", "shots"]
    return (
        zoo,
        pd.DataFrame(
            finetune, columns=[*keys, "lr", "seed", "accuracy", "val_accuracy", "seconds"]
        ).assign(hardware="one"),
        pd.DataFrame(
            scores,
            columns=[*keys, "images_per_class", "seed", "selector", "score", "reason", "seconds"],
        ).assign(hardware="one"),
    )


@pytest.fixture(scope="module")
def results():
    zoo, finetune, scores = make_results()
    metrics = evaluate(scores, finetune, generic=GENERIC, protocols=["paper"])
    return zoo, finetune, scores, metrics, summarize(metrics)


def drawn(ax):
    """x of every dot of a strip plot."""
    return sorted(x for dots in ax.collections for x, _ in dots.get_offsets())


def test_fig2_draws_every_expert_at_its_mean_error(results):
    zoo, finetune, *_ = results
    accuracy = truth(finetune)
    (ax,) = second.fig2({"here": second.errors_of(accuracy, zoo, GENERIC)})
    expected = sorted(100 * (1 - accuracy.groupby(["task", "expert"])["accuracy"].mean()))
    np.testing.assert_allclose(drawn(ax), expected)
    assert ax.get_xscale() == "log" and ax.get_title() == "here"
    assert len(ax.get_yticklabels()) == finetune["task"].nunique()


def test_fig2_survives_a_perfect_expert(results):
    zoo, finetune, *_ = results
    perfect = finetune["accuracy"].where(finetune["expert"] != GENERIC, 1.0)
    accuracy = truth(finetune.assign(accuracy=perfect))
    (ax,) = second.fig2({"here": second.errors_of(accuracy, zoo, GENERIC)})
    ax.figure.canvas.draw()
    assert min(drawn(ax)) > 0


@pytest.mark.parametrize(("regime", "markers"), [("20", 330), ("multi", 128)])
def test_the_papers_fig2_and_fig3_have_every_marker(regime, markers):
    errors = functions_of("finetuning").paper_errors(regime)
    assert len(errors) == markers and set(errors["group"]) <= set(GROUPS)
    (ax,) = second.fig2({"the paper": errors})
    np.testing.assert_allclose(drawn(ax), sorted(errors["test_error"]))


def cells_of(ax):
    rows = len(ax.get_yticklabels())
    return np.asarray(ax.collections[0].get_array()).reshape(rows, -1)


def test_fig4_cells_are_the_mean_gains(results):
    metrics = results[3]
    ax = third.fig4(metrics)
    cells = cells_of(ax)
    rows = [label.get_text() for label in ax.get_yticklabels()]
    columns = [label.get_text() for label in ax.get_xticklabels()]
    assert columns[:2] == ["Best expert", "Worst expert"] and len(columns) == 8
    assert rows[-1] == "Average"
    top3 = metrics[(metrics["metric"] == "top3_gain") & (metrics["selector"] == "lfc")]
    gain = 100 * top3.groupby("task")["value"].mean()
    np.testing.assert_allclose(cells[:, columns.index("LFC")], [*gain, gain.mean()], atol=0.051)
    assert (cells[:, 0] >= cells[:, columns.index("LFC")]).all()
    assert (cells[:, 1] <= cells[:, 0]).all()


def test_numbers_on_the_heat_map_are_legible(results):
    ax = third.fig4(results[3])
    ax.figure.canvas.draw()
    colours = ax.collections[0].get_facecolors()
    assert len(ax.texts) == len(colours) > 0
    for text, colour in zip(ax.texts, colours, strict=True):
        assert contrast(to_hex(text.get_color()), to_hex(colour)) > 3, (text.get_text(), colour)


def test_the_paper_goes_through_the_same_figures():
    metrics = functions_of("choosing").paper_metrics()
    here = metrics[(metrics["suite"] == "paper, single") & (metrics["shots"] == "20")]
    table = third.gains(here)
    printed = figures.paper("fig4_top3_gain").query("shots == '20'")
    printed = printed.pivot(index="target", columns="selector", values="accuracy_gain")
    assert set(table) == set(printed) and len(table) == len(printed) == 9
    printed = printed.loc[table.index, table.columns]
    rows = table.index != "average"
    np.testing.assert_allclose(table[rows], printed[rows])
    summary = (
        functions_of("choosing")
        .paper_averages()
        .query("suite == 'paper, single' and shots == '20'")
    )
    mean = summary[summary["metric"] == "top3_gain"].set_index("selector")["mean"]
    selectors = [name for name in printed if name not in ("best", "worst")]
    np.testing.assert_allclose(100 * mean[selectors], printed.loc["average", selectors])
    multi = functions_of("choosing").paper_averages().query("suite == 'paper, multi'")
    ax = figures.beside({"the paper": multi}, "trials_to_best")
    assert list(ax.get_lines()[0].get_xdata())[:4] == [2.375, 3, 4.625, 5.875]


def test_beside_has_a_row_a_selector_those_that_the_paper_lacks_last(results):
    summary = results[4]
    theirs = (
        functions_of("choosing")
        .paper_averages()
        .query("suite == 'paper, single' and shots == '20'")
    )
    ax = figures.beside({"the paper": theirs, "here": summary}, "spearman")
    paper, here = ax.get_lines()
    rows = [label.get_text() for label in ax.get_yticklabels()]
    printed = theirs["selector"][theirs["metric"] == "spearman"].nunique()
    assert (np.diff(paper.get_xdata()[:printed]) <= 0).all()
    assert np.isnan(paper.get_xdata()[printed:]).all()
    assert "Source accuracy" in rows[printed:]
    mean = summary[summary["metric"] == "spearman"].set_index("selector")["mean"]
    assert here.get_xdata()[rows.index("LEEP")] == pytest.approx(mean["leep"])
    assert np.isnan(here.get_xdata()[rows.index("LGC")])  # not tried here


def test_fig7_draws_one_mean_a_selector_and_sample_size(results):
    metrics = results[3]
    more = metrics.assign(images_per_class="all", value=metrics["value"] + 0.01)
    ax = functions_of("choosing").fig7(pd.concat([metrics, more]))
    few, many, generic = ax.get_lines()
    assert [line.get_label() for line in (few, many)] == [
        "25 images per class",
        "all images per class",
    ]
    np.testing.assert_allclose(many.get_xdata() - few.get_xdata(), 1)
    assert set(generic.get_xdata()) == {0}
    assert [text.get_text().strip() for text in ax.texts] == ["generic expert alone"]


def test_scatter_has_a_marker_per_expert_and_names_the_three_best(results):
    zoo, finetune, scores, *_ = results
    scored = scores[(scores["selector"] == "lfc") & (scores["task"] == "digits")]
    accuracy = truth(finetune[finetune["task"] == "digits"])
    draw = third.score_against_accuracy
    ax = draw(scored, accuracy, zoo, GENERIC)
    assert len(ax.collections[0].get_offsets()) == finetune["expert"].nunique()
    best = accuracy.groupby("expert")["accuracy"].mean().nlargest(3).index
    named = [text.get_text().strip() for text in ax.texts]
    assert named == zoo.set_index("expert").loc[best, "source"].tolist()
    assert ax.get_xlabel().startswith("LFC")


def test_an_interval_is_written_as_far_as_there_is_one():
    assert figures.with_interval(1.234, 1, 2) == "1.23 [1.00, 2.00]"
    assert figures.with_interval(1.234, np.nan, np.nan) == "1.23"
    assert figures.with_interval(np.nan, np.nan, np.nan) == "–"


def test_fig1_has_a_line_a_method_and_full_data_last():
    errors = figures.paper("fig1_test_error").query("panel == 'a' and target == 'uc_merced'")
    ax = functions_of("finetuning").fig1(errors)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["5", "10", "20", "full"]
    zoo = next(line for line in ax.get_lines() if line.get_label() == "model zoo")
    assert (
        list(zoo.get_ydata()) == [11.43, 5.33, 4.38, 1.52]
        and len(ax.get_lines()) == errors["method"].nunique()
    )


def test_paper_tables_are_as_printed():
    page = functions_of("experts")
    one, two = page.paper_table1(), page.paper_table2()
    assert one.loc[("resnet101", "scratch"), "imagenet"] == 77.54 and one.shape == (5, 8)
    assert two.loc["logo 2k", "Multi-BN"] == 79.06 and list(two) == [
        "Single domain",
        "Shared",
        "Multi-BN",
        "Adapter",
    ]


def test_fig6_orders_bars_and_shows_the_intervals(results):
    summary = results[4]
    for metric, better in (("spearman", -1), ("trials_to_best", 1)):
        ax = figures.fig6(summary, metric=metric)
        widths = [bar.get_width() for bar in ax.patches[:6]]
        expected = summary[
            (summary["metric"] == metric) & (summary["selector"] != "noise_ceiling")
        ]["mean"]
        np.testing.assert_allclose(widths, sorted(expected, key=lambda v: better * v))
        assert len(ax.collections[0].get_segments()) == 6
        assert (
            to_hex(
                ax.patches[
                    [t.get_text() for t in ax.get_yticklabels()].index("Random")
                ].get_facecolor()
            )
            == GREY
        )


def test_fig6_without_a_noise_ceiling_has_no_band(results):
    summary = results[4]
    ax = figures.fig6(summary[summary["selector"] != "noise_ceiling"])
    assert len(ax.patches) == 6


def test_fig6_shows_gains_in_points_beside_the_best_expert(results):
    summary = results[4].set_index(["metric", "selector"])["mean"]
    ax = figures.fig6(results[4], metric="top3_gain")
    assert ax.patches[0].get_width() == pytest.approx(100 * summary["top3_gain"].max())
    assert ax.get_lines()[0].get_xdata()[0] == pytest.approx(100 * summary["best_gain"].iloc[0])
    assert "points" in ax.get_xlabel()


def test_figures_refuse_to_mix_settings(results):
    metrics = results[3]
    with pytest.raises(MzlibError, match="one protocol"):
        third.fig4(pd.concat([metrics, metrics.assign(protocol="validation")]))


def test_kernel_is_sorted_by_class():
    labels = np.array([1, 0, 1, 0])
    _, ax = plt.subplots()
    functions_of("05_linearization").kernel(np.outer(labels, labels) + 0.0, labels, "", ax)
    np.testing.assert_array_equal(
        ax.images[0].get_array(), np.kron([[0, 0], [0, 1]], np.ones((2, 2)))
    )
    assert len(ax.get_lines()) == 2


def test_tables_by_hand(results):
    zoo, finetune, scores, *_ = results
    one = functions_of("01_zoo").table1(zoo)
    row = zoo.set_index("expert").loc["mzlib_densenet.glyphs.generic", "accuracy"]
    assert one.shape == (4, 5) and one.loc[("dense", "generic"), "glyphs"] == pytest.approx(
        100 * row
    )
    assert np.isnan(one.loc[("dense", "generic"), "mixture"])
    two = functions_of("01_zoo").table2(zoo)
    assert list(two.columns) == ["Single domain", "Shared", "Multi-BN", "Adapter"]
    assert list(two.index) == SOURCES
    multi = zoo.set_index("expert").loc["multi_bn.scenes", "accuracy"]
    assert two.loc["scenes", "Multi-BN"] == pytest.approx(100 * multi)
    again = zoo[zoo["pretraining"] == "multi_bn"]
    again = again.assign(expert=again["expert"] + "-seed1", accuracy=again["accuracy"] - 0.1)
    two = functions_of("01_zoo").table2(pd.concat([zoo, again]))
    assert two.loc["scenes", "Multi-BN"] == pytest.approx(100 * multi - 5)
    cost = third.table3(scores, finetune, generic=GENERIC)
    experts = finetune["expert"].nunique()
    assert cost.loc[("20", "brute force", ""), "relative cost"] == pytest.approx(experts)
    assert cost.loc[("20", "score the zoo", "LEEP"), "seconds"] == pytest.approx(0.02 * experts)
    assert cost.loc[("20", "score the zoo", "LEEP"), "relative cost"] == pytest.approx(
        0.02 * experts / 2.5
    )
    assert cost.loc[
        ("20", "fine-tune the top 3", "LEEP"), ["relative cost", "low", "high"]
    ].tolist() == pytest.approx([3, 3, 3])


def test_costs_come_from_one_machine(results):
    zoo, finetune, scores, *_ = results
    both = [
        pd.concat(
            [table, table.assign(seed=9, seconds=100.0, hardware="another").head(len(table) // 2)]
        )
        for table in (finetune, scores)
    ]
    pd.testing.assert_frame_equal(
        third.table3(both[1], both[0], generic=GENERIC),
        third.table3(scores, finetune, generic=GENERIC),
    )


def test_table3_counts_whole_zoos_and_the_first_sample(results):
    """Further samples, of some selectors only, were timed under other loads; half a zoo is cheap."""
    zoo, finetune, scores, *_ = results
    more = scores.assign(seed=scores["seed"].max() + 1, seconds=100.0)
    expected = third.table3(scores, finetune, generic=GENERIC)
    stage = ("20", "score the zoo", "LEEP")
    found = third.table3(pd.concat([scores, more]), finetune, generic=GENERIC)
    pd.testing.assert_series_equal(found.loc[stage], expected.loc[stage])
    task = finetune["task"].iloc[0]
    lost = (scores["task"] == task) & (scores["expert"] == finetune["expert"].iloc[0])
    found = third.table3(scores[~lost], finetune, generic=GENERIC).loc[stage]
    assert found["targets"] == expected.loc[stage, "targets"] - 1


def test_table3_interval_is_over_targets(results):
    zoo, finetune, scores, *_ = results
    slow = finetune.assign(
        seconds=finetune["seconds"].where(finetune["expert"] != GENERIC, finetune["task"].str.len())
    )
    cost = third.table3(scores, slow, generic=GENERIC).loc[("20", "score the zoo", "LEEP")]
    each = 0.02 * finetune["expert"].nunique() / finetune.groupby("task")["task"].first().str.len()
    assert cost["relative cost"] == pytest.approx(each.mean()) and cost["targets"] == len(each)
    assert each.min() < cost["low"] < cost["relative cost"] < cost["high"] < each.max()


def test_cells_of_a_table_lead_where_they_should():
    html = figures.show(
        pd.DataFrame({"a": ["x<", "y"], "b": [1.25, 2]}),
        "t",
        links={"a": lambda text: f"#{text[0]}"},
    ).data
    assert '<a href="#y">y</a>' in html and '<a href="#x">x&lt;</a>' in html and ">1.2<" in html


def test_show_links_the_table_as_csv():
    import base64
    import io

    table = pd.DataFrame({"accuracy": [1 / 3, np.nan]}, index=pd.Index(["a", "b"], name="expert"))
    html = figures.show(table, "table1").data
    csv = base64.b64decode(html.split("base64,")[1].split('"')[0]).decode()
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(csv), index_col=0), table)
    assert (
        'download="table1.csv"' in html and 'id="table1"' in html and "0.3" in html and "–" in html
    )
    assert ">expert</th>" in html  # the index is a column like the others


def test_provenance_line_names_cost_and_machine():
    stage = {
        "jobs": 12,
        "finished": "2026-11-22T21:00:00Z",
        "seconds": 90.0,
        "machines": [{"hardware": "a CPU, 2 cores", "torch": "2.15"}],
    }
    line = figures.provenance_line("mini", {"zoo": stage}).data
    assert all(
        part in line
        for part in ("results/mini/", "2026-11-22", "12 jobs in 1.5", "a CPU, 2 cores, torch 2.15")
    )


def contrast(a, b):
    def luminance(hex_colour):
        rgb = np.array(matplotlib.colors.to_rgb(hex_colour))
        return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [
            0.2126,
            0.7152,
            0.0722,
        ]

    bright, dark = sorted([luminance(a), luminance(b)], reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_style_is_legible_on_light_and_dark_pages():
    for colour in {value for value in STYLE.values() if str(value).startswith("#")} | {
        c for _, c in GROUPS.values()
    }:
        assert contrast(colour, "#ffffff") > 2.5 and contrast(colour, "#121212") > 2.5, colour
    assert contrast(GREY, "#ffffff") > 4 and contrast(GREY, "#121212") > 4


def test_table4_is_known_without_the_data(monkeypatch, tmp_path):
    monkeypatch.setenv("MZLIB_DATA", str(tmp_path))
    table = functions_of("datasets").table4(["gtsrb", "rsscn7"])
    assert table.loc["rsscn7", ["train", "test", "classes"]].tolist() == [1050, 1050, 7]
    assert (
        table.loc["rsscn7", "train images per class"] == "150–150"
        and table.loc["gtsrb", "role"] == "source"
    )
    assert (
        "palewithout/RSSCN7" in table.loc["rsscn7", "origin"]
        and table["licence"].str.len().min() > 3
    )
