"""Transforms between parameters as they are and the vector z that the denoiser sees.

All have one interface: forward, inverse, log-determinant.
"""

from abc import abstractmethod

import equinox as eqx
from jaxtyping import Array, Float

Parameters = Float[Array, "*d"]
Observation = Float[Array, "*shape"] | None


class AbstractTransform(eqx.Module):
    """An invertible map of the parameters, which may depend on the observation.

    One example at a time; `x` is the scaled observation. A density of z becomes one of theta by
    $\\ln q(\\theta) = \\ln q(z) + \\ln|\\det \\partial z/\\partial\\theta|$.
    """

    @abstractmethod
    def forward(self, theta: Parameters, x: Observation = None) -> Parameters:
        """z, from parameters `theta`."""

    @abstractmethod
    def inverse(self, z: Parameters, x: Observation = None) -> Parameters:
        """The parameters whose image is `z`."""

    @abstractmethod
    def log_det(self, theta: Parameters, x: Observation = None) -> Float[Array, ""]:
        r"""$\ln|\det \partial z/\partial\theta|$ at `theta`, in nats."""
