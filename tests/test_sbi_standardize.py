"""Scales, bounds and the linear fit: each map is invertible, with the log-determinant it has.

About 25 seconds on one core, nearly all of it compilation.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from edm_tutorial.sbi.neighbours import width_by_neighbours
from edm_tutorial.sbi.transforms.bounds import Support
from edm_tutorial.sbi.transforms.chain import Coordinates
from edm_tutorial.sbi.transforms.linear import LinearRegression
from edm_tutorial.sbi.transforms.standardize import Standardizer

INF = np.inf
LOW = np.array([-2.0, 0.5, -INF, -INF, -1e3])
HIGH = np.array([-1.0, INF, 3.0, INF, 1e3])
INSIDE = np.array([-1.3, 2.0, -4.0, 7.0, 12.0])
SOFT = np.array([0.1, 1.0, 1.0, 1.0, 300.0])
BOX = Support(jnp.asarray(LOW), jnp.asarray(HIGH), jnp.asarray(SOFT))


def log_jacobian(f, x):
    """ln |det df/dx| by differentiation."""
    return jnp.linalg.slogdet(jax.jacobian(f)(x))[1]


def test_standardizer_against_numpy(key):
    x = 3 + np.array([2.0, 0.01, 40.0]) * np.asarray(jr.normal(key, (50, 3)))
    scale = Standardizer.fit(x)
    z = jax.vmap(scale.forward)(jnp.asarray(x))
    np.testing.assert_allclose(z, (x - x.mean(0)) / x.std(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(jax.vmap(scale.inverse)(z), x, rtol=1e-13)
    np.testing.assert_allclose(
        scale.log_det(), log_jacobian(scale.forward, jnp.asarray(x[0])), rtol=1e-13
    )


def test_standardizer_scales_with_the_data_bit_by_bit(key):
    """Multiplying by a power of two only changes exponents, so nothing may round anew."""
    x = np.asarray(jr.normal(key, (40, 2), jnp.float32))
    factor = np.array([2.0**9, 2.0**-7], np.float32)
    z = jax.vmap(Standardizer.fit(x).forward)(x)
    np.testing.assert_array_equal(jax.vmap(Standardizer.fit(x * factor).forward)(x * factor), z)
    assert z.dtype == jnp.float32


@pytest.mark.parametrize(
    "column, fault", [(np.full(9, 0.1), "constant"), (np.r_[np.ones(8), np.nan], "not finite")]
)
def test_standardizer_names_the_columns_it_refuses(column, fault):
    x = np.stack([np.arange(9.0), column, column], axis=1)
    with pytest.raises(ValueError, match=rf"theta is {fault} in 2 of 3 columns \(1, 2\)"):
        Standardizer.fit(x, "theta")
    with pytest.raises(ValueError, match=r"\(\[0, 1\], \[0, 2\]\)"):
        Standardizer.fit(x[:, None])


def test_standardizer_messages(unchecked):
    with pytest.raises(ValueError, match="at least two examples"):
        Standardizer.fit(np.ones((1, 2)))
    with pytest.raises(ValueError, match="std must be positive"):
        Standardizer(jnp.zeros(2), jnp.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="one shape"):
        Standardizer(jnp.zeros(3), jnp.ones(2))
    scale = Standardizer(jnp.zeros(2), jnp.ones(2))
    with pytest.raises(ValueError, match="shape"):
        scale.forward(jnp.zeros(1))  # would broadcast
    with pytest.raises(ValueError, match="shape"):
        scale.inverse(jnp.zeros(1))


def test_bounds_are_the_functions_they_claim_to_be():
    def soft(theta, low, high, s):
        return theta + s * np.log(
            (1 - np.exp((low - theta) / s)) / (1 - np.exp((theta - high) / s))
        )

    u = BOX.forward(jnp.asarray(INSIDE))
    both = soft(-1.3, -2.0, -1.0, 0.1), soft(12.0, -1e3, 1e3, 300.0)
    np.testing.assert_allclose(u, [both[0], np.log(1.5), -np.log(7.0), 7.0, both[1]], rtol=1e-12)
    np.testing.assert_allclose(BOX.inverse(u), INSIDE, rtol=1e-12)


def test_bounds_log_determinant():
    theta = jnp.asarray(INSIDE)
    np.testing.assert_allclose(BOX.log_det(theta), log_jacobian(BOX.forward, theta), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bounds_hold_at_their_edges(dtype):
    """Points on a bound, and the floats beside it, have finite images that come back inside."""
    low, high = np.array([-3.0, 1e-3], dtype), np.array([3.0, 0.1], dtype)
    box = Support(jnp.asarray(low), jnp.asarray(high), jnp.array([1.0, 1e-3], dtype))
    for theta in (low, high, np.nextafter(low, high), np.nextafter(high, low)):
        theta = jnp.asarray(theta)
        assert box.contains(theta)
        assert np.isfinite(box.forward(theta)).all() and np.isfinite(box.log_det(theta))
    for u in (-INF, -40.0, -9.0, 9.0, 40.0, INF):
        assert box.contains(box.inverse(jnp.full(2, u, dtype)))
    for outside in (np.nextafter(low, -9), np.nextafter(high, 9), low * np.nan):
        assert not box.contains(jnp.asarray(outside, dtype))


def test_half_bounded_edges_hold():
    box = Support(jnp.array([0.0, -INF]), jnp.array([INF, 5.0]), jnp.ones(2))
    edge = jnp.array([0.0, 5.0])
    assert box.contains(edge) and np.isfinite(box.forward(edge)).all()
    assert box.contains(box.inverse(jnp.array([-800.0, 800.0])))


def test_far_from_its_bounds_a_box_changes_nothing():
    """Twenty softnesses away, what is left of the bend is s e^-20, 2e-9 of s."""
    box = Support(jnp.array([-1.0]), jnp.array([1.0]), jnp.array([0.01]))
    theta = jnp.linspace(-0.8, 0.8, 9)[:, None]
    np.testing.assert_allclose(jax.vmap(box.forward)(theta), theta, atol=0.01 * np.exp(-20) * 1.01)
    np.testing.assert_allclose(jax.vmap(box.log_det)(theta), 0, atol=np.exp(-20) * 1.01)


def test_a_density_that_ends_at_a_bound_gets_an_exponential_tail():
    """Uniform on the box: beyond the bound, ln of the density of u falls by 1 every s."""
    box = Support(jnp.array([-1.0]), jnp.array([1.0]), jnp.array([0.1]))
    u = jnp.array([[-1.4], [-1.5], [1.9], [2.0]])
    log_density = -jax.vmap(box.log_det)(jax.vmap(box.inverse)(u))
    np.testing.assert_allclose(np.diff(log_density)[[0, 2]], [-1, -1], atol=0.02)  # e^-4


def test_bounds_messages(unchecked):
    theta = np.array([[0.1, 0.2], [0.3, 1.2]])
    with pytest.raises(ValueError, match=r"each of shape \(2,\)"):
        Support.of((np.zeros(3), np.ones(3)), theta)
    with pytest.raises(ValueError, match="low < high"):
        Support.of((np.zeros(2), np.array([1.0, 0.0])), theta)
    with pytest.raises(ValueError, match="1 of 2 rows, first in row 1"):
        Support.of((np.zeros(2), np.ones(2)), theta)
    with pytest.raises(ValueError, match="one length"):
        Support(jnp.zeros(2), jnp.ones(1), jnp.ones(2))
    with pytest.raises(ValueError, match="softness must be positive and finite"):
        Support(jnp.zeros(2), jnp.ones(2), jnp.array([1.0, 0.0]))


def test_neighbours_see_the_width_of_the_posterior(key):
    """theta given x is N(x, 0.3^2) in one column, one of two peaks 0.01 wide in the other.

    The quartile of 1,000 differences, 0.451 where their density is 0.536, has a relative standard
    error of 5.7 %; the observations of neighbours are 5e-4 apart. Of the pairs at two peaks half
    are at the same, and a quarter of all below the median of those: 0.954 of 0.01.
    """
    keys = jr.split(key, 3)
    x = np.asarray(jr.uniform(keys[0], (2_000, 1)))
    side = np.asarray(jr.rademacher(keys[1], (2_000, 1)))
    noise = np.asarray(jr.normal(keys[2], (2_000, 2)))
    theta = x + np.array([0.3, 0.01]) * noise + np.array([0.0, 0.4]) * side
    smooth, narrow = width_by_neighbours(theta, x)
    np.testing.assert_allclose(smooth, 0.3, rtol=4 * 0.057)
    np.testing.assert_allclose(narrow, 0.01 * 0.954 / 0.4506, rtol=0.25)


@pytest.mark.slow
def test_regression_whitens_what_is_left(key):
    """On the data it was fitted to, residuals have mean 0, covariance I and no linear trend."""
    keys = jr.split(key, 3)
    x, mix = jr.normal(keys[0], (500, 3)), jr.normal(keys[1], (2, 3))
    u = x @ mix.T + jr.normal(keys[2], (500, 2)) @ jnp.array([[0.3, 0.0], [0.2, 0.01]]).T
    fit = LinearRegression.fit(u, x)
    z = np.asarray(jax.vmap(fit.forward)(u, x))
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-10)
    np.testing.assert_allclose(z.T @ z / (500 - 4), np.eye(2), atol=1e-3)  # the floor's 1e-8
    # The ridge shifts slopes by 1 / 500 of themselves; in z they are larger by 1 / 0.01.
    np.testing.assert_allclose(fit.slope, mix, atol=0.05)
    np.testing.assert_allclose(jax.vmap(fit.inverse)(jnp.asarray(z), x), u, atol=1e-12)
    jacobian = log_jacobian(lambda u: fit.forward(u, x[0]), u[0])
    np.testing.assert_allclose(fit.log_det(), jacobian, rtol=1e-12)


def test_regression_needs_enough_simulations():
    with pytest.raises(ValueError, match="at least 7"):
        LinearRegression.fit(np.ones((6, 2)), np.ones((6, 3)))


def test_coordinates_invert_and_add_up(key):
    """Bounds, scale and fit together: the log-determinant is that of the whole map."""
    keys = jr.split(key, 2)
    mean, std = jnp.arange(5.0), jnp.arange(1.0, 6.0)
    lower = jnp.tril(jr.normal(keys[0], (5, 5))) + 3 * jnp.eye(5)
    fit = LinearRegression(jr.normal(keys[1], (5, 2)), mean, lower)
    x_scale = Standardizer(jnp.array([1.0, 2.0]), jnp.array([3.0, 0.5]))
    maps = Coordinates(BOX, Standardizer(mean, std), x_scale, fit)
    theta, x = jnp.asarray(INSIDE), jnp.array([4.0, 1.0])
    z, scaled = maps.forward(theta, x)
    np.testing.assert_allclose(scaled, [1.0, -2.0])
    np.testing.assert_allclose(maps.inverse(z, scaled), theta, rtol=1e-10)
    jacobian = log_jacobian(lambda theta: maps.forward(theta, x)[0], theta)
    np.testing.assert_allclose(maps.log_det(theta), jacobian, rtol=1e-12)
