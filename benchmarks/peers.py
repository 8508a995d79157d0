"""Our selectors beside public code from the package index, in one run on one thread.

    pip install mzlib[peers]
    OMP_NUM_THREADS=1 python benchmarks/peers.py [results/benchmarks/peers.csv] [cells, such as AB]

CPU seconds of the process, medians of alternating repeats after a warm-up (peers of more than
3 s run once); ratio = ours / theirs: below 1 ours is faster. `value` and `peer_value` are what the
two return: the same number where the definitions are the same, which `same` says.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import numpy as np
import ot
import pandas as pd
import torch
from scipy.stats import mode, spearmanr
from selector_speed import machine, sample
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression, RidgeClassifierCV
from sklearn.metrics import mutual_info_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from transformer_ranker.estimators import HScore, LogME
from transformer_ranker.estimators import NearestNeighbors as RankerNeighbors

from mzlib import selectors
from mzlib.selectors import _linalg

CELLS = {
    "A": (250, 192, 10),
    "B": (500, 2048, 50),
    "C": (2000, 2048, 100),
    "D": (10_000, 1024, 200),
}


def probabilities(labels: np.ndarray, s: int = 1000) -> np.ndarray:
    """Softmax outputs of a source classifier of 1,000 classes that sees something of the labels."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(len(labels), s)).astype(np.float32)
    logits[np.arange(len(labels)), labels * 3 % s] += 2.5
    logits = np.exp(logits)
    return logits / logits.sum(1, keepdims=True)


def sklearn_knn(features, labels):
    index = NearestNeighbors(n_neighbors=5, metric="cosine").fit(features)
    neighbours = index.kneighbors(return_distance=False)
    return (mode(labels[neighbours], axis=1).mode == labels).mean()


def sklearn_hscore(features, labels):
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    covariance, alpha = ledoit_wolf(centred, assume_centered=True)
    means = np.stack([centred[labels == c].mean(0) for c in range(labels.max() + 1)])
    between = np.cov(means[labels], rowvar=False)
    return (1 - alpha) * np.trace(np.linalg.solve(covariance, between))


def sklearn_ridge(features, labels):
    model = RidgeClassifierCV(alphas=np.logspace(-6, 3, 19) * features.var(0).sum())
    return model.fit(features.astype(np.float64), labels).score(features, labels)


def sklearn_fit(features, labels):
    """The classifier whose loss PACTran bounds, at the same λ = N."""
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    model = LogisticRegression(C=1.0, max_iter=200, tol=1e-6).fit(centred, labels)
    return -model.score(centred, labels)


def scipy_parc(features, labels):
    upper = np.triu_indices(len(labels), 1)
    distances = 1 - np.corrcoef(StandardScaler().fit_transform(features))[upper]
    return spearmanr(distances, labels[upper[0]] != labels[upper[1]]).statistic


def sklearn_nce(theta, labels):
    """−H(Y|Z) = I(Y; Z) − H(Y)."""
    return mutual_info_score(labels, theta.argmax(1)) - mutual_info_score(labels, labels)


def numpy_leep(theta, labels):
    joint = np.stack([theta[labels == c].sum(0) for c in range(labels.max() + 1)])
    return np.log(((joint / joint.sum(0))[labels] * theta).sum(1)).mean()


def pot_similarity(features, labels, means, counts):
    own = np.stack([features[labels == c].mean(0) for c in range(labels.max() + 1)])
    sizes = np.bincount(labels).astype(float)
    cost = ot.dist(own.astype(np.float64), means.astype(np.float64), metric="euclidean")
    return np.exp(-0.01 * ot.emd2(sizes / sizes.sum(), counts / counts.sum(), cost))


def pairs(n: int, d: int, c: int) -> list[tuple]:
    """(selector, ours, peer's name, theirs, whether both define the same number)."""
    features, labels = sample(n, d, c)
    tensors = torch.from_numpy(features), torch.from_numpy(labels)
    theta = probabilities(labels)
    rng = np.random.default_rng(1)
    means, counts = np.abs(rng.normal(size=(100, d))).astype(np.float32), rng.integers(5, 99, 100)

    def ours(name: str, *arrays) -> Callable:
        return partial(getattr(selectors, name), *(arrays or (features, labels)))

    source = features, labels, means, counts
    rows = [
        # theirs leaves out the zero singular values of N < D
        ("logme", ours("logme"), "transformer-ranker", partial(LogME().fit, *tensors), n >= d),
        ("hscore", ours("hscore"), "transformer-ranker", partial(HScore().fit, *tensors), False),
        ("hscore", ours("hscore"), "scikit-learn", partial(sklearn_hscore, features, labels), True),
        (
            "knn_5",
            partial(selectors.knn, features, labels, 5),
            "scikit-learn",
            partial(sklearn_knn, features, labels),
            False,
        ),
        (
            "knn_5",
            partial(selectors.knn, features, labels, 5, "euclidean"),
            "transformer-ranker",
            partial(RankerNeighbors(k=5).fit, *tensors),
            False,
        ),
        (
            "ridge_loo",
            ours("ridge_loo"),
            "scikit-learn",
            partial(sklearn_ridge, features, labels),
            False,
        ),
        ("pactran", ours("pactran"), "scikit-learn", partial(sklearn_fit, features, labels), False),
        (
            "nce",
            ours("nce", theta, labels),
            "scikit-learn",
            partial(sklearn_nce, theta, labels),
            True,
        ),
        ("leep", ours("leep", theta, labels), "numpy", partial(numpy_leep, theta, labels), True),
        (
            "domain_similarity",
            ours("domain_similarity", *source),
            "POT",
            partial(pot_similarity, *source),
            True,
        ),
    ]
    if n <= 2000:  # 50 million pairs take scipy several gigabytes
        rows.append(("parc", ours("parc"), "scipy", partial(scipy_parc, features, labels), True))
    return rows


def timed(function: Callable) -> tuple[float, float]:
    _linalg._results.clear()  # what an earlier call has computed
    start = time.process_time()
    value = function()
    return time.process_time() - start, float(value)


def beside(ours: Callable, theirs: Callable, repeats: int = 5) -> tuple[float, float, float, float]:
    """Median seconds of both and what they return."""
    _, value = timed(ours)
    first, peer_value = timed(theirs)
    slow = first > 3
    runs = [
        (timed(ours)[0], first if slow else timed(theirs)[0]) for _ in range(1 if slow else repeats)
    ]
    seconds, peer_seconds = np.median(runs, axis=0)
    return float(seconds), float(peer_seconds), value, peer_value


def main(path: str = "results/benchmarks/peers.csv", cells: str = "ABCD") -> None:
    rows = []
    for cell in cells:
        for name, ours, peer, theirs, same in pairs(*CELLS[cell]):
            seconds, peer_seconds, value, peer_value = beside(ours, theirs)
            n, d, c = CELLS[cell]
            row = dict(cell=cell, n=n, d=d, c=c, selector=name, peer=peer)
            row |= dict(version="" if peer == "numpy" else version(peer), seconds=seconds)
            row |= dict(peer_seconds=peer_seconds, ratio=seconds / peer_seconds)
            rows.append(row | dict(value=value, peer_value=peer_value, same=same))
            print(
                *(f"{x:.3g}" if isinstance(x, float) else x for x in rows[-1].values()), flush=True
            )
    table = pd.DataFrame(rows).assign(**machine())
    table.to_csv(path, index=False, float_format="%.4g")


if __name__ == "__main__":
    main(*sys.argv[1:])
