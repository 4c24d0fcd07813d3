r"""Importance weights: what a known likelihood makes of draws of an approximate posterior.

Draws $\theta_i \sim q$ with weights $w_i \propto p(\theta_i)\,p(x_o \mid \theta_i) / q(\theta_i)$
are draws of the exact posterior, as far as q reaches, and the mean of these ratios is the evidence
$p(x_o)$. The fewer draws carry the weight, the less either is to be trusted: the effective share is
$(\sum_i w_i)^2 / (n \sum_i w_i^2)$.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Weights(NamedTuple):
    """What `Posterior.reweigh` returns.

    Arguments:
        weights: of the draws, with sum 1.
        share: the effective share of the draws, 1 / n to 1. At less than about 0.01 the weights
            describe a few draws, not the posterior.
        log_evidence: ln p(x_o), nats; its standard error is about sqrt((1 / share - 1) / n).
    """

    weights: Float[Array, " n"]
    share: Float[Array, ""]
    log_evidence: Float[Array, ""]


def weighted(log_joint: Float[Array, " n"], log_q: Float[Array, " n"]) -> Weights:
    """The weights of draws whose two log-densities are known.

    Raises:
        ValueError: a log-density that is NaN or inf, or no draw where the joint density is
            positive.
    """
    ratio = log_joint - log_q
    if not np.any(np.isfinite(ratio)) or np.any(np.isnan(ratio)) or np.any(ratio == np.inf):
        raise ValueError(
            "log_joint must be finite or -inf for draws of the posterior, and not -inf for all: "
            "pass ln p(theta) + ln p(x_o given theta), and theta as `sample` returned it"
        )
    total = jax.nn.logsumexp(ratio)
    weights = jnp.exp(ratio - total)
    n = len(ratio)
    return Weights(weights, 1 / (n * jnp.sum(weights**2)), total - np.log(n))


def values(log_joint: Callable[[Any], Any] | Any, theta: Any) -> Float[np.ndarray, " n"]:
    """The joint log-density at every row, from a function of one or from its values."""
    if not callable(log_joint):
        found = np.asarray(log_joint, float)
    else:
        try:
            found = np.asarray(jax.vmap(log_joint)(jnp.asarray(theta)), float)
        except jax.errors.TracerArrayConversionError:  # a likelihood in NumPy, called one by one
            found = np.asarray([log_joint(row) for row in np.asarray(theta)], float)
    if found.shape != (len(theta),):
        raise ValueError(
            f"log_joint must give one number for each of {len(theta)} draws, got shape "
            f"{found.shape}: a function of one theta, or an array"
        )
    return found
