"""States of the whole process that last while someone needs them: memory, precision."""

import ctypes
import threading
from collections.abc import Callable
from contextlib import ContextDecorator
from typing import Any

import torch

# of glibc's malloc.h
TRIM_THRESHOLD = -1
MMAP_THRESHOLD = -3
MMAP_MAX = -4


class Shared(ContextDecorator):
    """A context that may be nested and entered by several threads at once: the first to come calls
    `begin`, the last to go `end`.
    """

    def __init__(self, begin: Callable[[], None], end: Callable[[], None]):
        self.begin = begin
        self.end = end
        self.lock = threading.Lock()
        self.users = 0

    def __enter__(self) -> None:
        with self.lock:
            if self.users == 0:
                self.begin()
            self.users += 1

    def __exit__(self, *error) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0:
                self.end()


def keeping_freed_memory() -> Shared:
    """On Linux the C library keeps what is freed in the context, and gives it back at its end.

    By itself it maps every tensor of more than 32 MiB anew, and the kernel clears each page at its
    first use: at 224 pixels that took as long as the network. Afterwards the thresholds are the
    largest that glibc chooses by itself.
    """
    return _memory


def _keep(everything: bool) -> None:
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_MAX, 0 if everything else 1 << 16)
        libc.mallopt(MMAP_THRESHOLD, 1 << 25)
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1 if everything else 1 << 26)
        if not everything:
            libc.malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # not glibc
        return


_memory = Shared(lambda: _keep(True), lambda: _keep(False))

# GPUs multiply with the ten bits of TF32: convolutions by default, matrices if the user says so
_cudnn: Any = torch.backends.cudnn  # of which type checkers know less than there is
_PRODUCTS = (_cudnn.conv, _cudnn.rnn, torch.backends.cuda.matmul)
_chosen: list[str] = []


def full_float32() -> Shared:
    """Products of float32 have all their digits in the context, on a GPU too; TF32 costs two of
    five. The user's settings come back at its end.
    """
    return _precision


def _multiply_exactly() -> None:
    _chosen[:] = [products.fp32_precision for products in _PRODUCTS]
    for products in _PRODUCTS:
        products.fp32_precision = "ieee"


def _multiply_as_chosen() -> None:
    for products, precision in zip(_PRODUCTS, _chosen):
        products.fp32_precision = precision


_precision = Shared(_multiply_exactly, _multiply_as_chosen)
_algorithms: list[bool] = []


def repeatable() -> Shared:
    """Two runs give the same numbers in the context, on a GPU too: by itself cuDNN takes algorithms
    whose sums come in any order. The user's settings come back at its end.
    """
    return _repeatable


def _repeatably() -> None:
    _algorithms[:] = [torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark]
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False  # which takes what was the fastest this time


def _as_before() -> None:
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = _algorithms


_repeatable = Shared(_repeatably, _as_before)
