"""The exporter: every directive of the fixture, and what it refuses."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import export
import folded
import jupytext
import pytest
from repository import ROOT

FIXTURE = Path(__file__).with_name("fixture")
PAGES = "https://owner.github.io/name/notebooks"


def copied(folder: Path) -> Path:
    """The fixture's book, with the settings of the real one."""
    book = shutil.copytree(FIXTURE, folder / "book")
    shutil.copy(ROOT / "_config.yml", book)
    for name in ("logo.svg", "favicon.svg"):
        shutil.copy(ROOT / "book" / "_static" / name, book / "book" / "_static")
    return book


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> dict[str, str]:
    """The notebooks of the fixture, by name."""
    made = export.export(copied(tmp_path_factory.mktemp("fixture")))
    return {path.stem: text for path, text in made.items()}


@pytest.fixture(scope="module")
def every(texts) -> list[dict]:
    return json.loads(texts["01_every"])["cells"]


def markdown(text: str) -> str:
    cells = json.loads(text)["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


@pytest.mark.parametrize(
    "expected",
    [
        "# 1. Every directive, once",
        f"> **Before you start**\n>\n> - **You need:** [First samples]({PAGES}/00_start.html), or",
        f"[its first page]({PAGES}/00_start.html#ch-start).",
        "> **Aside**\n>\n> Eq. 3 of [Efron, 2011, Karras *et al.*, 2022].",
        "\\frac{D(x; \\sigma) - x}{\\sigma^2},\n\\tag{1.1}\n$$",
        "has no number:\n\n$$\na + b = c\n$$\n\n- In a list",
        "  d = e.\n  \\tag{1.2}\n  $$",
        "---\n\n**Theorem 1.1 (Tweedie)**\n\nFor unit noise, (1.1) holds",
        "Proof. Differentiate (1.3) under the integral.\n\n∎",
        "> **Definition 1.1**\n>\n> A number.",
        "By Theorem 1.1 and Definition 1.1, `` {eq}`raw` `` stays as it is typed.",
        "> **Predict, then run**\n>\n> Is the line going *up* or down? See Figure 1.1.",
        "**Figure 1.1.** A line that goes up, as in (1.1).",
        "![A black dot.](https://raw.githubusercontent.com/owner/name/main/book/_static/"
        "dot.png)\n\n**Figure 1.2.** A dot.",
        "<summary>For the curious</summary>\n\nA folded box.\n\n</details>",
        "that we look at in this table | cost |\n|---|---|---|\n| one |",
        "Nothing, says *What could go wrong*; the [paper](https://arxiv.org/abs/",
        "```python\nnot_run = True\n```",
        "**Exercise 1.1 (★ Think)**\n\nWhy is (1.2) true?",
        "<summary>Solution to Exercise 1.1</summary>\n\nBecause of Figure 1.2.\n\n</details>",
        "<summary>Solution to Exercise 1.2, continued</summary>\n\nand see 3, as Exercise 1.2",
        "**Exercise (★★★ Draw $x^2$)**",
        "<summary>Solution to Exercise 1.3, continued</summary>\n\nThat was all.\n\n</details>",
        "1. A name, `draw()`, or `a.C`;\n2. \\*stars\\*, \\$5, a_b, \\_c and `` x`y ``:\n"
        "   - below, *slanted* and **strong**;\n   - and [a link](https://a.b/c_d), or <https",
        "> A quotation<br />\n> of two lines.",
        f"|---|--:|\n| $\\|x\\|$ | [Start]({PAGES}/00_start.html) |",
        "## References\n\n- Bradley Efron. Tweedie's formula and selection bias.",
    ],
)
def test_a_directive_reads_as_plain_markdown(texts, expected):
    assert expected in markdown(texts["01_every"])


def test_numbers_outside_the_numbered_part_have_no_chapter(texts):
    page = markdown(texts["00_start"])
    assert "\\tag{1}\n" in page and "# First samples" in page


@pytest.mark.parametrize(
    "expected",
    [
        "[Theorem 1.1]({}#thm-tweedie), [Figure 1.1]({}#fig-line), [Exercise 1.1]({}#ex-think) and "
        "[Chapter 1]({}#ch-every):",
        "so (2.1) follows from [(1.1)]({}#equation-eq-score)",
        "**Theorem 2.1**",
    ],
)
def test_references_to_another_chapter_are_links_to_its_page(texts, expected):
    linked = expected.replace("{}", f"{PAGES}/01_every.html")
    assert linked in markdown(texts["02_other"])


def test_a_chapter_that_cites_nothing_lists_no_references(texts):
    assert "## References" not in markdown(texts["02_other"])


def test_no_myst_is_left(texts):
    for text in texts.values():
        page = re.sub(r"``.+?``", "", markdown(text))
        assert not re.search(r":::|\{[\w:]+\}`|^\(.*\)=$|^%", page, re.MULTILINE)


def test_code_is_that_of_the_source_with_ids_of_its_text(every):
    """Every cell, in order; an id is the hash of the text, the second time with a 2."""
    source = jupytext.read(FIXTURE / "notebooks" / "01_every.md", fmt="md:myst").cells
    expected = [cell.source for cell in source if cell.cell_type == "code"]
    expected[0] = f"# @title How this figure is drawn\n{expected[0]}"
    code = [cell for cell in every if cell["cell_type"] == "code"][1:]
    assert ["".join(cell["source"]) for cell in code] == expected
    ids = [hashlib.sha256(text.encode()).hexdigest()[:8] for text in expected]
    assert expected[1] == expected[-1] == "x = 2"
    assert [cell["id"] for cell in code] == [*ids[:-1], f"{ids[1]}-2"]
    folded = {"tags": ["hide-input"], "cellView": "form", "jupyter": {"source_hidden": True}}
    assert code[0]["metadata"] == folded


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("x = 1\nassert x == 1", "Checked: 1 number"),
        ("assert x > 0\nfor y in x:\n    assert y, 'assert'", "Checked: 2 numbers"),
        ("x = 1", "Set-up"),
    ],
)
def test_a_folded_cell_says_what_it_holds(code, expected):
    assert folded.title(code, {}) == expected
    assert folded.title(code, {"mystnb": {"figure": {}}}) == "How this figure is drawn"


def test_sections_and_captions_begin_cells(every):
    texts = ["".join(cell["source"]) for cell in every]
    assert not any("\n## " in text for text in texts)
    assert "**Figure 1.1.** A line that goes up, as in (1.1)." in texts


def test_the_code_of_a_solution_is_hidden_below_its_title(every):
    texts = ["".join(cell["source"]) for cell in every]
    hidden = [i for i, cell in enumerate(every) if "cellView" in cell["metadata"]]
    assert "hide-input" in every[hidden.pop(0)]["metadata"]["tags"]
    assert [texts[i] for i in hidden] == ["x = 3\nprint(x)", "plt.plot([0, 1], [1, 0]);"]
    assert all(every[i]["metadata"]["jupyter"] == {"source_hidden": True} for i in hidden)
    assert texts[hidden[1] - 1].endswith("begins with code.\n\n**Solution to Exercise 1.3**")
    assert texts[hidden[1] + 1] == '**Figure 1.3.** A curve: it says "down".'


def test_first_cell_installs_where_the_package_is_missing(every, monkeypatch):
    first = "".join(every[0]["source"])
    assert every[0]["id"] == "install" and "git+https://github.com/owner/name" in first
    branch = first.partition("is None:\n")[2]
    assert all(line.startswith("    ") for line in branch.splitlines())
    plain = first.replace("%pip", "raise SystemExit #")
    exec(plain, {})  # the package is here, so nothing happens
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        exec(plain, {})


BAD = r"""
:::{unheard-of}
:::

See {unheard}`of`, {eq}`nowhere`, {ref}`no-label` and {cite}`nobody`.

Nor [there](01_every.md#no-such), ![gone](gone.png), a note[^1], or $$ in a line.

[^1]: At the foot.

:::{figure} ../book/_static/dot.png
A dot.
:::

$$ a $$ (eq-score)

::::{note}
```{code-cell} python
x = 99
```
::::

```{code-cell} python
---
mystnb:
  figure:
    caption: A picture that nobody describes.
---
x = 98
```
"""


@pytest.fixture(scope="module")
def refusal(tmp_path_factory) -> str:
    """What the exporter says of a chapter in which much is wrong."""
    book = copied(tmp_path_factory.mktemp("bad"))
    with (book / "notebooks" / "02_other.md").open("a") as chapter:
        chapter.write(BAD)
    with pytest.raises(ValueError) as error:
        export.export(book)
    return str(error.value)


def test_refuses_each_picture_without_alt_text(refusal):
    assert refusal.count("a figure needs an alt text") == 2


@pytest.mark.parametrize(
    "message",
    [
        "Unknown directive type: 'unheard-of'",
        'Unknown interpreted text role "unheard"',
        "equation not found: nowhere",
        "undefined label: 'no-label'",
        'could not find bibtex key "nobody"',
        "local id not found in doc 'notebooks/01_every': 'no-such'",
        "image file not readable: notebooks/gone.png",
        "no rule to export <footnote_reference>",
        "this markup is shown as typed",
        "duplicate label of equation eq-score",
        "a code cell stands inside a directive",
    ],
)
def test_refuses(refusal, message):
    assert re.search(rf"02_other\.md.*{re.escape(message)}", refusal)


def test_a_solution_without_end_is_refused_and_written_nowhere(tmp_path, capsys):
    book = copied(tmp_path)
    with (book / "notebooks" / "02_other.md").open("a") as chapter:
        chapter.write("\n:::{solution-start} ex-code\n:::\n\nIt never ends.\n")
    assert export.main([], book) == 2
    message = capsys.readouterr().err
    assert "(notebooks/02_other) is missing a solution-end" in message
    assert "An error has occured when parsing gated directives" in message
    assert not list(book.glob("notebooks/*.ipynb"))


def test_check_says_what_is_out_of_step_and_writes_nothing(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(export, "export", lambda root: {folder / f"{n}.ipynb": n for n in "ab"})
    assert export.main(["--check"], tmp_path) == 1 and not list(folder.iterdir())
    assert export.main([], tmp_path) == 0 == export.main(["--check"], tmp_path)
    (folder / "b.ipynb").write_text("edited")
    capsys.readouterr()
    assert export.main(["--check"], tmp_path) == 1
    assert capsys.readouterr().out == "notebooks/b.ipynb: out of step\n"
    assert export.main([], tmp_path) == 0
    assert capsys.readouterr().out == "notebooks/b.ipynb: written\n"
    (folder / "old.ipynb").write_text("of no chapter")
    assert export.main(["--check"], tmp_path) == 1
    assert "notebooks/old.ipynb: no chapter" in capsys.readouterr().out


def test_chapters_are_in_the_order_of_the_contents():
    assert [path.stem for path in export.chapters(FIXTURE)] == ["00_start", "01_every", "02_other"]


@pytest.mark.book
def test_numbers_are_those_of_the_built_pages():
    """A picture of a code cell is counted here before it is drawn, on the page after."""
    thing = r"((?:Figure|Exercise) \d+(?:\.\d+)?)"
    for source in export.chapters(ROOT):
        page = ROOT / "_build" / "html" / source.relative_to(ROOT).with_suffix(".html")
        html, text = page.read_text(), markdown(source.with_suffix(".ipynb").read_text())
        shown = re.findall(rf'class="caption-number">{thing} <', html)
        assert re.findall(rf"^\*\*{thing}", text, re.MULTILINE) == shown, source.name
        shown = re.findall(r'class="eqno">\(([\d.]+)\)', html)
        assert re.findall(r"\\tag\{([\d.]+)\}", text) == shown, source.name
