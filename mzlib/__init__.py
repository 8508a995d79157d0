"""Which pre-trained model should I fine-tune? Companion of arXiv:2102.00084."""

from importlib import import_module

_HOME = {
    "choose": "mzlib.api",
    "few_shot": "mzlib.dataset",
    "finetune": "mzlib.api",
    "list_tasks": "mzlib.benchmark.data",
    "load_task": "mzlib.benchmark.data",
    "load_zoo": "mzlib.api",
    "open_images": "mzlib.images",
    "predict": "mzlib.api",
    "rank": "mzlib.api",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    """Import what is asked for only then: `from mzlib.selectors import lfc` loads torch, numpy and
    scipy alone.
    """
    if name not in _HOME:
        raise AttributeError(f"module 'mzlib' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
