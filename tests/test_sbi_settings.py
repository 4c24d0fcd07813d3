"""The optimizer of fits: what a step does, by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_tutorial.networks.mlp import PosteriorMLP
from edm_tutorial.sbi.settings import default_settings, optimizer_of

SETTINGS = default_settings(400)._replace(steps=100)


def test_weight_decay_falls_over_half_the_steps():
    """Without a gradient, a step shrinks the weights by learning rate times decay."""
    settings = SETTINGS._replace(weight_decay=1.0)
    optimizer = optimizer_of(settings)
    weights = jnp.ones(1)
    state = optimizer.init(weights)
    shrunk = []
    for _ in range(90):
        with jax.numpy_dtype_promotion("standard"):  # Adam mixes integer counts and floats
            updates, state = optimizer.update(jnp.zeros(1), state, weights)
        shrunk.append(-float(updates[0]) / settings.learning_rate)
    steps = np.arange(90)
    rate = np.minimum(steps / 2, 0.5 + 0.5 * np.cos(np.pi * (steps - 2) / 98))
    np.testing.assert_allclose(shrunk, rate * 3e-3 ** np.minimum(steps / 50, 1), rtol=1e-5)


def test_a_gradient_is_clipped_to_norm_one():
    """Adam after gradients of norm 1 and 100, which are one and the same: a step of the rate."""
    optimizer = optimizer_of(SETTINGS._replace(weight_decay=0.0))
    weights = jnp.zeros(2)
    state = optimizer.init(weights)
    direction = jnp.array([0.6, -0.8])
    for share, norm_ in ((0.0, 1.0), (0.5, 100.0), (1.0, 1e4)):  # two steps of warm-up
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(norm_ * direction, state, weights)
        wanted = -share * SETTINGS.learning_rate * np.sign(direction)
        np.testing.assert_allclose(updates, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    "steps, decay, hidden",
    [(100, 0.5, 0.5), (3_200, 0.5, 5.0), (6_400, 0.5, 8.0), (100, 9.0, 9.0), (1_000, 0.0, 0.0)],
)
def test_the_longer_training_lasts_the_more_decays_what_says_where_a_posterior_is(
    steps, decay, hidden, key
):
    """Without a gradient, a weight of one shrinks by the learning rate times the decay."""
    network = PosteriorMLP(2, 3, width=8, depth=1, dropout=0.0, key=key)
    settings = SETTINGS._replace(steps=steps, weight_decay=decay)
    optimizer = optimizer_of(settings)
    weights = jax.tree.map(jnp.ones_like, eqx.filter(network, eqx.is_inexact_array))
    state, still = optimizer.init(weights), jax.tree.map(jnp.zeros_like, weights)
    for _ in range(2):
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(still, state, weights)
    taken = settings.learning_rate / (steps // 50) * 3e-3 ** (2 / steps)  # in warm-up
    wanted = jax.tree.map(lambda leaf: jnp.full_like(leaf, -taken * decay), weights)
    blocks = jax.tree.map(lambda leaf: jnp.full_like(leaf, -taken * hidden), weights.moments.blocks)
    wanted = eqx.tree_at(lambda tree: tree.moments.blocks, wanted, blocks)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, wanted)
