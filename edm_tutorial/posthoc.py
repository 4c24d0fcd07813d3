r"""An average of any length, after training, from averages of two lengths kept on the way.

The average of `PowerEMA(gamma)` after step $t$ gives the weights after step $k \le t$ the share
$p_{\gamma,t}(k) = (k^{\gamma+1} - (k-1)^{\gamma+1})/t^{\gamma+1}$. A sum of stored averages is
an average with the sum of their shares, so we choose the $x_i$, of sum 1, that minimise

$$\sum_k \Big(p_{\gamma,t}(k) - \sum_i x_i\, p_{\gamma_i,t_i}(k)\Big)^2$$

(EDM2, Karras et al., 2024, there with integrals in place of the sums). Every step is in the
sums, so the answer is exact wherever the stored averages allow it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from edm_tutorial.ema import PowerEMA

BLOCK = 4096  # steps at a time, so that a long training needs no long arrays


class Snapshot(NamedTuple):
    """An average kept on the way.

    Arguments:
        ema: the rule it was made by.
        step: how many steps it has seen, all of one batch size.
        model: the average.
    """

    ema: PowerEMA
    step: int
    model: Any


def reconstruct(snapshots: Sequence[Snapshot], ema: PowerEMA, step: int | None = None) -> Any:
    """The average that `ema` would have kept, had it been asked for before training.

        rules = (PowerEMA.from_sigma_rel(0.05), PowerEMA.from_sigma_rel(0.10))
        for state, losses in train(..., ema=rules):
            kept += map(Snapshot, rules, 2 * [int(state.step)], state.ema)
        average = reconstruct(kept, PowerEMA.from_sigma_rel(0.13))

    Arguments:
        snapshots: averages of the same training, of two lengths and at several steps.
        ema: the length that is wanted.
        step: when; None is the step of the last snapshot.

    Raises:
        ValueError: as `reconstruction_weights`.
    """
    weights = reconstruction_weights(snapshots, ema, step)
    models = [snapshot.model for snapshot in snapshots]
    params = [eqx.filter(model, eqx.is_inexact_array) for model in models]

    def add(*leaves: Any) -> Any:  # in float64: the weights may be large and alternate
        total = sum(w * np.asarray(leaf, float) for w, leaf in zip(weights, leaves, strict=True))
        return jnp.asarray(total, leaves[0].dtype)

    last = max(range(len(models)), key=lambda i: snapshots[i].step)
    static = eqx.filter(models[last], eqx.is_inexact_array, inverse=True)
    return eqx.combine(jax.tree.map(add, *params), static)


def reconstruction_weights(
    snapshots: Sequence[Snapshot], ema: PowerEMA, step: int | None = None
) -> Float[np.ndarray, " snapshots"]:
    """What each snapshot counts in the reconstruction: the x_i, of sum 1.

    Raises:
        ValueError: no snapshot, one with a step below 1, or a `step` that is below 1 or
            that no snapshot has reached.
    """
    steps = [int(snapshot.step) for snapshot in snapshots]
    if not steps or min(steps) < 1:
        raise ValueError(f"need snapshots, each of step 1 or later, got the steps {steps}")
    step = max(steps) if step is None else step
    if not 1 <= step <= max(steps):
        raise ValueError(
            f"step must be one that the snapshots reached, 1 to {max(steps)}; got {step}"
        )
    gammas = [snapshot.ema.gamma for snapshot in snapshots]
    columns = list(zip([*gammas, ema.gamma], [*steps, step], strict=True))
    # The last snapshot takes what is missing to 1. QR by blocks leaves the least squares as
    # they are, where sums of products would square their condition number.
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
