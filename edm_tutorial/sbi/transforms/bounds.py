r"""Parameters with bounds, mapped to the whole line: no sample can leave the support.

Between two bounds a < b

$$u = \theta + s \ln\big(1 - e^{-(\theta - a)/s}\big) - s \ln\big(1 - e^{-(b - \theta)/s}\big),$$

which is $\theta$ itself but for the last few *softnesses* s before a bound: a posterior keeps its
shape, and where a bound cuts it off it gets a tail of width s in place of an edge. Beyond one
bound, $u = \pm\ln|\theta - a|$; without bounds, $u = \theta$. A density of u, times
$|du/d\theta|$, integrates to 1 inside.
"""

from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from ..._checks import check_shape, concrete
from .standardize import float_dtype

BEND = 0.05  # s, as a fraction of the box, unless more is known
FARTHEST = 100.0  # softnesses beyond a bound: nothing is left of the distance, in any dtype


@final
class Support(eqx.Module):
    """A box, each side of which may be infinite; one vector of parameters at a time.

    A point on a bound, and all that rounds to it, is taken for the nearest point inside
    that the dtype can tell from it, so that nothing here is infinite.

    Arguments:
        low, high: the bounds, -inf and inf where there are none.
        softness: s, how far from two bounds the map begins to bend; not used elsewhere.

    Raises:
        ValueError: vectors of different shapes, NaN, not low < high, or a softness that is not
            positive and finite.
    """

    low: Float[Array, " d"]
    high: Float[Array, " d"]
    softness: Float[Array, " d"]

    def __check_init__(self):
        low, high, softness = self.low, self.high, self.softness
        shapes = [jnp.shape(part) for part in (low, high, softness)]
        if jnp.ndim(low) != 1 or len(set(shapes)) > 1:
            raise ValueError(
                "prior_support needs two vectors (low, high) of one length, and a softness for "
                f"each entry, got shapes {shapes}"
            )
        if concrete(low, high, softness):
            low, high, softness = map(np.asarray, (low, high, softness))
            if not np.all(low < high) or np.any(low == np.inf) or np.any(high == -np.inf):
                raise ValueError(f"prior_support needs low < high, got {low} and {high}")
            if not np.all((softness > 0) & (softness < np.inf)):
                raise ValueError(f"softness must be positive and finite, got {softness}")

    @classmethod
    def of(cls, prior_support: Any, theta: Float[ArrayLike, "n d"]) -> "Support":
        """The support that a user states, checked against parameters drawn from the prior.

        A twentieth of the box is its softness.

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
        low, high = (np.asarray(part, dtype) for part in prior_support)
        wide = np.where(np.isfinite(low) & np.isfinite(high), high - low, 1)
        support = cls(*(jnp.asarray(part) for part in (low, high, np.asarray(BEND * wide, dtype))))
        theta = np.asarray(theta)
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
        low, high, soft = self._parts(u)
        below, above = jnp.isfinite(low), jnp.isfinite(high)
        a, b = jnp.where(below, low, 0), jnp.where(above, high, 0)
        near = jnp.clip(u, a - FARTHEST * soft, b + FARTHEST * soft)
        both = near + soft * (
            jax.nn.softplus((a - near) / soft) - jax.nn.softplus((near - b) / soft)
        )
        one = jnp.where(below, a + jnp.exp(u), b - jnp.exp(-u))
        theta = jnp.where(below & above, both, jnp.where(below | above, one, u))
        return jnp.clip(theta, low, high)  # the sums above may round past a bound

    def _parts(self, like: Array) -> tuple[Array, Array, Array]:
        check_shape("theta", like, self.low)
        low, high, soft = (part.astype(like.dtype) for part in (self.low, self.high, self.softness))
        return low, high, soft

    def _map(self, theta: Array) -> tuple[Array, Array]:
        """u, and ln |du/dtheta|, of each parameter."""
        low, high, soft = self._parts(theta)
        below, above = jnp.isfinite(low), jnp.isfinite(high)
        left = jnp.where(below, theta - low, jnp.inf)
        right = jnp.where(above, high - theta, jnp.inf)
        gap = jnp.maximum(jnp.minimum(left, right), jnp.finfo(theta.dtype).tiny)
        gap = jnp.where(below | above, gap, 1)
        one = jnp.where(below | above, jnp.where(below, 1, -1) * jnp.log(gap), theta)
        smallest = jnp.finfo(theta.dtype).eps / 4 * jnp.where(below & above, high - low, 1)
        left, right = (jnp.maximum(side, smallest) / soft for side in (left, right))
        both = theta + soft * (jnp.log(-jnp.expm1(-left)) - jnp.log(-jnp.expm1(-right)))
        both_log = jnp.log1p(1 / jnp.expm1(left) + 1 / jnp.expm1(right))
        two = below & above
        return jnp.where(two, both, one), jnp.where(two, both_log, -jnp.log(gap))
