r"""The wrapping of a network into a denoiser: $D = c_{skip} x + c_{out} F(c_{in} x; c_{noise})$.

Eq. 7 wraps a raw network $F$ into a denoiser $D$. The four coefficients depend on $\sigma$
alone (Table 1, "Network and preconditioning"); they are fixed when the network is trained
and no sampler may change them. The loss weight $\lambda(\sigma) = 1/c_{out}(\sigma)^2$
makes the error of $F$ count alike at every noise level.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, UInt

from ._checks import check_data, check_positive, concrete
from ._types import Scalar, as_float
from .grids import iddpm_levels
from .schedules import VariancePreserving


class Coefficients(NamedTuple):
    """The four functions of Eq. 7 at one noise level.

    They are scalars; where `sigma_data` is given per feature, all but `c_noise` broadcast
    against one example.
    """

    c_skip: Float[Array, "..."]
    c_out: Float[Array, "..."]
    c_in: Float[Array, "..."]
    c_noise: Float[Array, ""]


class AbstractPreconditioning(eqx.Module):
    """A function of the noise level (data units) that returns its `Coefficients`.

    A class may say in `formula` what these and the loss weighting are, for a printed design.
    """

    @abstractmethod
    def __call__(self, sigma: Scalar) -> Coefficients:
        """The four coefficients at noise level `sigma`, in the dtype of `sigma`."""

    def loss_weight(self, sigma: Scalar) -> Float[Array, "..."]:
        r"""$\lambda(\sigma) = 1 / c_{out}(\sigma)^2$ (Eq. 2 and Table 1, "Training")."""
        return self(sigma).c_out ** -2


@final
class EDMPreconditioning(AbstractPreconditioning):
    r"""EDM's coefficients: unit variance in, unit variance out, least amplified errors.

    $c_{skip} = \sigma_d^2/(\sigma^2+\sigma_d^2)$, $c_{out} = \sigma\sigma_d
    /\sqrt{\sigma^2+\sigma_d^2}$, $c_{in} = 1/\sqrt{\sigma^2+\sigma_d^2}$, $c_{noise} =
    \tfrac14\ln\sigma$ with $\sigma_d$ = `sigma_data` (Table 1, column "Ours").

    Arguments:
        sigma_data: root mean square of the *centred* data, in data units; `from_data` measures
            it. A number, or one per feature in a shape that broadcasts against one example,
            such as (d,) or (C, 1, 1).

    So that no optimizer takes it for a parameter, it is kept as Python floats or, inside a
    transformation such as `jax.jit`, as the bits of a float in an array of integers. (A filter
    that takes Python floats for parameters, `eqx.is_inexact_array_like`, still finds the former.)

    Raises: ValueError if `sigma_data` is not positive and finite.
    """

    _sigma_data: float | list[Any] | UInt[Array, "..."]
    formula: ClassVar = (
        "sigma_data^2/(sigma^2 + sigma_data^2)",
        "sigma sigma_data/sqrt(sigma^2 + sigma_data^2)",
        "1/sqrt(sigma^2 + sigma_data^2)",
        "ln(sigma)/4",
        "(sigma^2 + sigma_data^2)/(sigma sigma_data)^2",
    )

    def __init__(self, sigma_data: float | Float[ArrayLike, "..."] | Sequence[Any]):
        check_positive("sigma_data", sigma_data)
        if concrete(sigma_data):
            self._sigma_data = np.asarray(sigma_data, float).tolist()
        else:
            value = as_float(sigma_data)
            double = value.dtype == jnp.float64
            value = value if double else value.astype(jnp.float32)
            bits = jnp.uint64 if double else jnp.uint32
            self._sigma_data = jax.lax.bitcast_convert_type(value, bits)

    @property
    def sigma_data(self) -> float | Float[Array, "..."]:
        """The root mean square of the data, as a number or as one per feature."""
        value = self._sigma_data
        if isinstance(value, list):
            return jnp.asarray(value)
        if isinstance(value, Array) and jnp.issubdtype(value.dtype, jnp.unsignedinteger):
            double = value.dtype == jnp.uint64
            return jax.lax.bitcast_convert_type(value, jnp.float64 if double else jnp.float32)
        return value

    def __repr__(self) -> str:
        return f"EDMPreconditioning(sigma_data={self.sigma_data})"

    @classmethod
    def from_data(cls, x: Float[ArrayLike, " n *shape"]) -> "EDMPreconditioning":
        """Coefficients for the data `x`: `sigma_data` is their root mean square about zero.

        Centre the data first.

        Raises: ValueError if `x` is empty, not finite, or zero everywhere.
        """
        x = jnp.asarray(x)
        check_data("x", x)
        return cls(jnp.sqrt(jnp.mean(x**2)))

    def __call__(self, sigma: Scalar) -> Coefficients:
        sigma = as_float(sigma)
        sigma_data = jax.lax.stop_gradient(as_float(self.sigma_data, sigma))
        total = jnp.hypot(sigma, sigma_data)
        return Coefficients(
            c_skip=(sigma_data / total) ** 2,
            c_out=sigma_data * (sigma / total),
            c_in=1 / total,
            c_noise=jnp.log(sigma) / 4,
        )


@final
class VEPreconditioning(AbstractPreconditioning):
    r"""$1,\ \sigma,\ 1,\ \ln(\sigma/2)$ (Table 1, column "VE"): the input is not scaled."""

    formula: ClassVar = ("1", "sigma", "1", "ln(sigma/2)", "1/sigma^2")

    def __call__(self, sigma: Scalar) -> Coefficients:
        sigma = as_float(sigma)
        one = jnp.ones_like(sigma)
        return Coefficients(c_skip=one, c_out=sigma, c_in=one, c_noise=jnp.log(sigma / 2))


@final
class VPPreconditioning(AbstractPreconditioning):
    r"""$1,\ -\sigma,\ 1/\sqrt{1+\sigma^2},\ (M-1)\,t(\sigma)$ (Table 1, column "VP").

    Arguments:
        schedule: the VP schedule of training, whose time labels the noise level.
        levels: M, the number of discrete levels of the original model.

    Raises: ValueError if `levels` is less than 2.
    """

    schedule: VariancePreserving = VariancePreserving()
    levels: int = 1000
    formula: ClassVar = ("1", "-sigma", "1/sqrt(sigma^2 + 1)", "(levels - 1) t(sigma)", "1/sigma^2")

    def __check_init__(self):
        if self.levels < 2:
            raise ValueError(f"levels must be at least 2, got {self.levels}")

    def __call__(self, sigma: Scalar) -> Coefficients:
        sigma = as_float(sigma)
        return _of_ddpm(sigma, c_noise=(self.levels - 1) * self.schedule.time(sigma))


@final
class IDDPMPreconditioning(AbstractPreconditioning):
    r"""$1,\ -\sigma,\ 1/\sqrt{1+\sigma^2}$, $M-1-\arg\min_j|u_j-\sigma|$ (column "iDDPM").

    Arguments:
        levels, c_1, c_2: those of `iddpm_table`, whose index labels the noise level.

    Raises: ValueError if levels < 1, or c_1, c_2 are outside (0, 1).
    """

    levels: int = 1000
    c_1: float = 1e-3
    c_2: float = 8e-3
    formula: ClassVar = (
        "1",
        "-sigma",
        "1/sqrt(sigma^2 + 1)",
        "levels - 1 - argmin_j abs(u_j - sigma)",
        "1/sigma^2",
    )

    def __check_init__(self):
        iddpm_levels(self.levels, self.c_1, self.c_2)  # refuses what has no table

    def __call__(self, sigma: Scalar) -> Coefficients:
        sigma = as_float(sigma)
        table = jnp.asarray(iddpm_levels(self.levels, self.c_1, self.c_2), sigma.dtype)
        index = jnp.argmin(jnp.abs(table - sigma))
        return _of_ddpm(sigma, c_noise=(self.levels - 1 - index).astype(sigma.dtype))


def _of_ddpm(sigma: Array, c_noise: Array) -> Coefficients:
    """Coefficients of a network that predicts the noise, for data of unit variance."""
    one, c_in = jnp.ones_like(sigma), (1 + sigma**2) ** -0.5
    return Coefficients(c_skip=one, c_out=-sigma, c_in=c_in, c_noise=c_noise)
