"""The exporter: every directive of the fixture, and what it refuses."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import export
import pytest
from citations import Citations
from myst_blocks import Equation, MarkupError, parse
from numbering import Book, Page, read_book
from render import Renderer
from repository import ROOT, Repository

FIXTURE = Path(__file__).with_name("fixture")
COLAB = "https://colab.research.google.com/github/owner/name/blob/main/notebooks"
HEAD = "---\nfile_format: mystnb\n---\n"


def cells(name: str) -> list[dict]:
    return json.loads(export.export(FIXTURE)[FIXTURE / "notebooks" / f"{name}.ipynb"])["cells"]


def text(name: str) -> str:
    return "\n\n".join(
        "".join(cell["source"]) for cell in cells(name) if cell["cell_type"] == "markdown"
    )


def fixture_renderer() -> Renderer:
    """A renderer of a page of the fixture."""
    page, citations = Page("notebooks/02_other", "2", []), FIXTURE / "book" / "references.bib"
    return Renderer(read_book(FIXTURE), page, Citations(citations), Repository("owner", "name"))


def rendered(source: str) -> str:
    """One cell of MyST on a page of the fixture."""
    return fixture_renderer().cell(parse(source))


@pytest.mark.parametrize(
    "expected",
    [
        "# 1. Every directive, once",
        "> **Before you start**\n>\n> - **You need:** [First samples](",
        "> **Aside**\n>\n> Eq. 3 of [Karras et al., 2022; Efron, 2011].",
        "Efron [2011] agrees.",
        "\\frac{D(x; \\sigma) - x}{\\sigma^2},\n\\tag{1.1}\n$$",
        "  d = e.\n  \\tag{1.2}\n  $$",
        "---\n\n**Theorem 1.1 (Tweedie)**\n\nFor unit noise, (1.1) holds",
        "*Proof.* Differentiate (1.3) under the integral.",
        "> **Definition 1.1**\n>\n> A number.",
        "By Theorem 1.1 and Definition 1.1, ``{eq}`raw` `` stays as it is typed.",
        "> **Predict, then run**\n>\n> Is the line going *up* or down? See Figure 1.1.",
        "**Figure 1.1.** A line that goes up, as in (1.1).",
        "![A black dot.](https://raw.githubusercontent.com/owner/name/main/book/_static/"
        "dot.png)\n\n**Figure 1.2.** A dot.",
        "<summary>For the curious</summary>\n\nA folded box.\n\n</details>",
        "Nothing, says *What could go wrong*; the [paper](https://arxiv.org/abs/",
        "**Exercise 1.1 (★ Think)**\n\nWhy is (1.2) true?",
        "<summary>Solution to Exercise 1.1</summary>\n\nBecause of Figure 1.2.",
        "<summary>Solution to Exercise 1.2, continued</summary>\n\nand see 3, as "
        "Exercise 1.2 says.",
        "## References\n\n- Efron B. (2011). *Tweedie's Formula and Selection Bias*.",
    ],
)
def test_a_directive_reads_as_plain_markdown(expected):
    assert expected in text("01_every")


def test_references_to_another_chapter_are_links():
    page = text("02_other")
    assert f"[Theorem 1.1]({COLAB}/01_every.ipynb)" in page
    assert f"[Chapter 1]({COLAB}/01_every.ipynb)" in page
    assert "so (2.1) follows from [(1.1)](" in page


def test_a_section_of_a_page_is_linked_and_one_of_a_chapter_opens_the_chapter():
    section = "intro.md#a-book-with-every-directive"
    page = f"https://github.com/owner/name/blob/main/book/{section}"
    assert rendered(f"[a page](../book/{section})") == f"[a page]({page})"
    assert rendered("[b](01_every.md#the-score)") == f"[b]({COLAB}/01_every.ipynb)"


def test_numbers_outside_the_numbered_part_have_no_chapter():
    assert "\\tag{1}\n" in text("00_start") and "# First samples" in text("00_start")


def test_no_myst_is_left():
    for name in ("00_start", "01_every", "02_other"):
        page = re.sub(r"``.+?``", "", text(name))
        assert not re.search(r":::|\{[\w:]+\}`|^\(.*\)=$|^%", page, re.MULTILINE)


def test_code_of_a_solution_is_hidden_and_still_there():
    solution = next(c for c in cells("01_every") if "x = 3\n" in c["source"])
    assert solution["metadata"]["jupyter"] == {"source_hidden": True}


def test_names_of_the_package_are_code():
    assert rendered("{py:func}`~a.b.draw` and {py:class}`a.C`") == "`draw()` and `a.C`"


def test_first_cell_installs_where_the_package_is_missing(monkeypatch):
    first = "".join(cells("01_every")[0]["source"])
    assert "git+https://github.com/owner/name" in first
    branch = first.partition("is None:\n")[2]
    assert all(line.startswith("    ") for line in branch.splitlines())
    plain = first.replace("%pip", "raise SystemExit #")
    exec(plain, {})  # the package is here, so nothing happens
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        exec(plain, {})


def test_ids_are_stable():
    """An edit of one cell leaves the names of the others alone."""
    before = [cell["id"] for cell in cells("01_every")]
    assert before == [cell["id"] for cell in cells("01_every")]
    assert len(set(before)) == len(before)
    changed = export._with_ids([export._markdown("a"), export._markdown("new")])
    same = export._with_ids([export._markdown("a"), export._markdown("a")])
    assert changed[0]["id"] == same[0]["id"] and same[1]["id"] == same[0]["id"] + "-2"


@pytest.mark.parametrize(
    "source, message",
    [
        (":::{unheard-of}\n:::", "no rule to export the directive {unheard-of}"),
        ("see {unheard}`of`", "no rule to export the role"),
        ("see {eq}`nowhere`", "no label 'nowhere'"),
        ("see {numref}`sec-wrong`", "has no number"),
        (":::{note}\nnever closed", "not closed"),
        ("```{note}\n```", "with colons"),
        ("  :::{note}\n  :::", "left margin"),
        ("text\n$$\nx\n$$", "blank line before"),
        ("$$\nx\n\ny\n$$", "blank line inside"),
        ("$$\nx", "not closed"),
        ("\\begin{align}\nx\n\\end{align}", "$$ around"),
        ("> $$ x $$", "blockquote"),
        ("a note[^1]", "footnotes"),
        (":::{figure} ../book/_static/dot.png\nA dot.\n:::", ":alt:"),
        ("![gone](gone.png)", "no file"),
        ("[here](#sec-wrong)", "{ref}"),
        ("[there](01_every.md#no-such)", "no section 'no-such'"),
        (":::{math}\nx\n:::", "$$"),
    ],
)
def test_refuses(source, message):
    with pytest.raises(MarkupError) as error:
        rendered(source)
    assert message in str(error.value)


def test_an_unknown_citation_is_refused():
    with pytest.raises(ValueError, match="no reference 'nobody'"):
        rendered("{cite}`nobody`")


def test_equations_keep_their_lines():
    (block,) = parse("$$\na \\\\\nb\n$$ (eq-a)")
    assert block == Equation(["a \\\\", "b"], "eq-a", "")


def test_labels_are_unique():
    book = Book(FIXTURE)
    page = Page("notebooks/x", "1", [])
    from numbering import _number_blocks

    with pytest.raises(ValueError, match="given twice"):
        _number_blocks(book, page, parse("$$ a $$ (eq-a)\n\n$$ b $$ (eq-a)"), [])


@pytest.fixture
def copy(tmp_path):
    """A copy of the fixture, where files can be written."""
    return shutil.copytree(FIXTURE, tmp_path / "book")


def test_check_mode_sees_a_chapter_out_of_step(copy, capsys):
    assert export.main(["--check"], copy) == 1
    assert not list(copy.glob("notebooks/*.ipynb")), "--check writes nothing"
    assert export.main([], copy) == 0
    assert export.main(["--check"], copy) == 0
    chapter = copy / "notebooks" / "02_other.md"
    chapter.write_text(chapter.read_text() + "\nOne more sentence.\n")
    capsys.readouterr()
    assert export.main(["--check"], copy) == 1
    assert capsys.readouterr().out == "notebooks/02_other.ipynb: out of step\n"


def test_writes_only_what_changed(copy, capsys):
    export.main([], copy)
    capsys.readouterr()
    chapter = copy / "notebooks" / "02_other.md"
    chapter.write_text(chapter.read_text() + "\nOne more sentence.\n")
    export.main([], copy)
    assert capsys.readouterr().out == "notebooks/02_other.ipynb: written\n"


def test_a_bad_chapter_is_named(copy, capsys):
    chapter = copy / "notebooks" / "01_every.md"
    chapter.write_text(chapter.read_text() + "\n{odd}`role`\n")
    assert export.main([], copy) == 2
    assert "notebooks/01_every.md: no rule" in capsys.readouterr().err


def test_a_notebook_without_a_chapter_is_named(copy, capsys):
    export.main([], copy)
    shutil.copy(copy / "notebooks/00_start.ipynb", copy / "notebooks/09_old.ipynb")
    assert export.main(["--check"], copy) == 1
    assert "09_old.ipynb" in capsys.readouterr().out


@pytest.mark.book
def test_numbers_are_those_of_the_built_pages(copy):
    """Jupyter Book builds the fixture; its numbers are the exporter's, one by one."""
    from bs4 import BeautifulSoup

    export.main([], copy)
    config = (ROOT / "_config.yml").read_text()
    config = config.replace("execute_notebooks: cache", "execute_notebooks: force")
    (copy / "_config.yml").write_text(config)
    shutil.copytree(ROOT / "book" / "_ext", copy / "book" / "_ext")
    skip = shutil.ignore_patterns("mathjax")
    shutil.copytree(
        ROOT / "book" / "_static",
        copy / "book" / "_static",
        dirs_exist_ok=True,
        ignore=skip,
    )
    command = [Path(sys.executable).parent / "jupyter-book", "build", "-W", "-n", "."]
    built = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    for name in ("00_start", "01_every", "02_other"):
        html = (copy / "_build/html/notebooks" / f"{name}.html").read_text()
        article = BeautifulSoup(html, "html.parser").article
        assert article is not None
        shown = re.findall(r"\((\d[\d.]*)\)", " ".join(_texts(article, ".eqno")))
        assert shown == re.findall(r"\\tag\{([\d.]+)\}", text(name))
        flat = re.sub(r"\s+", " ", article.get_text(" "))
        ours = _things(re.sub(r"[*\[\]]|\(https[^)]*\)", "", text(name)))
        assert ours == {pair for pair in _things(flat)}, name


def _texts(tag, selector: str) -> list[str]:
    return [found.get_text(" ") for found in tag.select(selector)]


def _things(page: str) -> set[tuple[str, str]]:
    """All mentions of a numbered thing, by kind and number."""
    kinds = "Figure|Theorem|Definition|Exercise|Chapter"
    return set(re.findall(rf"({kinds}) (\d[\d.]*\d|\d)", page))


def test_a_solution_that_ends_in_code_leaves_no_empty_fold():
    renderer = fixture_renderer()
    opening = ":::{solution-start} ex-change\n:class: dropdown\n:::\n\nIt becomes"
    assert "<details>" in renderer.cell(parse(opening))
    assert renderer.cell(parse(":::{solution-end}\n:::\n\nAfter it.")) == "After it."
