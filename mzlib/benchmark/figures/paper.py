"""The paper's numbers: `book/paper/*.csv`."""

from pathlib import Path

import pandas as pd
from pandas import DataFrame

from mzlib.errors import MzlibError
from mzlib.provenance import home


def paper(name: str) -> DataFrame:
    """A table of `book/paper/`, as printed there.

    Raises MzlibError where it is missing (a package that was installed without the book).
    """
    for root in (home(), Path(__file__).parents[3]):
        file = root / "book/paper" / f"{name}.csv"
        if file.is_file():
            return pd.read_csv(file, dtype={"shots": str, "images_per_class": str})
    raise MzlibError(
        f"expected the paper's numbers in {home() / 'book/paper'}, got none: "
        "run in a clone of the repository"
    )
