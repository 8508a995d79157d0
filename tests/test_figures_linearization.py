"""Figures of the linearized model: what they compute and show against slow or hand-worked ones."""

import importlib
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from notebook_functions import functions_of
from safetensors import safe_open

from mzlib.benchmark.data import load_task
from mzlib.benchmark.stages import zoo_folder
from mzlib.errors import Missing
from mzlib.evidence import Evidence
from mzlib.linearization import Dynamics, ntk_gram
from mzlib.selectors import inverse_label_alignment, label_alignment
from mzlib.selectors.deshpande2021 import lfc, lgc
from mzlib.training import Recipe, ResidentSet
from mzlib.zoo import load_expert

fl = functions_of("05_linearization")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def sample():
    """Gradients of 30 images of 3 classes with the labels mixed in, their kernel, the labels."""
    rng = np.random.default_rng(0)
    labels = torch.tensor(rng.integers(0, 3, 30))
    gradients = torch.tensor(rng.normal(size=(30, 60))) + 0.7 * torch.nn.functional.one_hot(
        labels, 60
    )
    return gradients, gradients @ gradients.T, labels


def y_of(labels):
    return np.stack(
        [(labels.numpy() == c) - np.mean(labels.numpy() == c) for c in np.unique(labels)], 1
    )


def test_label_spectrum_adds_up_to_the_label_product(sample):
    _, gram, labels = sample
    table, y = fl.label_spectrum(gram, labels), y_of(labels)
    assert table["eigenvalue"].is_monotonic_decreasing and table[
        ["eigenvalue", "label_share"]
    ].sum().to_list() == pytest.approx([1, 1])
    product = np.trace(y.T @ gram.numpy() @ y) / (y**2).sum() / np.trace(gram.numpy())
    assert (table["eigenvalue"] * table["label_share"]).sum() == pytest.approx(product)


def test_both_sides_of_eq5_from_their_definition(sample):
    _, gram, labels = sample
    y, theta = y_of(labels), gram.numpy() + 1e-3 * np.trace(gram.numpy()) / 30 * np.eye(30)
    left = np.trace(y.T @ theta @ y) / (y**2).sum()
    right = np.trace(y.T @ np.linalg.inv(theta) @ y) / (y**2).sum()
    assert label_alignment(gram, labels) == pytest.approx(left, rel=1e-10)
    assert inverse_label_alignment(gram, labels) == pytest.approx(-right, rel=1e-8)
    assert 1 / left < right
    assert label_alignment(3 * gram, labels + 5) == pytest.approx(
        3 * left, rel=1e-10
    )  # the kernel's scale, no names
    identity = torch.eye(30)  # equality where the labels lie along one eigenvalue
    assert (
        label_alignment(identity, labels),
        inverse_label_alignment(identity, labels),
    ) == pytest.approx((1.001, -1 / 1.001))


def test_eq5_is_undefined_where_it_should_be(sample):
    _, gram, labels = sample
    with pytest.raises(Missing, match="above 0"):
        inverse_label_alignment(torch.zeros(30, 30), labels)
    with pytest.raises(Missing, match="positive semi-definite"):
        label_alignment(-gram, labels)
    for score in (label_alignment, inverse_label_alignment):
        with pytest.raises(Missing):
            score(gram, torch.zeros(30, dtype=torch.long))


def test_descent_of_a_linear_model_follows_eq1():
    generator = torch.Generator().manual_seed(0)
    x, model = (
        torch.randn(12, 3, 2, 2, generator=generator),
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 1)),
    )
    with torch.no_grad():
        model[1].weight.normal_(0, 0.1, generator=generator)
    y = torch.where(torch.arange(12) < 6, 1.0, -1.0)[:, None]
    theta, initial = ntk_gram(model, x, layers="all", outputs="logits"), model(x).detach()
    rate = 0.02 / float(torch.linalg.eigvalsh(theta)[-1])
    losses = fl.gradient_descent(model, x, y, learning_rate=12 * rate, steps=300)
    predicted = Dynamics(theta, y, initial).losses(torch.arange(300), rate) / 24
    torch.testing.assert_close(losses.double(), predicted, rtol=0.02, atol=1e-3)
    assert losses[-1] < 0.5 * losses[0]


def test_layers_share_the_label_product_of_the_whole_kernel(sample):
    gradients, gram, labels = sample
    parts = {"a": gradients[:, :20], "b": gradients[:, 20:]}
    table = fl.layer_table({name: g @ g.T for name, g in parts.items()}, labels)
    y = y_of(labels)
    expected = [
        (y.T @ g.numpy() @ g.numpy().T @ y).trace() / (y.T @ gram.numpy() @ y).trace()
        for g in parts.values()
    ]
    assert table["label_share"].to_list() == pytest.approx(expected)
    assert table["gradient_share"].to_list() == pytest.approx(
        [float(g.square().sum() / gram.trace()) for g in parts.values()]
    )
    assert table["lgc"].to_list() == pytest.approx([lfc(g, labels) for g in parts.values()])


def test_projection_errors_fall_with_the_dimension_and_match_real_ones(sample):
    gradients, gram, labels = sample
    generator = torch.Generator().manual_seed(2)
    real = [
        gradients @ torch.randn(60, 50, generator=generator).double() / 50**0.5 for _ in range(200)
    ]
    error = np.mean([fl.projection_error(p, gram, labels)["kernel_error"] for p in real])
    drawn = {}
    for dimension in (50, 5000):
        projections = fl.projections_of(gram, dimension, 200, generator)
        errors = [fl.projection_error(p, gram, labels)["kernel_error"] for p in projections]
        drawn[dimension] = np.mean(errors)
    assert drawn[50] == pytest.approx(error, rel=0.03)  # the same law, drawn from the kernel alone
    assert drawn[50] / drawn[5000] == pytest.approx(10, rel=0.1)
    assert fl.projection_error(gradients, gram, labels)["lgc_error"] == pytest.approx(0, abs=1e-12)


def test_features_are_seen_at_start_half_and_end(tiny):
    task, expert = load_task("digits", 32), load_expert("resnet-glyphs-scratch", zoo_folder("tiny"))
    images, labels = task.train.images[:40], task.train.labels[:40]
    start = Evidence(expert, images, labels).features.clone()
    data = ResidentSet(
        task.train.images[:60], task.train.labels[:60], flip=False, device=torch.device("cpu")
    )
    seen = fl.features_during_finetuning(
        expert, data, Recipe(0.05, 3, 30), torch.tensor(images), seed=0
    )
    assert list(seen) == [0, 1, 3]
    torch.testing.assert_close(seen[0], start)
    torch.testing.assert_close(seen[3], Evidence(expert, images, labels).features)
    assert not torch.allclose(seen[1], seen[3], rtol=1e-2)


def test_fig8_shows_lfc_and_the_papers_numbers(sample):
    gradients, gram, labels = sample
    grid = {
        "one": {f"epoch {e}\nLFC": gram + e for e in (0, 1, 2)},
        "two": {f"epoch {e}\nLFC": gram for e in (0, 1, 2)},
    }
    panels = fl.fig8(grid, labels)
    assert (
        panels.shape == (2, 3)
        and panels[1, 0].get_title() == f"epoch 0\nLFC {lgc(gram, labels):.2f}"
    )
    table = fl.fig8_table(grid, labels)
    assert len(table) == 5 and table.loc["two"].to_list() == pytest.approx(
        [lfc(gradients, labels)] * 3
    )
    assert table.loc["nwpu resisc45 (paper, UC Merced)"].to_list() == [0.54, 0.742, 0.718]
    one_epoch = {"one": {f"epoch {e}\nLFC": gram for e in (0, 1)}}
    assert fl.fig8_table(one_epoch, labels).iloc[-1].to_list() == [0.54, 0.718]


def test_kernels_through_finetuning_are_kept_in_the_results(tiny, monkeypatch):
    """Of `benchmarks/kernels_through_finetuning.py`."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    script = importlib.import_module("kernels_through_finetuning")
    path = script.compute("tiny", "digits", ["resnet-mixture"], "5")
    assert path == tiny / "results/tiny/fig8-digits-5.safetensors"
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["about"])
        features = {key: file.get_tensor(key) for key in file.keys()}
    labels = features.pop("labels")
    first, *_, last = sorted(features, key=lambda key: int(key.rpartition("/")[2]))
    assert first == "resnet-mixture/0" and len(features[first]) == len(labels)
    assert (features[first] - features[last]).abs().max() > 0 and about["learning rate"] == "0.05"
