r"""Two crescents: a posterior with two modes, each curved and sharp.

With $z_1 = (\theta_1+\theta_2)/\sqrt2$ and $z_2 = (\theta_2-\theta_1)/\sqrt2$, a rotation by
45 degrees,

$$\begin{gathered}
  x = (r\cos a + \tfrac14 - |z_1|,\; r\sin a + z_2), \\
  a \sim U(-\tfrac\pi2, \tfrac\pi2),\quad r \sim N(0.1, 0.01^2), \\
  \theta_i \sim U(-1, 1).
\end{gathered}$$

The sign of $z_1$ cannot be told. Given $x_o$ the simulator can be inverted: a draw of (a, r)
leaves one $|z_1|$ and one $z_2$, so exact posterior draws cost a few tries.
"""

import math
from typing import ClassVar, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float

from ..._types import PRNGKey
from .base import AbstractTask, UniformPrior, check_vector

_MAX_TRIES = 10_000


@final
class TwoMoons(AbstractTask[UniformPrior]):
    """The task of two crescents; parameters and data have two dimensions."""

    dim_x: ClassVar[int] = 2

    def simulate(self, key: PRNGKey, theta: Float[Array, "2"]) -> Float[Array, "2"]:
        check_vector("theta", theta, 2)
        return _crescent(key, theta) + _centre(theta)

    def log_likelihood(self, x: Float[Array, "2"], theta: Float[Array, "2"]) -> Float[Array, ""]:
        r"""Log-likelihood ln p(x given theta), in nats; -inf left of the crescent's centre.

        $\ln N(\rho; 0.1, 0.01^2) - \ln(\pi\rho)$ at distance $\rho$ from the centre: $1/\rho$ is
        the Jacobian of polar coordinates.
        """
        check_vector("x", x, 2)
        u, v = x - _centre(theta)
        right = u > 0
        rho = jnp.hypot(jnp.where(right, u, 1), v)
        radial = -(((rho - 0.1) / 0.01) ** 2) / 2 - math.log(0.01 * math.sqrt(2 * math.pi))
        return jnp.where(right, radial - jnp.log(jnp.pi * rho), -jnp.inf)

    def sample_posterior(self, key: PRNGKey, x_o: Float[Array, "2"]) -> Float[Array, "2"]:
        """One exact draw: the simulator is inverted until theta lies in the prior's box.

        Raises:
            RuntimeError: no success in 10,000 tries, where `x_o` could hardly have come from
                the simulator.
        """
        check_vector("x_o", x_o, 2)

        def again(state: tuple[Array, Array, Array]) -> Bool[Array, ""]:
            tries, _, accepted = state
            return ~accepted & (tries < _MAX_TRIES)

        def attempt(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            tries = state[0]
            theta, possible = _invert(jr.fold_in(key, tries), x_o)
            return tries + 1, theta, possible & jnp.isfinite(self.log_prior(theta))

        start = jnp.zeros((), int), jnp.zeros_like(x_o), jnp.zeros((), bool)
        _, theta, accepted = jax.lax.while_loop(again, attempt, start)
        return eqx.error_if(theta, ~accepted, "x_o is (nearly) impossible under two_moons")


def two_moons() -> TwoMoons:
    """Two crescents in theta, for one point x in the plane."""
    return TwoMoons(UniformPrior(jnp.full(2, -1.0), jnp.full(2, 1.0)))


def _centre(theta: Array) -> Array:
    """The centre of the data's crescent."""
    z_1, z_2 = (theta[0] + theta[1]) / 2**0.5, (theta[1] - theta[0]) / 2**0.5
    return jnp.stack([0.25 - jnp.abs(z_1), z_2])


def _crescent(key: PRNGKey, like: Array) -> Array:
    """A draw of r (cos a, sin a)."""
    angle_key, radius_key = jr.split(key)
    angle = jr.uniform(angle_key, (), like.dtype, -jnp.pi / 2, jnp.pi / 2)
    radius = 0.1 + 0.01 * jr.normal(radius_key, (), like.dtype)
    return radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)])


def _invert(key: PRNGKey, x_o: Array) -> tuple[Array, Array]:
    """A theta whose crescent passes through `x_o`, and whether there is one."""
    crescent_key, sign_key = jr.split(key)
    to_centre = x_o - _crescent(crescent_key, x_o)
    size, z_2 = 0.25 - to_centre[0], to_centre[1]
    z_1 = size * jr.rademacher(sign_key, (), x_o.dtype)
    return jnp.stack([z_1 - z_2, z_1 + z_2]) / 2**0.5, size >= 0
