r"""Calibration of posteriors: ranks of the truth among draws, coverage, two-sample tests.

Draw $(\theta_i, x_i)$ from prior and simulator, and L draws from the learned posterior at
each $x_i$. If that posterior is exact, truth and draws are exchangeable: any quantity of the
truth has a rank among the same quantity of the draws that is uniform on {0, ..., L},

$$P(\text{rank} < k) = \frac{k}{L+1}, \qquad k = 1, \dots, L,$$

*exactly*, for every L. Three quantities make three checks: each parameter (`sbc_ranks`,
simulation-based calibration), the density (`hpd_ranks`, coverage by regions of highest density)
and the distance to a random point (`tarp_ranks`). `expected_coverage` compares any of them with
the line above. They fail for different faults: too narrow or too wide shows in all three, a
shift most clearly in `sbc_ranks`. A posterior that ignores x passes them all, unless the points of
`tarp_ranks` depend on x, as those of `linear_references` do. All average over observations;
`local_calibration` looks near one. Where draws of the exact posterior are known, `c2st` compares
with them.

Needs `pip install "edm-tutorial[sbi]"`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from .._checks import check_key, whole
from .._types import PRNGKey

FOLDS = 5  # of the classifier two-sample test


class Coverage(NamedTuple):
    """Coverage of nested regions, as `expected_coverage` gives it, with a band.

    Arguments:
        credibility: of nested regions, increasing, between 0 and 1.
        empirical: how often each region held the truth; one column a quantity.
        lower, upper: where `empirical` lies, at all levels at once, with probability `prob`
            if the posterior is exact.
    """

    credibility: Float[np.ndarray, " levels"]
    empirical: Float[np.ndarray, " levels *quantities"]
    lower: Float[np.ndarray, " levels"]
    upper: Float[np.ndarray, " levels"]

    def inside(self) -> Any:
        """Whether the coverage stays within the band, for each quantity."""
        values = np.moveaxis(self.empirical, 0, -1)
        return np.all((self.lower <= values) & (values <= self.upper), axis=-1)


def sbc_ranks(
    theta: Float[ArrayLike, "n d"], draws: Float[ArrayLike, "n L d"]
) -> Int[np.ndarray, "n d"]:
    """Ranks of each parameter: the number of the L draws that lie below the truth.

    Raises:
        ValueError: shapes that do not fit, no rows or draws, or an entry that is not finite.
    """
    truth, sample = _check(theta, draws)
    return np.sum(sample < truth[:, None], axis=1)


def hpd_ranks(
    log_prob: Float[ArrayLike, " n"], draws_log_prob: Float[ArrayLike, "n L"]
) -> Int[np.ndarray, " n"]:
    """Ranks of the density: the number of the L draws that are denser than the truth.

    The density is that of the learned posterior. `rank < k` says that the truth lies in the region
    of highest density of credibility k / (L + 1). A truth with log-density -inf lies in none.

    Raises:
        ValueError: shapes that do not fit, no rows or draws, a draw whose log-density is not
            finite, or a truth whose log-density is NaN or infinite.
    """
    truth, sample = np.asarray(log_prob, float), np.asarray(draws_log_prob, float)
    if truth.ndim != 1 or sample.ndim != 2 or len(truth) != len(sample) or not sample.size:
        raise ValueError(
            "log_prob and draws_log_prob need shapes (n,) and (n, L), got "
            f"{truth.shape} and {sample.shape}"
        )
    if not np.all(np.isfinite(sample)) or not np.all(truth < np.inf):
        raise ValueError("log_prob and draws_log_prob must be finite (log_prob may be -inf)")
    return np.sum(sample > truth[:, None], axis=1)


def tarp_ranks(
    theta: Float[ArrayLike, "n d"],
    draws: Float[ArrayLike, "n L d"],
    references: Float[ArrayLike, "n d"],
) -> Int[np.ndarray, " n"]:
    """Ranks of a distance: the number of the L draws closer to a reference point than the truth.

    Needs no density. The points may be anything that knows the truth only through x: draws from
    the prior will do, while those of `linear_references` also find a posterior that ignores x.
    It takes all functions of x to find all faults. Distances are in widths of the posterior: each
    difference over the standard deviation of the draws and the truth together, at that x.

    Raises:
        ValueError: shapes that do not fit, no rows or draws, or an entry that is not finite.
    """
    truth, sample = _check(theta, draws)
    points = np.asarray(references, float)
    if points.shape != truth.shape or not np.all(np.isfinite(points)):
        raise ValueError(
            f"references must be finite and shaped like theta, {truth.shape}, got {points.shape}"
        )
    _, width = _middle(truth, sample)
    far = np.sum(((truth - points) / width) ** 2, axis=1)
    near = np.sum(((sample - points[:, None]) / width[:, None]) ** 2, axis=2)
    return np.sum(near < far[:, None], axis=1)


def linear_references(
    theta: Float[ArrayLike, "n d"], x: Float[ArrayLike, " n *shape"]
) -> Float[np.ndarray, "n d"]:
    """Reference points for `tarp_ranks`: each truth, guessed from its x by a linear fit.

    Each is guessed by the fit to all other pairs, so that the point knows the truth only through x.
    The fit is a ridge regression on the k standardised numbers of x, with penalty k.

    Raises:
        ValueError: fewer than three pairs, unequal lengths, or an entry that is not finite.
    """
    truth, data = np.asarray(theta, float), np.asarray(x, float)
    fits = truth.ndim == 2 and data.ndim > 1 and len(truth) == len(data) > 2 and data.size
    if not (fits and np.all(np.isfinite(truth)) and np.all(np.isfinite(data))):
        raise ValueError(
            "theta and x must be finite, of shapes (n, d) and (n, ...) with n at least 3, got "
            f"{truth.shape} and {data.shape}"
        )
    rows = data.reshape(len(data), -1)
    spread = rows.std(axis=0)
    left, sizes, _ = np.linalg.svd(
        (rows - rows.mean(axis=0)) / np.where(spread > 0, spread, 1), full_matrices=False
    )
    kept = sizes**2 / (sizes**2 + rows.shape[1])
    mean = truth.mean(axis=0)
    fitted = mean + (left * kept) @ (left.T @ (truth - mean))
    own = (1 / len(truth) + left**2 @ kept)[:, None]  # the weight of a truth in its own fit
    return (fitted - own * truth) / (1 - own)


class LocalCalibration(NamedTuple):
    """Calibration near one observation, as `local_calibration` gives it.

    Arguments:
        p_value: of the largest score, among all of them.
        scores: standard normal for an exact posterior. One a parameter: positive where the truth
            lies above its draws. The last: positive where regions are too small, negative where
            they are too large.
    """

    p_value: float
    scores: Float[np.ndarray, " d+1"]


def local_calibration(
    theta: Float[ArrayLike, "n d"],
    draws: Float[ArrayLike, "n L d"],
    draws_o: Float[ArrayLike, "m d"],
    *,
    count: int = 100,
) -> LocalCalibration:
    """Whether a posterior is right near one observation, by simulations that resemble it.

    Of n new pairs (theta, x) those are taken whose draws lie nearest to `draws_o`, by their mean
    in widths. There each parameter of the truth is ranked among its draws, and so is its distance
    from their middle. A posterior of two parameters that is 20 % too narrow near x_o, and exact
    elsewhere, is found in seven cases of eight; a posterior predictive check sees nothing.

    From a wide prior few pairs are like x_o. Draw theta from the prior *inside a box* instead, four
    widths to either side of `draws_o`: posteriors in its middle are the same.

    Arguments:
        draws: of the posterior at each x.
        draws_o: of the posterior at x_o.
        count: how many of the pairs are taken.

    Raises:
        ValueError: shapes that do not fit, fewer than `count` pairs, a `count` below 10, or an
            entry that is not finite.
    """
    truth, sample = _check(theta, draws)
    here = np.asarray(draws_o, float)
    (n, size, d), count = sample.shape, whole("count", count, least=10)
    if here.ndim != 2 or here.shape[1] != d or not np.all(np.isfinite(here)) or n < count:
        raise ValueError(
            f"draws_o must be finite and of shape (m, {d}), got {here.shape}, with at least "
            f"count={count} pairs, got {n}"
        )
    middle, width = _middle(truth, sample)
    away = np.sum(((middle - here.mean(axis=0)) / here.std(axis=0)) ** 2, axis=1)
    near = np.argsort(away)[:count]
    squares = lambda rows: np.sum(((rows - middle[near, None]) / width[near, None]) ** 2, axis=2)
    outer = np.sum(squares(sample[near]) < squares(truth[near, None]), axis=1)
    ranks = np.column_stack([sbc_ranks(truth[near], sample[near]), outer])
    scores = (ranks.mean(axis=0) - size / 2) / np.sqrt(size * (size + 2) / 12 / count)
    p_value = (d + 1) * math.erfc(np.max(np.abs(scores)) / 2**0.5)  # that of one, Bonferroni
    return LocalCalibration(min(p_value, 1.0), scores)


def expected_coverage(
    ranks: Int[ArrayLike, " n *quantities"],
    draws: int,
    *,
    prob: float = 0.95,
    levels: int = 99,
    simulations: int = 1000,
    seed: int = 0,
) -> Coverage:
    """The share of truths in a region of each credibility, with a simultaneous band.

    The levels are those k / (L + 1) at which an exact posterior covers exactly, so that no
    number of draws is too small; there are at most L of them. The band, computed by
    `arviz_stats`, is about 1.5 / sqrt(n) to either side at its widest: n = 1,000 shows a
    fault of 5 %, n = 100 only one of 15 %. With several quantities each has its own band.

    Arguments:
        ranks: from `sbc_ranks`, `hpd_ranks` or `tarp_ranks`.
        draws: L, how many draws each rank was counted among.
        levels: how many credibilities to look at, evenly spread.
        simulations, seed: of the Monte Carlo search for the band's width.

    Raises:
        ValueError: no ranks, one that is not from 0 to `draws`, `prob` not between 0 and 1, or
            a count (`draws`, `levels`, `simulations`) below 1.
        TypeError: a count that is not a whole number.
    """
    # Here, since it needs NumPy 2; the ranks do not.
    from arviz_stats.ecdf_utils import get_pointwise_confidence_band, simulate_confidence_bands

    counts, draws, levels = np.asarray(ranks), whole("draws", draws), whole("levels", levels)
    simulations = whole("simulations", simulations)
    _check_coverage(counts, draws, prob)
    k = np.unique(np.round(np.linspace(1, draws, min(draws, levels))).astype(int))
    credibility = k / (draws + 1)
    below = counts[None] < k.reshape(-1, *[1] * counts.ndim)
    pointwise = simulate_confidence_bands(
        len(counts), 1, credibility, prob, simulations, np.random.default_rng(seed)
    )
    lower, upper = get_pointwise_confidence_band(pointwise, len(counts), credibility)
    return Coverage(credibility, np.mean(below, axis=1), lower, upper)


def c2st(
    reference: Float[ArrayLike, "n d"],
    samples: Float[ArrayLike, "m d"],
    *,
    seed: int = 1,
) -> float:
    """Classifier two-sample test: the accuracy of telling `reference` from `samples`.

    0.5 means that no difference is found, 1 that all rows can be told apart. The settings are
    those of the public benchmark `sbibm`, so that numbers compare: both samples are scaled by the
    mean and the standard deviation of the reference; a network with two hidden layers of 10 d
    units; the mean of five folds.

    A sample of the reference's own law scores 0.5, give or take 0.5 / sqrt(n + m). Use as many
    rows of each: the larger class alone is already an accuracy. Its power is that of the best
    classifier at most: a Gaussian in two dimensions that is 20 % too narrow scores 0.58, one
    that is 5 % too narrow 0.52, which takes 10,000 rows of each to tell from 0.5, and fewer
    rows look better than they are. On narrow or curved posteriors a classifier sometimes ends
    a fold at chance, so one score may be low: average over observations.

    Arguments:
        reference: draws of the truth, one a row.
        samples: draws to judge.
        seed: of the folds and of the classifier's weights.

    Raises:
        ValueError: not two tables with the same columns, fewer than five rows, an entry that is
            not finite, or a column of `reference` that is constant.
    """
    first, second = np.asarray(reference, float), np.asarray(samples, float)
    _check_tables(first, second)
    mean, std = first.mean(axis=0), first.std(axis=0, ddof=1)
    if not np.all(std > 0):
        columns = np.flatnonzero(std == 0).tolist()
        raise ValueError(f"reference is constant in columns {columns}: leave them out")
    # In float32, as there.
    rows = ((np.concatenate([first, second]) - mean) / std).astype(np.float32)
    labels = np.repeat([0, 1], [len(first), len(second)])
    width = 10 * rows.shape[1]
    classifier = MLPClassifier((width, width), max_iter=10_000, random_state=seed)
    split = KFold(FOLDS, shuffle=True, random_state=seed)
    with threadpool_limits(1, "blas"):  # its matrices are small: two threads take twice the CPU
        return float(np.mean(cross_val_score(classifier, rows, labels, cv=split)))


def posterior_predictive(
    key: PRNGKey,
    draws: Float[ArrayLike, "n d"],
    simulate: Callable[[PRNGKey, Any], Any],
) -> Float[Array | np.ndarray, " n *data"]:
    """New data for each posterior draw: what the model says will be observed next.

    If the observation looks unlike all of them, model or posterior are wrong.

    Arguments:
        simulate: called as `simulate(key, theta)` for one `theta`. In JAX, all are simulated at
            once, twice over: where the two answers differ, NumPy's random numbers are inside. One
            with these, in NumPy or in another language is called once a draw, with a NumPy `theta`;
            for its own random numbers it may ignore the key, or seed
            `np.random.default_rng(int(jax.random.bits(key)))`.

    Raises:
        ValueError: no draws.
        TypeError: `key` is no random key.
    """
    check_key("key", key)
    rows = np.asarray(draws)
    if len(rows) < 1:
        raise ValueError("draws is empty: sample the posterior first")
    keys = jr.split(key, len(rows))
    try:
        at_once, again = (jax.vmap(simulate)(jr.clone(keys), jnp.asarray(rows)) for _ in range(2))
        # NumPy's random numbers inside are the same for all draws, and others at each call.
        if np.array_equal(at_once, again, equal_nan=True):
            return at_once
    except Exception:  # whatever a simulator that is not JAX's raises; in the loop it raises again
        pass
    return np.stack([simulate(key, row.copy()) for key, row in zip(keys, rows, strict=True)])


def _middle(truth: np.ndarray, sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread of draws and truth together, which are alike if the posterior is exact."""
    together = np.concatenate([truth[:, None], sample], axis=1)
    width = together.std(axis=1)
    return together.mean(axis=1), np.where(width > 0, width, 1)


def _check(theta: Any, draws: Any) -> tuple[np.ndarray, np.ndarray]:
    truth, sample = np.asarray(theta, float), np.asarray(draws, float)
    fits = truth.ndim == 2 and sample.ndim == 3 and (len(sample), sample.shape[2]) == truth.shape
    if not (fits and sample.size):
        raise ValueError(
            "theta and draws need shapes (n, d) and (n, L, d), got "
            f"{truth.shape} and {sample.shape}"
        )
    if not (np.all(np.isfinite(truth)) and np.all(np.isfinite(sample))):
        raise ValueError("theta and draws must be finite")
    return truth, sample


def _check_coverage(ranks: np.ndarray, draws: int, prob: float) -> None:
    if not 0 < prob < 1:
        raise ValueError(f"prob must lie between 0 and 1, got {prob}")
    integer = np.issubdtype(ranks.dtype, np.integer)
    if not (integer and ranks.ndim and ranks.size and ranks.min() >= 0 and ranks.max() <= draws):
        raise ValueError(
            f"ranks must be whole numbers from 0 to draws = {draws}, at least one, got "
            f"{ranks.dtype} of shape {ranks.shape}"
        )


def _check_tables(first: np.ndarray, second: np.ndarray) -> None:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(
            "reference and samples must be tables with the same columns, got shapes "
            f"{first.shape} and {second.shape}"
        )
    if min(len(first), len(second)) < FOLDS:
        raise ValueError(
            f"need at least {FOLDS} rows of each sample, got {len(first)} and {len(second)}"
        )
    for name, rows in (("reference", first), ("samples", second)):
        if not np.all(np.isfinite(rows)):
            raise ValueError(f"{name} must be finite: remove the rows that are not")
