r"""Inference problems whose posterior is known, to compare a learned one with.

Each factory returns a task: a prior, a simulator, and what else has a closed form. $U$ is
the uniform law and $N(m, V)$ a Gaussian with *variance* $V$. The five tasks here are
those of the public benchmark `sbibm`; `lotka_volterra` and `sir` are differential equations, and
`bernoulli_glm` is a neuron.
"""

from typing import ClassVar, final

import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.special import log_ndtr, logsumexp
from jaxtyping import Array, Float

from ..._types import PRNGKey
from .base import (
    AbstractTask,
    NormalPrior,
    UniformPrior,
    check_vector,
    normal_log_prob,
)


@final
class GaussianMixtureTask(AbstractTask[UniformPrior]):
    r"""$x \sim \frac12 N(\theta, I) + \frac12 N(\theta, 0.01 I)$ in two dimensions."""

    dim_x: ClassVar[int] = 2

    def simulate(self, key: PRNGKey, theta: Float[Array, "2"]) -> Float[Array, "2"]:
        check_vector("theta", theta, 2)
        coin_key, noise_key = jr.split(key)
        std = jnp.where(jr.bernoulli(coin_key), 1.0, 0.1).astype(theta.dtype)
        return theta + std * jr.normal(noise_key, (2,), theta.dtype)

    def log_likelihood(self, x: Float[Array, "2"], theta: Float[Array, "2"]) -> Float[Array, ""]:
        """Log-likelihood ln p(x given theta), in nats."""
        check_vector("x", x, 2)
        return logsumexp(self._log_joint(x - theta)) - jnp.log(2.0).astype(x.dtype)

    def sample_posterior(self, key: PRNGKey, x_o: Float[Array, "2"]) -> Float[Array, "2"]:
        """One exact draw, for `x_o` within about 5 noise widths of the prior's box."""
        check_vector("x_o", x_o, 2)
        which_key, key = jr.split(key)
        stds = self._stds(x_o)
        low, high = self.prior_support
        k = jr.categorical(which_key, self._log_masses(x_o))
        return truncated_normal(key, x_o, stds[k], low=low, high=high)

    def log_posterior(self, theta: Float[Array, "2"], x_o: Float[Array, "2"]) -> Float[Array, ""]:
        """Log-density ln p(theta given x_o), in nats: the mixture around `x_o`, cut to the box."""
        check_vector("theta", theta, 2)
        log_density = logsumexp(self._log_joint(theta - x_o)) - logsumexp(self._log_masses(x_o))
        return jnp.where(jnp.isfinite(self.log_prior(theta)), log_density, -jnp.inf)

    def _stds(self, like: Array) -> Array:
        return jnp.array([1.0, 0.1], like.dtype)

    def _log_joint(self, offset: Array) -> Array:
        variance = self._stds(offset) ** 2
        return -jnp.sum(offset**2) / (2 * variance) - jnp.log(2 * jnp.pi * variance)

    def _log_masses(self, x_o: Array) -> Array:
        """ln of the part of each component that lies in the box."""
        masses = lambda std: jnp.sum(log_mass(x_o, std, *self.prior_support))
        return jax.vmap(masses)(self._stds(x_o))


@final
class GaussianLinear(AbstractTask[NormalPrior]):
    r"""$\theta \sim N(0, 0.1 I)$ and $x \sim N(\theta, 0.1 I)$ in ten dimensions."""

    dim_x: ClassVar[int] = 10

    def simulate(self, key: PRNGKey, theta: Float[Array, "10"]) -> Float[Array, "10"]:
        check_vector("theta", theta, 10)
        return theta + 0.1**0.5 * jr.normal(key, (10,), theta.dtype)

    def log_likelihood(self, x: Float[Array, "10"], theta: Float[Array, "10"]) -> Float[Array, ""]:
        """Log-likelihood ln p(x given theta), in nats."""
        check_vector("x", x, 10)
        return normal_log_prob(x, theta, 0.1**0.5)

    def sample_posterior(self, key: PRNGKey, x_o: Float[Array, "10"]) -> Float[Array, "10"]:
        """One exact draw of N(x_o / 2, 0.05 I)."""
        check_vector("x_o", x_o, 10)
        return x_o / 2 + 0.05**0.5 * jr.normal(key, (10,), x_o.dtype)

    def log_posterior(self, theta: Float[Array, "10"], x_o: Float[Array, "10"]) -> Float[Array, ""]:
        """Log-density ln p(theta given x_o), in nats."""
        check_vector("theta", theta, 10)
        return normal_log_prob(theta, x_o / 2, 0.05**0.5)


@final
class GaussianLinearUniform(AbstractTask[UniformPrior]):
    r"""$\theta_i \sim U(-1, 1)$ and $x \sim N(\theta, 0.1 I)$ in ten dimensions."""

    dim_x: ClassVar[int] = 10

    def simulate(self, key: PRNGKey, theta: Float[Array, "10"]) -> Float[Array, "10"]:
        check_vector("theta", theta, 10)
        return theta + 0.1**0.5 * jr.normal(key, (10,), theta.dtype)

    def log_likelihood(self, x: Float[Array, "10"], theta: Float[Array, "10"]) -> Float[Array, ""]:
        """Log-likelihood ln p(x given theta), in nats."""
        check_vector("x", x, 10)
        return normal_log_prob(x, theta, 0.1**0.5)

    def sample_posterior(self, key: PRNGKey, x_o: Float[Array, "10"]) -> Float[Array, "10"]:
        """One exact draw, for `x_o` within about 5 noise widths of the prior's box."""
        check_vector("x_o", x_o, 10)
        std, (low, high) = jnp.array(0.1**0.5, x_o.dtype), self.prior_support
        return truncated_normal(key, x_o, std, low=low, high=high)

    def log_posterior(self, theta: Float[Array, "10"], x_o: Float[Array, "10"]) -> Float[Array, ""]:
        """Log-density ln p(theta given x_o), in nats: N(x_o, 0.1 I) cut to the prior's box."""
        check_vector("theta", theta, 10)
        std = jnp.array(0.1**0.5, x_o.dtype)
        mass = jnp.sum(log_mass(x_o, std, *self.prior_support))
        inside = jnp.isfinite(self.log_prior(theta))
        return jnp.where(inside, normal_log_prob(theta, x_o, 0.1**0.5) - mass, -jnp.inf)


@final
class SLCP(AbstractTask[UniformPrior]):
    r"""Simple likelihood, complex posterior: four points of one Gaussian in the plane.

    Its mean is $(\theta_1, \theta_2)$, its standard deviations are $\theta_3^2$ and
    $\theta_4^2$, its correlation is $\tanh\theta_5$, and $10^{-6} I$ is added to the
    covariance; $\theta_i \sim U(-3, 3)$. The signs of $\theta_3$ and $\theta_4$ cannot be told,
    so the posterior has four modes. x lists the points one after the other.
    """

    dim_x: ClassVar[int] = 8

    def simulate(self, key: PRNGKey, theta: Float[Array, "5"]) -> Float[Array, "8"]:
        check_vector("theta", theta, 5)
        first, slope, second = self._regression(theta)
        z = jr.normal(key, (4, 2), theta.dtype)
        offset = z[:, 0] * jnp.sqrt(first)
        points = jnp.stack([offset, slope * offset + z[:, 1] * jnp.sqrt(second)], axis=1)
        return (theta[None, :2] + points).ravel()

    def log_likelihood(self, x: Float[Array, "8"], theta: Float[Array, "5"]) -> Float[Array, ""]:
        """Log-likelihood ln p(x given theta), in nats; the posterior is this times a constant."""
        check_vector("x", x, 8)
        first, slope, second = self._regression(theta)
        offset = x.reshape(4, 2) - theta[None, :2]
        residual = offset[:, 1] - slope * offset[:, 0]
        log_prob = normal_log_prob(offset[:, 0], 0.0, jnp.sqrt(first))
        return log_prob + normal_log_prob(residual, 0.0, jnp.sqrt(second))

    def _regression(self, theta: Array) -> tuple[Array, Array, Array]:
        """Var(x_1), the slope of x_2 on x_1, and Var(x_2 given x_1).

        The last is written without a difference: 1 - tanh^2 = 1 / cosh^2.
        """
        v_1, v_2, jitter = theta[2] ** 4, theta[3] ** 4, 1e-6
        first = v_1 + jitter
        slope = jnp.tanh(theta[4]) * theta[2] ** 2 * theta[3] ** 2 / first
        second = v_2 * (v_1 / jnp.cosh(theta[4]) ** 2 + jitter) / first + jitter
        return first, slope, second


def gaussian_mixture() -> GaussianMixtureTask:
    """Two wide and narrow Gaussians around theta, which is uniform on [-10, 10]^2."""
    return GaussianMixtureTask(UniformPrior(jnp.full(2, -10.0), jnp.full(2, 10.0)))


def gaussian_linear() -> GaussianLinear:
    """The linear-Gaussian task in ten dimensions."""
    return GaussianLinear(NormalPrior(jnp.zeros(10), jnp.full(10, 0.1**0.5)))


def gaussian_linear_uniform() -> GaussianLinearUniform:
    """Gaussian noise in ten dimensions under a uniform prior on [-1, 1]^10."""
    return GaussianLinearUniform(UniformPrior(jnp.full(10, -1.0), jnp.full(10, 1.0)))


def slcp() -> SLCP:
    """Five parameters on [-3, 3]^5, eight data, four modes."""
    return SLCP(UniformPrior(jnp.full(5, -3.0), jnp.full(5, 3.0)))


def truncated_normal(key: PRNGKey, mean: Array, std: Array, low: Array, high: Array) -> Array:
    """One draw of N(mean, std^2) between `low` and `high`, entry by entry."""
    low, high = ((end.astype(mean.dtype) - mean) / std for end in (low, high))
    return mean + std * jr.truncated_normal(key, low, high, mean.shape, mean.dtype)


def log_mass(mean: Array, std: Array, low: Array, high: Array) -> Array:
    """ln of the probability that N(mean, std^2) lies between `low` and `high`.

    As both ends may be far out on one side, the pair is mirrored into the lower tail,
    where `log_ndtr` loses nothing.
    """
    low, high = ((end.astype(mean.dtype) - mean) / std for end in (low, high))
    low, high = jnp.where(low > 0, -high, low), jnp.where(low > 0, -low, high)
    top = log_ndtr(high)
    return top + jnp.log(-jnp.expm1(log_ndtr(low) - top))
