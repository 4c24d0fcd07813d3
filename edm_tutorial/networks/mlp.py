r"""A residual network for vectors: points in the plane, parameters, small images laid flat.

The noise label enters as cosines and sines at frequencies from slow to fast, so one network
serves labels as different as $\tfrac14\ln\sigma \in [-1.6, 1.1]$ (EDM) and an index up to 999 (VP).
The last layer starts at zero: the untrained network outputs 0, hence a loss of exactly 1.
"""

from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_callable, check_floating, check_key, check_stateless, whole
from .._types import Condition, PRNGKey

FREQUENCIES = 32
OCTAVES, MOMENTS_WIDTH, MOMENTS_DEPTH = 3, 128, 2  # of `PosteriorMLP`
LARGEST_LOG_STD = 8.0  # of its widths, either way: beyond lie overflows, and no posterior


def waves(angles: Float[Array, " n"]) -> Float[Array, " features"]:
    """The cosines of all angles, then their sines."""
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)])


def embed_noise(c_noise: Float[Array, ""]) -> Float[Array, " features"]:
    """Cosines and sines of the noise label; frequencies 0.001 to 8 per unit, not trained."""
    angles = c_noise * jnp.asarray(np.geomspace(1e-3, 8.0, FREQUENCIES), c_noise.dtype)
    return waves(angles)


class _Block(eqx.Module):
    norm: eqx.nn.LayerNorm
    inner: eqx.nn.Linear
    context: eqx.nn.Linear
    outer: eqx.nn.Linear
    dropout: eqx.nn.Dropout

    def __init__(self, width: int, dropout: float, key: PRNGKey):
        inner_key, context_key, outer_key = jr.split(key, 3)
        self.norm = eqx.nn.LayerNorm(width)
        self.inner = eqx.nn.Linear(width, width, key=inner_key)
        self.context = eqx.nn.Linear(width, width, use_bias=False, key=context_key)
        self.outer = eqx.nn.Linear(width, width, key=outer_key)
        self.dropout = eqx.nn.Dropout(dropout)

    def __call__(self, h: Array, context: Array, key: PRNGKey | None) -> Array:
        # A sum, not a concatenation: under vmap a shared context is computed only once.
        inside = self.inner(self.norm(h)) + self.context(context)
        inside = self.dropout(jax.nn.silu(inside), key=key, inference=key is None)
        return h + self.outer(inside)


@final
class MLP(eqx.Module):
    """A residual MLP F(x, c_noise, cond) for `x` of shape (size,), `cond` of (cond_size,).

    It computes in the dtype of `x`. Untrained, it returns exactly zero.

    Arguments:
        size: the number of features of `x`.
        cond_size: the number of features of the condition; 0: `cond` must be None.
        width: the width of the hidden layers.
        depth: the number of residual blocks.
        octaves: the number of frequencies 1, 2, 4, ... at which the network also gets the
            cosines and sines of `x`. With more of them, narrow structure in `x` is learned
            sooner.
        dropout: the fraction of hidden units that are left out in a call with a `key`, as
            the losses make in training. A call without a key leaves out none.

    Raises:
        ValueError: a size below 1, not 0 <= dropout < 1, or a call with `x` or `cond` of
            another shape.
        TypeError: a size that is not a whole number.
    """

    embed_input: eqx.nn.Linear
    embed_context: eqx.nn.MLP
    blocks: list[_Block]
    output: eqx.nn.Linear
    size: int = eqx.field(static=True)
    cond_size: int = eqx.field(static=True)
    octaves: int = eqx.field(static=True)

    def __init__(
        self,
        size: int,
        cond_size: int = 0,
        *,
        width: int = 128,
        depth: int = 3,
        octaves: int = 0,
        dropout: float = 0.0,
        key: PRNGKey,
    ):
        self.size, self.cond_size = whole("size", size), whole("cond_size", cond_size, least=0)
        self.octaves = whole("octaves", octaves, least=0)
        width, depth = whole("width", width), whole("depth", depth)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
        check_key("key", key)
        input_key, context_key, output_key, *block_keys = jr.split(key, 3 + depth)
        features = self.size * (1 + 2 * self.octaves)
        self.embed_input = eqx.nn.Linear(features, width, key=input_key)
        self.embed_context = eqx.nn.MLP(
            2 * FREQUENCIES + self.cond_size,
            width,
            width,
            depth=1,
            activation=jax.nn.silu,
            final_activation=jax.nn.silu,
            key=context_key,
        )
        self.blocks = [_Block(width, dropout, block_key) for block_key in block_keys]
        output = eqx.nn.Linear(width, self.size, key=output_key)
        self.output = jax.tree.map(jnp.zeros_like, output)

    def __call__(
        self,
        x: Float[Array, " size"],
        c_noise: Float[Array, ""],
        cond: Condition = None,
        *,
        key: PRNGKey | None = None,
    ) -> Float[Array, " size"]:
        """The raw network output for one example."""
        self._check(x, cond)
        net = cast_floating(self, x.dtype)
        cond = jnp.zeros(0, x.dtype) if cond is None else jnp.asarray(cond).astype(x.dtype)
        context = net.embed_context(jnp.concatenate([embed_noise(c_noise.astype(x.dtype)), cond]))
        scales = jnp.asarray(2.0 ** np.arange(self.octaves), x.dtype)
        h = net.embed_input(jnp.concatenate([x, waves(jnp.outer(scales, x).ravel())]))
        keys = [None] * len(net.blocks) if key is None else jr.split(key, len(net.blocks))
        for block, block_key in zip(net.blocks, keys, strict=True):
            h = block(h, context, block_key)
        return net.output(jax.nn.silu(h))

    def _check(self, x: Any, cond: Any) -> None:
        check_floating("x", x)
        if jnp.shape(x) != (self.size,):
            raise ValueError(f"x must have shape ({self.size},), got {jnp.shape(x)}")
        needed = (self.cond_size,) if self.cond_size else None
        got = None if cond is None else np.shape(cond)
        if got != needed:
            class_k = f": class k is jax.nn.one_hot(k, {self.cond_size})" if got == () else ""
            raise ValueError(f"cond must have shape {needed}, got {got}{class_k}")


class Moments(eqx.Module):
    """The middle of each parameter's posterior, and the logarithm of its width, at one x."""

    first: eqx.nn.Linear
    blocks: list[_Block]
    last: eqx.nn.Linear

    def __init__(self, cond_size: int, size: int, dropout: float, key: PRNGKey):
        first_key, last_key, *block_keys = jr.split(key, 2 + MOMENTS_DEPTH)
        self.first = eqx.nn.Linear(cond_size, MOMENTS_WIDTH, key=first_key)
        self.blocks = [_Block(MOMENTS_WIDTH, dropout, block_key) for block_key in block_keys]
        last = eqx.nn.Linear(MOMENTS_WIDTH, 2 * size, key=last_key)
        self.last = jax.tree.map(jnp.zeros_like, last)

    def __call__(self, x: Float[Array, " k"], key: PRNGKey | None) -> tuple[Array, Array]:
        h = self.first(x)
        context = jax.nn.silu(h)
        keys = [None] * len(self.blocks) if key is None else jr.split(key, len(self.blocks))
        for block, block_key in zip(self.blocks, keys, strict=True):
            h = block(h, context, block_key)
        mean, log_std = jnp.split(self.last(jax.nn.silu(h)), 2)
        return mean, jnp.clip(log_std, -LARGEST_LOG_STD, LARGEST_LOG_STD)


@final
class PosteriorMLP(eqx.Module):
    r"""The default network of a posterior: the denoiser of a Gaussian set by x, and a correction.

    Posteriors may be a hundred times narrower at one x than at another. A small network says where
    the posterior is, m(x), and how wide, s(x). The denoiser of $N(m, \mathrm{diag}\,s^2)$ is known;
    an `MLP` G adds what is not Gaussian, and is told z in widths from the middle:

    $$\begin{aligned}
      F &= \sigma\,\frac{\sqrt{1+\sigma^2}\,m + (s^2 - 1)\,c_{in}z}{s^2 + \sigma^2} \\
      & + G\Big(c_{in}z,\ \frac{z - m}{\sqrt{s^2 + \sigma^2}}; \sigma, x, \ln s\Big) .
    \end{aligned}$$

    The first term is that of EDM's preconditioning with `sigma_data` 1, of which $\sigma$ is read
    off the label. All is trained by the one denoising loss. It computes in the dtype of z.
    Untrained, it returns exactly zero: m = 0, s = 1.

    Arguments:
        size, cond_size: the numbers of parameters and of features of x.
        width, depth, dropout: of G.
    """

    moments: Moments
    correction: MLP

    def __init__(
        self, size: int, cond_size: int, *, width: int, depth: int, dropout: float, key: PRNGKey
    ):
        moments_key, correction_key = jr.split(key)
        self.moments = Moments(cond_size, size, dropout, moments_key)
        self.correction = MLP(
            2 * size,
            cond_size + size,
            width=width,
            depth=depth,
            octaves=OCTAVES,
            dropout=dropout,
            key=correction_key,
        )

    def __call__(
        self,
        x: Float[Array, " d"],
        c_noise: Float[Array, ""],
        cond: Condition = None,
        *,
        key: PRNGKey | None = None,
    ) -> Float[Array, " d"]:
        """The raw network output for one example; `cond` is the observation."""
        keys = (None, None) if key is None else jr.split(key)
        cond = cond.astype(x.dtype)
        mean, log_std = cast_floating(self.moments, x.dtype)(cond, keys[0])
        sigma = jnp.exp(4 * c_noise.astype(x.dtype))
        larger = jnp.sqrt(1 + sigma**2)  # 1 / c_in
        variance = jnp.exp(2 * log_std)
        gaussian = sigma * (larger * mean + (variance - 1) * x) / (variance + sigma**2)
        residual = (larger * x - mean) / jnp.sqrt(variance + sigma**2)
        told = jnp.concatenate([x, residual]), c_noise, jnp.concatenate([cond, log_std])
        return gaussian + self.correction(*told, key=keys[1])[: len(x)]


@final
class Embedded(eqx.Module):
    """A network whose condition first passes through an embedding, trained with it.

    Arguments:
        network: called with `embedding(cond)` as its condition.
        embedding: any callable of one condition: `eqx.nn.Embedding` for class labels, a
            network of your own for a time series or a set.

    Raises:
        TypeError: a network or an embedding that cannot be called, or an embedding with layers
            that keep a state.
    """

    network: Callable[..., Array]
    embedding: Callable[[Any], Any]

    def __check_init__(self):
        check_callable("network", self.network)
        check_callable("embedding", self.embedding)
        check_stateless("embedding", self.embedding)

    def __call__(
        self,
        x: Float[Array, "*shape"],
        c_noise: Float[Array, ""],
        cond: Condition = None,
        *,
        key: PRNGKey | None = None,
    ) -> Float[Array, "*shape"]:
        """The network's output, given the embedded condition."""
        return self.network(x, c_noise, self.embedding(cond), key=key)


def cast_floating(tree: Any, dtype: jax.typing.DTypeLike) -> Any:
    """The same tree with its floating-point arrays in `dtype`."""
    cast = lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf
    return jax.tree.map(cast, tree)
