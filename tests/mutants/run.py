"""Does the suite notice bugs? Each one, planted in a copy of the package, must turn it red.

    python tests/mutants/run.py [--drawn 32] [--seed 0] [--jobs 2] [--near] [part of a name ...]

Two kinds. Each `NN_name.patch` of this folder is a bug found in a public implementation: its
first line says what it breaks, its second which test modules should notice. Others are small
mutations drawn by `mutate.py`. One at a time they are planted, and the fast suite runs against
the copy, the tests of the touched module first, until the first failure.

Writes `benchmarks/results/mutants.csv` when all were run. Exits with 1 if a bug survives that
`equivalent.txt` does not excuse, or if a patch does not apply.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))
import mutate  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "mutants.csv"
FAST = "not slow and not book and not browser"
# About the text of the repository, not its values: they may not be what catches a bug.
LEFT_OUT = (
    *("test_architecture.py", "test_repository.py", "test_mutants.py"),
    *("test_docstrings.py", "test_pages.py"),
)


class Mutant(NamedTuple):
    path: Path
    says: str
    tests: list[str]


class Result(NamedTuple):
    mutant: str
    what: str
    caught_by: str
    seconds: float


def mutants() -> list[Mutant]:
    """Every patch of this folder, in the order of their numbers."""
    found = []
    for path in sorted(HERE.glob("*.patch")):
        says, tests, *_ = path.read_text().splitlines()
        found.append(Mutant(path, says, tests.removeprefix("Tests: ").split()))
    return found


def excuses() -> dict[str, str]:
    """The mutations that change nothing anyone could see, and why: `name | reason` a line."""
    lines = (HERE / "equivalent.txt").read_text().splitlines()
    pairs = [line.split(" | ") for line in lines if line and not line.startswith("#")]
    return {name: reason for name, reason in pairs}


def apply(mutant: Mutant, folder: Path, *options: str) -> None:
    """Apply the patch to the copy in `folder`, or raise CalledProcessError."""
    subprocess.run(
        ["git", "apply", *options, mutant.path],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"GIT_CEILING_DIRECTORIES": str(folder.parent)},
    )


def write(mutation: mutate.Mutation, folder: Path) -> None:
    """Put the mutated file in the place of the file."""
    (folder / "edm_tutorial" / f"{mutation.file}.py").write_text(mutation.source)


def copy_package(folder: Path) -> None:
    """What the tests need, and no more, into `folder`."""
    skip = shutil.ignore_patterns("__pycache__", "book", "mutants", *LEFT_OUT)
    for name in ("edm_tutorial", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    for name in ("pyproject.toml", "conftest.py"):
        shutil.copy(ROOT / name, folder / name)


def run(folder: Path, first: Sequence[str], near: bool, cache: Path) -> str | None:
    """The first test to fail in the copy, or None; `first` are the modules to begin with."""
    files = [f"tests/{name}.py" for name in first]
    if not near:
        others = sorted(f"tests/{path.name}" for path in (folder / "tests").glob("test_*.py"))
        files += [name for name in others if name not in files]
    environment = os.environ | {
        "PYTHONPATH": str(folder),  # before the installed package
        "PYTHONDONTWRITEBYTECODE": "1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # most of the time is compilation
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    where = "import edm_tutorial; print(edm_tutorial.__file__)"
    command = [sys.executable, "-c", where]
    used = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if used.returncode == 0 and not used.stdout.startswith(str(folder)):
        sys.exit(f"the tests would import {used.stdout.strip()}, not the copy in {folder}")
    options = ["-x", "-q", "--tb=no", "-rfE", "-p", "no:cacheprovider", "-m", FAST]
    command = [sys.executable, "-m", "pytest", *options, *files]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if not lines:
        sys.exit(f"the tests did not run:\n{done.stdout}{done.stderr}")
    return lines[0].split(" - ")[0].split(maxsplit=1)[1].removeprefix("tests/")


def attempt(
    name: str,
    what: str,
    plant: Callable[[Path], None],
    first: Sequence[str],
    near: bool,
    cache: Path,
) -> Result:
    """Who caught it, and after how many seconds."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve()
        copy_package(folder)
        try:
            plant(folder)
        except subprocess.CalledProcessError as error:
            caught = f"DOES NOT APPLY: {error.stderr.strip()}"
        else:
            caught = run(folder, first, near, cache) or "SURVIVED"
    result = Result(name, what, caught, round(time.monotonic() - start))
    print(f"{result.seconds:6.0f} s  {caught:60}  {name}", flush=True)
    return result


def planned(count: int, seed: int, wanted: Sequence[str]) -> list[tuple]:
    """What to try: name, what it does, how to plant it, and where to look first."""
    plan: list[tuple] = [
        (mutant.path.stem, mutant.says, partial(apply, mutant), mutant.tests)
        for mutant in mutants()
    ]
    for mutation in mutate.drawn(count, seed):
        what = f"line {mutation.line}: {mutation.before} -> {mutation.after}"
        plan.append((mutation.name, what, partial(write, mutation), mutation.tests))
    return [one for one in plan if not wanted or any(part in one[0] for part in wanted)]


def save(results: Sequence[Result]) -> None:
    """The table; a survivor that is excused shows why."""
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Result._fields)
        for result in results:
            reason = excuses().get(result.mutant, "")
            survived = result.caught_by == "SURVIVED" and reason
            writer.writerow(
                result._replace(caught_by=f"equivalent: {reason}") if survived else result
            )


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--drawn", type=int, default=32, help="how many mutations to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at the same time")
    parser.add_argument("--near", action="store_true", help="only the tests to begin with")
    parser.add_argument("wanted", nargs="*", help="part of a name")
    options = parser.parse_args(argv)
    plan = planned(options.drawn, options.seed, options.wanted)
    if not plan:
        sys.exit(f"nothing is called like {options.wanted}")
    with tempfile.TemporaryDirectory() as cache, ThreadPoolExecutor(options.jobs) as pool:
        if not options.wanted:
            sound = attempt("no mutant", "", lambda folder: None, (), False, Path(cache))
            if sound.caught_by != "SURVIVED":
                return 1
        one = lambda args: attempt(*args, options.near, Path(cache))  # noqa: E731
        results = list(pool.map(one, plan))
    alive = [r for r in results if r.caught_by.startswith(("SURVIVED", "DOES NOT APPLY"))]
    excused = [r for r in alive if r.caught_by == "SURVIVED" and r.mutant in excuses()]
    print(f"{len(results) - len(alive)} of {len(results)} caught, {len(excused)} excused")
    for result in alive:
        print(f"  {result.caught_by}: {result.mutant}  {excuses().get(result.mutant, '')}")
    if not (options.wanted or options.near):
        save(results)
    return 1 if len(alive) > len(excused) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
