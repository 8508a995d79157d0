import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from mzlib.benchmark import jobs, load_results, load_suite, run_suite, stages
from mzlib.benchmark.data import load_task
from mzlib.benchmark.jobs import STAGES, Job, Store
from mzlib.benchmark.run import failures, status
from mzlib.benchmark.stages import curve, new_network
from mzlib.cli import main
from mzlib.errors import MzlibError
from mzlib.evidence import subset

VOLATILE = ["seconds", "hardware"]


def tables(suite="tiny"):
    results = load_results(suite)
    return {
        s: t.drop(columns=VOLATILE)
        for s, t in (
            ("zoo", results.zoo),
            ("finetune", results.finetune),
            ("score", results.scores),
            ("beside", results.beside),
        )
    }


def test_the_tiny_suite_has_every_row(tiny):
    suite, results = load_suite("tiny"), load_results("tiny")
    # 1 generic + 2 sources x (scratch, generic) + 2 multi-domain variants x 3 domains
    assert len(results.zoo) == 5 + 6 and results.zoo["expert"].is_unique
    # (3 + 3 domains) x 2 tasks x 2 regimes at one rate, 8 starting points at a second rate on one task
    assert len(results.finetune) == 6 * 2 * 2 + 8
    assert (
        set(results.beside["expert"]) == {"resnet-random", "resnet-mixture"}
        and len(results.beside) == 2
    )
    assert len(results.scores) == 8 * 2 * 2 * len(suite.score[0].selectors)
    assert (
        results.zoo["accuracy"].between(0, 1).all()
        and results.finetune["val_accuracy"].between(0, 1).all()
    )
    assert results.scores["score"].notna().all()
    curves = (
        results.finetune["loss_curve"].astype(str).str.split().map(lambda c: [float(x) for x in c])
    )
    assert (curves.map(len) == results.finetune["epochs"].clip(upper=10)).all()
    by_class = (
        results.finetune.loc[results.finetune["task"] == "digits", "class_accuracy"]
        .str.split()
        .map(len)
    )
    assert (by_class == 10).all()
    assert results.provenance["finetune"]["jobs"] == 34 and results.provenance["zoo"]["machines"]


def test_few_shot_runs_use_the_stated_number_of_images(tiny):
    runs = (
        load_results("tiny")
        .finetune.query("task == 'digits'")
        .drop_duplicates("shots")
        .set_index("shots")
    )
    assert runs.loc["5", "train_images"] == 50
    assert runs.loc["full", "train_images"] == 600 - 100  # 10 of each class are validation images


def test_nothing_is_done_twice(tiny, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in (tiny / "runs").rglob("*.json")}
    assert run_suite("tiny", progress=False) == 0
    assert before == {p: p.stat().st_mtime_ns for p in (tiny / "runs").rglob("*.json")}


def test_committed_tables_count_as_done(tiny, tmp_path, monkeypatch):
    """A fresh clone: the tables are there, job files and weights are not."""
    expected = tables()
    for folder in ("suites", "results"):
        (tmp_path / folder).symlink_to(tiny / folder)
    monkeypatch.setenv("MZLIB_HOME", str(tmp_path))
    assert run_suite("tiny", progress=False) == 0
    assert not (tmp_path / "runs").exists() and not (tmp_path / "zoo").exists()
    for stage, table in tables().items():
        pd.testing.assert_frame_equal(table, expected[stage])


def test_training_weights_again_changes_no_table_and_no_provenance(tiny, tmp_path, monkeypatch):
    """What a notebook does on a fresh clone that has tables and no weights."""
    for folder in ("suites", "results"):
        shutil.copytree(tiny / folder, tmp_path / folder)
    before = {p: p.read_text() for p in (tmp_path / "results").rglob("*.*")}
    monkeypatch.setenv("MZLIB_HOME", str(tmp_path))
    assert (
        run_suite(
            "tiny", stages=["zoo"], only="zoo/resnet-glyphs-scratch", weights=True, progress=False
        )
        == 0
    )
    assert [p.stem for p in (tmp_path / "zoo" / "tiny").glob("*.json")] == ["resnet-glyphs-scratch"]
    assert before == {p: p.read_text() for p in (tmp_path / "results").rglob("*.*")}


def test_deleted_rows_are_computed_again_to_the_same_numbers(tiny, tmp_path, monkeypatch):
    expected = tables()
    for folder in ("suites", "zoo"):
        (tmp_path / folder).symlink_to(tiny / folder)
    (tmp_path / "results" / "tiny").mkdir(parents=True)
    for stage in STAGES:
        table = pd.read_csv(
            tiny / "results" / "tiny" / f"{stage}.csv", dtype=str, keep_default_na=False
        )
        if stage == "finetune":
            table = table.iloc[2:]
        if stage == "score":
            table = table[table["key"] != table["key"].iloc[0]]
        table.to_csv(tmp_path / "results" / "tiny" / f"{stage}.csv", index=False)
    monkeypatch.setenv("MZLIB_HOME", str(tmp_path))
    assert status("tiny").set_index("stage")["missing"].to_dict() == {
        "zoo": 0,
        "finetune": 2,
        "score": 1,
    }
    assert run_suite("tiny", engine="serial", progress=False) == 0
    for stage, table in tables().items():
        pd.testing.assert_frame_equal(table, expected[stage], check_exact=False, rtol=1e-5)


def test_killed_and_started_again_gives_the_same_tables(tiny, empty_home, monkeypatch):
    """SIGKILL of the driver while two workers run: no worker survives, finished jobs are kept, the tables are the same."""
    monkeypatch.setenv("MZLIB_HOME", str(tiny))
    expected = tables()
    monkeypatch.setenv("MZLIB_HOME", str(empty_home))
    driver = subprocess.Popen(
        [sys.executable, "-m", "mzlib.cli", "run", "tiny", "--workers", "2"],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    jobs = empty_home / "runs" / "tiny" / "jobs"
    deadline = time.time() + 400
    while len(list(jobs.rglob("*.json"))) < 9 and driver.poll() is None and time.time() < deadline:
        time.sleep(0.05)
    assert driver.poll() is None, "the run ended before it could be killed"
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    kept = {p: p.stat().st_mtime_ns for p in jobs.rglob("*.json")}
    assert len(kept) >= 9
    while (
        subprocess.run(["pgrep", "-s", str(driver.pid)], capture_output=True).stdout
        and time.time() < deadline
    ):
        time.sleep(0.1)
    assert not subprocess.run(["pgrep", "-s", str(driver.pid)], capture_output=True).stdout, (
        "workers outlived the driver"
    )
    (jobs / "finetune").mkdir(exist_ok=True)
    torn = jobs / "finetune" / f"{load_suite('tiny').finetune_jobs()[-1].key}.json"
    if not torn.exists():
        torn.write_text('{"job": {"stage"')  # a truncated file counts as absent
    assert run_suite("tiny", workers=2, progress=False) == 0
    assert all(p.stat().st_mtime_ns == t for p, t in kept.items())
    for stage, table in tables().items():
        pd.testing.assert_frame_equal(table, expected[stage], check_exact=False, rtol=1e-5)


def test_a_failing_job_is_recorded_listed_and_retried(tiny, tmp_path, monkeypatch):
    for folder in ("suites", "zoo"):
        (tmp_path / folder).symlink_to(tiny / folder)
    monkeypatch.setenv("MZLIB_HOME", str(tmp_path))
    import mzlib.benchmark.run as run

    def refuse(suite, job, device, progress):
        raise KeyError("broken on purpose")

    monkeypatch.setitem(run.RUN, "score", refuse)
    assert (
        run_suite(
            "tiny",
            stages=["score"],
            only="resnet-mixture/digits/5",
            engine="serial",
            progress=False,
        )
        == 1
    )
    reads, errors = [], Store.errors
    monkeypatch.setattr(
        Store, "errors", lambda store, stage: reads.append(stage) or errors(store, stage)
    )
    assert failures("tiny") == [("score/resnet-mixture/digits/5", "KeyError: 'broken on purpose'")]
    assert reads == [*STAGES]  # all job files of a stage once, not once a job
    assert status("tiny").set_index("stage").loc["score", "failed"] == 1
    monkeypatch.undo()
    monkeypatch.setenv("MZLIB_HOME", str(tmp_path))
    only = dict(stages=["score"], only="resnet-mixture/digits/5", engine="serial", progress=False)
    assert run_suite("tiny", **only) == 1 and failures("tiny")  # not again unasked
    assert run_suite("tiny", retry_failed=True, **only) == 0
    assert not failures("tiny")


def test_keys_depend_on_everything_that_matters():
    base = dict(
        stage="finetune",
        suite="s",
        expert="e",
        task="t",
        shots="5",
        seed=0,
        lr=0.1,
        recipe={"epochs": 1},
    )
    key = Job.of(**base).key
    assert key == Job.of(**base).key and len(key) == 12
    for change in (
        {"expert": "f"},
        {"task": "u"},
        {"shots": "20"},
        {"seed": 1},
        {"lr": 0.2},
        {"recipe": {"epochs": 2}},
    ):
        assert Job.of(**base | change).key != key


def test_experts_are_trained_again_when_what_they_start_from_changes(empty_home):
    path = empty_home / "suites" / "tiny.toml"
    before = {j.expert: j.key for j in load_suite(str(path)).zoo_jobs()}
    changed = empty_home / "suites" / "changed" / "tiny.toml"
    changed.parent.mkdir()
    changed.write_text(
        path.read_text() + "\n[recipes.generic]\nlr = 0.1\nepochs = 2\nbatch_size = 128\n"
    )
    after = {j.expert: j.key for j in load_suite(str(changed)).zoo_jobs()}
    same = {expert for expert in before if before[expert] == after[expert]}
    assert same == {
        "resnet-random",
        "resnet-multi_bn",
        "resnet-shared",
        "resnet-glyphs-scratch",
        "resnet-textures-scratch",
    }


def test_repeated_multi_domain_trainings_change_no_other_job_and_are_no_starting_points(empty_home):
    path = empty_home / "suites" / "tiny.toml"
    before = load_suite(str(path))
    repeated = empty_home / "suites" / "repeated" / "tiny.toml"
    repeated.parent.mkdir()
    repeated.write_text(
        path.read_text().replace("random = true", "random = true\nmulti_domain_repeats = 2")
    )
    after = load_suite(str(repeated))
    jobs = after.zoo_jobs()
    more = jobs[len(before.zoo_jobs()) :]
    assert jobs[: -len(more)] == before.zoo_jobs()
    assert [(job.expert, job.seed) for job in more] == [
        ("resnet-multi_bn-seed1", 1),
        ("resnet-multi_bn-seed2", 2),
        ("resnet-shared-seed1", 1),
        ("resnet-shared-seed2", 2),
    ]
    assert after.starting_points() == before.starting_points()
    assert len(after.starting_points("repeat")) == 2 * len(before.sources)  # multi-BN's
    assert after.jobs("finetune") == before.jobs("finetune")
    classes = {"glyphs": 3, "textures": 2}
    one, two = (new_network(job, classes).state_dict() for job in more[:2])
    assert any(not torch.equal(one[name], two[name]) for name in one)


def test_a_multi_domain_expert_sees_as_many_images_of_a_source_as_its_own_expert(
    empty_home, monkeypatch
):
    text = (empty_home / "suites" / "tiny.toml").read_text("utf-8")
    text = text.replace("multi_domain_images = 128", 'multi_domain_images = "as single"')
    text = text.replace("batch_size = 128", "batch_size = 128\nmin_steps = 9", 1)
    text += "\n[recipes.generic]\nlr = 0.1\nepochs = 7\nbatch_size = 64\n"
    text += "\n[recipes.multi_domain]\nlr = 0.1\nepochs = 3\nbatch_size = 64\n"
    path = empty_home / "tiny.toml"
    path.write_text(text, "utf-8")
    suite = load_suite(str(path))
    seen = {}

    def look(net, data, recipe, **options):
        sets = data if isinstance(data, dict) else {"": data}
        steps = sum(held.batches_per_epoch(recipe.batch_size) for held in sets.values())
        epochs = recipe.total_epochs(steps)
        seen[options["label"]] = {name: epochs * held.per_epoch for name, held in sets.items()}
        return [1.0] * epochs

    monkeypatch.setattr(stages, "train", look)
    for job in suite.zoo_jobs():
        stages.train_expert(suite, job, torch.device("cpu"), False)
    for variant in ("multi_bn", "shared"):
        for source in suite.sources:
            own = "mixture" if source == suite.generic else f"{source}-scratch"
            by_own = seen[f"zoo/resnet-{own}"][""]
            assert by_own <= seen[f"zoo/resnet-{variant}"][source] < by_own + 3  # whole epochs
    assert len(set(seen["zoo/resnet-shared"].values())) > 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('multi_domain_images = "as many"', "Invalid enum value 'as many'"),
        ("image_size = 32\nimgsize = 3", "unknown field `imgsize`"),
        ("sources = 'digits'", "Expected `array`, got `str` - at `\\$.sources`"),
        ("image_size = '32'", "Expected `int`, got `str` - at `\\$.image_size`"),
        ("targets = ['digits', 3]", "Expected `str`, got `int` - at `\\$.targets"),
        ("generic = 'nothing'", "expected generic 'nothing' among the sources"),
        ("image_size = ", "Invalid value"),
        ("image_size = -3", "Expected `int` >= 1 - at `\\$.image_size`"),
        ("image_size = true", "Expected `int`, got `bool` - at `\\$.image_size`"),
        ("targets = ['digits', '../digits']", "Expected `str` matching .* - at `\\$.targets"),
        ("targets = ['.digits']", "Expected `str` matching .* - at `\\$.targets"),
        ("targets = ['digitz']", "did you mean digits"),
        ("sources = ['mixture', 'a.b']", "expected a plain name without '.', got 'a.b'"),
        ("collection = 'paper'", "expected tasks of .*imagenet.*got 'mixture'"),
        ("reference_net = 'resnet0'", "got 'resnet0'"),
        ("title = '\udcff'", "codec can't decode"),
    ],
)
def test_mistakes_in_a_suite_are_named(empty_home, line, message):
    key = line.partition(" ")[0]
    text = (empty_home / "suites" / "tiny.toml").read_text().splitlines()
    path = empty_home / "wrong.toml"
    path.write_text(
        "\n".join([line, *(t for t in text if not t.startswith(f"{key} "))]),
        "utf-8",
        "surrogateescape",
    )
    with pytest.raises(MzlibError, match=message):
        load_suite(str(path))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"lfc", ', '"lfcc", ', "expected selectors of.*got \\['lfcc'\\]"),
        (
            'shots = [5, "full"]',
            "shots = [0]",
            "`int` >= 1 - at `\\$.finetune\\[0\\].shots\\[0\\]`",
        ),
        ('["multi_bn", "shared"]', '["banana"]', "'banana' - at `\\$.families.*multi_domain"),
        ('shots = [5, "full"]', "shots = [0.5]", "Expected `int . str`, got `float` .*shots"),
        ("lr = 0.1", "lr = '0.1'", "Expected `float`, got `str` - at `\\$.recipes.expert.lr`"),
        ("learning_rates = [0.05]\n", "", "missing required field `learning_rates` .*finetune"),
        (
            "[families.resnet]",
            '[families."../../../outside"]',
            "Expected `str` matching .* - at `key` in `\\$.families`",
        ),
        ("[families.resnet]", "[[families]]", "Expected `object`, got `array` - at `\\$.families`"),
        ("[families.resnet]", "[families.res-net]", "matching .* - at `key` in `\\$.families`"),
        ("[families.resnet]", "[families.'a:b']", "matching .* - at `key` in `\\$.families`"),
        (
            "[recipes.expert]\nlr = 0.1\nepochs = 1\nbatch_size = 128",
            "[recipes]\nexpert = 3",
            "Expected `object`, got `int` - at `\\$.recipes.expert`",
        ),
        ("[recipes.expert]", "[recipes.exprt]", "unknown field `exprt` - at `\\$.recipes`"),
        ("[recipes.finetune]", "[recipes.generic]", "missing required field `finetune`"),
        ("[[score]]", "[score]", "Expected `array`, got `object` - at `\\$.score`"),
        ("lr = 0.1", "lr = nan", "Expected `float` > 0.0 - at `\\$.recipes.expert.lr`"),
        ("lr = 0.1", "lr = 0", "Expected `float` > 0.0 - at `\\$.recipes.expert.lr`"),
        ("lr = 0.1", "lr = inf", "Expected `float` < .* - at `\\$.recipes.expert.lr`"),
        ("epochs = 1", "epochs = true", "Expected `int`, got `bool` .*recipes.expert.epochs"),
        ("batch_size = 32", "batch_size = 0", "`int` >= 1 .*recipes.finetune.batch_size"),
        ("images_per_class = [5]", "images_per_class = ['al']", "'al' .*score.*images_per_class"),
        ("images_per_class = [5]", "images_per_class = [-1]", "`int` >= 1 .*images_per_class"),
        ("images_per_class = [5]", "seeds = [-1]", "`int` >= 0 .*score\\[0\\].seeds\\[0\\]"),
        (
            "mzlib_resnet",
            "hf-hub:timm/resnet18",
            "expected an architecture of timm, got 'hf-hub:timm/resnet18'",
        ),
        ("random = true", "generic_weights = 'resnet18'", "matching .*timm.*generic_weights"),
        (
            '"resnet-mixture", "*:*"',
            '"resnet-mixtur"',
            "expected experts to match some of.*got \\['resnet-mixtur'\\]",
        ),
        (
            'targets = ["fabrics"]',
            'targets = ["fabric"]',
            "expected targets to match some of digits, fabrics, got \\['fabric'\\]",
        ),
    ],
)
def test_mistakes_in_the_grids_of_a_suite_are_named(empty_home, old, new, message):
    path = empty_home / "wrong.toml"
    path.write_text((empty_home / "suites" / "tiny.toml").read_text().replace(old, new))
    with pytest.raises(MzlibError, match=message):
        load_suite(str(path))


COMPLETE = {
    "status": "ok",
    "error": "",
    "rows": [],
    "seconds": 1.0,
    "finished": "",
    "machine": {"hardware": ""},
}


@pytest.mark.parametrize(
    "content",
    [
        "null",
        "[]",
        "{}",
        "\udcff",
        "[" * 100_000,
        *(
            json.dumps(COMPLETE | change)
            for change in (
                {"rows": 3},
                {"rows": [3]},
                {"machine": None},
                {"machine": {}},
                {"seconds": "x"},
                {"status": None},
                {"error": None},
            )
        ),
    ],
)
def test_a_job_file_that_is_no_complete_record_counts_as_absent(empty_home, content):
    job, store = load_suite("tiny").zoo_jobs()[0], Store("tiny")
    path = store._path(job)
    path.parent.mkdir(parents=True)
    path.write_text(content, "utf-8", "surrogateescape")
    assert (
        not store.is_done(job)
        and status("tiny").set_index("stage").loc["zoo", "done"] == 0
        and not failures("tiny")
    )
    path.write_text(json.dumps(COMPLETE))
    assert store.is_done(job)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("zoo.csv", b""),
        ("zoo.csv", b"a,b\n1,2\n"),
        ("zoo.csv", b"key\n\xff\n"),
        ("zoo.csv", b"key\n1\n1,2\n"),
        ("zoo.csv.gz", b"key\n"),
        ("zoo.csv.gz", gzip.compress(b"key\n1\n", mtime=0)[:-9]),
        ("provenance.json", b'{"zoo": {'),
        ("provenance.json", b"[]"),
        ("provenance.json", b'{"zoo": {"jobs": 1}}'),
    ],
)
def test_damaged_results_are_told_with_their_path(empty_home, name, content):
    folder = empty_home / "results" / "tiny"
    folder.mkdir(parents=True)
    (folder / "zoo.csv").write_text(f"key\n{load_suite('tiny').zoo_jobs()[0].key}\n")
    (folder / name).write_bytes(content)
    with pytest.raises(MzlibError, match=f"expected .*{name}.*restore or remove it") as error:
        load_results("tiny")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        "run mini --workers -1",
        "run mini --workers 0",
        "run mini --slots-per-gpu 0",
        "run mini --time-limit -1",
        "rank x --until-settled -1",
        "run mini --time-limit nan",
        "finetune x --epochs 0",
        "finetune x --lr -1",
        "finetune x --lr inf",
        "finetune x --top -2",
    ],
)
def test_numbers_on_the_command_line_are_positive(words, capsys):
    with pytest.raises(SystemExit):
        main(words.split())
    assert "expected a positive number, got" in capsys.readouterr().err


def test_unknown_suite():
    with pytest.raises(MzlibError, match="expected a suite of .*mini.*got 'maxi'"):
        load_suite("maxi")


def test_no_results_says_what_to_run(empty_home):
    with pytest.raises(MzlibError, match="run `mzlib run tiny`"):
        load_results("tiny")


@pytest.mark.parametrize("name", ["digits", "fabrics"])
def test_validation_is_apart_and_shared_and_regimes_are_nested(name):
    task = load_task(name)
    full, twenty, five = (subset(task, shots, seed=3) for shots in ("full", 20, 5))
    assert set(five.train) < set(twenty.train) < set(full.train)
    for s in (full, twenty, five):
        assert np.array_equal(s.validation, full.validation) and not set(s.train) & set(
            s.validation
        )
    assert len(full.train) + len(full.validation) == len(task.train.labels)
    assert (np.bincount(task.train.labels[five.train]) == 5).all()
    assert set(five.sample(2, 0)) < set(five.train) and len(five.sample("all", 0)) == len(
        five.train
    )
    assert not np.array_equal(subset(task, 5, seed=4).train, five.train)


def test_loss_curves_are_thinned_to_ten_points_with_the_last():
    assert curve([3.0, 2.0, 1.0]) == "3 2 1"
    points = curve([float(i) for i in range(31)]).split()
    assert len(points) == 10 and points[0] == "0" and points[-1] == "30"


def test_job_files_are_complete(tiny):
    store = Store("tiny")
    for stage in STAGES:
        for key, record in store.records(stage, "ok").items():
            assert record.seconds >= 0 and record.machine["torch"]
            assert Job(**record.job).key == key
    assert not list((tiny / "runs").rglob("*.tmp"))
    json.loads((tiny / "results" / "tiny" / "provenance.json").read_text())


def test_a_large_table_is_packed_and_read_the_same(tiny, monkeypatch):
    suite, store, before = load_suite("tiny"), Store("tiny"), tables()
    monkeypatch.setattr(jobs, "LARGEST", 1000)
    folder = tiny / "results" / "tiny"
    plain = {path.name: path.read_bytes() for path in folder.glob("*.csv")}
    for path in folder.glob("*.csv"):
        path.unlink()
    store.consolidate({stage: suite.jobs(stage) for stage in STAGES})
    try:
        assert {p.name for p in folder.glob("*.csv*")} == {f"{stage}.csv.gz" for stage in STAGES}
        for stage, table in tables().items():
            pd.testing.assert_frame_equal(table, before[stage])
    finally:
        for path in folder.glob("*.gz"):
            path.unlink()
        for name, content in plain.items():
            (folder / name).write_bytes(content)
