r"""Magnitude-preserving layers of EDM2 (Karras et al., 2024), for one example, channels last.

The *magnitude* of an array is the root mean square of its entries. Each layer here returns
magnitude 1 for independent entries of magnitude 1:

- linear maps and convolutions, for each row $w_i$ of weights (Eq. 47 there):
  $y_i = \frac{w_i}{\|w_i\|} \cdot x$
- SiLU (Eq. 81): $\mathrm{silu}(x) / 0.596$
- the sum of two (Eq. 88): $\frac{(1 - t)\, a + t\, b}{\sqrt{(1-t)^2 + t^2}}$
- the concatenation of $N_a$ and $N_b$ channels (Eq. 103):
  $C\,[\frac{1-t}{\sqrt{N_a}}\, a,\ \frac{t}{\sqrt{N_b}}\, b]$ with
  $C^2 = \frac{N_a + N_b}{(1-t)^2 + t^2}$
- Fourier features (Eq. 75): $\sqrt 2 \cos(2\pi (f c + \varphi))$

There are no biases. A row of weights counts only by its direction, so its gradient is orthogonal
to it, and a step along the gradient makes it longer. Its length is therefore *forced* back to the
square root of its number of entries after each step (Eq. 66), by the optimizer:

    optimizer = optax.chain(optax.adam(1e-2), forced_norms())

That changes no output of the network; it keeps the step of an optimizer in proportion to the row.
"""

import math
from functools import partial
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float

from ..._types import PRNGKey
from ..unet.convolution import convolve


@final
class Rows(eqx.Module):
    """Rows of weights, one for each output, of which only the directions count."""

    array: Float[Array, "*inputs out"]

    def unit(self, dtype: jax.typing.DTypeLike) -> Float[Array, "*inputs out"]:
        """The rows at norm 1, as the layers use them, in `dtype`."""
        return (self.array / _norms(self.array)).astype(dtype)

    def forced(self) -> "Rows":
        """The rows at their forced norm: 1 in the root mean square of their entries."""
        length = math.sqrt(self.array[..., 0].size)
        return Rows(self.array * (length / _norms(self.array)))


def _random_rows(key: PRNGKey, shape: tuple[int, ...]) -> Rows:
    """Rows in random directions: the first of 2^n numbers, so that XLA compiles few generators."""
    size = max(16, (math.prod(shape) - 1).bit_length())
    return _first_rows(jr.normal(key, (2**size,)), shape)


@partial(jax.jit, static_argnames="shape")
def _first_rows(numbers: Array, shape: tuple[int, ...]) -> Rows:
    return Rows(numbers[: math.prod(shape)].reshape(shape)).forced()


def _norms(array: Float[Array, "*inputs out"]) -> Float[Array, "*ones out"]:
    return jnp.sqrt(jnp.sum(array**2, axis=tuple(range(array.ndim - 1)), keepdims=True))


def forced_norms() -> optax.GradientTransformation:
    """Projection of all rows to their forced norm (Eq. 66 of EDM2), the last of an `optax.chain`.

    It acts on the layers of this module, wherever they are in what is trained, and passes on the
    updates of everything else.

    Raises: ValueError if there is no such layer, or if `update` is called without `params`.
    """

    def init(params: Any) -> optax.EmptyState:
        if not any(map(_is_rows, jax.tree.leaves(params, is_leaf=_is_rows))):
            raise ValueError(
                "forced_norms() needs a network with magnitude-preserving layers, such as "
                "edm2_unet, and found none: leave it out of the optimizer"
            )
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("forced_norms() needs params: call update(updates, state, params)")
        return jax.tree.map(_forced_update, updates, params, is_leaf=_is_rows), state

    return optax.GradientTransformation(init, update)


def _is_rows(node: Any) -> bool:
    return isinstance(node, Rows)


def _forced_update(update: Any, weights: Any) -> Any:
    if not _is_rows(weights):
        return update
    return Rows(Rows(weights.array + update.array).forced().array - weights.array)


@final
class MPLinear(eqx.Module):
    """A magnitude-preserving linear map of the last axis; of an image, a 1x1 convolution."""

    weight: Rows

    def __init__(self, in_channels: int, out_channels: int, *, key: PRNGKey):
        self.weight = _random_rows(key, (in_channels, out_channels))

    def __call__(self, x: Float[Array, "*points in"]) -> Float[Array, "*points out"]:
        return x @ self.weight.unit(x.dtype)


@final
class MPConv(eqx.Module):
    """A magnitude-preserving 3x3 convolution, with zeros outside of the image."""

    weight: Rows

    def __init__(self, in_channels: int, out_channels: int, *, key: PRNGKey):
        self.weight = _random_rows(key, (3, 3, in_channels, out_channels))

    def __call__(self, x: Float[Array, "h w in"]) -> Float[Array, "h w out"]:
        return convolve(x, self.weight.unit(x.dtype), 1)


@final
class MPFourier(eqx.Module):
    r"""Magnitude-preserving Fourier features $\sqrt 2\cos(2\pi(f c + \varphi))$ of one number.

    The frequencies are drawn once from N(0, 1), the phases from U(0, 1); neither is trained.
    """

    frequencies: Float[Array, " n"]
    phases: Float[Array, " n"]

    def __init__(self, num_channels: int, *, key: PRNGKey):
        frequency_key, phase_key = jr.split(key)
        self.frequencies = jr.normal(frequency_key, (num_channels,))
        self.phases = jr.uniform(phase_key, (num_channels,))

    def __call__(self, c: Float[Array, ""]) -> Float[Array, " n"]:
        fixed = jax.lax.stop_gradient((self.frequencies, self.phases))
        frequencies, phases = (part.astype(c.dtype) for part in fixed)
        return math.sqrt(2) * jnp.cos(2 * math.pi * (frequencies * c + phases))


def mp_silu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """SiLU over its magnitude on unit normals."""
    return jax.nn.silu(x) / 0.596


def mp_sum(
    a: Float[Array, "*shape"], b: Float[Array, "*shape"], t: float
) -> Float[Array, "*shape"]:
    """The sum of two independent arrays; `t` is the share of the second."""
    return ((1 - t) * a + t * b) / math.hypot(1 - t, t)


def mp_cat(
    a: Float[Array, "*points n_a"], b: Float[Array, "*points n_b"], t: float = 0.5
) -> Float[Array, "*points n"]:
    """The concatenation of channels; what follows sees as much of `b` as in an `mp_sum`."""
    n_a, n_b = a.shape[-1], b.shape[-1]
    scale = math.sqrt(n_a + n_b) / math.hypot(1 - t, t)
    parts = [scale * (1 - t) / math.sqrt(n_a) * a, scale * t / math.sqrt(n_b) * b]
    return jnp.concatenate(parts, axis=-1)


def pixel_norm(x: Float[Array, "*points c"]) -> Float[Array, "*points c"]:
    """Each point's channels over their magnitude, which becomes 1."""
    wide = x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x
    mean_square = jnp.mean(wide**2, axis=-1, keepdims=True)
    # 1e-8: a point without any signal stays zero
    return (wide * jax.lax.rsqrt(mean_square + 1e-8)).astype(x.dtype)
