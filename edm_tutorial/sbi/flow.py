"""Draws and log-densities of a posterior, with a denoiser of z.

Both take many points a piece at a time. Of a piece that fits the cache, a processor computes the
layers without waiting for memory; what is computed is the same.
"""

from collections.abc import Callable

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from .._types import PRNGKey
from ..denoiser import Pinned
from ..likelihood import log_likelihood
from ..sampling import Churn, sample
from ..schedules import AbstractSchedule, Linear
from ..solvers import AbstractSolver, DPMSolverPP2M
from .transforms.chain import Chain

SOLVER = DPMSolverPP2M()
ROWS_IN_CACHE = 1_024  # of a layer of usual width, about a megabyte together
ROWS_IN_MEMORY = 16_384
LARGEST_Z = 1e-6  # of the root of the largest number: from there on, (z / width)^2 overflows


def rows_at_once() -> int:
    """The vectors that pass through a network together."""
    return ROWS_IN_CACHE if jax.default_backend() == "cpu" else ROWS_IN_MEMORY


def in_pieces(one: Callable[[Array], Array], rows: Array, at_once: int) -> Array:
    """`jax.vmap(one)(rows)`, at most `at_once` rows at a time."""
    n = len(rows)
    if n <= at_once:
        return jax.vmap(one)(rows)
    # Rows that are left over compile once more: rather a size that divides n, if one is near.
    sizes = range(at_once, at_once // 2, -1)
    return jax.lax.map(one, rows, batch_size=next((k for k in sizes if n % k == 0), at_once))


def draws(
    denoiser: Pinned,
    transform: Chain,
    x: Array | None,
    key: PRNGKey,
    n: int,
    sigmas: Array,
    solver: AbstractSolver = SOLVER,
    schedule: AbstractSchedule = Linear(),
    churn: Churn | None = None,
) -> Float[Array, "n d"]:
    """Draws of z with a denoiser of z, in data units."""
    shape, dtype = transform.bounds.low.shape, sigmas.dtype
    # Noise around 0 would pull the mean by width / sigma_max of itself; D(0) is that mean.
    center = denoiser(jnp.zeros(shape, dtype), sigmas[0]) / sigmas[0]

    def one(key: PRNGKey) -> Array:
        start_key, churn_key = jr.split(key)
        noise = center + jr.normal(start_key, shape, dtype)
        options = {} if churn is None else {"churn": churn, "key": churn_key}
        z = sample(denoiser, noise, sigmas, solver=solver, schedule=schedule, **options)
        return transform.inverse(z, x)

    return in_pieces(one, jr.split(key, n), rows_at_once())


def log_densities(
    denoiser: Pinned, transform: Chain, x: Array | None, theta: Array, sigmas: Array
) -> Float[Array, "*n"]:
    """ln q of one vector in data units, or of one a row, with a denoiser of z."""
    sigmas = sigmas.astype(theta.dtype)
    center = transform.inverse(jnp.zeros_like(transform.bounds.low, theta.dtype), x)

    def one(theta: Array) -> Array:
        inside = transform.bounds.contains(theta)
        theta = jnp.where(inside, theta, center)  # any point will do where the answer is -inf
        z = transform.forward(theta, x)
        inside &= jnp.max(jnp.abs(z)) < LARGEST_Z * float(jnp.finfo(z.dtype).max) ** 0.5
        z = jnp.where(inside, z, 0)
        value = log_likelihood(denoiser, z, sigmas=sigmas, solver=diffrax.Bosh3()).log_prob
        return jnp.where(inside, value + transform.log_det(theta, x), -jnp.inf)

    at_once = max(rows_at_once() // theta.shape[-1], 1)  # each has as many directions
    return in_pieces(one, theta, at_once) if theta.ndim == 2 else one(theta)
