r"""Embeddings of structured observations: sets of points, series, images, of any size.

Each turns its parts into features $f_i$ (points by attention to the other points, series and
images by convolutions) and pools them, whatever their number, with learned questions $q_h$:

$$\sum_i a_{hi} f_i, \qquad a_{hi} = \mathrm{softmax}_i\big(q_h^T K f_i\big) ,$$

beside the mean and the spread of all features. One sharp weight finds a peak, even ones average.
"""

from typing import Any, ClassVar, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from equinox import AbstractVar
from jaxtyping import Array, Float

from .._checks import check_key, whole
from .._types import PRNGKey
from ..networks.mlp import cast_floating
from .transforms.standardize import AbstractEmbedding, Standardizer, float_dtype

WIDTH, QUESTIONS = 32, 8  # features of a point, and pooled averages of all
HEADS, BLOCKS = 4, 2  # of attention between points
LAYERS = ((16, 1), (32, 2), (32, 2))  # channels and stride of the convolutions
SPREAD = 1e-5  # added to variances, whose root has no slope at 0


class _Pool(eqx.Module):
    """Mean, spread and attention pooling of features, one part a row."""

    questions: Float[Array, "questions width"]
    keys: eqx.nn.Linear
    out: eqx.nn.Linear

    def __init__(self, width: int, size: int, key: PRNGKey):
        question_key, keys_key, out_key = jr.split(key, 3)
        self.questions = jr.normal(question_key, (QUESTIONS, width)) * width**-0.5
        self.keys = eqx.nn.Linear(width, width, key=keys_key)
        self.out = eqx.nn.Linear((QUESTIONS + 2) * width, size, key=out_key)

    def __call__(
        self, features: Float[Array, "parts width"], present: Float[Array, " parts"]
    ) -> Float[Array, " size"]:
        share = present / jnp.maximum(jnp.sum(present), 1)
        mean = share @ features
        spread = jnp.sqrt(share @ (features - mean[None]) ** 2 + SPREAD)
        asked = self.questions @ jax.vmap(self.keys)(features).T
        asked = jnp.where(present[None] > 0, asked, jnp.finfo(asked.dtype).min)
        found = jax.nn.softmax(asked, axis=-1) @ features
        return self.out(jnp.concatenate([mean, spread, found.ravel()]))


class _Block(eqx.Module):
    """Attention between points, then a layer for each; both are added to what came in."""

    norms: tuple[eqx.nn.LayerNorm, eqx.nn.LayerNorm]
    attention: eqx.nn.MultiheadAttention
    inner: eqx.nn.Linear
    outer: eqx.nn.Linear

    def __init__(self, width: int, key: PRNGKey):
        attention_key, inner_key, outer_key = jr.split(key, 3)
        self.norms = eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width)
        self.attention = eqx.nn.MultiheadAttention(HEADS, width, key=attention_key)
        self.inner = eqx.nn.Linear(width, 2 * width, key=inner_key)
        self.outer = eqx.nn.Linear(2 * width, width, key=outer_key)

    def __call__(self, h: Float[Array, "points width"], present: Float[Array, " points"]) -> Array:
        normal = jax.vmap(self.norms[0])(h)
        # All see those that are present; where none is, all, so that nothing is 0 / 0.
        seen = (present > 0) | (jnp.sum(present) == 0)
        mask = jnp.broadcast_to(seen, (len(h), len(h)))
        h = h + self.attention(normal, normal, normal, mask=mask)
        layer = lambda row: self.outer(jax.nn.silu(self.inner(row)))
        return h + jax.vmap(layer)(jax.vmap(self.norms[1])(h))


@final
class SetEmbedding(AbstractEmbedding):
    """The embedding of a set: the same for every order of its points.

    A masked set also combines independent observations of one theta. Simulate sets of N(max)
    observations, one a point, mark the first N of each as present, N drawn from 1 to N(max), and
    fit once: the posterior then takes any number of observations. Products of posteriors of single
    observations need the prior's density, N - 1 times, and lose to it what little error each has.

    Arguments:
        point_size: numbers a point, the mask included; one x is (points, point_size).
        size: of the vector.
        masked: the last number of each point is 1 where the point is present and 0 where it is
            not; what else stands in an absent point is ignored. How many are present is told.

    Raises:
        ValueError: a size below 1, or no number beside the mask.
        TypeError: a size that is not a whole number.
    """

    first: eqx.nn.Linear
    blocks: list[_Block]
    pool: _Pool
    masked: bool = eqx.field(static=True)

    def __init__(self, point_size: int, size: int, *, masked: bool = False, key: PRNGKey):
        check_key("key", key)
        first_key, pool_key, *keys = jr.split(key, 2 + BLOCKS)
        self.masked = masked
        features = whole("point_size", point_size, least=1 + masked)
        self.first = eqx.nn.Linear(features, WIDTH, key=first_key)
        self.blocks = [_Block(WIDTH, block_key) for block_key in keys]
        self.pool = _Pool(WIDTH, whole("size", size), pool_key)

    def __call__(self, x: Float[Array, "points point_size"]) -> Float[Array, " size"]:
        numbers = self.first.in_features
        _check_axes(x, 2, "(points, point_size)", channels=numbers, axis=-1)
        present = x[:, -1] if self.masked else jnp.ones(len(x), x.dtype)
        if self.masked:
            count = jnp.log1p(jnp.sum(present))
            x = jnp.where(present[:, None] > 0, x, 0).at[:, -1].set(count)
        net = cast_floating(self, x.dtype)
        h = jax.vmap(net.first)(x)
        for block in net.blocks:
            h = block(h, present)
        return net.pool(h, present)

    def scale(self, x: Float[np.ndarray, "n points point_size"]) -> Standardizer:
        rows = x.reshape(-1, x.shape[-1])
        if self.masked and not np.isin(rows[:, -1], (0, 1)).all():
            raise ValueError(
                "embedding: of SetEmbedding(masked=True) the last number of each point must be 1 "
                "where the point is present and 0 where it is not, got others, such as "
                f"{rows[~np.isin(rows[:, -1], (0, 1)), -1][0]}"
            )
        rows = rows[rows[:, -1] > 0] if self.masked else rows
        return _scale(rows, (1, x.shape[-1]), unscaled=-1 if self.masked else None)


class _AbstractConvolutions(AbstractEmbedding):
    """The embedding of what has channels along one axis or more, by convolutions."""

    layers: AbstractVar[list[Any]]
    pool: AbstractVar[_Pool]
    axes: ClassVar[tuple[str, ...]]  # beside the channels

    def __call__(self, x: Float[Array, " channels *axes"]) -> Float[Array, " size"]:
        names = f"({', '.join(('channels', *self.axes))})"
        channels = self.layers[0].in_channels
        _check_axes(x, 1 + len(self.axes), names, channels=channels, axis=0)
        net = cast_floating(self, x.dtype)
        for layer in net.layers:
            x = jax.nn.silu(layer(x))
        # The place of each position is among its features.
        ends = [np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in x.shape[1:]]
        places = np.stack(np.meshgrid(*ends, indexing="ij"))
        features = jnp.concatenate([x, jnp.asarray([*places, *places**2], x.dtype)])
        rows = features.reshape(len(features), -1).T
        return net.pool(rows, jnp.ones(len(rows), x.dtype))

    def scale(self, x: Float[np.ndarray, " n channels *axes"]) -> Standardizer:
        rows = np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])
        return _scale(rows, (x.shape[1], *(1 for _ in self.axes)))


@final
class SeriesEmbedding(_AbstractConvolutions):
    """The embedding of a series of any length, evenly spaced; its ends are at -1 and 1.

    Arguments:
        channels: numbers at each time; one x is (channels, length).
        size: of the vector.

    Raises:
        ValueError: a size below 1.
        TypeError: a size that is not a whole number.
    """

    layers: list[eqx.nn.Conv1d]
    pool: _Pool
    axes: ClassVar[tuple[str, ...]] = ("length",)

    def __init__(self, channels: int, size: int, *, key: PRNGKey):
        self.layers, self.pool = _convolutions(
            eqx.nn.Conv1d, kernel=5, channels=channels, size=size, key=key
        )


@final
class ImageEmbedding(_AbstractConvolutions):
    """The embedding of an image of any height and width; its edges are at -1 and 1.

    Arguments:
        channels: numbers at each pixel; one x is (channels, height, width).
        size: of the vector.

    Raises:
        ValueError: a size below 1.
        TypeError: a size that is not a whole number.
    """

    layers: list[eqx.nn.Conv2d]
    pool: _Pool
    axes: ClassVar[tuple[str, ...]] = ("height", "width")

    def __init__(self, channels: int, size: int, *, key: PRNGKey):
        self.layers, self.pool = _convolutions(
            eqx.nn.Conv2d, kernel=3, channels=channels, size=size, key=key
        )


def _convolutions(
    kind: Any, kernel: int, channels: Any, size: Any, key: PRNGKey
) -> tuple[list[Any], _Pool]:
    check_key("key", key)
    pool_key, *keys = jr.split(key, 1 + len(LAYERS))
    layers, before = [], whole("channels", channels)
    for (after, stride), layer_key in zip(LAYERS, keys, strict=True):
        layer = kind(before, after, kernel, stride=stride, padding=kernel // 2, key=layer_key)
        layers, before = [*layers, layer], after
    places = 2 * layers[0].num_spatial_dims  # of each position: along each axis, and squared
    return layers, _Pool(before + places, whole("size", size), pool_key)


def _scale(rows: np.ndarray, shape: tuple[int, ...], unscaled: int | None = None) -> Standardizer:
    """One mean and one spread a column; a channel that never varies keeps its units."""
    mean, std = rows.mean(axis=0, dtype=float), rows.std(axis=0, dtype=float)
    mean, std = np.where(std > 0, mean, 0), np.where(std > 0, std, 1)
    if unscaled is not None:
        mean[unscaled], std[unscaled] = 0, 1
    dtype = float_dtype(rows)
    return Standardizer(*(jnp.asarray(part.reshape(shape), dtype) for part in (mean, std)))


def _check_axes(x: Any, count: int, names: str, channels: Any, axis: int) -> None:
    if jnp.ndim(x) != count or jnp.shape(x)[axis] != channels:
        raise ValueError(
            f"one observation must have shape {names} with {channels} numbers along axis {axis}, "
            f"got {jnp.shape(x)}"
        )
