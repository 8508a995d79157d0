"""Results are of the data they were computed from: other data or another flip, another key; and a suite on another's experts."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from mzlib.benchmark import load_results, load_suite, run_suite
from mzlib.benchmark.data import CARDS, fingerprints, load_task, store
from mzlib.benchmark.data.download import _encode, _write
from mzlib.benchmark.jobs import STAGES, Store
from mzlib.benchmark.run import status
from mzlib.benchmark.stages import RUN
from mzlib.errors import MzlibError

TINY = Path(__file__).parent / "data" / "tiny.toml"


def write_task(folder: Path, grey: int) -> None:
    """The task in that folder: two classes of 30 training and 6 test images, 32 pixels a side."""
    from PIL import Image

    shutil.rmtree(folder, ignore_errors=True)

    def rows(n):
        for i in range(n):
            pixels = np.full((32, 32, 3), grey + 50 * (i % 2) + i, np.uint8)
            yield _encode(Image.fromarray(pixels), 32), f"{i}.png", i % 2

    parts = {split: (n, rows(n)) for split, n in (("train", 60), ("test", 12))}
    _write(folder, ["dark", "light"], {"size": 32}, parts)
    meta = json.loads((folder / "meta.json").read_text())
    meta.pop("sha256")  # not by `mzlib data get`
    (folder / "meta.json").write_text(json.dumps(meta))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A home whose suite has the target `wbc`, which is made here; jobs are quick stand-ins."""
    home = tmp_path / "home"
    (home / "suites").mkdir(parents=True)
    text = TINY.read_text().replace('["digits", "fabrics"]', '["digits", "wbc"]')
    (home / "suites" / "tiny.toml").write_text(text.replace('"fabrics"', '"wbc"'))
    monkeypatch.setenv("MZLIB_HOME", str(home))
    monkeypatch.setenv("MZLIB_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    write_task(tmp_path / "data" / "wbc", 0)

    def stand_in(suite, job, device, progress):
        from test_faults import save_expert, torch, zoo_folder

        if job.stage == "zoo":
            save_expert(zoo_folder(job.suite), job.expert, {"w": torch.zeros(1)}, {"job": job.key})
        return [{"expert": job.expert, "task": job.task, "selector": "lfc", "score": 0.5}]

    for stage in STAGES:
        monkeypatch.setitem(RUN, stage, stand_in)
    return tmp_path


def done(name: str = "tiny") -> dict[str, int]:
    return status(name).set_index("stage")["done"].to_dict()


def number(stage: str, task: str) -> int:
    return sum(job.task == task for job in load_suite("tiny").jobs(stage))


def test_other_data_leave_no_old_result_done(place):
    assert run_suite("tiny", engine="serial", progress=False) == 0
    before = done()
    keys = {job.key for stage in STAGES for job in load_suite("tiny").jobs(stage)}
    assert before == {stage: len(load_suite("tiny").jobs(stage)) for stage in STAGES}
    first = load_task("wbc").train.images
    write_task(place / "data" / "wbc", 100)
    assert not np.array_equal(load_task("wbc").train.images, first)
    after = done()
    for stage in ("finetune", "score"):
        assert before[stage] - after[stage] == number(stage, "wbc") > 0
    assert after["zoo"] == before["zoo"], "no expert has seen it"
    assert run_suite("tiny", engine="serial", progress=False) == 0 and done() == before
    write_task(place / "data" / "wbc", 0)  # the old data, the old keys
    assert keys == {job.key for stage in STAGES for job in load_suite("tiny").jobs(stage)}
    shutil.rmtree(place / "data")  # nothing to compare with
    assert keys == {job.key for stage in STAGES for job in load_suite("tiny").jobs(stage)}


def test_scores_do_not_depend_on_the_test_split(place):
    run_suite("tiny", engine="serial", progress=False)
    before = done()
    shutil.copy(place / "data/wbc/train.parquet", place / "data/wbc/test.parquet")
    after = done()
    assert after["score"] == before["score"]
    assert before["finetune"] - after["finetune"] == number("finetune", "wbc")


def test_another_flip_in_the_card_leaves_no_old_result_done(place, monkeypatch):
    run_suite("tiny", engine="serial", progress=False)
    before = done()
    monkeypatch.setitem(CARDS, "wbc", CARDS["wbc"] | {"flip": not CARDS["wbc"].get("flip", False)})
    for stage in ("finetune", "score"):
        assert before[stage] - done()[stage] == number(stage, "wbc")
    monkeypatch.undo()


def test_an_expert_of_other_data_and_all_that_starts_from_it_are_to_be_done(place, monkeypatch):
    run_suite("tiny", engine="serial", progress=False)
    monkeypatch.setitem(CARDS, "glyphs", CARDS["glyphs"] | {"flip": not CARDS["glyphs"]["flip"]})
    suite = load_suite("tiny")
    finished = Store("tiny").done("zoo") | Store("tiny").done("finetune")
    for job in (*suite.zoo_jobs(), *suite.finetune_jobs()):
        saw_it = "glyphs" in job.expert or "multi_bn" in job.expert or "shared" in job.expert
        assert (job.key in finished) != saw_it, job


def test_what_data_get_made_counts_as_the_recorded_images(place):
    run_suite("tiny", engine="serial", progress=False)
    before = done()
    write_task(place / "data" / "wbc", 100)
    meta = store.meta(place / "data" / "wbc")
    meta["sha256"] = fingerprints.file_digests(place / "data" / "wbc")
    (place / "data" / "wbc" / "meta.json").write_text(json.dumps(meta))
    assert done() == before
    shutil.copy(place / "data/wbc/train.parquet", place / "data/wbc/test.parquet")
    assert done() != before, "until a file is replaced"


def test_a_damaged_record_is_told(place):
    path = place / "home" / "results" / "tiny" / "fingerprints.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(MzlibError, match="expected fingerprints of tasks in .*restore or remove"):
        load_suite("tiny")


MORE = """
title = "Other targets"
zoo = "tiny"
targets = ["symbols"]
recipes.finetune = {lr = 0.01, epochs = 1, batch_size = 8}
finetune = [{shots = [5], learning_rates = [0.01]}]
score = [{shots = [5], selectors = ["lfc"]}]
"""


def test_a_suite_on_the_experts_of_another_trains_nothing(place):
    run_suite("tiny", stages=["zoo"], engine="serial", progress=False)
    kept = {p: p.stat().st_mtime_ns for p in (place / "home" / "zoo").rglob("*")}
    (place / "home" / "suites" / "more.toml").write_text(MORE)
    suite, tiny = load_suite("more"), load_suite("tiny")
    assert [job.key for job in suite.zoo_jobs()] == [job.key for job in tiny.zoo_jobs()]
    assert suite.recipe("finetune").lr == 0.01 and suite.recipe("expert") == tiny.recipe("expert")
    assert run_suite("more", engine="serial", progress=False) == 0
    experts = len(suite.starting_points())
    assert done("more") == {"zoo": 0, "finetune": experts, "score": experts}
    assert kept == {p: p.stat().st_mtime_ns for p in (place / "home" / "zoo").rglob("*")}
    assert len(load_results("more").zoo) > 0


def test_experts_of_another_suite_that_are_not_here_are_trained_as_its_own(place):
    (place / "home" / "suites" / "more.toml").write_text(MORE)
    assert run_suite("more", only="resnet-glyphs-scratch", engine="serial", progress=False) == 0
    assert [p.stem for p in (place / "home/zoo/tiny").glob("*.json")] == ["resnet-glyphs-scratch"]
    assert done("tiny")["zoo"] == 1 and done("more") == {"zoo": 0, "finetune": 1, "score": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('zoo = "tinny"', "zoo: expected a suite of .*tiny.*got 'tinny'"),
        ('zoo = "tiny"\nsources = ["digits"]', "expected the zoo of tiny as it is there.*sources"),
        ('zoo = "wrong"', "take a suite with its own zoo"),
    ],
)
def test_a_zoo_that_cannot_be_another_suites_is_told(place, line, message):
    path = place / "home" / "suites" / "wrong.toml"
    path.write_text(f'title = ""\n{line}\ntargets = ["digits"]')
    with pytest.raises(MzlibError, match=message):
        load_suite("wrong")


def test_suites_of_two_homes_and_changed_files_are_read_anew(place, monkeypatch):
    first = load_suite("tiny")
    path = place / "home" / "suites" / "tiny.toml"
    path.write_text(path.read_text().replace("lr = 0.05", "lr = 0.07"))
    assert load_suite("tiny").recipe("finetune").lr == 0.07 != first.recipe("finetune").lr
    other = place / "other" / "suites"
    other.mkdir(parents=True)
    shutil.copy(TINY, other)
    monkeypatch.setenv("MZLIB_HOME", str(place / "other"))
    assert load_suite("tiny").targets == ("digits", "fabrics") != first.targets


@pytest.mark.parametrize("name", ["mini", "thumb64"])
def test_the_committed_results_have_a_record_of_their_data(name):
    suite = load_suite(name)
    record = fingerprints.recorded(name)
    assert record.keys() == {*suite.sources, *suite.targets}
    for task, then in record.items():
        assert then["flip"] == CARDS[task].get("flip", False)
        if os.environ.get("MZLIB_DATA") == "/work/shared/data" or name == "mini":
            now = fingerprints.fingerprint(task)
            assert now == {part: then[part] for part in now}
