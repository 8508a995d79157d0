"""Tables for the page from tidy tables, each with a link that downloads it as CSV."""

import base64
import html
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from pandas import DataFrame


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
