"""The book's sources, without building it; and the check of the built pages on pages made here."""

import ast
import re
import sys
import unicodedata
from inspect import signature
from pathlib import Path

import pytest

import mzlib
from mzlib import selectors
from mzlib.benchmark import figures, load_suite
from mzlib.benchmark.data import CARDS
from mzlib.benchmark.data.download import LIMIT
from mzlib.benchmark.data.paper import SETS
from mzlib.benchmark.data.store import CONVERSION
from mzlib.benchmark.engines import ATTEMPTS
from mzlib.benchmark.statistics import FEW
from mzlib.dataset import LARGEST, PER_CLASS
from mzlib.images import UNREADABLE
from mzlib.linearization import tangent_kernel
from mzlib.linearization.choice import SHARE
from mzlib.linearization.gram import MOST, TOGETHER
from mzlib.pixels import BUDGET, ELONGATED
from mzlib.provenance import CACHE_LIMIT
from mzlib.ranking import GROUPS, ROUNDS
from mzlib.reference import REFERENCE_RATE
from mzlib.selectors import SELECTORS
from mzlib.training import Recipe
from mzlib.uncertainty import leave_group_out
from mzlib.zoo import with_fresh_head
from mzlib.zoo.packaged import SIZES
from mzlib.zoo.recommended import RECOMMENDED

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "book"
PAGES = sorted(BOOK.glob("*.md"))
TEXT = {page.stem: page.read_text("utf-8") for page in PAGES}
sys.path.insert(0, str(BOOK / "_ext"))

from check_links import ARTEFACTS, CLAIMS, clicks, faults  # noqa: E402
from readable import lazy, readable_width, room  # noqa: E402


def test_every_page_is_in_the_contents():
    for name in ("_toc.yml", "_config.yml"):
        assert (BOOK / name).resolve() == ROOT / name
    listed = re.findall(r"(?:root|file): (\S+)", (ROOT / "_toc.yml").read_text())
    assert len(listed) == len(set(listed))
    assert {name for name in listed if "/" not in name} == set(TEXT)
    notebooks = {f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {name for name in listed if "/" in name} == notebooks


@pytest.mark.parametrize("page", TEXT)
def test_links_between_sources_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXT[page]):
        if link.startswith(("http", "mailto")):
            continue
        # what a cell prints links to the built page, prose to its source
        sources = [link, *(link.replace(".html", end) for end in (".md", ".ipynb"))]
        assert any((BOOK / source).exists() for source in sources), link


@pytest.mark.parametrize("page", TEXT)
def test_pages_call_figures_that_exist(page):
    assert set(re.findall(r"\bfigures\.([a-z]\w+)\(", TEXT[page])) <= set(dir(figures))


def test_every_plot_has_a_description_of_its_own():
    alts = [alt for text in TEXT.values() for alt in re.findall(r"^ +alt: (.+)$", text, re.M)]
    assert len(alts) > 20 and len(alts) == len(set(alts))
    for name, text in TEXT.items():
        calls = re.findall(r"\b\w+\.(?:fig\d|beside|by_task|half_zoos|agreement|kernel)\(", text)
        assert not calls or "alt:" in text, name


@pytest.mark.parametrize("page", TEXT)
def test_every_table_has_a_caption(page):
    shown = re.findall(r"figures\.show\(.*?\)\n(?=\S|$)", TEXT[page], re.S)
    assert all("caption=" in call for call in shown), shown


@pytest.mark.parametrize(
    "page", ["experts", "finetuning", "choosing", "practice", "claims", "cost"]
)
def test_a_page_opens_with_its_finding(page):
    _, _, body = TEXT[page].partition("\n# ")
    shown = [cell for cell in re.split(r"```", body) if "Markdown(" in cell]
    assert "**" in shown[0]


@pytest.mark.parametrize("page", [name for name, text in TEXT.items() if "summarize(" in text])
def test_means_are_said_to_be_over_the_targets_that_they_are_over(page):
    """`on_common_tasks` drops targets, a mean's `tasks` says how many are left: 54 were claimed for
    means over 48.
    """
    assert re.search(r"\[[\"']tasks[\"']\]", TEXT[page])
    counts = re.findall(r"^(.*)= .*\[\"task\"\]\.nunique\(\)", TEXT[page], re.M)
    assert all("everywhere" in names or names.startswith("    ") for names in counts)


RULE = {"p < .05", "80 %"}  # of the claims


@pytest.mark.parametrize("page", ["index", "practice", "claims", "choosing", "all_selectors"])
def test_results_are_quoted_by_cells_only(page):
    """A page agrees with the tables, and with the other pages, when no result stands in its prose:
    all are computed from the committed tables when it is built.
    """
    prose = re.sub(r"^```.*?^```", "", TEXT[page].partition("\n# ")[2], flags=re.S | re.M)
    prose = re.sub(r"\]\([^)]*\)", "]", prose)
    for rule in RULE:
        prose = prose.replace(rule, "")
    assert not re.findall(r"(?<![\w.])\d*\.\d+|\d+ (?:points|%)", prose)


def test_every_selector_is_cited():
    bibliography = (BOOK / "references.bib").read_text("utf-8")
    for selector in SELECTORS.values():
        for author, year in re.findall(r"(\w+)(?: et al\.| & \w+)? (\d{4})", selector.citation):
            plain = unicodedata.normalize("NFKD", author).encode("ascii", "ignore").decode()
            key = plain.lower() + year
            assert f"{{{key}," in bibliography, selector.citation
            assert re.search(rf"cite:[pt]}}`[^`]*\b{key}\b", TEXT["selectors"]), selector.citation


def test_the_api_pages_have_every_public_name():
    tasks = TEXT["api"] + TEXT["api_benchmark"]
    for name in mzlib.__all__:
        assert re.search(rf"autofunction:: mzlib\.\S*\b{name}\b", tasks), name
    for name in set(selectors.__all__) - {"SELECTORS", "Selector"}:
        pages = TEXT["api_selectors"] + TEXT["api_later"] + TEXT["api_later_two"]
        assert pages.count(f"autofunction:: mzlib.selectors.{name}\n") == 1, name
    for name in ("history", "prior", "neighbour_history", "History"):
        assert f":: mzlib.selectors.history.{name}\n" in TEXT["api_selectors"], name


def test_contact_sheets_are_small_and_of_sets_that_may_be_shown():
    sheets = list((BOOK / "_static/contact").glob("*.webp"))
    assert sheets and sum(sheet.stat().st_size for sheet in sheets) <= 1_500_000
    for sheet in sheets:
        licence = CARDS[sheet.stem]["license"]
        free = ("MIT", "CC BY", "CC0", "Apache", "public domain")
        assert any(word in licence for word in free) and "recalled" not in licence, sheet.stem


def test_the_check_finds_what_it_is_for(tmp_path):
    good = '<a href="b.html#x">b</a><img src="a.png" alt="a"><a href="https://example.org">e</a>'
    (tmp_path / "_images").mkdir()
    for image in ("a.png", "b.js", "_images/a.png"):
        (tmp_path / image).touch()
    (tmp_path / "index.html").write_text(good)
    (tmp_path / "b.html").write_text('<p id="x">nan</p><a href="index.html">home</a>')
    assert faults(tmp_path) == []
    bad = {
        '<a href="gone.html">x</a>': "no file for gone.html",
        '<a href="index.html#gone">x</a>': "no anchor for index.html#gone",
        "<p>&lt;IPython.core.display.Markdown object&gt;</p>": "'&lt;IPython' in the text",
        "<p>nan [nan, nan]</p>": "'nan [nan' in the text",
        "<p>mzlib_resnet</p>": "'mzlib_resnet' in the text",
        "<td>True</td>": "True in a table",
        "<td>feature_metrics</td>": "feature_metrics in a table",
        '<img src="_images/a.png" alt="c"><h2>next</h2><p class="caption">x</p>': "no caption",
        '<img src="_images/a.png" alt="c">' * 2 + '<p class="caption">x</p>': "2 images are",
        '<script src="https://cdn.example.org/x.js"></script>': "a script from cdn.example.org",
        '<a href="https://colab.research.google.com/github/a/b/blob/main/x.md">c</a>': "Colab opens",
        '<script src="b.js"></script>' * 2: "2 times the script b.js",
        f"<!--{'x' * 1_000_000}-->": "bytes, more than 1,000,000",
        "<article><h1>A</h1><p>x</p><h2>B</h2><strong>x</strong></article>": "no finding in bold",
    }
    for html, expected in bad.items():
        (tmp_path / "b.html").write_text('<p id="x"></p>' + html)
        found = faults(tmp_path)
        assert len(found) == 1 and expected in found[0], html


def test_clicks_are_counted_in_the_text_alone(tmp_path):
    a, b = ("".join(f'<p id="{n}"></p>' for n in names) for names in (ARTEFACTS, CLAIMS))
    to_fig8 = '<article><a href="a.html#fig8">Figure 8</a><a href="b.html">claims</a></article>'
    (tmp_path / "index.html").write_text('<nav><a href="a.html#fig1">1</a></nav>' + to_fig8)
    (tmp_path / "a.html").write_text(a)
    (tmp_path / "b.html").write_text(f'<article><a href="#c01">one</a></article>{b}')
    steps = clicks(tmp_path.resolve())
    assert (steps["fig8"], steps["c01"], steps["fig1"]) == (1, 2, None)


def test_all_figures_but_the_first_are_loaded_when_a_reader_comes_near():
    first, second = '<img src="_images/a">', '<img src="_images/b">'
    assert lazy(first + second) == first + second.replace("src", 'loading="lazy" src')
    framed = '<iframe srcdoc="<img src=&quot;data:b&quot;>">'
    assert lazy(first + framed) == first + framed
    assert lazy("<p>none</p>") == "<p>none</p>"


def test_a_figure_is_as_wide_as_its_smallest_text_wants():
    view = '<svg viewBox="0 0 360 200">'
    glyphs = view + '<g transform="scale(0.08 -0.08)"/><g transform="scale(0.1 -0.1)"/></svg>'
    assert readable_width(glyphs) == pytest.approx(360 * 9 / 8)
    text = view + '<text style="font: 12px sans-serif">a</text></svg>'
    assert readable_width(text) == pytest.approx(360 * 9 / 12)
    assert readable_width(view + "<path/></svg>") is None
    assert room(view) == 'width="480" height="267" ' and room("") == ""


def test_pages_find_only_results_in_the_home_which_may_be_another_than_the_book():
    pages = [*(ROOT / "book").glob("*.md"), *(ROOT / "notebooks").glob("*.py")]
    places = [
        found
        for page in pages
        for found in re.findall(r'home\(\) / f?"(\w+)', page.read_text("utf-8"))
    ]
    assert len(places) > 10 and set(places) <= {"results", "zoo", "runs"}


def default(function, parameter: str):
    return signature(function).parameters[parameter].default


def test_numbers_in_the_prose_are_those_of_the_code():
    """Whoever changes a constant or a suite learns here which sentence names it."""
    suite = load_suite("thumb64")
    tuning = suite.recipe("finetune")
    zoo = len(suite.starting_points("single"))
    grids = load_suite("paper").finetune
    rates = sorted({rate for grid in grids for rate in grid.learning_rates}, reverse=True)
    rounds = ", ".join(map(str, ROUNDS))
    assert default(with_fresh_head, "std") == default(tangent_kernel, "standard_error") == 0.01
    assert default(leave_group_out, "groups") == 20
    assert (Recipe.milestones, UNREADABLE, SHARE) == ((1 / 2, 5 / 6), 0.1, 0.01)
    assert (len(suite.sources), TOGETHER, FEW, ATTEMPTS) == (8, 8, 8, 2)
    assert CONVERSION.endswith("WebP quality 82")
    said = {
        "ranking": (
            f"at most {PER_CLASS} training images per class",
            f"{LARGEST // PER_CLASS} classes the number is reduced so that no more than {LARGEST:,}",
            f"exceeds {ELONGATED} times its short side",
            f"at most {BUDGET >> 30} GiB together",
            f"at most {CACHE_LIMIT >> 30} GiB and evicts",
            f"({GROUPS['pactran']} times for PACTran and {GROUPS['parc']} for PARC and N-LEEP",
            f"rounds of {rounds} and finally all images per class",
            "every score 20 times, each time without a twentieth",
            "more than a tenth of the files",
        ),
        "your_images": (
            f"the {zoo} committed experts, and three ImageNet",
            f"EfficientNet-Lite {SIZES[0]}, {SIZES[1]} and {SIZES[2]}",
            f"{len(RECOMMENDED)} current networks",
        ),
        "protocol": (
            f"up to {PER_CLASS} per class from the training subset",
            "(5 ⊂ 20 ⊂ full)",
            "up to 10 per class and at most a fifth of the class",
            r"\mathcal N(0, 0.01^2)",
            "rate decay after 1/2 and 5/6 of the steps",
            f"at rate {REFERENCE_RATE}",
            "with eight targets or fewer",
        ),
        "method": (
            f"eight per forward pass, until the standard error of LGC is at most .01 or {MOST} probes",
            "at least 1 % of the average layer's",
        ),
        "finetuning": (
            f"({tuning.epochs} epochs, at least {tuning.min_steps} steps)",
            f"the paper's rates of {rates[0]}, {rates[1]} and {rates[2]}",
        ),
        "growth": (f"rounds of {rounds} and {PER_CLASS} images per class",),
        "scale": (f"at most {LIMIT >> 20} MiB", "repeats its job once"),
        "data": (f"{suite.image_size} × {suite.image_size} pixels", "WebP of quality 82"),
        "choosing": (f"{PER_CLASS} training images per class", "eight starting points"),
    }
    for page, sentences in said.items():
        text = " ".join(TEXT[page].split())
        for sentence in sentences:
            assert sentence in text, (page, sentence)
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    assert f"{len(RECOMMENDED)} current networks" in readme


def constants(benchmark: str) -> dict:
    """The literals that a module of benchmarks/ assigns to names, without importing it."""
    found = {}
    for node in ast.parse((ROOT / "benchmarks" / benchmark).read_text("utf-8")).body:
        if isinstance(node, ast.Assign):
            try:
                found[ast.unparse(node.targets[0])] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return found


def test_numbers_in_the_prose_are_those_of_the_benchmarks():
    base = constants("growth.py")["BASE"]
    models, tasks, *_ = constants("growth.py")["(MODELS, TASKS, TOP, FULL)"]
    workers = constants("growth.py")["WORKERS"]
    rules = constants("validation_rules.py")
    shots, folds = int(rules["SHOTS"]), rules["FOLDS"]
    samples = constants("coverage.py")
    said = {
        "growth": (
            f"{base['images']} images of {base['image size']} × {base['image size']} pixels",
            f"in {base['classes']} classes ({base['features']} features)",
            f"{models:,} models and {tasks} tasks on {workers[0]} to {workers[-1]:,} workers",
        ),
        "practice": (f"at most {shots + 10} per class", f"with {shots}."),
        "ranking": ("over six targets with ten samples of 25 images",),
        "paper_suite": (
            f"the {SETS['google_landmark']['classes']} landmarks with the most images",
        ),
    }
    assert (folds, len(samples["TARGETS"]), samples["DRAWS"]) == (4, 6, 10)
    for page, sentences in said.items():
        text = " ".join(TEXT[page].split())
        for sentence in sentences:
            assert sentence in text, (page, sentence)


def test_the_sample_of_a_ranking_is_what_the_command_printed():
    """`benchmarks/rank_sample.py` wrote it; every committed expert is in it, with both scores."""
    assert "rank_sample.txt" in TEXT["your_images"]
    lines = (ROOT / "results/benchmarks/rank_sample.txt").read_text("utf-8").splitlines()
    sentences = next(i for i, line in enumerate(lines) if line.startswith("By "))
    head, *rows = [line.split() for line in lines[:sentences]]
    assert head == ["rank", "expert", "source", "neighbour_history", "lfc", "lgc", "seconds"]
    experts = {row[1] for row in rows}
    assert experts >= set(load_suite("thumb64").starting_points("single"))
    assert not re.search(r"^ +\d+-\d+ ", TEXT["your_images"], re.M)


@pytest.mark.parametrize("page", [*PAGES, *(ROOT / "notebooks").glob("*.py")])
def test_code_of_pages_and_notebooks_is_python_of_a_hundred_characters_a_line(page):
    text = page.read_text("utf-8")
    cells = re.findall(r"^```{code-cell}.*?\n(.*?)^```", text, re.M | re.S)
    for cell in cells if page.suffix == ".md" else [text]:
        code = re.sub(r"\A(---\n.*?^---\n|(:[^\n]*\n)*)", "", cell, flags=re.M | re.S)
        ast.parse(code)
        prose = "# " if page.suffix == ".py" else "\n"
        assert not [line for line in code.splitlines() if len(line) > 100 and line[:2] != prose]


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.py")))
def test_code_that_is_shown_fits_the_page(notebook):
    for cell in re.split(r"^# %%", notebook.read_text("utf-8"), flags=re.M)[1:]:
        tags, _, code = cell.partition("\n")
        if "[markdown]" not in tags and "hide" not in tags and "remove" not in tags:
            assert max(map(len, code.splitlines()), default=0) <= 78, code
