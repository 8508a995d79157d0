import math

import numpy as np
import pytest
import timm
import torch

import mzlib.zoo.architectures  # noqa: F401
from mzlib.errors import MzlibError
from mzlib.training import Recipe, ResidentSet, accuracy, interleaved, normalize, predict, train

CPU = torch.device("cpu")
DEVICES = [
    CPU,
    pytest.param(
        torch.device("cuda"),
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    ),
]


def coordinates(n, size):
    """Images whose pixel says where it was: (row, column, image number)."""
    image = np.zeros((n, size, size, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(size)[:, None], np.arange(size)
    image[..., 2] = np.arange(n)[:, None, None]
    return image


@pytest.mark.parametrize("device", DEVICES)
def test_augmentation_is_a_reflected_crop_of_the_same_image(device):
    size, pad = 16, 2
    data = ResidentSet(coordinates(40, size), np.arange(40), flip=False, device=device)
    x = data.augmented(torch.arange(40), torch.Generator().manual_seed(0))
    pixels = (x.permute(0, 2, 3, 1).cpu() * 0.25 + 0.5).mul(255).round().int().numpy()
    padded = np.pad(coordinates(40, size), ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
    shifts = set()
    for i, crop in enumerate(pixels):
        found = [
            (r, c)
            for r in range(2 * pad + 1)
            for c in range(2 * pad + 1)
            if np.array_equal(crop, padded[i, r : r + size, c : c + size])
        ]
        assert len(found) == 1
        shifts |= set(found)
    assert len(shifts) > 10  # all images would share one shift if it were drawn once for the batch


def test_flip_mirrors_about_half_of_the_images_and_only_when_allowed():
    images = np.zeros((400, 8, 8, 3), np.uint8)
    images[:, :, :3] = 255  # bright at the left; crops shift by one pixel at most
    for flip, share in ((True, 0.5), (False, 0.0)):
        x = ResidentSet(images, np.zeros(400, np.int64), flip=flip, device=CPU).augmented(
            torch.arange(400), torch.Generator().manual_seed(1)
        )
        mirrored = (x[:, 0, 0, -1] > 0).float().mean().item()
        assert abs(mirrored - share) < 0.08


@pytest.mark.parametrize(("n", "batch"), [(65, 32), (33, 32), (5, 8), (128, 64)])
def test_an_epoch_takes_every_image_once_in_batches_of_nearly_equal_size(n, batch):
    data = ResidentSet(coordinates(n, 8), np.arange(n), flip=False, device=CPU)
    labels = [y for _, y in data.epoch(batch, torch.Generator().manual_seed(0))]
    assert sorted(torch.cat(labels).tolist()) == list(range(n))
    sizes = {len(y) for y in labels}
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 2 and len(labels) == math.ceil(n / batch)


def test_balanced_epochs_draw_the_same_number_of_every_domain():
    sets = {
        name: ResidentSet(coordinates(n, 8), np.arange(n), flip=False, device=CPU, per_epoch=64)
        for name, n in (("small", 10), ("large", 200))
    }
    seen = {"small": 0, "large": 0}
    for _, y, domain in interleaved(sets, 16, torch.Generator().manual_seed(0)):
        seen[domain] += len(y)
    assert seen == {"small": 64, "large": 64}


def problem(n=96, size=32):
    """Bright against dark images: anything that trains at all separates them."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 2
    return (rng.integers(0, 100, (n, size, size, 3)) + 120 * labels[:, None, None, None]).astype(
        np.uint8
    ), labels


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("architecture", ["mzlib_resnet", "mzlib_densenet"])
def test_training_learns_and_the_same_seed_gives_the_same_numbers(architecture, device):
    images, labels = problem()
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        model = timm.create_model(architecture, num_classes=2).to(device)
        state = torch.random.get_rng_state()
        losses = train(
            model,
            ResidentSet(images, labels, flip=True, device=device),
            Recipe(0.05, 6, 32),
            seed=seed,
            progress=False,
        )
        assert torch.equal(torch.random.get_rng_state(), state)  # the global generator is untouched
        assert not model.training
        results.append((losses, accuracy(predict(model, images, device), labels)[0]))
    assert results[0] == results[1] != results[2]
    assert results[0][1] > 0.95 and results[0][0][-1] < results[0][0][0]


def test_learning_rate_decays_at_the_milestones_and_min_steps_lengthens(monkeypatch):
    images, labels = problem(64)
    rates = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD,
        "step",
        lambda self, *a: (rates.append(self.param_groups[0]["lr"]), step(self, *a)),
    )
    recipe = Recipe(lr=1e-3, epochs=1, batch_size=32, min_steps=12)
    losses = train(
        timm.create_model("mzlib_resnet", num_classes=2),
        ResidentSet(images, labels, flip=False, device=CPU),
        recipe,
        seed=0,
        progress=False,
    )
    assert len(losses) == 6 and len(rates) == 12
    assert rates == pytest.approx([1e-3] * 6 + [1e-4] * 4 + [1e-5] * 2)  # 1/2 and 5/6 of 12 steps


def test_divergence_is_an_error_that_names_the_rate():
    images, labels = problem(32)
    with pytest.raises(MzlibError, match="diverged.*1e\\+30"):
        train(
            timm.create_model("mzlib_resnet", num_classes=2),
            ResidentSet(images, labels, flip=False, device=CPU),
            Recipe(1e30, 5, 16),
            seed=0,
            progress=False,
        )


def test_one_image_cannot_be_trained_on():
    with pytest.raises(MzlibError, match="at least 2 training images, got 1"):
        ResidentSet(np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, np.int64), flip=False, device=CPU)


def test_accuracy_by_class_by_hand():
    logits = torch.tensor([[2.0, 1, 0], [0, 1, 2], [0, 2, 1], [1, 0, 0]])
    top1, by_class = accuracy(logits, np.array([0, 2, 0, 0]))
    assert (
        top1 == 0.75
        and by_class[0] == pytest.approx(2 / 3)
        and math.isnan(by_class[1])
        and by_class[2] == 1.0
    )


def test_normalize_by_hand():
    x = normalize(torch.tensor([[[[0, 255, 128]]]], dtype=torch.uint8))
    assert x.flatten().tolist() == pytest.approx([-2.0, 2.0, (128 / 255 - 0.5) / 0.25])
