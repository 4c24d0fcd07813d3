"""The shape of the package: which way imports point, and how long anything may be."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "edm_tutorial"

# A file, or a folder as a whole, and the layer it stands on. Imports point downwards,
# or sideways without cycles.
LAYERS = {
    "types": 0,
    **dict.fromkeys(["schedules", "grids", "distributions", "networks"], 1),
    **dict.fromkeys(["preconditioning", "parameterisations", "dynamics"], 2),
    **dict.fromkeys(["noise", "losses", "initial_loss", "augmentation"], 2),
    **dict.fromkeys(["denoiser", "solvers", "sampling", "likelihood"], 3),
    **dict.fromkeys(["ema", "posthoc", "sharding", "batches", "optimizers", "training"], 3),
    **dict.fromkeys(["designs", "sbi", "checkpoint", "data", "networks.import_edm"], 4),
    **dict.fromkeys(["cli", "__main__", "exercises", "plotting"], 5),
}
CORE = {"jax", "jaxtyping", "equinox", "optax", "diffrax", "lineax", "numpy"}
# What `import edm_tutorial` may not need; each comes with an extra.
EXTRAS = {
    "sbi": {"sklearn", "arviz_stats"},
    "data": {"pooch", "sklearn"},
    "checkpoint": {"orbax", "etils"},
    "cli": {"tqdm"},
    "plotting": {"matplotlib", "imageio_ffmpeg"},
}

FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = {file: ".".join(file.relative_to(ROOT).with_suffix("").parts) for file in FILES}
all_files = pytest.mark.parametrize("file", FILES, ids=NAMES.get)


def module_name(file: Path) -> str:
    return NAMES[file].removesuffix(".__init__")


MODULES = {module_name(file): file for file in FILES}


def imports(file: Path) -> Iterator[str]:
    """Every module that `file` imports, wherever in it, by its full name."""
    package = module_name(file).split(".")
    if file.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield name if name in MODULES else base


def inner_imports(file: Path) -> set[str]:
    return {name for name in imports(file) if name.split(".")[0] == "edm_tutorial"}


def part(module: str) -> str:
    """The name in LAYERS that covers a module: its own, or its first part."""
    name = module.removeprefix("edm_tutorial.")
    return name if name in LAYERS else name.split(".")[0]


def test_every_file_has_a_layer():
    parts = {part(name) for name in MODULES if name != "edm_tutorial"}
    assert parts <= set(LAYERS), f"give these a layer: {sorted(parts - set(LAYERS))}"


@all_files
def test_imports_point_downwards(file):
    if file == PACKAGE / "__init__.py":
        return  # the front door stands above every layer
    here = part(module_name(file))
    for name in inner_imports(file):
        assert name != "edm_tutorial", f"{here} imports the front door"
        assert LAYERS[part(name)] <= LAYERS[here], f"{here} imports {name}"


def test_no_import_cycles():
    graph = {name: inner_imports(file) - {name} for name, file in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@all_files
def test_third_party_imports(file):
    name = module_name(file)
    here = part(name) if name != "edm_tutorial" else ""
    roots = {imported.split(".")[0] for imported in imports(file)}
    roots -= {"edm_tutorial", *sys.stdlib_module_names}
    assert roots <= CORE | EXTRAS.get(here, set())


def test_nothing_imports_plotting():
    users = {NAMES[file] for file in FILES if "edm_tutorial.plotting" in imports(file)}
    assert not users


@all_files
def test_file_reads_in_one_sitting(file):
    assert len(file.read_text().splitlines()) <= 260, "it was two ideas: split it"


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef, text: str) -> int:
    """Lines of a body that are neither docstring, comment nor blank.

    The signature does not count: one argument a line, it is as long as it is.
    """
    body = function.body[ast.get_docstring(function) is not None :]
    source = text.splitlines()[body[0].lineno - 1 : function.end_lineno] if body else []
    lines = [line.strip() for line in source]
    return sum(bool(line) and not line.startswith("#") for line in lines)


@all_files
def test_functions_are_short(file):
    text = file.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert code_lines(node, text) <= 40, f"{node.name}: it was two ideas"


# What a paper on EDM needs: noise, network, loss, training, sampler, likelihood. The mutations
# of tests/mutants are drawn from the same files.
HEART = {
    *("types", "schedules", "grids", "distributions", "networks.mlp", "preconditioning"),
    *("dynamics", "noise", "losses", "initial_loss", "denoiser", "solvers", "sampling"),
    *("likelihood", "ema", "training"),
}


def logical_lines(tree: ast.Module) -> int:
    """Statements that are not docstrings: lines as written, however they are folded."""
    nodes = list(ast.walk(tree))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = sum(isinstance(n, documented) and ast.get_docstring(n) is not None for n in nodes)
    return sum(isinstance(n, ast.stmt) for n in nodes) - docstrings


def test_logical_lines_are_statements_without_docstrings():
    text = '"Says."\nx = [\n    1,\n    2,\n]\n\ndef f(\n    a,\n):\n    "Says."\n    return a\n'
    assert logical_lines(ast.parse(text)) == 3


def test_the_heart_of_the_package_is_small():
    files = {MODULES[f"edm_tutorial.{name}"] for name in HEART}
    assert sum(logical_lines(ast.parse(file.read_text())) for file in files) < 1200


@all_files
def test_words_the_package_does_without(file):
    """No assert (gone under -O), no super or hasattr (wrap instead), no print."""
    for node in ast.walk(ast.parse(file.read_text())):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: raise instead"
        if isinstance(node, ast.ImportFrom):
            assert node.module != "__future__", "it disables the run-time shape checks"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            banned = {"super", "hasattr"}
            if file.stem not in ("cli", "__main__"):
                banned.add("print")
            assert node.func.id not in banned, f"line {node.lineno}: {node.func.id}"


LIGHT_IMPORT = """
import sys

refused = {"matplotlib", "sklearn", "IPython", "ipykernel", "orbax", "pandas"}
refused |= {"tqdm", "beartype", "pytest"}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in refused:
            raise ModuleNotFoundError(f"{name} is refused here")

sys.meta_path.insert(0, Refuse())
import edm_tutorial

import edm_tutorial.networks
assert not refused & set(sys.modules)
"""


def test_core_imports_without_the_extras():
    subprocess.run([sys.executable, "-c", LIGHT_IMPORT], check=True, cwd=ROOT)


def test_import_computes_nothing():
    """Importing starts no JAX backend: no device is touched before the first use."""
    script = """
import edm_tutorial
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
