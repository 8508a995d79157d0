"""How often does a 95 % interval from 25 images a class hold the score on *all* training images?

Usage: python benchmarks/coverage.py [CSV]; needs the committed zoo and six targets under MZLIB_DATA
that have at least five times the images which are scored. A row a target and selector, over experts
and draws. `plain`: score ± t·s.e. of the grouped jackknife; `corrected`: with its bias (G - 1)(mean
of the values without a group - value), times 1 - n/N because the question is N images and not
infinitely many (Quenouille 1956), taken off. `bias`: mean of score minus score on all, in half
widths.
"""

import os
import sys

import numpy as np
import pandas as pd
import torch

import mzlib
from mzlib import api
from mzlib.dataset import few_shot
from mzlib.evidence import Evidence
from mzlib.provenance import machine
from mzlib.selectors import SELECTORS
from mzlib.uncertainty import FEW, bias, margin, replicates
from mzlib.zoo.external import candidates

TARGETS = ("cifar10", "sports22", "medical_modality", "trashnet", "eye_fundus", "rsscn7")
EXPERTS = (
    "resnet-tiny_imagenet",
    "densenet-tiny_imagenet",
    "resnet-gtsrb-generic",
    "densenet-scenes15-scratch",
)
# Scores of features or probabilities that take milliseconds at 7,500 images, each on its own scale.
CHOSEN = (
    "lfc lfc_centred lfc_cosine leep nce hscore logme transrate gbc knn knn_5 ridge_loo "
    "ridge_loo_mse cka feature_metrics"
).split()
DRAWS = 10


class Rows:
    """What an expert says about some of the images whose evidence is held."""

    def __init__(self, evidence: Evidence, index: np.ndarray):
        at = torch.as_tensor(index)
        self.labels = evidence.labels[at]
        self.features = evidence.features[at]
        self.source_probabilities = evidence.source_probabilities[at]


def measure(evidence: Evidence) -> list[dict]:
    """A row a selector and draw."""
    labels = evidence.labels.numpy()
    rows = []
    for name in CHOSEN:
        selector = SELECTORS[name]
        whole = float(
            selector.function(**{p: getattr(evidence, a) for p, a in selector.needs.items()})
        )
        for seed in range(DRAWS):
            index = few_shot(labels, 25, seed)
            values = replicates(selector, Rows(evidence, index), seed=seed)[:, 0]
            share = len(index) / len(labels)
            half = float(margin(values[1:]))
            error = values[0] - whole
            corrected = error - bias(values) * (1 - share)
            rows.append(
                {
                    "selector": name,
                    "images": len(index),
                    "all_images": len(labels),
                    "plain": abs(error) <= half,
                    "corrected": abs(corrected) <= half,
                    "bias": error / half if half else 0.0,
                    "bias_corrected": corrected / half if half else 0.0,
                }
            )
    return rows


def main(path: str) -> None:
    """Write the table."""
    torch.set_num_threads(1)
    assert FEW >= 25 * 22  # draws are scored by one thread, as `mzlib rank` does
    experts = [c.load() for c in candidates(api.DEFAULT_ZOO) if c.name in EXPERTS]
    tables = []
    for target in TARGETS:
        task = mzlib.load_task(target, 64)
        rows = []
        for expert in experts:
            rows += measure(Evidence(expert, task.train.images, task.train.labels))
        table = pd.DataFrame(rows).assign(task=target, experts=len(experts), draws=DRAWS)
        keys = ["task", "selector", "images", "all_images", "experts", "draws"]
        tables.append(table.groupby(keys, sort=False).mean().reset_index())
        print(tables[-1].to_string(index=False), flush=True)
        pd.concat(tables).assign(**machine()).to_csv(path, index=False, float_format="%.4g")
    print(pd.concat(tables).groupby("selector", sort=False)[["plain", "corrected", "bias"]].mean())


if __name__ == "__main__":
    main(os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else "results/benchmarks/coverage.csv"))
