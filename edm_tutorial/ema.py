r"""Averages of the weights over training: what one samples with.

After every optimiser step $\theta_{ema} \leftarrow \theta + \beta(\theta_{ema}-\theta)$.
The half-life is counted in *examples* and ramped up with training, so that $\beta = 0$ in
the first step: the average copies the weights and the initial ones are forgotten.
"""

from typing import TypeVar, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from edm_tutorial.types import Scalar, as_float, check_number, check_positive

Model = TypeVar("Model")


@final
class HalfLifeEMA(eqx.Module):
    r"""$\beta = 2^{-B/h}$ with $h = \min(h_0,\ r \cdot \text{examples seen})$ (App. F.2).

    Arguments:
        half_life: h_0, in examples: after so many the weight of the past has halved.
        rampup_ratio: r, the half-life as a fraction of the training so far; None for a
            constant half-life, which then remembers the initial weights.

    Raises:
        ValueError: a half-life or ratio that is not positive.
    """

    half_life: float = 500_000.0
    rampup_ratio: float | None = 0.05

    def __check_init__(self):
        check_positive("half_life", self.half_life)
        if self.rampup_ratio is not None:
            check_positive("rampup_ratio", self.rampup_ratio)

    def decay(self, seen: Scalar, batch_size: Scalar) -> Float[Array, ""]:
        """beta for a step on `batch_size` examples after `seen` examples before it."""
        check_number("seen", seen, zero=True)
        check_number("batch_size", batch_size)
        seen = as_float(seen)
        half_life = jnp.full_like(seen, self.half_life)
        if self.rampup_ratio is not None:
            half_life = jnp.minimum(half_life, seen * self.rampup_ratio)
        # A half-life of zero means beta = 0; the floor avoids 0/0 and nothing else.
        return 0.5 ** (as_float(batch_size, seen) / jnp.maximum(half_life, 1e-8))

    def update(self, average: Model, model: Model, seen: Scalar, batch_size: Scalar) -> Model:
        """The average after one more step, which led to `model`.

        Floating arrays are averaged; everything else is taken from `model`.
        """
        beta = self.decay(seen, batch_size)
        params, static = eqx.partition(model, eqx.is_inexact_array)
        old = eqx.filter(average, eqx.is_inexact_array)
        mix = lambda new, old: new + beta.astype(new.dtype) * (old - new)  # noqa: E731
        return eqx.combine(jax.tree.map(mix, params, old), static)
