"""One cache: of two ranks at a time, after a kill in the middle of a write, without the extras."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mzlib.api import rank

EXPERT = Path(__file__).parents[1] / "zoo" / "thumb64" / "resnet-grocery-scratch.safetensors"
RANK = """
import sys
from mzlib.api import rank
table = rank(sys.argv[1], sys.argv[2], ["lfc", "lgc"], progress=False).table
table[["selector", "score"]].to_csv(sys.stdout, index=False)
"""
KILLED_WRITING_EVIDENCE = """
import os, signal
import mzlib.evidence

def save_half(tensors, path, metadata):
    path.write_bytes(b"half of it")
    os.kill(os.getpid(), signal.SIGKILL)

mzlib.evidence.save_file = save_half
"""
KILLED_CONVERTING_IMAGES = """
import os, signal
import mzlib.images

convert = mzlib.images.in_threads

def half(contents, transform, side):
    for i, converted in enumerate(convert(contents, transform, side)):
        if i == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        yield converted

mzlib.images.in_threads = half
"""
# What the extras bring and nothing else: timm needs torchvision and filelock.
WITHOUT_EXTRAS = """
import sys

extras = "ot sklearn pillow_heif pooch pebble matplotlib seaborn ray papermill jupytext"
sys.modules.update(dict.fromkeys(extras.split()))  # to import them raises ModuleNotFoundError
"""


@pytest.fixture
def photos(tmp_path):
    """Twelve images of two classes."""
    rng = np.random.default_rng(0)
    for i in range(12):
        place = tmp_path / "photos" / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(place / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def expected(photos, tmp_path, monkeypatch):
    """Scores from a cache of their own."""
    monkeypatch.setenv("MZLIB_CACHE", str(tmp_path / "own"))
    table = rank(photos, str(EXPERT), ["lfc", "lgc"], progress=False).table
    return table["score"].to_numpy()


def start(photos, cache, before=""):
    environment = {**os.environ, "MZLIB_CACHE": str(cache)}
    command = [sys.executable, "-c", before + RANK, str(photos), str(EXPERT)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def scores(process):
    out, err = process.communicate()
    assert process.returncode == 0, err
    return pd.read_csv(io.StringIO(out))["score"].to_numpy()


def test_two_ranks_on_one_cache_agree(photos, expected, tmp_path):
    running = [start(photos, tmp_path / "shared") for _ in range(2)]
    for process in running:
        assert np.allclose(scores(process), expected, rtol=1e-6)
    assert not list((tmp_path / "shared").rglob("*.tmp"))


@pytest.mark.parametrize("kill", [KILLED_WRITING_EVIDENCE, KILLED_CONVERTING_IMAGES])
def test_a_kill_in_the_middle_of_a_write_leaves_a_usable_cache(
    photos, expected, tmp_path, monkeypatch, kill
):
    killed = start(photos, tmp_path / "cache", kill)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert list((tmp_path / "cache").rglob("*.tmp"))  # half of a file, which nobody reads
    monkeypatch.setenv("MZLIB_CACHE", str(tmp_path / "cache"))
    for _ in range(2):  # made again, then kept
        found = rank(photos, str(EXPERT), ["lfc", "lgc"], progress=False).table
        assert np.array_equal(found["score"], expected)


def test_without_the_extras_a_folder_is_ranked(photos, expected, tmp_path):
    found = scores(start(photos, tmp_path / "bare", WITHOUT_EXTRAS))
    assert np.allclose(found, expected, rtol=1e-6)
