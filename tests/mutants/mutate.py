"""Small mutations of the package: one operator, constant or condition changed at a time.

    python tests/mutants/mutate.py [count [seed]]        lists what would be drawn

The sites of all files are found by `ast`, shuffled with a fixed seed and drawn from the
files in turn, in an order of the seed's too: each file has its chance, whatever the count. A
message, an annotation or a text is never changed: what a mutation alters is what the package
computes or refuses.
"""

import ast
import itertools
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "edm_tutorial"
# Every module but the faces of folders, the book's own, and what is gone after one release.
FILES = tuple(
    sorted(
        str(path.relative_to(PACKAGE).with_suffix(""))
        for path in PACKAGE.rglob("*.py")
        if not path.stem.startswith("__")
        and path.relative_to(PACKAGE).parts[0] not in ("book", "_deprecated")
    )
)
# Where a bug of a file should show first, beside the tests named like it.
NEAR = {
    "_types": ["types", "bad_input", "sampling"],
    "_checks": ["bad_input"],
    "adapters": ["denoiser"],
    "schedules": ["golden_samplers", "dynamics"],
    "designs": ["designs_table"],
    "grids": ["golden_samplers", "sampling"],
    "preconditioning": ["golden_precond", "golden_losses"],
    "noise_levels": ["golden_losses", "losses"],
    "losses": ["golden_losses", "initial_loss"],
    "solvers": ["golden_samplers", "sampling"],
    "sampling": ["golden_samplers"],
    "training/averages": ["ema", "training"],
    "training": ["training"],
    "networks/unet": ["networks_unet", "networks_import", "networks_shapes"],
    "networks/edm2": ["networks_edm2"],
    "networks": ["networks_mlp", "networks_posterior", "networks_unet"],
    "images/command_line": ["cli"],
    "images/drawing": ["cli"],
    "images/arguments": ["cli"],
    "images/recipe": ["cli"],
    "sbi/transforms": ["sbi_transforms", "sbi_embeddings"],
    "sbi/tasks": ["sbi_tasks"],
    "sbi/files": ["sbi_posterior"],
    "sbi/settings": ["sbi_settings", "sbi_fit"],
    "sbi/joint": ["sbi_joint"],
    "sbi": ["sbi_fit", "sbi_posterior", "sbi_simulations", "sbi_weights", "sbi_progress"],
}
SWAPS: dict[type, tuple[type, ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
}
FUNCTIONS = {
    **{"minimum": "maximum", "maximum": "minimum", "min": "max", "max": "min"},
    **{"all": "any", "any": "all", "sum": "mean", "mean": "sum", "argmin": "argmax"},
    **{"exp": "expm1", "expm1": "exp", "log": "log1p", "log1p": "log", "sin": "cos"},
    **{"zeros_like": "ones_like", "ones_like": "zeros_like", "floor": "ceil"},
}


class Mutation(NamedTuple):
    file: str  # below the package, without its suffix
    line: int
    code: str  # that line
    before: str
    after: str
    source: str  # of the whole file, mutated

    @property
    def name(self) -> str:
        """Says which mutation it is, whatever lines come before it."""
        return f"{self.file}: {self.before} -> {self.after} in {self.code}"

    @property
    def tests(self) -> list[str]:
        """The test modules to begin with."""
        place = Path(self.file)
        near = [place.name, f"{place.parts[0]}_{place.name}"]
        near += [name for part in (place, *place.parents) for name in NEAR.get(str(part), [])]
        near = dict.fromkeys([*near, "defaults", "bad_input"])
        return [f"test_{name}" for name in near if (ROOT / f"tests/test_{name}.py").exists()]


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """The node with one thing changed, in every way that is known."""
    match node:
        case ast.BinOp(left, op, right):
            yield from (ast.BinOp(left, new(), right) for new in SWAPS.get(type(op), ()))
        case ast.Compare(left, [op, *ops], comparators):
            for new in SWAPS.get(type(op), ()):
                yield ast.Compare(left, [new(), *ops], comparators)
        case ast.BoolOp(op, values):
            yield from (ast.BoolOp(new(), values) for new in SWAPS[type(op)])
        case ast.UnaryOp(ast.Not() | ast.USub() | ast.Invert(), operand):
            yield operand
        case ast.IfExp(test, body, orelse):
            yield ast.IfExp(test, orelse, body)
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(float(value)):
            yield ast.Constant(2 * value if value else 1.0)
        case ast.Call(ast.Attribute(owner, name), args, keywords) if name in FUNCTIONS:
            yield ast.Call(ast.Attribute(owner, FUNCTIONS[name], ast.Load()), args, keywords)
        case ast.Call(ast.Name(name), args, keywords) if name in FUNCTIONS:
            yield ast.Call(ast.Name(FUNCTIONS[name], ast.Load()), args, keywords)


def computing(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below that compute: no annotation, no message, no decorator."""
    if isinstance(node, ast.Raise | ast.arg | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "decorator_list"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from computing(child)


class Swap(ast.NodeTransformer):
    """Puts `new` where `old` was."""

    def __init__(self, old: ast.AST, new: ast.AST):
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else self.generic_visit(node)


def sites(file: str, name: str = "") -> list[tuple[int, int]]:
    """Every possible mutation of a file, as the number of a node and of its variant.

    With a name, those alone that stand on a line with which it ends.
    """
    text = (PACKAGE / f"{file}.py").read_text()
    lines = text.splitlines()
    named = lambda node: not name or name.endswith(f" in {lines[line_of(node) - 1].strip()}")
    nodes = enumerate(computing(ast.parse(text)))
    counts = ((i, len(list(variants(node)))) for i, node in nodes if named(node))
    return [(i, which) for i, count in counts for which in range(count)]


def line_of(node: ast.AST) -> int:
    return getattr(node, "lineno", 1)


def mutation(file: str, site: tuple[int, int]) -> Mutation:
    """One of them, made."""
    text = (PACKAGE / f"{file}.py").read_text()
    tree = ast.parse(text)
    old = next(itertools.islice(computing(tree), site[0], None))
    new = next(itertools.islice(variants(old), site[1], None))
    line = line_of(old)
    code = text.splitlines()[line - 1].strip()
    before, after = ast.unparse(old), ast.unparse(ast.fix_missing_locations(new))
    mutated = ast.unparse(ast.fix_missing_locations(Swap(old, new).visit(tree)))
    return Mutation(file, line, code, before, after, mutated)


def drawn(count: int, seed: int = 0) -> list[Mutation]:
    """`count` mutations: from each file in turn, in an order fixed by the seed."""
    files, shuffled = list(FILES), []
    random.Random(seed).shuffle(files)
    for file in files:
        found = sites(file)
        random.Random(f"{file} {seed}").shuffle(found)
        shuffled.append([(file, site) for site in found])
    turns = itertools.chain(*itertools.zip_longest(*shuffled))
    chosen = itertools.islice((turn for turn in turns if turn is not None), count)
    return [mutation(file, site) for file, site in chosen]


if __name__ == "__main__":
    for one in drawn(*(int(word) for word in sys.argv[1:] or ["32"])):
        print(f"{one.line:4d}  {one.name}")
