"""Write notebooks/NN_name.ipynb from notebooks/NN_name.md.

    python book/_tools/export.py            # writes the notebooks that changed
    python book/_tools/export.py --check    # writes nothing; 1 if one is out of step

The notebooks have no outputs. They are what Colab opens, so their text is plain
Markdown with the numbers and citations of the book (`render.py`), and their first cell
installs the package where it is missing.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

from citations import Citations
from directives import caption
from numbering import figure_of, read_book
from render import Renderer
from repository import ROOT, Repository, read

INSTALL_ID = "install"
INSTALL = """\
# In Colab this installs the package; where it is installed, it does nothing.
import importlib.metadata
import importlib.util

if importlib.util.find_spec("edm_tutorial") is None:
    jax = importlib.metadata.version("jax")  # Colab's own JAX stays as it is
    source = "edm-tutorial[data,plot,sbi,train] @ git+{url}"
    %pip install --quiet "{{source}}" "jax=={{jax}}" imageio-ffmpeg"""


def export(root: Path) -> dict[Path, str]:
    """Every notebook's path and text, for the chapters in the table of contents."""
    book = read_book(root)
    citations = Citations(root / "book" / "references.bib")
    repository = read(root)
    texts = {}
    for name, page in book.pages.items():
        if name.startswith("notebooks/"):
            renderer = Renderer(book, page, citations, repository)
            try:
                texts[root / f"{name}.ipynb"] = notebook(renderer)
            except ValueError as error:
                raise ValueError(f"{name}.md: {error}") from error
    return texts


def notebook(renderer: Renderer) -> str:
    """One chapter as the text of an .ipynb file."""
    page, cells = renderer.page, []
    for cell in page.cells:
        if cell.cell_type == "markdown":
            cells += _split(renderer.cell(cell.blocks))
        else:
            cells += _code(renderer, cell)
    if renderer.solution:
        raise ValueError(f"{renderer.solution} is not closed")
    cells.insert(0, _install(renderer.repository))
    if renderer.cited:
        cells.append(_markdown(_references(renderer)))
    return _json(_with_ids(cells))


def _references(renderer: Renderer) -> str:
    lines = sorted({renderer.citations.full(key) for key in renderer.cited})
    return "\n".join(["## References", "", *(f"- {line}" for line in lines)])


def _split(text: str) -> list[dict]:
    """One cell per section, so that Colab can fold them."""
    sections: list[list[str]] = [[]]
    fence = False
    for line in text.splitlines():
        fence ^= line.lstrip().startswith("```")
        if line.startswith(("# ", "## ")) and not fence and any(sections[-1]):
            sections.append([])
        sections[-1].append(line)
    return [_markdown("\n".join(lines)) for lines in sections if any(lines)]


def _code(renderer: Renderer, cell) -> list[dict]:
    """The code, hidden inside a solution, and the caption of its figure."""
    metadata = {"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {}
    if renderer.solution:
        metadata |= {"cellView": "form", "jupyter": {"source_hidden": True}}
    cells = [_cell("code", cell.source, metadata)]
    if figure := figure_of(cell):
        _check_alt(cell)
        text = renderer.inline(figure["caption"].strip())
        cells.append(_markdown(caption(renderer.book.numbers[id(cell)], text)))
    return cells


def _check_alt(cell) -> None:
    if not cell.metadata["mystnb"].get("image", {}).get("alt"):
        raise ValueError(f"a figure needs mystnb.image.alt: {cell.source[:60]!r}")


def _install(repository: Repository) -> dict:
    return _cell("code", INSTALL.format(url=repository.url), {}) | {"id": INSTALL_ID}


def _markdown(text: str) -> dict:
    return _cell("markdown", text.strip("\n"), {})


def _cell(kind: str, source: str, metadata: dict) -> dict:
    cell = {"cell_type": kind, "metadata": metadata, "source": source}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def _with_ids(cells: list[dict]) -> list[dict]:
    """Name each cell by its text: an edit changes the ids of the edited cells only."""
    seen: dict[str, int] = {}
    for cell in cells:
        digest = hashlib.sha256(cell["source"].encode()).hexdigest()[:8]
        seen[digest] = seen.get(digest, 0) + 1
        repeat = f"-{seen[digest]}" if seen[digest] > 1 else ""
        cell.setdefault("id", digest + repeat)
        cell["source"] = cell["source"].splitlines(keepends=True)
    return cells


def _json(cells: list[dict]) -> str:
    metadata = {
        "kernelspec": {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
    }
    whole = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def out_of_step(texts: dict[Path, str]) -> list[Path]:
    """The notebooks whose file is missing or says something else."""
    return [p for p, text in texts.items() if not p.is_file() or p.read_text() != text]


def orphans(root: Path, texts: dict[Path, str]) -> list[Path]:
    """Notebooks that no chapter in the table of contents makes."""
    return sorted(set((root / "notebooks").glob("*.ipynb")) - set(texts))


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description="Write the notebooks.")
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args(argv)
    try:
        texts = export(root)
    except ValueError as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    stale, extra = out_of_step(texts), orphans(root, texts)
    for path in extra:
        print(f"{path.relative_to(root)}: no chapter in _toc.yml makes it")
    for path in stale:
        done = "out of step" if arguments.check else "written"
        print(f"{path.relative_to(root)}: {done}")
        if not arguments.check:
            path.write_text(texts[path])
    return 1 if extra or (arguments.check and stale) else 0


if __name__ == "__main__":
    sys.exit(main())
