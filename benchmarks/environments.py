"""Other packages, each in an environment of its own below `build/peers`, made on first use.

A peer runs as a program that waits for the name of a job, does it, and answers with the CPU
seconds it took (`peers/rounds.py`). So two packages that cannot be installed together are still
timed in turn, in one run. A peer is started five times: its seconds depend on the start.
"""

import os
import statistics
import subprocess
import time
import venv
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import seconds

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "peers"
TORCH = "torch==2.13.0"


class Missing(Exception):
    """A peer that could not be installed or does not run, and why in one line."""


def python_with(name: str, packages: Sequence[str]) -> Path:
    """The interpreter of the environment `name`; `packages` are installed by pip."""
    home = BUILD / name
    python = home / "bin" / "python"
    if not (home / ".installed").exists():
        print(f"making an environment with {' '.join(packages)}", flush=True)
        venv.create(home, with_pip=True, clear=True)  # and BUILD with it
        run([python, "-m", "pip", "install", "-q", *packages])
        (home / ".installed").touch()
    return python


def run(command: Sequence[Any]) -> None:
    """Run a program to its end, quietly, among what is built: some leave files where they stand.

    Raises:
        Missing: it failed; its last line says why.
    """
    done = subprocess.run(command, capture_output=True, text=True, cwd=BUILD)
    if done.returncode:
        lines = (done.stderr or done.stdout or "no message").strip().splitlines()
        raise Missing(lines[-1][:200])


class Peer:
    """A peer's program, running: `outputs` are what it made first, for comparison."""

    def __init__(self, name: str, packages: Sequence[str], script: str, inputs: dict[str, Any]):
        self.python, self.script = python_with(name, packages), script
        self.inputs, self.starts = inputs, 0
        self.outputs = self._start(inputs)

    def _start(self, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
        source, target = BUILD / f"{self.script}-in.npz", BUILD / f"{self.script}-out.npz"
        np.savez(source, **inputs)
        target.unlink(missing_ok=True)
        command = [self.python, HERE / "peers" / f"{self.script}.py", source, target]
        padding = {"PADDING": "x" * 331 * self.starts}
        pipe, self.starts = subprocess.PIPE, self.starts + 1
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=os.environ | padding
        )
        if self._answer() != "ready":
            raise Missing(f"{self.script} ended with {self.process.wait()}")
        with np.load(target) as file:
            return {key: file[key] for key in file.files}

    def restart(self, **inputs: Any) -> None:
        """End the program and start it again, with an environment of another length.

        Where things lie in memory decides how often glibc's allocator asks the system for
        more: up to half of the seconds of the same program, from one start to the next.
        """
        self.close()
        self._start(self.inputs | inputs)

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def seconds(self, job: str) -> float:
        """CPU seconds of one run of a job."""
        assert self.process.stdin is not None
        print(job, file=self.process.stdin, flush=True)
        answer = self._answer()
        if not answer:
            raise Missing(f"{job} ended with {self.process.wait()}")
        return float(answer)

    def close(self) -> None:
        self.process.communicate()


def in_turn(
    ours: Callable[[], Any], peer: Peer, job: str, starts: int = 5, repeats: int = 3, **inputs: Any
) -> tuple[float, float, str]:
    """Median CPU seconds of ours and of a peer's job, run in turn after a warm-up of both.

    The peer is started anew `starts` times, with these `inputs` changed. Also returns, in
    words, from which to which median its starts went.
    """
    mine, theirs = [], []
    for _ in range(starts):
        peer.restart(**inputs)
        rounds = [(seconds(ours, time.process_time), peer.seconds(job)) for _ in range(repeats + 1)]
        mine += [own for own, _ in rounds[1:]]
        theirs.append([other for _, other in rounds[1:]])
    middle = sorted(statistics.median(times) for times in theirs)
    spread = f"peer {middle[0]:.3g} to {middle[-1]:.3g} s from start to start"
    return statistics.median(mine), statistics.median(chain.from_iterable(theirs)), spread
