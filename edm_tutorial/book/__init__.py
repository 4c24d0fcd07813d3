"""What only the chapters of the book need: exercises, plotting, Table 1 as text."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax


@contextmanager
def double_precision() -> Iterator[None]:
    """Floating-point numbers of 64 bits within a `with` block.

    As `jax.enable_x64`, which the oldest JAX that the package accepts does not have.
    """
    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)
