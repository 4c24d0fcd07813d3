r"""Data whose denoiser is known exactly, for every $x$ and every $\sigma$.

Adding noise of level $\sigma$ to a Gaussian $N(\mu, C)$ gives $N(\mu, C + \sigma^2 I)$, so
a mixture of Gaussians stays a mixture, and its density, score and denoiser are formulas.
A finite data set is the mixture of its points; its denoiser is a softmax average of them.
"""

from collections.abc import Sequence
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ._checks import check_data, check_floating, concrete
from ._types import Condition, Example, PRNGKey, Scalar, as_float

_Numbers = ArrayLike | Sequence[Any]
"""An array, or lists of numbers."""


@final
class GaussianMixture(eqx.Module):
    r"""$\sum_k w_k\, N(\mu_k, C_k)$ in $d$ dimensions, known at every noise level.

    Weights (K,) are positive and sum to 1, means have shape (K, d), data units, and covs (K, d, d)
    are symmetric and positive semi-definite. They are kept as eigenvalues and eigenvectors, which
    do not depend on the noise: each call costs K d^2. `denoise` is a denoiser.

    Raises: ValueError for shapes that do not fit, weights that do not sum to 1, or a covariance
    that is not symmetric or has a negative eigenvalue.
    """

    weights: Float[Array, " components"]
    means: Float[Array, "components d"]
    variances: Float[Array, "components d"]
    axes: Float[Array, "components d d"]

    def __init__(self, weights: _Numbers, means: _Numbers, covs: _Numbers):
        weights, means, covs = (as_float(value) for value in (weights, means, covs))
        _check_mixture(weights, means, covs)
        self.weights, self.means = weights, means
        variances, self.axes = jnp.linalg.eigh(covs)
        self.variances = jnp.maximum(variances, 0)  # round-off of a singular covariance

    @property
    def covs(self) -> Float[Array, "components d d"]:
        """The covariances, from their eigenvectors."""
        return jnp.einsum("kij,kj,klj->kil", self.axes, self.variances, self.axes)

    def sample(self, key: PRNGKey) -> Float[Array, " d"]:
        """One draw of the noise-free distribution."""
        which_key, noise_key = jax.random.split(key)
        k = jax.random.categorical(which_key, jnp.log(self.weights))
        noise = jax.random.normal(noise_key, self.means.shape[1:], self.means.dtype)
        return self.means[k] + self.axes[k] @ (jnp.sqrt(self.variances[k]) * noise)

    def log_prob(self, x: Float[Array, " d"], sigma: Scalar = 0.0) -> Float[Array, ""]:
        r"""$\ln p(x; \sigma)$ in nats, of the data with noise of level `sigma`."""
        return jax.nn.logsumexp(self._log_joint(*self._local(x, sigma)))

    def score(self, x: Float[Array, " d"], sigma: Scalar) -> Float[Array, " d"]:
        r"""$\nabla_x \ln p(x; \sigma)$, the right-hand side of Eq. 3."""
        local, total = self._local(x, sigma)
        posterior = jax.nn.softmax(self._log_joint(local, total))
        return -jnp.einsum("k,kij,kj->i", posterior, self.axes.astype(x.dtype), local / total)

    def denoise(
        self,
        x: Float[Array, " d"],
        sigma: Scalar,
        cond: Condition = None,
        *,
        key: PRNGKey | None = None,
    ) -> Float[Array, " d"]:
        r"""$E[y \mid y + \sigma\epsilon = x]$: the denoiser that minimises Eq. 2."""
        local, total = self._local(x, sigma)
        posterior = jax.nn.softmax(self._log_joint(local, total))
        shrunk = local * (self.variances.astype(x.dtype) / total)
        axes, means = self.axes.astype(x.dtype), self.means.astype(x.dtype)
        return posterior @ (means + jnp.einsum("kij,kj->ki", axes, shrunk))

    def _local(self, x: Array, sigma: Scalar) -> tuple[Array, Array]:
        """`x` in the axes of each component, and the variance along each axis."""
        _check_point(x, self.means.shape[1:])
        axes, means = self.axes.astype(x.dtype), self.means.astype(x.dtype)
        local = jnp.einsum("kij,ki->kj", axes, x[None] - means)
        return local, self.variances.astype(x.dtype) + as_float(sigma, x) ** 2

    def _log_joint(self, local: Array, total: Array) -> Array:
        exponent = jnp.sum(local**2 / total + jnp.log(2 * jnp.pi * total), axis=1)
        return jnp.log(self.weights.astype(local.dtype)) - exponent / 2


@final
class EmpiricalDenoiser(eqx.Module):
    r"""The ideal denoiser of a data set.

    $\sum_i w_i y_i$ with the weights $w = \mathrm{softmax}(-|x-y_i|^2/2\sigma^2)$.

    Eq. 57 (App. B.3): the exact minimiser of the loss on these very points, of shape (n, *shape),
    in data units. It can only return averages of them. Costs one pass over the data per call.

    Raises: ValueError if `data` is empty or not finite.
    """

    data: Float[Array, " n *shape"]

    def __init__(self, data: _Numbers):
        self.data = as_float(data)
        check_data("data", self.data)

    def weights(self, x: Example, sigma: Scalar) -> Float[Array, " n"]:
        """The probability of each data point given the noisy `x`; sums to 1."""
        _check_point(x, self.data.shape[1:])
        offset = (self.data.astype(x.dtype) - x[None]).reshape(len(self.data), -1)
        # Distances relative to the nearest point: nothing overflows as sigma -> 0.
        distance = jnp.sum(offset**2, axis=1)
        distance = distance - jnp.min(distance)
        return jax.nn.softmax(-distance / (2 * as_float(sigma, x) ** 2))

    def __call__(
        self, x: Example, sigma: Scalar, cond: Condition = None, *, key: PRNGKey | None = None
    ) -> Example:
        """The mean of the data set given the noisy `x`."""
        return jnp.tensordot(self.weights(x, sigma), self.data.astype(x.dtype), axes=1)


def _check_point(x: Array, shape: tuple[int, ...]) -> None:
    check_floating("x", x)
    if x.shape != shape:
        raise ValueError(
            f"x must have shape {shape}, got {x.shape}: one point at a time, use jax.vmap for more"
        )


def _check_mixture(weights: Array, means: Array, covs: Array) -> None:
    fits = weights.ndim == 1 and means.ndim == 2 and covs.shape == (*means.shape, means.shape[-1])
    if not (fits and len(weights) == len(means) > 0):
        raise ValueError(
            "weights, means and covs need shapes (K,), (K, d) and (K, d, d), got "
            f"{weights.shape}, {means.shape} and {covs.shape}"
        )
    if not concrete(weights, means, covs):
        return
    w, c = np.asarray(weights, float), np.asarray(covs, float)
    if not (np.all(w > 0) and np.isclose(w.sum(), 1.0, rtol=1e-5)):
        raise ValueError(f"weights must be positive and sum to 1, got {weights}")
    if not (np.all(np.isfinite(np.asarray(means))) and np.all(np.isfinite(c))):
        raise ValueError("means and covs must be finite")
    size = np.abs(c).max(axis=(1, 2), keepdims=True)
    if not np.all(np.abs(c - c.swapaxes(1, 2)) <= 1e-5 * size):
        raise ValueError("covs must be symmetric")
    if np.linalg.eigvalsh(c).min(axis=1).min() < -1e-6 * size.max():
        raise ValueError("covs must have no negative eigenvalue")
