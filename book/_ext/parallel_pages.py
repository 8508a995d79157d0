"""Pages are executed and written by as many processes as there are cores; `jupyter-book build` has no option for it."""

import os

LATER_THAN_READING = ("sphinx_multitoc_numbering", "sphinx_jupyterbook_latex")  # they work on finished pages but do not say so


def setup(app):
    app.parallel = os.cpu_count()
    for name in LATER_THAN_READING:
        app.extensions[name].parallel_read_safe = True
    return {"parallel_read_safe": True, "parallel_write_safe": True}
