"""EDM2's network: magnitudes that stay, rows of forced norm, a loss weight that learns itself."""

import math
from functools import partial
from unittest import mock

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st

import edm_tutorial as edm
from edm_tutorial.networks import (
    Cast,
    ImageCondition,
    edm2_unet,
    forced_norms,
    song_unet,
)
from edm_tutorial.networks.edm2.layers import (
    MPConv,
    MPFourier,
    MPLinear,
    Rows,
    mp_cat,
    mp_silu,
    mp_sum,
    pixel_norm,
)
from edm_tutorial.networks.edm2.loss import LossWeight, Weighted, weighted_loss
from edm_tutorial.networks.edm2.network import Block, EDM2Embedding
from edm_tutorial.networks.unet import blocks as unet_blocks

SMALL = dict(model_channels=16, channel_mult=(1, 2), num_blocks=1, attention_points=0)


def magnitude(x):
    return float(jnp.sqrt(jnp.mean(jnp.asarray(x, float) ** 2)))


def with_gain(network, gain=1.0):
    """The network past its zero start."""
    return eqx.tree_at(lambda net: net.gain, network, jnp.asarray(gain))


def rows(tree):
    is_rows = lambda node: isinstance(node, Rows)
    return [leaf for leaf in jax.tree.leaves(tree, is_leaf=is_rows) if is_rows(leaf)]


def map_rows(f, tree):
    is_rows = lambda node: isinstance(node, Rows)
    return jax.tree.map(lambda w: f(w) if is_rows(w) else w, tree, is_leaf=is_rows)


def forced_error(tree):
    """The largest relative error of a row's norm."""
    norm = lambda w: np.linalg.norm(np.asarray(w, float).reshape(-1, w.shape[-1]), axis=0)
    length = lambda w: math.sqrt(w[..., 0].size)
    return max(np.abs(norm(w.array) / length(w.array) - 1).max() for w in rows(tree))


def block_magnitudes(kind, network, x, c_noise):
    """The magnitude of what each block returns, over a batch, in the order of the calls."""
    found, original = [], kind.__call__

    def recorded(self, *args):
        y = original(self, *args)
        found.append(y)
        return y

    def run(x, c_noise):
        found.clear()
        network(x, c_noise)
        return list(found)

    with mock.patch.object(kind, "__call__", recorded):
        return np.array([magnitude(y) for y in jax.jit(jax.vmap(run))(x, c_noise)])


# Of 131,000 entries; neighbours of a convolution share inputs, nine of them: 0.6 % at one sigma.
X = (64, 64, 32)


@pytest.mark.parametrize(
    "layer",
    [
        lambda x, key: MPLinear(32, 48, key=key)(x),
        lambda x, key: MPConv(32, 48, key=key)(x)[1:-1, 1:-1],
        lambda x, key: mp_silu(x),
        lambda x, key: mp_sum(x, jr.normal(key, X), 0.3),
        lambda x, key: mp_sum(x, jr.normal(key, X), 0.5),
        lambda x, key: mp_cat(x, jr.normal(key, (64, 64, 8))),
        lambda x, key: mp_cat(x, jr.normal(key, X), 0.3),
        lambda x, key: pixel_norm(3 * x),
        lambda x, key: jax.vmap(MPFourier(512, key=key))(x[0, :, 0]),
    ],
    ids=["linear", "conv", "silu", "sum 0.3", "sum 0.5", "cat", "cat 0.3", "norm", "fourier"],
)
def test_a_layer_keeps_the_magnitude_of_unit_normals(layer, key):
    x_key, layer_key = jr.split(key)
    assert abs(magnitude(layer(jr.normal(x_key, X), layer_key)) - 1) < 0.02


def test_concatenated_parts_weigh_as_in_a_sum(key):
    """A linear map of the concatenation has the shares (1 - t)^2 : t^2 of the two parts."""
    a_key, b_key, w_key = jr.split(key, 3)
    a, b = jr.normal(a_key, (4096, 24)), jr.normal(b_key, (4096, 8))
    linear = MPLinear(32, 256, key=w_key)
    of_a = magnitude(linear(mp_cat(a, 0 * b, 0.3)))
    of_b = magnitude(linear(mp_cat(0 * a, b, 0.3)))
    # 256 random rows: their shares scatter by sqrt(2 / (256 * 8)) = 3 %
    assert np.isclose(of_b / of_a, 0.3 / 0.7, rtol=0.1)


def test_every_class_has_the_magnitude_of_noise(key):
    """One-hot labels times sqrt(n): over all n classes the mean square is that of the rows."""
    embedding = EDM2Embedding(8, 64, 10, key=key)
    assert embedding.map_label is not None
    mapped = jax.vmap(embedding.map_label)(jnp.eye(10) * math.sqrt(10))
    assert np.isclose(magnitude(mapped), 1, rtol=1e-12)


def test_a_pixel_without_signal_stays_zero():
    assert not pixel_norm(jnp.zeros((2, 2, 4))).any()


@pytest.mark.parametrize("side, levels, gain", [(16, 2, 0.0), (32, 3, 0.0), (16, 2, 0.5)])
def test_block_outputs_of_a_random_network(side, levels, gain, key):
    """Between 0.7 and 1.2 everywhere: below 1 only by the zeros around the image."""
    net_key, x_key, c_key = jr.split(key, 3)
    sizes = dict(SMALL, channel_mult=(1, 2, 2)[:levels])
    network = edm2_unet((1, side, side), **sizes, key=net_key)
    network = eqx.tree_at(
        lambda net: [b.branch.gain for b in blocks(net)],
        network,
        [jnp.asarray(gain)] * len(blocks(network)),
    )
    x, c = jr.normal(x_key, (16, 1, side, side)), jr.normal(c_key, (16,)) / 2
    found = block_magnitudes(Block, network, x, c)
    attends = np.array([block.attention is not None for block in blocks(network)])
    assert len(found) == len(attends) == 5 * levels and attends.sum() == 1
    print(found)
    assert np.all((0.7 < found) & (found < 1.2))


def blocks(network):
    inner = [block for level in network.decoder for block in [*level.entry, *level.blocks]]
    return [*network.encoder, *inner]
