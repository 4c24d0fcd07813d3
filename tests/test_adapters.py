"""Networks of other models as denoisers: exact ones of a mixture, against the mixture itself."""

import inspect
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.interpolate import CubicSpline

import edm_tutorial as edm
from edm_tutorial.parameterisations import convert, velocity

MIXTURE = edm.GaussianMixture(
    [0.3, 0.7], [[-1.0, 0.5], [0.8, -0.4]], [[[0.3, 0.1], [0.1, 0.2]], [[0.1, 0.0], [0.0, 0.05]]]
)
ALPHA_BAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))  # of DDPM (Ho et al., 2020)
SIGMAS = np.sqrt((1 - ALPHA_BAR) / ALPHA_BAR)


def noise_of_mixture(x, sigma):
    """The mean of n given x = y + sigma n; a difference of x and D would lose digits."""
    return -sigma * MIXTURE.score(x, sigma)


def eps_network(x_t, label, cond=None):
    """It knows the noise level of its label from the table, and of labels between steps."""
    steps, log_sigmas = jnp.arange(1000, dtype=x_t.dtype), jnp.asarray(np.log(SIGMAS), x_t.dtype)
    sigma = jnp.exp(jnp.interp(label, steps, log_sigmas))
    return noise_of_mixture(x_t * jnp.sqrt(1 + sigma**2), sigma)


def flow_network(x_t, t, cond=None):
    x, sigma = x_t / (1 - t), t / (1 - t)
    return noise_of_mixture(x, sigma) - MIXTURE.denoise(x, sigma)


MODELS = {
    "ddpm": lambda: edm.from_ddpm(eps_network, ALPHA_BAR),
    "flow matching": lambda: edm.from_flow_matching(flow_network),
}
each_model = pytest.mark.parametrize("name", MODELS)
each_dtype = pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])


@each_model
@each_dtype
def test_samples_are_those_of_the_mixture(key, name, dtype):
    noise = jr.normal(key, (4, 2), dtype)
    draw = lambda denoiser: jax.vmap(lambda z: edm.sample(denoiser, z, edm.edm_sigmas(18, 0.02)))
    exact = draw(MIXTURE.denoise)(noise.astype(float))
    np.testing.assert_allclose(draw(MODELS[name]())(noise), exact, rtol=0, atol=1e-5)


@each_model
@each_dtype
def test_likelihoods_are_those_of_the_mixture(name, dtype):
    x = jnp.array([[-1.2, 0.3], [0.7, -0.2], [0.0, 0.0], [2.0, 1.0]], dtype)
    at = lambda x: edm.log_likelihood(MODELS[name](), x, sigma_min=0.02).log_prob
    exact = jax.vmap(lambda x: MIXTURE.log_prob(x, 0.02))(x.astype(float))
    # The last is -17: float32 holds it to 1e-6, and the solver adds up some twenty steps.
    np.testing.assert_allclose(jax.vmap(at)(x), exact, rtol=3e-6, atol=1e-5)


def test_a_network_that_is_smooth_between_its_steps():
    """Lines in ln sigma meet a smooth function at every step, and stray from it between them.

    The first steps are long, a factor 1.5 in sigma: there it costs some 1e-4 nats.
    """
    spline = jnp.asarray(CubicSpline(np.arange(1000), np.log(SIGMAS)).c)

    def smooth(x_t, label, cond=None):
        step = jnp.clip(jnp.floor(label).astype(int), 0, 998)
        sigma = jnp.exp(jnp.polyval(spline[:, step], label - step.astype(float)))
        return noise_of_mixture(x_t * jnp.sqrt(1 + sigma**2), sigma)

    denoiser = edm.from_ddpm(smooth, ALPHA_BAR)
    x = jnp.array([0.0, 0.0])
    got = edm.log_likelihood(denoiser, x, sigma_min=0.02).log_prob
    np.testing.assert_allclose(got, MIXTURE.log_prob(x, 0.02), rtol=0, atol=5e-4)
    for step in (0, 1, 17, 500, 999):  # no interpolation at the steps themselves
        exact = MIXTURE.denoise(x + 0.3, SIGMAS[step])
        np.testing.assert_allclose(denoiser(x + 0.3, SIGMAS[step]), exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize("sigma", [1e-3, 0.5, 50.0])
def test_what_the_networks_are_shown(sigma):
    """Points of unit scale, and labels of their own: steps up to the ends, or times in (0, 1)."""
    seen = []
    watch = lambda x_t, label, cond: seen.append((x_t, label, cond)) or jnp.zeros_like(x_t)
    x, cond = jnp.array([1.0, -2.0]), {"told": jnp.ones(3)}
    models = edm.from_ddpm(watch, ALPHA_BAR), edm.from_flow_matching(watch)
    denoised = [denoiser(x, sigma, cond) for denoiser in models]
    ddpm, flow = seen
    assert ddpm[2] is cond and flow[2] is cond
    np.testing.assert_allclose(ddpm[0], x / np.sqrt(1 + sigma**2), rtol=1e-14)
    np.testing.assert_allclose(flow[0], x * (1 - flow[1]), rtol=1e-14)
    np.testing.assert_allclose(flow[1] / (1 - flow[1]), sigma, rtol=1e-13)
    below, above = int(np.floor(ddpm[1])), int(np.ceil(ddpm[1]))
    assert ddpm[1] == 0 if sigma < SIGMAS[0] else SIGMAS[below] <= sigma <= SIGMAS[above]
    # no noise is predicted: the point itself; nor velocity: the point of flow matching
    np.testing.assert_allclose(denoised[0], x, rtol=0)
    np.testing.assert_allclose(denoised[1], flow[0], rtol=0)


def test_a_schedule_that_ends_in_data_is_said():
    """As the alphas do, for their product; of a short schedule it may be true."""
    betas = np.linspace(1e-4, 0.02, 1000)
    told = r"alphas_cumprod ends at 0.98.*np.cumprod\(1 - betas\)\?"
    with pytest.warns(UserWarning, match=told):
        edm.from_ddpm(eps_network, 1 - betas)
    with warnings.catch_warnings():  # at jaxtyping's wrapper, where none is an error yet
        warnings.simplefilter("error")
        edm.from_ddpm(eps_network, np.cumprod(1 - betas))
        edm.from_ddpm(eps_network, [0.9, 0.5])
    with pytest.warns(UserWarning, match=r"ends at 0.55,.*sigma_max, 0.905$"):  # (0.45 / 0.55)^1/2
        edm.from_ddpm(eps_network, [0.9, 0.55])
    # Said at the caller's line; jaxtyping's wrapper stands between in tests.
    with pytest.warns(UserWarning) as caught:
        inspect.unwrap(edm.from_ddpm)(eps_network, [0.9, 0.55])
    assert caught[0].filename == __file__


def test_velocity_is_that_of_the_parameterisations(key):
    x, prediction = jr.normal(key, (2, 3))
    denoised = edm.from_flow_matching(lambda x_t, t, cond: prediction)(x, 0.7)
    np.testing.assert_allclose(
        denoised, convert(prediction, x, 0.7, source=velocity), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize(
    "make", [lambda net: edm.from_ddpm(net, ALPHA_BAR), edm.from_flow_matching]
)
def test_the_network_trains_and_nothing_else(key, make):
    """Its weights are the leaves, the table of noise levels is none; a key goes on if given."""
    net = Keyed(eqx.nn.Linear(2, 2, key=key))
    denoiser = make(net)
    assert len(jax.tree.leaves(denoiser)) == 2
    x = jnp.array([0.3, 1.0])
    grads = eqx.filter_grad(lambda d: jnp.sum(d(x, 0.5)))(denoiser)
    assert all(jnp.all(leaf != 0) for leaf in jax.tree.leaves(grads))
    noisy = denoiser(x, 0.5, key=jr.clone(key))
    assert np.all(noisy != denoiser(x, 0.5))


class Keyed(eqx.Module):
    net: eqx.nn.Linear

    def __call__(self, x, label, cond=None, *, key=None):
        return self.net(x) + (0 if key is None else jr.normal(key, x.shape))
