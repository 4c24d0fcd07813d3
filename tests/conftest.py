"""What every test runs under: no accidental promotion, no key used twice, shapes checked.

Every module of the package is checked by jaxtyping and beartype, whichever test imports
it. A test of a message that those checks would preempt asks for the fixture `unchecked`.
"""

import sys
import zlib
from collections.abc import Iterator

import jax
import jaxtyping
import numpy as np
import pytest
from jaxtyping import PRNGKeyArray

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Before JAX 0.10 the check mistook keys[-1], as in eqx.nn.MLP, for a key used twice.
jax.config.update("jax_debug_key_reuse", jax.__version_info__ >= (0, 10))
jax.config.update("jax_default_matmul_precision", "highest")  # for GPUs with tf32
# Nearly all the time of these tests is compilation; the chapters run optimised code.
jax.config.update("jax_disable_most_optimizations", True)

assert "edm_tutorial" not in sys.modules, "imported too early: its types are unchecked"
jaxtyping.install_import_hook("edm_tutorial", "beartype.beartype")


@pytest.fixture
def key(request: pytest.FixtureRequest) -> PRNGKeyArray:
    """A random key of the test's own: the same in every run and in every worker."""
    return jax.random.key(zlib.crc32(request.node.name.encode()))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """NumPy's numbers, of the test's own likewise."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_code() -> Iterator[None]:
    """After each module, so that the memory of a worker stays bounded."""
    yield
    jax.clear_caches()


@pytest.fixture
def single_precision() -> Iterator[None]:
    """JAX as it is unless it is told otherwise. (The oldest one has no `jax.enable_x64`.)"""
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


@pytest.fixture
def optimized() -> Iterator[None]:
    """Code as fast as a user's, for tests that compute longer than they compile."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the run-time type checks: what a user sees."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
