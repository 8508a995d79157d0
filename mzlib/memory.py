"""Freed memory that stays with the process while batch after batch asks for the same again."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# of glibc's malloc.h
TRIM_THRESHOLD = -1
MMAP_THRESHOLD = -3
MMAP_MAX = -4

_lock = threading.Lock()
_users = 0


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """On Linux the C library keeps what is freed in the context, and gives it back at its end.

    By itself it maps every tensor of more than 32 MiB anew, and the kernel clears each page at its
    first use: at 224 pixels that took as long as the network. May be nested and used by several
    threads at once. Afterwards the thresholds are the largest that glibc chooses by itself.
    """
    _enter(1)
    try:
        yield
    finally:
        _enter(-1)


def _enter(change: int) -> None:
    global _users
    with _lock:
        was_used = _users > 0
        _users += change
        if was_used != (_users > 0):
            _keep(_users > 0)


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
