r"""Samples made of unit noise: the probability-flow ODE in N steps, with or without churn.

One loop serves Algorithms 1, 2 and 3. A step may first add noise (churn), then a solver
moves `x` from time $t$ to the next; the last step goes to $\sigma = 0$ and evaluates the
denoiser once. Noise levels, schedule, solver and churn are chosen here, after training.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Real

from ._checks import check_finite, check_key, check_kind, concrete, descends, levels
from ._types import Condition, DenoiserFn, Example, PRNGKey, Scalar, as_float, as_traced
from .schedules import AbstractSchedule, Linear
from .solvers import ODE, AbstractSolver, Heun


def _normal(key: PRNGKey, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Array:
    return jax.random.normal(key, shape, dtype)


@final
class Churn(eqx.Module):
    r"""Noise added before each step, which starts at the raised level (Algorithm 2, lines 4-6).

    A step at $\sigma$ starts from $\hat\sigma = (1 + \gamma)\,\sigma$.

    Arguments:
        s_churn: total amount, spread over the steps; 0 adds nothing.
        s_min, s_max: noise levels (data units, both included) at which churn acts.
        s_noise: the added noise is multiplied by this, 1 being exact.
        draw: called as `draw(key, shape, dtype)` once a step for unit noise.

    Raises: ValueError for a negative amount, s_min > s_max, or s_noise not finite.
    """

    s_churn: Real[ArrayLike, "..."]
    s_min: Real[ArrayLike, "..."] = 0.0
    s_max: Real[ArrayLike, "..."] = float("inf")
    s_noise: Real[ArrayLike, "..."] = 1.0
    draw: Callable[..., Array] = _normal

    def __check_init__(self):
        numbers = (self.s_churn, self.s_min, self.s_max, self.s_noise)
        if not concrete(*numbers):
            return
        if not all(np.all(np.asarray(number, float) >= 0) for number in numbers):
            raise ValueError(
                "s_churn, s_min, s_max and s_noise must not be negative, got "
                f"{self.s_churn}, {self.s_min}, {self.s_max} and {self.s_noise}"
            )
        if not np.all(np.asarray(self.s_min, float) <= np.asarray(self.s_max, float)):
            raise ValueError(f"need s_min <= s_max, got {self.s_min} and {self.s_max}")
        if not np.all(np.isfinite(np.asarray(self.s_noise, float))):
            raise ValueError(f"s_noise must be finite, got {self.s_noise}")

    def gamma(self, sigma: Scalar, n: int) -> Float[Array, ""]:
        r"""$\min(S_{churn}/N, \sqrt2 - 1)$ inside the window, else 0, for `n` steps."""
        sigma = as_float(sigma)
        amount = jnp.minimum(as_float(self.s_churn, sigma) / n, math.sqrt(2) - 1)
        inside = (as_float(self.s_min, sigma) <= sigma) & (sigma <= as_float(self.s_max, sigma))
        return jnp.where(inside, amount, jnp.zeros_like(amount))


def sample(
    denoiser: DenoiserFn,
    noise: Example,
    sigmas: Real[ArrayLike, " n"] | Sequence[float],
    cond: Condition = None,
    *,
    schedule: AbstractSchedule = Linear(),
    solver: AbstractSolver = Heun(),
    churn: Churn | None = None,
    key: PRNGKey | None = None,
) -> Example:
    """One sample of the data distribution, from unit Gaussian `noise`.

    Algorithm 1 of Karras et al. (2022); Algorithm 2 with `churn`, Algorithm 3 with `Heun(alpha)`.
    Without `churn` this is a deterministic function of `noise`: the solution of the
    probability-flow ODE (Eq. 4) from `sigmas[0]` down to 0. Costs 2 n - 1 denoiser calls with
    `Heun`, n with the others. Many points: `jax.lax.map(draw, noise, batch_size=1_000)`, with
    `draw` of one example: it takes the memory of 1,000, and fits the cache of a CPU.

    To start from an example y that was noised up to a level s only, x = y + s n, pass
    `noise=x / s` and levels whose first is s, such as `edm_sigmas(n, sigma_max=s)`.

    Arguments:
        denoiser: called as `denoiser(x, sigma, cond)`; `x` and `sigma` in data units.
        noise: standard normal, in the shape and dtype of one example.
        sigmas: positive noise levels, descending; the final 0 is implied.
        cond: handed to the denoiser; its Python numbers, or a list of numbers, as arrays.
        schedule: the time in which the steps are taken, and the scaling of x.
        solver: `Heun()`, `Euler()`, `DPMSolverPP2M()`, or your own.
        churn: noise to add before each step.
        key: needed with `churn`, and only then; step i draws with `fold_in(key, i)`.

    Raises:
        ValueError: `churn` without `key`, `noise` that is not floating or not finite, `sigmas`
            that do not descend, as times of the schedule too, or are not positive and finite, or
            a denoiser whose output is not shaped and typed like `noise`.
        TypeError: a `schedule`, `solver`, `churn` or `key` that is not one.
    """
    sampler = _sampler(noise, sigmas, key, schedule=schedule, solver=solver, churn=churn)
    return _integrate(sampler, denoiser, noise, as_traced(cond), key=key)[0]


def sample_path(
    denoiser: DenoiserFn,
    noise: Example,
    sigmas: Real[ArrayLike, " n"] | Sequence[float],
    cond: Condition = None,
    *,
    schedule: AbstractSchedule = Linear(),
    solver: AbstractSolver = Heun(),
    churn: Churn | None = None,
    key: PRNGKey | None = None,
) -> Float[Array, " n+1 *shape"]:
    """The states that `sample` passes through: at the start of every step, then the sample.

    Arguments and errors are those of `sample`. States include the schedule's scaling:
    the i-th has the marginal of s(t) (y + sigma noise) at `sigmas[i]`.
    """
    sampler = _sampler(noise, sigmas, key, schedule=schedule, solver=solver, churn=churn)
    last, path = _integrate(sampler, denoiser, noise, as_traced(cond), key=key, keep=True)
    return jnp.concatenate([path, last[None]])


class _Sampler(eqx.Module):
    """The choices of a sampler, made after training and unknown to every denoiser."""

    times: Float[Array, " n"]
    schedule: AbstractSchedule
    solver: AbstractSolver
    churn: Churn | None

    def raise_noise(
        self, x: Array, t: Array, state: Any, *, i: Int[ArrayLike, ""], key: PRNGKey | None
    ) -> tuple[Array, Array, Any]:
        """x, its time and the solver's state after churn before step i (Algorithm 2, lines 4-6)."""
        churn, schedule = self.churn, self.schedule
        if churn is None or key is None:
            return x, t, state
        sigma = schedule.sigma(t)
        gamma = churn.gamma(sigma, len(self.times))
        t_hat = jnp.where(gamma > 0, schedule.time(sigma * (1 + gamma)), t)
        sigma_hat, scale = schedule.sigma(t_hat), schedule.scale(t_hat)
        variance = (sigma_hat - sigma) * (sigma_hat + sigma)
        # Rounding to discrete levels may go down: then nothing is added, as in the reference.
        # The inner `where` keeps the root's derivative finite where nothing is added.
        added = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)
        draw = churn.draw(jax.random.fold_in(key, i), x.shape, x.dtype)
        unit = as_float(churn.s_noise, x) * draw
        x_hat = scale / schedule.scale(t) * x + added * scale * unit
        fresh = self.solver.init(x)  # fresh noise makes what a multistep solver remembers stale
        state = jax.tree.map(lambda new, old: jnp.where(t_hat > t, new, old), fresh, state)
        return x_hat, t_hat, state


@eqx.filter_jit
def _integrate(
    sampler: _Sampler,
    denoiser: DenoiserFn,
    noise: Array,
    cond: Condition,
    *,
    key: PRNGKey | None,
    keep: bool = False,
) -> tuple[Array, Any]:
    """The sample, and (if asked) the states at the start of every step."""
    times, schedule, solver = sampler.times, sampler.schedule, sampler.solver
    n, ode = len(times), ODE(denoiser, schedule, cond)

    def body(carry: tuple[Array, Any], step: tuple[Array, Array, Array]):
        x, state = carry
        i, t, t_next = step
        x_hat, t_hat, state = sampler.raise_noise(x, t, state, i=i, key=key)
        return solver.step(ode, x_hat, t_hat, t_next, state), x if keep else None

    x = noise * schedule.sigma(times[0]) * schedule.scale(times[0])
    carry: Any = (x, solver.init(x))
    path: Any = jnp.zeros((0, *x.shape), x.dtype)
    if n > 1:
        steps = (jnp.arange(n - 1), times[:-1], times[1:])
        carry, path = jax.lax.scan(body, carry, steps)
    x, state = carry
    path = jnp.concatenate([path, x[None]]) if keep else None
    x_hat, t_hat, state = sampler.raise_noise(x, times[-1], state, i=n - 1, key=key)
    return solver.last(ode, x_hat, t_hat, state), path


def _sampler(
    noise: Example,
    sigmas: Real[ArrayLike, " n"] | Sequence[float],
    key: PRNGKey | None,
    *,
    schedule: AbstractSchedule,
    solver: AbstractSolver,
    churn: Churn | None,
) -> _Sampler:
    """The sampler of these arguments, checked where their values can be looked at."""
    check_finite("noise", noise)
    check_kind("schedule", schedule, AbstractSchedule)
    check_kind("solver", solver, AbstractSolver)
    if churn is not None:
        check_kind("churn", churn, Churn)
    if key is not None:
        check_key("key", key)
    elif churn is not None:
        raise ValueError("churn draws fresh noise: pass key=jax.random.key(seed)")
    sigmas = levels(sigmas, noise.dtype)
    schedule, solver, churn = as_traced((schedule, solver, churn))
    with jax.ensure_compile_time_eval():  # under jit, known levels have known times
        times = _times(schedule, jnp.asarray(sigmas))
    if concrete(times) and not descends(np.asarray(times)):
        raise ValueError(
            "sigmas must lead to distinct, positive times of the schedule, which may round to "
            "levels of its own: take fewer, or a larger sigma_min; "
            f"got {sigmas}, and the times {times}"
        )
    return _Sampler(times, schedule, solver, churn)


@eqx.filter_jit
def _times(schedule: AbstractSchedule, sigmas: Array) -> Array:
    return jax.vmap(schedule.time)(sigmas)
