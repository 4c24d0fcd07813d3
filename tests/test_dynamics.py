"""The score, the ODE and the SDEs: exact marginals, and Diffrax without glue."""

import functools

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import Correlated, Gaussian

import edm_tutorial as edm

SCHEDULES = {
    "linear": (edm.Linear(), 0.1, 3.0),
    "ve": (edm.VarianceExploding(), 0.1, 9.0),
    "vp": (edm.VariancePreserving(), 0.05, 1.0),
    "vp_scaled_ve": (edm.VarianceScaled(edm.VarianceExploding()), 0.1, 9.0),
    "unscaled_vp": (edm.Unscaled(edm.VariancePreserving()), 0.05, 0.6),
}
each_schedule = pytest.mark.parametrize("schedule, t0, t1", SCHEDULES.values(), ids=SCHEDULES)
STD = 0.7
ONE = jnp.ones(1)


def coefficients(drift, diffusion, times):
    """The linear drift a(t) x and the diffusion g(t) of a Gaussian problem, as numbers."""

    @jax.vmap
    def both(t):
        return drift(t, ONE, None)[0], diffusion(t, ONE, None).as_matrix()[0, 0]

    return map(np.asarray, both(jnp.asarray(times)))


def variance_path(drift, diffusion, v0, t0, t1, steps=1000):
    """Solve d var / dt = 2 a var +- g^2 from t0 to t1 by RK4; downwards g^2 is lost."""
    times = np.linspace(t0, t1, 2 * steps + 1)
    a, g = coefficients(drift, diffusion, times)
    assert np.all(np.isfinite(a)) and np.all(np.isfinite(g))
    h, sign = (t1 - t0) / steps, np.sign(t1 - t0)
    variances = [v0]
    for i in range(0, 2 * steps, 2):
        v = variances[-1]
        rate = lambda j, u: 2 * a[j] * u + sign * g[j] ** 2
        k1 = rate(i, v)
        k2 = rate(i + 1, v + h / 2 * k1)
        k3 = rate(i + 1, v + h / 2 * k2)
        k4 = rate(i + 2, v + h * k3)
        variances.append(v + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
    return times[::2], np.array(variances)


def marginal_variance(schedule, times):
    """s(t)^2 (STD^2 + sigma(t)^2)."""
    s, sigma = (jax.vmap(f)(jnp.asarray(times)) for f in (schedule.scale, schedule.sigma))
    return np.asarray(s**2 * (STD**2 + sigma**2))


# The score


def test_score_of_a_correlated_gaussian(key):
    """-(cov + sigma^2 I)^-1 x."""
    cov = np.array([[1.0, 0.4], [0.4, 0.3]])
    x = jax.random.normal(key, (2,))
    for sigma in (0.01, 1.0, 30.0):
        exact = -np.linalg.solve(cov + sigma**2 * np.eye(2), np.asarray(x))
        np.testing.assert_allclose(
            edm.score(Correlated(cov), x, sigma), exact, rtol=1e-9, atol=1e-14
        )


def test_score_hands_on_the_condition_and_keeps_the_dtype():
    def denoiser(x, sigma, cond=None):
        assert cond is not None
        return jnp.zeros_like(x) + cond

    x = jnp.array([2.0, 4.0], jnp.float32)
    got = edm.score(denoiser, x, 2.0, jnp.float32(6.0))
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, [1.0, 0.5])


# Marginals, without simulation: exact equations for the variance


@each_schedule
def test_the_forward_sde_has_the_marginals_of_the_schedule(schedule, t0, t1):
    start = marginal_variance(schedule, [t0])[0]
    times, got = variance_path(*edm.forward_sde(schedule), start, t0, t1)
    np.testing.assert_allclose(got, marginal_variance(schedule, times), rtol=1e-8)


def test_the_forward_sde_of_vp_is_the_published_one():
    """dx = -beta(t)/2 x dt + sqrt(beta(t)) dw with beta(t) = beta_min + beta_d t."""
    times = np.linspace(0.01, 1.0, 30)
    a, g = coefficients(*edm.forward_sde(edm.VariancePreserving()), times)
    beta = 0.1 + 19.9 * times
    np.testing.assert_allclose(a, -beta / 2, rtol=1e-12)
    np.testing.assert_allclose(g, np.sqrt(beta), rtol=1e-10)


def test_the_forward_sde_of_ve_is_brownian_motion():
    """sigma(t)^2 = t, so dx = dw."""
    a, g = coefficients(*edm.forward_sde(edm.VarianceExploding()), [0.1, 2.0, 400.0])
    np.testing.assert_array_equal(a, 0)
    np.testing.assert_allclose(g, 1, rtol=1e-14)


@each_schedule
@pytest.mark.parametrize(
    "beta", [None, 0, 0.8, lambda t: 2 * t], ids=["song", "ode", "constant", "function"]
)
def test_every_reverse_sde_has_the_same_marginals(schedule, t0, t1, beta):
    drift, diffusion = edm.reverse_sde(Gaussian(STD), schedule, beta)
    start = marginal_variance(schedule, [t1])[0]
    times, got = variance_path(drift, diffusion, start, t1, t0)
    np.testing.assert_allclose(got, marginal_variance(schedule, times), rtol=1e-6)


@each_schedule
def test_without_exchange_of_noise_it_is_the_ode(schedule, t0, t1):
    times = jnp.linspace(t0, t1, 7)
    denoiser = Gaussian(STD, 0.4)
    drift, diffusion = edm.reverse_sde(denoiser, schedule, beta=0.0)
    field = edm.probability_flow(denoiser, schedule)
    x = jnp.array([1.5, -0.3])
    for t in times:
        assert not np.any(diffusion(t, x, None).as_matrix())
        np.testing.assert_allclose(drift(t, x, None), field(t, x, None), rtol=1e-13)


@each_schedule
def test_the_ode_moves_by_half_the_score_and_the_sde_by_all_of_it(schedule, t0, t1):
    """dx/dt is f x - g^2/2 grad ln p_t in the ODE and f x - g^2 grad ln p_t in Song's.

    f, g are the forward SDE's, and p_t is the law of s (y + sigma n).
    """
    x = jnp.array([0.9])
    for t in np.linspace(t0, t1, 5):
        drift, diffusion = edm.forward_sde(schedule)
        g = float(diffusion(t, x, None).as_matrix()[0, 0])
        f = float(drift(t, x, None)[0])
        grad = -0.9 / marginal_variance(schedule, [t])[0]
        ode = edm.probability_flow(Gaussian(STD), schedule)(t, x, None)
        song, diffusion = edm.reverse_sde(Gaussian(STD), schedule)
        assert float(ode[0]) == pytest.approx(f - g**2 / 2 * grad, rel=1e-10)
        assert float(song(t, x, None)[0]) == pytest.approx(f - g**2 * grad, rel=1e-10)
        assert float(diffusion(t, x, None).as_matrix()[0, 0]) == pytest.approx(g)


def test_dtype_follows_x():
    """Whatever the dtype of the time, as Diffrax hands it over."""
    x, t = jnp.ones(2, jnp.float32), jnp.asarray(0.5, jnp.float64)
    schedule = edm.VariancePreserving()
    fields = [
        edm.probability_flow(Gaussian(STD), schedule),
        *edm.forward_sde(schedule),
        *edm.reverse_sde(Gaussian(STD), schedule),
        *edm.reverse_sde(Gaussian(STD), schedule, beta=lambda t: t),
    ]
    for field in fields:
        for out in jax.tree.leaves(field(t, x, None)):
            assert out.dtype == jnp.float32


# Diffrax


def conditional(x, sigma, cond=None):
    """The denoiser of N(cond, STD^2)."""
    assert cond is not None
    return cond + STD**2 / (STD**2 + sigma**2) * (x - cond)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.slow
def test_diffrax_simulates_the_sdes(direction, key):
    """Euler-Maruyama on a Brownian tree, against the exact moments of its own recursion.

    The condition is `args`: here the mean of the data, far from 0. 4 standard errors.
    """
    schedule, n, paths = edm.VariancePreserving(), 64, 2000
    t0, t1 = (0.1, 0.8) if direction == "forward" else (0.8, 0.1)
    mean = jnp.array(3.0)
    if direction == "forward":
        drift, diffusion = edm.forward_sde(schedule)
    else:
        drift, diffusion = edm.reverse_sde(conditional, schedule)
    keys = jax.random.split(key, paths)
    x0 = 1.7

    def path(key):
        brownian = dfx.VirtualBrownianTree(0.1, 0.8, tol=1e-3, shape=(1,), key=key)
        terms = dfx.MultiTerm(dfx.ODETerm(drift), dfx.ControlTerm(diffusion, brownian))
        solution = dfx.diffeqsolve(
            terms,
            dfx.Euler(),
            t0,
            t1,
            dt0=(t1 - t0) / n,
            y0=jnp.full(1, x0),
            args=mean,
        )
        assert solution.ys is not None
        return solution.ys[0, 0]

    # Inside the tree keys are selected, not reused, and numbers are promoted.
    with jax.numpy_dtype_promotion("standard"), jax.debug_key_reuse(False):
        ends = np.asarray(jax.jit(jax.vmap(path))(keys))

    h, m, v = (t1 - t0) / n, x0, 0.0
    times = t0 + h * np.arange(n)
    slope = np.asarray(
        jax.vmap(lambda t: drift(t, ONE, mean)[0] - drift(t, 0 * ONE, mean)[0])(times)
    )
    offset = np.asarray(jax.vmap(lambda t: drift(t, 0 * ONE, mean)[0])(times))
    g = np.asarray(jax.vmap(lambda t: diffusion(t, ONE, mean).as_matrix()[0, 0])(times))
    for i in range(n):
        m, v = m + h * (slope[i] * m + offset[i]), (1 + h * slope[i]) ** 2 * v
        v += abs(h) * g[i] ** 2
    assert ends.mean() == pytest.approx(m, abs=4 * np.sqrt(v / paths))
    assert ends.var(ddof=1) == pytest.approx(v, rel=4 * np.sqrt(2 / (paths - 1)))


def solve(field, x0, t0, t1, solver, controller, dt0, args=None):
    solution = dfx.diffeqsolve(
        dfx.ODETerm(field),
        solver,
        t0,
        t1,
        dt0=dt0,
        y0=x0,
        args=args,
        stepsize_controller=controller,
        max_steps=None if dt0 is not None else 4096,
        adjoint=dfx.ForwardMode(),
    )
    assert solution.ys is not None
    return solution.ys[0]


ADAPTIVE = dfx.PIDController(rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_a_change_of_time_changes_no_end():
    """One noise level to another, in four clocks: the factor dt/du is in the field."""
    x, mean = jnp.array([70.0, -45.0]), jnp.array([0.4, -0.1])
    ends = []
    for schedule in (
        edm.Linear(),
        edm.VarianceExploding(),
        edm.VariancePreserving(),
        edm.VarianceScaled(edm.Linear()),
    ):
        field = edm.probability_flow(conditional, schedule)
        t0, t1 = schedule.time(50.0), schedule.time(0.02)
        end = solve(field, schedule.scale(t0) * x, t0, t1, dfx.Tsit5(), ADAPTIVE, None, mean)
        ends.append(np.asarray(end / schedule.scale(t1)))
    contraction = np.hypot(STD, 0.02) / np.hypot(STD, 50.0)
    exact = np.asarray(mean + (x - mean) * contraction)
    np.testing.assert_allclose(ends, np.stack([exact] * 4), rtol=1e-6)


MIXTURE_OF_TWO = edm.GaussianMixture(
    jnp.array([0.4, 0.6]), jnp.array([[-0.8], [0.5]]), jnp.array([[[0.04]], [[0.09]]])
)
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0


@pytest.mark.slow
def test_any_solver_solves_the_same_ode():
    """A denoiser is trained once: Diffrax's solvers, and ours, all end at one place.

    The place is known: the ODE keeps each point's rank, F(x; sigma) = Phi(z). At
    sigma_min, where Diffrax stops, and so does the last state of our path. Fixed steps
    are even in ln sigma, that is in the VE-like clock t = ln sigma, where x' = x - D.
    """
    noise = jnp.array([0.3, -1.1, 1.7])[:, None]
    field = edm.probability_flow(MIXTURE_OF_TWO.denoise)

    def in_log_time(u, x, args):
        return jnp.exp(u) * field(jnp.exp(u), x, args)

    def end(solver, controller, dt0):
        ends = jnp.log(jnp.array([SIGMA_MAX, SIGMA_MIN]))
        one = functools.partial(solve, in_log_time, solver=solver)
        run = jax.vmap(lambda z: one(z * SIGMA_MAX, *ends, controller=controller, dt0=dt0))
        return np.asarray(jax.jit(run)(noise))[:, 0]

    exact = np.array([quantile(float(z), SIGMA_MIN) for z in noise[:, 0]])
    width = np.log(SIGMA_MIN / SIGMA_MAX)
    found = {
        "Euler": end(dfx.Euler(), dfx.ConstantStepSize(), width / 4096),
        "Heun": end(dfx.Heun(), dfx.ConstantStepSize(), width / 1024),
        "Tsit5": end(dfx.Tsit5(), ADAPTIVE, None),
        "Dopri8": end(dfx.Dopri8(), ADAPTIVE, None),
        "Kvaerno5": end(dfx.Kvaerno5(), ADAPTIVE, None),
    }
    paths = jax.vmap(
        lambda z: edm.sample_path(
            MIXTURE_OF_TWO.denoise, z, edm.edm_sigmas(512, SIGMA_MIN, SIGMA_MAX)
        )
    )(noise)
    found["sample"] = np.asarray(paths)[:, -2, 0]
    for name, ends in found.items():
        atol = 1e-2 if name == "Euler" else 1e-4
        np.testing.assert_allclose(ends, exact, atol=atol, err_msg=name)


def quantile(z: float, sigma: float) -> float:
    """Where the distribution function at `sigma` has the value it has at the start."""

    def cdf(x, sigma):
        std = np.sqrt(np.array([0.04, 0.09]) + sigma**2)
        phi = jax.scipy.stats.norm.cdf((x - np.array([-0.8, 0.5])) / std)
        return float(np.array([0.4, 0.6]) @ np.asarray(phi))

    target, low, high = cdf(z * SIGMA_MAX, SIGMA_MAX), -5.0, 5.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cdf(middle, sigma) < target else (low, middle)
    return low


@pytest.mark.parametrize(
    "schedule, rate",
    [(edm.Linear(), 0.0), (edm.VarianceExploding(), 1.0), (edm.VariancePreserving(), 0.1**0.5)],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_forward_sde_starts_from_clean_data(schedule, rate, dtype):
    """At t = 0 sigma' may be infinite; g = sqrt(2 sigma sigma') is not."""
    x = jnp.ones(2, dtype)
    drift, diffusion = edm.forward_sde(schedule)
    g = diffusion(0.0, x, None).mv(jnp.ones(2, dtype))
    np.testing.assert_allclose(g, rate, rtol=1e-5, atol=1e-8)
    assert np.all(np.isfinite(drift(0.0, x, None)))


def test_the_reverse_sde_refuses_a_negative_beta():
    with pytest.raises(ValueError, match="beta must be positive"):
        edm.reverse_sde(Gaussian(STD), beta=-1.0)


def test_what_has_no_value_is_nan():
    """Vector fields look at no value: a NaN, and a time before 0, come out as NaN."""
    nan, one = jnp.array([jnp.nan, 1.0]), jnp.ones(2)
    assert np.isnan(edm.score(Gaussian(STD), nan, 1.0)).tolist() == [True, False]
    field = edm.probability_flow(Gaussian(STD))
    assert np.isnan(field(1.0, nan, None)).tolist() == [True, False]
    for schedule in (edm.VarianceExploding(), edm.VariancePreserving()):
        for t in (-1e-3, jnp.nan):
            _, diffusion = edm.forward_sde(schedule)
            assert np.isnan(diffusion(t, one, None).diagonal).all()


@pytest.mark.parametrize(
    "denoiser, message",
    [
        (lambda x, sigma, cond=None: jnp.zeros(1), r"shape of x, \(2,\), got \(1,\)"),
        (lambda x, sigma, cond=None: x.astype(jnp.float32), "dtype of x, float64, got float32"),
    ],
)
def test_dynamics_refuse_a_denoiser_that_answers_in_another_form(denoiser, message):
    x = jnp.ones(2)
    fields = {
        "score": lambda: edm.score(denoiser, x, 1.0),
        "ode": lambda: edm.probability_flow(denoiser)(1.0, x, None),
        "sde": lambda: edm.reverse_sde(denoiser)[0](1.0, x, None),
    }
    for name, field in fields.items():
        with pytest.raises(ValueError, match=f"the denoiser's output must have the {message}"):
            pytest.fail(f"{name} returned {field()}")


@pytest.mark.slow
def test_a_denoiser_needs_no_key_parameter():
    """Nor a keyword: only a key that was given is handed on, and nothing here is given one."""
    denoise = lambda x, sigma, cond=None: Gaussian(STD)(x, sigma)
    x, key = jnp.array([0.3, -0.4]), jax.random.key(0)
    fields = [edm.probability_flow(denoise), *edm.reverse_sde(denoise)]
    for field in fields:
        field(1.0, x, None)
    churn = {"churn": edm.Churn(1.0), "key": key}
    values = [
        edm.score(denoise, x, 1.0),
        edm.sample(denoise, x, edm.edm_sigmas(3)),
        edm.sample(denoise, x, edm.edm_sigmas(3), solver=edm.DPMSolverPP2M(), **churn),
        edm.sample_path(denoise, x, edm.edm_sigmas(3)),
        edm.log_likelihood(denoise, x).log_prob,
        edm.log_likelihood(denoise, x, probes=2, key=jax.random.clone(key)).log_prob,
    ]
    assert all(np.isfinite(value).all() for value in values)
