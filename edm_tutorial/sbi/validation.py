r"""The held-out loss in nats, and how narrow the posterior is.

At a noise level $\sigma$ the *gain* of a denoiser is $1 - L(\sigma)$: by how much its mean weighted
error is below that of an untrained network. It is what the bound of `LikelihoodNoise`
integrates. For a Gaussian posterior of width s (in units of z) it is close to
$\sigma^2 / (\sigma^2 + s^2)$: exactly the share of the variance that a sampler
loses when its last step starts at $\sigma$.
"""

from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from .._types import PRNGKey
from ..denoiser import Denoiser
from ..losses import weighted_error
from .noise_levels import LikelihoodNoise

PAIRS = 16_384  # of an example and a noise level, at least


@final
class HeldOut(eqx.Module):
    """Simulations kept out of training, with noise drawn once, so that losses compare.

    Arguments:
        z, x: standardised parameters and observations.
        sigmas: noise levels of each example, stratified over all of them.
        noise: unit noise for each.
        constant: what the loss is without any gain, nats.
        mass: of the noise law, times the number of parameters.
    """

    z: Float[Array, "n d"]
    x: Float[Array, " n *shape"]
    sigmas: Float[Array, "m n"]
    noise: Float[Array, "m n d"]
    constant: float
    mass: float

    @classmethod
    def draw(
        cls, key: PRNGKey, z: Array, x: Array, log_det: float, law: LikelihoodNoise
    ) -> "HeldOut":
        """Fix the noise. `log_det` is the mean over the examples, nats."""
        order_key, noise_key = jr.split(key)
        n, d = z.shape
        m = -(-PAIRS // n)
        strata = (jr.permutation(order_key, m * n).astype(z.dtype) + 0.5) / (m * n)
        sigmas = jax.vmap(law.from_variate)(strata).reshape(m, n)
        noise = jr.normal(noise_key, (m, n, d), z.dtype)
        square = np.mean(np.sum(np.asarray(z, float) ** 2, axis=1))
        constant = float(square / 2 + d / 2 * np.log(2 * np.pi) - log_det)
        return cls(z, x, sigmas, noise, constant, float(law.mass()) * d)

    def __call__(self, denoiser: Any) -> float:
        """Upper bound on the mean of -ln q(theta given x), nats."""
        return self.constant - self.mass * float(jnp.mean(_gains(self, denoiser)))

    def gain(self, denoiser: Any, sigma: float) -> float:
        """The mean gain at one noise level, of the feature that gains most."""
        level = jnp.full_like(self.sigmas, sigma)
        here = eqx.tree_at(lambda held_out: held_out.sigmas, self, level)
        return float(jnp.max(jnp.mean(_gains(here, denoiser), axis=(0, 1))))


@eqx.filter_jit
def _gains(held_out: HeldOut, denoiser: Any) -> Float[Array, "m n d"]:
    """Error of the untrained network minus that of `denoiser`, for the same noise."""
    untrained = Denoiser(lambda z, *_, key: jnp.zeros_like(z), denoiser.preconditioning)

    def one(z: Array, sigma: Array, noise: Array, x: Array) -> Array:
        n = sigma * noise
        return weighted_error(untrained, z, sigma, n, x) - weighted_error(denoiser, z, sigma, n, x)

    row = lambda args: jax.vmap(one)(held_out.z, args[0], args[1], held_out.x)
    return jax.lax.map(row, (held_out.sigmas, held_out.noise))
