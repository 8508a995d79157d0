"""Errors that a user is meant to read: the command line prints them as one line, no traceback."""


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
