"""Intervals, nulls and comparisons behave as statistics."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import norm, t

from mzlib import selectors, uncertainty
from mzlib.errors import Missing
from mzlib.ranking import surely_better
from mzlib.selectors import SELECTORS


def evidence(shift=0.5, seed=0, n=100):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 4
    features = (
        rng.normal(size=(n, 6)) + shift * np.random.default_rng(7).normal(size=(4, 6))[labels]
    )
    kernel = features @ features.T
    return SimpleNamespace(
        labels=labels, features=features, seed=0, full_kernel=kernel, parameter_count=seed
    )


def test_resamples_are_stratified_and_the_groups_cover_all():
    labels = np.repeat([0, 1, 2], [40, 20, 40])
    left_out = [
        np.setdiff1d(np.arange(100), part) for part in uncertainty.leave_group_out(labels, 20)
    ]
    assert np.array_equal(np.sort(np.concatenate(left_out)), np.arange(100))
    assert all(np.array_equal(np.bincount(labels[index]), [2, 1, 2]) for index in left_out)


@pytest.fixture
def matmul():
    """With TF32, as users switch it on."""
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "tf32"
    yield settings
    settings.fp32_precision = before


def test_a_score_and_its_replicates_have_all_digits_of_float32(matmul):
    def exactly(features):
        return float(matmul.fp32_precision == "ieee")

    needs = {"features": "features"}
    seen = selectors.Selector("exactly", "exactly", exactly, needs, "-")
    assert selectors.resolve(seen, evidence()) == 1
    assert (uncertainty.replicates(seen, evidence()) == 1).all()
    assert matmul.fp32_precision == "tf32"


def test_interval_of_a_mean_is_the_textbook_one():
    mean = selectors.Selector(
        "mean", "mean", lambda features: float(features.mean()), {"features": "features"}, "-"
    )
    e = evidence()
    e.features = e.features[:, :1]
    expected = e.features.std(ddof=1) / 10  # the jackknife of a mean with groups of one image
    result = uncertainty.interval(mean, e, groups=100)
    assert result.standard_error == pytest.approx(expected, rel=1e-9)
    assert (result.high - result.low) / 2 == pytest.approx(expected * t.ppf(0.975, 99))


def test_intervals_shrink_and_contain():
    small, large = (uncertainty.interval(SELECTORS["lfc"], evidence(n=n)) for n in (40, 1000))
    assert large.high - large.low < small.high - small.low
    assert small.low <= large.score <= small.high


def test_null_tells_signal_from_noise():
    signal = uncertainty.permutation_null(SELECTORS["lfc"], evidence(shift=1.0))
    noise = uncertainty.permutation_null(SELECTORS["lfc"], evidence(shift=0.0))
    assert signal.z > 8 and signal.p < 0.02 and abs(noise.z) < 3.5 and abs(noise.mean) < 0.05
    with pytest.raises(Missing, match="uses labels"):
        uncertainty.permutation_null(SELECTORS["parameter_count"], evidence())


@pytest.mark.parametrize("name", ["lfc", "lgc_full", "etran"])
def test_compare_is_a_probability(name):
    a, b = evidence(shift=1.5), evidence(shift=0.1)
    better = uncertainty.compare(SELECTORS[name], a, b)
    assert better > 0.9 and better + uncertainty.compare(SELECTORS[name], b, a) == pytest.approx(1)
    assert uncertainty.compare(SELECTORS[name], a, a) == 0.5


def test_compare_without_an_answer_says_so():
    a, b = evidence(n=10), evidence(n=10, seed=1)
    a.labels = b.labels = np.array([0] * 9 + [1])
    with pytest.raises(Missing, match="without any group"):
        uncertainty.compare(SELECTORS["hscore"], a, b)
    with pytest.raises(Missing, match="same images"):
        uncertainty.compare(SELECTORS["lfc"], evidence(n=60), evidence(n=64))
    with pytest.raises(Missing, match="at least 2 shuffles"):
        uncertainty.permutation_null(SELECTORS["lfc"], evidence(), number=1)


def test_compare_without_resampling_is_certain():
    pair = evidence(seed=1), evidence(seed=2)
    assert uncertainty.compare(SELECTORS["parameter_count"], *pair) == 0
    assert uncertainty.compare(SELECTORS["parameter_count"], *pair[::-1]) == 1


def test_jackknife_compare_is_the_normal_probability_of_the_difference():
    mean = selectors.Selector(
        "mean", "mean", lambda features: float(features.mean()), {"features": "features"}, "-"
    )
    a, b = evidence(seed=1), evidence(seed=2)
    a.features, b.features = a.features[:, :1], b.features[:, :1]
    gap = (a.features - b.features)[:, 0]
    expected = norm.cdf(gap.mean() / (gap.std(ddof=1) / 10))
    assert uncertainty.compare(mean, a, b, groups=100) == pytest.approx(expected, rel=1e-6)


def test_zoo_scores_have_no_interval_of_their_own():
    with pytest.raises(Missing, match="scaled over the zoo"):
        uncertainty.interval(SELECTORS["etran"], evidence())


def zoo_of(combine):
    rng = np.random.default_rng(0)
    groups = 20
    noise = rng.normal(size=(2, groups)) * 0.02
    noise -= noise.mean(axis=1, keepdims=True)
    scores = np.hstack([[[1.05], [1.0]], np.array([[1.05], [1.0]]) + noise])
    positions = np.broadcast_to([[7.0], [8.0]], scores.shape)
    selector = selectors.Selector("zoo", "zoo", lambda f: f, {}, "-", combine=combine)
    return scores, uncertainty.zoo_scores(selector, np.stack([scores, positions], axis=2))


def test_a_rank_over_the_zoo_is_as_unsure_as_the_score_that_it_ranks():
    scores, ranks = zoo_of(lambda values: values[:, 0].argsort().argsort().astype(float))
    assert ranks[:, 0].tolist() == [1, 0]
    assert (scores[0, 1:] > scores[1, 1:]).all()  # no group that is left out turns the order round
    assert not surely_better(scores)[1, 0] and not surely_better(ranks)[1, 0]
    assert uncertainty.margin(ranks[:, 1:]).min() > 0.5


def test_a_linear_combination_over_the_zoo_keeps_its_jackknife_and_whole_numbers():
    def combine(values):
        assert values[:, 1].tolist() == [7, 8]
        return 3 * values[:, 0] - values[:, 0].sum()

    scores, combined = zoo_of(combine)
    expected = 3 * scores - scores.sum(axis=0)
    assert np.allclose(combined, expected, rtol=1e-12)
