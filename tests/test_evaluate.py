"""Evaluation against brute force over every tie-breaking order, scipy and published correlations."""

import itertools
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mzlib.benchmark.evaluate import evaluate, truth
from mzlib.benchmark.metrics import (
    correlation,
    kept_of_top,
    noise_ceiling,
    trials_to_best,
    within_groups,
)
from mzlib.benchmark.statistics import (
    chosen_elsewhere,
    holm,
    interval,
    intervals,
    on_common_tasks,
    p_value,
    smallest_effect,
    summarize,
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
    every = list(orders(score))
    best = np.mean([np.maximum.accumulate(accuracy[o]) for o in every], axis=0)
    np.testing.assert_allclose(kept_of_top(score, accuracy, accuracy), best, rtol=1e-12)
    trials = np.mean([1 + np.argmax(accuracy[o] == accuracy.max()) for o in every])
    assert trials_to_best(score, accuracy) == pytest.approx(trials, rel=1e-12)


def test_hand_worked_trials_and_gain():
    accuracy = np.array([0.6, 0.9, 0.7, 0.8])
    assert trials_to_best(np.array([1.0, 4.0, 3.0, 2.0]), accuracy) == 1
    assert trials_to_best(np.zeros(4), accuracy) == 2.5  # (4 + 1) / 2
    assert (
        trials_to_best(np.array([1.0, 0.0, 0.0, 0.0]), accuracy) == 3
    )  # 1 above, then second of three
    # Two drawn of four: the pairs reach .9 three times, .8 twice, .7 once.
    assert kept_of_top(np.zeros(4), accuracy, accuracy)[1] == pytest.approx(
        (3 * 0.9 + 2 * 0.8 + 0.7) / 6
    )


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
    picked = truth(finetune, "validation").set_index("expert")["accuracy"].to_dict()
    assert picked == {"a": 0.8, "b": pytest.approx(0.45)}  # two rates tie on validation: their mean
    finetune.loc[finetune["expert"] == "b", "val_accuracy"] = NAN
    assert np.isnan(truth(finetune, "validation").set_index("expert").loc["b", "accuracy"])
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
    assert set(table["protocol"]) == {"paper", "validation", "other seed"} and set(
        table["shots"]
    ) == {"20"}
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
    assert ours.loc["spearman_or_worst", "value"] == 0  # no score at all: no better than chance
    assert (ours["reason"] != "").equals(ours["value"].isna())


def test_expert_without_accuracy_is_no_candidate_and_generic_may_lack_a_task():
    table = evaluate(*tables([4, 3, 2, 1], [NAN, 0.5, 0.6, 0.7]), generic="e0", protocols=["paper"])
    assert value(table, "spearman") == pytest.approx(-1) and value(table, "trials_to_best") == 3
    assert np.isnan(value(table, "top1_gain")) and value(table, "regret_at_1") == pytest.approx(0.2)


def test_seeds_meet_their_own_fine_tune_or_all_others():
    def pairs(score_seeds, finetune_seeds, shots="20"):
        drawn = [
            [part.assign(shots=shots) for part in tables([1, 2, 3], [0.1, 0.2, 0.3], seed=s)]
            for s in range(4)
        ]
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
    # no sample to share: selectors of one seed and of two are judged by the same fine-tunes
    assert pairs([0, 1], [0, 1], "full") == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert pairs([0], [0, 1], "full") == {(0, 0), (0, 1)}


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


def test_noise_ceiling_within_groups():
    """Seeds that agree on the groups alone leave nothing to be ordered inside them."""
    seeds = [[0.1, 0.2, 0.3, 0.7, 0.8, 0.9], [0.35, 0.2, 0.1, 0.95, 0.8, 0.7]]
    drawn = [tables(range(6), accuracy, seed=seed) for seed, accuracy in enumerate(seeds)]
    score, finetune = (pd.concat(part) for part in zip(*drawn))
    groups = {f"e{i}": "low" if i < 3 else "high" for i in range(6)}
    table = evaluate(score, finetune, generic="e0", protocols=["paper"], groups=groups)
    assert value(table, "spearman", selector="noise_ceiling") > 0.4
    assert value(table, "within", selector="noise_ceiling") == pytest.approx(-1)
    measure = partial(within_groups, np.array(list(groups.values())))
    low, high = noise_ceiling(np.array([seeds[0], seeds[0]]), measure)
    assert (low, high) == (pytest.approx(1), pytest.approx(1))


def test_noise_ceiling_rows():
    drawn = [tables([1, 2, 3], a, seed=s) for s, a in enumerate(([0.1, 0.2, 0.3], [0.1, 0.3, 0.2]))]
    score, finetune = (pd.concat(part) for part in zip(*drawn))
    table = evaluate(score, finetune, generic="e0", protocols=["paper"])
    assert value(table, "spearman", selector="noise_ceiling") == pytest.approx(0.5)
    assert "within" not in set(table["metric"])
    one = evaluate(*drawn[0], generic="e0", protocols=["paper"])
    assert np.isnan(value(one, "spearman", selector="noise_ceiling")) and "2 seeds" in "".join(
        one["reason"]
    )


KEPT = [[3, 1, 2, 5, 4], [1, 1, 1, 1, 1], [2, 2, 1, 1, 1], [1, NAN, 2, NAN, 2]]


@pytest.mark.parametrize("score", KEPT)
@pytest.mark.parametrize("criterion", [[5, 4, 3, 2, 1], [1, 2, 1, 2, 1], [1, 1, 1, 1, 1]])
def test_the_expert_that_is_kept_is_the_mean_over_every_order(score, criterion):
    """The better scored of equal criteria is kept, of equal scores any."""
    score, criterion = np.array(score, float), np.array(criterion, float)
    value = np.array([0.3, 0.9, 0.4, 0.1, 0.6])
    expected = []
    for k in range(1, 6):
        outcomes = []
        for order in orders(score):
            top = order[:k]
            best = max(criterion[e] for e in top)
            winners = [e for e in top if criterion[e] == best]
            outcomes.append(value[winners[0]])
        expected.append(np.mean(outcomes))
    np.testing.assert_allclose(kept_of_top(score, criterion, value), expected, rtol=1e-12)


def test_three_protocols_by_hand():
    """Two seeds; e1 wins on test, e2 on validation, e0 is the generic expert."""
    test = {0: [0.50, 0.80, 0.60], 1: [0.50, 0.55, 0.70]}
    validation = {0: [0.40, 0.50, 0.70], 1: [0.40, 0.60, 0.60]}
    drawn = [tables([1, 3, 2], test[seed], seed=seed) for seed in (0, 1)]
    for seed, (_, finetune) in enumerate(drawn):
        finetune["val_accuracy"] = validation[seed]
    score, finetune = (pd.concat(part) for part in zip(*drawn))
    table = evaluate(score, finetune, generic="e0")

    def gain(protocol, seed):
        rows = table[table["finetune_seed"] == seed]
        return value(rows, "top3_gain", protocol=protocol)

    assert gain("paper", 0) == pytest.approx(0.30) and gain("paper", 1) == pytest.approx(0.20)
    assert gain("validation", 0) == pytest.approx(0.10)
    assert gain("validation", 1) == pytest.approx(0.05)  # a tie: the better scored e1 is kept
    assert gain("other seed", 0) == pytest.approx(0.10)  # e2 by seed 1
    assert gain("other seed", 1) == pytest.approx(0.05)  # e1 by seed 0
    rows = table[table["finetune_seed"] == 0]
    both = value(rows, "generic_and_2_gain", protocol="validation")
    assert both == pytest.approx(0.10)  # e0, e1 and e2 were tried, e2 is kept
    alone = evaluate(*drawn[0], generic="e0", protocols=["other seed"])
    assert np.isnan(value(alone, "top3_gain", protocol="other seed"))
    assert "keep an expert" in "".join(alone["reason"])


def test_the_generic_expert_and_two_picks_by_hand():
    """Of five experts the generic e0, whatever its score, and the first two of the others."""
    table = evaluate(*tables([NAN, 1, 2, 3, 4], [0.5, 0.9, 0.8, 0.6, 0.4]), generic="e0")
    assert value(table, "generic_and_2_gain") == pytest.approx(0.1)  # e0, e4 and e3
    table = evaluate(*tables([9, 1, 2, 3, 4], [0.5, 0.9, 0.8, 0.3, 0.4]), generic="e0")
    assert value(table, "generic_and_2_gain") == pytest.approx(0)


def test_places_do_not_depend_on_the_size_of_scores():
    """Beyond 2**53 nothing is between a score and the score plus or minus 1."""
    accuracy = [0.5, 0.9, 0.8, 0.6, 0.4]
    large = evaluate(*tables([NAN, 1e17, 2e17, 3e17, 4e17], accuracy), generic="e0")
    small = evaluate(*tables([NAN, 1, 2, 3, 4], accuracy), generic="e0")
    for metric in ("generic_and_2_gain", "spearman_or_worst"):
        assert value(large, metric) == value(small, metric)


def test_means_of_equal_accuracies_tie():
    """mean(.7, .7, .7) is not .7 in floating point; two rates that tie must not decide a rank."""
    _, finetune = tables([1, 2, 3], [0.7, 0.7, 0.6])
    thrice = pd.concat([finetune.assign(lr=lr) for lr in (0.1, 0.02, 0.01)])
    thrice = thrice[(thrice["expert"] == "e0") | (thrice["lr"] == 0.1)]
    thrice["val_accuracy"] = 0.5
    accuracy = truth(thrice, "validation").set_index("expert")["accuracy"]
    assert accuracy["e0"] == accuracy["e1"]
    assert trials_to_best(np.array([3.0, 2.0, 1.0]), accuracy.to_numpy()) == 1


def test_a_missing_score_is_the_worst_rank_in_a_column_of_its_own():
    table = evaluate(*tables([NAN, 2, 3, 4], [0.9, 0.5, 0.6, 0.7]), generic="e0")
    assert value(table, "spearman") == pytest.approx(1)
    worst = stats.spearmanr([1, 2, 3, 4], [0.9, 0.5, 0.6, 0.7]).statistic
    assert value(table, "spearman_or_worst") == pytest.approx(worst)


def test_within_groups_sees_no_difference_between_groups():
    groups = np.array(["a"] * 4 + ["b"] * 4)
    accuracy = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9])
    of_the_group = np.array([1, 1, 1, 1, 2, 2, 2, 2]) + 0.001 * np.array([4, 3, 2, 1] * 2)
    assert correlation("spearman", of_the_group, accuracy) > 0.4
    assert within_groups(groups, of_the_group, accuracy) == pytest.approx(-1)
    assert within_groups(groups, accuracy, accuracy) == pytest.approx(1)
    with pytest.raises(Missing, match="a group of 3"):
        within_groups(np.arange(8), accuracy, accuracy)


def test_common_tasks_are_those_of_the_selectors_that_have_nearly_all():
    setting = dict(suite="toy", shots="20", images_per_class="25", protocol="paper")
    lacks = {"all": [], "one": [3], "many": [5, 6, 7], "undefined": range(20)}
    rows = [
        {**setting, "selector": selector, "metric": "spearman", "task": str(task), "value": 0.1}
        for selector, tasks in lacks.items()
        for task in range(20)
        if not (selector == "many" and task in tasks)  # not tried there
    ]
    metrics = pd.DataFrame(rows)
    for selector in ("one", "undefined"):  # tried, no value
        without = metrics["task"].isin([str(task) for task in lacks[selector]])
        metrics.loc[without & metrics["selector"].eq(selector), "value"] = NAN
    kept = on_common_tasks(metrics)
    assert set(kept["task"]) == {str(task) for task in range(20)} - {"3"}
    assert kept.groupby("selector").size().to_dict() == {
        "all": 19,
        "one": 19,
        "many": 16,
        "undefined": 19,
    }


def test_all_metrics_and_the_noise_ceiling_are_over_the_common_tasks():
    """The gain of an oracle on 54 targets stood beside gains on 51; the ceiling, whose rows have no
    images_per_class, was dropped.
    """
    setting = dict(suite="toy", shots="20", protocol="paper")
    rows = [
        {**setting, "images_per_class": images, "selector": s, "metric": m, "task": t, "value": 0.1}
        for images, s, metrics in (
            ("25", "lfc", ["best_gain", "top3_gain"]),
            ("25", "ncti", ["best_gain", "top3_gain"]),
            ("", "noise_ceiling", ["spearman", "spearman_upper"]),
        )
        for m in metrics
        for t in "abcdefghijkl"
    ]
    metrics = pd.DataFrame(rows)
    lost = (metrics["selector"] == "ncti") & (metrics["metric"] == "top3_gain")
    metrics.loc[lost & (metrics["task"] == "c"), "value"] = NAN
    nothing = metrics[lost].assign(metric="within", value=NAN)  # limits nobody
    for table in (metrics, pd.concat([metrics, nothing])):
        kept = on_common_tasks(table).groupby(["selector", "metric"])["task"].nunique()
        assert kept.eq(11).all() and ("noise_ceiling", "spearman_upper") in kept.index
    few = metrics[metrics["task"].isin(list("ab")) | (metrics["metric"] != "top3_gain")]
    assert set(on_common_tasks(few)["task"]) == {"a", "b"}  # not yet computed on most


@pytest.mark.parametrize("n", [8, 21, 42])
@pytest.mark.parametrize("kind", ["normal", "skewed"])
def test_intervals_cover_what_they_say(n, kind):
    """2,000 samples, 40 of them to a set of resamples: the standard error of a coverage is .005."""
    rng = np.random.default_rng(1)
    draw = {"normal": rng.standard_normal, "skewed": lambda size: rng.beta(5, 2, size) - 5 / 7}
    covered = []
    for samples in draw[kind]((50, 40, n)):
        low, high = intervals(samples, rng=rng)
        covered.append((low <= 0) & (high >= 0))
    assert abs(np.mean(covered) - 0.95) < 0.02


def test_intervals_of_few_and_of_equal_values():
    assert np.isnan(interval(np.array([1.0]))).all()
    low, high = interval(np.array([1.0, 2.0, 4.0]))
    expected = stats.t.interval(0.95, 2, np.mean([1, 2, 4]), stats.sem([1, 2, 4]))
    assert (low, high) == pytest.approx(expected)
    eight = np.random.default_rng(0).exponential(size=8)  # the paper's targets, our sources
    assert interval(eight) == pytest.approx(
        stats.t.interval(0.95, 7, eight.mean(), stats.sem(eight))
    )
    assert interval(np.full(9, 0.5)) == (0.5, 0.5)
    nearly = np.array([0.0] * 19 + [1.0])  # a resample may miss the one that differs
    assert interval(nearly) == pytest.approx(stats.t.interval(0.95, 19, 0.05, stats.sem(nearly)))
    values = np.random.default_rng(0).normal(size=12)
    assert interval(values) == interval(values)


def test_p_values_holm_and_the_smallest_effect():
    values = np.random.default_rng(0).normal(0.5, 1, 20)
    assert p_value(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, NAN])), [0.03, 0.06, 0.06, NAN])
    effect = smallest_effect(values)
    shifted = values - values.mean() + effect
    rng = np.random.default_rng(0)  # the power at that effect, by simulation with its spread
    drawn = rng.normal(effect, values.std(ddof=1), (4000, 20))
    assert np.mean(stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05) == pytest.approx(
        0.8, abs=0.03
    )
    assert p_value(shifted) < 0.05
    # three equal values are no proof: a coin falls so one time in four
    assert p_value(np.full(3, 0.5)) == 0.25 and p_value(np.full(3, 0.5), 0.5) == 1
    assert np.isnan([smallest_effect(np.full(3, 0.5)), smallest_effect(values[:1])]).all()


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
    row = summarize(metrics).iloc[0]
    means = metrics.groupby("task")["value"].mean()
    assert row["mean"] == pytest.approx(means.mean()) and row["tasks"] == 40 and row["missing"] == 0
    width = (
        2 * 1.96 * np.sqrt(means.var() / 40 + 0.25 / 3 / 40)
    )  # tasks, and seeds once more within the tasks
    assert row["high"] - row["low"] == pytest.approx(width, rel=0.15)
    assert (row["low"], row["high"]) == interval(means.to_numpy())
    others = metrics.assign(selector="leep", value=-metrics["value"]).query("task != 't0'")
    together = summarize(pd.concat([others, metrics])).set_index("selector").loc["lfc"]
    assert together[["low", "high"]].equals(row[["low", "high"]])  # whatever else is in the table
    alone = summarize(metrics.head(1)).iloc[0]
    assert np.isnan(alone["low"]) and alone["mean"] == metrics["value"][0]
    metrics.loc[0, "value"] = NAN  # one seed of one task: the task keeps its weight
    by_task = metrics.groupby("task")["value"].mean()
    assert summarize(metrics)["mean"].item() == pytest.approx(by_task.mean())
    empty = summarize(metrics.assign(value=NAN)).iloc[0]
    assert np.isnan(empty["mean"]) and empty["missing"] == 1 and empty["tasks"] == 0


def test_the_winner_is_chosen_on_the_other_targets():
    """a wins on t0 only, by so much that it has the highest mean: where it is judged on t0, b is
    chosen; c lacks a target.
    """
    values = {"a": [10, 0, 0], "b": [1, 2, 2], "c": [20, 20, NAN]}
    found = chosen_elsewhere(pd.DataFrame(values, ["t0", "t1", "t2"]))
    assert found.to_dict() == {"t0": 1, "t1": 0, "t2": 0}
    assert chosen_elsewhere(pd.DataFrame({"a": []})).empty
