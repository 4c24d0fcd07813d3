"""The public names of version 0.1.0: run on its last commit, `python list_names.py > names.txt`.

Of packages and of modules that were imported by name, with all parameters; of others, where these
and the package's own parts were defined, the names alone.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import edm_tutorial

BY_NAME = ["", "networks", "sbi", "designs", "parameterisations", "sharding", "sbi.calibration"]
BY_NAME += ["augmentation", "checkpoint", "data", "exercises", "plotting", "sbi.simulators"]
BY_NAME = {f"edm_tutorial.{name}".rstrip(".") for name in BY_NAME}


def modules() -> Iterator[ModuleType]:
    yield edm_tutorial
    for found in pkgutil.walk_packages(edm_tutorial.__path__, "edm_tutorial."):
        if not any(part.startswith("_") for part in found.name.split(".")):
            yield importlib.import_module(found.name)


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """What is defined in a module, and in a package what it exports."""
    exports = hasattr(module, "__path__")
    for name, value in vars(module).items():
        home = getattr(value, "__module__", "")
        if name[0] != "_" and (home == module.__name__ or exports and home.startswith("edm_")):
            yield name, value
    for name in getattr(module, "_CHECKS", ()):  # exported when asked for
        yield name, getattr(module, name)


def parameters(value: Any) -> str:
    """As they are in a call: by place, then after a star by name."""
    try:
        every = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):  # not called by anyone: a constant, an exception
        return ""
    places = [p.name for p in every if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"]
    names = [p.name for p in every if p.kind is p.KEYWORD_ONLY]
    return f"({', '.join([*places, *(['*', *names] if names else [])])})"


def described(name: str, value: Any) -> Iterator[str]:
    """A name with its parameters, then the methods and properties of a class."""
    yield f"{name}{parameters(value)}"
    for member in vars(value) if inspect.isclass(value) else ():
        if member[0] != "_" and member not in value.__dict__.get("__annotations__", ()):
            yield f"{name}.{member}{parameters(getattr(value, member))}"


if __name__ == "__main__":
    for module in modules():
        print(module.__name__)
        for name, value in sorted(public(module)):
            lines = described(name, value) if module.__name__ in BY_NAME else [name]
            print(*(f"    {line}" for line in lines), sep="\n")
