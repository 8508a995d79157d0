"""By which rule to keep one of the three experts that a selector puts first, when they are
fine-tuned with 20 images a class. A row a target, selector and rule: what is kept, and its gain in
test accuracy over the generic expert (percentage points).

    python benchmarks/validation_rules.py                    # of the fine-tunes that are there
    python benchmarks/validation_rules.py --minutes 60       # before that, more folds
    python benchmarks/validation_rules.py --minutes 60 --targets 'tiny_*'

A person has the images of the regime and those that the suite holds out for validation, about 20
and 10 a class. Every rule sees these and no others:

* `score`: the first expert; the others need no fine-tune.
* `holdout`: the most accurate one on the images that were held out (the suite's fine-tunes).
* `kfold`: the most accurate one over four folds of all images (a fine-tune a fold, one thread; each
  is a row of results/benchmarks/validation_folds.csv as soon as it ends, so that a run that is cut
  off goes on).
* `…_shrunk`: either, shrunk towards the score's order by empirical Bayes (`shrunk`), with constants
  from the other targets and binomial noise; `…_calibrated`: with the noise that they show.
* `test`: the most accurate one on the test images, an oracle.
* `elsewhere`: the rule (not `test`) that gains most on the other targets, as a choice among rules
  must be judged.

Equal values: the expert of the higher score is kept. All are judged by the test accuracy of the
suite's fine-tune (20 images a class), so that rules differ by what they keep and by nothing else.
"""

import argparse
import csv
import fnmatch
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mzlib.benchmark import complete, learned, load_results, load_suite
from mzlib.benchmark.statistics import interval
from mzlib.benchmark.suite import Suite
from mzlib.evidence import subset
from mzlib.finetuning import Past, shrunk
from mzlib.provenance import home, machine
from mzlib.training import ResidentSet, accuracy, predict, train
from mzlib.uncertainty import leave_group_out
from mzlib.zoo import load_expert, with_fresh_head

SUITE = "thumb64"
SHOTS = "20"
SEED = 0
FOLDS = 4
TOP = 3
SELECTORS = ("ridge_loo_mse", "neighbour_history")
CENTRED = np.array([1.0, 0.0, -1.0])  # of first, second, third, as `shrunk` takes them
VALIDATED = ("holdout", "kfold")
RULES = [
    "score",
    *(f"{rule}{kind}" for rule in VALIDATED for kind in ("", "_shrunk", "_calibrated")),
]


def first_three(suite: Suite) -> tuple[pd.DataFrame, dict[str, float]]:
    """A row an expert that a selector puts among its first three on a target, first to third:
    selector, task, expert, accuracy and val_accuracy of its fine-tune; and the accuracy of the
    generic expert on every target.
    """
    results = load_results(suite.name)
    finetune = complete(results.finetune, suite, "single")
    regime = finetune[(finetune["shots"] == SHOTS) & (finetune["seed"] == SEED)]
    nested = learned.baseline_scores(regime, results.scores, results.zoo, suite)
    scores = pd.concat([results.scores, nested]).astype({"shots": str, "images_per_class": str})
    scores = scores[scores["selector"].isin(SELECTORS) & (scores["seed"] == SEED)]
    scores = scores[(scores["shots"] == SHOTS) & (scores["images_per_class"] == learned.IMAGES)]
    columns = ["task", "expert", "accuracy", "val_accuracy"]
    joined = scores[["selector", "task", "expert", "score"]].merge(regime[columns])
    joined = joined.sort_values("score", ascending=False, kind="stable")
    picks = joined.groupby(["selector", "task"]).head(TOP).sort_values(["selector", "task"])
    generic = regime[regime["expert"] == suite.reference].set_index("task")["accuracy"]
    return picks, generic.to_dict()


def folds_file() -> Path:
    """A row a fold that was trained."""
    return home() / "results/benchmarks/validation_folds.csv"


def run_folds(suite: Suite, picks: pd.DataFrame, targets: str, minutes: float) -> None:
    """Fine-tune on the folds that are not there yet, for so long: targets of few images first."""
    torch.set_num_threads(1)
    ends_at = time.monotonic() + 60 * minutes
    path = folds_file()
    names = [name for name in picks["task"].unique() if fnmatch.fnmatch(name, targets)]
    index = {}
    for name in names:
        known = subset(suite.task(name), SHOTS, SEED)
        index[name] = np.sort(np.concatenate([known.train, known.validation]))
    wanted = picks.loc[picks["task"].isin(names), ["selector", "task", "expert"]]
    wanted = wanted.assign(images=wanted["task"].map({name: len(i) for name, i in index.items()}))
    wanted = wanted.sort_values(["selector", "images"], kind="stable")
    done = set(of_folds())
    for name, expert in wanted[["task", "expert"]].drop_duplicates().itertuples(index=False):
        if (name, expert) in done:
            continue
        if time.monotonic() > ends_at:
            return
        rows = folds(suite, name, expert, index[name])
        _append(path, [{"task": name, "expert": expert, **row} for row in rows])
        print(name, expert, sum(row["hits"] for row in rows), flush=True)


def folds(suite: Suite, target: str, expert: str, index: np.ndarray) -> list[dict]:
    """A row a fold: the suite's fine-tune without it, and the right answers on it."""
    task = suite.task(target)
    images = task.train.images[index]
    labels = task.train.labels[index]
    rows = []
    for fold, kept in enumerate(leave_group_out(labels, FOLDS, SEED)):
        start = time.perf_counter()
        held_out = np.setdiff1d(np.arange(len(labels)), kept)
        model = load_expert(expert, home() / "zoo" / suite.name).model
        with_fresh_head(model, len(task.class_names), SEED)
        device = torch.device("cpu")
        data = ResidentSet(images[kept], labels[kept], flip=task.flip, device=device)
        train(model, data, suite.recipe("finetune"), seed=SEED, progress=False)
        share, _ = accuracy(predict(model, images[held_out], device), labels[held_out])
        rows.append(
            {
                "fold": fold,
                "train_images": len(kept),
                "validation_images": len(held_out),
                "hits": round(share * len(held_out)),
                "seconds": round(time.perf_counter() - start, 2),
                **machine(),
            }
        )
    return rows


def _append(path: Path, rows: list[dict]) -> None:
    """All folds of an expert at once: half of them are of no use."""
    new = not path.is_file()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if new:
            writer.writeheader()
        writer.writerows(rows)


def fitted(test: np.ndarray, validated: np.ndarray, images: np.ndarray, calibrated: bool) -> Past:
    """From past targets: test, validated float [T, 3], accuracies of first to third; images [T],
    for validation.

    slope: how much more accurate an expert is than the one that the score puts after it (least
    squares). Plain: noise 1, and `between` by the method of moments, the variance of validation
    accuracies about the line less what the drawing of so few images explains, or 0. That overstates
    the noise, as all three answer the same images. Calibrated: both are seen on the past targets,
    `between` as the variance of test accuracies about the line, the noise as the variance of
    validation minus test accuracy, in units of the binomial one.
    """
    centred = test - test.mean(axis=1, keepdims=True)
    slope = float((centred @ CENTRED).mean() / np.square(CENTRED).sum())
    drawing = _drawing(validated, images)
    if calibrated:
        between = (test - slope * CENTRED).var(axis=1, ddof=1).mean()
        error = (validated - test).var(axis=1, ddof=1)
        return Past(slope, float(between), float(error.mean() / drawing.mean()))
    seen = (validated - slope * CENTRED).var(axis=1, ddof=1)
    return Past(slope, max(0.0, float((seen - drawing).mean())), 1.0)


def _drawing(validated: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Binomial variance [T] of a validation accuracy of each target."""
    mean = validated.mean(axis=-1)
    return mean * (1 - mean) / images


def of_folds() -> dict[tuple[str, str], tuple[float, int]]:
    """(target, expert) -> accuracy over its folds, and of how many images."""
    if not folds_file().is_file():
        return {}
    sums = (
        pd.read_csv(folds_file()).groupby(["task", "expert"])[["hits", "validation_images"]].sum()
    )
    return {key: (hits / images, int(images)) for key, hits, images in sums.itertuples(name=None)}


def over_folds(threes: dict[str, pd.DataFrame]) -> dict[str, tuple[np.ndarray, int]]:
    """Target -> accuracies [3] over folds and of how many images, where all three have folds."""
    fold_of = of_folds()
    found = {}
    for name, three in threes.items():
        folds = [fold_of.get((name, expert)) for expert in three["expert"]]
        if all(folds):
            found[name] = (np.array([share for share, _ in folds]), folds[0][1])
    return found


def shipped(picks: pd.DataFrame) -> Past:
    """`mzlib.finetuning.THUMB64`: from the folds of the default order on all targets."""
    default = picks[picks["selector"] == "neighbour_history"]
    threes = dict(list(default.groupby("task")))
    test = {name: three["accuracy"].to_numpy() for name, three in threes.items()}
    seen = over_folds(threes)
    return fitted_on(list(seen), test, seen, calibrated=True)


def judged(
    picks: pd.DataFrame, generic: dict[str, float], held_out: dict[str, int]
) -> pd.DataFrame:
    """A row a target, selector and rule: selector, task, rule, validation_images, kept (1, 2 or 3),
    expert, gain. held_out: validation images of a target.
    """
    tables = []
    for selector, of_selector in picks.groupby("selector", sort=False):
        threes = dict(list(of_selector.groupby("task")))
        test = {name: three["accuracy"].to_numpy() for name, three in threes.items()}
        seen = {"holdout": {}, "kfold": over_folds(threes)}
        for name, three in threes.items():
            seen["holdout"][name] = (three["val_accuracy"].to_numpy(), held_out[name])
        for name, three in threes.items():
            values = {"score": CENTRED, "test": test[name]} | _by_validation(name, test, seen)
            kept = {rule: int(np.argmax(value)) for rule, value in values.items()}
            table = pd.DataFrame({"rule": kept.keys(), "kept": kept.values()})
            table["expert"] = three["expert"].to_numpy()[table["kept"]]
            table["gain"] = 100 * (test[name][table["kept"]] - generic[name])
            tables.append(table.assign(selector=selector, task=name, kept=table["kept"] + 1))
    return pd.concat(tables)[["selector", "task", "rule", "kept", "expert", "gain"]]


def _by_validation(name: str, test: dict, seen: dict) -> dict[str, np.ndarray]:
    """Rule -> values [3] on the target of that name; constants from all others."""
    values = {}
    for rule, by_target in seen.items():
        others = [other for other in by_target if other != name]
        if name not in by_target or len(others) < 2:
            continue
        validated, images = by_target[name]
        values[rule] = validated
        for suffix, calibrated in (("shrunk", False), ("calibrated", True)):
            past = fitted_on(others, test, by_target, calibrated)
            values[f"{rule}_{suffix}"] = shrunk(validated, images, past)
    return values


def fitted_on(names: list[str], test: dict, by_target: dict, calibrated: bool) -> Past:
    """`fitted` on these targets. test: target -> accuracies [3]; by_target: target -> (validation
    accuracies [3], images).
    """
    validated = np.array([by_target[name][0] for name in names])
    images = np.array([by_target[name][1] for name in names])
    return fitted(np.array([test[name] for name in names]), validated, images, calibrated)


def elsewhere(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the rule `elsewhere`, on the targets that every rule has."""
    rows = []
    for _, part in table.groupby("selector", sort=False):
        wide = part.pivot(index="task", columns="rule", values="gain")
        wide = wide.reindex(columns=RULES).dropna(axis=1, how="all").dropna()
        for name in wide.index:
            best = wide.drop(index=name).mean().idxmax()
            row = part[(part["task"] == name) & (part["rule"] == best)]
            rows.append(row.assign(rule="elsewhere"))
    return pd.concat(rows)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """A row a selector and rule, on the targets that all rules have: n, mean gain with its interval
    (bootstrap-t), the difference to `holdout` with its own, and on how many targets no rule but the
    oracle gains more.
    """
    rows = []
    for selector, part in table.groupby("selector", sort=False):
        wide = part.pivot(index="task", columns="rule", values="gain").dropna()
        best = wide.reindex(columns=RULES).max(axis=1)
        for rule in wide:
            gain = wide[rule].to_numpy()
            difference = gain - wide["holdout"].to_numpy()
            rows.append(
                {
                    "selector": selector,
                    "rule": rule,
                    "targets": len(gain),
                    "gain": gain.mean(),
                    "low": interval(gain)[0],
                    "high": interval(gain)[1],
                    "over_holdout": difference.mean(),
                    "over_low": interval(difference)[0],
                    "over_high": interval(difference)[1],
                    "best_on": int((wide[rule] >= best).sum()),
                }
            )
    return pd.DataFrame(rows)


def main() -> None:
    """Write the table and print its summary."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=0, help="for new folds (default: none)")
    parser.add_argument("--targets", default="*", help="pattern of their names (default: all)")
    args = parser.parse_args()
    suite = load_suite(SUITE)
    picks, generic = first_three(suite)
    if args.minutes:
        run_folds(suite, picks, args.targets, args.minutes)
    held_out = {
        name: len(subset(suite.task(name), SHOTS, SEED).validation)
        for name in picks["task"].unique()
    }
    table = judged(picks, generic, held_out)
    table = pd.concat([table, elsewhere(table)], ignore_index=True)
    path = home() / "results/benchmarks/validation_rules.csv"
    table.assign(**machine()).to_csv(path, index=False, float_format="%.4f")
    unfolded = table[~table["rule"].str.startswith("kfold") & table["rule"].ne("elsewhere")]
    print("for mzlib.finetuning.THUMB64:", shipped(picks))
    print("rules that need no fold, on all targets")
    print(summary(unfolded).round(2).to_string(index=False))
    print("all rules, on the targets whose folds are there")
    print(summary(table).round(2).to_string(index=False))


if __name__ == "__main__":
    main()
