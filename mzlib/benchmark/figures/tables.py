"""Tables for the page from tidy tables, each with a link that downloads it as CSV."""

import base64
import html
import itertools
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from mzlib.benchmark import data as tasks
from mzlib.benchmark.data import manifest
from mzlib.benchmark.evaluate import truth
from mzlib.benchmark.statistics import interval
from mzlib.benchmark.figures.style import MULTI_DOMAIN, display_name, selector_order
from mzlib.benchmark.results import Results, complete, tuned
from mzlib.benchmark.scoring import of_one_machine
from mzlib.benchmark.suite import Suite


def download(table: pd.DataFrame, identifier: str):
    """A link that downloads the table with all its digits as `<identifier>.csv`, as an HTML object of a notebook, under the
    figures of the cell."""
    from IPython.display import HTML

    if plt.get_fignums() and mpl.get_backend().endswith("inline"):
        plt.show()  # now, not after the link
    csv = base64.b64encode(table.to_csv().encode()).decode()
    return HTML(
        f'<p><a download="{identifier}.csv" href="data:text/csv;base64,{csv}">Download {identifier}.csv</a></p>'
    )


def show(
    table: pd.DataFrame,
    identifier: str,
    decimals: int = 1,
    links: Mapping[str, Callable[[str], str]] = MappingProxyType({}),
):
    """The table as an HTML object of a notebook, under it its `download`; `_static/tables.js` sorts and searches it. links: column
    -> the address that a cell of it leads to."""
    from IPython.display import HTML

    flat = table.reset_index() if table.index.names[0] else table
    text = {
        name: [{"selector": "", "props": "text-align: left"}]
        for name in flat.select_dtypes(exclude="number")
    }
    to = {
        name: lambda cell, to=to: f'<a href="{html.escape(to(cell))}">{html.escape(cell)}</a>'
        for name, to in links.items()
    }
    body = (
        flat.style.hide(axis="index")
        .format(precision=decimals, na_rep="–", escape="html")
        .format(to, subset=[*links])
        .set_uuid(identifier)
        .set_table_styles(text)
        .set_table_attributes('class="dataframe"')
        .to_html()
    )
    return HTML(
        f'<div id="{identifier}" style="overflow-x: auto">{body}</div>{download(table, identifier).data}'
    )


def table1(zoo: pd.DataFrame) -> pd.DataFrame:
    """Accuracy (%) of single-domain experts on their source: architecture, pre-training × sources (paper Table 1)."""
    single = zoo[~zoo["pretraining"].isin(MULTI_DOMAIN)]
    table = 100 * single.pivot(
        index=["architecture", "pretraining"], columns="source", values="accuracy"
    )
    return (
        table[list(dict.fromkeys(single["source"]))]
        .rename(display_name)
        .rename(columns=display_name)
    )


def table2(zoo: pd.DataFrame) -> pd.DataFrame:
    """Accuracy (%) of single-domain experts from scratch and of multi-domain experts, by source (paper Table 2)."""
    multi = zoo[zoo["pretraining"].isin(MULTI_DOMAIN)]
    single = zoo[
        (zoo["pretraining"] == "scratch") & zoo["architecture"].isin(set(multi["architecture"]))
    ]
    table = 100 * pd.concat([single, multi]).pivot(
        index="source", columns="pretraining", values="accuracy"
    )
    names = {"scratch": "Single domain"} | {
        variant: display_name(variant) for variant in MULTI_DOMAIN
    }
    present = [c for c in names if c in table]
    return table.loc[multi["source"].unique(), present].rename(display_name).rename(columns=names)


def table3(
    scores: pd.DataFrame, finetune: pd.DataFrame, *, generic: str, k: int = 3
) -> pd.DataFrame:
    """Cost relative to one fine-tune of the generic expert on the same target (paper Table 3): means over targets.

    A fine-tune is one run at one learning rate (mean over rates and seeds), all on one machine. Rows: shots, stage (`brute force`: fine-tune
    all; `score the zoo`; `fine-tune the top k`: a selector's own, ties in table order), selector. Columns: mean, low, high
    (95 % bootstrap over targets), and seconds, the mean of the cost itself.
    """
    scores, finetune = (
        table.assign(shots=table["shots"].astype(str)) for table in of_one_machine(scores, finetune)
    )
    tune = finetune.groupby(["shots", "task", "expert"])["seconds"].mean()
    where, draw = ["shots", "task"], ["shots", "task", "images_per_class", "seed", "selector"]
    ranked = scores.join(tune.rename("tune"), [*where, "expert"]).dropna(subset="tune")
    ranked = ranked.sort_values("score", ascending=False, kind="stable")
    stages = {
        "brute force": tune.groupby(where)
        .sum()
        .rename("seconds")
        .reset_index()
        .assign(selector=""),
        "score the zoo": ranked.groupby(draw)["seconds"].sum().reset_index(),
        f"fine-tune the top {k}": ranked.groupby(draw)
        .head(k)
        .groupby(draw)["tune"]
        .sum()
        .rename("seconds")
        .reset_index(),
    }
    costs = pd.concat([rows.assign(stage=stage) for stage, rows in stages.items()])
    costs = (
        costs.groupby(["shots", "stage", "selector", "task"], sort=False)["seconds"]
        .mean()
        .reset_index()
    )
    costs = costs.join(tune.xs(generic, level="expert").rename("one"), where)
    costs["relative"] = costs["seconds"] / costs["one"]
    cells, rows = dict(list(costs.groupby(["shots", "stage", "selector"]))), []
    for key in itertools.product(
        sorted(set(costs["shots"])), stages, ["", *selector_order(set(costs["selector"]) - {""})]
    ):
        if key in cells:
            relative = cells[key]["relative"].to_numpy()
            rows.append(
                (
                    *key[:2],
                    display_name(key[2]),
                    relative.mean(),
                    *interval(relative),
                    cells[key]["seconds"].mean(),
                )
            )
    columns = ["shots", "stage", "selector", "relative cost", "low", "high", "seconds"]
    return pd.DataFrame(rows, columns=columns).set_index(["shots", "stage", "selector"])


def table4(names: Iterable[str]) -> pd.DataFrame:
    """Recorded data sets: role, domain, images, classes, images of the smallest and largest training class, licence, origin
    (paper Table 4), from `manifest.parquet` and `cards.toml`: no data needed."""
    rows = []
    for name in names:
        card, split = tasks.CARDS[name], manifest.rows(name)
        count = np.bincount(split["train"][1])
        rows.append(
            (
                name,
                card["role"],
                card["domain"],
                len(split["train"][1]),
                len(split["test"][1]),
                len(count),
                f"{count.min()}–{count.max()}",
                card["license"],
                card["source"],
            )
        )
    columns = [
        "name",
        "role",
        "domain",
        "train",
        "test",
        "classes",
        "train images a class",
        "licence",
        "origin",
    ]
    return pd.DataFrame(rows, columns=columns).set_index("name")


def fig1_errors(results: Results, suite: Suite) -> pd.DataFrame:
    """Test errors (%) of the paper's Fig. 1 in the shape of `paper("fig1_test_error")`: panel, target, method, shots,
    test_error. Panel a: the best domain expert (`model_zoo`), generic experts and networks from random weights of every
    architecture of the suite, at the zoo's rates; panel b: the generic expert untuned and tuned (`…_hpo`)."""
    zoo, family = complete(results.finetune, suite, "single"), suite.reference.partition("-")[0]
    beside = results.beside[results.beside["expert"].isin(suite.starting_points("beside"))].astype(
        {"shots": str}
    )
    at = zoo[["task", "shots", "lr", "seed"]].drop_duplicates()
    error = truth(pd.concat([zoo, beside.merge(at)])).assign(
        test_error=lambda t: 100 * (1 - t["accuracy"])
    )
    error = error.groupby(["task", "shots", "expert"])["test_error"].mean().reset_index()
    names = error["expert"].str.extract(r"(?P<family>[^-]+)-(?P<source>.+)")
    error["method"] = (
        names["source"].map({suite.generic: "generic_", "random": "random_"}) + names["family"]
    )
    a = (
        error.fillna({"method": "model_zoo"})
        .groupby(["task", "shots", "method"])["test_error"]
        .min()
        .reset_index()
    )
    hpo = tuned(results, suite).groupby(["task", "shots"])["accuracy"].mean().reset_index()
    hpo = hpo.assign(test_error=100 * (1 - hpo.pop("accuracy")), method=f"generic_{family}_hpo")
    b = a[a["method"].isin(["model_zoo", f"generic_{family}"])].merge(hpo[["task", "shots"]])
    table = pd.concat([a.assign(panel="a"), b.assign(panel="b"), hpo.assign(panel="b")]).rename(
        columns={"task": "target"}
    )
    return table[["panel", "target", "method", "shots", "test_error"]]


def provenance_line(suite: str, provenance: dict):
    """What a page read and what recomputing it costs: a Markdown line from the `provenance` of `load_results`."""
    from IPython.display import Markdown

    stages = "; ".join(
        f"{stage} {p['jobs']} jobs in {p['seconds'] / 60:.1f} core-minutes"
        for stage, p in provenance.items()
    )
    last = max(p["finished"] for p in provenance.values())
    machines = [
        ", ".join(f"{key} {value}".removeprefix("hardware ") for key, value in machine.items())
        for stage in provenance.values()
        for machine in stage["machines"]
    ]
    return Markdown(
        f"*Read: `results/{suite}/`, computed until {last[:10]} ({stages}) on {'; '.join(dict.fromkeys(machines))}. "
        f"To recompute, delete that folder and run `mzlib run {suite}`.*"
    )
