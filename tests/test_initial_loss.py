"""An untrained network scores 1 exactly when `sigma_data` is right."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import edm_tutorial as edm
from edm_tutorial.networks import MLP

SIGMAS = np.array([0.002, 0.05, 0.5, 3.0, 80.0])


def zero(z, c_noise, cond=None, *, key=None):
    return jnp.zeros_like(z)


@pytest.mark.parametrize("sigma_data", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("mean_square", [0.25, 1.7])
def test_initial_loss_is_its_closed_form(sigma_data, mean_square):
    """lambda [(c_skip - 1)^2 E x^2 + c_skip^2 sigma^2], with Table 1 put in by hand."""
    preconditioning = edm.EDMPreconditioning(sigma_data)
    for sigma in SIGMAS:
        total = sigma**2 + sigma_data**2
        exact = (sigma**2 * mean_square + sigma_data**4) / (total * sigma_data**2)
        got = edm.initial_loss(preconditioning, sigma, mean_square)
        np.testing.assert_allclose(got, exact, rtol=1e-12)


def test_initial_loss_is_one_everywhere_and_only_for_the_right_sigma_data():
    right = edm.EDMPreconditioning(0.7)
    for sigma in SIGMAS:
        np.testing.assert_allclose(edm.initial_loss(right, sigma, 0.49), 1, rtol=1e-12)
    # limits: 1 as sigma -> 0, E x^2 / sigma_data^2 as sigma -> infinity
    np.testing.assert_allclose(edm.initial_loss(right, 1e-6, 4 * 0.49), 1, rtol=1e-11)
    np.testing.assert_allclose(edm.initial_loss(right, 1e6, 4 * 0.49), 4, rtol=1e-11)


def test_initial_loss_of_the_other_columns_does_not_see_the_data():
    """c_skip = 1 leaves the noise alone, whose weighted square is 1."""
    for other in (
        edm.VEPreconditioning(),
        edm.VPPreconditioning(),
        edm.IDDPMPreconditioning(),
    ):
        for sigma in SIGMAS:
            np.testing.assert_allclose(edm.initial_loss(other, sigma, 3.1), 1, rtol=1e-12)


def test_initial_loss_per_feature():
    preconditioning = edm.EDMPreconditioning(np.array([0.5, 2.0]))
    got = edm.initial_loss(preconditioning, 1e6, 1.0)
    np.testing.assert_allclose(got, [4.0, 0.25], rtol=1e-10)


def skewed_data(key, shape):
    """Centred, not Gaussian, std 1.5: the check may not lean on a shape."""
    return 1.5 * (jr.exponential(key, shape) - 1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_check_passes_with_sigma_data_measured(dtype, key):
    x = skewed_data(key, (20_000, 4)).astype(dtype)
    denoiser = edm.Denoiser(zero, edm.EDMPreconditioning.from_data(x))
    losses = edm.check_initial_loss(denoiser, x)
    assert losses.dtype == dtype and losses.shape == (9,)
    # Var((y / sd)^2) is 8 for this law, 2 for a Gaussian: at most 4 sqrt(8 / n d) away
    np.testing.assert_allclose(losses, 1, atol=4 * np.sqrt(8 / x.size))


@pytest.mark.parametrize("factor, high", [(0.5, 4.0), (2.0, 0.25)])
def test_check_fails_at_half_and_twice_and_says_what_to_do(factor, high, key):
    x = skewed_data(key, (20_000, 4))
    right = float(jnp.sqrt(jnp.mean(x**2)))
    denoiser = edm.Denoiser(zero, edm.EDMPreconditioning(factor * right))
    with pytest.raises(ValueError) as caught:
        edm.check_initial_loss(denoiser, x)
    message = str(caught.value)
    assert "EDMPreconditioning.from_data(x)" in message
    assert "Centre the data" in message and "last layer at zero" in message
    assert f"{right:.4g}" in message  # what sigma_data should have been
    got = float(message.split("but scores ")[1].split()[0])
    # at a high noise level the loss is E x^2 / sigma_data^2, within 4 standard errors
    np.testing.assert_allclose(got, high, rtol=4 * np.sqrt(8 / x.size) + 0.01)


def test_check_seldom_cries_wolf_over_few_examples():
    """Ten examples, 300 levels, each with noise of its own: none may be refused.

    The spread of ten squares is often far too small: alone it would refuse 2% of them.
    """
    denoiser = edm.Denoiser(zero, edm.VEPreconditioning())
    edm.check_initial_loss(denoiser, jnp.zeros((10, 1)), sigmas=np.linspace(0.1, 1, 300))


@pytest.mark.parametrize("errors, refused", [(3.9, False), (4.1, True)])
def test_check_allows_four_standard_errors(errors, refused, monkeypatch):
    """Losses of spread 1, whose mean is so many standard errors from 1."""
    spread = np.resize([-1.0, 1.0], 400) * np.sqrt(399 / 400)  # of 400, with ddof=1
    losses = 1 + spread[None] + errors / np.sqrt(400)
    monkeypatch.setattr(edm.losses, "_errors_by_sigma", lambda *args, **known: losses)
    x, sigmas = jnp.zeros((400, 4)), jnp.ones(1)
    check = lambda: edm.check_initial_loss(edm.Denoiser(zero, edm.VEPreconditioning()), x, sigmas)
    if refused:
        with pytest.raises(ValueError, match="but scores"):
            check()
    else:
        np.testing.assert_allclose(check(), 1 + errors / 20)


def test_check_notices_data_that_are_not_centred_when_sigma_data_is_a_std(key):
    x = skewed_data(key, (20_000, 4)) + 1.5
    denoiser = edm.Denoiser(zero, edm.EDMPreconditioning(1.5))
    with pytest.raises(ValueError, match="their mean 1.5"):
        edm.check_initial_loss(denoiser, x)


def test_check_of_images(key):
    x = skewed_data(key, (100, 3, 4, 4))
    denoiser = edm.Denoiser(zero, edm.EDMPreconditioning.from_data(x))
    edm.check_initial_loss(denoiser, x)


def test_two_examples_are_enough_for_a_check():
    denoiser = edm.Denoiser(zero, edm.VEPreconditioning())
    assert edm.check_initial_loss(denoiser, jnp.zeros((2, 1))).shape == (9,)


@pytest.mark.slow
def test_check_of_a_conditional_network_before_and_after_a_change(key):
    data_key, cond_key, net_key = jr.split(key, 3)
    x, cond = jr.normal(data_key, (2000, 4)), jr.normal(cond_key, (2000, 3))
    network = MLP(4, 3, width=8, depth=1, key=net_key)
    preconditioning = edm.EDMPreconditioning.from_data(x)
    edm.check_initial_loss(edm.Denoiser(network, preconditioning), x, cond)

    def changed(z, c_noise, cond, *, key=None):
        return network(z, c_noise, cond) + 0.3

    with pytest.raises(ValueError, match="last layer at zero"):
        edm.check_initial_loss(edm.Denoiser(changed, preconditioning), x, cond)


def test_check_is_repeatable_and_takes_a_key_and_levels(key):
    x = jnp.array(np.random.default_rng(0).normal(size=(2000, 2)))
    denoiser = edm.Denoiser(zero, edm.EDMPreconditioning.from_data(x))
    first = edm.check_initial_loss(denoiser, x, sigmas=SIGMAS)
    np.testing.assert_array_equal(first, edm.check_initial_loss(denoiser, x, sigmas=SIGMAS))
    other = edm.check_initial_loss(denoiser, x, sigmas=SIGMAS, key=key)
    assert first.shape == SIGMAS.shape and not np.any(first == other)


def test_check_allows_exactly_four_standard_errors(monkeypatch):
    """Equal losses have the spread of a Gaussian's, sqrt(2 / 2): four of sqrt(1 / 4) are 2."""
    monkeypatch.setattr(edm.losses, "_errors_by_sigma", lambda *args, **known: np.full((1, 4), 3.0))
    denoiser = edm.Denoiser(zero, edm.VEPreconditioning())
    found = edm.check_initial_loss(denoiser, jnp.zeros((4, 2)), sigmas=jnp.ones(1))
    np.testing.assert_array_equal(found, [3.0])
