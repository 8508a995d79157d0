"""Intervals over targets, and what several tests and few targets allow to say."""

import numpy as np
import pandas as pd
from scipy import stats

SETTING = ["suite", "shots", "images_per_class", "protocol", "selector", "metric"]
FEW = 8  # values; fewer: Student's t, as a bootstrap of so few knows no tails
DRAWS = 2000
MOSTLY = 0.9  # of the tasks: the selectors that are compared have a score on so many


def interval(
    values: np.ndarray, level: float = 0.95, rng: np.random.Generator | None = None
) -> tuple[float, float]:
    """Confidence interval of the mean of independent `values` [n]; see `intervals`."""
    low, high = intervals(np.asarray(values, float)[None], level, rng)
    return float(low[0]), float(high[0])


def intervals(
    values: np.ndarray, level: float = 0.95, rng: np.random.Generator | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Confidence intervals (low [S], high [S]) of the means of S series of independent values
    [S, n]: bootstrap-t (Efron & Tibshirani 1993, Sec. 12.5), Student's t below 8 values, NaN below
    two. All series share the resamples. rng: of these (default: seed 0).

    The percentile bootstrap covers .905 instead of .95 at n = 21: it knows neither n - 1 nor
    skewness.
    """
    series, n = values.shape
    if n < 2:
        return np.full(series, np.nan), np.full(series, np.nan)
    mean = values.mean(axis=1)
    error = values.std(axis=1, ddof=1) / np.sqrt(n)
    tail = (1 - level) / 2
    reach = stats.t.ppf(1 - tail, n - 1) * error
    low = mean - reach
    high = mean + reach
    varied = error > 1e-12 * np.abs(mean)
    if n < FEW or not varied.any():
        return low, high
    rng = rng or np.random.default_rng(0)
    drawn = rng.integers(n, size=(DRAWS, n))
    # weights[b, i]: share of value i in resample b; moments of a resample are products with them
    weights = np.zeros((DRAWS, n))
    np.add.at(weights, (np.arange(DRAWS)[:, None], drawn), 1 / n)
    centred = values[varied] - mean[varied, None]
    means = centred @ weights.T  # [S, draws]
    variances = np.maximum(np.square(centred) @ weights.T - np.square(means), 0)
    errors = np.sqrt(variances / (n - 1))
    # t* = (mean* - mean) / error*, whose quantiles stand where Student's would. Where nearly all
    # values are one, a resample may hold it alone and has no t*: there Student's stays.
    spread = (errors > 1e-6 * error[varied, None]).mean(axis=1) > 1 - tail / 2
    at = np.flatnonzero(varied)[spread]
    studentized = means[spread] / np.maximum(errors[spread], 1e-6 * error[at, None])
    below, above = np.quantile(studentized, [tail, 1 - tail], axis=1)
    low[at] = mean[at] - above * error[at]
    high[at] = mean[at] - below * error[at]
    return low, high


def p_value(values: np.ndarray, threshold: float = 0.0) -> float:
    """Two-sided p of "the mean of `values` [n] is `threshold`" by Student's t; NaN below two."""
    n = len(values)
    if n < 2:
        return np.nan
    distance = float(np.mean(values)) - threshold
    error = float(np.std(values, ddof=1)) / np.sqrt(n)
    if error == 0:
        return float(distance == 0)
    return float(2 * stats.t.sf(abs(distance) / error, n - 1))


def holm(p: np.ndarray) -> np.ndarray:
    """p-values [m] adjusted for being m (Holm 1979); NaN (not tested) stays and does not count.

    Examples:
        >>> holm(np.array([0.01, 0.04, 0.03])).round(2)
        array([0.03, 0.06, 0.06])
    """
    adjusted = np.full(len(p), np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * p[order]))
    return adjusted


def smallest_effect(values: np.ndarray, power: float = 0.8, level: float = 0.95) -> float:
    """The distance of the mean from the threshold that n such `values` would show with probability
    `power`: (t + t_power) · s / √n; NaN below two values.
    """
    n = len(values)
    if n < 2:
        return np.nan
    error = float(np.std(values, ddof=1)) / np.sqrt(n)
    quantiles = stats.t.ppf([(1 + level) / 2, power], n - 1)
    return float(quantiles.sum() * error)


def summarize(metrics: pd.DataFrame, rng: np.random.Generator, level: float = 0.95) -> pd.DataFrame:
    """Means over tasks of `evaluate`'s values, with `interval` over tasks.

    The mean is over tasks of the mean over seeds, missing values left out; the spread between
    tasks contains that of the seeds. Returns: suite, shots, images_per_class, protocol, selector,
    metric, mean, low, high, tasks (that have a value), missing (share of the values that are NaN).
    """
    by_task = metrics.groupby([*SETTING, "task"], sort=True)["value"].mean().dropna()
    values = {key: part.to_numpy() for key, part in by_task.groupby(level=SETTING)}
    missing = metrics["value"].isna().groupby([metrics[key] for key in SETTING]).mean()
    table = missing.rename("missing").reset_index()
    found = [values.get(tuple(key), np.empty(0)) for key in table[SETTING].itertuples(index=False)]
    table["mean"] = [part.mean() if len(part) else np.nan for part in found]
    table["tasks"] = [len(part) for part in found]
    table[["low", "high"]] = np.nan
    for n in sorted(set(table["tasks"]) - {0}):
        same = np.flatnonzero(table["tasks"] == n)
        low, high = intervals(np.array([found[i] for i in same]), level, rng)
        table.loc[same, "low"] = low
        table.loc[same, "high"] = high
    return table[[*SETTING, "mean", "low", "high", "tasks", "missing"]]


def on_common_tasks(metrics: pd.DataFrame) -> pd.DataFrame:
    """The rows of tasks on which all selectors have a value, so that means compare: a selector
    without a score on a hard task must not gain by it.

    A selector that lacks more than a tenth of the tasks (`MOSTLY`) limits nobody and keeps those
    that remain to it; `tasks` of `summarize` says how many.
    """
    keys = [key for key in SETTING if key != "selector"]
    kept = []
    for _, part in metrics.groupby(keys, dropna=False):
        compared = part[part["selector"] != "noise_ceiling"]
        wide = compared.pivot_table(index="task", columns="selector", values="value", dropna=False)
        covered = wide.notna().mean()
        complete = wide[covered.index[covered >= MOSTLY]].dropna().index
        kept.append(part[part["task"].isin(complete)])
    return pd.concat(kept, ignore_index=True) if kept else metrics


def chosen_elsewhere(metrics: pd.DataFrame, metric: str) -> pd.Series:
    """Target -> value of the selector whose mean over the *other* targets is highest: what the
    winner among many selectors is worth, when it is not chosen on the target that judges it.

    metrics: rows of `evaluate` in one setting, of the selectors that may win; a selector without a
    value on some target may not. Higher is better.
    """
    rows = metrics[metrics["metric"] == metric]
    wide = rows.pivot_table(index="task", columns="selector", values="value").dropna(axis=1)
    winner = (wide.sum() - wide).idxmax(axis=1)
    return pd.Series({task: wide.loc[task, name] for task, name in winner.items()})
