"""What a docstring must say: what is computed, in which shapes, and when it refuses.

Public is what a user can reach: names without an underscore in modules without one. Shapes
may stand in the annotation (jaxtyping) or in words.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "edm_tutorial"
FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if file.name != "__init__.py"]
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Public(NamedTuple):
    """A function, or a method with the class it belongs to."""

    node: Function
    owner: ast.ClassDef | None


def exported() -> set[str]:
    """The names that some `__init__.py` offers."""
    found = set()
    for file in PACKAGE.rglob("__init__.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                found |= {alias.asname or alias.name for alias in node.names}
    return found


EXPORTED = exported()
# Modules that are used by their own name, all of whose names are public.
BY_NAME = {"designs", "checkpoint", "data", "plotting"}
TREES = {file: ast.parse(file.read_text()) for file in FILES}
EVERY_CLASS = {n.name: n for t in TREES.values() for n in t.body if isinstance(n, ast.ClassDef)}


def public(file: Path) -> Iterator[ast.stmt]:
    for node in TREES[file].body:
        if isinstance(node, Function | ast.ClassDef) and node.name[0] != "_":
            if file.stem in BY_NAME or node.name in EXPORTED:
                yield node


def methods(owner: ast.ClassDef) -> Iterator[Function]:
    for node in owner.body:
        if isinstance(node, Function) and (node.name == "__call__" or node.name[0] != "_"):
            yield node


CLASSES = {
    f"{file.stem}.{node.name}": node
    for file in FILES
    for node in public(file)
    if isinstance(node, ast.ClassDef)
}
FUNCTIONS = {
    f"{file.stem}.{node.name}": Public(node, None)
    for file in FILES
    for node in public(file)
    if isinstance(node, Function)
} | {
    f"{name}.{node.name}": Public(node, owner)
    for name, owner in CLASSES.items()
    for node in methods(owner)
}


def texts(one: Public) -> list[str]:
    """Where a function may say it: itself, its class, or the abstract method it implements."""
    found = [doc(one.node)]
    if one.owner:
        found.append(doc(one.owner))
        for base in one.owner.bases:
            owner = EVERY_CLASS.get(ast.unparse(base).split(".")[-1])
            same = [n for n in methods(owner) if n.name == one.node.name] if owner else []
            found += [doc(owner), *map(doc, same)] if owner else []
    return found


def doc(node: ast.AST) -> str:
    return ast.get_docstring(node) or ""  # type: ignore[arg-type]


def own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when the function is called: not the functions defined inside it."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, Function | ast.Lambda | ast.ClassDef):
            yield from own_nodes(child)


def raises(node: ast.AST) -> set[str]:
    """The errors raised by the function's own lines."""
    found = set()
    for child in own_nodes(node):
        if isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call):
            found.add(ast.unparse(child.exc.func))
    return found


def checks(node: ast.AST) -> bool:
    """Whether it refuses input by one of the checks of `types`, or of its own file."""
    calls = (child.func for child in own_nodes(node) if isinstance(child, ast.Call))
    names = {func.id for func in calls if isinstance(func, ast.Name)}
    return any(re.match(r"_?check(_|ed|$)", name) for name in names)


every_function = pytest.mark.parametrize("name", FUNCTIONS)
every_class = pytest.mark.parametrize("name", CLASSES)


@every_function
def test_first_line_says_what_is_computed(name):
    """Its own; or, of a method, that of the abstract one, or of the class for a call."""
    one = FUNCTIONS[name]
    own, *others = texts(one)
    first = next((text for text in [own, *others[::-1]] if text), "").split("\n\n")[0]
    assert re.search(r"[.:?!]\W*$", first), f"no first sentence: {first!r}"


ORDERS = set("Turn Learn Write Read Measure Mark Call Draw Delete Fix Warn".split())
QUESTIONS = {"How", "What", "Where", "From", "Before"}


def test_first_line_is_a_noun_phrase():
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())) if "book" not in file.parts else ():
            if isinstance(node, ast.Module | ast.ClassDef | Function):
                first = doc(node).partition("\n")[0]
                assert first.split(" ")[0] not in ORDERS | QUESTIONS, f"{file}: {first}"


@every_class
def test_class_says_what_it_is(name):
    first = doc(CLASSES[name]).split("\n\n")[0]
    assert re.search(r"[.:?!]\W*$", first), f"no first sentence: {first!r}"


@every_function
def test_arrays_have_a_shape(name):
    """In the annotation, or in words that name the argument."""
    one = FUNCTIONS[name]
    said = " ".join(texts(one))
    arguments = [*one.node.args.posonlyargs, *one.node.args.args, *one.node.args.kwonlyargs]
    bare = [a.arg for a in arguments if a.annotation and ast.unparse(a.annotation) == "Array"]
    assert not [arg for arg in bare if not re.search(rf"\b{arg}\b", said)]
    if one.node.returns and ast.unparse(one.node.returns) == "Array":
        assert "shape" in said


@every_function
def test_errors_are_announced(name):
    one = FUNCTIONS[name]
    said = " ".join(texts(one))
    for error in raises(one.node) - {"NotImplementedError"}:
        assert "Raises:" in said and error in said, error
    if checks(one.node):
        assert "Raises:" in said or "errors are those of" in said


@every_class
def test_classes_announce_their_errors(name):
    node = CLASSES[name]
    makers = [n for n in node.body if isinstance(n, Function)]
    makers = [n for n in makers if n.name in ("__init__", "__check_init__")]
    for error in set().union(*map(raises, makers)):
        assert "Raises:" in doc(node) and error in doc(node), error
    assert "Raises:" in doc(node) or not any(map(checks, makers))
