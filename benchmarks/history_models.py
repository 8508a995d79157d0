"""Ways to learn from past fine-tunes, each judged on targets that it never saw.

    python benchmarks/history_models.py        # results/benchmarks/history_models.csv, a minute

Reads the committed tables of thumb64 at 20 shots (and of mini). For every target each model is
fitted on the *other* targets, all its constants too. Models:

* `score`: the score that the history holds, alone; `history`: mean rank on past targets, alone;
* `history_score`: both added, every past target alike;
* `neighbour_history`: past targets that score alike vote more (`mzlib.selectors.history`; ships);
* `regression`: rank share of the accuracy on the score's rank share, architecture and start;
* `bayesian`: accuracy and score of all experts jointly normal (`BayesianHistory`);
* `other_suite_prior`: the score and the mean rank of architecture and start in mini, whose experts
  and images are other ones: a prior for experts that were never fine-tuned;
* `new_source`: `neighbour_history` for experts of a source that the history lacks, which are
  ranked by their score alone; `new_source_prior`: these take the vote of their architecture and
  start. Means over the sources.

Columns: model, task, spearman (with accuracy), gain (accuracy of the first less that of the generic
expert, points); of `bayesian`: covered (share of experts inside their 95 % interval) and width
(of that interval, ranks).
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import multigammaln

from mzlib.benchmark import complete, learned, load_results, load_suite
from mzlib.benchmark.metrics import spearman
from mzlib.provenance import home
from mzlib.selectors.history import OUTSIDE, History, history, neighbour_history, shares

SUITE, OTHER, REGIME = "thumb64", "mini", "20"
PATH = home() / "results/benchmarks/history_models.csv"


class BayesianHistory:
    """Rank shares of accuracy y and score s of the E experts on a target, z = (y, s) in R^2E, as
    draws from a normal distribution with a conjugate prior (normal-inverse-Wishart, e.g. Murphy
    2007, "Conjugate Bayesian analysis of the Gaussian distribution", eqs. 250-266):

        mean | Σ ~ N(m0, Σ),   Σ ~ IW(Ψ, ν),   Ψ = (ν - 2E - 1) [[a I, c I], [c I, b I]]

    m0: means of y over architecture and start, 1/2 for s; a, b, c: mean variances of y and of s
    over targets and their mean covariance; ν: of the highest marginal likelihood. With ν → ∞ an
    expert is ranked by its history and its own score; the smaller ν, the more other experts' scores
    say. What a target's scores then say of its accuracies is a multivariate Student's t.
    """

    def __init__(self, past: History):
        y = shares(past.accuracy)
        s = shares(past.scores)
        z = np.hstack([y, s])
        number, size = z.shape
        self.experts = size // 2
        by_group = pd.DataFrame({"group": past.groups, "mean": y.mean(axis=0)})
        group_means = by_group.groupby("group")["mean"].transform("mean").to_numpy()
        prior_mean = np.concatenate([group_means, np.full(self.experts, 0.5)])
        deviation = z - z.mean(axis=0)
        scatter = deviation.T @ deviation
        shift = z.mean(axis=0) - prior_mean
        scatter += number / (1 + number) * np.outer(shift, shift)
        prior = self._prior(deviation)
        candidates = size + 1 + np.geomspace(2, 1e4, 40)
        likelihoods = [self._evidence(prior, scatter, number, nu) for nu in candidates]
        self.nu = candidates[int(np.argmax(likelihoods))]
        posterior = (self.nu - size - 1) * prior + scatter
        self.degrees = self.nu + number - size + 1
        self.mean = (prior_mean + number * z.mean(axis=0)) / (1 + number)
        self.scale = posterior * (number + 2) / ((number + 1) * self.degrees)

    def _prior(self, deviation: np.ndarray) -> np.ndarray:
        variances = np.square(deviation).mean(axis=0)
        of_accuracy = variances[: self.experts].mean()
        of_score = variances[self.experts :].mean()
        both = (deviation[:, : self.experts] * deviation[:, self.experts :]).mean()
        blocks = np.array([[of_accuracy, both], [both, of_score]])
        return np.kron(blocks, np.eye(self.experts))

    @staticmethod
    def _evidence(prior: np.ndarray, scatter: np.ndarray, number: int, nu: float) -> float:
        """Log marginal likelihood up to a constant."""
        size = len(prior)
        psi = (nu - size - 1) * prior
        before = np.linalg.slogdet(psi)[1]
        after = np.linalg.slogdet(psi + scatter)[1]
        gammas = multigammaln((nu + number) / 2, size) - multigammaln(nu / 2, size)
        return gammas + nu / 2 * before - (nu + number) / 2 * after

    def predict(self, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(mean, half width of the 95 % interval) of the rank shares of accuracy, [E] each."""
        e = self.experts
        shift = shares(score) - self.mean[e:]
        of_score = self.scale[e:, e:]
        gain = np.linalg.solve(of_score, self.scale[e:, :e]).T
        mean = self.mean[:e] + gain @ shift
        distance = shift @ np.linalg.solve(of_score, shift)
        degrees = self.degrees + e
        left = self.scale[:e, :e] - gain @ self.scale[e:, :e]
        spread = np.sqrt(np.diag(left) * (self.degrees + distance) / degrees)
        return mean, stats.t.ppf(0.975, degrees) * spread


def regression(past: History, score: np.ndarray) -> np.ndarray:
    """Least squares of the share of accuracy on that of the score, architecture and start."""
    groups = pd.get_dummies(pd.Series(past.groups)).to_numpy(float)
    y = shares(past.accuracy).ravel()
    own = shares(past.scores).ravel()[:, None]
    design = np.hstack([own, np.tile(groups, (len(past.targets), 1))])
    weights = np.linalg.lstsq(design, y, rcond=None)[0]
    return np.hstack([shares(score)[:, None], groups]) @ weights


def other_prior(past: History, groups: tuple[str, ...]) -> np.ndarray:
    """Mean rank share that another suite's experts of the same architecture and start have; of an
    architecture that it lacks there, of the start.
    """
    each = pd.DataFrame({"group": past.groups, "share": history(past)})
    each["start"] = each["group"].str.partition(", ")[2]
    of_group = each.groupby("group")["share"].mean()
    of_start = each.groupby("start")["share"].mean()
    return np.array([of_group.get(g, of_start[g.partition(", ")[2]]) for g in groups])


def with_new_source(past: History, score: np.ndarray, new: list[str], prior: bool) -> np.ndarray:
    """`neighbour_history` where the history never saw the experts `new`; prior: these get the mean
    vote of the known experts of their group, if there is one.
    """
    known = past.without([], new)
    position = known.positions(past.experts)
    value = neighbour_history(known, position, score)
    if not prior:
        return value
    own = known.own * shares(score)
    vote = pd.Series(value - own).where(position != OUTSIDE)
    of_group = vote.groupby(np.array(past.groups)).transform("mean")
    filled = vote.fillna(of_group).to_numpy()
    return np.where(np.isnan(filled), value, filled + own)


def orders(
    past: History, i: int, other: History, sources: dict
) -> Iterator[tuple[str, np.ndarray]]:
    """(model, value of every expert) on target i, from the other targets."""
    score = past.scores[i]
    rest = learned.chosen(past.without([past.targets[i]]))
    everyone = np.arange(len(past.experts))
    yield "score", score
    yield "history", history(rest)
    yield "history_score", history(rest) + shares(score)
    yield "neighbour_history", neighbour_history(rest, everyone, score)
    yield "regression", regression(rest, score)
    yield "other_suite_prior", other_prior(other, past.groups) + shares(score)
    for source in sorted(set(sources.values())):
        new = [expert for expert in past.experts if sources[expert] == source]
        yield "new_source", with_new_source(rest, score, new, prior=False)
        yield "new_source_prior", with_new_source(rest, score, new, prior=True)


def gathered(name: str) -> tuple[History, pd.DataFrame, str]:
    """A suite's history at 20 shots, its table of experts, and the generic expert."""
    suite = load_suite(name)
    results = load_results(name)
    finetune = complete(results.finetune, suite, "single")
    past = learned.collect(finetune, results.scores, results.zoo, suite.generic, REGIME)
    return past, results.zoo, suite.reference


def main() -> None:
    """Write the table and print its means."""
    past, zoo, reference = gathered(SUITE)
    other, *_ = gathered(OTHER)
    sources = dict(zip(zoo["expert"], zoo["source"]))
    sources = {expert: sources[expert] for expert in past.experts}
    generic = past.experts.index(reference)
    rows = []
    for i, target in enumerate(past.targets):
        accuracy = past.accuracy[i]

        def judged(model: str, value: np.ndarray) -> dict:
            first = accuracy[value == value.max()].mean()
            rho = float(spearman(value, accuracy))
            gain = 100 * (first - accuracy[generic])
            return {"model": model, "task": target, "spearman": rho, "gain": gain}

        rows += [judged(*order) for order in orders(past, i, other, sources)]
        model = BayesianHistory(past.without([target]))
        mean, half = model.predict(past.scores[i])
        inside = np.abs(shares(accuracy) - mean) <= half
        width = 2 * half.mean() * len(half)
        rows.append(judged("bayesian", mean) | {"covered": inside.mean(), "width": width})
    table = pd.DataFrame(rows).groupby(["model", "task"], sort=False).mean().reset_index()
    table.to_csv(PATH, index=False, float_format="%.4f")
    print(table.groupby("model", sort=False).mean(numeric_only=True).round(3).to_string())
    print("nu", round(BayesianHistory(past).nu, 1))


if __name__ == "__main__":
    main()
