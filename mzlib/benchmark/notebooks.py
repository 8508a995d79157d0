"""What every notebook does first, and what pages of the book take from notebooks."""

import difflib
from pathlib import Path
from runpy import run_path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

from mzlib.benchmark.data import load_task
from mzlib.benchmark.evaluate import PROTOCOLS
from mzlib.benchmark.suite import Suite, load_suite
from mzlib.errors import MzlibError

_ALWAYS = {
    "In",
    "Out",
    "get_ipython",
    "exit",
    "quit",
    "open",
    "known",
    "check_parameters",
    "os",
    "sys",
}


def check_parameters(known: set[str], namespace: dict) -> Suite:
    """The suite that `namespace["suite"]` names, if the parameters are possible.

    known: the public names after the cell tagged `parameters`; papermill injects the given ones
    after it, so any other public name is a parameter that the notebook does not have. `shots`,
    `selector`, `expert` and `protocol` are checked against the suite; `task` may be any task of
    this machine where scores can be computed live (`selector`).

    Raises: MzlibError naming the parameter, what was expected and what was given.
    """
    parameters = sorted(known - _ALWAYS)
    for name in sorted(namespace):
        if name.startswith("_") or name in known or name in _ALWAYS:
            continue
        near = difflib.get_close_matches(name, parameters, 1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise MzlibError(f"expected parameters of {', '.join(parameters)}; got {name!r}{hint}")
    suite = load_suite(namespace["suite"])
    choices = {
        "shots": {str(s) for grid in suite.finetune for s in grid.shots},
        "selector": {s for grid in suite.score for s in grid.selectors},
        "expert": set(suite.starting_points()),
        "task": set(suite.targets),
        "protocol": set(PROTOCOLS),
    }
    if "selector" in known and namespace["task"] not in suite.targets:
        choices["task"] = {load_task(namespace["task"], suite.image_size).name, namespace["task"]}
    for name, allowed in choices.items():
        if name in known and str(namespace[name]) not in allowed:
            raise MzlibError(
                f"expected {name} of {', '.join(sorted(allowed))} in the suite {suite.name}, "
                f"got {namespace[name]!r}"
            )
    return suite


def functions_of(notebook: str) -> SimpleNamespace:
    """What the cells tagged `functions` of a notebook define, for a page of the book that draws the
    same from other results.
    """
    import jupytext  # of the book's extra

    file = Path(__file__).parents[2] / "notebooks" / f"{notebook}.py"
    cells = jupytext.read(file).cells
    parts = [cell.source for cell in cells if "functions" in cell.metadata.get("tags", [])]
    with TemporaryDirectory() as place:
        module = Path(place, file.name)
        module.write_text("\n\n".join(parts), "utf-8")
        defined = run_path(str(module))
    return SimpleNamespace(**defined)
