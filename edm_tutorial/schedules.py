r"""Schedules: the noise level and the scaling of the data as functions of time $t$.

At time $t$ the sampler holds $x = s(t)\,(y + \sigma(t)\,\epsilon)$ with $y$ the data and
$\epsilon$ unit noise (Table 1, rows "Schedule" and "Scaling"). A schedule is the pair
$\sigma(t), s(t)$; it belongs to the sampler, never to a trained denoiser. Derivatives are
taken by `jax.jvp` where they are needed, so a schedule of your own needs three methods
and no calculus.
"""

from abc import abstractmethod
from typing import ClassVar, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ._checks import check_kind, check_positive, check_range, concrete
from ._types import Scalar, as_float


class AbstractSchedule(eqx.Module):
    """Noise level `sigma(t)`, its inverse `time(sigma)`, and scaling `scale(t)`.

    `sigma` rises from 0 at t = 0. Times, noise levels (data units) and scales are
    scalars; each method follows the dtype of its argument. A class may say in `formula` what
    sigma(t) and s(t) are, for a printed design, with `{sigma}` and `{scale}` for those of the
    `schedule` that it wraps.
    """

    @abstractmethod
    def sigma(self, t: Scalar) -> Float[Array, ""]:
        """Noise level at time `t`, in data units."""

    @abstractmethod
    def time(self, sigma: Scalar) -> Float[Array, ""]:
        """The time at which the noise level is `sigma`: the inverse of `sigma(t)`."""

    @abstractmethod
    def scale(self, t: Scalar) -> Float[Array, ""]:
        """The factor s(t) by which the noisy data are multiplied at time `t`."""


@final
class Linear(AbstractSchedule):
    r"""EDM's own: $\sigma(t) = t$ and $s(t) = 1$ (Table 1, column "Ours")."""

    formula: ClassVar = ("t", "1")

    def sigma(self, t: Scalar) -> Float[Array, ""]:
        return as_float(t)

    def time(self, sigma: Scalar) -> Float[Array, ""]:
        return as_float(sigma)

    def scale(self, t: Scalar) -> Float[Array, ""]:
        return jnp.ones_like(as_float(t))


@final
class VarianceExploding(AbstractSchedule):
    r"""$\sigma(t) = \sqrt t$ and $s(t) = 1$ (Table 1, column "VE")."""

    formula: ClassVar = ("sqrt(t)", "1")

    def sigma(self, t: Scalar) -> Float[Array, ""]:
        return jnp.sqrt(as_float(t))

    def time(self, sigma: Scalar) -> Float[Array, ""]:
        return as_float(sigma) ** 2

    def scale(self, t: Scalar) -> Float[Array, ""]:
        return jnp.ones_like(as_float(t))


@final
class VariancePreserving(AbstractSchedule):
    r"""$\sigma(t)^2 = e^{\beta_d t^2/2 + \beta_{min} t} - 1$, $s = 1/\sqrt{1+\sigma^2}$.

    Table 1, column "VP". With `expm1` and `log1p` it keeps its digits near t = 0 in float32.

    Arguments:
        beta_d, beta_min: the noise rate at time t is beta_min + beta_d t. `from_range`
            may find a small negative beta_min; then sigma(t) is defined at t = 0 and
            from t = -2 beta_min / beta_d on, where all its noise levels lie.

    Raises: ValueError unless the noise level at t = 1 is positive, finite and rising.
    """

    beta_d: float = 19.9
    beta_min: float = 0.1
    formula: ClassVar = ("sqrt(exp(beta_d t^2/2 + beta_min t) - 1)", "1/sqrt(sigma^2 + 1)")

    def __check_init__(self):
        beta_d, beta_min = self.beta_d, self.beta_min
        check_positive("the noise rate at t = 1, beta_min + beta_d,", beta_min + beta_d)
        check_positive("beta_min + beta_d / 2", beta_min + beta_d / 2)

    @classmethod
    def from_range(
        cls, sigma_min: float, sigma_max: float, eps: float = 1e-3
    ) -> "VariancePreserving":
        r"""The schedule with $\sigma(\epsilon) =$ `sigma_min` and $\sigma(1) =$ `sigma_max`.

        Raises: ValueError unless 0 < sigma_min < sigma_max and 0 < eps < 1, or if no rising
        schedule passes through both points.
        """
        check_range(sigma_min, sigma_max)
        if not 0 < eps < 1:
            raise ValueError(f"need 0 < eps < 1, got eps={eps}")
        # Two linear equations: ln(1 + sigma^2) = beta_d t^2/2 + beta_min t at t = eps and t = 1.
        low, high = np.log1p(sigma_min**2), np.log1p(sigma_max**2)
        beta_d = 2 * (low / eps - high) / (eps - 1)
        beta_min = high - beta_d / 2
        if not beta_min + beta_d > 0:  # it rises from `low` > 0; does it to the end?
            raise ValueError(
                f"no variance-preserving schedule has sigma({eps}) = {sigma_min} and "
                f"sigma(1) = {sigma_max}: choose another eps"
            )
        return cls(float(beta_d), float(beta_min))

    def _log_scale(self, t: Array) -> Array:
        return t * (self.beta_d * t / 2 + self.beta_min)

    def sigma(self, t: Scalar) -> Float[Array, ""]:
        return jnp.sqrt(jnp.expm1(self._log_scale(as_float(t))))

    def time(self, sigma: Scalar) -> Float[Array, ""]:
        level = 2 * jnp.log1p(as_float(sigma) ** 2)
        root = jnp.sqrt(self.beta_min**2 + self.beta_d * level)
        return level / (root + self.beta_min)  # no difference of nearly equal roots

    def scale(self, t: Scalar) -> Float[Array, ""]:
        return jnp.exp(-self._log_scale(as_float(t)) / 2)


class AbstractWrapper(AbstractSchedule):
    """A schedule with the noise levels of another one, which it holds as `schedule`.

    Raises: TypeError if `schedule` is not one.
    """

    schedule: AbstractSchedule

    def __check_init__(self):
        check_kind("schedule", self.schedule, AbstractSchedule)

    def sigma(self, t: Scalar) -> Float[Array, ""]:
        return self.schedule.sigma(t)


@final
class VarianceScaled(AbstractWrapper):
    r"""Any schedule with the scaling $s = 1/\sqrt{1+\sigma^2}$ of the VP column."""

    formula: ClassVar = ("{sigma}", "1/sqrt(sigma^2 + 1)")

    def time(self, sigma: Scalar) -> Float[Array, ""]:
        return self.schedule.time(sigma)

    def scale(self, t: Scalar) -> Float[Array, ""]:
        return (1 + self.schedule.sigma(t) ** 2) ** -0.5


@final
class Unscaled(AbstractWrapper):
    """Any schedule with its scaling taken away: s = 1."""

    formula: ClassVar = ("{sigma}", "1")

    def time(self, sigma: Scalar) -> Float[Array, ""]:
        return self.schedule.time(sigma)

    def scale(self, t: Scalar) -> Float[Array, ""]:
        return jnp.ones_like(as_float(t))


@final
class Rounded(AbstractWrapper):
    """A schedule that stops only at the noise levels a discrete model was trained on.

    `time(sigma)` is the time of that one of the `levels` (data units, for instance
    `iddpm_table()`) which is nearest to `sigma`; `sigma` and `scale` are those of `schedule`.

    Raises: ValueError without levels, or for one that is negative or not finite.
    """

    levels: Float[ArrayLike, " levels"]
    formula: ClassVar = ("Rounded: {sigma}", "{scale}")

    def __check_init__(self):
        if concrete(self.levels):
            levels = np.asarray(self.levels, float)
            valid = np.isfinite(levels) & (levels >= 0)
            if levels.ndim != 1 or levels.size < 1 or not valid.all():
                needed = "a 1-D array of noise levels, finite and not negative"
                raise ValueError(f"levels must be {needed}, got {self.levels}")

    def time(self, sigma: Scalar) -> Float[Array, ""]:
        sigma = as_float(sigma)
        levels = jnp.asarray(self.levels, sigma.dtype)
        return self.schedule.time(levels[jnp.argmin(jnp.abs(levels - sigma))])

    def scale(self, t: Scalar) -> Float[Array, ""]:
        return self.schedule.scale(t)
