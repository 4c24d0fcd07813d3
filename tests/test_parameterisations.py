"""Five names for one prediction, against the quantities they are the mean of."""

import itertools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import edm_tutorial as edm
from edm_tutorial import parameterisations as names
from edm_tutorial.parameterisations import convert

NAMES = (names.denoised, names.epsilon, names.score, names.velocity, names.v_prediction)
PAIRS = list(itertools.permutations(NAMES, 2))
SIGMAS = (0.002, 0.3, 1.0, 7.0, 80.0)


def means(y, n, sigma):
    """What each name stands for, from its definition, when data and noise are known."""
    alpha = 1 / np.sqrt(1 + sigma**2)
    t = sigma / (1 + sigma)  # flow matching: x_t = (1 - t) y + t n
    slope = jax.jacfwd(lambda t: (1 - t) * y + t * n)(jnp.asarray(t))
    return {
        names.denoised: y,
        names.epsilon: n,
        # The score of N(y, sigma^2), whose data are the one point y.
        names.score: jax.grad(lambda x: -jnp.sum((x - y) ** 2) / (2 * sigma**2))(y + sigma * n),
        names.velocity: slope,
        # x_phi = cos(phi) y + sin(phi) n, tan(phi) = sigma: its derivative in the angle.
        names.v_prediction: alpha * n - sigma * alpha * y,
    }


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("source, target", PAIRS, ids=lambda f: f.__name__)
def test_every_pair_against_the_definitions(key, sigma, source, target):
    y, n = jr.normal(key, (2, 3))
    x, truth = y + sigma * n, means(y, n, sigma)
    got = convert(truth[source], x, sigma, source=source, target=target)
    # x carries y with an error of eps * sigma, which the score divides by sigma^2 at worst
    scale = jnp.max(jnp.abs(truth[target])) + (1 + sigma) / min(sigma, 1.0) ** 2
    np.testing.assert_allclose(got, truth[target], rtol=0, atol=1e-14 * float(scale))


@pytest.mark.parametrize("source, target", PAIRS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("sigma", SIGMAS)
def test_there_and_back(key, sigma, source, target):
    x, prediction = jr.normal(key, (2, 4))
    there = convert(prediction, x, sigma, source=source, target=target)
    back = convert(there, x, sigma, source=target, target=source)
    # What the way there adds, at most |b| |x|, is taken off again: eps times that is lost.
    line = [f(jnp.asarray(sigma)) for f in (source, target)]
    lost = max(float(jnp.abs(jnp.stack(c)).max()) for c in line) / float(jnp.abs(line[1].b))
    lost *= max(1.0, float(jnp.abs(line[0].b)))
    np.testing.assert_allclose(back, prediction, rtol=0, atol=1e-14 * (1 + lost))


def test_a_network_of_noise_is_a_denoiser(key):
    """Sampled through `convert`, a prediction of noise ends where its denoiser does."""
    mixture = edm.GaussianMixture(
        jnp.array([0.4, 0.6]), jnp.array([[-1.0, 0.5], [1.0, 0.0]]), jnp.stack([jnp.eye(2)] * 2)
    )
    epsilon = lambda x, sigma: (x - mixture.denoise(x, sigma)) / sigma

    def denoiser(x, sigma, cond=None, *, key=None):
        return convert(epsilon(x, sigma), x, sigma, source=names.epsilon)

    unit, sigmas = jr.normal(key, (2,)), edm.edm_sigmas(16)
    end, direct = (edm.sample(d, unit, sigmas) for d in (denoiser, mixture.denoise))
    np.testing.assert_allclose(end, direct, rtol=0, atol=1e-11)


def test_edm_output_is_minus_v(key):
    x, prediction = jr.normal(key, (2, 4))
    denoiser = edm.Denoiser(lambda x, c, cond, key: prediction, edm.EDMPreconditioning(1.0))
    v = convert(denoiser(x, 0.7), x, 0.7, source=names.denoised, target=names.v_prediction)
    np.testing.assert_allclose(v, -prediction, rtol=0, atol=1e-14)


def test_the_old_name_of_epsilon_warns():
    with pytest.warns(DeprecationWarning, match=r"is now edm_tutorial\.parameterisations\.epsilon"):
        assert names.noise is names.epsilon
    with pytest.raises(AttributeError, match="has no attribute 'nois'"):
        names.nois  # noqa: B018


def test_float32_stays():
    x = jnp.ones(2, jnp.float32)
    assert convert(x, x, 0.5, source=names.epsilon, target=names.score).dtype == jnp.float32


@pytest.mark.parametrize(
    "prediction, x, sigma, message",
    [
        (jnp.ones(2), jnp.ones(3), 1.0, "prediction must have the shape of x"),
        (jnp.ones(2), jnp.ones(2, int), 1.0, "x must be a floating-point array"),
        (jnp.ones(2), jnp.ones(2), 0.0, "sigma must be positive"),
        (jnp.ones(2), jnp.ones(2), -1.0, "sigma must be positive"),
        (jnp.ones(2), jnp.ones(2), float("nan"), "sigma must be positive"),
        (jnp.ones(2), jnp.ones(2), jnp.ones(2), "sigma must be one number"),
    ],
)
def test_refuses(unchecked, prediction, x, sigma, message):
    with pytest.raises(ValueError, match=message):
        convert(prediction, x, sigma, source=names.epsilon)
