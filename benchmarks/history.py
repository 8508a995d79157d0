"""`neighbour_history` without leaks, against the best published selector on the same targets.

    python benchmarks/history.py                  # results/benchmarks/history.csv, ten minutes
    python benchmarks/history.py thumb64 --fit    # zoo/thumb64/history.json, which ships

Both read the committed tables. A row is a target at 5, 20 or all training images per class, ranked
with what one setting lets be known of the past:

* `other targets`: all others; `other families`: those that share no family with it;
* `a new source`: all others, but the experts of one source are new and ranked by their score alone.
  The whole zoo is ranked, as it would be on the day they join it, so every metric has a meaning;
  mean over the sources;
* `1`, `3`, `5`, `10 past targets`: so many of the others; mean over ten draws;
* `shipped history`: all others, but with their fine-tunes at 20 images per class.

The constants of `neighbour_history` are chosen on the targets and experts of the setting alone; one
past target leaves nothing to choose, its vote and the score count alike.

Two settings know no past. `published`: the published selector that is best on the *other* targets,
by the metric of the column. Where two are close, leaving out a target makes the choice turn to the
one that is worse on it, so this rival is too weak. `published, hindsight`: the one that is best on
these very targets, a rival that is too strong.

Columns: shots, setting, task, then metrics of `evaluate`: spearman, within, and top1_gain and
top3_gain under each protocol (accuracy, not points).
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from mzlib.benchmark import complete, learned, load_results, load_suite, on_common_tasks
from mzlib.benchmark.evaluate import PROTOCOLS, evaluate
from mzlib.benchmark.figures.plots import unseeing
from mzlib.benchmark.results import Results
from mzlib.benchmark.statistics import chosen_elsewhere
from mzlib.benchmark.suite import Suite
from mzlib.provenance import home
from mzlib.selectors.history import History, neighbour_history

REGIME = "20"  # the one with most targets
SHOTS = ("5", "20", "full")
FEW = (1, 3, 5, 10)
DRAWS = 10
PUBLISHED = "published"
HINDSIGHT = "published, hindsight"


# Sets of one origin, then of one kind of image; a target may have kin of both sorts. Written out:
# the cards have other words for one kind, as "remote sensing scenes" and "remote sensing".
FAMILIES = (
    "tiny_arthropods tiny_food tiny_pets tiny_vehicles",
    "pacs_art_painting pacs_cartoon pacs_sketch",
    "caltech101 natural_images7 cifar10 tiny_vehicles",
    "fish4knowledge monkeys10 rice_insects tiny_arthropods tiny_pets",
    "ecustfd_food produce fruit_shapes tiny_food",
    "flowers5 leaf_disease10 plant_seedlings",
    "bccd_cells wbc pbc_cells rbc12 hep2_cells",
    "covid_xray busi eye_fundus knee_oa medical_modality",
    "mnist_digits arabic_letters cursive_letters kannada_digits omniglot_alphabets",
    "sign_digits asl_hands",
    "magnetic_tile xsdd_steel elpv_solar_cells solar_panel_faults",
    "dtd10_textures kth_tips2a",
    "rsscn7 ucmerced",
    "heritage_elements house_rooms road_types",
    "spoken_digits voice_emotions",
)


def kin(target: str) -> set[str]:
    """The target and all that share a family with it."""
    families = [set(names.split()) for names in FAMILIES]
    return {target}.union(*(names for names in families if target in names))


def settings(
    past: History,
    target: str,
    sources: dict[str, str],
    shipped: History | None,
    rng: np.random.Generator,
) -> Iterator[tuple[str, History]]:
    """(setting, what may be known to rank this target) of every way to leave out.

    sources: of the experts; shipped: the history of the regime that ships, where this is another.
    """
    yield "other targets", past.without([target])
    yield "other families", past.without(sorted(kin(target)))
    for source in sorted(set(sources.values())):
        new = [expert for expert in past.experts if sources[expert] == source]
        yield "a new source", past.without([target], new)
    others = [other for other in past.targets if other != target]
    for number in FEW:
        if number < len(others):
            for _ in range(DRAWS):
                kept = rng.choice(others, number, replace=False)
                left = sorted(set(past.targets) - set(kept))
                yield f"{number} past targets", past.without(left)
    if shipped:
        yield "shipped history", shipped.without([target])


def scores_of(
    past: History,
    samples: pd.DataFrame,
    sources: dict[str, str],
    shipped: History | None,
) -> pd.DataFrame:
    """Rows of scores of every expert on every target of `past`, a selector for each setting and
    draw ("5 past targets#3").

    samples: (target, seed) × experts, the score that the history holds.
    """
    rng = np.random.default_rng(0)
    tables = []
    for target in past.targets:
        every_way = settings(past, target, sources, shipped, rng)
        for draw, (setting, known) in enumerate(every_way):
            known = learned.chosen(known)
            position = known.positions(past.experts)
            for seed, own in samples.loc[target].iterrows():
                value = neighbour_history(known, position, own.to_numpy())
                table = pd.DataFrame({"expert": past.experts, "score": value})
                name = f"{setting}#{draw}"
                tables.append(table.assign(task=target, seed=seed, selector=name))
    return pd.concat(tables)


def by_target(metrics: pd.DataFrame) -> pd.DataFrame:
    """shots, setting, task × metrics, from `evaluate` of the settings and of all selectors."""
    correlates = metrics["metric"].isin(["spearman", "within"])
    gains = metrics["metric"].isin(["top1_gain", "top3_gain"])
    metrics = metrics[(correlates & (metrics["protocol"] == "paper")) | gains]
    column = metrics["metric"] + "_" + metrics["protocol"].str.replace(" ", "_")
    metrics = metrics.assign(column=column.where(gains, metrics["metric"]))
    is_setting = metrics["selector"].str.contains("#")
    rows = metrics[is_setting].assign(setting=metrics["selector"].str.partition("#")[0])
    parts = [rows[["shots", "setting", "task", "column", "value"]]]
    rivals = metrics[~is_setting].query("selector != 'neighbour_history'")
    rivals = rivals[~rivals["selector"].isin(unseeing(rivals["selector"].unique()))]
    for (shots, name), rows in rivals.groupby(["shots", "column"]):
        wide = on_common_tasks(rows).pivot_table("value", "task", "selector", dropna=False)
        complete_ones = wide.dropna(axis=1)
        if complete_ones.empty:  # as of one seed under `other seed`
            continue
        winner = complete_ones.mean().idxmax()
        rows_of = {PUBLISHED: chosen_elsewhere(wide), HINDSIGHT: complete_ones[winner]}
        for setting, values in rows_of.items():
            best = values.rename_axis("task").rename("value").reset_index()
            parts.append(best.assign(shots=shots, column=name, setting=setting))
    table = pd.concat(parts)
    order = table["column"].unique()
    keys = ["shots", "setting", "task"]
    wide = table.pivot_table("value", keys, "column", sort=False)
    wide = wide.reindex(columns=order)
    return wide.rename_axis(columns=None).reset_index()


def without_leaks(suite: Suite, results: Results, shots: str) -> pd.DataFrame:
    """The rows of one regime."""
    finetune = complete(results.finetune, suite, "single").query("shots == @shots")
    past = gathered(suite, results, shots)
    source = dict(zip(results.zoo["expert"], results.zoo["source"]))
    sources = {expert: source[expert] for expert in past.experts}
    samples = learned.samples(results.scores, shots)[list(past.experts)]
    shipped = None if shots == REGIME else gathered(suite, results, REGIME)
    ours = scores_of(past, samples, sources, shipped)
    ours = ours.assign(suite=suite.name, shots=shots, images_per_class=learned.IMAGES)
    theirs = results.scores.astype({"shots": str, "images_per_class": str})
    theirs = theirs.query("shots == @shots and images_per_class == @learned.IMAGES")
    theirs = theirs[theirs["expert"].isin(past.experts)]
    metrics = evaluate(
        pd.concat([theirs, ours]),
        finetune[finetune["task"].isin(past.targets)],
        generic=suite.reference,
        protocols=PROTOCOLS,
        correlations=["spearman"],
        groups=learned.groups(results.zoo, suite.generic),
    )
    return by_target(metrics[metrics["selector"] != "noise_ceiling"])


def gathered(suite: Suite, results: Results, shots: str) -> History:
    """The complete targets of a regime."""
    finetune = complete(results.finetune, suite, "single")
    return learned.collect(finetune, results.scores, results.zoo, suite.generic, shots)


def fit(name: str) -> None:
    """Write `zoo/<name>/history.json`: all complete targets at 20 shots, experts known by the
    digest of their weights.
    """
    suite = load_suite(name)
    results = load_results(name)
    past = learned.chosen(gathered(suite, results, REGIME))
    zoo = home() / "zoo" / name
    cards = [json.loads((zoo / f"{expert}.json").read_text("utf-8")) for expert in past.experts]
    about = {
        "suite": name,
        "shots": REGIME,
        "images per class of the scores": learned.IMAGES,
        "experts": list(past.experts),
        "fine-tunes": results.provenance.get("finetune", {}),
    }
    digests = tuple(card["sha256"] for card in cards)
    replace(past, experts=digests, about=about).save(zoo / "history.json")
    print(f"{len(past.targets)} targets, sharpness {past.sharpness:g}, own score {past.own:g}")


def judge(name: str) -> None:
    """Write the table and print its means."""
    suite = load_suite(name)
    results = load_results(name)
    table = pd.concat([without_leaks(suite, results, shots) for shots in SHOTS])
    table.to_csv(home() / "results/benchmarks/history.csv", index=False, float_format="%.4f")
    means = table.groupby(["shots", "setting"], sort=False).mean(numeric_only=True)
    print(means.round(3).to_string())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("suite", nargs="?", default="thumb64")
    parser.add_argument("--fit", action="store_true", help="write the history of the suite's zoo")
    args = parser.parse_args()
    (fit if args.fit else judge)(args.suite)
