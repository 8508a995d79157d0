"""Selectors against slow float64 definitions, hand-worked cases and published values."""

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from scipy.special import digamma, gammaln, logsumexp, softmax
from scipy.stats import multivariate_normal, pearsonr, spearmanr
from sklearn.covariance import ledoit_wolf
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from mzlib import selectors
from mzlib.errors import Missing
from mzlib.selectors import _linalg, ding2022, li2021, martin2021, nguyen2020, renggli2020
from mzlib.selectors._checks import classes, matrix, varying
from mzlib.selectors._linalg import left_svd, one_hot, principal
from mzlib.selectors.you2021 import spectrum


def sample(n=40, d=12, c=4, seed=0, shift=1.0):
    rng = np.random.default_rng(seed)
    labels = np.sort(np.arange(n) % c)
    centres = rng.normal(size=(c, d))
    return rng.normal(size=(n, d)) + shift * centres[labels] + 0.7, labels


def probabilities(n=40, s=7, c=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % c
    logits = rng.normal(size=(n, s)) + 2 * np.eye(c, s)[labels]
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True), labels


def slow_lfc(features, labels):
    features = np.asarray(features, dtype=np.float64)
    kernel, same = features @ features.T, np.where(np.equal.outer(labels, labels), 1.0, -1.0)
    return pearsonr(kernel.ravel(), same.ravel()).statistic


@pytest.mark.parametrize("n,d", [(40, 12), (12, 40), (300, 270), (7, 1)])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_lfc_is_the_pearson_correlation_of_all_entries(n, d, offset):
    features, labels = sample(n, d, c=3)
    features += offset
    expected = slow_lfc(features, labels)
    assert selectors.lfc(features, labels) == pytest.approx(expected, abs=1e-10)
    assert selectors.lfc(features.astype(np.float32), labels) == pytest.approx(expected, abs=2e-5)
    assert selectors.lgc(features @ features.T, labels) == pytest.approx(expected, abs=1e-10)
    centred = slow_lfc(features - features.mean(0), labels)
    assert selectors.lfc_centred(features, labels) == pytest.approx(centred, abs=1e-9)
    if d == 1:  # directions of positive numbers are all the same
        return
    cosine = features / np.linalg.norm(features, axis=1, keepdims=True)
    assert selectors.lfc_cosine(features, labels) == pytest.approx(
        slow_lfc(cosine, labels), abs=1e-9
    )


def test_lfc_by_hand():
    # F = Z: K = ZZᵀ, an affine image of K_Y, so the correlation is 1; two orthogonal pairs crossing
    # the classes: -1/3
    assert selectors.lfc(np.eye(3)[[0, 0, 1, 2]], [5, 5, -1, 9]) == pytest.approx(1.0, abs=1e-12)
    # entries of K: 8 ones among 16 (pairs 0-2, 1-3 and the diagonal); those of K_Y: pairs 0-1, 2-3
    # and the diagonal: 4 entries agree on 1, p = 1/2 on both sides: cov = 4/16 - 1/4 = 0
    assert selectors.lfc(np.eye(2)[[0, 1, 0, 1]], [0, 0, 1, 1]) == pytest.approx(0.0, abs=1e-12)


def slow_leep(theta, labels):
    n, s = theta.shape
    joint = {
        (y, z): sum(theta[i, z] for i in range(n) if labels[i] == y) / n
        for y in set(labels)
        for z in range(s)
    }
    total = 0.0
    for i in range(n):
        eep = 0.0
        for z in range(s):
            marginal = sum(joint[y, z] for y in set(labels))
            if marginal > 0:
                eep += joint[labels[i], z] / marginal * theta[i, z]
        total += np.log(eep)
    return total / n


def test_leep_and_nce_by_hand():
    # two source classes; P(y=0|z=0) = .8/(.8+.4) = 2/3 and P(y=0|z=1) = .2/(.2+.6) = 1/4
    theta, labels = np.array([[0.8, 0.2], [0.4, 0.6]]), np.array([0, 1])
    expected = (np.log(0.8 * 2 / 3 + 0.2 / 4) + np.log(0.4 / 3 + 0.6 * 3 / 4)) / 2
    assert selectors.leep(theta, labels) == pytest.approx(expected, abs=1e-12)
    # argmax: z = 0, 0, 0, 1 with y = 0, 0, 1, 1: H(Y|Z) = 3/4 · H(1/3)
    theta = np.array([[0.9, 0.1, 0], [0.6, 0.4, 0], [0.7, 0.3, 0], [0.2, 0.8, 0]])
    entropy = -(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3))
    assert selectors.nce(theta, [0, 0, 1, 1]) == pytest.approx(-0.75 * entropy, abs=1e-12)


def test_leep_and_nce_against_loops(monkeypatch):
    theta, labels = probabilities()
    theta = np.concatenate([theta, np.zeros((40, 2))], axis=1)  # source classes that never occur
    assert selectors.leep(theta, labels) == pytest.approx(slow_leep(theta, labels), abs=1e-12)
    monkeypatch.setattr(nguyen2020, "TOGETHER", 7 * theta.shape[1])  # five blocks and a rest
    assert selectors.leep(theta, labels) == pytest.approx(slow_leep(theta, labels), abs=1e-12)
    z = theta.argmax(1)
    slow = 0.0
    for i in range(40):
        slow += np.log(np.mean(labels[z == z[i]] == labels[i])) / 40
    assert selectors.nce(theta, labels) == pytest.approx(slow, abs=1e-12)


def test_the_short_way_through_a_check_decides_as_the_long_one():
    largest = np.full((4, 2), 3e38, dtype=np.float32)  # finite, but their sum is not
    assert matrix(largest, "features").dtype == torch.float64
    largest[0, 0], largest[3, 1] = np.inf, -np.inf
    with pytest.raises(Missing, match="got 2 NaN or infinite entries and 0 too large"):
        matrix(largest, "features")
    first_is_the_mean = torch.tensor([[1.0], [0.0], [2.0]])
    assert varying(first_is_the_mean).tolist() == [[0.0], [-1.0], [1.0]]
    for labels in ([0, 2, 2, 0], [0, 1, 1, 0], [-1, 1, 1, -1], [0, 9, 9, 0]):
        renamed, sizes = classes(labels, first_is_the_mean.new_zeros(4, 1))
        assert renamed.tolist() == [0, 1, 1, 0] and sizes.tolist() == [2, 2]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_are_the_same_block_by_block_and_with_or_without_a_partition(
    metric, monkeypatch
):
    features, labels = sample(shift=0.3)
    expected = selectors.knn(features, labels, 5, metric)
    points = renggli2020.points_of(torch.from_numpy(features), metric)
    _, neighbours, shares = next(renggli2020.nearest(points, 5))
    assert neighbours.shape == (40, 5) and (shares == 1).all()  # none of these tie
    monkeypatch.setattr(renggli2020, "BLOCK", 13)
    assert selectors.knn(features, labels, 5, metric) == expected


def rdm(features):
    return 1 - np.corrcoef(features)[np.triu_indices(len(features), 1)]


def test_rsa_is_spearman_of_dissimilarities():
    features, labels = sample(30, 8)
    reference = np.maximum(features[:, :5] + np.random.default_rng(3).normal(size=(30, 5)), 0)
    expected = spearmanr(
        rdm(features).round(10), rdm(reference).round(10)
    ).statistic  # sparse rows tie
    assert selectors.rsa(features, reference) == pytest.approx(expected, abs=2e-5)
    doubled = np.repeat(features, 2, axis=0)  # ties: every distance four times
    expected = spearmanr(
        rdm(doubled).round(10), rdm(np.repeat(reference, 2, 0)).round(10)
    ).statistic
    assert selectors.rsa(doubled, np.repeat(reference, 2, axis=0)) == pytest.approx(
        expected, abs=2e-5
    )


def test_nce_takes_predicted_classes_too():
    theta, labels = probabilities()
    assert selectors.nce(theta.argmax(1), labels) == selectors.nce(theta, labels)
    assert selectors.nce(theta.argmax(1) * 1000 - 7, labels) == selectors.nce(theta, labels)


def test_sparsity_measures_by_hand():
    # row (0, 0, 3, 4): zeros 1/2, Hoyer (2 - 7/5)/(2 - 1) = 0.6; row (1, 1, 1, 1): 0 and 0
    features = np.array([[0, 0, 3, 4], [1, 1, 1, 1]])
    assert selectors.zero_share(features) == 0.25
    assert selectors.hoyer_sparsity(features) == pytest.approx(0.3, abs=1e-12)
    assert selectors.feature_metrics(features) == pytest.approx(0.275, abs=1e-12)


@pytest.mark.filterwarnings("error")  # of numpy and POT: the reason is all that is said
def test_distances_beyond_the_numbers_give_the_reason_alone():
    rng = np.random.default_rng(0)
    features = 1e200 * rng.normal(size=(20, 4))
    labels = np.arange(20) % 2
    with pytest.raises(Missing, match="expected finite distances"):
        selectors.domain_similarity(features, labels, rng.normal(size=(3, 4)))


def test_domain_similarity_is_an_optimal_transport():
    features, labels = sample(33, 3, c=3)
    labels[:3] = 7  # a class of three images: dropped
    source, counts = (
        np.random.default_rng(1).normal(size=(4, 3)),
        np.array([50, 10, 4, 40]),
    )  # the third is dropped
    kept = [c for c in np.unique(labels) if (labels == c).sum() >= 5]
    a = np.array([(labels == c).sum() for c in kept], float)
    b = counts[[0, 1, 3]].astype(float)
    cost = np.array(
        [
            [np.linalg.norm(features[labels == c].mean(0) - source[s]) for s in (0, 1, 3)]
            for c in kept
        ]
    )
    rows = [np.kron(np.eye(len(a))[i], np.ones(len(b))) for i in range(len(a))]
    columns = [np.kron(np.ones(len(a)), np.eye(len(b))[j]) for j in range(len(b))]
    emd = linprog(
        cost.ravel(), A_eq=np.array(rows + columns), b_eq=np.r_[a / a.sum(), b / b.sum()]
    ).fun
    assert selectors.domain_similarity(features, labels, source, counts) == pytest.approx(
        np.exp(-0.01 * emd), abs=1e-9
    )
    with pytest.raises(Missing, match="at least 5 images"):
        selectors.domain_similarity(features[:8], np.arange(8) % 2, source, counts)


# --- the rest of the table: one slow float64 definition each, few images (N < D) and many (N > D)
# -----------------

SHAPES = [(40, 12), (30, 50)]
iris = load_iris(return_X_y=True)


def means_of(features, labels):
    return np.stack([features[labels == c].mean(0) for c in np.unique(labels)])


def logdet(matrix):
    return np.linalg.slogdet(matrix)[1]


def test_published_values_on_iris():
    assert selectors.hscore(*iris) == pytest.approx(1.177842480406727, abs=1e-6)
    assert selectors.logme(*iris) == pytest.approx(
        -0.16006022033609904, abs=1e-4
    )  # the stopping rule moves digit 4
    accuracies = [selectors.knn(*iris, k=k, metric="euclidean") for k in (1, 3, 5)]
    assert accuracies == pytest.approx([0.96, 0.96, 0.9667], abs=5e-5)


@pytest.mark.parametrize("n,d", SHAPES)
def test_hscore_is_the_shrunk_trace(n, d):
    features, labels = sample(n, d)
    covariance, alpha = ledoit_wolf(features - features.mean(0))
    between = np.cov(means_of(features - features.mean(0), labels)[labels], rowvar=False)
    expected = (1 - alpha) * np.trace(np.linalg.solve(covariance, between))
    assert selectors.hscore(features, labels) == pytest.approx(expected, rel=1e-8)
    assert selectors.hscore(features, labels) != pytest.approx(
        3, abs=0.05
    )  # C − 1, what the pseudo-inverse gives


def slow_log_evidence(features, target, alpha, beta):
    """log N(z; 0, FFᵀ/α + I/β) / N, with no eigenvalue algebra."""
    covariance = features @ features.T / alpha + np.eye(len(target)) / beta
    fit = target @ np.linalg.solve(covariance, target)
    return -(len(target) * np.log(2 * np.pi) + logdet(covariance) + fit) / (2 * len(target))


@pytest.mark.parametrize("n,d", SHAPES)
def test_logme_is_the_maximum_of_the_marginal_likelihood(n, d):
    features, labels = sample(n, d, shift=0.3)
    expected = []
    for c in range(4):
        target = (labels == c).astype(float)

        def loss(p):
            return -slow_log_evidence(features, target, *np.exp(np.clip(p, -30, 30)))

        options = dict(xatol=1e-7, fatol=1e-10)
        expected.append(
            -min(
                minimize(loss, at, method="Nelder-Mead", options=options).fun
                for at in ([3, 2], [0, 2])
            )
        )
    assert selectors.logme(features, labels) == pytest.approx(np.mean(expected), abs=2e-5)


@pytest.mark.parametrize("offset", [1e4, 1e6, 1e8])
def test_logme_of_features_far_from_zero(offset):
    features, labels = sample(60, 10, shift=0.5)
    u, s, _ = np.linalg.svd(features + offset, full_matrices=False)
    t = np.logspace(-6, 20, 3001)[:, None]  # α/β
    expected = []
    for c in range(4):
        target = (labels == c).astype(float)
        x2 = (u.T @ target) ** 2
        misfit = (x2 * t / (t + s**2)).sum(1) + target.sum() - x2.sum()
        curve = np.log(t / (t + s**2)).sum(1) - 60 * np.log(misfit / 60)
        expected.append(curve.max() / 120 - (1 + np.log(2 * np.pi)) / 2)
    assert selectors.logme(features + offset, labels) == pytest.approx(np.mean(expected), abs=1e-4)


def test_logme_counts_the_zero_singular_values():
    features, labels = sample(20, 60, shift=0.3)
    wide = np.concatenate(
        [features, np.zeros((20, 200))], axis=1
    )  # features of zeros carry no evidence
    assert selectors.logme(wide, labels) == pytest.approx(
        selectors.logme(features, labels), abs=1e-9
    )


@pytest.mark.parametrize("n,d", SHAPES)
def test_transrate_is_a_difference_of_log_determinants(n, d):
    features, labels = sample(n, d)
    labels[0] = 1  # classes of unequal size
    centred = features - features.mean(0)

    def rate(x):
        return 0.5 * logdet(np.eye(d) + x.T @ x / (len(x) * 1e-4))

    expected = rate(centred) - np.mean([rate(centred[labels == c]) for c in range(4)])
    assert selectors.transrate(features, labels) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n,d,components", [(40, 12, 64), (30, 50, 64), (40, 12, 3)])
def test_gbc_by_integrating_definition(n, d, components):
    features, labels = sample(n, d, shift=0.4)
    labels[0] = 9  # a class of one image: pooled variance
    x = PCA(min(components, n - 1, d)).fit_transform(features)
    classes, width = np.unique(labels), x.shape[1]
    groups = [x[labels == c] for c in classes]
    spread = [((g - g.mean(0)) ** 2).mean() for g in groups]
    pooled = sum(len(g) * s for g, s in zip(groups, spread) if len(g) > 1) / sum(
        len(g) for g in groups if len(g) > 1
    )
    spread = [s if len(g) > 1 else pooled for g, s in zip(groups, spread)]
    total = 0.0
    for a in range(len(classes)):
        for b in range(len(classes)):
            if a != b:
                covariance = np.eye(width) * (spread[a] + spread[b]) / 2
                gap = groups[a].mean(0) - groups[b].mean(0)
                distance = gap @ np.linalg.solve(covariance, gap) / 8
                ends = logdet(np.eye(width) * spread[a]) + logdet(np.eye(width) * spread[b])
                total -= np.exp(-distance - (logdet(covariance) - ends / 2) / 2)
    assert selectors.gbc(features, labels, components) == pytest.approx(total, rel=1e-8)


def test_gbc_by_hand():
    # classes {-1, 1} and {1, 3}: variance 1 each, gap 2: D = 4/8, twice exp(-1/2)
    assert selectors.gbc([[-1.0], [1], [1], [3]], [0, 0, 1, 1]) == pytest.approx(
        -2 * np.exp(-0.5), abs=1e-12
    )


@pytest.mark.parametrize("n,d", SHAPES)
def test_parc_is_spearman_with_the_label_matrix(n, d):
    features, labels = sample(n, d, shift=0.5)
    expected = spearmanr(
        rdm((features - features.mean(0)) / features.std(0)), rdm(np.eye(4)[labels])
    ).statistic
    assert selectors.parc(features, labels) == pytest.approx(expected, abs=1e-5)
    assert selectors.parc(features.astype(np.float32), labels) == pytest.approx(expected, abs=1e-5)
    constant = np.concatenate([features, np.full((n, 2), 3.7)], axis=1)
    assert np.isfinite(selectors.parc(constant, labels))


def test_dds_is_unbiased_cka_of_cosine_kernels():
    features, labels = sample(9, 5, c=3)
    reference = features[:, :2] ** 2 + 0.1
    kernels = []
    for x in (features, reference):
        directions = x / np.linalg.norm(x, axis=1, keepdims=True)
        kernels.append(directions @ directions.T)
    a, b = kernels

    def hsic(k, other):  # U-statistic: mean over ordered quadruples of distinct images
        terms = [
            k[i, j] * (other[i, j] + other[q, r] - 2 * other[i, q])
            for i, j, q, r in permutations(range(9), 4)
        ]
        return np.mean(terms)

    expected = hsic(a, b) / np.sqrt(hsic(a, a) * hsic(b, b))
    assert selectors.dds(features, reference) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("n,d", SHAPES)
def test_cka_with_labels(n, d):
    features, labels = sample(n, d)
    middle = np.eye(n) - 1 / n
    same = np.equal.outer(labels, labels)
    a, b = middle @ features @ features.T @ middle, middle @ same @ middle
    expected = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
    assert selectors.cka(features, labels) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_knn_leaves_one_out(k):
    features, labels = sample(40, 6, shift=0.8)
    directions = features / np.linalg.norm(features, axis=1, keepdims=True)
    hits = 0.0
    for i in range(40):
        order = [j for j in np.argsort(-directions @ directions[i]) if j != i][:k]
        votes = np.bincount(labels[order], minlength=4)
        hits += (votes[labels[i]] == votes.max()) / (votes == votes.max()).sum()
    assert selectors.knn(features, labels, k) == pytest.approx(hits / 40, abs=1e-12)


def test_knn_ties_are_fair_draws():
    # image 0 has two equally near neighbours of different classes: half a hit; so has 1; 2 and 3
    # find their double
    features = np.array([[1.0, 0], [0, 1], [1, 1], [1, 1]])
    assert selectors.knn(features, [0, 0, 0, 1], 1) == pytest.approx(
        (0.5 + 0.5 + 0 + 0) / 4, abs=1e-12
    )


@pytest.mark.parametrize("n,d", SHAPES)
def test_ridge_loo_refits_without_each_image(n, d):
    features, labels = sample(n, d, shift=0.4)
    onehot, centred = np.eye(4)[labels], features - features.mean(0)
    scale, best = (centred**2).sum() / n, (np.inf, 0)
    for ridge in scale * np.logspace(-6, 3, 19):
        error, hits = 0.0, 0.0
        for i in range(n):
            rest = np.arange(n) != i
            x, z = features[rest] - features[rest].mean(0), onehot[rest] - onehot[rest].mean(0)
            weights = np.linalg.solve(x.T @ x + ridge * np.eye(d), x.T @ z)
            slope = (features[i] - features[rest].mean(0)) @ weights
            error += ((onehot[i] - onehot[rest].mean(0) - slope) ** 2).sum() / n
            hits += (np.argmax(slope + onehot.mean(0)) == labels[i]) / n
        best = min(best, (error, hits))
    assert selectors.ridge_loo_mse(features, labels) == pytest.approx(-best[0], rel=1e-6)
    assert selectors.ridge_loo(features, labels) == pytest.approx(best[1], abs=1e-12)
    assert selectors.ntk_loo(features, np.zeros((n, n)), labels) == pytest.approx(
        best[1], abs=1e-12
    )


def test_ntk_loo_adds_the_gradient_kernel():
    features, labels = sample(40, 6, shift=0.2)
    gradients, _ = sample(40, 30, seed=5, shift=2.0)
    both = np.concatenate([features, gradients * 0.5], axis=1)
    alone = selectors.ntk_loo(features, gradients @ gradients.T, labels, head_variance=0.25)
    assert alone == pytest.approx(selectors.ridge_loo(both, labels), abs=1e-12)
    assert selectors.ntk_loo(
        features, gradients @ gradients.T * 18, labels
    ) == pytest.approx(  # 1/(3·6) by default
        selectors.ridge_loo(np.concatenate([features, gradients], axis=1), labels), abs=1e-12
    )


def slow_log_densities(x, theta, ridge):
    logs = np.empty(theta.shape)
    for k in range(theta.shape[1]):
        weights = theta[:, k]
        mean = weights @ x / weights.sum()
        covariance = (weights[:, None] * (x - mean)).T @ (
            x - mean
        ) / weights.sum() + ridge * np.eye(x.shape[1])
        logs[:, k] = multivariate_normal(mean, covariance).logpdf(x) + np.log(weights.mean())
    return logs


@pytest.mark.parametrize(
    "n,d,number,soft", [(40, 12, 5, False), (40, 3, 4, True), (30, 20, 15, False)]
)
def test_mixture_densities_against_scipy(n, d, number, soft):
    x, labels = sample(n, d, c=number)
    theta = (
        np.random.default_rng(0).dirichlet(np.ones(number), n) if soft else np.eye(number)[labels]
    )
    logs = li2021._log_densities(torch.as_tensor(x), torch.as_tensor(theta), 1e-3)
    assert np.allclose(logs.numpy(), slow_log_densities(x, theta, 1e-3), rtol=1e-7)


def test_nleep_is_leep_of_a_gaussian_mixture():
    features, labels = sample(40, 6, c=2, shift=0.5)
    values, u = left_svd(torch.as_tensor(features - features.mean(0)))
    x = (u * values.sqrt())[:, : PCA(0.8).fit(features).n_components_].numpy()
    assert np.allclose(np.abs(x), np.abs(PCA(0.8).fit_transform(features)))
    theta, level = np.eye(10)[li2021._kmeans(torch.as_tensor(x), 10, 0).numpy()], -np.inf
    for _ in range(100):
        logs = slow_log_densities(x, theta, 1e-6 * (x**2).mean())
        theta = softmax(logs, axis=1)
        level, previous = logsumexp(logs, axis=1).mean(), level
        if abs(level - previous) < 1e-3:
            break
    assert selectors.nleep(features, labels) == pytest.approx(slow_leep(theta, labels), abs=1e-6)
    assert selectors.nleep(features, labels) == selectors.nleep(features, labels)


def test_the_last_results_are_remembered_by_content(monkeypatch):
    calls = []

    @_linalg.remembered
    def doubled(x, factor):
        calls.append(factor)
        return x * factor

    x = torch.arange(6.0).view(2, 3)
    first = doubled(x, 2)
    assert torch.equal(doubled(x.clone(), 2), first) and calls == [2]
    x[0, 0] = 5  # the same tensor, other numbers
    assert torch.equal(doubled(x, 2), x * 2) and torch.equal(doubled(x, 3), x * 3)
    assert torch.equal(doubled(x.view(3, 2), 3), x.view(3, 2) * 3)
    assert torch.equal(doubled(x.T.contiguous().T, 3), x * 3) and calls == [2, 2, 3, 3]
    monkeypatch.setattr(_linalg, "MEMORY", 0)
    doubled(x, 4)
    doubled(x, 4)
    assert calls[-2:] == [4, 4] and not _linalg._results


def test_leading_components_in_a_krylov_space():
    """Of features with a decaying spectrum, as an expert's are."""
    x = torch.as_tensor(sample(400, 380, c=20, shift=0.3)[0]) * torch.arange(1, 381) ** -0.7
    exact, approximate = principal(x, 16), principal(x, 16, exact=100)
    assert torch.allclose(exact[0], approximate[0], rtol=1e-3)
    assert torch.allclose(
        (exact[1].T @ approximate[1]).abs(), torch.eye(16, dtype=x.dtype), atol=0.1
    )


@pytest.mark.parametrize("n, d", [(90, 200), (200, 90), (30, 40)])
def test_a_spectrum_and_what_labels_have_of_it(n, d):
    x, labels = map(torch.as_tensor, sample(n, d, c=5))
    u, s, _ = torch.linalg.svd(x, full_matrices=False)
    values, vectors = left_svd(x)
    assert torch.allclose(values, s**2) and torch.allclose(
        (vectors.T @ u).abs(), torch.eye(len(s), dtype=x.dtype), atol=1e-8
    )
    values, squares = spectrum(x, lambda rows: one_hot(labels, 5).T @ rows)
    assert torch.allclose(values, s**2) and torch.allclose(
        squares, (u.T @ one_hot(labels, 5)).square(), atol=1e-8
    )


def slow_discriminant(features, labels, shrinkage=None):
    n, d = features.shape
    means = means_of(features, labels)
    within = (features - means[labels]).T @ (features - means[labels]) / n
    if shrinkage is None:
        x = within.sum(1)
        for _ in range(3):
            y = within @ x / np.linalg.norm(within @ x)
            x = within @ y / np.linalg.norm(within @ y)
        shrinkage = max(np.exp(-5 * (x @ within @ y)), 1e-10)
    shrunk = (1 - shrinkage) * within + shrinkage * np.trace(within) / d * np.eye(d)
    coefficients = np.linalg.solve(shrunk, means.T)
    priors = np.bincount(labels) / n
    logits = features @ coefficients - (means.T * coefficients).sum(0) / 2 + np.log(priors)
    return softmax(logits, axis=1), shrinkage


@pytest.mark.parametrize("n,d,scale", [(40, 12, 0.2), (30, 50, 0.1), (40, 12, 1.0)])
def test_sfda_and_etran_from_explicit_covariances(n, d, scale):
    features, labels = sample(n, d, shift=0.5)
    features = features * scale
    own = np.arange(n), labels
    first, shrinkage = slow_discriminant(features, labels)
    energy, accuracy = selectors.etran(features, labels)
    assert accuracy == pytest.approx(first[own].mean(), abs=1e-7)
    assert energy == pytest.approx(
        logsumexp(features, axis=1).min(), abs=1e-10
    )  # N < 200: one image, not none
    sure, means = softmax(first, axis=1)[own][:, None], means_of(features, labels)
    others = np.stack([np.delete(means, c, axis=0).mean(0) for c in labels])
    second, _ = slow_discriminant(sure * features + (1 - sure) * others, labels, shrinkage)
    assert selectors.sfda(features, labels) == pytest.approx(second[own].mean(), abs=1e-7)


@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_ncti_terms_from_scikit_learn(scale):
    features, labels = sample(90, 80, c=3, shift=0.3)
    x = (pca := PCA(64)).fit_transform(features * scale)
    shrinkage = np.exp(-pca.explained_variance_[:32].sum())
    solver = (
        dict(solver="svd")
        if shrinkage < 1e-10
        else dict(solver="eigen", shrinkage=float(shrinkage))
    )
    low = (lda := LinearDiscriminantAnalysis(**solver)).fit(x, labels).transform(x)
    posterior = lda.predict_proba(x)
    compact = sum(np.linalg.norm(posterior[labels == c], "nuc") for c in range(3))
    expected = (
        np.linalg.norm(low - low.mean(0), "nuc"),
        posterior[np.arange(90), labels].mean(),
        np.log(compact),
    )
    assert selectors.ncti(features * scale, labels) == pytest.approx(expected, rel=1e-6)


def test_terms_that_are_equal_up_to_rounding_decide_nothing():
    """As where a discriminant parts all images of two experts: a GPU and a CPU then disagreed."""
    columns = np.array([[1.0, 1.0], [3.0, 1 - 2**-52], [2.0, 1 - 2**-53]])
    assert selectors.SELECTORS["etran"].combine(columns) == pytest.approx([0, 0.15, 0.075])
    three = np.column_stack([columns, np.zeros(3)])
    assert selectors.SELECTORS["ncti"].combine(three) == pytest.approx([0, 1, 0.5])
    assert selectors.SELECTORS["otce"].combine(columns[:, ::-1]) == pytest.approx(
        selectors.SELECTORS["otce"].combine([[1, 1], [1, 3], [1, 2]])
    )


def test_scores_over_the_zoo_combine_by_hand():
    ncti, etran, otce = (selectors.SELECTORS[name].combine for name in ("ncti", "etran", "otce"))
    assert ncti(np.array([[1, 5, 2], [3, 5, 4], [2, 5, 2.5]])) == pytest.approx([0, 0, 0.25])
    assert etran(np.array([[0, 2.0], [10, 1.0]])) == pytest.approx([0.85, 0.15])
    assert otce(np.array([[0, 1.0], [2, 1.0]])) == pytest.approx([0.5, -0.5])


@pytest.mark.parametrize("n,d", SHAPES)
def test_pactran_by_gradient_free_minimum(n, d):
    features, labels = sample(n, d, shift=0.4)
    x, onehot = features - features.mean(0), np.eye(4)[labels]

    def loss(theta):
        w, b = theta[: d * 4].reshape(d, 4), theta[d * 4 :]
        logits = x @ w + b
        residual = (softmax(logits, axis=1) - onehot) / n
        value = (logsumexp(logits, axis=1) - logits[np.arange(n), labels]).mean() + (w**2).sum() / (
            2 * n
        )
        return value, np.r_[(x.T @ residual + w / n).ravel(), residual.sum(0)]

    options = dict(maxiter=5000, ftol=1e-14, gtol=1e-9)
    fit = minimize(loss, np.zeros(d * 4 + 4), jac=True, method="L-BFGS-B", options=options)
    q = softmax(x @ fit.x[: d * 4].reshape(d, 4) + fit.x[d * 4 :], axis=1)
    curvature = q - q**2
    hessian = ((x**2).T @ curvature + 1 / n).sum() + curvature.sum()
    expected = -(fit.fun + 0.5 * 4 * d / n * (1 / d) * np.log(hessian * n / (4 * d)))
    assert selectors.pactran(features, labels) == pytest.approx(expected, abs=1e-6)


def test_what_is_scaled_over_a_zoo_has_no_value_for_one_expert():
    for name in ("ncti", "etran", "otce"):
        combine = selectors.SELECTORS[name].combine
        assert np.isnan(combine([[1.0, 2.0, 3.0][: 3 if name == "ncti" else 2]])).all()
    assert selectors.SELECTORS["etran"].combine([[0, 2.0], [10, 1.0]]) == pytest.approx(
        [0.85, 0.15]
    )


def test_otce_couples_and_counts():
    # two source classes exactly on top of the two target classes: W = 0, H(Y_t|Y_s) = 0; a third,
    # far one: shared
    features, labels = np.array([[0.0, 0], [0, 0], [4, 0], [4, 0]]), np.array([0, 0, 1, 1])
    assert selectors.otce(features, labels, [[0.0, 0], [4, 0]], [7, 7]) == pytest.approx(
        (0, 0), abs=1e-12
    )
    transport, entropy = selectors.otce(features, labels, [[2.0, 0]], None)
    assert (transport, entropy) == pytest.approx((4, np.log(2)), abs=1e-12)


def test_hscore_as_published():
    features, labels = sample(40, 12)
    between = np.cov(means_of(features, labels)[labels], rowvar=False)
    expected = np.trace(np.linalg.pinv(np.cov(features, rowvar=False)) @ between)
    assert selectors.hscore_pinv(features, labels) == pytest.approx(expected, rel=1e-9)
    order = np.random.default_rng(0).permutation(40)
    assert selectors.hscore_pinv(features[order], labels[order]) == pytest.approx(expected)
    for n, d in [(30, 50), (30, 29), (4, 300)]:
        with pytest.raises(Missing, match="is 3 for every expert"):
            selectors.hscore_pinv(*sample(n, d))


@pytest.mark.parametrize("n,d", SHAPES)
def test_transrate_of_the_authors_code(n, d):
    features, labels = sample(n, d)
    labels[0] = 1
    z = features - features.mean(0)
    z /= np.linalg.norm(z, axis=1, keepdims=True)

    def rate(x):
        return np.log(1 + np.linalg.svd(x.T @ x / len(x), compute_uv=False) / 1e-4).sum() / 2

    within = sum((labels == c).mean() * rate(z[labels == c]) for c in range(4))
    expected = (rate(z) - within) / np.linalg.matrix_rank(z)
    assert selectors.transrate_authors(features, labels) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "d"), [(60, 12), (50, 70)])
def test_pactran_beside_the_leading_axes_is_the_same(n, d, monkeypatch):
    features, labels = sample(n, d, shift=0.4)
    expected = selectors.pactran(features, labels)
    monkeypatch.setattr(ding2022, "MANY", 10)
    monkeypatch.setattr(ding2022, "LEADING", 5)
    columns = ding2022._rotated(torch.from_numpy(features))
    assert columns.shape == (n, d + 5)
    assert selectors.pactran(features, labels) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("n,d", SHAPES)
def test_pactran_on_the_grid(n, d):
    features, labels = sample(n, d, shift=0.4)
    *scores, accuracy = selectors.pactran_gaussian(features, labels)
    pairs = [(0.1, 1), (0.1, 10), (1, 10), (1, 100), (10, 100), (10, 1000)]
    expected = [selectors.pactran(features, labels, *pair) for pair in pairs]
    assert scores == pytest.approx(expected, abs=1e-6) and 0 <= accuracy <= 1
    assert selectors.pactran_gaussian(*sample(n, d, shift=5.0))[-1] == 1
    combine = selectors.SELECTORS["pactran_gaussian"].combine
    zoo = np.array([[1, 2, 3.0], [3, 2, 1], [1, 3, 2]] + [[0, 0, 0]] * 3 + [[0.1, 0.3, 0.2]]).T
    assert combine(zoo) == pytest.approx([1, 3, 2])  # the third column orders as the accuracies do


def slow_updates(theta, labels, step):
    n, s = theta.shape
    prior = np.bincount(labels) / n + 1e-10
    q = theta.copy()
    for _ in range(10):
        a = np.stack([prior[y] + q[labels == y].sum(0) for y in range(len(prior))])
        for i in range(n):
            q[i] = softmax([np.log(theta[i, z] + 1e-10) + step(a, labels[i], z) for z in range(s)])
    return prior, a, (q * (np.log(q) - np.log(theta + 1e-10))).sum(1)


def test_pactran_dirichlet_and_gamma_by_loops():
    theta, labels = probabilities()
    n, c = 40, 4
    prior, a, divergence = slow_updates(
        theta, labels, lambda a, y, z: digamma(a[y, z]) - digamma(a[:, z].sum())
    )

    def log_beta(v):
        return sum(gammaln(x) for x in v) - gammaln(sum(v))

    evidence = sum(log_beta(a[:, z]) - log_beta(prior) for z in range(theta.shape[1]))
    expected = (evidence - divergence.sum()) / (n * c)
    assert selectors.pactran_dirichlet(theta, labels) == pytest.approx(expected, abs=1e-9)
    prior, a, divergence = slow_updates(theta, labels, lambda a, y, z: digamma(a[y, z]))
    rates = sum(gammaln(prior[y]) - gammaln(a[y, z]) for y in range(c) for z in range(len(a[0])))
    images = sum(divergence[i] + np.log(theta[i] @ a.sum(0)) - 1 for i in range(n))
    expected = -((rates + images) / (n * c) + 1)
    assert selectors.pactran_gamma(theta, labels) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("n,d", SHAPES)
def test_ped_moves_classes_that_overlap(n, d):
    features, labels = sample(n, d, shift=0.2)
    features = features * 0.3
    deviations = features.std(0)
    x, first = (features - features.mean(0)) / deviations, None
    for step in range(6):
        means = means_of(x, labels)
        radii = [np.sqrt(x[labels == c].var(0).sum()) for c in range(4)]
        moves = np.zeros_like(means)
        for a in range(4):
            for b in range(4):
                if a != b:
                    gap = np.linalg.norm(means[a] - means[b])
                    overlap = max(0.6 * (radii[a] + radii[b]) - gap, 0)
                    moves[a] += 0.005 * overlap * (means[a] - means[b]) / gap
        first = np.abs(moves).sum() if step == 0 else first
        if np.abs(moves).sum() <= 0.5 * first:
            break
        x = x + moves[labels]
    expected = selectors.sfda(x * deviations + features.mean(0), labels)
    assert selectors.ped(features, labels) == pytest.approx(expected, rel=1e-6)
    assert step > 0 and abs(expected - selectors.sfda(features, labels)) > 1e-6


@pytest.mark.parametrize("n,d", SHAPES)
def test_rankme_is_the_entropy_of_singular_values(n, d):
    features, _ = sample(n, d)
    s = np.linalg.svd(features, compute_uv=False)
    p = s / s.sum() + 1e-7
    assert selectors.rankme(features) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-7)


def test_rankme_by_hand():
    # singular values 1, 1, 1: rank 3; one alone: rank 1
    assert selectors.rankme(np.eye(3)) == pytest.approx(3, abs=1e-4)
    assert selectors.rankme(np.ones((5, 4))) == pytest.approx(1, abs=1e-4)


def test_etran_energy_by_hand():
    # log(e⁰ + e⁰) = log 2 is the least of three
    features = np.array([[0.0, 0], [1, 1], [5, 0]])
    assert selectors.etran_energy(features) == pytest.approx(np.log(2), abs=1e-12)


def slow_power_law(values):
    best = (np.inf, 0)
    for x0 in values[:-1]:
        tail = values[values >= x0]
        alpha = 1 + len(tail) / np.log(tail / x0).sum()
        model = 1 - (tail / x0) ** (1 - alpha)
        best = min(best, (np.abs(model - np.arange(len(tail)) / len(tail)).max(), alpha))
    return best[1]


def test_weighted_alpha_of_linear_layers_and_convolutions():
    rng = np.random.default_rng(0)
    pareto = np.sort((1 - rng.random(4000)) ** (-1 / 2))  # density ∝ x⁻³
    assert martin2021.power_law(pareto) == pytest.approx(3, abs=0.15)
    linear, convolution = rng.standard_t(3, size=(80, 60)), rng.normal(size=(30, 20, 3, 3))
    values = np.sort(np.linalg.eigvalsh(linear.T @ linear))
    expected = slow_power_law(values) * np.log10(values[-1])
    assert selectors.weighted_alpha([linear]) == pytest.approx(-expected, rel=1e-9)
    slices = [convolution[:, :, i, j] * np.sqrt(9 / 2) for i in range(3) for j in range(3)]
    values = np.sort(np.concatenate([np.linalg.svd(w, compute_uv=False) ** 2 for w in slices]))
    both = (expected + slow_power_law(values) * np.log10(values[-1])) / 2
    small = np.ones((40, 40))  # too few eigenvalues: left out
    assert selectors.weighted_alpha([linear, convolution, small]) == pytest.approx(-both, rel=1e-9)
    with pytest.raises(Missing, match="50 eigenvalues"):
        selectors.weighted_alpha([small])


@pytest.mark.parametrize("name", ["ridge_loo", "ridge_loo_mse", "logme"])
def test_as_many_images_as_features_is_no_special_case(name):
    """A feature that is zero for all changes nothing, nor does it where N = D without it."""
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 3
    features = rng.normal(size=(24, 24)) + 2 * rng.normal(size=(3, 24))[labels]
    wider = np.concatenate([features, np.zeros((24, 1))], axis=1)
    function = selectors.SELECTORS[name].function
    assert function(features, labels) == pytest.approx(function(wider, labels), rel=1e-5)
