"""The page of benchmarks says what the tables say, and how their rows are kept."""

import csv
import re

import pytest

from benchmarks import page, sbi, timing

PAGE = page.PAGE.read_text()
RED = page.red("")[: -len("</strong>")]


def test_tables_and_numbers_of_the_page_are_those_of_the_results():
    assert page.fill(PAGE) == PAGE  # else run python -m benchmarks.page


def test_every_table_of_results_is_on_the_page_or_drawn():
    shown = {"sbi": "posteriors", "mutants": "bugs"}
    drawn = {"scale", "likelihood_work_precision"}
    names = {path.stem for path in timing.RESULTS.glob("*.csv")} - drawn
    assert all(f"\n<!-- {shown.get(name, name)} -->\n" in PAGE for name in names)
    assert all(f"benchmarks/{name}.png" in PAGE for name in ("scale", "work_precision"))


def test_each_missed_target_and_no_other_has_a_box_with_its_reason():
    targets = PAGE.partition("## Targets")[2].partition("\n:::")[0]
    missed = [line.strip("| ") for line in lines_of(targets) if RED in line]
    boxes = re.findall(r"\{admonition\} Missed: (.+)", PAGE)
    assert all(any(row.startswith(box) for box in boxes) for row in missed)
    assert all(any(row.startswith(box) for row in missed) for box in boxes)


def test_what_was_not_measured_is_a_gpu_or_a_peer():
    """A marker that names no row by mistake would read the same."""
    absent = re.findall(rf"<!-- ([^\n]*?) -->{page.ABSENT}", PAGE)
    assert all("device=gpu" in name or name.startswith("NPSE ") for name in absent)
    ratios = [row["ratio"] for row in timing.read("unet_limit") if row["device"] == "gpu"]
    assert (ratios == [page.ABSENT]) == ("Nothing has been measured on a GPU yet" in PAGE)


def row(task, budget, method, mean, target="", costs=("9.5", "0.5", "0.1"), note=""):
    cells = dict.fromkeys(sbi.COLUMNS, "") | {"note": note, "machine": "a machine"}
    cells |= {"task": task, "budget": str(budget), "method": method, "seed": "0", "mean": mean}
    cells |= {f"c2st_{i}": mean for i in range(1, 6)}
    return cells | {"target": target} | dict(zip(page.COSTS, costs, strict=True))


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    monkeypatch.setattr(sbi, "RESULTS", tmp_path)
    monkeypatch.setattr(sbi, "TABLE", tmp_path / "sbi.csv")
    return tmp_path


def lines_of(text):
    return [line for line in text.splitlines() if line.startswith("| ")][1:]


def test_missed_targets_are_red_and_met_ones_are_not(results):
    sbi.store(row("slcp", 10000, "EDM", "0.7601", "0.75", ("151", "4.0", "2.1")))
    sbi.store(row("slcp", 1000, "EDM", "0.9", "0.92", ("151", "4.0", "2.1")))
    first, second = (line.strip("| ").split(" | ") for line in lines_of(page.posteriors()))
    assert RED not in " ".join(first)
    assert first[3:] == ["0.900 (at most 0.92)", "0.90 0.90 0.90 0.90 0.90", "151", "4", "2.1"]
    assert second[3] == f"{page.red('0.760')} (at most 0.75)"
    assert second[5] == f"{page.red('151')} (at most 150)"
    assert second[6] == "4 (at most 4)"  # at its limit is not over it
    assert second[7] == f"{page.red('2.1')} (at most 2)"
    assert page.posteriors_met() == "1 of 2"


def test_peers_stand_beside_and_a_failure_is_told(results):
    sbi.store(row("two_moons", 1000, "sbi NPSE", "", costs=("", "", ""), note="failed: no wheel"))
    sbi.store(row("two_moons", 1000, "sbi NPE", "0.7"))
    sbi.store(row("two_moons", 1000, "EDM", "0.55", "0.58"))
    ours, npe, npse = lines_of(page.posteriors())
    assert ours.startswith("| two moons | 1,000 | EDM | 0.550 (at most 0.58) | 0.55 0.55 ")
    assert npe.startswith("| two moons | 1,000 | sbi NPE | 0.700 | 0.70 0.70 ")
    assert npse == "| two moons | 1,000 | sbi NPSE | - | failed: no wheel | - | - | - |"
    assert page.posteriors().endswith("\n\nMeasured on: a machine.")


def test_rows_are_replaced_not_repeated_and_failures_tried_again(results):
    sbi.store(row("slcp", 1000, "EDM", "0.9", "0.92"))
    sbi.store(row("two_moons", 1000, "EDM", "0.6", "0.58"))
    sbi.store(row("slcp", 1000, "EDM", "0.8", "0.92"))
    sbi.store(row("slcp", 1000, "sbi NPE", "", note="failed"))
    with (results / "sbi.csv").open(newline="") as file:
        kept = [(r["task"], r["method"], r["mean"]) for r in csv.DictReader(file)]
    assert kept[0] == ("two_moons", "EDM", "0.6")
    assert sorted(kept[1:]) == [("slcp", "EDM", "0.8"), ("slcp", "sbi NPE", "")]
    tasks, budgets = ["two_moons", "slcp"], [1000]
    todo = {"tasks": tasks, "budgets": budgets, "peers": True, "fresh": False}
    assert list(sbi.plan(sbi.argparse.Namespace(**todo))) == [
        ("two_moons", 1000, "sbi NPE"),
        ("two_moons", 1000, "sbi NPSE"),
        ("slcp", 1000, "sbi NPE"),
        ("slcp", 1000, "sbi NPSE"),
    ]
    everything = sbi.argparse.Namespace(**todo | {"fresh": True})
    assert len(list(sbi.plan(everything))) == 6


def test_reference_files_have_what_the_table_needs():
    for task in sbi.TARGETS:
        known = sbi.reference(task)
        observations, draws, width = known["reference_samples"].shape
        assert (observations, draws) == (5, sbi.DRAWS)
        problem = getattr(sbi.tasks, task)()
        assert known["observation"].shape == (5, problem.dim_x) and width == problem.dim_theta


def table(results, name, *rows):
    """Write a table of `results` by hand."""
    with (results / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_a_cell_stands_beside_its_target_in_red_if_it_misses(results):
    rows = [{"device": "cpu", "what": "training, 4 steps", "ratio": "1.26"}]
    rows += [{"device": "cpu", "what": "forward", "ratio": "1.25"}]
    table(results, "unet_limit", *rows)
    cell = "unet_limit.ratio where device=cpu and what="
    assert page.part(f"{cell}training, 4 steps") == "1.26"
    most, least = "at most 1.25", "at least 1.26"
    assert page.part(f"{cell}training, 4 steps: {most}") == f"{page.red('1.26')} ({most})"
    assert page.part(f"{cell}forward: {most}") == f"1.25 ({most})"
    assert page.part(f"{cell}training, 4 steps: {least}") == f"1.26 ({least})"
    assert page.part(f"{cell}forward: {least}") == f"{page.red('1.25')} ({least})"
    absent = page.part(f"unet_limit.ratio where device=gpu: {most}")
    assert absent == f"not measured ({most})"
    for name in ("unet_limit.ratio where device=cpu", "bugs cuaght"):
        with pytest.raises(ValueError, match=f"single cell stands behind '{name}'"):
            page.part(name)


def test_draws_beside_npse(results):
    sbi.store(row("slcp", 10000, "EDM", "0.80", costs=("1", "2.0", "1")))
    assert page.part("NPSE seconds, slcp: at least 10") == "not measured (at least 10)"
    sbi.store(row("slcp", 10000, "sbi NPSE", "0.79", costs=("1", "21.0", "1")))
    assert page.part("NPSE seconds, slcp: at least 10") == "10.5 (at least 10)"
    assert page.part("NPSE C2ST, slcp: at most 0") == f"{page.red('0.010')} (at most 0)"


def test_a_table_is_written_as_it_is_with_its_machines_below(results):
    rows = [{"a_b": "x | y", "c": "1", "machine": machine} for machine in ("m", "m", "n")]
    table(results, "some", *rows, {"a_b": "", "c": "", "machine": "not measured"})
    head, line, *body, empty, last = page.part("some").splitlines()
    assert (head, line) == ("| a b | c |", "|---|---|")
    assert body == ["| x \\| y | 1 |"] * 3 + ["|  |  |"]
    assert (empty, last) == ("", "Measured on: m; n.")


def test_only_what_stands_between_markers_is_written(results):
    table(results, "some", {"a": "1", "b": "2"})
    text = "Of <!-- some.b where a=1 -->old<!-- end --> it.\n\n<!-- some -->\n<!-- end -->\nEnd.\n"
    filled = page.fill(text)
    assert filled == (
        "Of <!-- some.b where a=1 -->2<!-- end --> it.\n\n"
        "<!-- some -->\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n<!-- end -->\nEnd.\n"
    )
    assert page.fill(filled) == filled
    for lost in ("<!-- some -->\n", "a <!-- end -->\n", "b <!-- some -->\n" + text):
        with pytest.raises(ValueError, match="a marker needs its other half"):
            page.fill(lost)
    with pytest.raises(ValueError, match="no line may begin with a number"):
        page.fill("  <!-- some.b where a=1 -->2<!-- end --> of them")


def test_bugs_are_counted_and_survivors_are_red(results):
    bug = {"mutant": "01_bug", "what": "it breaks", "cpu_s": "3", "source": "a"}
    caught = [bug | {"caught_by": "test_ema.py::test_decay"}] * 18
    excused = bug | {"caught_by": "equivalent: nobody could see it"}
    drawn = {"mutant": "ema: a | b -> b in x = a | b", "what": "line 7: a | b -> b"}
    drawn |= {"caught_by": "SURVIVED", "cpu_s": "9", "source": "b"}
    table(results, "mutants", *caught, drawn, excused)
    first, *_, survivor, equivalent = lines_of(page.bugs())
    assert first == "| it breaks | `test_ema.py::test_decay` |"
    assert survivor == f"| `ema` line 7: `a \\| b -> b in x = a \\| b` | {page.red('SURVIVED')} |"
    assert equivalent == "| it breaks | equivalent: nobody could see it |"
    counts = {"planted": 20, "caught": 18, "without effect": 1, "found elsewhere": 19, "drawn": 1}
    assert {name: int(page.part(f"bugs {name}")) for name in counts} == counts
    share = page.part("share of bugs caught: at least 95%")  # 18 of 19
    assert share == f"{page.red('94%')} (at least 95%)"
