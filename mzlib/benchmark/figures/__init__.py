"""One function an artefact of the paper (`table1` …, `fig2` …) and the project's own; tidy tables
in, axes out.
"""

from mzlib.benchmark.figures.linearization import fig8, fig8_table
from mzlib.benchmark.figures.paper import (
    paper,
    paper_averages,
    paper_errors,
    paper_metrics,
    paper_table1,
    paper_table2,
)
from mzlib.benchmark.figures.plots import (
    beside,
    errors_of,
    fig1,
    fig2,
    fig4,
    fig6,
    fig7,
    gains,
    kernel,
)
from mzlib.benchmark.figures.selectors import (
    BASELINES,
    agreement,
    by_task,
    cost_against_quality,
    half_tau,
    half_zoos,
)
from mzlib.benchmark.figures.style import (
    GREY,
    MULTI_DOMAIN,
    display_name,
    heat_map,
    selector_order,
    use_style,
    with_interval,
)
from mzlib.benchmark.figures.tables import (
    download,
    fig1_errors,
    provenance_line,
    show,
    table1,
    table2,
    table3,
    table4,
)

__all__ = [
    "BASELINES",
    "GREY",
    "MULTI_DOMAIN",
    "agreement",
    "beside",
    "by_task",
    "cost_against_quality",
    "display_name",
    "download",
    "errors_of",
    "fig1",
    "fig1_errors",
    "fig2",
    "fig4",
    "fig6",
    "fig7",
    "fig8",
    "fig8_table",
    "gains",
    "half_tau",
    "half_zoos",
    "heat_map",
    "kernel",
    "paper",
    "paper_averages",
    "paper_errors",
    "paper_metrics",
    "paper_table1",
    "paper_table2",
    "provenance_line",
    "selector_order",
    "show",
    "table1",
    "table2",
    "table3",
    "table4",
    "use_style",
    "with_interval",
]
