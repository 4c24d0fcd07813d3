"""What the prose pages speak of exists: every name of the notation page, every section, test and
thread of the page of questions, every reference that is cited, every name that a chapter takes from
a library. (About two seconds.)"""

import ast
import json
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import jax.numpy as jnp
import numpy as np
import pytest

import edm_tutorial as edm
from edm_tutorial import parameterisations, sbi
from edm_tutorial.book import double_precision

ROOT = Path(__file__).resolve().parents[1]
NOTATION = (ROOT / "book/notation.md").read_text()
QUESTIONS = (ROOT / "book/questions.md").read_text()
SECTIONS = [part.partition("\n## ")[0] for part in QUESTIONS.split("\n### ")[1:]]


COLUMNS = {"VP": edm.designs.vp, "VE": edm.designs.ve, "iDDPM": edm.designs.iddpm,
           "EDM": edm.designs.edm}  # fmt: skip


def table(title: str) -> list[list[str]]:
    """The cells of the table under a heading of the notation page, without its two head lines."""
    lines = NOTATION.partition(f"## {title}")[2].partition("\n## ")[0].splitlines()
    return [line.strip("|").split("|") for line in lines if line.startswith("|")][2:]


def code(cell: str) -> list[str]:
    return re.findall("`([^`]+)`", cell)


NAMES = {name for row in table("Symbols") for name in code(row[3])} - {"x", "n", "sigma"}
NAMES |= {name for row in table("GenSBI") for name in code(row[1])}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_name_of_the_notation_page_exists(name):
    owner = {"schedule": edm.Linear(), "parameterisations": parameterisations, "sbi": sbi}
    first, *rest = name.split(".")
    found = owner.get(first) or getattr(edm, first)
    for part in rest:
        found = getattr(found, part)
    assert callable(found) or name == "Likelihood.latent"  # a field of a named tuple


@pytest.mark.parametrize("number, column", list(enumerate(COLUMNS)), ids=COLUMNS)
def test_the_map_of_table_1_names_the_parts_of_each_design(number, column):
    names = [code(row[1]) for row in table("A map")]
    assert {len(row) for row in names} == {4}
    solver, grid, schedule, *training, whole = ([row[number]] for row in names)
    design = COLUMNS[column]()
    parts = [design.solver, design.schedule, design.preconditioning, design.sigma_dist]
    assert [solver, schedule, *training] == [[type(part).__name__] for part in parts]
    assert grid == [design.grid.__name__] and whole == [f"designs.{column.lower()}"]


def test_each_equation_number_is_one_of_the_paper():
    """Eqs. 1-8, Table 1 and Algorithms 1-3; sections and appendices by name."""
    known = r"Eqs?\. [1-8](?:, [1-8])*|Table 1|Algorithm [1-3]|Section \d|App\. [A-F]|"
    assert all(re.fullmatch(known, row[2].strip()) for row in table("Symbols"))


def slug(heading: str) -> str:
    """The anchor of a heading: lower case, no punctuation, hyphens for spaces."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_twenty_eight_questions_each_with_an_answer():
    assert len(SECTIONS) == 28
    for number, section in enumerate(SECTIONS, 1):
        title, answer, *_ = section.split("\n\n")
        assert title.startswith(f"{number}. ")
        text = re.sub(r"\.\.\.|i\.i\.d\.|\d\.\d", "", answer)
        assert len(re.findall(r"[.?!](?=\s|$)", text)) == 3, title


def test_the_contents_list_each_question_under_its_group():
    contents, *groups = QUESTIONS.split("\n## ")
    cards = re.findall(r"^:::\{grid-item-card\} (.+)\n((?:\d+\. .+\n)+):::$", contents, re.M)
    assert len(cards) == len(groups) == 6
    for (name, lines), group in zip(cards, groups, strict=True):
        headings = re.findall(r"^### (.+)$", group, re.M)
        assert group.startswith(f"{name}\n")
        links = [re.sub(r"^(\d+\. )", r"\1[", title) + f"](#{slug(title)})" for title in headings]
        assert lines.splitlines() == links


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.split(".")[0])
def test_each_question_has_a_section_a_proof_and_a_thread(section):
    read, proofs, asked = re.findall(
        r"^- \*\*(?:Read|Tested by|Asked in):\*\* (.+)$", section, re.M
    )
    assert read.startswith("[") and "https://github.com/" in asked
    for page, anchor in re.findall(r"\]\(([^)#]+)#([^)]+)\)", read):
        headings = re.findall(r"^#+ (.+)$", (ROOT / "book" / page).read_text(), re.M)
        assert anchor in map(slug, headings), anchor
    for thread, path in re.findall(r"\[([^]]+)\]\(https://github\.com/([^)]+)\)", asked):
        assert thread.replace("#", "/issues/") == path
    tests = re.findall(r"`(\w+\.py)::(\w+)`", proofs)
    assert tests
    for file, test in tests:
        assert re.search(rf"^def {test}\(", (ROOT / "tests" / file).read_text(), re.M), test


CITING = [*(ROOT / "book").glob("*.md"), *(ROOT / "notebooks").glob("*.md")]
BIBLIOGRAPHY = (ROOT / "book/references.bib").read_text()


def test_every_reference_is_cited_and_every_citation_has_one():
    keys = re.findall(r"^@\w+\{([^,]+),$", BIBLIOGRAPHY, re.M)
    texts = "\n".join(page.read_text() for page in CITING)
    cited = {key.strip() for group in re.findall(r"\{cite(?::\w)?\}`([^`]+)`", texts)
             for key in group.split(",")}  # fmt: skip
    assert len(set(keys)) == len(keys) and set(keys) == cited


def test_a_paper_is_found_under_its_own_number_and_once():
    numbers = re.findall(r"^ *eprint *= *\{(.+)\}", BIBLIOGRAPHY, re.M)
    links = re.findall(r"^ *url *= *\{https://arxiv\.org/abs/(.+)\}", BIBLIOGRAPHY, re.M)
    assert numbers and numbers == links and len(set(numbers)) == len(numbers)


# Names from libraries: `make oldest` looks at them in the oldest versions, where no chapter is run.
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OWN = {*sys.stdlib_module_names, "edm_tutorial", "IPython"}  # IPython is what runs a notebook


def code_of(notebook: Path) -> ast.Module:
    """Its code cells, without the one that installs the package."""
    _, *cells = (c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code")
    return ast.parse("\n".join("".join(cell["source"]) for cell in cells))


def names_of_libraries(code: ast.Module) -> Iterator[str]:
    """`scipy.special.ndtr` for what is imported, `jax.numpy.sum` for what is used as `jnp.sum`."""
    modules = {}
    for node in ast.walk(code):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name: alias.name for alias in node.names}
    for node in ast.walk(code):
        if isinstance(node, ast.Attribute):
            first, dot, rest = ast.unparse(node).partition(".")
            if first in modules and re.fullmatch(r"[\w.]+", rest):
                yield f"{modules[first]}{dot}{rest}"


def found(name: str) -> bool:
    """Whether it can be imported, or got from what can be; of an object, any attribute will do."""
    owner, *rest = name.split(".")
    thing = import_module(owner)
    for part in rest:
        owner = f"{owner}.{part}"
        if not isinstance(thing, ModuleType):
            return True
        try:
            thing = getattr(thing, part) if hasattr(thing, part) else import_module(owner)
        except ModuleNotFoundError:
            return False
    return True


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_name_that_a_chapter_takes_from_a_library_exists(notebook):
    names = {name for name in names_of_libraries(code_of(notebook))}
    names = {name for name in names if name.partition(".")[0] not in OWN}
    assert names and not [name for name in sorted(names) if not found(name)]


def test_a_name_that_no_library_has_is_missed():
    """The check itself."""
    code = "import jax, jax.numpy as jnp\nfrom scipy import nothing\njax.no(jnp.sum, jnp.pi.other)"
    names = set(names_of_libraries(ast.parse(code)))
    assert [name for name in sorted(names) if not found(name)] == ["jax.no", "scipy.nothing"]


def test_double_precision_is_for_its_block_only(request):
    with double_precision():
        pass
    assert jnp.zeros(()).dtype == jnp.float64  # what was on, in conftest.py, stays on
    request.getfixturevalue("single_precision")
    with pytest.raises(KeyError), double_precision():
        assert jnp.zeros(()).dtype == jnp.float64
        raise KeyError
    assert jnp.zeros(()).dtype == jnp.float32


NAMES_OF_CHAPTERS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.md"))


def sections(cells: list[dict]) -> list[list[str]]:
    """The open code cells of each section, up to the exercises; the first cell installs."""
    found: list[list[str]] = [[]]
    for cell in cells[1:]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            headings = re.findall(r"^## (.*)", source, re.MULTILINE)
            if "Exercises" in headings:
                break
            found += [[] for _ in headings]
        elif "hide-input" not in cell["metadata"].get("tags", []):
            found[-1].append(source)
    return found


@pytest.mark.parametrize("chapter", NAMES_OF_CHAPTERS)
def test_each_chapter_has_its_parts(chapter):
    """A question, the diagram, a prediction, what can go wrong, six lines on a card, exercises."""
    text = (ROOT / "notebooks" / f"{chapter}.md").read_text()
    for part in (":::{whole}", ":::{admonition} Predict, then run", ":::{admonition} Before you"):
        assert f"\n{part}" in text, part
    assert re.search(r"^# .*\?$", text, re.M)
    for heading in ("What can go wrong", "Exercises"):
        assert re.search(rf"^## {heading}", text, re.M), heading
    card = re.findall(r"^:::\{admonition\} The chapter on a card\n(.*?)^:::$", text, re.M | re.S)
    assert len(card) == 1 and card[0].startswith(":class: important\n- ")
    assert len(re.findall(r"^- ", card[0], re.M)) == 6


@pytest.mark.parametrize("chapter", NAMES_OF_CHAPTERS)
def test_what_a_reader_sees_is_the_idea(chapter):
    """In the open: one assert a section at most, cells of at most 15 lines of 80 characters."""
    cells = json.loads((ROOT / "notebooks" / f"{chapter}.ipynb").read_text())["cells"]
    for section in sections(cells):
        asserts = re.findall(r"^\s*assert ", "\n".join(section), re.MULTILINE)
        assert len(asserts) <= 1, asserts
        for source in section:
            assert len(source.splitlines()) <= 15, source
    code = [cell["source"] for cell in cells[1:] if cell["cell_type"] == "code"]
    long = [line for source in code for line in source if len(line.rstrip("\n")) > 80]
    assert not long, long


def test_the_example_of_an_image_network_runs():
    """It is in single precision for a reader; the untrained network returns c_skip times x."""
    (example,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "book/api/networks.md").read_text(), re.DOTALL
    )
    made: dict = {}
    exec(compile(example, "networks.md", "exec"), made)
    assert np.allclose(made["picture"], 0.25 / (0.25 + 1.0))


def test_the_api_page_opens_with_ten_calls():
    page = (ROOT / "book/api.md").read_text()
    calls = re.findall(r"^\| \d+ \|.+\| (.+) \|$", page, re.M)
    assert len(calls) == 10
    for call in calls:
        for path in re.findall(r"<([\w.]+)>`", call):
            assert callable(found_in_package(path)), path


def found_in_package(path: str) -> object:
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError:  # a method: its class is one name up
        return getattr(found_in_package(module), name)


PROSE = sorted([*ROOT.glob("notebooks/*.md"), *ROOT.glob("book/**/*.md")])


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.stem)
def test_no_line_of_a_paragraph_becomes_a_list(page):
    """Where a formula is wrapped before its plus, Markdown sees a bullet and the formula breaks."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    inside = r"^(?![-+*#|:`\s]|\d+[.)] )[^\n]*\S[^\n]*\n[+*] .*"
    assert not re.findall(inside, text, re.MULTILINE)
