"""From evidence to rows of a score table, and from the rows of a zoo to scores that are normalised
over it.
"""

import math
import time
from collections.abc import Iterable

import numpy as np
import pandas as pd

from mzlib.errors import Missing
from mzlib.evidence import Evidence
from mzlib.selectors import SELECTORS, resolve


def score_rows(evidence: Evidence, selectors: Iterable[str]) -> list[dict]:
    """selector, score (NaN: missing), reason, seconds for each selector id; a selector that is
    normalised over the zoo gives
    a row `<id>.<i>` for each of its components. The first to ask for a piece of evidence pays for
    it in its seconds.
    """
    rows = []
    for name in selectors:
        start, value, reason = time.perf_counter(), math.nan, ""
        try:
            value = resolve(SELECTORS[name], evidence)
        except Missing as missing:
            reason = str(missing)
        seconds = round(time.perf_counter() - start, 4)
        parts = (
            {f"{name}.{i}": v for i, v in enumerate(value)}
            if isinstance(value, tuple)
            else {name: value}
        )
        rows += [
            {"selector": part, "score": v, "reason": reason, "seconds": seconds}
            for part, v in parts.items()
        ]
    return rows


def combined(table: pd.DataFrame) -> pd.DataFrame:
    """The table with every set of component rows `<id>.<i>` replaced by one row with the score that
    they give over the zoo,
    that is over the experts of one task and setting.
    """
    split = {name: name.rpartition(".") for name in table["selector"].unique()}
    whole = table["selector"].map(
        {name: parts[0] for name, parts in split.items()}
    )  # "" where there are no components
    rows = table.assign(
        selector=whole,
        part=table["selector"].map({name: parts[2] for name, parts in split.items()}),
    )[whole != ""]
    setting = [c for c in ("suite", "task", "shots", "images_per_class", "seed") if c in table] + [
        "selector"
    ]
    one = rows[rows["part"] == "0"].drop(columns="part")
    wide = rows.pivot(index=[*setting, "expert"], columns="part", values="score")
    wide = wide.reindex(pd.MultiIndex.from_frame(one[[*setting, "expert"]])).to_numpy()
    score, components = np.empty(len(one)), rows.groupby("selector")["part"].nunique()
    for (*_, name), at in one.groupby(setting).indices.items():
        score[at] = SELECTORS[name].combine(wide[at, : components[name]])
    return pd.concat([table[whole == ""], one.assign(score=score)], ignore_index=True)


def of_one_machine(*tables: pd.DataFrame) -> tuple[pd.DataFrame, ...]:
    """The rows that come from the hardware which computed most of them: seconds of different
    machines do not compare.
    """
    hardware = pd.concat([table["hardware"] for table in tables]).mode()
    return tuple(table[table["hardware"].isin(hardware[:1])] for table in tables)


_PASSES = {
    "features": "forward",
    "source_probabilities": "forward",
    "last_conv_kernel": "last_conv",
    "full_kernel": "all",
    "reference_features": "reference",
}


def seconds_alone(scores: pd.DataFrame) -> pd.Series:
    """Seconds of each row of a score table, had its selector been the only one of its job.

    Within a job the first selector to ask paid for the forward pass, a kernel or the reference net;
    here everyone who needs
    one pays what the first one did (whose own arithmetic, milliseconds, comes with it).
    """
    seconds, paid = scores["seconds"].to_dict(), {}
    for row in scores[["key", "selector"]].itertuples():
        for name in {_PASSES[n] for n in SELECTORS[row.selector].needs.values() if n in _PASSES}:
            if (first := paid.setdefault((row.key, name), row.Index)) != row.Index:
                seconds[row.Index] += scores.at[first, "seconds"]
    return pd.Series(seconds)
