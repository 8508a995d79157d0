"""What experts did on other targets: by hand, without leaks, and of experts that are new."""

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mzlib.benchmark import evaluate, learned, load_suite
from mzlib.benchmark.figures import paper, target_blind
from mzlib.errors import MzlibError
from mzlib.selectors.history import (
    OUTSIDE,
    History,
    history,
    neighbour_history,
    prior,
    ranks,
    shares,
)


def past(accuracy, scores=None, groups=None, **options):
    accuracy = np.array(accuracy, float)
    targets, experts = accuracy.shape
    return History(
        tuple(f"e{i}" for i in range(experts)),
        tuple(groups or ["g"] * experts),
        tuple(f"t{i}" for i in range(targets)),
        accuracy,
        np.array(accuracy if scores is None else scores, float),
        **options,
    )


def slow(known, score):
    """The formula of the docstring, one past target at a time."""
    size = len(score)
    share = (stats.rankdata(score) - 0.5) / size
    weights = []
    votes = []
    for scores, accuracy in zip(known.scores, known.accuracy):
        weights.append(np.exp(known.sharpness * stats.spearmanr(scores, score).statistic))
        votes.append((stats.rankdata(accuracy) - 0.5) / size)
    return np.average(votes, axis=0, weights=weights) + known.own * share


def test_ranks_are_scipys():
    values = np.random.default_rng(0).integers(0, 5, (3, 4, 7)).astype(float)
    np.testing.assert_array_equal(ranks(values), stats.rankdata(values, axis=-1))
    values[0, 0, 0] = np.nan
    assert np.isnan(ranks(values)[0, 0]).all() and np.isfinite(ranks(values)[0, 1]).all()


def test_history_and_prior_by_hand():
    known = past([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.1, 0.2, 0.3]], groups=["a", "a", "b"])
    np.testing.assert_allclose(history(known), (np.array([5, 6, 7]) / 3 - 0.5) / 3)
    np.testing.assert_allclose(prior(known), (np.array([5.5, 5.5, 7]) / 3 - 0.5) / 3)


def test_neighbours_against_the_formula():
    rng = np.random.default_rng(0)
    known = past(rng.random((6, 8)), rng.random((6, 8)), sharpness=5.0, own=0.5)
    score = rng.random(8)
    value = neighbour_history(known, np.arange(8), score)
    np.testing.assert_allclose(value, slow(known, score), rtol=1e-12)
    order = rng.permutation(8)  # of the experts here, in any order
    np.testing.assert_allclose(neighbour_history(known, order, score[order]), value[order])


def test_a_target_like_this_one_decides():
    """Two past targets with opposite outcomes: the one whose scores look like ours wins."""
    up, down = [0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]
    known = past([up, down], [[1, 2, 3, 4], [4, 3, 2, 1]], own=0.0, sharpness=10.0)
    everyone = np.arange(4)
    assert neighbour_history(known, everyone, np.array([1.0, 2, 3, 5])).argmax() == 3
    assert neighbour_history(known, everyone, np.array([5.0, 3, 2, 1])).argmax() == 0


def test_new_experts_are_ranked_by_their_scores():
    rng = np.random.default_rng(1)
    known = past(rng.random((5, 6)), rng.random((5, 6)))
    score = rng.random(6)
    nobody = np.full(6, OUTSIDE)
    value = neighbour_history(known, nobody, score)
    np.testing.assert_array_equal(np.argsort(value), np.argsort(score))
    none = past(np.empty((0, 6)))  # no past target
    np.testing.assert_array_equal(
        np.argsort(neighbour_history(none, np.arange(6), score)), np.argsort(score)
    )
    mixed = np.array([0, 1, 2, 3, 4, OUTSIDE])
    best = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 9.0])
    assert neighbour_history(known, mixed, best)[5] == pytest.approx(2 * shares(best)[5])


def test_a_missing_score_stays_missing_and_moves_nobody_else():
    rng = np.random.default_rng(2)
    known = past(rng.random((5, 6)), rng.random((5, 6)))
    score = rng.random(6)
    score[2] = np.nan
    value = neighbour_history(known, np.arange(6), score)
    assert np.isnan(value[2]) and np.isfinite(np.delete(value, 2)).all()
    rest = np.delete(np.arange(6), 2)
    np.testing.assert_allclose(neighbour_history(known, rest, score[rest]), value[rest])


def test_saved_and_read_again(tmp_path):
    rng = np.random.default_rng(3)
    known = past(rng.random((3, 4)).round(3), rng.random((3, 4)).round(3), about={"suite": "toy"})
    file = tmp_path / "history.json"
    known.save(file)
    again = History.load(file)
    np.testing.assert_array_equal(again.accuracy, known.accuracy)
    assert again.about == known.about and again.experts == known.experts
    text = file.read_text()
    first = f"{known.accuracy[0, 0]}"
    short, missing = text.replace('["t0", ', "["), text.replace(first, "null", 1)
    assert missing != text
    for damage in ("", "[]", '{"experts": []}', short, missing, text.replace(first, "NaN", 1)):
        file.write_text(damage)
        with pytest.raises(MzlibError, match="expected"):
            History.load(file)


def test_target_blind_rankings_of_the_papers_figure_2():
    """Against a slow definition."""
    for shots in ("20", "full"):
        table = paper("fig2_finetune_error").query("shots == @shots")
        found = target_blind(shots)
        assert len(found) == 8 and "cub200" not in found.index
        steps = {"imagenet": 2, "pretrained": 1, "scratch": 0}
        accuracy = {
            target: rows.assign(
                kind=rows["architecture"] + rows["group"],
                step=rows["group"].map(steps),
                rank=(-rows["test_error"]).rank(),
            )
            for target, rows in table[table["target"].isin(found.index)].groupby("target")
        }
        for target, rows in accuracy.items():
            others = pd.concat([other for name, other in accuracy.items() if name != target])
            of_kind = others.groupby("kind")["rank"].mean()
            by_prior = stats.spearmanr(rows["kind"].map(of_kind), rows["rank"]).statistic
            by_step = stats.spearmanr(rows["step"], rows["rank"]).statistic
            assert found.at[target, "prior"] == pytest.approx(by_prior)
            assert found.at[target, "three_steps"] == pytest.approx(by_step)


def toy_tables(rng, seeds=(0,)):
    """Fine-tunes, scores and zoo of six experts on six targets."""
    zoo = pd.DataFrame(
        [
            {"expert": e, "architecture": "a", "pretraining": "scratch", "source": "s"}
            for e in "abcdef"
        ]
    )
    tunes = [
        {"suite": "mini", "task": f"t{t}", "shots": "20", "seed": s, "expert": e, "lr": 0.1}
        for t in range(6)
        for s in seeds
        for e in "abcdef"
    ]
    finetune = pd.DataFrame(tunes)
    finetune["accuracy"] = finetune["val_accuracy"] = rng.random(len(finetune))
    scores = finetune.drop(columns=["accuracy", "val_accuracy"])
    scores = scores.assign(
        images_per_class="25", selector="ridge_loo_mse", score=rng.random(len(finetune))
    )
    return finetune, scores, zoo


def test_the_left_out_target_changes_nothing():
    """Nested leave-one-target-out: whatever the target's own accuracies are, its scores stay."""
    rng = np.random.default_rng(4)
    suite = load_suite("mini")
    finetune, scores, zoo = toy_tables(rng)
    changed = finetune.copy()
    own = changed["task"] == "t3"
    changed.loc[own, "accuracy"] = rng.random(own.sum())
    before, after = (
        learned.baseline_scores(table, scores, zoo, suite).query("task == 't3'")["score"]
        for table in (finetune, changed)
    )
    assert len(before) == 18  # history, prior and neighbour_history of six experts
    np.testing.assert_array_equal(before, after)


def test_a_sample_of_the_target_is_scored_alone():
    """As by every other selector: the mean of two samples' scores has seen twice the images, and a
    row for a seed that nobody else was scored with keeps the others from that seed's fine-tunes.
    """
    rng = np.random.default_rng(9)
    suite = load_suite("mini")
    finetune, scores, zoo = toy_tables(rng, seeds=(0, 1))
    scores = scores[(scores["seed"] == 0) | (scores["task"] == "t3")]
    rows = learned.baseline_scores(finetune, scores, zoo, suite)
    seeds = rows.groupby("task")["seed"].unique().map(set).to_dict()
    assert seeds.pop("t3") == {0, 1} and set(map(tuple, seeds.values())) == {(0,)}
    known = learned.collect(finetune, scores, zoo, suite.generic, "20")
    known = learned.chosen(known.without(["t3"]))
    for seed in (0, 1):
        where = f"task == 't3' and seed == {seed}"
        own = scores.query(where).set_index("expert")["score"]
        value = rows.query(where + " and selector == 'neighbour_history'").set_index("expert")
        expected = neighbour_history(known, np.arange(6), own.to_numpy())
        np.testing.assert_allclose(value["score"], expected, rtol=1e-12)


def test_constants_are_those_of_the_best_leave_one_out_order():
    rng = np.random.default_rng(8)
    known = past(rng.random((7, 9)), rng.random((7, 9)))
    means = []
    for pair in learned.GRID:
        candidate = replace(known, **pair)
        values = [
            neighbour_history(candidate.without([target]), np.arange(9), known.scores[i])
            for i, target in enumerate(known.targets)
        ]
        pairs = zip(values, known.accuracy)
        means.append(np.mean([stats.spearmanr(*pair).statistic for pair in pairs]))
    best = learned.chosen(known)
    assert {"sharpness": best.sharpness, "own": best.own} == learned.GRID[np.argmax(means)]


def test_constants_are_chosen_on_the_past_targets():
    """Where the score is noise, the history alone should speak, and the other way round."""
    rng = np.random.default_rng(5)
    quality = np.linspace(0, 1, 8)
    accuracy = quality + 0.01 * rng.random((12, 8))
    noise = past(accuracy, rng.random((12, 8)))
    assert learned.chosen(noise).own == 0.25
    drawn = rng.random((12, 8))
    telling = past(drawn, drawn + 0.01 * rng.random((12, 8)))
    assert learned.chosen(telling).own == 1.0
    few = past(accuracy[:2])
    assert learned.chosen(few) is few


def test_ways_to_leave_out(monkeypatch):
    """Of `benchmarks/history.py`."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    study = importlib.import_module("history")
    rng = np.random.default_rng(6)
    known = replace(
        past(rng.random((6, 6)), rng.random((6, 6))),
        targets=("tiny_pets", "tiny_food", "pacs_cartoon", "wbc", "busi", "rsscn7"),
    )
    assert study.kin("wbc") == {"wbc", "bccd_cells", "pbc_cells", "rbc12", "hep2_cells"}
    assert {"rsscn7"} < study.kin("ucmerced") and study.kin("clothing") == {"clothing"}
    assert {"tiny_food", "monkeys10"} <= study.kin("tiny_pets")  # of one origin, of one kind
    named = {target for names in study.FAMILIES for target in names.split()}
    assert named <= set(load_suite("thumb64").targets)
    sources = {expert: "sT"[i % 2] for i, expert in enumerate(known.experts)}
    rng = np.random.default_rng(0)
    ways = list(study.settings(known, "wbc", sources, known, rng))
    assert [name for name, _ in ways].count("3 past targets") == study.DRAWS
    for name, rest in ways:
        assert "wbc" not in rest.targets, name
        if name[0].isdigit():
            assert len(rest.targets) == int(name.split()[0])
        if name == "a new source":
            assert len({sources[expert] for expert in rest.experts}) == 1


def test_rows_against_the_best_published_selector(monkeypatch):
    """Of `benchmarks/history.py`: what the target's own accuracies are moves no score of its own,
    and the rival is the selector that is best on the other targets.
    """
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    study = importlib.import_module("history")
    rng = np.random.default_rng(7)
    suite = load_suite("mini")
    finetune, scores, zoo = toy_tables(rng)
    known = learned.collect(finetune, scores, zoo, suite.generic, "20")
    samples = learned.samples(scores, "20")
    sources = dict.fromkeys("abc", "s") | dict.fromkeys("def", "r")
    target = known.targets.index("t3")
    accuracy = known.accuracy.copy()
    accuracy[target] = rng.random(6)
    changed = replace(known, accuracy=accuracy)
    before, after = (
        study.scores_of(past, samples, sources, past).query("task == 't3'")["score"]
        for past in (known, changed)
    )
    np.testing.assert_array_equal(before, after)

    own = study.scores_of(known, samples, sources, None)
    own = own.assign(suite="mini", shots="20", images_per_class="25")
    other = scores.assign(selector="lfc", score=rng.random(len(scores)))
    rivals = pd.concat([scores, other])
    metrics = evaluate(
        pd.concat([own, rivals]),
        finetune,
        generic="a",
        correlations=["spearman"],
        groups=dict.fromkeys("abcdef", "g"),
    )
    table = study.by_target(metrics[metrics["selector"] != "noise_ceiling"])
    assert table.groupby("setting")["task"].nunique().eq(6).all()
    rho = metrics.query("metric == 'spearman' and protocol == 'paper'")
    rho = rho[rho["selector"].isin(["lfc", "ridge_loo_mse"])]
    wide = rho.pivot(index="task", columns="selector", values="value")
    best = wide.drop(index="t3").mean().idxmax()
    published = table.query("setting == 'published' and task == 't3'")["spearman"].item()
    assert published == pytest.approx(wide.at["t3", best])
    hindsight = table.query("setting == @study.HINDSIGHT").set_index("task")["spearman"]
    np.testing.assert_allclose(hindsight, wide[wide.mean().idxmax()].loc[hindsight.index])


def test_the_committed_table_of_the_history():
    """Every setting on every target, at three numbers of images."""
    root = Path(__file__).parents[1]
    table = pd.read_csv(root / "results/benchmarks/history.csv", dtype={"shots": str})
    assert set(table["shots"]) == {"5", "20", "full"}
    assert not table.duplicated(["shots", "setting", "task"]).any()
    ours = table[~table["setting"].str.startswith("published")]
    assert ours.groupby(["shots", "setting"]).size().nunique() == 1
    wide = ours.pivot_table("spearman", "shots", "setting")
    assert (wide["other targets"] > wide["1 past targets"]).all()
