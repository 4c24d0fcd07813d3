r"""Which examples step $i$ sees: a function of $i$, so that a run can be resumed.

From arrays, a batch is drawn with replacement inside the compiled step. From a function of
the step or an iterator, it is made on the host, one step at a time.
"""

from collections.abc import Callable, Iterator
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from .._checks import check_cond, check_data
from .._types import PRNGKey
from .sharding import replicate, split

Batch = tuple[Any, Any]
"""Examples `x` stacked along the first axis and their conditions, or None."""


@final
class Examples(eqx.Module):
    """All examples there are; a batch is drawn from them."""

    data: Batch
    batch_size: int

    def draw(self, key: PRNGKey, sharding: Any) -> Batch:
        index = jr.randint(key, (self.batch_size,), 0, len(self.data[0]))
        if sharding is not None:  # each device gathers its own part
            index = jax.lax.with_sharding_constraint(index, sharding)
        batch = jax.tree.map(lambda array: array[index], self.data)
        return batch if sharding is None else jax.lax.with_sharding_constraint(batch, sharding)


@final
class Given(eqx.Module):
    """A batch as it is."""

    data: Batch
    batch_size: int

    def draw(self, key: PRNGKey, sharding: Any) -> Batch:
        return self.data


Sources = Callable[[int, int], Iterator[tuple[Examples | Given, int | None]]]
"""From a step and a number of steps: where to draw, and for how many steps in one loop.

None is one step without a loop.
"""


def as_sources(data: Any, batch_size: int, sharding: Any) -> Sources:
    """The batches of a run, from any of the three kinds of `data` that `train` takes.

    Raises:
        ValueError: arrays or a batch that are empty, not finite or of unequal length, a
            batch of another size, or an iterator that ends too early.
    """
    if isinstance(data, Iterator):
        return _stream(lambda step: _next(data, step), batch_size, sharding)
    if callable(data):
        return _stream(data, batch_size, sharding)
    pair = _pair("data", data)
    examples = Examples(jax.tree.map(jnp.asarray, pair), int(batch_size))
    examples = examples if sharding is None else replicate(examples, sharding)
    return lambda step, length: iter([(examples, length)])


def _stream(batch: Callable[[int], Any], batch_size: int, sharding: Any) -> Sources:
    def sources(step: int, length: int) -> Iterator[tuple[Given, int | None]]:
        for now in range(step, step + length):
            pair = _pair(f"the batch of step {now}", batch(now))
            if len(pair[0]) != batch_size:
                raise ValueError(
                    f"the batch of step {now} must have batch_size={batch_size} examples, "
                    f"got {len(pair[0])}"
                )
            pair = jax.tree.map(jnp.asarray, pair) if sharding is None else split(pair, sharding)
            yield Given(pair, int(batch_size)), None

    return sources


def _next(batches: Iterator[Any], step: int) -> Any:
    try:
        return next(batches)
    except StopIteration:
        raise ValueError(
            f"the iterator of batches ended before step {step}: itertools.cycle repeats one"
        ) from None


def _pair(name: str, data: Any) -> Batch:
    """`x` or `(x, cond)` as a pair, checked."""
    pair = data if isinstance(data, tuple) else (data, None)
    if len(pair) != 2:
        raise ValueError(f"{name} must be x or a pair (x, cond), got {len(pair)} parts")
    check_data(name, pair[0])
    check_cond(pair[1], len(pair[0]))
    return pair
