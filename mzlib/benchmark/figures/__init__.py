"""What several pages and notebooks draw: tables in, axes out; one's own stands in its cells."""

# ruff: noqa: F401
from mzlib.benchmark.figures.paper import paper, target_blind
from mzlib.benchmark.figures.plots import (
    BASELINES,
    beside,
    fig6,
)
from mzlib.benchmark.figures.style import (
    GREY,
    MULTI_DOMAIN,
    display_name,
    heat_map,
    mean_with_interval,
    selector_order,
    use_style,
    with_interval,
)
from mzlib.benchmark.figures.tables import (
    download,
    provenance_line,
    show,
)
