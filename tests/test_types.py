"""What numbers become at the doors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_tutorial._checks import check_finite
from edm_tutorial._types import as_traced


@pytest.mark.parametrize("numbers", [[1, 2], [0.5, 1.5, 2.5]])
def test_a_list_of_numbers_is_one_array(numbers):
    traced = as_traced(numbers)
    assert isinstance(traced, jax.Array)
    np.testing.assert_array_equal(traced, numbers)


@pytest.mark.parametrize("mixed", [[1.0, "a"], ["a", 1.0], [True, 1.0], [None, 2], []])
def test_any_other_list_keeps_its_form(mixed):
    traced = as_traced(mixed)
    assert type(traced) is list and len(traced) == len(mixed)
    for old, new in zip(mixed, traced, strict=True):
        number = isinstance(old, int | float) and not isinstance(old, bool)
        assert isinstance(new, jax.Array) if number else new is old


def test_numbers_inside_a_tree_become_arrays_and_nothing_else_does():
    held = jnp.arange(3.0)
    traced = as_traced({"a": 1.5, "b": (True, "x", held, 2)})
    assert isinstance(traced["a"], jax.Array) and isinstance(traced["b"][3], jax.Array)
    assert traced["b"][0] is True and traced["b"][1] == "x" and traced["b"][2] is held


@pytest.mark.parametrize("place", range(3))
def test_one_number_that_is_not_finite_is_enough(place):
    values = np.ones(3)
    check_finite("x", values)
    values[place] = np.nan
    with pytest.raises(ValueError, match="x must be finite"):
        check_finite("x", values)
