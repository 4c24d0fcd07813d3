"""What a log-likelihood costs, and which solver, tolerance and time variable to take.

    python -m benchmarks.likelihood
    python -m benchmarks.likelihood log_densities  # one of the tables

Cost: `log_likelihood` at batch 1,024, divided by the evaluations of the flow that it makes,
against (d + 1) calls of `jax.jvp` (exact trace) and one call of `jax.vjp` (one probe).
Work-precision: the largest error over points of three mixtures with exact denoisers, float32,
against the evaluations (in accepted steps) of the slowest point, in sigma and in log sigma.
Log-densities: `Posterior.log_prob` of 10,000 draws of ten parameters, and its largest error over
200 of them, against a solver of eighth order on many levels in float64.
"""

import statistics
import sys
import time
from collections.abc import Iterator
from functools import partial

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import edm_tutorial as edm
from benchmarks.timing import medians, pin, seconds, write
from edm_tutorial import sbi
from edm_tutorial.networks.mlp import cast_floating

BATCH = 1024
EVALUATIONS = 8  # one for each step of Euler's method
SIMULATIONS = 10_000
STAGES = {"Tsit5": 6, "Dopri5": 6, "Dopri8": 13}


@eqx.filter_jit
def likelihood(model, x, keys=None):
    """`log_likelihood` itself, in steps of one evaluation each; given keys, by one probe."""

    def one(x, key):
        return edm.log_likelihood(
            model,
            x,
            sigma_min=1.0,
            sigma_max=2.0,
            prior_std=0.0,  # nothing is evaluated at the end
            probes=None if keys is None else 1,
            key=key,
            solver=diffrax.Euler(),
            stepsize_controller=diffrax.StepTo(jnp.linspace(1.0, 2.0, EVALUATIONS + 1)),
        ).log_prob

    return jax.vmap(one)(x, keys)


@eqx.filter_jit
def jvp_call(model, x, v):
    return jax.vmap(lambda x, v: jax.jvp(lambda x: model(x, 1.0), (x,), (v,)))(x, v)


@eqx.filter_jit
def vjp_call(model, x, v):
    def one(x, v):
        denoised, pull = jax.vjp(lambda x: model(x, 1.0), x)
        return denoised, pull(v)

    return jax.vmap(one)(x, v)


def cost() -> Iterator[dict]:
    for d in (2, 4, 16, 64):
        model = edm.Denoiser(edm.MLP(d, key=jr.key(d)), edm.EDMPreconditioning(0.5))
        x_key, probe_key = jr.split(jr.key(1))
        x, v = jr.normal(x_key, (BATCH, d)), jr.rademacher(probe_key, (BATCH, d), float)
        times = medians(
            [
                partial(likelihood, model, x),
                lambda model=model, x=x, v=v, d=d: [jvp_call(model, x, v) for _ in range(d + 1)],
                partial(likelihood, model, x, jr.split(jr.key(2), BATCH)),
                partial(vjp_call, model, x, v),
            ],
            7,
            time.process_time,
        )
        yield {
            "d": d,
            "batch": BATCH,
            "exact_cpu_s": round(times[0] / EVALUATIONS, 4),
            "exact_over_jvp_calls": round(times[0] / EVALUATIONS / times[1], 3),
            "probe_cpu_s": round(times[2] / EVALUATIONS, 4),
            "probe_over_vjp_call": round(times[2] / EVALUATIONS / times[3], 3),
        }


def mixture(name: str) -> edm.GaussianMixture:
    angles = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if name == "anisotropic":
        turn = np.array([[0.8, -0.6], [0.6, 0.8]])
        cov = turn @ np.diag([0.04**2, 0.3**2]) @ turn.T
        return edm.GaussianMixture(np.full(8, 1 / 8), 1.5 * ring, np.stack([cov] * 8))
    shift = np.array([3.0, -2.0]) if name == "off centre" else 0.0
    return edm.GaussianMixture(np.full(8, 1 / 8), ring + shift, np.stack([0.01 * np.eye(2)] * 8))


def in_sigma(denoise, x, solver, tolerance):
    controller = diffrax.PIDController(rtol=tolerance, atol=tolerance)
    result = edm.log_likelihood(denoise, x, solver=solver, stepsize_controller=controller)
    return result.log_prob, result.num_steps


def in_log_sigma(denoise, x, solver, tolerance, low=0.002, high=80.0):
    """The same flow in u = log sigma, written out: for comparison only."""

    def flow(u, state, args):
        sigma = jnp.exp(u)
        denoised, jvp = jax.linearize(lambda x: denoise(x, sigma), state[0])
        return state[0] - denoised, 2 - jnp.trace(jax.vmap(jvp)(jnp.eye(2)))

    controller = diffrax.PIDController(rtol=tolerance, atol=tolerance)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(flow),
        solver,
        np.log(low),
        np.log(high),
        None,
        (x, jnp.array(0.0)),
        stepsize_controller=controller,
    )
    end, gained = jax.tree.map(lambda leaf: leaf[-1], solution.ys)
    # The terminal density through the package: a flow of no length from `high` up.
    rest = edm.log_likelihood(denoise, end, sigma_min=high, sigma_max=1.001 * high)
    return gained + rest.log_prob, solution.stats["num_accepted_steps"]


VARIABLES = {"sigma": in_sigma, "log sigma": in_log_sigma}


@eqx.filter_jit
def evaluate(mixture, points, solver, tolerance, variable):
    """Log-densities and accepted steps of all points; one compilation for every tolerance."""
    one = lambda x: VARIABLES[variable](mixture.denoise, x, solver, tolerance)
    return jax.vmap(one)(points)


def reference(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Points of a mixture and their exact log-densities, in float64."""
    with jax.enable_x64(True):
        exact = mixture(name)
        points = jax.vmap(exact.sample)(jr.split(jr.key(1), 256))
        truth = jax.vmap(exact.log_prob, (0, None))(points, 0.002)
        return np.asarray(points, np.float32), np.asarray(truth)


def work_precision() -> Iterator[dict]:
    for name in ("centred", "off centre", "anisotropic"):
        points, truth = reference(name)
        for solver in (diffrax.Tsit5(), diffrax.Dopri5(), diffrax.Dopri8()):
            for variable in VARIABLES:
                for tolerance in (1e-3, 1e-4, 1e-5, 1e-6):
                    log_prob, steps = evaluate(
                        mixture(name),
                        jnp.asarray(points),
                        solver,
                        tolerance=jnp.array(tolerance),
                        variable=variable,
                    )
                    error = np.abs(np.asarray(log_prob) - truth).max()
                    label = type(solver).__name__
                    yield {
                        "mixture": name,
                        "variable": variable,
                        "solver": label,
                        "tolerance": tolerance,
                        "largest_error_nats": f"{error:.1e}",
                        "evaluations": STAGES[label] * int(steps.max()),
                    }


def log_densities() -> Iterator[dict]:
    """The default network, fitted briefly: what is asked is what its log-densities cost."""
    theta, x = sbi.tasks.draw(jr.key(0), sbi.tasks.gaussian_linear(), SIMULATIONS + 1)
    settings = sbi.default_settings(SIMULATIONS).with_steps(2_000)
    posterior = sbi.fit_posterior(jr.key(1), theta[1:], x[1:], settings=settings, progress=False)
    x_o, clock = x[0], time.process_time
    draws = posterior.sample(jr.key(2), x_o, 10_000)
    evaluate = lambda: posterior.log_prob(draws, x_o)
    first, *again = [seconds(evaluate, clock) for _ in range(4)]
    error = np.abs(
        np.asarray(posterior.log_prob(draws[:200], x_o)) - precise(posterior, draws[:200], x_o)
    )
    yield {
        "points": len(draws),
        "d": draws.shape[1],
        "noise_levels": posterior.steps // 2,
        "cpu_s": round(statistics.median(again), 1),
        "compile_cpu_s": round(first - statistics.median(again), 1),
        "largest_error_nats": f"{error.max():.4f}",
        "median_error_nats": f"{np.median(error):.4f}",
    }


def precise(posterior: sbi.Posterior, theta: jax.Array, x_o: jax.Array) -> np.ndarray:
    """Log-densities of a posterior, in float64 on 40 levels: at half as many they are the same."""
    with jax.enable_x64(True):
        posterior, theta, x_o = cast_floating((posterior, theta, x_o), jnp.float64)
        sigmas = edm.edm_sigmas(40, posterior.sigma_min, posterior.sigma_max)
        denoiser, x = posterior.given(x_o)

        def one(theta: jax.Array) -> jax.Array:
            z = posterior.transform.forward(theta, x)
            found = edm.log_likelihood(denoiser, z, sigmas=sigmas, solver=diffrax.Dopri8())
            return found.log_prob + posterior.transform.log_det(theta, x)

        return np.asarray(jax.jit(lambda t: jax.lax.map(one, t, batch_size=50))(theta))


TABLES = {
    "likelihood_cost": cost,
    "likelihood_work_precision": work_precision,
    "log_densities": log_densities,
}

if __name__ == "__main__":
    pin()
    jax.config.update("jax_default_matmul_precision", "highest")
    for name in sys.argv[1:] or TABLES:
        write(name, TABLES[name]())
