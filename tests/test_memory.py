"""What lasts while someone needs it: memory that is not mapped anew each time, full precision."""

import platform
import resource

import pytest
import torch

from mzlib.memory import full_float32, keeping_freed_memory, repeatable

BYTES = 40 << 20


def faults() -> int:
    """Pages that the kernel had to provide while 40 MiB were filled and freed six times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(6):
        torch.empty(BYTES, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept_to_the_end_of_the_outermost_context():
    pages = BYTES // resource.getpagesize()
    with keeping_freed_memory():
        with keeping_freed_memory():
            faults()
            assert faults() < pages
        assert faults() < pages
    assert faults() >= pages  # given back


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
