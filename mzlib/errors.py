"""Errors that a user is meant to read: the command line prints them as one line, without a traceback."""


class MzlibError(Exception):
    """Base of all user-facing errors: "expected …, got …, do …"."""


class Missing(MzlibError, ValueError):
    """A score or a piece of evidence that is undefined for this input; its message is the reason shown in tables."""


class Unwritable(MzlibError):
    """A result cannot be put on record: no space left, a read-only folder. It ends a run, for no job is to blame."""
