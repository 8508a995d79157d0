"""From a folder of images to a ranking, a report and a fine-tuned model."""

import ast
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import mzlib.zoo.external as external
from mzlib.api import finetune, rank
from mzlib.benchmark.data import load_task
from mzlib.cli import _parser, main
from mzlib.dataset import few_shot
from mzlib.errors import MzlibError
from mzlib.evidence import Evidence
from mzlib.images import open_images
from mzlib.ranking import contenders, surely_better, verdict
from mzlib.report import confusions, snippets
from mzlib.zoo import load_expert

EXPERTS = ("resnet-glyphs-scratch", "resnet-mixture", "resnet-textures-scratch")


@pytest.fixture
def zoo(tiny, tmp_path):
    """A list of three experts."""
    lines = [f"  - {tiny}/zoo/tiny/{name}" for name in EXPERTS]
    folder = tmp_path / "experts"
    folder.mkdir()
    for name in EXPERTS:
        for suffix in (".json", ".safetensors"):
            (folder / (name + suffix)).write_bytes(
                Path(lines[0][4:]).with_name(name + suffix).read_bytes()
            )
    return str(folder)


@pytest.fixture
def folder(tmp_path):
    """Twelve images of four digits, with a class name that has to be escaped."""
    task = load_task("digits")
    for i in few_shot(task.train.labels, 12, 0):
        label = task.train.labels[i]
        if label < 4:
            place = tmp_path / "photos" / ("<b>zero" if label == 0 else str(label))
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(task.train.images[i]).save(place / f"{i}.png")
    return tmp_path / "photos"


# ranking


def test_rank_of_a_folder(zoo, folder):
    table = rank(folder, zoo, ["lfc", "leep", "parameter_count"], progress=False).table
    assert (
        len(table) == 9 and set(table["expert"]) == set(EXPERTS) and (table["images"] == 40).all()
    )
    assert (table["low"] <= table["score"]).all() and (table["score"] <= table["high"]).all()
    scored = table[table["selector"] != "parameter_count"]
    assert (scored["low"] < scored["high"]).all()
    assert (table["rank_low"] <= table["rank"]).all() and (
        table["rank"] <= table["rank_high"]
    ).all()
    images, labels = [], []
    for label, place in enumerate(sorted(folder.iterdir())):
        assert place.is_dir(), label
    by_hand = load_expert(EXPERTS[0], Path(zoo))
    listing = mzlib_open(folder)
    at = listing.sample(25, 0)
    images = np.stack([np.asarray(Image.open(listing.places[i][0])) for i in at])
    labels = listing.labels[at]
    from mzlib.selectors import lfc

    expected = lfc(Evidence(by_hand, images, labels).features, labels)
    assert table.set_index(["selector", "expert"]).loc[
        ("lfc", EXPERTS[0]), "score"
    ] == pytest.approx(expected, rel=1e-4)


def mzlib_open(folder):
    from mzlib.images import open_images

    return open_images(folder)


def test_a_rerun_and_another_selector_cost_no_forward_pass(zoo, folder, monkeypatch):
    first = rank(folder, zoo, ["lfc"], progress=False).table
    monkeypatch.setattr(Evidence, "_forward", None)
    monkeypatch.setattr("mzlib.images.decode", None)
    again = rank(folder, zoo, ["lfc", "leep"], progress=False)
    assert np.allclose(again.table.query("selector == 'lfc'")["score"], first["score"])
    assert all(seconds > 0 for seconds in again.facts["forward_seconds"].values())


def test_interrupted_it_keeps_what_was_scored(zoo, folder, monkeypatch, capsys):
    load, calls = external.load_expert, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return load(*args)

    monkeypatch.setattr(external, "load_expert", interrupted)
    assert main(["rank", str(folder), "--zoo", zoo]) == 130
    shown = capsys.readouterr()
    assert "resnet-glyphs-scratch" in shown.out and "resnet-textures-scratch" not in shown.out
    assert "interrupted after 2 of 3 experts" in shown.err and "Traceback" not in shown.err
    calls.clear()
    monkeypatch.setattr(
        external, "load_expert", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    assert main(["rank", str(folder), "--zoo", zoo]) == 130  # nothing scored: nothing to show


def test_settled_ranks_follow_paired_differences():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.01, 21)
    scores = (
        np.array([0.5, 0.4, 0.39999])[:, None]
        + noise
        + rng.normal(0, [[1e-4], [1e-4], [1e-2]], (3, 21))
    )
    scores[:, 0] = [0.5, 0.4, 0.39999]
    better = surely_better(scores)
    assert better.tolist()[1] == [True, False, False] and better.tolist()[0] == [
        False,
        False,
        False,
    ]
    assert contenders(scores, 1, seen=0.5).tolist() == [True, False, False]
    assert contenders(scores, 2, seen=0.5).tolist()[:2] == [True, True]
    assert contenders(scores, 2, seen=1.0).tolist() == [
        True,
        True,
        False,
    ]  # all images seen: nothing left to chance


def test_until_settled_drops_experts_and_says_so(zoo, folder, capsys):
    full = rank(folder, zoo, ["lfc"], progress=False)
    found = rank(folder, zoo, ["lfc"], until_settled=1, progress=False)
    table = found.table
    assert found.facts["cost"] <= 1 and found.best == full.best
    assert table["images"].is_monotonic_decreasing and table["rank"].is_monotonic_increasing
    assert main(["rank", str(folder), "--zoo", zoo, "--until-settled", "1"]) == 0
    assert "of the forward passes" in capsys.readouterr().out
    with pytest.raises(MzlibError, match="expected a first selector of features"):
        rank(folder, zoo, ["lgc"], until_settled=1, progress=False)


def test_duplicates_and_unreadable_files_are_told(zoo, folder, tmp_path, capsys):
    for split in ("train", "test"):
        (tmp_path / "split" / split).mkdir(parents=True)
    for place in folder.iterdir():
        for i, file in enumerate(sorted(place.iterdir())):
            for split in ("train", "test") if i == 0 else ("train" if i < 9 else "test",):
                target = tmp_path / "split" / split / place.name / file.name
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(file.read_bytes())
    (tmp_path / "split" / "train" / "1" / "broken.png").write_bytes(b"x")
    assert (
        main(
            [
                "rank",
                str(tmp_path / "split"),
                "--zoo",
                zoo,
                "--selectors",
                "lfc,leep",
                "--csv",
                str(tmp_path / "r.csv"),
                "--json",
                str(tmp_path / "r.json"),
            ]
        )
        == 0
    )
    shown = capsys.readouterr()
    assert "4 of 16 test images are also training images" in shown.err
    assert (
        "1 of 37 images could not be read and were skipped" in shown.err
        and "broken.png" in shown.err
    )
    assert (
        len(pd.read_csv(tmp_path / "r.csv"))
        == 6
        == len(json.loads((tmp_path / "r.json").read_text()))
    )


def test_verdict():
    rows = {"expert": ["a", "b"], "selector": "lfc", "score": [2.0, 1.0], "rank_low": [1, 2]}
    assert verdict(pd.DataFrame(rows)) == "By LFC, rank 1 is settled: a."
    assert "2 experts are tied for rank 1 (a, b)" in verdict(
        pd.DataFrame(rows | {"rank_low": [1, 1]})
    )


# the report and fine-tuning


def test_report_is_one_page_with_escaped_names_and_a_snippet_that_runs(
    zoo, folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "out.html"
    found = rank(folder, zoo, ["lfc", "leep", "logme"], report=page, progress=False)
    text = page.read_text("utf-8")
    for part in (
        "The ranking",
        "best and the worst",
        "hard to tell apart",
        "each selector says",
        "What it saves",
        "Fine-tune the winner",
        "prefers-color-scheme: dark",
        "&lt;b&gt;zero",
        *EXPERTS,
    ):
        assert part in text, part
    assert "<b>zero" not in text and not re.search(r"(src|href)=['\"]?(https?:|//)|<script", text)
    shell, python = snippets(found)
    assert main([*shlex.split(shell)[1:], "--epochs", "1"]) == 0
    assert "test accuracy" in capsys.readouterr().out
    compile(python, "snippet", "exec")
    assert found.best in python


def test_snippets_name_the_columns_that_were_asked_for(zoo, folder, tmp_path):
    rows = [f"{file},{file.parent.name}\n" for file in sorted(folder.glob("*/*.png"))]
    (tmp_path / "t.csv").write_text("where it is,what\n" + "".join(rows))
    columns = {"image_column": "where it is", "label_column": "what"}
    images = open_images(tmp_path / "t.csv", **columns)
    shell, python = snippets(rank(images, zoo, "lfc", progress=False))
    asked = _parser().parse_args(shlex.split(shell)[1:])
    assert {name: getattr(asked, name) for name in columns} == columns
    called = ast.parse(python).body[1].value.args[0]
    assert {keyword.arg: keyword.value.value for keyword in called.keywords} == columns
    pixels, _ = images.pixels(np.arange(len(images.labels)))
    found = rank((pixels, images.labels), Path(zoo), "lfc", report=tmp_path / "p", progress=False)
    shell, python = snippets(found)
    assert shell == "" and "mzlib.finetune(images, " in python
    assert "mzlib finetune" not in (tmp_path / "p").read_text("utf-8")


def test_confusions_by_hand():
    features = torch.tensor([[1.0, 0], [1, 0.1], [1, -0.1], [-1, 0], [-1, 0.1], [1, 0.05]])
    accuracy, pairs = confusions(features, torch.tensor([7, 7, 7, 9, 9, 9]))
    assert accuracy == pytest.approx(5 / 6) and pairs == [(7, 9, pytest.approx(1 / 6))]


def test_finetuned_models_are_timms_and_can_be_ranked(zoo, folder, tmp_path):
    done = finetune(folder, EXPERTS[0], zoo=zoo, out=tmp_path / "out", epochs=2, progress=False)
    assert (
        0 <= done.low <= done.accuracy <= done.high <= 1
        and done.test_images == 8
        and len(done.losses) == 2
    )
    model = timm.create_model(f"local-dir:{done.folder}", pretrained=True)
    stored = load_file(done.folder / "model.safetensors")
    assert model.num_classes == 4 and all(
        torch.equal(v, stored[k]) for k, v in model.state_dict().items()
    )
    card = (done.folder / "README.md").read_text()
    assert "95 % interval" in card and "local-dir:" in card
    again = rank(folder, str(tmp_path / "out"), ["lfc"], progress=False)
    assert again.table["expert"].tolist() == [EXPERTS[0]]


def test_finetune_mistakes(zoo, folder, tmp_path, capsys):
    assert (
        main(["finetune", str(folder)]) == 1
        and "expected --expert NAME or --top N" in capsys.readouterr().err
    )
    assert main(["finetune", str(folder), "--expert", EXPERTS[0], "--top", "2"]) == 1
    assert "--top N, got both" in capsys.readouterr().err
    assert main(["finetune", str(folder), "--expert", zoo, "--out", str(tmp_path / "out")]) == 1
    assert "the name of one expert, got" in capsys.readouterr().err
    assert main(["finetune", str(folder), "--expert", "resnet-none", "--zoo", zoo]) == 1
    assert "got 'resnet-none'" in capsys.readouterr().err
    assert (
        main(
            [
                "finetune",
                str(folder),
                "--expert",
                EXPERTS[0],
                "--zoo",
                zoo,
                "--lr",
                "1e30",
                "--epochs",
                "2",
                "--out",
                str(tmp_path),
            ]
        )
        == 1
    )
    assert "training diverged" in capsys.readouterr().err


# experts from outside


def test_a_bad_expert_in_a_folder_leaves_the_others_ranked(zoo, folder, capsys):
    (Path(zoo) / f"{EXPERTS[0]}.json").write_text("[]")
    assert main(["rank", str(folder), "--zoo", zoo, "--selectors", "lfc"]) == 0
    shown = capsys.readouterr().out
    assert EXPERTS[1] in shown and re.search(
        rf"no lfc for 1 experts: .*{EXPERTS[0]}.json: expected a JSON table", shown
    )


def test_without_a_network_the_cached_weights_are_named(
    tmp_path, monkeypatch, folder, tiny, capsys
):
    from huggingface_hub import constants

    def offline(*args, **kwargs):
        raise OSError("cannot reach huggingface.co\nmore")

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(external, "_online", lambda: True)
    monkeypatch.setattr(external, "_unreachable", set())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--timm--resnet26.bt_in1k" / "snapshots" / "abc").mkdir(parents=True)
    (
        tmp_path / "models--timm--resnet26.bt_in1k" / "snapshots" / "abc" / "model.safetensors"
    ).write_bytes(b"")
    assert main(["rank", str(folder), "--zoo", "timm:resnet18.a1_in1k,timm:resnet34.a1_in1k"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        "cannot reach huggingface.co" in error and "weights cached here: resnet26.bt_in1k" in error
    )
    with pytest.raises(MzlibError, match="cannot be reached"):
        external.load_external("timm:resnet34.a1_in1k")
    monkeypatch.setattr(timm, "create_model", None)  # not even tried where the host is not there
    monkeypatch.setattr(external, "_unreachable", set())
    monkeypatch.setattr(external, "_online", lambda: False)
    with pytest.raises(MzlibError, match="OSError: its host cannot be reached .*resnet26.bt_in1k"):
        external.load_external("timm:resnet34.a1_in1k")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "expected the name of a task"),
        (lambda p: p.mkdir(), "got no image"),
        (lambda p: (p / "a").mkdir(parents=True), "got no image"),
        (lambda p: p.write_text("x"), "expected a folder"),
    ],
)
def test_paths_without_an_answer_are_one_line_and_exit_code_1(
    tmp_path, tiny, capsys, make, message
):
    make(tmp_path / "p")
    assert main(["rank", str(tmp_path / "p"), "--zoo", "timm:resnet18.a1_in1k"]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
