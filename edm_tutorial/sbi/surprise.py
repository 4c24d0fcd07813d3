r"""Surprise of an observation: the share of simulations that are at least as unlikely.

The features of an observation (the scaled x, or its embedding) are whitened to w, and

$$p(w) = \frac1c \sum_{j=1}^c N\big(w;\ \sqrt{1 - h^2}\, w_j,\ h^2 I\big)$$

is a kernel density estimate with the covariance I of the data for every bandwidth h: a Gaussian
at h = 1, any shape at small h. The held-out simulations are ranked by it. Their ranks are uniform
whatever the density is; how well it fits decides only what is noticed.
"""

from typing import Any, NamedTuple, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from .._checks import concrete
from ..denoiser import Denoiser
from ..networks.mlp import Embedded
from .simulations import UnlikelyObservation, warn

DENSITY_ROWS, DENSITY_CENTERS = 10_000, 2000  # of the training simulations, at most
SHRINKAGES = np.geomspace(1e-8, 1, 25)  # of the covariance towards that of independent features
BANDWIDTHS = np.geomspace(0.03, 1, 16)
OBSERVATIONS_AT_ONCE = 64  # observations in memory together
FURTHER = 3.0  # times the distance of the least likely held-out simulation: extreme
ORDINARY = 3.0  # standard deviations of a feature


class Surprise(NamedTuple):
    """The surprise of an observation, as `Posterior.surprise` gives it.

    Arguments:
        p_value: the share of held-out simulations that are at least as unlikely.
        worst: the oddest feature, "x[3]", or "x[3] given the other features" where it is ordinary
            by itself; None with an embedding, and inside `jit` or `vmap`.
    """

    p_value: Float[Array, ""]
    worst: str | None


@final
class ObservationDensity(eqx.Module):
    """The density of features of observations, and how unlikely held-out ones are under it.

    Arguments:
        mean: m, of the features.
        whiten: W, in w = W (f - m).
        centers: w_j.
        bandwidth: h.
        held: -ln p of held-out simulations, ascending, up to a constant.
    """

    mean: Float[Array, " k"]
    whiten: Float[Array, "k k"]
    centers: Float[Array, "c k"]
    bandwidth: Float[Array, ""]
    held: Float[Array, " m"]

    @classmethod
    def fit(
        cls,
        denoiser: Denoiser,
        kept: Float[np.ndarray, " n *shape"],
        held: Float[np.ndarray, " m *shape"],
    ) -> "ObservationDensity":
        """The density measured on some of the scaled observations `kept`, in random order.

        Half of them give the covariance and the centers. Under its other half, the shrinkage of
        the covariance and the bandwidth are those of maximum likelihood, so that few rows of
        many features make it wide, not wrong.
        """
        rows = _all_features(denoiser, kept[:DENSITY_ROWS])
        mean, std = rows.mean(axis=0, dtype=float), rows.std(axis=0, dtype=float)
        std = np.where(std > 0, std, 1)
        first, second = np.array_split((rows - mean) / std, 2)
        variances, axes = np.linalg.eigh(first.T @ first / len(first))
        shrinkages = SHRINKAGES[:, None]
        candidates = shrinkages + (1 - shrinkages) * np.maximum(variances, 0)
        further = np.mean((second @ axes) ** 2, axis=0)
        best = np.argmin(np.sum(np.log(candidates) + further / candidates, axis=1))
        whiten = axes.T / np.sqrt(candidates[best])[:, None]
        parts = mean, whiten / std, first[:DENSITY_CENTERS] @ whiten.T, 1.0, np.zeros(0)
        fitted = cls(*(jnp.asarray(part, rows.dtype) for part in parts))
        judges = rows[len(first) :][:DENSITY_CENTERS]
        tried = [fitted.with_bandwidth(h) for h in BANDWIDTHS]
        fitted = min(tried, key=lambda density: np.mean(_nats_of_rows(density, judges)))
        scores = _nats_of_rows(fitted, _all_features(denoiser, held))
        return eqx.tree_at(lambda density: density.held, fitted, jnp.sort(scores))

    @classmethod
    def zeros(cls, size: int, centers: int, held: int) -> "ObservationDensity":
        """Zeros of the shapes of another density, to be filled from a file; see `sizes`."""
        shapes = (size,), (size, size), (centers, size), (), (held,)
        return cls(*map(jnp.zeros, shapes))

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The numbers of features, centers and held-out simulations."""
        return len(self.mean), len(self.centers), len(self.held)

    def with_bandwidth(self, bandwidth: float) -> "ObservationDensity":
        """The same with another h."""
        h = jnp.asarray(bandwidth, self.bandwidth.dtype)
        return eqx.tree_at(lambda density: density.bandwidth, self, h)

    def nats(self, features: Float[Array, " k"]) -> Float[Array, ""]:
        """-ln p of the features of one observation, up to a constant."""
        h = self.bandwidth
        w = self.whiten @ (features - self.mean)
        squares = jnp.sum((w[None] - jnp.sqrt(1 - h**2) * self.centers) ** 2, axis=1)
        log_sum = jax.scipy.special.logsumexp(-squares / (2 * h**2))
        return len(w) * jnp.log(h) - log_sum

    def p_value(self, features: Float[Array, " k"]) -> Float[Array, ""]:
        """The share of held-out simulations that are at least as unlikely."""
        return jnp.mean(self.held >= self.nats(features), dtype=self.held.dtype)

    def extreme(self, features: Float[Array, " k"]) -> Bool[Array, ""]:
        """Whether -ln p is further above the median than thrice that of all held-out simulations.

        With m of them, one from the prior is so with a probability below 1/(m + 1) whatever its
        law: 1 % for 100, 0.01 % for 10,000. Where -ln p has an exponential tail, as that of
        Gaussian features has, the probability is about 24/m^3.
        """
        median = jnp.median(self.held)
        return self.nats(features) - median > FURTHER * (self.held[-1] - median)

    def worst(self, features: Float[Array, " k"]) -> str:
        """The feature along which -ln p is steepest, in units of its spread given the others."""
        slope = jax.grad(self.nats)(features) / jnp.linalg.norm(self.whiten, axis=0)
        place = int(jnp.argmax(jnp.abs(slope)))
        alone = abs(float(features[place])) > ORDINARY
        return f"x[{place}]" + ("" if alone else " given the other features")


def surprise(density: ObservationDensity, denoiser: Denoiser, x: Array) -> Surprise:
    """The surprise of a scaled observation under the density of simulated ones."""
    p_value, _ = _judged(density, denoiser, x)
    named = concrete(p_value) and not isinstance(denoiser.network, Embedded)
    return Surprise(p_value, density.worst(x) if named else None)


def look_at(density: ObservationDensity | None, denoiser: Denoiser, x: Array) -> None:
    """A warning about a scaled observation unlike all simulations, where it can be looked at."""
    if density is None or not concrete(x):
        return
    _, extreme = _judged(density, denoiser, x)
    if extreme:
        worst = surprise(density, denoiser, x).worst
        warn(
            UnlikelyObservation,
            f"x_o is unlike all simulations{'' if worst is None else f', most of all in {worst}'}, "
            "and what the posterior says there is a guess: look at its units and the order of its "
            "features, and at what the simulator leaves out",
        )


@eqx.filter_jit
def _judged(density: ObservationDensity, denoiser: Denoiser, x: Array) -> tuple[Array, Array]:
    """The p-value of a scaled observation, and whether it is extreme."""
    told = _features(denoiser, x)
    return density.p_value(told), density.extreme(told)


def _features(denoiser: Denoiser, x: Float[Array, "*shape"]) -> Float[Array, " k"]:
    """The features of a scaled observation that the network is told, as one vector."""
    network = denoiser.network
    return ravel_pytree(network.embedding(x) if isinstance(network, Embedded) else x)[0]


def _all_features(denoiser: Denoiser, x: np.ndarray) -> np.ndarray:
    return np.asarray(_features_of_rows(denoiser, jnp.asarray(x)))


@eqx.filter_jit
def _features_of_rows(denoiser: Denoiser, x: Array) -> Array:
    return jax.lax.map(lambda x: _features(denoiser, x), x, batch_size=OBSERVATIONS_AT_ONCE)


@eqx.filter_jit
def _nats_of_rows(density: ObservationDensity, rows: Any) -> Array:
    return jax.lax.map(density.nats, rows, batch_size=OBSERVATIONS_AT_ONCE)
