"""Orders that need no target image: what every selector has to beat."""

from mzlib.selectors._checks import score


def random() -> float:
    """Constant, so that all experts tie: evaluation takes the expectation over all orders of ties,
    not one draw.
    """
    return 0.0


def source_accuracy(source_accuracy: float) -> float:
    """The expert's accuracy on its own source test set."""
    return score(source_accuracy)


def parameter_count(parameter_count: int) -> float:
    """The number of parameters of the expert's backbone, without its classifier: larger first."""
    return score(parameter_count)


def generic_first(is_generic: bool) -> float:
    """1 for experts pre-trained on the generic source (ImageNet in the paper), else 0; ties among
    each.
    """
    return score(bool(is_generic))
