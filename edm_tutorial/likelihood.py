r"""The log-density of one example, by the change of variables along the probability-flow ODE.

In $\sigma$ the flow is $dx/d\sigma = (x - D(x;\sigma))/\sigma$ (Eq. 4 with $\sigma(t) = t$), and
along it

$$\begin{aligned}
  & \ln p(x_0;\sigma_{min}) = \ln p(x_T;\sigma_{max}) \\
  & \qquad + \int_{\sigma_{min}}^{\sigma_{max}}
    \frac{d - \operatorname{tr} \partial D/\partial x}{\sigma}\,d\sigma.
\end{aligned}$$

The result is the density of the data *with noise of level* `sigma_min`, in nats.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Real

from ._checks import (
    check_denoised,
    check_finite,
    check_key,
    check_range,
    check_scalar,
    concrete,
    levels,
    whole,
)
from ._types import Condition, DenoiserFn, Example, PRNGKey, Scalar, as_float, as_traced


class Likelihood(NamedTuple):
    """The log-density of one example, its standard error, and how the ODE was solved.

    Arguments:
        log_prob: ln p(x; sigma_min) in nats.
        std_error: of `log_prob` over the probes; 0 for the exact trace, infinite for one probe.
        latent: the unit noise that `sample` from this sigma_max turns back into x.
        num_steps: accepted steps of the solver.
        ok: whether the solve succeeded.
    """

    log_prob: Float[Array, ""]
    std_error: Float[Array, ""]
    latent: Example
    num_steps: Int[Array, ""]
    ok: Bool[Array, ""]


def log_likelihood(
    denoiser: DenoiserFn,
    x: Example,
    cond: Condition = None,
    *,
    sigma_min: Scalar = 0.002,
    sigma_max: Scalar = 80.0,
    prior_mean: Real[ArrayLike, "..."] | Sequence[float] | None = None,
    prior_std: Real[ArrayLike, "..."] | Sequence[float] | None = None,
    probes: int | None = None,
    key: PRNGKey | None = None,
    sigmas: Real[ArrayLike, " n"] | Sequence[float] | None = None,
    solver: diffrax.AbstractSolver = diffrax.Dopri8(),
    stepsize_controller: diffrax.AbstractStepSizeController = diffrax.PIDController(
        rtol=1e-5, atol=1e-5
    ),
    adjoint: diffrax.AbstractAdjoint = diffrax.RecursiveCheckpointAdjoint(),
    max_steps: int = 4096,
    throw: bool = True,
) -> Likelihood:
    r"""$\ln p(x;\sigma_{min})$ of one example under a denoiser, in nats per example.

    Each evaluation costs one linearisation of the denoiser, applied to all d directions at
    once (the exact trace) or to the `probes` (Hutchinson's estimate of it).

    Arguments:
        denoiser: any denoiser, called as `denoiser(x, sigma, cond)`.
        x: one example, data units, float32 or float64.
        sigma_min, sigma_max: the ends of the flow, data units.
        prior_mean, prior_std: the density at sigma_max is taken as N(prior_mean,
            sigma_max^2 + prior_std^2), numbers or shaped like x; one alone sets the other
            to 0. With neither, it is the Gaussian whose moments the denoiser and its
            Jacobian give at the end point (exact trace), or mean 0 and std 0 (probes).
        probes: None for the exact trace, or how many Rademacher vectors to average; they
            are drawn once and stay fixed over the solve.
        key: needed with `probes`, and only then.
        sigmas: at least two noise levels, descending, data units: the solver takes one step
            from each to the next. They replace `sigma_min`, `sigma_max`, and the adaptive steps
            with their three arguments.
        solver, stepsize_controller, adjoint, max_steps: handed to `diffrax.diffeqsolve`. With
            `BacksolveAdjoint`, differentiate with respect to arguments of this function, not
            to what the denoiser closes over.
        throw: False returns NaN with `ok` False where a solve failed or x has a NaN, for use in
            `vmap` and `jax.export`, which takes fields of the result, such as `.log_prob`.

    Raises:
        ValueError: an argument out of its range or shape or not finite, one of `probes` and `key`
            without the other, or a denoiser that changes the shape or dtype of x.
        TypeError: `probes` or `max_steps` is not a whole number, or `key` is no key.
        RuntimeError: the solve failed, for instance by running out of steps; inside `jit`
            also for a range or a `prior_std` that a ValueError refuses outside.
    """
    _check_dtype(x)
    if throw:
        check_finite("x", x)
    if isinstance(stepsize_controller, diffrax.PIDController):
        tolerances = lambda controller: (controller.rtol, controller.atol)
        stepsize_controller = eqx.tree_at(tolerances, stepsize_controller, replace_fn=jnp.asarray)
    adaptive = {"stepsize_controller": stepsize_controller, "adjoint": adjoint}
    adaptive |= {"max_steps": whole("max_steps", max_steps)}
    if sigmas is None:
        solve = eqx.Partial(_adaptive_steps, solver, **adaptive)
        ends = _ends(x, sigma_min, sigma_max)
    else:
        solve, ends = eqx.Partial(_fixed_steps, solver), levels(sigmas, x.dtype, least=2)
    return _evaluate(
        denoiser,
        x,
        as_traced(cond),
        key,
        solve=solve,
        sigmas=jnp.asarray(ends),
        prior=_prior(x, prior_mean, prior_std),
        probes=_probes(probes, key),
        throw=throw,
    )


@eqx.filter_jit
def _evaluate(
    denoiser: DenoiserFn,
    x: Array,
    cond: Condition,
    key: PRNGKey | None,
    *,
    solve: Callable[..., tuple[Any, Array, Array]],
    sigmas: Array,
    prior: tuple[Array | None, ...],
    probes: int | None,
    throw: bool,
) -> Likelihood:
    high = sigmas[0]
    valid = (sigmas[-1] > 0) & jnp.all(jnp.diff(sigmas) < 0) & (high < jnp.inf)
    valid &= prior[1] is None or jnp.all(prior[1] >= 0)
    if throw:
        sigmas = eqx.error_if(sigmas, ~valid, _INVALID)
    start = x, jnp.zeros(probes or 1, x.dtype)
    args = denoiser, cond, _directions(x, probes, key), probes is None
    (end, gained), steps, solved = solve(sigmas, start, args)
    if probes is None and all(part is None for part in prior):
        columns = _linearise(denoiser, end, high, cond, directions=_directions(x, None, None))
        terminal = _matched_log_prob(end, *columns, high)
    else:
        terminal = _gaussian_log_prob(end, prior, high)
    log_probs = terminal + gained
    result = jnp.mean(log_probs), _std_error(log_probs, probes), end / high
    ok = solved & valid & jnp.isfinite(result[0])
    result = jax.tree.map(lambda leaf: jnp.where(ok, leaf, jnp.nan), result)
    if throw:
        result = eqx.error_if(result, ~ok, _FAILED)
    return Likelihood(*result, num_steps=steps, ok=ok)


def _adaptive_steps(
    solver: diffrax.AbstractSolver, sigmas: Array, start: Any, args: Any, **options: Any
) -> tuple[Any, Array, Array]:
    """The end of the flow, the number of steps, and whether the solver got there."""
    term, ends = diffrax.ODETerm(_flow), (sigmas[-1], sigmas[0])
    solution = diffrax.diffeqsolve(term, solver, *ends, None, start, args, throw=False, **options)
    end = jax.tree.map(lambda leaf: leaf[-1], solution.ys)
    solved = solution.result == diffrax.RESULTS.successful
    return end, solution.stats["num_accepted_steps"], solved


def _fixed_steps(
    solver: diffrax.AbstractSolver, sigmas: Array, start: Any, args: Any
) -> tuple[Any, Array, Array]:
    """The same, by one step of the solver a level: `diffrax.StepTo` would not export."""
    term, rising = diffrax.ODETerm(_flow), sigmas[::-1]

    def step(carry: Any, ends: tuple[Array, Array]):
        y, state, solved = carry
        y, _, _, state, result = solver.step(term, *ends, y, args, state, made_jump=False)
        return (y, state, solved & (result == diffrax.RESULTS.successful)), None

    first = start, solver.init(term, rising[0], rising[1], start, args), jnp.array(True)
    (end, _, solved), _ = jax.lax.scan(step, first, (rising[:-1], rising[1:]))
    return end, jnp.array(len(sigmas) - 1), solved


def bits_per_dim(
    log_prob: Float[Array, "..."],
    shape: tuple[int, ...],
    *,
    bins: int = 256,
    scale: float | None = None,
) -> Float[Array, "..."]:
    r"""Bits a dimension of data that were quantised: $-\ln p /(d \ln 2) - \log_2 \text{scale}$.

    `log_prob` is in nats, of a density in data units, and `shape` that of one example. `scale` is
    the width of a quantisation cell in data units, 2 / `bins` unless given (grey levels over the
    range [-1, 1]). Data must have been dequantised by uniform noise of that width.

    Raises: ValueError for a shape with a zero, bins < 1, or a scale that is not positive.
    """
    size = math.prod(shape)
    width = 2 / bins if scale is None and bins >= 1 else scale
    if size < 1 or width is None or not 0 < width < math.inf:
        needed = "a shape without a zero, bins of at least 1 and a positive scale"
        raise ValueError(f"need {needed}, got {shape}, {bins} and {scale}")
    return -log_prob / (size * math.log(2)) - math.log2(width)


_INVALID = "need 0 < sigma_min < sigma_max, descending sigmas, and a prior_std not negative"
_FAILED = (
    "log_likelihood failed, most likely because the ODE solver ran out of steps before "
    "sigma_max: raise max_steps or loosen the tolerances of stepsize_controller. A denoiser or "
    "a prior that is NaN fails here too, and so do data that are far from Gaussian at "
    "sigma_max: raise it. Pass throw=False to get NaN with ok=False."
)


def _flow(
    sigma: Scalar,
    state: tuple[Array, Array],
    args: tuple[DenoiserFn, Condition, Array, bool],
) -> tuple[Array, Array]:
    """d/dsigma of the point and of what its density has gained, for each probe."""
    x, _ = state
    denoiser, cond, directions, exact = args
    denoised, columns = _linearise(denoiser, x, sigma, cond, directions=directions)
    traces = jnp.sum(directions * columns, axis=range(1, columns.ndim))
    traces = jnp.sum(traces, keepdims=True) if exact else traces
    return (x - denoised) / sigma, (x.size - traces) / sigma


def _linearise(
    denoiser: DenoiserFn, x: Array, sigma: Scalar, cond: Condition, *, directions: Array
) -> tuple[Array, Array]:
    """D(x; sigma), and its Jacobian applied to every direction."""
    denoised, jvp = jax.linearize(lambda x: denoiser(x, sigma, cond), x)
    check_denoised(denoised, x)
    return denoised, jax.vmap(jvp)(directions)


def _directions(x: Array, probes: int | None, key: PRNGKey | None) -> Array:
    """The identity, or Rademacher vectors: the first axis runs over directions."""
    if probes is None or key is None:
        return jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)
    return jr.rademacher(key, (probes, *x.shape), x.dtype)


def _matched_log_prob(x: Array, denoised: Array, columns: Array, sigma: Array) -> Array:
    r"""ln N(x; mean, C + sigma^2 I) with the moments that D and J = dD/dx imply at x.

    For Gaussian data $I - J = \sigma^2 (C + \sigma^2 I)^{-1}$ and $x - D = (I - J)(x - mean)$.
    """
    jacobian = columns.reshape(x.size, x.size).T
    precision = jnp.eye(x.size, dtype=x.dtype) - jacobian  # times sigma^2
    residual = (x - denoised).ravel()
    square = residual @ jnp.linalg.solve(precision, residual) / sigma**2
    sign, log_det = jnp.linalg.slogdet(precision)
    log_det = jnp.where(sign > 0, log_det, jnp.nan)  # no Gaussian has these moments
    return (log_det - square - x.size * jnp.log(2 * jnp.pi * sigma**2)) / 2


def _gaussian_log_prob(x: Array, prior: tuple[Array | None, ...], sigma: Array) -> Array:
    mean, std = (as_float(0.0 if part is None else part, x) for part in prior)
    variance = jnp.broadcast_to(std**2 + sigma**2, x.shape)
    offset = x - jnp.broadcast_to(mean, x.shape)
    return -jnp.sum(offset**2 / variance + jnp.log(2 * jnp.pi * variance)) / 2


def _std_error(log_probs: Array, probes: int | None) -> Array:
    if probes is None:
        return jnp.zeros_like(log_probs[0])
    if probes == 1:
        return jnp.full_like(log_probs[0], jnp.inf)
    return jnp.std(log_probs, ddof=1) / math.sqrt(probes)


def _check_dtype(x: Any) -> None:
    dtype = getattr(x, "dtype", type(x).__name__)
    if dtype not in (jnp.float32, jnp.float64):
        raise ValueError(
            f"x must be a floating-point array of float32 or float64, got {dtype}: cast it with "
            "x.astype(jnp.float32); a network may compute in fewer digits inside, by networks.Cast"
        )


def _ends(x: Array, sigma_min: Scalar, sigma_max: Scalar) -> Array:
    """[sigma_max, sigma_min], in the dtype of `x`."""
    check_scalar("sigma_min", sigma_min)
    check_scalar("sigma_max", sigma_max)
    check_range(sigma_min, sigma_max)
    return jnp.stack([as_float(sigma_max, x), as_float(sigma_min, x)])


def _prior(x: Array, mean: Any, std: Any) -> tuple[Array | None, ...]:
    for name, value in (("prior_mean", mean), ("prior_std", std)):
        if value is not None and np.shape(value) not in ((), x.shape):
            raise ValueError(
                f"{name} must be a number or have the shape of x, {x.shape}, got {np.shape(value)}"
            )
        known = value is not None and concrete(*jax.tree.leaves(value))
        if known and not np.all(np.isfinite(np.asarray(value, float))):
            raise ValueError(f"{name} must be finite, got {value}")
    if std is not None and concrete(std) and not np.all(np.asarray(std) >= 0):
        raise ValueError(f"prior_std must not be negative, got {std}")
    return tuple(None if part is None else as_float(part, x) for part in (mean, std))


def _probes(probes: int | None, key: PRNGKey | None) -> int | None:
    if (probes is None) != (key is None):
        raise ValueError("pass key=jax.random.key(seed) with probes, and only with probes")
    if key is not None:
        check_key("key", key)
    return None if probes is None else whole("probes", probes)
