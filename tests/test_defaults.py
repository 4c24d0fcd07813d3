"""What a user gets without asking: the default of every public argument, as it is written down.

So are the numbers that a module decides by, its constants, and which fields of a module are static:
`jit` compiles anew for each value of those, and no optimizer or map over leaves ever sees them.

A default is a promise. Whoever changes one runs `python tests/test_defaults.py`, which writes
them down anew, and says so in CHANGELOG.md.
"""

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

PLACE = Path(__file__).with_name("defaults.txt")


def modules() -> Iterator[Any]:
    package = importlib.import_module("edm_tutorial")
    yield package
    for found in pkgutil.walk_packages(package.__path__, "edm_tutorial."):
        # Running `__main__` is what it is for.
        if not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def own(module: Any) -> dict[str, Any]:
    """What a module defines itself."""
    mine = lambda value: getattr(value, "__module__", None) == module.__name__
    return {name: value for name, value in vars(module).items() if mine(value)}


def public() -> dict[str, Any]:
    """Every public function and class of the package by its name, once, where it is defined."""
    found = {}
    for module in modules():
        if "._" in module.__name__:
            continue
        for name, value in own(module).items():
            if not name.startswith("_") and callable(value):
                found[f"{module.__name__}.{name}"] = value
    return found


def methods(value: Any) -> Iterator[tuple[str, Any]]:
    """The object itself, and the public methods of a class."""
    yield "", value
    if inspect.isclass(value):
        for name, method in vars(value).items():
            method = getattr(method, "__func__", method)
            if inspect.isfunction(method) and not name.startswith("_"):
                yield f".{name}", method


def told(default: Any) -> str:
    """A default as text that says its values, and no address in memory."""
    if inspect.isfunction(default) or inspect.isclass(default):
        return default.__name__
    if isinstance(default, np.ndarray):  # to digits that every NumPy agrees on
        return repr([float(f"{value:.6g}") for value in default])
    if dataclasses.is_dataclass(default):
        values = [(f, getattr(default, f.name)) for f in dataclasses.fields(default)]
        ours = type(default).__module__.startswith("edm_tutorial")
        # Of another package's object what it was told; the rest depends on the version.
        said = [(f.name, value) for f, value in values if ours or f.default is dataclasses.MISSING]
        return f"{type(default).__name__}({', '.join(f'{k}={told(v)}' for k, v in said)})"
    return re.sub(r"<function (\w+) at \w+>", r"\1", repr(default))


def defaults() -> str:
    lines = []
    for name, value in sorted(public().items()):
        for method, call in methods(value):
            try:
                parameters = inspect.signature(call).parameters.values()
            except (TypeError, ValueError):  # what has no signature has no defaults
                continue
            said = [f"{p.name}={told(p.default)}" for p in parameters if p.default is not p.empty]
            if said:
                lines.append(f"{name}{method}: {', '.join(said)}")
    return "\n".join([*lines, *constants(), *static_fields()]) + "\n"


def ours() -> Iterator[Any]:
    """The modules of the package, but the book's own and what is gone after one release."""
    for module in modules():
        if module.__name__.split(".")[1:2] not in (["book"], ["_deprecated"]):
            yield module


def constants() -> Iterator[str]:
    """Every number, or what holds some, that a module names in capitals."""
    for module in ours():
        assigned = [
            n for n in ast.parse(inspect.getsource(module)).body if isinstance(n, ast.Assign)
        ]
        named = (name for node in assigned for target in node.targets for name in ast.walk(target))
        names = [name.id for name in named if isinstance(name, ast.Name)]
        for name in filter(re.compile("_?[A-Z][A-Z0-9_]+").fullmatch, names):
            value = getattr(module, name)
            # Of words there is nothing to be wrong by a little.
            if any(isinstance(leaf, float | int | np.ndarray) for leaf in jax.tree.leaves(value)):
                yield f"{module.__name__} {name} = {told(value)}"


def static_fields() -> Iterator[str]:
    for module in ours():
        for name, value in own(module).items():
            if inspect.isclass(value) and issubclass(value, eqx.Module):
                static = [f.name for f in dataclasses.fields(value) if f.metadata.get("static")]
                if static:
                    yield f"{module.__name__}.{name} static: {', '.join(static)}"


def test_every_default_is_the_one_written_down():
    assert defaults().splitlines() == PLACE.read_text().splitlines()


def test_counts_flags_and_words_of_networks_are_static():
    """As a leaf one would be traced by `jax.jit`, and not be a number."""
    plain, seen = {"int", "bool", "str"}, 0
    for module in modules():
        if ".networks." not in module.__name__:
            continue
        for name, value in own(module).items():
            network = inspect.isclass(value) and issubclass(value, eqx.Module)
            if network and "__call__" in vars(value):
                for field in dataclasses.fields(value):
                    if set(getattr(field.type, "__name__", str(field.type)).split(" | ")) & plain:
                        seen += 1
                        assert field.metadata.get("static"), f"{name}.{field.name}"
    assert seen > 5


if __name__ == "__main__":
    PLACE.write_text(defaults())
    sys.stdout.write(f"{PLACE.name}: written\n")
