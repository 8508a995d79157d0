"""Speed of the selectors, each beside a straightforward writing of its definition in the same run.

    OMP_NUM_THREADS=1 python benchmarks/selector_speed.py [results/benchmarks/selectors.csv]

CPU seconds of the process: with one thread they hardly depend on other work on the machine. Medians
of alternating repeats after a warm-up (baselines above 10 s run once); ratio = baseline / ours.
Growth rows hold the exponent of a log-log fit of seconds against N, D or C. The row "product alone"
is what no exact LFC can undercut: half a matrix product in single precision. Memory rows: peak MB
above the data. Jackknife rows: the score and its replicates, as in `rank`, when the selectors before
have been asked too; the baseline knows nothing of them.
"""

import ctypes
import multiprocessing
import os
import platform
import resource
import sys
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from scipy.spatial.distance import cdist
from scipy.stats import mode, spearmanr
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors

from mzlib import selectors
from mzlib.ranking import GROUPS
from mzlib.selectors import _linalg
from mzlib.selectors._linalg import gram
from mzlib.uncertainty import replicates


def sample(n, d, c, seed=0):
    """ReLU-like features with classes and a decaying spectrum, float32 as an expert gives them."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % c
    spectrum = np.arange(1, d + 1) ** -0.7
    latent = (rng.normal(size=(n, d)) + rng.normal(size=(c, d))[labels]) * spectrum
    return np.maximum(latent @ np.linalg.qr(rng.normal(size=(d, d)))[0], 0).astype(
        np.float32
    ), labels


def slow_lfc(features, labels):
    features = features.astype(np.float64)
    kernel = features @ features.T
    same = np.where(labels[:, None] == labels, 1.0, -1.0)
    kernel, same = kernel - kernel.mean(), same - same.mean()
    return (kernel * same).sum() / np.sqrt((kernel**2).sum() * (same**2).sum())


def slow_parc(features, labels):
    upper, onehot = np.triu_indices(len(labels), 1), np.eye(labels.max() + 1)[labels]
    standard = (features - features.mean(0)) / features.std(0)
    return spearmanr(1 - np.corrcoef(standard)[upper], 1 - np.corrcoef(onehot)[upper]).statistic


def slow_logme(features, labels):
    features = features.astype(np.float64)
    (n, d), evidences = features.shape, []
    u, s, _ = np.linalg.svd(features, full_matrices=False)
    v = s**2
    for c in range(labels.max() + 1):
        z = (labels == c).astype(float)
        x2 = (u.T @ z) ** 2
        rest, alpha, beta = (z**2).sum() - x2.sum(), 1.0, 1.0
        for _ in range(100):
            t = alpha / beta
            m2, r2 = (v * x2 / (t + v) ** 2).sum(), (x2 * t**2 / (t + v) ** 2).sum() + rest
            gamma = (v / (v + t)).sum()
            alpha, beta = gamma / (m2 + 1e-5), (n - gamma) / (r2 + 1e-5)
            if abs(alpha / beta - t) <= 1e-3 * t:
                break
        log_det = np.log(alpha + beta * v).sum() + (d - len(v)) * np.log(alpha)
        evidences.append(d * np.log(alpha) + n * np.log(beta) - log_det - beta * r2 - alpha * m2)
    return np.mean(evidences) / (2 * n) - np.log(2 * np.pi) / 2


def slow_nleep(features, labels):
    x = PCA(0.8).fit_transform(features.astype(np.float64))
    number = min(5 * (labels.max() + 1), len(x) // 2)
    ridge = 1e-6 * (x**2).mean()
    theta = (
        GaussianMixture(number, random_state=0, reg_covar=ridge, max_iter=1).fit(x).predict_proba(x)
    )  # one step
    joint = np.stack([theta[labels == c].sum(0) for c in range(labels.max() + 1)])
    return np.log(((joint / joint.sum(0))[labels] * theta).sum(1)).mean()


def slow_transrate(features, labels, eps=1e-4):
    features = features.astype(np.float64) - features.mean(0, dtype=np.float64)

    def rate(x):
        return 0.5 * np.linalg.slogdet(np.eye(x.shape[1]) + x.T @ x / (len(x) * eps))[1]

    return rate(features) - np.mean([rate(features[labels == c]) for c in range(labels.max() + 1)])


def slow_gbc(features, labels):
    x = PCA(64).fit_transform(features.astype(np.float64))
    groups = [x[labels == c] for c in range(labels.max() + 1)]
    means, spreads, total = [g.mean(0) for g in groups], [g.var(0).mean() for g in groups], 0.0
    for a in range(len(groups)):
        for b in range(len(groups)):
            if a != b:
                spread = (spreads[a] + spreads[b]) / 2
                distance = ((means[a] - means[b]) ** 2).sum() / (8 * spread)
                total -= np.exp(-distance - 32 * np.log(spread / np.sqrt(spreads[a] * spreads[b])))
    return total


def slow_knn(features, labels):
    distances = cdist(features, features, "cosine")
    np.fill_diagonal(distances, np.inf)
    neighbours = np.argsort(distances, axis=1, kind="stable")[:, :5]
    return (mode(labels[neighbours], axis=1).mode == labels).mean()


def sklearn_knn(features, labels):
    neighbours = (
        NearestNeighbors(n_neighbors=5, metric="cosine")
        .fit(features)
        .kneighbors(return_distance=False)
    )
    return (mode(labels[neighbours], axis=1).mode == labels).mean()


def seconds(function, fresh: bool = True) -> float:
    """CPU seconds; fresh: without what an earlier call has computed."""
    if fresh:
        _linalg._results.clear()
    start = time.process_time()
    function()
    return time.process_time() - start


def beside(ours, baseline, repeats=5):
    """Medians of alternating repeats; a baseline above 10 s runs once."""
    ours()
    first = seconds(baseline)
    pairs = [] if first > 10 else [(seconds(ours), seconds(baseline)) for _ in range(repeats)]
    return (
        tuple(np.median(pairs, axis=0))
        if pairs
        else (np.median([seconds(ours) for _ in range(repeats)]), first)
    )


def peak(function) -> float:
    """MB that the function needs above what is there, in a process of its own."""

    def child(queue):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        function()
        queue.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)

    ctypes.CDLL(None).malloc_trim(0)  # or the child computes in what was freed here
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    process.join()
    return queue.get()


NEEDS = {"features", "labels", "seed"}
FEATURES = [
    name
    for name, selector in selectors.SELECTORS.items()
    if selector.needs
    and set(selector.needs) <= NEEDS
    and name != "hscore_pinv"  # no score where N <= D
]


def apply(name, features, labels):
    given = {"features": features, "labels": labels, "seed": 0}
    return selectors.SELECTORS[name].function(
        **{k: given[k] for k in selectors.SELECTORS[name].needs}
    )


def jackknife(features, labels) -> list[dict]:
    """Seconds of every selector's replicates with and without what the others have computed."""
    evidence = SimpleNamespace(features=torch.from_numpy(features), labels=labels, seed=0)
    shape = dict(n=features.shape[0], d=features.shape[1], c=int(labels.max()) + 1)

    def replicated(name: str) -> None:
        replicates(selectors.SELECTORS[name], evidence, GROUPS.get(name, 20))

    alone = {name: seconds(partial(replicated, name)) for name in FEATURES}
    _linalg._results.clear()
    together = {name: seconds(partial(replicated, name), fresh=False) for name in FEATURES}
    together["all feature-based"] = sum(together.values())
    alone["all feature-based"] = sum(alone.values())
    return [
        dict(section="jackknife", selector=name, **shape, seconds=value)
        | dict(baseline_seconds=alone[name], ratio=alone[name] / value)
        for name, value in together.items()
    ]


def main(path: str) -> None:
    rows = []

    def record(section, selector, n, d, c, ours, baseline=np.nan, target=""):
        times = dict(seconds=ours, baseline_seconds=baseline, ratio=baseline / ours)
        rows.append(dict(section=section, selector=selector, n=n, d=d, c=c, **times, target=target))
        print(section, selector, *map("{:.3g}".format, times.values()), target, flush=True)

    n, d, c = 2000, 2048, 100
    features, labels = sample(n, d, c)
    slow = dict(
        lfc=slow_lfc,
        parc=slow_parc,
        logme=slow_logme,
        gbc=slow_gbc,
        knn_5=slow_knn,
        nleep=slow_nleep,
        transrate=slow_transrate,
    )
    for name, definition in slow.items():
        function = partial(apply, name, features, labels)
        times = beside(function, partial(definition, features, labels))
        record("definition", name, n, d, c, *times, ">= 20" if name == "lfc" else ">= 3")
    centred = torch.from_numpy(features - features.mean(0))
    record(
        "product alone",
        "lfc",
        n,
        d,
        c,
        *beside(partial(gram, centred), partial(slow_lfc, features, labels)),
    )
    times = beside(
        partial(apply, "knn_5", features, labels), partial(sklearn_knn, features, labels)
    )
    record("optimised library", "knn_5", n, d, c, *times)

    for n in (2000, 4000, 8000):
        arrays = sample(n, 512, c)
        memory = peak(partial(apply, "lfc", *arrays)), peak(partial(slow_lfc, *arrays))
        rows.append(
            dict(
                section="memory",
                selector="lfc",
                n=n,
                d=512,
                c=c,
                peak_mb=memory[0],
                baseline_peak_mb=memory[1],
            )
        )
        print("memory", n, *map(round, memory), flush=True)

    base = sample(250, 256, 10)
    times = {
        name: np.median([seconds(partial(apply, name, *base)) for _ in range(6)][1:])
        for name in FEATURES
    }
    for name, value in times.items():
        record("few shots", name, 250, 256, 10, value)
    record("few shots", "all feature-based", 250, 256, 10, sum(times.values()), target="<= 1.0 s")

    rows += jackknife(*sample(250, 192, 10))
    sizes = {
        "N": [(v, 256, 10) for v in (250, 500, 1000, 2000)],
        "D": [(500, v, 10) for v in (128, 256, 512, 1024)],
        "C": [(1000, 128, v) for v in (5, 20, 80, 320)],
    }
    for axis, shapes in sizes.items():
        data = [sample(*shape) for shape in shapes]
        for name in FEATURES:
            curve = [
                np.median([seconds(partial(apply, name, *arrays)) for _ in range(3)])
                for arrays in data
            ]
            at = ["N", "D", "C"].index(axis)
            slope = np.polyfit(np.log([shape[at] for shape in shapes]), np.log(curve), 1)[0]
            last = dict(zip("ndc", shapes[-1]))
            rows.append(
                dict(
                    section=f"growth in {axis}",
                    selector=name,
                    **last,
                    seconds=curve[-1],
                    exponent=slope,
                )
            )
    table = pd.DataFrame(rows)
    table = table.assign(**machine())
    os.makedirs(os.path.dirname(path), exist_ok=True)
    table.to_csv(path, index=False, float_format="%.4g")


def machine() -> dict[str, object]:
    """Where a table was made; load: of the last 15 minutes, other work on the same cores."""
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    name = f"{_processor()}, {platform.machine()}, {cores}"
    return dict(machine=name, load=round(os.getloadavg()[2], 1), torch=torch.__version__)


def _processor() -> str:
    with open("/proc/cpuinfo") as lines:
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "results/benchmarks/selectors.csv")
