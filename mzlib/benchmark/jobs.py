"""Jobs and where their results lie.

A job is a frozen spec; its key hashes the spec and the version of the code that matters. A finished
job is one file
`runs/<suite>/jobs/<stage>/<key>.json`, written under a temporary name and renamed.
`results/<suite>/<stage>.csv` (`.csv.gz`
when large) holds the rows of all finished jobs; a job found there is done as well. Resuming is
skipping what is done, on any engine; nothing
depends on clocks or the order of files. Who works at a job holds its lock.
"""

import dataclasses
import gzip
import hashlib
import json
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile

import pandas as pd
from filelock import FileLock, Timeout

from mzlib.errors import MzlibError, Unwritable
from mzlib.provenance import home, machine, put

STAGES = ("zoo", "finetune", "score")
VERSION = {
    "zoo": 1,
    "finetune": 1,
    "score": 1,
}  # raise one when a change of the code changes that stage's numbers
LARGEST = (
    4 * 2**20
)  # bytes of a table that is kept as plain text, else gzip: a checkout travels to other machines
RECORD = {
    "status": str,
    "error": str,
    "rows": list,
    "seconds": int | float,
    "finished": str,
    "machine": dict,
}
SUMMARY = {"jobs": int, "seconds": int | float, "machines": list}  # of a stage in provenance.json


@dataclass(frozen=True)
class Job:
    """One unit of work. spec: canonical JSON of everything that its numbers depend on."""

    stage: str
    suite: str
    expert: str
    task: str
    shots: str
    seed: int
    spec: str

    @classmethod
    def of(cls, stage, suite, expert, *, task="", shots="", seed=0, **settings) -> "Job":
        """A job with these settings as its spec."""
        spec = json.dumps(settings, sort_keys=True, default=vars)
        return cls(stage, suite, expert, task, shots, seed, spec)

    @cached_property
    def settings(self) -> dict:
        """The spec as a table."""
        return json.loads(self.spec)

    @cached_property
    def key(self) -> str:
        """12 hexadecimal digits."""
        spec = json.dumps(
            [getattr(self, field.name) for field in dataclasses.fields(self)]
            + [VERSION[self.stage]]
        )
        return hashlib.sha256(spec.encode()).hexdigest()[:12]

    @property
    def after(self) -> str | None:
        """Key of the zoo job whose weights it starts from."""
        return self.settings.get("expert_key") or self.settings.get("start_key")

    def __str__(self) -> str:
        lr = f"lr{self.settings['lr']:g}" if "lr" in self.settings else ""
        return "/".join(filter(None, (self.stage, self.expert, self.task, self.shots, lr)))


class Store:
    """Job files and committed tables of one suite."""

    def __init__(self, suite: str):
        self.suite, self.folder = suite, home() / "runs" / suite / "jobs"

    def write(self, job: Job, rows: list[dict], seconds: float, error: str = "") -> None:
        """Put a finished (or failed) job on record, in one atomic step."""
        record = {
            "job": dataclasses.asdict(job),
            "status": "error" if error else "ok",
            "error": error,
            "rows": rows,
            "seconds": round(seconds, 3),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": machine(),
        }
        put(self._path(job), json.dumps(record))

    def _path(self, job: Job) -> Path:
        return self.folder / job.stage / f"{job.key}.json"

    def check(self) -> None:
        """Raises Unwritable when results cannot be put on record here."""
        for folder in (self.folder, home() / "results" / self.suite):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                TemporaryFile(dir=folder).close()
            except OSError as error:
                raise Unwritable(
                    f"expected to write in {folder}, got {error}; permit it or set MZLIB_HOME"
                ) from None

    @contextmanager
    def lock(self, name: str, wait: bool = False) -> Iterator[bool]:
        """Whether the lock `name` is ours within the block, or, without `wait`, some other
        process's.

        The kernel gives it up with the process that held it, however that ends.
        """
        folder = self.folder.parent
        if not folder.is_dir():
            raise Unwritable(f"expected the driver's {folder} here, got no such folder; share it")
        lock = FileLock(folder / "locks" / f"{name}.lock")
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            yield False
            return
        except OSError as error:
            raise Unwritable(f"expected to write in {folder}, got {error}") from None
        try:
            yield True
        finally:
            lock.release()

    def is_free(self, job: Job) -> bool:
        """Whether no other driver is at the job."""
        with self.lock(job.key) as free:
            return free

    def is_done(self, job: Job) -> bool:
        """Whether the job has a file and it says so; one that is not a complete record counts as
        absent.
        """
        return _record(self._path(job)).get("status") == "ok"

    def records(self, stage: str) -> dict[str, dict]:
        """Key -> record of every job file of the stage; a file that is not a complete record counts
        as absent.
        """
        found = (
            (path.stem, _record(path)) for path in sorted((self.folder / stage).glob("*.json"))
        )
        return {key: record for key, record in found if record}

    def _committed(self, stage: str) -> pd.DataFrame:
        plain = home() / "results" / self.suite / f"{stage}.csv"
        packed = plain.with_suffix(".csv.gz")
        path = packed if packed.is_file() else plain
        if not path.is_file():
            return pd.DataFrame()
        try:
            table = pd.read_csv(
                path, dtype={"shots": str, "images_per_class": str}, low_memory=False
            )
            table["key"]
        except (ValueError, OSError, EOFError, KeyError, zlib.error) as error:
            raise MzlibError(
                f"expected a table of results with the column 'key' in {path}, got "
                f"{type(error).__name__}: "
                f"{str(error).strip()}; restore or remove it"
            ) from None
        return table

    def table(self, stage: str) -> pd.DataFrame:
        """All rows of the stage: the committed table, then job files that it does not hold."""
        committed = self._committed(stage)
        known = set(committed["key"]) if len(committed) else set()
        fresh = [
            {"key": key, **row, "hardware": record["machine"]["hardware"]}
            for key, record in self.records(stage).items()
            if record["status"] == "ok" and key not in known
            for row in record["rows"]
        ]
        return pd.concat(
            [t for t in (committed, pd.DataFrame(fresh)) if len(t)] or [committed],
            ignore_index=True,
        )

    def done(self, stage: str) -> set[str]:
        """Keys of the finished jobs."""
        table = self.table(stage)
        return set(table["key"]) if len(table) else set()

    def errors(self, stage: str) -> dict[str, dict]:
        """Key -> record of the failed jobs."""
        return {
            key: record
            for key, record in self.records(stage).items()
            if record["status"] == "error"
        }

    def consolidate(self, jobs: dict[str, list[Job]]) -> None:
        """Write `results/<suite>/<stage>.csv` and `provenance.json`: the rows of these jobs, in
        their order, nothing else.

        Rows of jobs that the suite no longer contains are left out; job files stay where they are.
        Nothing is written
        where nothing is new: weights trained again change no table.
        """
        stale = [
            stage
            for stage, wanted in jobs.items()
            if self._stale(stage, {job.key for job in wanted})
        ]
        if stale:
            self.check()
            with self.lock("tables", wait=True):
                self._consolidate({stage: jobs[stage] for stage in stale})

    def _stale(self, stage: str, keys: set[str]) -> bool:
        committed, told = (
            set(self._committed(stage).get("key", ())),
            self.provenance().get(stage, {"jobs": 0})["jobs"],
        )
        return (
            bool(keys & self.done(stage) - committed) or len(committed) != told
        )  # the latter: killed between the two files

    def _consolidate(self, jobs: dict[str, list[Job]]) -> None:
        folder, provenance = home() / "results" / self.suite, self.provenance()
        for stage, wanted in jobs.items():
            order = {job.key: i for i, job in enumerate(wanted)}
            table, committed = self.table(stage), self._committed(stage)
            table = table[table["key"].isin(order)]
            records = {
                k: r for k, r in self.records(stage).items() if k in order and r["status"] == "ok"
            }
            before = provenance.get(stage, {"seconds": 0, "machines": []})
            if set(order) <= set(records):
                before = {"seconds": 0, "machines": []}
            else:  # the rest was computed elsewhere
                records = {
                    k: r for k, r in records.items() if k not in set(committed.get("key", ()))
                }
            machines = before["machines"] + [r["machine"] for r in records.values()]
            provenance[stage] = {
                "jobs": table["key"].nunique(),
                "finished": max(
                    [before.get("finished", ""), *(r["finished"] for r in records.values())]
                ),
                "seconds": round(
                    before["seconds"] + sum(r["seconds"] for r in records.values()), 1
                ),
                "machines": [m for i, m in enumerate(machines) if m not in machines[:i]],
            }
            table = table.iloc[table["key"].map(order).argsort(kind="stable")]
            text = table.to_csv(index=False, float_format="%.6g").encode()
            large, plain = len(text) > LARGEST, folder / f"{stage}.csv"
            put(
                plain.with_suffix(".csv.gz") if large else plain,
                gzip.compress(text, mtime=0) if large else text,
            )
            (plain if large else plain.with_suffix(".csv.gz")).unlink(missing_ok=True)
        put(folder / "provenance.json", json.dumps(provenance, indent=1) + "\n")

    def provenance(self) -> dict:
        """Jobs, seconds and machines of each stage of the committed tables."""
        path = home() / "results" / self.suite / "provenance.json"
        known = _json(path) if path.is_file() else {}
        if not isinstance(known, dict) or not all(
            _has(summary, SUMMARY) for summary in known.values()
        ):
            raise MzlibError(
                f"expected jobs, seconds and machines of each stage in {path}; restore or remove it"
            )
        return known


def _json(path: Path):
    """What the file says; None where it is no JSON or not there."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def _has(table, kinds: dict) -> bool:
    return isinstance(table, dict) and all(
        isinstance(table.get(key), kind) for key, kind in kinds.items()
    )


def _record(path: Path) -> dict:
    """The job file there, empty unless it is complete."""
    record = _json(path)
    whole = (
        _has(record, RECORD)
        and "hardware" in record["machine"]
        and all(isinstance(row, dict) for row in record["rows"])
    )
    return record if whole else {}
