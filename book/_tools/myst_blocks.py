"""Split MyST Markdown into blocks: text, code, equations, headings, directives.

Only the block structure is read here; what a directive or a role means is the business
of `numbering.py` and `render.py`. Directives are written with colons, at the left
margin.
"""

import re
from dataclasses import dataclass, field


class MarkupError(ValueError):
    """MyST that the exporter does not know, or that would read badly in Colab."""


@dataclass
class Text:
    """Prose, with its roles and links untouched."""

    lines: list[str]


@dataclass
class Code:
    """A fenced block that is shown as it stands."""

    lines: list[str]


@dataclass
class Equation:
    """A displayed equation; it has a number if and only if it has a label."""

    lines: list[str]
    label: str | None = None
    indent: str = ""


@dataclass
class Heading:
    level: int
    text: str


@dataclass
class Target:
    """`(label)=`: a name for the heading that follows."""

    label: str


@dataclass
class Directive:
    name: str
    argument: str
    options: dict[str, str]
    body: list["Block"] = field(default_factory=list)


Block = Text | Code | Equation | Heading | Target | Directive

FENCE = re.compile(r"^\s*(`{3,}|~{3,})(.*)$")
COLONS = re.compile(r"^(:{3,})\{([\w:-]+)\}[ \t]*(.*)$")
HEADING = re.compile(r"^(#{1,6})[ \t]+(.+?)[ \t]*$")
TARGET = re.compile(r"^\(([\w:.-]+)\)=[ \t]*$")
OPTION = re.compile(r"^:([\w-]+):[ \t]*(.*)$")
MATH_END = re.compile(r"^(.*?)\$\$[ \t]*(?:\(([\w:.-]+)\))?[ \t]*$")
REFUSED = (
    (re.compile(r"^\s+:{3,}"), "a directive must start at the left margin"),
    (re.compile(r"^\s*\\begin\{"), "write $$ around LaTeX environments"),
    (re.compile(r"^\s*>.*\$\$"), "no displayed equation inside a blockquote"),
    (re.compile(r"^:{3,}"), "colons that open or close no known directive"),
    (re.compile(r"\[\^[^\]]+\]"), "no footnotes: write a {margin} note"),
)


def parse(text: str) -> list[Block]:
    """The blocks of `text`, in order.

    Raises:
        MarkupError: an unclosed fence, or markup that Colab would show raw.
    """
    lines, blocks, i = text.splitlines(), [], 0
    while i < len(lines):
        block, i = _block(lines, i)
        if block is not None:
            _append(blocks, block)
    return blocks


def _append(blocks: list[Block], block: Block) -> None:
    """Join consecutive lines of prose into one block."""
    if isinstance(block, Text) and blocks and isinstance(blocks[-1], Text):
        blocks[-1].lines += block.lines
    else:
        blocks.append(block)


def _block(lines: list[str], i: int) -> tuple[Block | None, int]:
    """The block that starts at line `i`, and the line after it."""
    line = lines[i]
    if line.startswith("%") or re.match(r"^\+\+\+", line):
        return None, i + 1
    if match := COLONS.match(line):
        return _directive(lines, i, match)
    if match := FENCE.match(line):
        return _code(lines, i, match)
    if line.lstrip().startswith("$$"):
        return _equation(lines, i)
    if match := HEADING.match(line):
        return Heading(len(match[1]), match[2]), i + 1
    if match := TARGET.match(line):
        return Target(match[1]), i + 1
    for pattern, why in REFUSED:
        if pattern.search(line):
            raise MarkupError(f"{why}: {line.strip()!r}")
    return Text([line]), i + 1


def _directive(lines: list[str], i: int, match: re.Match) -> tuple[Block, int]:
    end = _closing(lines, i, rf"^:{{{len(match[1])},}}[ \t]*$")
    body, options = lines[i + 1 : end], {}
    while body and (option := OPTION.match(body[0])):
        options[option[1]] = option[2]
        body = body[1:]
    inside = parse("\n".join(body))
    return Directive(match[2], match[3].strip(), options, inside), end + 1


def _code(lines: list[str], i: int, match: re.Match) -> tuple[Block, int]:
    end = _closing(lines, i, rf"^\s*{match[1]}[ \t]*$")
    info = match[2].strip()
    if info == "{eval-rst}":  # the one directive that MyST knows with backquotes only
        return Directive("eval-rst", "", {}), end + 1
    if info.startswith("{"):
        raise MarkupError(f"write this directive with colons: {lines[i].strip()!r}")
    return Code(lines[i : end + 1]), end + 1


def _equation(lines: list[str], i: int) -> tuple[Block, int]:
    indent, _, first = lines[i].partition("$$")
    if i and lines[i - 1].strip():
        raise MarkupError(f"leave a blank line before $$: {lines[i - 1].strip()!r}")
    rest = [first, *lines[i + 1 :]]
    for n, line in enumerate(rest):
        if n and not line.strip():
            raise MarkupError(f"a blank line inside an equation: {rest[n - 1]!r}")
        if match := MATH_END.match(line):
            body = [part for part in [*rest[:n], match[1]] if part.strip()]
            return Equation(body, match[2], indent), i + n + 1
    raise MarkupError(f"an equation is not closed: {lines[i].strip()!r}")


def _closing(lines: list[str], start: int, pattern: str) -> int:
    for i in range(start + 1, len(lines)):
        if re.match(pattern, lines[i]):
            return i
    raise MarkupError(f"a fence is not closed: {lines[start].strip()!r}")
