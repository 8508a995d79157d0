"""`mzlib run SUITE --dry-run`: the jobs that would run, their images, what they leave on disk, and the batch that was measured."""

import re
import shutil
from pathlib import Path

import pytest

from mzlib.benchmark import load_suite, price
from mzlib.benchmark.jobs import STAGES
from mzlib.cli import main


def test_the_bill_of_the_miniatures(empty_home, capsys):
    shutil.copy(Path(__file__).parent / "data" / "paper_tiny.toml", empty_home / "suites")
    assert main(["run", "paper_tiny", "--dry-run"]) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    suite = load_suite("paper_tiny")
    assert [lines[stage][1] for stage in STAGES] == [
        str(len(suite.jobs(stage))) for stage in STAGES
    ]
    # images are counted by Table 4, so that a suite of the paper is priced without any
    assert price.counts(suite).loc["places365"].tolist() == [1803460, 36500, 365]
    assert float(lines["all"][2]) > 1
    assert "ms to train on an image" in out and "mzlib_densenet: " in out
    assert "without decoding of images" in out and "downloads 7" in out
    assert not (empty_home / "runs" / "paper_tiny" / "jobs").exists()


def test_only_the_chosen_jobs_that_are_not_done_are_priced(empty_home, capsys):
    command = ["run", "tiny", "--stage", "finetune", "--only", "glyphs-scratch/fabrics/5"]
    assert main([*command, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "Of 1 jobs chosen 0 are done and 0 have failed; 2 would run" in out
    assert (
        re.search(r"zoo +1 ", out)
        and re.search(r"finetune +1 ", out)
        and not re.search(r"^ *score", out, re.M)
    )
    assert main([*command, "--engine", "serial"]) == 0
    capsys.readouterr()
    assert main([*command, "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith(
        "Of 1 jobs chosen 1 are done and 0 have failed; 0 would run"
    )


def test_the_disk_is_what_experts_take(tiny):
    suite = load_suite("tiny")
    for job in suite.zoo_jobs():
        content = (tiny / "zoo" / "tiny" / f"{job.expert}.safetensors").read_bytes()
        header = 8 + int.from_bytes(content[:8], "little")
        found = price.stored(job, price.counts(suite)["classes"])
        assert found == pytest.approx(len(content) - header, rel=0.05)
