"""What can go wrong on the way, done to real processes: after each the tables are those of an undisturbed run, and what was
finished is not done again. The jobs are quick stand-ins, whose rows depend on their key only; `test_engines` trains."""

import fnmatch
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter, deque
from pathlib import Path

import pandas as pd
import pytest
import torch

from mzlib.benchmark import engines, load_suite, run, run_suite
from mzlib.benchmark.jobs import STAGES, Store
from mzlib.benchmark.stages import RUN, zoo_folder
from mzlib.errors import MzlibError, Unwritable
from mzlib.provenance import home, put
from mzlib.training import in_batches
from mzlib.zoo import save_expert

TINY = Path(__file__).parent / "data" / "tiny.toml"
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["mzlib.benchmark.run"])  # of which the local engine forks, too
NUMBERS = 64  # float32, in the weights of an expert


def disturb(fault: str, key: str) -> None:
    """The fault that the job has been told to have."""
    if fault == "raise":
        raise KeyError("on purpose")
    if fault == "memory":
        torch.empty(2**50, dtype=torch.uint8)
    if fault == "kill" or fault == "kill once" and not (home() / f"once-{key}").exists():
        (home() / f"once-{key}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "hang":
        time.sleep(100)
    if fault == "stuck":
        deque(itertools.repeat(0), maxlen=0)  # for ever, in C, with the interpreter's lock


def stand_in(suite, job, device, progress) -> list[dict]:
    write(f"start {job.key} {os.getpid()}")
    faults = json.loads((home() / "faults.json").read_text())
    for pattern, fault in faults.items():
        if fnmatch.fnmatchcase(str(job), pattern):
            disturb(fault, job.key)
    time.sleep(faults.get("seconds", 0))
    if job.stage == "zoo":
        save_expert(
            zoo_folder(suite.name), job.expert, {"w": torch.zeros(NUMBERS)}, {"job": job.key}
        )
    write(f"end {job.key} {os.getpid()}")
    return [
        {
            "suite": suite.name,
            "expert": job.expert,
            "task": job.task,
            "shots": job.shots,
            "value": int(job.key, 16) % 997,
        }
    ]


def write(line: str) -> None:
    with open(home() / "log", "a") as file:
        file.write(line + "\n")


def log(word: str) -> list[list[str]]:
    path = home() / "log"
    return (
        [line.split()[1:] for line in path.read_text().splitlines() if line.startswith(word)]
        if path.exists()
        else []
    )


original = run.run_job


def quick_job(*args, **options):
    """`run_job` with stand-ins for the work of the stages; found by name in the processes of the engines."""
    RUN.update(dict.fromkeys(STAGES, stand_in))
    return original(*args, **options)


def driver(folder: str, options: dict) -> None:
    """A driver of its own: exit code 0, or 130 when interrupted."""
    os.environ["MZLIB_HOME"], run.run_job = folder, quick_job
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run_suite("tiny", workers=2, progress=False, **options)
    except KeyboardInterrupt:
        os._exit(130)


def start_driver(**options):
    process = FORK.Process(target=driver, args=(str(home()), options))
    process.start()
    return process


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    for stage, function in RUN.items():
        monkeypatch.setitem(RUN, stage, function)  # restored after the test
    monkeypatch.setattr(run, "run_job", quick_job)


def new_home(folder: Path, monkeypatch, **faults) -> Path:
    (folder / "suites").mkdir()
    shutil.copy(TINY, folder / "suites")
    monkeypatch.setenv("MZLIB_HOME", str(folder))
    set_faults(**faults)
    return folder


def set_faults(**faults) -> None:
    (home() / "faults.json").write_text(json.dumps(faults))


@pytest.fixture
def place(tmp_path, monkeypatch):
    return new_home(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        new_home(tmp_path_factory.mktemp("undisturbed"), patch)
        patch.setattr(run, "run_job", quick_job)
        for stage, function in RUN.items():
            patch.setitem(RUN, stage, function)
        assert run_suite("tiny", engine="serial", progress=False) == 0
        return tables()


def tables() -> dict[str, pd.DataFrame]:
    return {
        stage: pd.read_csv(home() / "results" / "tiny" / f"{stage}.csv", dtype=str)
        for stage in STAGES
    }


def number_of_jobs(pattern: str = "*") -> int:
    jobs = (str(job) for stage in STAGES for job in load_suite("tiny").jobs(stage))
    return len(fnmatch.filter(jobs, pattern))


def same(a, b) -> bool:
    return all(a[stage].equals(b[stage]) for stage in STAGES)


def finished() -> dict[Path, int]:
    """Files of finished jobs; one that is written again has another number."""
    store = Store("tiny")
    return {
        store.folder / stage / f"{key}.json": (store.folder / stage / f"{key}.json").stat().st_ino
        for stage in STAGES
        for key in store.records(stage, "ok")
    }


def wait_for(condition, seconds=60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def quick_run(**options) -> int:
    return run_suite("tiny", **{"workers": 2, "progress": False} | options)


def test_no_fault_and_the_jobs_of_a_task_stay_together(place, undisturbed):
    assert quick_run() == 0 and same(tables(), undisturbed)
    task = {job.key: job.task for stage in STAGES for job in load_suite("tiny").jobs(stage)}
    seen = {}
    for key, pid in log("end"):
        seen.setdefault(pid, []).append(task[key])
    turns = sum(a != b for tasks in seen.values() for a, b in zip(tasks, tasks[1:]))
    assert len(log("end")) == number_of_jobs() and turns <= 6


def test_a_killed_worker_is_replaced_and_its_job_repeated(place, undisturbed):
    set_faults(**{"finetune/resnet-mixture/*": "kill once", "zoo/resnet-mixture": "kill once"})
    assert quick_run() == 0 and same(tables(), undisturbed)
    assert max(Counter(key for key, _ in log("end")).values()) == 1


@pytest.mark.parametrize(
    ("fault", "message", "options"),
    [
        ("raise", "KeyError: 'on purpose'", {}),
        ("memory", "RuntimeError: .*memory", {}),
        ("kill", "its process died 2 times", {}),
        ("hang", "TimeLimit: stopped after 1 s", {"time_limit": 1}),
        ("stuck", "its process died 2 times", {"time_limit": 1}),
    ],
)
def test_a_job_that_fails_fails_alone_is_listed_and_retried(
    place, undisturbed, fault, message, options
):
    name = "finetune/resnet-mixture/digits/5/lr0.05"
    set_faults(**{name: fault})
    assert quick_run(**options) == 1
    ((job, error),) = run.failures("tiny")
    assert job == name and re.match(message, error)
    kept = finished()
    assert len(kept) == number_of_jobs() - 1
    set_faults()
    assert quick_run() == 1, "not again unless asked"
    assert quick_run(retry_failed=True) == 0 and not run.failures("tiny")
    assert same(tables(), undisturbed) and kept.items() <= finished().items()


def test_what_starts_from_a_failed_expert_waits_for_it(place, undisturbed):
    set_faults(**{"zoo/resnet-mixture": "raise"})
    assert quick_run(engine="serial") == 1 and [job for job, _ in run.failures("tiny")] == [
        "zoo/resnet-mixture"
    ]
    assert not {
        job.key
        for stage in STAGES
        for job in load_suite("tiny").jobs(stage)
        if "mixture" in job.expert and ":" not in job.expert
    } & {key for key, _ in log("end")}
    set_faults()
    assert quick_run(engine="serial", retry_failed=True) == 0 and same(tables(), undisturbed)


def test_a_killed_driver_takes_its_workers_along(place, undisturbed):
    set_faults(seconds=0.05)
    process = start_driver()
    wait_for(lambda: len(finished()) > 9)
    process.kill()
    process.join()
    wait_for(lambda: all(gone(int(pid)) for _, pid in log("start")), 20)
    kept = finished()
    assert 9 < len(kept) < number_of_jobs()
    assert quick_run() == 0 and same(tables(), undisturbed) and kept.items() <= finished().items()


def test_killed_before_the_tables_were_written(place, undisturbed):
    assert quick_run(engine="serial") == 0
    (place / "results" / "tiny" / "score.csv").unlink()
    kept = finished()
    assert quick_run() == 0 and same(tables(), undisturbed) and kept == finished()


def test_two_drivers_share_the_work(place, undisturbed):
    set_faults(seconds=0.05)
    drivers = [start_driver(), start_driver()]
    for process in drivers:
        process.join(100)
        assert process.exitcode == 0
    assert max(Counter(key for key, _ in log("start")).values()) == 1
    assert same(tables(), undisturbed)


def test_interrupted_once_finishes_what_is_in_flight(place, undisturbed):
    set_faults(seconds=0.3)
    process = start_driver()
    wait_for(lambda: len(log("end")) > 4)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    assert {key for key, _ in log("start")} == {key for key, _ in log("end")}
    kept = finished()
    assert (
        len(kept)
        == len(log("end"))
        == sum(table["key"].nunique() for table in tables_so_far())
        < number_of_jobs()
    )
    set_faults()
    assert quick_run() == 0 and same(tables(), undisturbed) and kept.items() <= finished().items()


def tables_so_far():
    return [pd.read_csv(path, dtype=str) for path in (home() / "results" / "tiny").glob("*.csv")]


def test_interrupted_twice_stops_now(place, undisturbed):
    set_faults(**{"finetune/*": "hang"})
    process = start_driver()
    hanging = {job.key for job in load_suite("tiny").finetune_jobs()}
    wait_for(lambda: len(hanging & {key for key, _ in log("start")}) == 2)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.2)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGINT)
    process.join(60)  # the jobs would take longer
    assert process.exitcode == 130
    kept = finished()
    set_faults()
    assert quick_run() == 0 and same(tables(), undisturbed) and kept.items() <= finished().items()


def test_neither_clocks_nor_the_age_of_files_matter(place, undisturbed, monkeypatch):
    assert quick_run(engine="serial", only="digits") == 0
    for i, path in enumerate((place / "runs").rglob("*.json")):
        os.utime(path, (0, 0) if i % 2 else (2**32, 2**32))
    kept, clock = finished(), iter(range(10**9, 0, -(10**6)))
    monkeypatch.setattr(time, "time", lambda: next(clock))  # runs backwards
    monkeypatch.setattr(time, "gmtime", lambda *_: time.struct_time((1970, 1, 1, 0, 0, 0, 3, 1, 0)))
    assert (
        quick_run(engine="serial") == 0
        and same(tables(), undisturbed)
        and kept.items() <= finished().items()
    )


def test_a_truncated_file_of_a_job_is_written_again(place, undisturbed):
    set_faults(**{"score/*/fabrics/*": "raise"})
    assert quick_run(engine="serial") == number_of_jobs("score/*/fabrics/*")
    kept = finished()
    torn = next(path for path in kept if path.parent.name == "finetune")
    torn.write_text(torn.read_text()[:100])
    (place / "results" / "tiny" / "finetune.csv").unlink()
    set_faults()
    assert quick_run(engine="serial", retry_failed=True) == 0 and same(tables(), undisturbed)
    assert {path for path in kept if finished()[path] != kept[path]} == {torn}


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A home on a disk of its own, which `disk("size=1m")` or `disk("ro")` mounts anew."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"needs the right to mount a file system: {done.stderr.strip()}")
    try:
        new_home(folder, monkeypatch)
        yield lambda how: subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("stage", ["zoo", "finetune"])
def test_a_full_disk_ends_the_run_and_blames_no_job(disk, undisturbed, stage):
    if stage == "finetune":
        assert quick_run(stages=["zoo"]) == 0
    kept = finished()
    with open(home() / "ballast", "wb", buffering=0) as file:
        try:
            while file.write(b"0" * 4096):
                pass
        except OSError:
            pass
    with pytest.raises(Unwritable, match="No space left on device"):
        quick_run()
    assert not run.failures("tiny") and kept == finished()
    (home() / "ballast").unlink()
    assert quick_run() == 0 and same(tables(), undisturbed) and kept.items() <= finished().items()


def test_a_read_only_folder_is_told_before_any_work(disk, undisturbed):
    assert quick_run(only="digits") == 0
    kept, before = finished(), len(log("start"))
    disk("ro")
    with pytest.raises(Unwritable, match="expected to write in .*Read-only file system"):
        quick_run()
    assert quick_run(only="digits") == 0, "nothing to do is no error"
    disk("rw")
    assert len(log("start")) == before
    assert quick_run() == 0 and same(tables(), undisturbed) and kept.items() <= finished().items()


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    put(tmp_path / "a" / "b.txt", "old")
    (tmp_path / "a" / ".b.txt.tmp").mkdir()
    with pytest.raises(Unwritable, match="Is a directory"):
        put(tmp_path / "a" / "b.txt", "new")
    assert (tmp_path / "a" / "b.txt").read_text() == "old"


def broken_start(*_):
    raise ImportError("on purpose")


def test_processes_that_do_not_start_are_no_fault_of_the_jobs(place, monkeypatch):
    monkeypatch.setattr(engines, "_start", broken_start)
    with pytest.raises(
        MzlibError, match="expected processes that start, 6 ended before their first job"
    ):
        quick_run(only="resnet-mixture")
    assert not run.failures("tiny")


def test_batches_are_halved_where_memory_ends():
    sizes = []

    def function(batch):
        sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("on purpose")
        return [2 * x for x in batch]

    assert sum(in_batches(function, list(range(10)), 8), []) == [2 * x for x in range(10)]
    assert sizes == [8, 4, 2, 2, 2, 2, 2]

    def never(batch):
        raise torch.OutOfMemoryError("on purpose")

    with pytest.raises(torch.OutOfMemoryError):
        list(in_batches(never, [1, 2], 2))
