"""The residual MLP: silent at first, then sensitive to everything it is told."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import edm_tutorial as edm
from edm_tutorial.networks import MLP, Embedded
from edm_tutorial.networks.mlp import PosteriorMLP

X, LABEL, COND = jnp.array([0.5, -1.0, 2.0]), jnp.array(-0.3), jnp.array([1.0, -2.0])


def awake(network, key):
    """The same network with an output layer that is not zero."""
    weight = jr.normal(key, network.output.weight.shape)
    return eqx.tree_at(lambda net: net.output.weight, network, weight)


def make(key, cond_size=2):
    net_key, wake_key = jr.split(key)
    return awake(MLP(3, cond_size, width=16, depth=2, key=net_key), wake_key)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_untrained_network_is_exactly_zero(dtype, key):
    network = eqx.filter_jit(MLP(3, 2, width=16, depth=2, key=key))
    for scale in (1e-3, 1.0, 1e3):
        output = network(scale * X.astype(dtype), LABEL.astype(dtype), COND)
        assert output.dtype == dtype and output.shape == (3,)
        np.testing.assert_array_equal(output, 0)


def test_every_input_matters(key):
    """Each entry of x, the label over its whole range, and each entry of cond."""
    network = eqx.filter_jit(make(key))
    wake = network(X, LABEL, COND)
    assert np.all(wake != 0)
    for i in range(3):
        assert np.all(np.abs(network(X.at[i].add(0.1), LABEL, COND) - wake) > 1e-6)
    for i in range(2):
        assert np.all(np.abs(network(X, LABEL, COND.at[i].add(0.1)) - wake) > 1e-6)
    labels = jnp.array([-1.5, -0.31, -0.3, 1.1, 300.0, 999.0])
    outputs = np.array([network(X, label, COND) for label in labels])
    distance = np.abs(outputs[:, None] - outputs[None]).max(axis=-1)
    assert np.all(distance[~np.eye(len(labels), dtype=bool)] > 1e-4)


def linear(layer, x):
    return np.asarray(layer.weight) @ x + np.asarray(layer.bias)


def silu(x):
    return x / (1 + np.exp(-x))


def through(block, h, context):
    """A block by hand: a normalised layer that is told the context, and one more, added."""
    normal = (h - h.mean()) / np.sqrt(h.var() + 1e-5)
    inner = linear(block.inner, normal) + np.asarray(block.context.weight) @ context
    return h + linear(block.outer, silu(inner))


def test_a_network_is_its_layers(key):
    network = make(key)
    waves = -0.3 * np.geomspace(1e-3, 8.0, 32)
    context = np.concatenate([np.cos(waves), np.sin(waves), COND])
    for layer in network.embed_context.layers:
        context = silu(linear(layer, context))
    h = linear(network.embed_input, np.asarray(X))
    for block in network.blocks:
        h = through(block, h, context)
    np.testing.assert_allclose(network(X, LABEL, COND), linear(network.output, silu(h)), rtol=1e-9)


def test_the_moments_of_a_posterior_are_their_layers(key):
    """Of x alone, which is its own context; widths within e^8."""
    make_key, last_key = jr.split(key)
    moments = PosteriorMLP(2, 3, width=4, depth=1, dropout=0.0, key=make_key).moments
    weight = jr.normal(last_key, moments.last.weight.shape)
    moments = eqx.tree_at(lambda net: net.last.weight, moments, weight)
    for x in (np.array([0.5, -1.0, 2.0]), np.array([50.0, -100.0, 200.0])):
        h = linear(moments.first, x)
        context = silu(h)
        for block in moments.blocks:
            h = through(block, h, context)
        mean, log_std = np.split(linear(moments.last, silu(h)), 2)
        found = moments(jnp.asarray(x), None)
        np.testing.assert_allclose(found[0], mean, rtol=1e-9)
        np.testing.assert_allclose(found[1], np.clip(log_std, -8, 8), rtol=1e-9)
    assert np.abs(log_std).max() > 8  # of the second


def test_octaves_are_waves_of_x(key):
    """Two of them: a network with nothing but its first layer, which looks at one column each."""
    network = MLP(1, width=1, depth=1, octaves=2, key=key)
    parts = lambda net: (net.embed_input.weight, net.embed_input.bias, net.blocks, net.output)
    for i, wave in enumerate([0.7, np.cos(0.7), np.cos(1.4), np.sin(0.7), np.sin(1.4)]):
        only = jnp.eye(5)[i : i + 1], jnp.zeros(1), [], lambda h: h
        seen = eqx.tree_at(parts, network, only)(jnp.array([0.7]), LABEL)
        np.testing.assert_allclose(seen, jax.nn.silu(wave), rtol=1e-12)


@pytest.mark.slow
def test_one_gradient_step_wakes_the_last_layer_and_then_everything(key):
    """At zero only the output layer has a gradient; after one step every array has."""
    network = MLP(3, 2, width=8, depth=2, key=key)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(network):
        return jnp.sum((network(X, LABEL, COND) - 1) ** 2)

    first = gradient(network)
    np.testing.assert_array_equal(first.embed_input.weight, 0)
    assert np.all(first.output.bias != 0)
    network = eqx.apply_updates(network, jax.tree.map(lambda g: -0.1 * g, first))
    for leaf in jax.tree.leaves(gradient(network)):
        assert np.any(leaf != 0)


def test_computes_in_the_dtype_of_x(key):
    network = make(key)
    assert network.output.weight.dtype == jnp.float64
    exact = network(X, LABEL, COND)
    single = eqx.filter_jit(network)(X.astype(jnp.float32), LABEL, COND)
    assert single.dtype == jnp.float32
    # a dozen layers of sums of 16 terms, each good to 6e-8 of its size
    np.testing.assert_allclose(single, exact, atol=1e-5 * float(jnp.abs(exact).max()))


def test_batched_is_one_by_one(key):
    network = make(key)
    x = jr.normal(jr.fold_in(key, 7), (5, 3))
    labels, cond = jnp.linspace(-1.5, 1.1, 5), jr.normal(jr.fold_in(key, 8), (5, 2))
    batched = jax.jit(jax.vmap(network))(x, labels, cond)
    one = eqx.filter_jit(network)
    single = [one(*row) for row in zip(x, labels, cond, strict=True)]
    np.testing.assert_allclose(batched, jnp.stack(single), rtol=1e-12, atol=1e-13)


def test_gradient_with_respect_to_x_is_the_difference_quotient(key):
    network = make(key)
    total = eqx.filter_jit(lambda x: jnp.sum(network(x, LABEL, COND)))
    slope, h = jax.grad(total)(X), 1e-5
    for i in range(3):
        quotient = (total(X.at[i].add(h)) - total(X.at[i].add(-h))) / (2 * h)
        # central differences: h^2 of truncation and 1e-16 / h of round-off
        np.testing.assert_allclose(slope[i], quotient, rtol=1e-6, atol=1e-8)


def test_no_condition_means_none(key):
    network = make(key, cond_size=0)
    assert network(X, LABEL).shape == (3,)
    with pytest.raises(ValueError, match="cond must have shape None"):
        network(X, LABEL, COND)


def test_different_keys_different_networks(key):
    one, other = (MLP(3, key=k, width=8, depth=2) for k in jr.split(key))
    assert np.all(one.embed_input.weight != other.embed_input.weight)
    firsts = [block.inner.weight[0, 0] for block in (*one.blocks, *other.blocks)]
    assert len(set(map(float, firsts))) == 4  # nor do two blocks of one network start alike


@pytest.mark.slow
def test_embedded_class_labels_are_trained_with_the_network(key):
    """Two classes at -1 and +1: only through its label can a network know which."""
    net_key, embed_key, train_key = jr.split(key, 3)
    embedding = eqx.nn.Embedding(3, 4, key=embed_key)
    network = Embedded(MLP(1, 4, width=16, depth=1, key=net_key), embedding)
    labels = jnp.array([0, 1] * 8)
    x = 2.0 * labels[:, None].astype(float) - 1
    denoiser = edm.Denoiser(network, edm.EDMPreconditioning.from_data(x))
    loss = partial(edm.denoising_loss, sigma_dist=edm.LogNormal(0.0, 1.0))
    run = edm.train(
        denoiser,
        loss,
        (x, labels),
        optax.adam(1e-2),
        steps=150,
        batch_size=32,
        key=train_key,
        every=150,
    )
    state, _ = next(run)
    trained = state.denoiser.network.embedding.weight
    moved = np.abs(trained - embedding.weight).max(axis=1)
    assert np.all(moved[:2] > 1e-2) and moved[2] == 0  # class 2 was never shown
    # Halfway between the two an untold network could only answer 0.
    denoise = eqx.filter_jit(state.denoiser)
    for label, centre in ((0, -1.0), (1, 1.0)):
        np.testing.assert_allclose(denoise(jnp.zeros(1), 5.0, jnp.array(label)), [centre], atol=0.3)


def test_a_condition_may_be_a_list_and_a_class_is_one_hot(key):
    network = MLP(2, 3, width=4, depth=1, key=key)
    network = eqx.tree_at(lambda net: net.output.weight, network, jnp.ones((2, 4)))
    call = lambda cond: network(jnp.ones(2), jnp.array(0.1), cond)
    np.testing.assert_array_equal(call([0, 1, 0]), call(jax.nn.one_hot(1, 3)))
    for label in (1, np.int64(1), jnp.array(1)):
        with pytest.raises(ValueError, match=r"got \(\): class k is jax.nn.one_hot\(k, 3\)"):
            call(label)


def test_without_octaves_the_network_sees_x_alone(key):
    assert MLP(3, width=4, depth=1, key=key).embed_input.in_features == 3
