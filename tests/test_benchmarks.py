"""The page of benchmarks says what the tables say, and how their rows are kept."""

import csv

import pytest

from benchmarks import page, sbi, targets, timing


def test_the_page_is_made_from_the_tables_that_are_there():
    assert (page.BOOK / "benchmarks.md").read_text() == page.page()  # else run benchmarks.page


def row(task, budget, method, mean, target="", costs=("9.5", "0.5", "0.1"), note=""):
    cells = dict.fromkeys(sbi.COLUMNS, "") | {"note": note, "machine": "a machine"}
    cells |= {"task": task, "budget": str(budget), "method": method, "seed": "0", "mean": mean}
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
    first, second = (line.split(" | ") for line in lines_of(page.posteriors()))
    assert "danger" not in " ".join(first)
    red = [page.red(text, True) for text in ("0.760", "151", "2.1")]
    assert [second[2], second[6], second[8].removesuffix(" |")] == red
    assert second[7] == "4"  # at its limit is not over it


def test_peers_stand_beside_and_a_failure_is_told(results):
    sbi.store(row("two_moons", 1000, "EDM", "0.55", "0.58"))
    sbi.store(row("two_moons", 1000, "sbi NPE", "0.7"))
    sbi.store(row("two_moons", 1000, "sbi NPSE", "", costs=("", "", ""), note="failed: no wheel"))
    text = page.posteriors()
    (line,) = lines_of(text)
    assert line.startswith("| two moons | 1,000 | 0.550 | 0.58 | 0.700 | - | 9.5 / 9.5 ")
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


def table(results, name, *rows):
    """Write a table of `results` by hand."""
    with (results / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_targets_are_judged_by_the_tables(results):
    limit = {"network": "MLP", "solver": "Heun", "steps": "18", "ratio": "1.01"}
    table(results, "sampler_limit", limit, limit | {"network": "U-Net", "ratio": "0.9"})
    torch = {"what": "sampler", "peer": "torch 2", "times_faster": "1.5", "target": "1.5"}
    gone = {"what": "flow", "peer": "other", "times_faster": "", "target": ""}
    table(results, "peers", torch | {"note": ""}, gone | {"note": "not measured: no wheel for it"})
    bug = {"mutant": "01_bug", "what": "it breaks", "cpu_s": "3", "source": "a"}
    caught = [bug | {"caught_by": "test_ema.py::test_decay"}] * 18
    excused = bug | {"caught_by": "equivalent: nobody could see it"}
    table(results, "mutants", *caught, bug | {"caught_by": "SURVIVED"}, excused)
    sampler, peer, missing, bugs = lines_of(targets.targets())
    assert sampler.endswith(f"| at most 1.0 | {page.red('1.01', True)} |")
    assert peer.endswith("| at least 1.5 times faster | 1.50 |")
    assert missing == "| flow, against other | side by side | not measured |"
    assert bugs.endswith(f"| {page.red('95 %', True)} |")  # 18 of 19


def test_targets_of_u_nets(results):
    absent = {"device": "gpu", "ratio": "not measured", "ours_over_torch": "not measured"}
    here = {"device": "cpu", "ours_over_torch": "-"}
    limits = {"sampler, 11 evaluations": "1.04", "training, 4 steps": "1.26"}
    rows = [here | {"what": what, "ratio": ratio} for what, ratio in limits.items()]
    table(results, "unet_limit", *rows, absent | {"what": "not measured"})
    rows = [
        here | {"what": what, "ratio": "-", "ours_over_torch": ratio}
        for what, ratio in (("forward", "1.22"), ("training step", "0.76"))
    ]
    table(results, "unet_torch", *rows, absent | {"what": "not measured"})
    sampler, training, forward, step = lines_of(targets.targets())
    assert sampler.endswith("| at most 1.05 | 1.04 |")
    assert training.endswith(f"| at most 1.25 | {page.red('1.26', True)} |")
    assert forward.endswith("cpu | at least 1.0 | 1.22 |")
    assert step.endswith(f"| at least 1.0 | {page.red('0.76', True)} |")
    assert "By the two profilers" in targets.targets()


def test_a_reason_stands_only_below_a_target_that_is_missed(results, monkeypatch):
    monkeypatch.setattr(targets, "REASONS", {"sampler over": "Because."})
    for ratio, said in (("1.2", True), ("0.9", False)):
        row = {"network": "MLP", "solver": "Heun", "ratio": ratio}
        table(results, "sampler_limit", row)
        assert targets.targets().endswith("Because.") == said


def test_survivors_are_red_and_mutations_are_shown_as_code(results):
    drawn = {"mutant": "ema: a | b -> b in x = a | b", "what": "line 7: a | b -> b"}
    rest = {"caught_by": "SURVIVED", "cpu_s": "9", "source": "b"}
    patch = {"mutant": "01_bug", "what": "it breaks", "caught_by": "test_ema.py::test_a"}
    table(results, "mutants", patch | {"cpu_s": "3", "source": "a"}, drawn | rest)
    first, second = lines_of(page.mutants())
    assert first == "| it breaks | `test_ema.py::test_a` |"
    assert second.startswith("| `ema` line 7: `a \\| b -> b in x = a \\| b` |")
    assert second.endswith(f"| {page.red('SURVIVED', True)} |")
    assert "1 of 2 planted bugs" in page.mutants()
