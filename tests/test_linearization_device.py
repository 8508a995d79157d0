"""The kernels on a device that refuses two devices in one operation, and `.numpy()`."""

import numpy as np
import pytest
import timm
import torch
from other_device import AWAY, Away, TwoDevices
from test_linearization import build, close, images
from torch import nn

import mzlib.zoo.architectures  # noqa: F401  registers mzlib_resnet and mzlib_densenet
from mzlib.linearization import (
    label_gradient_product,
    ntk_gram,
    random_projection,
    tangent_kernel,
)


def sent(model):
    """The model with its parameters and buffers on the other device."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(Away(parameter.detach()))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Away(buffer)
    return model


def test_the_device_refuses_what_a_gpu_refuses():
    there = Away(torch.ones(2))
    with TwoDevices():
        assert (there + 1).device == AWAY and torch.equal((there * 2).here, torch.full((2,), 2.0))
        assert isinstance(torch.ones(2).to(there), Away)
        assert isinstance(torch.zeros(2, device=there.device), Away)
        assert type(there.cpu()) is torch.Tensor
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(2)
        for array in (lambda: there.numpy(), lambda: np.asarray(there)):
            with pytest.raises((RuntimeError, TypeError)):
                array()


def vit():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=2)
    return model.double().eval()


@pytest.mark.parametrize("make", [lambda: build("mzlib_resnet"), lambda: build("unknown"), vit])
def test_every_kernel_stays_on_its_device(make):
    model = make()
    x = images(3, size=32)
    labels = torch.tensor([0, 1, 1])
    calls = {
        "gram": lambda m, x, y: ntk_gram(m, x, layers="all", outputs="logits"),
        "cross": lambda m, x, y: ntk_gram(m, x, x[:1], layers="all", outputs="logits"),
        "blocks": lambda m, x, y: ntk_gram(m, x, outputs="logits", probes=2, memory_budget=1),
        "kernel": lambda m, x, y: tangent_kernel(m, x, y, outputs="logits").gram,
        "product": lambda m, x, y: label_gradient_product(m, x, y, outputs="logits"),
        "projection": lambda m, x, y: random_projection(m, x, outputs="logits", dimension=8),
    }
    expected = {name: call(model, x, labels) for name, call in calls.items()}
    away = sent(make())
    with TwoDevices():
        found = {name: call(away, Away(x), Away(labels)) for name, call in calls.items()}
    for name, tensor in found.items():
        assert isinstance(tensor, Away), name
        assert close(tensor.here, expected[name], 1e-10), name
