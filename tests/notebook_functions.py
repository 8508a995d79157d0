"""The functions that notebooks define for their own figures, for the tests of their values."""

from pathlib import Path
from types import SimpleNamespace

import jupytext
import numpy as np

FOLDER = Path(__file__).parents[1] / "notebooks"


def functions_of(notebook: str) -> SimpleNamespace:
    """What the cells tagged `functions` of `notebooks/<notebook>.py` define."""
    namespace = {"np": np}
    for cell in jupytext.read(FOLDER / f"{notebook}.py").cells:
        if "functions" in cell.metadata.get("tags", []):
            exec(cell.source, namespace)  # our own file
    return SimpleNamespace(**namespace)
