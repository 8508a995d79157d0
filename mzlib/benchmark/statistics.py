"""Intervals over targets, and what several tests and few targets allow to say."""

import numpy as np
import pandas as pd
from numpy import ndarray
from numpy.random import Generator
from pandas import DataFrame
from scipy import stats

SETTING = [
    "suite",
    "shots",
    "images_per_class",
    "protocol",
    "selector",
    "metric",
]
FEW = 8  # values; of so many or fewer, Student's t: a bootstrap of so few knows no tails
DRAWS = 2000
TAIL = 0.025  # of a 95 % interval, on each side
POWER = 0.8
MOSTLY = 0.9  # of the tasks: the selectors that are compared have a score on so many


def interval(values: ndarray) -> tuple[float, float]:
    """95 % confidence interval of the mean of independent `values` [n]; see `intervals`."""
    (low,), (high,) = intervals(np.asarray(values, float)[None])
    return float(low), float(high)


def intervals(values: ndarray, rng: Generator | None = None) -> tuple[ndarray, ndarray]:
    """95 % confidence intervals (low [S], high [S]) of the means of S series of independent values
    [S, n]: bootstrap-t (Efron & Tibshirani 1993, Sec. 12.5), Student's t of up to 8 values, NaN of
    less than two. All series share the resamples. rng: of these (default: seed 0).

    The percentile bootstrap covers .905 instead of .95 at n = 21: it knows neither n - 1 nor
    skewness.
    """
    series, n = values.shape
    if n < 2:
        nothing = np.full(series, np.nan)
        return nothing, nothing
    mean = values.mean(axis=1)
    error = stats.sem(values, axis=1)
    reach = stats.t.ppf(1 - TAIL, n - 1) * error
    low = mean - reach
    high = mean + reach
    varied = error > 1e-12 * np.abs(mean)
    if n <= FEW or not varied.any():
        return low, high
    rng = rng or np.random.default_rng(0)
    drawn = rng.integers(n, size=(DRAWS, n))
    # weights[b, i]: share of value i in resample b; moments of a resample are products with them
    weights = np.zeros((DRAWS, n))
    resample = np.arange(DRAWS)
    at = (resample[:, None], drawn)
    np.add.at(weights, at, 1 / n)
    centred = values[varied] - mean[varied, None]
    means = centred @ weights.T  # [S, draws]
    squares = np.square(centred) @ weights.T
    variances = np.maximum(squares - np.square(means), 0)
    errors = np.sqrt(variances / (n - 1))
    # t* = (mean* - mean) / error*, whose quantiles stand where Student's would. Where nearly all
    # values are one, a resample may hold it alone and has no t*: there Student's stays.
    least = 1e-6 * error[varied, None]
    share = (errors > least).mean(axis=1)
    spread = share > 1 - TAIL / 2
    at = np.flatnonzero(varied)[spread]
    studentized = means[spread] / np.maximum(errors[spread], least[spread])
    below, above = np.quantile(studentized, [TAIL, 1 - TAIL], axis=1)
    low[at] = mean[at] - above * error[at]
    high[at] = mean[at] - below * error[at]
    return low, high


def p_value(values: ndarray, threshold: float = 0.0) -> float:
    """Two-sided p of "the mean of `values` [n] is `threshold`" by Student's t; NaN below two.

    Equal values say nothing of their spread: the sign test's 2^(1 - n), or 1 at the threshold.
    """
    n = len(values)
    if n < 2:
        return np.nan
    if np.ptp(values) == 0:
        return 1.0 if values[0] == threshold else 0.5 ** (n - 1)
    return float(stats.ttest_1samp(values, threshold).pvalue)


def holm(p: ndarray) -> ndarray:
    """p-values [m] adjusted for being m (Holm 1979); NaN (not tested) stays and does not count.

    Examples:
        >>> holm(np.array([0.01, 0.04, 0.03])).round(2)
        array([0.03, 0.06, 0.06])
    """
    adjusted = np.full(len(p), np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    raised = np.maximum.accumulate(factors * p[order])
    adjusted[order] = np.minimum(1, raised)
    return adjusted


def smallest_effect(values: ndarray) -> float:
    """The distance of the mean from the threshold that n such `values` would show with probability
    .8 if nothing else were tested: (t.975 + t.8) · s / √n; NaN without a spread.
    """
    n = len(values)
    if n < 2 or np.ptp(values) == 0:
        return np.nan
    quantiles = stats.t.ppf([1 - TAIL, POWER], n - 1)
    return float(quantiles.sum() * stats.sem(values))


def summarize(metrics: DataFrame) -> DataFrame:
    """Means over tasks of `evaluate`'s values, with `interval` over tasks, which depends on nothing
    but the values: two pages that show one mean show one interval.

    The mean is over tasks of the mean over seeds, missing values left out; the spread between
    tasks contains that of the seeds. Returns: suite, shots, images_per_class, protocol, selector,
    metric, mean, low, high, tasks (that have a value), missing (share of the values that are NaN).
    """
    by_task = metrics.groupby([*SETTING, "task"])["value"].mean()
    found = by_task.dropna().groupby(SETTING).agg(["mean", "size", list])
    missing = metrics.assign(missing=metrics["value"].isna())
    table = missing.groupby(SETTING)["missing"].mean().to_frame()
    table["mean"] = found["mean"]
    table["tasks"] = found["size"].reindex(table.index, fill_value=0)
    table[["low", "high"]] = np.nan
    for _, rows in found.groupby("size"):
        values = np.array(rows["list"].to_list())
        low, high = intervals(values)
        table.loc[rows.index, "low"] = low
        table.loc[rows.index, "high"] = high
    return table.reset_index()[
        [
            *SETTING,
            "mean",
            "low",
            "high",
            "tasks",
            "missing",
        ]
    ]


def on_common_tasks(metrics: DataFrame) -> DataFrame:
    """The rows of tasks on which all selectors have a value of every metric that is given, so that
    means compare: a selector without a score on a hard task must not gain by it, and neither must
    one metric beside another. The noise ceiling is kept on the tasks that remain.

    A selector that lacks more than a tenth of the tasks (`MOSTLY`) limits nobody and keeps those
    that remain to it; `tasks` of `summarize` says how many. A metric without any value limits
    nobody either.
    """
    regime = ["suite", "shots", "protocol"]
    is_ceiling = metrics["selector"] == "noise_ceiling"
    kept = [metrics.head(0)]
    for _, part in metrics[~is_ceiling].groupby([*regime, "images_per_class"]):
        common = set(part["task"])
        for _, rows in part.groupby("metric"):
            wide = rows.pivot_table("value", "task", "selector", dropna=False).dropna(how="all")
            if wide.empty:
                continue
            limiting = wide.notna().mean() >= MOSTLY
            complete = wide.loc[:, limiting].dropna().index
            common &= set(complete)
        kept.append(part[part["task"].isin(common)])
    compared = pd.concat(kept, ignore_index=True)
    remaining = compared[[*regime, "task"]].drop_duplicates()
    ceiling = metrics[is_ceiling].merge(remaining)
    return pd.concat([compared, ceiling], ignore_index=True)


def chosen_elsewhere(wide: DataFrame) -> pd.Series:
    """Target -> value of the selector whose mean over the *other* targets is highest: what the
    winner among many is worth where it is not chosen by the target that judges it.

    wide: targets × selectors; a selector without a value on some target may not win.
    """
    complete = wide.dropna(axis=1)
    if complete.empty:
        return pd.Series(dtype=float)
    others = complete.sum() - complete
    winner = others.idxmax(axis=1)
    return pd.Series({task: complete.at[task, name] for task, name in winner.items()})
