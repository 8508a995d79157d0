"""One style and one map of names, colours and order for every figure; legible on light and dark pages."""

import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import LogLocator

from mzlib.selectors import SELECTORS

GREY = "#7c7c7c"  # the same contrast, about 4 to 1, on a white and on a near-black page
BLUE, ORANGE, GREEN, PINK = (
    "#2480c0",
    "#d55e00",
    "#009e73",
    "#cc79a7",
)  # after Okabe & Ito, safe for colour-blind eyes
MULTI_DOMAIN = ("shared", "multi_bn", "adapter")

GROUPS = {  # id: (shown name, colour), in drawing order: the kinds of starting point of the paper's Fig. 2 and 3
    "scratch": ("expert, from scratch", GREEN),
    "pretrained": ("expert, from the generic expert", BLUE),
    "generic": ("generic expert", ORANGE),
    "multi_other": ("multi-domain expert", PINK),
    "multi_generic": ("same, generic domain", GREY),
}
MARKERS = {"mzlib_resnet": "o", "mzlib_densenet": "^"}
NAMES = {
    "mzlib_resnet": "residual",
    "mzlib_densenet": "dense",
    "shared": "Shared",
    "multi_bn": "Multi-BN",
    "adapter": "Adapter",
    "best": "Best expert",
    "worst": "Worst expert",
    "average": "Average",
    "spearman": "Spearman correlation",
    "trials_to_best": "Trials to the best expert",
    "top1_gain": "Gain of the top expert",
    "top3_gain": "Gain of the top 3",
    "regret_at_1": "Regret of the top expert",
}
STYLE = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "savefig.transparent": True,
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.titlecolor": GREY,
    "axes.titlesize": 10.5,
    "font.size": 10,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "mzlib",
}


def display_name(identifier: str) -> str:
    """How a selector, metric, architecture, way of pre-training, source or task is written for the reader."""
    title = SELECTORS[identifier].title if identifier in SELECTORS else identifier.replace("_", " ")
    return NAMES.get(identifier, title)


def selector_order(selectors) -> list[str]:
    """Selectors in the order of the registry, unknown ones after them."""
    return [
        *filter(set(selectors).__contains__, SELECTORS),
        *sorted(set(selectors) - set(SELECTORS)),
    ]


def groups(zoo: pd.DataFrame, generic: str) -> pd.Series:
    """The `GROUPS` id of every expert of a zoo table; experts on the generic expert's source are generic, too."""
    zoo = zoo.set_index("expert")
    on_generic = zoo["source"] == zoo.loc[generic, "source"]
    multi = zoo["pretraining"].isin(MULTI_DOMAIN)
    group = zoo["pretraining"].eq("scratch").map({True: "scratch", False: "pretrained"})
    return (
        group.mask(on_generic, "generic")
        .mask(multi, "multi_other")
        .mask(multi & on_generic, "multi_generic")
    )


def use_style() -> None:
    """Make the style the default of this process, and SVG the format of figures in a notebook."""
    mpl.rcParams.update(STYLE)
    if "IPython" in sys.modules and sys.modules["IPython"].get_ipython():
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg")


def axes(ax: plt.Axes | None, height: float, width: float = 5.0) -> plt.Axes:
    """`ax`, or the axes of a new figure in the style; 5 inches wide, so that phones show its text at 10 px."""
    use_style()
    return plt.subplots(figsize=(width, height), layout="constrained")[1] if ax is None else ax


def error_axis(ax: plt.Axes, which: str = "x") -> None:
    """A log axis with plain numbers at 1, 2, 5, … and a light grid."""
    axis = getattr(ax, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")
    ax.tick_params(axis="y", length=0)
    ax.grid(axis=which, color=GREY, alpha=0.25, lw=0.6)
