"""Write edm_minimal.py: the heart of the package as one file to copy into your own project.

    python tools/minimal.py [--check]

The functions are the package's own, read from its source. What teaches or guards is left
out: long docstrings, type annotations, and the checks of arguments.
"""

import argparse
import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "edm_minimal.py"

# What is taken, in the order in which it is written down.
PARTS = {
    "types": ["as_float"],
    "schedules": ["Linear"],
    "grids": ["edm_sigmas"],
    "preconditioning": ["Coefficients", "EDMPreconditioning"],
    "denoiser": ["Denoiser"],
    "noise": ["LogNormal"],
    "losses": ["weighted_error", "denoising_loss"],
    "dynamics": ["with_derivative", "probability_flow", "_at"],
    "solvers": ["_tied", "Flow", "Heun", "_euler_to_zero"],
    "sampling": ["Churn", "sample", "_integrate", "_add_noise"],
    "likelihood": [
        "Likelihood",
        "log_likelihood",
        "_FAILED",
        "_flow",
        "_linearise",
        "_directions",
        "_matched_log_prob",
        "_gaussian_log_prob",
        "_std_error",
    ],
}
UNUSED = ["denoise"]  # of a `Flow`, by the solvers that are left out
HEADER = '''"""EDM diffusion models in one file: denoiser, loss, sampler with churn, likelihood.

Generated from edm_tutorial {version} by `make minimal`; do not edit. The names, the arguments and
the numbers are the package's, and its tests hold this file to them. Left out are the checks of
arguments, other schedules and solvers, and the explanations. Licence: Apache-2.0.
{url}

    denoiser = Denoiser(network, EDMPreconditioning.from_data(x))   # F(x, c_noise, cond, *, key)
    loss = denoising_loss(denoiser, x[0], noise=LogNormal(), key=key)
    y = sample(denoiser, jax.random.normal(key, x[0].shape), edm_sigmas(18))
    log_prob = log_likelihood(denoiser, y).log_prob                 # nats
"""

import math
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
'''


class Strip(ast.NodeTransformer):
    """Without annotations, checks, and all but the first line of each docstring."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST | None:
        abstract = any(_name(decorator) == "abstractmethod" for decorator in node.decorator_list)
        if abstract or node.name in ("__check_init__", *UNUSED):
            return None
        self.generic_visit(node)
        node.returns = None
        node.body = _one_line_docstring(node.body, keep=not node.name.startswith("_"))
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        node.decorator_list = []
        names = [_name(base) for base in node.bases]
        node.bases = [ast.Name("NamedTuple" if "NamedTuple" in names else "eqx.Module")]
        node.body = _one_line_docstring(node.body)
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        self.generic_visit(node)
        if ast.unparse(node.annotation) not in ("float", "int"):
            node.annotation = ast.Name("Any")
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if _name(node.func) == "_level":  # as_float, once it is checked
            return ast.Call(ast.Name("as_float"), [node.args[-1]], [])
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.parse("jr.normal", mode="eval").body if node.id == "_normal" else node

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        called = _name(node.value.func) if isinstance(node.value, ast.Call) else ""
        return None if called.lstrip("_").startswith("check") else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | None:
        """No question whether a value is concrete or wrong: those only guard."""
        guards = "concrete(" in ast.unparse(node.test)
        guards |= all(isinstance(child, ast.Raise) for child in node.body)
        return None if guards else self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        if isinstance(node.value, ast.Call) and _name(node.value.func) == "_checked":
            return ast.parse("sigmas = jnp.asarray(sigmas, noise.dtype)").body[0]
        if isinstance(node.value, ast.Call) and _name(node.value.func) == "_ramp":
            return ast.parse("ramp = jnp.linspace(0, 1, n)").body[0]
        if isinstance(node.value, ast.Call) and _name(node.value.func) == "_parts":
            return ast.parse(
                "network, preconditioning = denoiser.network, denoiser.preconditioning"
            ).body[0]
        return self.generic_visit(node)


def _name(node: ast.AST) -> str:
    return ast.unparse(node).split("(")[0].split("[")[0]


def _one_line_docstring(body: list[ast.stmt], keep: bool = True) -> list[ast.stmt]:
    first = body[0] if body else None
    if not (isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)):
        return body or [ast.Pass()]
    first.value = ast.Constant(str(first.value.value).strip().split("\n")[0])
    return body if keep or len(body) == 1 else body[1:]


def minimal() -> str:
    """The text of edm_minimal.py."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    header = HEADER.format(version=project["version"], url=project["urls"]["Repository"])
    parts = [header.strip()]
    for module, names in PARTS.items():
        tree = ast.parse((ROOT / f"edm_tutorial/{module}.py").read_text())
        found = {_defines(node): node for node in tree.body}
        parts += [ast.unparse(Strip().visit(found[name])) for name in names]
    return _raw("\n".join(map(_wrapped, "\n\n".join(parts).split("\n")))) + "\n"


def _defines(node: ast.stmt) -> str:
    if isinstance(node, ast.Assign):
        return _name(node.targets[0])
    return getattr(node, "name", "")


def _wrapped(line: str, width: int = 100) -> str:
    """`line`, broken after commas where it is too long; such lines have an open bracket."""
    if len(line) <= width or line.lstrip().startswith(('"', "_FAILED")):
        return line
    end = line.rindex(", ", 0, width) + 1
    indent = " " * (len(line) - len(line.lstrip()) + (0 if line.startswith("         ") else 8))
    return line[:end] + "\n" + _wrapped(indent + line[end + 1 :])


def _raw(text: str) -> str:
    """Docstrings with backslashes as people write them."""
    unescape = lambda match: "r" + match[0].replace("\\\\", "\\")
    return re.sub(r'""".*\\\\.*"""', unescape, text)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write edm_minimal.py from the package.")
    parser.add_argument("--check", action="store_true", help="only say whether it is current")
    check = parser.parse_args().check
    text = minimal()
    if check and TARGET.read_text() != text:
        sys.exit("edm_minimal.py is not what the package gives: run `make minimal`")
    if not check:
        TARGET.write_text(text)
        print(f"{TARGET.name}: {len(text.splitlines())} lines")


if __name__ == "__main__":
    main()
