"""The tasks against their definitions in SciPy, reference posteriors and first integrals."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import integrate, stats

from edm_tutorial.sbi import tasks
from edm_tutorial.sbi.tasks.base import LogNormalPrior, NormalPrior, UniformPrior
from edm_tutorial.sbi.tasks.glm import design

REFERENCE = Path(__file__).parent / "sbi_reference"
SHARED = ("two_moons", "gaussian_mixture", "gaussian_linear", "gaussian_linear_uniform", "slcp")
SIZES = dict(zip(SHARED, [(2, 2), (2, 2), (10, 10), (10, 10), (5, 8)], strict=True))
SIZES |= {"lotka_volterra": (4, 20), "sir": (2, 10), "bernoulli_glm": (10, 10)}
FOUR_SIGMA = 6.3e-5  # the probability that a normal number is 4 standard deviations out


def task(name):
    return getattr(tasks, name)()


def reference(name):
    with np.load(REFERENCE / f"{name}.npz") as file:
        return {key: np.asarray(file[key], float) for key in file.files}


def simulate(key, problem, theta, n=4000):
    """`n` draws of x at one theta."""
    data = jax.jit(jax.vmap(problem.simulate, (0, None)))(jr.split(key, n), jnp.asarray(theta))
    return np.asarray(data)


def assert_follows(sample, law):
    assert stats.kstest(sample, law).pvalue > FOUR_SIGMA


def assert_mean(values, expected):
    """The mean of independent rows, at 4 of its standard errors."""
    values = np.asarray(values)
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    np.testing.assert_array_less(np.abs(values.mean(axis=0) - expected), 4 * error + 1e-14)


def polar(x, theta):
    """Radius and angle of two_moons: its equations, solved for (r, a)."""
    turned = np.array([theta[..., 0] + theta[..., 1], theta[..., 1] - theta[..., 0]]) / np.sqrt(2)
    u, v = x[..., 0] + np.abs(turned[0]) - 0.25, x[..., 1] - turned[1]
    return np.hypot(u, v), np.arctan2(v, u)


def slcp_covariance(theta):
    s_1, s_2, rho = theta[2] ** 2, theta[3] ** 2, np.tanh(theta[4])
    return np.array([[s_1**2, rho * s_1 * s_2], [rho * s_1 * s_2, s_2**2]]) + 1e-6 * np.eye(2)


# Priors and data sets


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.slow
def test_sizes_and_dtypes(name, key):
    problem = task(name)
    assert (problem.dim_theta, problem.dim_x) == SIZES[name]
    low, high = (np.asarray(end) for end in problem.prior_support)
    theta, x = tasks.draw(key, problem, 50)
    assert theta.shape == (50, problem.dim_theta) and x.shape == (50, problem.dim_x)
    assert np.all((low < np.asarray(theta)) & (np.asarray(theta) < high))
    assert np.all(np.isfinite(x))
    single = jax.eval_shape(problem.simulate, key, theta[0].astype(jnp.float32))
    assert single.dtype == jnp.float32


@pytest.mark.parametrize(
    "prior, law",
    [
        (UniformPrior(jnp.array([-1.0]), jnp.array([3.0])), stats.uniform(-1, 4)),
        (NormalPrior(jnp.array([2.0]), jnp.array([0.5])), stats.norm(2, 0.5)),
        (LogNormalPrior(jnp.array([-3.0]), jnp.array([0.5])), stats.lognorm(0.5, 0, np.exp(-3))),
    ],
    ids=["uniform", "normal", "log-normal"],
)
def test_priors_equal_scipy(prior, law, key):
    draws = jax.vmap(prior.sample)(jr.split(key, 4000))
    assert_follows(np.asarray(draws[:, 0]), law.cdf)
    at = jnp.linspace(-2.0, 4.0, 13)[:, None]
    # 1e-12: round-off of a few operations
    log_prob = jax.vmap(prior.log_prob)(at)
    np.testing.assert_allclose(log_prob, law.logpdf(np.asarray(at[:, 0])), rtol=1e-12)
    assert tuple(map(float, np.concatenate(prior.support))) == law.support()


@pytest.mark.parametrize(
    "name, scales",
    [("lotka_volterra", [0.5] * 4), ("sir", [0.5, 0.2])],
)
def test_rates_have_the_stated_priors(name, scales):
    medians = {"lotka_volterra": np.exp([-0.125, -3, -0.125, -3]), "sir": np.array([0.4, 0.125])}
    theta = medians[name] * 1.3
    exact = stats.lognorm(scales, 0, medians[name]).logpdf(theta).sum()
    np.testing.assert_allclose(task(name).log_prior(jnp.asarray(theta)), exact, rtol=1e-10)


@pytest.mark.parametrize(
    "name, ends",
    [("two_moons", 1), ("gaussian_mixture", 10), ("gaussian_linear_uniform", 1), ("slcp", 3)],
)
def test_boxes_are_the_stated_ones(name, ends):
    low, high = task(name).prior_support
    np.testing.assert_array_equal([low, high], np.full((2, SIZES[name][0]), [[-ends], [ends]]))


@pytest.mark.parametrize("prior", [NormalPrior, LogNormalPrior])
def test_a_draw_of_a_prior_is_the_normal_draw_of_its_key(prior, key):
    """Moved and scaled, not mirrored."""
    z = jr.normal(key, (2,))
    draw = prior(jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0])).sample(jr.clone(key))
    draw = np.log(draw) if prior is LogNormalPrior else draw
    np.testing.assert_allclose((draw - np.array([1.0, -2.0])) / np.array([0.5, 3.0]), z)


def test_draw_pairs_each_theta_with_its_own_data(key):
    theta, x = tasks.draw(key, task("gaussian_linear"), 4000)
    assert_mean(theta * x, 0.1)  # Cov(theta, x) = Var(theta)
    assert_mean(theta[1:] * x[:-1], 0.0)
    assert_mean((x - theta) ** 2, 0.1)
    assert_mean(theta**2, 0.1)


# Simulators


@pytest.mark.parametrize("theta", [(0.3, 0.4), (-0.7, 0.1)])
def test_two_moons_is_a_crescent(theta, key):
    radius, angle = polar(simulate(key, task("two_moons"), theta), np.array(theta))
    assert_follows(radius, stats.norm(0.1, 0.01).cdf)
    assert_follows(angle, stats.uniform(-np.pi / 2, np.pi).cdf)
    assert stats.spearmanr(radius, angle).pvalue > FOUR_SIGMA


def test_gaussian_mixture_tosses_one_coin_for_both_coordinates(key):
    offset = simulate(key, task("gaussian_mixture"), (2.0, -5.0)) - np.array([2.0, -5.0])
    cdf = lambda x: 0.5 * stats.norm.cdf(x) + 0.5 * stats.norm.cdf(x / 0.1)
    for coordinate in offset.T:
        assert_follows(coordinate, cdf)
    assert_mean(np.prod(offset, axis=1), 0.0)
    # E[s^4] with one coin; two coins would give E[s^2]^2 = 0.255
    assert_mean(np.prod(offset**2, axis=1), 0.5 * (1 + 0.1**4))


@pytest.mark.parametrize("name", ["gaussian_linear", "gaussian_linear_uniform"])
def test_gaussian_tasks_add_noise_of_variance_a_tenth(name, key):
    theta = np.linspace(-0.9, 0.9, 10)
    offset = (simulate(key, task(name), theta) - theta) / np.sqrt(0.1)
    assert_follows(offset.ravel(), stats.norm.cdf)
    first, second = np.triu_indices(10, 1)
    assert_mean((offset[:, first] * offset[:, second]).sum(axis=1), 0.0)


def test_slcp_draws_four_independent_points(key):
    theta = np.array([0.7, -2.9, -1.0, -0.9, 0.6])
    points = simulate(key, task("slcp"), theta).reshape(-1, 4, 2) - theta[:2]
    white = np.linalg.solve(np.linalg.cholesky(slcp_covariance(theta)), points[..., None])[..., 0]
    for k in range(8):
        assert_follows(white.reshape(-1, 8)[:, k], stats.norm.cdf)
    first, second = np.triu_indices(8, 1)
    flat = white.reshape(-1, 8)
    assert_mean((flat[:, first] * flat[:, second]), 0.0)


# Likelihoods and posteriors


def test_two_moons_likelihood_is_a_density_of_x(key):
    """Its integral over a fine grid, and over one half of it."""
    theta = jnp.array([0.2, 0.5])
    step = 5e-4  # a twentieth of the crescent's width: the midpoint rule is far below 1e-3
    centre = np.array([0.25 - 0.7 / np.sqrt(2), 0.3 / np.sqrt(2)])
    u, v = np.arange(step / 2, 0.16, step), np.arange(-0.16 + step / 2, 0.16, step)
    grid = centre + np.stack(np.meshgrid(u, v, indexing="ij"), axis=-1)
    log_prob = jax.vmap(jax.vmap(lambda x: task("two_moons").log_likelihood(x, theta)))
    density = np.exp(np.asarray(jax.jit(log_prob)(jnp.asarray(grid)))) * step**2
    assert density.sum() == pytest.approx(1, abs=1e-3)
    assert density[np.hypot(*np.meshgrid(u, v, indexing="ij")) < 0.1].sum() == pytest.approx(
        0.5, abs=0.01
    )
    left = jnp.asarray(centre) - jnp.array([0.1, 0.0])
    assert task("two_moons").log_likelihood(left, theta) == -jnp.inf


def test_gaussian_mixture_likelihood_equals_scipy():
    x, theta = np.array([0.3, -0.2]), np.array([0.25, -0.1])
    normal = lambda std: stats.norm(theta, std).pdf(x).prod()
    exact = np.log(0.5 * normal(1.0) + 0.5 * normal(0.1))
    value = task("gaussian_mixture").log_likelihood(jnp.asarray(x), jnp.asarray(theta))
    np.testing.assert_allclose(value, exact, rtol=1e-12)


@pytest.mark.parametrize("theta", [(0.7, -2.9, -1.0, -0.9, 0.6), (1.0, 2.0, 0.3, 2.5, -2.9)])
def test_slcp_likelihood_equals_scipy(theta):
    x = np.array([0.5, -2, 1.2, -3.5, 1, -2.1, 0.4, 1.0])
    law = stats.multivariate_normal(theta[:2], slcp_covariance(np.array(theta)))
    value = task("slcp").log_likelihood(jnp.asarray(x), jnp.array(theta))
    # 1e-9: SciPy inverts a covariance with condition number up to 1e6
    np.testing.assert_allclose(value, law.logpdf(x.reshape(4, 2)).sum(), rtol=1e-9)


def test_slcp_likelihood_keeps_its_digits_in_float32():
    """At correlation 0.99 and tiny widths the covariance is close to singular."""
    theta = jnp.array([0.5, 0.5, 0.05, 2.9, 2.9])
    x = jnp.full(8, 0.5) + 1e-3 * jnp.array([1.0, 0, -1, 0, 0, 1, 0, -1])
    exact = task("slcp").log_likelihood(x, theta)
    single = task("slcp").log_likelihood(x.astype(jnp.float32), theta.astype(jnp.float32))
    # rounding x (6e-8 of 0.5, against a width of 1e-3) moves each residual by 1e-4 of its width
    np.testing.assert_allclose(single, exact, atol=1e-2)


@pytest.mark.parametrize("name", SHARED[1:4])
def test_log_posterior_is_likelihood_times_prior(name, key):
    """The difference is the evidence, the same number for every theta."""
    problem = task(name)
    theta, x = tasks.draw(key, problem, 20)
    one = lambda t: (
        problem.log_likelihood(x[0], t) + problem.log_prior(t) - problem.log_posterior(t, x[0])
    )
    evidence = np.asarray(jax.jit(jax.vmap(one))(theta))
    # differences of numbers up to 1e4, so round-off near 1e-11
    np.testing.assert_allclose(evidence, evidence[0], rtol=0, atol=1e-10)
    if name == "gaussian_linear":  # x is N(0, 0.2 I)
        exact = stats.norm(0, np.sqrt(0.2)).logpdf(np.asarray(x[0])).sum()
    else:
        low, high = (np.asarray(end) for end in problem.prior_support)
        parts = ((0.5, 1.0), (0.5, 0.1)) if name == "gaussian_mixture" else ((1.0, 0.1**0.5),)
        mass = sum(
            weight * np.prod(stats.norm(x[0], std).cdf(high) - stats.norm(x[0], std).cdf(low))
            for weight, std in parts
        )
        exact = np.log(mass) - np.log(high - low).sum()
    np.testing.assert_allclose(evidence[0], exact, rtol=1e-8)


@pytest.mark.parametrize("x_o", [(1.0, -2.0), (9.95, -10.3)])
def test_gaussian_mixture_posterior_integrates_to_one(x_o):
    axes, area = [], 1.0
    for centre in x_o:  # cells of a fifth of the narrow width, whole ones up to the box's edge
        edges = np.linspace(max(centre - 6, -10), min(centre + 6, 10), 600)
        axes.append((edges[1:] + edges[:-1]) / 2)
        area *= edges[1] - edges[0]
    grid = jnp.asarray(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1))
    one = lambda theta: task("gaussian_mixture").log_posterior(theta, jnp.array(x_o))
    density = np.exp(np.asarray(jax.jit(jax.vmap(jax.vmap(one)))(grid)))
    # the midpoint rule errs by (h / width)^2 / 24 at a cut edge
    assert density.sum() * area == pytest.approx(1, abs=2e-3)


@pytest.mark.slow
def test_posterior_density_is_zero_outside_the_prior():
    for name, outside in (("gaussian_mixture", 10.1), ("gaussian_linear_uniform", 1.01)):
        problem = task(name)
        theta, x_o = jnp.full(problem.dim_theta, outside), jnp.zeros(problem.dim_x)
        assert problem.log_posterior(theta, x_o) == -jnp.inf
        assert problem.log_prior(theta) == -jnp.inf


@pytest.mark.parametrize("name", SHARED[:4])
@pytest.mark.parametrize("number", [0, 1])
def test_posterior_draws_follow_the_reference(name, number, key):
    """Every coordinate and every sum and difference of two, by Kolmogorov and Smirnov."""
    problem, known = task(name), reference(name)
    x_o = jnp.asarray(known["observation"][number])
    draw = jax.jit(jax.vmap(problem.sample_posterior, (0, None)))
    draws = np.asarray(draw(jr.split(key, 4000), x_o))
    exact = known["reference_samples"][number]
    low, high = (np.asarray(end) for end in problem.prior_support)
    assert np.all((low < draws) & (draws < high))
    own = np.eye(problem.dim_theta)
    neighbour = np.roll(own, 1, axis=1)
    for direction in np.concatenate([own, own + neighbour, own - neighbour]):
        assert stats.ks_2samp(draws @ direction, exact @ direction).pvalue > FOUR_SIGMA


@pytest.mark.parametrize("name", SHARED[:4])
@pytest.mark.slow
def test_posterior_draws_are_exchangeable_with_the_truth(name, key):
    """The rank of theta among draws given its x is uniform, at the edges of the prior too."""
    problem, (data_key, key) = task(name), jr.split(key)
    theta, x = tasks.draw(data_key, problem, 2000)
    draw = jax.vmap(jax.vmap(problem.sample_posterior, (0, None)))
    draws = np.asarray(jax.jit(draw)(jr.split(key, (2000, 4)), x))
    low, high = (np.asarray(end) for end in problem.prior_support)
    assert np.all((low < draws) & (draws < high))
    for rank in np.sum(draws < np.asarray(theta)[:, None], axis=1).T:
        assert stats.chisquare(np.bincount(rank, minlength=5)).pvalue > FOUR_SIGMA


@pytest.mark.parametrize("number", [0, 1])
def test_two_moons_reference_inverts_the_simulator(number):
    """Both crescents lie inside the prior here, so r and a keep their laws."""
    known = reference("two_moons")
    theta = known["reference_samples"][number]
    radius, angle = polar(known["observation"][number], theta)
    assert_follows(radius, stats.norm(0.1, 0.01).cdf)
    assert_follows(angle, stats.uniform(-np.pi / 2, np.pi).cdf)


@pytest.mark.parametrize("name", ["slcp", "gaussian_mixture"])
def test_likelihood_obeys_steins_identity_on_reference_draws(name):
    r"""$E[g\, \partial_i \ln p + \partial_i g] = 0$ for $g = b^2 - \theta_i^2$, 0 at the edge."""
    problem, known = task(name), reference(name)
    b = problem.prior_support[1][0]
    for x_o, theta in zip(known["observation"], known["reference_samples"], strict=True):
        slope = jax.grad(lambda t, x_o=x_o: problem.log_likelihood(jnp.asarray(x_o), t))
        slopes = np.asarray(jax.jit(jax.vmap(slope))(jnp.asarray(theta)))
        assert_mean((b**2 - theta**2) * slopes - 2 * theta, 0.0)


def test_two_moons_posterior_of_an_impossible_observation_is_refused(key):
    draw = eqx.filter_jit(task("two_moons").sample_posterior)
    with pytest.raises(RuntimeError, match="nearly.* impossible"):
        draw(key, jnp.array([3.0, 0.0])).block_until_ready()


# Differential equations


def lotka_volterra_truth(theta, times):
    alpha, beta, gamma, delta = theta
    rates = lambda t, z: [alpha * z[0] - beta * z[0] * z[1], delta * z[0] * z[1] - gamma * z[1]]
    return integrate.solve_ivp(rates, (0, 20), [30, 1], "DOP853", times, rtol=1e-10, atol=1e-12).y.T


def sir_truth(theta, times):
    beta, gamma = theta
    rates = lambda t, z: [-beta * z[0] * z[1], beta * z[0] * z[1] - gamma * z[1]]
    start = [1 - 1e-6, 1e-6]
    return integrate.solve_ivp(rates, (0, 160), start, "DOP853", times, rtol=1e-10, atol=1e-14).y.T


def test_lotka_volterra_solves_its_equations():
    problem, times = task("lotka_volterra"), np.linspace(1.0, 20.0, 20)
    thetas = np.array([(1.0, 0.05, 0.9, 0.04), (1.8, 0.03, 0.5, 0.08)])
    solve = jax.jit(jax.vmap(problem.log_populations, (0, None)))
    for theta, logs in zip(thetas, np.asarray(solve(thetas, times)), strict=True):
        # tolerances of 1e-5 a step, over some 50 steps of a system that does not damp errors
        exact = np.log(lotka_volterra_truth(theta, times))
        np.testing.assert_allclose(logs, exact, atol=5e-3)
        alpha, beta, gamma, delta = theta
        first, second = np.exp(logs).T
        constant = delta * first - gamma * logs[:, 0] + beta * second - alpha * logs[:, 1]
        start = delta * 30 - gamma * np.log(30) + beta
        np.testing.assert_allclose(constant, start, rtol=2e-3)


def test_lotka_volterra_rests_at_its_equilibrium():
    """gamma / delta = 30 prey and alpha / beta = 1 predator: where it starts."""
    theta = jnp.array([0.7, 0.7, 1.5, 0.05])
    logs = task("lotka_volterra").log_populations(theta, jnp.array([10.0, 20.0]))
    np.testing.assert_allclose(np.exp(logs), [[30, 1], [30, 1]], rtol=1e-9)


def test_sir_solves_its_equations_and_loses_nobody():
    problem, times = task("sir"), np.linspace(8.0, 160.0, 20)
    thetas = np.array([(0.4, 0.125), (1.2, 0.1), (0.2, 0.25)])
    solve = jax.jit(jax.vmap(problem.log_fractions, (0, None)))
    for theta, logs in zip(thetas, np.asarray(solve(thetas, times)), strict=True):
        # tolerances of 1e-5 a step, amplified while the epidemic grows
        np.testing.assert_allclose(logs, np.log(sir_truth(theta, times)), atol=5e-3)
        susceptible, infected = np.exp(logs).T
        recovered = -(theta[1] / theta[0]) * (logs[:, 0] - np.log1p(-1e-6))
        np.testing.assert_allclose(susceptible + infected + recovered, 1, atol=1e-4)


def test_what_is_observed_of_known_populations(monkeypatch, key):
    """Without the equations: prey and then predators in logarithms, and people counted.

    At the task's own times, with noise of 0.1 and of a binomial law, in the density too.
    """
    logs = lambda self, theta, times: jnp.stack([times / 9, -times / 100], axis=1)
    lotka, sir = task("lotka_volterra"), task("sir")
    monkeypatch.setattr(type(lotka), "log_populations", logs)
    monkeypatch.setattr(type(sir), "log_fractions", logs)
    noise_key, count_key = jax.random.split(key)
    times = np.arange(2.0, 21.0, 2.0)
    mean, x = (
        np.concatenate([times / 9, -times / 100]),
        simulate(noise_key, lotka, jnp.ones(4), 500),
    )
    assert_follows((x - mean).ravel() / 0.1, stats.norm.cdf)
    exact = stats.norm(mean, 0.1).logpdf(x[0]).sum()
    np.testing.assert_allclose(
        lotka.log_likelihood(jnp.asarray(x[0]), jnp.ones(4)), exact, rtol=1e-10
    )
    p, x = np.exp(-np.arange(16.0, 161.0, 16.0) / 100), simulate(count_key, sir, jnp.ones(2), 2000)
    assert np.all(x == np.round(x))
    assert_mean(x, 1000 * p)
    assert_mean((x - 1000 * p) ** 2, 1000 * p * (1 - p))
    exact = stats.binom(1000, p).logpmf(x[0]).sum()
    np.testing.assert_allclose(sir.log_likelihood(jnp.asarray(x[0]), jnp.ones(2)), exact, rtol=1e-9)


@pytest.mark.slow
def test_lotka_volterra_observes_with_ten_percent_noise(key):
    problem, theta = task("lotka_volterra"), jnp.array([1.0, 0.05, 0.9, 0.04])
    mean = np.asarray(problem.log_populations(theta, jnp.arange(2.0, 21.0, 2.0))).T.ravel()
    x = simulate(key, problem, theta, 500)
    assert_follows((x - mean).ravel() / 0.1, stats.norm.cdf)
    exact = stats.norm(mean, 0.1).logpdf(x[0]).sum()
    np.testing.assert_allclose(problem.log_likelihood(jnp.asarray(x[0]), theta), exact, rtol=1e-10)


@pytest.mark.slow
def test_sir_counts_a_thousand_people(key):
    problem, theta = task("sir"), jnp.array([0.4, 0.125])
    fractions = problem.log_fractions(theta, jnp.arange(16.0, 161.0, 16.0))
    p = np.exp(np.asarray(fractions)[:, 1])
    x = simulate(key, problem, theta, 2000)
    assert np.all(x == np.round(x))
    assert_mean(x, 1000 * p)
    assert_mean((x - 1000 * p) ** 2, 1000 * p * (1 - p))
    exact = stats.binom(1000, p).logpmf(x[0]).sum()
    np.testing.assert_allclose(problem.log_likelihood(jnp.asarray(x[0]), theta), exact, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lotka_volterra", "sir"])
def test_every_prior_draw_can_be_solved(name, key):
    """Also in float32, where a trial step that overflows once stopped the solver for good."""
    _, x = tasks.draw(key, jax.tree.map(lambda a: a.astype(jnp.float32), task(name)), 20_000)
    assert x.dtype == jnp.float32 and np.all(np.isfinite(x))


# A neuron


def test_the_neuron_sees_the_last_nine_values_of_its_stimulus():
    stimulus, seen = np.random.default_rng(0).normal(size=100), design()
    assert seen.shape == (100, 10) and np.all(seen[:, 0] == 1)
    np.testing.assert_array_equal(seen[50, 1:], stimulus[50:41:-1])
    np.testing.assert_array_equal(seen[2, 1:], [*stimulus[2::-1], *np.zeros(6)])


def test_the_neuron_fires_as_often_as_it_should(key):
    problem, theta = task("bernoulli_glm"), np.linspace(-1.5, 1.0, 10)
    x, p = simulate(key, problem, theta), 1 / (1 + np.exp(-design() @ theta))
    assert_mean(x, design().T @ p)
    exact = design().T @ (p[:, None] * (1 - p[:, None]) * design())
    centred = x - design().T @ p
    assert_mean(centred[:, :, None] * centred[:, None], exact)


def test_the_neurons_likelihood_is_that_of_its_bins(rng):
    problem, theta = task("bernoulli_glm"), rng.normal(size=10)
    p = 1 / (1 + np.exp(-design() @ theta))
    z = rng.random(100) < p
    exact = stats.bernoulli(p).logpmf(z).sum()
    got = problem.log_likelihood(jnp.asarray(z @ design()), jnp.asarray(theta))
    np.testing.assert_allclose(got, exact, rtol=1e-12)


def test_the_neurons_prior_is_smooth(key, rng):
    """The precision by its quadratic form, second differences written out."""
    problem, theta = task("bernoulli_glm"), rng.normal(size=10)
    f, square = theta[1:], theta[0] ** 2 / 2
    for i in range(9):
        before = [f[i - 1] if i > 0 else 0.0, f[i - 2] if i > 1 else 0.0]
        square += ((1 + np.sqrt(i / 9)) * f[i] - 2 * before[0] + before[1]) ** 2
    at_zero = problem.log_prior(jnp.zeros(10))
    np.testing.assert_allclose(problem.log_prior(jnp.asarray(theta)) - at_zero, -square / 2)
    rows = jax.vmap(problem.sample_prior)(jr.split(key, 4000))
    covariance = np.linalg.inv(-jax.hessian(problem.log_prior)(jnp.zeros(10)))
    assert_mean(rows[:, :, None] * rows[:, None], covariance)
    exact = stats.multivariate_normal(np.zeros(10), covariance).logpdf(theta)
    np.testing.assert_allclose(problem.log_prior(jnp.asarray(theta)), exact, rtol=1e-9)


# Errors


@pytest.mark.parametrize("name", SIZES)
def test_wrong_shapes_are_named(name, key, unchecked):
    problem = task(name)
    with pytest.raises(ValueError, match=r"theta must have shape \(\d+,\), got \(3,\)"):
        problem.simulate(key, jnp.zeros(3))
    with pytest.raises(ValueError, match="theta must have shape"):
        problem.log_prior(jnp.zeros(3))
    good = problem.sample_prior(key)
    with pytest.raises(ValueError, match="x must have shape"):
        problem.log_likelihood(jnp.zeros(3), good)
    if name in SHARED[:4]:
        with pytest.raises(ValueError, match="x_o must have shape"):
            problem.sample_posterior(key, jnp.zeros(3))


def test_draw_needs_one_example(key):
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        tasks.draw(key, task("two_moons"), 0)
    assert tasks.draw(key, task("gaussian_linear"), 1)[0].shape == (1, 10)
