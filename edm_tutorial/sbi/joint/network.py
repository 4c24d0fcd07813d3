r"""The network of all conditionals: a joint Gaussian, and a transformer for the rest.

The network sees all numbers z of a simulation, one token each (or one a point of x). Known ones
come as they are; the others are noised with one $\sigma$, and they alone are denoised. Before it is
trained, it is the denoiser of a joint Gaussian with the correlation C of the simulations,
whatever is known:

$$\begin{gathered}
  F = \sigma\,(t - B^{-1} t), \\
  B_{ij} = s_i\, s_j\, C_{ij}\ (i \ne j), \quad B_{ii} = 1,
\end{gathered}$$

with t what the network is told, $c_{in}$ times the noised numbers beside the clean known ones, and
$s_i$ likewise $c_{in}$ or 1. A transformer adds what is not Gaussian.
"""

from typing import Any, NamedTuple, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..._types import PRNGKey
from ...networks.tokens import TokenTransformer

INDEPENDENT = 1e-4  # share of a number's variance that no other number can tell: B stays invertible


class Told(NamedTuple):
    """The condition of a joint network: the numbers of one simulation, and which are known.

    Arguments:
        values: z of all numbers; what stands where one is not known is ignored, even a NaN.
        known: which are given.
        present: which there are: one that is missing is neither given nor asked for.
    """

    values: Float[Array, " numbers"]
    known: Bool[Array, " numbers"]
    present: Bool[Array, " numbers"]


@final
class GaussianPreconditioning(eqx.Module):
    """The denoiser of a joint Gaussian, given any of its numbers.

    Arguments:
        correlation: C, of standardised numbers.
    """

    correlation: Float[Array, "numbers numbers"]

    @classmethod
    def fit(
        cls,
        z: Float[np.ndarray, "n numbers"],
        together: Bool[np.ndarray, "numbers numbers"],
        count: int,
        point_size: int | None,
    ) -> "GaussianPreconditioning":
        """The correlation of simulations; a missing number, as zero, tells nothing.

        Arguments:
            z: standardised.
            together: which numbers can depend on which.
            count: of parameters.
            point_size: numbers a point, where x is made of points whose order means nothing.
        """
        rows = z.astype(float)
        moments = rows.T @ rows / len(rows)
        if point_size is not None:
            moments = _without_order(moments, count, point_size)
        correlation = (1 - INDEPENDENT) * moments * together
        np.fill_diagonal(correlation, 1)
        return cls(jnp.asarray(correlation, z.dtype))

    def __call__(self, t: Array, sigma: Array, told: Told) -> tuple[Array, Array]:
        """F, and the residual of each number given the others, in its standard deviations."""
        scale = jnp.where(told.known, 1, 1 / jnp.sqrt(1 + sigma**2))
        scale = jnp.where(told.present, scale, 0)
        eye = jnp.eye(len(t), dtype=t.dtype)
        matrix = scale[:, None] * self.correlation.astype(t.dtype) * scale[None]
        inverse = jnp.linalg.inv(jnp.where(eye > 0, eye, matrix))
        whitened = inverse @ t
        return sigma * (t - whitened), whitened / jnp.sqrt(jnp.diagonal(inverse))


@final
class JointNetwork(eqx.Module):
    """The network of all conditionals: called with every number, and `Told` as its condition.

    What it returns is zero where a number is known or missing. It computes in the dtype of x.

    Arguments:
        preconditioning: the Gaussian it starts as, which is not trained.
        transformer: of tokens, one a parameter, then one a point of x.
        mask: which tokens may look at which.
        count: of parameters.
    """

    preconditioning: GaussianPreconditioning
    transformer: TokenTransformer
    mask: Bool[Array, "tokens tokens"]
    count: int = eqx.field(static=True)

    def __call__(
        self,
        x: Float[Array, " numbers"],
        c_noise: Float[Array, ""],
        cond: Any = None,
        *,
        key: PRNGKey | None = None,
    ) -> Float[Array, " numbers"]:
        """The raw network output for one example."""
        t = jnp.where(cond.known, cond.values.astype(x.dtype), x)
        t = jnp.where(cond.present, t, 0)
        sigma = jnp.exp(4 * c_noise.astype(x.dtype))
        gaussian, residual = self.preconditioning(t, sigma, cond)
        state = jnp.where(cond.present, cond.known.astype(x.dtype), -1)
        values = jnp.concatenate([self._tokens(t, 0), self._tokens(residual, 0)], axis=1)
        known = jnp.tile(self._tokens(state, 1), (1, 2))
        mask = self.mask & jnp.any(self._tokens(cond.present, False), axis=1)[None]
        found = self.transformer(values, known, c_noise, mask, key=key)
        correction = jnp.concatenate([found[: self.count, 0], found[self.count :].ravel()])
        return jnp.where(cond.known | ~cond.present, 0, gaussian + correction)

    def _tokens(self, numbers: Array, fill: Any) -> Array:
        """Numbers as tokens, one a row: parameters are filled up to the length of a point."""
        points = numbers[self.count :].reshape(len(self.mask) - self.count, -1)
        room = jnp.full((self.count, points.shape[1] - 1), fill, numbers.dtype)
        alone = jnp.concatenate([numbers[: self.count, None], room], axis=1)
        return jnp.concatenate([alone, points])


@final
class Unknown(eqx.Module):
    """A joint network as one of its unknown numbers alone, so that every sampler can use it.

    What is compiled for one question serves all with as many unknown numbers.

    Arguments:
        network: called with all numbers.
        places: of the unknown ones among them.
    """

    network: JointNetwork
    places: Int[Array, " u"]

    def __call__(
        self,
        x: Float[Array, " u"],
        c_noise: Float[Array, ""],
        cond: Any = None,
        *,
        key: PRNGKey | None = None,
    ) -> Float[Array, " u"]:
        """The raw network output for the unknown numbers; `cond` is `Told`."""
        everything = jnp.zeros(cond.values.shape, x.dtype).at[self.places].set(x)
        return self.network(everything, c_noise, cond, key=key)[self.places]


def _without_order(moments: np.ndarray, count: int, size: int) -> np.ndarray:
    """Second moments averaged over all orders of the points."""
    points = (len(moments) - count) // size
    cross = moments[:count, count:].reshape(count, points, size).mean(axis=1)
    blocks = moments[count:, count:].reshape(points, size, points, size)
    same = np.einsum("iaib->ab", blocks) / points
    others = (blocks.sum(axis=(0, 2)) - points * same) / max(points * (points - 1), 1)
    eye = np.eye(points)
    corner = np.tile(cross, (1, points))
    square = np.kron(eye, same) + np.kron(1 - eye, others)
    return np.block([[moments[:count, :count], corner], [corner.T, square]])
