r"""What an image network is told besides the image: noise level, class and augmentation.

The noise label $c$ becomes $[\cos c f_i,\ \sin c f_i]$, at fixed frequencies from 1 down to
1/10000 (`Positional`) or random ones (`Fourier`). Labels are vectors and add linear maps of
themselves; two layers turn the sum into the embedding that every block is told.

All this is computed in the dtype of the noise label, whatever the precision of the image.
"""

import math
from typing import Any, NamedTuple, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from ..._types import PRNGKey
from ..mlp import waves
from .layers import DHARIWAL, SONG, Linear


class ImageCondition(NamedTuple):
    """The condition of an image network, for one example.

    Arguments:
        class_labels: shape (label_dim,), 1 for the class and 0 elsewhere
            (`jax.nn.one_hot`); None or zeros: no class is told.
        augment_labels: shape (augment_dim,), how the image was augmented; None or zeros:
            not at all, which is what to sample with.
    """

    class_labels: Real[ArrayLike, " labels"] | None = None
    augment_labels: Real[ArrayLike, " augmentations"] | None = None


@final
class Positional(eqx.Module):
    r"""$[\cos c f,\ \sin c f]$ with $f_i = 10000^{-i/(n/2 - e)}$, i < n/2.

    Arguments:
        size: n, even.
        endpoint: e = 1 where true, so that the last frequency is 1/10000; else e = 0.
    """

    size: int = eqx.field(static=True)
    endpoint: bool = eqx.field(static=True)

    def __check_init__(self):
        _check_even(self.size)

    def __call__(self, c: Float[Array, ""]) -> Float[Array, " n"]:
        half = self.size // 2
        frequencies = 10000.0 ** (-np.arange(half) / (half - int(self.endpoint)))
        return waves(c * jnp.asarray(frequencies, c.dtype))


@final
class Fourier(eqx.Module):
    r"""$[\cos 2\pi c f,\ \sin 2\pi c f]$ at n/2 random frequencies, which are not trained.

    Arguments:
        size: n, even.
        key: draws f from N(0, 16^2).
    """

    freqs: Float[Array, " half"]

    def __init__(self, size: int, key: PRNGKey):
        _check_even(size)
        self.freqs = 16 * jr.normal(key, (size // 2,))

    def __call__(self, c: Float[Array, ""]) -> Float[Array, " n"]:
        frequencies = jax.lax.stop_gradient(self.freqs).astype(c.dtype)
        return waves(c * (2 * math.pi * frequencies))


def _check_even(size: int) -> None:
    if size < 4 or size % 2:
        raise ValueError(f"an embedding has an even size of at least 4, got {size}")


@final
class SongEmbedding(eqx.Module):
    """The embedding of DDPM++ and NCSN++: labels join before the two layers, sines first.

    Arguments:
        map_noise: the embedding of the noise label, of size `noise_size`.
        label_dim, augment_dim: lengths of the labels; 0 for none.
    """

    map_noise: Positional | Fourier
    map_label: Linear | None
    map_augment: Linear | None
    map_layer0: Linear
    map_layer1: Linear
    label_dim: int = eqx.field(static=True)
    augment_dim: int = eqx.field(static=True)

    def __init__(
        self,
        map_noise: Positional | Fourier,
        noise_size: int,
        emb_size: int,
        label_dim: int,
        augment_dim: int,
        key: PRNGKey,
    ):
        keys = jr.split(key, 4)
        self.map_noise, self.label_dim, self.augment_dim = map_noise, label_dim, augment_dim
        self.map_label, self.map_augment = None, None
        if label_dim:
            self.map_label = Linear(label_dim, noise_size, SONG, keys[0])
        if augment_dim:
            self.map_augment = Linear(augment_dim, noise_size, SONG, keys[1], use_bias=False)
        self.map_layer0 = Linear(noise_size, emb_size, SONG, keys[2])
        self.map_layer1 = Linear(emb_size, emb_size, SONG, keys[3])

    def __call__(self, c_noise: Float[Array, ""], cond: ImageCondition) -> Float[Array, " emb"]:
        cosines, sines = jnp.split(self.map_noise(c_noise), 2)
        emb = jnp.concatenate([sines, cosines])
        if self.map_label is not None:
            labels = _vector(cond.class_labels, self.label_dim, c_noise.dtype)
            emb = emb + self.map_label(labels * math.sqrt(self.label_dim))
        if self.map_augment is not None:
            labels = _vector(cond.augment_labels, self.augment_dim, c_noise.dtype)
            emb = emb + self.map_augment(labels)
        return jax.nn.silu(self.map_layer1(jax.nn.silu(self.map_layer0(emb))))


@final
class DhariwalEmbedding(eqx.Module):
    """The embedding of ADM: the class joins after the two layers, cosines first."""

    map_noise: Positional
    map_augment: Linear | None
    map_layer0: Linear
    map_layer1: Linear
    map_label: Linear | None
    label_dim: int = eqx.field(static=True)
    augment_dim: int = eqx.field(static=True)

    def __init__(
        self, noise_size: int, emb_size: int, label_dim: int, augment_dim: int, key: PRNGKey
    ):
        keys = jr.split(key, 4)
        self.map_noise = Positional(noise_size, endpoint=False)
        self.label_dim, self.augment_dim = label_dim, augment_dim
        self.map_label, self.map_augment = None, None
        if augment_dim:
            self.map_augment = Linear(
                augment_dim, noise_size, DHARIWAL, keys[0], scale=0.0, use_bias=False
            )
        self.map_layer0 = Linear(noise_size, emb_size, DHARIWAL, keys[1])
        self.map_layer1 = Linear(emb_size, emb_size, DHARIWAL, keys[2])
        if label_dim:
            # Uniform of unit variance: a one-hot label picks one column.
            scale = math.sqrt(3 * label_dim)
            self.map_label = Linear(
                label_dim, emb_size, DHARIWAL, keys[3], scale=scale, use_bias=False
            )

    def __call__(self, c_noise: Float[Array, ""], cond: ImageCondition) -> Float[Array, " emb"]:
        emb = self.map_noise(c_noise)
        if self.map_augment is not None:
            labels = _vector(cond.augment_labels, self.augment_dim, c_noise.dtype)
            emb = emb + self.map_augment(labels)
        emb = self.map_layer1(jax.nn.silu(self.map_layer0(emb)))
        if self.map_label is not None:
            labels = _vector(cond.class_labels, self.label_dim, c_noise.dtype)
            emb = emb + self.map_label(labels)
        return jax.nn.silu(emb)


def check_condition(cond: Any, label_dim: int, augment_dim: int) -> ImageCondition:
    """`cond` with its lengths checked; None is a condition that tells nothing.

    Raises:
        ValueError: no `ImageCondition`, or labels of another shape than (label_dim,) and
            (augment_dim,), or any where the network has none.
    """
    if cond is None:
        return ImageCondition()
    if not isinstance(cond, ImageCondition):
        raise ValueError(
            f"cond must be None or ImageCondition(class_labels, augment_labels), got {type(cond)}"
        )
    lengths = {"class_labels": label_dim, "augment_labels": augment_dim}
    for (name, length), labels in zip(lengths.items(), cond, strict=True):
        if labels is not None and (length == 0 or jnp.shape(labels) != (length,)):
            needed = f"have shape ({length},)" if length else "be None: this network has none"
            raise ValueError(f"{name} must {needed}, got shape {jnp.shape(labels)}")
    return cond


def _vector(labels: Any, length: int, dtype: Any) -> Array:
    return jnp.zeros(length, dtype) if labels is None else jnp.asarray(labels).astype(dtype)
