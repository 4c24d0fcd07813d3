"""Draws and log-densities of posteriors whose denoiser is exact, so that only sampling can err.

About 40 seconds on one core.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.stats import norm

import edm_tutorial as edm
from edm_tutorial.sbi.network import PosteriorMLP
from edm_tutorial.sbi.posterior import History, Posterior
from edm_tutorial.sbi.transforms.bounds import Support
from edm_tutorial.sbi.transforms.chain import Coordinates
from edm_tutorial.sbi.transforms.linear import LinearRegression
from edm_tutorial.sbi.transforms.standardize import Standardizer

PRECONDITIONING = edm.EDMPreconditioning(1.0)
N = 20_000
INF = jnp.inf


class Exact(eqx.Module):
    """The network whose denoiser is that of z ~ N(slope x, std^2): Eq. 7 solved for F."""

    slope: Any
    std: Any

    def __call__(self, z, c_noise, x, *, key=None):
        sigma = jnp.exp(4 * c_noise)
        c = PRECONDITIONING(sigma)
        noisy, mean = z / c.c_in, self.slope @ x
        denoised = (self.std**2 * noisy + sigma**2 * mean) / (self.std**2 + sigma**2)
        return (denoised - c.c_skip * noisy) / c.c_out


def gaussian(std, low=(-INF, -INF), high=(INF, INF), **kwargs):
    """z given x is N(x_scaled / 2, std^2); scales with distinct statistics for theta and x."""
    size = len(low)
    count = jnp.arange(float(size))
    theta_scale = Standardizer(count / 10, 0.7 + count / 10)
    x_scale = Standardizer(2 + count, 3 + count)
    maps = Coordinates(
        Support(jnp.array(low), jnp.array(high), jnp.ones(len(low))), theta_scale, x_scale, None
    )
    network = Exact(jnp.eye(size) / 2, jnp.asarray(std))
    given = {"sigma_min": 2e-3, "sigma_max": 20.0, "steps": 48} | kwargs
    return Posterior(edm.Denoiser(network, PRECONDITIONING), maps, **given)


X_O = jnp.array([5.0, -1.0])


def truth(std):
    """Mean and spread of theta at X_O in the unbounded case, from the definitions above."""
    z = (np.array([5.0, -1.0]) - np.array([2.0, 3.0])) / np.array([3.0, 4.0]) / 2
    scale = np.array([0.7, 0.8])
    return np.array([0.0, 0.1]) + scale * z, scale * std


@pytest.mark.parametrize("std", [1.0, 0.05])
@pytest.mark.slow
def test_draws_have_the_mean_spread_and_coverage_of_the_truth(std, key):
    """Also where the posterior is 20 times narrower than the prior."""
    steps = {1.0: {"sigma_min": 0.02, "steps": 38}, 0.05: {"sigma_min": 0.007, "steps": 44}}[std]
    draws = np.asarray(gaussian(std, **steps).sample(key, X_O, N))
    mean, spread = truth(std)
    np.testing.assert_allclose((draws.mean(0) - mean) / spread, 0, atol=4 / np.sqrt(N) + 1e-3)
    # The last step loses (sigma_min / std)^2 / 2, up to 1 %; 4 standard errors are 2 %.
    np.testing.assert_allclose(draws.std(0) / spread, 1, atol=0.03)
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    cover = norm.cdf((high - mean) / spread) - norm.cdf((low - mean) / spread)
    assert np.all((0.88 < cover) & (cover < 0.92))


@pytest.mark.slow
def test_other_solvers_and_churn_agree(key):
    mean, spread = truth(0.3)
    for options in ({"solver": edm.Heun()}, {"churn": edm.Churn(10.0), "steps": 96}):
        draws = np.asarray(gaussian(0.3).sample(jr.clone(key), X_O, 4000, **options))
        np.testing.assert_allclose((draws.mean(0) - mean) / spread, 0, atol=4 / np.sqrt(4000))
        # Heun's error at 48 steps is 1 %, and 4 standard errors are 4.5 %.
        np.testing.assert_allclose(draws.std(0) / spread, 1, atol=0.06)


@pytest.mark.parametrize("std", [1.0, 0.05])
def test_log_prob_is_that_of_the_gaussian(std):
    posterior, (mean, spread) = gaussian(std), truth(std)
    theta = jnp.asarray(mean + spread * np.array([[0.0, 0.0], [1.0, -2.0], [-3.0, 0.5]]))
    got = jax.vmap(posterior.log_prob, in_axes=(0, None))(theta, X_O)
    expected = norm.logpdf(theta, mean, spread).sum(axis=1)
    # sigma_min adds (0.002 / 0.05)^2 = 0.0016 to the variance, 0.0016 * 3^2 / 2 nats at 3 widths;
    # the rest is the solver's error.
    np.testing.assert_allclose(got, expected, atol=0.03)
    got = jax.vmap(lambda t: posterior.log_prob(t, X_O, steps=48))(theta)
    np.testing.assert_allclose(got, expected, atol=0.03 / 2**3 + 0.008)  # of third order


BOX = {"low": (-1.0, -2.0), "high": (1.0, 0.5)}


@pytest.mark.slow
def test_bounded_draws_stay_inside_and_mass_is_one(key):
    posterior = gaussian(0.6, **BOX)
    draws = posterior.sample(key, X_O, 4000)
    assert jnp.all(jax.vmap(posterior.coordinates.support.contains)(draws))
    n = 40
    sides = [low + (high - low) * (np.arange(n) + 0.5) / n for low, high in [(-1, 1), (-2, 0.5)]]
    grid = np.stack(np.meshgrid(*sides), axis=-1).reshape(-1, 2)
    log_prob = jax.vmap(posterior.log_prob, in_axes=(0, None))
    density = np.exp(log_prob(jnp.asarray(grid), X_O))
    cell = 2.0 * 2.5 / n**2
    # The midpoint rule at 1/40 of the box, on a density that vanishes at the bounds.
    np.testing.assert_allclose(density.sum() * cell, 1, atol=0.01)
    inside = np.mean(np.all(np.asarray(draws) < [0.3, 0.0], axis=1))
    mass = density[np.all(grid < [0.3, 0.0], axis=1)].sum() * cell
    assert abs(inside - mass) < 4 * np.sqrt(inside * (1 - inside) / 4000) + 0.02  # half a cell


def test_log_prob_outside_and_at_the_bounds():
    posterior = gaussian(0.6, **BOX)
    log_prob = jax.vmap(posterior.log_prob, in_axes=(0, None))
    outside = jnp.array([[1.0001, 0.0], [0.0, 0.6], [-5.0, 0.0], [jnp.nan, 0.0]])
    np.testing.assert_array_equal(log_prob(outside, X_O), -np.inf)
    assert not np.isnan(log_prob(jnp.array([[-1.0, 0.0], [0.0, 0.5], [1.0, -2.0]]), X_O)).any()
    half = gaussian(0.6, low=(0.0, -INF), high=(INF, 1.0))
    outside = jnp.array([[-1.0, 0.0], [1.0, 1.1], [-1.0, 4.0]])
    np.testing.assert_array_equal(jax.vmap(half.log_prob, in_axes=(0, None))(outside, X_O), -np.inf)


@pytest.mark.slow
def test_batched_equals_single(key):
    posterior = gaussian(0.4, **BOX)
    keys, x_os = jr.split(key, 3), jnp.stack([X_O, X_O + 1, 3 * X_O])
    again = jr.clone(keys)
    batched = jax.vmap(lambda key, x_o: posterior.sample(key, x_o, 5))(keys, x_os)
    theta = batched[:, 0]
    log_probs = jax.vmap(posterior.log_prob)(theta, x_os)
    for i in range(3):
        single = posterior.sample(again[i], x_os[i], 5)
        np.testing.assert_allclose(batched[i], single, rtol=1e-12)
        np.testing.assert_allclose(log_probs[i], posterior.log_prob(theta[i], x_os[i]), rtol=1e-10)


def learned(key):
    """A posterior with the default network and a linear fit, at random weights."""
    keys = jr.split(key, 4)
    network = PosteriorMLP(2, 2, width=8, depth=2, dropout=0.25, key=keys[0])
    noise = jr.normal(keys[1], network.joint.output.weight.shape)
    network = eqx.tree_at(lambda net: net.joint.output.weight, network, noise / 9)
    maps = gaussian(0.5, **BOX).coordinates
    fit = LinearRegression(jr.normal(keys[2], (2, 2)), jnp.ones(2), 2 * jnp.eye(2))
    maps = Coordinates(maps.support, maps.theta_scale, maps.x_scale, fit)
    history = History((5, 10), (1.0, 0.5), (3.0, 0.1 + 0.2))
    return Posterior(edm.Denoiser(network, PRECONDITIONING), maps, 0.01, 15.0, 9, history)


@pytest.mark.slow
def test_saved_and_loaded_gives_the_same_bits(key, tmp_path):
    fit_key, key = jr.split(key)
    posterior = learned(fit_key)
    posterior.save(tmp_path / "posterior")
    again = Posterior.load(tmp_path / "posterior")
    assert again.history == posterior.history
    assert (again.sigma_min, again.sigma_max, again.steps) == (0.01, 15.0, 9)
    assert eqx.tree_equal(eqx.filter(again, eqx.is_array), eqx.filter(posterior, eqx.is_array))
    expected = posterior.sample(key, X_O, 3)
    np.testing.assert_array_equal(again.sample(jr.clone(key), X_O, 3), expected)


def test_a_network_of_your_own_is_saved_with_its_structure(key, tmp_path):
    posterior = gaussian(0.4)
    posterior.save(tmp_path / "own")
    with pytest.raises(ValueError, match="pass network="):
        Posterior.load(tmp_path / "own")
    with pytest.raises(ValueError, match="with no embedding"):
        Posterior.load(tmp_path / "own", embedding=lambda x: x)
    with pytest.raises(ValueError, match=r"of shape \(2, 2\)"):
        Posterior.load(tmp_path / "own", network=Exact(jnp.eye(3), jnp.array(0.0)))
    again = Posterior.load(tmp_path / "own", network=Exact(jnp.zeros((2, 2)), jnp.array(0.0)))
    expected = posterior.sample(key, X_O, 3)
    np.testing.assert_array_equal(again.sample(jr.clone(key), X_O, 3), expected)


def test_messages(key, unchecked):
    posterior = gaussian(0.4)
    with pytest.raises(ValueError, match=r"one observation of shape \(2,\), got \(3,\)"):
        posterior.sample(key, jnp.zeros(3), 1)
    with pytest.raises(ValueError, match=r"got \(4, 2\)"):
        posterior.log_prob(jnp.zeros(2), jnp.zeros((4, 2)))
    with pytest.raises(ValueError, match="x_o must be finite"):
        posterior.sample(key, jnp.array([0.0, jnp.nan]), 1)
    with pytest.raises(ValueError, match="n must be at least 1"):
        posterior.sample(key, X_O, 0)
    with pytest.raises(ValueError, match="shape"):
        posterior.log_prob(jnp.zeros(3), X_O)
