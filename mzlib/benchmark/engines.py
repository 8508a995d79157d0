"""Where jobs run: in this process, in a kept pool of processes of this machine, as tasks on a Ray
cluster.

An engine runs `slots` jobs at a time and replaces a process that dies. All that jobs leave behind
is in the job store, so that any engine goes on where another one was killed.
"""

import multiprocessing
import os
import signal
import socket
import tempfile
import threading
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for_end
from pathlib import Path

import pebble
import torch
from filelock import FileLock, Timeout

from mzlib.benchmark.jobs import Job, Store
from mzlib.errors import MzlibError, Unwritable
from mzlib.provenance import home

ENGINES = ("serial", "local", "ray")
ATTEMPTS = 2  # of a job whose process dies
STARTS = 3  # failed starts of all processes, in a row, by which starting them is given up


class Engine(ABC):
    """Runs `slots` jobs at a time. not_started: what a job ends with whose process never began."""

    slots = 1
    not_started: tuple[type[Exception], ...] = ()

    @abstractmethod
    def submit(self, work: Callable, *args) -> Future:
        """A future of `work(*args)`; its exception is a death of the process or its node, for the
        work catches its own.
        """

    def restart(self) -> None:
        """New processes in place of broken ones."""

    def close(self) -> None:
        """End all processes, at work or not."""


class Serial(Engine):
    """This process: for notebooks, debuggers and progress bars."""

    def submit(self, work: Callable, *args) -> Future:
        """A future that is done: the work has been."""
        future = Future()
        future.set_result(work(*args))
        return future


class Local(Engine):
    """A kept pool of processes. They are forked off a server that has imported this package and no
    more.

    So a start takes milliseconds, not seconds, and is safe for CUDA.
    """

    not_started = (BrokenExecutor,)

    def __init__(self, slots: int):
        self.slots = slots
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["mzlib.benchmark.run"])
        self.places = tempfile.TemporaryDirectory(prefix="mzlib-slots-")
        self.restart()

    def restart(self) -> None:
        """A new pool in place of one that is broken."""
        settings = _settings() | {"MZLIB_SLOTS": str(self.slots)}
        arguments = (self.slots, self.places.name, settings)
        self.pool = pebble.ProcessPool(
            self.slots, initializer=_start, initargs=arguments, context=self.context
        )

    def submit(self, work: Callable, *args) -> Future:
        """A future; its exception is a death of the process, for the work catches its own."""
        try:
            return self.pool.schedule(work, args)
        except RuntimeError as error:  # broken since the last job
            future = Future()
            future.set_exception(BrokenExecutor(str(error)))
            return future

    def close(self) -> None:
        """End all processes, at work or not."""
        self.pool.stop()
        self.pool.join()
        self.places.cleanup()


def _settings() -> dict[str, str]:
    """Environment variables of the driver that jobs look at."""
    ours = {key: value for key, value in os.environ.items() if key.startswith("MZLIB_")}
    return ours | {"MZLIB_HOME": str(home().resolve())}


def _start(slots: int, places: str, settings: dict[str, str]) -> None:
    """The first thing in a process of the pool: its GPU, and an end with the driver's end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the driver decides
    os.environ.update(settings)
    if torch.cuda.is_available():
        torch.cuda.set_device(_place(slots, places) % torch.cuda.device_count())
    driver = multiprocessing.parent_process().sentinel
    threading.Thread(target=_end_with, args=(driver,), daemon=True).start()


def _place(slots: int, folder: str) -> int:
    """The lowest number that no living process of the pool has; ours until we end."""
    for number in range(slots):
        lock = FileLock(Path(folder, str(number)))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        _HELD.append(lock)
        return number
    return 0


_HELD: list[FileLock] = []  # a lock that is collected is released


def _end_with(driver: int) -> None:
    wait_for_end([driver])
    os._exit(1)


class Ray(Engine):
    """Tasks on a cluster, each on whichever node has room for it; Ray keeps the processes for the
    next ones.
    """

    def __init__(self, workers: int | None, per_gpu: int):
        import ray

        cluster = ray.cluster_resources()
        gpus = int(cluster.get("GPU", 0))
        self.slots = workers or gpus * per_gpu or int(cluster["CPU"])
        self.not_started = (ray.exceptions.RuntimeEnvSetupError,)
        self.task = ray.remote(_on_a_node).options(
            num_cpus=1,
            num_gpus=1 / per_gpu if gpus else 0,
            max_retries=0,  # `drive` repeats a job, and knows if it had been finished
            runtime_env={"env_vars": _settings()},
        )
        self.per_gpu = per_gpu

    def submit(self, work: Callable, *args) -> Future:
        """A future; its exception is a death of the process or its node."""
        return self.task.remote(self.slots, self.per_gpu, work, *args).future()


def _on_a_node(slots: int, per_gpu: int, work: Callable, *args):
    """`work(*args)`, told among how many, at most, this node's cores are divided
    (`mzlib.streaming.workers`).
    """
    import ray

    ours = ray.get_runtime_context().get_node_id()
    has = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == ours)
    here = int(has.get("GPU", 0)) * per_gpu or int(has["CPU"])
    os.environ["MZLIB_SLOTS"] = str(min(slots, here))
    return work(*args)


Work = Callable[[Job], str | None]  # "" or the error; None: another driver is at the job


@contextmanager
def open_engine(
    name: str, workers: int | None, per_gpu: int, address: str | None
) -> Iterator[Engine]:
    """An engine of `workers` slots, by default `per_gpu` for each GPU, or where there is none one
    for each core.

    address: of a Ray cluster; None starts Ray on this machine.

    Raises:
        MzlibError: no Ray, or none at the address.
    """
    if name == "ray":
        with _ray(address):
            yield Ray(workers, per_gpu)
        return
    if name == "serial":
        engine = Serial()
    else:
        engine = Local(workers or torch.cuda.device_count() * per_gpu or os.cpu_count())
    try:
        yield engine
    finally:
        engine.close()


@contextmanager
def _ray(address: str | None) -> Iterator[None]:
    """Ray connected within the block; one that was connected before stays so."""
    try:
        import ray
    except ImportError:
        raise MzlibError(
            "expected Ray for this engine, got none: do pip install 'mzlib[ray]'"
        ) from None
    if ray.is_initialized():
        yield
        return
    try:
        host, _, port = (address or "").rpartition(":")
        if host and port.isdecimal():  # where nothing listens, Ray tries for minutes without a word
            socket.create_connection((host.removeprefix("ray://"), port), timeout=5).close()
        ray.init(address or "local", log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        why = str(error).partition("\n")[0]
        raise MzlibError(
            f"expected a Ray cluster at {address or 'this machine'}, got {why}: "
            "do `ray start --head`, or give --address HOST:PORT"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def drive(
    engine: Engine, jobs: Iterable[Job], work: Work, stop: threading.Event
) -> Iterator[tuple[Job, str | None]]:
    """Run these jobs in their order, as many at a time as there are slots, until `stop` is set.

    Yields (job, what `work` returned) as they end. A job under which a process dies `ATTEMPTS`
    times is put on record as failed.

    Raises:
        Unwritable: from a job.
        MzlibError: processes end before they do anything.
    """
    queue = deque(jobs)
    running: dict[Future, Job] = {}
    deaths = Counter()
    failed_starts = 0
    while True:
        while queue and len(running) < engine.slots and not stop.is_set():
            job = queue.popleft()
            running[engine.submit(work, job)] = job
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            job = running.pop(future)
            death = future.exception()
            if death is None:
                failed_starts = 0
                yield job, future.result()
            elif isinstance(death, Unwritable):
                raise death
            elif isinstance(death, engine.not_started):
                queue.appendleft(job)
                failed_starts += 1
                if failed_starts == STARTS * engine.slots:
                    raise _no_start(failed_starts, death) from death
                if not running:
                    engine.restart()
            else:
                deaths[job] += 1
                if deaths[job] < ATTEMPTS:
                    queue.appendleft(job)
                else:
                    yield job, _put_death_on_record(job, death)


def _no_start(times: int, death: Exception) -> MzlibError:
    return MzlibError(
        f"expected processes that start, {times} ended before their first job ({death}); "
        "a script that calls this needs its `if __name__ == '__main__':`"
    )


def _put_death_on_record(job: Job, death: Exception) -> str:
    """The error of a job whose process died for the last time; "" if it died after the job was
    finished.
    """
    store = Store(job.suite)
    with store.lock(job.key, wait=True):
        if store.is_done(job):
            return ""
        error = f"its process died {ATTEMPTS} times: {death}"
        store.write(job, [], 0, error)
        return error
