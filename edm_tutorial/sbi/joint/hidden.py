"""The training game: hidden numbers of a simulation, and the loss of finding them."""

from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float

from ..._types import PRNGKey
from ...denoiser import Denoiser
from ...losses import weighted_error
from ...noise_levels import AbstractNoiseDistribution
from ..fit import SIGMA_DIST
from ..noise_levels import HeldOut, stratified
from .network import Told

POSTERIOR, LIKELIHOOD, EVERYTHING, ANY = range(4)  # what is hidden


def draw_known(
    key: PRNGKey, kinds: Array, parameters: int, numbers: int
) -> Bool[Array, "n numbers"]:
    """The mask of the numbers shown in each game, drawn by its kind; at least one is hidden.

    Where any number may be hidden, each is shown with one probability, drawn from U(0, 1).
    """
    share_key, each_key, one_key = jr.split(key, 3)
    n = len(kinds)
    is_theta = np.arange(numbers)[None] < parameters
    share = jr.uniform(share_key, (n, 1))
    some = jr.uniform(each_key, (n, numbers)) < share
    some &= ~jax.nn.one_hot(jr.randint(one_key, (n,), 0, numbers), numbers, dtype=bool)
    kinds = kinds[:, None]
    return jnp.where(kinds == ANY, some, _shown(kinds, is_theta))


def _shown(kind: Any, is_theta: Any) -> Any:
    """The mask of the numbers shown where the kind alone decides: in every game but `ANY`."""
    return ((kind == POSTERIOR) & ~is_theta) | ((kind == LIKELIHOOD) & is_theta)


def draw_kinds(key: PRNGKey, n: int, shares: tuple[float, ...]) -> Array:
    """The kinds of n games, in numbers as close to their shares as can be, in random order."""
    edges = np.cumsum(shares) / np.sum(shares)
    strata = (np.arange(n) + 0.5) / n
    return jr.permutation(key, jnp.asarray(np.searchsorted(edges[:-1], strata, side="right")))


def is_asked(
    known: Bool[np.ndarray, " numbers"], parameters: int, shares: tuple[float, ...]
) -> bool:
    """Whether games with these shares ever show exactly these numbers."""
    is_theta = np.arange(len(known)) < parameters
    kinds = (POSTERIOR, LIKELIHOOD, EVERYTHING)
    games = [kind for kind in kinds if np.array_equal(known, _shown(kind, is_theta))]
    return any(shares[kind] > 0 for kind in (*games, ANY))


@final
class HiddenLoss(eqx.Module):
    """The denoising loss of what is hidden in a batch: the mean over its numbers.

    Arguments:
        sigma_dist: the law of the noise level, of which the batch gets one from every part.
        parameters: how many numbers are parameters.
        shares: of the games: posterior, likelihood, everything, any.
    """

    sigma_dist: AbstractNoiseDistribution
    parameters: int = eqx.field(static=True)
    shares: tuple[float, ...] = eqx.field(static=True)

    def __call__(
        self,
        denoiser: Denoiser,
        z: Float[Array, "n numbers"],
        present: Bool[Array, "n numbers"],
        *,
        key: PRNGKey,
    ) -> Float[Array, ""]:
        """The mean over the batch."""
        kind_key, known_key, level_key, noise_key, network_key = jr.split(key, 5)
        kinds = draw_kinds(kind_key, len(z), self.shares)
        known = draw_known(known_key, kinds, self.parameters, z.shape[1])
        sigmas = stratified(level_key, self.sigma_dist, len(z), z.dtype)
        n = sigmas[:, None] * jr.normal(noise_key, z.shape, z.dtype)

        def error(z: Array, sigma: Array, n: Array, told: Told, key: PRNGKey) -> Array:
            hidden = told.present & ~told.known
            found = weighted_error(denoiser, z, sigma, n, cond=told, key=key)
            count = jnp.sum(hidden, dtype=z.dtype)
            return jnp.sum(jnp.where(hidden, found, 0)) / jnp.maximum(count, 1)

        told, keys = Told(z, known, present), jr.split(network_key, len(z))
        return jnp.mean(jax.vmap(error)(z, sigmas, n, told, keys))


def held_out(
    key: PRNGKey,
    z: Float[np.ndarray, "n numbers"],
    present: Bool[np.ndarray, "n numbers"],
    log_dets: Float[np.ndarray, "n numbers"],
    parameters: int,
    shares: tuple[float, ...],
) -> HeldOut:
    """Held-out simulations with noise and games drawn once; their loss is -ln q of what is hidden.

    Arguments:
        log_dets: of every number's coordinate, nats.
    """
    kind_key, known_key, noise_key = jr.split(key, 3)
    kinds = draw_kinds(kind_key, len(z), shares)
    known = draw_known(known_key, kinds, parameters, z.shape[1])
    told = Told(jnp.asarray(z), known, jnp.asarray(present))
    nats = np.asarray(z, float) ** 2 / 2 + np.log(2 * np.pi) / 2 - log_dets
    hidden = present & ~np.asarray(known)
    untrained = float(np.mean(np.sum(np.where(hidden, nats, 0), axis=1)))
    drawn = HeldOut.draw(noise_key, z, told, log_det=np.zeros(len(z)), sigma_dist=SIGMA_DIST)
    return eqx.tree_at(lambda held: held.untrained, drawn, untrained)
