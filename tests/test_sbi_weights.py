"""Importance weights of a Gaussian posterior for another Gaussian: all is known."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm
from test_sbi_posterior import X_O, gaussian, truth

EVIDENCE, N = 1.7, 4_000


def joint(mean, std):
    """ln of a Gaussian times e^1.7, of one theta, in JAX."""

    def log_joint(theta):
        z = (theta - mean) / std
        return EVIDENCE - jnp.sum(z**2 / 2 + jnp.log(std)) - np.log(2 * np.pi)

    return log_joint


def test_weights_turn_the_posterior_into_the_truth(key):
    """Draws of N(m, s^2) for N(m + s / 2, (0.8 s)^2), in two dimensions."""
    posterior = gaussian(0.5)
    mean, std = truth(0.5)
    theta = posterior.sample(key, X_O, N)
    found = posterior.reweigh(theta, X_O, joint(mean + std / 2, 0.8 * std))
    np.testing.assert_allclose(jnp.sum(found.weights), 1, rtol=1e-12)
    # E w^2 of the ratio of these normals, one dimension: v = 1 / (2 / 0.64 - 1).
    one = np.sqrt(1 / (2 / 0.64 - 1)) / 0.64 * np.exp(0.25 / (2 - 0.64))
    np.testing.assert_allclose(found.share, one**-2, rtol=0.1)  # 4,000 draws: 3 %
    # Its standard error is sqrt((1 / share - 1) / 4,000) = 0.013, the solver's bias below 0.01.
    np.testing.assert_allclose(found.log_evidence, EVIDENCE, atol=0.05)
    weighted = found.weights @ theta
    np.testing.assert_allclose((weighted - mean) / std, 0.5, atol=0.06)
    spread = np.sqrt(found.weights @ (theta - weighted[None]) ** 2)
    np.testing.assert_allclose(spread / std, 0.8, atol=0.05)


def test_an_exact_posterior_has_equal_weights_from_a_function_or_from_values(key):
    posterior = gaussian(0.5)
    mean, std = truth(0.5)
    theta = posterior.sample(key, X_O, 500)
    rows = EVIDENCE + norm.logpdf(np.asarray(theta), mean, std).sum(axis=1)
    found = posterior.reweigh(theta, X_O, rows)
    assert found.share > 0.999  # the solver's error varies by less than 0.03 nats
    np.testing.assert_allclose(found.log_evidence, EVIDENCE, atol=0.03)
    other = posterior.reweigh(theta, X_O, joint(mean, std))
    np.testing.assert_allclose(other.weights, found.weights, rtol=1e-6)
    in_numpy = lambda row: EVIDENCE + norm.logpdf(np.asarray(row), mean, std).sum()
    np.testing.assert_allclose(posterior.reweigh(theta, X_O, in_numpy).share, found.share)


def test_draws_where_the_joint_density_is_zero_have_no_weight(key):
    posterior = gaussian(0.5)
    theta = posterior.sample(key, X_O, 50)
    rows = np.where(np.arange(50) < 20, -np.inf, 0.0)
    found = posterior.reweigh(theta, X_O, rows)
    assert np.all(found.weights[:20] == 0) and np.all(found.weights[20:] > 0)


def branching(row):
    """As an author of plain Python writes it, for whom a row is numbers."""
    if row[0] < 0:
        return -np.inf
    return math.log(float(row[0])) - row[row > 0].sum()


def test_a_function_in_plain_python_is_called_row_by_row(key):
    posterior = gaussian(0.5)
    theta = posterior.sample(key, X_O, 50)
    found = posterior.reweigh(theta, X_O, branching)
    expected = posterior.reweigh(theta, X_O, np.array([*map(branching, np.asarray(theta))]))
    np.testing.assert_array_equal(found.weights, expected.weights)
    assert 0 < np.sum(found.weights == 0) < 50


@pytest.mark.usefixtures("single_precision")
@pytest.mark.parametrize("function", [np.sum, jnp.sum])
def test_draws_with_an_offset_reach_the_function_in_float64(key, function):
    """A Julian date: in float32 it is known to a quarter only, half a width."""
    date = np.array([2_459_000.5, 0.0])
    posterior = dataclasses.replace(gaussian(0.5), theta_offset=tuple(date.tolist()))
    theta = posterior.sample(key, X_O, 50)
    assert theta.dtype == np.float64
    log_joint = lambda row: -function((row - date) ** 2)
    found = posterior.reweigh(theta, X_O, log_joint)
    expected = posterior.reweigh(theta, X_O, np.array([*map(log_joint, theta)], float))
    np.testing.assert_array_equal(found.weights, expected.weights)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "rows", [np.full(5, -np.inf), np.array([0.0, 0, np.nan, 0, 0]), np.ones(4)]
)
def test_messages(rows, key):
    posterior = gaussian(0.5)
    theta = posterior.sample(key, X_O, 5)
    with pytest.raises(ValueError, match="log_joint must"):
        posterior.reweigh(theta, X_O, rows)
