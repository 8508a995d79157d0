"""Each figure gets a frame that says how wide it must be for its smallest text to be 9 pixels high.

The style sheet keeps it as wide on a telephone, where the frame scrolls. A figure in a fold is loaded
when the fold opens, or is printed.
"""

import re
from pathlib import Path

LEAST = 9  # pixels
FIGURE = re.compile(r'<img [^>]*src="[^"]*_images/([^"/]+\.svg)"[^>]*>')
FOLD = re.compile(r"<details.*?</details>", re.DOTALL)
TEXT = re.compile(r"font(?:-size)?: ?(?:[a-z]+ )*([\d.]+)px|scale\((0\.\d+) -")


def readable_width(svg: str) -> float | None:
    """Width in pixels at which the smallest text is LEAST pixels high; None without text.

    matplotlib writes text as such, with its size, or as glyphs of a hundred units, with their scale.
    """
    sizes = [float(size or 100 * float(scale)) for size, scale in TEXT.findall(svg)]
    width = re.search(r'viewBox="[\d.-]+ [\d.-]+ ([\d.]+)', svg)
    return float(width[1]) * LEAST / min(sizes) if sizes and width else None


def lazy(fold: str) -> str:
    """The fold with images that wait until it opens."""
    return fold.replace("<img ", '<img loading="lazy" ')


def mark(app, pagename, templatename, context, doctree):
    sources = {name: Path(app.srcdir, path) for path, name in app.builder.images.items()}

    def framed(image):
        source = sources.get(image[1])
        width = readable_width(source.read_text("utf-8")) if source and source.exists() else None
        frame = f'<span class="figure-frame" style="--readable: {width or 0:.0f}px">'
        return f"{frame}{image[0]}</span>"

    if context.get("body"):
        framed_body = FIGURE.sub(framed, context["body"])
        context["body"] = FOLD.sub(lambda fold: lazy(fold[0]), framed_body)


def setup(app):
    app.connect("html-page-context", mark)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
