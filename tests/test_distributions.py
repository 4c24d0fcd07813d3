"""Exact distributions against dense linear algebra and quadrature, in NumPy alone."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import edm_tutorial as edm

GOLDEN = Path(__file__).parent / "golden" / "gmm.npz"
SIGMAS = (0.0, 0.05, 1.0, 30.0)


def random_mixture(seed, components=3, d=4):
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(components))
    means = rng.normal(size=(components, d))
    factors = rng.normal(size=(components, d, d))
    covs = factors @ factors.swapaxes(1, 2) / d + 0.1 * np.eye(d)
    return weights, means, covs


def dense_log_joint(parameters, x, sigma):
    """ln w_k + ln N(x; mu_k, C_k + sigma^2 I) by determinants and linear solves."""
    logs = []
    for weight, mean, cov in zip(*parameters, strict=True):
        total = cov + sigma**2 * np.eye(len(x))
        _, logdet = np.linalg.slogdet(2 * np.pi * total)
        offset = x - mean
        square = offset @ np.linalg.solve(total, offset)
        logs.append(np.log(weight) - (logdet + square) / 2)
    return np.array(logs)


def dense_log_prob(parameters, x, sigma):
    return np.logaddexp.reduce(dense_log_joint(parameters, x, sigma))


def dense_denoise(parameters, x, sigma):
    logs = dense_log_joint(parameters, x, sigma)
    posterior = np.exp(logs - np.logaddexp.reduce(logs))
    noise = sigma**2 * np.eye(len(x))
    conditional = [
        mean + cov @ np.linalg.solve(cov + noise, x - mean)
        for _, mean, cov in zip(*parameters, strict=True)
    ]
    return posterior @ np.array(conditional)


def points(seed, d=4):
    """Typical ones, and one so far away that every density underflows."""
    x = np.random.default_rng(seed).normal(size=(6, d)) * 2
    x[-1] = 300.0
    return x


def on_grid(method, x, sigmas):
    """`method` at every point and noise level, shape (points, levels, ...)."""
    one = jax.vmap(jax.vmap(method, (None, 0)), (0, None))
    return np.array(jax.jit(one)(jnp.asarray(x), jnp.asarray(sigmas, x.dtype)))


def test_log_prob_equals_dense_linear_algebra():
    parameters, x = random_mixture(0), points(1)
    exact = [[dense_log_prob(parameters, one, sigma) for sigma in SIGMAS] for one in x]
    log_prob = on_grid(edm.GaussianMixture(*parameters).log_prob, x, SIGMAS)
    # 1e-12: round-off of a 4 x 4 solve with condition number below 100
    np.testing.assert_allclose(log_prob, exact, rtol=1e-12)


def test_log_prob_without_noise_is_the_default():
    mixture = edm.GaussianMixture(np.ones(1), np.full((1, 1), 0.5), np.full((1, 1, 1), 4.0))
    # N(2.5; 0.5, 4) is one standard deviation out
    exact = -0.5 - np.log(2) - np.log(2 * np.pi) / 2
    np.testing.assert_allclose(mixture.log_prob(jnp.array([2.5])), exact, rtol=1e-14)


def test_denoise_equals_dense_linear_algebra():
    parameters, x = random_mixture(2), points(3)
    exact = [[dense_denoise(parameters, one, sigma) for sigma in SIGMAS] for one in x]
    denoised = on_grid(edm.GaussianMixture(*parameters).denoise, x, SIGMAS)
    np.testing.assert_allclose(denoised, exact, rtol=1e-11, atol=1e-12)


def test_denoise_is_the_posterior_mean_by_quadrature():
    """E[y | x] as a ratio of two integrals over y: no posterior formula at all."""
    weights, means, stds = (
        np.array([0.3, 0.7]),
        np.array([-1.0, 0.8]),
        np.array([0.2, 0.5]),
    )
    mixture = edm.GaussianMixture(weights, means[:, None], (stds**2)[:, None, None])
    x, sigmas = np.array([[-1.3], [0.0], [0.9]]), (0.05, 0.4, 5.0)
    denoised = on_grid(mixture.denoise, x, sigmas)[..., 0]
    y = np.linspace(-8.0, 8.0, 20_001)
    prior = weights / stds * np.exp(-(((y[:, None] - means) / stds) ** 2) / 2)
    for i, j in np.ndindex(denoised.shape):
        joint = prior.sum(axis=1) * np.exp(-(((x[i] - y) / sigmas[j]) ** 2) / 2)
        # The trapezoidal rule converges faster than any power for smooth integrands.
        np.testing.assert_allclose(denoised[i, j], joint @ y / joint.sum(), atol=1e-12)


@pytest.mark.parametrize(
    "dtype, tolerance, relative",
    [
        (np.float64, 1e-10, (0.002, 0.1, 1.0, 30.0)),
        (np.float32, 1e-5, (0.1, 1.0, 30.0)),
    ],
)
def test_score_is_the_gradient_and_tweedie(dtype, tolerance, relative):
    """Three routes to the same vector, at noise levels relative to the data's std.

    Compared as sigma * score, which is of order |x - mu| / sigma. D - x loses as many
    digits as sigma is smaller than x, hence 0.1 std as the lowest level in float32.
    """
    parameters = [value.astype(dtype) for value in random_mixture(4)]
    mixture = edm.GaussianMixture(*parameters)
    weights, means, covs = random_mixture(4)
    mean_square = weights @ ((means**2).sum(axis=1) + np.trace(covs, axis1=1, axis2=2))
    sigmas = np.array(relative) * np.sqrt(mean_square / means.shape[1])
    x = points(5)[:-1].astype(dtype)
    routes = (
        lambda x, sigma: sigma * mixture.score(x, sigma),
        lambda x, sigma: sigma * jax.grad(mixture.log_prob)(x, sigma),
        lambda x, sigma: sigma * edm.score(mixture.denoise, x, sigma),
        lambda x, sigma: (mixture.denoise(x, sigma) - x) / sigma,
    )
    first, *others = (on_grid(route, x, sigmas) for route in routes)
    assert first.dtype == dtype
    size = np.maximum(np.abs(first).max(axis=-1, keepdims=True), 1)
    for other in others:
        assert np.abs((other - first) / size).max() < tolerance


def test_a_float64_mixture_follows_the_dtype_of_x():
    mixture = edm.GaussianMixture(*random_mixture(6))
    x = jnp.array(points(7)[0], jnp.float32)
    for name in ("log_prob", "score", "denoise"):
        assert eqx.filter_jit(getattr(mixture, name))(x, 0.3).dtype == jnp.float32
    denoised = mixture.denoise(x, jnp.float64(0.3))
    assert denoised.dtype == jnp.float32
    exact = dense_denoise(random_mixture(6), np.array(x, float), 0.3)
    np.testing.assert_allclose(denoised, exact, atol=2e-6)


def test_golden_mixtures():
    stored = np.load(GOLDEN)
    names = sorted({name.split("/")[0] for name in stored})
    assert names == ["A", "B"]
    for name in names:
        case = {key: stored[f"{name}/{key}"] for key in ("means", "var", "weights")}
        d = case["means"][0].size
        mixture = edm.GaussianMixture(
            case["weights"],
            case["means"].reshape(-1, d),
            case["var"][:, None, None] * np.eye(d),
        )
        x = jnp.array(stored[f"{name}/test_x"]).reshape(-1, d)
        exact = stored[f"{name}/test_D"].reshape(-1, d)
        got = jax.jit(jax.vmap(mixture.denoise))(x, jnp.array(stored[f"{name}/test_sigma"]))
        # the README's tolerance for independent float64 implementations
        allowed = 1e-10 * np.maximum(np.abs(exact), 1e-3 * np.abs(exact).max())
        assert np.all(np.abs(got - exact) <= allowed)


def test_sample_has_the_moments_of_the_mixture(key):
    n = 40_000
    weights, means, covs = parameters = random_mixture(8, components=2, d=3)
    mixture = edm.GaussianMixture(*parameters)
    draws = np.array(jax.jit(jax.vmap(mixture.sample))(jax.random.split(key, n)))
    mean = weights @ means
    spread = means - mean
    cov = np.einsum("k,kij->ij", weights, covs + spread[:, :, None] * spread[:, None, :])
    products = (draws - mean)[:, :, None] * (draws - mean)[:, None, :]
    for values, exact in ((draws, mean), (products, cov)):
        allowed = 4 * values.std(axis=0) / np.sqrt(n)  # 4 standard errors
        assert np.all(np.abs(values.mean(axis=0) - exact) < allowed)


def test_sample_chooses_components_by_weight(key):
    n = 20_000
    weights = np.array([0.2, 0.3, 0.5])
    mixture = edm.GaussianMixture(weights, np.eye(3), np.zeros((3, 3, 3)))
    draws = np.array(jax.jit(jax.vmap(mixture.sample))(jax.random.split(key, n)))
    allowed = 4 * np.sqrt(weights * (1 - weights) / n)
    assert np.all(np.abs(draws.mean(axis=0) - weights) < allowed)


def test_one_key_one_sample(key):
    mixture = edm.GaussianMixture(*random_mixture(9))
    again, other = jax.random.clone(key), jax.random.fold_in(key, 1)
    first = mixture.sample(jax.random.clone(key))
    np.testing.assert_array_equal(first, mixture.sample(again))
    assert np.all(np.abs(first - mixture.sample(other)) > 0)


def test_covariances_are_those_given():
    parameters = random_mixture(10)
    np.testing.assert_allclose(edm.GaussianMixture(*parameters).covs, parameters[2], atol=1e-14)


def test_a_singular_covariance_is_a_gaussian_on_a_line():
    """Along the line a 1-D Gaussian, across it a point: both parts known."""
    along, across = np.array([0.6, 0.8]), np.array([-0.8, 0.6])
    variance, sigma = 2.25, 0.3
    cov = variance * np.outer(along, along)
    mixture = edm.GaussianMixture(np.ones(1), np.zeros((1, 2)), cov[None])
    x = 0.7 * along + 0.2 * across
    exact = 0.7 * variance / (variance + sigma**2) * along
    np.testing.assert_allclose(mixture.denoise(jnp.array(x), sigma), exact, atol=1e-14)
    squares = 0.7**2 / (variance + sigma**2) + 0.2**2 / sigma**2
    logdet = np.log(variance + sigma**2) + np.log(sigma**2)
    exact = -(squares + logdet) / 2 - np.log(2 * np.pi)
    np.testing.assert_allclose(mixture.log_prob(jnp.array(x), sigma), exact, rtol=1e-13)


def test_points_without_spread_are_the_empirical_denoiser():
    rng = np.random.default_rng(11)
    data, x = rng.normal(size=(7, 3)), rng.normal(size=(5, 3))
    sigmas = np.array([1e-3, 0.2, 1.0, 50.0])
    ideal = on_grid(edm.EmpiricalDenoiser(data), x, sigmas)
    # A spread of 1e-7 moves D by (1e-7 / sigma)^2 of a distance of about 3; without it,
    # what is left is the round-off of distances over 2 sigma^2, up to 1e7.
    for spread, allowed in ((0.0, 1e-9), (1e-7, 1e-9 + 3 * (1e-7 / sigmas) ** 2)):
        covs = np.tile(spread**2 * np.eye(3), (7, 1, 1))
        mixture = edm.GaussianMixture(np.full(7, 1 / 7), data, covs)
        error = np.abs(on_grid(mixture.denoise, x, sigmas) - ideal)
        assert np.all(error.max(axis=(0, 2)) < allowed)


def test_empirical_denoiser_of_images_is_equation_57():
    rng = np.random.default_rng(12)
    data = rng.normal(size=(6, 2, 3, 3))
    x = rng.normal(size=(2, 3, 3))
    ideal = edm.EmpiricalDenoiser(data)
    for sigma in (0.3, 1.0, 8.0):
        density = np.exp(-((x - data) ** 2).sum(axis=(1, 2, 3)) / (2 * sigma**2))
        weights = density / density.sum()
        np.testing.assert_allclose(ideal.weights(jnp.array(x), sigma), weights, rtol=1e-11)
        exact = (weights[:, None, None, None] * data).sum(axis=0)
        np.testing.assert_allclose(ideal(jnp.array(x), sigma), exact, rtol=1e-11)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_empirical_denoiser_at_its_limits(dtype):
    rng = np.random.default_rng(13)
    data = rng.normal(size=(9, 2, 3, 3)).astype(dtype)
    x = rng.normal(size=(2, 3, 3)).astype(dtype)
    nearest = data[np.argmin(((data - x) ** 2).sum(axis=(1, 2, 3)))]
    ideal = edm.EmpiricalDenoiser(data)
    for sigma in (1e-6, 1e-3):
        weights = ideal.weights(jnp.array(x), sigma)
        assert np.sum(weights) == 1 and np.all(np.isfinite(weights))
        np.testing.assert_array_equal(ideal(jnp.array(x), sigma), nearest)
    # At sigma the weights differ from 1/n by about |x - y|^2 / (2 sigma^2) = 1e-11.
    eps = np.finfo(dtype).eps
    far = ideal(jnp.array(x), 1e6)
    np.testing.assert_allclose(far, data.mean(axis=0), atol=1e-10 + 10 * eps)


def test_empirical_denoiser_survives_data_far_from_zero():
    """|x|^2 is 1e8 here; expanding the square would leave nothing in float32."""
    data = np.array([[1e4, 0.0], [1e4 + 1, 0.0]], np.float32)
    x = jnp.array([1e4 + 0.25, 0.0], jnp.float32)
    odds = np.exp((0.25**2 - 0.75**2) / (2 * 0.5**2))
    weights = edm.EmpiricalDenoiser(data).weights(x, 0.5)
    np.testing.assert_allclose(weights, [1 / (1 + odds), odds / (1 + odds)], rtol=1e-6)


def test_both_are_denoisers_that_ignore_cond_and_key(key):
    mixture = edm.GaussianMixture(*random_mixture(14))
    ideal = edm.EmpiricalDenoiser(points(15))
    x = jnp.array(points(16)[0])
    for denoiser in map(eqx.filter_jit, (mixture.denoise, ideal)):
        told = denoiser(x, 0.7, jnp.ones(3), key=jax.random.clone(key))
        np.testing.assert_array_equal(told, denoiser(x, 0.7))


def test_jacobians_are_covariances():
    """dD/dx = cov(y | x) / sigma^2, for one Gaussian and for a set of points."""
    covs = random_mixture(17)[2]
    gaussian = edm.GaussianMixture(np.ones(1), np.zeros((1, 4)), covs[:1])
    ideal = edm.EmpiricalDenoiser(points(18)[:-1])
    x = jnp.array(points(19)[0])
    jacobian = jax.jit(jax.jacobian(gaussian.denoise))(x, 0.7)
    exact = covs[0] @ np.linalg.inv(covs[0] + 0.49 * np.eye(4))
    np.testing.assert_allclose(jacobian, exact, atol=1e-13)
    jacobian = np.array(jax.jit(jax.jacobian(ideal))(x, 0.7))
    weights = np.array(ideal.weights(x, 0.7))
    cov = np.cov(ideal.data.T, aweights=weights, ddof=0)
    np.testing.assert_allclose(jacobian, cov / 0.49, atol=1e-12)


@pytest.mark.parametrize(
    "low, high, told",
    [
        ([[1e-4, 0.9e-9], [0.0, 1e-4]], [[1e-4, 1.1e-9], [0.0, 1e-4]], "symmetric"),
        ([[100.0, 0.0], [0.0, -0.9e-4]], [[100.0, 0.0], [0.0, -1.1e-4]], "no negative eigenvalue"),
    ],
)
def test_what_rounding_makes_of_a_covariance_is_forgiven(low, high, told):
    """1e-5 of its own largest entry in symmetry, 1e-6 of the largest of all in eigenvalues.

    The other component is larger in the first case and smaller in the second.
    """
    make = lambda cov: edm.GaussianMixture([0.5, 0.5], np.zeros((2, 2)), [np.eye(2), cov])
    make(low)
    with pytest.raises(ValueError, match=f"covs must .*{told}"):
        make(high)
