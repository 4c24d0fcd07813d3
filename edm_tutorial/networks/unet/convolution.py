r"""A convolution whose derivatives are as fast as the convolution itself, also inside a loop.

$y = w * x$ is linear in each factor, so its derivatives are convolutions too: towards the
image, $y' * \mathrm{flip}(w)^T$; towards the weights, of the image with $y'$. JAX writes them
with exchanged axes. XLA on CPU puts axes right outside of loops only, and inside a `scan`, as
in training, falls back to a loop over single numbers: measured 15 to 25 times slower.

So this is a primitive of its own, the same convolution with its axes in order everywhere.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

_LAST = ("N*C", "*IO", "N*C")  # the spatial axes stand for the star


def convolve(
    x: Float[Array, "*size in"], weight: Float[Array, "*kernel in out"], pad: int
) -> Float[Array, "*size2 out"]:
    """The cross-correlation of an image with `weight`, after `pad` zeros on every side.

    An image may have one, two or three axes besides its channels; `weight` has as many.
    """
    return _conv_p.bind(x[None], weight, pad=pad)[0]


def _forward(x: Array, weight: Array, *, pad: int, axes: Any = _LAST) -> Array:
    spatial = "DHW"[-(x.ndim - 2) :]
    axes = tuple(letters.replace("*", spatial) for letters in axes)
    strides, pads = [1] * len(spatial), [(pad, pad)] * len(spatial)
    return jax.lax.conv_general_dilated(x, weight, strides, pads, dimension_numbers=axes)


def _jvp(primals: Any, tangents: Any, *, pad: int) -> tuple[Array, Any]:
    (x, weight), (dx, dweight) = primals, tangents
    out = _conv_p.bind(x, weight, pad=pad)
    terms = []  # one or two: JAX asks for no derivative along nothing
    if not isinstance(dx, ad.Zero):
        terms.append(_conv_p.bind(dx, weight, pad=pad))
    if not isinstance(dweight, ad.Zero):
        terms.append(_conv_p.bind(x, dweight, pad=pad))
    return out, sum(terms[1:], terms[0])


def _transpose(cotangent: Any, x: Any, weight: Any, *, pad: int) -> tuple[Any, Any]:
    if isinstance(cotangent, ad.Zero):
        return None, None
    if ad.is_undefined_primal(x):
        flipped = jnp.flip(weight, range(weight.ndim - 2)).swapaxes(-2, -1)
        return _conv_p.bind(cotangent, flipped, pad=len(weight) - 1 - pad), None
    return None, jax.lax.platform_dependent(
        x,
        cotangent,
        cpu=lambda x, y: _swap(_forward(x.swapaxes(0, -1), _swap(y), pad=pad)),
        default=lambda x, y: _forward(x, y, pad=pad, axes=("C*N", "I*O", "*NC")),
    )


def _swap(x: Array) -> Array:
    """The first axis right before the last."""
    return jnp.moveaxis(x, 0, -2)


def _batch(args: Any, axes: Any, *, pad: int) -> tuple[Array, int]:
    (x, weight), (x_axis, weight_axis) = args, axes
    if weight_axis is not None:  # an ensemble: nothing is shared
        one = lambda x, weight: _forward(x, weight, pad=pad)
        return jax.vmap(one, in_axes=axes)(x, weight), 0
    x = jnp.moveaxis(x, x_axis, 0)
    out = _conv_p.bind(x.reshape(-1, *x.shape[2:]), weight, pad=pad)
    return out.reshape(*x.shape[:2], *out.shape[1:]), 0


_conv_p = Primitive("convolve_channels_last")
_conv_p.def_impl(jax.jit(_forward, static_argnames=("pad",)))
ad.primitive_jvps[_conv_p] = _jvp
ad.primitive_transposes[_conv_p] = _transpose
batching.primitive_batchers[_conv_p] = _batch
mlir.register_lowering(_conv_p, mlir.lower_fun(_forward, multiple_results=False))


@_conv_p.def_abstract_eval
def _(x: Any, weight: Any, *, pad: int) -> Any:
    n, *size, _ = x.shape
    wider = 2 * pad + 1 - weight.shape[0]
    return x.update(shape=(n, *(length + wider for length in size), weight.shape[-1]))
