"""Evaluation against brute force over every tie-breaking order, scipy and published correlations."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mzlib.benchmark.evaluate import (
    _resamples,
    best_of_top,
    correlation,
    evaluate,
    noise_ceiling,
    regret_against_cost,
    summarize,
    trials_to_best,
    truth,
)
from mzlib.errors import Missing, MzlibError

DATA = Path(__file__).parent / "data"
NAN = np.nan


def orders(score):
    """Every order of the experts that a sort by decreasing score may return; missing scores go last."""
    filled = np.where(np.isnan(score), -np.inf, score)
    for order in itertools.permutations(range(len(score))):
        if all(filled[a] >= filled[b] for a, b in itertools.pairwise(order)):
            yield list(order)


def tables(score, accuracy, selector="lfc", task="digits", seed=0, **more):
    """One setting as the two tidy tables that `evaluate` reads; expert `e0` is the generic one."""
    experts = [f"e{i}" for i in range(len(score))]
    keys = dict(suite="toy", task=task, shots=more.get("shots", 20), seed=seed, expert=experts)
    return (
        pd.DataFrame({**keys, "images_per_class": 25, "selector": selector, "score": score}),
        pd.DataFrame({**keys, "lr": 0.01, "accuracy": accuracy, "val_accuracy": accuracy}),
    )


def value(table, metric, **where):
    for column, wanted in {
        "protocol": "paper",
        "selector": "lfc",
        "metric": metric,
        **where,
    }.items():
        table = table[table[column] == wanted]
    assert len(table) == 1
    return table["value"].item()


SCORES = [
    [3, 1, 2, 5, 4],
    [1, 1, 1, 1, 1],
    [2, 2, 1, 1, 1],
    [2, 1, 1, 1, 0],
    [1, NAN, 2, NAN, 2],
    [0, 0, 1, 1, NAN],
]
ACCURACIES = [
    [0.9, 0.5, 0.7, 0.6, 0.8],
    [0.9, 0.9, 0.1, 0.2, 0.9],
    [0.5] * 5,
    [0.1, 0.2, 0.9, 0.3, 0.9],
]


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("accuracy", ACCURACIES)
def test_ties_are_the_mean_over_every_order(score, accuracy):
    score, accuracy = np.array(score, float), np.array(accuracy)
    seconds = np.array([5.0, 1.0, 2.0, 8.0, 3.0])
    every = list(orders(score))
    best = np.mean([np.maximum.accumulate(accuracy[o]) for o in every], axis=0)
    np.testing.assert_allclose(best_of_top(score, accuracy), best, rtol=1e-12)
    trials = np.mean([1 + np.argmax(accuracy[o] == accuracy.max()) for o in every])
    assert trials_to_best(score, accuracy) == pytest.approx(trials, rel=1e-12)
    cost = regret_against_cost(score, accuracy, seconds, scoring_seconds=10.0)
    np.testing.assert_allclose(
        cost["seconds"], 10 + np.mean([np.cumsum(seconds[o]) for o in every], axis=0)
    )
    np.testing.assert_allclose(cost["regret"], accuracy.max() - best, atol=1e-12)


def test_hand_worked_trials_and_gain():
    accuracy = np.array([0.6, 0.9, 0.7, 0.8])
    assert trials_to_best(np.array([1.0, 4.0, 3.0, 2.0]), accuracy) == 1
    assert trials_to_best(np.zeros(4), accuracy) == 2.5  # (4 + 1) / 2
    assert (
        trials_to_best(np.array([1.0, 0.0, 0.0, 0.0]), accuracy) == 3
    )  # 1 above, then second of three
    # Two drawn of four: the pairs reach .9 three times, .8 twice, .7 once.
    assert best_of_top(np.zeros(4), accuracy)[1] == pytest.approx((3 * 0.9 + 2 * 0.8 + 0.7) / 6)


@pytest.mark.parametrize(
    "name, slow",
    [
        ("spearman", lambda s, a: np.corrcoef(stats.rankdata(s), stats.rankdata(a))[0, 1]),
        ("pearson", lambda s, a: np.corrcoef(s, a)[0, 1]),
        (
            "kendall",
            lambda s, a: (lambda ds, da: np.sum(ds * da) / np.sqrt(np.sum(ds**2) * np.sum(da**2)))(
                np.sign(np.subtract.outer(s, s)), np.sign(np.subtract.outer(a, a))
            ),
        ),
        ("weighted_tau", lambda s, a: (slow_tau(s, a, s) + slow_tau(s, a, a)) / 2),
        ("weighted_tau_accuracy", lambda s, a: slow_tau(s, a, a)),
    ],
)
def test_correlations_against_their_definitions(name, slow):
    rng = np.random.default_rng(0)
    for _ in range(20):
        score, accuracy = rng.permutation(9).astype(float), rng.random(9)
        score[3] = NAN
        if name in ("spearman", "pearson", "kendall"):
            score[0] = score[1]
        kept = np.isfinite(score)
        assert correlation(name, score, accuracy) == pytest.approx(
            slow(score[kept], accuracy[kept]), abs=1e-12
        )
        assert correlation(name, accuracy[kept], accuracy[kept]) == pytest.approx(1)


def slow_tau(score, accuracy, by):
    """Sum over pairs of (1/r_i + 1/r_j) · agreement, r = 1 at the top of `by`, over the sum of the weights."""
    rank = stats.rankdata(-by)
    pairs = [
        ((1 / rank[i] + 1 / rank[j]), np.sign((score[i] - score[j]) * (accuracy[i] - accuracy[j])))
        for i, j in itertools.combinations(range(len(by)), 2)
    ]
    return sum(w * s for w, s in pairs) / sum(w for w, _ in pairs)


def test_published_correlations_follow_from_the_published_rows():
    rows = pd.read_csv(DATA / "tllib_ranking.csv")
    published = pd.read_csv(DATA / "tllib_ranking_correlations.csv")
    published = published[
        published["task"].isin(["caltech101", "cifar10", "cifar100", "stanford_cars", "sun397"])
    ]
    assert len(published) == 40
    for row in published.itertuples():
        part = rows[rows["task"] == row.task]
        score, accuracy = part[row.selector].to_numpy(), part["accuracy"].to_numpy()
        possible = [correlation(row.statistic, score, accuracy)]
        if (
            row.statistic == "weighted_tau"
        ):  # rounding made ties of scores that were apart when the value was published
            possible += [
                correlation(row.statistic, score + sign * 1e-9 * np.arange(len(score)), accuracy)
                for sign in (-1, 1)
                if len(set(score)) < len(score)
            ]
        assert min(abs(ours - row.published) for ours in possible) < 0.0051, row


@pytest.mark.parametrize(
    "score, accuracy, reason",
    [
        ([1, 1, 1], [0.1, 0.2, 0.3], "score is the same"),
        ([1, 2, 3], [0.5, 0.5, 0.5], "accuracy is the same"),
        ([1, 2, NAN], [0.1, 0.2, 0.3], "at least 3 experts"),
        ([1, 2, np.inf], [0.1, 0.2, 0.3], "at least 3 experts"),
    ],
)
def test_undefined_correlations_say_why(score, accuracy, reason):
    with pytest.raises(Missing, match=reason):
        correlation("spearman", np.array(score, float), np.array(accuracy))


def test_truth_protocols():
    finetune = pd.DataFrame(
        {
            "suite": "toy",
            "task": "digits",
            "shots": "full",
            "seed": 0,
            "lr": [0.1, 0.01, 0.001] * 2,
            "expert": ["a"] * 3 + ["b"] * 3,
            "accuracy": [0.9, 0.8, 0.7, 0.6, 0.4, 0.5],
            "val_accuracy": [0.5, 0.7, 0.6, 0.3, 0.8, 0.8],
        }
    )
    assert truth(finetune).set_index("expert")["accuracy"].to_dict() == {"a": 0.9, "b": 0.6}
    clean = truth(finetune, "clean").set_index("expert")["accuracy"].to_dict()
    assert clean == {"a": 0.8, "b": pytest.approx(0.45)}  # two rates tie on validation: their mean
    finetune.loc[finetune["expert"] == "b", "val_accuracy"] = NAN
    assert np.isnan(truth(finetune, "clean").set_index("expert").loc["b", "accuracy"])
    with pytest.raises(ValueError, match="expected a protocol"):
        truth(finetune, "test")


def test_evaluate_by_hand():
    score, accuracy = [0.1, 0.9, 0.5, NAN], [0.60, 0.90, 0.70, 0.95]
    table = evaluate(*tables(score, accuracy), generic="e0")
    assert value(table, "spearman") == pytest.approx(1)
    assert value(table, "coverage") == 0.75
    assert value(table, "trials_to_best") == 4  # the best expert has no score: it is tried last
    assert value(table, "top1_gain") == pytest.approx(0.30)
    assert value(table, "regret_at_3") == pytest.approx(0.05)
    assert value(table, "best_gain") == pytest.approx(0.35)
    assert value(table, "worst_gain") == pytest.approx(0.0)
    assert set(table["protocol"]) == {"paper", "clean"} and set(table["shots"]) == {"20"}
    assert set(table.loc[table["selector"] == "lfc", "experts"]) == {4}


def test_random_selector_is_the_mean_over_all_orders():
    accuracy = np.array([0.6, 0.9, 0.7, 0.8])
    table = evaluate(*tables([0.0] * 4, accuracy, "random"), generic="e0")
    top = [accuracy[list(o)[:3]].max() - 0.6 for o in itertools.permutations(range(4))]
    assert value(table, "top3_gain", selector="random") == pytest.approx(np.mean(top))
    spearman = [
        stats.spearmanr(accuracy[list(o)], accuracy).statistic
        for o in itertools.permutations(range(4))
    ]
    assert value(table, "spearman", selector="random") == 0 == pytest.approx(np.mean(spearman))
    constant = evaluate(*tables([0.0] * 4, accuracy, "lfc"), generic="e0")
    assert np.isnan(value(constant, "spearman")) and "same for every" in "".join(constant["reason"])


def test_missing_everything_has_reasons():
    table = evaluate(*tables([NAN] * 3, [0.1, 0.2, 0.3]), generic="e0")
    ours = table[(table["selector"] == "lfc") & (table["protocol"] == "paper")].set_index("metric")
    assert ours.loc["coverage", "value"] == 0 and ours.loc["best_gain", "value"] == pytest.approx(
        0.2
    )
    assert (
        ours.loc[["spearman", "trials_to_best", "top3_gain", "regret_at_1"], "value"].isna().all()
    )
    assert (ours["reason"] != "").equals(ours["value"].isna())


def test_expert_without_accuracy_is_no_candidate_and_generic_may_lack_a_task():
    table = evaluate(*tables([4, 3, 2, 1], [NAN, 0.5, 0.6, 0.7]), generic="e0", protocols=["paper"])
    assert value(table, "spearman") == pytest.approx(-1) and value(table, "trials_to_best") == 3
    assert np.isnan(value(table, "top1_gain")) and value(table, "regret_at_1") == pytest.approx(0.2)


def test_seeds_meet_their_own_fine_tune_or_all_others():
    def pairs(score_seeds, finetune_seeds):
        drawn = [tables([1, 2, 3], [0.1, 0.2, 0.3], seed=s) for s in range(4)]
        table = evaluate(
            pd.concat([drawn[s][0] for s in score_seeds]),
            pd.concat([drawn[s][1] for s in finetune_seeds]),
            generic="e0",
            protocols=["paper"],
        )
        return set(
            zip(
                *table.loc[table["selector"] == "lfc", ["seed", "finetune_seed"]]
                .to_numpy()
                .T.astype(int)
            )
        )

    assert pairs([0, 1], [0, 1]) == {(0, 0), (1, 1)}
    assert pairs([0], [0, 1, 2]) == {(0, 0), (0, 1), (0, 2)}
    assert pairs([0, 1, 2], [0]) == {(0, 0), (1, 0), (2, 0)}
    assert pairs([0, 1], [2, 3]) == {(0, 2), (0, 3), (1, 2), (1, 3)}


def test_errors_name_what_to_do():
    score, finetune = tables([1, 2, 3], [0.1, 0.2, 0.3])
    with pytest.raises(MzlibError, match=r"choose one of \['e0', 'e1', 'e2'\]"):
        evaluate(score, finetune, generic="imagenet")
    with pytest.raises(MzlibError, match="got several"):
        evaluate(pd.concat([score, score]), finetune, generic="e0")


def test_noise_ceiling_against_simulation():
    rng = np.random.default_rng(0)
    expected, spread = np.linspace(0, 1, 12), 0.25
    once = [expected + spread * rng.normal(size=12) for _ in range(500)]
    perfect = np.mean([stats.spearmanr(expected, accuracy).statistic for accuracy in once])
    bounds = np.array(
        [noise_ceiling(expected + spread * rng.normal(size=(3, 12))) for _ in range(200)]
    )
    low, high = bounds.mean(axis=0)
    assert low < perfect < high and high - low < 0.2
    same = np.tile(expected, (2, 1))
    assert noise_ceiling(same) == (pytest.approx(1), pytest.approx(1))
    with pytest.raises(Missing, match="2 seeds"):
        noise_ceiling(same[:1])


def test_noise_ceiling_rows():
    drawn = [tables([1, 2, 3], a, seed=s) for s, a in enumerate(([0.1, 0.2, 0.3], [0.1, 0.3, 0.2]))]
    score, finetune = (pd.concat(part) for part in zip(*drawn))
    table = evaluate(score, finetune, generic="e0", protocols=["paper"])
    assert value(table, "spearman", selector="noise_ceiling") == pytest.approx(0.5)
    one = evaluate(*drawn[0], generic="e0", protocols=["paper"])
    assert np.isnan(value(one, "spearman", selector="noise_ceiling")) and "2 seeds" in "".join(
        one["reason"]
    )


def test_bootstrap_weights_are_two_level():
    counts = (2, 1, 3)
    weights = _resamples(counts, 4000, np.random.default_rng(0))
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    np.testing.assert_allclose(
        weights.mean(axis=0), np.repeat([1 / 6, 1 / 3, 1 / 9], counts), atol=0.01
    )
    by_task = np.add.reduceat(weights, [0, 2, 3], axis=1) * 3  # how often each task was drawn
    np.testing.assert_allclose(by_task, by_task.round(), atol=1e-9)
    np.testing.assert_allclose(by_task.var(axis=0), 2 / 3, atol=0.05)  # Binomial(3, 1/3)


def test_summary_mean_and_interval():
    rng = np.random.default_rng(0)
    effect, parts = rng.normal(size=40), []
    for t, shift in enumerate(effect):
        parts += [
            dict(
                suite="toy",
                task=f"t{t}",
                shots="20",
                images_per_class="25",
                protocol="paper",
                selector="lfc",
                metric="spearman",
                seed=s,
                finetune_seed=s,
                value=shift + 0.5 * rng.normal(),
            )
            for s in range(3)
        ]
    metrics = pd.DataFrame(parts)
    row = summarize(metrics, np.random.default_rng(1)).iloc[0]
    means = metrics.groupby("task")["value"].mean()
    assert row["mean"] == pytest.approx(means.mean()) and row["tasks"] == 40 and row["missing"] == 0
    width = (
        2 * 1.96 * np.sqrt(means.var() / 40 + 0.25 / 3 / 40)
    )  # tasks, and seeds once more within the tasks
    assert row["high"] - row["low"] == pytest.approx(width, rel=0.15)
    assert summarize(metrics, np.random.default_rng(1)).equals(
        summarize(metrics, np.random.default_rng(1))
    )
    alone = summarize(metrics.head(1), np.random.default_rng(0)).iloc[0]
    assert np.isnan(alone["low"]) and alone["mean"] == metrics["value"][0]
    metrics.loc[0, "value"] = NAN  # one seed of one task: the task keeps its weight
    assert summarize(metrics, np.random.default_rng(0))["mean"].item() == pytest.approx(
        metrics.groupby("task")["value"].mean().mean()
    )
    empty = summarize(metrics.assign(value=NAN), np.random.default_rng(0)).iloc[0]
    assert np.isnan(empty["mean"]) and empty["missing"] == 1 and empty["tasks"] == 0
