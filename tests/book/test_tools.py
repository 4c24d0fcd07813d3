"""The smaller tools: the address of the repository, docstrings, the API page."""

import hashlib
import json
import pkgutil
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import build
import docstrings
import lighten
import nbformat
import pytest
import web
import whole
import yaml
from docutils import nodes
from docutils.utils import new_document
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image
from repository import ROOT, Repository, move, read, rewrite

import edm_tutorial
from edm_tutorial import grids
from edm_tutorial.sbi import tasks

OLD = Repository("owner", "name")
NEW = Repository("some-one", "other.name")
FIXTURE = Path(__file__).with_name("fixture")

BADGES = """\
[![tests](https://github.com/owner/name/actions/badge.svg)](https://github.com/owner/name)
git clone https://github.com/owner/name.git
https://colab.research.google.com/github/owner/name/blob/main/notebooks/00_start.ipynb
https://raw.githubusercontent.com/owner/name/main/book/_static/dot.png
https://owner.github.io/name/book/intro.html
neither some-owner/name nor owner/name-two nor owner/names
"""


@pytest.mark.parametrize("url", ["https://github.com/a/b", "https://github.com/a/b.git/"])
def test_an_address_is_read(url):
    assert Repository.parse(url) == Repository("a", "b")


@pytest.mark.parametrize("url", ["github.com/a/b", "https://github.com/a", "https://x.y/a/b"])
def test_a_wrong_address_is_refused(url):
    with pytest.raises(ValueError, match="need https://github.com/OWNER/NAME"):
        Repository.parse(url)


def test_every_form_of_the_address_moves():
    moved = rewrite(BADGES, OLD, NEW)
    *links, last = moved.splitlines()
    assert all("owner" not in line for line in links)
    assert sum("some-one/other.name" in line for line in links) == 4
    assert "https://some-one.github.io/other.name/book/intro.html" in moved
    assert last == BADGES.splitlines()[-1]


def test_moving_there_and_back_changes_nothing(tmp_path):
    """Text files that git sees are rewritten; binary and ignored files are not."""
    root = shutil.copytree(FIXTURE, tmp_path / "copy")
    (root / "README.md").write_text(BADGES)
    (root / ".gitignore").write_text("ignored.txt\n")
    (root / "ignored.txt").write_text(OLD.url)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    before = {path: path.read_bytes() for path in root.glob("*") if path.is_file()}
    changed = move(root, NEW)
    assert {path.name for path in changed} == {"README.md", "pyproject.toml"}
    assert read(root) == NEW
    move(root, OLD)
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize(
    "source, expected",
    [
        (r"at time $t$, with $a\,b$.", r"at time :math:`t`, with :math:`a\,b`."),
        ("two lines $a\n  + b$ long", "two lines :math:`a + b` long"),
        ("see `sample` and `x`s", "see ``sample`` and ``x``\\ s"),
        ("``done`` and :math:`done`", "``done`` and :math:`done`"),
        ("shape (n, *shape), fields c_", "shape (n, \\*shape), fields c\\_"),
        ("*not* a posterior", "*not* a posterior"),
        ("$$\nx\n$$", "\n.. math:: x\n"),
        (
            "Train.\n\n    x = `1`\n\n    y\n\nEnd `z`.",
            "Train.\n\n::\n\n    x = `1`\n\n    y\n\nEnd ``z``.",
        ),
        ("Train:\n\n    x = `1`", "Train:\n\n::\n\n    x = `1`"),
        ("Arguments:\n    a: `x`\n\n    b: y", "Arguments:\n    a: ``x``\n\n    b: y"),
    ],
)
def test_docstrings_become_restructured_text(source, expected):
    assert docstrings.to_rst(source) == expected


def test_a_default_that_is_a_function_is_not_named():
    """Nobody can write `<function _normal>`."""
    written = docstrings._signature(*[None] * 5, "(draw=<function _normal>, n=1)", "int")
    assert written == ("(draw=..., n=1)", "int")
    written = docstrings._signature(*[None] * 5, "(dtype=<class 'jax.numpy.bfloat16'>)", None)
    assert written == ("(dtype=bfloat16)", None)
    assert docstrings._signature(*[None] * 5, None, None) == (None, None)


@pytest.mark.parametrize(
    "function, left_out",
    [
        (edm_tutorial.sample, None),  # exported by a folder
        (grids.iddpm_levels, True),  # of use to its own file alone
        (tasks.draw, None),  # named in a chapter
    ],
)
def test_an_api_page_lists_what_is_exported_or_named_on_a_page(function, left_out):
    name = function.__name__
    assert docstrings._skip(None, "module", name, function, False, None) is left_out
    assert docstrings._skip(None, "class", name, function, False, None) is None  # a method


def test_every_module_has_its_place_on_an_api_page():
    pages = [ROOT / "book" / "api.md", *(ROOT / "book" / "api").glob("*.md")]
    page = "\n".join(page.read_text() for page in pages)
    listed = set(re.findall(r"automodule:: ([\w.]+)", page))
    modules = {
        module.name
        for module in pkgutil.walk_packages(edm_tutorial.__path__, "edm_tutorial.")
        if not module.ispkg and "._deprecated." not in module.name
    }
    inside = {"__main__", "_checks"}
    inside |= {f"images.{name}" for name in ("command_line", "arguments", "recipe")}
    folders = {"edm_tutorial.sbi.transforms"}  # whose face has the interface of its files
    assert listed - folders == modules - {f"edm_tutorial.{name}" for name in inside}


def test_outputs_of_another_notebook_are_refused(tmp_path, monkeypatch):
    """The cache never shows outputs beside code that did not make them."""
    monkeypatch.setattr(build, "EXECUTED", tmp_path)
    source = FIXTURE / "notebooks" / "02_other.md"
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": "1 + 1"}
    cell |= {"outputs": [], "execution_count": 1}
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "02_other.ipynb").write_text(json.dumps(notebook))
    with pytest.raises(SystemExit, match="out of step"):
        build.with_outputs(source)


def test_outputs_of_a_folded_cell_are_found_below_its_title(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "EXECUTED", tmp_path)
    source = tmp_path / "page.md"
    source.write_text("```{code-cell} python\n---\ntags: [hide-input]\n---\n1 + 1\n```\n")
    shown = {"output_type": "execute_result", "execution_count": 1, "metadata": {}}
    shown |= {"data": {"text/plain": "2"}}
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "execution_count": 1}
    cell |= {"source": "# @title Set-up\n1 + 1", "outputs": [shown]}
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "page.ipynb").write_text(json.dumps(notebook))
    (found,) = build.with_outputs(source).cells
    assert found.source == "1 + 1" and found.outputs[0].data["text/plain"] == "2"


def test_a_changed_cell_changes_the_fingerprint_and_prose_does_not(tmp_path):
    source = tmp_path / "chapter.md"
    text = (FIXTURE / "notebooks" / "02_other.md").read_text()
    prints = []
    for changed in (text, text + "\nProse.\n", text.replace("2 + 2", "2 + 3")):
        source.write_text(changed)
        prints.append(build.fingerprint(source))
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("name", ["jaxlib", "scipy", "scikit-learn", "arviz-stats", "numpy"])
def test_another_version_changes_the_fingerprint(name, monkeypatch):
    source = FIXTURE / "notebooks" / "02_other.md"
    before = build.fingerprint(source)
    (line,) = (line for line in build.installed() if line.lower().startswith(f"{name}=="))
    lines = [line + ".1" if line.lower().startswith(f"{name}==") else line
             for line in build.installed()]  # fmt: skip
    monkeypatch.setattr(build, "installed", lambda: lines)
    assert build.fingerprint(source) != before


def test_other_flags_of_the_compiler_change_the_fingerprint(monkeypatch):
    source, prints = FIXTURE / "notebooks" / "02_other.md", set()
    for flags in ("", "--xla_backend_optimization_level=1"):
        monkeypatch.setenv("XLA_FLAGS", flags)
        prints.add(build.fingerprint(source))
    assert len(prints) == 2


def test_the_longest_chapter_is_the_one_that_says_so():
    chapters = {path.stem: build.said_seconds(path) for path in build.export.chapters(build.ROOT)}
    assert max(chapters, key=chapters.get) == "06_sbi" and chapters["06_sbi"] == 300
    assert all(chapters.values()) and build.said_seconds(FIXTURE / "notebooks" / "02_other.md") == 0


WARN = "warnings.warn('heard')"
CELLS = {
    "cell": WARN,
    "package": f'exec("{WARN}", {{"warnings": warnings, "__name__": "edm_tutorial.grids"}})',
    "library": f'exec("{WARN}", {{"warnings": warnings, "__name__": "edm_tutorials"}})',
    "caught": f"try: {WARN}\nexcept UserWarning as warning: print(warning)",
}


@pytest.mark.slow
def test_a_warning_of_a_cell_or_of_the_package_fails_and_one_of_a_library_is_shown(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(build, "EXECUTED", tmp_path)
    for name, source in CELLS.items():
        notebook = new_notebook(cells=[new_code_cell(f"import warnings\n{source}")])
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    passed = build._run([Path(f"{name}.md") for name in CELLS])
    assert passed.keys() == {"library", "caught"}
    (shown,) = build.stderr(Path("library.md"))
    assert "UserWarning: heard" in shown and build.stderr(Path("caught.md")) == []


def test_mathjax_is_the_release_that_is_named_beside_it():
    folder = ROOT / "book" / "_static" / "mathjax"
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    files = [path for path in folder.rglob("*") if path.is_file()]
    files = [path for path in files if path.name not in ("SHA256SUMS", "ORIGIN.txt")]
    found = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
    assert found == sums and {"LICENSE", "output/chtml/fonts/OFL.txt"} <= found.keys()
    (version,) = re.findall(r"^MathJax ([\d.]+),", (folder / "ORIGIN.txt").read_text())
    assert f'VERSION="{version}"' in (folder / "tex-chtml-full.js").read_text()


def test_each_chapter_begins_with_the_diagram_and_lights_some_of_its_parts():
    for page in sorted((ROOT / "notebooks").glob("*.md")):
        _, title, after = page.read_text().partition("\n# ")
        assert title, page.name
        calls = re.findall(r"^:::\{whole\} ?(.*)\n:::$", after, re.MULTILINE)
        assert len(calls) == 1 and after.split("\n")[2].startswith(":::{whole} "), page.name
        assert 0 < len(calls[0].split()) < len(whole.PARTS)
        assert set(calls[0].split()) <= whole.PARTS.keys()


def test_the_diagram_lights_what_it_is_told_to_and_says_so():
    picture = ElementTree.fromstring(whole.drawing(["levels", "solver"]))
    groups = [group for group in picture if group.tag == "g"]
    assert len(groups) == len(whole.PARTS)
    lit = [group.find("text").text for group in groups if group.get("class") == "lit"]
    assert lit == ["noise levels", "solver"]
    assert picture.get("aria-label").endswith("In this chapter: noise levels, solver.")
    assert "In this chapter" not in whole.drawing([])


def test_the_parts_of_the_diagram_lie_in_it_and_not_on_each_other():
    """With room for their words: a letter of 10 px is 6 px wide at most, on average."""
    boxes = [place for place, _ in whole.PARTS.values()]
    for (x, y, width), text in whole.PARTS.values():
        assert 0 < x and x + width < 360 and y + whole.TALL < 95 and 6 * len(text) <= width + 6
    for i, (x, y, width) in enumerate(boxes):
        for other_x, other_y, other_width in boxes[:i]:
            apart = x >= other_x + other_width or other_x >= x + width
            assert apart or abs(y - other_y) >= whole.HEIGHT


def test_a_description_is_the_first_paragraph_up_to_a_sentence():
    document = new_document("page")
    first = "One sentence that is certainly long enough to be told to others. "
    for text in ("A label.", first + "Another one " + "which never ends " * 20):
        document += nodes.paragraph(text=text)
    assert web.description(document) == first.strip()
    long = new_document("page")
    long += nodes.paragraph(text="word " * 100)
    assert web.description(long) == "word " * 39 + "word …"


def test_what_other_sites_read_is_escaped_and_has_the_books_address():
    found = web.tags("https://a.io/b/", "book/intro", 'A "title" & more', "Text <1>.")
    assert 'content="https://a.io/b/book/intro.html"' in found
    assert 'content="A &quot;title&quot; &amp; more"' in found and "&lt;1&gt;" in found
    assert (ROOT / "book" / web.CARD).is_file() and f"https://a.io/b/{web.CARD}" in found
    tree = ElementTree.fromstring(web.sitemap("https://a.io/b/", ["x.html", "y&.html"]).encode())
    assert [url[0].text for url in tree] == ["https://a.io/b/x.html", "https://a.io/b/y&.html"]


def test_the_books_address_is_the_repositorys():
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    assert config["html"]["baseurl"] == read(ROOT).pages + "/"
    with Image.open(ROOT / "book" / web.CARD) as card:
        assert card.size == (1200, 630)


def test_words_are_those_of_the_text_before_the_exercises(tmp_path):
    page = tmp_path / "00_page.md"
    head, *_ = (FIXTURE / "notebooks" / "00_start.md").read_text().partition("(ch-")
    page.write_text(
        f"{head}(ch-page)=\n# A title\n\nTwo of $x + y$, isn't it?\n\n$$\na b c\n$$\n\n"
        ":::{admonition} Box\n:class: note\nInside it.\n:::\n\n"
        "```{code-cell} python\na = 1\n```\n\n"
        "## Exercises\n\nMany more words.\n"
    )
    assert build.words(page) == 2 + 5 + 1 + 2


def test_a_formula_keeps_its_point_or_bracket_on_its_line(tmp_path):
    formula = '<span class="math notranslate nohighlight">\\(x\\)</span>'
    html = f"at {formula}, and ({formula}) or {formula} alone"
    tied = '<span class="with-point">'
    assert lighten.lighter(html, tmp_path) == (
        f"at {tied}{formula},</span> and {tied}({formula})</span> or {formula} alone"
    )
