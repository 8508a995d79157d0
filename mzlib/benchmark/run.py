"""Run what is missing of a suite, on any engine; killed at any moment it loses the jobs in flight
only.
"""

import faulthandler
import fnmatch
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial

import pandas as pd
from tqdm.auto import tqdm

from mzlib.benchmark.engines import Engine, Work, drive, open_engine
from mzlib.benchmark.jobs import STAGES, Job, Store
from mzlib.benchmark.stages import RUN, expert_is_stored
from mzlib.benchmark.suite import Suite, load_suite
from mzlib.errors import MzlibError, Unwritable
from mzlib.training import default_device, one_thread


def run_suite(
    name: str,
    *,
    stages: Iterable[str] = STAGES,
    only: str | Iterable[str] = "*",
    weights: bool = False,
    retry_failed: bool = False,
    engine: str = "local",
    workers: int | None = None,
    slots_per_gpu: int = 1,
    address: str | None = None,
    time_limit: float | None = None,
    progress: bool = True,
) -> int:
    """Run every missing job of the suite and consolidate the tables; returns how many chosen jobs
    failed.

    Every job sees one thread, so that neither engine nor workers change any number. Other drivers
    may be at work in the same folders. Ctrl-C ends it after the jobs in flight, a second one at
    once.

    Args:
        only: pattern over job names like `finetune/resnet-*/digits/20/*`, or several; experts that
            the chosen jobs start from are trained when their weights are not in the zoo folder.
        weights: also train chosen experts that are done and whose weights are not in the zoo
            folder.
        retry_failed: also jobs on record as failed.
        engine, workers, slots_per_gpu, address: see `open_engine`.
        time_limit: seconds of a job.
    """
    suite = load_suite(name)
    store = Store(suite.name)
    if not suite.collection:
        store.record_data(suite.targets)
        Store(suite.zoo).record_data(suite.sources)
    chosen, failed = choice(suite, store, list(stages), only, retry_failed)
    waves = to_do(suite, store, chosen, weights, failed)
    work = partial(run_job, suite, progress=progress and engine == "serial", limit=time_limit)
    stop = threading.Event()
    if any(waves):
        for name_of_one in {suite.name, suite.zoo}:
            Store(name_of_one).check()
        total = sum(map(len, waves))
        with (
            open_engine(engine, workers, slots_per_gpu, address) as opened,
            tqdm(total=total, desc=name, unit="job", disable=not progress) as bar,
            _set_by_interrupt(stop),
        ):
            for wave in waves:
                for job, error in _run_wave(suite, wave, opened, work, stop):
                    bar.update()
                    if error:
                        failed.add(job.key)
                        tqdm.write(f"failed: {job}: {error}")
    every_job = {stage: suite.jobs(stage) for stage in STAGES}
    store.consolidate(every_job)  # also what a killed run did not come to
    if stop.is_set():
        raise KeyboardInterrupt
    return len(failed & {job.key for job in chosen})


def _run_wave(
    suite: Suite, wave: list[Job], engine: Engine, work: Work, stop: threading.Event
) -> Iterator[tuple[Job, str]]:
    """Drive the jobs whose experts are there; those of another driver are waited for, then looked
    at again.
    """
    experts = {job.key: job.expert for job in suite.zoo_jobs()}
    needed = {job.after for job in wave if job.after}
    here = {key for key in needed if expert_is_stored(suite.zoo, experts.get(key, ""), key)}
    pending = [job for job in wave if job.after is None or job.after in here]
    while pending:
        held = []
        for job, error in drive(engine, pending, work, stop):
            if error is None:
                held.append(job)
            else:
                yield job, error
        while held and not stop.is_set() and not any(Store(job.suite).is_free(job) for job in held):
            time.sleep(1)
        pending = [] if stop.is_set() else held


def missing(suite: Suite, store: Store, stage: str) -> list[Job]:
    """Jobs of the stage that are not done."""
    done = store.done(stage)
    return [job for job in suite.jobs(stage) if job.key not in done]


def choice(
    suite: Suite, store: Store, stages: Iterable[str], only: str | Iterable[str], retry_failed: bool
) -> tuple[list[Job], set[str]]:
    """The jobs that `stages` and `only` choose; and the keys of all that count as failed."""
    patterns = [f"*{pattern}*" for pattern in ([only] if isinstance(only, str) else only)]
    jobs = [job for stage in stages for job in suite.jobs(stage)]
    chosen = [job for job in jobs if any(fnmatch.fnmatchcase(str(job), p) for p in patterns)]
    if not chosen and only != "*":
        raise MzlibError(f"expected a pattern that names jobs of {suite.name}, got {only!r}")
    if retry_failed:
        return chosen, set()
    failed = [store.errors(stage).keys() - store.done(stage) for stage in STAGES]
    return chosen, set().union(*failed)


def to_do(
    suite: Suite, store: Store, chosen: list[Job], weights: bool, failed: set[str]
) -> list[list[Job]]:
    """Three waves of jobs, each of which starts from weights of those before it only.

    Experts that start from random weights, experts that start from another, the rest: of the chosen
    jobs those that are not done and have not failed, and the experts that they need and that are
    not in the zoo folder. The rest is sorted by task, for images and the reference net of RSA take
    seconds to load.
    """
    zoo = {job.key: job for job in suite.zoo_jobs()}
    done = set().union(*(store.done(stage) for stage in STAGES))

    @cache
    def absent(key: str | None) -> bool:
        return key is not None and not expert_is_stored(suite.zoo, zoo[key].expert, key)

    def is_pending(job: Job) -> bool:
        if job.key in failed:
            return False
        return job.key not in done or (weights and job.stage == "zoo" and absent(job.key))

    pending = [job for job in chosen if is_pending(job)]
    experts = {job.key for job in pending if job.stage == "zoo"}
    experts |= {job.after for job in pending if absent(job.after)}
    experts |= {zoo[key].after for key in experts if absent(zoo[key].after)}
    to_train = [job for key, job in zoo.items() if key in experts - failed]
    first = [job for job in to_train if job.after is None]
    then = [job for job in to_train if job.after is not None]
    rest = [job for job in pending if job.stage != "zoo"]
    rest.sort(key=lambda job: (job.task, job.stage, job.shots, job.seed))
    return [first, then, rest]


@contextmanager
def _set_by_interrupt(stop: threading.Event) -> Iterator[None]:
    """Ctrl-C in the block sets `stop`, once; the next one does what it did before."""

    def first(*_):
        stop.set()
        signal.signal(signal.SIGINT, before)
        os.write(2, b"\nmzlib: waiting for the jobs in flight; once more to stop now\n")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run_job(
    suite: Suite, job: Job, progress: bool = False, limit: float | None = None
) -> str | None:
    """Run one job and put it on record; returns "" or its error, on record too, or None when
    another driver is at it.
    """
    store = Store(job.suite)
    with store.lock(job.key) as ours:
        if not ours:
            return None
        if store.is_done(job) and (
            job.stage != "zoo" or expert_is_stored(job.suite, job.expert, job.key)
        ):
            return ""  # by another driver, or by a process that died thereafter
        start = time.perf_counter()
        try:
            with _time_limit(limit), one_thread():
                rows = RUN[job.stage](suite, job, default_device(), progress)
            store.write(job, rows, time.perf_counter() - start)
            return ""
        except Unwritable:
            raise
        except Exception as exception:  # is the job's result, and the other jobs go on
            error = f"{type(exception).__name__}: {exception}"
            store.write(job, [], time.perf_counter() - start, error)
            return error


class TimeLimit(Exception):
    """A job took longer than it may."""


@contextmanager
def _time_limit(seconds: float | None) -> Iterator[None]:
    """Raises TimeLimit in the block after so many seconds; a block that does not come back to
    Python by 1.5 times as many takes its process along, which says on stderr where it was stuck.
    """

    def end(*_):
        raise TimeLimit(f"stopped after {seconds:g} s")

    if not seconds:
        yield
        return
    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(1.5 * seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def failures(name: str) -> list[tuple[str, str]]:
    """(job, error) of every job of the suite that failed and was not repeated with success."""
    suite = load_suite(name)
    store = Store(suite.name)
    found = []
    for stage in STAGES:
        errors = store.errors(stage)
        pending = missing(suite, store, stage)
        found += [(str(job), errors[job.key]) for job in pending if job.key in errors]
    return found


def status(name: str) -> pd.DataFrame:
    """stage, jobs, done, failed, missing, minutes_left (of one worker, by the mean of the jobs
    done) of a suite.
    """
    suite = load_suite(name)
    store = Store(suite.name)
    rows = []
    for stage in STAGES:
        jobs = suite.jobs(stage)
        left = {job.key for job in missing(suite, store, stage)}
        failed = left & store.errors(stage).keys()
        seconds = [record.seconds for record in store.records(stage, "ok").values()]
        mean = sum(seconds) / len(seconds) if seconds else math.nan
        row = {
            "stage": stage,
            "jobs": len(jobs),
            "done": len(jobs) - len(left),
            "failed": len(failed),
            "missing": len(left - failed),
            "minutes_left": round(len(left) * mean / 60, 1) if left else 0.0,
        }
        rows.append(row)
    return pd.DataFrame(rows)
