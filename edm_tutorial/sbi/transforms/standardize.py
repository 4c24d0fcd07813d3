r"""Features of mean 0 and standard deviation 1: $z = (x - m) / s$, one m and s a feature.

A noise level means the same for every feature only when all have one scale, and EDM has no
parameter for the mean. The map is measured once, then carried by the posterior, whose
log-density needs its log-determinant, $-\sum_i \ln s_i$.
"""

from abc import abstractmethod
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ..._checks import check_positive, check_shape
from . import AbstractTransform, Observation, Parameters


@final
class Standardizer(AbstractTransform):
    """Shift and scale of each feature of one example.

    Arguments:
        mean, std: shaped like one example, data units. Where an example has two axes or more, an
            axis of length 1 stands for any length: one scale a channel, whatever the length of
            a series.

    Raises:
        ValueError: `std` is not positive and finite, or not shaped like `mean`.
    """

    mean: Float[Array, "*shape"]
    std: Float[Array, "*shape"]

    def __check_init__(self):
        check_positive("std", self.std)
        if jnp.shape(self.mean) != jnp.shape(self.std):
            raise ValueError(
                "mean and std must have one shape, got "
                f"{jnp.shape(self.mean)} and {jnp.shape(self.std)}"
            )

    @classmethod
    def fit(cls, x: Float[ArrayLike, " n *shape"], name: str = "x") -> "Standardizer":
        """The mean and the standard deviation of each feature, measured in float64.

        Arguments:
            x: examples, stacked along the first axis.
            name: what the messages call them.

        Raises:
            ValueError: fewer than two examples, or columns that are constant or not finite.
        """
        x = np.asarray(x)
        if x.ndim < 1 or len(x) < 2 or x.size == 0:
            raise ValueError(f"{name} needs at least two examples, got shape {x.shape}")
        refuse_columns(name, "not finite", ~np.isfinite(x).all(axis=0))
        mean, std = x.mean(axis=0, dtype=float), x.std(axis=0, dtype=float)
        # Rounding leaves a constant column a spread of some 1e-8 of its value.
        refuse_columns(name, "constant", (x == x[:1]).all(axis=0) | (std == 0))
        dtype = float_dtype(x)
        return cls(jnp.asarray(mean, dtype), jnp.asarray(std, dtype))

    def check(self, name: str, array: Any) -> None:
        """Refuse an array of another shape than that of one example.

        Raises:
            ValueError: another shape.
        """
        got, needed = np.shape(array), self.mean.shape
        fits = len(got) == len(needed) > 1 and all(
            n in (1, m) for m, n in zip(got, needed, strict=True)
        )
        if not fits:
            check_shape(name, np.empty(got), self.mean)

    def forward(self, theta: Parameters, x: Observation = None) -> Parameters:
        """Features of unit variance, from data units.

        Raises:
            ValueError: another shape than that of one example.
        """
        self.check("x", theta)
        return (theta - self.mean.astype(theta.dtype)) / self.std.astype(theta.dtype)

    def inverse(self, z: Parameters, x: Observation = None) -> Parameters:
        """Features in data units, from unit variance.

        Raises:
            ValueError: another shape than that of one example.
        """
        self.check("z", z)
        return z * self.std.astype(z.dtype) + self.mean.astype(z.dtype)

    def log_det(self, theta: Parameters | None = None, x: Observation = None) -> Float[Array, ""]:
        """The log-determinant, which is the same everywhere, in nats."""
        return -jnp.sum(jnp.log(self.std))


class AbstractEmbedding(eqx.Module):
    """A map from one structured observation to a vector, which knows how its input is scaled."""

    @abstractmethod
    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, " size"]:
        """The vector that the network is told."""

    @abstractmethod
    def scale(self, x: Float[np.ndarray, " n *shape"]) -> Standardizer:
        """The mean and the spread of each channel over all observations, and all their parts."""


def float_dtype(array: np.ndarray) -> Any:
    """The dtype to work in: that of `array`, at least float32, float64 only where it is on."""
    return jax.dtypes.canonicalize_dtype(np.result_type(array.dtype, np.float32))


def refuse_columns(name: str, fault: str, bad: Any) -> None:
    """Refuse data whose features marked in `bad` have a fault, and name these features.

    Raises:
        ValueError: any is marked.
    """
    if not np.any(bad):
        return
    where = [index[0] if len(index) == 1 else index for index in np.argwhere(bad).tolist()]
    listed = ", ".join(map(str, where[:8])) + (", ..." if len(where) > 8 else "")
    raise ValueError(
        f"{name} is {fault} in {len(where)} of {np.size(bad)} columns ({listed}): "
        "remove or repair them first"
    )
