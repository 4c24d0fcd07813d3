r"""A convolution whose derivatives are as fast as the convolution itself, also inside a loop.

$y = w * x$ is linear in each factor, so its derivatives are convolutions too: towards the
image, $y' * \mathrm{flip}(w)^T$; towards the weights, of the image with $y'$. JAX writes them
with exchanged axes. XLA on CPU puts axes right outside of loops only, and inside a `scan`, as
in training, falls back to a loop over single numbers: measured 15 to 25 times slower.

So this is a primitive of its own, the same convolution with its axes in order everywhere. With a
kernel of a single entry it is a product of matrices, $y = x w$, and towards the weights $x^T y'$:
JAX takes $(y'^T x)^T$, which XLA on CPU computes two to three times slower.
"""

import math
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


def _forward(x: Array, weight: Array, *, pad: int) -> Array:
    if _is_product(weight.shape, pad):
        return x @ weight.reshape(weight.shape[-2:])
    return _sliding(x, weight, pad)


def _is_product(shape: tuple[int, ...], pad: int) -> bool:
    """Whether a kernel of this shape has a single entry, and nothing is padded."""
    return math.prod(shape[:-2]) == 1 and pad == 0


def _sliding(x: Array, weight: Array, pad: int, axes: Any = _LAST) -> Array:
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
    if _is_product(weight.aval.shape, pad):
        pixels = tuple(range(x.ndim - 1))
        return None, jnp.tensordot(x, cotangent, (pixels, pixels)).reshape(weight.aval.shape)
    return None, jax.lax.platform_dependent(
        x,
        cotangent,
        cpu=lambda x, y: _swap(_sliding(x.swapaxes(0, -1), _swap(y), pad)),
        default=lambda x, y: _sliding(x, y, pad, ("C*N", "I*O", "*NC")),
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
