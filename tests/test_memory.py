"""What lasts while someone needs it: memory that is not mapped anew each time, full precision."""

import platform
import subprocess
import sys

import pytest
import torch

from mzlib.memory import full_float32, repeatable

FAULTS = """
import resource
import torch
from mzlib.memory import keeping_freed_memory

BYTES = 40 << 20

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(6):
        torch.empty(BYTES, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with keeping_freed_memory():
    with keeping_freed_memory():
        for _ in range(3):  # the heap grows by the first seven to nine
            faults()
        inner = faults()
    outer = faults()
print(BYTES // resource.getpagesize(), inner, outer, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept_to_the_end_of_the_outermost_context():
    """By the pages that the kernel has to provide while 40 MiB are filled and freed six times.

    In a process of its own: what others left of a heap may be a hole of that size, which is used
    again without the kernel.
    """
    command = [sys.executable, "-c", FAULTS]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    pages, inner, outer, after = map(int, printed.split())
    assert inner < pages
    assert outer < pages
    assert after >= pages  # given back


@pytest.fixture
def precision():
    """Sets how convolutions and matrices are multiplied, until the test's end."""
    settings = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = [products.fp32_precision for products in settings]

    def choose(*values):
        for products, value in zip(settings, values):
            products.fp32_precision = value

    yield choose
    choose(*before)


@pytest.mark.parametrize("chosen", [("tf32", "tf32"), ("ieee", "none")])
def test_products_are_exact_to_the_end_of_the_outermost_context(chosen, precision):
    """Also where new settings are at odds with old ones, which torch then refuses to tell."""
    precision(*chosen)
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    with pytest.raises(ZeroDivisionError), full_float32():
        with full_float32():
            pass
        assert conv.fp32_precision == matmul.fp32_precision == "ieee"
        1 / 0
    assert (conv.fp32_precision, matmul.fp32_precision) == chosen


@pytest.mark.parametrize("chosen", [(False, True), (True, False)])
def test_a_gpu_adds_in_one_order_in_the_context_and_as_the_user_chose_after_it(monkeypatch, chosen):
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "deterministic", chosen[0])
    monkeypatch.setattr(cudnn, "benchmark", chosen[1])
    with repeatable(), repeatable():
        assert cudnn.deterministic and not cudnn.benchmark
    assert (cudnn.deterministic, cudnn.benchmark) == chosen
