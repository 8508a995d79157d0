"""Run what is missing of a suite, on any engine; killed at any moment it loses the jobs in flight
only.
"""

import faulthandler
import fnmatch
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import pandas as pd
from tqdm.auto import tqdm

from mzlib.benchmark.engines import drive, open_engine
from mzlib.benchmark.jobs import STAGES, Job, Store
from mzlib.benchmark.stages import RUN, expert_is_stored
from mzlib.benchmark.suite import Suite, load_suite
from mzlib.errors import Unwritable
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
    may be
    at work in the same folders. Ctrl-C ends it after the jobs in flight, a second one at once.

    Args:
        only: pattern over job names like `finetune/resnet-*/digits/20/*`, or several; experts that
        the
            chosen jobs start from are trained when their weights are not in the zoo folder.
        weights: also train chosen experts that are done and whose weights are not in the zoo
        folder.
        retry_failed: also jobs on record as failed.
        engine, workers, slots_per_gpu, address: see `open_engine`.
        time_limit: seconds of a job.
    """
    suite = load_suite(name)
    store = Store(suite.name)
    chosen, failed = choice(suite, store, list(stages), only, retry_failed)
    waves = to_do(suite, store, chosen, weights, failed)
    work = partial(run_job, suite, progress=progress and engine == "serial", limit=time_limit)
    stop = threading.Event()
    if any(waves):
        store.check()
        total = sum(map(len, waves))
        with (
            open_engine(engine, workers, slots_per_gpu, address) as opened,
            tqdm(total=total, desc=name, unit="job", disable=not progress) as bar,
            _set_by_interrupt(stop),
        ):
            for wave in waves:
                for job, error in _run_wave(suite, store, wave, opened, work, stop):
                    bar.update()
                    if error:
                        failed.add(job.key)
                        tqdm.write(f"failed: {job}: {error}")
    every_job = {stage: suite.jobs(stage) for stage in STAGES}
    store.consolidate(every_job)  # also what a killed run did not come to
    if stop.is_set():
        raise KeyboardInterrupt
    return len(failed & {job.key for job in chosen})


def _run_wave(suite, store, wave, engine, work, stop) -> Iterator[tuple[Job, str]]:
    """Drive the jobs whose experts are there; those of another driver are waited for, then looked
    at again.
    """
    here = {key for key, name in _starts(suite, wave) if expert_is_stored(suite.name, name, key)}
    pending = [job for job in wave if job.after is None or job.after in here]
    while pending:
        held = []
        for job, error in drive(engine, pending, work, stop):
            if error is None:
                held.append(job)
            else:
                yield job, error
        while held and not stop.is_set() and not any(map(store.is_free, held)):
            time.sleep(1)
        pending = [] if stop.is_set() else held


def _starts(suite: Suite, jobs: Iterable[Job]) -> set[tuple[str, str]]:
    """(key, expert) of the zoo jobs whose weights these jobs start from."""
    experts = {job.key: job.expert for job in suite.zoo_jobs()}
    return {(job.after, experts[job.after]) for job in jobs if job.after}


def missing(suite: Suite, store: Store, stage: str) -> list[Job]:
    """Jobs of the stage that are not done."""
    done = store.done(stage)
    return [job for job in suite.jobs(stage) if job.key not in done]


def choice(
    suite: Suite, store: Store, stages: Iterable[str], only: str | Iterable[str], retry_failed: bool
) -> tuple[list[Job], set[str]]:
    """The jobs that `stages` and `only` choose; and the keys of all that count as failed."""
    patterns = [f"*{pattern}*" for pattern in ([only] if isinstance(only, str) else only)]
    chosen = [
        job
        for stage in stages
        for job in suite.jobs(stage)
        if any(fnmatch.fnmatchcase(str(job), pattern) for pattern in patterns)
    ]
    if retry_failed:
        return chosen, set()
    failed = [store.errors(stage).keys() - store.done(stage) for stage in STAGES]
    return chosen, set().union(*failed)


def to_do(
    suite: Suite, store: Store, chosen: list[Job], weights: bool, failed: set[str]
) -> list[list[Job]]:
    """Three waves of jobs, each of which starts from weights of those before it only.

    Experts that start from random weights, experts that start from another, the rest: of the chosen
    jobs
    those that are not done and have not failed, and the experts that they need and that are not in
    the
    zoo folder. The rest is sorted by task, for images and the reference net of RSA take seconds to
    load.
    """
    zoo = {job.key: job for job in suite.zoo_jobs()}

    def stored(key: str) -> bool:
        return expert_is_stored(suite.name, zoo[key].expert, key)

    done = set().union(*(store.done(stage) for stage in STAGES))
    pending = [job for job in chosen if job.key not in done]
    if weights:
        pending += [
            job for job in chosen if job.key in zoo and job.key in done and not stored(job.key)
        ]
    pending = [job for job in pending if job.key not in failed]
    experts = {job.key for job in pending if job.stage == "zoo"}
    needed = {job.after for job in pending if job.after}
    absent = {key for key in needed if not stored(key)}
    before_those = {zoo[key].after for key in absent | experts if zoo[key].after}
    experts |= absent | {key for key in before_those if not stored(key)}
    experts -= failed
    first = [job for key, job in zoo.items() if key in experts and job.after is None]
    then = [job for key, job in zoo.items() if key in experts and job.after is not None]
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
        except (
            Exception
        ) as exception:  # whatever a job raises is its result, and the other jobs go on
            error = f"{type(exception).__name__}: {exception}"
            store.write(job, [], time.perf_counter() - start, error)
            return error


class TimeLimit(Exception):
    """A job took longer than it may."""


@contextmanager
def _time_limit(seconds: float | None) -> Iterator[None]:
    """Raises TimeLimit in the block after so many seconds; a block that does not come back to
    Python by 1.5 times as many
    takes its process along, which says on stderr where it was stuck.
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
        found += [
            (str(job), errors[job.key]["error"])
            for job in missing(suite, store, stage)
            if job.key in errors
        ]
    return found


def status(name: str) -> pd.DataFrame:
    """stage, jobs, done, failed, missing, minutes_left (of one worker, by the mean of the jobs
    done) of a suite.
    """
    suite, rows = load_suite(name), []
    store = Store(suite.name)
    for stage in STAGES:
        jobs, done = {job.key for job in suite.jobs(stage)}, store.done(stage)
        failed = set(store.errors(stage)) & jobs - done
        seconds = [r["seconds"] for r in store.records(stage).values() if r["status"] == "ok"]
        left = len(jobs - done) * sum(seconds) / len(seconds) / 60 if seconds else float("nan")
        rows.append(
            {
                "stage": stage,
                "jobs": len(jobs),
                "done": len(jobs & done),
                "failed": len(failed),
                "missing": len(jobs - done - failed),
                "minutes_left": round(left, 1) if jobs - done else 0.0,
            }
        )
    return pd.DataFrame(rows)
