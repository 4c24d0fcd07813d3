r"""What is minimised: the weighted error of the denoiser, at noise levels drawn at random.

Eq. 2 is $E\,\lambda(\sigma)\,\|D(y+n;\sigma)-y\|^2$ with $n \sim N(0,\sigma^2 I)$, and
Eq. 8 is the same error in the units of the network's output: $\lambda c_{out}^2 = 1$, so

$$\lambda\,(D(y+n)-y)^2
  = \Big(F(c_{in}(y+n)) - \frac{(1-c_{skip})\,y - c_{skip}\,n}{c_{out}}\Big)^2.$$

The right-hand side is what is computed. The huge numbers ($\lambda(0.002) = 250{,}000$)
and the tiny ones they multiply are never formed.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from edm_tutorial.grids import iddpm_levels
from edm_tutorial.preconditioning import AbstractPreconditioning
from edm_tutorial.schedules import VariancePreserving
from edm_tutorial.types import (
    Condition,
    PRNGKey,
    Scalar,
    as_float,
    check_cond,
    check_data,
    check_floating,
    check_number,
    check_positive,
    check_shape,
    concrete,
)


class AbstractNoiseDistribution(eqx.Module):
    """The law of the training noise level: call it with a key to draw one."""

    @abstractmethod
    def __call__(self, key: PRNGKey) -> Float[Array, ""]:
        """One noise level, in data units."""

    @abstractmethod
    def from_variate(self, r: Scalar) -> Float[Array, ""]:
        """The noise level made from a standard draw `r`: N(0, 1) or U(0, 1)."""


@final
class LogNormal(AbstractNoiseDistribution):
    r"""$\ln\sigma \sim N(P_{mean}, P_{std}^2)$ (Table 1, column "Ours"); `r` is N(0, 1)."""

    p_mean: float = -1.2
    p_std: float = 1.2

    def __check_init__(self):
        check_positive("p_std", self.p_std)
        if concrete(self.p_mean) and not np.isfinite(self.p_mean):
            raise ValueError(f"p_mean must be finite, got {self.p_mean}")

    def __call__(self, key: PRNGKey) -> Float[Array, ""]:
        return self.from_variate(jr.normal(key))

    def from_variate(self, r: Scalar) -> Float[Array, ""]:
        return jnp.exp(self.p_mean + self.p_std * as_float(r))


@final
class LogUniform(AbstractNoiseDistribution):
    r"""$\ln\sigma$ uniform over the range (Table 1, column "VE"); `r` is U(0, 1)."""

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def __check_init__(self):
        if not 0 < self.sigma_min < self.sigma_max < np.inf:
            raise ValueError(
                f"need 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}"
            )

    def __call__(self, key: PRNGKey) -> Float[Array, ""]:
        return self.from_variate(jr.uniform(key))

    def from_variate(self, r: Scalar) -> Float[Array, ""]:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** as_float(r)


@final
class UniformTime(AbstractNoiseDistribution):
    r"""$\sigma(t)$ at $t$ uniform in $(\epsilon_t, 1)$ (Table 1, "VP"); `r` = 0 is t = 1."""

    schedule: VariancePreserving = VariancePreserving()
    eps: float = 1e-5

    def __check_init__(self):
        if not 0 < self.eps < 1:
            raise ValueError(f"need 0 < eps < 1, got eps={self.eps}")

    def __call__(self, key: PRNGKey) -> Float[Array, ""]:
        return self.from_variate(jr.uniform(key))

    def from_variate(self, r: Scalar) -> Float[Array, ""]:
        return self.schedule.sigma(1 + as_float(r) * (self.eps - 1))


@final
class UniformLevels(AbstractNoiseDistribution):
    r"""$\sigma = u_j$ with $j$ uniform in 0..M-1 (Table 1, "iDDPM"); `r` is U(0, 1)."""

    levels: int = 1000
    c_1: float = 1e-3
    c_2: float = 8e-3

    def __check_init__(self):
        iddpm_levels(self.levels, self.c_1, self.c_2)  # refuses what has no table

    def __call__(self, key: PRNGKey) -> Float[Array, ""]:
        return self.from_variate(jr.uniform(key))

    def from_variate(self, r: Scalar) -> Float[Array, ""]:
        r = as_float(r)
        table = jnp.asarray(iddpm_levels(self.levels, self.c_1, self.c_2), r.dtype)
        index = jnp.floor(r * self.levels).astype(int)
        return table[jnp.clip(index, 0, self.levels - 1)]  # r = 1 belongs to the last


def weighted_error(
    denoiser: Any,
    x: Float[Array, "*shape"],
    sigma: Scalar,
    n: Float[Array, "*shape"],
    cond: Condition = None,
    *,
    key: PRNGKey | None = None,
) -> Float[Array, "*shape"]:
    r"""$\lambda(\sigma)\,(D(x+n;\sigma)-x)^2$ of one example, computed in network space.

    Eq. 2 by way of Eq. 8. With the right `sigma_data` an untrained (zero) network scores 1
    on average at every noise level.

    Arguments:
        denoiser: a `Denoiser`, or anything with its two fields.
        x, n: clean example and noise of level `sigma`, data units.
        key: for the network's dropout, if it has any.

    Raises:
        ValueError: `denoiser` has no `network` and `preconditioning`, `n` is not shaped
            like `x`, or `sigma` is not positive and finite.
    """
    check_floating("x", x)
    check_number("sigma", sigma)
    check_shape("n", n, x)
    network, preconditioning = _parts(denoiser)
    c = preconditioning(as_float(sigma, x))
    output = network(c.c_in * (x + n), c.c_noise, cond, key=key)
    target = ((1 - c.c_skip) * x - c.c_skip * n) / c.c_out
    check_shape("the network's output", output, x)
    return (output - target) ** 2


def denoising_loss(
    denoiser: Any,
    x: Float[Array, "*shape"],
    cond: Condition = None,
    *,
    noise: Callable[[PRNGKey], Array],
    key: PRNGKey,
) -> Float[Array, ""]:
    """The training loss of one example: `weighted_error` at a random noise level, averaged.

    Arguments:
        denoiser: a `Denoiser`, or anything with its two fields.
        x: one clean example, data units.
        noise: the law of the noise level, such as `LogNormal()`.
        key: split between the level, the noise and the network.

    Raises:
        ValueError: as `weighted_error`.
    """
    check_floating("x", x)
    sigma_key, noise_key, network_key = jr.split(key, 3)
    sigma = as_float(noise(sigma_key), x)
    n = sigma * jr.normal(noise_key, x.shape, x.dtype)
    return jnp.mean(weighted_error(denoiser, x, sigma, n, cond, key=network_key))


def loss_by_sigma(
    denoiser: Any,
    x: Float[Array, " n *shape"],
    sigmas: Float[ArrayLike, " levels"],
    cond: Condition = None,
    *,
    key: PRNGKey,
    preconditioning: AbstractPreconditioning | None = None,
) -> Float[Array, " levels"]:
    r"""The loss at each noise level, averaged over a data set: where does it learn?

    One fresh noise for every example and level. 1 is an untrained network.

    Arguments:
        denoiser: any denoiser.
        x: examples, stacked along the first axis, data units; `cond` likewise, or None.
        sigmas: the noise levels, data units.
        preconditioning: whose $\lambda(\sigma)$ weighs the error of a denoiser that has
            none of its own, such as an exact one.

    Raises:
        ValueError: a plain callable without `preconditioning`, `x` empty or not finite,
            `sigmas` not positive, or not one condition for each example.
    """
    return errors_by_sigma(denoiser, x, sigmas, cond, preconditioning, key).mean(axis=1)


def errors_by_sigma(
    denoiser: Any,
    x: Array,
    sigmas: Any,
    cond: Condition,
    preconditioning: AbstractPreconditioning | None,
    key: PRNGKey,
) -> Float[Array, "levels n"]:
    """The mean weighted error of each example at each noise level."""
    check_data("x", x)
    check_positive("sigmas", sigmas)
    check_cond(cond, len(x))
    if preconditioning is None:
        _parts(denoiser)

    def one(x, cond, sigma, key):
        noise_key, network_key = jr.split(key)
        n = sigma * jr.normal(noise_key, x.shape, x.dtype)
        if preconditioning is None:
            return jnp.mean(weighted_error(denoiser, x, sigma, n, cond, key=network_key))
        error = denoiser(x + n, sigma, cond, key=network_key) - x
        return jnp.mean(preconditioning.loss_weight(sigma) * error**2)

    def level(args):
        sigma, key = args
        keys = jr.split(key, len(x))
        return jax.vmap(one, in_axes=(0, 0, None, 0))(x, cond, sigma, keys)

    sigmas = jnp.asarray(sigmas, x.dtype)
    return jax.lax.map(level, (sigmas, jr.split(key, len(sigmas))))


def _parts(denoiser: Any) -> tuple[Callable[..., Array], AbstractPreconditioning]:
    try:
        return denoiser.network, denoiser.preconditioning
    except AttributeError:
        raise ValueError(
            "the loss takes its weight from a preconditioning: use Denoiser(network, "
            "preconditioning), or pass preconditioning= to loss_by_sigma; "
            f"got {denoiser}"
        ) from None
