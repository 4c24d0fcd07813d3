"""Write notebooks/NN_name.ipynb from notebooks/NN_name.md.

    python book/_tools/export.py            # writes the notebooks that changed
    python book/_tools/export.py --check    # writes nothing; 1 if one is out of step

The notebooks have no outputs. They are what Colab opens, so their text is plain
Markdown with the numbers and citations of the book, which Sphinx resolves
(`notebook_builder.py`), and their first cell installs the package where it is missing.
"""

import argparse
import sys
import tempfile
from io import StringIO
from pathlib import Path

from jupyter_book.config import get_final_config
from repository import ROOT
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.util.console import strip_colors
from sphinx.util.docutils import docutils_namespace, patch_docutils
from sphinx_external_toc.parsing import parse_toc_yaml

# The first puts scripts into the text of a page, the second sets a switch in `typing`.
UNUSED = ("sphinx_thebe", "docstrings")


def chapters(root: Path) -> list[Path]:
    """The sources of the notebooks, in the order of the table of contents."""
    names = parse_toc_yaml(root / "_toc.yml")
    return [root / f"{name}.md" for name in names if name.startswith("notebooks/")]


def export(root: Path) -> dict[Path, str]:
    """Every notebook's path and text, for the chapters in the table of contents.

    Raises:
        ValueError: what Sphinx warns of, such as a label that is nowhere.
    """
    options = {"nb_execution_mode": "off", "latex_individualpages": False}
    config: dict
    config, _ = get_final_config(user_yaml=root / "_config.yml", sourcedir=root, cli_config=options)
    used = [name for name in config["extensions"] if name not in UNUSED]
    config["extensions"] = [*used, "notebook_builder"]
    warnings = StringIO()
    with tempfile.TemporaryDirectory() as out, patch_docutils(), docutils_namespace():
        try:
            Sphinx(root, None, out, out, "notebooks", config, None, warnings).build()
        except SphinxError as error:
            warnings.write(str(error))
        if text := strip_colors(warnings.getvalue()).strip():
            raise ValueError(text)
        paths = [source.with_suffix(".ipynb") for source in chapters(root)]
        return {path: (Path(out) / path.name).read_text() for path in paths}


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description="Write the notebooks.")
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args(argv)
    try:
        texts = export(root)
    except ValueError as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    there = {path: path.read_text() for path in root.glob("notebooks/*.ipynb")}
    stale = [path for path, text in texts.items() if there.get(path) != text]
    extra = there.keys() - texts.keys()
    for path in sorted(extra):
        print(f"{path.relative_to(root)}: no chapter in _toc.yml makes it")
    for path in stale:
        done = "out of step" if arguments.check else "written"
        print(f"{path.relative_to(root)}: {done}")
        if not arguments.check:
            path.write_text(texts[path])
    return 1 if extra or (arguments.check and stale) else 0


if __name__ == "__main__":
    sys.exit(main())
