"""The tables of a suite, as notebooks and figures read them."""

from dataclasses import dataclass

import pandas as pd

from mzlib.benchmark.evaluate import evaluate, truth
from mzlib.benchmark.jobs import Store
from mzlib.benchmark.scoring import combined
from mzlib.benchmark.suite import Suite, load_suite
from mzlib.errors import MzlibError
from mzlib.provenance import home


@dataclass(frozen=True)
class Results:
    """One row per trained expert, fine-tune and score of the zoo, and how they came to be; `beside`: the fine-tunes that the
    zoo is compared with."""

    zoo: pd.DataFrame
    finetune: pd.DataFrame
    scores: pd.DataFrame
    provenance: dict
    beside: pd.DataFrame


def load_results(name: str) -> Results:
    """The rows of the jobs that the suite has now, from `results/` and from job files not yet consolidated.

    Raises MzlibError when there are none, and for an unknown suite.
    """
    suite, store = load_suite(name), Store(name)

    def rows(table: pd.DataFrame, keys: set[str]) -> pd.DataFrame:
        return table[table["key"].isin(keys)].reset_index(drop=True) if len(table) else table

    zoo = rows(
        store.table("zoo"),
        {job.key for job in suite.zoo_jobs()} - set(suite.starting_points("beside").values()),
    )
    tunes = store.table("finetune")
    finetune, beside = (
        rows(tunes, {job.key for job in suite.finetune_jobs(beside=b)}) for b in (False, True)
    )
    scores = rows(store.table("score"), {job.key for job in suite.score_jobs()})
    if not any(map(len, (zoo, finetune, scores))):
        raise MzlibError(
            f"expected results of the suite {name!r} in {home() / 'results'}, got none: run `mzlib run {name}`"
        )
    return Results(
        zoo, finetune, combined(scores) if len(scores) else scores, store.provenance(), beside
    )


def cells(finetune: pd.DataFrame, suite: Suite, zoo: str) -> pd.DataFrame:
    """How far the suite's fine-tuning grid is: task, shots, lr, seed, jobs, done; zoo `single` (single-domain experts) or
    `multi` (domains of the multi-domain expert)."""
    members = suite.starting_points(zoo)
    jobs = pd.DataFrame(
        [
            (j.key, j.task, j.shots, j.settings["lr"], j.seed)
            for j in suite.finetune_jobs(beside=False)
            if j.expert in members
        ],
        columns=["key", "task", "shots", "lr", "seed"],
    )
    jobs["done"] = jobs["key"].isin(set(finetune["key"])) if len(finetune) else False
    return (
        jobs.groupby(["task", "shots", "lr", "seed"], sort=False)["done"]
        .agg(jobs="size", done="sum")
        .reset_index()
    )


def complete(finetune: pd.DataFrame, suite: Suite, zoo: str) -> pd.DataFrame:
    """The fine-tunes of the zoo (see `cells`) in cells of which every job is done: half a zoo is no ranking."""
    table = cells(finetune, suite, zoo)
    whole = table.loc[table["done"] == table["jobs"], ["task", "shots", "lr", "seed"]]
    rows = finetune[finetune["expert"].isin(suite.starting_points(zoo))].astype({"shots": str})
    return rows.merge(whole, on=["task", "shots", "lr", "seed"])


def compare(results: Results, suite: Suite, zoo: str = "single", **options) -> pd.DataFrame:
    """`evaluate` (with those options) of every selector on the complete cells of the zoo, gains over its generic expert (or
    generic domain)."""
    generic = suite.reference if zoo == "single" else suite.multi_domain_reference
    scores = results.scores[results.scores["expert"].isin(suite.starting_points(zoo))]
    return evaluate(scores, complete(results.finetune, suite, zoo), generic=generic, **options)


def tuned(results: Results, suite: Suite) -> pd.DataFrame:
    """`truth` of the generic expert at the best of all its rates (on test images, as in the paper), where it was given more
    than the zoo (paper Fig. 1 b)."""
    rows = (
        pd.concat([results.finetune, results.beside])
        .astype({"shots": str})
        .query("expert == @suite.reference")
    )
    rates = results.beside.astype({"shots": str}).query("expert == @suite.reference")[
        ["task", "shots", "seed"]
    ]
    return truth(rows.merge(rates.drop_duplicates()))
