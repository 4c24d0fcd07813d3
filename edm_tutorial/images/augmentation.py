r"""Augmentation with labels: warped images, of which the network is told the warp.

An image is warped by an affine map, and nine labels $a$ say how; they are 0 for the image as
it was. The network learns $D(x; \sigma, a)$ and is asked for $a = 0$ only, so what the warps do
cannot leak into the samples (Appendix F). The labels define the warp, `warp(image, a)`:

- $a_0, a_1$: 1 where it is mirrored, left to right and top to bottom;
- $a_2$: scaled by $2^{0.2\,a_2}$;
- $a_3, a_4 = \cos\varphi - 1,\ \sin\varphi$: turned counter-clockwise by $\varphi$;
- $a_5, a_6 = u\cos\beta,\ u\sin\beta$: stretched by $2^{0.2\,u}$ along the direction $\beta$,
  counter-clockwise from the right, and squeezed by it across;
- $a_7, a_8$: moved right by $0.125\,a_7$ of the width, down by $0.125\,a_8$ of the height,

in this order. Order, units and signs are those of the official implementation (`AugmentPipe`
in its `training/augment.py`), so that training of its networks with `augment_dim=9` can go on.
The distribution of the labels differs: the official one mirrors top to bottom half as often, half
of its stretches are along the axes, and it has a negative $u$ for a squeeze.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float

from .._checks import check_floating, concrete
from .._types import PRNGKey, Scalar, as_float
from ..networks import ImageCondition

LABELS = 9
_STRETCH = 0.2  # powers of 2 for one unit of a label
_SHIFT = 0.125  # of the width or height for one unit of a label


class Augmented(NamedTuple):
    """Image after augmentation, and the labels: each is 0 exactly where its warp was left out."""

    image: Float[Array, "channels height width"]
    labels: Float[Array, " 9"]


@final
class Augmentation(eqx.Module):
    """Random warps with their labels, called as `augmentation(image, key=key)`.

    Each of the warps (both mirrors, scale, turn, stretch, move) is done with probability `p`,
    independently of the others, but mirroring left to right with `p_mirror`, which may be large
    for photographs and should be small for writing. The labels of scale, stretch and move are
    normal. The angle of the turn and the direction of the stretch are uniform.

    Raises: ValueError for a probability outside [0, 1].
    """

    p: float = 0.12
    p_mirror: float = 0.5

    def __check_init__(self):
        for name, value in (("p", self.p), ("p_mirror", self.p_mirror)):
            if concrete(value) and not 0 <= float(value) <= 1:
                raise ValueError(f"{name} must be a probability, got {value}")

    def __call__(self, image: Float[Array, "channels height width"], *, key: PRNGKey) -> Augmented:
        """An image after random warps; with both probabilities 0 it is the same to the bit."""
        labels = self.labels(key).astype(image.dtype)
        return Augmented(warp(image, labels), labels)

    def labels(self, key: PRNGKey) -> Float[Array, " 9"]:
        """Random labels, each warp on with its probability."""
        on_key, normal_key, angle_key = jr.split(key, 3)
        chance = jnp.array([self.p_mirror, self.p, self.p, self.p, self.p, self.p])
        on = jr.uniform(on_key, (6,)) < chance
        scale, stretch, right, down = jr.normal(normal_key, (4,))
        turn, direction = jr.uniform(angle_key, (2,), minval=-jnp.pi, maxval=jnp.pi)
        mirrors = jnp.where(on[:2], jnp.ones(2), 0)
        scaled, turned, stretched = jnp.where(on[2:5], jnp.stack([scale, turn, stretch]), 0)
        moved = jnp.where(on[5], jnp.stack([right, down]), 0)
        turns = jnp.stack([jnp.cos(turned) - 1, jnp.sin(turned)])
        stretches = stretched * jnp.stack([jnp.cos(direction), jnp.sin(direction)])
        return jnp.concatenate([mirrors, scaled[None], turns, stretches, moved])


@final
class AugmentedLoss(eqx.Module):
    """Training loss on augmented examples, for `train` in place of `loss` itself.

    The network gets the labels in its `ImageCondition`, beside what else it holds. If `loss` drops
    conditions, let the augmentation labels of its `null` be None: the warp is always told.
    """

    loss: Callable[..., Array]
    augmentation: Callable[..., Augmented] = Augmentation()

    def __call__(
        self,
        denoiser: Any,
        x: Float[Array, "channels height width"],
        cond: ImageCondition | None = None,
        *,
        key: PRNGKey,
    ) -> Float[Array, ""]:
        """The loss of one augmented example.

        Raises: ValueError if `cond` is neither None nor an `ImageCondition`.
        """
        if not (cond is None or isinstance(cond, ImageCondition)):
            raise ValueError(f"cond must be None or an ImageCondition, got {type(cond).__name__}")
        augment_key, loss_key = jr.split(key)
        image, labels = self.augmentation(x, key=augment_key)
        cond = ImageCondition() if cond is None else cond
        return self.loss(denoiser, image, cond._replace(augment_labels=labels), key=loss_key)


def warp(
    image: Float[Array, "channels height width"], labels: Float[Array, " 9"]
) -> Float[Array, "channels height width"]:
    """Image after the warp that `labels` define, about its centre.

    Each pixel is looked up in `image` by linear interpolation, once for all warps. Beyond its
    edge the image continues as in a mirror. Flips, quarter turns and moves by whole pixels look
    up pixels, so they blur nothing. With labels 0 every bit stays.

    Raises: ValueError for an image that is not floating, or smaller than 2 x 2.
    """
    check_floating("image", image)
    height, width = image.shape[1:]
    if min(height, width) < 2:
        raise ValueError(f"image must be at least 2 x 2 pixels, got shape {image.shape}")
    labels = as_float(labels, image)
    centred = lambda size: jnp.arange(size, dtype=image.dtype) - (size - 1) / 2
    x, y = jnp.meshgrid(centred(width), centred(height))
    x, y = x - _SHIFT * width * labels[7], y - _SHIFT * height * labels[8]
    inverse = inverse_matrix(labels)
    source_x, source_y = (row[0] * x + row[1] * y for row in inverse)
    columns, rows = source_x + (width - 1) / 2, source_y + (height - 1) / 2
    look_up = lambda channel: map_coordinates(channel, [rows, columns], 1, mode="mirror")
    return jax.vmap(look_up)(image)


def inverse_matrix(labels: Float[Array, " 9"]) -> Float[Array, "2 2"]:
    r"""Matrix from places (right, down) in the warped image to places in the image before it.

    It inverts mirror, scale, turn and stretch, done in this order; the move is left out.
    """
    mirror_x, mirror_y, scale, cos_less_1, sin, stretch_x, stretch_y = labels[:7]
    cos = 1 + cos_less_1
    turn_back = jnp.array([[cos, -sin], [sin, cos]])
    flips = jnp.array([1 - 2 * mirror_x, 1 - 2 * mirror_y]) * _power(-scale)
    return flips[:, None] * (turn_back @ _stretch_back(stretch_x, stretch_y))


def _stretch_back(x: Scalar, y: Scalar) -> Float[Array, "2 2"]:
    r"""$2^{-0.2u}$ along the direction $(x, -y)/u$ (right, down), $2^{0.2u}$ across it."""
    u = jnp.sqrt(x**2 + y**2)
    safe = jnp.where(u > 0, u, 1)
    along = jnp.stack([jnp.where(u > 0, x / safe, 1), -1.0 * y / safe])
    across = jnp.stack([-along[1], along[0]])
    return _power(-u) * jnp.outer(along, along) + _power(u) * jnp.outer(across, across)


def _power(label: Scalar) -> Float[Array, ""]:
    return jnp.exp2(_STRETCH * label)
