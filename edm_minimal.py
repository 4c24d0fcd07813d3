"""EDM diffusion models in one file: denoiser, loss, sampler with churn, likelihood.

The package edm_tutorial 0.1.0, joined by `make minimal`. Licence: Apache-2.0. https://github.com/edm-tutorial/edm-tutorial
"""

import copyreg
import functools
import inspect
import math
import operator
import sys
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ClassVar, NamedTuple, ParamSpec, Protocol, TypeVar, final, runtime_checkable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray, Real, UInt

# _types

Example = Float[Array, "*shape"]
"""One example, of any shape; the same shape wherever a signature says so."""

Scalar = Real[ArrayLike, ""]
"""A number: a Python or NumPy one, or an array of shape ()."""

Condition = Any
"""What a denoiser is told besides `x` and `sigma`: any pytree, or None."""

PRNGKey = PRNGKeyArray
"""A JAX random key, `jax.random.key(seed)`."""


@runtime_checkable
class DenoiserFn(Protocol):
    """The one interface of this package: $D(x; \\sigma)$, the mean of the data given `x`.

    Any callable will do: an exact formula, a trained network, a guided pair, a posterior.
    `x` and `sigma` are in data units; the answer has the shape and dtype of `x`. `key` is passed
    only where one was given: a denoiser that does not draw needs no such parameter.
    """

    def __call__(
        self, x: Example, sigma: Scalar, cond: Condition = None, /, *, key: PRNGKey | None = None
    ) -> Example: ...


def as_float(value: Any, like: Any = None) -> Array:
    """`value` as a floating array, in the dtype of `like` when that is given."""
    if like is not None:
        return jnp.asarray(value, jax.dtypes.canonicalize_dtype(like.dtype))
    array = jnp.asarray(value)
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)


def as_traced(tree: Any) -> Any:
    """`tree` with arrays for its Python numbers, so that `jit` compiles once for all of them.

    A plain list of numbers becomes one array. Booleans and everything else stay as they are.
    """
    number = lambda leaf: isinstance(leaf, int | float) and not isinstance(leaf, bool)
    if type(tree) is list and tree and all(map(number, tree)):
        return jnp.asarray(tree)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) if number(leaf) else leaf, tree)


def on_host(key: PRNGKey) -> np.random.Generator:
    """NumPy's random numbers by a JAX key, for what is drawn once: nothing is compiled for them."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


# _deprecated

P = ParamSpec("P")
T = TypeVar("T")


def renamed(**names: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A decorator that accepts a keyword under its old name: `@renamed(old="new")`.

    The call warns and names the new one. Both at once are refused, as any unknown keyword is. The
    signature shows the new one alone.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        called, constructor, _ = function.__qualname__.partition(".__init__")
        stacklevel = 3 if constructor else 2  # Equinox calls constructors

        @wraps(function)
        def call(*args: Any, **given: Any) -> T:
            for old, new in names.items():
                if old in given and new not in given:
                    message = f"{called}({old}=) is now called {new}="
                    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel)
                    given[new] = given.pop(old)
            return function(*args, **given)

        return call

    return decorate


# _checks


def concrete(*values: Any) -> bool:
    """Whether the numbers can be looked at, which they cannot inside `jit` or `vmap`."""
    return not any(isinstance(value, Tracer) for value in values)


def check_floating(name: str, array: Any) -> None:
    """Refuse an array whose dtype cannot hold noise."""
    dtype = getattr(array, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        got = type(array).__name__ if dtype is None else dtype
        raise ValueError(
            f"{name} must be a floating-point array, got {got}: use jnp.asarray({name}, float)"
        )


def check_finite(name: str, array: Any) -> None:
    """Refuse an array that is not floating, or has an entry that is not finite."""
    check_floating(name, array)
    if concrete(array) and not np.all(np.isfinite(np.asarray(array, float))):
        raise ValueError(f"{name} must be finite, got {array}")


def check_positive(name: str, value: Any) -> None:
    """Refuse what has an entry that is not positive and finite, or no entry."""
    if concrete(value):
        numbers = np.asarray(value, dtype=float)
        if not (numbers.size and np.all(np.isfinite(numbers)) and np.all(numbers > 0)):
            raise ValueError(f"{name} must be positive and finite, got {value}")


def check_scalar(name: str, value: Any) -> None:
    """Refuse a value with axes."""
    if jnp.ndim(value) != 0:
        raise ValueError(
            f"{name} must be one number, got shape {jnp.shape(value)}: use jax.vmap for more"
        )


def check_number(name: str, value: Any, *, zero: bool = False) -> None:
    """Refuse what is not one number, positive (or, if asked, zero) and finite."""
    check_scalar(name, value)
    if not (zero and concrete(value) and float(value) == 0):
        check_positive(name, value)


def check_range(sigma_min: Any, sigma_max: Any) -> None:
    """Refuse what is not 0 < sigma_min < sigma_max, and finite."""
    if concrete(sigma_min, sigma_max) and not 0 < float(sigma_min) < float(sigma_max) < np.inf:
        raise ValueError(f"need 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")


def whole(name: str, count: Any, *, least: int = 1) -> int:
    """A size as an int, whichever integer it was; floats are refused, whole ones too."""
    try:
        number = None if isinstance(count, bool) else operator.index(count)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name} must be a whole number, got {count!r}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {name}={number}")
    return number


def levels(sigmas: Any, dtype: Any, *, least: int = 1) -> Any:
    """Descending noise levels in `dtype`, from an array or a list; refused unless positive."""
    sigmas = jnp.asarray(sigmas) if isinstance(sigmas, list | tuple) else sigmas
    if np.ndim(sigmas) != 1 or len(sigmas) < least:
        needed = "one noise level" if least == 1 else f"{least} noise levels"
        raise ValueError(
            f"sigmas must be a 1-D array of at least {needed}, got shape {np.shape(sigmas)}"
        )
    if not concrete(sigmas):
        return sigmas.astype(dtype)
    with np.errstate(over="ignore"):  # infinity is refused below
        sigmas = np.asarray(sigmas).astype(dtype)
    if not descends(sigmas):
        raise ValueError(f"sigmas must be positive, finite and descending in {dtype}, got {sigmas}")
    return sigmas


def descends(values: np.ndarray) -> bool:
    """Whether numbers descend, all of them positive and finite."""
    values = values.astype(float)
    return bool(np.isfinite(values).all() and values[-1] > 0 and np.all(np.diff(values) < 0))


def host(name: str, value: Any) -> float:
    """One number as a float, for what is computed outside `jit`."""
    if not concrete(value):
        raise TypeError(f"{name} must be known outside jit, got {value}")
    try:
        if not isinstance(value, str):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise TypeError(f"{name} must be one number, got {value!r}")


def check_key(name: str, key: Any) -> None:
    """Refuse what is not one random key: a seed, or a batch of keys."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", ())
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()
    if not (typed or (dtype == jnp.uint32 and len(shape) == 1)):  # the second is a PRNGKey
        raise TypeError(f"{name} must be one random key, jax.random.key(seed), got {key!r}")


def check_kind(name: str, value: Any, kind: type) -> None:
    """Refuse an object of another class, such as a class in place of an instance."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be an instance of {kind.__name__}, got {value!r}")


def check_callable(name: str, value: Any) -> None:
    """Refuse what cannot be called."""
    if not callable(value):
        raise TypeError(f"{name} must be callable, got {value!r}")


def check_call(
    name: str,
    network: Any,
    *,
    told: str,
    given: tuple[str, ...],
    named: dict[str, Any] | None = None,
    advice: str,
) -> None:
    """Refuse a network that cannot be called as `told` says, on what `given` and `named` name."""
    try:
        signature = inspect.signature(network)
    except (TypeError, ValueError):  # a builtin does not tell
        return
    try:
        signature.bind(*given, **(named or {}))
    except TypeError as error:
        raise TypeError(
            f"{name} is called as {told} and returns an array shaped like {given[0]}; got "
            f"{type(network).__name__} with the signature {signature} ({error}). {advice}"
        ) from None


def check_stateless(name: str, tree: Any) -> None:
    """Refuse what has a layer that keeps a state from call to call."""
    is_state = lambda node: isinstance(node, eqx.nn.StateIndex)
    if any(map(is_state, jax.tree.leaves(tree, is_leaf=is_state))):
        raise TypeError(
            f"{name} has a layer that keeps a state, such as eqx.nn.BatchNorm, which is not "
            "supported: each example is denoised by itself. Use eqx.nn.LayerNorm or GroupNorm"
        )


def check_shape(name: str, array: Any, x: Array) -> None:
    """Refuse None, and an array that is not shaped like `x`, even where it would broadcast."""
    shape = None if array is None else jnp.shape(array)
    if shape != x.shape:
        raise ValueError(f"{name} must have the shape of x, {x.shape}, got {shape}")


def check_denoised(denoised: Any, x: Array) -> None:
    """Refuse what a denoiser makes of `x` unless it is shaped and typed like `x`."""
    check_floating("x", x)
    check_shape("the denoiser's output", denoised, x)
    if jnp.result_type(denoised) != x.dtype:
        raise ValueError(
            f"the denoiser's output must have the dtype of x, {x.dtype}, "
            f"got {jnp.result_type(denoised)}: cast it with .astype(x.dtype)"
        )


def check_output(output: Any, x: Array) -> None:
    """Refuse what a network returns unless it is one array shaped like its input `x`."""
    if isinstance(output, tuple | list | dict):
        raise ValueError(
            f"the network must return one array, shaped like x, got a {type(output).__name__}: "
            "networks.adapt(network) takes the first of a pair"
        )
    check_shape("the network's output", output, x)


def check_data(name: str, data: Any) -> None:
    """Refuse data without an example along the first axis, or with an infinity or a NaN."""
    check_floating(name, data)
    if data.ndim == 0 or data.size == 0:
        raise ValueError(
            f"{name} needs at least one example along its first axis, got shape {data.shape}"
        )
    if concrete(data) and not np.all(np.isfinite(np.asarray(data))):
        bad = ~np.isfinite(np.asarray(data)).reshape(len(data), -1)
        rows = bad.any(axis=1)
        raise ValueError(
            f"{name} has {bad.sum()} entries that are not finite, in {rows.sum()} of {len(data)} "
            f"rows (first in row {np.argmax(rows)}): remove or repair them first"
        )


def check_cond(cond: Condition, count: int) -> None:
    """Refuse conditions that are not one for each of `count` examples, or not finite."""
    for leaf in jax.tree.leaves(cond):
        if getattr(leaf, "dtype", None) is None:
            raise ValueError(f"cond must be made of arrays, got {leaf!r}: use jnp.asarray(cond)")
        if (shape := jnp.shape(leaf))[:1] != (count,):
            raise ValueError(
                f"every example needs its condition: {count} examples, and cond of shape {shape}"
            )
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            check_data("cond", leaf)


# likelihood


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


# schedules


class AbstractSchedule(eqx.Module):
    """Noise level `sigma(t)`, its inverse `time(sigma)`, and scaling `scale(t)`.

    `sigma` rises from 0 at t = 0. Times, noise levels (data units) and scales are
    scalars; each method follows the dtype of its argument. A class may say in `formula` what
    sigma(t) and s(t) are, for a printed design, with `{sigma}` and `{scale}` for those of the
    `schedule` that it wraps.
    """

    @abstractmethod
    def sigma(self, t: Scalar) -> Float[Array, ""]:
        """Noise level at time `t`, in data units."""

    @abstractmethod
    def time(self, sigma: Scalar) -> Float[Array, ""]:
        """The time at which the noise level is `sigma`: the inverse of `sigma(t)`."""

    @abstractmethod
    def scale(self, t: Scalar) -> Float[Array, ""]:
        """The factor s(t) by which the noisy data are multiplied at time `t`."""


@final
class Linear(AbstractSchedule):
    r"""EDM's own: $\sigma(t) = t$ and $s(t) = 1$ (Table 1, column "Ours")."""

    formula: ClassVar = ("t", "1")

    def sigma(self, t: Scalar) -> Float[Array, ""]:
        return as_float(t)

    def time(self, sigma: Scalar) -> Float[Array, ""]:
        return as_float(sigma)

    def scale(self, t: Scalar) -> Float[Array, ""]:
        return jnp.ones_like(as_float(t))


@final
class VarianceExploding(AbstractSchedule):
    r"""$\sigma(t) = \sqrt t$ and $s(t) = 1$ (Table 1, column "VE")."""

    formula: ClassVar = ("sqrt(t)", "1")

    def sigma(self, t: Scalar) -> Float[Array, ""]:
        return jnp.sqrt(as_float(t))

    def time(self, sigma: Scalar) -> Float[Array, ""]:
        return as_float(sigma) ** 2

    def scale(self, t: Scalar) -> Float[Array, ""]:
        return jnp.ones_like(as_float(t))


@final
class VariancePreserving(AbstractSchedule):
    r"""$\sigma(t)^2 = e^{\beta_d t^2/2 + \beta_{min} t} - 1$, $s = 1/\sqrt{1+\sigma^2}$.

    Table 1, column "VP". With `expm1` and `log1p` it keeps its digits near t = 0 in float32.

    Arguments:
        beta_d, beta_min: the noise rate at time t is beta_min + beta_d t. `from_range`
            may find a small negative beta_min; then sigma(t) is defined at t = 0 and
            from t = -2 beta_min / beta_d on, where all its noise levels lie.

    Raises: ValueError unless the noise level at t = 1 is positive, finite and rising.
    """

    beta_d: float = 19.9
    beta_min: float = 0.1
    formula: ClassVar = ("sqrt(exp(beta_d t^2/2 + beta_min t) - 1)", "1/sqrt(sigma^2 + 1)")

    def __check_init__(self):
        beta_d, beta_min = self.beta_d, self.beta_min
        check_positive("the noise rate at t = 1, beta_min + beta_d,", beta_min + beta_d)
        check_positive("beta_min + beta_d / 2", beta_min + beta_d / 2)

    @classmethod
    def from_range(
        cls, sigma_min: float, sigma_max: float, eps: float = 1e-3
    ) -> "VariancePreserving":
        r"""The schedule with $\sigma(\epsilon) =$ `sigma_min` and $\sigma(1) =$ `sigma_max`.

        Raises: ValueError unless 0 < sigma_min < sigma_max and 0 < eps < 1, or if no rising
        schedule passes through both points.
        """
        check_range(sigma_min, sigma_max)
        if not 0 < eps < 1:
            raise ValueError(f"need 0 < eps < 1, got eps={eps}")
        # Two linear equations: ln(1 + sigma^2) = beta_d t^2/2 + beta_min t at t = eps and t = 1.
        low, high = np.log1p(sigma_min**2), np.log1p(sigma_max**2)
        beta_d = 2 * (low / eps - high) / (eps - 1)
        beta_min = high - beta_d / 2
        if not beta_min + beta_d > 0:  # it rises from `low` > 0; does it to the end?
            raise ValueError(
                f"no variance-preserving schedule has sigma({eps}) = {sigma_min} and "
                f"sigma(1) = {sigma_max}: choose another eps"
            )
        return cls(float(beta_d), float(beta_min))

    def _log_scale(self, t: Array) -> Array:
        return t * (self.beta_d * t / 2 + self.beta_min)

    def sigma(self, t: Scalar) -> Float[Array, ""]:
        return jnp.sqrt(jnp.expm1(self._log_scale(as_float(t))))

    def time(self, sigma: Scalar) -> Float[Array, ""]:
        level = 2 * jnp.log1p(as_float(sigma) ** 2)
        root = jnp.sqrt(self.beta_min**2 + self.beta_d * level)
        return level / (root + self.beta_min)  # no difference of nearly equal roots

    def scale(self, t: Scalar) -> Float[Array, ""]:
        return jnp.exp(-self._log_scale(as_float(t)) / 2)


class AbstractWrapper(AbstractSchedule):
    """A schedule with the noise levels of another one, which it holds as `schedule`.

    Raises: TypeError if `schedule` is not one.
    """

    schedule: AbstractSchedule

    def __check_init__(self):
        check_kind("schedule", self.schedule, AbstractSchedule)

    def sigma(self, t: Scalar) -> Float[Array, ""]:
        return self.schedule.sigma(t)


@final
class VarianceScaled(AbstractWrapper):
    r"""Any schedule with the scaling $s = 1/\sqrt{1+\sigma^2}$ of the VP column."""

    formula: ClassVar = ("{sigma}", "1/sqrt(sigma^2 + 1)")

    def time(self, sigma: Scalar) -> Float[Array, ""]:
        return self.schedule.time(sigma)

    def scale(self, t: Scalar) -> Float[Array, ""]:
        return (1 + self.schedule.sigma(t) ** 2) ** -0.5


@final
class Unscaled(AbstractWrapper):
    """Any schedule with its scaling taken away: s = 1."""

    formula: ClassVar = ("{sigma}", "1")

    def time(self, sigma: Scalar) -> Float[Array, ""]:
        return self.schedule.time(sigma)

    def scale(self, t: Scalar) -> Float[Array, ""]:
        return jnp.ones_like(as_float(t))


@final
class Rounded(AbstractWrapper):
    """A schedule that stops only at the noise levels a discrete model was trained on.

    `time(sigma)` is the time of that one of the `levels` (data units, for instance
    `iddpm_table()`) which is nearest to `sigma`; `sigma` and `scale` are those of `schedule`.

    Raises: ValueError without levels, or for one that is negative or not finite.
    """

    levels: Float[ArrayLike, " levels"]
    formula: ClassVar = ("Rounded: {sigma}", "{scale}")

    def __check_init__(self):
        if concrete(self.levels):
            levels = np.asarray(self.levels, float)
            valid = np.isfinite(levels) & (levels >= 0)
            if levels.ndim != 1 or levels.size < 1 or not valid.all():
                needed = "a 1-D array of noise levels, finite and not negative"
                raise ValueError(f"levels must be {needed}, got {self.levels}")

    def time(self, sigma: Scalar) -> Float[Array, ""]:
        sigma = as_float(sigma)
        levels = jnp.asarray(self.levels, sigma.dtype)
        return self.schedule.time(levels[jnp.argmin(jnp.abs(levels - sigma))])

    def scale(self, t: Scalar) -> Float[Array, ""]:
        return self.schedule.scale(t)


# grids

Grid = TypeVar("Grid", bound=Callable[..., Array])


def formula(text: str, also: Callable[..., dict[str, Any]] = dict) -> Callable[[Grid], Grid]:
    """A decorator that gives a grid the formula of its i-th of N levels, for a printed design.

    `also` gives the numbers in the formula that follow from the grid's arguments.
    """

    def mark(grid: Any) -> Any:
        grid.formula, grid.also = text, also
        return grid

    return mark


@formula("(a + i/(N-1) (b - a))^rho, a = sigma_max^(1/rho), b = sigma_min^(1/rho)")
def edm_sigmas(
    n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Float[Array, " n"]:
    r"""Levels evenly spaced in $\sigma^{1/\rho}$ (Eq. 5): `rho` bends steps towards low noise.

    Raises: ValueError if n < 1, not 0 < sigma_min < sigma_max, or rho is not positive;
    TypeError if `n` is not a whole number, or a number is known only inside `jit`.
    """
    (sigma_min, sigma_max), rho = _range(sigma_min, sigma_max), host("rho", rho)
    if not 0 < rho < np.inf:
        raise ValueError(f"rho must be positive and finite, got {rho}")
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return jnp.asarray((high + _ramp(n) * (low - high)) ** rho)


@formula("sigma_max (sigma_min/sigma_max)^(i/(N-1))")
def ve_sigmas(n: int, sigma_min: float = 0.02, sigma_max: float = 100.0) -> Float[Array, " n"]:
    r"""Levels evenly spaced in $\ln\sigma$ (Table 1, column "VE").

    Raises: ValueError if n < 1 or not 0 < sigma_min < sigma_max; TypeError if `n` is not a whole
    number, or a number is known only inside `jit`.
    """
    sigma_min, sigma_max = _range(sigma_min, sigma_max)
    return jnp.asarray(sigma_max * (sigma_min / sigma_max) ** _ramp(n))


@formula("sigma(t_i) of VP at t_i = 1 + i/(N-1) (eps - 1)")
def vp_sigmas(
    n: int, eps: float = 1e-3, beta_d: float = 19.9, beta_min: float = 0.1
) -> Float[Array, " n"]:
    r"""Levels evenly spaced in the time of the VP schedule, from 1 down to `eps` (Table 1).

    For a range of noise levels take the betas of
    `VariancePreserving.from_range(sigma_min, sigma_max, eps)`.

    Raises: ValueError if n < 1 or not 0 < eps < 1, or for betas whose noise does not rise;
    TypeError if `n` is not a whole number, or a number is known only inside `jit`.
    """
    eps, beta_d, beta_min = host("eps", eps), host("beta_d", beta_d), host("beta_min", beta_min)
    t = 1 + _ramp(n) * (eps - 1)
    if not 0 < eps < 1:
        raise ValueError(f"need 0 < eps < 1, got eps={eps}")
    rates = np.array([beta_min + beta_d * eps / 2, beta_min + beta_d * eps, beta_min + beta_d])
    if not (np.all(np.isfinite(rates)) and np.all(rates > 0)):
        raise ValueError(
            f"the noise must be positive at t = eps and rise from there to t = 1, got "
            f"eps={eps}, beta_d={beta_d} and beta_min={beta_min}"
        )
    return jnp.asarray(np.sqrt(np.expm1(t * (beta_d * t / 2 + beta_min))))


def _inside(
    sigma_min: float, sigma_max: float, levels: int, c_1: float, c_2: float
) -> dict[str, int]:
    """The indices j_0 and j_1 of the first and the last trained level in the range."""
    table = iddpm_levels(levels, c_1, c_2)
    slack = 1 + 1e-6  # a bound that is itself a level counts, whatever its last digits
    first, end = np.sum(table > sigma_max * slack), np.sum(table >= sigma_min / slack)
    return {"j_0": int(first), "j_1": int(end) - 1}


@formula(
    "u_j with j = j_0 + round(i (j_1 - j_0)/(N-1)), halves to even; u_levels = 0, "
    "u_(j-1) = sqrt((u_j^2 + 1)/max(a_(j-1)/a_j, c_1) - 1), "
    "a_j = sin(pi/2 j/(levels (c_2 + 1)))^2",
    also=_inside,
)
def iddpm_sigmas(
    n: int,
    sigma_min: float = 0.002,
    sigma_max: float = 81.0,
    levels: int = 1000,
    c_1: float = 1e-3,
    c_2: float = 8e-3,
) -> Float[Array, " n"]:
    r"""`n` of the trained levels of improved DDPM inside the range (Table 1, "iDDPM").

    Evenly spaced in the index, which is rounded, halves to even as in the reference.

    Raises: ValueError if n < 1, for a bad range, or with fewer than n levels inside it; TypeError
    if `n` or `levels` is not a whole number, or a number is known only inside `jit`.
    """
    n = whole("n", n)
    first, last = _inside(*_range(sigma_min, sigma_max), levels, c_1, c_2).values()
    if n > last - first + 1:
        raise ValueError(
            f"iDDPM has {last - first + 1} levels between sigma_min={sigma_min} and "
            f"sigma_max={sigma_max}, got n={n}: ask for fewer, or raise `levels`"
        )
    step = (last - first) / max(n - 1, 1)
    index = np.round(step * np.arange(n)).astype(int)  # ties to even
    return jnp.asarray(iddpm_levels(levels, c_1, c_2)[first + index])


def iddpm_table(
    levels: int = 1000, c_1: float = 1e-3, c_2: float = 8e-3
) -> Float[Array, " {levels}+1"]:
    r"""The noise levels $u_0 > \dots > u_M = 0$ that improved DDPM was trained on.

    $u_{j-1}^2 = (u_j^2 + 1)$ $/ \max(\bar\alpha_{j-1}/\bar\alpha_j, C_1) - 1$ with
    $\bar\alpha_j = \sin^2(\tfrac\pi2 \, j / (M (C_2+1)))$ (Table 1, column "iDDPM").

    Raises: ValueError if levels < 1 or C_1, C_2 are outside (0, 1); TypeError if `levels` is not a
    whole number, or a number is known only inside `jit`.
    """
    return jnp.asarray(iddpm_levels(levels, c_1, c_2))


def iddpm_levels(levels: int, c_1: float, c_2: float) -> np.ndarray:
    """`iddpm_table` in float64 whatever JAX's default dtype is, shape (levels + 1,)."""
    return _recursion(whole("levels", levels), host("c_1", c_1), host("c_2", c_2))


@functools.cache
def _recursion(levels: int, c_1: float, c_2: float) -> np.ndarray:
    if not (0 < c_1 < 1 and 0 < c_2 < 1):
        raise ValueError(f"need c_1 and c_2 between 0 and 1, got {c_1} and {c_2}")
    angle = np.pi / 2 * np.arange(levels + 1) / (levels * (c_2 + 1))
    # 1 - abar_{j-1} / abar_j as a product of sines: no difference of nearly equal numbers
    drop = np.sin(np.diff(angle)) * np.sin(angle[1:] + angle[:-1])
    drop = np.minimum(drop / np.sin(angle[1:]) ** 2, 1 - c_1)
    u = np.zeros(levels + 1)
    for j in range(levels, 0, -1):
        u[j - 1] = np.sqrt((u[j] ** 2 + drop[j - 1]) / (1 - drop[j - 1]))
    u.flags.writeable = False  # cached: one table for all callers
    return u


def _ramp(n: int) -> np.ndarray:
    return np.linspace(0.0, 1.0, whole("n", n))


def _range(sigma_min: Any, sigma_max: Any) -> tuple[float, float]:
    low, high = host("sigma_min", sigma_min), host("sigma_max", sigma_max)
    check_range(sigma_min, sigma_max)
    return low, high


# dynamics

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


# preconditioning


class Coefficients(NamedTuple):
    """The four functions of Eq. 7 at one noise level.

    They are scalars; where `sigma_data` is given per feature, all but `c_noise` broadcast
    against one example.
    """

    c_skip: Float[Array, "..."]
    c_out: Float[Array, "..."]
    c_in: Float[Array, "..."]
    c_noise: Float[Array, ""]


class AbstractPreconditioning(eqx.Module):
    """A function of the noise level (data units) that returns its `Coefficients`.

    A class may say in `formula` what these and the loss weighting are, for a printed design.
    """

    @abstractmethod
    def __call__(self, sigma: Scalar) -> Coefficients:
        """The four coefficients at noise level `sigma`, in the dtype of `sigma`."""

    def loss_weight(self, sigma: Scalar) -> Float[Array, "..."]:
        r"""$\lambda(\sigma) = 1 / c_{out}(\sigma)^2$ (Eq. 2 and Table 1, "Training")."""
        return self(sigma).c_out ** -2


@final
class EDMPreconditioning(AbstractPreconditioning):
    r"""EDM's coefficients: unit variance in, unit variance out, least amplified errors.

    $c_{skip} = \sigma_d^2/(\sigma^2+\sigma_d^2)$, $c_{out} = \sigma\sigma_d
    /\sqrt{\sigma^2+\sigma_d^2}$, $c_{in} = 1/\sqrt{\sigma^2+\sigma_d^2}$, $c_{noise} =
    \tfrac14\ln\sigma$ with $\sigma_d$ = `sigma_data` (Table 1, column "Ours").

    Arguments:
        sigma_data: root mean square of the *centred* data, in data units; `from_data` measures
            it. A number, or one per feature in a shape that broadcasts against one example,
            such as (d,) or (C, 1, 1).

    So that no optimizer takes it for a parameter, it is kept as Python floats or, inside a
    transformation such as `jax.jit`, as the bits of a float in an array of integers. (A filter
    that takes Python floats for parameters, `eqx.is_inexact_array_like`, still finds the former.)

    Raises: ValueError if `sigma_data` is not positive and finite.
    """

    _sigma_data: float | list[Any] | UInt[Array, "..."]
    formula: ClassVar = (
        "sigma_data^2/(sigma^2 + sigma_data^2)",
        "sigma sigma_data/sqrt(sigma^2 + sigma_data^2)",
        "1/sqrt(sigma^2 + sigma_data^2)",
        "ln(sigma)/4",
        "(sigma^2 + sigma_data^2)/(sigma sigma_data)^2",
    )

    def __init__(self, sigma_data: float | Float[ArrayLike, "..."] | Sequence[Any]):
        check_positive("sigma_data", sigma_data)
        if concrete(sigma_data):
            self._sigma_data = np.asarray(sigma_data, float).tolist()
        else:
            value = as_float(sigma_data)
            double = value.dtype == jnp.float64
            value = value if double else value.astype(jnp.float32)
            bits = jnp.uint64 if double else jnp.uint32
            self._sigma_data = jax.lax.bitcast_convert_type(value, bits)

    @property
    def sigma_data(self) -> float | Float[Array, "..."]:
        """The root mean square of the data, as a number or as one per feature."""
        value = self._sigma_data
        if isinstance(value, list):
            return jnp.asarray(value)
        if isinstance(value, Array) and jnp.issubdtype(value.dtype, jnp.unsignedinteger):
            double = value.dtype == jnp.uint64
            return jax.lax.bitcast_convert_type(value, jnp.float64 if double else jnp.float32)
        return value

    def __repr__(self) -> str:
        return f"EDMPreconditioning(sigma_data={self.sigma_data})"

    @classmethod
    def from_data(cls, x: Float[ArrayLike, " n *shape"]) -> "EDMPreconditioning":
        """Coefficients for the data `x`: `sigma_data` is their root mean square about zero.

        Centre the data first.

        Raises: ValueError if `x` is empty, not finite, or zero everywhere.
        """
        x = jnp.asarray(x)
        check_data("x", x)
        return cls(jnp.sqrt(jnp.mean(x**2)))

    def __call__(self, sigma: Scalar) -> Coefficients:
        sigma = as_float(sigma)
        sigma_data = jax.lax.stop_gradient(as_float(self.sigma_data, sigma))
        total = jnp.hypot(sigma, sigma_data)
        return Coefficients(
            c_skip=(sigma_data / total) ** 2,
            c_out=sigma_data * (sigma / total),
            c_in=1 / total,
            c_noise=jnp.log(sigma) / 4,
        )


@final
class VEPreconditioning(AbstractPreconditioning):
    r"""$1,\ \sigma,\ 1,\ \ln(\sigma/2)$ (Table 1, column "VE"): the input is not scaled."""

    formula: ClassVar = ("1", "sigma", "1", "ln(sigma/2)", "1/sigma^2")

    def __call__(self, sigma: Scalar) -> Coefficients:
        sigma = as_float(sigma)
        one = jnp.ones_like(sigma)
        return Coefficients(c_skip=one, c_out=sigma, c_in=one, c_noise=jnp.log(sigma / 2))


@final
class VPPreconditioning(AbstractPreconditioning):
    r"""$1,\ -\sigma,\ 1/\sqrt{1+\sigma^2},\ (M-1)\,t(\sigma)$ (Table 1, column "VP").

    Arguments:
        schedule: the VP schedule of training, whose time labels the noise level.
        levels: M, the number of discrete levels of the original model.

    Raises: ValueError if `levels` is less than 2.
    """

    schedule: VariancePreserving = VariancePreserving()
    levels: int = 1000
    formula: ClassVar = ("1", "-sigma", "1/sqrt(sigma^2 + 1)", "(levels - 1) t(sigma)", "1/sigma^2")

    def __check_init__(self):
        if self.levels < 2:
            raise ValueError(f"levels must be at least 2, got {self.levels}")

    def __call__(self, sigma: Scalar) -> Coefficients:
        sigma = as_float(sigma)
        return _of_ddpm(sigma, c_noise=(self.levels - 1) * self.schedule.time(sigma))


@final
class IDDPMPreconditioning(AbstractPreconditioning):
    r"""$1,\ -\sigma,\ 1/\sqrt{1+\sigma^2}$, $M-1-\arg\min_j|u_j-\sigma|$ (column "iDDPM").

    Arguments:
        levels, c_1, c_2: those of `iddpm_table`, whose index labels the noise level.

    Raises: ValueError if levels < 1, or c_1, c_2 are outside (0, 1).
    """

    levels: int = 1000
    c_1: float = 1e-3
    c_2: float = 8e-3
    formula: ClassVar = (
        "1",
        "-sigma",
        "1/sqrt(sigma^2 + 1)",
        "levels - 1 - argmin_j abs(u_j - sigma)",
        "1/sigma^2",
    )

    def __check_init__(self):
        iddpm_levels(self.levels, self.c_1, self.c_2)  # refuses what has no table

    def __call__(self, sigma: Scalar) -> Coefficients:
        sigma = as_float(sigma)
        table = jnp.asarray(iddpm_levels(self.levels, self.c_1, self.c_2), sigma.dtype)
        index = jnp.argmin(jnp.abs(table - sigma))
        return _of_ddpm(sigma, c_noise=(self.levels - 1 - index).astype(sigma.dtype))


def _of_ddpm(sigma: Array, c_noise: Array) -> Coefficients:
    """Coefficients of a network that predicts the noise, for data of unit variance."""
    one, c_in = jnp.ones_like(sigma), (1 + sigma**2) ** -0.5
    return Coefficients(c_skip=one, c_out=-sigma, c_in=c_in, c_noise=c_noise)


# noise_levels


class AbstractNoiseDistribution(eqx.Module):
    """The law of the training noise level; its `formula`, if any, is for a printed design."""

    @abstractmethod
    def __call__(self, key: PRNGKey) -> Float[Array, ""]:
        """One noise level, in data units."""

    @abstractmethod
    def from_variate(self, r: Scalar) -> Float[Array, ""]:
        """The noise level made from a standard draw `r`: N(0, 1) or U(0, 1)."""

    def from_uniform(self, r: Scalar) -> Float[Array, ""]:
        """The noise level made from a draw `r` of U(0, 1), so that draws can be stratified."""
        return self.from_variate(r)


@final
class LogNormal(AbstractNoiseDistribution):
    r"""$\ln\sigma \sim N(P_{mean}, P_{std}^2)$ (Table 1, column "Ours"); `r` is N(0, 1).

    Raises: ValueError if `p_std` is not positive, or `p_mean` not finite.
    """

    p_mean: float = -1.2
    p_std: float = 1.2
    formula: ClassVar = "ln(sigma) ~ N(p_mean, p_std^2)"

    def __check_init__(self):
        check_positive("p_std", self.p_std)
        if concrete(self.p_mean) and not np.isfinite(self.p_mean):
            raise ValueError(f"p_mean must be finite, got {self.p_mean}")

    def __call__(self, key: PRNGKey) -> Float[Array, ""]:
        return self.from_variate(jr.normal(key))

    def from_variate(self, r: Scalar) -> Float[Array, ""]:
        return jnp.exp(self.p_mean + self.p_std * as_float(r))

    def from_uniform(self, r: Scalar) -> Float[Array, ""]:
        return self.from_variate(jax.scipy.special.ndtri(as_float(r)))


@final
class LogUniform(AbstractNoiseDistribution):
    r"""$\ln\sigma$ uniform over the range (Table 1, column "VE"); `r` is U(0, 1).

    Raises: ValueError unless 0 < sigma_min < sigma_max.
    """

    sigma_min: float = 0.02
    sigma_max: float = 100.0
    formula: ClassVar = "ln(sigma) ~ U(ln sigma_min, ln sigma_max)"

    def __check_init__(self):
        check_range(self.sigma_min, self.sigma_max)

    def __call__(self, key: PRNGKey) -> Float[Array, ""]:
        return self.from_variate(jr.uniform(key))

    def from_variate(self, r: Scalar) -> Float[Array, ""]:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** as_float(r)


@final
class UniformTime(AbstractNoiseDistribution):
    r"""$\sigma(t)$ at $t$ uniform in $(\epsilon_t, 1)$ (Table 1, "VP"); `r` = 0 is t = 1.

    Raises: ValueError unless 0 < eps < 1.
    """

    schedule: VariancePreserving = VariancePreserving()
    eps: float = 1e-5
    formula: ClassVar = "sigma(t) of VP, t ~ U(eps, 1)"

    def __check_init__(self):
        if not 0 < self.eps < 1:
            raise ValueError(f"need 0 < eps < 1, got eps={self.eps}")

    def __call__(self, key: PRNGKey) -> Float[Array, ""]:
        return self.from_variate(jr.uniform(key))

    def from_variate(self, r: Scalar) -> Float[Array, ""]:
        return self.schedule.sigma(1 + as_float(r) * (self.eps - 1))


@final
class UniformLevels(AbstractNoiseDistribution):
    r"""$\sigma = u_j$ with $j$ uniform in 0..M-1 (Table 1, "iDDPM"); `r` is U(0, 1).

    Raises: ValueError if levels < 1, or c_1, c_2 are outside (0, 1).
    """

    levels: int = 1000
    c_1: float = 1e-3
    c_2: float = 8e-3
    formula: ClassVar = "sigma = u_j, j ~ U{0, ..., levels - 1}"

    def __check_init__(self):
        iddpm_levels(self.levels, self.c_1, self.c_2)  # refuses what has no table

    def __call__(self, key: PRNGKey) -> Float[Array, ""]:
        return self.from_variate(jr.uniform(key))

    def from_variate(self, r: Scalar) -> Float[Array, ""]:
        r = as_float(r)
        table = jnp.asarray(iddpm_levels(self.levels, self.c_1, self.c_2), r.dtype)
        index = jnp.floor(r * self.levels).astype(int)
        level = table[jnp.clip(index, 0, self.levels - 1)]  # r = 1 belongs to the last
        return jnp.where(jnp.isnan(r), r, level)  # there is no such index


# solvers


@final
class ODE(eqx.Module):
    """The probability-flow ODE of a denoiser and its condition, in the time of a schedule.

    Raises: ValueError if the denoiser changes the shape or the dtype of x.
    """

    denoiser: DenoiserFn
    schedule: AbstractSchedule
    cond: Condition

    def velocity(self, t: Float[Array, ""], x: Example) -> Example:
        """dx/dt (Eq. 4). One denoiser call."""
        denoiser, t = _tied(self.denoiser, t)
        return probability_flow(denoiser, self.schedule)(t, x, self.cond)

    def denoise(self, t: Float[Array, ""], x: Example) -> Example:
        """The denoised, unscaled D(x / s; sigma). One denoiser call."""
        denoiser, t = _tied(self.denoiser, t)
        sigma, s = self.schedule.sigma(t), self.schedule.scale(t)
        denoised = denoiser(x / s, sigma, self.cond)
        check_denoised(denoised, x)
        return denoised


def _tied(denoiser: DenoiserFn, t: Array) -> tuple[DenoiserFn, Array]:
    """The denoiser and the time behind a barrier that keeps XLA from merging two denoiser calls.

    XLA would spread each bias over the whole batch once for both, and each call would fetch that
    copy from memory: a quarter more time on a CPU.
    """
    weights, rest = eqx.partition(denoiser, eqx.is_inexact_array)
    weights, t = jax.lax.optimization_barrier((weights, t))
    return eqx.combine(weights, rest), t


class AbstractSolver(eqx.Module):
    """A rule for one step; its `formula`, if any, is for a printed design.

    Times descend, and `state` is whatever `init` returned.
    """

    @abstractmethod
    def init(self, x: Example) -> Any:
        """The solver's state before its first step, or None."""

    @abstractmethod
    def step(
        self, ode: ODE, x: Example, t: Array, t_next: Array, state: Any
    ) -> tuple[Example, Any]:
        """`x` moved from `t` to `t_next`, and the next `state`; both times have positive noise."""

    @abstractmethod
    def last(self, ode: ODE, x: Example, t: Array, state: Any) -> Example:
        """`x` at time 0, by a last step from `t` with one denoiser call."""


@final
class Euler(AbstractSolver):
    """First order, one denoiser call a step (Algorithm 1 without its correction)."""

    formula: ClassVar = "Euler, N calls"

    def init(self, x: Example) -> None:
        return None

    def step(
        self, ode: ODE, x: Example, t: Array, t_next: Array, state: None
    ) -> tuple[Example, None]:
        return x + (t_next - t) * ode.velocity(t, x), None

    def last(self, ode: ODE, x: Example, t: Array, state: None) -> Example:
        return _euler_to_zero(ode, x, t)


@final
class Heun(AbstractSolver):
    r"""Second order, two denoiser calls a step (Algorithm 1; Algorithm 3 for any alpha).

    The second call is at $t + \alpha h$: 1 is Heun's method, 1/2 the midpoint rule, 2/3 Ralston's.
    Raises: ValueError if `alpha` is not positive.
    """

    alpha: float = 1.0
    formula: ClassVar = "Heun, 2 N - 1 calls"

    def __check_init__(self):
        check_number("alpha", self.alpha)

    def init(self, x: Example) -> None:
        return None

    def step(
        self, ode: ODE, x: Example, t: Array, t_next: Array, state: None
    ) -> tuple[Example, None]:
        h = t_next - t
        first = ode.velocity(t, x)
        # At alpha = 1 this is t_next to the last bit: t + h may round to 0, where sigma is.
        second = ode.velocity(t_next - (1 - self.alpha) * h, x + self.alpha * h * first)
        half = 1 / (2 * self.alpha)
        return x + h * ((1 - half) * first + half * second), None

    def last(self, ode: ODE, x: Example, t: Array, state: None) -> Example:
        return _euler_to_zero(ode, x, t)


@final
class DPMSolverPP2M(AbstractSolver):
    r"""DPM-Solver++(2M): second order with one denoiser call a step (Lu et al., 2022).

    In $\lambda = -\ln\sigma$ the ODE is linear in $x/s$ but for the denoiser, and that part
    is solved exactly: $x/s$ shrinks by $\sigma_{next}/\sigma$ towards $D$. The method
    extrapolates D along $\lambda$ through this call and the one before. The first step,
    and each step after churn, has no call before it and uses D itself. In the last step
    D is the sample.
    """

    formula: ClassVar = "DPM-Solver++(2M), N calls"

    def init(self, x: Example) -> tuple[Array, Array]:
        return jnp.zeros_like(x), jnp.array(jnp.inf, x.dtype)  # at infinite distance

    def step(
        self, ode: ODE, x: Example, t: Array, t_next: Array, state: tuple[Array, Array]
    ) -> tuple[Example, tuple[Array, Array]]:
        old, old_log = state
        sigma, next_sigma = ode.schedule.sigma(t), ode.schedule.sigma(t_next)
        denoised, shrink, log = ode.denoise(t, x), next_sigma / sigma, jnp.log(sigma)
        ratio = (jnp.log(next_sigma) - log) / (log - old_log)  # 0 without a past
        ahead = denoised + ratio / 2 * (denoised - old)
        s, next_s = ode.schedule.scale(t), ode.schedule.scale(t_next)
        x_next = next_s * (shrink * (x / s) + (1 - shrink) * ahead)
        return x_next, (denoised, log)

    def last(self, ode: ODE, x: Example, t: Array, state: Any) -> Example:
        return ode.schedule.scale(jnp.zeros_like(t)) * ode.denoise(t, x)


def _euler_to_zero(ode: ODE, x: Array, t: Array) -> Array:
    return x - t * ode.velocity(t, x)


# losses


@runtime_checkable
class Preconditioned(Protocol):
    """A denoiser in its two parts, as `Denoiser` has them."""

    @property
    def network(self) -> Callable[..., Array]: ...

    @property
    def preconditioning(self) -> AbstractPreconditioning: ...


def weighted_error(
    denoiser: Preconditioned,
    x: Example,
    sigma: Scalar,
    n: Example,
    cond: Condition = None,
    *,
    key: PRNGKey | None = None,
) -> Example:
    r"""$\lambda(\sigma)\,(D(x+n;\sigma)-x)^2$ of one example, computed in network space.

    Eq. 2 by way of Eq. 8. `x` is clean and `n` noise of level `sigma`, in data units; `key` is
    for the network's dropout, if it has any. `denoiser` may be anything with the two fields of
    a `Denoiser`.

    Raises: ValueError if `denoiser` has no `network` and `preconditioning`, `x` is not floating, or
    `n` or the network's output is not shaped like `x`.
    """
    network, preconditioning = _parts(denoiser)
    check_floating("x", x)
    check_shape("n", n, x)
    c = preconditioning(as_float(sigma, x))
    output = network(c.c_in * (x + n), c.c_noise, cond, key=key)
    check_output(output, x)
    target = ((1 - c.c_skip) * x - c.c_skip * n) / c.c_out
    return (output - target) ** 2


@renamed(noise="sigma_dist")
def denoising_loss(
    denoiser: Preconditioned,
    x: Example,
    cond: Condition = None,
    *,
    sigma_dist: Callable[[PRNGKey], Array],
    null: Condition = None,
    p_null: Scalar = 0.1,
    key: PRNGKey,
) -> Float[Array, ""]:
    """The training loss of one example: `weighted_error` at a random noise level, averaged.

    Arguments:
        x: clean, in data units.
        sigma_dist: the law of the noise level, such as `LogNormal()`.
        null: the condition that tells nothing, for classifier-free guidance (condition dropout):
            it stands in place of `cond` with probability `p_null`, so that the denoiser can be its
            own guide, `Guided(D, Pinned(D, null), w)`. What is None in it is never replaced.
        p_null: used only where there is a `null`.
        key: split between the level, the noise and the network.

    Raises: ValueError as `weighted_error`, or if `null` is not shaped like `cond`.
    """
    error, _ = error_at_random_level(
        denoiser, x, cond, sigma_dist=sigma_dist, null=null, p_null=p_null, key=key
    )
    return error


def error_at_random_level(
    denoiser: Preconditioned,
    x: Example,
    cond: Condition = None,
    *,
    sigma_dist: Callable[[PRNGKey], Array],
    null: Condition = None,
    p_null: Scalar = 0.1,
    key: PRNGKey,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The loss of one example at a random noise level, as `denoising_loss`, and that level.

    Raises: ValueError as `denoising_loss`.
    """
    if null is not None:
        null_key, key = jr.split(key)
        cond = _told_or_null(cond, null, jr.bernoulli(null_key, 1 - p_null))
    sigma_key, noise_key, network_key = jr.split(key, 3)
    sigma = as_float(sigma_dist(sigma_key), x)
    n = sigma * jr.normal(noise_key, x.shape, x.dtype)
    return jnp.mean(weighted_error(denoiser, x, sigma, n, cond, key=network_key)), sigma


def _told_or_null(cond: Condition, null: Condition, told: Array) -> Condition:
    """`cond` if it is told, and otherwise `null`, wherever that has an array."""

    def either(null: Any, cond: Any) -> Any:
        if null is None:
            return cond
        cond = jnp.asarray(cond)
        if jnp.shape(null) != cond.shape:
            shapes = f"{cond.shape}, got {jnp.shape(null)}"
            raise ValueError(f"null must be shaped like cond, in whose place it stands, {shapes}")
        return jnp.where(told, cond, jnp.asarray(null, cond.dtype))

    return jax.tree.map(either, null, cond, is_leaf=lambda leaf: leaf is None)


def loss_by_sigma(
    denoiser: DenoiserFn | Preconditioned,
    x: Float[Array, " n *shape"],
    sigmas: Float[ArrayLike, " levels"],
    cond: Condition = None,
    *,
    key: PRNGKey,
    preconditioning: AbstractPreconditioning | None = None,
) -> Float[Array, " levels"]:
    r"""The loss at each noise level, averaged over a data set.

    One fresh noise for every example and level. 1 is an untrained network. The denoiser is
    called without a key, as samplers call it: a network with dropout uses all its units.

    Arguments:
        x: examples, stacked along the first axis, data units; `cond` likewise, or None.
        sigmas: the noise levels, data units.
        preconditioning: whose $\lambda(\sigma)$ weighs the error of a denoiser that has
            none of its own, such as an exact one.

    Raises: ValueError for a plain callable without `preconditioning`, if `x` is empty or not
    finite, `sigmas` not 1-D and positive, or `cond` not one for each example; TypeError if `key` is
    no random key.
    """
    errors = _errors_by_sigma(denoiser, x, sigmas, cond, key=key, preconditioning=preconditioning)
    return errors.mean(axis=1)


def initial_loss(
    preconditioning: AbstractPreconditioning, sigma: Scalar, mean_square: Scalar
) -> Float[Array, "..."]:
    r"""The expected loss of a zero network: $\lambda[(c_{skip}-1)^2 E x^2 + c_{skip}^2\sigma^2]$.

    `sigma` is in data units; `mean_square`, in their square, is $E x^2$ of the data about zero.
    """
    sigma = as_float(sigma)
    c_skip = preconditioning(sigma).c_skip
    spread = (c_skip - 1) ** 2 * as_float(mean_square, sigma) + c_skip**2 * sigma**2
    return preconditioning.loss_weight(sigma) * spread


def check_initial_loss(
    denoiser: Preconditioned,
    x: Float[Array, " n *shape"],
    cond: Condition = None,
    *,
    sigmas: Float[ArrayLike, " levels"] | None = None,
    key: PRNGKey | None = None,
) -> Float[Array, " levels"]:
    """The losses of an *untrained* denoiser, refused where they are not 1.

    Call it once before training: it finds data of another root mean square than `sigma_data`,
    by their unit or their mean, and a network whose last layer does not start at zero.

    Arguments:
        denoiser: a `Denoiser` before its first training step.
        x: data, stacked along the first axis (`cond` likewise). The more the better:
            the check allows 4 of its own standard errors, about 4 sqrt(2/(n d)).
        sigmas: noise levels to check; nine of `edm_sigmas` unless given.
        key: for the noise; a fixed one unless given, so that the check is repeatable.

    Raises: ValueError if a loss differs from 1 by more than 4 standard errors, and as
    `loss_by_sigma`; TypeError if `key` is no random key.
    """
    check_data("x", x)
    if len(x) < 2:
        raise ValueError(f"need at least 2 examples for a standard error, got {len(x)}")
    sigmas = edm_sigmas(9) if sigmas is None else jnp.asarray(sigmas)
    key = jr.key(0) if key is None else key
    errors = np.asarray(_errors_by_sigma(denoiser, x, sigmas, cond, key=key), float)
    loss = errors.mean(axis=1)
    # Few examples tend to underestimate their spread: it is at least that of a Gaussian's.
    spread = np.maximum(errors.std(axis=1, ddof=1), np.sqrt(2 / x[0].size))
    allowed = 4 * spread / np.sqrt(errors.shape[1])
    worst = int(np.argmax(np.abs(loss - 1) / allowed))
    if not abs(loss[worst] - 1) <= allowed[worst]:
        found = {"loss": loss[worst], "allowed": allowed[worst]}
        raise ValueError(_advice(denoiser, x, float(sigmas[worst]), **found))
    return as_float(loss, x)


def _errors_by_sigma(
    denoiser: Any,
    x: Array,
    sigmas: Float[ArrayLike, " levels"],
    cond: Condition,
    *,
    key: PRNGKey,
    preconditioning: AbstractPreconditioning | None = None,
) -> Float[Array, "levels n"]:
    """The mean weighted error of each example at each noise level."""
    check_data("x", x)
    check_positive("sigmas", sigmas)
    if np.ndim(sigmas) != 1:
        raise ValueError(
            f"sigmas must be a 1-D array of noise levels, got shape {np.shape(sigmas)}"
        )
    check_cond(cond, len(x))
    check_key("key", key)
    if preconditioning is None:
        _parts(denoiser)

    def one(x: Array, cond: Condition, sigma: Array, key: PRNGKey) -> Array:
        n = sigma * jr.normal(jr.split(key)[0], x.shape, x.dtype)
        if preconditioning is None:
            return jnp.mean(weighted_error(denoiser, x, sigma, n, cond))
        error = denoiser(x + n, sigma, cond) - x
        return jnp.mean(preconditioning.loss_weight(sigma) * error**2)

    def level(args: tuple[Array, PRNGKey]) -> Array:
        sigma, key = args
        keys = jr.split(key, len(x))
        return jax.vmap(one, in_axes=(0, 0, None, 0))(x, cond, sigma, keys)

    sigmas = as_float(sigmas, x)
    return jax.lax.map(level, (sigmas, jr.split(key, len(sigmas))))


def _parts(denoiser: Any) -> tuple[Callable[..., Array], AbstractPreconditioning]:
    try:
        return denoiser.network, denoiser.preconditioning
    except AttributeError:
        raise ValueError(
            "the loss takes its weight from a preconditioning: use Denoiser(network, "
            f"preconditioning), or pass preconditioning= to loss_by_sigma; got {denoiser}"
        ) from None


def _advice(
    denoiser: Preconditioned, x: Array, sigma: float, *, loss: float, allowed: float
) -> str:
    rms, mean = float(jnp.sqrt(jnp.mean(x**2))), float(jnp.mean(x))
    return (
        f"an untrained network must score 1 at every noise level, but scores {loss:.3f} at "
        f"sigma = {sigma:.3g} (allowed: 1 +- {allowed:.3f}). The data's root mean square is "
        f"{rms:.4g} and their mean {mean:.3g}; the preconditioning is "
        f"{denoiser.preconditioning}. Centre the data, use EDMPreconditioning.from_data(x), "
        "and start the network's last layer at zero."
    )


# denoiser


@final
class Denoiser(eqx.Module):
    r"""A network inside its preconditioning: $c_{skip} x + c_{out} F(c_{in} x; c_{noise})$.

    Eq. 7. The network is called as `network(c_in * x, c_noise, cond, key=key)` with one
    example and returns an array of the same shape.

    Arguments:
        network: any callable; an `eqx.Module` can be trained.
        preconditioning: stays with the network for life, whatever sampler is used.

    Raises: TypeError if `network` is not callable, has another signature (see `networks.adapt`) or
    layers that keep a state, or if `preconditioning` is not one.
    """

    network: Callable[..., Array]
    preconditioning: AbstractPreconditioning

    def __check_init__(self):
        check_callable("network", self.network)
        check_kind("preconditioning", self.preconditioning, AbstractPreconditioning)
        check_stateless("network", self.network)
        check_call(
            "network",
            self.network,
            told="F(x, c_noise, cond, *, key=None)",
            given=("x", "c_noise", "cond"),
            named={"key": None},
            advice="networks.adapt(network) makes one of a network that takes less, or one vector",
        )

    def __call__(
        self, x: Example, sigma: Scalar, cond: Condition = None, *, key: PRNGKey | None = None
    ) -> Example:
        """The mean of the data given `x` at noise level `sigma`, in data units.

        Raises: ValueError if `x` is not floating, `sigma` has axes, or the network returns
        something else than an array shaped like `x`.
        """
        check_floating("x", x)
        check_scalar("sigma", sigma)
        c = self.preconditioning(as_float(sigma, x))
        output = self.network(c.c_in * x, c.c_noise, cond, key=key)
        check_output(output, x)
        return c.c_skip * x + c.c_out * output


@final
class Pinned(eqx.Module):
    """A denoiser whose condition is fixed: a posterior, one class, or "no label".

    The condition it is called with is ignored, so that `Guided(D, Pinned(D, null), w)` is
    classifier-free guidance.

    Raises: TypeError if `denoiser` is not callable.
    """

    denoiser: DenoiserFn
    cond: Condition = eqx.field(converter=as_traced)

    def __check_init__(self):
        check_callable("denoiser", self.denoiser)

    def __call__(
        self, x: Example, sigma: Scalar, cond: Condition = None, *, key: PRNGKey | None = None
    ) -> Example:
        """The wrapped denoiser at the fixed condition."""
        return _call(self.denoiser, x, sigma, self.cond, key)


@final
class Guided(eqx.Module):
    r"""One denoiser steered away from a worse one: $D_g + w\,(D_m - D_g)$.

    `weight` 1 is `main` alone, 0 is `guide` alone, more than 1 extrapolates. Outside the
    noise levels of `interval` (both ends included, data units) the weight is 1. The condition
    and half of the key go to each denoiser. With w other than 1 the result is *not* the denoiser
    of a posterior.

    Raises: ValueError if `interval` is not an ordered pair or `weight` not finite; TypeError if
    `main` or `guide` is not callable.
    """

    main: DenoiserFn
    guide: DenoiserFn
    weight: Scalar = eqx.field(converter=as_traced)
    interval: tuple[Scalar, Scalar] = eqx.field(converter=as_traced, default=(0.0, float("inf")))

    def __check_init__(self):
        check_callable("main", self.main)
        check_callable("guide", self.guide)
        _check_interval(self.interval)
        if concrete(self.weight) and not np.all(np.isfinite(np.asarray(self.weight, float))):
            raise ValueError(f"weight must be finite, got {self.weight}")

    def __call__(
        self, x: Example, sigma: Scalar, cond: Condition = None, *, key: PRNGKey | None = None
    ) -> Example:
        """The guided denoiser at one example."""
        main_key, guide_key = (None, None) if key is None else jax.random.split(key)
        main = _call(self.main, x, sigma, cond, main_key)
        guide = _call(self.guide, x, sigma, cond, guide_key)
        low, high = (as_float(end, x) for end in self.interval)
        sigma, weight = as_float(sigma, x), as_float(self.weight, x)
        inside = (low <= sigma) & (sigma <= high)
        return jnp.where(inside, guide + weight * (main - guide), main)


def _check_interval(interval: Any) -> None:
    """Refuse what is not an ordered pair of numbers."""
    try:
        low, high = interval
        ordered = not concrete(low, high) or float(low) <= float(high)
    except (TypeError, ValueError):
        ordered = False
    if not ordered:
        raise ValueError(f"interval must be (low, high) with low <= high, got {interval}")


def _by_name(function: Any) -> Any:
    """The pickled form of a jitted function: its name, as for functions, where it has one."""
    module = sys.modules.get(getattr(function, "__module__", ""))
    name = getattr(function, "__qualname__", "")
    return name if getattr(module, name, None) is function else function.__reduce_ex__(2)


# JAX's own activations are jitted, and networks hold them: without this none can be pickled.
for _kind in (type(jax.nn.silu), type(jax.nn.relu)):
    copyreg.pickle(_kind, _by_name)


def _call(
    denoiser: DenoiserFn, x: Array, sigma: Scalar, cond: Condition, key: PRNGKey | None
) -> Array:
    """The denoiser at `x`; a plain function has no parameter `key`, unless it draws."""
    given = {} if key is None else {"key": key}
    return denoiser(x, sigma, cond, **given)


# sampling


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
