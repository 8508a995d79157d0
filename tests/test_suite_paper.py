"""The suite `paper`: what it contains, all of it on miniatures, and its price."""

import shutil
from pathlib import Path

import miniature
import pandas as pd
import pytest
import torch

from mzlib.benchmark import figures, load_results, load_suite, run_suite, stages
from mzlib.benchmark.data import load_task, paper
from mzlib.benchmark.jobs import STAGES
from mzlib.benchmark.price import amounts, counts, estimate, wall_clock
from mzlib.errors import MzlibError
from mzlib.evidence import subset
from mzlib.zoo import Expert, load_expert
from mzlib.zoo.architectures import create

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "data" / "paper_tiny.toml"


@pytest.fixture(scope="module")
def tiny_paper(tmp_path_factory):
    """A home folder in which the paper's suite has been run on miniatures of its data sets."""
    home = tmp_path_factory.mktemp("paper")
    (home / "suites").mkdir()
    shutil.copy(TINY, home / "suites")
    miniature.write_all(home / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MZLIB_HOME", str(home))
        patch.setenv("MZLIB_PAPER", str(home / "images"))
        assert run_suite("paper_tiny", workers=1, progress=False) == 0
    return home


@pytest.mark.parametrize("name", ["mini", "thumb64"])
def test_committed_rows_belong_to_jobs_of_their_suite(name):
    """A job's key must not change by what newer suites can say: the committed results are keyed by it."""
    suite = load_suite(name)
    for stage in STAGES:
        table = pd.read_csv(
            next((ROOT / "results" / name).glob(f"{stage}.csv*")), usecols=["key", "expert"]
        )
        keys = set(
            table.loc[~table["expert"].str.contains(":"), "key"]
        )  # multi-domain recipes of thumb64 were changed on purpose
        assert keys and keys <= {job.key for job in suite.jobs(stage)}


def test_the_suite_is_the_papers_protocol():
    suite = load_suite("paper")
    beside = suite.starting_points("beside")
    zoo = [job for job in suite.zoo_jobs() if job.key not in beside.values()]
    single = [job for job in zoo if "variant" not in job.settings]
    assert len(single) == 30 and len(zoo) == 33 and len(suite.starting_points()) == 38
    assert {*suite.sources} == {n for n, s in paper.SETS.items() if s["role"] == "source"} and {
        *suite.sources,
        *suite.targets,
    } == {*paper.SETS}
    assert {job.settings["architecture"] for job in single} == {
        "resnet101",
        "densenet169",
    } and suite.image_size == 224
    expert, finetune = suite.recipe("expert"), suite.recipe("finetune")
    assert [round(m * expert.epochs) for m in expert.milestones] == [30, 60]
    assert [round(m * finetune.epochs) for m in finetune.milestones] == [15, 25]
    jobs = suite.finetune_jobs()
    assert {job.settings["lr"] for job in jobs} == {0.01, 0.005, 0.001}
    assert {len({job.task for job in jobs if job.shots == shots}) for shots in ("20", "5")} == {11}
    assert (
        len([job for job in jobs if job.shots == "full" and job.expert not in beside])
        == 38 * 8 * 3 + 30
    )
    tuned = {(job.expert, job.task, job.shots) for job in jobs}
    assert {(job.expert, job.task, job.shots) for job in suite.score_jobs()} <= tuned


def test_the_suite_has_what_fig_1_compares():
    """Every point of its curves but AlexNet's: the zoo's, each network beside it, at 10 shots, on Belga Logos in full."""
    suite, theirs = (
        load_suite("paper"),
        figures.paper("fig1_test_error").query("panel == 'a' and ~method.str.endswith('alexnet')"),
    )
    points = set(theirs[["method", "target", "shots"]].itertuples(index=False, name=None))
    names = {
        "resnet-imagenet": ("imagenet_our_zoo", "imagenet_resnet101"),
        "resnet-random": ("random_resnet101",),
        "resnet18-imagenet": ("imagenet_resnet18",),
        "resnet18-random": ("random_resnet18",),
        "wideresnet-imagenet": ("imagenet_wide_resnet101",),
        "wideresnet-random": ("random_wide_resnet101",),
    }
    ours = {
        (name, job.task, job.shots)
        for job in suite.finetune_jobs()
        if job.settings["lr"] == 0.005
        for name in names.get(job.expert, ("model_zoo",))
    }
    assert points <= ours


def test_all_of_it_runs_on_miniatures(tiny_paper, monkeypatch):
    monkeypatch.setenv("MZLIB_HOME", str(tiny_paper))
    suite, results = load_suite("paper_tiny"), load_results("paper_tiny")
    big = load_suite("paper")
    assert [suite.sources, suite.targets, [*suite.families]] == [
        big.sources,
        big.targets,
        [*big.families],
    ]
    assert len(results.zoo) == 30 + 3 * 8 and set(results.zoo["classes"]) == {miniature.CLASSES}
    assert (
        set(results.beside["expert"]) == set(suite.starting_points("beside"))
        and len(results.beside) == 5 * 2 * 2
    )
    assert (
        set(results.finetune["task"]) == set(suite.targets) and len(results.finetune) == 3 * 11 * 2
    )
    assert results.scores["score"].notna().all() and set(results.scores["selector"]) == set(
        suite.score[0].selectors
    )
    expert = load_expert("resnet-food101-generic", tiny_paper / "zoo" / "paper_tiny")
    assert len(expert.class_means) == 3 and "mean" not in expert.card


def test_generic_weights_from_outside_bring_their_normalisation(tiny_paper, tmp_path, monkeypatch):
    """Nothing is trained, the expert keeps the outside mean and std, and so does one that starts from it."""
    text = TINY.read_text()
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "paper_tiny.toml").write_text(
        text.replace(
            "[families.resnet]", '[families.resnet]\ngeneric_weights = "timm:resnet18.a1_in1k"'
        )
    )
    monkeypatch.setenv("MZLIB_HOME", str(tmp_path))
    monkeypatch.setenv("MZLIB_PAPER", str(tiny_paper / "images"))
    suite = load_suite("paper_tiny")
    first = next(job for job in suite.zoo_jobs() if job.expert == "resnet-imagenet")
    then = next(job for job in suite.zoo_jobs() if job.expert == "resnet-food101-generic")
    assert (
        first.settings["weights"] == "timm:resnet18.a1_in1k"
        and then.settings["start_key"] == first.key
    )
    of = {"mean": [0.4, 0.4, 0.4], "std": [0.2, 0.2, 0.2]}
    for classes, message in ((5, "to have the 3 classes of imagenet, it has 5"), (3, "")):
        outside = Expert(
            "outside", create("mzlib_resnet", classes, 32).eval(), {"image_size": 32, **of}
        )
        monkeypatch.setattr(
            stages,
            "load_external",
            lambda name: outside,
        )
        if message:
            with pytest.raises(MzlibError, match=message):
                stages.train_expert(suite, first, torch.device("cpu"), False)
    before = {k: v.clone() for k, v in outside.model.state_dict().items()}
    [row] = stages.train_expert(suite, first, torch.device("cpu"), False)
    assert row["epochs"] == 0 and row["loss_curve"] == ""
    folder = tmp_path / "zoo" / "paper_tiny"
    stored = load_expert("resnet-imagenet", folder)
    assert all(
        torch.allclose(v, before[k], atol=1e-3) for k, v in stored.model.state_dict().items()
    )
    stages.train_expert(suite, then, torch.device("cpu"), False)
    assert {key: load_expert("resnet-food101-generic", folder).card[key] for key in of} == of


def test_an_unknown_collection_is_named(tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_text(TINY.read_text().replace('collection = "paper"', 'collection = "papers"'))
    with pytest.raises(MzlibError, match="Invalid enum value 'papers' - at `\\$.collection`"):
        load_suite(str(path))


def test_wall_clock_is_longest_first_wave_after_wave():
    jobs = pd.DataFrame({"wave": [0, 1, 1, 1, 1, 1], "seconds": [5.0, 3.0, 3.0, 2.0, 2.0, 2.0]})
    assert [wall_clock(jobs, n) for n in (1, 2, 8)] == [17.0, 5.0 + 7.0, 5.0 + 3.0]


def test_the_arithmetic_counts_epochs_and_images_as_jobs_do():
    """Seconds: 1 an image of training, 0.001 an image of a forward pass; min_steps makes epochs more."""
    suite, task = load_suite("mini"), load_task("fabrics")  # classes of equal size: exact
    tasks = counts(suite)
    for job in suite.finetune_jobs():
        if job.task == "fabrics" and job.expert == "resnet-mixture":
            real = subset(task, job.shots, job.seed)
            tested = len(task.test.labels) + len(real.validation)
            assert amounts(job, tasks) == (len(real.train), tested)
            recipe = suite.recipe("finetune")
            epochs = recipe.total_epochs(-(-len(real.train) // recipe.batch_size))
            seconds = epochs * len(real.train) + 0.001 * tested
            assert estimate(job, tasks, 1, 0.001) == pytest.approx(seconds)
    job = next(job for job in suite.score_jobs() if job.task == "fabrics" and job.shots == "full")
    sample = subset(task, "full", 0).sample(job.settings["images_per_class"], 0)
    assert estimate(job, tasks, 1, 0.001) == len(sample)
    job = next(job for job in suite.zoo_jobs() if job.expert == "resnet-multi_bn")
    assert amounts(job, tasks)[0] == suite.multi_domain_images * len(suite.sources)
    job = next(job for job in suite.zoo_jobs() if job.expert == "resnet-mixture")
    assert amounts(job, tasks)[0] == tasks.loc["mixture", "train"]


def test_counts_come_from_table_4_or_from_the_tasks_here(monkeypatch, tmp_path):
    assert counts(load_suite("paper")).loc["places365"].tolist() == [1803460, 36500, 365]
    assert counts(load_suite("mini")).loc["digits", "classes"] == 10
    monkeypatch.setenv("MZLIB_DATA", str(tmp_path))
    with pytest.raises(MzlibError, match="mzlib data get --suite thumb64"):
        counts(load_suite("thumb64"))
