"""The public paths give what they gave when their results were recorded.

About 60 seconds on one core.
"""

from collections.abc import Iterator

import jax
import numpy as np
import pytest
import recorded


@pytest.fixture(scope="module")
def stored():
    with np.load(recorded.FILE) as file:
        return dict(file)


@pytest.fixture
def optimised() -> Iterator[None]:
    """As they were recorded: unoptimised code rounds otherwise."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("path", recorded.PATHS, ids=lambda path: path.__name__)
def test_recorded_values(path, stored):
    found = recorded.record(path)
    for name, value in found.items():
        # Of the largest entry, so that what is 0 but for round-off does not count.
        scale = np.max(np.abs(stored[name]))
        # Another processor rounds otherwise: float32 by up to 1.3e-6 (SSE4 to AVX-512).
        tolerance = 4e-6 if value.dtype == np.float32 else 1e-13
        np.testing.assert_allclose(
            value, stored[name], rtol=0, atol=tolerance * scale, err_msg=name
        )
        assert value.dtype == stored[name].dtype, name
