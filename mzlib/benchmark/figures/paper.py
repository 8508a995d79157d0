"""The paper's numbers: `book/paper/*.csv`."""

from pathlib import Path

import numpy as np
import pandas as pd
from pandas import DataFrame

from mzlib.benchmark.learned import three_steps
from mzlib.benchmark.metrics import spearman
from mzlib.errors import MzlibError
from mzlib.provenance import home
from mzlib.selectors.history import History, prior


def paper(name: str) -> DataFrame:
    """A table of `book/paper/`, as printed there.

    Raises MzlibError where it is missing (a package that was installed without the book).
    """
    for root in (home(), Path(__file__).parents[3]):
        file = root / "book/paper" / f"{name}.csv"
        if file.is_file():
            return pd.read_csv(file, dtype={"shots": str, "images_per_class": str})
    raise MzlibError(
        f"expected the paper's numbers in {home() / 'book/paper'}, got none: "
        "run in a clone of the repository"
    )


def target_blind(shots: str) -> DataFrame:
    """Target × (three_steps, prior): Spearman's correlation with the accuracies of Fig. 2 of two
    rankings that see no image of the target, on the eight targets of the paper's model selection.

    three_steps: the ImageNet expert, then pre-trained ones, then those from scratch; prior: mean
    rank of the architecture and start on the *other* targets. `history` cannot be had: Fig. 2 does
    not say which expert is of which source, and the place of a point within its group is its
    accuracy on the target itself.
    """
    table = paper("fig2_finetune_error").query("shots == @shots")
    table = table[table["target"].isin(paper("fig4_top3_gain")["target"])]
    as_ours = {"imagenet": "is generic", "pretrained": "generic", "scratch": "scratch"}
    table["start"] = table["group"].map(as_ours)
    point = ["architecture", "start", "rank"]
    accuracy = 100 - table.pivot(index="target", columns=point, values="test_error")
    points = [", ".join(map(str, of_point)) for of_point in accuracy]
    groups = [f"{architecture}, {start}" for architecture, start, _ in accuracy]
    steps = np.array([three_steps(group) for group in groups])
    found = accuracy.to_numpy()
    unscored = np.zeros_like(found)
    past = History(tuple(points), tuple(groups), tuple(accuracy.index), found, unscored)
    rows = {}
    for target, reached in zip(past.targets, past.accuracy):
        of_others = prior(past.without([target]))
        rows[target] = {
            "three_steps": float(spearman(steps, reached)),
            "prior": float(spearman(of_others, reached)),
        }
    return DataFrame.from_dict(rows, orient="index")
