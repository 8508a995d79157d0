"""Every selector on a device that is not there: tensors whose memory the CPU cannot see.

`Elsewhere` claims to live on a GPU, keeps its numbers in a tensor of the CPU, and refuses what a GPU
refuses: an operation on tensors of two devices, and to become an array of numpy unless it is copied
to the CPU first, in so many words.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_selectors_properties import evidence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from mzlib.selectors import SELECTORS, regression, resolve

DEVICE = torch.device("meta")  # a name that needs no driver
TRANSFERS = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class Elsewhere(torch.Tensor):
    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=DEVICE
        )

    def __init__(self, held):
        self.held = held

    def tolist(self):  # a copy in so many words, as on any device
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return on_its_device(function, args, kwargs or {})


class Machine(TorchDispatchMode):
    """Makes new tensors of the device there; checks every operation."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return on_its_device(function, args, kwargs or {})


def on_its_device(function, args, kwargs):
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    away = [x for x in tensors if isinstance(x, Elsewhere)]
    here = [x for x in tensors if not isinstance(x, Elsewhere) and x.ndim]
    assert not away or not here or function in TRANSFERS, f"two devices in {function}"
    target = kwargs.get("device")
    goes = bool(away) if target is None else torch.device(target).type == DEVICE.type
    if function is torch.ops.aten.copy_.default:
        goes = isinstance(args[0], Elsewhere)
    kwargs = kwargs if target is None else kwargs | {"device": torch.device("cpu")}
    own = {id(x.held): x for x in away}
    args, kwargs = tree_map(lambda x: x.held if isinstance(x, Elsewhere) else x, (args, kwargs))
    results = function(*args, **kwargs)

    def placed(x):
        if not isinstance(x, torch.Tensor) or not goes:
            return x
        return own[id(x)] if id(x) in own else Elsewhere(x)

    return tree_map(placed, results)


def moved(e):
    """The evidence with every array on the device, in single precision as networks give it."""

    def move(x):
        if isinstance(x, list):
            return [move(v) for v in x]
        if not isinstance(x, np.ndarray):
            return x
        tensor = torch.as_tensor(x)
        return Elsewhere(tensor.float() if tensor.is_floating_point() else tensor)

    return SimpleNamespace(**{name: move(value) for name, value in vars(e).items()})


@pytest.mark.parametrize("n, d", [(80, 12), (70, 90)])
@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_a_selector_stays_on_the_device_of_its_arrays(name, n, d):
    e = evidence(n, d, shift=0.6)
    if name == "hscore_pinv" and n < d:
        pytest.skip("has no score for fewer images than features")
    expected = resolve(SELECTORS[name], e)
    with torch.no_grad(), Machine():
        found = resolve(SELECTORS[name], moved(e))
    assert found == pytest.approx(expected, rel=5e-3, abs=5e-3)


@pytest.mark.parametrize("name", ["logme_regression", "ridge_r2", "knn_r2", "lfc_numeric"])
def test_scores_of_numeric_targets_stay_there_too(name):
    e = evidence(40, 9, shift=0.6)
    function, targets = getattr(regression, name), e.features[:, :2] ** 2
    with torch.no_grad(), Machine():
        found = function(*(Elsewhere(torch.as_tensor(x)) for x in (e.features, targets)))
    assert found == pytest.approx(function(e.features, targets), abs=1e-6)


def test_the_device_refuses_what_a_device_refuses():
    with Machine():
        x = Elsewhere(torch.ones(3, 2))
        assert (x * 2).sum().item() == 12 and isinstance(torch.ones(2, device=x.device), Elsewhere)
        assert type(x.cpu()) is torch.Tensor and isinstance(torch.ones(2).to(x.device), Elsewhere)
        with pytest.raises(AssertionError, match="two devices"):
            x + torch.ones(3, 2)
        for array in (lambda: x.numpy(), lambda: np.asarray(x)):
            with pytest.raises((TypeError, RuntimeError)):
                array()
