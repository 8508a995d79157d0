"""From evidence to rows of a score table, and from the rows of a zoo to scores that are normalised
over it.
"""

import math
import time
from collections.abc import Iterable

import pandas as pd
from pandas import DataFrame

from mzlib.errors import Missing
from mzlib.evidence import Evidence
from mzlib.selectors import SELECTORS, resolve


def score_rows(evidence: Evidence, selectors: Iterable[str]) -> list[dict]:
    """selector, score (NaN: missing), reason, seconds for each selector id; a selector that is
    normalised over the zoo gives a row `<id>.<i>` for each of its components. The first to ask for
    a piece of evidence pays for it in its seconds.
    """
    rows = []
    for name in selectors:
        start = time.perf_counter()
        reason = ""
        try:
            value = resolve(SELECTORS[name], evidence)
        except Missing as missing:
            value = math.nan
            reason = str(missing)
        seconds = round(time.perf_counter() - start, 4)
        scores = {name: value}
        if isinstance(value, tuple):
            scores = {f"{name}.{i}": component for i, component in enumerate(value)}
        for selector, score in scores.items():
            row = {
                "selector": selector,
                "score": score,
                "reason": reason,
                "seconds": seconds,
            }
            rows.append(row)
    return rows


def combined(table: DataFrame) -> DataFrame:
    """The table with every set of component rows `<id>.<i>` replaced by one row with the score that
    they give over the zoo, that is over the experts of one task and setting.
    """
    names = table["selector"].str.rpartition(".")
    is_part = names[0] != ""
    parts = table.assign(selector=names[0], part=names[2])
    parts = parts[is_part]
    setting = ["suite", "task", "shots", "images_per_class", "seed", "selector"]
    scores = []
    for _, rows in parts.groupby([c for c in setting if c in table]):
        whole = rows[rows["part"] == "0"].drop(columns="part")
        components = rows.pivot(index="expert", columns="part", values="score")
        components = components.loc[whole["expert"]].to_numpy()
        combine = SELECTORS[whole["selector"].iloc[0]].combine
        scores.append(whole.assign(score=combine(components)))
    if not scores:
        return table
    whole = pd.concat(scores).sort_index()
    return pd.concat([table[~is_part], whole], ignore_index=True)


def of_one_machine(*tables: DataFrame) -> tuple[DataFrame, ...]:
    """The rows that come from the hardware which computed most of them: seconds of different
    machines do not compare.
    """
    hardware = pd.concat([table["hardware"] for table in tables]).mode()
    return tuple(table[table["hardware"].isin(hardware[:1])] for table in tables)


def zoo_costs(scores: DataFrame, finetune: DataFrame, reference: str) -> DataFrame:
    """What whole zoos cost on each target (paper, Table 3), on one machine.

    A fine-tune is one run at one learning rate (mean over rates and seeds); scores are of one
    number of images a class, from the first seed's sample, which every selector has.

    Columns: shots, task, stage (`brute force`: fine-tune all; `score the zoo`; `fine-tune the top
    3`: a selector's own, mean over its samples, ties in table order), selector (empty for `brute
    force`), seconds, and relative: these over one fine-tune of the reference expert, NaN where that
    did not run, or on another machine.
    """
    scores, finetune = of_one_machine(scores, finetune)
    target = ["shots", "task"]
    tune = finetune.astype({"shots": str}).groupby([*target, "expert"])["seconds"].mean()
    tuned = tune.groupby(target).agg(["sum", "size"])
    experts = tuned["size"].max()

    ranked = scores.astype({"shots": str}).join(tune.rename("tune"), [*target, "expert"])
    ranked = ranked.dropna(subset="tune").sort_values("score", ascending=False, kind="stable")
    first = ranked[ranked["seed"] == ranked["seed"].min()]
    scored = first.groupby([*target, "selector"])["seconds"].agg(["sum", "size"])
    top = ranked.groupby([*target, "selector", "seed"]).head(3)
    top = top.groupby([*target, "selector", "seed"])["tune"].sum()

    stages = {
        "brute force": tuned.loc[tuned["size"] == experts, "sum"],
        "score the zoo": scored.loc[scored["size"] == experts, "sum"],
        "fine-tune the top 3": top.groupby([*target, "selector"]).mean(),
    }
    parts = [seconds.rename("seconds").reset_index() for seconds in stages.values()]
    table = pd.concat(parts, keys=stages, names=["stage"]).reset_index("stage")
    table = table.fillna({"selector": ""}).reset_index(drop=True)
    of_reference = tune.index.get_level_values("expert") == reference
    one = tune[of_reference].droplevel("expert").rename("one")
    table["relative"] = table["seconds"] / table.join(one, target)["one"]
    return table


_PASSES = {
    "features": "forward",
    "source_probabilities": "forward",
    "last_conv_kernel": "last_conv",
    "full_kernel": "all",
    "reference_features": "reference",
}


def seconds_alone(scores: DataFrame) -> pd.Series:
    """Seconds of each row of a score table, had its selector been the only one of its job.

    Within a job the first selector to ask paid for the forward pass, a kernel or the reference net;
    here everyone who needs one pays what the first one did (whose own arithmetic, milliseconds,
    comes with it).
    """
    seconds = scores["seconds"].to_dict()
    first_to_ask: dict[tuple, int] = {}
    for row in scores[["key", "selector"]].itertuples():
        passes = {_PASSES.get(need) for need in SELECTORS[row.selector].needs.values()}
        for name in passes - {None}:
            first = first_to_ask.setdefault((row.key, name), row.Index)
            if first != row.Index:
                seconds[row.Index] += scores.at[first, "seconds"]
    return pd.Series(seconds)
