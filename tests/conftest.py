"""`tiny`: a home folder in which the suite tests/data/tiny.toml has been run once, by two workers, for all tests."""

import shutil
from pathlib import Path

import pytest
import torch

from mzlib.benchmark import run_suite

torch.set_num_threads(
    1
)  # two OpenMP threads on a busy two-core machine wait for each other, 100 times slower


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Nothing of the user's cache is read or written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MZLIB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_home(tmp_path_factory):
    home = tmp_path_factory.mktemp("tiny")
    (home / "suites").mkdir()
    shutil.copy(Path(__file__).parent / "data" / "tiny.toml", home / "suites")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MZLIB_HOME", str(home))
        assert run_suite("tiny", workers=2, progress=False) == 0
    return home


@pytest.fixture
def tiny(tiny_home, monkeypatch):
    monkeypatch.setenv("MZLIB_HOME", str(tiny_home))
    return tiny_home


@pytest.fixture
def empty_home(tmp_path, monkeypatch):
    """A home folder with the tiny suite and nothing computed."""
    (tmp_path / "suites").mkdir()
    shutil.copy(Path(__file__).parent / "data" / "tiny.toml", tmp_path / "suites")
    monkeypatch.setenv("MZLIB_HOME", str(tmp_path))
    return tmp_path
