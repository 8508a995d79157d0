"""Every selector on a device that is not there."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from other_device import Away, TwoDevices
from test_selectors_properties import evidence

from mzlib.selectors import SELECTORS, regression, resolve


def moved(e):
    """The evidence with every array on the device, in single precision as networks give it."""

    def move(x):
        if isinstance(x, list):
            return [move(v) for v in x]
        if not isinstance(x, np.ndarray):
            return x
        tensor = torch.as_tensor(x)
        return Away(tensor.float() if tensor.is_floating_point() else tensor)

    return SimpleNamespace(**{name: move(value) for name, value in vars(e).items()})


@pytest.mark.parametrize("n, d", [(80, 12), (70, 90)])
@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_a_selector_stays_on_the_device_of_its_arrays(name, n, d):
    e = evidence(n, d, shift=0.6)
    if name == "hscore_pinv" and n < d:
        pytest.skip("has no score for fewer images than features")
    expected = resolve(SELECTORS[name], e)
    with torch.no_grad(), TwoDevices():
        found = resolve(SELECTORS[name], moved(e))
    assert found == pytest.approx(expected, rel=5e-3, abs=5e-3)


@pytest.mark.parametrize("name", ["logme_regression", "ridge_r2", "knn_r2", "lfc_numeric"])
def test_scores_of_numeric_targets_stay_there_too(name):
    e = evidence(40, 9, shift=0.6)
    function, targets = getattr(regression, name), e.features[:, :2] ** 2
    with torch.no_grad(), TwoDevices():
        found = function(*(Away(torch.as_tensor(x)) for x in (e.features, targets)))
    assert found == pytest.approx(function(e.features, targets), abs=1e-6)
