"""Selectors where an image has no class but a number, or any number of labels.

Numbers have scores of their own (`mzlib.selectors.regression`). With several labels an image, a
score of classes is computed for each label (borne or not) and averaged; it has no meaning where it
is scaled over the zoo or compares with a net that was trained on classes.
"""

from dataclasses import replace
from statistics import fmean

import torch

from mzlib.errors import MzlibError
from mzlib.selectors.registry import NUMERIC, SELECTORS, Selector

KINDS = ("classes", "several", "numeric")  # of labels: one an image, any number of them, a number


def selectors_for(kind: str) -> list[str]:
    """Ids of all selectors that have a meaning for labels of that kind."""
    known = (*NUMERIC.values(), *SELECTORS.values())
    return [selector.id for selector in known if has_meaning(selector, kind)]


def has_meaning(selector: Selector, kind: str) -> bool:
    """Whether the selector can be had for labels of that kind."""
    needs = set(selector.needs.values())
    if not needs & {"labels", "targets", "reference_features"}:
        return True
    if kind == "several":
        return "labels" in needs and selector.combine is None
    return ("targets" in needs) == (kind == "numeric")


def fitted(selector: Selector, kind: str) -> Selector:
    """The selector for labels of that kind; MzlibError where it has no meaning for them."""
    if not has_meaning(selector, kind):
        known = ", ".join(selectors_for(kind))
        raise MzlibError(f"expected selectors of {kind} labels ({known}), got {selector.id}")
    if kind == "several" and "labels" in selector.needs.values():
        return over_labels(selector)
    return selector


def over_labels(selector: Selector) -> Selector:
    """The mean of a score of classes over labels: targets [N, K], which image bears which."""
    parameter = next(name for name, what in selector.needs.items() if what == "labels")

    def mean(**arguments) -> float:
        targets: torch.Tensor = arguments.pop(parameter)
        return fmean(selector.function(**{parameter: borne}, **arguments) for borne in targets.T)

    return replace(
        selector,
        function=mean,
        title=f"{selector.title}, mean over labels",
        needs=selector.needs | {parameter: "targets"},
    )
