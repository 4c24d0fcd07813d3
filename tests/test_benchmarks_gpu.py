"""The run on a GPU, in small on a CPU: every row is there, and a broken part is a failed row."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu_jobs import Job, jobs_of

ROOT = Path(__file__).parents[1]


def rows_of(folder):
    with (folder / "gpu.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_every_row_is_measured_in_small(tmp_path):
    """Without PyTorch, scikit-learn or Orbax their rows say so; nothing else may be empty."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    rows = rows_of(tmp_path)
    jobs = jobs_of(tiny=True, chapters=False)
    assert {(row["part"], row["what"]) for row in rows} == {
        (job.part, what) for job in jobs for what in job.rows
    }
    absent = [row for row in rows if row["value"] == ""]
    assert all("PyTorch" in row["part"] or "torch" in row["what"] for row in absent), absent
    assert not [row for row in rows if row["note"].startswith("failed")]
    assert not [row for row in rows if row["part"] == "correctness" and row["met"] == "no"]


def broken(say):
    say(what="first", value=1.5)
    raise ArithmeticError("as planned")


def job(run, name="some"):
    return Job(name, "part", "alone", 1, {"first": ("s", "at most 1"), "second": ("s", "")}, run)


def test_a_part_that_breaks_is_a_failed_row(tmp_path, capsys):
    """What it gave before counts, and the next job runs."""
    gpu.child([job(broken), job(lambda say: say(what="second", value=2.0), "next")])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ROW ")]
    assert len(lines) == 4 and "failed: ArithmeticError: as planned" in lines[1]
    table = gpu.Table(tmp_path)
    table.add(job(broken), "first", value=1.5)
    table.excuse(job(broken), "failed: ArithmeticError: as planned")
    first, second = rows_of(tmp_path)
    assert (first["value"], first["met"]) == ("1.5", "no")
    assert (second["value"], second["note"]) == ("", "failed: ArithmeticError: as planned")


def test_what_was_measured_stays_where_it_is_not_reached_again(tmp_path):
    table = gpu.Table(tmp_path)
    table.add(job(broken), "first", value=0.5)
    again = gpu.Table(tmp_path)
    again.excuse(job(broken), "not reached: out of time")
    first, second = rows_of(tmp_path)
    assert (first["value"], first["met"]) == ("0.5", "yes")
    assert second["note"] == "not reached: out of time"


def test_a_job_without_time_is_named(tmp_path):
    gpu.measure([job(broken)], gpu.Table(tmp_path), 0.0, tiny=False)
    assert [row["note"] for row in rows_of(tmp_path)] == ["not reached: needs some 1 s"] * 2
