"""Draws and log-densities of posteriors whose denoiser is exact, so that only sampling can err.

About 40 seconds on one core.
"""

import dataclasses
import json
import re
import zlib
from functools import partial
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.stats import norm

import edm_tutorial as edm
from edm_tutorial.networks import Embedded
from edm_tutorial.networks.mlp import PosteriorMLP
from edm_tutorial.sbi import flow, posterior as posterior_module
from edm_tutorial.sbi.early_stopping import History
from edm_tutorial.sbi.posterior import Posterior
from edm_tutorial.sbi.transforms.bounds import Bounds
from edm_tutorial.sbi.transforms.chain import Chain
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
    bounds = Bounds(jnp.array(low), jnp.array(high), jnp.ones(len(low)))
    network = Exact(jnp.eye(size) / 2, jnp.asarray(std))
    given = {"sigma_min": 2e-3, "sigma_max": 20.0} | kwargs
    denoiser = edm.Denoiser(network, PRECONDITIONING)
    return Posterior(denoiser, Chain((bounds, theta_scale)), x_scale, **given)


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
    sigma_min = {1.0: 0.02, 0.05: 0.007}[std]
    draws = np.asarray(gaussian(std, sigma_min=sigma_min).sample(key, X_O, N))
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


def test_log_prob_between_the_levels_of_a_fit():
    """Of a posterior twenty times narrower than the prior, which a fit ends at 0.0027.

    That, a nineteenth of the width, adds 0.3 % to the variance: 0.0015 nats times the squared
    distance in widths. The solver errs by as much (1.2 times as much, measured).
    """
    mean, spread = truth(0.05)
    away = np.array([[0.0, 0.0], [0.7, 0.7], [2.0, -2.0], [-3.0, 3.0], [3.0, 0.0]])
    posterior = gaussian(0.05, sigma_min=float(np.geomspace(1e-3, 0.02, 10)[3]))
    got = posterior.log_prob(jnp.asarray(mean + spread * away), X_O)
    exact = norm.logpdf(spread * away, 0, spread).sum(axis=1)
    allowed = 0.003 + (1 + 1.5) * 0.0015 * np.sum(away**2, axis=1)
    np.testing.assert_array_less(np.abs(got - exact), allowed)


def test_steps_solver_schedule_and_churn_are_those_asked_for(key):
    """One step is D at sigma_max, two of Euler are a product by hand; the others change draws."""
    posterior, (mean, spread) = gaussian(0.5, sigma_min=0.1), truth(0.5)
    draw = lambda **options: np.asarray(posterior.sample(jr.clone(key), X_O, 2000, **options))
    shrink = lambda sigma: 0.25 / (0.25 + sigma**2)
    euler = shrink(0.1) * (1 + (0.1 - 20.0) / 20.0 * (1 - shrink(20.0)))
    for options, gain in {
        "one": ({"steps": 1}, shrink(20.0)),
        "euler": ({"steps": 2, "solver": edm.Euler()}, euler),
    }.values():
        draws = draw(**options)
        np.testing.assert_allclose((draws.mean(0) - mean) / spread, 0, atol=4 / np.sqrt(2000))
        width = 20.0 * gain / 0.5
        np.testing.assert_allclose(draws.std(0) / spread, width, rtol=4 / np.sqrt(4000))
    heun = {"solver": edm.Heun(), "steps": 8}  # 2M is the same in every schedule
    for other in ({"churn": edm.Churn(10.0)}, {"schedule": edm.VariancePreserving()}):
        assert np.abs(draw(**heun, **other) - draw(**heun)).max() > 1e-4 * spread.max()


def test_without_noise_a_draw_is_the_mean(monkeypatch):
    """Noise starts around the mean, not around 0, which would be 0.03 widths away here."""
    zeros = lambda key, shape, dtype: jnp.zeros(shape, dtype)
    monkeypatch.setattr(jr, "normal", zeros)
    with jax.disable_jit():
        [draw] = gaussian(0.3, sigma_min=0.1).sample(jr.key(0), X_O, 1, steps=4)
    mean, spread = truth(0.3)
    # D(0) at 20 is off by (0.3 / 20)^2 of the mean, of which the flow leaves 0.3 / 20.
    np.testing.assert_allclose((draw - mean) / spread, 0, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"solver": edm.Euler()},
        {"schedule": edm.VariancePreserving(), "solver": edm.Heun()},
        {"churn": edm.Churn(2.0, s_noise=1.1, draw=lambda key, shape, dtype: jnp.full(shape, 0.5))},
        {},
    ],
    ids=lambda options: "-".join(options) or "none",
)
def test_a_draw_is_that_of_sample_with_the_same_options(options, monkeypatch):
    """From noise that is known, by way of z and back; DPM++(2M) unless asked otherwise."""
    posterior = gaussian(0.5, sigma_min=0.1)
    monkeypatch.setattr(jr, "normal", lambda key, shape, dtype: jnp.ones(shape, dtype))
    sigmas, x = edm.edm_sigmas(4, 0.1, 20.0), posterior.x_scale.forward(X_O)
    noise = 1 + posterior.denoiser(jnp.zeros(2), 20.0, x) / 20.0
    given = {"solver": edm.DPMSolverPP2M()} | options
    if "churn" in options:
        given["key"] = jr.key(1)  # which its draws do not look at
    with jax.disable_jit():
        z = edm.sample(posterior.denoiser, noise, sigmas, x, **given)
        [draw] = posterior.sample(jr.key(0), X_O, 1, steps=4, **options)
    by_hand = np.array([0.0, 0.1]) + np.array([0.7, 0.8]) * z
    np.testing.assert_allclose(draw, by_hand, rtol=1e-12)


def test_many_draws_are_made_in_parts(monkeypatch, key):
    """Two at a time, and one that is left over: the same as at once."""
    posterior = gaussian(0.5, sigma_min=0.1)
    with jax.disable_jit():
        at_once = posterior.sample(key, X_O, 5, steps=2)
        monkeypatch.setattr(flow, "rows_at_once", lambda: 2)
        in_parts = posterior.sample(jr.clone(key), X_O, 5, steps=2)
    np.testing.assert_allclose(in_parts, at_once, rtol=1e-12)
    assert len(np.unique(at_once, axis=0)) == 5


def test_log_densities_are_evaluated_in_parts(monkeypatch):
    """Three of two parameters at a time, of seven: the same as one by one."""
    posterior, theta = gaussian(0.5, sigma_min=0.1), jr.normal(jr.key(1), (7, 2))
    one_by_one = jnp.stack([posterior.log_prob(row, X_O, steps=3) for row in theta])
    monkeypatch.setattr(flow, "rows_at_once", lambda: 6)
    in_parts = posterior.log_prob(theta, X_O, steps=3)
    np.testing.assert_allclose(in_parts, one_by_one, rtol=1e-12)


def test_steps_of_a_log_density_are_those_asked_for():
    """And half of those for sampling unless asked; three by hand, in the coordinates z."""
    posterior, theta = gaussian(0.5, sigma_min=0.1), jnp.array([0.3, -0.5])
    z, x = (theta - jnp.array([0.0, 0.1])) / jnp.array([0.7, 0.8]), posterior.x_scale.forward(X_O)
    by_hand = edm.log_likelihood(
        posterior.denoiser, z, x, sigmas=edm.edm_sigmas(3, 0.1, 20.0), solver=diffrax.Bosh3()
    )
    got = posterior.log_prob(theta, X_O, steps=3)
    np.testing.assert_allclose(got, by_hand.log_prob - np.log(0.7 * 0.8), rtol=1e-12)
    assert posterior.steps == round(5.5 * np.log(200.0)) == 29
    np.testing.assert_array_equal(
        posterior.log_prob(theta, X_O), posterior.log_prob(theta, X_O, steps=14)
    )


def test_a_mode_is_sought_on_as_few_levels_as_a_log_density_has(monkeypatch):
    """Of the 29 on which candidates are drawn every second one: the mode costs half of it."""
    posterior, levels = gaussian(0.5, sigma_min=0.1), {"drawn": [], "judged": []}

    def draw(posterior, key, x_o, n, *, sigmas):
        levels["drawn"].append(sigmas)
        return jnp.zeros((n, 2)).at[5].set(jnp.array([0.3, -0.4]))

    def log_prob(posterior, theta, x_o, sigmas):
        levels["judged"].append(sigmas)
        return -jnp.sum((theta - jnp.broadcast_to(jnp.array([0.3, -0.4]), theta.shape)) ** 2, -1)

    monkeypatch.setattr(posterior_module, "_draw", draw)
    monkeypatch.setattr(posterior_module, "_log_prob", log_prob)
    monkeypatch.setattr(posterior_module, "_minimum", lambda f, z: (z - 1, f(z)))
    with jax.disable_jit():
        found = posterior.mode(X_O)
    np.testing.assert_allclose(found, [0.3, -0.4], rtol=1e-12)  # the best candidate
    sigmas = edm.edm_sigmas(29, 0.1, 20.0)
    np.testing.assert_array_equal(levels["drawn"], [sigmas])
    np.testing.assert_array_equal(levels["judged"], [sigmas[::2]] * 2)


BOX = {"low": (-1.0, -2.0), "high": (1.0, 0.5)}


@pytest.mark.slow
def test_bounded_draws_stay_inside_and_mass_is_one(key):
    posterior = gaussian(0.6, **BOX)
    draws = posterior.sample(key, X_O, 4000)
    assert jnp.all(jax.vmap(posterior.transform.bounds.contains)(draws))
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


@pytest.mark.usefixtures("single_precision")
def test_one_row_too_far_away_for_a_float_leaves_the_others_as_they_are():
    posterior, (mean, std) = gaussian(jnp.float32(0.3)), truth(0.3)
    rows = np.float32(np.stack([mean, mean + 1e30, mean - 1e18, mean + 1e6]))
    found = np.asarray(posterior.log_prob(rows, np.float32(X_O)))
    np.testing.assert_array_equal(found[1:3], -np.inf)
    # The other two are those of the Gaussian; 0.2 %: sigma_min and the solver.
    np.testing.assert_allclose(found[0], norm.logpdf(0, 0, std).sum(), atol=0.03)
    np.testing.assert_allclose(found[3], -np.sum((1e6 / std) ** 2) / 2, rtol=2e-3)


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
    keys = jr.split(key, 3)
    network = PosteriorMLP(2, 2, width=8, depth=2, dropout=0.25, key=keys[0])
    noise = jr.normal(keys[1], network.correction.output.weight.shape)
    network = eqx.tree_at(lambda net: net.correction.output.weight, network, noise / 9)
    maps = gaussian(0.5, **BOX)
    fit = LinearRegression(jr.normal(keys[2], (2, 2)), jnp.ones(2), 2 * jnp.eye(2))
    chain = Chain((*maps.transform.steps, fit))
    history = History((5, 10), (1.0, 0.5), (3.0, 0.1 + 0.2), 4.0, 5.0)
    denoiser = edm.Denoiser(network, PRECONDITIONING)
    return Posterior(denoiser, chain, maps.x_scale, 0.01, 15.0, history, (0.25, 1e6), (3.0, 0.5))


def test_history_levels_and_offsets_are_no_leaves(key):
    """A map over a posterior leaves them alone."""
    posterior = learned(key)
    less = {"history": History(), "theta_offset": (), "x_offset": ()}
    leaves = jax.tree.leaves(posterior)
    assert len(jax.tree.leaves(dataclasses.replace(posterior, **less))) == len(leaves)
    assert not any(leaf is posterior.sigma_min for leaf in leaves)


@pytest.mark.slow
def test_saved_and_loaded_gives_the_same_bits(key, tmp_path):
    fit_key, key = jr.split(key)
    posterior = learned(fit_key)
    posterior.save(tmp_path / "posterior")
    again = Posterior.load(tmp_path / "posterior")
    assert again.history == posterior.history
    assert (again.sigma_min, again.sigma_max, again.steps) == (0.01, 15.0, 40)
    assert eqx.tree_equal(again, posterior)
    expected = posterior.sample(key, X_O, 3)
    np.testing.assert_array_equal(again.sample(jr.clone(key), X_O, 3), expected)


def test_a_file_that_is_not_whole_is_refused_by_name(key, tmp_path):
    """Cut off, one byte flipped, of another version, or of another kind."""
    path = tmp_path / "posterior"
    learned(key).save(path)
    whole = path.read_bytes()
    line, _, body = whole.partition(b"\n")
    flipped = bytearray(whole)
    flipped[-9] ^= 1
    newer = json.dumps(json.loads(line) | {"version": 99}).encode() + b"\n" + body
    for content, told in {
        whole[:-100]: "is damaged",
        bytes(flipped): "is damaged",
        whole[:50]: "is not a posterior",
        b"": "is not a posterior",
        b"\x80\x04\x95 not a posterior": "is not a posterior",
        b'{"kind": "another"}\n': "is not a posterior",
        newer: "version 99; this package reads",
    }.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{re.escape(str(path))} {told}|{told}"):
            Posterior.load(path)


def test_one_bit_of_the_first_line_turned_is_noticed(key, tmp_path):
    """Whichever: of names, of numbers that say how to sample, of the checksum, and its end."""
    path = tmp_path / "posterior"
    learned(key).save(path)
    whole = path.read_bytes()
    for place in range(whole.index(b"\n") + 1):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 7
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            Posterior.load(path)


def before(path, **changed):
    """A file as the version before wrote it, its checksum of the numbers only."""
    line, _, body = path.read_bytes().partition(b"\n")
    header = json.loads(line)
    header |= {"version": header["version"] - 1, "checksum": zlib.crc32(body)} | changed
    path.write_bytes(json.dumps(header).encode() + b"\n" + body)


def test_a_file_of_the_version_before_is_read(key, tmp_path):
    posterior = learned(key)
    posterior.save(tmp_path / "posterior")
    before(tmp_path / "posterior")
    again = Posterior.load(tmp_path / "posterior")
    assert again.history == posterior.history and eqx.tree_equal(again, posterior)


@pytest.mark.parametrize(
    "damage",
    [
        {"size": "two"},
        {"shape": 2},
        {"network": {"width": 8}},
        {"network": [8]},
        {"sigmas": [0.01]},
        {"sigmas": [15.0, 0.01]},
        {"sigmas": ["low", 1.0]},
        {"history": {"stop": []}},
        {"offsets": 3},
        {"density": [1]},
    ],
)
def test_a_first_line_without_sense_is_refused_by_name(damage, key, tmp_path, unchecked):
    path = tmp_path / "posterior"
    learned(key).save(path)
    before(path, **damage)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} is damaged: its first line"):
        Posterior.load(path)


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


def test_an_embedding_beside_a_network_of_your_own_is_loaded(key, tmp_path):
    """It turns x round, so that draws without it would be those at another observation."""
    plain = gaussian(0.4, sigma_min=0.1)
    turn = lambda x: x[::-1]
    network = Embedded(plain.denoiser.network, turn)
    posterior = dataclasses.replace(plain, denoiser=edm.Denoiser(network, PRECONDITIONING))
    posterior.save(tmp_path / "both")
    empty = Exact(jnp.zeros((2, 2)), jnp.array(0.0))
    again = Posterior.load(tmp_path / "both", network=empty, embedding=turn)
    expected = posterior.sample(key, X_O, 3, steps=3)
    np.testing.assert_array_equal(again.sample(jr.clone(key), X_O, 3, steps=3), expected)
    assert np.all(expected != plain.sample(jr.clone(key), X_O, 3, steps=3))


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
    with pytest.raises(ValueError, match=r"shape \(2,\) or one a row, \(n, 2\), got \(2, 5, 2\)"):
        posterior.log_prob(jnp.zeros((2, 5, 2)), X_O)
    with pytest.raises(
        TypeError, match=r"churn must be one, such as Churn\(s_churn=40\.0\), got 3"
    ):
        posterior.sample(key, X_O, 3, churn=3.0)
    for count in (1.5, 1e3, "3", True):
        with pytest.raises(TypeError, match="n must be a whole number"):
            posterior.sample(key, X_O, count)


def test_numbers_and_arrays_of_all_kinds_are_taken(key, unchecked):
    """NumPy's integers, lists, and many points at once."""
    posterior = gaussian(0.4, sigma_min=0.1)
    expected = posterior.sample(key, X_O, 5)
    for n in (np.int64(5), jnp.asarray(5)):
        np.testing.assert_array_equal(posterior.sample(jr.clone(key), X_O.tolist(), n), expected)
    one = [posterior.log_prob(list(map(float, theta)), X_O) for theta in expected]
    np.testing.assert_allclose(posterior.log_prob(expected, X_O), one, rtol=1e-10)


@pytest.mark.parametrize("schedule", [edm.VariancePreserving(), edm.VarianceExploding()])
@pytest.mark.slow
def test_the_same_posterior_in_other_schedules(schedule, key):
    mean, spread = truth(0.5)
    posterior = gaussian(0.5, sigma_min=0.02)
    draws = np.asarray(posterior.sample(key, X_O, 4000, schedule=schedule, steps=60))
    np.testing.assert_allclose((draws.mean(0) - mean) / spread, 0, atol=4 / np.sqrt(4000))
    np.testing.assert_allclose(draws.std(0) / spread, 1, atol=0.06)  # 4 standard errors: 4.5 %


@pytest.mark.slow
def test_the_mode_of_a_gaussian_is_its_mean():
    """To a hundredth of a width: the density there is flat to the square of that."""
    mean, spread = truth(0.3)
    found = eqx.filter_jit(gaussian(0.3).mode)(X_O)
    np.testing.assert_allclose((found - mean) / spread, 0, atol=0.01)


def test_a_minimum_is_found_from_a_hundred_widths_away():
    """Of a curved valley, and of a bowl a hundred times wider one way than the other."""
    valley = lambda z: (1 - z[0]) ** 2 + 5 * (z[1] - z[0] ** 2) ** 2
    bowl = lambda z: jnp.sum((z / jnp.array([1.0, 100.0])) ** 2) - 3.0
    for f, start, least in ((valley, [-1.5, 2.0], [1.0, 1.0]), (bowl, [5.0, 100.0], [0.0, 0.0])):
        found, value = jax.jit(partial(posterior_module._minimum, f))(jnp.array(start))
        np.testing.assert_allclose(value, f(found), rtol=1e-12)
        np.testing.assert_allclose(found[0], least[0], atol=1e-3)
        np.testing.assert_allclose(value, f(jnp.array(least)), atol=1e-3)


@pytest.mark.slow
def test_fits_of_the_same_shapes_share_a_compilation(monkeypatch):
    """What is not computed with, history, offsets, noise levels, compiles nothing again."""
    posterior, traced = gaussian(0.5, sigma_min=0.1), []
    for name in ("draws", "log_densities"):
        once = getattr(posterior_module, name)
        count = lambda *args, once=once, **how: traced.append(once) or once(*args, **how)
        monkeypatch.setattr(posterior_module, name, count)
    others = [
        dataclasses.replace(posterior, history=History((1,), (2.0,), (3.0,))),
        dataclasses.replace(posterior, sigma_min=0.0995),
        dataclasses.replace(posterior, theta_offset=(0.0, 0.0), x_offset=(0.0,) * len(X_O)),
    ]
    use = lambda p: (p.sample(jr.key(0), X_O, 3), p.log_prob(np.zeros((3, 2)), X_O), p.mode(X_O))
    use(posterior)
    before = len(traced)
    assert before >= 3
    for other in others:
        assert other.steps == posterior.steps
        use(other)
    assert len(traced) == before


@pytest.mark.slow
@pytest.mark.parametrize("std", [1.0, 0.02])
def test_the_gradient_of_log_prob_is_that_of_the_gaussian(std):
    """Also 1,000 widths away, and fifty times narrower than the box, where it once was NaN."""
    posterior, (mean, spread) = gaussian(std, low=(-50.0, -50.0), high=(60.0, 50.0)), truth(std)
    slope = jax.jit(jax.grad(lambda theta: posterior.log_prob(theta, X_O)))
    for away in (0.5, 3.0, 30.0):
        theta = mean + away * spread * np.array([1.0, -0.5])
        exact = -(theta - mean) / spread**2
        # sigma_min adds (0.002 / 0.02)^2 = 1 % to the variance; the solver errs by as much.
        np.testing.assert_allclose(slope(jnp.asarray(theta)), exact, rtol=0.03)
    far = jnp.asarray(mean + 1000 * spread * np.array([0.04, -0.04]) / std)
    assert np.isfinite(slope(far)).all()


def test_an_offset_that_float32_cannot_hold_is_added_in_float64(key):
    """A Julian date: draws differ by less than float32 could tell apart."""
    plain = gaussian(0.4, sigma_min=0.1)
    shift = (2_459_000.5, 0.0)
    posterior = dataclasses.replace(plain, theta_offset=shift, x_offset=(1e7, 0.0))
    x_o = np.asarray(X_O) + np.array([1e7, 0.0])
    draws = posterior.sample(key, x_o, 5)
    assert draws.dtype == np.float64
    expected = np.asarray(plain.sample(jr.clone(key), X_O, 5)) + shift
    np.testing.assert_allclose(draws, expected, rtol=1e-14)
    np.testing.assert_allclose(
        posterior.log_prob(draws, x_o), plain.log_prob(draws - shift, X_O), rtol=1e-9
    )
    with pytest.raises(ValueError, match="outside of jit"):
        jax.jit(lambda x: posterior.sample(jr.clone(key), x, 5))(x_o)


@pytest.mark.parametrize("theta", [[np.nan, 0.0], [[0.0, 0.0], [0.0, np.nan]]])
def test_parameters_that_are_nan_are_refused_and_infinite_ones_have_no_density(theta):
    with pytest.raises(ValueError, match="theta must not be NaN"):
        gaussian(0.5).log_prob(theta, X_O)
    assert gaussian(0.5).log_prob([np.inf, 0.0], X_O) == -np.inf
