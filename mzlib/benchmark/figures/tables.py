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

from mzlib.benchmark.figures.style import MULTI_DOMAIN, display_name, selector_order
from mzlib.benchmark.scoring import of_one_machine
from mzlib.benchmark.statistics import interval


def download(table: pd.DataFrame, identifier: str, caption: str = "") -> Any:
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
) -> Any:
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
    draw = [*where, "selector", "images_per_class", "seed"]
    tune = finetune.astype({"shots": str}).groupby([*where, "expert"])["seconds"].mean()
    ranked = scores.astype({"shots": str}).join(tune.rename("tune"), [*where, "expert"])
    ranked = ranked.dropna(subset="tune").sort_values("score", ascending=False, kind="stable")
    stages = {
        "brute force": tune.groupby(where).sum(),
        "score the zoo": ranked.groupby(draw)["seconds"].sum(),
        f"fine-tune the top {k}": ranked.groupby(draw).head(k).groupby(draw)["tune"].sum(),
    }
    order = ["", *selector_order(ranked["selector"])]
    one = tune.xs(generic, level="expert")
    rows = {}
    for stage, seconds in stages.items():
        table = seconds.rename("seconds").reset_index()
        table["selector"] = table.get("selector", "")
        table = table.groupby([*where, "selector"])["seconds"].mean().reset_index()
        table["relative"] = table["seconds"] / table.join(one.rename("one"), where)["one"]
        for (shots, selector), cell in table.groupby(["shots", "selector"]):
            low, high = interval(cell["relative"].to_numpy())
            means = cell[["relative", "seconds"]].mean()
            rows[shots, stage, selector] = (means["relative"], low, high, means["seconds"])
    place = {stage: i for i, stage in enumerate(stages)}
    keys = sorted(rows, key=lambda key: (key[0], place[key[1]], order.index(key[2])))
    columns = ["relative cost", "low", "high", "seconds"]
    index = [(shots, stage, display_name(selector)) for shots, stage, selector in keys]
    table = pd.DataFrame([rows[key] for key in keys], columns=columns)
    return table.set_index(pd.MultiIndex.from_tuples(index, names=["shots", "stage", "selector"]))


def provenance_line(suite: str, provenance: dict) -> Any:
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
