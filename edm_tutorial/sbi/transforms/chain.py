r"""Transforms one after the other, and the chain that a posterior is fitted in.

Bounds first, then scale, then a linear fit to the observation x: where the posterior is Gaussian
around a straight line, z is N(0, I) for every x.
"""

from typing import final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import AbstractTransform, Observation, Parameters
from .bounds import Bounds
from .linear import LinearRegression
from .standardize import Standardizer

QUERIES, OTHERS = 1_000, 10_000  # simulations that look for a neighbour, and among which
QUARTILE = 0.4506  # the first, of the difference of two draws of N(0, 1) without its sign
NARROWEST = 0.1  # least ratio of the width of posteriors and the spread around a line


@final
class Chain(AbstractTransform):
    """The composition of its steps, the first applied first.

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
        """The first step."""
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


def narrowness(
    theta: Float[np.ndarray, "n d"], x: Float[np.ndarray, "n k"], spread: Float[np.ndarray, " d"]
) -> Float[np.ndarray, " d"]:
    r"""How much narrower posteriors are than what a linear fit leaves: 0.1 to 1, a parameter each.

    Two simulations with close x are nearly two draws from one posterior. If it is Gaussian of
    standard deviation w, a quarter of all $|\theta_i - \theta_j|$ are below
    $\sqrt 2\,\Phi^{-1}(5/8)\,w \approx 0.4506\,w$, and w is what the line leaves. Around a curved
    or two-peaked posterior the line leaves more. In many dimensions of x no two simulations are
    close, w comes out as the line's or larger, and the answer is 1. On
    problems that did not choose it, it has gained 0.04 nats (a wave with several peaks) and
    nothing measurable (a ring), by `benchmarks/sbi_choices.py`.

    Arguments:
        theta, x: standardised parameters and observations; the first 1,000 are compared with
            their nearest among the first 10,000.
        spread: the standard deviation that a linear fit leaves of each parameter.
    """
    theta, x = theta[:OTHERS], x[:OTHERS].astype(np.float32)
    squares = np.sum(x**2, axis=1)
    distance = squares - 2 * x[:QUERIES] @ x.T  # up to what does not depend on the neighbour
    np.fill_diagonal(distance, np.inf)
    nearest = np.argmin(distance, axis=1)
    difference = np.abs(theta[:QUERIES] - theta[nearest])
    width = np.quantile(difference, 0.25, axis=0) / QUARTILE
    return np.clip(width / spread, NARROWEST, 1)
