"""The shape of the package: which way imports point, and how long anything may be."""

import ast
import re
import subprocess
import sys
import warnings
from collections.abc import Collection, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "edm_tutorial"

# A file, or a folder as a whole, and the layer it stands on; the top of the package says the same
# in words. Imports point downwards, or sideways without cycles.
LAYERS = {
    **dict.fromkeys(["_types", "_checks", "_deprecated"], 0),
    **dict.fromkeys(["schedules", "grids", "distributions", "operators", "networks"], 1),
    **dict.fromkeys(["preconditioning", "parameterisations", "noise_levels"], 2),
    **dict.fromkeys(["dynamics", "losses", "networks.edm2.loss"], 2),
    **dict.fromkeys(["denoiser", "measured", "adapters", "solvers", "sampling"], 3),
    **dict.fromkeys(["likelihood", "training"], 3),
    **dict.fromkeys(["designs", "sbi", "images", "networks.unet.official"], 4),
    **dict.fromkeys(["_deprecated.plan", "_deprecated.posterior_0_1"], 4),
    **dict.fromkeys(["book", "__main__"], 5),
}
CORE = {"jax", "jaxtyping", "equinox", "optax", "diffrax", "lineax", "numpy"}
# What `import edm_tutorial` may not need; each comes with an extra.
EXTRAS = {
    "sbi": {"sklearn", "threadpoolctl", "arviz_stats", "tqdm"},
    "images": {"pooch", "sklearn", "tqdm", "PIL"},
    "training.checkpoint": {"orbax", "etils"},
    "networks.unet.official": {"safetensors"},
    "book": {"matplotlib", "imageio_ffmpeg"},
}
# How many files the static imports of one thing reach, `__init__`s not counted.
CARRIED = {
    "sample": ("sampling", 6),
    "train": ("training.loop", 8),
    "log_likelihood": ("likelihood", 3),
    "MLP": ("networks.mlp", 3),
    "fit_posterior": ("sbi.fit", 31),
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


def part(module: str, parts: Collection[str] = LAYERS) -> str:
    """The longest name in `parts` that covers a module, or its first part."""
    name = module.removeprefix("edm_tutorial.")
    covers = [p for p in parts if name == p or name.startswith(f"{p}.")]
    return max(covers, key=len, default=name.split(".")[0])


@all_files
def test_imports_inside_are_relative(file):
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        assert not any(name.split(".")[0] == "edm_tutorial" for name in names), "it would not move"


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
    here = part(name, EXTRAS)
    roots = {imported.split(".")[0] for imported in imports(file)}
    roots -= {"edm_tutorial", *sys.stdlib_module_names}
    assert roots <= CORE | EXTRAS.get(here, set())


def test_nothing_outside_the_book_imports_it():
    for file in FILES:
        if not module_name(file).startswith("edm_tutorial.book"):
            assert not any("edm_tutorial.book" in name for name in imports(file)), file


def test_few_files_keep_what_the_next_release_deletes():
    keep = {"designs", "losses", "sbi", "sbi.files", "sbi.fit"}
    for name, file in MODULES.items():
        if "._deprecated" not in name and any("._deprecated" in used for used in imports(file)):
            assert name == "edm_tutorial" or name.removeprefix("edm_tutorial.") in keep, name


def test_only_plotting_imports_matplotlib():
    users = {NAMES[file] for file in FILES if any("matplotlib" in name for name in imports(file))}
    assert users == {"edm_tutorial.book.plotting"}


def carried(module: str) -> set[str]:
    """The files that a file needs: its static imports and theirs, `__init__`s left out.

    So is what the next release deletes.
    """
    found, todo = set(), [f"edm_tutorial.{module}"]
    while todo:
        name = todo.pop()
        if name in found or name not in MODULES or "._deprecated" in name:
            continue
        found.add(name)
        todo += inner_imports(MODULES[name])
    return {name for name in found if MODULES[name].name != "__init__.py"}


@pytest.mark.parametrize("name", CARRIED)
def test_a_copier_carries_little(name):
    module, limit = CARRIED[name]
    files = carried(module)
    assert len(files) <= limit, sorted(files)


@pytest.mark.filterwarnings("default:.*is it one idea")
@all_files
def test_file_reads_in_one_sitting(file):
    lines = len(file.read_text().splitlines())
    assert lines <= 400, "it was two ideas: split it"
    if lines > 260:
        warnings.warn(f"{file.relative_to(ROOT)} has {lines} lines: is it one idea?", stacklevel=1)


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


# By place: in the order of a formula (the loss, a solver's step, a call of D), or Diffrax's `init`.
BY_PLACE = {"weighted_error", "step", "_call", "init"}
DEFINED = set(re.findall(r"(?:def|class) (\w+)", "".join(file.read_text() for file in FILES)))


@all_files
def test_calls_name_their_arguments(file):
    """At most four are given by place to a function or class of the package."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and len(node.args) > 4:
            called = ast.unparse(node.func)
            known = called.split(".")[0] in {"jax", "jnp", "jr", "np", "eqx", "diffrax"}
            own = called.split(".")[-1] in DEFINED - BY_PLACE and not known
            assert not own, f"line {node.lineno}: {called}(...) needs keywords"


@all_files
def test_words_the_package_does_without(file):
    """No assert (gone under -O), no super or hasattr (wrap instead), no print."""
    for node in ast.walk(ast.parse(file.read_text())):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: raise instead"
        if isinstance(node, ast.ImportFrom):
            assert node.module != "__future__", "it disables the run-time shape checks"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            banned = {"super", "hasattr"}
            if file.stem not in ("command_line", "__main__"):
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
