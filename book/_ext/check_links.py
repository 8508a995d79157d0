"""Faults of a built book: `python book/_ext/check_links.py [book/_build/html]` prints a list and
exits with 1.

Looked for in every page: relative links and images whose file or anchor is missing, names of Python
objects where text belongs, intervals of nothing, identifiers in place of names, a page that does
not open with its finding in bold, a page of more than a megabyte, a script that is loaded twice,
plots without a caption, two images with one alternative text, Colab links to pages that are no
notebooks, formulas and scripts from elsewhere. Every table, figure and claim of the paper is at
most two clicks from the front page; `--clicks` prints how many.
"""

import re
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

RAW = {"domain_similarity", "feature_metrics", "generic_first", "neighbour_history"}
TEXTS = (
    "<IPython",
    "&lt;IPython",
    "&lt;Axes",
    "nan [nan",
    "+nan",
    "mzlib_resnet",
    "mzlib_densenet",
)
LINK = {"a": "href", "img": "src", "link": "href", "script": "src", "iframe": "src"}
ARTEFACTS = [f"table{i}" for i in range(1, 5)] + [f"fig{i}" for i in range(1, 9)]
CLAIMS = [f"c{i:02}" for i in range(1, 15)]
CLICKS = 2
WEIGHT = 1_000_000  # bytes of a page and the images that it loads at once


class Page(HTMLParser):
    """What a page links to, the ids that it has, and its images.

    links: (tag, address). in_text: addresses of links in the article, not in a side bar. alts: of
    its plots. uncaptioned: alts of plots that no caption follows before the next heading. opens:
    whether bold words come before the second heading.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.links = []
        self.in_text = []
        self.anchors = {"", "top"}
        self.alts = []
        self.uncaptioned = []
        self.cells = []
        self.opens = False
        self.headings = 0
        self.loaded = set()
        self._waiting = []
        self._in_cell = False
        self._in_article = False
        self.feed(path.read_text("utf-8"))
        self.uncaptioned += self._waiting

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag in LINK and found.get(LINK[tag]):
            self.links.append((tag, found[LINK[tag]]))
            if tag == "a" and self._in_article:
                self.in_text.append(found["href"])
        self._in_article |= tag == "article"
        if tag == "img" and found.get("loading") != "lazy":
            self.loaded.add(found.get("src", ""))
        if tag == "img" and "_images" in found.get("src", ""):
            self.alts.append(found.get("alt", ""))
            self._waiting.append(found.get("alt", ""))
        if tag == "figcaption" or "caption" in (found.get("class") or "").split():
            self._waiting = []
        self.opens |= tag == "strong" and self._in_article and self.headings == 1
        if tag in ("h1", "h2", "h3"):
            self.headings += self._in_article
            self.uncaptioned += self._waiting
            self._waiting = []
        self._in_cell = tag == "td"

    def handle_endtag(self, tag):
        self._in_article &= tag != "article"

    def handle_data(self, data):
        if self._in_cell:
            self.cells.append(data.strip())


def pages_of(folder: Path) -> dict[Path, Page]:
    """The pages of a built book; the theme leaves unfilled templates below _static."""
    found = [path for path in sorted(folder.rglob("*.html")) if "_static" not in path.parts]
    return {path: Page(path) for path in found}


def target_of(path: Path, link: str) -> tuple[Path, str]:
    """The file that a relative link of a page leads to, and the anchor in it."""
    parts = urlsplit(link)
    file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    return file, unquote(parts.fragment)


def faults(folder: Path) -> list[str]:
    """One line a fault, by page."""
    pages = pages_of(folder)
    found = []
    for path, page in pages.items():
        name = path.relative_to(folder)
        text = path.read_text("utf-8")
        text = re.sub(r"base64,[\w+/=]+", "", text)
        text = re.sub(r"<(script|pre)\b.*?</\1>", "", text, flags=re.DOTALL)
        found += [f"{name}: {bad!r} in the text" for bad in TEXTS if bad in text]
        found += [
            f"{name}: {cell} in a table"
            for cell in ({"True", "False", "nan"} | RAW) & set(page.cells)
        ]
        found += [
            f"{name}: {fault}" for link in page.links for fault in _of_link(path, *link, pages)
        ]
        found += [f"{name}: no caption under {alt!r}" for alt in page.uncaptioned]
        if page.headings and not page.opens:
            found.append(f"{name}: no finding in bold before the first section")
        found += [f"{name}: {fault}" for fault in _of_weight(path, page)]
    alts = Counter(alt for page in pages.values() for alt in page.alts)
    found += [
        f"{times} images are described as {alt!r}" for alt, times in alts.items() if times > 1
    ]
    found += [f"no description of {times} images" for alt, times in alts.items() if not alt]
    return list(dict.fromkeys(found))


def _of_weight(path: Path, page: Page) -> list[str]:
    images = [target_of(path, source)[0] for source in page.loaded if ":" not in source]
    weight = sum(file.stat().st_size for file in [path, *images] if file.is_file())
    found = [f"{weight:,} bytes, more than {WEIGHT:,}"] if weight > WEIGHT else []
    scripts = Counter(urlsplit(link).path for tag, link in page.links if tag == "script")
    return found + [
        f"{times} times the script {name}" for name, times in scripts.items() if times > 1
    ]


def _of_link(path: Path, tag: str, link: str, pages: dict[Path, Page]) -> list[str]:
    parts = urlsplit(link)
    if parts.scheme in ("http", "https"):
        if tag == "script":
            return [f"a script from {parts.netloc}"]
        if "colab." in parts.netloc and "blob" in link and not link.endswith(".ipynb"):
            return [f"Colab opens {link}"]
        return []
    if parts.scheme or parts.netloc:
        return []
    target, anchor = target_of(path, link)
    if not target.exists():
        return [f"no file for {link}"]
    if anchor and target.suffix == ".html":
        other = pages.get(target) or Page(target)
        if anchor not in other.anchors:
            return [f"no anchor for {link}"]
    return []


def clicks(folder: Path) -> dict[str, int | None]:
    """Of every table, figure and claim of the paper: links of texts that lead from the front page
    to the place, None where none do.
    """
    pages = pages_of(folder)
    start = (folder / "index.html").resolve()
    reached: dict[tuple[Path, str], int] = {(start, ""): 0}
    for step in range(1, CLICKS + 1):
        opened = {file for (file, _), at in reached.items() if at == step - 1 and file in pages}
        links = [target_of(file, link) for file in opened for link in pages[file].in_text]
        for place in links:
            reached.setdefault(place, step)
    return {
        name: min((at for (_, anchor), at in reached.items() if anchor == name), default=None)
        for name in ARTEFACTS + CLAIMS
    }


def main() -> int:
    """Print the faults of the built book, or the clicks."""
    arguments = [word for word in sys.argv[1:] if word != "--clicks"]
    folder = Path(arguments[0] if arguments else "book/_build/html").resolve()
    if not (folder / "index.html").is_file():
        print(f"expected a built book in {folder}, got no index.html, do make book")
        return 1
    steps = clicks(folder)
    if "--clicks" in sys.argv:
        print("\n".join(f"{name} {step}" for name, step in steps.items()))
    found = faults(folder)
    found += [f"more than {CLICKS} clicks to {name}" for name, step in steps.items() if not step]
    print("\n".join(found) or "no faults")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
