"""The planted bugs of `tests/mutants` still fit the code; `make mutants` runs them."""

import importlib.util
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SPEC = importlib.util.spec_from_file_location("mutants_run", HERE / "mutants" / "run.py")
assert SPEC is not None and SPEC.loader is not None
runner = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(runner)

MUTANTS = {mutant.path.stem: mutant for mutant in runner.mutants()}
# Number 7 is a bug of standardising, which the package does not do yet.
NUMBERS = set(range(1, 19)) - {7}


def test_no_bug_is_missing():
    assert NUMBERS <= {int(name[:2]) for name in MUTANTS}


@pytest.mark.parametrize("name", MUTANTS)
def test_patch_applies_and_changes_the_package(name, tmp_path):
    mutant = MUTANTS[name]
    runner.copy_package(tmp_path)
    before = {path: path.read_text() for path in tmp_path.rglob("*.py")}
    try:
        runner.apply(mutant, tmp_path)
    except subprocess.CalledProcessError as error:
        pytest.fail(f"{name} no longer applies, adapt it to the code: {error.stderr}")
    changed = [path for path, text in before.items() if path.read_text() != text]
    assert changed and all(path.parent.name != "tests" for path in changed)
    for path in changed:  # a patch that does not parse would be caught for nothing
        compile(path.read_text(), path, "exec")


@pytest.mark.parametrize("name", MUTANTS)
def test_header_says_what_breaks_and_which_tests_notice(name):
    mutant = MUTANTS[name]
    assert len(mutant.says) > 20 and mutant.tests
    for module in mutant.tests:
        assert (HERE / f"{module}.py").exists()
