"""Does the suite notice real bugs? Every patch in this folder must turn it red.

    python tests/mutants/run.py [part of a name ...]

Each `NN_name.patch` is one bug, found in a public implementation: its first line says what
it breaks, its second which test modules should notice. One at a time they are applied to
a copy of the package, and the fast suite runs against the copy, those modules first, until
the first failure. Exits with 1 if a bug survives or a patch does not apply.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FAST = "not slow and not book and not browser"
# About the text of the repository, not its values: they may not be what catches a bug.
LEFT_OUT = ("test_architecture.py", "test_repository.py", "test_mutants.py")


class Mutant(NamedTuple):
    path: Path
    says: str
    tests: list[str]


def mutants() -> list[Mutant]:
    """Every patch of this folder, in the order of their numbers."""
    found = []
    for path in sorted(HERE.glob("*.patch")):
        says, tests, *_ = path.read_text().splitlines()
        found.append(Mutant(path, says, tests.removeprefix("Tests: ").split()))
    return found


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


def copy_package(folder: Path) -> None:
    """What the tests need, and no more, into `folder`."""
    skip = shutil.ignore_patterns("__pycache__", "book", "mutants", *LEFT_OUT)
    for name in ("edm_tutorial", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    for name in ("pyproject.toml", "conftest.py"):
        shutil.copy(ROOT / name, folder / name)


def run(folder: Path, first: list[str], cache: Path) -> str | None:
    """The first test to fail in the copy, or None; `first` are the modules to begin with."""
    files = [f"tests/{name}.py" for name in first]
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


def attempt(mutant: Mutant | None, cache: Path) -> tuple[str, float]:
    """Who caught it, and after how many seconds; None is the package without a bug."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        copy_package(folder)
        if mutant is None:
            return run(folder, [], cache) or "", time.monotonic() - start
        try:
            apply(mutant, folder)
        except subprocess.CalledProcessError as error:
            return f"DOES NOT APPLY: {error.stderr.strip()}", time.monotonic() - start
        caught = run(folder, mutant.tests, cache)
    return caught or "SURVIVED", time.monotonic() - start


def main(wanted: list[str]) -> int:
    chosen = [m for m in mutants() if not wanted or any(w in m.path.name for w in wanted)]
    if not chosen:
        sys.exit(f"no patch is called like {wanted}")
    alive = []
    with tempfile.TemporaryDirectory() as name:
        cache = Path(name)
        if not wanted:
            failed, seconds = attempt(None, cache)
            print(
                f"{'no mutant':36} {seconds:6.0f} s  {failed or 'passes, as it must'}", flush=True
            )
            if failed:
                return 1
        for mutant in chosen:
            caught, seconds = attempt(mutant, cache)
            print(f"{mutant.path.stem:36} {seconds:6.0f} s  {caught}", flush=True)
            if caught.startswith(("SURVIVED", "DOES NOT APPLY")):
                alive.append(mutant.path.stem)
    print(
        f"{len(chosen) - len(alive)} of {len(chosen)} caught" + "".join(f"\n  {a}" for a in alive)
    )
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
