"""Rank the experts of a zoo for one task, without fine-tuning any: the question this project is about."""

import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from mzlib.benchmark.data import CARDS, load_task, store
from mzlib.benchmark.run import run_suite
from mzlib.benchmark.stages import reference_net, zoo_folder
from mzlib.benchmark.suite import load_suite, suite_files
from mzlib.dataset import Split, Task, few_shot
from mzlib.errors import Missing, MzlibError
from mzlib.evidence import Evidence, Subset, subset
from mzlib.images import Images, input_config, open_images
from mzlib.provenance import home
from mzlib.selectors import SELECTORS
from mzlib.training import Recipe, default_device
from mzlib.uncertainty import ROWS, margin, replicates, zoo_scores
from mzlib.zoo import Expert, load_expert

DEFAULT_SELECTORS = ("lfc", "leep")
DEFAULT_ZOO = "thumb64"  # the suite whose experts are committed
PAPER = Recipe(lr=0.005, epochs=30, batch_size=32)
LARGEST = 20_000  # images scored, unless a number per class is given
GROUPS = {
    "pactran": 4,
    "parc": 8,
}  # of the jackknife where a score takes a second; else 20: fewer make wider intervals
ROUNDS = (2, 4, 8, 12, 16)  # images per class seen before all of them, with `until_settled`


def load_zoo(name: str, progress: bool = True) -> list[Expert]:
    """All starting points of a suite's zoo; experts whose weights are not here are trained first (minutes for `mini`), no others."""
    suite = load_suite(name)
    experts = {expert.partition(":")[0] for expert in suite.starting_points()}
    run_suite(
        name,
        stages=["zoo"],
        only=[f"zoo/{e}" for e in experts],
        weights=True,
        retry_failed=True,
        progress=progress,
    )
    return [load_expert(expert, zoo_folder(suite.name)) for expert in suite.starting_points()]


def open_task(task: Task | Images | str | Path, size: int | None = None) -> Task | Images:
    """The task of that name, or the listing of the images at that path."""
    if isinstance(task, Task | Images):
        return task
    known = str(task) in CARDS or store.exists(store.root() / task)
    return (
        open_images(task)
        if not known and Path(task).expanduser().exists()
        else load_task(task, size)
    )


class Sample:
    """The training images of a task that are scored, by expert: arrays as they are, files as each expert sees them."""

    def __init__(
        self,
        source: Task | Images,
        images_per_class: int | str | None,
        shots: int | str,
        seed: int,
        progress: bool,
    ):
        self.source, self.progress, self.lost = source, progress, []
        if isinstance(source, Task):
            self.subset = subset(source, shots, seed)
            self.index = self.subset.sample(images_per_class or 25, seed)
            labels = source.train.labels
        else:
            default = min(25, max(2, LARGEST // len(source.class_names)))
            self.index, labels = source.sample(images_per_class or default, seed), source.labels
        self.pixels = cache(self._pixels)
        if isinstance(source, Images):  # what cannot be read is left out for all experts alike
            readable = source.convert(
                self.index, input_config({"image_size": 64}), home() / "runs" / "images", progress
            )[1]
            self.lost, self.index = self.index[~readable], self.index[readable]
        self.labels = labels[self.index]

    def _pixels(self, config: tuple) -> np.ndarray:
        return self.source.convert(
            self.index, dict(config), home() / "runs" / "images", self.progress
        )[0]

    def images(self, card: dict) -> np.ndarray:
        """uint8 [N, H, W, 3] for the expert with that card."""
        if isinstance(self.source, Task):
            return self.source.train.images[self.index]
        config = input_config(card)
        return self.pixels(
            tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in config.items())
        )

    def task(self) -> Subset:
        """What the reference net of RSA is trained on: the regime's images, of files those that are scored, at 64 pixels."""
        if isinstance(self.source, Task):
            return self.subset
        split = Split(np.array(self.images({"image_size": 64})), self.labels)
        return Subset(
            Task(self.source.name, "files", self.source.class_names, split, split),
            np.arange(len(self.labels)),
            np.empty(0, np.int64),
        )


class Pooled:
    """Evidence on several parts of a sample, where the selectors need rows only: features and probabilities."""

    def __init__(self, parts: list[Evidence]):
        self.parts = parts

    def __getattr__(self, name: str):
        if name in ROWS:
            return torch.cat([getattr(part, name) for part in self.parts])
        if name.endswith("_kernel"):
            raise Missing("no kernel of images that were seen in rounds")
        return getattr(self.parts[0], name)


def rank(
    task: Task | Images | str | Path,
    zoo: str | Path | Iterable[Expert | str] | None = None,
    selectors: Iterable[str] = DEFAULT_SELECTORS,
    *,
    images_per_class: int | str | None = None,
    shots: int | str = "full",
    until_settled: int = 0,
    report: str | Path | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Score every expert on training images of the task, never on test images. Tidy table: expert, source, task, selector,
    score, low, high, rank, rank_low, rank_high, images, seconds, reason, sorted by the first selector.

    task: a name, or a folder, Parquet or CSV file of images (`mzlib.images`). zoo: the committed experts by default; a
    suite's name (what is missing is trained), experts, or whatever `mzlib.zoo.external.candidates` knows.
    images_per_class: at most so many, or "all"; by default 25, of files fewer where that makes more than 20,000.
    until_settled: k > 0 takes images in rounds and drops experts that the first selector does not place in the first k.
    report: a file for the HTML page. low, high: 95 % interval of the grouped jackknife. rank: 1 is best, ties share the mean;
    rank_low … rank_high: the ranks that the intervals of paired differences leave open. Missing scores are NaN, `reason`
    says why. `attrs` of the table: zoo, interrupted, experts, images, cost (share of the forward passes of all experts on all
    images), forward_seconds, notes. Ctrl-C ends it with what has been scored.

    What experts compute is kept in `runs/evidence` under `home()`: other selectors on the same images cost no forward pass.
    Raises MzlibError for an unknown task, suite, expert or selector, and where no expert could be scored.
    """
    from mzlib.zoo.external import (
        candidates,
    )  # imports torchvision, seconds that other commands need not pay

    named = isinstance(zoo, str) and zoo in suite_files()
    suite = load_suite(zoo if named else DEFAULT_ZOO) if named or zoo is None else None
    selectors, device, start = list(selectors), device or default_device(), time.perf_counter()
    if unknown := [s for s in selectors if s not in SELECTORS]:
        raise MzlibError(f"expected selectors of {', '.join(SELECTORS)}, got {unknown}")
    if until_settled and (
        SELECTORS[selectors[0]].combine or "kernel" in SELECTORS[selectors[0]].needs
    ):
        raise MzlibError(
            f"expected a first selector of features or probabilities, one score an expert, got {selectors[0]}: "
            "put lfc or leep first"
        )
    source = open_task(task, suite.image_size if named else None)
    asked = str(zoo) if isinstance(zoo, str | Path) else ""
    zoo = candidates(
        load_zoo(zoo, progress)
        if named
        else DEFAULT_ZOO
        if zoo is None
        else str(zoo)
        if isinstance(zoo, Path)
        else zoo
    )
    sample = Sample(source, images_per_class, shots, seed, progress)

    @cache
    def reference() -> torch.nn.Module:  # one net serves all experts
        return reference_net(
            sample.task(), suite.recipe("finetune") if suite else PAPER, seed, device
        )

    def evidence(expert: Expert, at: np.ndarray) -> Evidence:
        """On the images at positions `at` of the sample."""
        whole = len(at) == len(sample.labels)
        images = sample.images(expert.card)
        return Evidence(
            expert,
            images if whole else images[at],
            sample.labels[at],
            seed=seed,
            device=device,
            cache=home() / "runs" / "evidence",
            reference=reference,
            is_generic=suite is not None and expert.card["source"] == suite.generic,
        )

    def scored(expert: Expert, parts: list[np.ndarray], before: dict | None) -> dict:
        pieces, result = (
            [evidence(expert, at) for at in parts],
            {"source": expert.card["source"], "images": sum(map(len, parts))},
        )
        pooled = pieces[0] if len(pieces) == 1 else Pooled(pieces)
        for name in selectors:
            begin, values, reason = time.perf_counter(), None, ""
            try:
                values = replicates(SELECTORS[name], pooled, GROUPS.get(name, 20), seed)
            except Missing as missing:
                reason = str(missing)
            seconds = time.perf_counter() - begin + (before[name]["seconds"] if before else 0)
            result[name] = {"values": values, "reason": reason, "seconds": round(seconds, 4)}
        result["forward"] = (
            sum(piece.seconds for piece in pieces) if "_outputs" in vars(pieces[0]) else 0.0
        )
        return result

    rounds = [few_shot(sample.labels, m, seed) for m in ROUNDS] if until_settled else []
    results, alive, parts, interrupted = {}, zoo, [], False
    try:
        for seen in [*rounds, np.arange(len(sample.labels))]:
            if (
                len(alive) <= until_settled
                and results
                or parts
                and len(seen) == sum(map(len, parts))
            ):
                continue
            parts.append(np.setdiff1d(seen, np.concatenate([np.empty(0, int), *parts])))
            for candidate in tqdm(
                alive,
                desc=f"scoring {source.name}",
                unit="expert",
                disable=not progress,
                leave=False,
            ):
                try:
                    results[candidate.name] = scored(
                        candidate.load(), parts, results.get(candidate.name)
                    )
                except MzlibError as error:  # weights that cannot be had are a row with a reason
                    missing = {
                        name: {"values": None, "reason": str(error), "seconds": 0.0}
                        for name in selectors
                    }
                    results[candidate.name] = {"source": "", "images": 0, "forward": 0.0, **missing}
            alive = [c for c in alive if results[c.name]["images"]]
            values = [results[c.name][selectors[0]]["values"] for c in alive]
            if (
                until_settled and values and all(v is not None for v in values)
            ):  # some scores need more images
                keep = contenders(
                    np.stack(values)[..., 0], until_settled, len(seen) / len(sample.labels)
                )
                alive = [c for c, kept in zip(alive, keep) if kept]
    except KeyboardInterrupt:
        if not results:
            raise
        interrupted = True
    table = _table(results, selectors, source.name, until_settled)
    if table["score"][table["selector"] == selectors[0]].isna().all():
        raise MzlibError(
            f"expected a score for an expert at least, got none: {table['reason'].iloc[0]}"
        )
    reached = [result["images"] for result in results.values() if result["images"]]
    table.attrs = {
        "zoo": asked,
        "interrupted": interrupted,
        "experts": len(zoo),
        "images": len(sample.labels),
        "notes": _notes(sample),
        "cost": sum(reached) / (len(reached) * len(sample.labels)),
        "seconds": time.perf_counter() - start,
        "forward_seconds": {name: result["forward"] for name, result in results.items()},
    }
    if report:
        from mzlib.report import write_report

        loaders = {candidate.name: candidate.load for candidate in zoo}
        write_report(
            Path(report),
            table,
            source,
            sample,
            lambda name: evidence(loaders[name](), np.arange(len(sample.labels))),
        )
    return table


def contenders(scores: np.ndarray, k: int, seen: float, level: float = 0.9) -> np.ndarray:
    """bool [E]: whether the expert may still be among the first k, from replicates [E, 1 + G] on a share `seen` of the images:
    fewer than k experts are better for sure. The finite population corrects the margin: at seen = 1 all is known."""
    return surely_better(scores, level, np.sqrt(1 - seen)).sum(1) < k


def surely_better(scores: np.ndarray, level: float = 0.95, shrink: float = 1.0) -> np.ndarray:
    """bool [E, E]: whether j's score is above i's by more than the margin of the paired difference (t·s.e., grouped jackknife),
    from replicates [E, 1 + G]: the same images are left out for all experts."""
    return np.stack(
        [scores[:, 0] - row[0] > shrink * margin(scores[:, 1:] - row[1:], level) for row in scores]
    )


def _table(results: dict, selectors: list[str], task: str, until_settled: int) -> pd.DataFrame:
    """Scores with intervals and ranks; experts that were dropped early come after those that saw more images."""
    rows = []
    for name in selectors:
        first = 0
        for images in sorted({result["images"] for result in results.values()}, reverse=True):
            group = {
                e: r[name] | {"source": r["source"]}
                for e, r in results.items()
                if r["images"] == images
            }
            there = [e for e, r in group.items() if r["values"] is not None]
            numbers = pd.DataFrame(
                index=there,
                columns=["score", "low", "high", "rank", "rank_low", "rank_high"],
                dtype=float,
            )
            if there:
                scores = zoo_scores(SELECTORS[name], np.stack([group[e]["values"] for e in there]))
                reach, better = margin(scores[:, 1:]), surely_better(scores)
                numbers["score"], numbers["low"], numbers["high"] = (
                    scores[:, 0],
                    scores[:, 0] - reach,
                    scores[:, 0] + reach,
                )
                numbers["rank"] = first + numbers["score"].rank(ascending=False)
                numbers["rank_low"] = first + 1 + better.sum(1) if first == 0 else until_settled + 1
                numbers["rank_high"] = (
                    first + len(there) - better.sum(0) if first == 0 else len(results)
                )
            rows += [
                {
                    "expert": e,
                    "source": r["source"],
                    "task": task,
                    "selector": name,
                    **(numbers.loc[e].to_dict() if e in there else dict.fromkeys(numbers, np.nan)),
                    "images": images,
                    "seconds": r["seconds"],
                    "reason": r["reason"],
                }
                for e, r in group.items()
            ]
            first += len(there)
    table = pd.DataFrame(rows)
    leading = table[table["selector"] == selectors[0]].set_index("expert")["rank"]
    order = np.lexsort(
        (table["selector"].map(selectors.index), table["expert"].map(leading).fillna(np.inf))
    )
    return table.iloc[order].reset_index(drop=True)


def _notes(sample: Sample) -> list[str]:
    """What a reader should know of the images."""
    if isinstance(sample.source, Task):
        return []
    source, notes = sample.source, list(sample.source.notes)
    if len(sample.lost):
        shown = ", ".join(source.shown(i) for i in sample.lost[:5]) + (
            ", …" if len(sample.lost) > 5 else ""
        )
        notes.append(
            f"{len(sample.lost)} of {len(sample.lost) + len(sample.index)} images could not be read and were skipped: {shown}"
        )
    return notes + (source.overlap() if source.given_split else [])


def verdict(table: pd.DataFrame) -> str:
    """One sentence: is the first rank settled?"""
    rows = table[table["selector"] == table["selector"].iloc[0]].dropna(subset="score")
    tied, title = (
        rows[rows["rank_low"] == 1]["expert"].tolist(),
        SELECTORS[rows["selector"].iloc[0]].title,
    )
    if len(tied) < 2:
        return f"By {title}, rank 1 is settled: {rows['expert'].iloc[0]}."
    return (
        f"By {title}, {len(tied)} experts are tied for rank 1 ({', '.join(tied[:3])}{', …' if len(tied) > 3 else ''}): "
        "their paired differences are within the 95 % interval."
    )
