"""Tables for the page from tidy tables, each with a link that downloads it as CSV."""

import base64
import html
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from pandas import DataFrame

from mzlib.benchmark.figures.style import MULTI_DOMAIN, display_name, selector_order
from mzlib.benchmark.scoring import of_one_machine
from mzlib.benchmark.statistics import interval


def download(table: DataFrame, identifier: str, caption: str = "") -> Any:
    """A link that downloads the table with all its digits as CSV, below the figures of the cell.

    caption: what the figure or table shows, in a sentence; stands above the link.
    """
    from IPython.display import HTML

    if plt.get_fignums() and mpl.get_backend().endswith("inline"):
        plt.show()  # now, not after the link
    csv = base64.b64encode(table.to_csv().encode()).decode()
    name = f"{identifier}.csv"
    link = f'<a download="{name}" href="data:text/csv;base64,{csv}">Download {name}</a>'
    return HTML(f'<p class="caption">{html.escape(caption)} {link}</p>')


def show(
    table: DataFrame,
    identifier: str,
    decimals: int = 1,
    links: Mapping[str, Callable[[str], str]] = MappingProxyType({}),
    caption: str = "",
) -> Any:
    """The table in a frame that scrolls, under it its `download`; `_static/tables.js` sorts it.

    links: column -> the address that a cell of it leads to. A cell of a column of words is
    written as `display_name` has it; a truth value as yes or no.
    """
    from IPython.display import HTML

    flat = table.reset_index() if table.index.names[0] else table.copy()
    for name in flat.select_dtypes("bool"):
        flat[name] = flat[name].map(
            {
                True: "yes",
                False: "no",
            }
        )
    text = flat.select_dtypes(exclude="number").columns
    left = [
        {
            "selector": "",
            "props": "text-align: left",
        }
    ]
    style = flat.style.hide(axis="index")
    style = style.format(
        precision=decimals,
        na_rep="–",
        thousands=",",
        escape="html",
    )
    for name, address in links.items():
        style = style.format(partial(_link, address=address), subset=[name])
    style = style.set_uuid(identifier)
    style = style.set_table_styles({name: left for name in text})
    style = style.set_table_attributes('class="dataframe"')
    body = style.to_html()
    frame = f'<div id="{identifier}" class="table-frame" tabindex="0">{body}</div>'
    return HTML(frame + download(table, identifier, caption).data)


def _link(cell: str, address: Callable[[str], str]) -> str:
    target = html.escape(address(cell))
    return f'<a href="{target}">{html.escape(cell)}</a>'


def table1(zoo: DataFrame) -> DataFrame:
    """Accuracy (%) of single-domain experts on their source: architecture, start × sources."""
    single = zoo[~zoo["pretraining"].isin(MULTI_DOMAIN)]
    rows = ["architecture", "pretraining"]
    table = single.pivot(
        index=rows,
        columns="source",
        values="accuracy",
    )
    table = 100 * table[single["source"].unique()]
    return table.rename(index=display_name, columns=display_name)


def table2(zoo: DataFrame) -> DataFrame:
    """Accuracy (%) of single-domain experts from scratch and of multi-domain ones, by source."""
    multi = zoo[zoo["pretraining"].isin(MULTI_DOMAIN)]
    like = zoo[zoo["architecture"].isin(multi["architecture"])]
    shown = ["scratch", *MULTI_DOMAIN]
    like = like[like["pretraining"].isin(shown)]
    table = like.pivot(
        index="source",
        columns="pretraining",
        values="accuracy",
    )
    present = [name for name in shown if name in table]
    table = 100 * table.loc[multi["source"].unique(), present]
    table = table.rename(columns={"scratch": "Single domain"})
    return table.rename(index=display_name, columns=display_name)


def table3(scores: DataFrame, finetune: DataFrame, *, generic: str) -> DataFrame:
    """Cost relative to one fine-tune of the generic expert on the same target (paper Table 3).

    A fine-tune is one run at one learning rate (mean over rates and seeds), all on one machine.
    Rows: shots, stage (`brute force`: fine-tune all; `score the zoo`; `fine-tune the top 3`: a
    selector's own, ties in table order), selector. Columns: mean over targets, low, high, and
    seconds, the mean of the cost itself.
    """
    scores, finetune = of_one_machine(scores, finetune)
    where = ["shots", "task"]
    draw = [*where, "selector", "images_per_class", "seed"]
    tune = finetune.astype({"shots": str}).groupby([*where, "expert"])["seconds"].mean()
    ranked = scores.astype({"shots": str}).join(tune.rename("tune"), [*where, "expert"])
    ranked = ranked.dropna(subset="tune").sort_values("score", ascending=False, kind="stable")
    stages = {
        "brute force": tune.groupby(where).sum(),
        "score the zoo": ranked.groupby(draw)["seconds"].sum(),
        "fine-tune the top 3": ranked.groupby(draw).head(3).groupby(draw)["tune"].sum(),
    }
    parts = [seconds.rename("seconds").reset_index() for seconds in stages.values()]
    table = pd.concat(parts, keys=stages, names=["stage"]).reset_index("stage")
    table = table.fillna({"selector": ""})
    keys = ["shots", "stage", "selector"]
    table = table.groupby([*keys, "task"])["seconds"].mean().reset_index()
    one = tune.xs(generic, level="expert").rename("one")
    table["relative"] = table["seconds"] / table.join(one, where)["one"]
    rows = {}
    for key, cell in table.groupby(keys):
        relative = cell["relative"]
        low, high = interval(relative.to_numpy())
        rows[key] = (relative.mean(), low, high, cell["seconds"].mean())
    columns = ["relative cost", "low", "high", "seconds"]
    found = DataFrame(rows.values(), pd.MultiIndex.from_tuples(rows, names=keys), columns)
    order = ["", *selector_order(ranked["selector"])]
    by_stage = sorted(rows, key=lambda key: (key[0], [*stages].index(key[1]), order.index(key[2])))
    return found.loc[by_stage].rename(index=display_name, level="selector")


def provenance_line(suite: str, provenance: dict) -> Any:
    """What a page read, and folded, what recomputing it costs, as HTML."""
    from IPython.display import HTML

    stages = []
    machines = []
    for stage, part in provenance.items():
        minutes = part["seconds"] / 60
        stages.append(f"{stage} {part['jobs']:,} jobs in {minutes:,.1f} core-minutes")
        for machine in part["machines"]:
            facts = [f"{key} {value}".removeprefix("hardware ") for key, value in machine.items()]
            machines.append(", ".join(facts))
    last = max(part["finished"] for part in provenance.values())
    hardware = html.escape("; ".join(dict.fromkeys(machines)))
    return HTML(
        f"<details><summary>Read: <code>results/{suite}/</code>, computed until {last[:10]}"
        f"</summary><p>{'; '.join(stages)}; on {hardware}. To recompute, delete that folder and "
        f"run <code>mzlib run {suite}</code>.</p></details>"
    )
