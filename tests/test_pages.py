"""What the prose pages say of the code exists: every name of the notation page, every
test that the page of questions calls a proof."""

import re
from pathlib import Path

import pytest

import edm_tutorial as edm

ROOT = Path(__file__).resolve().parents[1]
NOTATION = (ROOT / "book/notation.md").read_text()
QUESTIONS = (ROOT / "book/questions.md").read_text()
SECTIONS = QUESTIONS.split("\n## ")[1:]


def names(column: int) -> set[str]:
    """The names in backquotes of one column of the notation page's first table."""
    rows = [line.split("|") for line in NOTATION.splitlines() if line.startswith("|")]
    return {name for row in rows if len(row) == 7 for name in re.findall("`(.+?)`", row[column])}


@pytest.mark.parametrize("name", sorted(names(4) - {"x", "n", "sigma"}))
def test_a_name_of_the_notation_page_exists(name):
    owner = {"schedule": edm.Linear(), "designs": edm.designs}
    first, *rest = name.split(".")
    found = owner.get(first) or getattr(edm, first)
    for part in rest:
        found = getattr(found, part)
    assert callable(found)


def test_twenty_five_questions_each_with_an_answer():
    assert len(SECTIONS) == 25
    for number, section in enumerate(SECTIONS, 1):
        title, _, answer, *_ = section.split("\n")
        assert title.startswith(f"{number}. ") and answer


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.split(".")[0])
def test_each_question_has_a_section_a_proof_and_a_thread(section):
    read, proofs, asked = re.findall(
        r"^- \*\*(?:Read|Proved by|Asked in):\*\* (.+)$", section, re.M
    )
    assert read.startswith("[") and "https://github.com/" in asked
    tests = re.findall(r"`(\w+\.py)::(\w+)`", proofs)
    assert tests
    for file, test in tests:
        assert re.search(rf"^def {test}\(", (ROOT / "tests" / file).read_text(), re.M), test
