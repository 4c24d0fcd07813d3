r"""A chain of transforms, and the one in which a posterior is fitted.

Bounds first, then scale, then a linear fit to the observation x: where the posterior is Gaussian
around a straight line, z is N(0, I) for every x.
"""

from typing import final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import AbstractTransform, Observation, Parameters
from .bounds import Bounds, narrowness
from .linear import LinearRegression
from .standardize import Standardizer


@final
class Chain(AbstractTransform):
    """A composition of transforms, the first applied first.

    Arguments:
        steps: transforms of one vector of parameters.
    """

    steps: tuple[AbstractTransform, ...]

    @classmethod
    def fit(
        cls,
        theta: Float[np.ndarray, "n d"],
        x: Float[np.ndarray, "n k"] | None,
        bounds: Bounds,
    ) -> "Chain":
        """Bounds, scale and linear fit of simulations; without `x`, no linear fit.

        Bounds bend within the spread of the linear fit times the square of how much narrower
        posteriors are: a Gaussian that a bound cuts off gets a tail of its own width, and narrow
        peaks keep their shape.

        Arguments:
            x: standardised observations.
        """
        if x is None:
            return cls((bounds, Standardizer.fit(rows(bounds, theta), "theta")))
        scale = Standardizer.fit(theta, "theta")
        scaled = rows(scale, theta)
        spread = np.asarray(LinearRegression.fit(scaled, x).spread())
        bounds = bounds.softened(
            spread * narrowness(scaled, x, spread) ** 2 * np.asarray(scale.std)
        )
        u = rows(bounds, theta)
        scale = Standardizer.fit(u, "theta")
        return cls((bounds, scale, LinearRegression.fit(rows(scale, u), x)))

    @property
    def bounds(self) -> Bounds:
        """The first step, the map of bounded parameters to the whole line."""
        (bounds,) = (step for step in self.steps if isinstance(step, Bounds))
        return bounds

    def forward(self, theta: Parameters, x: Observation = None) -> Parameters:
        for step in self.steps:
            theta = step.forward(theta, x)
        return theta

    def inverse(self, z: Parameters, x: Observation = None) -> Parameters:
        for step in reversed(self.steps):
            z = step.inverse(z, x)
        return z

    def log_det(self, theta: Parameters, x: Observation = None) -> Float[Array, ""]:
        total = jnp.zeros((), theta.dtype)
        for step in self.steps:
            total = total + step.log_det(theta, x).astype(theta.dtype)
            theta = step.forward(theta, x)
        return total


def rows(transform: AbstractTransform, theta: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """The images of many parameters under a transform that needs no x, on the host."""
    return np.asarray(jax.vmap(transform.forward)(jnp.asarray(theta)))
