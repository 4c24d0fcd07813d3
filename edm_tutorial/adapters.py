r"""Networks of other diffusion models as denoisers: DDPM's noise, flow matching's velocity.

Both kinds see a scaled point at a time label of their own. With $x = y + \sigma n$,

- DDPM (Ho et al., 2020) has $x_t = \sqrt{\bar\alpha_t}\,y + \sqrt{1-\bar\alpha_t}\,n$, so
  $\sigma_t^2 = (1-\bar\alpha_t)/\bar\alpha_t$ and $x_t = x/\sqrt{1+\sigma^2}$. Its network
  predicts $n$, so $D = x - \sigma\,\epsilon_\theta(x_t, t)$.
- Flow matching has $x_t = (1-t)\,y + t\,n$, so $\sigma = t/(1-t)$ and $x_t = x/(1+\sigma)$.
  Its network predicts $n - y$, so $D = x_t - t\,v_\theta(x_t, t)$.

Nothing is trained anew: these denoisers can be sampled with any grid, schedule and solver.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ._checks import check_call, check_callable, check_floating, check_output, check_scalar
from ._types import Condition, DenoiserFn, PRNGKey, Scalar, as_float


def from_ddpm(
    eps_network: Callable[..., Array], alphas_cumprod: Float[ArrayLike, " steps"] | Sequence[Any]
) -> DenoiserFn:
    r"""The denoiser of a DDPM network, which predicts the noise at discrete steps.

    The label of a noise level between two steps is interpolated, linearly in $\ln\sigma$. Beyond
    the first and the last step it stays theirs: sample and integrate between `sigma_min` and
    `sigma_max` of the model, $\sqrt{1/\bar\alpha - 1}$ of these two.

    Arguments:
        eps_network: called as `eps_network(x_t, t_label, cond)` for one example, and with `key=`
            only where the denoiser is; `t_label` is a scalar of the dtype of `x_t`, from 0 to
            steps - 1. Returns the noise, shaped like `x_t`.
        alphas_cumprod: $\bar\alpha_t$ of all steps, from nearly 1 down to nearly 0. Give them
            in float64: the first ones lose digits in $1 - \bar\alpha_t$.

    Warns:
        UserWarning: the last of them is above 0.5, as of the alphas without their product.

    Raises: ValueError unless `alphas_cumprod` is 1-D, descending and between 0 and 1; TypeError if
    `eps_network` is not callable or has another signature.
    """
    _check_network("eps_network", eps_network)
    alpha_bar = np.asarray(alphas_cumprod, float)
    bounded = alpha_bar.ndim == 1 and np.all((alpha_bar > 0) & (alpha_bar < 1))
    if not (bounded and len(alpha_bar) >= 2 and np.all(np.diff(alpha_bar) < 0)):
        raise ValueError(
            "alphas_cumprod must be 1-D, at least 2 numbers descending strictly between 1 and "
            f"0, from the step of least noise to that of most; got {alphas_cumprod}"
        )
    if alpha_bar[-1] > 0.5:
        warnings.warn(
            f"alphas_cumprod ends at {alpha_bar[-1]:.3g}, where there is more data than noise: is "
            "it np.cumprod(1 - betas)? If so, all is well up to its sigma_max, "
            f"{np.sqrt(1 / alpha_bar[-1] - 1):.3g}",
            stacklevel=2,
        )
    log_sigmas = (np.log1p(-alpha_bar) - np.log(alpha_bar)) / 2
    return _FromDDPM(eps_network, tuple(log_sigmas.tolist()))


def from_flow_matching(velocity: Callable[..., Array]) -> DenoiserFn:
    r"""The denoiser of a flow matching network, which predicts noise minus data.

    Arguments:
        velocity: called as `velocity(x_t, t, cond)` for one example (`key=` as in `from_ddpm`)
            on $x_t = (1-t)\,y + t\,n$, where t = 0 is data and t = 1 is noise; `t` is a scalar
            of the dtype of `x_t`. Returns the mean of $n - y$, shaped like `x_t`. A model whose
            time runs from noise to data is `lambda x, t, cond: -model(x, 1 - t, cond)`.

    Raises: TypeError if `velocity` is not callable or has another signature.
    """
    _check_network("velocity", velocity)
    return _FromFlowMatching(velocity)


@final
class _FromDDPM(eqx.Module):
    network: Callable[..., Array]
    log_sigmas: tuple[float, ...] = eqx.field(static=True)  # so that no optimizer trains them

    def __call__(
        self, x: Array, sigma: Scalar, cond: Condition = None, *, key: PRNGKey | None = None
    ) -> Array:
        sigma = _level(x, sigma)
        steps = jnp.arange(len(self.log_sigmas), dtype=x.dtype)
        label = jnp.interp(jnp.log(sigma), jnp.asarray(self.log_sigmas, x.dtype), steps)
        return x - sigma * _predict(self.network, x / jnp.hypot(1, sigma), label, cond, key=key)


@final
class _FromFlowMatching(eqx.Module):
    network: Callable[..., Array]

    def __call__(
        self, x: Array, sigma: Scalar, cond: Condition = None, *, key: PRNGKey | None = None
    ) -> Array:
        sigma = _level(x, sigma)
        x_t, t = x / (1 + sigma), sigma / (1 + sigma)
        return x_t - t * _predict(self.network, x_t, t, cond, key=key)


def _check_network(name: str, network: Any) -> None:
    """Refuse what cannot be called with a point, its label and a condition."""
    check_callable(name, network)
    check_call(
        name,
        network,
        told=f"{name}(x_t, t, cond)",
        given=("x_t", "t", "cond"),
        advice="Of a model that takes no condition, write lambda x_t, t, cond: model(x_t, t)",
    )


def _level(x: Array, sigma: Scalar) -> Array:
    check_floating("x", x)
    check_scalar("sigma", sigma)
    return as_float(sigma, x)


def _predict(
    network: Callable[..., Array],
    x_t: Array,
    label: Array,
    cond: Condition,
    *,
    key: PRNGKey | None,
) -> Array:
    given = {} if key is None else {"key": key}
    prediction = network(x_t, label, cond, **given)
    check_output(prediction, x_t)
    return prediction
