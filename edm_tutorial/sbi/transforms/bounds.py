r"""Parameters with bounds, mapped to the whole line: no sample can leave the support.

Between two bounds a < b

$$\begin{aligned}
  u = \theta &+ s \ln\big(1 - e^{-(\theta - a)/s}\big) \\
  & - s \ln\big(1 - e^{-(b - \theta)/s}\big),
\end{aligned}$$

which is $\theta$ itself but for the last few *softnesses* s before a bound: a posterior keeps its
shape, and where a bound cuts it off it gets a tail of width s in place of an edge. Beyond one
bound, $u = \pm\ln|\theta - a|$; without bounds, $u = \theta$. A density of u, times
$|du/d\theta|$, integrates to 1 inside.
"""

from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from ..._checks import check_shape, concrete
from . import AbstractTransform, Observation, Parameters
from .standardize import float_dtype

BEND = 0.05  # s as a fraction of the box, where no linear fit is made
MOST_SOFTNESSES = 100.0  # softnesses beyond a bound: nothing is left of the distance, in any dtype
FARTHEST_BOUND = 1e3  # standard deviations from all parameters: an only bound counts as none
NEAREST = 1e-25  # to a bound, as a fraction of the box: what is nearer counts as this near
QUERIES, NEIGHBOURS = 1_000, 10_000  # simulations that look for a neighbour, and among which
QUARTILE = 0.4506  # the first, of the difference of two draws of N(0, 1) without its sign
LEAST_NARROWNESS = 0.1  # of posteriors beside a linear fit


@final
class Bounds(AbstractTransform):
    """A box, each side of which may be infinite; one vector of parameters at a time.

    A point on a bound is taken for one at `NEAREST` inside, so that nothing here is infinite.

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
        parts = self.low, self.high, self.softness
        shapes = [jnp.shape(part) for part in parts]
        if len(shapes[0]) != 1 or len(set(shapes)) > 1:
            raise ValueError(
                "prior_support needs two vectors (low, high) of one length, and a softness for "
                f"each entry, got shapes {shapes}"
            )
        if not concrete(*parts):
            return
        low, high, softness = map(np.asarray, parts)
        if not np.all(low < high) or np.any(low == np.inf) or np.any(high == -np.inf):
            raise ValueError(f"prior_support needs low < high, got {low} and {high}")
        if not np.all((softness > 0) & (softness < np.inf)):
            raise ValueError(f"softness must be positive and finite, got {softness}")

    @classmethod
    def of(
        cls,
        prior_support: Any,
        theta: Float[ArrayLike, "n d"],
        offset: Float[np.ndarray, " d"] | float = 0.0,
    ) -> "Bounds":
        """The support that a user states, checked against parameters drawn from the prior.

        A twentieth of the box is its softness. A bound without another opposite that is more than
        1,000 standard deviations away from all parameters counts as none.

        Arguments:
            prior_support: a pair (low, high), each of shape (d,), or None for no bounds; None
                in place of either is no bound on that side.
            offset: what is subtracted from parameters and bounds, in float64.

        Raises:
            ValueError: not a pair of vectors of length d, not low < high, or parameters
                outside.
        """
        dtype = float_dtype(np.asarray(theta))
        low, high = pair(prior_support, np.shape(theta)[1])
        # All three in one dtype, so that what lies on a bound stays inside.
        theta, low, high = (np.asarray(a - offset).astype(dtype) for a in (theta, low, high))
        # Beyond it float32 would lose parameters in the logarithm of their distance.
        spread = FARTHEST_BOUND * theta.std(axis=0, dtype=float)
        low = np.where(np.isinf(high) & (theta.min(axis=0) - low > spread), -np.inf, low)
        high = np.where(np.isinf(low) & (high - theta.max(axis=0) > spread), np.inf, high)
        wide = np.where(np.isfinite(low) & np.isfinite(high), high - low, 1)
        box = cls(*(jnp.asarray(part, dtype) for part in (low, high, BEND * wide)))
        outside = np.any((theta < low) | (theta > high), axis=1)
        if outside.any():
            raise ValueError(
                f"theta leaves prior_support in {outside.sum()} of {len(outside)} rows, first in "
                f"row {int(np.argmax(outside))}: widen the support or drop these rows"
            )
        return box

    def softened(self, softness: Float[ArrayLike, " d"]) -> "Bounds":
        """The same box with another softness."""
        return Bounds(self.low, self.high, jnp.asarray(softness, self.softness.dtype))

    def contains(self, theta: Float[Array, " d"]) -> Bool[Array, ""]:
        """Whether `theta` is finite and inside, bounds included."""
        check_shape("theta", theta, self.low)
        return jnp.all(jnp.isfinite(theta) & (self.low <= theta) & (theta <= self.high))

    def forward(self, theta: Parameters, x: Observation = None) -> Parameters:
        """u, from parameters in the box; from outside, that of the nearest point inside."""
        left, right, soft = self._distances(theta)
        both = theta + soft * (_log_one_minus_exp(left) - _log_one_minus_exp(right))
        one = jnp.where(jnp.isfinite(self.low), 1, -1) * self._log_gap(theta)
        return self._choose(both, one, theta)

    def log_det(self, theta: Parameters, x: Observation = None) -> Float[Array, ""]:
        r"""$\ln |\det \partial u / \partial\theta|$ at `theta`, in nats."""
        left, right, _ = self._distances(theta)
        # du/dtheta = 1 + 1/(e^left - 1) + 1/(e^right - 1), in logarithms: nothing overflows.
        rise = lambda t: -t - _log_one_minus_exp(t)
        both = jnp.logaddexp(0, jnp.logaddexp(rise(left), rise(right)))
        return jnp.sum(self._choose(both, -self._log_gap(theta), jnp.zeros_like(theta)))

    def inverse(self, z: Parameters, x: Observation = None) -> Parameters:
        """The parameters in the box, bounds included, from a point of the whole space."""
        low, high, soft = self._parts(z)
        a, b = jnp.where(jnp.isfinite(low), low, 0), jnp.where(jnp.isfinite(high), high, 0)
        near = jnp.clip(z, a - MOST_SOFTNESSES * soft, b + MOST_SOFTNESSES * soft)
        both = near + soft * (
            jax.nn.softplus((a - near) / soft) - jax.nn.softplus((near - b) / soft)
        )
        below = jnp.isfinite(low)
        # 0 where there is not one bound: an overflow that is not chosen still spoils a gradient.
        gap = jnp.exp(jnp.where(below ^ jnp.isfinite(high), jnp.where(below, z, -z), 0))
        one = jnp.where(below, a + gap, b - gap)
        return jnp.clip(self._choose(both, one, z), low, high)  # sums may round past a bound

    def _choose(self, both: Array, one: Array, none: Array) -> Array:
        """Each parameter's value by its number of bounds: two, one or none."""
        below, above = jnp.isfinite(self.low), jnp.isfinite(self.high)
        return jnp.where(below & above, both, jnp.where(below | above, one, none))

    def _parts(self, like: Array) -> tuple[Array, Array, Array]:
        check_shape("theta", like, self.low)
        low, high, soft = (part.astype(like.dtype) for part in (self.low, self.high, self.softness))
        return low, high, soft

    def _distances(self, theta: Array) -> tuple[Array, Array, Array]:
        """The distances from both bounds in softnesses, 1 if there are not two; the softness."""
        low, high, soft = self._parts(theta)
        two = jnp.isfinite(low) & jnp.isfinite(high)
        nearest = NEAREST * jnp.where(two, high - low, 1)
        left, right = (
            jnp.where(two, jnp.maximum(side, nearest) / soft, 1)
            for side in (theta - low, high - theta)
        )
        return left, right, soft

    def _log_gap(self, theta: Array) -> Array:
        """ln of the distance from the only bound; 0 where there is not one."""
        low, high, _ = self._parts(theta)
        below, above = jnp.isfinite(low), jnp.isfinite(high)
        gap = jnp.where(below, theta - low, high - theta)
        # 1e-29 at least in float32, so that 1 / gap times any width is finite.
        gap = jnp.maximum(gap, float(jnp.finfo(theta.dtype).tiny) ** 0.75)
        return jnp.log(jnp.where(below ^ above, gap, 1))


def narrowness(
    theta: Float[np.ndarray, "n d"], x: Float[np.ndarray, "n k"], spread: Float[np.ndarray, " d"]
) -> Float[np.ndarray, " d"]:
    r"""The width of posteriors over the spread that a linear fit leaves, 0.1 to 1 a parameter.

    `Chain.fit` sets the softness of `Bounds` by it, so that a posterior far narrower than that
    spread keeps its shape near a bound.

    Two simulations with close x are nearly two draws from one posterior. If it is Gaussian of
    standard deviation w, a quarter of all $|\theta_i - \theta_j|$ are below
    $\sqrt 2\,\Phi^{-1}(5/8)\,w \approx 0.4506\,w$, and w is what the line leaves. Around a curved
    or two-peaked posterior the line leaves more. In many dimensions of x no two simulations are
    close, w comes out as the line's or larger, and the answer is 1.

    Measured by `benchmarks/sbi_choices.py`, with an earlier default network and on problems that
    did not choose it, it gained 0.04 nats (a wave with several peaks) and nothing measurable (a
    ring).

    Arguments:
        theta, x: standardised parameters and observations; the first 1,000 are compared with
            their nearest among the first 10,000.
        spread: the standard deviation that a linear fit leaves of each parameter.
    """
    theta, x = theta[:NEIGHBOURS], x[:NEIGHBOURS].astype(np.float32)
    squares = np.sum(x**2, axis=1)
    distance = squares - 2 * x[:QUERIES] @ x.T  # up to what does not depend on the neighbour
    np.fill_diagonal(distance, np.inf)
    nearest = np.argmin(distance, axis=1)
    difference = np.abs(theta[:QUERIES] - theta[nearest])
    width = np.quantile(difference, 0.25, axis=0) / QUARTILE
    return np.clip(width / spread, LEAST_NARROWNESS, 1)


def _log_one_minus_exp(t: Array) -> Array:
    return jnp.log(-jnp.expm1(-t))


def pair(prior_support: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The two vectors of bounds, in float64."""
    try:
        low, high = (None, None) if prior_support is None else prior_support
    except (TypeError, ValueError):
        raise ValueError(
            f"prior_support must be (low, high) or None, got {prior_support}"
        ) from None
    sides = []
    for side, infinite in ((low, -np.inf), (high, np.inf)):
        vector = np.full(count, infinite) if side is None else np.asarray(side)
        if vector.dtype == object:  # None for a single parameter
            vector = np.array([infinite if entry is None else entry for entry in vector.ravel()])
        if vector.shape != (count,):
            raise ValueError(
                f"prior_support must be (low, high), each of shape ({count},), got {prior_support}"
            )
        sides.append(vector.astype(float))
    return sides[0], sides[1]
