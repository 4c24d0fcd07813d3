"""Simulations as a user brings them: looked at whole, once, before anything is fitted.

What is wrong is refused by name and row. What is likely to be wrong is a `FitWarning`, from
`surprise`.
"""

import functools
import math
import zlib
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._checks import concrete
from .._types import PRNGKey, on_host
from .surprise import (
    DroppedSimulations,
    DuplicatedSimulations,
    discrete,
    look_at_dependence,
    look_at_order,
    look_at_scales,
    look_at_values,
    warn,
)
from .transforms.bounds import Bounds
from .transforms.standardize import float_dtype, refuse_columns

FEWEST = 50  # simulations
FEWEST_HELD_OUT, MOST_HELD_OUT = 100, 10_000
FEWEST_JUDGES = 5  # simulations on either side of the split
REPEATED = 0.1  # of the distinct parameters, that occur again: no chance of float32
DIGITS = 1e-3  # of a width, that float32 must resolve


class Simulations(NamedTuple):
    """Checked simulations: pairs of parameters and observations.

    Arguments:
        theta: parameters less `theta_offset`.
        x: observations less `x_offset`.
        bounds: of the parameters, less the offset.
        group: which rows are the same simulation, or simulations of the same parameters.
        theta_offset, x_offset: what the working dtype could not hold beside the spread, one
            number a column (of structured x, one in all); empty where it can.
    """

    theta: Float[np.ndarray, "n d"]
    x: Float[np.ndarray, " n *shape"]
    bounds: Bounds
    group: Int[np.ndarray, " n"]
    theta_offset: tuple[float, ...]
    x_offset: tuple[float, ...]

    def fingerprint(self, kept: Int[np.ndarray, " k"]) -> int:
        """A number that other simulations, bounds or rows to train on hardly ever share."""
        parts = self.theta, self.x, self.bounds.low, self.bounds.high, kept
        raw = (np.ascontiguousarray(part).view(np.uint8).data for part in parts)
        return functools.reduce(lambda crc, data: zlib.crc32(data, crc), raw, 0)

    def split(self, key: PRNGKey) -> tuple[np.ndarray, np.ndarray]:
        """The rows to train on, and those to hold out: a tenth, within limits.

        Rows of one group are on one side. Those without which a column would be constant in
        training, as a count that is hardly ever above zero, are trained on.

        Raises:
            ValueError: hardly a row is left on one side.
        """
        count = len(self.theta)
        held = min(max(count // 10, FEWEST_HELD_OUT), count // 4, MOST_HELD_OUT)
        groups = int(self.group.max()) + 1
        rank = on_host(key).permutation(groups)[self.group]
        order = np.argsort(rank, kind="stable")
        while 0 < held < count and rank[order[held - 1]] == rank[order[held]]:
            held += 1
        kept, held = order[held:], order[:held]
        numbers = self.theta if self.x.ndim > 2 else np.column_stack([self.theta, self.x])
        trained, judged = numbers[kept], numbers[held]
        usual = np.fmax.reduce(trained)  # of what is not missing
        constant = usual == np.fmin.reduce(trained)
        odd = constant & (judged != usual) & ~np.isnan(judged)
        rare = odd.any(axis=1)
        kept, held = np.append(kept, held[rare]), held[~rare]
        if min(len(kept), len(held)) < FEWEST_JUDGES:
            raise ValueError(self._unsplit(groups, np.flatnonzero(odd.any(axis=0))))
        return kept, held

    def _unsplit(self, groups: int, columns: Int[np.ndarray, " c"]) -> str:
        """Why hardly a row is left on one side of the split."""
        if groups < 2 * FEWEST_JUDGES or not len(columns):
            return (
                f"only {groups} distinct simulations among {len(self.theta)}: too few to train on "
                "some and hold out others"
            )
        size = self.theta.shape[1]
        in_theta, in_x = columns[columns < size], columns[columns >= size] - size
        parts = {"theta": in_theta.tolist(), "x": in_x.tolist()}
        named = " and ".join(f"{name} in columns {part}" for name, part in parts.items() if part)
        return f"{named} is constant but for a row or a few: leave these columns out"


def checked(
    theta: Any,
    x: Any,
    prior_support: Any,
    *,
    structured: bool,
    invalid: str,
    missing: bool = False,
) -> Simulations:
    """The simulations of a user, checked, less what the working dtype cannot hold.

    Arguments:
        structured: x may have any shape.
        invalid: "raise" refuses rows that are not finite, "drop" leaves them out with a warning.
        missing: a NaN in x is a missing number, unless a row has no other.

    Raises:
        ValueError: as `fit_posterior`.
    """
    if invalid not in ("raise", "drop"):
        raise ValueError(f'invalid must be "raise" or "drop", got {invalid!r}')
    theta, x = _arrays(theta, x, structured)
    theta, x = _finite(theta, x, drop=invalid == "drop", missing=missing)
    absent = np.isnan(x)
    x = _filled(x, absent) if missing else x
    if len(theta) < FEWEST:
        raise ValueError(f"need at least {FEWEST} simulations, got {len(theta)}")
    refuse_columns("theta", "constant", (theta == theta[:1]).all(axis=0))
    if not structured:
        refuse_columns("x", "constant", (x == x[:1]).all(axis=0))
        look_at_scales("x", x)
    look_at_scales("theta", theta)
    look_at_values(theta)
    look_at_dependence(theta)
    look_at_order(prior_support, theta)
    offsets = _offset(theta, axis=0), _offset(x, axis=None if structured else 0)
    small = [
        _narrowed(name, rows - offset, float_dtype(rows))
        for name, rows, offset in zip(("theta", "x"), (theta, x), offsets, strict=True)
    ]
    bounds = Bounds.of(prior_support, theta, offsets[0])
    theta, x = _off_the_bound(small[0], bounds), np.where(absent, np.nan, small[1])
    theta_offset, x_offset = (tuple(o.tolist()) if o.any() else () for o in offsets)
    return Simulations(
        theta,
        x,
        bounds,
        group=_groups(theta, x),
        theta_offset=theta_offset,
        x_offset=x_offset,
    )


def _arrays(theta: Any, x: Any, structured: bool) -> tuple[np.ndarray, np.ndarray]:
    """theta and x as floating arrays of matching shapes, on the host."""
    # What is masked is missing, and refused as such.
    theta, x = (np.asarray(a.filled(np.nan) if np.ma.isMA(a) else a) for a in (theta, x))
    for name, array in (("theta", theta), ("x", x)):
        if not np.issubdtype(array.dtype, np.floating) and array.dtype.name != "bfloat16":
            hint = ": convert it with .astype(float)" if array.dtype.kind != "c" else ""
            raise ValueError(f"{name} must be a floating-point array, got {array.dtype}{hint}")
    if theta.ndim != 2 or x.ndim < 1 or len(theta) != len(x):
        raise ValueError(
            "theta must have shape (n, d) and x one entry for each of its rows, got "
            f"{theta.shape} and {x.shape}"
        )
    if x.ndim != 2 and not structured:
        raise ValueError(
            f"x must have shape (n, k), got {x.shape}: pass embedding= for structured x"
        )
    known = lambda array: np.dtype(f"f{min(max(array.dtype.itemsize, 4), 8)}")
    return theta.astype(known(theta)), x.astype(known(x))


def _finite(
    theta: np.ndarray, x: np.ndarray, *, drop: bool, missing: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The rows that are finite; others are refused, or left out with a warning."""
    flat = x.reshape(len(x), -1)
    bad = {"theta": ~np.isfinite(theta).all(axis=1), "x": ~np.isfinite(flat).all(axis=1)}
    if missing:
        bad["x"] = np.isinf(flat).any(axis=1) | np.isnan(flat).all(axis=1)
    if not (bad["theta"].any() or bad["x"].any()):
        return theta, x
    told = " and ".join(
        f"{name} is not finite in {rows.sum()} of {len(theta)} simulations (first in row "
        f"{int(np.argmax(rows))})"
        for name, rows in bad.items()
        if rows.any()
    )
    if not drop:
        raise ValueError(
            f'{told}. If these simulations failed, invalid="drop" leaves them out: the posterior '
            "is then conditioned on success. If entries of x are missing, write 0 for them and add "
            "a column (with embedding=, a channel) that is 1 where an entry is present and 0 where "
            "it is missing"
        )
    warn(
        DroppedSimulations,
        f"{told}: they are dropped, so the prior becomes that of the simulations that succeed, and "
        "the posterior is conditioned on success",
    )
    good = ~(bad["theta"] | bad["x"])
    return theta[good], x[good]


def _filled(x: np.ndarray, absent: np.ndarray) -> np.ndarray:
    """The mean of its column where a number is missing, so that the others can be looked at."""
    refuse_columns("x", "missing throughout", absent.all(axis=0))
    return np.where(absent, np.nanmean(x, axis=0, dtype=float), x).astype(x.dtype)


def check_observed(x_o: Any) -> None:
    """Refuse an observation with a NaN, an infinite or a masked number, where one can look."""
    values = np.ma.filled(np.asanyarray(x_o, float), np.nan) if concrete(x_o) else 0
    if not np.all(np.isfinite(values)):
        raise ValueError(f"x_o must be finite, got {x_o}")


def less_offset(name: str, value: Any, offset: tuple[float, ...], dtype: Any) -> Array:
    """An array less its offset, subtracted in float64, in the working dtype.

    Raises:
        ValueError: traced or in less than float64 where there is an offset, or too large.
    """
    if not concrete(value):
        if not offset:
            return value.astype(dtype)
        raise ValueError(
            f"{name} has an offset that {dtype} cannot hold, {offset}: call outside of jit, grad "
            "and vmap, or fit the posterior with that offset subtracted"
        )
    if offset and getattr(value, "dtype", np.dtype(float)).itemsize < 8:
        raise ValueError(
            f"{name} has an offset that {value.dtype} cannot hold, {offset}: pass it as a float64 "
            "array of NumPy"
        )
    less = np.asarray(value, float) - np.asarray(offset or 0.0)
    if np.any(np.abs(less[np.isfinite(less)]) > float(np.finfo(dtype).max)):
        raise ValueError(f"{name} is too large for {dtype}, in which this posterior computes")
    return jnp.asarray(less, dtype)


def with_offset(value: Array, offset: tuple[float, ...]) -> Any:
    """The array with its offset, in float64 where there is one."""
    return np.asarray(value, float) + np.asarray(offset) if offset else value


def _offset(rows: np.ndarray, axis: int | None) -> np.ndarray:
    """The mean of each column that the working dtype cannot hold to `DIGITS` of its spread."""
    mean, std = (np.atleast_1d(f(axis=axis, dtype=float)) for f in (rows.mean, rows.std))
    eps = np.finfo(float_dtype(rows)).eps
    needed = np.abs(mean) * eps > DIGITS * std
    return np.where(needed, mean.astype(rows.dtype).astype(float), 0.0)


def _narrowed(name: str, rows: np.ndarray, dtype: Any) -> np.ndarray:
    """The rows in the working dtype; refused where it cannot hold them."""
    info = np.finfo(dtype)
    spread, largest = rows.std(dtype=float, axis=0), np.abs(rows).max(axis=0)
    # What does not vary at all loses nothing: a mask, the border of an image.
    lost = ((0 < spread) & (spread < 1e3 * float(info.tiny))) | (largest > 1e-3 * float(info.max))
    if lost.any():
        raise ValueError(
            f"{name} is too large or varies too little for {dtype} in columns "
            f"{np.flatnonzero(lost).tolist()}: choose other units"
        )
    return rows.astype(dtype)


def _off_the_bound(theta: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Parameters, those on an only bound moved inside, as far as the nearest that is not on it.

    With one bound, the map of `Bounds` is the logarithm of the distance from it: a row on the bound
    would be so far out that the mean and the standard deviation would describe that row alone.
    """
    low, high = np.asarray(bounds.low), np.asarray(bounds.high)
    for column in np.flatnonzero(np.isfinite(low) ^ np.isfinite(high)):
        values = theta[:, column]
        bound = low[column] if np.isfinite(low[column]) else high[column]
        off = values[values != bound]
        nearest = off[np.argmin(np.abs(off - bound))]
        theta[:, column] = np.where(values == bound, nearest, values)
    return theta


def _groups(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A number for each row, the same for rows that are the same simulation.

    Where parameters are simulated several times, it is the same for rows of the same parameters.
    """
    group = _numbered(np.concatenate([theta, x.reshape(len(x), -1).astype(theta.dtype)], axis=1))
    distinct = int(group.max()) + 1
    if distinct < len(theta):
        warn(
            DuplicatedSimulations,
            f"only {distinct} of {len(theta)} simulations are distinct. Equal rows are kept on one "
            "side of the split between training and validation; they add no information",
        )
    by_theta = _numbered(theta)
    times = np.bincount(by_theta)
    # What takes few values is no parameter simulated several times: each value is trained on.
    if np.mean(times > 1) <= REPEATED or discrete(theta).all():
        return group
    if len(times) < min(distinct, len(theta) / 2):
        warn(
            DuplicatedSimulations,
            f"only {len(times)} distinct parameters for {len(theta)} simulations. Those of one "
            "theta are kept on one side of the split between training and validation; of the "
            "prior the fit sees no more than these: draw parameters anew for each simulation",
        )
    return by_theta


def _numbered(rows: np.ndarray) -> np.ndarray:
    """The number of each row among the distinct ones, in the order of first appearance."""
    key = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1])))
    _, group = np.unique(key.ravel(), return_inverse=True)
    # So that distinct rows are numbered 0, 1, 2, ...
    first = np.full(int(group.max()) + 1, math.inf)
    np.minimum.at(first, group, np.arange(len(rows)))
    return np.argsort(np.argsort(first))[group]
