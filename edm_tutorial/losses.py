r"""What is minimised: the weighted error of the denoiser, at noise levels drawn at random.

Eq. 2 is $E\,\lambda(\sigma)\,\|D(y+n;\sigma)-y\|^2$ with $n \sim N(0,\sigma^2 I)$, and
Eq. 8 is the same error in the units of the network's output: $\lambda c_{out}^2 = 1$, so

$$\lambda\,(D(y+n)-y)^2
  = \Big(F(c_{in}(y+n)) - \frac{(1-c_{skip})\,y - c_{skip}\,n}{c_{out}}\Big)^2.$$

The right-hand side is what is computed. The huge numbers ($\lambda(0.002) = 250{,}000$)
and the tiny ones they multiply are never formed.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, ArrayLike, Float

from ._checks import check_cond, check_data, check_finite, check_number, check_positive, check_shape
from ._types import Condition, PRNGKey, Scalar, as_float
from .preconditioning import AbstractPreconditioning


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
    check_finite("x", x)
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
    check_finite("x", x)
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

    sigmas = as_float(sigmas, x)
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
