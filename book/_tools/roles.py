"""The roles of MyST as plain Markdown: references, citations, names of the package."""

import re
from typing import TYPE_CHECKING

from myst_blocks import MarkupError

if TYPE_CHECKING:
    from render import Renderer


def explicit(body: str) -> tuple[str, str]:
    """`text <target>` as (text, target), and `target` as ("", target)."""
    match = re.match(r"^(.*?)\s*<([^<>]+)>$", body, re.DOTALL)
    return (match[1], match[2]) if match else ("", body)


def role_ref(r: "Renderer", body: str) -> str:
    text, name = explicit(body)
    label = r.label(name)
    if not text and label.kind == "section":
        text = r.inline(label.title)
        text = f"*{text}*" if label.page == r.page.name else text
    return r.to(label, text or r.named(label))


def role_numref(r: "Renderer", body: str) -> str:
    text, name = explicit(body)
    label = r.label(name)
    if not label.number:
        raise MarkupError(f"{name!r} has no number; use {{ref}}")
    return r.to(label, text.replace("%s", label.number) if text else r.named(label))


def role_doc(r: "Renderer", body: str) -> str:
    text, path = explicit(body)
    name = r.path_of(f"{path}.md").removesuffix(".md")
    return f"[{text or r.book.titles[name]}]({r.page_url(name)})"


def role_cite(r: "Renderer", body: str) -> str:
    keys = [key.strip() for key in body.split(",")]
    r.cited += keys
    return f"[{'; '.join(r.citations.short(key, ', ') for key in keys)}]"


def role_cite_text(r: "Renderer", body: str) -> str:
    r.cited.append(body)
    authors, year = r.citations.parts(body)
    return f"{authors} [{year}]"


def role_code(r: "Renderer", body: str) -> str:
    """A name of the package: `~a.b.c` is shown as `c`."""
    text, name = explicit(body)
    short = name[1:].rpartition(".")[2] if name.startswith("~") else name
    return f"`{text or short}`"


def role_function(r: "Renderer", body: str) -> str:
    return role_code(r, body)[:-1] + "()`"


ROLES = {
    "eq": lambda r, body: r.to(r.label(body), r.named(r.label(body))),
    "prf:ref": lambda r, body: r.to(r.label(body), r.named(r.label(body))),
    "ref": role_ref,
    "numref": role_numref,
    "doc": role_doc,
    "cite": role_cite,
    "cite:p": role_cite,
    "cite:t": role_cite_text,
    "py:func": role_function,
    "py:meth": role_function,
    **dict.fromkeys(["py:class", "py:mod", "py:attr", "py:obj"], role_code),
}
