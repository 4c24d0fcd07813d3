"""A Sphinx builder that writes each chapter as the notebook that Colab opens.

jupytext cuts a chapter into cells. Sphinx reads the text, with a numbered break for each
code cell, and resolves it with the rest of the book; then the code is put back.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Any

import jupytext
from docutils import nodes
from repository import Repository, read
from sphinx.application import Sphinx
from sphinx.builders import Builder
from sphinx.util import logging
from to_markdown import DRAWN, Code, Page

LOGGER = logging.getLogger(__name__)
INSTALL_ID = "install"
INSTALL = """\
# In Colab this installs the package; where it is installed, it does nothing.
import importlib.metadata
import importlib.util

if importlib.util.find_spec("edm_tutorial") is None:
    jax = importlib.metadata.version("jax")  # Colab's own JAX stays as it is
    source = "edm-tutorial[data,plot,sbi,train] @ git+{url}"
    %pip install --quiet "{{source}}" "jax=={{jax}}" imageio-ffmpeg"""

TITLE = "# @title "  # begins a cell that Colab shows as this line alone
HIDDEN = {"cellView": "form", "jupyter": {"source_hidden": True}}
# What would import the package, on the page of its API.
API = re.compile(r"^```\{eval-rst\}\n\.\. automodule::.*?^```$", re.DOTALL | re.MULTILINE)


class NotebookBuilder(Builder):
    """Writes `NN_name.ipynb` into the output folder."""

    name = "notebooks"
    format = "ipynb"
    supported_data_uri_images = True

    def init(self) -> None:
        self.repository: Repository = read(Path(self.srcdir))
        self.sources: dict[str, dict[int, Any]] = {}

    def get_outdated_docs(self) -> Iterable[str]:
        return self.env.found_docs

    def get_target_uri(self, docname: str, typ: str | None = None) -> str:
        return f"{self.repository.pages}/{docname}.html"

    def get_relative_uri(self, from_: str, to: str, typ: str | None = None) -> str:
        return "" if from_ == to else self.get_target_uri(to)

    def prepare_writing(self, docnames: Set[str]) -> None:
        self.bibliography = self.env.get_and_resolve_doctree("book/bibliography", self)

    def write_doc(self, docname: str, doctree: nodes.document) -> None:
        if docname in self.sources:
            cells = self.cells(Page(self.env, docname, self.repository), doctree)
            (Path(self.outdir) / f"{Path(docname).name}.ipynb").write_text(_json(cells))

    def cells(self, page: Page, doctree: nodes.document) -> list[dict]:
        """The install cell, then text and code; a section and a caption begin a cell."""
        source = self.sources[page.name]
        cells = [_cell("code", INSTALL.format(url=self.repository.url)) | {"id": INSTALL_ID}]
        joins = False
        for piece in page.pieces(doctree):
            if isinstance(piece, Code):
                cells.append(_code(source.pop(piece.index), piece.hidden))
            elif joins and type(piece) is str and not piece.startswith(("# ", "## ")):
                cells[-1]["source"] += f"\n\n{piece}"
                continue
            else:
                cells.append(_cell("markdown", piece))
            joins = type(piece) is str
        if source:
            LOGGER.warning("a code cell stands inside a directive", location=page.name)
        if cited := page.references(self.bibliography):
            cells.append(_cell("markdown", "\n".join(["## References", "", *cited])))
        return cells


def without_code(app: Any, docname: str, content: list[str]) -> None:
    """Give Sphinx the text of a chapter, with a figure where a code cell draws one."""
    content[0] = API.sub("", content[0])
    if docname.startswith("notebooks/"):
        cells = list(enumerate(jupytext.reads(content[0], fmt="md:myst").cells))
        code = {i: cell for i, cell in cells if cell.cell_type == "code"}
        app.builder.sources[docname] = code
        content[0] = "\n\n".join(
            f"+++ {i}{_figure(cell.metadata)}" if i in code else cell.source for i, cell in cells
        )


def _figure(metadata: dict) -> str:
    drawn = metadata.get("mystnb", {})
    figure = drawn.get("figure", {})
    options = {"name": figure.get("name"), "alt": drawn.get("image", {}).get("alt")}
    lines = "".join(f":{key}: {json.dumps(text)}\n" for key, text in options.items() if text)
    return f"\n\n:::{{figure}} {DRAWN}\n{lines}\n{figure['caption']}\n:::" if figure else ""


def _code(cell: Any, hidden: bool) -> dict:
    """A code cell; one that is folded on the page is collapsed below its title."""
    tags = {"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {}
    if "hide-input" in tags.get("tags", []):
        from folded import title  # can be found once Sphinx has read the book's settings

        line = f"{TITLE}{title(cell.source, cell.metadata)}"
        return _cell("code", f"{line}\n{cell.source}", **tags, **HIDDEN)
    return _cell("code", cell.source, **tags, **(HIDDEN if hidden else {}))


def _cell(kind: str, source: str, **metadata: Any) -> dict:
    cell = {"cell_type": kind, "metadata": metadata, "source": source}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def with_ids(cells: list[dict]) -> list[dict]:
    """Name each cell by its text: an edit changes the ids of the edited cells only."""
    seen: Counter[str] = Counter()
    for cell in cells:
        digest = hashlib.sha256(cell["source"].encode()).hexdigest()[:8]
        seen[digest] += 1
        cell.setdefault("id", f"{digest}-{seen[digest]}" if seen[digest] > 1 else digest)
        cell["source"] = cell["source"].splitlines(keepends=True)
    return cells


def _json(cells: list[dict]) -> str:
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    whole = {"cells": with_ids(cells), "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def setup(app: Sphinx) -> dict:
    app.add_builder(NotebookBuilder)
    app.connect("source-read", without_code)
    return {"parallel_read_safe": False, "parallel_write_safe": False}
