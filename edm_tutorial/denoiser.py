r"""Denoisers made of a network, of a fixed condition, or of a guided pair.

A denoiser is any callable `D(x, sigma, cond=None, *, key=None)` that returns the mean of
the data given the noisy `x`. Samplers, likelihoods and posteriors ask for nothing else.
"""

import copyreg
import sys
from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._checks import (
    check_call,
    check_callable,
    check_floating,
    check_kind,
    check_output,
    check_scalar,
    check_stateless,
    concrete,
)
from ._types import Condition, DenoiserFn, Example, PRNGKey, Scalar, as_float, as_traced
from .preconditioning import AbstractPreconditioning


@final
class Denoiser(eqx.Module):
    r"""A network inside its preconditioning: $c_{skip} x + c_{out} F(c_{in} x; c_{noise})$.

    Eq. 7. The network is called as `network(c_in * x, c_noise, cond, key=key)` with one
    example and returns an array of the same shape.

    Arguments:
        network: any callable; an `eqx.Module` can be trained.
        preconditioning: stays with the network for life, whatever sampler is used.

    Raises: TypeError if `network` is not callable, has another signature (see `networks.adapt`) or
    layers that keep a state, or if `preconditioning` is not one.
    """

    network: Callable[..., Array]
    preconditioning: AbstractPreconditioning

    def __check_init__(self):
        check_callable("network", self.network)
        check_kind("preconditioning", self.preconditioning, AbstractPreconditioning)
        check_stateless("network", self.network)
        check_call(
            "network",
            self.network,
            told="F(x, c_noise, cond, *, key=None)",
            given=("x", "c_noise", "cond"),
            named={"key": None},
            advice="networks.adapt(network) makes one of a network that takes less, or one vector",
        )

    def __call__(
        self, x: Example, sigma: Scalar, cond: Condition = None, *, key: PRNGKey | None = None
    ) -> Example:
        """The mean of the data given `x` at noise level `sigma`, in data units.

        Raises: ValueError if `x` is not floating, `sigma` has axes, or the network returns
        something else than an array shaped like `x`.
        """
        check_floating("x", x)
        check_scalar("sigma", sigma)
        c = self.preconditioning(as_float(sigma, x))
        output = self.network(c.c_in * x, c.c_noise, cond, key=key)
        check_output(output, x)
        return c.c_skip * x + c.c_out * output


@final
class Pinned(eqx.Module):
    """A denoiser whose condition is fixed: a posterior, one class, or "no label".

    The condition it is called with is ignored, so that `Guided(D, Pinned(D, null), w)` is
    classifier-free guidance.

    Raises: TypeError if `denoiser` is not callable.
    """

    denoiser: DenoiserFn
    cond: Condition = eqx.field(converter=as_traced)

    def __check_init__(self):
        check_callable("denoiser", self.denoiser)

    def __call__(
        self, x: Example, sigma: Scalar, cond: Condition = None, *, key: PRNGKey | None = None
    ) -> Example:
        """The wrapped denoiser at the fixed condition."""
        return _call(self.denoiser, x, sigma, self.cond, key)


@final
class Guided(eqx.Module):
    r"""One denoiser steered away from a worse one: $D_g + w\,(D_m - D_g)$.

    `weight` 1 is `main` alone, 0 is `guide` alone, more than 1 extrapolates. Outside the
    noise levels of `interval` (both ends included, data units) the weight is 1. The condition
    and half of the key go to each denoiser. With w other than 1 the result is *not* the denoiser
    of a posterior.

    Raises: ValueError if `interval` is not an ordered pair or `weight` not finite; TypeError if
    `main` or `guide` is not callable.
    """

    main: DenoiserFn
    guide: DenoiserFn
    weight: Scalar = eqx.field(converter=as_traced)
    interval: tuple[Scalar, Scalar] = eqx.field(converter=as_traced, default=(0.0, float("inf")))

    def __check_init__(self):
        check_callable("main", self.main)
        check_callable("guide", self.guide)
        _check_interval(self.interval)
        if concrete(self.weight) and not np.all(np.isfinite(np.asarray(self.weight, float))):
            raise ValueError(f"weight must be finite, got {self.weight}")

    def __call__(
        self, x: Example, sigma: Scalar, cond: Condition = None, *, key: PRNGKey | None = None
    ) -> Example:
        """The guided denoiser at one example."""
        main_key, guide_key = (None, None) if key is None else jax.random.split(key)
        main = _call(self.main, x, sigma, cond, main_key)
        guide = _call(self.guide, x, sigma, cond, guide_key)
        low, high = (as_float(end, x) for end in self.interval)
        sigma, weight = as_float(sigma, x), as_float(self.weight, x)
        inside = (low <= sigma) & (sigma <= high)
        return jnp.where(inside, guide + weight * (main - guide), main)


def _check_interval(interval: Any) -> None:
    """Refuse what is not an ordered pair of numbers."""
    try:
        low, high = interval
        ordered = not concrete(low, high) or float(low) <= float(high)
    except (TypeError, ValueError):
        ordered = False
    if not ordered:
        raise ValueError(f"interval must be (low, high) with low <= high, got {interval}")


def _by_name(function: Any) -> Any:
    """The pickled form of a jitted function: its name, as for functions, where it has one."""
    module = sys.modules.get(getattr(function, "__module__", ""))
    name = getattr(function, "__qualname__", "")
    return name if getattr(module, name, None) is function else function.__reduce_ex__(2)


# JAX's own activations are jitted, and networks hold them: without this none can be pickled.
for _kind in (type(jax.nn.silu), type(jax.nn.relu)):
    copyreg.pickle(_kind, _by_name)


def _call(
    denoiser: DenoiserFn, x: Array, sigma: Scalar, cond: Condition, key: PRNGKey | None
) -> Array:
    """The denoiser at `x`; a plain function has no parameter `key`, unless it draws."""
    given = {} if key is None else {"key": key}
    return denoiser(x, sigma, cond, **given)
