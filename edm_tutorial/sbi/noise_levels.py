r"""Noise distributions for posteriors: maximum likelihood, and the one to train with.

The mean weighted error $L(\sigma)$ of a denoiser of d features with EDM's preconditioning at
`sigma_data` 1 bounds the cross-entropy of its model, in nats:

$$-E \ln q \le \tfrac12 E\|z\|^2 + \tfrac d2 \ln 2\pi
  - d \int \frac{1 - L(\sigma)}{1 + \sigma^2}\, d\ln\sigma .$$

(The denoising error is the derivative of the entropy along the noise; an untrained network,
$L = 1$, is the Gaussian N(0, I).) So under the density $\propto 1/(1+\sigma^2)$ of $\ln\sigma$ the
mean loss *is* the bound, up to a factor and a constant: training with it is maximum
likelihood, and the held-out loss says by how many nats a posterior is better.

To reach that likelihood soonest, most examples belong where most is learned, near the width of
the posterior, and some everywhere: `PosteriorNoise` is a mixture of both.
"""

from typing import final

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from .._types import PRNGKey, Scalar, as_float
from ..noise_levels import AbstractNoiseDistribution, LogNormal


@final
class LikelihoodNoise(AbstractNoiseDistribution):
    r"""$\ln\sigma$ of density $\propto 1/(1+\sigma^2)$; `r` is U(0, 1).

    Raises:
        ValueError: not 0 < sigma_min < sigma_max < inf.
    """

    sigma_min: float = 1e-3
    sigma_max: float = 20.0

    def __check_init__(self):
        if not 0 < self.sigma_min < self.sigma_max < np.inf:
            raise ValueError(
                f"need 0 < sigma_min < sigma_max < inf, got {self.sigma_min} and {self.sigma_max}"
            )

    def __call__(self, key: PRNGKey) -> Float[Array, ""]:
        return self.from_variate(jr.uniform(key))

    def from_variate(self, r: Scalar) -> Float[Array, ""]:
        r = as_float(r)
        low, high = (_primitive(as_float(end, r)) for end in (self.sigma_min, self.sigma_max))
        return jnp.expm1(-2 * (low + r * (high - low))) ** -0.5

    def mass(self) -> Float[Array, ""]:
        r"""$\int d\ln\sigma / (1+\sigma^2)$ over the range."""
        return _primitive(as_float(self.sigma_max)) - _primitive(as_float(self.sigma_min))


@final
class PosteriorNoise(AbstractNoiseDistribution):
    r"""A `share` of `LikelihoodNoise`, the rest $\ln\sigma \sim N(P_{mean}, P_{std}^2)$.

    `r` is U(0, 1): its lower part `share` is spread over the first law, the rest over the
    second, so that stratified draws are stratified in both.

    Raises:
        ValueError: not 0 < share < 1, or what the two laws refuse.
    """

    share: float = 0.35
    likelihood: LikelihoodNoise = LikelihoodNoise()
    bulk: LogNormal = LogNormal(-1.2, 1.2)

    def __check_init__(self):
        if not 0 < self.share < 1:
            raise ValueError(f"need 0 < share < 1, got {self.share}")

    def __call__(self, key: PRNGKey) -> Float[Array, ""]:
        return self.from_variate(jr.uniform(key))

    def from_variate(self, r: Scalar) -> Float[Array, ""]:
        r = as_float(r)
        share, edge = as_float(self.share, r), jnp.finfo(r.dtype).eps
        inner = jnp.clip((r - share) / (1 - share), edge, 1 - edge)  # its ends are at infinity
        wide = self.likelihood.from_variate(jnp.clip(r / share, 0, 1))
        return jnp.where(r < share, wide, self.bulk.from_variate(jax.scipy.special.ndtri(inner)))


def _primitive(sigma: Array) -> Array:
    return -jnp.log1p(sigma**-2) / 2
