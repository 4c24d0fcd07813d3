"""How everything here is measured: side by side in one run, as a ratio of medians.

Times of day and load come and go; the ratio of two things timed in turn stays.
"""

import csv
import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import jax

RESULTS = Path(__file__).parent / "results"


def seconds(f: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call, waiting for its result; by `time.process_time` those of the CPU."""
    start = clock()
    jax.block_until_ready(f())
    return clock() - start


def medians(
    functions: Sequence[Callable[[], Any]],
    repeats: int = 9,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Median seconds of each function; called in turn, after a call to warm up."""
    for f in functions:
        jax.block_until_ready(f())
    rounds = [[seconds(f, clock) for f in functions] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def pin() -> None:
    """Keep this process, and all it starts, to one core: call it before the first computation."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def machine() -> str:
    """The device, versions and the day, for the last column of every table."""
    device = jax.devices()[0].device_kind
    versions = ", ".join(
        f"{package.__name__} {package.__version__}" for package in (jax, eqx, diffrax)
    )
    cores = f"{platform.machine()}, {os.cpu_count()} cores"
    return f"{device} {cores}, {versions}, {datetime.date.today()}"


def write(name: str, rows: Iterable[dict[str, Any]]) -> None:
    """Write `results/name.csv`, and show each row as soon as it is measured.

    A row that says on which machine it was measured, an older one, keeps that.
    """
    start, kept = time.monotonic(), []
    for row in rows:
        kept.append(row | {"machine": row.get("machine", machine())})
        values = "  ".join(f"{key}={value}" for key, value in row.items())
        print(f"{name} {time.monotonic() - start:4.0f} s  {values}", flush=True)
    save(name, kept)


def save(name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write `results/name.csv`, with the columns of the first row; never half a file."""
    RESULTS.mkdir(exist_ok=True)
    draft = RESULTS / f"{name}.tmp"
    with draft.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    draft.replace(RESULTS / f"{name}.csv")


def name_of(row: dict[str, Any], columns: Sequence[str]) -> tuple[str, ...]:
    """What tells a row from the others of its table."""
    return tuple(str(row[column]) for column in columns)


def put(table: str, row: dict[str, Any], name: Sequence[str], place: Any = lambda row: 0) -> None:
    """Put the row in the table, in the place of an older one of its name, and sort it."""
    kept = [old for old in read(table) if name_of(old, name) != name_of(row, name)]
    save(table, sorted([*kept, row], key=place))


def read(name: str) -> list[dict[str, str]]:
    """The rows of `results/name.csv`; none where it was not measured yet."""
    if not (RESULTS / f"{name}.csv").exists():
        return []
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))
