"""Plain Markdown from MyST: what a reader of the raw notebook in Colab sees.

Every directive has one entry in `directives.py`, every role in `roles.py`. Anything
else stops the export, since Colab would show it as it is typed.
"""

import posixpath
import re
from dataclasses import dataclass, field

from citations import Citations
from directives import DIRECTIVES, equation, folded, solution_title
from myst_blocks import Block, Code, Directive, Equation, Heading, MarkupError, Text
from numbering import Book, Label, Page
from repository import Repository
from roles import ROLES

INLINE = re.compile(
    r"\{(?P<role>[\w:.-]+)\}(?P<tick>`+)(?P<body>.+?)(?P=tick)"
    r"|(?P<code>(?P<fence>`+).+?(?P=fence))"
    r"|(?P<math>(?<!\\)\$(?!\s)(?:[^$\\]|\\.)+\$)"
    r"|(?P<link>(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<url>[^()\s]*)\))",
    re.DOTALL,
)


@dataclass
class Renderer:
    """Renders the cells of a page; `solution` is the title of the one that is open."""

    book: Book
    page: Page
    citations: Citations
    repository: Repository
    solution: str = ""
    cited: list[str] = field(default_factory=list)

    def cell(self, blocks: list[Block]) -> str:
        """One Markdown cell, with the part inside an open solution folded."""
        title = f"{self.solution}, continued" if self.solution else ""
        parts, inside = [], []
        for block in blocks:
            if isinstance(block, Directive) and block.name == "solution-start":
                parts.append(self.blocks(inside))
                title = self.solution = solution_title(self, block)
                inside = []
            elif isinstance(block, Directive) and block.name == "solution-end":
                rest = self.blocks(inside)
                continued = title.endswith(", continued")
                parts.append(folded(title, rest) if rest or not continued else "")
                title = self.solution = ""
                inside = []
            else:
                inside.append(block)
        rest = self.blocks(inside)
        parts.append(folded(title, rest) if title else rest)
        return "\n\n".join(part for part in parts if part)

    def blocks(self, blocks: list[Block]) -> str:
        """Blocks one after the other, with one blank line between."""
        texts = [self.block(block).strip("\n") for block in blocks]
        joined = "\n\n".join(text for text in texts if text.strip())
        return re.sub(r"\n{3,}", "\n\n", joined)

    def block(self, block: Block) -> str:
        match block:
            case Text(lines):
                return self.inline("\n".join(lines))
            case Code(lines):
                return "\n".join(lines)
            case Equation(lines, _, indent):
                return equation(lines, self.book.numbers.get(id(block)), indent)
            case Heading(level, text):
                return f"{'#' * level} {self.heading_number(level)}{self.inline(text)}"
            case Directive():
                return self.directive(block)
        return ""

    def heading_number(self, level: int) -> str:
        return f"{self.page.chapter}. " if level == 1 and self.page.chapter else ""

    def directive(self, block: Directive) -> str:
        render = DIRECTIVES.get(block.name)
        if render is None:
            raise MarkupError(f"no rule to export the directive {{{block.name}}}")
        return render(self, block)

    # Inline markup.

    def inline(self, text: str) -> str:
        return INLINE.sub(self.span, text)

    def span(self, match: re.Match) -> str:
        if name := match["role"]:
            if name not in ROLES:
                raise MarkupError(f"no rule to export the role {match[0]!r}")
            return ROLES[name](self, " ".join(match["body"].split()))
        if match["link"]:
            return self.link(match)
        return match[0]

    def link(self, match: re.Match) -> str:
        url = match["url"]
        if not re.match(r"https?://|mailto:", url):
            url = self.image(url) if match["image"] else self.file(url)
        return f"{match['image']}[{self.inline(match['text'])}]({url})"

    def image(self, path: str) -> str:
        return self.repository.raw(self.path_of(path))

    def file(self, path: str) -> str:
        """Where a file can be read; Colab has no addresses of sections, GitHub has."""
        name, _, section = path.partition("#")
        target = self.path_of(name)
        stem = target.removesuffix(".md")
        if stem not in self.book.pages:
            return self.blob(target)
        if section and section not in anchors(self.book.pages[stem]):
            raise MarkupError(f"no section {section!r} in {target!r}")
        url = self.page_url(stem)
        return f"{url}#{section}" if section and not stem.startswith("notebooks/") else url

    def blob(self, path: str) -> str:
        return self.repository.blob(path)

    def page_url(self, name: str) -> str:
        """Where a page can be read from Colab: its notebook, or its text on GitHub."""
        if name.startswith("notebooks/"):
            return self.repository.colab(f"{name}.ipynb")
        return self.repository.blob(f"{name}.md")

    def path_of(self, path: str) -> str:
        """A path written in this page, seen from the root; it must exist."""
        here = posixpath.dirname(self.page.name)
        inside = path[1:] if path.startswith("/") else posixpath.join(here, path)
        inside = posixpath.normpath(inside)
        if not (self.book.root / inside).is_file():
            raise MarkupError(f"no file {inside!r}; for a label use {{ref}}")
        return inside

    # References.

    def label(self, name: str) -> Label:
        if name not in self.book.labels:
            raise MarkupError(f"no label {name!r} in the book")
        return self.book.labels[name]

    def named(self, label: Label) -> str:
        """The thing by its number, as in "Theorem 2.1"."""
        if label.kind == "equation":
            return f"({label.number})"
        kind = "chapter" if label.kind == "section" else label.kind
        return f"{kind.capitalize()} {label.number}"

    def to(self, label: Label, text: str) -> str:
        """`text`, as a link if the thing is on another page."""
        if label.page == self.page.name:
            return text
        return f"[{text}]({self.page_url(label.page)})"


def anchors(page: Page) -> set[str]:
    """The sections of a page as links name them: in lower case, hyphens for spaces."""
    texts = [cell.blocks for cell in page.cells if cell.cell_type == "markdown"]
    headings = [block.text for blocks in texts for block in blocks if isinstance(block, Heading)]
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}
