"""The benchmark: suites expand into jobs, jobs fill tables, evaluation compares scores with
fine-tuned accuracy.
"""

from mzlib.benchmark.evaluate import evaluate, truth
from mzlib.benchmark.results import (
    cells,
    compare,
    complete,
    load_results,
    searched,
    tuned,
)
from mzlib.benchmark.run import run_suite
from mzlib.benchmark.statistics import on_common_tasks, summarize
from mzlib.benchmark.suite import load_suite

__all__ = [
    "cells",
    "compare",
    "complete",
    "evaluate",
    "load_results",
    "load_suite",
    "on_common_tasks",
    "run_suite",
    "searched",
    "summarize",
    "truth",
    "tuned",
]
