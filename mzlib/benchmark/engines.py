"""Where jobs run: in this process, in processes of this machine, in actors on a Ray cluster; and which job is next.

A slot runs one job at a time and is replaced when it dies. All that jobs leave behind is in the job store, so that any
engine goes on where another one was killed.
"""

import multiprocessing
import os
import signal
import socket
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for_end

import torch

from mzlib.benchmark.jobs import Job, Store
from mzlib.errors import MzlibError, Unwritable
from mzlib.provenance import home

ENGINES = ("serial", "local", "ray")
ATTEMPTS = 2  # of a job whose process dies
STARTS = 3  # deaths before the first job, in a row, by which starting processes is given up


class Serial:
    """This process: for notebooks, debuggers and progress bars."""

    def submit(self, work: Callable, *args) -> Future:
        (future := Future()).set_result(work(*args))
        return future

    def close(self, now: bool) -> None:
        pass


class Local:
    """One process; the GPUs are dealt out in turn. A pool of one, for a pool is broken by the death of any of its own. It
    is forked off a server that has imported this package and no more: milliseconds, not seconds, and safe for CUDA."""

    context = multiprocessing.get_context("forkserver")

    def __init__(self, number: int, slots: int):
        self.context.set_forkserver_preload(["mzlib.benchmark.run"])
        self.pool = ProcessPoolExecutor(
            1, self.context, _start, (number, _settings() | {"MZLIB_SLOTS": str(slots)})
        )
        self.started = self.pool.submit(os.getpid)
        self.submit = self.pool.submit

    def close(self, now: bool) -> None:
        if now:
            for process in list((self.pool._processes or {}).values()):  # Python 3.14: kill_workers
                process.kill()
        self.pool.shutdown(cancel_futures=True)


def _settings() -> dict[str, str]:
    """Environment variables of the driver that jobs look at."""
    return {k: v for k, v in os.environ.items() if k.startswith("MZLIB_")} | {
        "MZLIB_HOME": str(home().resolve())
    }


def _start(number: int, settings: dict[str, str]) -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the driver decides
    os.environ.update(settings)
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    driver = multiprocessing.parent_process().sentinel  # a killed one is not to be outlived
    threading.Thread(target=lambda: (wait_for_end([driver]), os._exit(1)), daemon=True).start()


class Ray:
    """One actor, on whichever node has room for it: a process that keeps what it has loaded, as a local one does."""

    def __init__(self, slots: int, per_gpu: int, gpus: int):
        import ray

        options = {
            "num_cpus": 1,
            "num_gpus": 1 / per_gpu if gpus else 0,
            "runtime_env": {"env_vars": _settings()},
        }
        self.actor = ray.remote(_Actor).options(**options).remote(slots, per_gpu)
        self.started, self.kill = self.submit(os.getpid), ray.kill

    def submit(self, work: Callable, *args) -> Future:
        return self.actor.run.remote(work, *args).future()

    def close(self, now: bool) -> None:
        self.kill(self.actor)


class _Actor:
    """MZLIB_SLOTS: among how many, at most, a machine's cores are divided (`mzlib.streaming.workers`)."""

    def __init__(self, slots: int, per_gpu: int):
        import ray

        at = ray.get_runtime_context().get_node_id()
        here = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == at)
        os.environ["MZLIB_SLOTS"] = str(
            min(slots, int(here.get("GPU", 0)) * per_gpu or int(here["CPU"]))
        )

    def run(self, work: Callable, *args):
        return work(*args)


@contextmanager
def open_engine(
    name: str, workers: int | None, per_gpu: int, address: str | None
) -> Iterator[tuple[Callable[[int], object], int]]:
    """(number -> slot, how many of them): `workers`, or `per_gpu` for each GPU, or where there is none one for each core.

    address: of a Ray cluster; None starts Ray on this machine. Raises MzlibError: no Ray, or none at the address.
    """
    if name == "serial":
        yield lambda number: Serial(), 1
    elif name == "local":
        slots = workers or torch.cuda.device_count() * per_gpu or os.cpu_count()
        yield lambda number: Local(number, slots), slots
    else:
        try:
            import ray
        except ImportError:
            raise MzlibError(
                "expected Ray for this engine, got none: do pip install 'mzlib[ray]'"
            ) from None
        ours = not ray.is_initialized()
        try:
            if ours:
                host, _, port = (address or "").rpartition(":")
                if (
                    host and port.isdecimal()
                ):  # where nothing listens, Ray tries for minutes without a word
                    socket.create_connection((host.removeprefix("ray://"), port), timeout=5).close()
                ray.init(address or "local", log_to_driver=False)
        except (OSError, RuntimeError, ValueError) as error:
            why = str(error).partition("\n")[0]
            raise MzlibError(
                f"expected a Ray cluster at {address or 'this machine'}, got {why}: "
                "do `ray start --head`, or give --address HOST:PORT"
            ) from None
        try:
            there = ray.cluster_resources()
            gpus = int(there.get("GPU", 0))
            slots = workers or gpus * per_gpu or int(there["CPU"])
            yield lambda number: Ray(slots, per_gpu, gpus), slots
        finally:
            if ours:
                ray.shutdown()


class Queue:
    """Jobs that can start, those that wait for an expert's weights, and the next one for a slot.

    Experts come first, for others wait for them. A slot stays with a task, since its images (and the reference net of RSA)
    take seconds to load, the weights of an expert hundredths of one; a new one goes to the task with the fewest slots.
    Within a task the jobs keep their order.
    """

    def __init__(self, jobs: Iterable[Job], absent: set[str]):
        self.ready, self.waiting, self.task, self.closed = (
            defaultdict(deque),
            defaultdict(list),
            {},
            False,
        )
        for job in jobs:
            self.waiting[job.after].append(job) if job.after in absent else self.put(job)

    def put(self, job: Job) -> None:
        if not self.closed:
            self.ready[job.task].append(job)

    def done(self, job: Job) -> None:
        """Those that wait for it can start."""
        for other in self.waiting.pop(job.key, ()):
            self.put(other)

    def take(self, slot: int) -> Job | None:
        at, last = Counter(self.task.values()), self.task.pop(slot, None)
        tasks = (task for task, jobs in self.ready.items() if jobs)
        task = min(tasks, key=lambda t: (t != "", t != last, at[t]), default=None)
        if task is None:
            return None
        self.task[slot] = task
        return self.ready[task].popleft()

    def close(self) -> None:
        """No more jobs."""
        self.closed = True
        self.ready.clear()


def drive(
    queue: Queue,
    open_slot: Callable[[int], object],
    slots: int,
    work: Callable[[Job], str | None],
) -> Iterator[tuple[Job, str | None]]:
    """Run the queue empty on so many slots; yields (job, what `work` returned: "" or its error or None) as they end.

    A job under which a process dies `ATTEMPTS` times is put on record as failed. A slot without work is closed: on a
    cluster others may be waiting for it. Raises Unwritable from a job, MzlibError when processes die before they do anything.
    """
    open_slots, running, deaths, unborn = {}, {}, Counter(), 0
    try:
        while True:
            for number in set(range(slots)) - {number for number, _ in running.values()}:
                if job := queue.take(number):
                    if number not in open_slots:
                        open_slots[number] = open_slot(number)
                    running[_submit(open_slots[number], work, job)] = number, job
                elif number in open_slots:
                    open_slots.pop(number).close(now=False)
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number, job = running.pop(future)
                try:
                    error, unborn = future.result(), 0
                except Unwritable:
                    raise
                except Exception as death:
                    (slot := open_slots.pop(number)).close(now=True)
                    if slot.started.done() and not slot.started.exception():
                        deaths[job] += 1
                    elif (unborn := unborn + 1) == STARTS * slots:
                        raise MzlibError(
                            f"expected processes that start, {unborn} ended before their first job ({death}); "
                            "a script that calls this needs its `if __name__ == '__main__':`"
                        ) from death
                    if deaths[job] < ATTEMPTS:
                        queue.put(job)
                        continue
                    store, error = Store(job.suite), f"its process died {ATTEMPTS} times: {death}"
                    with store.lock(job.key, wait=True):
                        if store.is_done(job):  # it died thereafter
                            error = ""
                        else:
                            store.write(job, [], 0, error)
                if error == "":
                    queue.done(job)
                yield job, error
    finally:
        for slot in open_slots.values():
            slot.close(now=bool(running))


def _submit(slot, *args) -> Future:
    try:
        return slot.submit(*args)
    except Exception as death:  # between two jobs
        (future := Future()).set_exception(death)
        return future
