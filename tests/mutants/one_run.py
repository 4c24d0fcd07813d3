"""One run of tests against a copy of the package, in a process that has JAX already.

Importing JAX, Equinox, Diffrax and pytest takes longer than most tests that catch a bug. So they
are imported once, and every run is a fork: it imports the copy of the package, and
nothing that it does can reach the next run. Compiled code is kept in a folder for all: of
what a bug does not touch, there is nothing to compile again.
"""

import importlib
import importlib.util
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

UNIT = "not book and not browser"
FAST, SLOW = f"not slow and {UNIT}", f"slow and {UNIT}"
HEAVY = ("jax", "jax.numpy", "equinox", "diffrax", "optax", "lineax", "hypothesis", "beartype")
LIMIT_S = 3600  # of CPU time, against endless loops: far above the whole suite's
NOTHING_TO_RUN = (4, 5)  # pytest's exit codes: no such test, or none but slow ones


def prepare(cache: Path) -> None:
    """Import what no bug touches. No computation: threads would not survive the fork."""
    os.environ |= {
        "PYTHONDONTWRITEBYTECODE": "1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # most of the time is compilation
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    sys.dont_write_bytecode = True
    for name in (*HEAVY, "pytest"):
        importlib.import_module(name)


class Stage(NamedTuple):
    """Modules or tests below `folder`/tests, run in one process, and which of theirs."""

    names: Sequence[str]
    marked: str = FAST


def first_failure(folder: Path, stages: Sequence[Stage]) -> tuple[str | None, float]:
    """The first test of the first stage to fail, or None, and the CPU seconds of all stages."""
    seconds, failed = 0.0, folder / "failed.txt"
    for stage in stages:
        child = os.fork()
        if not child:
            _run(folder, stage, failed)
        _, status, usage = os.wait4(child, 0)
        seconds += usage.ru_utime + usage.ru_stime
        code = os.waitstatus_to_exitcode(status)
        if code and code not in NOTHING_TO_RUN:
            reason = {1: "", 2: ""}.get(code, f" (the run ended with {code})")
            return (failed.read_text() or "nothing ran").splitlines()[-1] + reason, seconds
    return None, seconds


class Recorder:
    """Tells which test ran last, in case the process dies, and which was the first to fail."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, name: str) -> None:
        self.path.write_text(name.removeprefix("tests/"))

    def pytest_runtest_logstart(self, nodeid: str, location: Any) -> None:
        self.write(nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.write(report.nodeid)


def _run(folder: Path, stage: Stage, failed: Path) -> None:
    """In the child: pytest, and the end of the process."""
    code = 70
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S))
        output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        failed.write_text("")
        os.chdir(folder)
        os.environ["PYTHONPATH"] = str(folder)  # for what the tests start
        sys.path.insert(0, str(folder))  # before the installed package
        importlib.invalidate_caches()
        found = importlib.util.find_spec("edm_tutorial")
        if found is None or not str(found.origin).startswith(str(folder)):
            failed.write_text("it would not import the copy")
            os._exit(code)
        pytest = importlib.import_module("pytest")
        options = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-m", stage.marked]
        tests = [f"tests/{name}" for name in stage.names]
        code = int(pytest.main([*options, *tests], plugins=[Recorder(failed)]))
    finally:
        os._exit(code)
