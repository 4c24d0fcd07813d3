r"""Learning-rate ramp-up and repair of gradients, for any Optax optimizer.

The learning rate of a step is $\eta \min(\text{examples seen} / N,\ 1)$ with a ramp-up of $N$
examples (Table 7). Gradients that are not finite are replaced and counted:

    rate = ramp_up(1e-3, 10_000_000, batch_size=512)
    optimizer = optax.chain(clean_gradients(), optax.adam(rate))
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from .._checks import check_number
from .._types import Scalar, as_float
from .state import Cleaned, cleaners


def ramp_up(learning_rate: float, examples: float | int, *, batch_size: int) -> optax.Schedule:
    """Learning-rate schedule that rises linearly to `learning_rate`, then stays.

    `examples` is the length of the ramp-up; with 0 only the first step has rate 0. Optax tells a
    schedule the number of steps and nothing else, so the examples seen are those steps times
    `batch_size`, not `TrainState.seen`: a run that goes on with another batch size before the
    ramp-up has ended jumps to the rate of a run that had this one from its start.

    Raises: ValueError for a rate or batch size that is not positive, or negative `examples`.
    """
    check_number("learning_rate", learning_rate)
    check_number("examples", examples, zero=True)
    check_number("batch_size", batch_size)
    highest, length = float(learning_rate), max(float(examples), 1e-8)  # 0/0 is 0

    def rate(count: Scalar) -> Array:
        seen = as_float(count) * float(batch_size)  # in int32 it could overflow
        return highest * jnp.minimum(seen / length, 1.0)

    return rate


def clean_gradients(bound: float = 1e5) -> optax.GradientTransformation:
    """Gradient transformation that replaces NaN by 0 and infinities by +-`bound`.

    It goes first in an `optax.chain`, because an optimizer that has seen one NaN never forgets
    it. The loss of such a step is yielded as it is, NaN or infinite. `cleaned` reads how many
    entries were replaced.

    Raises: ValueError for a bound that is not positive and finite.
    """
    check_number("bound", bound)

    def init(params: Any) -> Cleaned:
        return Cleaned(jnp.zeros((), int), jnp.zeros((), int))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Cleaned]:
        clean = lambda g: jnp.nan_to_num(g, nan=0.0, posinf=bound, neginf=-bound)
        bad = sum(jnp.sum(~jnp.isfinite(g), dtype=int) for g in jax.tree.leaves(updates))
        bad = jnp.asarray(bad, state.entries.dtype)
        room = jnp.iinfo(bad.dtype).max - state.entries
        steps = state.steps + (bad > 0).astype(bad.dtype)
        return jax.tree.map(clean, updates), Cleaned(steps, state.entries + jnp.minimum(bad, room))

    return optax.GradientTransformation(init, update)


def cleaned(state: Any) -> Cleaned:
    """Count of the one `clean_gradients` in a `TrainState` or an optimizer's state.

    Raises: ValueError if there is none, or more than one.
    """
    found = cleaners(state)
    if len(found) != 1:
        needed = "need one clean_gradients() in the optimizer to read its count"
        raise ValueError(f"{needed}, got {len(found)}")
    return found[0]
