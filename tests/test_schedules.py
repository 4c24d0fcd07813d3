"""Schedules: inverses, defining identities, and a brute-force search for the levels."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import edm_tutorial as edm

SCHEDULES = {
    "linear": edm.Linear(),
    "ve": edm.VarianceExploding(),
    "vp": edm.VariancePreserving(),
    "vp_solved": edm.VariancePreserving.from_range(0.002, 80.0),
    "vp_no_min": edm.VariancePreserving(beta_d=12.0, beta_min=0.0),
    "vp_scaled_linear": edm.VarianceScaled(edm.Linear()),
    "vp_unscaled": edm.Unscaled(edm.VariancePreserving()),
}
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


@each_schedule
# Of float32's rounding, VP amplifies that of ln(1 + sigma^2), at most 14, times eps.
@pytest.mark.parametrize("dtype, rtol", [("float64", 1e-13), ("float32", 5e-6)])
def test_time_inverts_sigma(schedule, dtype, rtol):
    sigmas = jnp.asarray(np.geomspace(0.002, 1000.0, 40), dtype)
    times = jax.vmap(schedule.time)(sigmas)
    assert times.dtype == sigmas.dtype
    assert np.all(np.diff(times) > 0)
    back = jax.vmap(schedule.sigma)(times)
    assert back.dtype == sigmas.dtype
    np.testing.assert_allclose(back, sigmas, rtol=rtol)


@each_schedule
def test_starts_without_noise_and_unscaled(schedule):
    assert schedule.sigma(0) == 0  # an integer is welcome
    assert schedule.scale(0) == 1


@pytest.mark.parametrize("name", ["vp", "vp_solved", "vp_scaled_linear"])
def test_variance_preserving_scaling_keeps_unit_variance(name):
    schedule = SCHEDULES[name]
    t = jnp.linspace(0.1, 1.0, 10)
    s, sigma = jax.vmap(schedule.scale)(t), jax.vmap(schedule.sigma)(t)
    np.testing.assert_allclose(s**2 * (1 + sigma**2), 1, rtol=1e-12)


def test_unscaled_has_the_noise_of_what_it_wraps():
    vp, bare = SCHEDULES["vp"], SCHEDULES["vp_unscaled"]
    assert vp.scale(0.5) < 0.3
    assert bare.scale(0.5) == 1
    assert bare.sigma(0.5) == vp.sigma(0.5)


def test_clocks_by_hand():
    """sigma = t; sigma = sqrt(t); and at the end of VP ln(1 + sigma^2) = 10.05."""
    assert edm.Linear().sigma(3.5) == 3.5
    assert edm.VarianceExploding().sigma(6.25) == 2.5
    assert edm.VarianceExploding().time(80.0) == 6400
    sigma = float(edm.VariancePreserving().sigma(1.0))
    assert math.log1p(sigma**2) == pytest.approx(19.9 / 2 + 0.1, rel=1e-13)


def test_vp_keeps_its_digits_near_zero_in_float32():
    """sigma(t)^2 is beta_min t to first order; exp(.) - 1 would be wrong by 2 %."""
    t = jnp.asarray(1e-6, jnp.float32)
    sigma = edm.VariancePreserving().sigma(t)
    # next terms: beta_d t / (2 beta_min) = 1e-4, halved by the root
    assert float(sigma) == pytest.approx(math.sqrt(0.1e-6) * (1 + 0.5e-4), rel=1e-6)


def test_from_range_finds_the_published_parameters():
    """Those of Song et al. come back from the noise levels that they produce."""
    vp = edm.VariancePreserving()
    low, high = float(vp.sigma(1e-3)), float(vp.sigma(1.0))
    found = edm.VariancePreserving.from_range(low, high)
    assert found.beta_d == pytest.approx(19.9, rel=1e-10)
    assert found.beta_min == pytest.approx(0.1, rel=1e-10)


@pytest.mark.parametrize(
    "low, high, eps", [(0.002, 80.0, 1e-3), (0.02, 100.0, 1e-3), (0.01, 5.0, 1e-2)]
)
def test_from_range_meets_both_ends(low, high, eps):
    vp = edm.VariancePreserving.from_range(low, high, eps)
    assert float(vp.sigma(eps)) == pytest.approx(low, rel=1e-10)
    assert float(vp.sigma(1.0)) == pytest.approx(high, rel=1e-10)
    assert np.all(np.diff(jax.vmap(vp.sigma)(jnp.linspace(eps, 1.0, 200))) > 0)


def test_rounded_stops_at_the_nearest_level():
    levels = np.array([9.0, 4.0, 1.0, 0.25])
    schedule = edm.Rounded(edm.VarianceExploding(), levels)
    queries = np.concatenate([np.linspace(0.01, 12.0, 57), levels])
    nearest = [min(levels, key=lambda level: abs(level - q)) for q in queries]
    times = jax.vmap(schedule.time)(jnp.asarray(queries))
    np.testing.assert_allclose(times, np.square(nearest), rtol=1e-14)
    assert schedule.sigma(2.0) == math.sqrt(2)  # only `time` rounds
    assert edm.Rounded(edm.VarianceScaled(edm.Linear()), levels).scale(0.75) == 0.8


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0.0, 80.0), "need 0 < sigma_min < sigma_max, got 0.0 and 80.0"),
        ((-1.0, 80.0), "need 0 < sigma_min < sigma_max"),
        ((80.0, 0.002), "need 0 < sigma_min < sigma_max"),
        ((2.0, 2.0), "need 0 < sigma_min < sigma_max"),
        ((math.nan, 2.0), "need 0 < sigma_min < sigma_max"),
        ((1.0, math.inf), "need 0 < sigma_min < sigma_max"),
        ((0.002, 80.0, 0.0), "need 0 < eps < 1, got eps=0.0"),
        ((0.002, 80.0, 1.0), "need 0 < eps < 1, got eps=1.0"),
        ((0.002, 80.0, math.nan), "need 0 < eps < 1"),
        ((10.0, 10.1, 1e-3), r"no variance-preserving schedule has sigma\(0.001\)"),
    ],
)
def test_from_range_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        edm.VariancePreserving.from_range(*arguments)


@pytest.mark.parametrize(
    "betas", [(19.9, -10.0), (-0.2, 0.1), (math.nan, 0.1), (19.9, math.inf), (0.0, 0.0)]
)
def test_vp_refuses_betas_without_rising_noise(betas):
    with pytest.raises(ValueError, match=r"beta_min \+ beta_d.* must be positive and fin"):
        edm.VariancePreserving(*betas)


@pytest.mark.parametrize(
    "levels", [[], [[1.0, 2.0]], [1.0, math.nan], [math.inf, 1.0], [1.0, -1.0]]
)
def test_rounded_refuses_levels_it_cannot_round_to(unchecked, levels):
    with pytest.raises(ValueError, match="levels must be a 1-D array of noise levels"):
        edm.Rounded(edm.Linear(), np.array(levels))
