"""Write edm_minimal.py: the heart of the package in one file, to copy into your own project.

The package's own files, unchanged, each after those it needs; all imports come first.
"""

import ast
import subprocess
import sys
import tomllib
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "edm_minimal.py"
HEART = ["grids", "denoiser", "noise_levels", "losses", "sampling", "likelihood"]
HEADER = '''"""EDM diffusion models in one file: denoiser, loss, sampler with churn, likelihood.

The package edm_tutorial {version}, joined by `make minimal`; edit the package instead, and copy
this file. Licence: Apache-2.0. {url}
"""
'''


def source(name: str) -> str:
    path = ROOT / "edm_tutorial" / name
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()


def tree(name: str) -> ast.Module:
    return ast.parse(source(name))


def in_order(names: list[str]) -> list[str]:
    """`names` and all that they import from the package, the imported first."""
    graph, todo = {}, list(names)
    while todo:
        name = todo.pop()
        froms = [node for node in tree(name).body if isinstance(node, ast.ImportFrom)]
        graph[name] = [str(node.module) for node in froms if node.level]
        todo += graph[name]
    return list(TopologicalSorter(graph).static_order())


def minimal() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    head, parts, defined = set(), [], Counter()
    for name in in_order(HEART):
        lines = source(name).splitlines()
        imports = [n for n in tree(name).body if isinstance(n, ast.Import | ast.ImportFrom)]
        head |= {ast.unparse(n) for n in imports if not getattr(n, "level", 0)}
        parts += [f"# {name}", *lines[imports[-1].end_lineno :]]
        defined.update(n.name for n in tree(name).body if hasattr(n, "name"))
    if max(defined.values()) > 1:
        sys.exit(f"two files define one name: {defined.most_common(2)}")
    header = HEADER.format(version=project["version"], url=project["urls"]["Repository"])
    text = "\n".join([header, *sorted(head), *parts])
    for command in ("check --fix --quiet", "format"):
        ruff = [sys.executable, "-m", "ruff", *command.split(), "--stdin-filename", TARGET, "-"]
        text = subprocess.run(ruff, input=text, capture_output=True, text=True, check=True).stdout
    return text


if __name__ == "__main__":
    TARGET.write_text(minimal())
