r"""Parameterisations of a network: five predictions, and the conversion between them.

For $x = y + \sigma n$ each of them is a line in $x$ and the denoiser, $a(\sigma)\,x +
b(\sigma)\,D(x;\sigma)$, with $(a, b)$

- $(0, 1)$ for `denoised`, the mean of the data $y$ given $x$;
- $(1, -1)/\sigma$ for `epsilon`, the mean of $n$;
- $(-1, 1)/\sigma^2$ for `score`, which is $\nabla_x \ln p(x;\sigma)$ (Eq. 3);
- $(1, -1-\sigma)/\sigma$ for `velocity`, the mean of $n - y$ (flow matching);
- $(1, -1-\sigma^2)/(\sigma\sqrt{1+\sigma^2})$ for `v_prediction`, the mean of
  $(n - \sigma y)/\sqrt{1+\sigma^2}$.

So a network trained on one of them answers for all. `x` is without scaling: divide by s first.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ._checks import check_floating, check_number, check_shape
from ._types import Example, Scalar, as_float


class Line(NamedTuple):
    """The two coefficients of a prediction a x + b D at one noise level, scalars."""

    a: Float[Array, ""]
    b: Float[Array, ""]


Parameterisation = Callable[[Array], Line]
"""A function of sigma (data units) that gives the `Line` of a prediction."""


def denoised(sigma: Float[Array, ""]) -> Line:
    """The mean of the data given x, in data units: a denoiser's own answer."""
    return Line(jnp.zeros_like(sigma), jnp.ones_like(sigma))


def epsilon(sigma: Float[Array, ""]) -> Line:
    r"""The mean of the unit noise given x, $(x - D)/\sigma$."""
    return Line(1 / sigma, -1 / sigma)


def score(sigma: Float[Array, ""]) -> Line:
    r"""$\nabla_x \ln p(x;\sigma) = (D - x)/\sigma^2$ (Eq. 3), per data unit."""
    return Line(-1 / sigma**2, 1 / sigma**2)


def velocity(sigma: Float[Array, ""]) -> Line:
    r"""The mean of noise minus data: $dx_t/dt$ on $x_t = (1-t)y + tn$, with $x = x_t/(1-t)$."""
    return Line(1 / sigma, -1 / sigma - 1)


def v_prediction(sigma: Float[Array, ""]) -> Line:
    r"""$(n - \sigma y)/\sqrt{1+\sigma^2}$: minus EDM's raw network output at `sigma_data` = 1."""
    root = jnp.sqrt(1 + sigma**2)
    return Line(1 / (sigma * root), -root / sigma)


def convert(
    prediction: Example,
    x: Example,
    sigma: Scalar,
    *,
    source: Parameterisation,
    target: Parameterisation = denoised,
) -> Example:
    """A prediction in another parameterisation, for one example.

        D = lambda x, sigma, cond=None, *, key=None: convert(
            network(x, sigma), x, sigma, source=epsilon)  # it predicts the noise

    Arguments:
        prediction: what the network said at `x`, which is unscaled and in data units.
        source, target: what that is and what is wanted: functions of this module (or your own).

    Raises: ValueError if `x` is not floating, `prediction` has another shape, or `sigma` is not
    positive and finite.
    """
    check_floating("x", x)
    check_shape("prediction", prediction, x)
    check_number("sigma", sigma)
    sigma = as_float(sigma, x)
    known, wanted = source(sigma), target(sigma)
    # D = (prediction - a x)/b, put into the other line. Equal lines give the prediction back.
    gain = wanted.b / known.b
    return gain * prediction + (wanted.a - gain * known.a) * x
