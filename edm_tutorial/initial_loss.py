r"""Is `sigma_data` right? An untrained network knows: it must score 1 at every noise level.

With $F = 0$ the denoiser is $c_{skip}(y+n)$ and its expected weighted error is
$\lambda\,[(c_{skip}-1)^2\,E y^2 + c_{skip}^2\sigma^2]$, which is 1 for all $\sigma$ exactly
when $E y^2$ is `sigma_data` squared. For $\sigma \to \infty$ it is $E y^2/\sigma_{data}^2$.
"""

from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ._checks import check_data, check_number
from ._types import Condition, PRNGKey, Scalar, as_float
from .grids import edm_sigmas
from .losses import errors_by_sigma
from .preconditioning import AbstractPreconditioning


def initial_loss(
    preconditioning: AbstractPreconditioning,
    sigma: Scalar,
    mean_square: Scalar,
) -> Float[Array, "..."]:
    r"""The expected loss of a zero network: $\lambda[(c_{skip}-1)^2 E x^2 + c_{skip}^2\sigma^2]$.

    Arguments:
        sigma: noise level, data units.
        mean_square: $E x^2$ of the data about zero, data units squared.

    Raises:
        ValueError: `sigma` is not positive and finite, or `mean_square` negative.
    """
    check_number("sigma", sigma)
    check_number("mean_square", mean_square, zero=True)
    sigma = as_float(sigma)
    c_skip = preconditioning(sigma).c_skip
    spread = (c_skip - 1) ** 2 * as_float(mean_square, sigma) + c_skip**2 * sigma**2
    return preconditioning.loss_weight(sigma) * spread


def check_initial_loss(
    denoiser: Any,
    x: Float[Array, " n *shape"],
    cond: Condition = None,
    *,
    sigmas: Float[ArrayLike, " levels"] | None = None,
    key: PRNGKey | None = None,
) -> Float[Array, " levels"]:
    """Measure the loss of an *untrained* denoiser and refuse it where it is not 1.

    Call it once before training: it finds a wrong `sigma_data`, data that were not
    centred or scaled, and a network whose last layer does not start at zero.

    Arguments:
        denoiser: a `Denoiser` before its first training step.
        x: data, stacked along the first axis (`cond` likewise). The finer the better:
            the check allows 4 of its own standard errors, about 4 sqrt(2/(n d)).
        sigmas: noise levels to check; nine of `edm_sigmas` unless given.
        key: for the noise; a fixed one unless given, so that the check is repeatable.

    Returns:
        The measured losses.

    Raises:
        ValueError: a loss differs from 1 by more than 4 standard errors; the message says
            by how much and what to do.
    """
    check_data("x", x)
    if len(x) < 2:
        raise ValueError(f"need at least 2 examples for a standard error, got {len(x)}")
    sigmas = edm_sigmas(9) if sigmas is None else jnp.asarray(sigmas)
    key = jr.key(0) if key is None else key
    errors = np.asarray(errors_by_sigma(denoiser, x, sigmas, cond, None, key), float)
    loss = errors.mean(axis=1)
    # Few examples tend to underestimate their spread: it is at least that of a Gaussian's.
    spread = np.maximum(errors.std(axis=1, ddof=1), np.sqrt(2 / x[0].size))
    allowed = 4 * spread / np.sqrt(errors.shape[1])
    worst = int(np.argmax(np.abs(loss - 1) / allowed))
    if not abs(loss[worst] - 1) <= allowed[worst]:
        raise ValueError(_advice(denoiser, x, float(sigmas[worst]), loss[worst], allowed[worst]))
    return as_float(loss, x)


def _advice(denoiser: Any, x: Array, sigma: float, loss: float, allowed: float) -> str:
    measured = float(jnp.sqrt(jnp.mean(x**2)))
    mean = float(jnp.mean(x))
    return (
        f"an untrained network must score 1 at every noise level, but scores {loss:.3f} at "
        f"sigma = {sigma:.3g} (allowed: 1 +- {allowed:.3f}). The data's root mean square is "
        f"{measured:.4g} and their mean {mean:.3g}; the preconditioning is "
        f"{denoiser.preconditioning}. Centre the data, use EDMPreconditioning.from_data(x), "
        "and start the network's last layer at zero."
    )
