r"""Noise levels of a posterior's training, of its validation loss, and of the end of sampling.

The mean weighted error $L(\sigma)$ of a denoiser of d features with EDM's preconditioning at
`sigma_data` 1 bounds the cross-entropy of its model, in nats:

$$\begin{aligned}
  -E \ln q &\le \tfrac12 E\|z\|^2 + \tfrac d2 \ln 2\pi \\
  & \quad - d \int \frac{1 - L(\sigma)}{1 + \sigma^2}\, d\ln\sigma .
\end{aligned}$$

(The denoising error is the derivative of the entropy along the noise; an untrained network,
$L = 1$, is the Gaussian N(0, I).) So under the density $\propto 1/(1+\sigma^2)$ of $\ln\sigma$ the
mean loss *is* the bound, up to a factor and a constant: training with it is maximum
likelihood, and the held-out loss says by how many nats a posterior is better.

To reach that likelihood soonest, most examples belong where most is learned, near the width of
the posterior, and some everywhere: `PosteriorNoise` is a mixture of both.

The *gain* of a denoiser at a noise level is $1 - L(\sigma)$: by how much its error is below that
of an untrained network. For a Gaussian posterior of width s (in units of z) it is close to
$\sigma^2 / (\sigma^2 + s^2)$: exactly the share of the variance that a sampler loses when its last
step starts at $\sigma$.
"""

import bisect
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .._types import PRNGKey, Scalar, as_float, on_host
from ..denoiser import Denoiser
from ..losses import weighted_error
from ..noise_levels import AbstractNoiseDistribution, LogNormal

PAIRS = 16_384  # of an example and a noise level, at least
LARGEST_SIGMA_MIN = 0.02  # where sampling may end for the widest posterior
LOST_VARIANCE = 1e-3  # (1/32)^2, on average over all observations


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

    Arguments:
        share: of draws that come from `likelihood`.
        likelihood: the law that reaches all noise levels.
        bulk: the log-normal law of most draws, near the width of the posterior.

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
        share, edge = as_float(self.share, r), float(jnp.finfo(r.dtype).eps)
        inner = jnp.clip((r - share) / (1 - share), edge, 1 - edge)  # its ends are at infinity
        wide = self.likelihood.from_variate(jnp.clip(r / share, 0, 1))
        return jnp.where(r < share, wide, self.bulk.from_variate(jax.scipy.special.ndtri(inner)))


def stratified(
    key: PRNGKey, sigma_dist: AbstractNoiseDistribution, n: int, dtype: Any
) -> Float[Array, " n"]:
    """Noise levels of a batch, the i-th of which is from the i-th part of their law."""
    strata = jnp.arange(n, dtype=dtype) + jr.uniform(key, (n,), dtype)
    return jax.vmap(sigma_dist.from_uniform)(strata / n)


@final
class HeldOut(eqx.Module):
    """Simulations kept out of training, with noise drawn once, so that losses compare.

    Arguments:
        z, x: standardised parameters, and what the denoiser is told with each.
        sigmas: noise levels of each example, stratified over all of them.
        noise: unit noise for each.
        untrained: the loss of a network that returns 0, nats.
        mass: the integral of the noise distribution's density, times the number of parameters.
    """

    z: Float[Array, "n d"]
    x: Any
    sigmas: Float[Array, "m n"]
    noise: Float[Array, "m n d"]
    untrained: float
    mass: float

    @classmethod
    def draw(
        cls,
        key: PRNGKey,
        z: Float[ArrayLike, "n d"],
        x: Any,
        log_det: Float[ArrayLike, " n"],
        sigma_dist: LikelihoodNoise,
    ) -> "HeldOut":
        """Held-out simulations with noise levels and noise, drawn once for all later losses.

        Arguments:
            log_det: of each example's coordinates, nats.
        """
        rng = on_host(key)
        z, x = jnp.asarray(z), jax.tree.map(jnp.asarray, x)
        n, d = z.shape
        m = -(-PAIRS // n)
        strata = (rng.permutation(m * n).reshape(m, n) + 0.5) / (m * n)
        sigmas = _levels(sigma_dist, jnp.asarray(strata, z.dtype))
        noise = jnp.asarray(rng.standard_normal((m, n, d)), z.dtype)
        untrained = gaussian_nats(z, log_det)
        mass = float(sigma_dist.mass()) * d
        return cls(z, x, sigmas, noise, untrained=untrained, mass=mass)

    def __call__(self, denoiser: Denoiser) -> float:
        """Upper bound on the mean of -ln q(theta given x), nats."""
        return self.untrained - self.mass * float(jnp.mean(_gains(self, denoiser)))

    def gain(self, denoiser: Denoiser, sigma: float) -> float:
        """The mean gain at one noise level, of the feature that gains most.

        Each noise comes with its opposite: what is odd in it, most of the scatter, cancels.
        """
        level = jnp.full_like(self.sigmas, sigma)
        where = lambda held_out: (held_out.sigmas, held_out.noise)
        both = [eqx.tree_at(where, self, (level, sign * self.noise)) for sign in (1, -1)]
        gains = sum(jnp.mean(_gains(here, denoiser), axis=(0, 1)) for here in both)
        return float(jnp.max(gains)) / 2

    def smallest_sigma(self, denoiser: Denoiser, sigma_min: float) -> float:
        """The noise level at which sampling may end: its last step loses 0.1 % of the variance.

        That is a thirtieth of the width where all posteriors are alike. Where a tenth of them are
        far narrower than the rest, they lose 1 %. At least `sigma_min`, where training began.
        """
        sigmas = np.geomspace(sigma_min, LARGEST_SIGMA_MIN, 10)
        coarse = lambda sigma: self.gain(denoiser, sigma) > LOST_VARIANCE
        first = bisect.bisect_left(sigmas, True, key=coarse)  # the gain rises with sigma
        return float(sigmas[max(first - 1, 0)])


@eqx.filter_jit
def _levels(sigma_dist: LikelihoodNoise, strata: Float[Array, "m n"]) -> Float[Array, "m n"]:
    return jax.vmap(jax.vmap(sigma_dist.from_variate))(strata)


def gaussian_nats(z: Float[ArrayLike, "n d"], log_det: Float[ArrayLike, " n"]) -> float:
    """The mean of -ln q over examples whose z is taken to be N(0, I), nats."""
    rows, log_dets = np.asarray(z, float), np.asarray(log_det, float)
    square = np.mean(np.sum(rows**2, axis=1))
    return float(square / 2 + rows.shape[1] / 2 * np.log(2 * np.pi) - np.mean(log_dets))


def _gains(held_out: HeldOut, denoiser: Denoiser) -> Float[Array, "m n d"]:
    """The error of the untrained network less that of `denoiser`, for the same noise."""
    return _differences(
        z=held_out.z,
        x=held_out.x,
        sigmas=held_out.sigmas,
        noise=held_out.noise,
        denoiser=denoiser,
    )


@eqx.filter_jit  # of the arrays alone: another number in `HeldOut` must not compile it again
def _differences(z: Array, x: Any, sigmas: Array, noise: Array, denoiser: Denoiser) -> Array:
    untrained = Denoiser(lambda z, *_, key: jnp.zeros_like(z), denoiser.preconditioning)

    def one(z: Array, sigma: Array, noise: Array, x: Any) -> Array:
        n = sigma * noise
        before = weighted_error(untrained, z, sigma, n, cond=x)
        return before - weighted_error(denoiser, z, sigma, n, cond=x)

    row = lambda args: jax.vmap(one)(z, args[0], args[1], x)
    return jax.lax.map(row, (sigmas, noise))


def _primitive(sigma: Array) -> Array:
    return -jnp.log1p(sigma**-2) / 2
