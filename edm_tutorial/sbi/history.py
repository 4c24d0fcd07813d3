"""What happened in training, in numbers that a posterior can carry and save."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class History(NamedTuple):
    """How training went, one entry a chunk of steps.

    Arguments:
        step: steps taken by then.
        train: mean training loss of the chunk; 1 is an untrained network.
        held_out: upper bound on the mean of -ln q(theta given x) over the simulations kept out
            of training, for the averaged weights, nats.
    """

    step: tuple[int, ...] = ()
    train: tuple[float, ...] = ()
    held_out: tuple[float, ...] = ()

    def then(self, step: int, losses: Float[Array, " chunk"], held_out: float) -> "History":
        """The history one chunk later."""
        train = (*self.train, float(jnp.mean(losses)))
        return History((*self.step, step), train, (*self.held_out, held_out))
