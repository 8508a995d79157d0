"""The tables of a suite, as notebooks and figures read them."""

from dataclasses import dataclass

import pandas as pd
from pandas import DataFrame

from mzlib.benchmark import learned
from mzlib.benchmark.evaluate import evaluate, truth
from mzlib.benchmark.jobs import Job, Store
from mzlib.benchmark.scoring import combined
from mzlib.benchmark.suite import Suite, load_suite
from mzlib.errors import MzlibError
from mzlib.provenance import home

CELL = ["task", "shots", "lr", "seed"]


@dataclass(frozen=True)
class Results:
    """One row per trained expert, fine-tune and score of the zoo, and how they came to be;
    `beside`: the fine-tunes that are in no ranking, for the zoo to be compared with.
    """

    zoo: DataFrame
    finetune: DataFrame
    scores: DataFrame
    provenance: dict
    beside: DataFrame


def _rows(table: DataFrame, jobs: list[Job]) -> DataFrame:
    keys = {job.key for job in jobs}
    return table[table["key"].isin(keys)].reset_index(drop=True)


def load_results(name: str) -> Results:
    """The rows of the jobs that the suite has now, from `results/` and from job files not yet
    consolidated.

    Raises MzlibError when there are none, and for an unknown suite.
    """
    suite = load_suite(name)
    store = Store(name)
    beside_the_zoo = set(suite.starting_points("beside").values())
    members = [job for job in suite.zoo_jobs() if job.key not in beside_the_zoo]
    zoo = _rows(Store(suite.zoo).table("zoo"), members)
    tunes = store.table("finetune")
    finetune = _rows(tunes, suite.finetune_jobs(beside=False))
    beside = _rows(tunes, suite.finetune_jobs(beside=True))
    scores = _rows(store.table("score"), suite.score_jobs())
    if not any(map(len, (zoo, finetune, scores))):
        raise MzlibError(
            f"expected results of the suite {name!r} in {home() / 'results'}, got none: "
            f"run `mzlib run {name}`"
        )
    scores = combined(scores) if len(scores) else scores
    return Results(zoo, finetune, scores, store.provenance(), beside)


def cells(finetune: DataFrame, suite: Suite, zoo: str, beside: bool | None = False) -> DataFrame:
    """How far the suite's fine-tuning grid is: task, shots, lr, seed, jobs, done; zoo `single`
    (single-domain experts), `multi` (domains of the multi-domain expert) or `repeat` (of its
    repeated trainings); beside: see `Suite.finetune_jobs`.
    """
    members = suite.starting_points(zoo)
    wanted = [job for job in suite.finetune_jobs(beside) if job.expert in members]
    rows = [
        (
            job.key,
            job.task,
            job.shots,
            job.settings["lr"],
            job.seed,
        )
        for job in wanted
    ]
    jobs = DataFrame(rows, columns=["key", *CELL]).astype({"lr": float, "seed": int})
    jobs["done"] = jobs["key"].isin(set(finetune["key"]))
    counts = jobs.groupby(CELL, sort=False)["done"].agg(jobs="size", done="sum")
    return counts.reset_index()


def complete(finetune: DataFrame, suite: Suite, zoo: str, beside: bool | None = False) -> DataFrame:
    """The fine-tunes of the zoo (see `cells`) in cells of which every job is done: half a zoo is no
    ranking.
    """
    whole = cells(finetune, suite, zoo, beside).query("done == jobs")[CELL]
    of_zoo = finetune["expert"].isin(suite.starting_points(zoo))
    rows = finetune[of_zoo].astype({"shots": str})
    return rows.merge(whole, on=CELL)


def compare(results: Results, suite: Suite, zoo: str = "single", **options) -> DataFrame:
    """`evaluate` (with those options) of every selector on the complete cells of the zoo, gains
    over its generic expert (or generic domain).

    Also of what never sees the target (`history`, `prior`) and of `neighbour_history`, each from
    the other targets (`mzlib.benchmark.learned`). For single-domain experts also the metric
    `within` architecture and start: the domains of one multi-domain expert differ in the source
    alone.
    """
    finetune = complete(results.finetune, suite, zoo)
    scores = results.scores[results.scores["expert"].isin(suite.starting_points(zoo))]
    more = learned.baseline_scores(finetune, scores, results.zoo, suite)
    scores = pd.concat([scores, more], ignore_index=True) if len(more) else scores
    if zoo == "multi":
        generic = suite.multi_domain_reference
        return evaluate(scores, finetune, generic=generic, **options)
    of_expert = learned.groups(results.zoo, suite.generic)
    return evaluate(scores, finetune, generic=suite.reference, groups=of_expert, **options)


def searched(results: Results, suite: Suite) -> DataFrame:
    """The fine-tunes of the single-domain zoo at the rates that the suite gives to all its experts,
    where these are several and every fine-tune is done: equal searches (paper Fig. 1 b).
    """
    runs = pd.concat([results.finetune, results.beside]).drop_duplicates("key")
    runs = runs.astype({"shots": str})
    grid = cells(runs, suite, "single", beside=None)
    of_all = grid[grid["jobs"] == len(suite.starting_points("single"))]
    whole = of_all.assign(done=of_all["done"] == of_all["jobs"])
    place = ["task", "shots", "seed"]
    places = whole.groupby(place).agg(rates=("lr", "size"), done=("done", "all"))
    places = places.query("rates > 1 and done").index
    chosen = of_all.set_index(place).loc[places].reset_index()[CELL]
    members = runs[runs["expert"].isin(suite.starting_points("single"))]
    return members.merge(chosen, on=CELL)


def tuned(results: Results, suite: Suite) -> DataFrame:
    """`truth` of the generic expert at the best of all its rates (on test images, as in the paper),
    where it was given more than the zoo (paper Fig. 1 b).
    """
    both = pd.concat([results.finetune.assign(beside=False), results.beside.assign(beside=True)])
    runs = both[both["expert"] == suite.reference].astype({"shots": str})
    given_more = runs.groupby(["task", "shots", "seed"])["beside"].transform("any")
    return truth(runs[given_more])
