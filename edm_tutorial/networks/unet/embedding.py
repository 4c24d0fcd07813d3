r"""Embeddings of noise level, class and augmentation, for image networks.

The noise label $c$ becomes $[\cos c f_i,\ \sin c f_i]$, at fixed frequencies from 1 down to
1/10000 (`Positional`) or random ones (`Fourier`). Linear maps of class and augmentation labels and
of a vector of other conditions are added. Two layers turn the sum into the embedding, an input of
every block, in the dtype of the noise label, whatever that of the image.
"""

import math
from typing import Any, NamedTuple, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Real

from ..._checks import concrete
from ..._types import PRNGKey
from ..mlp import waves
from .layers import Dense, kaiming, xavier


class ImageCondition(NamedTuple):
    """The condition of an image network, for one example.

    Arguments:
        class_labels: the class as an integer from 0, or shape (label_dim,),
            `jax.nn.one_hot(label, label_dim)`. None, -1 or zeros: no class is given. An integer
            that is no class is refused, or inside a transformation makes the output NaN.
        augment_labels: shape (augment_dim,), how the image was augmented. None or zeros:
            not augmented, which is the choice for sampling.
        vector: shape (vector_dim,), any numbers, of size about 1: a time of day as its cosine
            and sine, standardised parameters. None is zeros.
    """

    class_labels: Real[ArrayLike, " labels"] | Int[ArrayLike, ""] | None = None
    augment_labels: Real[ArrayLike, " augmentations"] | None = None
    vector: Real[ArrayLike, " vector"] | None = None


@final
class Positional(eqx.Module):
    r"""Positional embedding $[\cos c f,\ \sin c f]$ with $f_i = 10000^{-i/(n/2 - e)}$, i < n/2.

    Arguments:
        num_channels: n, even.
        endpoint: if true, e = 1 and the last frequency is 1/10000; otherwise e = 0.
    """

    num_channels: int = eqx.field(static=True)
    endpoint: bool = eqx.field(static=True)

    def __check_init__(self):
        _check_even(self.num_channels)

    def __call__(self, c: Float[Array, ""]) -> Float[Array, " n"]:
        half = self.num_channels // 2
        frequencies = 10000.0 ** (-np.arange(half) / (half - int(self.endpoint)))
        return waves(c * jnp.asarray(frequencies, c.dtype))


@final
class Fourier(eqx.Module):
    r"""Fourier features $[\cos 2\pi c f,\ \sin 2\pi c f]$ at n/2 random frequencies, n even.

    The frequencies are drawn once from N(0, 16^2) and not trained.
    """

    freqs: Float[Array, " half"]

    def __init__(self, num_channels: int, key: PRNGKey):
        _check_even(num_channels)
        self.freqs = 16 * jr.normal(key, (num_channels // 2,))

    def __call__(self, c: Float[Array, ""]) -> Float[Array, " n"]:
        frequencies = jax.lax.stop_gradient(self.freqs).astype(c.dtype)
        return waves(c * (2 * math.pi * frequencies))


def _check_even(num_channels: int) -> None:
    if num_channels < 4 or num_channels % 2:
        raise ValueError(
            "the noise embedding (model_channels times channel_mult_noise) must have an even "
            f"number of channels, at least 4, got {num_channels}"
        )


@final
class SongEmbedding(eqx.Module):
    """The embedding of DDPM++ and NCSN++: sines first, labels added before the two layers.

    `map_noise` embeds the noise label in `noise_channels` numbers. A label of length 0 is none.
    """

    map_noise: Positional | Fourier
    map_label: Dense | None
    map_augment: Dense | None
    map_vector: Dense | None
    map_layer0: Dense
    map_layer1: Dense

    def __init__(
        self,
        map_noise: Positional | Fourier,
        *,
        noise_channels: int,
        emb_channels: int,
        label_dim: int,
        augment_dim: int,
        vector_dim: int,
        key: PRNGKey,
    ):
        keys = jr.split(key, 5)
        self.map_noise, self.map_label, self.map_augment, self.map_vector = (
            map_noise,
            None,
            None,
            None,
        )
        if label_dim:
            self.map_label = Dense(label_dim, noise_channels, xavier, key=keys[0])
        if augment_dim:
            sizes = augment_dim, noise_channels
            self.map_augment = Dense(*sizes, xavier, use_bias=False, key=keys[1])
        if vector_dim:
            sizes = vector_dim, noise_channels
            self.map_vector = Dense(*sizes, xavier, use_bias=False, key=keys[4])
        self.map_layer0 = Dense(noise_channels, emb_channels, xavier, key=keys[2])
        self.map_layer1 = Dense(emb_channels, emb_channels, xavier, key=keys[3])

    def __call__(self, c_noise: Float[Array, ""], cond: ImageCondition) -> Float[Array, " emb"]:
        cosines, sines = jnp.split(self.map_noise(c_noise), 2)
        emb = jnp.concatenate([sines, cosines])
        emb = _plus(emb, self.map_label, cond.class_labels, math.sqrt(_length(self.map_label)))
        emb = _plus(emb, self.map_augment, cond.augment_labels)
        emb = _plus(emb, self.map_vector, cond.vector)
        return jax.nn.silu(self.map_layer1(jax.nn.silu(self.map_layer0(emb))))


@final
class DhariwalEmbedding(eqx.Module):
    """The embedding of ADM: cosines first, the class added after the two layers.

    Arguments as in `SongEmbedding`; the noise embedding is `Positional`.
    """

    map_noise: Positional
    map_augment: Dense | None
    map_vector: Dense | None
    map_layer0: Dense
    map_layer1: Dense
    map_label: Dense | None

    def __init__(
        self,
        *,
        noise_channels: int,
        emb_channels: int,
        label_dim: int,
        augment_dim: int,
        vector_dim: int,
        key: PRNGKey,
    ):
        keys = jr.split(key, 5)
        self.map_noise = Positional(noise_channels, endpoint=False)
        self.map_label, self.map_augment, self.map_vector = None, None, None
        if augment_dim:
            sizes = augment_dim, noise_channels
            self.map_augment = Dense(*sizes, kaiming, scale=0.0, use_bias=False, key=keys[0])
        if vector_dim:
            sizes = vector_dim, noise_channels
            self.map_vector = Dense(*sizes, kaiming, use_bias=False, key=keys[4])
        self.map_layer0 = Dense(noise_channels, emb_channels, kaiming, key=keys[1])
        self.map_layer1 = Dense(emb_channels, emb_channels, kaiming, key=keys[2])
        if label_dim:  # uniform of unit variance: a one-hot label picks one column
            sizes, scale = (label_dim, emb_channels), math.sqrt(3 * label_dim)
            self.map_label = Dense(*sizes, kaiming, scale=scale, use_bias=False, key=keys[3])

    def __call__(self, c_noise: Float[Array, ""], cond: ImageCondition) -> Float[Array, " emb"]:
        emb = _plus(self.map_noise(c_noise), self.map_augment, cond.augment_labels)
        emb = _plus(emb, self.map_vector, cond.vector)
        emb = self.map_layer1(jax.nn.silu(self.map_layer0(emb)))
        return jax.nn.silu(_plus(emb, self.map_label, cond.class_labels))


def _plus(emb: Array, layer: Dense | None, labels: Any, scale: float = 1.0) -> Array:
    """The embedding plus a linear map of labels, if there is one; None is zeros."""
    if layer is None:
        return emb
    return emb + layer(one_hot(labels, _length(layer)).astype(emb.dtype) * scale)


def one_hot(labels: Any, length: int) -> Array:
    """Labels as a vector of `length`: None and -1 are zeros, another integer is one-hot.

    NaN for an integer that is no class: where labels are traced, as in training, nothing can raise.
    """
    labels = jnp.array(-1) if labels is None else jnp.asarray(labels)
    if labels.ndim > 0:
        return labels
    known = (labels >= -1) & (labels < length)
    return jnp.where(known, jax.nn.one_hot(labels, length), jnp.nan)


def lengths(embedding: SongEmbedding | DhariwalEmbedding) -> tuple[int, int, int]:
    """The lengths of class labels, augmentation labels and vector; 0 for none."""
    layers = embedding.map_label, embedding.map_augment, embedding.map_vector
    return _length(layers[0]), _length(layers[1]), _length(layers[2])


def _length(layer: Dense | None) -> int:
    """The length of the labels that a linear map takes; 0 for none."""
    return 0 if layer is None else layer.weight.shape[1]


def check_condition(cond: Any, lengths: tuple[int, int, int]) -> ImageCondition:
    """The condition `cond`, its parts of these lengths; None stands for one without labels.

    Raises: ValueError for something else, or labels of a length that the network does not take.
    """
    if cond is None:
        return ImageCondition()
    if not isinstance(cond, ImageCondition):
        hint = ": class k is ImageCondition(k)" if lengths[0] else ""
        raise ValueError(f"cond must be None or an ImageCondition, got {type(cond).__name__}{hint}")
    hints = (", or be an integer for the class", "", "")
    for name, labels, length, hint in zip(cond._fields, cond, lengths, hints, strict=True):
        if labels is None or (length and hint and _is_class(labels, length)):
            continue
        if length == 0 or jnp.shape(labels) != (length,):
            needed = f"have shape ({length},){hint}" if length else "be None: this network has none"
            raise ValueError(f"{name} must {needed}; got shape {jnp.shape(labels)}")
    return cond


def _is_class(label: Any, classes: int) -> bool:
    """Whether a label is one integer; one that can be looked at must be a class, or -1.

    Raises: ValueError for a class that the network does not have.
    """
    if jnp.ndim(label) > 0 or not jnp.issubdtype(jnp.result_type(label), jnp.integer):
        return False
    if concrete(label) and not -1 <= int(label) < classes:
        raise ValueError(
            f"class_labels must be from 0 to {classes - 1}, or -1 for none, got {label}"
        )
    return True
