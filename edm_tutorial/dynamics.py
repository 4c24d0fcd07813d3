r"""The score of a denoiser, and its differential equations: the probability-flow ODE and SDEs.

All of them are Diffrax vector fields `f(t, x, args)` whose `args` is the condition. The
score is $(D(x;\sigma) - x)/\sigma^2$ (Eq. 3). With it the probability-flow ODE (Eq. 4)

$$\frac{dx}{dt} = \frac{\dot s}{s}\,x + \frac{\dot\sigma}{\sigma}\,\big(x - s\,D(x/s;\sigma)\big)$$

has the same marginals as the forward SDE and as every SDE of Eq. 6. The derivatives
$\dot\sigma$ and $\dot s$ come from `jax.jvp`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array

from ._checks import check_denoised, check_kind, check_number, check_scalar
from ._types import Condition, DenoiserFn, Example, Scalar, as_float
from .schedules import AbstractSchedule, Linear

Drift = Callable[[Any, Array, Condition], Array]
Diffusion = Callable[[Any, Array, Condition], lx.DiagonalLinearOperator]


def score(denoiser: DenoiserFn, x: Example, sigma: Scalar, cond: Condition = None) -> Example:
    r"""$\nabla_x \ln p(x;\sigma) = (D(x;\sigma) - x)/\sigma^2$ (Eq. 3), per data unit.

    Raises: ValueError if `sigma` has axes, or the denoiser changes the shape or the dtype of `x`.
    """
    check_scalar("sigma", sigma)
    denoised = denoiser(x, sigma, cond)
    check_denoised(denoised, x)
    return (denoised - x) / as_float(sigma, x) ** 2


def with_derivative(f: Callable[[Array], Array], t: Array) -> tuple[Array, Array]:
    """`f(t)` and its derivative, for a scalar `t`."""
    return jax.jvp(f, (t,), (jnp.ones_like(t),))


def probability_flow(denoiser: DenoiserFn, schedule: AbstractSchedule = Linear()) -> Drift:
    """The ODE whose solutions have the marginals of the noised data (Eq. 4).

    Returns f(t, x, args) for `diffrax.ODETerm`; `args` is the condition. Integrate from
    the time of large noise down to that of small noise to generate, up to encode.

    Raises: TypeError if `schedule` is not one.
    """
    check_kind("schedule", schedule, AbstractSchedule)

    def f(t: Any, x: Array, args: Condition) -> Array:
        sigma, s, sigma_dot, s_dot = _at(schedule, t, x)
        denoised = denoiser(x / s, sigma, args)
        check_denoised(denoised, x)
        return s_dot / s * x + sigma_dot / sigma * (x - s * denoised)

    return f


def forward_sde(schedule: AbstractSchedule) -> tuple[Drift, Diffusion]:
    r"""The SDE that adds the noise: $dx = \frac{\dot s}{s} x\,dt + s\sqrt{2\dot\sigma\sigma}\,dw$.

    Returns (drift, diffusion) for `diffrax.MultiTerm(ODETerm(drift),
    ControlTerm(diffusion, brownian_motion))`, run upwards in time.

    Raises: TypeError if `schedule` is not one.
    """
    check_kind("schedule", schedule, AbstractSchedule)

    def drift(t: Any, x: Array, args: Condition) -> Array:
        _, s, _, s_dot = _at(schedule, _after_zero(t, x), x)
        return s_dot / s * x

    def diffusion(t: Any, x: Array, args: Condition) -> lx.DiagonalLinearOperator:
        sigma, s, sigma_dot, _ = _at(schedule, _after_zero(t, x), x)
        return _diagonal(s * jnp.sqrt(2 * sigma_dot * sigma), x)

    return drift, diffusion


def reverse_sde(
    denoiser: DenoiserFn,
    schedule: AbstractSchedule = Linear(),
    beta: Callable[[Array], Array] | Scalar | None = None,
) -> tuple[Drift, Diffusion]:
    r"""The SDEs that remove the noise, all with the marginals of the ODE (Eq. 6).

    `beta`, per unit of time, is how fast old noise is exchanged for new: a function of time, a
    number (0 is the probability-flow ODE) or None for $\dot\sigma/\sigma$, the reverse SDE of
    Song et al. Returns (drift, diffusion) as `forward_sde` does, to be run downwards in time.

    Raises: ValueError for a number `beta` that is negative or not finite; TypeError if `schedule`
    is not one.
    """
    check_kind("schedule", schedule, AbstractSchedule)
    if beta is not None and not callable(beta):
        check_number("beta", beta, zero=True)

    def rate(t: Any, x: Array, sigma: Array, sigma_dot: Array) -> Array:
        if beta is None:
            return sigma_dot / sigma
        return as_float(beta(as_float(t, x)) if callable(beta) else beta, x)

    def drift(t: Any, x: Array, args: Condition) -> Array:
        sigma, s, sigma_dot, s_dot = _at(schedule, t, x)
        pull = sigma_dot / sigma + rate(t, x, sigma, sigma_dot)
        denoised = denoiser(x / s, sigma, args)
        check_denoised(denoised, x)
        return s_dot / s * x + pull * (x - s * denoised)

    def diffusion(t: Any, x: Array, args: Condition) -> lx.DiagonalLinearOperator:
        sigma, s, sigma_dot, _ = _at(schedule, t, x)
        return _diagonal(s * sigma * jnp.sqrt(2 * rate(t, x, sigma, sigma_dot)), x)

    return drift, diffusion


def _at(schedule: AbstractSchedule, t: Any, x: Array) -> tuple[Array, Array, Array, Array]:
    """sigma, s and their derivatives at `t`, in the dtype of `x`."""
    t = as_float(t, x)
    sigma, sigma_dot = with_derivative(schedule.sigma, t)
    s, s_dot = with_derivative(schedule.scale, t)
    return sigma, s, sigma_dot, s_dot


def _after_zero(t: Any, x: Array) -> Array:
    """`t`, or for 0 the smallest time: at 0 sigma' may be infinite, though not sigma sigma'."""
    t = as_float(t, x)
    return jnp.where(t == 0, float(jnp.finfo(t.dtype).tiny) ** 0.5, t)


def _diagonal(value: Array, x: Array) -> lx.DiagonalLinearOperator:
    return lx.DiagonalLinearOperator(jnp.broadcast_to(value, x.shape))
