"""Run notebooks as Colab does: in an environment of their own, far from the sources.

    python tools/colab.py                 # every chapter; the weekly run does this
    python tools/colab.py 00 04 08        # some of them
    python tools/colab.py --imports       # only install, and import what the chapters import

The environment first gets a JAX, as Colab has one, then a wheel of the package by the line that
the first cell of a chapter would run, which must leave that JAX alone. Each notebook is
copied to an empty folder and executed there. That JAX is the newest, which may be newer than
Colab's: that no chapter takes a name which an older one lacks is looked at by `make oldest`
(tests/test_pages.py).
"""

import argparse
import ast
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COLAB_HAS = ("ipykernel", "nbclient")  # beside JAX: what runs a notebook


def cells(notebook: Path) -> list[str]:
    """The source of each code cell."""
    found = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


def requirements(notebook: Path, jax: str) -> list[str]:
    """What the first cell asks pip for, where version `jax` is installed.

    Raises:
        ValueError: the first cell installs nothing.
    """
    first = cells(notebook)[0]
    source = re.search(r'^ *source = "(.+)"$', first, re.MULTILINE)
    line = re.search(r"^ *%pip install --quiet (.+)$", first, re.MULTILINE)
    if source is None or line is None:
        raise ValueError(f"{notebook.name}: the first cell does not install the package")
    filled = line[1].replace("{source}", source[1]).replace("{jax}", jax)
    return [part.strip('"') for part in re.findall(r'"[^"]+"|\S+', filled)]


def imports(notebook: Path) -> list[ast.Import | ast.ImportFrom]:
    """The import statements of all cells, wherever in them."""
    statements = []
    for cell in cells(notebook):
        code = re.sub(r"^( *)%.*$", r"\1pass", cell, flags=re.MULTILINE)
        nodes = ast.walk(ast.parse(code))
        statements += [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    return statements


class Colab:
    """An environment with JAX, and with the package by a notebook's first cell."""

    def __init__(self, folder: Path, notebook: Path):
        self.folder = folder
        run(sys.executable, "-m", "venv", folder / "env")
        self.python = folder / "env" / "bin" / "python"
        self.pip("install", "jax", *COLAB_HAS)
        before = self.jax()
        self.pip("wheel", "--no-deps", "-w", folder, ROOT)
        (wheel,) = folder.glob("*.whl")
        wanted = requirements(notebook, before)
        start = time.monotonic()
        self.pip("install", *(re.sub(r"@ git\+.*", f"@ {wheel.as_uri()}", part) for part in wanted))
        print(f"installed in {time.monotonic() - start:.0f} s, beside jax {before}")
        if self.jax() != before:
            raise RuntimeError(f"the first cell replaced jax {before} by {self.jax()}")

    def pip(self, command: str, *arguments: str | Path) -> None:
        run(self.python, "-m", "pip", command, "-q", "--disable-pip-version-check", *arguments)

    def jax(self) -> str:
        show = "from importlib.metadata import version; print(version('jax'))"
        shown = subprocess.run(
            [self.python, "-c", show], check=True, capture_output=True, text=True
        )
        return shown.stdout.strip()

    def import_all(self, notebooks: list[Path]) -> None:
        """Every import of the notebooks, in one process."""
        lines = sorted({ast.unparse(node) for name in notebooks for node in imports(name)})
        run(self.python, "-c", "\n".join(lines), cwd=empty(self.folder / "imports"))
        print(f"{len(lines)} imports work")

    def execute(self, notebook: Path) -> None:
        """The whole notebook, alone in a folder."""
        folder = empty(self.folder / notebook.stem)
        (folder / notebook.name).write_bytes(notebook.read_bytes())
        start = time.monotonic()
        kernel = ["--kernel_name=python3", "--timeout=900"]
        run(self.python, "-m", "jupyter", "execute", *kernel, notebook.name, cwd=folder)
        print(f"{notebook.stem} runs, in {time.monotonic() - start:.0f} s", flush=True)


def empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def run(*command: str | Path, cwd: Path | None = None) -> None:
    subprocess.run(command, cwd=cwd, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run chapters in a fresh environment.")
    parser.add_argument("chapters", nargs="*", help="their numbers, such as 04; all unless given")
    parser.add_argument("--imports", action="store_true", help="install and import, run nothing")
    arguments = parser.parse_args()
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    wanted = [n for n in notebooks if not arguments.chapters or n.name[:2] in arguments.chapters]
    if not wanted:
        sys.exit(f"no chapter {' '.join(arguments.chapters)} in notebooks")
    with tempfile.TemporaryDirectory() as folder:
        colab = Colab(Path(folder), wanted[0])
        colab.import_all(wanted)
        for notebook in [] if arguments.imports else wanted:
            colab.execute(notebook)


if __name__ == "__main__":
    main()
