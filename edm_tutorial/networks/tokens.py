r"""A transformer over tokens, each of which is a number or a short vector that has a name.

A token enters as a vector h, made of its values by weights of its own kind. Each block lets tokens
look at each other, then works on each by itself:

$$\begin{aligned}
  h &\leftarrow h + g_1\,\mathrm{attention}(\mathrm{norm}_1(h)), \\
  h &\leftarrow h + g_2\,\mathrm{layer}(\mathrm{norm}_2(h)) .
\end{aligned}$$

Every norm is followed by a scale and a shift, and every sum has a gate g, that are set by the noise
level (adaptive norms). A mask says which token may look at which: what is not connected to a token,
by as many steps as there are blocks, cannot reach it.
"""

from collections.abc import Sequence
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float

from .._checks import check_key, check_shape, whole
from .._types import PRNGKey
from .mlp import cast_floating, embed_noise, waves

OCTAVES = 3  # frequencies 1, 2, 4 at which a token is told the waves of its values
NOISE_WIDTH = 64  # of what the adaptive norms are told of the noise level
MODULATIONS = 6  # a scale, a shift and a gate for each half of a block


class _Block(eqx.Module):
    """Attention between tokens, then a layer for each, both modulated by the noise level."""

    modulation: eqx.nn.Linear
    projections: eqx.nn.Linear
    attended: eqx.nn.Linear
    inner: eqx.nn.Linear
    outer: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    heads: int = eqx.field(static=True)

    def __init__(self, width: int, heads: int, dropout: float, key: PRNGKey):
        modulation_key, key_1, key_2, inner_key, outer_key = jr.split(key, 5)
        modulation = eqx.nn.Linear(NOISE_WIDTH, MODULATIONS * width, key=modulation_key)
        self.modulation = jax.tree.map(jnp.zeros_like, modulation)
        self.projections = eqx.nn.Linear(width, 3 * width, use_bias=False, key=key_1)
        self.attended = eqx.nn.Linear(width, width, use_bias=False, key=key_2)
        self.heads = heads
        self.inner = eqx.nn.Linear(width, 2 * width, key=inner_key)
        self.outer = eqx.nn.Linear(2 * width, width, key=outer_key)
        self.dropout = eqx.nn.Dropout(dropout)

    def __call__(
        self,
        h: Float[Array, "tokens width"],
        level: Float[Array, " features"],
        mask: Bool[Array, "tokens tokens"],
        key: PRNGKey | None,
    ) -> Float[Array, "tokens width"]:
        parts = jnp.split(self.modulation(level)[None], MODULATIONS, axis=1)
        scale_1, shift_1, gate_1, scale_2, shift_2, gate_2 = parts
        normal = (1 + scale_1) * _normalised(h) + shift_1
        h = h + (1 + gate_1) * self.attention(normal, mask)
        normal = (1 + scale_2) * _normalised(h) + shift_2
        inside = self.dropout(
            jax.nn.silu(jax.vmap(self.inner)(normal)), key=key, inference=key is None
        )
        return h + (1 + gate_2) * jax.vmap(self.outer)(inside)

    def attention(
        self, h: Float[Array, "tokens width"], mask: Bool[Array, "tokens tokens"]
    ) -> Float[Array, "tokens width"]:
        """Multi-head attention of each token to those it may look at."""
        heads = jax.vmap(self.projections)(h).reshape(len(h), 3 * self.heads, -1)
        query, key, value = jnp.split(heads, 3, axis=1)
        match = jnp.einsum("ihc,jhc->hij", query, key) * query.shape[2] ** -0.5
        weights = jax.nn.softmax(jnp.where(mask[None], match, -jnp.inf), axis=2)
        gathered = jnp.einsum("hij,jhc->ihc", weights, value)
        return jax.vmap(self.attended)(gathered.reshape(h.shape))


@final
class TokenTransformer(eqx.Module):
    """A transformer of named tokens, told one noise level.

    Untrained, it returns exactly zero. It computes in the dtype of its values. Tokens of one kind
    share their weights: the same values in another order come out in that order.

    Arguments:
        kinds: the kind of each token, a whole number from 0 on; another name, another kind.
        size, out_size: numbers a token, that go in and that come out.
        width: of a token inside; a multiple of `heads`.
        depth: blocks.
        dropout: the fraction of hidden units left out in a call with a `key`.

    Raises:
        ValueError: a size below 1, a `width` that `heads` does not divide, not 0 <= dropout < 1,
            no token, or a call with arrays of other shapes.
        TypeError: a size that is not a whole number.
    """

    embed: Float[Array, "kinds features width"]
    name: Float[Array, "kinds width"]
    embed_noise: eqx.nn.MLP
    blocks: list[_Block]
    output: Float[Array, "kinds width out"]
    kinds: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        kinds: Sequence[int],
        size: int = 1,
        out_size: int = 1,
        *,
        width: int = 64,
        depth: int = 3,
        heads: int = 4,
        dropout: float = 0.0,
        key: PRNGKey,
    ):
        self.kinds = tuple(whole("kinds", kind, least=0) for kind in kinds)
        if not self.kinds:
            raise ValueError("kinds must name at least one token, got none")
        size, out_size = whole("size", size), whole("out_size", out_size)
        width, depth, heads = whole("width", width), whole("depth", depth), whole("heads", heads)
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
        check_key("key", key)
        embed_key, name_key, noise_key, *block_keys = jr.split(key, 3 + depth)
        count, features = max(self.kinds) + 1, _features(size)
        self.embed = jr.normal(embed_key, (count, features, width)) * features**-0.5
        self.name = jr.normal(name_key, (count, width))
        self.embed_noise = eqx.nn.MLP(
            in_size=len(embed_noise(jnp.zeros(()))),
            out_size=NOISE_WIDTH,
            width_size=NOISE_WIDTH,
            depth=1,
            activation=jax.nn.silu,
            final_activation=jax.nn.silu,
            key=noise_key,
        )
        self.blocks = [_Block(width, heads, dropout, block_key) for block_key in block_keys]
        self.output = jnp.zeros((count, width, out_size))

    @property
    def sizes(self) -> dict[str, Any]:
        """The keywords with which it was made, `kinds` and `key` excepted."""
        block = self.blocks[0]
        return {
            "size": self.embed.shape[1] // _features(1),
            "out_size": self.output.shape[2],
            "width": self.name.shape[1],
            "depth": len(self.blocks),
            "heads": block.heads,
            "dropout": block.dropout.p,
        }

    def __call__(
        self,
        values: Float[Array, "tokens size"],
        known: Float[Array, "tokens size"],
        c_noise: Float[Array, ""],
        mask: Bool[Array, "tokens tokens"],
        *,
        key: PRNGKey | None = None,
    ) -> Float[Array, "tokens out"]:
        """The output of each token, made of itself and of the tokens it may look at.

        Arguments:
            values: of every token, noised where they are not known.
            known: 1 where a value is known and clean, 0 where it is noised, -1 where it is missing.
            mask: `mask[i, j]`: token i may look at token j. One that may look at none is told
                nothing of any, itself excepted.
        """
        net, kinds = cast_floating(self, values.dtype), np.asarray(self.kinds)
        check_shape("known", known, values)
        told = jax.vmap(_told)(values, known)
        h = jnp.einsum("lf,lfw->lw", told, net.embed[kinds]) + net.name[kinds]
        level = net.embed_noise(embed_noise(c_noise.astype(values.dtype)))
        mask = mask | np.eye(len(kinds), dtype=bool)
        keys: Any = [None] * len(net.blocks) if key is None else jr.split(key, len(net.blocks))
        for block, block_key in zip(net.blocks, keys, strict=True):
            h = block(h, level, mask, block_key)
        return jnp.einsum("lw,lwo->lo", _normalised(h), net.output[kinds])


def _features(size: int) -> int:
    return size * (2 + 2 * OCTAVES)


def _told(values: Float[Array, " size"], known: Float[Array, " size"]) -> Float[Array, " features"]:
    """The features of a token: its values, their waves, and which of them are known."""
    scales = jnp.asarray(2.0 ** np.arange(OCTAVES), values.dtype)
    return jnp.concatenate([values, waves(jnp.outer(scales, values).ravel()), known])


def _normalised(h: Float[Array, "tokens width"]) -> Float[Array, "tokens width"]:
    """Each token with a mean square below 1, by a function that is nowhere steep.

    With 1e-5 in place of the 1 the denoiser is steep wherever a token passes near zero.
    """
    return h * jax.lax.rsqrt(jnp.mean(h**2, axis=1, keepdims=True) + 1)
