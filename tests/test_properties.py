"""What holds for every mixture, dimension, dtype, grid and schedule, on cases that are drawn.

Hypothesis draws them, the same in every run. Each property is exact, so that the tolerances are
those of the arithmetic. A mixture is drawn as a seed: its arrays come from NumPy.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import edm_tutorial as edm

# Derandomised: a failure is a failure in every run. One compilation serves all examples of a shape.
FEW = settings(
    derandomize=True,
    deadline=None,
    max_examples=12,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)

seeds = st.integers(0, 2**32 - 1)
sizes = st.sampled_from([(1, 1), (3, 2), (2, 4)])  # components and dimensions
levels = st.floats(0.05, 20.0)  # noise levels
factors = st.floats(0.1, 10.0)
dtypes = st.sampled_from([jnp.float32, jnp.float64])


class Power(edm.AbstractSchedule):
    """sigma = t^a and s = (1 + sigma^2)^(-b/2): a family of schedules that is in no paper."""

    a: jax.Array
    b: jax.Array

    def sigma(self, t):
        return jnp.asarray(t) ** self.a

    def time(self, sigma):
        return jnp.asarray(sigma) ** (1 / self.a)

    def scale(self, t):
        return (1 + self.sigma(t) ** 2) ** (-self.b / 2)


WRAPPERS = {
    "plain": lambda schedule: schedule,
    "unscaled": edm.Unscaled,
    "variance scaled": edm.VarianceScaled,
}


def mixture(seed, size, dtype=jnp.float64):
    """A mixture with correlated components, and a point where its density is not tiny."""
    rng = np.random.default_rng(seed)
    count, d = size
    root = rng.normal(size=(count, d, d)) / np.sqrt(d)
    covs = root @ root.swapaxes(1, 2) + 0.1 * np.eye(d)
    weights, means = rng.dirichlet(np.ones(count) * 3), 2 * rng.normal(size=(count, d))
    parts = (jnp.asarray(part, dtype) for part in (weights, means, covs))
    return edm.GaussianMixture(*parts), jnp.asarray(rng.normal(size=d), dtype)


def moved(data, rotation, shift, scale):
    """The mixture of c (R y + b)."""
    covs = scale**2 * jnp.einsum("ij,kjl,ml->kim", rotation, data.covs, rotation)
    means = scale * (data.means @ rotation.T + shift[None])
    return edm.GaussianMixture(data.weights, means, covs)


def close(got, wanted, dtype=jnp.float64, digits=1e-9):
    """Equal up to round-off, relative to the largest entry; `digits` in float64."""
    tolerance = digits if dtype == jnp.float64 else 1e-3
    wanted = np.asarray(wanted, float)
    scale = max(np.abs(wanted).max(), 1e-2)
    np.testing.assert_allclose(np.asarray(got, float), wanted, rtol=0, atol=tolerance * scale)


# Identities of the denoiser


@eqx.filter_jit
def _scores(data, x, sigma):
    by_density = jax.grad(data.log_prob)(x, sigma)
    return edm.score(data.denoise, x, sigma), data.score(x, sigma), by_density


@FEW
@given(seed=seeds, size=sizes, sigma=levels, dtype=dtypes)
@pytest.mark.slow
def test_score_is_the_gradient_of_the_log_density(seed, size, sigma, dtype):
    """Eq. 3, by three routes."""
    data, x = mixture(seed, size, dtype)
    from_denoiser, formula, by_density = _scores(data, x, jnp.asarray(sigma, dtype))
    assert from_denoiser.dtype == formula.dtype == dtype
    # The first divides D - x by sigma^2, which is as large as 1 / sigma times the score.
    close(from_denoiser, by_density, dtype)
    close(formula, by_density, dtype)


@eqx.filter_jit
def _balances(data, x, t, schedule, rate):
    """d ln p / dt at a fixed point, and what each equation says it is."""

    def log_prob(t, x):
        s = schedule.scale(t)
        return data.log_prob(x / s, schedule.sigma(t)) - x.size * jnp.log(s)

    def transport(drift):
        divergence = jnp.trace(jax.jacfwd(lambda x: drift(t, x, None))(x))
        return -divergence - drift(t, x, None) @ slope

    def spread(diffusion):
        g = diffusion(t, x, None).diagonal[0]
        return g**2 / 2 * (jnp.trace(jax.hessian(log_prob, 1)(t, x)) + slope @ slope)

    slope = jax.grad(log_prob, 1)(t, x)
    forward = edm.forward_sde(schedule)
    reverse = edm.reverse_sde(data.denoise, schedule, rate)
    return jax.grad(log_prob)(t, x), {
        "ode": transport(edm.probability_flow(data.denoise, schedule)),
        "forward": transport(forward[0]) + spread(forward[1]),
        "reverse": transport(reverse[0]) - spread(reverse[1]),
    }


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@FEW
@given(
    seed=seeds,
    t=st.floats(0.2, 3.0),
    a=st.floats(0.5, 2.0),
    b=st.floats(0.0, 2.0),
    rate=st.floats(0.0, 5.0),
)
def test_every_equation_moves_the_marginals_as_the_noise_does(wrap, seed, t, a, b, rate):
    """The continuity and Fokker-Planck equations of Eqs. 4 and 6, at a point.

    Round-off is relative to terms that cancel, of the size of x^2 over the smallest variance.
    """
    data, x = mixture(seed, (3, 2))
    schedule = wrap(Power(jnp.asarray(a), jnp.asarray(b)))
    change, claims = _balances(data, x, jnp.asarray(t), schedule, jnp.asarray(rate))
    for name, claim in claims.items():
        scale = 1 + abs(float(change))
        assert abs(float(claim - change)) < 1e-8 * scale, name


# Symmetries: the exact denoiser of transformed data is the transformed denoiser


@eqx.filter_jit
def _both(data, x, sigma, rotation, shift, scale):
    there = moved(data, rotation, shift, scale)
    wanted = scale * (rotation @ data.denoise(x, sigma) + shift)
    return there.denoise(scale * (rotation @ x + shift), scale * sigma), wanted


@FEW
@given(seed=seeds, size=sizes, sigma=levels, scale=factors)
@pytest.mark.slow
def test_mixture_is_equivariant(seed, size, sigma, scale):
    """Rotations (permutations among them), translations, and scale with sigma."""
    data, x = mixture(seed, size)
    rng, scale = np.random.default_rng(seed + 1), jnp.asarray(scale)
    rotation = jnp.asarray(np.linalg.qr(rng.normal(size=(size[1], size[1])))[0])
    close(*_both(data, x, sigma, rotation, jnp.asarray(rng.normal(size=size[1])), scale))


@FEW
@given(seed=seeds, sigma=levels, scale=factors)
def test_empirical_denoiser_is_equivariant(seed, sigma, scale):
    rng = np.random.default_rng(seed)
    points, x, shift = rng.normal(size=(7, 3)), rng.normal(size=3), rng.normal(size=3)
    order, features = rng.permutation(7), rng.permutation(3)
    here = edm.EmpiricalDenoiser(points)(jnp.asarray(x), sigma)
    there = edm.EmpiricalDenoiser(scale * (points[order][:, features] + shift))
    at = jnp.asarray(scale * (x[features] + shift))
    close(there(at, scale * sigma), scale * (np.asarray(here)[features] + shift))


@eqx.filter_jit
def _ends(data, noise, sigmas, scale, rotation, solver):
    there = moved(data, rotation, jnp.zeros(noise.shape), scale)
    end = edm.sample(there.denoise, rotation @ noise, scale * sigmas, solver=solver)
    return end, scale * (rotation @ edm.sample(data.denoise, noise, sigmas, solver=solver))


@pytest.mark.parametrize("solver", [edm.Euler(), edm.Heun(), edm.DPMSolverPP2M()])
@FEW
@given(seed=seeds, scale=factors, rho=st.floats(1.0, 10.0))
def test_samplers_are_equivariant(solver, seed, scale, rho):
    """Linear solvers commute with a change of units and with rotations of the data."""
    data, noise = mixture(seed, (3, 2))
    rng, scale = np.random.default_rng(seed + 1), jnp.asarray(scale)
    rotation = jnp.asarray(np.linalg.qr(rng.normal(size=(2, 2)))[0])
    sigmas = edm.edm_sigmas(6, 0.05, 20.0, rho)
    close(*_ends(data, noise, sigmas, scale, rotation, solver), digits=1e-7)


# There and back


@eqx.filter_jit
def _there_and_back(data, x):
    there = edm.log_likelihood(data.denoise, x, sigma_min=0.01, sigma_max=20.0)
    sigmas = edm.edm_sigmas(256, 0.01, 20.0)
    path = edm.sample_path(data.denoise, there.latent, sigmas)
    return there.log_prob, path[-2], data.log_prob(x, 0.01)


@settings(FEW, max_examples=5)
@given(seed=seeds)
def test_decoding_undoes_encoding(seed):
    """`latent` runs up the ODE, the sampler down again, to the same point at sigma_min.

    Heun's error at 256 steps is below 1e-3 of the data's scale (it falls as 1 / n^2 and is 1 %
    in width at 64); the likelihood's own is that of its tolerance 1e-5 and of its prior.
    """
    data, x = mixture(seed, (3, 2))
    log_prob, back, exact = _there_and_back(data, x)
    np.testing.assert_allclose(back, x, atol=5e-3)
    assert abs(float(log_prob - exact)) < 2e-3


@FEW
@given(sigma=st.floats(1e-3, 50.0), beta=st.floats(1.0, 20.0), dtype=dtypes)
def test_time_inverts_sigma(sigma, beta, dtype):
    schedule, sigma = edm.VariancePreserving(beta, 0.3), jnp.asarray(sigma, dtype)
    time = schedule.time(sigma)
    assert time.dtype == schedule.sigma(time).dtype == schedule.scale(time).dtype == dtype
    # In VP ln(1 + sigma^2) is rounded, and sigma = 50 multiplies what is lost by 8.
    close(schedule.sigma(time) / sigma, 1.0, dtype, digits=1e-12)


# Grids, coefficients, losses


@FEW
@given(n=st.integers(2, 60), low=st.floats(1e-3, 0.1), high=st.floats(1.0, 100.0), scale=factors)
def test_grids_descend_between_their_ends_in_any_unit(n, low, high, scale):
    for grid in (edm.edm_sigmas, edm.ve_sigmas):
        sigmas = np.asarray(grid(n, low, high))
        assert len(sigmas) == n and np.all(np.diff(sigmas) < 0)
        np.testing.assert_allclose(sigmas[[0, -1]], [high, low], rtol=1e-12)
        np.testing.assert_allclose(grid(n, scale * low, scale * high), scale * sigmas, rtol=1e-11)
        # Twice as fine a grid contains the coarse one.
        np.testing.assert_allclose(grid(2 * n - 1, low, high)[::2], sigmas, rtol=1e-11)


@FEW
@given(n=st.integers(1, 400), low=st.floats(0.002, 0.1), high=st.floats(20.0, 100.0))
def test_iddpm_grid_holds_distinct_trained_levels(n, low, high):
    sigmas, table = np.asarray(edm.iddpm_sigmas(n, low, high)), np.asarray(edm.iddpm_table())
    assert np.all(np.diff(sigmas) < 0) and set(sigmas) <= set(table)
    assert low * (1 - 1e-6) <= sigmas[-1] and sigmas[0] <= high * (1 + 1e-6)


@FEW
@given(sigma=levels, sigma_data=factors)
def test_edm_coefficients_keep_unit_variance(sigma, sigma_data):
    """The three demands of the paper's App. B.6: on the input, on the target, and on c_skip."""
    pre = edm.EDMPreconditioning(sigma_data)
    c = pre(jnp.asarray(sigma))
    np.testing.assert_allclose(c.c_in**2 * (sigma**2 + sigma_data**2), 1, rtol=1e-12)
    target = lambda skip: (1 - skip) ** 2 * sigma_data**2 + skip**2 * sigma**2
    np.testing.assert_allclose(c.c_out**2, target(c.c_skip), rtol=1e-12)
    np.testing.assert_allclose(jax.grad(target)(c.c_skip) / sigma_data**2, 0, atol=1e-12)
    np.testing.assert_allclose(pre.loss_weight(jnp.asarray(sigma)) * c.c_out**2, 1, rtol=1e-12)


PRECONDITIONINGS = {
    "edm": edm.EDMPreconditioning(0.7),
    "ve": edm.VEPreconditioning(),
    "vp": edm.VPPreconditioning(),
    "iddpm": edm.IDDPMPreconditioning(),
}


@pytest.mark.parametrize("part", PRECONDITIONINGS.values(), ids=PRECONDITIONINGS)
@FEW
@given(seed=seeds, sigma=levels)
def test_loss_in_network_space_is_the_loss_in_data_space(part, seed, sigma):
    """Eq. 8 is Eq. 2, for any network."""
    rng = np.random.default_rng(seed)
    x, noise = jnp.asarray(rng.normal(size=4)), jnp.asarray(rng.normal(size=4))
    network = lambda z, c, cond=None, *, key=None: jnp.sin(z[::-1]) + jnp.cos(c)
    denoiser = edm.Denoiser(network, part)
    got = edm.weighted_error(denoiser, x, sigma, sigma * noise)
    error = denoiser(x + sigma * noise, jnp.asarray(sigma)) - x
    close(got, part.loss_weight(jnp.asarray(sigma)) * error**2)


@eqx.filter_jit
def _guided(main, guide, x, sigma, weights):
    at = lambda w: edm.Guided(main.denoise, guide.denoise, w)(x, sigma)
    return main.denoise(x, sigma), guide.denoise(x, sigma), jax.vmap(at)(weights)


@FEW
@given(seed=seeds, sigma=levels, weight=st.floats(-1.0, 4.0), dtype=dtypes)
def test_guidance_is_a_straight_line_in_its_weight(seed, sigma, weight, dtype):
    (main, x), (guide, _) = mixture(seed, (2, 3), dtype), mixture(seed + 1, (2, 3), dtype)
    weights = jnp.asarray([0.0, 1.0, weight], dtype)
    best, worst, at = _guided(main, guide, x, jnp.asarray(sigma, dtype), weights)
    assert at.dtype == dtype
    close(at, np.stack([worst, best, (1 - weight) * worst + weight * best]), dtype)


@settings(FEW, max_examples=5)
@given(seed=seeds, n=st.sampled_from([1, 3]), dtype=st.sampled_from([jnp.float16, jnp.float32]))
@pytest.mark.slow
def test_samplers_keep_the_dtype_and_stay_on_their_path(seed, n, dtype):
    """`sample` is the end of `sample_path`, in the dtype of the noise, whatever the weights'."""
    data, noise = mixture(seed, (3, 2))
    sigmas = edm.edm_sigmas(n, 0.1, 10.0)
    path = edm.sample_path(data.denoise, noise.astype(dtype), sigmas)
    assert path.dtype == dtype and path.shape == (n + 1, 2)
    np.testing.assert_array_equal(path[-1], edm.sample(data.denoise, noise.astype(dtype), sigmas))
    np.testing.assert_array_equal(path[0], noise.astype(dtype) * sigmas[0].astype(dtype))


def test_every_public_object_is_frozen():
    """Choices are values: what has been built cannot be changed under a compiled function."""
    for thing in (edm.Linear(), edm.Heun(), edm.Churn(1.0), *PRECONDITIONINGS.values()):
        for field in dataclasses.fields(thing):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(thing, field.name, 2.0)
