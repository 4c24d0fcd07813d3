"""The sampler against its limit, and its compile time against the number of steps.

    python -m benchmarks.sampler

The limit is NFE separate calls of the same jitted, batched denoiser. Both are timed in CPU
seconds: separate calls do not wait for one another as the steps of a sampler do, and on an
idle core would overlap.
"""

import itertools
import statistics
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import Array

import edm_tutorial as edm
from benchmarks.timing import medians, pin, write
from edm_tutorial.networks import small_unet

SIZES = {"MLP": (10_000, 2), "U-Net": (64, 1, 8, 8)}  # of the noise: batch, then one example


def denoiser(name: str = "MLP") -> edm.Denoiser:
    shape, key = SIZES[name][1:], jr.key(0)
    network = edm.MLP(2, key=key) if name == "MLP" else small_unet(shape, key=key)
    return edm.Denoiser(network, edm.EDMPreconditioning(0.5))


def sampler(solver: edm.AbstractSolver, n: int):
    """A jitted, batched sampler `f(model, noise)`."""
    sigmas = edm.edm_sigmas(n)

    @eqx.filter_jit
    def draw(model: edm.Denoiser, noise: Array) -> Array:
        one = lambda z: edm.sample(model, z, sigmas, solver=solver)
        return jax.vmap(one)(noise)

    return draw


@eqx.filter_jit
def forward(model: edm.Denoiser, x: Array, sigma: Array) -> Array:
    return jax.vmap(model, in_axes=(0, None))(x, sigma)


def calls(*arguments: Any, nfe: int) -> list[Array]:
    return [forward(*arguments) for _ in range(nfe)]


def against_limit() -> Iterator[dict]:
    runs = ((edm.Heun(), 18, 35), (edm.DPMSolverPP2M(), 36, 36))
    for name, (solver, n, nfe) in itertools.product(SIZES, runs):
        model, noise = denoiser(name), jr.normal(jr.key(1), SIZES[name])
        draw, sigma = sampler(solver, n), jax.numpy.array(1.0)
        whole, limit = medians(
            [
                partial(draw, model, noise),
                partial(calls, model, noise, sigma, nfe=nfe),
            ],
            clock=time.process_time,
        )
        yield {
            "network": name,
            "solver": type(solver).__name__,
            "steps": n,
            "batch": len(noise),
            "sampler_cpu_s": round(whole, 4),
            "forward_calls_cpu_s": round(limit, 4),
            "ratio": round(whole / limit, 3),
        }


def compile_time(repeats: int = 3) -> Iterator[dict]:
    model, noise = denoiser(), jr.normal(jr.key(1), (8, 2))
    for solver in (edm.Heun(), edm.DPMSolverPP2M()):
        for n in (2, 18, 64, 256):
            seconds = []
            for _ in range(repeats):
                lowered = sampler(solver, n).lower(model, noise)
                start = time.process_time()
                lowered.compile()
                seconds.append(time.process_time() - start)
            yield {
                "solver": type(solver).__name__,
                "steps": n,
                "compile_cpu_s": round(statistics.median(seconds), 3),
            }


if __name__ == "__main__":
    pin()
    write("sampler_limit", against_limit())
    write("sampler_compile", compile_time())
