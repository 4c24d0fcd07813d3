"""The default network of a posterior, by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import edm_tutorial as edm
from edm_tutorial.networks.mlp import PosteriorMLP

D, K = 3, 4


def made(key):
    """With random numbers in all its arrays, also where it starts at zero."""
    make_key, fill_key = jr.split(key)
    network = PosteriorMLP(D, K, width=16, depth=2, dropout=0.5, key=make_key)
    arrays, rest = eqx.partition(network, eqx.is_inexact_array)
    leaves, tree = jax.tree.flatten(arrays)
    keys = jr.split(fill_key, len(leaves))
    filled = [0.4 * jr.normal(k, a.shape, a.dtype) for k, a in zip(keys, leaves, strict=True)]
    return eqx.combine(jax.tree.unflatten(tree, filled), rest)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_untrained_it_is_exactly_zero(key, dtype):
    network = PosteriorMLP(D, K, width=16, depth=2, dropout=0.5, key=key)
    z, x = jnp.arange(D, dtype=dtype), jnp.ones(K, dtype)
    for draw in (None, jr.key(1)):
        output = network(z, dtype(-0.3), x, key=draw)
        np.testing.assert_array_equal(output, np.zeros(D))
        assert output.dtype == dtype


@pytest.mark.parametrize("sigma", [0.003, 0.4, 15.0])
def test_without_a_correction_it_is_the_denoiser_of_a_gaussian(sigma, key):
    network = made(key)
    silent = jax.tree.map(jnp.zeros_like, network.correction.output)
    network = eqx.tree_at(lambda net: net.correction.output, network, silent)
    z, x = jnp.array([0.3, -1.0, 2.0]), jnp.array([1.0, 2.0, -1.0, 0.5])
    mean, log_std = network.moments(x, None)
    covariance = jnp.diag(jnp.exp(2 * log_std))
    exact = edm.GaussianMixture(jnp.ones(1), mean[None], covariance[None])
    denoiser = edm.Denoiser(network, edm.EDMPreconditioning(1.0))
    np.testing.assert_allclose(denoiser(z, sigma, x), exact.denoise(z, sigma), rtol=1e-9)


def test_the_correction_is_told_the_residual_in_widths(key):
    network = made(key)
    y, x, sigma = jnp.array([0.3, -1.0, 2.0]), jnp.array([1.0, 2.0, -1.0, 0.5]), 0.2
    mean, log_std = network.moments(x, None)
    silent = eqx.tree_at(lambda net: net.correction.output.weight, network, jnp.zeros((2 * D, 16)))
    silent = eqx.tree_at(lambda net: net.correction.output.bias, silent, jnp.zeros(2 * D))
    c_noise = jnp.log(jnp.array(sigma)) / 4
    z = y * np.sqrt(1 + sigma**2)
    residual = (z - mean) / np.hypot(np.exp(log_std), sigma)
    told = jnp.concatenate([y, residual]), c_noise, jnp.concatenate([x, log_std])
    found = network(y, c_noise, x) - silent(y, c_noise, x)
    np.testing.assert_allclose(found, network.correction(*told)[:D], rtol=1e-9)


def test_every_number_matters(key):
    network = made(key)
    z, c_noise, x = jnp.array([0.3, -1.0, 2.0]), jnp.array(-0.4), jnp.ones(K)
    by_z, by_noise, by_x = jax.jacobian(network, argnums=(0, 1, 2))(z, c_noise, x)
    assert np.all(np.abs(by_z) > 1e-6) and np.all(np.abs(by_x) > 1e-6)
    assert np.all(np.abs(by_noise) > 1e-6)
    gradient = eqx.filter_grad(lambda net: jnp.sum(net(z, c_noise, x)))(network)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("far", [1e2, 1e4, 1e6])
def test_an_observation_far_out_overflows_nothing(far, key):
    """Its widths grow like exp(x) otherwise; the gradient trains on whatever is in a batch."""
    network = made(key)
    squared = lambda net, z: jnp.sum(net(z, jnp.float32(0.2), jnp.full(K, far, "f")) ** 2)
    z = jnp.ones(D, "f")
    assert np.isfinite(squared(network, z)) and np.all(
        np.isfinite(jax.grad(squared, 1)(network, z))
    )
    gradient = jax.tree.leaves(eqx.filter_grad(squared)(network, z))
    assert all(np.all(np.isfinite(leaf)) for leaf in gradient)


def test_it_drops_units_only_where_a_key_is_given(key):
    network = made(key)
    z, c_noise, x = jnp.ones(D), jnp.array(0.1), jnp.ones(K)
    still = network(z, c_noise, x)
    np.testing.assert_array_equal(network(z, c_noise, x), still)
    assert np.any(network(z, c_noise, x, key=jr.key(1)) != still)
