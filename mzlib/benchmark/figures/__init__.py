"""One function an artefact of the paper (`table1` …, `fig2` …) and the project's own; tidy tables
in, axes out.
"""

# ruff: noqa: F401
from mzlib.benchmark.figures.linearization import fig8, fig8_table
from mzlib.benchmark.figures.paper import paper
from mzlib.benchmark.figures.plots import (
    beside,
    errors_of,
    fig2,
    fig4,
    fig6,
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
    provenance_line,
    show,
    table1,
    table2,
    table3,
)
