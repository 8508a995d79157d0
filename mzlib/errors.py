"""Errors that a user is meant to read: the command line prints them as one line, no traceback."""

from collections.abc import Iterator
from contextlib import contextmanager


class MzlibError(Exception):
    """Base of all user-facing errors: "expected …, got …, do …"."""


class Missing(MzlibError, ValueError):
    """A score or a piece of evidence that is undefined for this input; tables show the message."""


class Unwritable(MzlibError):
    """A result cannot be put on record: no space left, a read-only folder; no job is to blame."""


def one_line(error: Exception) -> str:
    """The kind of an error and the first sentence of its message, on one line."""
    first_sentence = str(error).partition(". ")[0]
    return f"{type(error).__name__}: {' '.join(first_sentence.split()[:40])}"


@contextmanager
def expecting(where: object, what: str, advice: str = "") -> Iterator[None]:
    """Turn what parsers raise on a damaged file, and that is anything, into "where: expected what,
    got …".
    """
    try:
        yield
    except MzlibError:
        raise
    except Exception as error:
        raise MzlibError(f"{where}: expected {what}, got {one_line(error)}{advice}") from error
