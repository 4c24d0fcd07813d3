"""The checks that doors use: each refuses one kind of bad input by name.

A ValueError says what is wrong with a value, a TypeError that an object is of another kind.
Values inside `jit` or `vmap` cannot be looked at, and pass.
"""

import inspect
import operator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from ._types import Condition


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
