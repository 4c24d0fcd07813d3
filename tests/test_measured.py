"""Denoisers given data: beside the posterior of a Gaussian, which is known in full.

For data N(mean, C) and y = A x + s n the posterior is N(mean_y, C_y), with
K = C A^T (s^2 I + A C A^T)^-1, mean_y = mean + K (y - A mean) and C_y = C - K A C.
"""

from typing import NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from exact import samples

import edm_tutorial as edm

rng = np.random.default_rng


class Problem(NamedTuple):
    """A Gaussian, what was measured of it, and the posterior."""

    mean: np.ndarray
    cov: np.ndarray
    matrix: np.ndarray
    y: np.ndarray
    noise_std: np.ndarray

    @property
    def posterior(self) -> tuple[np.ndarray, np.ndarray]:
        """Its covariance as a sum of squares (Joseph's form), which round-off cannot spoil."""
        mean, cov, a, y, s = self
        noise = np.diag(np.broadcast_to(s, len(y)) ** 2)
        gain = np.linalg.solve(noise + a @ cov @ a.T, a @ cov).T
        left = np.eye(len(mean)) - gain @ a
        return mean + gain @ (y - a @ mean), left @ cov @ left.T + gain @ noise @ gain.T

    def denoise(self, x, sigma) -> np.ndarray:
        """The posterior's own denoiser."""
        mean, cov = self.posterior
        return mean + cov @ np.linalg.solve(cov + sigma**2 * np.eye(len(x)), x - mean)

    def measured(self, **options) -> edm.Measured:
        prior = edm.GaussianMixture(np.ones(1), self.mean[None], self.cov[None])
        return edm.Measured(prior.denoise, Matrix(self.matrix), self.y, self.noise_std, **options)

    def cast(self, dtype) -> "Problem":
        return Problem(*(jnp.asarray(value, dtype) for value in self))


class Matrix(eqx.Module):
    matrix: jax.Array

    def __call__(self, x):
        return self.matrix @ x


def problem(seed, d=6, m=6, *, rank=None, noise_std=None) -> Problem:
    """A random one; the matrix has any rank, and the noise any size from 0.01 to 10."""
    draw = rng(seed)
    rank = rank or draw.integers(1, min(d, m) + 1)
    root = draw.standard_normal((d, d)) / np.sqrt(d)
    cov, mean = root @ root.T + 0.01 * np.eye(d), draw.standard_normal(d)
    matrix = draw.standard_normal((m, rank)) @ draw.standard_normal((rank, d))
    s = 10 ** draw.uniform(-2, 1) if noise_std is None else noise_std
    x = mean + np.linalg.cholesky(cov) @ draw.standard_normal(d)
    return Problem(mean, cov, matrix, matrix @ x + s * draw.standard_normal(m), np.asarray(s))


def errors(dtype, **options) -> tuple[np.ndarray, np.ndarray]:
    """At 100 random problems, x and sigma, in data units, and in widths of the posterior."""
    problems, draw = [problem(seed) for seed in range(100)], rng(100)
    sigma = 10 ** draw.uniform(-2.5, 1.9, 100)
    means = np.stack([one.mean for one in problems])
    x = means + np.hypot(sigma, 1)[:, None] * draw.standard_normal((100, 6))
    truth = np.stack([one.denoise(*at) for one, *at in zip(problems, x, sigma, strict=True)])
    width = np.sqrt([np.diag(one.posterior[1]) for one in problems])
    stacked = Problem(*map(np.stack, zip(*problems, strict=True))).cast(dtype)
    given = jnp.asarray(x, dtype), jnp.asarray(sigma, dtype)
    got = jax.jit(jax.vmap(lambda one, *at: one.measured(**options)(*at)))(stacked, *given)
    error = np.abs(np.asarray(got, float) - truth)
    return error, error / width


def test_a_gaussian_prior_gives_the_posteriors_own_denoiser():
    """Found: 5e-12, round-off times condition numbers of up to 1e5."""
    assert errors(jnp.float64, iterations=10)[0].max() < 1e-8


def test_single_precision_is_a_thousandth_of_a_width():
    """Ill-conditioned systems need more iterations in it. Found: 5e-4."""
    assert errors(jnp.float32, iterations=20)[1].max() < 1e-3


def test_noise_of_each_entry():
    one = problem(3, 5, 4, rank=4)._replace(noise_std=np.array([0.1, 0.0, 2.0, 0.5]))
    x = rng(0).standard_normal(5)
    got = one.cast(float).measured()(jnp.asarray(x), 0.7)
    np.testing.assert_allclose(got, one.denoise(x, 0.7), rtol=0, atol=1e-9)


def test_an_operator_with_a_constant():
    """y = A x + b: the constant is subtracted from what was measured."""
    one = problem(4, 4, 3, rank=3, noise_std=0.3)
    matrix, x = jnp.asarray(one.matrix), rng(1).standard_normal(4)
    moved = eqx.tree_at(
        lambda m: m.operator, one.cast(float).measured(), lambda x: matrix @ x + 5.0
    )
    moved = eqx.tree_at(lambda m: m.y, moved, jnp.asarray(one.y + 5.0))
    np.testing.assert_allclose(moved(jnp.asarray(x), 0.5), one.denoise(x, 0.5), atol=1e-10)


# Limits.


def at_zero_noise(one, sigmas, **options):
    noise = jr.normal(jr.key(0), (8, len(one.mean)))
    return samples(one.cast(float).measured(), noise, sigmas, **options)


def test_noise_without_end_and_no_operator_leave_the_prior():
    """The term is C A^T b / s^2: 1e-12 of b, of order 10."""
    one = problem(5, 4, 3, noise_std=1.0)._replace(noise_std=np.array(1e6)).cast(float)
    x, prior = jnp.asarray(rng(2).standard_normal(4)), one.measured().denoiser
    for sigma in (0.002, 1.0, 80.0):
        np.testing.assert_allclose(one.measured()(x, sigma), prior(x, sigma), rtol=0, atol=1e-8)
        blind = edm.Measured(prior, lambda x: 0 * x[:2], jnp.ones(2), 0.1)
        np.testing.assert_array_equal(blind(x, sigma), prior(x, sigma))


def test_without_noise_a_full_rank_operator_is_obeyed():
    one = problem(6, 5, 3, rank=3, noise_std=0.0)
    drawn = at_zero_noise(one, edm.edm_sigmas(18))
    np.testing.assert_allclose(drawn @ one.matrix.T, np.tile(one.y, (8, 1)), rtol=0, atol=1e-4)


def test_without_noise_what_contradicts_itself_is_fitted_by_least_squares():
    """One number measured twice, with two results: their mean, as an s that vanishes gives."""
    row = np.array([1.0, 2.0, -1.0])
    twice = problem(7, 3, 2)._replace(matrix=np.stack([row, row]), y=np.array([1.0, 2.0]))
    none, little = (twice._replace(noise_std=np.array(s)).cast(float) for s in (0.0, 1e-5))
    drawn = at_zero_noise(none, edm.edm_sigmas(18))
    np.testing.assert_allclose(drawn @ row, 1.5, rtol=0, atol=1e-4)
    x = jnp.ones(3)  # and the denoiser is the limit of those with noise
    np.testing.assert_allclose(none.measured()(x, 0.3), little.measured()(x, 0.3), atol=1e-7)


# Draws, under every solver, with and without churn; densities.


NARROW = problem(0, 3, 2, rank=2, noise_std=0.3)
MEASURED = NARROW.cast(float).measured()


def affine(denoiser, sigmas, d, **options):
    """`sample` of a Gaussian's denoiser is affine in its noise: mean and covariance, exactly."""
    ends = samples(denoiser, jnp.concatenate([jnp.zeros((1, d)), jnp.eye(d)]), sigmas, **options)
    columns = (ends[1:] - ends[0]).T
    return ends[0], columns @ columns.T


def test_draws_have_the_posteriors_mean_and_covariance():
    """No draw is needed: the sampler is affine. What is left is its own bias.

    The same steps with the posterior's own denoiser end at the same place, to round-off; and
    that bias is a few percent of a width at N = 64.
    """
    mean, cov = NARROW.posterior
    assert np.linalg.eigvalsh(cov)[0] > (10 * 0.002) ** 2
    own = edm.GaussianMixture([1.0], mean[None], cov[None]).denoise
    for solver in (edm.Heun(), edm.Euler(), edm.DPMSolverPP2M()):
        got = affine(MEASURED, edm.edm_sigmas(64), 3, solver=solver)
        expected = affine(own, edm.edm_sigmas(64), 3, solver=solver)
        np.testing.assert_allclose(got[0], expected[0], atol=1e-8)
        np.testing.assert_allclose(got[1], expected[1], atol=1e-8)
    got = affine(MEASURED, edm.edm_sigmas(64), 3)
    width = np.sqrt(np.diag(cov))
    assert np.all(np.abs(got[0] - mean) < 0.02 * width)
    np.testing.assert_allclose(np.diag(got[1]), np.diag(cov), rtol=0.03)


def test_draws_with_churn_and_another_clock(key):
    """4 standard errors of 4,000 draws, and the sampler's own bias of 3%."""
    mean, cov = NARROW.posterior
    draw = lambda key: edm.sample(
        MEASURED,
        jr.normal(jr.fold_in(key, 0), (3,)),
        edm.edm_sigmas(64),
        schedule=edm.VariancePreserving(),
        churn=edm.Churn(20.0),
        key=jr.fold_in(key, 1),
    )
    drawn = np.asarray(jax.vmap(draw)(jr.split(key, 4000)))
    width = np.sqrt(np.diag(cov))
    assert np.all(np.abs(drawn.mean(0) - mean) < (4 / np.sqrt(4000) + 0.02) * width)
    spread = np.abs(np.cov(drawn.T) - cov) / np.outer(width, width)
    assert np.all(spread < 4 * np.sqrt(2 / 4000) + 0.03)


def test_log_density_of_the_posterior():
    """At sigma_min the posterior has sigma_min^2 more variance; tolerance of the solver, 1e-5."""
    mean, cov = NARROW.posterior
    truth = edm.GaussianMixture([1.0], mean[None], cov[None])
    x = mean + np.array([[-2.0], [0.0], [1.0]]) * np.sqrt(np.diag(cov))
    found = jax.vmap(lambda x: edm.log_likelihood(MEASURED, x).log_prob)(jnp.asarray(x))
    exact = [truth.log_prob(point, 0.002) for point in jnp.asarray(x)]
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-4)


def test_log_density_with_probes_and_in_single_precision(key):
    """0.02 nats: the steps of a fixed grid, and single precision."""
    mean, cov = NARROW.posterior
    truth = edm.GaussianMixture([1.0], mean[None], cov[None]).log_prob(jnp.asarray(mean), 0.002)
    grid = dict(sigmas=edm.edm_sigmas(80), solver=diffrax.Tsit5())
    single = NARROW.cast(jnp.float32).measured()
    found = edm.log_likelihood(single, jnp.asarray(mean, jnp.float32), **grid)
    np.testing.assert_allclose(found.log_prob, truth, atol=0.02)
    some = edm.log_likelihood(
        MEASURED, jnp.asarray(mean), probes=64, key=key, prior_mean=mean, prior_std=1.0, **grid
    )
    assert abs(some.log_prob - truth) < 4 * some.std_error + 0.02


def test_it_is_a_denoiser_among_denoisers(key):
    """Guided, pinned, told a condition, given a key, mapped over y, differentiated."""
    x, sigma = jnp.asarray(rng(8).standard_normal(3)), 0.4
    measured = MEASURED
    prior, rest = measured.denoiser, (measured.operator, measured.y, measured.noise_std)
    guided = edm.Guided(measured, prior, 2.0)(x, sigma)
    np.testing.assert_allclose(guided, 2 * NARROW.denoise(x, sigma) - prior(x, sigma), atol=1e-9)

    shifted = lambda x, sigma, cond=None, *, key=None: cond + prior(x - cond, sigma)
    moved = edm.Measured(shifted, rest[0], rest[1] + measured.operator(jnp.ones(3)), rest[2])
    expected = 1 + NARROW.denoise(x - 1, sigma)
    np.testing.assert_allclose(moved(x, sigma, jnp.ones(3)), expected, atol=1e-9)
    np.testing.assert_allclose(edm.Pinned(moved, jnp.ones(3))(x, sigma), expected, atol=1e-9)

    noisy = lambda x, sigma, cond=None, *, key: prior(x, sigma) + jr.normal(key, x.shape)
    drawn = edm.Measured(noisy, rest[0], rest[1], 1e6)(x, sigma, key=key)
    np.testing.assert_allclose(drawn - prior(x, sigma), jr.normal(jr.clone(key), (3,)), atol=1e-8)

    def of_y(y):
        return edm.Measured(prior, rest[0], y, rest[2])(x, sigma)

    ys = measured.y[None] + jnp.eye(2)
    each = [NARROW._replace(y=np.asarray(y)).denoise(x, sigma) for y in ys]
    np.testing.assert_allclose(jax.vmap(of_y)(ys), each, atol=1e-9)
    # D_y is affine in y and in x: its derivatives are differences, forwards and backwards.
    slope = np.stack(each, 1) - NARROW.denoise(x, sigma)[:, None]
    np.testing.assert_allclose(jax.jacfwd(of_y)(measured.y), slope, atol=1e-8)
    np.testing.assert_allclose(jax.jacrev(of_y)(measured.y), slope, atol=1e-8)
    by_x = [NARROW.denoise(x + e, sigma) - NARROW.denoise(x, sigma) for e in np.eye(3)]
    slope = jax.jacrev(lambda x: measured(x, sigma))(x)
    np.testing.assert_allclose(slope, np.transpose(by_x), atol=1e-8)


# Not Gaussian, not exact: what is claimed is the formula with the dense Jacobian.


def dense(denoised, jacobian, sigma, matrix, y, noise_std):
    """D + J^T A^T ((s/sigma)^2 I + A J^T A^T)^-1 (y - A D), with matrices."""
    system = (noise_std / sigma) ** 2 * np.eye(len(y)) + matrix @ jacobian.T @ matrix.T
    return denoised + jacobian.T @ matrix.T @ np.linalg.solve(system, y - matrix @ denoised)


@pytest.fixture(scope="module")
def trained():
    """A small network, trained for a few seconds on two modes in three dimensions."""
    means = jnp.array([[1.0, 0.5, -0.5], [-1.0, 0.0, 0.5]])
    prior = edm.GaussianMixture([0.5, 0.5], means, np.stack([0.05 * np.eye(3)] * 2))
    data = jax.vmap(prior.sample)(jr.split(jr.key(1), 2048))
    network = edm.MLP(3, width=32, depth=1, key=jr.key(2))
    denoiser = edm.Denoiser(network, edm.EDMPreconditioning(0.7))
    loss = lambda denoiser, x, cond, *, key: edm.denoising_loss(
        denoiser, x, cond, sigma_dist=edm.LogNormal(), key=key
    )
    sizes = dict(steps=500, batch_size=128, every=500, key=jr.key(3))
    state, _ = next(edm.train(denoiser, loss, data, optax.adam(5e-3), **sizes))
    return state.denoiser


def test_a_trained_networks_jacobian_is_no_covariance_and_need_not_be(trained):
    """It is not symmetric and has negative eigenvalues: both are seen here.

    Where what was measured has no negative variance, the formula with the dense Jacobian. Draws fit
    what was measured: without the end at negative variances some are ten thousand widths away.
    """
    matrix = rng(5).standard_normal((2, 3))
    y = matrix @ [1.1, 0.4, -0.7] + 0.1 * rng(6).standard_normal(2)
    measured = edm.Measured(trained, Matrix(jnp.asarray(matrix)), jnp.asarray(y), 0.1)
    both = jax.jit(lambda x, s: (measured(x, s), jax.jacfwd(lambda x: trained(x, s))(x)))
    skew, compared, lowest = 0.0, 0, 0.0
    for sigma in (0.01, 0.1, 0.3, 1.0, 5.0):
        x = jnp.asarray(rng(6).standard_normal(3) * np.hypot(0.7, sigma))
        got, jacobian = map(np.asarray, both(x, sigma))
        skew = max(skew, np.abs(jacobian - jacobian.T).max() / np.abs(jacobian).max())
        least = np.linalg.eigvalsh(matrix @ (jacobian + jacobian.T) @ matrix.T).min()
        lowest = min(lowest, np.linalg.eigvalsh(jacobian + jacobian.T).min())
        if least > 0:
            expected = dense(np.asarray(trained(x, sigma)), jacobian, sigma, matrix, y, 0.1)
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
            compared += 1
    assert skew > 0.01 and lowest < -0.01 and compared >= 3
    drawn = samples(measured, jr.normal(jr.key(4), (200, 3)), edm.edm_sigmas(18))
    misfit = (drawn @ matrix.T - y) / 0.1
    assert np.sqrt(np.mean(misfit**2)) < 2 and np.abs(misfit).max() < 6


def test_a_mixture_of_modes(key):
    """The formula again, where the Jacobian depends on x and modes compete."""
    means = np.array([[2.0, 0.0], [-2.0, 1.0], [0.0, -2.0]])
    prior = edm.GaussianMixture([0.2, 0.3, 0.5], means, np.stack([0.1 * np.eye(2)] * 3))
    matrix, y = np.array([[1.0, 1.0]]), np.array([0.5])
    measured = edm.Measured(prior.denoise, Matrix(jnp.asarray(matrix)), jnp.asarray(y), 0.2)
    jacobian_of = jax.jacfwd(prior.denoise)
    all_three = jax.jit(lambda x, s: (measured(x, s), prior.denoise(x, s), jacobian_of(x, s)))
    for sigma in (0.05, 0.5, 2.0, 20.0):
        x = jr.normal(jr.fold_in(key, int(100 * sigma)), (2,)) * np.hypot(2, sigma)
        got, denoised, jacobian = map(np.asarray, all_three(x, sigma))
        expected = dense(denoised, jacobian, sigma, matrix, y, 0.2)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9)


def test_a_tangent_in_place_of_a_curve():
    """f(x) = a + B x is its own tangent; for others, the formula with f and f' at D."""
    one = problem(4, 4, 3, rank=3, noise_std=0.3)
    x, linear = jnp.asarray(rng(1).standard_normal(4)), one.cast(float).measured()
    same = eqx.tree_at(lambda m: m.operator, linear, edm.Linearised(linear.operator))
    np.testing.assert_allclose(same(x, 0.5), one.denoise(x, 0.5), atol=1e-10)

    curve = lambda x: jnp.stack([jnp.sin(x[0]) * x[1], x[2] ** 3])
    y, prior = jnp.array([0.4, 1.0]), linear.denoiser
    denoised = prior(x, 0.5)
    slope = np.asarray(jax.jacfwd(curve)(denoised))
    jacobian = np.asarray(jax.jacfwd(prior)(x, 0.5))
    shifted = np.asarray(y - curve(denoised)) + slope @ np.asarray(denoised)
    expected = dense(np.asarray(denoised), jacobian, 0.5, slope, shifted, 0.2)
    got = edm.Measured(prior, edm.Linearised(curve), y, 0.2)(x, 0.5)
    np.testing.assert_allclose(got, expected, atol=1e-9)


def test_shapes_of_images_and_masks():
    """Half an image of a Gaussian with correlated pixels, as a vector and as an image."""
    distance = np.abs(np.subtract.outer(np.arange(12), np.arange(12)))
    cov, mask = np.exp(-distance / 3), np.arange(12).reshape(3, 4) % 4 < 2
    flat = edm.GaussianMixture([1.0], np.zeros((1, 12)), cov[None])
    prior = lambda x, sigma, cond=None, *, key=None: flat.denoise(x.ravel(), sigma).reshape(3, 4)
    y = rng(9).standard_normal(6)
    one = Problem(np.zeros(12), cov, np.eye(12)[mask.ravel()], y, np.array(0.1))
    x = rng(10).standard_normal(12)
    got = edm.Measured(prior, edm.inpaint(mask), jnp.asarray(y), 0.1, iterations=10)(
        jnp.asarray(x).reshape(3, 4), 0.6
    )
    np.testing.assert_allclose(got.ravel(), one.denoise(x, 0.6), atol=1e-8)


# Doors.


def test_a_nonlinear_operator_is_refused(unchecked):
    prior, x = MEASURED.denoiser, jnp.ones(3)
    curves = [jnp.abs, jnp.exp, jnp.sort, lambda x: x * x.sum(), lambda x: x / x.sum(), jax.nn.relu]
    curves += [lambda x: jnp.clip(x, 0, 1), lambda x: x**2, lambda x: jnp.where(x > 0, x, 0.0)]
    for curve in curves:
        measured = edm.Measured(prior, curve, jnp.ones(3), 0.1)
        with pytest.raises(
            TypeError, match=r"operator must be linear in x.*Linearised\(operator\)"
        ):
            measured(x, 0.5)
        with pytest.raises(TypeError, match="operator must be linear in x"):
            edm.sample(measured, x, edm.edm_sigmas(3))
        edm.Measured(prior, edm.Linearised(curve), jnp.ones(3), 0.1)(x, 0.5)


def test_what_is_refused(unchecked):
    prior, keep, y = MEASURED.denoiser, lambda x: x[:2], jnp.ones(2)
    with pytest.raises(TypeError, match="denoiser must be callable"):
        edm.Measured(None, keep, y, 0.1)
    with pytest.raises(TypeError, match="operator must be callable"):
        edm.Measured(prior, jnp.eye(3), y, 0.1)
    with pytest.raises(TypeError, match="function must be callable"):
        edm.Linearised(jnp.eye(3))
    with pytest.raises(ValueError, match="y must be a floating-point array, got int"):
        edm.Measured(prior, keep, jnp.ones(2, int), 0.1)
    with pytest.raises(ValueError, match="y must be finite"):
        edm.Measured(prior, keep, jnp.array([1.0, jnp.nan]), 0.1)
    with pytest.raises(ValueError, match=r"one number or have the shape of y, \(2,\), got shape"):
        edm.Measured(prior, keep, y, jnp.ones(3))
    for noise_std in (-0.1, np.inf, np.nan, jnp.array([0.1, -0.1])):
        with pytest.raises(ValueError, match="noise_std must be finite and not negative"):
            edm.Measured(prior, keep, y, noise_std)
    with pytest.raises(ValueError, match="iterations must be at least 1"):
        edm.Measured(prior, keep, y, 0.1, 0)
    with pytest.raises(TypeError, match="iterations must be a whole number"):
        edm.Measured(prior, keep, y, 0.1, 2.5)
    measured = edm.Measured(prior, keep, y, 0.1)
    with pytest.raises(ValueError, match="x must be a floating-point array"):
        measured(jnp.ones(3, int), 0.1)
    with pytest.raises(ValueError, match="sigma must be one number"):
        measured(jnp.ones(3), jnp.ones(3))
    for operator in (lambda x: x, lambda x: (x[:2], x[2:])):
        with pytest.raises(ValueError, match=r"one array with the shape of y, \(2,\)"):
            edm.Measured(prior, operator, y, 0.1)(jnp.ones(3), 0.1)


def test_a_sweep_over_noise_and_data_compiles_once():
    traces = []

    def counted(x, sigma, cond=None, *, key=None):
        traces.append(1)
        return x / (1 + sigma**2)

    mask = np.array([True, False, True])
    for noise_std, y in ((0.1, jnp.ones(2)), (0.2, jnp.zeros(2)), (0.0, jnp.ones(2))):
        measured = edm.Measured(counted, edm.inpaint(mask), y, noise_std)
        edm.sample(measured, jnp.ones(3), edm.edm_sigmas(3))
        if len(traces) and noise_std == 0.1:
            first = len(traces)
    assert len(traces) == first
