"""Docstrings are plain text with `names`: the API pages show them as they are written."""


def as_written(app, what, name, obj, options, lines):
    if lines:
        lines[:] = [".. code-block:: none", "", *(f"   {line}" for line in lines), ""]


def setup(app):
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", as_written)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
