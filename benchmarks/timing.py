"""How everything here is measured: side by side in one run, as a ratio of medians.

Times of day and load come and go; the ratio of two things timed in turn stays.
"""

import csv
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
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


def machine() -> str:
    """The device and versions, for the last column of every table."""
    device = jax.devices()[0].device_kind
    versions = ", ".join(
        f"{package.__name__} {package.__version__}" for package in (jax, eqx, diffrax)
    )
    return f"{device} {platform.machine()}, {os.cpu_count()} cores, {versions}"


def write(name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write `results/name.csv` and show it."""
    RESULTS.mkdir(exist_ok=True)
    rows = [row | {"machine": machine()} for row in rows]
    with (RESULTS / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print("  ".join(f"{key}={value}" for key, value in row.items() if key != "machine"))
