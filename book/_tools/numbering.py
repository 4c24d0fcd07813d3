"""The numbers and titles of the book: what `{eq}`, `{ref}` and `{numref}` point at.

Sphinx numbers every kind of thing on its own, in reading order, as `chapter.count` in a
numbered chapter and as `count` elsewhere. The same walk is done here, so that a
notebook says "Theorem 2.1" exactly where the page says so (a test compares the two).
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import jupytext
import yaml
from myst_blocks import Block, Directive, Equation, Heading, Target, parse

THEOREMS = (
    "theorem lemma proposition corollary definition remark example algorithm axiom "
    "assumption conjecture criterion observation property notation"
).split()


@dataclass(frozen=True)
class Label:
    """What a label names: its page, its kind, and how it is spoken of."""

    page: str
    kind: str
    number: str
    title: str = ""


@dataclass
class Page:
    """One source file, cut into cells; `chapter` is "" outside the numbered part."""

    name: str
    chapter: str
    cells: list


@dataclass
class Book:
    """All pages in reading order, and everything in them that can be referred to."""

    root: Path
    pages: dict[str, Page] = field(default_factory=dict)
    labels: dict[str, Label] = field(default_factory=dict)
    numbers: dict[int, str] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    counts: Counter = field(default_factory=Counter)

    def number(self, kind: str, page: Page) -> str:
        """The next number of this kind of thing."""
        self.counts[kind, page.chapter] += 1
        count = str(self.counts[kind, page.chapter])
        return f"{page.chapter}.{count}" if page.chapter else count


def read_book(root: Path) -> Book:
    """Read the table of contents and every page it lists."""
    book = Book(root)
    for name, chapter in toc_pages(root):
        page = Page(name, chapter, read_cells(root / f"{name}.md"))
        book.pages[name] = page
        _number_page(book, page)
    return book


def toc_pages(root: Path) -> list[tuple[str, str]]:
    """The pages in reading order, each with its chapter number ("" for none)."""
    toc = yaml.safe_load((root / "_toc.yml").read_text())
    pages, chapter = [(toc["root"], "")], 0
    for part in toc.get("parts", []):
        for entry in part["chapters"]:
            chapter += bool(part.get("numbered"))
            pages.append((entry["file"], str(chapter) if part.get("numbered") else ""))
    return pages


def read_cells(path: Path) -> list:
    """The cells of a MyST file; a page without code is one Markdown cell."""
    return jupytext.reads(path.read_text(), fmt="md:myst").cells


def figure_of(cell) -> dict:
    """What a code cell says of its figure: name and caption, or nothing."""
    return cell.metadata.get("mystnb", {}).get("figure", {})


def _number_page(book: Book, page: Page) -> None:
    pending: list[str] = []
    for cell in page.cells:
        if cell.cell_type == "markdown":
            cell.blocks = parse(cell.source)
            _number_blocks(book, page, cell.blocks, pending)
        elif figure := figure_of(cell):
            number = book.number("figure", page)
            book.numbers[id(cell)] = number
            _add(book, figure.get("name"), Label(page.name, "figure", number))


def _number_blocks(book: Book, page: Page, blocks: list[Block], pending: list) -> None:
    for block in blocks:
        match block:
            case Target(label):
                pending.append(label)
            case Heading(level, text):
                _number_heading(book, page, level, text, pending)
            case Equation(label=str(label)):
                number = book.number("equation", page)
                book.numbers[id(block)] = number
                _add(book, label, Label(page.name, "equation", number))
            case Directive():
                _number_directive(book, page, block)
                _number_blocks(book, page, block.body, pending)


def _number_heading(book: Book, page: Page, level: int, text: str, pending: list) -> None:
    first = page.name not in book.titles
    if first:
        book.titles[page.name] = text
    number = page.chapter if first else ""
    while pending:
        _add(book, pending.pop(), Label(page.name, "section", number, text))


def _number_directive(book: Book, page: Page, block: Directive) -> None:
    kind = kind_of(block.name)
    if kind is None or "nonumber" in block.options:
        return
    number = book.number(kind, page)
    book.numbers[id(block)] = number
    label = block.options.get("label") or block.options.get("name")
    _add(book, label, Label(page.name, kind, number, block.argument))


def kind_of(name: str) -> str | None:
    """The kind of numbered thing a directive makes, if any."""
    if name.startswith("prf:") and name[4:] in THEOREMS:
        return name[4:]
    kinds = {"exercise": "exercise", "exercise-start": "exercise", "figure": "figure"}
    return kinds.get(name) or ("equation" if name == "math" else None)


def _add(book: Book, name: str | None, label: Label) -> None:
    if name is None:
        return
    if name in book.labels:
        raise ValueError(f"the label {name!r} is given twice")
    book.labels[name] = label
