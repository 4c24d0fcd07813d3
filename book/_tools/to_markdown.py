"""A page that Sphinx has resolved, as the Markdown that plain Jupyter and Colab show.

Sphinx has parsed the page, counted its figures, equations and exercises, and resolved
its references and citations; here each node is only written down again. A node without
a rule is a warning, and a warning stops the export.
"""

import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from docutils import nodes
from repository import Repository
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx_exercise.nodes import is_exercise_node, solution_node
from sphinx_proof.nodes import proof_node

LOGGER = logging.getLogger(__name__)
RAW = re.compile(r"\$\$|:::|\\begin\{")  # maths or a directive that Sphinx took for text
MARKUP = re.compile(r"[\\`*$]|\](?=\()|(?<!\w)_|_(?!\w)|<(?=[\w/!?])|^[#>+-](?=\s)", re.M)
LISTS = (nodes.bullet_list, nodes.enumerated_list)
DRAWN = "data:,"  # the address of a picture that a code cell draws


@dataclass
class Code:
    """The place of a code cell, by its number in the source."""

    index: int
    hidden: bool


class Caption(str):
    """What stands below a picture that a code cell draws."""


@dataclass
class Page:
    """One page; `cited` collects the references it cites."""

    env: BuildEnvironment
    name: str
    repository: Repository
    cited: set[str] = field(default_factory=set)

    def pieces(self, parent: Any, level: int = 0, hidden: bool = False) -> Iterator[str | Code]:
        """Markdown, block by block, and the code cells between."""
        for node in parent.children:
            if isinstance(node, nodes.comment) and "block_break" in node["classes"]:
                yield Code(int(node.astext()), hidden)
            elif isinstance(node, nodes.title):
                yield f"{'#' * level} {self.section_number(parent, level)}{self.inline(node)}"
            elif isinstance(node, nodes.section):
                yield from self.pieces(node, level + 1, hidden)
            elif is_exercise_node(node):
                yield f"**{self.titled(node)}**"
                yield from self.pieces(node.children[1], level, hidden)
            elif isinstance(node, solution_node):
                yield from self.solution(node, level)
            elif text := self.text(node):
                yield text

    def solution(self, node: Any, level: int) -> Iterator[str | Code]:
        """The text folded and the code hidden, below a title."""
        title, pieces = node["title"], self.pieces(node.children[1], level, hidden=True)
        for i, (is_text, group) in enumerate(groupby(pieces, lambda piece: type(piece) is str)):
            if is_text:
                yield folded(f"{title}, continued" if i else title, "\n\n".join(map(str, group)))
            else:
                yield from group if i else [f"**{title}**", *group]

    def text(self, node: nodes.Node) -> str:
        for kind in type(node).__mro__:
            if kind in RULES:
                return RULES[kind](self, node)
        LOGGER.warning(f"no rule to export <{type(node).__name__}>", location=node)
        return ""

    def inline(self, node: nodes.Node) -> str:
        return "".join(map(self.text, node.children))

    def blocks(self, children: Any) -> str:
        """One below the other, with one blank line between."""
        return "\n\n".join(filter(None, map(self.text, children)))

    def number(self, kind: str, node: Any) -> str:
        numbers = self.env.toc_fignumbers.get(self.name, {}).get(kind, {})
        return ".".join(map(str, numbers.get(node["ids"][0], ()))) if node["ids"] else ""

    def section_number(self, section: Any, level: int) -> str:
        numbers = self.env.toc_secnumbers.get(self.name, {})
        number = numbers.get("" if level == 1 else f"#{section['ids'][0]}", ())
        return ".".join(map(str, number)) + ". " if number else ""

    def equation(self, node: Any) -> str:
        number = self.number("displaymath", node)
        tag = f"\n\\tag{{{number}}}" if number else ""
        return f"$$\n{textwrap.dedent(node.astext()).strip()}{tag}\n$$"

    def figure(self, node: Any) -> str:
        """Picture and caption; where a code cell draws the picture, the caption."""
        image, *texts = node.children
        caption = f"**Figure {self.number('figure', node)}.** {self.blocks(texts)}"
        if "alt" not in image:
            LOGGER.warning("a figure needs an alt text", location=node)
        drawn = image["uri"] == DRAWN
        return Caption(caption) if drawn else f"{self.text(image)}\n\n{caption}"

    def titled(self, node: Any) -> str:
        """ "Exercise 2.1 (★ Think)": the kind, the number if there is one, and the title."""
        kind = node.get("realtype") or node["type"]
        number = self.number(node.get("countertype", kind), node)
        name = f"{kind.capitalize()} {number}".strip()
        return name + self.inline(node.children[0]).removeprefix(name)

    def admonition(self, node: Any) -> str:
        first, *rest = node.children
        if not isinstance(first, nodes.title):
            return boxed(node.tagname.capitalize(), self.blocks(node.children))
        title = self.titled(node) if "realtype" in node else self.inline(first) or "Aside"
        return (folded if "dropdown" in node["classes"] else boxed)(title, self.blocks(rest))

    def reference(self, node: Any) -> str:
        """A link where it leaves the notebook; the title of a section here is slanted."""
        text, url = self.inline(node), node.get("refuri", "")
        if "bibtex-citation" in node.parent.get("classes", ()):
            self.cited.add(url.partition("#")[2])
            return text
        if url and not url.startswith("#"):
            return f"<{url}>" if text == url else f"[{text}]({url})"
        titles = self.env.domaindata["std"]["labels"].values()
        return f"*{text}*" if (self.name, node.get("refid"), node.astext()) in titles else text

    def references(self, bibliography: nodes.document) -> list[str]:
        """What the page cites, a line for each, in the order of the bibliography."""
        cited = [x for x in bibliography.findall(nodes.citation) if self.cited & set(x["ids"])]
        return ["- " + " ".join(self.inline(item.children[1]).split()) for item in cited]

    def image(self, node: Any) -> str:
        url = self.repository.raw(node["uri"]) if "*" in node["candidates"] else node["uri"]
        return f"![{node.get('alt', '')}]({url})"

    def items(self, node: Any) -> str:
        """Items stand close together where each is one paragraph, with lists below or not."""
        blocks = [block for item in node.children for block in item.children[1:]]
        gap = "\n" if all(isinstance(block, LISTS) for block in blocks) else "\n\n"
        texts = []
        for i, item in enumerate(node.children, node.get("start", 1)):
            mark = f"{node['bullet']} " if "bullet" in node else f"{i}. "
            body = gap.join(map(self.text, item.children))
            texts.append(mark + textwrap.indent(body, " " * len(mark)).lstrip())
        return gap.join(texts)

    def table(self, node: Any) -> str:
        rows = [[*row.children] for row in node.findall(nodes.row)]
        sides = [" ".join(cell["classes"]) for cell in rows[0]]
        rule = ["--:" if "right" in s else ":-:" if "center" in s else "---" for s in sides]
        texts = [[self.blocks(cell.children).replace("|", "\\|") for cell in row] for row in rows]
        lines = [f"| {' | '.join(row)} |".replace("\n", " ") for row in texts]
        return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])


def quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines())


def boxed(title: str, text: str) -> str:
    """A quotation, or rules where the text has what Colab cannot quote."""
    whole = f"**{title}**\n\n{text}".strip()
    rules = any(mark in text for mark in ("$$", "```", "<details>"))
    return f"---\n\n{whole}\n\n---" if rules else quoted(whole)


def folded(title: str, text: str) -> str:
    return f"<details>\n<summary>{title}</summary>\n\n{text}\n\n</details>"


def fence(text: str, shortest: int) -> str:
    """Backquotes, more than there are in a row in the text."""
    return "`" * max(shortest, 1 + max(map(len, re.findall("`+", text)), default=0))


def prose(page: Page, node: Any) -> str:
    if RAW.search(node):
        LOGGER.warning(f"this markup is shown as typed: {node.astext()!r}", location=node)
    return MARKUP.sub(r"\\\g<0>", node)


def literal(page: Page, node: Any) -> str:
    text, ticks = node.astext(), fence(node.astext(), 1)
    return f"{ticks} {text.strip()} {ticks}" if "`" in text else f"{ticks}{text}{ticks}"


def block(page: Page, node: Any) -> str:
    text, language = node.astext().strip("\n"), node.get("language", "")
    ticks = fence(text, 3)
    return f"{ticks}{'' if language == 'none' else language}\n{text}\n{ticks}"


RULES: dict[type, Callable[[Page, Any], str]] = {
    nodes.Text: prose,
    nodes.emphasis: lambda page, node: f"*{page.inline(node)}*",
    nodes.strong: lambda page, node: f"**{page.inline(node)}**",
    nodes.math: lambda page, node: f"${node.astext()}$",
    nodes.raw: lambda page, node: node.astext() if node["format"] == "html" else "",
    **dict.fromkeys([nodes.paragraph, nodes.caption, nodes.inline], Page.inline),
    **dict.fromkeys([nodes.target, nodes.comment], lambda page, node: ""),
    nodes.literal: literal,
    nodes.literal_block: block,
    nodes.reference: Page.reference,
    nodes.image: Page.image,
    nodes.figure: Page.figure,
    nodes.math_block: Page.equation,
    **dict.fromkeys(LISTS, Page.items),
    nodes.table: Page.table,
    nodes.block_quote: lambda page, node: quoted(page.blocks(node.children)),
    **dict.fromkeys([nodes.legend, nodes.section], lambda page, node: page.blocks(node.children)),
    **dict.fromkeys([nodes.Admonition, nodes.sidebar], Page.admonition),
    solution_node: lambda page, node: folded(node["title"], page.text(node.children[1])),
    proof_node: lambda page, node: page.blocks(node.children[0].children) + "\n\n∎",
}
