"""The examples in docstrings print what they say."""

import doctest
import importlib

import numpy as np
import pytest

MODULES = [
    "mzlib.dataset",
    "mzlib.linearization.gram",
    "mzlib.benchmark.metrics",
    "mzlib.benchmark.statistics",
    "mzlib.selectors.bao2019",
    "mzlib.selectors.deshpande2021",
    "mzlib.selectors.history",
    "mzlib.selectors.nguyen2020",
    "mzlib.selectors.renggli2020",
    "mzlib.selectors.you2021",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    with np.printoptions(legacy=False):
        found = doctest.testmod(importlib.import_module(name))
    assert found.failed == 0
    assert found.attempted, f"expected examples in {name}, got none"
