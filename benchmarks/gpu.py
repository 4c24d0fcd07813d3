"""One run on a GPU: is everything right there, and how fast is it beside PyTorch?

    python3 -m benchmarks.gpu [--minutes 8] [--out FOLDER] [--only NAME ...] [--tiny] [--chapters]

Each job is a process of its own, so that one that fails or fills the memory costs its own rows.
The jobs that ask whether numbers are right come first, together, while PyTorch compiles; then
the timed ones, alone on the device, the most valuable first. `gpu.csv` and `gpu.log` are written
after every row; rows measured in an earlier run stay. `--tiny` tries all of it on a CPU.
"""

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu_jobs import Job, jobs_of

ROOT = Path(__file__).parents[1]
COLUMNS = ("part", "what", "value", "unit", "target", "met", "note", "machine")


class Table:
    """Rows by part and name, on the disk after each change."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.file, self.start = folder / "gpu.csv", time.monotonic()
        self.lock, self.rows, self.seen = threading.Lock(), {}, set()
        if self.file.exists():
            with self.file.open(newline="") as file:
                self.rows = {(row["part"], row["what"]): row for row in csv.DictReader(file)}

    def log(self, text: str) -> None:
        with self.file.with_suffix(".log").open("a") as file:
            file.write(f"{time.monotonic() - self.start:5.0f} s  {text}\n")

    def add(self, job: Job, what: str, **cells: Any) -> None:
        """One row; what could not be measured does not replace what once was."""
        unit, target = job.rows[what]
        row = {"part": job.part, "what": what, "value": "", "unit": unit, "target": target}
        row |= {"met": "", "note": "", "machine": ""} | cells
        row["met"] = met(row["value"], target)
        with self.lock:
            self.seen.add((job.part, what))
            old = self.rows.get((job.part, what))
            self.log("  ".join(f"{name}={row[name]}" for name in COLUMNS[:-1] if row[name] != ""))
            print(f"{job.part}: {what} = {row['value']} {unit} {row['note']}", flush=True)
            if row["value"] == "" and old and old["value"] != "":
                return
            self.rows[job.part, what] = row
            draft = self.file.with_suffix(".tmp")
            with draft.open("w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(self.rows.values())
            draft.replace(self.file)

    def excuse(self, job: Job, note: str) -> None:
        """The rows of a job that are still missing, with the reason."""
        for what in job.rows:
            if (job.part, what) not in self.seen:
                self.add(job, what, note=note)


def met(value: Any, target: str) -> str:
    """Whether a value reaches "at most 1" or "at least 1"; empty where one of them is."""
    if value == "" or not target:
        return ""
    bound = float(target.split()[-1])
    return "yes" if (value <= bound if "most" in target else value >= bound) else "no"


class Running:
    """The process of some jobs; a thread reads its rows."""

    def __init__(self, jobs: list[Job], table: Table, tiny: bool):
        self.jobs, self.table = jobs, table
        command = [sys.executable, "-u", "-m", "benchmarks.gpu", "--child"]
        command += [job.name for job in jobs] + ["--tiny"] * tiny
        command += ["--chapters"] * any(job.part == "chapters" for job in jobs)
        table.log(f"start {' '.join(job.name for job in jobs)}")
        pipes: dict = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment(tiny), text=True, start_new_session=True, **pipes
        )
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self) -> None:
        by_name = {job.name: job for job in self.jobs}
        for line in self.process.stdout or ():
            if not line.startswith("ROW "):
                self.table.log(line.rstrip())
                continue
            found = json.loads(line[4:])
            job = by_name[found.pop("job")]
            if "excuse" in found:
                self.table.excuse(job, found["excuse"])
            else:
                self.table.add(job, **found)

    def finish(self, deadline: float) -> None:
        """Let it have the device alone, until it ends or the time is over."""
        late = False
        try:
            assert self.process.stdin
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        try:
            self.process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            late = True
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.thread.join(5)
        note = "not reached: out of time" if late else f"failed: exit {self.process.returncode}"
        for job in self.jobs:
            self.table.excuse(job, note)


def environment(tiny: bool) -> dict[str, str]:
    """No memory in advance, so that processes share the device; compiled code is kept."""
    cache = Path(tempfile.gettempdir()) / f"edm_gpu_cache_{os.getuid()}"
    known = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONPATH": str(ROOT)}
    known |= {"MPLBACKEND": "Agg", "TF_CPP_MIN_LOG_LEVEL": "2"}
    if tiny:  # nearly all of its time is compilation
        return known | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return known | {"JAX_COMPILATION_CACHE_DIR": str(cache)}


def child(jobs: list[Job]) -> None:
    """Run the jobs, and print each row as it is measured."""
    for job in jobs:

        def say(name: str = job.name, **cells: Any) -> None:
            print("ROW " + json.dumps({"job": name} | cells), flush=True)

        try:
            job.run(say)
            say(excuse="failed: it gave no value")
        except ModuleNotFoundError as error:
            say(excuse=f"not there: {error.name}")
        except Exception as error:
            traceback.print_exc(file=sys.stdout)
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            say(excuse=f"failed: {text[:160]}")


def ratio(table: Table, job: Job) -> None:
    """Our training images a second over those of PyTorch, both in bfloat16."""
    values = [table.rows.get(pair, {}).get("value", "") for pair in job.run(None)]
    if "" in values:
        table.excuse(job, "not reached: one of the two was not measured")
    else:
        value = round(float(values[0]) / float(values[1]), 2)
        machine = table.rows[job.run(None)[0]]["machine"]
        table.add(job, *job.rows, value=value, machine=machine)


def measure(jobs: list[Job], table: Table, minutes: float, tiny: bool) -> None:
    """All jobs within the time, those that may run together first."""
    deadline = time.monotonic() + 60 * minutes
    derived = [job for job in jobs if job.kind == "ratio"]
    together = [job for job in jobs if job.kind == "together"]
    prepared = {job.name: Running([job], table, tiny) for job in jobs if job.kind == "prepared"}
    alone = [job for job in jobs if job.kind in ("alone", "prepared")]
    groups = [[job] for job in together]
    if tiny:  # two processes for two cores: there is nothing to time
        groups = [together, [job for job in alone if job.name not in prepared]]
        alone = [job for job in alone if job.name in prepared]
    started = [Running(group, table, tiny) for group in groups if group]
    half = time.monotonic() + 60 * minutes / (1 if tiny or len(together) == len(jobs) else 2.5)
    for running in started:
        running.finish(half)
    for job in alone:
        if job.name in prepared:
            prepared[job.name].finish(min(deadline, time.monotonic() + 2 * job.seconds))
        elif time.monotonic() + job.seconds > deadline:
            table.excuse(job, f"not reached: needs some {job.seconds} s")
        else:
            late = time.monotonic() + 3 * job.seconds
            Running([job], table, tiny).finish(min(deadline, late))
    for job in derived:
        ratio(table, job)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Everything, once, on a GPU.")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all of it")
    parser.add_argument("--out", type=Path, help="where gpu.csv and gpu.log go")
    parser.add_argument("--only", nargs="+", default=[], help="jobs whose name begins so")
    parser.add_argument("--tiny", action="store_true", help="small sizes, on a CPU")
    parser.add_argument("--chapters", action="store_true", help="the code of each chapter too")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    jobs = jobs_of(tiny=options.tiny, chapters=options.chapters)
    if options.child:
        return child([job for job in jobs if job.name in options.child])
    chosen: Callable[[str], bool] = lambda name: name.startswith(tuple(options.only))
    jobs = [job for job in jobs if not options.only or chosen(job.name)]
    elsewhere = tempfile.mkdtemp() if options.tiny else ROOT / "benchmarks" / "results"
    table = Table(options.out or Path(elsewhere))
    measure(jobs, table, options.minutes, options.tiny)
    print(f"{table.file}: {sum(row['value'] != '' for row in table.rows.values())} values")


if __name__ == "__main__":
    main()
