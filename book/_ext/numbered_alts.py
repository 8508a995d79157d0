"""Images of one page that share an alternative text get "1 of 3" and so on: a cell has one text."""

from collections import defaultdict

from docutils import nodes


def number(app, doctree: nodes.document, name: str) -> None:
    """Tell apart the images of a page by their alternative texts."""
    same = defaultdict(list)
    for image in doctree.findall(nodes.image):
        if image.get("alt"):
            same[image["alt"]].append(image)
    for alt, images in same.items():
        for i, image in enumerate(images if len(images) > 1 else [], start=1):
            image["alt"] = f"{alt} ({i} of {len(images)})"


def setup(app) -> dict:
    """Register with Sphinx."""
    app.connect("doctree-resolved", number)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
