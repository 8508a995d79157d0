"""Faults of a built book: `python book/_ext/check_links.py [book/_build/html]` prints a list and exits with 1.

Looked for in every page: relative links and images whose file or anchor is missing, names of Python
objects where text belongs, intervals of nothing, identifiers in place of names, figures that share
an alternative text, Colab links to pages that are no notebooks, formulas and scripts from elsewhere.
"""

import re
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

TEXTS = ("<IPython", "&lt;IPython", "nan [nan", "+nan", "mzlib_resnet", "mzlib_densenet")
LINK = {"a": "href", "img": "src", "link": "href", "script": "src", "iframe": "src"}


class Page(HTMLParser):
    """What a page links to, the ids that it has, and the alternative texts of its images."""

    def __init__(self, path: Path):
        super().__init__()
        self.links = []
        self.anchors = {"", "top"}
        self.alts = []
        self.cells = []
        self._in_cell = False
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag in LINK and found.get(LINK[tag]):
            self.links.append((tag, found[LINK[tag]]))
        if tag == "img" and found.get("alt") and "_images" in found.get("src", ""):
            self.alts.append(found["alt"])
        self._in_cell = tag == "td"

    def handle_data(self, data):
        if self._in_cell:
            self.cells.append(data.strip())


def faults(folder: Path) -> list[str]:
    """One line a fault, by page."""
    # the theme leaves unfilled templates below _static
    found = [path for path in sorted(folder.rglob("*.html")) if "_static" not in path.parts]
    pages = {path: Page(path) for path in found}
    found = []
    for path, page in pages.items():
        name = path.relative_to(folder)
        text = path.read_text("utf-8")
        text = re.sub(r"base64,[\w+/=]+", "", text)
        text = re.sub(r"<(script|pre)\b.*?</\1>", "", text, flags=re.DOTALL)
        found += [f"{name}: {bad!r} in the text" for bad in TEXTS if bad in text]
        found += [
            f"{name}: {cell} in a table" for cell in {"True", "False", "nan"} & set(page.cells)
        ]
        for tag, link in page.links:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https"):
                if tag == "script":
                    found.append(f"{name}: a script from {parts.netloc}")
                if "colab." in parts.netloc and "blob" in link and not link.endswith(".ipynb"):
                    found.append(f"{name}: Colab opens {link}")
                continue
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                found.append(f"{name}: no file for {link}")
            elif parts.fragment and target.suffix == ".html":
                other = pages.get(target) or Page(target)
                if unquote(parts.fragment) not in other.anchors:
                    found.append(f"{name}: no anchor for {link}")
        repeated = [alt for alt, times in Counter(page.alts).items() if times > 4]
        found += [f"{name}: {alt!r} describes more than four figures" for alt in repeated]
    return list(dict.fromkeys(found))


def main() -> int:
    """Print the faults of the built book."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "book/_build/html").resolve()
    if not (folder / "index.html").is_file():
        print(f"expected a built book in {folder}, got no index.html, do make book")
        return 1
    found = faults(folder)
    print("\n".join(found) or "no faults")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
