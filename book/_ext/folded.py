"""Folded cells: what only sets up, draws or checks stands behind one line that says so.

A cell with the tag `hide-input` is folded on the page; in a notebook it is collapsed below
the same line.
"""

import ast

from docutils import nodes


def title(code: str, metadata: dict) -> str:
    """What a folded cell holds: a figure's code, so many checks, or a set-up."""
    if "figure" in metadata.get("mystnb", {}):
        return "How this figure is drawn"
    checks = sum(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(code)))
    if checks:
        return f"Checked: {checks} number{'s' * (checks > 1)}"
    return "Set-up"


def _name(app, doctree: nodes.document) -> None:
    for cell in doctree.findall(nodes.container):
        if cell.get("hide_mode") == "input":
            source = next(cell.findall(nodes.literal_block))
            cell["prompt_show"] = cell["prompt_hide"] = title(
                source.astext(), cell["cell_metadata"]
            )


def setup(app) -> dict:
    app.connect("doctree-read", _name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
