"""The table of posteriors on the page of benchmarks, and how its rows are kept."""

import csv

import pytest

from benchmarks import page, sbi


def row(task, budget, method, mean, target="", costs=("9.5", "0.5", "0.1"), note=""):
    cells = dict.fromkeys(sbi.COLUMNS, "") | {"note": note, "machine": "a machine"}
    cells |= {"task": task, "budget": str(budget), "method": method, "seed": "0", "mean": mean}
    return cells | {"target": target} | dict(zip(page.COSTS, costs, strict=True))


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    monkeypatch.setattr(sbi, "RESULTS", tmp_path)
    monkeypatch.setattr(sbi, "TABLE", tmp_path / "sbi.csv")
    return tmp_path


def lines_of(text):
    return [line for line in text.splitlines() if line.startswith("| ")][1:]


def test_missed_targets_are_red_and_met_ones_are_not(results):
    sbi.store(row("slcp", 10000, "EDM", "0.7601", "0.75", ("151", "4.0", "2.1")))
    sbi.store(row("slcp", 1000, "EDM", "0.9", "0.92", ("151", "4.0", "2.1")))
    first, second = (line.split(" | ") for line in lines_of(page.posteriors()))
    assert "danger" not in " ".join(first)
    red = [page.red(text, True) for text in ("0.760", "151", "2.1")]
    assert [second[2], second[6].split(" / ")[0], second[8].split(" / ")[0]] == red
    assert second[7] == "4 / - / -"  # at its limit is not over it


def test_peers_stand_beside_and_a_failure_is_told(results):
    sbi.store(row("two_moons", 1000, "EDM", "0.55", "0.58"))
    sbi.store(row("two_moons", 1000, "sbi NPE", "0.7"))
    sbi.store(row("two_moons", 1000, "sbi NPSE", "", costs=("", "", ""), note="failed: no wheel"))
    text = page.posteriors()
    (line,) = lines_of(text)
    assert line.startswith("| two moons | 1,000 | 0.550 | 0.58 | 0.700 | - | 9.5 / 9.5 / - ")
    assert "sbi NPSE on two moons (1000): failed: no wheel." in text


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
        problem = getattr(sbi.simulators, task)()
        assert known["observation"].shape == (5, problem.dim_x) and width == problem.dim_theta
