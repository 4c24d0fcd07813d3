r"""What a straight line explains, taken out first: $z = L^{-1}(u - A x - b)$.

A is a least-squares fit of the parameters u to the observation x, and $L L^T$ the covariance of
what is left. The network then learns only what is not linear and Gaussian: where the
posterior is, z is N(0, I) for every x, the untrained denoiser is exact, and a posterior far
narrower than the prior has width 1.
"""

from typing import final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, ArrayLike, Float

from .standardize import float_dtype


@final
class LinearRegression(eqx.Module):
    """Residuals of a linear fit, decorrelated and scaled; one example at a time.

    Arguments:
        slope: A, one row a parameter.
        intercept: b.
        scale: L, lower triangular with a positive diagonal.
    """

    slope: Float[Array, "d k"]
    intercept: Float[Array, " d"]
    scale: Float[Array, "d d"]

    @classmethod
    def fit(cls, u: Float[ArrayLike, "n d"], x: Float[ArrayLike, "n k"]) -> "LinearRegression":
        """Least squares in float64, with a ridge that counts as one example.

        Both should be standardised. Directions that x determines are kept a relative 1e-4
        wide, so that L can be inverted in float32.

        Raises:
            ValueError: fewer than k + d + 2 examples: the residual covariance is unknown.
        """
        dtype = float_dtype(np.asarray(u))
        u, x = np.asarray(u, float), np.asarray(x, float)
        n, k, d = len(u), x.shape[1], u.shape[1]
        spare = n - k - 1
        if spare <= d:
            raise ValueError(f"need at least {k + d + 2} training simulations, got {n}")
        u_mean, x_mean = u.mean(axis=0), x.mean(axis=0)
        u_0, x_0 = u - u_mean, x - x_mean
        slope = np.linalg.solve(x_0.T @ x_0 + np.eye(k), x_0.T @ u_0).T
        rest = u_0 - x_0 @ slope.T
        covariance = rest.T @ rest / spare + 1e-8 * np.eye(d)
        parts = slope, u_mean - slope @ x_mean, np.linalg.cholesky(covariance)
        return cls(*(jnp.asarray(part, dtype) for part in parts))

    def forward(self, u: Float[Array, " d"], x: Float[Array, " k"]) -> Float[Array, " d"]:
        """The residual z of parameters u at the observation x."""
        scale = self.scale.astype(u.dtype)
        return solve_triangular(scale, u - self._line(x, u), lower=True)

    def inverse(self, z: Float[Array, " d"], x: Float[Array, " k"]) -> Float[Array, " d"]:
        """The parameters u whose residual at x is z."""
        return self.scale.astype(z.dtype) @ z + self._line(x, z)

    def log_det(self) -> Float[Array, ""]:
        r"""$\ln |\det \partial z / \partial u|$, the same everywhere, in nats."""
        return -jnp.sum(jnp.log(jnp.diagonal(self.scale)))

    def _line(self, x: Array, like: Array) -> Array:
        slope, intercept = self.slope.astype(like.dtype), self.intercept.astype(like.dtype)
        return slope @ x.astype(like.dtype) + intercept
