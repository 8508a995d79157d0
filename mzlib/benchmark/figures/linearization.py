"""The paper's Fig. 8: feature kernels during fine-tuning; a kernel is a tensor [N, N]."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from torch import Tensor

from mzlib.benchmark.figures.paper import paper
from mzlib.benchmark.figures.plots import kernel
from mzlib.benchmark.figures.style import display_name, use_style
from mzlib.selectors.deshpande2021 import lgc

Grid = Mapping[str, Mapping[str, Tensor]]  # row -> title -> kernel


def fig8(grid: Grid, labels: Tensor) -> np.ndarray:
    """Kernels in rows and columns, eq. 8 after each title: the layout of the paper's Fig. 8."""
    use_style()
    columns = max(map(len, grid.values()))
    _, panels = plt.subplots(
        len(grid),
        columns,
        figsize=(5, 0.2 + 1.95 * len(grid)),
        layout="constrained",
        squeeze=False,
    )
    for (name, row), line in zip(grid.items(), panels):
        for (column, gram), ax in zip(row.items(), line):
            title = f"{column} {lgc(gram, labels):.2f}"
            kernel(gram.numpy(), labels.numpy(), title=title, ax=ax)
        line[0].set_ylabel(name)
    return panels


def fig8_table(grid: Grid, labels: Tensor) -> pd.DataFrame:
    """LFC at start, half and end of fine-tuning of each row of `fig8`, under them the paper's."""
    stages = ["start", "half", "end"]
    has_half = max(map(len, grid.values())) == 3  # not after one epoch
    shown = stages if has_half else ["start", "end"]
    rows = [[lgc(gram, labels) for gram in row.values()] for row in grid.values()]
    ours = pd.DataFrame(rows, list(grid), shown)
    theirs = paper("fig8_lfc_during_finetuning")
    theirs = theirs.pivot(index="source", columns="epoch", values="lfc")
    theirs = theirs.set_axis(stages, axis=1)
    theirs = theirs.rename(lambda source: f"{display_name(source)} (paper, UC Merced)")
    return pd.concat([ours, theirs[shown]]).rename_axis("expert")
