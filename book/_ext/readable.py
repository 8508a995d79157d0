"""Each figure gets a frame that says how wide it must be for its smallest text to be 9 pixels high.

The style sheet keeps it as wide on a telephone, where the frame scrolls. All figures but
a page's first are loaded when a reader comes near them, or prints.
"""

import re
from pathlib import Path

LEAST = 9  # pixels
FIGURE = re.compile(r'<img [^>]*src="[^"]*_images/([^"/]+\.svg)"[^>]*>')
OWN = re.compile(r'<img (?=[^>]*src="[^"]*_images/)')  # none of a page that a frame holds
TEXT = re.compile(r"font(?:-size)?: ?(?:[a-z]+ )*([\d.]+)px|scale\((0\.\d+) -")


def readable_width(svg: str) -> float | None:
    """Width in pixels at which the smallest text is LEAST pixels high; None without text.

    matplotlib writes text as such, with its size, or as glyphs of a hundred units, with their scale.
    """
    sizes = [float(size or 100 * float(scale)) for size, scale in TEXT.findall(svg)]
    width = re.search(r'viewBox="[\d.-]+ [\d.-]+ ([\d.]+)', svg)
    return float(width[1]) * LEAST / min(sizes) if sizes and width else None


def lazy(body: str) -> str:
    """The page with all figures but the first waiting until they are near the window."""
    first = OWN.search(body)
    at = first.end() if first else 0
    return body[:at] + OWN.sub('<img loading="lazy" ', body[at:])


def mark(app, pagename, templatename, context, doctree):
    sources = {name: Path(app.srcdir, path) for path, name in app.builder.images.items()}

    def framed(image):
        source = sources.get(image[1])
        width = readable_width(source.read_text("utf-8")) if source and source.exists() else None
        frame = f'<span class="figure-frame" style="--readable: {width or 0:.0f}px">'
        return f"{frame}{image[0]}</span>"

    if context.get("body"):
        context["body"] = lazy(FIGURE.sub(framed, context["body"]))


def setup(app):
    app.connect("html-page-context", mark)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
