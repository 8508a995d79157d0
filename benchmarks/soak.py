"""Kill runs of a small suite at random moments until they are through: are the tables those of an undisturbed run?

Usage: python benchmarks/soak.py [KILLS [CSV]] (default: 50). Hit is the driver (SIGKILL, or SIGINT twice) or the process of a job
(SIGKILL); a driver that ended is started again, and the suite in an empty folder when it is through. It trains for real: the
tests' suite `small`. A row a kill: what was hit, seconds since the driver's start, jobs finished so far, finished jobs that
were done again since the last kill, and, of the run that it belongs to, whether its tables are the same in the end.
"""

import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from mzlib.benchmark import run_suite
from mzlib.benchmark.jobs import STAGES
from mzlib.provenance import home, machine

SUITE = Path(__file__).parents[1] / "tests" / "data" / "small.toml"
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["mzlib.benchmark.run"])  # of which the local engine forks, too
HITS = ("driver", "job", "interrupt")


def drive(folder: str) -> None:
    os.environ["MZLIB_HOME"] = folder
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.exit(min(1, run_suite("small", workers=2, retry_failed=True, progress=False)))
    except KeyboardInterrupt:
        os._exit(130)


def prepare(folder: str) -> None:
    (Path(folder) / "suites").mkdir()
    shutil.copy(SUITE, Path(folder) / "suites")
    os.environ["MZLIB_HOME"] = folder


def tables() -> list[pd.DataFrame]:
    folder = home() / "results" / "small"
    return [
        pd.read_csv(folder / f"{stage}.csv", dtype=str).drop(columns=["seconds", "hardware"])
        for stage in STAGES
    ]


def finished() -> dict[Path, int]:
    """Files of finished jobs by inode: one that is written again has another."""
    return {
        path: path.stat().st_ino
        for path in (home() / "runs").rglob("*.json")
        if '"status": "ok"' in path.read_text()
    }


def at_work() -> list[int]:
    """Processes that hold the lock of a job."""
    locks = home() / "runs" / "small" / "locks"
    files = {str(path.stat().st_ino) for path in locks.glob("*.lock") if path.stem != "tables"}
    held = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return [int(line[4]) for line in held if line[5].rpartition(":")[2] in files]


def hit(what: str, driver) -> None:
    if what == "job":
        for pid in at_work()[:1]:
            os.kill(pid, signal.SIGKILL)
        return
    os.kill(driver.pid, signal.SIGINT if what == "interrupt" else signal.SIGKILL)
    if what == "interrupt":
        driver.join(0.1)
        if driver.exitcode is None:
            os.kill(driver.pid, signal.SIGINT)
    driver.join()


def soak(kills: int, seed: int = 0) -> pd.DataFrame:
    rng, rows = random.Random(seed), []
    with tempfile.TemporaryDirectory() as folder:
        prepare(folder)
        start = time.monotonic()
        assert run_suite("small", engine="serial", progress=False) == 0
        pause, expected = (time.monotonic() - start) / 2, tables()
    while len(rows) < kills:
        with tempfile.TemporaryDirectory() as folder:
            prepare(folder)
            run, kept, driver = [], {}, None
            while driver is None or driver.exitcode != 0:
                if driver is None or driver.exitcode is not None:
                    driver, start = CONTEXT.Process(target=drive, args=(folder,)), time.monotonic()
                    driver.start()
                at_start = rng.random()
                while (
                    at_start > 0.2 and driver.exitcode is None and not at_work()
                ):  # 1 in 5 may fall into a start
                    driver.join(0.02)
                driver.join(rng.uniform(0, pause) if len(rows) + len(run) < kills else None)
                now = finished()
                again, kept = sum(now.get(path) != inode for path, inode in kept.items()), now
                if driver.exitcode is None:
                    what = HITS[len(run) % len(HITS)]
                    hit(what, driver)
                    run.append(
                        {
                            "hit": what,
                            "seconds": time.monotonic() - start,
                            "finished": len(now),
                            "again": again,
                        }
                    )
                    print(run[-1], flush=True)
            same = (
                all(ours.equals(theirs) for ours, theirs in zip(tables(), expected)) and not again
            )
            rows += [{**row, "same": same} for row in run]
    return pd.DataFrame(rows)


def main(kills: int, path: str) -> None:
    table = soak(kills)
    print(
        table.groupby("hit").agg(
            kills=("same", "size"), again=("again", "sum"), same=("same", "all")
        )
    )
    table.assign(target="again == 0 and same", **machine()).to_csv(
        path, index=False, float_format="%.4g"
    )


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else 50,
        sys.argv[2] if len(sys.argv) > 2 else "results/benchmarks/soak.csv",
    )
