"""The pipeline on real images, unchanged; needs the data sets of INDEX.md in $MZLIB_DATA."""

import os
from pathlib import Path

import numpy as np
import pytest

from mzlib.benchmark import evaluate, load_results, run_suite
from mzlib.benchmark.data import load_task
from mzlib.cli import main

NEEDED = ("omniglot_alphabets", "pacs_sketch", "wbc")
HERE = Path(os.environ.get("MZLIB_DATA", "/nowhere"))
pytestmark = pytest.mark.skipif(
    not all((HERE / name / "test.parquet").is_file() for name in NEEDED),
    reason=f"needs {', '.join(NEEDED)} in $MZLIB_DATA",
)

SUITE = """
title = "Real images, small"
image_size = 32
generic = "omniglot_alphabets"
sources = ["omniglot_alphabets", "pacs_sketch"]
targets = ["wbc"]
families.resnet.architecture = "mzlib_resnet"
families.resnet.pretraining = ["scratch", "generic"]
recipes.expert = { lr = 0.05, epochs = 2, batch_size = 64 }
recipes.finetune = { lr = 0.05, epochs = 2, batch_size = 32, min_steps = 20 }
finetune = [{ shots = [20], learning_rates = [0.05] }]
score = [{ shots = [20], selectors = ["lfc", "leep", "domain_similarity", "random"] }]
"""


def test_real_images_go_through_the_same_commands(tmp_path, monkeypatch, capsys):
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "real.toml").write_text(SUITE)
    monkeypatch.setenv("MZLIB_HOME", str(tmp_path))
    assert run_suite("real", engine="serial", progress=False) == 0
    results = load_results("real")
    chance = 1 / results.zoo["classes"]
    assert (results.zoo["accuracy"] > 1.5 * chance).all()
    counts = np.bincount(
        load_task("wbc").train.labels
    )  # a class with fewer than 20 images beside validation keeps them
    assert set(results.finetune["train_images"]) == {
        sum(min(20, n - min(10, n // 5)) for n in counts)
    }
    metrics = evaluate(results.scores, results.finetune, generic="resnet-omniglot_alphabets")
    assert set(metrics["selector"]) >= {"lfc", "leep", "domain_similarity", "random"}
    assert main(["rank", "wbc", "--zoo", "real"]) == 0
    assert "resnet-pacs_sketch-scratch" in capsys.readouterr().out
