"""Jobs and where their results lie.

A job is a frozen spec; its key hashes the spec and the version of the code that matters. A finished
job is one file `runs/<suite>/jobs/<stage>/<key>.json`, written under a temporary name and renamed.
`results/<suite>/<stage>.csv` (`.csv.gz` when large) holds the rows of all finished jobs; a job that
is found there is done as well. Resuming is skipping what is done, on any engine; nothing depends on
clocks or the order of files. Who works at a job holds its lock.
"""

import dataclasses
import gzip
import hashlib
import json
import time
import zlib
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

import msgspec
import pandas as pd
from filelock import FileLock, Timeout
from pandas import DataFrame

from mzlib.benchmark.data import fingerprints
from mzlib.errors import MzlibError, Unwritable, one_line
from mzlib.provenance import home, machine, put

STAGES = ("zoo", "finetune", "score")
# raise one when a change of the code changes that stage's numbers
VERSION = {"zoo": 1, "finetune": 1, "score": 1}
# bytes of a table that is kept as plain text, else gzip: a checkout travels to other machines
LARGEST = 5 * 2**19


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
    def of(
        cls,
        stage: str,
        suite: str,
        expert: str,
        *,
        task: str = "",
        shots: str = "",
        seed: int = 0,
        **settings: Any,
    ) -> "Job":
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
        values = [getattr(self, field.name) for field in dataclasses.fields(self)]
        spec = json.dumps([*values, VERSION[self.stage]])
        return hashlib.sha256(spec.encode()).hexdigest()[:12]

    @property
    def after(self) -> str | None:
        """Key of the zoo job whose weights it starts from."""
        return self.settings.get("expert_key") or self.settings.get("start_key")

    def __str__(self) -> str:
        lr = f"lr{self.settings['lr']:g}" if "lr" in self.settings else ""
        return "/".join(filter(None, (self.stage, self.expert, self.task, self.shots, lr)))


class Record(msgspec.Struct):
    """What the file of a finished (or failed) job says."""

    status: Literal["ok", "error"]
    error: str
    rows: list[dict[str, Any]]
    seconds: float
    finished: str
    machine: dict[str, str]
    job: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if "hardware" not in self.machine:
            raise ValueError("expected the hardware")


class Summary(msgspec.Struct):
    """Of a stage's committed table, in `provenance.json`."""

    jobs: int
    finished: str
    seconds: float
    machines: list[dict[str, str]]


NOTHING = {"finished": "", "seconds": 0, "machines": []}


class Store:
    """Job files and committed tables of one suite."""

    def __init__(self, suite: str):
        self.suite = suite
        self.folder = home() / "runs" / suite / "jobs"
        self.results = home() / "results" / suite

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
        for folder in (self.folder, self.results):
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
        """Whether the job has a file and it says so."""
        record = _record(self._path(job))
        return record is not None and record.status == "ok"

    def records(self, stage: str, status: str, known: Set[str] = frozenset()) -> dict[str, Record]:
        """Key -> record of every job file of the stage that has this status; a file that is not a
        complete record counts as absent. known: keys whose files need not be read.
        """
        paths = sorted((self.folder / stage).glob("*.json"))
        found = {path.stem: _record(path) for path in paths if path.stem not in known}
        return {key: record for key, record in found.items() if record and record.status == status}

    def record_data(self, tasks: Iterable[str]) -> None:
        """Put the data of tasks that the suite did not have before on its record."""
        if fingerprints.unrecorded(self.suite, tasks):
            self.check()
            with self.lock("tables", wait=True):
                new = fingerprints.unrecorded(self.suite, tasks)
                known = fingerprints.recorded(self.suite)
                put(fingerprints.record(self.suite), json.dumps(known | new, indent=1) + "\n")

    def _committed(self, stage: str) -> DataFrame:
        plain = self.results / f"{stage}.csv"
        packed = self.results / f"{stage}.csv.gz"
        path = packed if packed.is_file() else plain
        if not path.is_file():
            return DataFrame({"key": []})
        words = {"shots": str, "images_per_class": str}
        try:
            table = pd.read_csv(path, dtype=words, low_memory=False)
            table["key"]
        except (ValueError, OSError, EOFError, KeyError, zlib.error) as error:
            raise MzlibError(
                f"expected a table of results with the column 'key' in {path}, got "
                f"{one_line(error)}; restore or remove it"
            ) from None
        return table

    def table(self, stage: str) -> DataFrame:
        """All rows of the stage: the committed table, then job files that it does not hold."""
        committed = self._committed(stage)
        known = set(committed["key"])
        fresh = [
            {"key": key, **row, "hardware": record.machine["hardware"]}
            for key, record in self.records(stage, "ok", known).items()
            for row in record.rows
        ]
        if not fresh:
            return committed
        new = DataFrame(fresh)
        return pd.concat([committed, new], ignore_index=True) if len(committed) else new

    def done(self, stage: str) -> set[str]:
        """Keys of the finished jobs."""
        return set(self.table(stage)["key"])

    def errors(self, stage: str) -> dict[str, str]:
        """Key -> error of the failed jobs that the committed table does not have."""
        known = set(self._committed(stage)["key"])
        return {key: record.error for key, record in self.records(stage, "error", known).items()}

    def consolidate(self, jobs: dict[str, list[Job]]) -> None:
        """Write `results/<suite>/<stage>.csv` and `provenance.json`: the rows of these jobs, in
        their order, nothing else.

        Rows of jobs that the suite no longer contains are left out; job files stay where they are.
        Nothing is written where nothing is new: weights trained again change no table.
        """
        stale = {stage: wanted for stage, wanted in jobs.items() if self._is_stale(stage, wanted)}
        if not stale:
            return
        self.check()
        with self.lock("tables", wait=True):
            summaries = self.provenance()
            for stage, wanted in stale.items():
                before = summaries.get(stage, NOTHING)
                table = self.table(stage)
                order = {job.key: i for i, job in enumerate(wanted)}
                table = table[table["key"].isin(order)]
                table = table.iloc[table["key"].map(order).argsort(kind="stable")]
                jobs_here = table["key"].nunique()
                summaries[stage] = self._summary(stage, before, order.keys(), jobs_here)
                self._put_table(stage, table)
            put(self.results / "provenance.json", json.dumps(summaries, indent=1) + "\n")

    def _is_stale(self, stage: str, wanted: list[Job]) -> bool:
        committed = set(self._committed(stage)["key"])
        new = {job.key for job in wanted} & self.done(stage) - committed
        told = self.provenance().get(stage, {"jobs": 0})["jobs"]
        return bool(new) or len(committed) != told  # the latter: killed between the two files

    def _summary(self, stage: str, before: dict, keys: Set[str], jobs: int) -> dict:
        """Of all jobs by their files, if these are here; else of those before and what is new."""
        found = self.records(stage, "ok")
        if keys <= found.keys():
            before = NOTHING
        else:  # the rest was computed elsewhere
            keys = keys - set(self._committed(stage)["key"])
        records = [record for key, record in found.items() if key in keys]
        machines = before["machines"] + [record.machine for record in records]
        return {
            "jobs": jobs,
            "finished": max([before["finished"], *(record.finished for record in records)]),
            "seconds": round(before["seconds"] + sum(record.seconds for record in records), 1),
            "machines": [m for i, m in enumerate(machines) if m not in machines[:i]],
        }

    def _put_table(self, stage: str, table: DataFrame) -> None:
        plain = self.results / f"{stage}.csv"
        packed = self.results / f"{stage}.csv.gz"
        text = table.to_csv(index=False, float_format="%.6g").encode()
        if len(text) > LARGEST:
            put(packed, gzip.compress(text, mtime=0))
            plain.unlink(missing_ok=True)
        else:
            put(plain, text)
            packed.unlink(missing_ok=True)

    def provenance(self) -> dict[str, dict]:
        """Jobs, seconds and machines of each stage of the committed tables."""
        path = self.results / "provenance.json"
        if not path.is_file():
            return {}
        try:
            known = json.loads(path.read_text("utf-8"))
            msgspec.convert(known, dict[str, Summary])
        except (ValueError, RecursionError, msgspec.ValidationError):
            raise MzlibError(
                f"expected jobs, seconds and machines of each stage in {path}; restore or remove it"
            ) from None
        return known


def _record(path: Path) -> Record | None:
    """The job file there, None unless it is complete."""
    try:
        return msgspec.convert(json.loads(path.read_text("utf-8")), Record)
    except (FileNotFoundError, ValueError, RecursionError, msgspec.ValidationError):
        return None
