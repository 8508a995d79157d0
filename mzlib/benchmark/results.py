"""The tables of a suite, as notebooks and figures read them."""

from dataclasses import dataclass

import pandas as pd

from mzlib.benchmark.evaluate import PROTOCOLS, evaluate
from mzlib.benchmark.jobs import Store
from mzlib.benchmark.scoring import combined
from mzlib.benchmark.suite import Suite, load_suite
from mzlib.errors import MzlibError
from mzlib.provenance import home


@dataclass(frozen=True)
class Results:
    """One row per trained expert, fine-tune and score, and how they came to be."""

    zoo: pd.DataFrame
    finetune: pd.DataFrame
    scores: pd.DataFrame
    provenance: dict


def load_results(name: str) -> Results:
    """The rows of the jobs that the suite has now, from `results/` and from job files not yet consolidated.

    Raises MzlibError when there are none, and for an unknown suite.
    """
    suite, store, tables = load_suite(name), Store(name), []
    for stage in ("zoo", "finetune", "score"):
        table, keys = store.table(stage), {job.key for job in suite.jobs(stage)}
        tables.append(table[table["key"].isin(keys)].reset_index(drop=True) if len(table) else table)
    if not any(len(t) for t in tables):
        raise MzlibError(f"expected results of the suite {name!r} in {home() / 'results'}, got none: run `mzlib run {name}`")
    zoo, finetune, scores = tables
    return Results(zoo, finetune, combined(scores) if len(scores) else scores, store.provenance())


def cells(finetune: pd.DataFrame, suite: Suite, zoo: str) -> pd.DataFrame:
    """How far the suite's fine-tuning grid is: task, shots, lr, seed, jobs, done; zoo `single` (single-domain experts) or
    `multi` (domains of the multi-domain expert)."""
    jobs = pd.DataFrame([(j.key, j.task, j.shots, j.settings["lr"], j.seed) for j in suite.finetune_jobs()
                         if (":" in j.expert) == (zoo == "multi")], columns=["key", "task", "shots", "lr", "seed"])
    jobs["done"] = jobs["key"].isin(set(finetune["key"])) if len(finetune) else False
    return jobs.groupby(["task", "shots", "lr", "seed"], sort=False)["done"].agg(jobs="size", done="sum").reset_index()


def complete(finetune: pd.DataFrame, suite: Suite, zoo: str) -> pd.DataFrame:
    """The fine-tunes of the zoo (see `cells`) in cells of which every job is done: half a zoo is no ranking."""
    table = cells(finetune, suite, zoo)
    whole = table.loc[table["done"] == table["jobs"], ["task", "shots", "lr", "seed"]]
    rows = finetune[finetune["expert"].str.contains(":") == (zoo == "multi")].astype({"shots": str})
    return rows.merge(whole, on=["task", "shots", "lr", "seed"])


def compare(results: Results, suite: Suite, zoo: str = "single", protocols=PROTOCOLS) -> pd.DataFrame:
    """`evaluate` of every selector on the complete cells of the zoo, gains over its generic expert (or generic domain)."""
    generic = suite.reference if zoo == "single" else suite.multi_domain_reference
    scores = results.scores[results.scores["expert"].str.contains(":") == (zoo == "multi")]
    return evaluate(scores, complete(results.finetune, suite, zoo), generic=generic, protocols=protocols)
