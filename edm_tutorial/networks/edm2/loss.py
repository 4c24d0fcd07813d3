r"""The learned loss weight of EDM2: how uncertain the loss is at each noise level.

A small function $u(\sigma)$ is trained together with the denoiser on (Eq. 21 of EDM2)

$$E\,\big[e^{-u(\sigma)}\,\mathrm{loss}(\sigma) + u(\sigma)\big].$$

The derivative by $u$ vanishes at $u = \ln\mathrm{loss}(\sigma)$: every level then weighs the same.
After training $u$ is dropped:

    model = Weighted(Denoiser(network, preconditioning), LossWeight(key=key))
    loss = partial(weighted_loss, sigma_dist=LogNormal())
    for state, losses in train(model, loss, x, optimizer, ...):
        ...
    denoiser = state.ema.denoiser
"""

from collections.abc import Callable
from typing import final

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from ..._checks import check_callable, check_key, whole
from ..._types import Condition, Example, PRNGKey, Scalar
from ...losses import Preconditioned, error_at_random_level
from .layers import MPFourier, MPLinear


@final
class LossWeight(eqx.Module):
    """The function u of the noise label: a magnitude-preserving linear map of Fourier features.

    Raises: ValueError or TypeError for `num_channels` that are no positive whole number; TypeError
    if `key` is no random key.
    """

    fourier: MPFourier
    linear: MPLinear

    def __init__(self, num_channels: int = 128, *, key: PRNGKey):
        check_key("key", key)
        fourier_key, linear_key = jr.split(key)
        self.fourier = MPFourier(whole("num_channels", num_channels), key=fourier_key)
        self.linear = MPLinear(self.fourier.phases.size, 1, key=linear_key)

    def __call__(self, c_noise: Float[Array, ""]) -> Float[Array, ""]:
        """u, the logarithm of the expected loss, at the noise label `c_noise`."""
        return self.linear(self.fourier(c_noise))[0]


@final
class Weighted(eqx.Module):
    """A denoiser and the weight of its loss, trained together; the denoiser is what remains.

    Raises: TypeError if `u` is not callable.
    """

    denoiser: Preconditioned
    u: Callable[[Array], Array]

    def __check_init__(self):
        check_callable("u", self.u)


def weighted_loss(
    model: Weighted,
    x: Example,
    cond: Condition = None,
    *,
    sigma_dist: Callable[[PRNGKey], Array],
    null: Condition = None,
    p_null: Scalar = 0.1,
    key: PRNGKey,
) -> Float[Array, ""]:
    """The training loss of one example, exp(-u) loss + u: `denoising_loss` with a learned weight.

    It can be negative. Arguments and errors are those of `denoising_loss`.
    """
    error, sigma = error_at_random_level(
        model.denoiser, x, cond, sigma_dist=sigma_dist, null=null, p_null=p_null, key=key
    )
    u = model.u(model.denoiser.preconditioning(sigma).c_noise)
    return jnp.exp(-u) * error + u
