"""The other end of `benchmarks.environments`: jobs by name, CPU seconds as the answer."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def load(path: str) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def serve(target: str, outputs: Mapping[str, Any], jobs: Mapping[str, Callable[[], Any]]) -> None:
    """Save what is to be compared, then run jobs until the input ends."""
    np.savez(target, **outputs)
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.process_time()
        jobs[line.strip()]()
        print(time.process_time() - start, flush=True)
