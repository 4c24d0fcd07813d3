r"""Surprises: simulations that are likely to be wrong, and an observation unlike all of them.

Of simulations they are warnings, one class a kind, so that a user can silence the kind that he
knows about. The surprise of an observation is the share of simulations that are at least as
unlikely. The features of an observation (the scaled x, or its embedding) are whitened to w, and

$$p(w) = \frac1c \sum_{j=1}^c N\big(w;\ \sqrt{1 - h^2}\, w_j,\ h^2 I\big)$$

is a kernel density estimate with the covariance I of the data for every bandwidth h: a Gaussian
at h = 1, any shape at small h. The held-out simulations are ranked by it. Their ranks are uniform
whatever the density is; how well it fits decides only what is noticed.
"""

import sys
import warnings
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
from .flow import in_pieces
from .transforms.bounds import pair

FEW_VALUES = 20  # distinct ones of a continuous parameter, and fewer than a tenth of the rows
SPIKE, SINGULAR = 0.05, 1e-6  # a share of rows at one value; eigenvalue of correlations: dependent
FAR = 30.0  # robust widths from the median: an outlier
DECADES, SKEWED = 1e3, 8.0  # a ratio of quantiles and robust widths: better in logarithms
FILLED = 0.8  # of a box, that parameters drawn from it fill
DENSITY_ROWS, DENSITY_CENTERS = 10_000, 2000  # of the training simulations, at most
SHRINKAGES = np.geomspace(1e-8, 1, 25)  # of the covariance towards that of independent features
BANDWIDTHS = np.geomspace(0.03, 1, 16)
OBSERVATIONS_AT_ONCE = 64  # observations in memory together
FURTHER, ORDINARY = 3.0, 3.0  # times the least likely held-out simulation's distance; deviations
BEYOND, FEWEST_OF_RANGE = 0.5, 50  # outside by this share of a range, of that many centers: odd


class FitWarning(UserWarning):
    """A likely fault of a fit; each kind is a subclass."""


class DroppedSimulations(FitWarning):
    """Failed simulations that were left out."""


class DuplicatedSimulations(FitWarning):
    """Rows, or parameters, that occur more than once."""


class DiscreteParameter(FitWarning):
    """A parameter that takes few distinct values, or one of them too often."""


class DependentParameters(FitWarning):
    """Parameters of which one follows from the others."""


class WideScales(FitWarning):
    """A column that spreads over many orders of magnitude, or has outliers."""


class SupportOrder(FitWarning):
    """A `prior_support` that looks transposed."""


class UnlikelyObservation(FitWarning):
    """An observation that is unlike all simulations."""


class UntrainedQuestion(FitWarning):
    """A conditional that a joint fit was never trained on."""


class NarrowTruncation(FitWarning):
    """A round of simulations where less than 1 in 10,000 prior draws lie."""


class PoorFit(FitWarning):
    """A fit that is no better than one that needs no training."""


def look_at_scales(name: str, rows: np.ndarray) -> None:
    """A warning for each column whose mean and standard deviation describe nothing."""
    rows = rows.astype(float)
    low, middle, high = np.quantile(rows, (0.25, 0.5, 0.75), axis=0)
    width = np.where(high > low, (high - low) / 1.349, 1)
    widths = np.abs(rows - middle) / width
    bottom, top = np.quantile(rows, (0.01, 0.99), axis=0)
    whole, negative = (rows == np.round(rows)).all(axis=0), (rows < 0).all(axis=0)
    count = whole & (rows >= 0).all(axis=0)
    near = np.where(negative, -top, bottom) + count  # the decades of a count are those of 1 + it
    away = np.where(negative, -bottom, top) + count
    decades = (rows > 0).all(axis=0) | negative | count
    decades &= away > DECADES * np.maximum(near, 0)
    # Counts that are mostly zeros have no width to judge by.
    judged = (high > low) & (~whole | (count & (low >= 1)))
    skewed, far = widths.max(axis=0) > SKEWED, widths.max(axis=0) > FAR
    for column in np.flatnonzero(judged & decades & skewed):
        which, ratio = f"{name}[:, {column}]", away[column] / near[column]
        told = (
            f"{which} spreads over {np.log10(ratio):.0f} decades, and what is small in it is lost "
            f"beside what is large: fit {_narrower(which, rows[:, column], width[column])} in its "
            "place, with its bounds transformed alike"
        )
        warn(WideScales, told)
    for column in np.flatnonzero(judged & ~decades & far & ~count):
        which, share = f"{name}[:, {column}]", np.mean(widths[:, column] > FAR)
        advice = f"np.clip({which}, *np.quantile({which}, [0.01, 0.99])) or np.arcsinh of it"
        if name == "theta":  # clipped, its prior would have point masses
            advice = _narrower(which, rows[:, column], width[column])
        warn(
            WideScales,
            f"{which} has {share:.2%} of its values beyond {FAR:g} robust widths of its median, "
            f"and its standard deviation describes those: fit {advice} in its place",
        )


def _narrower(which: str, column: np.ndarray, width: float) -> str:
    """The function of a column that brings its decades together, as one writes it."""
    if np.all(column >= 0) and np.all(column == np.round(column)):
        return f"np.log1p({which})"
    if np.all(column > 0):
        return f"np.log({which})"
    return f"-np.log(-{which})" if np.all(column < 0) else f"np.arcsinh({which} / {width:.2g})"


def discrete(theta: np.ndarray) -> np.ndarray:
    """Which parameters take few distinct values."""
    counts = np.array([len(np.unique(column)) for column in theta.T])
    return (counts <= FEW_VALUES) & (counts < len(theta) / 10)


def look_at_values(theta: np.ndarray) -> None:
    """A warning for each parameter that is not continuous."""
    few = discrete(theta)
    for column, values in enumerate(theta.T):
        distinct, counts = np.unique(values, return_counts=True)
        most, others = counts.max(), len(theta) - counts.max()
        if few[column]:
            warn(
                DiscreteParameter,
                f"theta[:, {column}] takes only {len(distinct)} distinct values. Posteriors here "
                "are densities: draws will lie between them, and nats mean nothing. Fit one "
                "posterior a value, or leave it out",
            )
        elif most > max(SPIKE * len(theta), 5) and len(distinct) > 0.9 * others:
            warn(
                DiscreteParameter,
                f"theta[:, {column}] is {distinct[np.argmax(counts)]:g} in {most / len(theta):.0%} "
                "of the rows, and continuous in the others. Posteriors here are densities: draws "
                "will not have that value, and nats mean nothing. Fit one posterior to the rows "
                "that have it and one to the others",
            )


def look_at_dependence(theta: np.ndarray) -> None:
    """A warning where a parameter is a linear function of the others."""
    count = theta.shape[1]
    if not 1 < count < len(theta) / 2:
        return
    values, vectors = np.linalg.eigh(np.corrcoef(theta.astype(float).T))
    if values[0] < SINGULAR:
        columns = np.flatnonzero(np.abs(vectors[:, 0]) > 0.1 * np.abs(vectors[:, 0]).max())
        warn(
            DependentParameters,
            f"parameters depend on each other: of theta in columns {columns.tolist()}, one follows "
            "from the others, and the posterior has no density. Leave one out",
        )


def look_at_order(prior_support: Any, theta: np.ndarray) -> None:
    """A warning if theta fills the box that prior_support would be if it were transposed.

    Raises:
        ValueError: not low < high.
    """
    read = pair(prior_support, theta.shape[1])
    turned = _transposed(prior_support) if theta.shape[1] == 2 else read
    other = not np.array_equal(read, turned) and _inside(theta, *turned)
    known = np.isfinite(read).all()  # where it is not, the box as it stands may be filled, too
    if other and _filled(theta, *turned) and (known or not _filled(theta, *read)):
        warn(
            SupportOrder,
            "prior_support is (low, high), each with an entry a parameter; theta fills the box "
            "whose rows are the (low, high) of one parameter: pass np.transpose(prior_support)",
        )
    low, high = read
    if not np.all((low < high) & (low < np.inf) & (high > -np.inf)):
        hint = ": its rows are not those of parameters, pass np.transpose(prior_support)" * other
        raise ValueError(f"prior_support needs low < high, got {low} and {high}{hint}")


def _transposed(prior_support: Any) -> tuple[np.ndarray, np.ndarray]:
    """The bounds of two parameters if each row is the (low, high) of one."""
    try:
        (first_low, first_high), (second_low, second_high) = prior_support
    except TypeError:  # None in place of a vector, which no row would be
        return pair(prior_support, 2)
    return pair(([first_low, second_low], [first_high, second_high]), 2)


def _inside(theta: np.ndarray, low: np.ndarray, high: np.ndarray) -> bool:
    return bool(np.all((low < high) & (theta >= low) & (theta <= high)))


def _filled(theta: np.ndarray, low: np.ndarray, high: np.ndarray) -> bool:
    """Whether theta lies in a box and comes near its sides, those that are finite."""
    least, most = theta.min(axis=0), theta.max(axis=0)
    sides = np.where(np.isfinite(high), high, most) - np.where(np.isfinite(low), low, least)
    return _inside(theta, low, high) and bool(np.all(most - least > FILLED * sides))


def warn(kind: type[FitWarning], told: str) -> None:
    """A warning at the line outside of this package from which it was called."""
    inside = __name__.removesuffix("sbi.surprise")
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_globals["__name__"].startswith(inside):
        frame, level = frame.f_back, level + 1
    warnings.warn(told, kind, stacklevel=level)


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
        centers: the points w_j.
        bandwidth: the number h.
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
        candidates = SHRINKAGES[:, None] + (1 - SHRINKAGES[:, None]) * np.maximum(variances, 0)
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
        return cls(*map(jnp.zeros, ((size,), (size, size), (centers, size), (), (held,))))

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The numbers of features, centers and held-out simulations."""
        return len(self.mean), len(self.centers), len(self.held)

    def with_bandwidth(self, bandwidth: float) -> "ObservationDensity":
        """The same with another h."""
        return eqx.tree_at(lambda d: d.bandwidth, self, jnp.asarray(bandwidth, self.mean.dtype))

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

    def beyond(self, features: Float[Array, " k"]) -> np.ndarray:
        """The distance of each feature from the range of the centers, over that range."""
        if len(self.centers) < FEWEST_OF_RANGE:
            return np.zeros(len(features))
        whiten, told = np.asarray(self.whiten, float), np.asarray(features, float)
        rows = np.linalg.solve(whiten, np.asarray(self.centers, float).T).T
        low, high = rows.min(axis=0), rows.max(axis=0)
        told = told - np.asarray(self.mean, float)
        gap = np.maximum(np.maximum(low - told, told - high), 0)
        return np.where(gap > 0, gap / np.maximum(high - low, np.finfo(float).tiny), 0)

    def worst(self, features: Float[Array, " k"]) -> str:
        """The feature along which -ln p is steepest, in units of its spread given the others."""
        beyond = self.beyond(features)
        if beyond.max() > BEYOND:
            return f"x[{int(np.argmax(beyond))}]"
        slope = jax.grad(self.nats)(features) / jnp.linalg.norm(self.whiten, axis=0)
        place = int(jnp.argmax(jnp.abs(slope)))
        alone = len(features) == 1 or abs(float(features[place])) > ORDINARY
        return f"x[{place}]" + ("" if alone else " given the other features")


def surprise(density: ObservationDensity, denoiser: Denoiser, x: Array) -> Surprise:
    """The surprise of a scaled observation under the density of simulated ones."""
    p_value, _ = _judged(density, denoiser, x)
    named = concrete(p_value) and not isinstance(denoiser.network, Embedded)
    return Surprise(p_value, density.worst(x) if named else None)


def look_at(density: ObservationDensity | None, denoiser: Denoiser, x: Array) -> None:
    """A warning about a scaled observation unlike all simulations, where it can be looked at.

    It is one that is extreme, or has a feature (of x itself, not of an embedding) that is
    `BEYOND` the range of those simulated.
    """
    if density is None or not concrete(x):
        return
    _, extreme = _judged(density, denoiser, x)
    plain = not isinstance(denoiser.network, Embedded)
    if extreme or (plain and density.beyond(_features(denoiser, x)).max() > BEYOND):
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
    if not isinstance(denoiser.network, Embedded):
        return x.reshape(len(x), -1)
    return np.asarray(_features_of_rows(denoiser, jnp.asarray(x)))


@eqx.filter_jit
def _features_of_rows(denoiser: Denoiser, x: Array) -> Array:
    return in_pieces(lambda x: _features(denoiser, x), x, OBSERVATIONS_AT_ONCE)


@eqx.filter_jit
def _nats_of_rows(density: ObservationDensity, rows: Any) -> Array:
    return in_pieces(density.nats, rows, OBSERVATIONS_AT_ONCE)
