r"""Exponential moving averages (EMA) of the weights, and their post-hoc reconstruction.

One samples with an average of the weights over training, not with the last ones. After every
step, $\theta_{ema} \leftarrow \theta + \beta(\theta_{ema}-\theta)$. With `HalfLifeEMA` the
weight of the past halves after a number of examples; with `PowerEMA` the average looks back over
a fixed fraction of the training so far. Both forget the initial weights: $\beta = 0$ in the
first step.

How far back to look need not be decided before training. Keep snapshots of two power averages
on the way, and `reconstruct` computes any other (EDM2, section 3). The average of
`PowerEMA(gamma)` after step $t$ gives the weights after step $k \le t$ the share
$p_{\gamma,t}(k) = (k^{\gamma+1} - (k-1)^{\gamma+1})/t^{\gamma+1}$. A weighted sum of snapshots
has the same weighted sum of shares, so we choose the $x_i$, of sum 1, that minimise

$$\sum_k \Big(p_{\gamma,t}(k) - \sum_i x_i\, p_{\gamma_i,t_i}(k)\Big)^2.$$

EDM2 has integrals in place of the sums over $k$. The sums make the answer exact wherever the
snapshots span the wanted average.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_number, check_positive
from .._types import Scalar, as_float

Model = TypeVar("Model")
BLOCK = 4096  # steps in one array, so that the memory does not grow with the training


class AbstractEMA(eqx.Module):
    r"""A rule for $\beta$, the share of the old average in the new one."""

    @abstractmethod
    def decay(self, seen: Scalar, batch_size: Scalar) -> Float[Array, ""]:
        """beta of a step on `batch_size` examples, with `seen` examples before it."""

    def update(self, average: Model, model: Model, seen: Scalar, batch_size: Scalar) -> Model:
        """The average after one more step, where `model` holds the weights after that step.

        Floating arrays are averaged, everything else is taken from `model`.
        """
        beta = self.decay(seen, batch_size)
        params, static = eqx.partition(model, eqx.is_inexact_array)
        old = eqx.filter(average, eqx.is_inexact_array)
        mix = lambda new, old: new + beta.astype(new.dtype) * (old - new)
        return eqx.combine(jax.tree.map(mix, params, old), static)


# How weights are averaged: by one rule, by several at once, or not at all.
Averaging = AbstractEMA | tuple[AbstractEMA, ...] | None


@final
class HalfLifeEMA(AbstractEMA):
    r"""Average with a half-life counted in examples (App. F.2), shorter early in training.

    $\beta = 2^{-B/h}$ for a batch of $B$ examples, with
    $h = \min(h_0,\ r \cdot \text{examples seen})$.

    Arguments:
        half_life: h_0 in examples. After so many the weight of the past has halved.
        rampup_ratio: r, or None for a constant half-life, which remembers the initial weights.

    Raises: ValueError for a half-life or ratio that is not positive.
    """

    half_life: float = 500_000.0
    rampup_ratio: float | None = 0.05

    def __check_init__(self):
        check_positive("half_life", self.half_life)
        if self.rampup_ratio is not None:
            check_positive("rampup_ratio", self.rampup_ratio)

    def decay(self, seen: Scalar, batch_size: Scalar) -> Float[Array, ""]:
        seen = _examples(seen, batch_size)
        half_life = jnp.full_like(seen, self.half_life)
        if self.rampup_ratio is not None:
            half_life = jnp.minimum(half_life, seen * self.rampup_ratio)
        # A half-life of zero means beta = 0; the floor avoids 0/0 and nothing else.
        return 0.5 ** (as_float(batch_size, seen) / jnp.maximum(half_life, 1e-8))


@final
class PowerEMA(AbstractEMA):
    r"""Average whose profile is a power of time (EDM2, Karras et al., 2024).

    $\beta(t) = (1 - 1/t)^{\gamma+1}$ in step $t$, for every length of the training: a longer run
    needs no other `gamma`. 0 is the plain mean of all steps; the larger it is, the less far back
    the average looks.

    Raises: ValueError for a negative or infinite power.
    """

    gamma: float

    def __check_init__(self):
        check_number("gamma", self.gamma, zero=True)

    @classmethod
    def from_sigma_rel(cls, sigma_rel: float) -> "PowerEMA":
        r"""The rule whose profile has standard deviation `sigma_rel`, in units of the training.

        $\sigma_{rel}^2 = (\gamma+1)$ $(\gamma+2)^{-2}\,(\gamma+3)^{-1}$ is solved for $\gamma$.
        EDM2 keeps the averages of 0.05 and 0.10 for a reconstruction.

        Raises: ValueError for `sigma_rel` outside (0, 1/sqrt(12)], the width of the plain mean.
        """
        if not 0 < sigma_rel <= 12**-0.5 + 1e-12:
            raise ValueError(f"need 0 < sigma_rel <= 0.2887, got {sigma_rel}")
        t = float(sigma_rel) ** -2.0
        gamma = float(np.roots([1.0, 7.0, 16.0 - t, 12.0 - t]).real.max())
        return cls(max(gamma, 0.0))  # 0 up to rounding, for the plain mean

    @property
    def sigma_rel(self) -> float:
        r"""The standard deviation $\sigma_{rel}$ of the profile, in units of the training."""
        return ((self.gamma + 1) / (self.gamma + 3)) ** 0.5 / (self.gamma + 2)

    def decay(self, seen: Scalar, batch_size: Scalar) -> Float[Array, ""]:
        seen = _examples(seen, batch_size)
        before = seen / (seen + as_float(batch_size, seen))  # 1 - 1/t
        return before ** (self.gamma + 1)


def _examples(seen: Scalar, batch_size: Scalar) -> Float[Array, ""]:
    check_number("seen", seen, zero=True)
    check_number("batch_size", batch_size)
    return as_float(seen)


class Snapshot(NamedTuple):
    """A power average `model` of the weights after `step` steps of one batch size, by `ema`."""

    ema: PowerEMA
    step: int
    model: Any


def reconstruct(snapshots: Sequence[Snapshot], ema: PowerEMA, step: int | None = None) -> Any:
    """Post-hoc reconstruction of the average of another rule (EDM2, section 3).

        rules = (PowerEMA.from_sigma_rel(0.05), PowerEMA.from_sigma_rel(0.10))
        for state, losses in train(..., ema=rules):
            kept += map(Snapshot, rules, 2 * [int(state.step)], state.ema)
        average = reconstruct(kept, PowerEMA.from_sigma_rel(0.13))

    Arguments:
        snapshots: averages of one training, by two rules and at several steps.
        ema, step: the rule whose average is wanted, and after which step; None is that of the
            last snapshot.

    Raises: ValueError as `reconstruction_weights`.
    """
    weights = reconstruction_weights(snapshots, ema, step)
    models = [snapshot.model for snapshot in snapshots]
    params = [eqx.filter(model, eqx.is_inexact_array) for model in models]

    def add(*leaves: Any) -> Any:  # in float64, because the x_i may be large and alternate
        total = sum(w * np.asarray(leaf, float) for w, leaf in zip(weights, leaves, strict=True))
        return jnp.asarray(total, leaves[0].dtype)

    last = max(range(len(models)), key=lambda i: snapshots[i].step)
    static = eqx.filter(models[last], eqx.is_inexact_array, inverse=True)
    return eqx.combine(jax.tree.map(add, *params), static)


def reconstruction_weights(
    snapshots: Sequence[Snapshot], ema: PowerEMA, step: int | None = None
) -> Float[np.ndarray, " snapshots"]:
    """Weights of the snapshots in a reconstruction: the x_i, of sum 1.

    Raises: ValueError without snapshots, for one with a step below 1, or for a `step` that is below
    1 or that no snapshot has reached.
    """
    steps = [int(snapshot.step) for snapshot in snapshots]
    if not steps or min(steps) < 1:
        raise ValueError(f"need snapshots, each of step 1 or later, got the steps {steps}")
    step = max(steps) if step is None else step
    if not 1 <= step <= max(steps):
        reached = f"one that the snapshots reached, 1 to {max(steps)}"
        raise ValueError(f"step must be {reached}; got {step}")
    gammas = [snapshot.ema.gamma for snapshot in snapshots]
    columns = list(zip([*gammas, ema.gamma], [*steps, step], strict=True))
    # The weight of the last snapshot is 1 minus the others. QR by blocks solves the least
    # squares exactly; the normal equations would square their condition number.
    triangle: Any = np.zeros((0, len(columns)))
    for start in range(0, max(steps), BLOCK):
        k = np.arange(start + 1, min(start + BLOCK, max(steps)) + 1)
        shares = np.stack([_shares(gamma, t, k) for gamma, t in columns], axis=1)
        block = np.concatenate([triangle, shares - shares[:, -2:-1]])
        triangle = np.linalg.qr(block, mode="r")
    x = np.linalg.lstsq(triangle[:, :-2], triangle[:, -1], rcond=None)[0]
    return np.append(x, 1 - x.sum())


def _shares(gamma: float, t: int, k: np.ndarray) -> np.ndarray:
    """p_{gamma,t}(k), with 1 - (1 - 1/k)^(gamma+1) free of cancellation."""
    with np.errstate(divide="ignore"):  # log 0 at k = 1, where the share is 1/t^(gamma+1)
        new = -np.expm1((gamma + 1) * np.log1p(-1 / k))
    return np.where(k <= t, new * (k / t) ** (gamma + 1), 0.0)
