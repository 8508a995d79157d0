"""The recipes of CONTRIBUTING.md, performed in a copy of the repository: what they write works as they say."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
RECIPES = re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]
BLOCK = re.compile(
    r"^( *)```(\w+)(?: (file|append)=(\S+))?\n(.*?)^ *```$", re.MULTILINE | re.DOTALL
)


def copy_of_the_repository(folder: Path) -> Path:
    """The package, suites, tests' settings and the committed tables; no weights."""
    for name in ("mzlib", "suites", "results"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    (folder / "tests").mkdir()
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@pytest.mark.parametrize("recipe", RECIPES, ids=[recipe.partition("\n")[0] for recipe in RECIPES])
def test_recipe(recipe, tmp_path):
    home = copy_of_the_repository(tmp_path)
    environment = os.environ | {
        "PYTHONPATH": str(home),
        "MZLIB_HOME": str(home),
        "MZLIB_DATA": str(home / "data"),
        "OMP_NUM_THREADS": "1",
    }
    performed = 0
    for indent, _, how, path, block in BLOCK.findall(recipe):
        block = textwrap.dedent(block) if indent else block
        if how == "file":
            assert not (home / path).exists(), f"{path} is there already"
            (home / path).write_text(block, "utf-8")
        elif how == "append":
            with open(home / path, "a", encoding="utf-8") as file:
                file.write("\n\n" + block)
        else:
            for line in block.strip().splitlines():
                words = shlex.split(line.removeprefix("$ "))
                assert words[0] == "python"
                done = subprocess.run(
                    [sys.executable, *words[1:]],
                    cwd=home,
                    env=environment,
                    capture_output=True,
                    text=True,
                    timeout=300,
                )
                assert done.returncode == 0, done.stdout + done.stderr
                performed += 1
    assert performed, "a recipe without a command shows nothing"
