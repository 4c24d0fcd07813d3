"""Log-densities against closed forms, in float32 and with the defaults unless said."""

from functools import partial

import diffrax
import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import edm_tutorial as edm

SIGMA_MIN = 0.002


def rotated(angle, *std):
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return turn @ np.diag(np.square(std)) @ turn.T


def ring(centre):
    angles = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    means = np.stack([np.cos(angles), np.sin(angles)], axis=1) + centre
    return edm.GaussianMixture(np.full(8, 1 / 8), means, np.stack([0.01 * np.eye(2)] * 8))


def correlated(d, rng):
    axes, _ = np.linalg.qr(rng.normal(size=(d, d)))
    cov = (axes * np.geomspace(0.01, 2.0, d) ** 2) @ axes.T
    return edm.GaussianMixture([1.0], rng.normal(size=(1, d)), cov[None])


MIXTURES = {
    "centred": ring(np.zeros(2)),
    "off centre": ring(np.array([3.0, -2.0])),
    "anisotropic": edm.GaussianMixture(
        [0.2, 0.5, 0.3],
        [[-1.0, 0.0], [0.6, 0.8], [0.5, -1.1]],
        [rotated(0.3, 0.04, 0.3), rotated(1.2, 0.1, 0.12), rotated(2.0, 0.05, 0.2)],
    ),
}
GAUSSIAN_64 = correlated(64, np.random.default_rng(64))


def truth(mixture, x, sigma=SIGMA_MIN):
    return np.asarray(jax.vmap(lambda x: mixture.log_prob(x, sigma))(x))


def draw(mixture, key, n):
    return jax.vmap(mixture.sample)(jr.split(key, n))


@eqx.filter_jit
def evaluate(denoiser, x, **kwargs):
    return jax.vmap(lambda x: edm.log_likelihood(denoiser, x, **kwargs))(x)


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.slow
def test_float32_mixtures(name, key):
    mixture = MIXTURES[name]
    x = draw(mixture, key, 256)
    result = evaluate(mixture.denoise, x.astype(jnp.float32))
    assert result.log_prob.dtype == jnp.float32
    assert np.abs(np.asarray(result.log_prob) - truth(mixture, x)).max() < 1e-4
    assert result.num_steps.max() <= 40
    assert result.ok.all() and not result.std_error.any()


@pytest.mark.slow
def test_float32_gaussian_64(key):
    x = draw(GAUSSIAN_64, key, 16)
    result = evaluate(GAUSSIAN_64.denoise, x.astype(jnp.float32))
    assert np.abs(np.asarray(result.log_prob) - truth(GAUSSIAN_64, x)).max() < 1e-2
    assert result.num_steps.max() <= 40


@pytest.mark.slow
def test_linearisations(key):
    """At most 600 for the hardest of a few points: the denoiser runs once in each."""
    calls = []

    def counted(x, sigma, cond=None, *, key=None):
        jax.debug.callback(lambda _: calls.append(1), sigma)
        return MIXTURES["anisotropic"].denoise(x, sigma)

    for x in draw(MIXTURES["anisotropic"], key, 3).astype(jnp.float32):
        calls.clear()
        edm.log_likelihood(counted, x).log_prob.block_until_ready()
        jax.effects_barrier()
        assert 0 < len(calls) <= 600


@pytest.mark.slow
def test_float64_gains_digits(key):
    mixture = MIXTURES["centred"]
    x = draw(mixture, key, 4)
    controller = diffrax.PIDController(rtol=1e-9, atol=1e-9)
    result = evaluate(mixture.denoise, x, stepsize_controller=controller)
    np.testing.assert_allclose(result.log_prob, truth(mixture, x), atol=1e-6)


def test_hutchinson_is_unbiased_and_knows_its_error(key):
    point_key, probe_key = jr.split(key)
    mixture = MIXTURES["anisotropic"]
    x = draw(mixture, point_key, 1)[0]
    exact = mixture.log_prob(x, SIGMA_MIN)
    one = lambda key: edm.log_likelihood(
        mixture.denoise,
        x,
        probes=8,
        key=key,
        prior_mean=mixture.weights @ mixture.means,
    )
    result = jax.jit(jax.vmap(one))(jr.split(probe_key, 200))
    spread = result.log_prob.std(ddof=1)
    # 4 standard errors, and the terminal density's mismatch: d/2 (std/sigma_max)^2 < 2e-4
    assert abs(result.log_prob.mean() - exact) < 4 * spread / np.sqrt(200) + 2e-4
    reported = np.sqrt(np.mean(result.std_error**2))
    assert abs(reported / spread - 1) < 4 / np.sqrt(2 * 200)


def test_probes_are_fixed_by_the_key(key):
    mixture = MIXTURES["centred"]
    same, other = jr.split(key)
    f = eqx.filter_jit(
        lambda key: edm.log_likelihood(mixture.denoise, jnp.ones(2), probes=1, key=key)
    )
    first = f(jr.clone(same))
    assert first.log_prob == f(same).log_prob != f(other).log_prob
    assert np.isinf(first.std_error)  # one probe cannot tell


@pytest.mark.parametrize(
    "sigma_max, allowed", [pytest.param(80.0, 2e-5, marks=pytest.mark.slow), (5.0, 2e-5)]
)
def test_given_terminal_density(sigma_max, allowed):
    """A Gaussian's own mean and std make the terminal density exact at any sigma_max."""
    mean, std = np.array([1.5, -0.5]), np.array([0.3, 1.2])
    gaussian = edm.GaussianMixture([1.0], mean[None], np.diag(std**2)[None])
    x = jnp.array([1.0, 0.7])
    exact = gaussian.log_prob(x, SIGMA_MIN)
    given = edm.log_likelihood(
        gaussian.denoise, x, sigma_max=sigma_max, prior_mean=mean, prior_std=std
    )
    matched = edm.log_likelihood(gaussian.denoise, x, sigma_max=sigma_max)
    assert abs(given.log_prob - exact) < allowed
    assert abs(matched.log_prob - exact) < allowed


def test_wrong_terminal_density_costs_what_it_should():
    """N(0, sigma_max^2) for N(0, s^2) data is off by d/2 (1 - z^2) (s/sigma_max)^2."""
    s, sigma_max, z = 1.0, 5.0, 0.5
    gaussian = edm.GaussianMixture([1.0], np.zeros((1, 2)), s**2 * np.eye(2)[None])
    x = jnp.full(2, z * np.sqrt(s**2 + SIGMA_MIN**2))
    wrong = edm.log_likelihood(gaussian.denoise, x, sigma_max=sigma_max, prior_std=0.0)
    total = sigma_max**2 + s**2
    end = z**2 * total
    difference = -(end / sigma_max**2 - end / total) + np.log(total / sigma_max**2)
    error = wrong.log_prob - gaussian.log_prob(x, SIGMA_MIN)
    np.testing.assert_allclose(error, difference, atol=2e-5)


@pytest.mark.slow
def test_condition_solver_and_vector_field(key):
    """The condition reaches the denoiser; any Diffrax solver gives the same number."""

    def shifted(x, sigma, cond=None, *, key=None):
        assert cond is not None
        return cond + MIXTURES["centred"].denoise(x - cond, sigma)

    x, cond = jnp.array([0.9, 0.2]), jnp.array([2.0, -1.0])
    exact = MIXTURES["centred"].log_prob(x, SIGMA_MIN)
    for solver in (diffrax.Dopri8(), diffrax.Tsit5(), diffrax.Kvaerno5()):
        with jax.numpy_rank_promotion("allow"):
            result = edm.log_likelihood(shifted, x + cond, cond, solver=solver)
        assert abs(result.log_prob - exact) < 5e-4, solver


@pytest.mark.slow
def test_does_not_depend_on_batch_mates(key):
    mixture = MIXTURES["off centre"]
    x = draw(mixture, key, 8).astype(jnp.float32)
    together = evaluate(mixture.denoise, x)
    alone = evaluate(mixture.denoise, x[:1])
    np.testing.assert_allclose(together.log_prob[0], alone.log_prob[0], atol=1e-5)
    assert together.num_steps[0] == alone.num_steps[0]


@pytest.mark.slow
def test_latent_decodes(key):
    mixture = MIXTURES["anisotropic"]
    x = draw(mixture, key, 32).astype(jnp.float32)
    latent = evaluate(mixture.denoise, x).latent
    sigmas = edm.edm_sigmas(512)
    back = jax.jit(jax.vmap(lambda z: edm.sample(mixture.denoise, z, sigmas)))(latent)
    # The flow ends at sigma_min, the sample at 0: up to sigma_min off, in the noise's tail.
    np.testing.assert_allclose(back, x, atol=1e-3)


# A fixed grid of levels

GAUSSIAN_2 = correlated(2, np.random.default_rng(2))


@pytest.mark.parametrize(
    "solver, order, counts",
    [(diffrax.Heun(), 2, (64, 128, 256)), (diffrax.Bosh3(), 3, (32, 64, 128))],
    ids=["heun", "bosh3"],
)
def test_order_of_convergence_on_a_fixed_grid(solver, order, counts):
    """Against the density of a Gaussian, whose own moments make the terminal density exact."""
    x = jnp.array([0.4, -0.9])
    exact = GAUSSIAN_2.log_prob(x, SIGMA_MIN)
    errors = []
    for n in counts:
        grid = edm.edm_sigmas(n)
        result = edm.log_likelihood(GAUSSIAN_2.denoise, x, sigmas=grid, solver=solver)
        assert result.num_steps == n - 1 and result.ok
        errors.append(abs(float(result.log_prob - exact)))
    np.testing.assert_allclose(np.log2(np.divide(errors[:-1], errors[1:])), order, atol=0.25)


@pytest.mark.slow
def test_a_fixed_grid_takes_the_steps_of_diffrax(key):
    """One step from each level to the next, for every point: the numbers of `diffrax.StepTo`."""
    mixture, levels = MIXTURES["anisotropic"], edm.edm_sigmas(24, 0.01)
    x = draw(mixture, key, 5)
    step_to = diffrax.StepTo(levels[::-1])
    ends = {"sigma_min": levels[-1], "sigma_max": levels[0], "stepsize_controller": step_to}
    for solver in (diffrax.Bosh3(), diffrax.Tsit5()):
        got = evaluate(mixture.denoise, x, sigmas=levels, solver=solver)
        want = evaluate(mixture.denoise, x, solver=solver, **ends)
        np.testing.assert_allclose(got.log_prob, want.log_prob, rtol=1e-12)
        np.testing.assert_allclose(got.latent, want.latent, rtol=1e-12)


@pytest.mark.slow
def test_gradients_on_a_fixed_grid(key):
    """d log p / dx is the score at the last level, up to the error of 96 steps."""
    mixture = MIXTURES["centred"]
    x = draw(mixture, key, 1)[0]
    grid = edm.edm_sigmas(96, 0.05)
    value = lambda x: edm.log_likelihood(mixture.denoise, x, sigmas=grid).log_prob
    np.testing.assert_allclose(jax.grad(value)(x), mixture.score(x, 0.05), rtol=1e-4, atol=1e-4)


def test_sweeps_compile_once():
    """Ends, the terminal density, tolerances and a float condition are numbers, not sizes."""
    count = []

    def denoise(x, sigma, cond=None):
        count.append(1)
        return cond + MIXTURES["centred"].denoise(x - cond, sigma)

    x, found = jnp.array([0.9, 0.2]), set()
    for v in (0.5, 0.7, 0.9):
        numbers = {"sigma_min": v / 10, "sigma_max": 10 * v, "prior_mean": v, "prior_std": 2 * v}
        numbers["stepsize_controller"] = diffrax.PIDController(rtol=v * 1e-4, atol=v * 1e-5)
        result = edm.log_likelihood(denoise, x, v, **numbers)
        found |= {float(result.log_prob), len(count)}
    assert len(found) == 4  # three values, and one number of traces


@pytest.mark.parametrize("sigmas", [None, edm.edm_sigmas(8)], ids=["adaptive", "grid"])
def test_it_exports_where_nothing_is_thrown(sigmas):
    mixture, x = MIXTURES["centred"], jnp.array([0.9, 0.2])

    @jax.jit
    def run(x, std):
        options = {"sigmas": sigmas, "prior_std": std, "throw": False}
        return edm.log_likelihood(mixture.denoise, x, **options)._asdict()

    exported = jax.export.export(run)(x, jnp.array(0.7))
    for std in (0.7, -1.0):  # a negative one is NaN, not ok
        arguments = x, jnp.array(std)
        jax.tree.map(np.testing.assert_allclose, exported.call(*arguments), run(*arguments))
        assert run(*arguments)["ok"] == (std > 0)
    pytest.importorskip("flatbuffers")
    back = jax.export.deserialize(exported.serialize())
    jax.tree.map(np.testing.assert_allclose, back.call(*arguments), run(*arguments))


@pytest.mark.slow
def test_out_of_steps():
    gaussian = MIXTURES["centred"]
    with pytest.raises(RuntimeError, match="max_steps"):
        edm.log_likelihood(gaussian.denoise, jnp.ones(2), max_steps=4).ok.item()
    result = edm.log_likelihood(gaussian.denoise, jnp.ones(2), max_steps=4, throw=False)
    assert np.isnan(result.log_prob) and not result.ok


def test_failure_is_marked_example_by_example():
    """Under vmap with throw=False only the example that fails is NaN."""

    def rough(x, sigma, cond=None, *, key=None):
        assert cond is not None
        return jnp.where(cond, jnp.nan, 1.0) * x / (1 + sigma**2)

    one = lambda x, bad: edm.log_likelihood(rough, x, bad, throw=False)
    result = jax.vmap(one)(jnp.ones((2, 2)), jnp.array([False, True]))
    assert result.ok.tolist() == [True, False]
    assert np.isfinite(result.log_prob).tolist() == [True, False]


@pytest.mark.slow
def test_gradients(key):
    """d log p / dx is the score at sigma_min; d log p / d mean of a Gaussian is minus it."""
    mixture = MIXTURES["anisotropic"]
    x = draw(mixture, key, 1)[0]
    value = lambda x, mixture: edm.log_likelihood(mixture.denoise, x).log_prob
    score = mixture.score(x, SIGMA_MIN)
    by_x, by_mixture = eqx.filter_jit(eqx.filter_grad(lambda p: value(*p)))((x, mixture))
    np.testing.assert_allclose(by_x, score, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(by_mixture.means.sum(axis=0), -score, rtol=1e-3, atol=1e-3)


def slope(adjoint, **kwargs):
    """The gradients of log p with respect to a point and to the mean of a Gaussian."""

    def value(x, mean):
        gaussian = edm.GaussianMixture(jnp.ones(1), mean[None], jnp.ones((1, 1, 1)))
        prior = {"prior_mean": mean, "prior_std": 1.0} if kwargs else {}
        return edm.log_likelihood(gaussian.denoise, x, adjoint=adjoint, **prior, **kwargs).log_prob

    derive = jax.jacfwd if isinstance(adjoint, diffrax.ForwardMode) else jax.grad
    return derive(value, argnums=(0, 1))(jnp.array([0.7]), jnp.array([0.2]))


@pytest.mark.parametrize("adjoint", [diffrax.ForwardMode(), diffrax.BacksolveAdjoint()])
@pytest.mark.slow
def test_adjoint_is_open_to_choice(adjoint):
    """The score at sigma_min, -(x - mean) / (1 + sigma_min^2), and its negative.

    The tolerance is the solver's, on the way there and, with `BacksolveAdjoint`, back.
    """
    by_x, by_mean = slope(adjoint)
    np.testing.assert_allclose(by_x, -0.5 / (1 + SIGMA_MIN**2), rtol=1e-3)
    np.testing.assert_allclose(by_mean, 0.5 / (1 + SIGMA_MIN**2), rtol=1e-3)


@pytest.mark.slow
def test_backsolve_takes_probes():
    """In one dimension a random sign squares to 1, so one probe is exact."""
    by_x, by_mean = slope(diffrax.BacksolveAdjoint(), probes=1, key=jr.key(0))
    np.testing.assert_allclose(by_x, -0.5 / (1 + SIGMA_MIN**2), rtol=1e-3)
    np.testing.assert_allclose(by_mean, 0.5 / (1 + SIGMA_MIN**2), rtol=1e-3)


@pytest.mark.slow
def test_trained_density_integrates_to_one(key):
    data_key, net_key, train_key = jr.split(key, 3)
    x = draw(
        edm.GaussianMixture([0.4, 0.6], [[-0.6, 0.0], [0.4, 0.0]], [rotated(0.4, 0.2, 0.4)] * 2),
        data_key,
        4096,
    )
    denoiser = edm.Denoiser(
        edm.MLP(2, width=32, depth=1, key=net_key), edm.EDMPreconditioning.from_data(x)
    )
    loss = partial(edm.denoising_loss, sigma_dist=edm.LogNormal(-0.8, 1.2))
    run = edm.train(
        denoiser,
        loss,
        x,
        optax.adam(3e-3),
        steps=400,
        batch_size=256,
        key=train_key,
        every=400,
    )
    state, _ = next(run)
    side = jnp.linspace(-2.5, 2.5, 61, dtype=jnp.float32)
    grid = jnp.stack(jnp.meshgrid(side, side), axis=-1).reshape(-1, 2)
    # sigma_min at the grid's spacing: the density has no finer detail than the sum sees
    log_prob = evaluate(state.ema, grid, sigma_min=0.1).log_prob
    total = jnp.exp(log_prob).sum() * (side[1] - side[0]) ** 2
    assert abs(total - 1) < 5e-3


def test_bits_per_dim():
    """Uniform data on [-1, 1] carry log2(bins) bits a dimension, in any unit."""
    shape = (3, 4, 4)
    log_prob = jnp.array(-48 * np.log(2.0))
    np.testing.assert_allclose(edm.bits_per_dim(log_prob, shape), 8.0, rtol=1e-12)
    np.testing.assert_allclose(edm.bits_per_dim(log_prob, shape, bins=16), 4.0, rtol=1e-12)
    in_grey_levels = log_prob - 48 * np.log(127.5)  # the same data on [0, 255]
    np.testing.assert_allclose(
        edm.bits_per_dim(in_grey_levels, shape, scale=255 / 256), 8.0, rtol=1e-12
    )


def test_quantised_gaussian_bits():
    """Discrete entropy of a finely quantised Gaussian: log2(std sqrt(2 pi e) / width)."""
    std, bins = 0.3, 256
    mean_log_prob = jnp.array(-0.5 * np.log(2 * np.pi * np.e * std**2))
    edges = np.linspace(-4, 4, 4 * bins + 1)
    z = edges / std / np.sqrt(2)
    mass = np.diff([0.5 * (1 + float(jax.scipy.special.erf(v))) for v in z])
    mass = mass[mass > 0]
    entropy = -np.sum(mass * np.log2(mass))
    np.testing.assert_allclose(edm.bits_per_dim(mean_log_prob, (1,), bins=bins), entropy, atol=1e-3)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"sigma_min": 1.0, "sigma_max": 0.5}, "sigma_min < sigma_max"),
        ({"sigma_min": 0.0}, "0 < sigma_min"),
        ({"probes": 0, "key": jr.key(0)}, "probes must be at least 1, got probes=0"),
        ({"probes": 4}, "pass key="),
        ({"key": jr.key(0)}, "only with probes"),
        ({"prior_mean": np.zeros(3)}, r"prior_mean must be .* shape of x, \(2,\), got \(3,\)"),
        ({"prior_std": np.ones((1, 2))}, r"prior_std must be .* shape of x, \(2,\), got \(1, 2\)"),
        ({"prior_std": -1.0}, "prior_std must not be negative"),
        ({"prior_std": np.inf}, "prior_std must be finite, got inf"),
    ],
)
def test_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        edm.log_likelihood(MIXTURES["centred"].denoise, jnp.ones(2), **kwargs)


@pytest.mark.parametrize("probes", [True, 2.5, "4"])
def test_refuses_probes_that_are_no_int(unchecked, probes):
    with pytest.raises(TypeError, match=f"probes must be a whole number, got {probes!r}"):
        edm.log_likelihood(MIXTURES["centred"].denoise, jnp.ones(2), probes=probes, key=jr.key(0))


@pytest.mark.parametrize(
    "denoiser, message",
    [
        (lambda x, sigma, cond=None: jnp.zeros(3), r"shape of x, \(2,\), got \(3,\)"),
        (lambda x, sigma, cond=None: x.sum(), r"shape of x, \(2,\), got \(\)"),
        (lambda x, sigma, cond=None: x.astype(jnp.float32), "dtype of x, float64, got float32"),
    ],
)
@pytest.mark.parametrize("probes", [None, 2])
def test_refuses_a_denoiser_that_answers_in_another_form(denoiser, message, probes):
    key = None if probes is None else jr.key(0)
    with pytest.raises(ValueError, match=f"the denoiser's output must have the {message}"):
        edm.log_likelihood(denoiser, jnp.ones(2), probes=probes, key=key)


def test_refuses_integers(unchecked):
    with pytest.raises(ValueError, match="x must be a floating-point array"):
        edm.log_likelihood(MIXTURES["centred"].denoise, jnp.arange(2))


@pytest.mark.parametrize("shape, kwargs", [((), {"bins": 0}), ((0,), {}), ((3,), {"scale": -1.0})])
def test_bits_per_dim_refuses(shape, kwargs):
    with pytest.raises(ValueError, match="bins of at least 1 and a positive scale"):
        edm.bits_per_dim(jnp.array(0.0), shape, **kwargs)


def test_a_failed_solve_leaves_no_number_behind():
    """Neither the latent nor the standard error of a failed solve may look like an answer."""
    mixture = MIXTURES["centred"]
    result = edm.log_likelihood(mixture.denoise, jnp.ones(2), max_steps=4, throw=False)
    assert np.isnan(result.latent).all() and np.isnan(result.std_error)
    latent = eqx.filter_jit(lambda x: edm.log_likelihood(mixture.denoise, x, max_steps=4).latent)
    with pytest.raises(RuntimeError, match="max_steps"):
        latent(jnp.ones(2)).block_until_ready()


def test_a_point_that_is_nan_is_refused_unless_nan_is_asked_for():
    denoise, x = MIXTURES["centred"].denoise, jnp.array([1.0, jnp.nan])
    with pytest.raises(ValueError, match="x must be finite"):
        edm.log_likelihood(denoise, x)
    quiet = edm.log_likelihood(denoise, x, throw=False)
    assert np.isnan(quiet.log_prob) and not quiet.ok


def test_refuses_arrays_that_are_out_of_range(unchecked):
    """By value where it can be looked at; inside `jit` on use, and with throw=False as NaN."""
    denoise, x = MIXTURES["centred"].denoise, jnp.ones(2)
    bad = {
        "need 0 < sigma_min < sigma_max": {"sigma_min": jnp.array(2.0), "sigma_max": 1.0},
        "prior_std must not be negative": {"prior_std": jnp.array([1.0, -1.0])},
    }
    for message, arguments in bad.items():
        with pytest.raises(ValueError, match=message):
            edm.log_likelihood(denoise, x, **arguments)
        run = eqx.filter_jit(partial(edm.log_likelihood, denoise, x))
        arguments = {name: jnp.asarray(value) for name, value in arguments.items()}
        with pytest.raises(RuntimeError, match="sigma_min < sigma_max, .*prior_std not negative"):
            run(**arguments).ok.item()
        quiet = run(**arguments, throw=False)
        assert np.isnan(quiet.log_prob) and not quiet.ok
