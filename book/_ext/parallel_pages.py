"""Pages are executed and written by as many processes as there are cores; `jupyter-book build` has
no option for it.
"""

import os

import sphinx.builders


def declare(app, config):
    # it works on what has been read, but does not say so
    app.extensions["sphinx_multitoc_numbering"].parallel_read_safe = True


def setup(app):
    app.parallel = os.cpu_count()
    sphinx.builders.make_chunks = lambda pages, *_: [
        [page] for page in pages
    ]  # by tens, one process has all the long notebooks
    app.connect("config-inited", declare)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
