"""`neighbour_history` without leaks: Spearman's correlation with accuracy on every target of a suite
when it, its family of targets, the expert's source or most of the past are left out.

    python benchmarks/history.py                  # results/benchmarks/history.csv, a minute
    python benchmarks/history.py thumb64 --fit    # zoo/thumb64/history.json, which ships

Both read the committed tables. Columns: setting, task, spearman, alone (of the score by itself),
difference.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from mzlib.benchmark import complete, learned, load_results, load_suite
from mzlib.benchmark.metrics import spearman
from mzlib.benchmark.results import Results
from mzlib.benchmark.suite import Suite
from mzlib.provenance import home
from mzlib.selectors.history import History, neighbour_history

REGIME = "20"  # the one with most targets


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


def _settings(past: History, sources: dict[str, str]) -> Iterator[tuple[str, int, History, list]]:
    """(setting, target, what may be known, experts that are new) of every way to leave out."""
    rng = np.random.default_rng(0)
    for i, target in enumerate(past.targets):
        yield "other targets", i, past.without([target]), []
        yield "other families", i, past.without(sorted(kin(target))), []
        for source in sorted(set(sources.values())):
            new = [expert for expert in past.experts if sources[expert] == source]
            yield "a new source", i, past.without([target], new), new
        others = [other for other in past.targets if other != target]
        for number in (1, 3, 5, 10):
            if number < len(others):
                for _ in range(10):
                    kept = set(rng.choice(others, number, replace=False))
                    left = [other for other in past.targets if other not in kept]
                    yield f"{number} past targets", i, past.without(left), []


def without_leaks(past: History, sources: dict[str, str]) -> pd.DataFrame:
    """Spearman's correlation of `neighbour_history` and of its score alone with accuracy, for every
    target and way to leave out: other targets (nested choice of the constants), other families of
    targets, the expert's source (a new expert is ranked by its score), few past targets.

    Returns: setting, task, spearman, alone (of the score), difference; means over draws.
    """
    rows = []
    constants: dict[tuple, dict] = {}
    for setting, i, known, new in _settings(past, sources):
        if known.targets not in constants:
            best = learned.chosen(known) if len(known.targets) > 10 else known
            constants[known.targets] = {"sharpness": best.sharpness, "own": best.own}
        known = replace(known, **constants[known.targets])
        position = known.positions(past.experts)
        value = neighbour_history(known, position, past.scores[i])
        rows.append(
            {
                "setting": setting,
                "task": past.targets[i],
                "spearman": float(spearman(value, past.accuracy[i])),
                "alone": float(spearman(past.scores[i], past.accuracy[i])),
            }
        )
    table = pd.DataFrame(rows).groupby(["setting", "task"], sort=False).mean().reset_index()
    return table.assign(difference=table["spearman"] - table["alone"])


def gathered(suite: Suite, results: Results) -> History:
    """The complete targets of the regime."""
    finetune = complete(results.finetune, suite, "single")
    return learned.collect(finetune, results.scores, results.zoo, suite.generic, REGIME)


def fit(name: str) -> None:
    """Write `zoo/<name>/history.json`: all complete targets at 20 shots, experts known by the
    digest of their weights.
    """
    suite = load_suite(name)
    results = load_results(name)
    past = learned.chosen(gathered(suite, results))
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
    past = gathered(suite, results)
    source = dict(zip(results.zoo["expert"], results.zoo["source"]))
    table = without_leaks(past, {expert: source[expert] for expert in past.experts})
    table.to_csv(home() / "results/benchmarks/history.csv", index=False, float_format="%.4f")
    means = table.groupby("setting", sort=False)[["spearman", "alone", "difference"]].mean()
    print(means.round(3).to_string())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("suite", nargs="?", default="thumb64")
    parser.add_argument("--fit", action="store_true", help="write the history of the suite's zoo")
    args = parser.parse_args()
    (fit if args.fit else judge)(args.suite)
