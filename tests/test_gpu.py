"""What only a CUDA GPU can show: the same answers as on the CPU, and its memory kept to."""

import numpy as np
import pytest
import timm
import torch

from mzlib.api import load_zoo, rank
from mzlib.benchmark.data import load_task
from mzlib.linearization import ntk_gram, tangent_kernel
from mzlib.selectors import SELECTORS, _linalg
from mzlib.training import Recipe, ResidentSet, accuracy, predict, seeded, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def network(name="resnet18"):
    """Without a branch of weight zero."""
    model = seeded(lambda: timm.create_model(name, num_classes=4), 0).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.0)
    return model


def noise(count, size):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_rank_gives_the_same_scores_as_on_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setenv("MZLIB_CACHE", str(tmp_path))
    experts = load_zoo("thumb64", progress=False)[:4]
    task = load_task("digits")
    # another device's generator draws other initial weights for the reference net of RSA and DDS
    asked = [name for name in SELECTORS if name not in ("rsa", "dds")]
    options = {"images_per_class": 8, "progress": False}
    columns = ["expert", "selector", "score"]
    tables = {}
    for device in ("cpu", "cuda"):
        monkeypatch.setenv("MZLIB_CACHE", str(tmp_path / device))
        found = rank(task, experts, asked, device=device, **options)
        tables[device] = found.table[columns].set_index(columns[:2])["score"].sort_index()
    assert list(tables["cpu"].index) == list(tables["cuda"].index)
    for name, expected in tables["cpu"].groupby("selector"):
        score = tables["cuda"].loc[expected.index]
        assert score.to_numpy() == pytest.approx(
            expected.to_numpy(), rel=1e-3, abs=1e-4, nan_ok=True
        ), name


def test_a_second_ranking_gives_the_same_digits(tmp_path, monkeypatch):
    experts = load_zoo("thumb64", progress=False)[:2]
    tables = []
    for run in ("first", "second"):
        monkeypatch.setenv("MZLIB_CACHE", str(tmp_path / run))  # nothing is kept
        _linalg._results.clear()
        options = {"images_per_class": 8, "device": "cuda", "progress": False}
        found = rank(load_task("digits"), experts, list(SELECTORS), **options)
        tables.append(found.table.sort_values(["expert", "selector"])["score"].to_numpy())
    assert np.array_equal(*tables, equal_nan=True)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto"])
@pytest.mark.parametrize("layers", ["last", "all"])
def test_a_kernel_is_as_precise_as_on_the_cpu(name, layers):
    images = noise(6, 224)
    model = network(name)
    on_cpu = ntk_gram(model, images, layers=layers)
    on_gpu = ntk_gram(model.cuda(), images.cuda(), layers=layers).cpu()
    exact = ntk_gram(model.cpu().double(), images.double(), layers=layers)
    error = lambda gram: float((gram - exact).norm() / exact.norm())  # noqa: E731
    assert error(on_gpu) <= 4 * error(on_cpu) + 1e-5


def test_switches_to_less_precision_change_no_kernel():
    model = network().cuda()
    images = noise(6, 64).cuda()
    expected = ntk_gram(model, images, layers="all")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    try:
        found = ntk_gram(model, images, layers="all")
        assert torch.backends.cuda.matmul.allow_tf32  # as the user has set it
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_the_budget_bounds_the_memory_of_the_gpu():
    model = network().cuda()
    images = noise(200, 64).cuda()
    expected = ntk_gram(model, images, layers="all")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    budget = 1 << 28
    found = ntk_gram(model, images, layers="all", memory_budget=budget)
    above = torch.cuda.max_memory_allocated() - before
    assert above <= 1.5 * budget  # and cuDNN's workspace
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_batches_are_halved_when_the_gpu_is_full():
    model = network().cuda()
    images = np.random.default_rng(0).integers(0, 256, (1024, 96, 96, 3), np.uint8)
    expected = predict(model, images, torch.device("cuda"), batch_size=64)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + (1 << 29)) / total)
    try:
        found = predict(model, images, torch.device("cuda"), batch_size=1024)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert torch.allclose(found, expected, atol=0.05, rtol=0.05)  # bf16, other algorithms


def test_a_network_trains_on_the_gpu_as_on_the_cpu():
    task = load_task("digits")
    images, labels = task.train.images[:400], task.train.labels[:400]
    right = {}
    for name in ("cpu", "cuda"):
        device = torch.device(name)
        model = seeded(lambda: timm.create_model("mzlib_resnet", num_classes=10), 0).to(device)
        data = ResidentSet(images, labels, flip=False, device=device)
        train(model, data, Recipe(lr=0.05, epochs=6, batch_size=32), seed=0, progress=False)
        logits = predict(model, task.test.images, device)
        right[name], _ = accuracy(logits, task.test.labels)
    assert min(right.values()) > 0.5 and abs(right["cpu"] - right["cuda"]) < 0.1


def test_one_pass_gives_features_that_the_kernel_of_the_gpu_shares():
    model = network().cuda()
    images = noise(20, 64).cuda()
    found = tangent_kernel(model, images, with_outputs=True)
    with torch.no_grad():
        features = model.forward_head(model.forward_features(images), pre_logits=True)
    assert found.gram.is_cuda and found.features.is_cuda
    assert torch.allclose(found.features, features, rtol=1e-2, atol=1e-2)  # TF32 by default there
