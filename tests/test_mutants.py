"""The planted bugs of `tests/mutants` still fit the code; `make mutants` runs them."""

import ast
import importlib.util
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SPEC = importlib.util.spec_from_file_location("mutants_run", HERE / "mutants" / "run.py")
assert SPEC is not None and SPEC.loader is not None
runner = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(runner)

mutate = runner.mutate

MUTANTS = {mutant.path.stem: mutant for mutant in runner.mutants()}


def test_no_bug_is_missing():
    assert {int(name[:2]) for name in MUTANTS} == set(range(1, 30))


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


def test_what_the_tests_import_is_in_the_copy(tmp_path):
    """Else a module fails before its first test, and every bug seems to be caught."""
    runner.copy_package(tmp_path)
    copied = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.py")}
    assert {path for path in copied if path.name == "conftest.py"}
    for test in (tmp_path / "tests").glob("test_*.py"):
        for node in ast.walk(ast.parse(test.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edm_tutorial"):
                place = Path(*node.module.split("."))
                assert {place.with_suffix(".py"), place / "__init__.py"} & copied, (test, place)


# The mutations that are drawn


def test_draw_is_fixed_by_the_seed_and_reaches_every_file():
    count = len(mutate.FILES) + 5
    drawn = mutate.drawn(count, 0)
    assert drawn == mutate.drawn(count, 0) and drawn != mutate.drawn(count, 1)
    assert {one.file for one in drawn} == set(mutate.FILES) and len(drawn) == count
    for one in drawn:
        original = (mutate.ROOT / "edm_tutorial" / f"{one.file}.py").read_text()
        assert ast.unparse(ast.parse(original)) != one.source
        compile(one.source, one.name, "exec")
        assert all((HERE / f"{module}.py").exists() for module in one.tests)


def test_mutations_alter_what_is_computed_and_nothing_else():
    source = '''
def f(x: Float[Array, "2"], n: int = 3) -> Float[Array, "4"]:
    """Twice x, 5 times."""
    if not n < 6:
        raise ValueError(f"{n + 7} is more than 8")
    return -x * min(n, 9.0)
'''
    nodes = mutate.computing(ast.parse(source))
    found = [
        (ast.unparse(node), ast.unparse(new)) for node in nodes for new in mutate.variants(node)
    ]
    assert sorted(found) == sorted(
        [
            ("3", "4"),
            ("not n < 6", "n < 6"),
            ("n < 6", "n <= 6"),
            ("n < 6", "n > 6"),
            ("6", "7"),
            ("-x * min(n, 9.0)", "-x / min(n, 9.0)"),
            ("-x", "x"),
            ("min(n, 9.0)", "max(n, 9.0)"),
            ("9.0", "18.0"),
        ]
    )


def test_excuses_are_of_mutations_that_exist():
    excuses = runner.excuses()
    assert all(len(reason) > 20 for reason in excuses.values()), "say why nobody could see it"
    for name in excuses:
        file = name.split(": ")[0]
        assert name in {mutate.mutation(file, site).name for site in mutate.sites(file, name)}


# What is kept of a run, and what is not run again


def test_a_result_is_of_the_mutated_files_alone(tmp_path):
    """So an edit elsewhere makes no bug run again, and an edit of the same file does."""
    runner.copy_package(tmp_path)
    untouched = runner.fingerprint(tmp_path)
    first, second, *_ = mutate.drawn(2, 0)
    prints = []
    for one in (first, second):
        runner.write(one, tmp_path)
        prints.append(runner.fingerprint(tmp_path))
    assert len({untouched, *prints}) == 3


def test_results_survive_the_file_and_excuses_are_told(tmp_path, monkeypatch):
    caught = runner.Result("01_a", "it, breaks", "test_ema.py::test_a[x, y]", 3.5, "abc")
    alive = runner.Result("ema: 1 -> 2 in f", "line 3: 1 -> 2", runner.SURVIVED, 9.0, "def")
    monkeypatch.setattr(runner, "excuses", lambda: {alive.mutant: "nobody could see it"})
    runner.save(tmp_path / "kept.csv", [caught, alive])
    excused = alive._replace(caught_by="equivalent: nobody could see it")
    assert runner.read(tmp_path / "kept.csv") == {"01_a": caught, alive.mutant: excused}
    assert caught.caught and not alive.caught and not excused.caught


def test_every_patch_must_be_caught_and_a_share_of_the_drawn():
    def results(name, caught, alive):
        found = ["test_ema.py::test_a"] * caught + [runner.SURVIVED] * alive
        return [runner.Result(name, "", by, 1.0, "") for by in found]

    patch, drawn = next(iter(MUTANTS)), "ema: 1 -> 2 in f"
    assert runner.enough(results(patch, 3, 0) + results(drawn, 17, 3), 0.85)
    assert not runner.enough(results(patch, 3, 0) + results(drawn, 16, 4), 0.85)
    assert not runner.enough(results(patch, 2, 1) + results(drawn, 20, 0), 0.85)
    assert not runner.enough(results(patch, 3, 0) + results(drawn, 19, 1), 1.0)
    assert runner.enough(results(patch, 3, 0) + results(drawn, 20, 0), 1.0)


def test_the_last_catcher_goes_first(tmp_path, monkeypatch):
    name = next(iter(MUTANTS))
    monkeypatch.setattr(runner, "RESULTS", tmp_path / "results.csv")
    monkeypatch.setattr(runner, "KEPT", tmp_path / "kept.csv")
    (plan,) = runner.planned(0, 0, [name])
    assert plan.catcher == "" and plan.first == MUTANTS[name].tests
    runner.save(runner.RESULTS, [runner.Result(name, "", "test_ema.py::test_a", 1.0, "")])
    (plan,) = runner.planned(0, 0, [name])
    assert plan.catcher == "test_ema.py::test_a"
