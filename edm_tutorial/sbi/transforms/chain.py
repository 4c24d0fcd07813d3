r"""Between parameters as they are and the vector z that the denoiser sees.

Bounds first, then scale, then a linear fit to the observation x:
$z = R_x(S(B(\theta)))$, centred and scaled. Each step adds its log-determinant.
"""

from typing import final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .bounds import Support
from .linear import LinearRegression
from .standardize import Standardizer


@final
class Coordinates(eqx.Module):
    """The maps between parameters and observations as they are and as the denoiser sees them.

    Arguments:
        support: the bounds of the prior.
        theta_scale: of the parameters, once their bounds are gone.
        x_scale: of the observation.
        regression: of the parameters on the observation, or None.
    """

    support: Support
    theta_scale: Standardizer
    x_scale: Standardizer
    regression: LinearRegression | None

    def forward(
        self, theta: Float[Array, " d"], x: Float[Array, "*shape"]
    ) -> tuple[Float[Array, " d"], Float[Array, "*shape"]]:
        """What the denoiser sees of one pair: z and the scaled observation."""
        z, x = self.theta_scale.forward(self.support.forward(theta)), self.x_scale.forward(x)
        return (z if self.regression is None else self.regression.forward(z, x)), x

    def inverse(self, z: Float[Array, " d"], x: Float[Array, "*shape"]) -> Float[Array, " d"]:
        """The parameters of z, given the scaled observation."""
        u = z if self.regression is None else self.regression.inverse(z, x)
        return self.support.inverse(self.theta_scale.inverse(u))

    def log_det(self, theta: Float[Array, " d"]) -> Float[Array, ""]:
        r"""$\ln|\det \partial z / \partial\theta|$ in nats; it does not depend on x."""
        scale = self.theta_scale.log_det()
        if self.regression is not None:
            scale = scale + self.regression.log_det()
        return scale.astype(theta.dtype) + self.support.log_det(theta)


def blank(size: int, shape: tuple[int, ...], *, regression: bool) -> Coordinates:
    """Coordinates of these sizes that change nothing: a form to fill in from a file."""
    scale = lambda shape: Standardizer(jnp.zeros(shape), jnp.ones(shape))
    support = Support(jnp.full(size, -jnp.inf), jnp.full(size, jnp.inf), jnp.ones(size))
    fit = None
    if regression:
        fit = LinearRegression(jnp.zeros((size, *shape)), jnp.zeros(size), jnp.eye(size))
    return Coordinates(support, scale(size), scale(shape), fit)
