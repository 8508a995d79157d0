"""Scores for numeric targets against slow float64 definitions."""

import numpy as np
import pytest
from scipy.optimize import minimize

from mzlib import selectors
from mzlib.errors import Missing
from mzlib.selectors.regression import knn_r2, lfc_numeric, logme_regression, ridge_r2

SHAPES = [(40, 8), (24, 50)]
ALL = [knn_r2, lfc_numeric, logme_regression, ridge_r2]


def sample(n, d, m=2, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, d)) + 0.5
    return features, features[:, :3] @ rng.normal(size=(3, m)) + 0.5 * rng.normal(size=(n, m)) + 7


def standard(targets):
    return (targets - targets.mean(0)) / targets.std(0)


@pytest.mark.parametrize("n,d", SHAPES)
def test_logme_is_the_maximum_of_the_marginal_likelihood(n, d):
    features, targets = sample(n, d)

    def loss(p, z):
        alpha, beta = np.exp(np.clip(p, -30, 30))
        covariance = features @ features.T / alpha + np.eye(n) / beta
        fit = z @ np.linalg.solve(covariance, z)
        return (n * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1] + fit) / (2 * n)

    options = dict(xatol=1e-7, fatol=1e-10, maxiter=2000)
    expected = []
    for z in standard(targets).T:
        fits = [
            minimize(loss, start, args=(z,), method="Nelder-Mead", options=options).fun
            for start in ([3, 2], [0, 2], [3, 0])
        ]
        expected.append(-min(fits))
    # what is added to m(t) keeps a fit without noise finite, and moves one that is near
    assert logme_regression(features, targets) == pytest.approx(np.mean(expected), abs=3e-4)


@pytest.mark.parametrize("n,d", SHAPES)
def test_ridge_refits_without_each_image(n, d):
    features, targets = sample(n, d)
    z, x = standard(targets), features - features.mean(0)
    errors = []
    for ridge in (x**2).sum() / n * np.logspace(-6, 3, 19):
        error = 0.0
        for i in range(n):
            rest = np.arange(n) != i
            a, b = x[rest] - x[rest].mean(0), z[rest] - z[rest].mean(0)
            weights = np.linalg.solve(a.T @ a + ridge * np.eye(d), a.T @ b)
            error += ((z[i] - z[rest].mean(0) - (x[i] - x[rest].mean(0)) @ weights) ** 2).sum()
        errors.append(error)
    total = sum(((z[i] - np.delete(z, i, 0).mean(0)) ** 2).sum() for i in range(n))
    assert ridge_r2(features, targets) == pytest.approx(1 - min(errors) / total, abs=1e-5)


@pytest.mark.parametrize("k", [1, 5])
def test_neighbours_leave_one_out(k):
    features, targets = sample(40, 8)
    z = standard(targets)
    directions = features / np.linalg.norm(features, axis=1, keepdims=True)
    error = total = 0.0
    for i in range(40):
        order = [j for j in np.argsort(-directions @ directions[i]) if j != i][:k]
        error += ((z[i] - z[order].mean(0)) ** 2).sum()
        total += ((z[i] - np.delete(z, i, 0).mean(0)) ** 2).sum()
    assert knn_r2(features, targets, k) == pytest.approx(1 - error / total, abs=1e-9)


@pytest.mark.parametrize("n,d", SHAPES)
def test_correlation_of_kernels(n, d):
    features, targets = sample(n, d)
    z = standard(targets)
    expected = np.corrcoef((features @ features.T).ravel(), (z @ z.T).ravel())[0, 1]
    assert lfc_numeric(features, targets) == pytest.approx(expected, abs=1e-10)
    half = np.arange(n) % 2  # two classes in equal numbers: the LFC of the classes
    assert lfc_numeric(features, half) == pytest.approx(selectors.lfc(features, half), abs=1e-9)


@pytest.mark.parametrize("function", ALL)
def test_units_do_not_matter_and_signal_scores_above_noise(function):
    features, targets = sample(40, 8)
    value = function(features, targets)
    assert function(features, targets * 100 - 5) == pytest.approx(value, abs=1e-8)
    assert function(features.astype(np.float32), targets) == pytest.approx(value, abs=1e-4)
    assert value > function(features, np.random.default_rng(9).normal(size=40))


@pytest.mark.parametrize("function", ALL)
def test_what_has_no_score_says_so(function):
    features, targets = sample(12, 5)
    for wrong in (targets[:-1], np.ones(12), np.full(12, np.nan), targets[:, None], list("ab") * 6):
        with pytest.raises(Missing, match="^expected"):
            function(features, wrong)
