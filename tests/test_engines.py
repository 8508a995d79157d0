"""Serial, local and Ray: the same tables from real training, a Ray cluster that loses a node, processes and time, addresses
without one; what slots share of a machine; batches that do not fit."""

import importlib
import os
import shutil
import socket
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import miniature
import numpy as np
import pandas as pd
import pytest
import test_faults
import torch

from mzlib import streaming
from mzlib.benchmark import load_suite, run, run_suite
from mzlib.benchmark.data import paper
from mzlib.benchmark.engines import open_engine
from mzlib.benchmark.jobs import STAGES, Job, Store
from mzlib.benchmark.stages import RUN
from mzlib.errors import MzlibError
from mzlib.evidence import Evidence
from mzlib.training import predict
from mzlib.zoo import Expert
from mzlib.zoo.architectures import create


@pytest.fixture
def on_path(monkeypatch):
    """Ray's processes find this package and the modules of the tests."""
    folders = [
        str(Path(__file__).parent),
        str(Path(__file__).parents[1]),
        os.environ.get("PYTHONPATH", ""),
    ]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(folders))
    for name, value in {
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }.items():
        monkeypatch.setenv(name, value)


def small_tables(folder: Path, engine: str) -> list[pd.DataFrame]:
    (folder / "suites").mkdir()
    shutil.copy(Path(__file__).parent / "data" / "small.toml", folder / "suites")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MZLIB_HOME", str(folder))
        assert run_suite("small", engine=engine, workers=2, progress=False) == 0
        suite = load_suite("small")
    tables = [
        pd.read_csv(folder / "results" / "small" / f"{stage}.csv", dtype=str) for stage in STAGES
    ]
    assert [table["key"].nunique() for table in tables] == [
        len(suite.jobs(stage)) for stage in STAGES
    ]
    return [table.drop(columns=["seconds", "hardware"]) for table in tables]


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    return small_tables(tmp_path_factory.mktemp("serial"), "serial")


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_every_engine_gives_the_tables_of_the_serial_one(serial, tmp_path, on_path, engine):
    """With real training, fine-tuning and scoring."""
    if engine == "ray":
        pytest.importorskip("ray", reason="Ray is not installed: pip install 'mzlib[ray]'")
    assert all(ours.equals(theirs) for ours, theirs in zip(small_tables(tmp_path, engine), serial))


@pytest.fixture
def quick(monkeypatch):
    for stage, function in RUN.items():
        monkeypatch.setitem(RUN, stage, function)
    monkeypatch.setattr(run, "run_job", test_faults.quick_job)


def test_a_ray_cluster_of_two_nodes_survives_the_loss_of_one(
    tmp_path, tmp_path_factory, monkeypatch, on_path, quick
):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'mzlib[ray]'")
    from ray.cluster_utils import Cluster

    test_faults.new_home(tmp_path_factory.mktemp("serial"), monkeypatch)
    assert run_suite("tiny", engine="serial", progress=False) == 0
    expected = test_faults.tables()
    test_faults.new_home(tmp_path, monkeypatch, seconds=0.1)
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        second = cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        killed = []

        def kill(bar, *_):
            if (
                not killed
                and len({pid for _, pid in test_faults.log("end")}) == 2
                and len(test_faults.finished()) > 20
            ):
                killed.append(test_faults.finished())
                cluster.remove_node(second, allow_graceful=False)

        monkeypatch.setattr(run.tqdm, "update", kill)
        assert run_suite("tiny", engine="ray", progress=False) == 0
        assert killed and killed[0].items() <= test_faults.finished().items()
        assert test_faults.same(test_faults.tables(), expected) and not run.failures("tiny")
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_ray_by_its_address_survives_a_killed_worker_and_ends_a_job_that_hangs(
    tmp_path, tmp_path_factory, monkeypatch, on_path, quick
):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'mzlib[ray]'")
    from ray.cluster_utils import Cluster

    test_faults.new_home(tmp_path_factory.mktemp("serial"), monkeypatch)
    assert run_suite("tiny", engine="serial", progress=False) == 0
    expected, hangs = test_faults.tables(), "finetune/resnet-mixture/digits/5/lr0.05"
    test_faults.new_home(
        tmp_path,
        monkeypatch,
        **{"finetune/resnet-glyphs-scratch/digits/full/*": "kill once", hangs: "hang"},
    )
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
    )
    options = {"engine": "ray", "address": cluster.address, "time_limit": 1, "progress": False}
    try:
        assert run_suite("tiny", **options) == 1 and run.failures("tiny") == [
            (hangs, "TimeLimit: stopped after 1 s")
        ]
        kept = test_faults.finished()
        assert (
            len(kept) == test_faults.number_of_jobs() - 1
            and len(list(tmp_path.glob("once-*"))) == 1
        )
        test_faults.set_faults()
        assert (
            run_suite("tiny", retry_failed=True, **options) == 0
            and kept.items() <= test_faults.finished().items()
        )
        assert test_faults.same(test_faults.tables(), expected)
        with open_engine("ray", 4, 1, cluster.address) as engine:
            assert engine.submit(os.getenv, "MZLIB_SLOTS").result() == "2", (
                "of four at most two fit on this node"
            )
    finally:
        cluster.shutdown()


def test_an_address_without_a_cluster_is_told_at_once(on_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'mzlib[ray]'")
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    for address, why in (
        ("not an address", "Invalid address format"),
        (f"127.0.0.1:{free}", "Connection refused"),
        ("no.such.host.invalid:6379", ""),
    ):
        with pytest.raises(
            MzlibError,
            match=f"expected a Ray cluster at {address}, got .*{why}.*: do `ray start --head`",
        ):
            with open_engine("ray", None, 1, address):
                pass


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        MzlibError, match=r"expected Ray for this engine, got none: do pip install 'mzlib\[ray\]'"
    ):
        with open_engine("ray", None, 1, None):
            pass


@pytest.mark.parametrize(
    ("gpus", "per_gpu", "workers", "slots"),
    [(0, 2, None, os.cpu_count()), (4, 1, None, 4), (4, 3, None, 12), (4, 3, 5, 5)],
)
def test_slots_of_a_machine(monkeypatch, gpus, per_gpu, workers, slots):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    with open_engine("local", workers, per_gpu, None) as engine:
        assert engine.slots == slots


def test_slots_share_the_cores_among_their_loaders(monkeypatch):
    monkeypatch.delenv("MZLIB_LOADERS", raising=False)
    with open_engine("local", 2, 1, None) as engine:
        future = engine.submit(streaming.workers, 1000)
        assert future.result() == max(1, min(8, os.cpu_count() // 2))
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert [
        monkeypatch.setenv("MZLIB_SLOTS", n) or streaming.workers(1000) for n in ("1", "16", "100")
    ] == [8, 4, 1]
    monkeypatch.setenv("MZLIB_LOADERS", "3")
    assert streaming.workers(1000) == 3 and streaming.workers(10) == 0
    monkeypatch.setenv("MZLIB_LOADERS", "many")
    with pytest.raises(
        MzlibError, match="expected MZLIB_LOADERS to be a number of processes, got 'many'"
    ):
        streaming.workers(1000)


def test_batches_of_files_and_of_the_reference_net_are_halved_where_memory_ends(tmp_path):
    miniature.write("dtd", tmp_path / "dtd")
    files, sizes = paper.load("dtd", 32, tmp_path).train.images, []

    def function(x):
        sizes.append(len(x))
        if len(x) > 8:
            raise torch.OutOfMemoryError("on purpose")
        return x.mean((2, 3))

    results = [
        predict(function, images, torch.device("cpu"), 16) for images in (np.asarray(files), files)
    ]
    assert torch.equal(*results) and sizes == 2 * [16, 8, 8, 2]
    net = create("mzlib_resnet", 3, 32).eval()
    net.forward_features = lambda x, whole=net.forward_features: (
        function(x) is not None and whole(x)
    )
    expert = Expert("", create("mzlib_resnet", 3, 32).eval(), {"image_size": 32})
    evidence = Evidence(expert, np.asarray(files), [0] * len(files), reference=lambda: net)
    assert len(evidence.reference_features) == 18 and sizes[8:] == [18, 18, 18, 18, 16, 8, 8, 2]


def job(task, expert, stage="finetune", **settings):
    return Job.of(stage, "s", expert, task=task, **settings)


def test_waves_start_from_earlier_ones_and_the_jobs_of_a_task_are_together(empty_home):
    suite, store = load_suite("tiny"), Store("tiny")
    everything = [job for stage in STAGES for job in suite.jobs(stage)]
    first, then, rest = run.to_do(suite, store, everything, False, set())
    assert {*first, *then, *rest} == {*everything} and len(first + then + rest) == len(everything)
    assert all(job.after is None for job in first)
    assert {job.after for job in then} <= {job.key for job in first}
    assert {job.after for job in rest} <= {job.key for job in first + then}
    tasks = [job.task for job in rest]
    assert sum(a != b for a, b in zip(tasks, tasks[1:])) == len({*tasks}) - 1


def test_only_the_experts_that_are_needed_and_not_here_are_trained(tiny):
    suite, store = load_suite("tiny"), Store("tiny")
    chosen = [job for job in suite.finetune_jobs() if job.expert == "resnet-glyphs-generic"][:1]
    assert run.to_do(suite, store, chosen, False, set()) == [[], [], []]  # done
    store.done = lambda stage: set()
    assert run.to_do(suite, store, chosen, False, set()) == [[], [], chosen]  # weights are here
    (tiny / "zoo" / "tiny").rename(tiny / "zoo" / "away")
    try:
        first, then, rest = run.to_do(suite, store, chosen, False, set())
    finally:
        (tiny / "zoo" / "away").rename(tiny / "zoo" / "tiny")
    assert [job.expert for job in first] == ["resnet-mixture"]
    assert [job.expert for job in then] == ["resnet-glyphs-generic"] and rest == chosen


def is_free(home: str, job: Job) -> bool:
    os.environ["MZLIB_HOME"] = home
    return Store("s").is_free(job)


def test_a_job_has_one_owner_among_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("MZLIB_HOME", str(tmp_path))
    store, one, other = Store("s"), job("t", "a"), job("t", "b")
    store.check()
    with ProcessPoolExecutor(1, test_faults.FORK) as elsewhere:

        def free(job):
            return elsewhere.submit(is_free, str(tmp_path), job).result()

        with store.lock(one.key) as ours:
            assert ours and not free(one) and free(other)
        assert free(one)


def test_a_short_soak(monkeypatch, tmp_path):
    """Three kills of `benchmarks/soak.py`, which the book's figures have fifty of."""
    monkeypatch.setenv("MZLIB_HOME", str(tmp_path))  # restored after the test
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    table = importlib.import_module("soak").soak(3)
    assert (
        table["hit"].tolist() == ["driver", "job", "interrupt"]
        and table["same"].all()
        and not table["again"].any()
    )
