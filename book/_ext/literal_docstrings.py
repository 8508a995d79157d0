"""Docstrings are plain text with `names`, indented lists and examples: the API pages show them
so.
"""

import re

ARRAY = re.compile(
    r"(?:[\w.~]*Tensor \| )?[\w.~]*_?Buffer \|.*?_?NestedSequence\[complex \| bytes \| str\]"
)


def escaped(text):
    """The text with its `names` as code and nothing else that reStructuredText would read."""
    parts = re.split(r"`([^`]*)`", text)
    plain = [re.sub(r"([*|_\\<>])", r"\\\1", part) for part in parts[::2]]
    code = [f"\\ ``{part}``\\ " if part.strip() else "" for part in parts[1::2]]
    woven = [plain[0]]
    for name, after in zip(code, plain[1:], strict=True):
        woven += [name, after]
    return "".join(woven)


def entries(lines):
    """The list below a head such as `Raises:`, an item a line with its continuations."""
    items = []
    for line in lines:
        deeper = line.startswith("        ")
        if items and deeper:
            items[-1] += " " + line.strip()
        else:
            items.append(line.strip())
    return items


def paragraph(lines):
    head, rest = lines[0], lines[1:]
    if head.strip() == "Examples:":
        return [".. code-block:: pycon", "", *(f"   {line.strip()}" for line in rest)]
    if head.endswith(":") and rest and all(line.startswith("    ") for line in rest):
        return [f"**{head}**", "", *(f"- {escaped(item)}" for item in entries(rest))]
    if all(line.startswith("    ") for line in lines):  # formulas
        return [".. code-block:: text", "", *(f"   {line.strip()}" for line in lines)]
    return [escaped(" ".join(line.strip() for line in lines))]


def as_written(app, what, name, obj, options, lines):
    blocks = [block.split("\n") for block in re.split(r"\n\s*\n", "\n".join(lines)) if block]
    lines[:] = [line for block in blocks for line in [*paragraph(block), ""]]


def short(app, what, name, obj, options, signature, returns):
    """numpy's ArrayLike as one word instead of the ten types that it stands for."""
    return signature and ARRAY.sub("ArrayLike", signature), returns


def setup(app):
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", as_written)
    app.connect("autodoc-process-signature", short)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
