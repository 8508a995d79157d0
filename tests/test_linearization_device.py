"""The kernels on a device that refuses two devices in one operation, and `.numpy()`.

No GPU is needed: a tensor that says it is elsewhere ("meta", where nothing is computed by itself)
wraps one of the CPU.
"""

import pytest
import timm
import torch
from test_linearization import build, close, images
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

import mzlib.zoo.architectures  # noqa: F401  registers mzlib_resnet and mzlib_densenet
from mzlib.linearization import (
    label_gradient_product,
    ntk_gram,
    random_projection,
    tangent_kernel,
)

AWAY = torch.device("meta")
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Away(torch.Tensor):
    """A tensor on the other device: where it is computed, `here` holds its values."""

    @staticmethod
    def __new__(cls, here):
        return torch.Tensor._make_wrapper_subclass(
            cls, here.shape, here.stride(), here.storage_offset(), dtype=here.dtype, device=AWAY
        )

    def __init__(self, here):
        self.here = here

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


class TwoDevices(TorchDispatchMode):
    """Makes what is asked for on the other device an `Away`."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


def computed(func, args, kwargs):
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    away = [t for t in tensors if isinstance(t, Away)]
    here = [t for t in tensors if not isinstance(t, Away) and t.ndim > 0]
    if away and here and func not in COPIES:
        raise RuntimeError(f"expected all tensors on the same device in {func}")
    device = kwargs.get("device")
    goes_away = bool(away) if device is None else torch.device(device) == AWAY
    plain = tree_map(lambda t: t.here if isinstance(t, Away) else t, (args, kwargs))
    if device is not None:
        plain[1]["device"] = torch.device("cpu")
    result = func(*plain[0], **plain[1])
    if func is torch.ops.aten.copy_.default:
        return args[0]
    if goes_away:
        result = tree_map(lambda t: Away(t) if isinstance(t, torch.Tensor) else t, result)
    if not away:
        return result
    return return_and_correct_aliasing(func, args, kwargs, result)


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
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(2)
        with pytest.raises((RuntimeError, TypeError)):
            there.numpy()


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
