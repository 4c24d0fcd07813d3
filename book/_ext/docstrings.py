"""The package's docstrings on the API page: mathematics, code and array types.

Docstrings are written for people who read source: `$...$` for mathematics and single
backquotes for code. Sphinx reads reStructuredText, so both are translated. Array types
print as they are written, `Float[Array, 'n d']`. A public name can be referred to where
users import it, `edm_tutorial.sample`, whatever file it lives in. Functions with which the package
only helps itself, which no page names and no folder exports, are left to the source.
"""

import functools
import inspect
import re
import sys
import typing
from pathlib import Path

from sphinx.util.nodes import make_refnode

INLINE = re.compile(
    r"(?P<literal>``.+?``|:[\w:]+:`[^`]+`|`[^`]+`__?)"
    r"|(?<!`)`(?P<code>[^`]+)`(?!`)(?P<after>\w?)"
    r"|(?<!\$)\$(?!\$)(?P<math>[^$]+)\$(?P<end>\w?)"
    r"|(?P<raw>(?<=\w)_(?!\w)|(?<![\w*])\*(?=\w)(?!(?:(?!\n\s*\n)[^*])*\w\*))",
    re.DOTALL,
)
FUNCTION = re.compile(r"<function [^>]*>")
CLASS = re.compile(r"<class '(?:\w+\.)*(\w+)'>")
ROOT = Path(__file__).parents[2]
NAMING = "README.md", "book/*.md", "notebooks/*.md", "edm_tutorial/**/__init__.py"
DISPLAY = re.compile(r"(^[ \t]*\$\$.*?\$\$[ \t]*$)", re.DOTALL | re.MULTILINE)


def to_rst(text: str) -> str:
    """A docstring as reStructuredText."""
    parts = []
    for is_code, lines in _split_code(text.split("\n")):
        part = "\n".join(lines)
        parts.append(f"::\n\n{part}" if is_code else _prose(part))
    return "\n".join(parts)


def _split_code(lines: list[str]) -> list[tuple[bool, list[str]]]:
    """Prose and indented code, in turns: code follows a blank line after prose."""
    parts: list[tuple[bool, list[str]]] = [(False, [])]
    last = "::"  # the last line that is not blank; a section's lines are no code
    for i, line in enumerate(lines):
        indented = line.startswith("    ")
        is_code, _ = parts[-1]
        after_prose = not last.startswith(" ") and not last.endswith("::")
        if indented and not is_code and after_prose and not lines[i - 1].strip():
            parts.append((True, []))
        elif is_code and line.strip() and not indented:
            parts.append((False, []))
        parts[-1][1].append(line)
        last = line if line.strip() else last
    return parts


def _prose(text: str) -> str:
    return "".join(
        _display(part) if part.lstrip().startswith("$$") else INLINE.sub(_inline, part)
        for part in DISPLAY.split(text)
    )


def _inline(match: re.Match) -> str:
    if match["code"]:
        return f"``{match['code']}``" + _joined(match["after"])
    if match["math"]:
        return f":math:`{' '.join(match['math'].split())}`" + _joined(match["end"])
    # `c_` and `*shape` are text here, not a reference and not emphasis.
    return f"\\{match['raw']}" if match["raw"] else match[0]


def _joined(letter: str) -> str:
    """A letter that follows inline markup at once, as in `x`s, needs an escape."""
    return f"\\ {letter}" if letter else ""


def _display(block: str) -> str:
    indent = block[: len(block) - len(block.lstrip())]
    body = " ".join(block.strip().strip("$").split())
    return f"\n{indent}.. math:: {body}\n"


def _process(app, what, name, obj, options, lines) -> None:
    lines[:] = to_rst("\n".join(lines)).split("\n")


def _signature(app, what, name, obj, options, signature, returns):
    """A default that is a function has no name that a reader could use: `...`; a class has one."""
    return CLASS.sub(r"\1", FUNCTION.sub("...", signature or "")) or None, returns


def _skip(app, what, name, obj, skip, options):
    """Leave out the fields of a NamedTuple, which say nothing of their own, and mere helpers."""
    alias = (obj.__doc__ or "").startswith("Alias for field")
    helper = what == "module" and inspect.isfunction(obj) and name not in named()
    return True if alias or helper else None


@functools.cache
def named() -> set[str]:
    """The words of all pages but the API's own, and of the package's doors."""
    files = (file for pattern in NAMING for file in ROOT.glob(pattern))
    return {word for file in files for word in re.findall(r"\w+", file.read_text())}


def _public_name(app, env, node, contnode):
    """Resolve `edm_tutorial.name` to the one object of that name in the package."""
    package, _, name = node.get("reftarget", "").partition(".")
    if node.get("refdomain") != "py" or package != "edm_tutorial":
        return None
    objects = env.get_domain("py").objects
    found = [key for key in objects if key.startswith(package) and key.endswith(f".{name}")]
    if len(found) != 1:
        return contnode if _is_type_variable(node["reftarget"]) else None
    entry, here = objects[found[0]], node["refdoc"]
    return make_refnode(app.builder, here, entry.docname, entry.node_id, contnode, found[0])


def _is_type_variable(target: str) -> bool:
    module, _, name = target.rpartition(".")
    return isinstance(getattr(sys.modules.get(module), name, None), typing.TypeVar)


def setup(app) -> dict:
    # jaxtyping looks here when it is imported, which is when the package first is.
    typing.GENERATING_DOCUMENTATION = "edm_tutorial"  # type: ignore[attr-defined]
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-signature", _signature)
    app.connect("missing-reference", _public_name)
    # Before napoleon (priority 500), which cuts the sections.
    app.connect("autodoc-process-docstring", _process, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
