"""The directives of MyST as plain Markdown: boxes, figures, exercises and solutions."""

from typing import TYPE_CHECKING

from myst_blocks import Directive, MarkupError
from numbering import THEOREMS

if TYPE_CHECKING:
    from render import Renderer

ADMONITIONS = "note tip hint important warning caution danger attention seealso".split()


def equation(lines: list[str], number: str | None, indent: str = "") -> str:
    tag = [f"\\tag{{{number}}}"] if number else []
    return "\n".join([f"{indent}$$", *lines, *(indent + t for t in tag), f"{indent}$$"])


def folded(title: str, body: str) -> str:
    return f"<details>\n<summary>{title}</summary>\n\n{body}\n\n</details>"


def boxed(title: str, body: str) -> str:
    """A quotation, or rules where the body has what Colab cannot quote."""
    whole = f"**{title}**\n\n{body}" if body else f"**{title}**"
    if "$$" in body or "```" in body or "<details>" in body:
        return f"---\n\n{whole}\n\n---"
    return "\n".join(f"> {line}".rstrip() for line in whole.splitlines())


def admonition(r: "Renderer", block: Directive) -> str:
    body = r.blocks(block.body)
    title = r.inline(block.argument)
    if block.name != "admonition":
        # A named admonition has no title; an argument is the start of its text.
        body = f"{title}\n{body}".strip()
        title = "See also" if block.name == "seealso" else block.name.capitalize()
    fold = "dropdown" in block.options.get("class", "")
    return folded(title, body) if fold else boxed(title, body)


def margin(r: "Renderer", block: Directive) -> str:
    return boxed(r.inline(block.argument) or "Aside", r.blocks(block.body))


def numbered(r: "Renderer", block: Directive) -> str:
    """ "Theorem 2.1 (Tweedie)", or without number where the source says so."""
    name = block.name.removeprefix("prf:").removesuffix("-start").capitalize()
    number = r.book.numbers.get(id(block))
    title = f" ({r.inline(block.argument)})" if block.argument else ""
    return f"{name} {number}{title}" if number else f"{name}{title}"


def theorem(r: "Renderer", block: Directive) -> str:
    return boxed(numbered(r, block), r.blocks(block.body))


def proof(r: "Renderer", block: Directive) -> str:
    return f"*Proof.* {r.blocks(block.body)}\n\n∎"


def exercise(r: "Renderer", block: Directive) -> str:
    return f"**{numbered(r, block)}**\n\n{r.blocks(block.body)}".strip()


def solution_title(r: "Renderer", block: Directive) -> str:
    return f"Solution to {r.named(r.label(block.argument))}"


def solution(r: "Renderer", block: Directive) -> str:
    return folded(solution_title(r, block), r.blocks(block.body))


def figure(r: "Renderer", block: Directive) -> str:
    if "alt" not in block.options:
        raise MarkupError(f"the figure {block.argument!r} needs an :alt: text")
    image = f"![{block.options['alt']}]({r.image(block.argument)})"
    if block.name == "image":
        return image
    number = r.book.numbers[id(block)]
    return f"{image}\n\n{caption(number, r.blocks(block.body))}"


def caption(number: str, text: str) -> str:
    return f"**Figure {number}.** {text}"


def math(r: "Renderer", block: Directive) -> str:
    raise MarkupError("write an equation as $$ ... $$ (label)")


def refuse_solution(r: "Renderer", block: Directive) -> str:
    raise MarkupError(f"{{{block.name}}} cannot stand inside another directive")


DIRECTIVES = {
    **dict.fromkeys([*ADMONITIONS, "admonition"], admonition),
    **dict.fromkeys([f"prf:{name}" for name in THEOREMS], theorem),
    **dict.fromkeys(["figure", "image"], figure),
    **dict.fromkeys(["exercise", "exercise-start"], exercise),
    **dict.fromkeys(["solution-start", "solution-end"], refuse_solution),
    "prf:proof": proof,
    "solution": solution,
    "exercise-end": lambda r, block: "",
    "margin": margin,
    "math": math,
}
