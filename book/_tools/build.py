"""Build the book, in one command.

    python book/_tools/build.py                   # export, run what changed, build
    python book/_tools/build.py --execute-only    # export and run, without the pages

1. `export.py` writes the notebooks that Colab opens.
2. Each notebook whose code changed, or the package, or any version, is run once, in `.executed/`;
   a warning of its own is an error.
3. The outputs, and nothing else, go into the cache that Jupyter Book reads.
4. Jupyter Book builds `_build/html`, with every warning an error.

It says of each chapter how long it ran and how long its text is.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from importlib.metadata import distributions
from pathlib import Path

import export
import jupytext
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from myst_nb.core.read import read_myst_markdown_notebook
from nbformat import NotebookNode, read
from notebook_builder import INSTALL_ID, TITLE
from repository import ROOT

EXECUTED = ROOT / ".executed"
BUILD = ROOT / "_build"
CELL_SECONDS = 1800
PACE = 150  # words a minute, with the formulas and the open cells between them
# Each kernel runs this first. A cell that means to warn catches the warning and prints it.
STARTUP = """\
import warnings

# A warning of a cell or of the package is an error; one of a library goes to stderr.
warnings.filterwarnings("error", module=r"__main__$|edm_tutorial\\b")
"""


def fingerprint(chapter: Path) -> str:
    """A hash of everything the outputs of a chapter depend on."""
    digest = hashlib.sha256()
    for cell in jupytext.reads(chapter.read_text(), fmt="md:myst").cells:
        if cell.cell_type == "code":
            digest.update(cell.source.encode() + b"\0")
    for path in sorted((ROOT / "edm_tutorial").rglob("*.py")):
        digest.update(path.read_bytes())
    flags = os.environ.get("XLA_FLAGS", "")
    digest.update("\n".join([sys.version, *installed(), flags, STARTUP]).encode())
    return digest.hexdigest()


def installed() -> list[str]:
    """Every package of this environment with its version: which one moves a digit, nobody knows."""
    return sorted(f"{found.name}=={found.version}" for found in distributions())


def execute(sources: list[Path]) -> dict[str, float]:
    """Run the notebooks that changed; returns the seconds each took when it ran.

    Raises:
        SystemExit: a cell failed.
    """
    EXECUTED.mkdir(exist_ok=True)
    prints = {source: fingerprint(source) for source in sources}
    stale = [source for source in sources if _record(source).get("hash") != prints[source]]
    for source in stale:
        _record_path(source).unlink(missing_ok=True)
        shutil.copy(source.with_suffix(".ipynb"), _executed(source))
    seconds = _run(sorted(stale, key=said_seconds, reverse=True)) if stale else {}
    for source in stale:
        if source.stem in seconds:
            record = {"hash": prints[source], "seconds": seconds[source.stem]}
            _record_path(source).write_text(json.dumps(record))
            os.utime(source)  # Sphinx reads the page again
            for text in stderr(source):
                print(f"build: {source.stem} said, where its page does not show it:\n{text}")
    if failed := [source.stem for source in stale if source.stem not in seconds]:
        sys.exit(f"\nbuild: a cell failed in {', '.join(failed)} (see above)")
    return {source.stem: _record(source)["seconds"] for source in sources}


def stderr(source: Path) -> list[str]:
    """What the cells of the executed copy wrote to stderr, where libraries warn."""
    cells = read(_executed(source), as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return [output.text for output in outputs if output.get("name") == "stderr"]


def said_seconds(source: Path) -> int:
    """How long a chapter says that it runs; the longest are started first."""
    said = re.search(r"\*\*Runs in\*\* about (\w+) (second|minute)", source.read_text())
    if said is None:
        return 0
    count = {"a": 1, "two": 2}.get(said[1]) or int(said[1])
    return count * (60 if said[2] == "minute" else 1)


def _run(sources: list[Path]) -> dict[str, float]:
    """Run copies of notebooks in place; the seconds of those that passed."""
    report, config = EXECUTED / "report.xml", EXECUTED / "pytest.ini"
    config.write_text("[pytest]\n")  # not the settings of the package's own tests
    command = [sys.executable, "-m", "pytest", "-q", "-c", str(config)]
    command += ["-p", "no:cacheprovider", f"--junitxml={report}"]
    command += ["--nbmake", "--overwrite", f"--nbmake-timeout={CELL_SECONDS}"]
    command += ["-n", str(min(len(sources), 2))] if len(sources) > 1 else []
    command += [str(_executed(source)) for source in sources]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    startup = EXECUTED / "ipython" / "profile_default" / "startup" / "warnings.py"
    startup.parent.mkdir(parents=True, exist_ok=True)
    startup.write_text(STARTUP)
    environment = {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)}
    environment["IPYTHONDIR"] = str(EXECUTED / "ipython")
    environment.pop("MPLBACKEND", None)
    code = subprocess.run(command, cwd=EXECUTED, env=environment).returncode
    if code not in (0, 1):
        sys.exit(f"build: pytest could not run the notebooks (exit status {code})")
    return _passed(report)


def _passed(report: Path) -> dict[str, float]:
    """Names and seconds of the notebooks that ran without an error."""
    seconds = {}
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("failure") is None and case.find("error") is None:
            name = Path(case.get("name", "").partition("::")[0]).stem
            seconds[name] = float(case.get("time", 0))
    return seconds


def seed(sources: list[Path]) -> None:
    """Put the outputs of the executed notebooks where Jupyter Book looks for them."""
    cache = get_cache(str(BUILD / ".jupyter_cache"))
    for source in sources:
        notebook = with_outputs(source)
        seconds = {"execution_seconds": _record(source)["seconds"]}
        bundle = CacheBundleIn(notebook, str(source), data=seconds)
        cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def with_outputs(source: Path) -> NotebookNode:
    """The chapter as Jupyter Book reads it, with the outputs of its executed copy."""
    notebook = read_myst_markdown_notebook(source.read_text())
    ran = [
        cell
        for cell in read(_executed(source), as_version=4).cells
        if cell.cell_type == "code" and cell.id != INSTALL_ID
    ]
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell, done in zip(cells, ran, strict=True):
        first, _, rest = done.source.partition("\n")
        if cell.source != (rest if first.startswith(TITLE) else done.source):
            sys.exit(f"build: the executed copy of {source.name} is out of step")
        cell.outputs, cell.execution_count = done.outputs, done.execution_count
    return notebook


def words(source: Path) -> int:
    """The words of a chapter's text before its exercises; a formula is one, code none."""
    cells = jupytext.reads(source.read_text(), fmt="md:myst").cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    text = text.partition("\n## Exercises")[0]
    text = re.sub(r"\$\$.*?\$\$|\$[^$]+\$", " formula ", text, flags=re.DOTALL)
    text = re.sub(r"^(:{3,}.*|:\w+:.*|\([\w-]+\)=)$", "", text, flags=re.MULTILINE)
    return len(re.findall(r"[\w'-]*\w[\w'-]*", text))


def pages() -> None:
    """Build the pages; after a failure, the next build reads every page again."""
    command = [Path(sys.executable).parent / "jupyter-book", "build"]
    command += ["-W", "-n", "--keep-going", "."]
    if subprocess.run(command, cwd=ROOT).returncode:
        shutil.rmtree(BUILD / ".doctrees", ignore_errors=True)
        sys.exit("build: Jupyter Book failed (see above)")


def _executed(source: Path) -> Path:
    return EXECUTED / source.with_suffix(".ipynb").name


def _record_path(source: Path) -> Path:
    return EXECUTED / f"{source.stem}.json"


def _record(source: Path) -> dict:
    path = _record_path(source)
    known = path.is_file() and _executed(source).is_file()
    return json.loads(path.read_text()) if known else {}


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the book.")
    parser.add_argument("--execute-only", action="store_true", help="no pages")
    arguments = parser.parse_args()
    if code := export.main([]):
        sys.exit(code)
    sources = export.chapters(ROOT)
    for name, seconds in execute(sources).items():
        count = words(ROOT / "notebooks" / f"{name}.md")
        print(f"{name}: runs {seconds:.0f} s; {count:,} words, {count / PACE:.0f} minutes to read")
    if not arguments.execute_only:
        seed(sources)
        pages()


if __name__ == "__main__":
    main()
