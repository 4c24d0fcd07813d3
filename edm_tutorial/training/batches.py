r"""Batches of training examples.

From arrays, a batch is drawn with replacement inside the compiled step. From a function of the
step, or from an iterator, it is made on the host, one step at a time.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.sharding import NamedSharding

from .._checks import check_cond, check_data
from .._types import PRNGKey
from .sharding import replicate, split


class Batch(NamedTuple):
    """Examples `x` stacked along the first axis, and their conditions, or None."""

    x: Any
    cond: Any


@final
class Examples(eqx.Module):
    """All examples of a training set, on every device."""

    data: Batch

    def draw(self, key: PRNGKey, batch_size: int, sharding: NamedSharding | None) -> Batch:
        """A batch drawn with replacement; each device gathers its own part of it."""
        place = lambda array: array
        if sharding is not None:
            place = lambda array: jax.lax.with_sharding_constraint(array, sharding)
        index = place(jr.randint(key, (batch_size,), 0, len(self.data.x)))
        return jax.tree.map(lambda array: place(array[index]), self.data)


BatchOf = Callable[[int], Batch]
"""The batch of a step, on the devices that will use it."""


def load(data: Any, batch_size: int, sharding: NamedSharding | None) -> Examples | BatchOf:
    """Source of batches, made of any of the three kinds of `data` that `train` takes."""
    if isinstance(data, Iterator):
        return lambda step: _given(step, _next(data, step), batch_size, sharding)
    if callable(data):
        return lambda step: _given(step, data(step), batch_size, sharding)
    examples = Examples(jax.tree.map(jnp.asarray, _checked("data", data)))
    return examples if sharding is None else replicate(examples, sharding)


def _given(step: int, data: Any, batch_size: int, sharding: NamedSharding | None) -> Batch:
    name = f"the batch of step {step}"
    batch = _checked(name, data)
    if len(batch.x) != batch_size:
        raise ValueError(f"{name} must have batch_size={batch_size} examples, got {len(batch.x)}")
    return jax.tree.map(jnp.asarray, batch) if sharding is None else split(batch, sharding)


def _next(batches: Iterator[Any], step: int) -> Any:
    try:
        return next(batches)
    except StopIteration:
        raise ValueError(
            f"the iterator of batches ended before step {step}: itertools.cycle repeats one"
        ) from None


def _checked(name: str, data: Any) -> Batch:
    """`x` or `(x, cond)` as a batch."""
    if isinstance(data, tuple) and len(data) != 2:
        raise ValueError(f"{name} must be x or a pair (x, cond), got {len(data)} parts")
    batch = Batch(*data) if isinstance(data, tuple) else Batch(data, None)
    if getattr(batch.x, "dtype", None) is None:
        got = type(batch.x).__name__
        if isinstance(batch.x, list):
            got += ": write a tuple (x, cond), and numbers as an array"
        elif isinstance(batch.x, Iterable):
            got += ": of an iterable of batches, pass iter(...)"
        raise ValueError(f"{name} must be a floating-point array x or a tuple (x, cond), got {got}")
    check_data(name, batch.x)
    check_cond(batch.cond, len(batch.x))
    return batch
