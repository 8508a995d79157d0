"""Tables for the page from tidy tables, each with a link that downloads it as CSV."""

import base64
import html
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from mzlib.benchmark import data as tasks
from mzlib.benchmark.data import manifest
from mzlib.benchmark.evaluate import truth
from mzlib.benchmark.figures.style import MULTI_DOMAIN, display_name, selector_order
from mzlib.benchmark.results import Results, complete, tuned
from mzlib.benchmark.scoring import of_one_machine
from mzlib.benchmark.statistics import interval
from mzlib.benchmark.suite import Suite


def download(table: pd.DataFrame, identifier: str, caption: str = ""):
    """A link that downloads the table with all its digits as CSV, below the figures of the cell.

    caption: what the figure or table shows, in a sentence; stands above the link.
    """
    from IPython.display import HTML

    if plt.get_fignums() and mpl.get_backend().endswith("inline"):
        plt.show()  # now, not after the link
    csv = base64.b64encode(table.to_csv().encode()).decode()
    link = f'<a download="{identifier}.csv" href="data:text/csv;base64,{csv}">'
    return HTML(
        f'<p class="caption">{html.escape(caption)} {link}Download {identifier}.csv</a></p>'
    )


def show(
    table: pd.DataFrame,
    identifier: str,
    decimals: int = 1,
    links: Mapping[str, Callable[[str], str]] = MappingProxyType({}),
    caption: str = "",
):
    """The table in a frame that scrolls, under it its `download`; `_static/tables.js` sorts it.

    links: column -> the address that a cell of it leads to. A cell of a column of words is
    written as `display_name` has it; a truth value as yes or no.
    """
    from IPython.display import HTML

    flat = table.reset_index() if table.index.names[0] else table
    words = {True: "yes", False: "no"}
    flat = flat.assign(**{name: flat[name].map(words) for name in flat.select_dtypes("bool")})
    text = flat.select_dtypes(exclude="number").columns
    left = {name: [{"selector": "", "props": "text-align: left"}] for name in text}
    style = flat.style.hide(axis="index")
    style = style.format(precision=decimals, na_rep="–", thousands=",", escape="html")
    for name, address in links.items():
        style = style.format(partial(_link, address=address), subset=[name])
    style = style.set_uuid(identifier).set_table_styles(left)
    body = style.set_table_attributes('class="dataframe"').to_html()
    frame = f'<div id="{identifier}" class="table-frame" tabindex="0">{body}</div>'
    return HTML(frame + download(table, identifier, caption).data)


def _link(cell: str, address: Callable[[str], str]) -> str:
    return f'<a href="{html.escape(address(cell))}">{html.escape(cell)}</a>'


def table1(zoo: pd.DataFrame) -> pd.DataFrame:
    """Accuracy (%) of single-domain experts on their source: architecture, start × sources."""
    single = zoo[~zoo["pretraining"].isin(MULTI_DOMAIN)]
    rows = ["architecture", "pretraining"]
    table = 100 * single.pivot(index=rows, columns="source", values="accuracy")
    table = table[list(dict.fromkeys(single["source"]))]
    return table.rename(display_name).rename(columns=display_name)


def table2(zoo: pd.DataFrame) -> pd.DataFrame:
    """Accuracy (%) of single-domain experts from scratch and of multi-domain ones, by source."""
    multi = zoo[zoo["pretraining"].isin(MULTI_DOMAIN)]
    like = zoo["architecture"].isin(set(multi["architecture"]))
    both = pd.concat([zoo[like & zoo["pretraining"].eq("scratch")], multi])
    table = 100 * both.pivot(index="source", columns="pretraining", values="accuracy")
    names = {"scratch": "Single domain"}
    names |= {variant: display_name(variant) for variant in MULTI_DOMAIN}
    present = [name for name in names if name in table]
    table = table.loc[multi["source"].unique(), present]
    return table.rename(display_name).rename(columns=names)


def table3(
    scores: pd.DataFrame, finetune: pd.DataFrame, *, generic: str, k: int = 3
) -> pd.DataFrame:
    """Cost relative to one fine-tune of the generic expert on the same target (paper Table 3).

    A fine-tune is one run at one learning rate (mean over rates and seeds), all on one machine.
    Rows: shots, stage (`brute force`: fine-tune all; `score the zoo`; `fine-tune the top k`: a
    selector's own, ties in table order), selector. Columns: mean over targets, low, high, and
    seconds, the mean of the cost itself.
    """
    scores, finetune = of_one_machine(scores, finetune)
    where = ["shots", "task"]
    draw = [*where, "images_per_class", "seed", "selector"]
    tune = finetune.astype({"shots": str}).groupby([*where, "expert"])["seconds"].mean()
    ranked = scores.astype({"shots": str}).join(tune.rename("tune"), [*where, "expert"])
    ranked = ranked.dropna(subset="tune").sort_values("score", ascending=False, kind="stable")
    every = tune.groupby(where).sum().rename("seconds").reset_index().assign(selector="")
    scoring = ranked.groupby(draw)["seconds"].sum().reset_index()
    first = ranked.groupby(draw).head(k).groupby(draw)["tune"].sum().rename("seconds").reset_index()
    stages = {"brute force": every, "score the zoo": scoring, f"fine-tune the top {k}": first}
    costs = pd.concat([rows.assign(stage=stage) for stage, rows in stages.items()])
    costs = costs.groupby(["shots", "stage", "selector", "task"])["seconds"].mean().reset_index()
    costs = costs.join(tune.xs(generic, level="expert").rename("one"), where)
    costs["relative"] = costs["seconds"] / costs["one"]
    rows = []
    for key, cell in costs.groupby(["shots", "stage", "selector"]):
        relative = cell["relative"].to_numpy()
        rows.append((*key, relative.mean(), *interval(relative), cell["seconds"].mean()))
    keys = ["shots", "stage", "selector"]
    table = pd.DataFrame(rows, columns=[*keys, "relative cost", "low", "high", "seconds"])
    place = {name: i for i, name in enumerate(["", *selector_order(set(table["selector"]) - {""})])}
    table = table.sort_values(
        keys, key=lambda c: c if c.name == "shots" else c.map(place | dict(zip(stages, range(3))))
    )
    return table.assign(selector=table["selector"].map(display_name)).set_index(keys)


def table4(names: Iterable[str]) -> pd.DataFrame:
    """Recorded data sets (paper Table 4), from `manifest.parquet` and `cards.toml`: no data needed.

    Columns: role, domain, images, classes, images of the smallest and largest training class,
    licence, origin.
    """
    rows = []
    for name in names:
        card = tasks.CARDS[name]
        split = manifest.rows(name)
        count = np.bincount(split["train"][1])
        rows.append(
            {
                "name": name,
                "role": card["role"],
                "domain": card["domain"],
                "train": len(split["train"][1]),
                "test": len(split["test"][1]),
                "classes": len(count),
                "train images a class": f"{count.min()}–{count.max()}",
                "licence": card["license"],
                "origin": card["source"],
            }
        )
    return pd.DataFrame(rows).set_index("name")


def fig1_errors(results: Results, suite: Suite) -> pd.DataFrame:
    """Test errors (%) of the paper's Fig. 1: panel, target, method, shots, test_error.

    Panel a: the best domain expert (`model_zoo`), generic experts and networks from random weights
    of every architecture, at the zoo's rates; panel b: the generic expert untuned and tuned.
    """
    zoo = complete(results.finetune, suite, "single")
    beside = results.beside.astype({"shots": str})
    beside = beside[beside["expert"].isin(suite.starting_points("beside"))]
    at = zoo[["task", "shots", "lr", "seed"]].drop_duplicates()
    accuracy = truth(pd.concat([zoo, beside.merge(at)]))
    names = accuracy["expert"].str.extract(r"(?P<family>[^-]+)-(?P<source>.+)")
    kind = names["source"].map({suite.generic: "generic_", "random": "random_"})
    accuracy["method"] = (kind + names["family"]).fillna("model_zoo")
    cell = ["task", "shots", "method"]
    each = accuracy.groupby([*cell, "expert"])["accuracy"].mean()
    a = (100 * (1 - each.groupby(cell).max())).rename("test_error").reset_index()
    hpo = tuned(results, suite).groupby(["task", "shots"])["accuracy"].mean().reset_index()
    family = suite.reference.partition("-")[0]
    hpo = hpo.assign(test_error=100 * (1 - hpo.pop("accuracy")), method=f"generic_{family}_hpo")
    untuned = a[a["method"].isin(["model_zoo", f"generic_{family}"])]
    b = pd.concat([untuned.merge(hpo[["task", "shots"]]), hpo])
    table = pd.concat([a.assign(panel="a"), b.assign(panel="b")]).rename(columns={"task": "target"})
    return table[["panel", "target", "method", "shots", "test_error"]]


def provenance_line(suite: str, provenance: dict):
    """What a page read, and folded, what recomputing it costs, as HTML."""
    from IPython.display import HTML

    stages = "; ".join(
        f"{stage} {part['jobs']:,} jobs in {part['seconds'] / 60:,.1f} core-minutes"
        for stage, part in provenance.items()
    )
    last = max(part["finished"] for part in provenance.values())
    machines = [
        ", ".join(f"{key} {value}".removeprefix("hardware ") for key, value in machine.items())
        for part in provenance.values()
        for machine in part["machines"]
    ]
    return HTML(
        f"<details><summary>Read: <code>results/{suite}/</code>, computed until {last[:10]}"
        f"</summary><p>{stages}; on {html.escape('; '.join(dict.fromkeys(machines)))}. To "
        f"recompute, delete that folder and run <code>mzlib run {suite}</code>.</p></details>"
    )
