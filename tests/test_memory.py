"""Memory that a loop frees and asks for again is not mapped anew each time."""

import platform
import resource

import pytest
import torch

from mzlib.memory import keeping_freed_memory

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
