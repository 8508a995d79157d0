"""One style, one map of names and colours for every figure; legible on light and dark pages."""

import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.ticker import LogLocator

from mzlib.benchmark.statistics import interval
from mzlib.selectors import SELECTORS

GREY = "#7c7c7c"  # the same contrast, about 4 to 1, on a white and on a near-black page
BLUE = "#2480c0"  # these four after Okabe & Ito, safe for colour-blind eyes
ORANGE = "#d55e00"
GREEN = "#009e73"
PINK = "#cc79a7"
MULTI_DOMAIN = ("shared", "multi_bn", "adapter")

# The kinds of starting point of the paper's Fig. 2 and 3, in drawing order: shown name, colour.
GROUPS = {
    "scratch": ("expert, from scratch", GREEN),
    "pretrained": ("expert, from the generic one", BLUE),
    "generic": ("generic expert", ORANGE),
    "multi_other": ("domain of the multi-domain expert", PINK),
    "multi_generic": ("its generic domain", GREY),
}
HERE = Path(__file__).parent
NAMES = tomllib.loads((HERE / "names.toml").read_text("utf-8"))
STYLE = mpl.rc_params_from_file(HERE / "mzlib.mplstyle", use_default_template=False)


def display_name(identifier: str) -> str:
    """How a selector, metric, architecture, source or task is written for the reader."""
    if identifier in NAMES:
        return NAMES[identifier]
    return SELECTORS[identifier].title if identifier in SELECTORS else identifier.replace("_", " ")


def selector_order(selectors: Iterable[str]) -> list[str]:
    """Selectors in the order of the registry, unknown ones after them."""
    there = set(selectors)
    return [name for name in SELECTORS if name in there] + sorted(there - set(SELECTORS))


def groups(zoo: pd.DataFrame, generic: str) -> pd.Series:
    """Expert -> its key of `GROUPS`; every expert on the generic expert's source is generic."""
    zoo = zoo.set_index("expert")
    on_generic = zoo["source"] == zoo.loc[generic, "source"]
    multi = zoo["pretraining"].isin(MULTI_DOMAIN)
    group = (
        zoo["pretraining"]
        .eq("scratch")
        .map(
            {
                True: "scratch",
                False: "pretrained",
            }
        )
    )
    group = group.mask(on_generic, "generic").mask(multi, "multi_other")
    return group.mask(multi & on_generic, "multi_generic")


def with_interval(mean: float, low: float, high: float, decimals: int = 2) -> str:
    """`mean [low, high]` as text; a dash without a mean, the mean alone without an interval.

    At most two digits of half the interval's width: more would only be noise.
    """
    if np.isnan(mean):
        return "–"
    if high - low > 2:
        decimals = min(decimals, max(0, 1 - int(np.log10((high - low) / 2))))
    text = f"{mean:.{decimals}f}"
    return text if np.isnan(low) else f"{text} [{low:.{decimals}f}, {high:.{decimals}f}]"


def mean_with_interval(values: pd.Series, decimals: int = 2) -> str:
    """The mean of values [n], one a target, and its interval, as `with_interval` writes them."""
    return with_interval(values.mean(), *interval(values), decimals)


def use_style() -> None:
    """Make the style the default of this process, and SVG the format of figures in a notebook."""
    mpl.rcParams.update(STYLE)
    if "IPython" in sys.modules and sys.modules["IPython"].get_ipython():
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg")


def axes(ax: plt.Axes | None, height: float, width: float = 5.0) -> plt.Axes:
    """`ax`, or the axes of a new figure; 5 inches wide, so that phones show its text at 10 px."""
    use_style()
    return plt.subplots(figsize=(width, height), layout="constrained")[1] if ax is None else ax


def error_axis(ax: plt.Axes, which: str = "x") -> None:
    """A log axis with plain numbers at 1, 2, 5, … and a light grid."""
    axis = getattr(ax, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")
    ax.tick_params(axis="y", length=0)
    ax.grid(
        axis=which,
        color=GREY,
        alpha=0.25,
        lw=0.6,
    )


def heat_map(ax: plt.Axes, table: pd.DataFrame, *, limit: float = 1.0, form: str = ".2f") -> None:
    """Numbered cells, orange above zero and violet below; names on top; a missing cell is empty."""
    sns.heatmap(
        table.astype(float),
        ax=ax,
        cmap="PuOr_r",
        vmin=-limit,
        vmax=limit,
        annot=bool(form),
        fmt=form,
        annot_kws={"fontsize": 8},
        cbar=not form,
        cbar_kws={
            "location": "bottom",
            "shrink": 0.6,
            "aspect": 30,
        },
        xticklabels=[display_name(name) for name in table],
        yticklabels=[display_name(name) for name in table.index],
    )
    ax.tick_params(
        top=True,
        labeltop=True,
        bottom=False,
        labelbottom=False,
        length=0,
        labelsize=8,
    )
    ax.set(xlabel="", ylabel="")
    for text in ax.texts:  # the library's own choice is too pale on a full orange
        text.set_color("white" if abs(float(text.get_text())) > 0.7 * limit else "black")
    for label in ax.get_xticklabels():
        label.set(
            rotation=40,
            ha="left",
            rotation_mode="anchor",
        )
    for label in ax.get_yticklabels():
        label.set(rotation=0)
