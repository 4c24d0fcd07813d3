r"""A neuron that fires or not: a generalized linear model of ten parameters.

In each of 100 bins it fires with probability $\text{sigmoid}(\theta \cdot v_t)$, where $v_t$ is 1
and the last nine values of a stimulus of white noise. The parameters are an offset and a filter
that the prior wants smooth. The posterior has one mode and no closed form; the likelihood is known.
"""

from typing import ClassVar, final

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from ..._types import PRNGKey
from .base import AbstractPrior, AbstractTask, check_vector

BINS, TAPS, STIMULUS = 100, 9, 0  # the last is the seed of the stimulus


@final
class PrecisionPrior(AbstractPrior):
    """A Gaussian around 0 of precision `root.T @ root`; `root` is lower triangular."""

    root: Float[Array, "d d"]

    @property
    def support(self) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        end = jnp.full(len(self.root), jnp.inf, self.root.dtype)
        return -end, end

    def sample(self, key: PRNGKey) -> Float[Array, " d"]:
        unit = jr.normal(key, self.root.shape[:1], self.root.dtype)
        return solve_triangular(self.root, unit, lower=True)

    def log_prob(self, theta: Float[Array, " d"]) -> Float[Array, ""]:
        root = self.root.astype(theta.dtype)
        density = -((root @ theta) ** 2) / 2 - jnp.log(2 * jnp.pi) / 2
        return jnp.sum(density + jnp.log(jnp.abs(jnp.diag(root))))


@final
class BernoulliGLM(AbstractTask[PrecisionPrior]):
    r"""Ten parameters of a neuron from the sums $x = \sum_t z_t v_t$ over the bins that fired.

    $z_t \sim \text{Bernoulli}(\text{sigmoid}(\theta \cdot v_t))$, and x tells of z all that
    matters for $\theta$. The stimulus is `np.random.default_rng(0).normal(size=100)`, 0 before.
    Prior: $\theta_0 \sim N(0, 2)$; the filter $f$ is Gaussian of precision $F^T F$, where row i
    of F is $f_{i-2} - 2 f_{i-1} + (1 + \sqrt{(i - 1) / 9}) f_i$.
    """

    dim_x: ClassVar[int] = 1 + TAPS

    def simulate(self, key: PRNGKey, theta: Float[Array, "10"]) -> Float[Array, "10"]:
        check_vector("theta", theta, 1 + TAPS)
        seen = jnp.asarray(design(), theta.dtype)
        fired = jr.uniform(key, (BINS,), theta.dtype) < jax.nn.sigmoid(seen @ theta)
        return fired.astype(theta.dtype) @ seen

    def log_likelihood(self, x: Float[Array, "10"], theta: Float[Array, "10"]) -> Float[Array, ""]:
        """Log-likelihood ln P(z given theta), in nats, for any z whose sums are `x`."""
        check_vector("x", x, self.dim_x)
        seen = jnp.asarray(design(), theta.dtype)
        return x @ theta - jnp.sum(jax.nn.softplus(seen @ theta))


def design() -> Float[np.ndarray, "100 10"]:
    """The rows v: 1, then the stimulus now and in the eight bins before."""
    stimulus = np.random.default_rng(STIMULUS).normal(size=BINS)
    padded = np.concatenate([np.zeros(TAPS - 1), stimulus])
    lags = [padded[TAPS - 1 - lag : TAPS - 1 - lag + BINS] for lag in range(TAPS)]
    return np.stack([np.ones(BINS), *lags], axis=1)


def bernoulli_glm() -> BernoulliGLM:
    """An offset and a filter of nine taps from ten sums over 100 bins."""
    root = np.eye(1 + TAPS)
    root[0, 0] = 2**-0.5
    i = np.arange(TAPS)
    root[1 + i, 1 + i] = 1 + np.sqrt(i / TAPS)
    root[2 + i[:-1], 1 + i[:-1]] = -2.0
    root[3 + i[:-2], 1 + i[:-2]] = 1.0
    return BernoulliGLM(PrecisionPrior(jnp.asarray(root)))
