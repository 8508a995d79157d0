"""Each figure gets a frame that says how wide it must be for its smallest text to be 9 pixels high.

The style sheet keeps it as wide on a telephone, where the frame scrolls. All figures but
a page's first are loaded when a reader comes near them, or prints; their room is kept free before.
"""

import re
from pathlib import Path

LEAST = 9  # pixels
FIGURE = re.compile(r'<img [^>]*src="[^"]*_images/([^"/]+\.svg)"[^>]*>')
OWN = re.compile(r'<img (?=[^>]*src="[^"]*_images/)')  # none of a page that a frame holds
VIEW = re.compile(r'viewBox="[\d.-]+ [\d.-]+ ([\d.]+) ([\d.]+)"')
PIXELS = 4 / 3  # of a point
TEXT = re.compile(r"font(?:-size)?: ?(?:[a-z]+ )*([\d.]+)px|scale\((0\.\d+) -")


def readable_width(svg: str) -> float | None:
    """Width in pixels at which the smallest text is LEAST pixels high; None without text.

    matplotlib writes text as such, with its size, or as glyphs of a hundred units, with their
    scale.
    """
    sizes = [float(size or 100 * float(scale)) for size, scale in TEXT.findall(svg)]
    view = VIEW.search(svg)
    return float(view[1]) * LEAST / min(sizes) if sizes and view else None


def room(svg: str) -> str:
    """Attributes of an image's size, so that the page does not move when it is loaded."""
    view = VIEW.search(svg)
    if not view:
        return ""
    width, height = (PIXELS * float(side) for side in view.groups())
    return f'width="{width:.0f}" height="{height:.0f}" '


def lazy(body: str) -> str:
    """The page with all figures but the first waiting until they are near the window."""
    first = OWN.search(body)
    at = first.end() if first else 0
    return body[:at] + OWN.sub('<img loading="lazy" ', body[at:])


def mark(app, pagename, templatename, context, doctree):
    sources = {name: Path(app.srcdir, path) for path, name in app.builder.images.items()}

    def framed(image):
        source = sources.get(image[1])
        svg = source.read_text("utf-8") if source and source.exists() else ""
        width = readable_width(svg) or 0
        frame = f'<span class="figure-frame" style="--readable: {width:.0f}px">'
        sized = image[0].replace("<img ", f"<img {room(svg)}", 1)
        return f"{frame}{sized}</span>"

    if context.get("body"):
        context["body"] = lazy(FIGURE.sub(framed, context["body"]))


def setup(app):
    app.connect("html-page-context", mark)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
