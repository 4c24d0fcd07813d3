"""The sampler against its limit, and its compile time against the number of steps.

    python -m benchmarks.sampler

The limit is NFE separate calls of the same jitted, batched denoiser.
"""

import time
from functools import partial

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import Array

import edm_tutorial as edm
from benchmarks.timing import medians, write

BATCH = 10_000


def denoiser() -> edm.Denoiser:
    return edm.Denoiser(edm.MLP(2, key=jr.key(0)), edm.EDMPreconditioning(0.5))


def sampler(solver: edm.AbstractSolver, n: int):
    """A jitted, batched sampler `f(model, noise)`."""
    sigmas = edm.edm_sigmas(n)

    @eqx.filter_jit
    def draw(model: edm.Denoiser, noise: Array) -> Array:
        one = lambda z: edm.sample(model, z, sigmas, solver=solver)  # noqa: E731
        return jax.vmap(one)(noise)

    return draw


@eqx.filter_jit
def forward(model: edm.Denoiser, x: Array, sigma: Array) -> Array:
    return jax.vmap(model, in_axes=(0, None))(x, sigma)


def against_limit() -> list[dict]:
    model, noise = denoiser(), jr.normal(jr.key(1), (BATCH, 2))
    rows = []
    for solver, n, nfe in ((edm.Heun(), 18, 35), (edm.DPMSolverPP2M(), 36, 36)):
        draw, sigma = sampler(solver, n), jax.numpy.array(1.0)
        whole, calls = medians(
            [
                partial(draw, model, noise),
                lambda nfe=nfe, sigma=sigma: [forward(model, noise, sigma) for _ in range(nfe)],
            ]
        )
        rows.append(
            {
                "solver": type(solver).__name__,
                "steps": n,
                "batch": BATCH,
                "sampler_s": round(whole, 4),
                "forward_calls_s": round(calls, 4),
                "ratio": round(whole / calls, 3),
            }
        )
    return rows


def compile_time() -> list[dict]:
    model, noise = denoiser(), jr.normal(jr.key(1), (8, 2))
    rows = []
    for solver in (edm.Heun(), edm.DPMSolverPP2M()):
        for n in (18, 256):
            lowered = sampler(solver, n).lower(model, noise)
            start = time.perf_counter()
            lowered.compile()
            rows.append(
                {
                    "solver": type(solver).__name__,
                    "steps": n,
                    "compile_s": round(time.perf_counter() - start, 3),
                }
            )
    return rows


if __name__ == "__main__":
    write("sampler_limit", against_limit())
    write("sampler_compile", compile_time())
