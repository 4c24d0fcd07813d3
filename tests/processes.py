"""What a test's own processes run under, where several compile the same."""

import os
from pathlib import Path


def environment(compiled: Path) -> dict[str, str]:
    """This process's, with code that compiles fast, kept in a folder for the next process."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # as conftest.py does
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
