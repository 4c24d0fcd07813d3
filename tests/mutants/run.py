"""Does the suite notice bugs? Each one, planted in a copy of the package, must turn it red.

    python tests/mutants/run.py [--drawn 32] [--seed 0] [--share 1] [--jobs 2] [--near] [part ...]

Two kinds. Each `NN_name.patch` of this folder is a bug found in a public implementation: its
first line says what it breaks, its second which test modules should notice. Others are small
mutations drawn by `mutate.py`. One at a time they are planted, and the fast suite runs against
the copy until the first failure: the test that caught the same bug last time, the tests of
the touched module, then all others, then the slow ones of the module. `one_run.py` says how a
run is made cheap.

Every result is kept in `build/mutants.csv` at once; `--resume` repeats none whose mutated source
is still the same, except survivors. The whole table goes to `benchmarks/results/mutants.csv`.
Exits with 1 if a patch does not apply or survives, or if fewer than `--share` of the drawn bugs are
caught; those that `equivalent.txt` excuses do not count.
"""

import argparse
import csv
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))
import mutate  # noqa: E402
import one_run  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "mutants.csv"
KEPT = ROOT / "build" / "mutants.csv"
SURVIVED = "SURVIVED"
# About the text of the repository, not its values: they may not be what catches a bug.
LEFT_OUT = (
    *("test_architecture.py", "test_repository.py", "test_mutants.py", "test_benchmarks.py"),
    *("test_docstrings.py", "test_pages.py", "test_minimal.py", "test_release.py"),
    *("test_colab.py", "test_exercises.py", "test_what_you_have.py"),
)


class Mutant(NamedTuple):
    path: Path
    says: str
    tests: list[str]


class Plan(NamedTuple):
    name: str
    what: str
    plant: Callable[[Path], None]
    first: Sequence[str]  # test modules to begin with
    catcher: str = ""  # the test that caught it last time


class Result(NamedTuple):
    mutant: str
    what: str
    caught_by: str
    cpu_s: float
    source: str  # a hash of the mutated files

    @property
    def caught(self) -> bool:
        return self.caught_by.startswith("test_")


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
    pairs = [line.rsplit(" | ", 1) for line in lines if line and not line.startswith("#")]
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


def nothing(folder: Path) -> None:
    """The package as it is: the suite must be green without a bug, too."""


def copy_package(folder: Path) -> None:
    """What the tests need, and no more, into `folder`."""
    left_out = {"edm_tutorial": (), "tests": ("book", "mutants", *LEFT_OUT)}
    for name, names in left_out.items():
        skip = shutil.ignore_patterns("__pycache__", *names)
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    for name in ("pyproject.toml", "conftest.py"):
        shutil.copy(ROOT / name, folder / name)


def fingerprint(folder: Path) -> str:
    """Of the files of the package in `folder` that are not as they should be."""
    total = hashlib.sha256()
    for path in sorted((folder / "edm_tutorial").rglob("*.py")):
        text = path.read_bytes()
        if text != (ROOT / path.relative_to(folder)).read_bytes():
            total.update(text)
    return total.hexdigest()[:12]


def attempt(plan: Plan, near: bool, known: dict[str, Result]) -> Result:
    """Who caught it, and after how many CPU seconds."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve()
        copy_package(folder)
        try:
            plan.plant(folder)
        except subprocess.CalledProcessError as error:
            return Result(plan.name, plan.what, f"DOES NOT APPLY: {error.stderr.strip()}", 0, "")
        source = fingerprint(folder)
        old = known.get(plan.name)
        if old and old.caught and old.source == source:
            return old
        everything = sorted(path.stem for path in (folder / "tests").glob("test_*.py"))
        first = [name for name in plan.first if name in everything]
        others = [] if near else [name for name in everything if name not in first]
        first, others = ([f"{name}.py" for name in part] for part in (first, others))
        stages = [one_run.Stage(names) for names in ([plan.catcher], first, others)]
        stages += [one_run.Stage(names, one_run.SLOW) for names in ([plan.catcher], first)]
        stages = [stage for stage in stages if any(stage.names)]
        caught, seconds = one_run.first_failure(folder, stages)
    return Result(plan.name, plan.what, caught or SURVIVED, round(seconds, 1), source)


def planned(count: int, seed: int, wanted: Sequence[str]) -> list[Plan]:
    """What to try, each with who caught it last time."""
    plans = [Plan(m.path.stem, m.says, partial(apply, m), m.tests) for m in mutants()]
    for mutation in mutate.drawn(count, seed):
        what = f"line {mutation.line}: {mutation.before} -> {mutation.after}"
        plans.append(Plan(mutation.name, what, partial(write, mutation), mutation.tests))
    last = read(RESULTS) | read(KEPT)
    catchers = {name: result.caught_by for name, result in last.items() if result.caught}
    plans = [plan._replace(catcher=catchers.get(plan.name, "")) for plan in plans]
    return [one for one in plans if not wanted or any(part in one.name for part in wanted)]


def read(path: Path) -> dict[str, Result]:
    """The rows of a table of results, the last of each name."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = [Result(**row) for row in csv.DictReader(file)]
    return {row.mutant: row._replace(cpu_s=float(row.cpu_s)) for row in rows}


def save(path: Path, results: Sequence[Result]) -> None:
    """The table; a survivor that is excused shows why."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Result._fields)
        for result in results:
            reason = excuses().get(result.mutant, "")
            survived = result.caught_by == SURVIVED and reason
            writer.writerow(
                result._replace(caught_by=f"equivalent: {reason}") if survived else result
            )


def run_all(plans: Sequence[Plan], options: argparse.Namespace) -> list[Result]:
    """Every result in the order of the plans, kept as soon as it is there."""
    known, start = read(KEPT), time.monotonic()
    one = partial(attempt, near=options.near, known=known if options.resume else {})
    one_run.prepare(ROOT / "build" / "mutants-cache")
    with get_context("fork").Pool(options.jobs) as pool:
        for i, result in enumerate(pool.imap_unordered(one, plans), 1):
            known[result.mutant] = result
            save(KEPT, list(known.values()))
            minutes = (time.monotonic() - start) / 60
            where = f"{i:3d}/{len(plans)} {minutes:5.1f} min {result.cpu_s:6.0f} CPU s"
            print(f"{where}  {result.caught_by:60}  {result.mutant}", flush=True)
    return [known[plan.name] for plan in plans]


def enough(results: Sequence[Result], share: float) -> bool:
    """Whether every patch is caught, and this share of the drawn mutations."""
    patches = {mutant.path.stem for mutant in mutants()}
    drawn = [result.caught for result in results if result.mutant not in patches]
    known = [result.caught for result in results if result.mutant in patches]
    return all(known) and sum(drawn) >= share * len(drawn)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--drawn", type=int, default=32, help="how many mutations to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--share", type=float, default=1.0, help="of the drawn bugs, to be caught")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at the same time")
    parser.add_argument("--near", action="store_true", help="only the tests to begin with")
    parser.add_argument("--resume", action="store_true", help="repeat nothing that was caught")
    parser.add_argument("wanted", nargs="*", help="part of a name")
    options = parser.parse_args(argv)
    plans = planned(options.drawn, options.seed, options.wanted)
    if not plans:
        sys.exit(f"nothing is called like {options.wanted}")
    whole = not (options.wanted or options.near)
    modules = sorted(path.stem for path in HERE.parent.glob("test_*.py"))
    sound = [Plan("no mutant", "", nothing, modules)] if whole else []
    results = run_all([*sound, *plans], options)
    if sound and results.pop(0).caught_by != SURVIVED:
        sys.exit("the suite is red without a bug")
    alive = [result for result in results if not result.caught]
    excused = [r for r in alive if r.caught_by == SURVIVED and r.mutant in excuses()]
    print(f"{len(results) - len(alive)} of {len(results)} caught, {len(excused)} excused")
    for result in alive:
        print(f"  {result.caught_by}: {result.mutant}  {excuses().get(result.mutant, '')}")
    if not options.wanted:  # who survives the tests near it may yet be caught by others
        save(RESULTS, results)
    counted = [result for result in results if result not in excused]
    return 0 if enough(counted, options.share) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
