"""What the command line promises: one line and an exit code, whatever happens."""

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mzlib import api, ranking
from mzlib.benchmark.data import load_task
from mzlib.cli import _in_blocks, main
from mzlib.dataset import few_shot
from mzlib.errors import MzlibError
from mzlib.selectors.history import History
from mzlib.zoo import load_expert
from mzlib.zoo.external import candidates


@pytest.fixture
def zoo(tiny, tmp_path):
    """A folder of two experts."""
    folder = tmp_path / "experts"
    folder.mkdir()
    for name in ("resnet-glyphs-scratch", "resnet-mixture"):
        for suffix in (".json", ".safetensors"):
            source = tiny / "zoo" / "tiny" / (name + suffix)
            (folder / source.name).write_bytes(source.read_bytes())
    return str(folder)


@pytest.fixture
def photos(tmp_path):
    """Twelve images of each of three digits, one class with a name that Latin-1 lacks."""
    task = load_task("digits")
    for i in few_shot(task.train.labels, 12, 0):
        label = int(task.train.labels[i])
        if label < 3:
            place = tmp_path / "photos" / ("零" if label == 0 else str(label))
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(task.train.images[i]).save(place / f"{i}.png")
    return str(tmp_path / "photos")


def never(*args, **options):
    raise AssertionError("work was done")


def error_line(capsys):
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("mzlib: ") and "Traceback" not in error
    return error


def test_whatever_is_raised_is_one_line_with_a_hint(monkeypatch, capsys):
    def broken(*args, **options):
        raise ValueError("one\ntwo")

    monkeypatch.setattr(api, "rank", broken)
    assert main(["rank", "digits"]) == 1
    assert "ValueError: one two (MZLIB_DEBUG=1" in error_line(capsys)
    monkeypatch.setenv("MZLIB_DEBUG", "1")
    with pytest.raises(ValueError, match="one"):
        main(["rank", "digits"])


@pytest.mark.parametrize("option", ["--csv", "--json", "--report"])
def test_a_file_that_cannot_be_written_is_told_before_scoring(
    option, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(ranking, "rank", never)
    monkeypatch.setattr(api, "rank", never)
    assert main(["rank", "digits", option, str(tmp_path / "none" / "x")]) == 1
    assert "expected a file that can be written" in error_line(capsys)
    assert main(["rank", "digits", option, str(tmp_path)]) == 1
    assert "expected a file that can be written" in error_line(capsys)


@pytest.mark.parametrize(
    "options",
    [
        ("--csv", "-"),
        ("--report", "-"),
        ("--csv", "x", "--json", "x"),
        ("--csv", "x", "--report", "./x"),
        ("--csv", "t.csv"),
    ],
)
def test_outputs_are_files_of_their_own(options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("path,label\n")
    monkeypatch.setattr(api, "rank", never)
    assert main(["rank", "t.csv", *options]) == 1
    assert re.search("of its own for each output|can be written, got '-'", error_line(capsys))
    assert Path("t.csv").read_text() == "path,label\n" and os.listdir() == ["t.csv"]


@pytest.mark.parametrize("option", ["--csv", "--json", "--report"])
@pytest.mark.parametrize(
    "name", ["metadata.csv", "metadata.jsonl", "x.png", "x.JPG", "x.parquet", "x.arrow"]
)
def test_outputs_never_write_over_images_or_labels(option, name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(api, "rank", never)
    monkeypatch.setattr(api, "predict", never)
    there = tmp_path / "folder" / name
    there.parent.mkdir()
    there.write_text("as it was")
    assert main(["rank", str(there.parent), option, str(there)]) == 1
    assert "for output that holds no images or labels, got" in error_line(capsys)
    if option == "--csv":
        assert main(["predict", str(there.parent), "--model", "m", option, str(there)]) == 1
        assert "for output that holds no images or labels, got" in error_line(capsys)
    assert there.read_text() == "as it was"


def test_a_report_from_python_never_writes_over_an_image(zoo, photos, tmp_path):
    there = tmp_path / "x.png"
    there.write_text("as it was")
    with pytest.raises(MzlibError, match="for output that holds no images or labels, got"):
        api.rank(photos, zoo, report=there, progress=False)
    assert there.read_text() == "as it was"


def test_outputs_are_written_again(zoo, photos, capsys):
    table = Path(photos, "ranking.csv")
    for _ in range(2):
        table.write_text("of an earlier ranking")
        assert main(["rank", photos, "--zoo", zoo, "--quiet", "--csv", str(table)]) == 0
        assert len(pd.read_csv(table))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "no such job"], "a pattern that names jobs of mini, got 'no such job'"),
        (["--address", "auto"], "expected --address with --engine ray only"),
        (["--engine", "serial", "--workers", "2"], "--workers not with serial"),
    ],
)
def test_options_of_run_without_effect_are_refused(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MZLIB_HOME", str(tmp_path))
    assert main(["run", "mini", *options]) == 1
    assert message in error_line(capsys)


def test_no_path_is_not_this_folder(capsys):
    assert main(["rank", ""]) == 1
    assert "expected a path, got ''" in error_line(capsys)


@pytest.mark.parametrize("seed", ["-1", "99999999999999999999"])
def test_a_seed_that_is_none_is_wrong_usage(seed, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["rank", "digits", "--seed", seed])
    assert "expected a number from 0" in capsys.readouterr().err


def test_a_report_in_a_missing_folder_is_told_before_scoring_in_python(tmp_path, monkeypatch):
    monkeypatch.setattr(ranking, "rank", never)
    with pytest.raises(MzlibError, match="can be written"):
        api.rank("digits", report=tmp_path / "none" / "x.html")


def test_a_home_that_cannot_be_written_costs_the_cache_only(
    zoo, photos, tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MZLIB_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("MZLIB_CACHE", str(tmp_path / "file"))
    assert main(["rank", photos, "--zoo", zoo]) == 0
    shown = capsys.readouterr()
    assert "cannot be written" in shown.err and "resnet-mixture" in shown.out
    assert "mzlib: " not in shown.err and "Traceback" not in shown.err


def test_a_terminal_without_the_characters_is_no_reason_to_end(zoo, photos, monkeypatch):
    out, err = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="ascii"))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(err, encoding="ascii"))
    broken = Path(photos) / "零" / "零.png"
    broken.write_bytes(b"x")
    assert main(["rank", photos, "--zoo", zoo]) == 0
    sys.stdout.flush()
    sys.stderr.flush()
    assert b"resnet-mixture" in out.getvalue() and b"\\u96f6" in err.getvalue()


def test_a_reader_that_goes_away_ends_it_in_silence():
    code = "import sys; from mzlib.cli import main; sys.exit(main(['data', 'list']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141


def test_json_has_standard_output_to_itself(zoo, photos, capsys):
    assert main(["rank", photos, "--zoo", zoo, "--json", "-", "--selectors", "lfc"]) == 0
    shown = capsys.readouterr()
    rows = json.loads(shown.out)
    assert len(rows) == 2 and rows[0]["selector"] == "lfc" and "By LFC" in shown.err


def test_files_say_what_the_table_says(zoo, photos, tmp_path):
    files = {option: str(tmp_path / f"x{option}") for option in ("--csv", "--json")}
    options = [part for pair in files.items() for part in pair]
    assert main(["rank", photos, "--zoo", zoo, "--selectors", "lfc,leep", *options]) == 0
    table = pd.read_csv(files["--csv"], keep_default_na=False, na_values={"score": [""]})
    rows = json.loads(Path(files["--json"]).read_text())
    for key in ("expert", "selector", "reason"):
        assert table[key].tolist() == [row[key] for row in rows]
    for key in ("score", "low", "high"):
        assert np.allclose(table[key], [row[key] for row in rows], rtol=0, atol=1e-14)


def test_a_selector_named_twice_counts_once(zoo, photos, capsys):
    assert main(["rank", photos, "--zoo", zoo, "--selectors", "lfc,lfc"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split().count("lfc") == 1
    assert list(ranking.known_selectors("leep,lfc,leep")) == ["leep", "lfc"]


def test_images_per_class_of_a_folder_and_what_a_score_means(zoo, photos, capsys):
    assert main(["rank", photos, "--zoo", zoo, "--images-per-class", "4"]) == 0
    shown = capsys.readouterr().out
    assert " 12 images, " in shown and "correlate at" in shown
    assert main(["rank", photos, "--zoo", zoo, "--images-per-class", "x"]) == 1
    assert "positive number" in error_line(capsys)


def test_until_settled_with_few_experts_scores_all_images(zoo, photos, capsys):
    found = api.rank(photos, zoo, "lfc", until_settled=3, progress=False)
    assert (found.table["images"] == found.facts["images"]).all() and found.facts["cost"] == 1
    assert main(["rank", photos, "--zoo", zoo, "--until-settled", "--quiet"]) == 0
    assert f" {found.facts['images']} images, " in capsys.readouterr().out


def test_one_expert_that_breaks_is_a_row_with_a_reason(zoo, photos, tiny, capsys):
    good = load_expert("resnet-mixture", tiny / "zoo" / "tiny")
    bad = load_expert("resnet-glyphs-scratch", tiny / "zoo" / "tiny")
    bad = dataclasses.replace(bad, digest="")  # nothing of it is kept
    bad.model.forward = bad.model.forward_features = lambda x: (x, x)
    found = api.rank(photos, [good, bad], "lfc,parameter_count", progress=False)
    rows = found.table.set_index(["expert", "selector"])
    reason = rows.loc[("resnet-glyphs-scratch", "lfc"), "reason"]
    assert (
        reason and "\n" not in reason and np.isfinite(rows.loc[("resnet-mixture", "lfc"), "score"])
    )
    assert found.best == "resnet-mixture"
    assert found.verdict == (
        "By LFC, only resnet-mixture could be ranked. 1 of 2 experts have no LFC."
    )
    for until_settled in (1, 2):
        again = api.rank(photos, [good, bad], "lfc", until_settled=until_settled, progress=False)
        assert again.best == "resnet-mixture"


def test_reasons_are_all_told(zoo, photos, capsys):
    for name in ("resnet18-a", "resnet18-b"):
        Path(zoo, f"{name}.pth").write_bytes(name.encode())
    assert main(["rank", photos, "--zoo", zoo, "--selectors", "lfc"]) == 0
    shown = capsys.readouterr().out
    assert "no lfc for 2 experts:" in shown and "2 of 4 experts have no LFC" in shown
    assert "resnet18-a.pth" in shown and "resnet18-b.pth" in shown


def test_a_table_with_many_selectors_fits_the_terminal(zoo, photos, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    assert main(["rank", photos, "--zoo", zoo, "--selectors", "all", "--quiet"]) == 0
    table = capsys.readouterr().out.partition("\nBy ")[0]
    assert max(map(len, table.splitlines())) <= 90 and table.count("resnet-mixture") > 3
    wide = pd.DataFrame({"rank": [1], "expert": ["e"], "a": ["x" * 30], "b": ["y" * 30]})
    assert [len(b.splitlines()) for b in _in_blocks(wide, 50).split("\n\n")] == [2, 2]
    assert "\n\n" not in _in_blocks(wide, 100)


def test_a_name_that_is_a_task_and_a_folder(zoo, photos, tmp_path, monkeypatch):
    os.rename(photos, tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    found = api.rank("digits", zoo, "lfc", images_per_class=5, progress=False)
    assert found.table["images"].iloc[0] == 50
    assert "digits is a task and a folder here; the task was taken" in found.facts["notes"][0]
    found = api.rank("./digits", zoo, "lfc", images_per_class=5, progress=False)
    assert found.table["images"].iloc[0] == 15 and not found.facts["notes"]


def test_a_device_that_is_not_there(zoo, photos, capsys):
    assert main(["rank", photos, "--zoo", zoo, "--device", "cuda:77"]) == 1
    assert "expected a device of this machine, got 'cuda:77'" in error_line(capsys)


def test_version_and_quiet(zoo, photos, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("mzlib ")
    assert main(["rank", photos, "--zoo", zoo, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_top_prints_the_ranking_and_what_fine_tuning_gave(zoo, photos, tmp_path, capsys):
    command = ["finetune", photos, "--zoo", zoo, "--top", "2", "--epochs", "1", "--quiet"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "By Ridge LOO" in shown and shown.count("test accuracy") == 2
    assert "The best on validation images" in shown


def test_a_ranking_prints_well(zoo, photos):
    found = api.rank(photos, zoo, "lfc", progress=False)
    assert found.verdict in str(found) and found.best in found._repr_html_()
    frame = found.to_frame()
    frame["score"] = 0.0
    assert not (found.table["score"] == 0).all()  # a copy
    assert len(found.plot().get_yticklabels()) == 2
    escaped = SimpleNamespace(verdict="<b>", summary=lambda: pd.DataFrame({"expert": ["<i>"]}))
    assert "<b>" not in ranking.Ranking._repr_html_(escaped)
    assert "<i>" not in ranking.Ranking._repr_html_(escaped)


def test_the_default_order_is_the_best_that_applies(zoo, photos, capsys):
    assert main(["rank", photos, "--zoo", zoo, "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("rank") and "ridge_loo_mse" in shown and "lgc" in shown
    assert "for want of a history of at least 3 of these experts; LFC and LGC beside it" in shown
    experts = candidates("thumb64")
    order, why = api.default_order(experts)
    assert [getattr(s, "id", s) for s in order] == ["neighbour_history", "lfc", "lgc"]
    others = int(re.search(r"did on (\d+) other data sets", why)[1])
    _, why = api.default_order(experts, target="dtd10_textures")  # a past one, ranked by its name
    assert f"did on {others - 1} other data sets" in why
    _, why = api.default_order(experts, target="photos")
    assert f"did on {others} other data sets" in why
    assert api.default_order(experts, until_settled=3)[0] == ["ridge_loo_mse", "lfc"]
    order, why = api.default_order(experts, kind="several")
    assert order[0] == "ridge_loo_mse" and "for want of a history of such labels" in why


COMMITTED = Path(__file__).parents[1] / "zoo" / "thumb64"
THREE = [f"resnet-{source}-scratch" for source in ("gtsrb", "grocery", "plankton")]


@pytest.mark.parametrize(
    ("asked", "by", "alone"),
    [
        ("thumb64", "neighbour_history", ""),
        (str(COMMITTED), "neighbour_history", ""),
        (",".join(THREE), "neighbour_history", ""),
        (",".join(f"{COMMITTED / name}.safetensors" for name in THREE), "neighbour_history", ""),
        (",".join([*THREE, "timm:resnet18"]), "neighbour_history", "; 1 of 4 experts, without"),
        (",".join(THREE[:2]), "ridge_loo_mse", ""),
        (",".join([*THREE[:2], "timm:resnet18"]), "ridge_loo_mse", ""),
        ("timm:resnet18,timm:resnet34,timm:resnet50", "ridge_loo_mse", ""),
    ],
)
def test_what_the_experts_are_decides_not_how_they_were_named(asked, by, alone, monkeypatch):
    """Without reading weights, on disk or elsewhere."""
    monkeypatch.setattr("mzlib.zoo.expert.load", never)
    order, why = api.default_order(candidates(asked))
    assert getattr(order[0], "id", order[0]) == by
    assert ("for want of" in why) == (by == "ridge_loo_mse")
    assert ("without such a past" in why) == bool(alone) and alone in why


def test_loaded_experts_are_known_and_wrong_cards_are_not(tmp_path):
    loaded = [load_expert(name, COMMITTED) for name in THREE]
    named = candidates(",".join(THREE))
    assert [c.digest for c in candidates(loaded)] == [c.digest for c in named]
    assert [c.digest for c in named] == [expert.digest for expert in loaded]
    for name, card in (("none", "{}"), ("broken", "{")):
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
        (tmp_path / f"{name}.json").write_text(card)
    assert [c.digest for c in candidates(str(tmp_path))] == ["", ""]


def test_the_history_orders_the_experts_it_knows(tiny, photos):
    """By hand: an expert that was best on the one past target, where scores were in this order."""
    experts = [
        load_expert(name, tiny / "zoo" / "tiny")
        for name in ("resnet-glyphs-scratch", "resnet-mixture", "resnet-textures-scratch")
    ]
    by_score = api.rank(photos, experts, "ridge_loo_mse", progress=False).table
    scores = by_score.set_index("expert")["score"].loc[[e.name for e in experts]].to_numpy()
    last = int(scores.argmin())
    accuracy = np.where(np.arange(3) == last, 0.9, scores - scores.max())
    past = History(
        tuple(e.digest for e in experts), ("a",) * 3, ("t",), accuracy[None], scores[None], own=0.1
    )
    found = api.rank(photos, experts, [past.selector_entry(), "lfc"], progress=False)
    assert found.best == experts[last].name and "Neighbours' history" in found.verdict
    assert "Neighbours' history" in found.plot().get_xlabel()


@pytest.fixture
def networks(monkeypatch):
    """Timm's networks are random ones, and their weights are not here."""
    import timm

    from mzlib.zoo import external, recommended

    monkeypatch.setattr(external, "_matching", lambda name: ["timm:test_resnet", "timm:test_vit2"])
    monkeypatch.setattr(recommended, "cached", lambda: [])

    def load(name):
        model = timm.create_model(name.removeprefix("timm:")).eval()
        return dataclasses.replace(api.as_expert(model, name))

    monkeypatch.setattr(external, "load_external", load)


def test_many_networks_are_downloaded_when_that_was_agreed_to(
    networks, photos, monkeypatch, capsys
):
    command = ["rank", photos, "--zoo", "timm:test_*", "--selectors", "parameter_count", "--quiet"]
    assert main(command) == 1
    assert re.search(r"--yes to download \d+ MB of weights, for there is no", error_line(capsys))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(sys.stdin, "readline", lambda: "\n")
    assert main(command) == 1
    assert "got no: nothing was downloaded" in capsys.readouterr().err
    monkeypatch.setattr(sys.stdin, "readline", lambda: "Y\n")
    assert main(command) == 0 and "test_resnet" in capsys.readouterr().out
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    assert main([*command, "--yes"]) == 0 and "test_vit2" in capsys.readouterr().out
    assert main([*command, "--yes", "--max-params", "0.46"]) == 0
    shown = capsys.readouterr().out
    assert ("test_resnet" in shown) != ("test_vit2" in shown)
    assert main([*command, "--yes", "--max-gflops", "0.0001"]) == 1
    assert "within --max-params and --max-gflops, got none" in error_line(capsys)


def test_the_cache_is_where_it_is_asked_for(zoo, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("MZLIB_CACHE", str(tmp_path / "environment"))
    stale = tmp_path / "asked" / "images" / f"{'0' * 24}.77.tmp"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"half written")
    os.utime(stale, (0, 0))
    command = ["rank", photos, "--zoo", zoo, "--quiet", "--cache", str(tmp_path / "asked")]
    assert main(command) == 0
    assert list((tmp_path / "asked" / "evidence").iterdir()) and not stale.exists()
    assert not (tmp_path / "environment").exists()


def test_every_command_explains_itself(capsys):
    for name in ("rank", "finetune", "choose", "predict", "run", "status", "data check"):
        with pytest.raises(SystemExit) as ended:
            main([*name.split(), "--help"])
        assert ended.value.code == 0 and "options:" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["rank", "x", "--regression", "--multi-label"])
    assert ended.value.code == 2 and "not allowed with argument" in capsys.readouterr().err
