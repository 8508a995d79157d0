import copy
import os
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image

import mzlib.evidence
from mzlib.api import load_zoo, rank
from mzlib.benchmark import load_results, load_suite
from mzlib.benchmark.data import load_task
from mzlib.cli import main
from mzlib.dataset import few_shot
from mzlib.errors import Missing, MzlibError
from mzlib.evidence import Evidence, subset
from mzlib.selectors import SELECTORS
from mzlib.uncertainty import replicates
from mzlib.zoo import Expert, features, load_expert


@pytest.fixture
def evidence(tiny):
    task = load_task("digits")
    index = subset(task, 5, 0).train
    return Evidence(
        load_expert("resnet-glyphs-scratch", tiny / "zoo" / "tiny"),
        task.train.images[index],
        task.train.labels[index],
    )


def test_one_forward_pass_serves_features_and_probabilities(evidence, monkeypatch):
    calls = []
    forward = evidence.model.forward_features
    monkeypatch.setattr(
        evidence.model, "forward_features", lambda x: (calls.append(len(x)), forward(x))[1]
    )
    f, p = evidence.features, evidence.source_probabilities
    assert calls == [50] and f.shape == (50, 192) and p.shape == (50, 16)
    assert torch.allclose(p.sum(1), torch.ones(50), atol=1e-5)
    from mzlib.training import normalize

    assert torch.allclose(f, features(evidence.model, normalize(evidence.images)), atol=1e-4)


def test_evidence_is_kept_by_content(evidence, tmp_path, monkeypatch):
    def fresh(images=evidence.images.numpy(), expert=evidence.expert):
        return Evidence(expert, images, evidence.labels.numpy(), cache=tmp_path)

    first = fresh()
    f, k = first.features, first.last_conv_kernel
    files = sorted(tmp_path.iterdir())
    assert [p.name.split("-")[1] for p in files] == ["kernel", "outputs.safetensors"]
    assert isinstance(evidence.model.get_submodule(first.last_layer), torch.nn.Conv2d)
    assert 0 <= first.last_conv_kernel_error < 0.05
    with monkeypatch.context() as patch:  # nothing is computed a second time
        patch.setattr(Evidence, "_forward", None)
        patch.setattr("mzlib.evidence.tangent_kernel", None)
        again = fresh()
        assert torch.equal(again.features, f) and torch.equal(again.last_conv_kernel, k)
        assert torch.equal(again.source_probabilities, first.source_probabilities)
    changed = evidence.images.numpy().copy()
    changed[0, 0, 0, 0] ^= 1
    assert not torch.equal(fresh(changed).features, f)  # other images, other files
    other = Expert("other", copy.deepcopy(evidence.model), evidence.expert.card)
    with torch.no_grad():
        other.model.conv1[0].weight[0, 0, 0, 0] += 1
    fresh(expert=other).features
    assert len(list(tmp_path.iterdir())) == 4
    files[1].write_bytes(files[1].read_bytes()[:50])  # a damaged file is computed again
    assert torch.equal(fresh().features, f)


@pytest.mark.parametrize("kernel_first", [False, True])
def test_features_probabilities_and_kernel_share_a_pass(evidence, monkeypatch, kernel_first):
    apart = Evidence(evidence.expert, evidence.images.numpy(), evidence.labels.numpy())
    asked = ["features", "source_probabilities", "last_conv_kernel", "full_kernel"]
    expected = [getattr(apart, name) for name in asked]
    monkeypatch.setattr(Evidence, "_forward", None)
    images, labels = evidence.images.numpy(), evidence.labels.numpy()
    shared = Evidence(evidence.expert, images, labels, asked=asked)
    if kernel_first:
        assert shared.full_kernel is not None and shared.last_layer == apart.last_layer
    for name, b in zip(asked, expected):
        a = getattr(shared, name)
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


def test_features_do_without_the_kernel_where_that_fails(evidence, monkeypatch):
    import mzlib.evidence
    from mzlib.linearization import tangent_kernel

    passes = []

    def counted(*arguments, **options):
        passes.append(options)
        return tangent_kernel(*arguments, **options)

    monkeypatch.setattr(mzlib.evidence, "tangent_kernel", counted)
    expert = copy.deepcopy(evidence.expert)
    expert.model.requires_grad_(False)
    asked = {"features", "last_conv_kernel"}
    shared = Evidence(expert, evidence.images.numpy(), evidence.labels.numpy(), asked=asked)
    assert torch.equal(shared.features, evidence.features)
    for _ in range(2):
        with pytest.raises(Missing, match="gradient-requiring"):
            shared.last_conv_kernel  # noqa: B018
    assert len(passes) == 1  # its reason is kept


def test_gradients_are_computed_only_when_asked(evidence, monkeypatch):
    from mzlib.linearization import Kernel

    asked = []
    eye = Kernel(torch.eye(50), ["conv"], 1, 0.0, 0.0)
    monkeypatch.setattr(
        mzlib.evidence, "tangent_kernel", lambda *a, layers: asked.append(layers) or eye
    )
    SELECTORS["lfc"].function(evidence.features, evidence.labels)
    assert asked == []
    SELECTORS["lgc"].function(evidence.last_conv_kernel, evidence.labels)
    assert asked == ["last"]


def test_what_an_expert_lacks_is_missing_with_a_reason(evidence):
    bare = Expert("bare", evidence.model, {**evidence.expert.card, "accuracy": None})
    bare.model.reset_classifier(0)
    bare = Evidence(bare, evidence.images.numpy(), evidence.labels.numpy())
    for attribute, reason in (
        ("source_probabilities", "no source classifier"),
        ("source_class_means", "no source statistics"),
        ("source_accuracy", "not known"),
        ("reference_features", "no reference net"),
    ):
        with pytest.raises(Missing, match=reason):
            getattr(bare, attribute)
    assert bare.features.shape == (50, 192)


def test_every_selector_gives_a_number_or_a_reason(tiny):
    table = rank("digits", "tiny", list(SELECTORS), images_per_class=5, progress=False).table
    assert len(table) == 8 * len(SELECTORS)
    assert (np.isfinite(table["score"]) | (table["reason"] != "")).all()
    lfc = table[table["selector"] == "lfc"].sort_values("score", ascending=False)
    assert lfc["rank"].tolist() == sorted(lfc["rank"]) and lfc["rank"].iloc[0] == 1


def test_ranking_agrees_with_the_scores_of_the_suite(tiny):
    found = rank("digits", "tiny", ["lfc", "leep"], images_per_class=5, progress=False)
    table = found.table.set_index(["expert", "selector"])
    stored = (
        load_results("tiny")
        .scores.query("task == 'digits' and shots == 'full'")
        .set_index(["expert", "selector"])
    )
    joined = table.join(stored["score"].rename("score_stored"))
    assert len(joined) == 16 and np.allclose(joined["score"], joined["score_stored"], rtol=1e-4)


def test_experts_by_name_and_object_rank_the_same(tiny):
    experts = load_zoo("tiny", progress=False)
    assert {e.name for e in experts} == set(load_suite("tiny").starting_points())
    a = rank("fabrics", "tiny", ["lfc"], images_per_class=5, progress=False).table
    b = rank(load_task("fabrics", 32), experts, ["lfc"], images_per_class=5, progress=False).table
    assert a["expert"].tolist() == b["expert"].tolist() and np.allclose(a["score"], b["score"])


def test_mistakes_are_named(tiny):
    with pytest.raises(MzlibError, match="expected selectors of .*got \\['lcf'\\]"):
        rank("digits", "tiny", ["lcf"], progress=False)
    with pytest.raises(MzlibError, match="digitz.*did you mean digits"):
        rank("digitz", "tiny", progress=False)
    with pytest.raises(MzlibError, match="expected a zoo"):
        rank("digits", "no_zoo", progress=False)


def test_command_line(tiny, capsys, tmp_path):
    assert (
        main(
            [
                "rank",
                "digits",
                "--zoo",
                "tiny",
                "--selectors",
                "lfc,leep",
                "--images-per-class",
                "5",
                "--csv",
                str(tmp_path / "r.csv"),
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert (
        "resnet-glyphs-scratch" in out
        and "lfc" in out
        and (tmp_path / "r.csv").read_text().count("\n") == 17
    )
    assert main(["status", "tiny"]) == 0 and "finetune" in capsys.readouterr().out
    assert main(["run", "tiny"]) == 0
    assert main(["data", "list"]) == 0 and "arrangements" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["rank", "nothing_like_it", "--zoo", "tiny"], "Available here"),
        (["rank", "digits", "--zoo", "nozoo"], "expected a zoo"),
        (["rank", "digits", "--zoo", "tiny", "--images-per-class", "0"], "positive number"),
        (["rank", "digits", "--zoo", "tiny", "--selectors", "lfc,"], "expected selectors"),
        (["run", "nozoo"], "expected a suite of"),
        (["status", "nozoo"], "expected a suite of"),
    ],
)
def test_errors_are_one_line_and_exit_code_1(tiny, capsys, argv, message):
    assert main(argv) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("mzlib: ") and message in error


def test_the_score_on_all_images_is_foreseen_where_that_can_be_said(tiny):
    """By hand: score - (G - 1)(mean without a group - score)(1 - n/N)."""
    found = rank("digits", "tiny", "lfc,logme", images_per_class=5, progress=False)
    rows = found.table[found.table["selector"] == "lfc"].set_index("expert")
    name = found.best
    evidence = found.evidence(name)
    values = replicates(SELECTORS["lfc"], evidence)[:, 0]
    bias = 19 * (values[1:].mean() - values[0])
    train = load_task("digits", 32).train.labels
    expected = values[0] - bias * (1 - 50 / len(train))
    assert len(values) == 21 and rows.loc[name, "score_all"] == pytest.approx(expected, rel=1e-6)
    assert rows.loc[name, "score_all"] < rows.loc[name, "score"]  # LFC of few images flatters
    assert found.table.query("selector == 'logme'")["score_all"].isna().all()


def test_networks_and_data_sets_of_other_libraries(tiny, tmp_path):
    task = load_task("digits", 32)
    for i in few_shot(task.train.labels, 5, 0):
        place = tmp_path / "digits" / str(task.train.labels[i])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(task.train.images[i]).save(place / f"{i}.png")
    torch.manual_seed(0)
    timms = timm.create_model("test_resnet", num_classes=4)
    other = torchvision.models.shufflenet_v2_x0_5(num_classes=4)
    before = set(dict(other.named_children()))
    images = torchvision.datasets.ImageFolder(tmp_path / "digits")
    found = rank(images, {"a": timms, "b": other}, selectors="lfc", progress=False)
    assert set(found.table["expert"]) == {"a", "b"} and found.table["score"].notna().all()
    assert set(dict(other.named_children())) == before and timms.training  # left as they were
    again = rank(tmp_path / "digits", timms, selectors="lfc", progress=False)
    assert again.table["expert"].iloc[0].startswith("test_resnet")
    assert again.table["score"].iloc[0] == found.table.set_index("expert").loc["a", "score"]
    with torch.no_grad():
        next(timms.parameters()).add_(1.0)  # another network, not the one in the cache
    changed = rank(images, {"a": timms}, selectors="lfc", progress=False)
    assert changed.table["score"].iloc[0] != again.table["score"].iloc[0]


def run_python(code, **environment):
    """Standard output of a fresh interpreter in another folder."""
    return subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        text=True,
        capture_output=True,
        env=os.environ | environment,
    ).stdout


def test_help_imports_nothing_heavy():
    code = """
import sys
from mzlib.cli import main
try:
    main(["--help"])
except SystemExit:
    print("heavy:", {"torch", "numpy", "pandas", "timm", "scipy"} & set(sys.modules))
"""
    out = run_python(code)
    assert "rank a zoo's experts" in out and "heavy: set()" in out


def test_outside_a_checkout_the_experts_of_the_package_are_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("MZLIB_HOME", str(tmp_path))

    def trains(*_, **options):
        raise AssertionError("expected no training")

    monkeypatch.setattr("mzlib.benchmark.run.run_suite", trains)
    experts = load_zoo("thumb64", progress=False)
    assert [e.name for e in experts] == list(load_suite("thumb64").starting_points())
    assert not list(tmp_path.iterdir())


def test_only_what_fine_tuning_starts_from_is_trained(tiny, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "mzlib.benchmark.run.run_suite", lambda name, *, only, **options: asked.extend(only)
    )
    assert len(load_zoo("tiny")) == 8
    assert sorted(asked) == [
        "zoo/resnet-glyphs-generic",
        "zoo/resnet-glyphs-scratch",
        "zoo/resnet-mixture",
        "zoo/resnet-multi_bn",
        "zoo/resnet-textures-generic",
        "zoo/resnet-textures-scratch",
    ]
