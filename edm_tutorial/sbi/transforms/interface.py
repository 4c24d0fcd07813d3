"""The interface of a transform: forward, inverse, log-determinant."""

from abc import abstractmethod

import equinox as eqx
from jaxtyping import Array, Float


class AbstractTransform(eqx.Module):
    """An invertible map of the parameters, which may depend on the observation.

    One example at a time. A density of z becomes one of theta by
    $\\ln q(\\theta) = \\ln q(z) + \\ln|\\det \\partial z/\\partial\\theta|$.
    """

    @abstractmethod
    def forward(
        self, theta: Float[Array, "*d"], x: Float[Array, "*shape"] | None = None
    ) -> Float[Array, "*d"]:
        """z, from parameters `theta` and the scaled observation `x`."""

    @abstractmethod
    def inverse(
        self, z: Float[Array, "*d"], x: Float[Array, "*shape"] | None = None
    ) -> Float[Array, "*d"]:
        """The parameters whose image is `z`."""

    @abstractmethod
    def log_det(
        self, theta: Float[Array, "*d"], x: Float[Array, "*shape"] | None = None
    ) -> Float[Array, ""]:
        r"""$\ln|\det \partial z/\partial\theta|$ at `theta`, in nats."""
