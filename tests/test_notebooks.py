import json
import re
import tomllib
from pathlib import Path

import jupytext
import papermill
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
assert NOTEBOOKS
PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
VERSION = PROJECT["project"]["version"]


def run(name, tmp_path, **parameters):
    path = next(p for p in NOTEBOOKS if p.stem == name)
    out = tmp_path / path.name
    papermill.execute_notebook(
        path, out, parameters, kernel_name="python3", progress_bar=False, cwd=str(tmp_path)
    )
    cells = json.loads(out.read_text())["cells"]
    return "".join(json.dumps(output) for cell in cells for output in cell.get("outputs", []))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_both_halves_agree_and_hold_no_outputs(path):
    notebook = jupytext.read(path)
    text = jupytext.read(path.with_suffix(".py"))
    assert [(c.cell_type, c.source, c.metadata.get("tags")) for c in notebook.cells] == [
        (c.cell_type, c.source, c.metadata.get("tags")) for c in text.cells
    ]
    assert not any(cell.get("outputs") for cell in notebook.cells)
    assert (
        f"blob/main/notebooks/{path.name}" in notebook.cells[0].source
    )  # the Colab badge points at this file
    tag = re.search(r"--branch v(\S+)", "".join(cell.source for cell in notebook.cells))
    assert tag and tag[1] == VERSION, "Colab installs the version that the page is about"
    assert any("parameters" in cell.metadata.get("tags", []) for cell in notebook.cells)


def test_zoo(tiny, tmp_path):
    out = run("01_zoo", tmp_path, suite="tiny")
    assert "Multi-BN" in out and "glyphs" in out and "table2.csv" in out


def test_finetune(tiny, tmp_path):
    out = run("02_finetune", tmp_path, suite="tiny", task="fabrics", shots="full")
    assert "image/" in out and "resnet-glyphs-scratch" in out


def test_selectors(tiny, tmp_path):
    out = run("03_selectors", tmp_path, suite="tiny", task="digits", shots=5, images_per_class=5)
    assert "image/" in out and "LEEP" in out and "Spearman" in out
    assert "LFC of 8 experts on 50 images" in out and "rank correlation 1.000" in out, "scored anew"


def test_selectors_score_a_task_outside_the_suite_live(tiny, tmp_path):
    out = run("03_selectors", tmp_path, suite="tiny", task="ferns", shots="5", images_per_class="5")
    assert "resnet-glyphs-scratch" in out and "was not fine-tuned" in out


def test_all_selectors(tiny, tmp_path):
    out = run(
        "04_all_selectors",
        tmp_path,
        suite="tiny",
        task="digits",
        shots=5,
        images_per_class=5,
        expert="resnet-textures-scratch",
    )
    assert (
        out.count("image/") >= 6
        and "at least 6 fine-tuned experts" in out
        and "one sample size only" in out
    )
    assert (
        "No noise ceiling: expected at least 2 seeds" in out
        and "P(above resnet-glyphs-scratch)" in out
    )


def test_linearization(tiny, tmp_path):
    out = run(
        "05_linearization", tmp_path, suite="tiny", task="fabrics", expert="resnet-textures-scratch"
    )
    assert out.count("image/") >= 5 and "fig8" in out


def test_quickstart(tiny, tmp_path):
    out = run("00_quickstart", tmp_path, suite="tiny", epochs=1)
    assert "400 images of 10 classes" in out and "rank 1" in out and "local-dir:" in out
    assert "By Ridge LOO" in out and "for want of a history" in out and "lgc" in out


def test_your_images(tiny, tmp_path):
    out = run("06_your_images", tmp_path, suite="tiny", epochs=1)
    assert "<iframe" in out and "saved in" in out and "for want of a history" in out
    out = run("06_your_images", tmp_path, suite="tiny", selectors="lfc,leep", epochs=1)
    assert "LEEP" in out and "for want of a history" not in out


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("00_quickstart", {"suite": "tiny", "image": "x"}, "did you mean 'images'"),
        (
            "06_your_images",
            {"suite": "tiny", "images": "no_such_folder"},
            "expected labelled images",
        ),
        (
            "05_linearization",
            {"suite": "tiny", "expert": "resnet-ferns-scratch"},
            "expected expert of",
        ),
        ("01_zoo", {"suite": "nozoo"}, "expected a suite of"),
        ("01_zoo", {"siute": "tiny"}, "did you mean 'suite'"),
        ("02_finetune", {"suite": "tiny", "shots": 7}, "expected shots of 5, full"),
        (
            "02_finetune",
            {"suite": "tiny", "shots": 5, "task": "ferns"},
            "expected task of digits, fabrics",
        ),
        (
            "04_all_selectors",
            {"suite": "tiny", "shots": 5, "protocol": "papr"},
            "expected protocol of other seed, paper, validation",
        ),
        ("03_selectors", {"suite": "tiny", "shots": 5, "selector": "lcf"}, "expected selector of"),
        ("03_selectors", {"suite": "tiny", "shots": 5, "task": "no_such_task"}, "no_such_task"),
    ],
)
def test_impossible_parameters_are_told_at_once(tiny, tmp_path, name, parameters, message):
    with pytest.raises(papermill.PapermillExecutionError) as error:
        run(name, tmp_path, **parameters)
    assert "MzlibError" in str(error.value) and message in str(error.value)
    assert error.value.exec_count <= 3 + (
        "images" in parameters
    )  # parameters, injected parameters, check, the images
