r"""An inference problem: a prior $p(\theta)$ and a simulator $x \sim p(x \mid \theta)$.

A task is one module that holds both, for one $\theta$ at a time; `draw` makes a data set of
independent pairs $(\theta_i, x_i) \sim p(\theta)\,p(x \mid \theta)$, which is all that
`fit_posterior` is given.
"""

from abc import abstractmethod
from typing import Any, ClassVar, Generic, TypeVar, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from ..._checks import check_floating
from ..._types import PRNGKey


class AbstractPrior(eqx.Module):
    """The law of the parameters before anything is observed."""

    @property
    @abstractmethod
    def support(self) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """The box of positive density as (low, high), with -inf and inf where it has no end."""

    @abstractmethod
    def sample(self, key: PRNGKey) -> Float[Array, " d"]:
        """One draw."""

    @abstractmethod
    def log_prob(self, theta: Float[Array, " d"]) -> Float[Array, ""]:
        """The log-density in nats; -inf outside the support."""


@final
class UniformPrior(AbstractPrior):
    """Uniform on the box between `low` and `high`."""

    low: Float[Array, " d"]
    high: Float[Array, " d"]

    @property
    def support(self) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        return self.low, self.high

    def sample(self, key: PRNGKey) -> Float[Array, " d"]:
        return jr.uniform(key, self.low.shape, self.low.dtype, self.low, self.high)

    def log_prob(self, theta: Float[Array, " d"]) -> Float[Array, ""]:
        low, high = self.low.astype(theta.dtype), self.high.astype(theta.dtype)
        inside = jnp.all((low <= theta) & (theta <= high))
        return jnp.where(inside, -jnp.sum(jnp.log(high - low)), -jnp.inf)


@final
class NormalPrior(AbstractPrior):
    """Independent Gaussians; `std` is a standard deviation."""

    mean: Float[Array, " d"]
    std: Float[Array, " d"]

    @property
    def support(self) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        end = jnp.full_like(self.mean, jnp.inf)
        return -end, end

    def sample(self, key: PRNGKey) -> Float[Array, " d"]:
        return self.mean + self.std * jr.normal(key, self.mean.shape, self.mean.dtype)

    def log_prob(self, theta: Float[Array, " d"]) -> Float[Array, ""]:
        return normal_log_prob(theta, self.mean, self.std)


@final
class LogNormalPrior(AbstractPrior):
    """Independent positive numbers whose logarithms are N(mean, std^2)."""

    mean: Float[Array, " d"]
    std: Float[Array, " d"]

    @property
    def support(self) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        return jnp.zeros_like(self.mean), jnp.full_like(self.mean, jnp.inf)

    def sample(self, key: PRNGKey) -> Float[Array, " d"]:
        return jnp.exp(self.mean + self.std * jr.normal(key, self.mean.shape, self.mean.dtype))

    def log_prob(self, theta: Float[Array, " d"]) -> Float[Array, ""]:
        positive = jnp.all(theta > 0)
        logs = jnp.log(jnp.where(positive, theta, 1))  # keeps gradients finite where it is not
        inside = normal_log_prob(logs, self.mean, self.std) - jnp.sum(logs)
        return jnp.where(positive, inside, -jnp.inf)


def normal_log_prob(x: Float[Array, " d"], mean: Any, std: Any) -> Float[Array, ""]:
    """Log-density ln N(x; mean, diag std^2), in nats; `mean`, `std`: numbers or shaped like x."""
    mean, std = (jnp.broadcast_to(jnp.asarray(part, x.dtype), x.shape) for part in (mean, std))
    return -jnp.sum(((x - mean) / std) ** 2 + jnp.log(2 * jnp.pi * std**2)) / 2


Prior = TypeVar("Prior", bound=AbstractPrior)


class AbstractTask(eqx.Module, Generic[Prior]):
    """A prior and a simulator; where more is known, a task has more methods.

    `log_likelihood(x, theta)`, `sample_posterior(key, x_o)` and `log_posterior(theta, x_o)`
    exist where they have a closed form.
    """

    prior: Prior
    dim_x: ClassVar[int]  # the number of data

    @property
    def dim_theta(self) -> int:
        """The number of parameters."""
        return len(self.prior_support[0])

    @property
    def prior_support(self) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """(low, high) of the prior, as `fit_posterior` wants it."""
        return self.prior.support

    def sample_prior(self, key: PRNGKey) -> Float[Array, " d"]:
        """One draw of the parameters."""
        return self.prior.sample(key)

    def log_prior(self, theta: Float[Array, " d"]) -> Float[Array, ""]:
        """Log-density ln p(theta), in nats, -inf outside the support.

        Raises:
            ValueError: `theta` of another shape.
        """
        check_vector("theta", theta, self.dim_theta)
        return self.prior.log_prob(theta)

    @abstractmethod
    def simulate(self, key: PRNGKey, theta: Float[Array, " d"]) -> Float[Array, " dim_x"]:
        """One draw of the data, in the dtype of `theta`."""


@eqx.filter_jit
def draw(
    key: PRNGKey, task: AbstractTask, n: int
) -> tuple[Float[Array, "n d"], Float[Array, "n dim_x"]]:
    """`n` independent pairs: parameters from the prior, and data simulated from each.

    Raises:
        ValueError: n < 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    prior_key, data_key = jr.split(key)
    theta = jax.vmap(task.sample_prior)(jr.split(prior_key, n))
    return theta, jax.vmap(task.simulate)(jr.split(data_key, n), theta)


def check_vector(name: str, array: Any, size: int) -> None:
    """Refuse what is not one floating vector of `size` numbers.

    Raises:
        ValueError: another dtype or shape.
    """
    check_floating(name, array)
    if jnp.shape(array) != (size,):
        raise ValueError(
            f"{name} must have shape ({size},), got {jnp.shape(array)}: "
            "one example at a time, use jax.vmap for more"
        )
