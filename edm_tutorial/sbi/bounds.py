r"""Parameters with bounds, mapped to the whole line: no sample can leave the support.

Between two bounds $u = \Phi^{-1}\big((\theta - a)/(b - a)\big)$ with the normal quantile function,
so that a uniform prior becomes exactly N(0, 1); beyond one bound, $u = \pm\ln|\theta - a|$;
without bounds, $u = \theta$. A density of u, times $|du/d\theta|$, integrates to 1 inside.
"""

from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, ArrayLike, Bool, Float

from edm_tutorial.sbi.standardize import float_dtype
from edm_tutorial.types import check_shape, concrete


@final
class Support(eqx.Module):
    """A box, each side of which may be infinite; one vector of parameters at a time.

    A point on a bound, and all that rounds to it, is taken for the nearest point inside
    that the dtype can tell from it, so that nothing here is infinite.

    Arguments:
        low, high: the bounds, -inf and inf where there are none.

    Raises:
        ValueError: bounds of different shapes, NaN, or not low < high.
    """

    low: Float[Array, " d"]
    high: Float[Array, " d"]

    def __check_init__(self):
        if jnp.ndim(self.low) != 1 or jnp.shape(self.low) != jnp.shape(self.high):
            raise ValueError(
                "prior_support needs two vectors (low, high) of one length, got shapes "
                f"{jnp.shape(self.low)} and {jnp.shape(self.high)}"
            )
        if concrete(self.low, self.high):
            low, high = np.asarray(self.low), np.asarray(self.high)
            if not np.all(low < high) or np.any(low == np.inf) or np.any(high == -np.inf):
                raise ValueError(f"prior_support needs low < high, got {low} and {high}")

    @classmethod
    def of(cls, prior_support: Any, theta: Float[ArrayLike, "n d"]) -> "Support":
        """The support that a user states, checked against parameters drawn from the prior.

        Arguments:
            prior_support: a pair (low, high), each of shape (d,), or None for no bounds.

        Raises:
            ValueError: not a pair of vectors of length d, not low < high, or parameters
                outside.
        """
        count, dtype = np.shape(theta)[1], float_dtype(np.asarray(theta))
        if prior_support is None:
            prior_support = np.full(count, -np.inf), np.full(count, np.inf)
        if len(prior_support) != 2 or np.shape(prior_support[0]) != (count,):
            raise ValueError(
                f"prior_support must be (low, high), each of shape ({count},), got {prior_support}"
            )
        low, high = (jnp.asarray(bound, dtype) for bound in prior_support)
        support = cls(low, high)
        theta, low, high = np.asarray(theta), np.asarray(low), np.asarray(high)
        outside = np.any((theta < low) | (theta > high), axis=1)
        if outside.any():
            raise ValueError(
                f"theta leaves prior_support in {outside.sum()} of {len(outside)} rows, first in "
                f"row {int(np.argmax(outside))}: widen the support or drop these rows"
            )
        return support

    def contains(self, theta: Float[Array, " d"]) -> Bool[Array, ""]:
        """Whether `theta` is finite and inside, bounds included."""
        check_shape("theta", theta, self.low)
        return jnp.all(jnp.isfinite(theta) & (self.low <= theta) & (theta <= self.high))

    def forward(self, theta: Float[Array, " d"]) -> Float[Array, " d"]:
        """From the box to the whole space; from outside, as from the nearest point inside."""
        return self._map(theta)[0]

    def log_det(self, theta: Float[Array, " d"]) -> Float[Array, ""]:
        r"""$\ln |\det \partial u / \partial\theta|$ at `theta`, in nats."""
        return jnp.sum(self._map(theta)[1])

    def inverse(self, u: Float[Array, " d"]) -> Float[Array, " d"]:
        """From the whole space to the box, bounds included."""
        low, high, width = self._sides(u)
        below = jnp.isfinite(low)
        # Each half is measured from its own bound: near it, no digits are lost.
        inside = jnp.where(u < 0, low + width * ndtr(u), high - width * ndtr(-u))
        beyond = jnp.where(below, low + jnp.exp(u), high - jnp.exp(-u))
        bounded = jnp.where(below & jnp.isfinite(high), inside, beyond)
        theta = jnp.where(below | jnp.isfinite(high), bounded, u)
        return jnp.clip(theta, low, high)  # the sums above may round past a bound

    def _sides(self, like: Array) -> tuple[Array, Array, Array]:
        check_shape("theta", like, self.low)
        low, high = self.low.astype(like.dtype), self.high.astype(like.dtype)
        return low, high, jnp.where(jnp.isfinite(high - low), high - low, 1)

    def _map(self, theta: Array) -> tuple[Array, Array]:
        """u, and ln |du/dtheta|, of each parameter."""
        low, high, width = self._sides(theta)
        below, above = jnp.isfinite(low), jnp.isfinite(high)
        tiny = jnp.finfo(theta.dtype).eps / 4
        left = jnp.clip((theta - low) / width, tiny, 1)
        right = jnp.clip((high - theta) / width, tiny, 1)
        normal = jnp.where(left < right, ndtri(left), -ndtri(right))
        normal_log = -jnp.log(width) - jax.scipy.stats.norm.logpdf(normal)
        gap = jnp.where(below, theta - low, high - theta)
        gap = jnp.maximum(jnp.where(jnp.isfinite(gap), gap, 1), jnp.finfo(theta.dtype).tiny)
        log = jnp.log(gap)
        one = jnp.where(below | above, jnp.where(below, log, -log), theta)
        one_log = jnp.where(below | above, -log, 0)
        both = below & above
        return jnp.where(both, normal, one), jnp.where(both, normal_log, one_log)
