r"""The residual of a linear fit to the observation: $z = L^{-1}(u - A x - b)$.

A is a ridge regression of the parameters u on the observation x, and $L L^T$ the covariance of its
errors on simulations that it has not seen. The network then learns only what is not linear and
Gaussian: where the posterior is, z is N(0, I) for every x, the untrained denoiser is exact, and a
posterior far narrower than the prior has width 1.

The error on an unseen simulation needs no second fit. Leaving row i out of a ridge regression
changes its residual by the factor $1/(1 - h_i)$, with the leverage $h_i = 1/n + x_i^T (X^T X +
\lambda I)^{-1} x_i$.
"""

from typing import final

import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, ArrayLike, Float

from . import AbstractTransform, Observation, Parameters
from .standardize import float_dtype

RIDGES = np.array([*np.geomspace(1.0, 1e6, 7), np.inf])  # in examples; an infinite one ignores x
LEAST_SCALE = 1e-4  # of L, beside the spread of u, so that float32 can invert it


@final
class LinearRegression(AbstractTransform):
    """Residuals of a linear fit, decorrelated and scaled; one example at a time.

    Arguments:
        slope: A, one row a parameter.
        intercept: the vector b.
        scale: L, lower triangular with a positive diagonal.
    """

    slope: Float[Array, "d k"]
    intercept: Float[Array, " d"]
    scale: Float[Array, "d d"]

    @classmethod
    def fit(cls, u: Float[ArrayLike, "n d"], x: Float[ArrayLike, "n k"]) -> "LinearRegression":
        """Ridge regression whose strength and spread are those of leave-one-out prediction.

        In float64. Of all `RIDGES`, the one whose Gaussian gives left-out simulations the
        highest density is kept. Works for fewer simulations than features of x.

        Arguments:
            u, x: standardised parameters and observations.
        """
        targets, features = np.asarray(u, float), np.asarray(x, float)
        u_mean, x_mean = targets.mean(axis=0), features.mean(axis=0)
        targets, features = targets - u_mean, features - x_mean
        squares, axes = np.linalg.eigh(features.T @ features)
        scores = features @ axes
        strengths = (1 / (np.maximum(squares, 0) + ridge) for ridge in RIDGES)
        fits = [_left_out(targets, scores, strength) for strength in strengths]
        covariance, slope = min(fits, key=lambda fit: np.linalg.slogdet(fit[0])[1])
        slope = slope @ axes.T
        parts = slope, u_mean - slope @ x_mean, np.linalg.cholesky(covariance)
        return cls(*(jnp.asarray(part, float_dtype(np.asarray(u))) for part in parts))

    def forward(self, theta: Parameters, x: Observation = None) -> Parameters:
        """The residual z of parameters at the observation x."""
        scale = self.scale.astype(theta.dtype)
        return solve_triangular(scale, theta - self.line(x, theta.dtype), lower=True)

    def inverse(self, z: Parameters, x: Observation = None) -> Parameters:
        """The parameters whose residual at x is z."""
        return self.scale.astype(z.dtype) @ z + self.line(x, z.dtype)

    def log_det(self, theta: Parameters, x: Observation = None) -> Float[Array, ""]:
        """The log-determinant, which is the same everywhere, in nats."""
        return -jnp.sum(jnp.log(jnp.diagonal(self.scale)))

    def spread(self) -> Float[Array, " d"]:
        """The standard deviation that the fit leaves of each parameter."""
        return jnp.linalg.norm(self.scale, axis=1)

    def line(self, x: Array | None, dtype: np.dtype) -> Float[Array, " d"]:
        """The prediction A x + b."""
        if x is None:
            raise ValueError("a linear fit to the observation needs the observation x")
        return self.slope.astype(dtype) @ x.astype(dtype) + self.intercept.astype(dtype)


def _left_out(u: np.ndarray, scores: np.ndarray, inverse: np.ndarray) -> tuple[np.ndarray, ...]:
    """The covariance of leave-one-out errors, and the slope, in the axes of `scores`."""
    n, d = u.shape
    slope = (scores.T @ u).T * inverse
    leverage = 1 / n + scores**2 @ inverse
    errors = (u - scores @ slope.T) / np.maximum(1 - leverage, 1e-6)[:, None]
    return errors.T @ errors / n + LEAST_SCALE**2 * np.eye(d), slope
