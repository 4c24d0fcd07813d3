"""The loop: what it returns and costs, what it is equivariant to, what it refuses."""

import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from exact import Correlated, Gaussian

import edm_tutorial as edm

SOLVERS = {"euler": edm.Euler(), "heun": edm.Heun(), "dpm": edm.DPMSolverPP2M()}
each_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
GAUSSIAN = Gaussian(std=[0.5, 1.0], mean=[0.3, -0.2])
NOISE = jnp.array([1.0, -2.0])
LEVELS = jnp.array([5.0, 2.0, 0.7, 0.2, 0.05])


# What comes out


def test_covariance_of_a_correlated_gaussian():
    """The sampler is linear here, so its covariance is that of one matrix, exactly.

    Heun's error at N = 256 is under 4e-4 of a std; the covariance doubles it.
    """
    cov = np.array([[1.0, 0.45, 0.0], [0.45, 0.25, 0.05], [0.0, 0.05, 0.5]])
    sampler = functools.partial(edm.sample, Correlated(cov), sigmas=edm.edm_sigmas(256))
    columns = np.asarray(jax.vmap(lambda z: sampler(noise=z))(jnp.eye(3)))
    np.testing.assert_allclose(columns.T @ columns, cov, atol=8e-4)
    # of all maps with this covariance, the ODE's is the one without rotation
    np.testing.assert_allclose(columns, columns.T, atol=1e-12)


def test_mean_and_standard_deviation_of_the_paths():
    """Every state of the path has the marginal of its noise level, scaling included."""
    schedule = edm.VariancePreserving.from_range(0.002, 80.0)
    sigmas = edm.edm_sigmas(128)
    noise = jnp.stack([jnp.zeros(2), jnp.ones(2)])
    run = functools.partial(edm.sample_path, schedule=schedule, solver=edm.Heun())
    offset, at_one = np.asarray(jax.vmap(lambda z: run(GAUSSIAN, z, sigmas))(noise))
    s = np.asarray(jax.vmap(lambda v: schedule.scale(schedule.time(v)))(sigmas))
    s, sigma = np.append(s, 1.0)[:, None], np.append(sigmas, 0.0)[:, None]
    std, mean = np.asarray(GAUSSIAN.std), np.asarray(GAUSSIAN.mean)
    start = np.sqrt(80**2 + std**2)
    np.testing.assert_array_equal(offset[0], 0)
    np.testing.assert_allclose(at_one[0], np.full(2, 80 * s[0, 0]), rtol=1e-12)
    exact = s * np.sqrt(std**2 + sigma**2) * 80 / start
    np.testing.assert_allclose((at_one - offset) / exact, 1, rtol=2e-3)
    exact = s * mean * (1 - np.sqrt(std**2 + sigma**2) / start)
    np.testing.assert_allclose(offset / s, exact / s, atol=1e-3)


@each_solver
def test_the_path_ends_in_the_sample(solver):
    path = edm.sample_path(GAUSSIAN, NOISE, LEVELS, solver=solver)
    assert path.shape == (6, 2)
    np.testing.assert_array_equal(path[0], 5 * NOISE)
    last = edm.sample(GAUSSIAN, NOISE, LEVELS, solver=solver)
    np.testing.assert_allclose(path[-1], last, rtol=1e-15)


@each_solver
def test_one_step_is_one_denoise(solver):
    got = edm.sample(GAUSSIAN, NOISE, jnp.array([3.0]), solver=solver)
    np.testing.assert_allclose(got, GAUSSIAN(3 * NOISE, 3.0), rtol=1e-14)


@each_solver
def test_two_steps_by_hand(solver):
    x = np.asarray(5 * NOISE)
    d = np.asarray(GAUSSIAN(x, 5.0))
    euler = x + (2 - 5) * (x - d) / 5
    if isinstance(solver, edm.Heun):
        slope = (euler - np.asarray(GAUSSIAN(euler, 2.0))) / 2
        x = x + (2 - 5) * ((x - d) / 5 + slope) / 2
    else:  # where D has no past, both go straight towards it
        x = euler
    got = edm.sample(GAUSSIAN, NOISE, LEVELS[:2], solver=solver)
    np.testing.assert_allclose(got, GAUSSIAN(x, 2.0), rtol=1e-14)


def test_the_condition_reaches_every_call():
    """In all stages, and untouched: here it is a pytree that holds the mean."""

    def conditional(x, sigma, cond=None):
        assert cond is not None
        return GAUSSIAN(x - cond["mean"], sigma) + cond["mean"]

    mean = jnp.array([4.0, -7.0])
    for solver in SOLVERS.values():
        got = edm.sample(conditional, NOISE, LEVELS, {"mean": mean}, solver=solver)

        def pinned(x, sigma, cond=None):
            assert cond is None
            return conditional(x, sigma, {"mean": mean})

        want = edm.sample(pinned, NOISE, LEVELS, solver=solver)
        np.testing.assert_allclose(got, want, rtol=1e-14)


# Units: (c x, c sigma, c sigma_data) is the same model


class Wavy(eqx.Module):
    """A network that sees the noise level as c_noise - shift."""

    shift: jax.Array

    def __call__(self, z, c_noise, cond=None, *, key=None):
        label = c_noise - self.shift.astype(z.dtype)
        return jnp.sin(2 * z) * jnp.cos(3 * label) + 0.3 * z[::-1]


def exact_in_units(c):
    return Gaussian(std=c * np.array([0.5, 1.0]), mean=c * np.array([0.3, -0.2]))


def network_in_units(c):
    network = Wavy(jnp.log(c) / 4)
    return edm.Denoiser(network, edm.EDMPreconditioning(c * jnp.array(0.6)))


@pytest.mark.parametrize("dtype, rtol", [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize(
    "make, schedule, solver",
    [
        (exact_in_units, edm.Linear(), edm.Heun()),
        (exact_in_units, edm.VarianceExploding(), edm.DPMSolverPP2M()),
        (network_in_units, edm.Linear(), edm.DPMSolverPP2M()),
        (network_in_units, edm.VarianceExploding(), edm.Heun()),
    ],
    ids=["exact-linear", "exact-ve", "network-linear", "network-ve"],
)
def test_scale_equivariance(make, schedule, solver, dtype, rtol):
    noise = jnp.asarray([[1.0, -2.0], [0.3, 0.8], [-0.4, 1.7]], dtype)

    def ends(c):
        sigmas = jnp.asarray(c * np.asarray(edm.edm_sigmas(12)))
        options = {"schedule": schedule, "solver": solver}
        one = functools.partial(edm.sample, make(c), sigmas=sigmas, **options)
        x = jax.vmap(lambda z: one(noise=z))(noise)
        assert x.dtype == dtype
        return np.asarray(x, np.float64)

    want = ends(1.0)
    for c in (0.037, 250.0):
        size = np.abs(want).max()
        np.testing.assert_allclose(ends(c) / c, want, rtol=0, atol=rtol * size)


# Churn


def test_gamma_by_hand():
    """min(S_churn / N, sqrt(2) - 1) where S_min <= sigma <= S_max, ends included."""
    churn = edm.Churn(3.0, s_min=0.05, s_max=50.0)
    inside = [churn.gamma(sigma, 30) for sigma in (0.05, 1.0, 50.0)]
    np.testing.assert_allclose(inside, 0.1, rtol=1e-15)
    outside = [churn.gamma(s, 30) for s in (math.nextafter(0.05, 0), 50.001, 0.0)]
    np.testing.assert_array_equal(outside, 0)
    assert float(edm.Churn(80.0).gamma(1.0, 18)) == pytest.approx(math.sqrt(2) - 1)
    assert float(edm.Churn(7.2).gamma(1.0, 18)) == pytest.approx(0.4)  # below the cap
    assert edm.Churn(0.0).gamma(1.0, 18) == 0


@pytest.mark.parametrize("churn", [edm.Churn(0.0), edm.Churn(30.0, s_min=1e3)])
@pytest.mark.parametrize("schedule", [edm.Linear(), edm.VariancePreserving()])
def test_no_churn_is_bit_identical_for_every_key(churn, schedule):
    """Also where the time of sigma(t) is not t to the last digit, as in VP."""
    run = functools.partial(edm.sample, GAUSSIAN, NOISE, LEVELS, schedule=schedule)
    first, *others = [run(churn=churn, key=jax.random.key(seed)) for seed in range(5)]
    for other in others:
        np.testing.assert_array_equal(other, first)
    # another program may be compiled to another order of additions
    np.testing.assert_allclose(first, run(), rtol=1e-15)


def test_without_churn_the_key_is_not_looked_at():
    quiet = edm.sample(GAUSSIAN, NOISE, LEVELS)
    for seed in range(3):
        got = edm.sample(GAUSSIAN, NOISE, LEVELS, key=jax.random.key(seed))
        np.testing.assert_array_equal(got, quiet)


def test_same_key_same_sample(key):
    run = functools.partial(edm.sample, GAUSSIAN, NOISE, LEVELS, churn=edm.Churn(2.0))
    first, second = run(key=key), run(key=jax.random.clone(key))
    np.testing.assert_array_equal(first, second)
    other = run(key=jax.random.fold_in(jax.random.clone(key), 1))
    assert np.all(np.abs(first - other) > 1e-3)


def test_each_step_draws_with_a_key_of_its_own():
    """The noise of step i is fold_in(key, i)'s, in shape and dtype of the example."""
    seen = []

    def draw(key, shape, dtype):
        seen.append((jax.random.key_data(key), shape, dtype))
        return jnp.zeros(shape, dtype)

    key = jax.random.key(5)
    options = {"churn": edm.Churn(2.0, draw=draw), "key": key}
    with jax.disable_jit():
        edm.sample(GAUSSIAN, NOISE.astype(jnp.float32), LEVELS[:3], **options)
    assert [(shape, dtype) for _, shape, dtype in seen] == [((2,), jnp.float32)] * 3
    for i, (data, _, _) in enumerate(seen):
        np.testing.assert_array_equal(data, jax.random.key_data(jax.random.fold_in(key, i)))


def test_churn_keeps_the_marginals():
    """Variance out, exactly: the sampler is affine in its noise and in its draws.

    With an exact denoiser fresh noise replaces old without changing the law; what is
    left is Heun's own error, under 7 % here.
    """
    n = 40
    steps = jnp.arange(n)

    def end(noise, draws):
        # the key of step i is only used to find out which step it is
        keys = jax.vmap(lambda i: jax.random.key_data(jax.random.fold_in(KEY, i)))(steps)

        def draw(key, shape, dtype):
            here = jnp.all(keys == jax.random.key_data(key)[None], axis=1)
            return jnp.sum(jnp.where(here, draws, 0)).astype(dtype)

        options = {"churn": edm.Churn(10.0, draw=draw), "key": KEY}
        return edm.sample(Gaussian(0.5), noise, edm.edm_sigmas(n), **options)

    parts = jax.grad(end, argnums=(0, 1))(jnp.array(0.0), jnp.zeros(n))
    assert np.sum(np.abs(parts[1]) > 1e-3) > n // 2  # many steps contribute
    variance = float(parts[0] ** 2 + jnp.sum(parts[1] ** 2))
    assert variance == pytest.approx(0.25, rel=0.07)
    assert parts[0] ** 2 < 0.01 * variance  # the start is nearly forgotten


KEY = jax.random.key(12)


# Transformations


@each_solver
def test_gradients(solver):
    """With respect to noise and noise levels, through the last step, by differences."""

    def end(noise, sigmas):
        return jnp.sum(edm.sample(GAUSSIAN, noise, sigmas, solver=solver) ** 2)

    gradients = jax.grad(end, argnums=(0, 1))(NOISE, LEVELS)
    for which, gradient in enumerate(gradients):
        for i in range(gradient.size):
            ends = []
            for step in (1e-5, -1e-5):
                args = [NOISE, LEVELS]
                args[which] = args[which].at[i].add(step)
                ends.append(end(*args))
            slope = float(ends[0] - ends[1]) / 2e-5
            assert float(gradient[i]) == pytest.approx(slope, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize(
    "solver, schedule",
    [
        (edm.Heun(), edm.VarianceExploding()),
        (edm.DPMSolverPP2M(), edm.VariancePreserving()),
    ],
    ids=["heun-ve", "dpm-vp"],
)
@pytest.mark.slow
def test_gradients_of_a_churned_sample(solver, schedule):
    """With respect to the amount of churn too; with none they are finite."""

    def end(s_churn, noise, sigmas):
        options = {"schedule": schedule, "solver": solver, "key": KEY}
        churn = edm.Churn(s_churn, 0.1, 3.0, 1.003)
        return jnp.sum(edm.sample(GAUSSIAN, noise, sigmas, churn=churn, **options))

    gradient = jax.jit(jax.grad(end, argnums=(0, 1, 2)))
    rise = float(end(1.0 + 1e-5, NOISE, LEVELS) - end(1.0 - 1e-5, NOISE, LEVELS)) / 2e-5
    assert float(gradient(1.0, NOISE, LEVELS)[0]) == pytest.approx(rise, rel=1e-5)
    for amount in (0.0, 1.0):
        for part in gradient(amount, NOISE, LEVELS):
            assert np.all(np.isfinite(part))


@each_solver
def test_the_gradient_of_one_step(solver):
    """Through the last step alone, in a clock with scaling s = (1 + t^2)^(-1/2).

    DPM++ denoises x / s = sigma z. The others follow dx/dt = (s'/s + 1/t) x - (s/t) D
    from x = s t z down to t = 0, and s'/s = -t s^2.
    """

    def end(noise):
        sigmas = jnp.array([0.7])
        schedule = edm.VarianceScaled(edm.Linear())
        return edm.sample(GAUSSIAN, noise, sigmas, schedule=schedule, solver=solver)

    t, variance = 0.7, np.array([0.25, 1.0])
    gain, s = t * variance / (variance + t**2), (1 + t**2) ** -0.5
    if not isinstance(solver, edm.DPMSolverPP2M):
        gain = s * (t**3 * s**2 + gain)
    jacobian = jax.jacfwd(end)(NOISE)
    np.testing.assert_allclose(jacobian, np.diag(gain), rtol=1e-12, atol=1e-15)


def test_jit_and_vmap():
    """Over noise, over a stack of grids, and over the amount of churn."""
    run = functools.partial(edm.sample, GAUSSIAN)
    noise = jnp.stack([NOISE, 2 * NOISE, -NOISE])
    alone = np.stack([run(z, LEVELS) for z in noise])
    together = jax.jit(jax.vmap(run, in_axes=(0, None)))(noise, LEVELS)
    np.testing.assert_allclose(together, alone, rtol=1e-14)

    grids = jnp.stack([edm.edm_sigmas(5), edm.ve_sigmas(5), LEVELS])
    alone = np.stack([run(NOISE, sigmas) for sigmas in grids])
    together = jax.vmap(run, in_axes=(None, 0))(NOISE, grids)
    np.testing.assert_allclose(together, alone, rtol=1e-13)

    def churned(amount):
        return run(NOISE, LEVELS, churn=edm.Churn(amount), key=KEY)

    amounts = jnp.array([0.0, 0.5, 2.0])
    alone = np.stack([churned(amount) for amount in amounts])
    np.testing.assert_allclose(jax.vmap(churned)(amounts), alone, rtol=1e-13)
    np.testing.assert_allclose(alone[0], run(NOISE, LEVELS), rtol=1e-15)
    assert abs(alone[1] - alone[2]).min() > 1e-3


@each_solver
def test_float32_follows_float64(solver):
    """With grids and churn in float64: the noise decides."""
    churn = edm.Churn(2.0, draw=lambda key, shape, dtype: jnp.full(shape, 0.7, dtype))
    options = {"solver": solver, "churn": churn, "key": KEY}
    options["schedule"] = edm.VariancePreserving()
    ends = {
        dtype: edm.sample(GAUSSIAN, NOISE.astype(dtype), edm.edm_sigmas(18), **options)
        for dtype in ("float32", "float64")
    }
    assert {dtype: str(x.dtype) for dtype, x in ends.items()} == {d: d for d in ends}
    np.testing.assert_allclose(ends["float32"], ends["float64"], rtol=1e-5)


# Price


@each_solver
def test_number_of_denoiser_calls(solver):
    """2 N - 1 for Heun and N for the others, with or without churn."""
    calls = []

    def counting(x, sigma, cond=None):
        jax.debug.callback(lambda s: calls.append(float(s)), sigma)
        return GAUSSIAN(x, sigma)

    for n, churn in [(1, None), (2, None), (18, None), (18, edm.Churn(5.0))]:
        calls.clear()
        options = {"solver": solver, "churn": churn, "key": KEY}
        edm.sample(counting, NOISE, edm.edm_sigmas(n), **options).block_until_ready()
        jax.effects_barrier()
        assert len(calls) == (2 * n - 1 if isinstance(solver, edm.Heun) else n)
        assert min(calls) > 0  # never at the noise level 0


@each_solver
def test_the_denoiser_is_traced_once_a_stage(solver):
    """However many steps: the loop is rolled up, compile time does not grow with N."""

    def traces(n):
        count = 0

        def counting(x, sigma, cond=None):
            nonlocal count
            count += 1
            return GAUSSIAN(x, sigma)

        edm.sample(counting, NOISE, edm.edm_sigmas(n), solver=solver)
        return count

    stages = 3 if isinstance(solver, edm.Heun) else 2  # of a step, and the last one
    assert traces(18) == traces(256) == stages


def counted(count):
    """A denoiser with a condition, and a list that grows whenever it is traced."""

    def denoise(x, sigma, cond=None):
        count.append(1)
        return GAUSSIAN(x - cond, sigma) + cond

    return denoise


def test_a_sweep_in_a_python_loop_compiles_once():
    """Over numbers that are no sizes: a condition, churn, guidance. Three calls are traced."""
    count = []
    plain, amounts = counted(count), [0.5, 1.0, 2.5]
    sweeps = {
        "condition": lambda v: edm.sample(plain, NOISE, LEVELS, v),
        "churn": lambda v: edm.sample(
            plain, NOISE, LEVELS, 0.0, churn=edm.Churn(v, v / 9, 9 * v, v), key=KEY
        ),
    }
    for name, sweep in sweeps.items():
        count.clear()
        ends = [np.asarray(sweep(value)) for value in amounts]
        assert len(count) == 3, name
        assert np.abs(np.diff(ends, axis=0)).min() > 1e-3, name  # and each value counts


def test_a_sweep_over_the_guidance_weight_compiles_once():
    count = []

    def main(x, sigma, cond=None, *, key=None):
        count.append(1)
        return GAUSSIAN(x, sigma)

    def guide(x, sigma, cond=None, *, key=None):
        return x / (1 + sigma**2)

    ends = [edm.sample(edm.Guided(main, guide, w), NOISE, LEVELS) for w in (0.0, 1.0, 2.5)]
    assert len(count) == 3
    np.testing.assert_allclose(ends[0], edm.sample(guide, NOISE, LEVELS), rtol=1e-12)
    np.testing.assert_allclose(ends[1], edm.sample(main, NOISE, LEVELS), rtol=1e-12)


@pytest.mark.parametrize("churn", [None, edm.Churn(2.0, 0.1, 3.0)], ids=["plain", "churned"])
def test_it_exports(churn):
    """Nothing in the compiled path calls back to Python, so that it runs without JAX's tracing."""
    schedule = edm.VariancePreserving()
    options = {"schedule": schedule, "solver": edm.DPMSolverPP2M(), "churn": churn}

    @jax.jit
    def draw(noise, sigmas, seed):
        key = None if churn is None else jax.random.wrap_key_data(seed)
        return edm.sample(GAUSSIAN, noise, sigmas, key=key, **options)

    arguments = NOISE, LEVELS, jax.random.key_data(KEY)
    exported = jax.export.export(draw)(*arguments)
    np.testing.assert_allclose(exported.call(*arguments), draw(*arguments), rtol=1e-13)
    pytest.importorskip("flatbuffers")
    back = jax.export.deserialize(exported.serialize())
    np.testing.assert_allclose(back.call(*arguments), draw(*arguments), rtol=1e-13)


# From an example that was noised up to a level s only


@pytest.mark.parametrize("schedule", [edm.Linear(), edm.VariancePreserving()], ids=["edm", "vp"])
def test_from_a_noisy_example(schedule):
    """y + s n goes where the ODE through that point leads: mean + (x - mean) c / hypot(c, s).

    Heun's error with 256 levels is below 1e-4 of the distance.
    """
    s, y, n = 0.7, np.array([0.9, -1.3]), np.array([0.2, -0.5])
    x = y + s * n
    start = jnp.asarray(x / s)
    got = edm.sample(GAUSSIAN, start, edm.edm_sigmas(256, sigma_max=s), schedule=schedule)
    std, mean = np.asarray(GAUSSIAN.std), np.asarray(GAUSSIAN.mean)
    exact = mean + (x - mean) * std / np.hypot(std, s)
    np.testing.assert_allclose(got, exact, atol=1e-4)


def test_from_a_noisy_example_of_a_mixture():
    """The ODE in one dimension keeps every point's rank: F(end; 0) = F(y + s n; s)."""
    weights, means, stds = np.array([0.4, 0.6]), np.array([-0.8, 0.5]), np.array([0.2, 0.3])
    mixture = edm.GaussianMixture(weights, means[:, None], stds[:, None, None] ** 2)

    def rank(x, sigma):
        z = (x - means) / np.hypot(stds, sigma)
        return float(weights @ np.asarray(jax.scipy.stats.norm.cdf(z)))

    s = 0.5
    for x in (-1.4, -0.2, 0.3):
        end = edm.sample(mixture.denoise, jnp.array([x / s]), edm.edm_sigmas(256, sigma_max=s))
        # Heun's error with 256 levels, times a density of at most 1
        assert rank(float(end[0]), 0.0) == pytest.approx(rank(x, s), abs=2e-4)


# What is refused


def sample_both(**changes):
    """Call `sample` and `sample_path` with one thing changed; both must refuse."""
    arguments = {"denoiser": GAUSSIAN, "noise": NOISE, "sigmas": LEVELS} | changes
    return [functools.partial(f, **arguments) for f in (edm.sample, edm.sample_path)]


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"churn": edm.Churn(1.0)},
            r"churn draws fresh noise: pass key=jax.random.key",
        ),
        (
            {"noise": jnp.array([1, 2])},
            "noise must be a floating-point array, got int64",
        ),
        ({"noise": 1.0}, "noise must be a floating-point array, got float"),
        ({"sigmas": jnp.array([])}, r"at least one noise level, got shape \(0,\)"),
        ({"sigmas": jnp.array(3.0)}, r"sigmas must be a 1-D array .* got shape \(\)"),
        ({"sigmas": jnp.ones((2, 2))}, r"sigmas must be a 1-D array .* shape \(2, 2\)"),
        ({"sigmas": LEVELS[::-1]}, "sigmas must be positive, finite and descending"),
        ({"sigmas": jnp.array([2.0, 2.0])}, "must be positive, finite and descending"),
        ({"sigmas": jnp.array([2.0, 0.0])}, "must be positive, finite and descending"),
        ({"sigmas": jnp.array([2.0, -1.0])}, "must be positive, finite and descending"),
        ({"sigmas": jnp.array([jnp.inf, 1.0])}, "must be positive, finite and desc"),
        ({"sigmas": jnp.array([2.0, jnp.nan])}, "must be positive, finite and desc"),
        (
            {"schedule": edm.Rounded(edm.Linear(), np.array([3.0, 1.0, 0.0]))},
            "sigmas must lead to distinct, positive times",
        ),
        (
            {"schedule": edm.Rounded(edm.Linear(), np.array([3.0, 1.0]))},
            "sigmas must lead to distinct, positive times",
        ),
    ],
)
def test_refused(unchecked, changes, message):
    for call in sample_both(**changes):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    "unknown", ["s_churn", "num_steps", "sigma_data", "sigma_min", "rho", "steps"]
)
def test_unknown_arguments_are_not_swallowed(unknown):
    for call in sample_both():
        with pytest.raises(TypeError):
            call(**{unknown: 30})


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((-1.0,), "must not be negative, got -1.0, 0.0, inf and 1.0"),
        ((1.0, -0.1), "must not be negative"),
        ((1.0, 0.0, -2.0), "must not be negative"),
        ((1.0, 0.0, 1.0, -1.0), "must not be negative"),
        ((math.nan,), "must not be negative"),
        ((1.0, 0.0, 1.0, math.inf), "s_noise must be finite, got inf"),
        ((1.0, 2.0, 1.0), "need s_min <= s_max, got 2.0 and 1.0"),
        ((jnp.array([1.0, -1.0]),), "must not be negative"),
    ],
)
def test_churn_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        edm.Churn(*arguments)


def test_churn_takes_no_unknown_arguments():
    unknown: Any = {"seed": 3}
    with pytest.raises(TypeError):
        edm.Churn(1.0, **unknown)


def test_refuses_what_would_be_nan_or_broadcast(unchecked):
    denoise = lambda x, sigma, cond=None: x / (1 + sigma**2)
    with pytest.raises(ValueError, match="noise must be finite"):
        edm.sample(denoise, jnp.array([jnp.nan, 1.0]), edm.edm_sigmas(3))
    with pytest.raises(ValueError, match="the denoiser's output must have the shape of x"):
        edm.sample(lambda x, sigma, cond=None: x.sum(), jnp.ones(2), edm.edm_sigmas(3))


class Wrapped(edm.AbstractSchedule):
    """A schedule of a user's own around any other: twice as fast."""

    schedule: edm.AbstractSchedule

    def sigma(self, t):
        return self.schedule.sigma(2 * t)

    def time(self, sigma):
        return self.schedule.time(sigma) / 2

    def scale(self, t):
        return self.schedule.scale(2 * t)


@pytest.mark.parametrize(
    "wrap", [Wrapped, edm.VarianceScaled, lambda inner: Wrapped(Wrapped(inner))]
)
@pytest.mark.parametrize("sigmas", [[1.5, 1.0], [80.0, 0.1]], ids=["one level", "level 0"])
def test_rounding_is_seen_through_every_wrapper(wrap, sigmas):
    """The check looks at the times that the loop gets, and knows no schedule by name."""
    levels = jnp.array([80.0, 1.0, 0.0])
    schedule = wrap(edm.Rounded(edm.VarianceExploding(), levels))
    assert np.isfinite(edm.sample(GAUSSIAN, NOISE, levels[:2], schedule=schedule)).all()
    close = jnp.array(sigmas)
    run = lambda noise: edm.sample(GAUSSIAN, noise, close, schedule=schedule)
    for call in (run, jax.jit(run)):  # inside jit too, as long as the levels are known there
        with pytest.raises(ValueError, match="sigmas must lead to distinct, positive times"):
            call(NOISE)


def test_times_are_checked_in_the_dtype_of_the_loop():
    """In VE's clock t = sigma^2, and 300^2 is more than float16 holds."""
    noise = NOISE.astype(jnp.float16)
    with pytest.raises(ValueError, match="sigmas must lead to distinct, positive times"):
        edm.sample(GAUSSIAN, noise, jnp.array([300.0, 1.0]), schedule=edm.VarianceExploding())


def test_levels_known_only_inside_jit_are_not_checked():
    """Nothing stands in the compiled path: it exports, and a NaN comes out as NaN."""
    draw = eqx.filter_jit(lambda sigmas: edm.sample(GAUSSIAN, NOISE, sigmas))
    assert np.all(np.isfinite(draw(LEVELS)))
    assert np.all(np.isnan(draw(LEVELS.at[1].set(jnp.nan))))


def test_many_points_in_pieces_are_those_of_one_batch():
    """The line of the docstring for more points than memory holds; the last piece is smaller."""
    draw = lambda z: edm.sample(Gaussian(0.7), z, edm.edm_sigmas(5))
    noise = jax.random.normal(jax.random.key(0), (7, 2))
    pieces = jax.lax.map(draw, noise, batch_size=3)
    np.testing.assert_allclose(pieces, jax.vmap(draw)(noise), rtol=1e-12)


def test_a_sweep_over_an_interval_or_a_pinned_number_compiles_once():
    """Python numbers in a field of a denoiser of this package are arrays, as arguments are."""
    traced = []

    def main(x, sigma, cond=None):
        traced.append(cond)
        return 0 * x + (0.0 if cond is None else cond)

    levels = jnp.array([3.0, 1.0])
    for make in (
        lambda value: edm.Guided(main, main, 2.0, interval=(value, 9.0)),
        lambda value: edm.Guided(main, main, 2.0, interval=[0.0, value]),
        lambda value: edm.Pinned(main, value),
    ):
        edm.sample(make(0.5), jnp.ones(2), levels)
        count = len(traced)
        draws = [edm.sample(make(value), jnp.ones(2), levels) for value in (0.6, 0.7, 0.8)]
        assert len(traced) == count
    np.testing.assert_allclose(np.stack(draws)[:, 0], [0.6, 0.7, 0.8], rtol=1e-12)


def test_a_sweep_over_a_solver_or_a_schedule_compiles_once():
    """Over Heun's alpha and the betas of VP: three calls of the denoiser are traced, once."""
    count = []
    plain = counted(count)
    sweeps = {
        "alpha": lambda v: edm.sample(plain, NOISE, LEVELS, 0.0, solver=edm.Heun(v)),
        "beta": lambda v: edm.sample(
            plain, NOISE, LEVELS, 0.0, schedule=edm.VariancePreserving(10 * v, v)
        ),
    }
    for name, sweep in sweeps.items():
        count.clear()
        ends = [np.asarray(sweep(value)) for value in (0.5, 1.0, 2.0)]
        assert len(count) == 3, name
        assert np.abs(np.diff(ends, axis=0)).min() > 1e-6, name  # and each value counts
