"""Noise-level grids: what is evenly spaced in each, and what is refused."""

import functools
import math

import jax
import numpy as np
import pytest

import edm_tutorial as edm

GRIDS = {
    "edm": edm.edm_sigmas,
    "ve": edm.ve_sigmas,
    "vp": edm.vp_sigmas,
    "iddpm": edm.iddpm_sigmas,
}
each_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())


def assert_evenly_spaced(values, rtol=1e-10):
    steps = np.diff(values)
    np.testing.assert_allclose(steps, steps[0], rtol=rtol)


@each_grid
@pytest.mark.parametrize("n", [1, 2, 3, 18, 256])
def test_positive_and_descending_from_one_start(grid, n):
    sigmas = np.asarray(grid(n))
    assert sigmas.shape == (n,) and sigmas.dtype == np.float64
    assert np.all(np.diff(sigmas) < 0) and sigmas[-1] > 0
    assert sigmas[0] == pytest.approx(float(grid(1)[0]), rel=1e-14)
    if n > 1:
        assert sigmas[-1] == pytest.approx(float(grid(2)[-1]), rel=1e-9)


@pytest.mark.parametrize("grid", [edm.edm_sigmas, edm.ve_sigmas])
def test_range_is_met(grid):
    sigmas = grid(11, sigma_min=0.03, sigma_max=7.0)
    np.testing.assert_allclose(sigmas[np.array([0, -1])], [7.0, 0.03], rtol=1e-14)


def test_published_ranges():
    """Table 1: 0.002 to 80; 0.02 to 100; t from 1 to 0.001; u_8 to u_(M-1)."""
    ends = {name: tuple(np.asarray(grid(2))) for name, grid in GRIDS.items()}
    assert ends["edm"] == pytest.approx((80.0, 0.002), rel=1e-14)
    assert ends["ve"] == pytest.approx((100.0, 0.02), rel=1e-14)
    vp = [math.sqrt(math.expm1(10.05)), math.sqrt(math.expm1(1e-4 + 9.95e-6))]
    assert ends["vp"] == pytest.approx(vp, rel=1e-13)
    table = np.asarray(edm.iddpm_table())
    assert ends["iddpm"] == (table[8], table[999])


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0, 50.0])
def test_edm_is_even_in_the_root(rho):
    assert_evenly_spaced(np.asarray(edm.edm_sigmas(30, rho=rho)) ** (1 / rho))


def test_ve_is_even_in_the_logarithm():
    assert_evenly_spaced(np.log(edm.ve_sigmas(30)))


def test_edm_becomes_ve_for_large_rho():
    """(a + r (b - a))^rho with a, b = sigma^(1/rho) tends to a geometric ramp."""
    limits = {"sigma_min": 0.02, "sigma_max": 100.0}
    log_ve = np.log(edm.ve_sigmas(9, **limits))
    gaps = [
        np.abs(np.log(edm.edm_sigmas(9, rho=rho, **limits)) - log_ve).max() for rho in (1e3, 2e3)
    ]
    assert gaps[0] < 0.02
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize("limits", [None, (0.002, 80.0), (0.02, 30.0)])
def test_vp_is_even_in_time(limits):
    """Also where the solved beta_min is negative, as for EDM's range."""
    if limits is None:
        schedule = edm.VariancePreserving()
    else:
        schedule = edm.VariancePreserving.from_range(*limits)
    sigmas = edm.vp_sigmas(20, 1e-3, schedule.beta_d, schedule.beta_min)
    times = jax.vmap(schedule.time)(sigmas)
    assert_evenly_spaced(times, rtol=1e-9)
    np.testing.assert_allclose(times[np.array([0, -1])], [1, 1e-3], rtol=1e-9)
    if limits is not None:
        np.testing.assert_allclose(sigmas[np.array([-1, 0])], limits, rtol=1e-9)


def test_iddpm_levels_by_an_independent_recursion():
    """1 + u_j^2 is 1 / abar_j, up to a factor, until a step would exceed 1 / C_1."""
    levels, c_1, c_2 = 50, 0.003, 0.012
    table = np.asarray(edm.iddpm_table(levels, c_1, c_2))
    j = np.arange(levels + 1)
    abar = np.sin(np.pi / 2 * j / (levels * (1 + c_2))) ** 2
    assert table.shape == (levels + 1,) and table[-1] == 0
    inside = slice(1, None)  # abar_0 = 0: only the first step is clipped
    np.testing.assert_allclose(1 + table[inside] ** 2, abar[-1] / abar[inside], rtol=1e-12)
    assert 1 + table[0] ** 2 == pytest.approx((1 + table[1] ** 2) / c_1, rel=1e-12)


def test_iddpm_picks_evenly_among_992_levels():
    table = list(np.asarray(edm.iddpm_table()))
    index = np.array([table.index(sigma) for sigma in np.asarray(edm.iddpm_sigmas(992))])
    np.testing.assert_array_equal(index, np.arange(8, 1000))
    index = np.array([table.index(sigma) for sigma in np.asarray(edm.iddpm_sigmas(100))])
    assert set(np.diff(index)) == {10, 11}  # 991 / 99 = 10.01


def test_iddpm_rounds_ties_to_even():
    """11 levels inside, 5 picked: 0, 2.5, 5, 7.5, 10, of which two are ties."""
    table = np.asarray(edm.iddpm_table(20))
    sigmas = edm.iddpm_sigmas(5, float(table[15]), float(table[5]), levels=20)
    np.testing.assert_array_equal(sigmas, table[5 + np.array([0, 2, 5, 8, 10])])


@each_grid
def test_float32_grids_are_float64_ones_rounded(grid, request):
    """They are computed on the host, whatever precision JAX has been given."""
    exact = np.asarray(grid(40))
    request.getfixturevalue("single_precision")
    rounded = np.asarray(grid(40))
    assert rounded.dtype == np.float32
    np.testing.assert_array_equal(rounded, exact.astype(np.float32))


def test_the_table_is_shared_and_safe():
    """Changing what one caller got changes nothing for the next."""
    before = np.array(edm.iddpm_table(30))
    mine = np.array(edm.iddpm_table(30))
    mine[:] = -1
    np.testing.assert_array_equal(edm.iddpm_table(30), before)


# What is refused


@each_grid
@pytest.mark.parametrize("n", [0, -3])
def test_no_levels(grid, n):
    with pytest.raises(ValueError, match=f"n must be at least 1, got n={n}"):
        grid(n)


@each_grid
@pytest.mark.parametrize("n", [2.0, "3", None])
def test_n_is_a_whole_number(unchecked, grid, n):
    with pytest.raises(TypeError, match="n must be a whole number, got "):
        grid(n)


@pytest.mark.parametrize("grid", [edm.edm_sigmas, edm.ve_sigmas, edm.iddpm_sigmas])
@pytest.mark.parametrize(
    "low, high",
    [(2.0, 1.0), (1.0, 1.0), (0.0, 1.0), (-1.0, 1.0), (math.nan, 1.0), (1.0, math.inf)],
)
def test_bad_range(grid, low, high):
    message = f"need 0 < sigma_min < sigma_max, got {low} and {high}"
    with pytest.raises(ValueError, match=message):
        grid(5, sigma_min=low, sigma_max=high)


@pytest.mark.parametrize("rho", [0.0, -7.0, math.nan, math.inf])
def test_bad_rho(rho):
    with pytest.raises(ValueError, match=f"rho must be positive and finite, got {rho}"):
        edm.edm_sigmas(5, rho=rho)


@pytest.mark.parametrize("eps", [0.0, -0.1, 1.0, math.nan])
def test_bad_eps(eps):
    with pytest.raises(ValueError, match=f"need 0 < eps < 1, got eps={eps}"):
        edm.vp_sigmas(5, eps=eps)


@pytest.mark.parametrize("betas", [(19.9, -0.1), (-0.2, 0.1), (math.nan, 0.1), (19.9, math.inf)])
def test_betas_without_rising_noise(betas):
    with pytest.raises(ValueError, match="must be positive at t = eps and rise"):
        edm.vp_sigmas(5, 1e-3, *betas)


def test_more_iddpm_levels_than_there_are():
    assert edm.iddpm_sigmas(992).shape == (992,)
    with pytest.raises(ValueError, match="iDDPM has 992 levels .* got n=993"):
        edm.iddpm_sigmas(993)


@pytest.mark.parametrize("make", [edm.iddpm_table, functools.partial(edm.iddpm_sigmas, 2)])
def test_iddpm_parameters(make):
    with pytest.raises(ValueError, match="levels must be at least 1, got levels=0"):
        make(levels=0)
    for bad in ({"c_1": 0.0}, {"c_1": 1.0}, {"c_2": -1.0}, {"c_2": math.nan}):
        with pytest.raises(ValueError, match="need c_1 and c_2 between 0 and 1"):
            make(**bad)


@each_grid
def test_unknown_arguments(grid):
    with pytest.raises(TypeError):
        grid(5, sigma=3.0)


def test_an_iddpm_bound_that_is_a_level_counts():
    """Also where its last digits were lost: in float32, or in another copy of the table."""
    table = np.asarray(edm.iddpm_table())
    for low in (table[-2], float(np.float32(table[-2])), table[-2] * (1 + 1e-11)):
        assert edm.iddpm_sigmas(5, low, 80.0)[-1] == table[-2]
    for high in (table[8], float(np.float32(table[8])), table[8] * (1 - 1e-11)):
        assert edm.iddpm_sigmas(5, 0.002, high)[0] == table[8]
