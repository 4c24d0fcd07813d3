r"""Laws of the training noise level: which sigma the network meets, and how often.

Table 1, row "Noise distribution". Each law turns one standard draw, N(0, 1) or U(0, 1),
into a noise level, so that it can be sampled, swept and compared with recorded draws.
"""

from abc import abstractmethod
from typing import ClassVar, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from ._checks import check_positive, check_range, concrete
from ._types import PRNGKey, Scalar, as_float
from .grids import iddpm_levels
from .schedules import VariancePreserving


class AbstractNoiseDistribution(eqx.Module):
    """The law of the training noise level; its `formula`, if any, is for a printed design."""

    @abstractmethod
    def __call__(self, key: PRNGKey) -> Float[Array, ""]:
        """One noise level, in data units."""

    @abstractmethod
    def from_variate(self, r: Scalar) -> Float[Array, ""]:
        """The noise level made from a standard draw `r`: N(0, 1) or U(0, 1)."""

    def from_uniform(self, r: Scalar) -> Float[Array, ""]:
        """The noise level made from a draw `r` of U(0, 1), so that draws can be stratified."""
        return self.from_variate(r)


@final
class LogNormal(AbstractNoiseDistribution):
    r"""$\ln\sigma \sim N(P_{mean}, P_{std}^2)$ (Table 1, column "Ours"); `r` is N(0, 1).

    Raises: ValueError if `p_std` is not positive, or `p_mean` not finite.
    """

    p_mean: float = -1.2
    p_std: float = 1.2
    formula: ClassVar = "ln(sigma) ~ N(p_mean, p_std^2)"

    def __check_init__(self):
        check_positive("p_std", self.p_std)
        if concrete(self.p_mean) and not np.isfinite(self.p_mean):
            raise ValueError(f"p_mean must be finite, got {self.p_mean}")

    def __call__(self, key: PRNGKey) -> Float[Array, ""]:
        return self.from_variate(jr.normal(key))

    def from_variate(self, r: Scalar) -> Float[Array, ""]:
        return jnp.exp(self.p_mean + self.p_std * as_float(r))

    def from_uniform(self, r: Scalar) -> Float[Array, ""]:
        return self.from_variate(jax.scipy.special.ndtri(as_float(r)))


@final
class LogUniform(AbstractNoiseDistribution):
    r"""$\ln\sigma$ uniform over the range (Table 1, column "VE"); `r` is U(0, 1).

    Raises: ValueError unless 0 < sigma_min < sigma_max.
    """

    sigma_min: float = 0.02
    sigma_max: float = 100.0
    formula: ClassVar = "ln(sigma) ~ U(ln sigma_min, ln sigma_max)"

    def __check_init__(self):
        check_range(self.sigma_min, self.sigma_max)

    def __call__(self, key: PRNGKey) -> Float[Array, ""]:
        return self.from_variate(jr.uniform(key))

    def from_variate(self, r: Scalar) -> Float[Array, ""]:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** as_float(r)


@final
class UniformTime(AbstractNoiseDistribution):
    r"""$\sigma(t)$ at $t$ uniform in $(\epsilon_t, 1)$ (Table 1, "VP"); `r` = 0 is t = 1.

    Raises: ValueError unless 0 < eps < 1.
    """

    schedule: VariancePreserving = VariancePreserving()
    eps: float = 1e-5
    formula: ClassVar = "sigma(t) of VP, t ~ U(eps, 1)"

    def __check_init__(self):
        if not 0 < self.eps < 1:
            raise ValueError(f"need 0 < eps < 1, got eps={self.eps}")

    def __call__(self, key: PRNGKey) -> Float[Array, ""]:
        return self.from_variate(jr.uniform(key))

    def from_variate(self, r: Scalar) -> Float[Array, ""]:
        return self.schedule.sigma(1 + as_float(r) * (self.eps - 1))


@final
class UniformLevels(AbstractNoiseDistribution):
    r"""$\sigma = u_j$ with $j$ uniform in 0..M-1 (Table 1, "iDDPM"); `r` is U(0, 1).

    Raises: ValueError if levels < 1, or c_1, c_2 are outside (0, 1).
    """

    levels: int = 1000
    c_1: float = 1e-3
    c_2: float = 8e-3
    formula: ClassVar = "sigma = u_j, j ~ U{0, ..., levels - 1}"

    def __check_init__(self):
        iddpm_levels(self.levels, self.c_1, self.c_2)  # refuses what has no table

    def __call__(self, key: PRNGKey) -> Float[Array, ""]:
        return self.from_variate(jr.uniform(key))

    def from_variate(self, r: Scalar) -> Float[Array, ""]:
        r = as_float(r)
        table = jnp.asarray(iddpm_levels(self.levels, self.c_1, self.c_2), r.dtype)
        index = jnp.floor(r * self.levels).astype(int)
        level = table[jnp.clip(index, 0, self.levels - 1)]  # r = 1 belongs to the last
        return jnp.where(jnp.isnan(r), r, level)  # there is no such index
