"""The table of selectors: a new one is a function in its paper's file and a row of the TOML."""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from mzlib.memory import full_float32


@dataclass(frozen=True)
class Selector:
    """One entry of the registry. `function(**{parameter: evidence.attribute})` returns the score,
    or, when `combine` is given (scores normalised over the zoo), a tuple of k components;
    `combine([E, k]) -> [E]` scores.
    """

    id: str
    title: str
    function: Callable
    needs: dict[str, str]
    citation: str
    kind: str = "score"
    combine: Callable | None = None

    def value(self, **arguments: Any) -> Any:
        """`function(**arguments)`, with all digits of float32 on a GPU whose user chose fewer."""
        with full_float32():
            return self.function(**arguments)


def resolve(selector: Selector, evidence: Any) -> Any:
    """The selector's value on the evidence (a tuple of components where `combine` is given); may
    raise `Missing`.
    """
    arguments = {name: getattr(evidence, key) for name, key in selector.needs.items()}
    return selector.value(**arguments)


def _selector(id: str, row: dict) -> Selector:
    """Of a row; `<function>_combine` in the function's file is its `combine`."""
    file, name = row["function"].split(".")
    module = import_module(f"mzlib.selectors.{file}")
    function = getattr(module, name)
    needs = {}
    for word in row["needs"].split():
        parameter, _, attribute = word.partition("=")
        needs[parameter] = attribute or parameter
    return Selector(
        id,
        row["title"],
        partial(function, **row["options"]) if "options" in row else function,
        needs,
        row["citation"],
        row.get("kind", "score"),
        getattr(module, f"{name}_combine", None),
    )


_TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
FEATURES = {"features": "features", "labels": "labels"}
SELECTORS = {id: _selector(id, row) for id, row in _TABLE["classes"].items()}
NUMERIC = {id: _selector(id, row) for id, row in _TABLE["numeric"].items()}
