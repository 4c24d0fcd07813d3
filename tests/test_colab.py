"""What a chapter needs in Colab: its first cell asks for all of it, and leaves JAX alone.

Read from the installed packages' own lists of requirements, in a second and without network;
`make colab` does it for real, in a fresh environment, each week.
"""

import importlib.metadata
import importlib.util
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("colab", ROOT / "tools/colab.py")
assert SPEC is not None and SPEC.loader is not None
colab = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(colab)

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
every = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
COLAB_HAS = {"ipython"}  # it is what runs the notebook


def closure(requirements: list[str]) -> set[str]:
    """The distributions that come with `requirements`, those they require included."""
    todo, seen = [Requirement(line) for line in requirements], set()
    while todo:
        requirement = todo.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        wanted = [{"extra": extra} for extra in requirement.extras | {""}]
        lines = importlib.metadata.distribution(requirement.name).requires or []
        inner = [Requirement(line) for line in lines]
        todo += [r for r in inner if r.marker is None or any(map(r.marker.evaluate, wanted))]
    return {name for name, _ in seen}


def modules(notebook: Path) -> set[str]:
    """The first part of every imported name."""
    nodes = colab.imports(notebook)
    names = [node.module for node in nodes if hasattr(node, "module")]
    names += [alias.name for node in nodes if not hasattr(node, "module") for alias in node.names]
    return {name.partition(".")[0] for name in names}


@every
def test_the_first_cell_asks_for_all_that_is_imported(notebook):
    brought = closure(colab.requirements(notebook, "1.2.3")) | COLAB_HAS
    owners = importlib.metadata.packages_distributions()
    for module in modules(notebook) - sys.stdlib_module_names:
        names = {canonicalize_name(name) for name in owners.get(module, [module])}
        assert names & brought, f"{module} would be missing"


@every
def test_the_first_cell_pins_jax_to_what_is_there(notebook):
    """So pip may choose versions of all else, and never another JAX."""
    package, jax, *rest = colab.requirements(notebook, "1.2.3")
    assert Requirement(package).extras == {"data", "plot", "sbi", "train"}
    assert jax == "jax==1.2.3"
    assert not any(part.startswith(("jax", "numpy")) for part in rest)


def test_an_extra_that_is_forgotten_is_missed():
    """The check itself: without `sbi`, arviz-stats does not come."""
    assert "arviz-stats" in closure(["edm-tutorial[sbi]"])
    assert not {"arviz-stats", "matplotlib"} & closure(["edm-tutorial[train]"])


def test_a_cell_without_an_installation_is_refused(tmp_path):
    page = tmp_path / "a.ipynb"
    page.write_text('{"cells": [{"cell_type": "code", "source": ["import jax"]}]}')
    with pytest.raises(ValueError, match="does not install"):
        colab.requirements(page, "1.2.3")
