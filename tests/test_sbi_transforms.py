"""Scales, bounds and the linear fit: each map is invertible, with the log-determinant it has.

About 25 seconds on one core, nearly all of it compilation.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from edm_tutorial.sbi.transforms import linear
from edm_tutorial.sbi.transforms.bounds import Bounds, narrowness
from edm_tutorial.sbi.transforms.chain import Chain
from edm_tutorial.sbi.transforms.linear import LinearRegression
from edm_tutorial.sbi.transforms.standardize import Standardizer

INF = np.inf
LOW = np.array([-2.0, 0.5, -INF, -INF, -1e3])
HIGH = np.array([-1.0, INF, 3.0, INF, 1e3])
INSIDE = np.array([-1.3, 2.0, -4.0, 7.0, 12.0])
SOFT = np.array([0.1, 1.0, 1.0, 1.0, 300.0])
BOX = Bounds(jnp.asarray(LOW), jnp.asarray(HIGH), jnp.asarray(SOFT))


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


@pytest.mark.parametrize(
    "count, listed", [(8, "1, 2, 3, 4, 5, 6, 7"), (9, "1, 2, 3, 4, 5, 6, 7, ...")]
)
def test_at_most_eight_columns_are_named(count, listed):
    x = np.column_stack([np.ones((3, count)), np.arange(3.0)])
    with pytest.raises(ValueError, match=rf"{count} of {count + 1} columns \(0, {listed}\)"):
        Standardizer.fit(x)


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
    box = Bounds(jnp.asarray(low), jnp.asarray(high), jnp.array([1.0, 1e-3], dtype))
    for theta in (low, high, np.nextafter(low, high), np.nextafter(high, low)):
        theta = jnp.asarray(theta)
        assert box.contains(theta)
        assert np.isfinite(box.forward(theta)).all() and np.isfinite(box.log_det(theta))
    for u in (-INF, -40.0, -9.0, 9.0, 40.0, INF):
        assert box.contains(box.inverse(jnp.full(2, u, dtype)))
    for outside in (np.nextafter(low, -9), np.nextafter(high, 9), low * np.nan):
        assert not box.contains(jnp.asarray(outside, dtype))


def test_half_bounded_edges_hold():
    box = Bounds(jnp.array([0.0, -INF]), jnp.array([INF, 5.0]), jnp.ones(2))
    edge = jnp.array([0.0, 5.0])
    assert box.contains(edge) and np.isfinite(box.forward(edge)).all()
    assert box.contains(box.inverse(jnp.array([-800.0, 800.0])))


def test_far_from_its_bounds_a_box_changes_nothing():
    """Twenty softnesses away, what is left of the bend is s e^-20, 2e-9 of s."""
    box = Bounds(jnp.array([-1.0]), jnp.array([1.0]), jnp.array([0.01]))
    theta = jnp.linspace(-0.8, 0.8, 9)[:, None]
    np.testing.assert_allclose(jax.vmap(box.forward)(theta), theta, atol=0.01 * np.exp(-20) * 1.01)
    np.testing.assert_allclose(jax.vmap(box.log_det)(theta), 0, atol=np.exp(-20) * 1.01)


def test_a_density_that_ends_at_a_bound_gets_an_exponential_tail():
    """Uniform on the box: beyond the bound, ln of the density of u falls by 1 every s."""
    box = Bounds(jnp.array([-1.0]), jnp.array([1.0]), jnp.array([0.1]))
    u = jnp.array([[-1.4], [-1.5], [1.9], [2.0]])
    log_density = -jax.vmap(box.log_det)(jax.vmap(box.inverse)(u))
    np.testing.assert_allclose(np.diff(log_density)[[0, 2]], [-1, -1], atol=0.02)  # e^-4


def test_far_beyond_a_bound_the_map_is_still_invertible():
    """Thirty softnesses out theta is s e^-30 from the bound: 9e-16, known to 1e-17."""
    box = Bounds(jnp.zeros(1), jnp.ones(1), jnp.array([0.01]))
    for u, near in ((-0.3, 30), (-0.05, 5)):
        theta = box.inverse(jnp.array([u]))
        np.testing.assert_allclose(theta, 0.01 * np.log1p(np.exp(-near)), rtol=0.05)
        np.testing.assert_allclose(box.forward(theta), u, atol=0.05 * 0.01)


def test_a_stated_box_is_as_soft_as_a_twentieth_of_it():
    box = Bounds.of((np.array([-2.0, 0.0, 1.0]), np.array([2.0, 100.0, INF])), np.ones((1, 3)))
    np.testing.assert_allclose(box.softness, [0.2, 5.0, 0.05], rtol=1e-12)


def test_an_only_bound_counts_up_to_a_thousand_standard_deviations():
    theta = np.array([[-1.0, -1.0], [1.0, 1.0]])
    for away, counts in ((1000, True), (1000.5, False)):
        box = Bounds.of(([-1.0 - away, -INF], [INF, 1.0 + away]), theta)
        np.testing.assert_array_equal(np.isfinite([box.low[0], box.high[1]]), counts)
    both = Bounds.of((np.full(2, -1e6), np.full(2, 1e6)), theta)
    assert np.isfinite([both.low, both.high]).all()


@pytest.mark.parametrize("row", [[-0.01, 0.5], [0.5, -1e-9], [1.01, 0.5], [0.5, 1.5]])
def test_parameters_beyond_either_bound_are_refused(row):
    theta = np.array([[0.0, 1.0], [1.0, 0.0], [0.2, 0.3], row])
    with pytest.raises(ValueError, match="1 of 4 rows, first in row 3"):
        Bounds.of((np.zeros(2), np.ones(2)), theta)
    assert Bounds.of((np.zeros(2), np.ones(2)), theta[:3]).contains(jnp.asarray(theta[0]))


def test_bounds_messages(unchecked):
    theta = np.array([[0.1, 0.2], [0.3, 1.2]])
    with pytest.raises(ValueError, match=r"each of shape \(2,\)"):
        Bounds.of((np.zeros(3), np.ones(3)), theta)
    with pytest.raises(ValueError, match="low < high"):
        Bounds.of((np.zeros(2), np.array([1.0, 0.0])), theta)
    for no_pair in (3.0, (np.zeros(2),), np.zeros((3, 2))):
        with pytest.raises(ValueError, match=r"must be \(low, high\) or None, got"):
            Bounds.of(no_pair, theta)
    with pytest.raises(ValueError, match="1 of 2 rows, first in row 1"):
        Bounds.of((np.zeros(2), np.ones(2)), theta)
    with pytest.raises(ValueError, match="one length"):
        Bounds(jnp.zeros(2), jnp.ones(1), jnp.ones(2))
    with pytest.raises(ValueError, match="softness must be positive and finite"):
        Bounds(jnp.zeros(2), jnp.ones(2), jnp.array([1.0, 0.0]))


def left_out_by_hand(u, x, ridge):
    """The error on each row of a ridge regression fitted to all others."""
    errors = []
    for i in range(len(u)):
        others = np.arange(len(u)) != i
        u_mean, x_mean = u[others].mean(0), x[others].mean(0)
        a, b = x[others] - x_mean, u[others] - u_mean
        slope = np.linalg.solve(a.T @ a + ridge * np.eye(x.shape[1]), a.T @ b)
        errors.append(u[i] - u_mean - (x[i] - x_mean) @ slope)
    return np.array(errors)


@pytest.mark.parametrize("n, k", [(30, 3), (12, 20)])
@pytest.mark.parametrize("ridge", [1.0, 40.0])
def test_the_spread_is_that_of_left_out_simulations(n, k, ridge, key, monkeypatch):
    """Also with more features than simulations; the floor is 1e-8."""
    rng = np.random.default_rng(0)
    x, mix = rng.normal(size=(n, k)), rng.normal(size=(k, 2))
    u = x @ mix + 0.3 * rng.normal(size=(n, 2))
    monkeypatch.setattr(linear, "RIDGES", np.array([ridge]))
    fit = LinearRegression.fit(u, x)
    errors = left_out_by_hand(u, x, ridge)
    covariance = errors.T @ errors / n + 1e-8 * np.eye(2)
    np.testing.assert_allclose(fit.scale @ fit.scale.T, covariance, rtol=1e-9)
    np.testing.assert_allclose(fit.spread(), np.sqrt(np.diag(covariance)), rtol=1e-9)
    a, b = x - x.mean(0), u - u.mean(0)
    slope = np.linalg.solve(a.T @ a + ridge * np.eye(k), a.T @ b).T
    np.testing.assert_allclose(fit.slope, slope, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(fit.intercept, u.mean(0) - slope @ x.mean(0), rtol=1e-9)


def test_the_ridge_is_the_one_that_predicts_left_out_simulations_best():
    """Features of pure noise, more than simulations: x is ignored, and the spread is u's own."""
    rng = np.random.default_rng(1)
    u, x = rng.normal(size=(60, 2)), rng.normal(size=(60, 200))
    fit = LinearRegression.fit(u, x)
    assert np.abs(fit.slope).max() < 0.01
    np.testing.assert_allclose(fit.spread(), u.std(0), rtol=0.03)  # left out: n / (n - 1)
    every = [
        np.linalg.slogdet(np.cov(left_out_by_hand(u, x, ridge).T, bias=True))[1]
        for ridge in (1.0, 1e3, 1e6)
    ]
    assert np.argmin(every) == 2


@pytest.mark.slow
def test_regression_whitens_what_is_left(key):
    """Residuals have mean 0, covariance I and no linear trend; the map is invertible."""
    keys = jr.split(key, 3)
    x, mix = jr.normal(keys[0], (500, 3)), jr.normal(keys[1], (2, 3))
    u = x @ mix.T + jr.normal(keys[2], (500, 2)) @ jnp.array([[0.3, 0.0], [0.2, 0.01]]).T
    fit = LinearRegression.fit(u, x)
    z = np.asarray(jax.vmap(fit.forward)(u, x))
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-10)
    # Errors on left-out rows exceed those on fitted ones by about 2 (k + 1) / n = 0.016.
    np.testing.assert_allclose(z.T @ z / 500, np.eye(2), atol=0.03)
    # The ridge shifts slopes by 1 / 500 of themselves; in z they are larger by 1 / 0.01.
    np.testing.assert_allclose(fit.slope, mix, atol=0.05)
    np.testing.assert_allclose(jax.vmap(fit.inverse)(jnp.asarray(z), x), u, atol=1e-12)
    jacobian = log_jacobian(lambda u: fit.forward(u, x[0]), u[0])
    np.testing.assert_allclose(fit.log_det(u[0]), jacobian, rtol=1e-12)


def test_a_chain_inverts_and_adds_up(key):
    """Bounds, scale and fit together: the log-determinant is that of the whole map."""
    keys = jr.split(key, 2)
    mean, std = jnp.arange(5.0), jnp.arange(1.0, 6.0)
    lower = jnp.tril(jr.normal(keys[0], (5, 5))) + 3 * jnp.eye(5)
    chain = Chain(
        (BOX, Standardizer(mean, std), LinearRegression(jr.normal(keys[1], (5, 2)), mean, lower))
    )
    theta, x = jnp.asarray(INSIDE), jnp.array([1.0, -2.0])
    z = chain.forward(theta, x)
    np.testing.assert_allclose(chain.inverse(z, x), theta, rtol=1e-10)
    jacobian = log_jacobian(lambda theta: chain.forward(theta, x), theta)
    np.testing.assert_allclose(chain.log_det(theta, x), jacobian, rtol=1e-12)
    with pytest.raises(ValueError, match="needs the observation"):
        chain.forward(theta)


@pytest.mark.parametrize("peaks", [0.0, 1.0, 3.0])
def test_bounds_bend_within_the_square_of_the_width_over_the_spread(peaks):
    """theta given x is x + 0.3 n, or has two peaks of width 0.3 at a distance of 2 `peaks`.

    The quartile of 1,000 differences is known to 5.7 %, hence the squared ratio to 11 %.
    """
    random = np.random.default_rng(2)
    x = random.uniform(-3, 3, (10_000, 1))
    sides = random.choice([-peaks, peaks], x.shape)
    theta = x + sides + 0.3 * random.normal(size=x.shape)
    bounds = Bounds.of((np.array([-10.0]), np.array([10.0])), theta)
    chain = Chain.fit(theta, (x - x.mean()) / x.std(), bounds)
    spread = np.hypot(0.3, peaks)
    # A quarter of all pairs is half of those of one peak: the median, as if of width w' > 0.3.
    width = 0.3 if not peaks else 0.3 * 0.6745 / 0.3186
    np.testing.assert_allclose(chain.bounds.softness, width**2 / spread, rtol=3 * 0.11)


def test_what_is_narrower_than_a_tenth_counts_as_a_tenth_and_nothing_as_wider():
    theta = np.repeat(np.arange(2_000.0)[:, None], 2, axis=1)
    x = np.arange(2_000.0)[:, None]
    close = narrowness(theta, x, np.array([1e5, 1e-5]))
    np.testing.assert_allclose(close, [0.1, 1.0])


@jax.jit
def slopes(low, high, softness, theta):
    """The derivatives of ln du/dtheta and of u."""
    box = lambda: Bounds(low, high, softness)
    return jax.grad(lambda t: box().log_det(t))(theta), jax.grad(lambda t: box().forward(t)[0])(
        theta
    )


@settings(max_examples=100, deadline=None)
@given(
    exponent=st.floats(-4.0, 0.0),
    place=st.floats(0.0, 1.0),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_the_bend_has_a_finite_derivative_everywhere(exponent, place, dtype):
    """At any float between the bounds, the floats beside them included, for any softness.

    Where nothing cancels it is the derivative of the formula in float64.
    """
    low, high, softness = (np.array([a], dtype) for a in (-1.0, 3.0, 4 * 10.0**exponent))
    first, last = np.nextafter(low, high), np.nextafter(high, low)
    for theta in (np.clip(low + dtype(place) * (high - low), first, last), first, last):
        assert np.isfinite(slopes(low, high, softness, theta)).all()
    theta, s = -1 + 4 * np.array([place]), softness.astype(float)
    if 1e-3 < place < 1 - 1e-3:
        a, b = (np.exp(-t) / -np.expm1(-t) for t in ((theta + 1) / s, (3 - theta) / s))
        exact = (-a * (1 + a) + b * (1 + b)) / s / (1 + a + b)
        got, _ = slopes(low.astype(float), high.astype(float), s, theta)
        # Half-way the two sides cancel: relative to each of them.
        np.testing.assert_allclose(got, exact, rtol=1e-9, atol=1e-12 * np.max((a + b) / s) + 1e-300)


@jax.jit
def way_back(low, high, theta):
    """The derivatives of the inverse at the u of theta, and of ln du/dtheta."""
    box = Bounds(low, high, jnp.asarray([1.0], theta.dtype))
    u = box.forward(theta)
    return jax.grad(lambda u: box.inverse(u)[0])(u), jax.grad(lambda t: box.log_det(t))(theta)


SUPPORTS = [(-np.inf, np.inf), (-1.0, np.inf), (-np.inf, 3.0), (-1.0, 3.0), (150.0, 250.0)]


@settings(max_examples=100, deadline=None)
@given(
    support=st.sampled_from(SUPPORTS),
    exponent=st.floats(-44.0, 3.0),
    upper=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_any_number_of_bounds_has_finite_derivatives_both_ways(support, exponent, upper, dtype):
    """At any distance from a bound that the float knows, and a thousand away from all."""
    low, high = (np.array([bound], dtype) for bound in support)
    start = next((bound for bound in (low, high) if np.isfinite(bound)), np.zeros(1, dtype))
    first, last = np.nextafter(low, high), np.nextafter(high, low)
    away = dtype(10.0**exponent) * (-1 if upper and np.isinf(low) else 1)
    theta = np.clip((high - away if upper and np.isfinite(high) else start + away), first, last)
    back, slope = way_back(low, high, theta)
    assert np.isfinite(back).all() and np.isfinite(slope).all()
