"""The functions that notebooks and pages define for their own figures, for the tests of their
values.
"""

from pathlib import Path
from types import SimpleNamespace

import jupytext
import numpy as np

ROOT = Path(__file__).parents[1]


def functions_of(name: str) -> SimpleNamespace:
    """What the cells tagged `functions` of a notebook or a page of the book define."""
    notebook = ROOT / "notebooks" / f"{name}.py"
    file = notebook if notebook.is_file() else ROOT / "book" / f"{name}.md"
    namespace = {"np": np}
    for cell in jupytext.read(file).cells:
        if "functions" in cell.metadata.get("tags", []):
            exec(cell.source, namespace)  # our own file
    return SimpleNamespace(**namespace)
