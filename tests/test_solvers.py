"""Solvers: order of convergence, what each step solves exactly, and its price."""

import re
import subprocess
import sys

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import Constant, Correlated, Gaussian, orders, rms, samples

import edm_tutorial as edm

SCHEDULES = {
    "linear": edm.Linear(),
    "ve": edm.VarianceExploding(),
    "vp": edm.VariancePreserving.from_range(0.002, 80.0),
}
SOLVERS = {"euler": edm.Euler(), "heun": edm.Heun(), "dpm": edm.DPMSolverPP2M()}
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
each_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)

GAUSSIAN = Gaussian(std=[0.5, 1.0])
NOISE = jnp.array([1.0, -2.0])


def errors(counts, schedule=None, solver=None, sigma_min=0.002):
    """Distance to the exact end, per entry, for each number of steps."""
    exact = GAUSSIAN.end(NOISE, 80.0)
    ends = [
        edm.sample(
            GAUSSIAN,
            NOISE,
            edm.edm_sigmas(n, sigma_min),
            schedule=schedule or edm.Linear(),
            solver=solver or edm.Heun(),
        )
        for n in counts
    ]
    return np.abs(np.stack(ends) - exact)


# Accuracy


@pytest.mark.parametrize(
    "solver, order, counts",
    [
        (edm.Euler(), 1, (32, 64, 128)),
        (edm.Heun(), 2, (32, 64, 128)),
        (edm.DPMSolverPP2M(), 2, (64, 128, 256)),
    ],
    ids=SOLVERS,
)
def test_order_of_convergence(solver, order, counts):
    """For data of std 0.5 and of std 1."""
    measured = orders(errors(counts, solver=solver))
    np.testing.assert_allclose(measured, order, atol=0.15)


def test_ralston_has_order_two():
    found = errors((64, 128), solver=edm.Heun(2 / 3))
    np.testing.assert_allclose(orders(found), 2, atol=0.15)


def test_the_midpoint_rule_gains_an_order_on_gaussians():
    """On y^2 = c^2 + t^2 the third-order terms of both sides agree in EDM's clock.

    With y' = a y and a = t / y^2, the path's is y_ttt / 6 and the rule's is
    (a_tt + 2 a a_t) y / 8: each -c^2 t / (2 y^5). A small sigma_min, or the last step,
    an Euler one, would hide it.
    """
    found = errors((64, 128), solver=edm.Heun(0.5), sigma_min=1e-5)
    np.testing.assert_allclose(orders(found), 3, atol=0.15)


@each_solver
@pytest.mark.parametrize("name", ["ve", "vp"])
def test_every_clock_leads_to_the_same_place(name, solver):
    """Time is a coordinate: the steps along the path change, its end does not.

    In VP scaling a Gaussian of std 1 does not change at all: only 0.5 has an order.
    After extrapolation the next order is left: most for Euler in VE's clock.
    """
    order = 1 if isinstance(solver, edm.Euler) else 2
    found = errors((64, 128), SCHEDULES[name], solver)
    assert orders(found[:, 0]) == pytest.approx(order, abs=0.15)
    extrapolated = found[1] - (found[0] - found[1]) / (2**order - 1)
    assert np.all(np.abs(extrapolated) < (0.05 if order == 1 else 1e-3))


def reference_ends(denoiser, noise, sigma_max):
    """Ends of the ODE by an eighth-order solver in ln sigma, to 1e-10."""

    def field(log_sigma, x, args):
        return x - denoiser(x, jnp.exp(log_sigma))  # dx / d ln sigma

    def one(z):
        solution = dfx.diffeqsolve(
            dfx.ODETerm(field),
            dfx.Dopri8(),
            t0=jnp.log(sigma_max),
            t1=jnp.log(1e-6),
            dt0=None,
            y0=z * sigma_max,
            stepsize_controller=dfx.PIDController(rtol=1e-10, atol=1e-10),
        )
        assert solution.ys is not None
        return solution.ys[0]

    return np.asarray(jax.jit(jax.vmap(one))(noise))


MIXTURES = edm.GaussianMixture(
    jnp.array([0.3, 0.5, 0.2]),
    jnp.array([[-0.9, 0.3], [0.5, -0.4], [0.1, 0.25]]),
    jnp.array(
        [
            [[0.05, 0.03], [0.03, 0.04]],
            [[0.09, 0.0], [0.0, 0.04]],
            [[0.04, 0.0], [0.0, 0.1]],
        ]
    ),
)
TARGETS = {
    "gaussian": Gaussian(std=[0.5, 1.0]),
    "correlated": Correlated([[1.0, 0.45], [0.45, 0.25]]),
    "mixture": MIXTURES.denoise,
}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.slow
def test_dpm_halves_the_error_of_heun_at_equal_cost(name, key):
    """36 denoiser calls against Heun's 35 (N = 18)."""
    denoiser = TARGETS[name]
    noise = jax.random.normal(key, (64, 2))
    if name == "mixture":
        exact = reference_ends(denoiser, noise, 80.0)
    else:
        exact = np.stack([denoiser.end(z, 80.0) for z in noise])
    heun = samples(denoiser, noise, edm.edm_sigmas(18)) - exact
    dpm = samples(denoiser, noise, edm.edm_sigmas(36), solver=edm.DPMSolverPP2M()) - exact
    assert rms(dpm) < rms(heun) / 2


# The first step, the last step, and what needs no small steps


@each_schedule
def test_dpm_is_exact_for_one_point(schedule):
    """Where D is constant the ODE is linear, and that part is solved exactly."""
    point = jnp.array([0.3, -1.1])
    sigmas = edm.edm_sigmas(4)
    noise = np.asarray(NOISE)
    path = edm.sample_path(
        Constant(point), NOISE, sigmas, schedule=schedule, solver=edm.DPMSolverPP2M()
    )
    s = np.asarray(jax.vmap(lambda sigma: schedule.scale(schedule.time(sigma)))(sigmas))
    levels, point = np.asarray(sigmas)[:, None], np.asarray(point)
    exact = s[:, None] * (point + levels / 80 * (80 * noise - point))
    np.testing.assert_allclose(path[:-1], exact, rtol=1e-11)
    np.testing.assert_allclose(path[-1], point, rtol=1e-14)


@each_schedule
def test_the_last_step_of_dpm_is_a_denoise(schedule):
    sigmas = jnp.array([3.0, 1.0, 0.4])
    path = edm.sample_path(GAUSSIAN, NOISE, sigmas, schedule=schedule, solver=edm.DPMSolverPP2M())
    x = path[-2] / schedule.scale(schedule.time(0.4))
    np.testing.assert_allclose(path[-1], GAUSSIAN(x, 0.4), rtol=1e-12)


@pytest.mark.parametrize("solver", [edm.Euler(), edm.Heun()], ids=["euler", "heun"])
def test_the_last_step_of_the_others_is_euler(solver):
    """A whole denoise in EDM's clock, half of one in VE's: there t sigma' is sigma/2."""
    sigmas = jnp.array([3.0, 1.0, 0.4])
    for schedule, share in [(edm.Linear(), 1.0), (edm.VarianceExploding(), 0.5)]:
        path = edm.sample_path(GAUSSIAN, NOISE, sigmas, schedule=schedule, solver=solver)
        x = path[-2]
        want = x + share * (GAUSSIAN(x, 0.4) - x)
        np.testing.assert_allclose(path[-1], want, rtol=1e-12)


def dpm_by_hand(x, levels, denoise):
    """DPM-Solver++(2M) as its paper writes it: r = h_old / h, steps h in -ln sigma."""
    log_snr = -np.log(levels)
    old, h_old = None, None
    for i in range(len(levels) - 1):
        h = log_snr[i + 1] - log_snr[i]
        d = denoise(x, levels[i])
        guess = d
        if old is not None:
            r = h_old / h
            guess = (1 + 1 / (2 * r)) * d - 1 / (2 * r) * old
        x = levels[i + 1] / levels[i] * x - np.expm1(-h) * guess
        old, h_old = d, h
    return denoise(x, levels[-1])


def gaussian(x, sigma):
    return x * 0.25 / (0.25 + sigma**2)


def test_dpm_step_by_step():
    """Uneven steps: the extrapolation must use the ratio of neighbouring ones."""
    levels = np.array([5.0, 3.0, 0.6, 0.5, 0.1])
    got = edm.sample(Gaussian(0.5), jnp.array(1.3), jnp.asarray(levels), solver=edm.DPMSolverPP2M())
    assert float(got) == pytest.approx(dpm_by_hand(6.5, levels, gaussian), rel=1e-13)


def test_dpm_forgets_after_churn():
    """Fresh noise makes the remembered denoiser output stale: that step starts anew.

    Churn acts in the third of four steps only, and adds noise of amount zero, which
    leaves x alone and raises the level from 1 to 1.3: two runs, joined by hand.
    """
    levels = np.array([5.0, 3.0, 1.0, 0.5])
    quiet = edm.Churn(1.2, 0.9, 1.1, draw=lambda key, shape, dtype: jnp.zeros(shape, dtype))
    path = edm.sample_path(
        Gaussian(0.5),
        jnp.array(1.3),
        jnp.asarray(levels),
        solver=edm.DPMSolverPP2M(),
        churn=quiet,
        key=jax.random.key(0),
    )
    before = float(path[2])
    want = dpm_by_hand(before, np.array([1.3, 0.5]), gaussian)
    assert float(path[-1]) == pytest.approx(want, rel=1e-13)
    # with the memory kept it would have been
    d0 = gaussian(float(path[1]), 3.0)
    d1 = gaussian(before, 1.3)
    ahead = d1 + np.log(0.5 / 1.3) / np.log(1.3 / 3.0) / 2 * (d1 - d0)
    kept = before * 0.5 / 1.3 + (1 - 0.5 / 1.3) * ahead
    assert abs(gaussian(kept, 0.5) - float(path[-1])) > 1e-3


# What is refused


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_alpha_must_be_positive(alpha):
    with pytest.raises(ValueError, match=f"alpha must be positive and finite, got {alpha}"):
        edm.Heun(alpha)


def test_solvers_take_no_unknown_arguments():
    for make in (edm.Euler, edm.DPMSolverPP2M):
        with pytest.raises(TypeError):
            make(**{"order": 2})
    with pytest.raises(TypeError):
        edm.Heun(**{"order": 2})


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_long_steps_in_float32(n):
    """The second stage of Heun lands on t_next itself: t + (t_next - t) would round to 0."""
    denoise = lambda x, sigma, cond=None: x / (1 + sigma**2)
    sigmas = edm.edm_sigmas(n)
    for schedule in (edm.Linear(), edm.VarianceExploding(), edm.VariancePreserving()):
        draw = lambda z, s=schedule: edm.sample(denoise, z, sigmas, schedule=s)
        noise = jnp.array([0.3, -0.5], jnp.float32)
        assert np.all(np.isfinite(draw(noise))) and np.all(np.isfinite(jax.jacobian(draw)(noise)))


OPTIMISED = """
import jax, jax.numpy as jnp
import edm_tutorial as edm

network = edm.MLP(2, width=128, depth=1, key=jax.random.key(0))
denoiser = edm.Denoiser(network, edm.EDMPreconditioning(0.5))
draw = lambda z: edm.sample(denoiser, z, edm.edm_sigmas(4))
print(jax.jit(jax.vmap(draw)).lower(jnp.zeros((4099, 2))).compile().as_text())
"""


@pytest.mark.slow
def test_two_calls_share_no_copy_of_a_weight():
    """A bias spread over the whole batch, once for both calls of Heun, is read from memory twice.

    In a process of its own, since these tests run without the optimisation that does it.
    """
    command = [sys.executable, "-c", OPTIMISED]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "= f32[4099,128]" in text
    assert not re.findall(r"broadcast\S* = f32\[4099,128\]\S* fusion\(%[^,]*\), kind", text)
