"""The transformer of tokens: order, masks, and what an untrained one returns."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from edm_tutorial.networks import TokenTransformer, tokens


def trained(key, kinds=(0, 1, 2, 3, 3), *, depth=2, size=2, out_size=1):
    """One whose weights are all random, the last layer and the norms included."""
    net = TokenTransformer(kinds, size, out_size, width=16, depth=depth, heads=2, key=key)
    leaves, form = jax.tree.flatten(eqx.filter(net, eqx.is_array))
    keys = jr.split(jr.fold_in(key, 1), len(leaves))
    noise = [0.3 * jr.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    return eqx.apply_updates(net, jax.tree.unflatten(form, noise))


def with_kinds(net, kinds):
    """The same weights, of tokens in another order."""
    other = TokenTransformer(kinds, **net.sizes, key=jr.key(0))
    return jax.tree.unflatten(jax.tree.structure(other), jax.tree.leaves(net))


def inputs(key, tokens=5, size=2, dtype=float):
    value_key, known_key = jr.split(key)
    values = jr.normal(value_key, (tokens, size), dtype)
    known = jr.bernoulli(known_key, 0.5, (tokens, size)).astype(dtype)
    return values, known, jnp.asarray(0.3, dtype), jnp.ones((tokens, tokens), bool)


def test_untrained_it_returns_zero(key):
    net_key, input_key = jr.split(key)
    net = TokenTransformer(range(5), 2, 3, key=net_key)
    found = net(*inputs(input_key))
    assert found.shape == (5, 3)
    np.testing.assert_array_equal(found, 0)


def test_features_start_with_the_weight_of_one(key):
    """Eight a number: weights of variance 1/8, to 4 standard errors of 3 x 8 x 64 squares."""
    net = TokenTransformer(range(3), key=key)
    assert net.embed.shape == (3, 8, 64)
    np.testing.assert_allclose(np.mean(net.embed**2) * 8, 1, atol=4 * np.sqrt(2 / 1536))
    np.testing.assert_allclose(np.mean(net.name**2), 1, atol=4 * np.sqrt(2 / 192))


@pytest.mark.parametrize("size", [0, 1e-3, 1, 30])
def test_the_norm_is_nowhere_steep(size, key):
    """A token near zero would make it so, and with it the denoiser."""
    h = size * jr.normal(key, (1, 16))
    slope = jax.jacobian(lambda h: tokens._normalised(h[None])[0])(h[0])
    assert np.linalg.norm(slope, 2) <= 1 + 1e-12
    assert jnp.mean(tokens._normalised(h) ** 2) < 1


def test_attention_is_that_of_equinox(key, rng):
    """With the same weights, where every token may look at one at least."""
    net_key, other_key, h_key = jr.split(key, 3)
    block = trained(net_key).blocks[0]
    other = eqx.nn.MultiheadAttention(2, 16, key=other_key)
    where = lambda mha: [mha.query_proj, mha.key_proj, mha.value_proj, mha.output_proj]
    where_weights = lambda mha: [layer.weight for layer in where(mha)]
    weights = [*jnp.split(block.projections.weight, 3), block.attended.weight]
    other = eqx.tree_at(where_weights, other, weights)
    h, mask = jr.normal(h_key, (5, 16)), (rng.random((5, 5)) < 0.5) | np.eye(5, dtype=bool)
    found = block.attention(h, jnp.asarray(mask))
    np.testing.assert_allclose(found, other(h, h, h, mask=jnp.asarray(mask)), atol=1e-12)


def test_a_block_is_attention_and_a_layer_each_scaled_shifted_and_gated_by_the_level(key, rng):
    """By hand. Where the level says nothing, scales and gates are 1 and shifts 0."""
    block = trained(key).blocks[0]
    silent = eqx.tree_at(
        lambda b: b.modulation, block, jax.tree.map(jnp.zeros_like, block.modulation)
    )
    h = jnp.asarray(rng.normal(size=(5, 16)))
    level = jnp.asarray(rng.normal(size=tokens.NOISE_WIDTH))
    mask = jnp.asarray(np.eye(5) == 1)
    norm = lambda h: h / np.sqrt(np.mean(h**2, axis=1, keepdims=True) + 1)
    for this in (block, silent):
        said = np.split(np.asarray(this.modulation(level)), 6)
        scale_1, shift_1, gate_1, scale_2, shift_2, gate_2 = (part[None] for part in said)
        attended = this.attention((1 + scale_1) * norm(h) + shift_1, mask)
        middle = h + (1 + gate_1) * np.asarray(attended)
        inner = np.asarray(jax.vmap(this.inner)((1 + scale_2) * norm(middle) + shift_2))
        layer = jax.vmap(this.outer)(inner / (1 + np.exp(-inner)))
        expected = middle + (1 + gate_2) * np.asarray(layer)
        np.testing.assert_allclose(this(h, level, mask, None), expected, rtol=1e-10)


@pytest.mark.parametrize(("dtype", "allowed"), [(jnp.float32, 1e-5), (jnp.float64, 1e-12)])
def test_tokens_have_no_order_beside_their_kinds(dtype, allowed, key, rng):
    net_key, input_key = jr.split(key)
    net = trained(net_key)
    values, known, c_noise, _ = inputs(input_key, dtype=dtype)
    mask = jnp.asarray(rng.random((5, 5)) < 0.5)
    before = net(values, known, c_noise, mask)
    assert before.dtype == dtype
    order = rng.permutation(5)
    moved = with_kinds(net, [net.kinds[i] for i in order])
    after = moved(values[order], known[order], c_noise, mask[np.ix_(order, order)])
    np.testing.assert_allclose(after, before[order], atol=allowed)
    # With the kinds left in place it is another function.
    assert np.max(np.abs(net(values[order], known[order], c_noise, mask) - before[order])) > 1e-2


def test_tokens_of_one_kind_can_change_places(key):
    net_key, input_key = jr.split(key)
    net = trained(net_key)
    values, known, c_noise, mask = inputs(input_key)
    swap = np.array([0, 1, 2, 4, 3])
    before, after = net(values, known, c_noise, mask), net(values[swap], known[swap], c_noise, mask)
    np.testing.assert_allclose(after, before[swap], atol=1e-12)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_nothing_passes_further_than_its_blocks_reach(depth, key):
    """In a chain of six, token 0 is told of token j exactly where j is at most `depth` away."""
    net_key, input_key = jr.split(key)
    net = trained(net_key, range(6), depth=depth, size=1)
    values, known, c_noise, _ = inputs(input_key, tokens=6, size=1)
    chain = np.abs(np.subtract.outer(range(6), range(6))) <= 1
    slope = jax.jit(jax.grad(lambda v: net(v, known, c_noise, jnp.asarray(chain))[0, 0]))(values)
    np.testing.assert_array_equal(slope[:, 0] == 0, np.arange(6) > depth)


def test_the_row_of_the_mask_is_who_looks(key):
    """Token 0 looks at token 1, which does not look back."""
    net_key, input_key = jr.split(key)
    net = trained(net_key, range(2), depth=1, size=1)
    values, known, c_noise, _ = inputs(input_key, tokens=2, size=1)
    mask = jnp.array([[False, True], [False, False]])
    slope = jax.jit(jax.jacobian(lambda v: net(v, known, c_noise, mask)[:, 0]))(values)[..., 0]
    np.testing.assert_array_equal(slope == 0, [[False, False], [True, False]])


def test_what_it_is_told_matters(key):
    net_key, input_key = jr.split(key)
    net = trained(net_key)
    values, known, c_noise, mask = inputs(input_key)
    base = net(values, known, c_noise, mask)
    for other in (
        net(values, 1 - known, c_noise, mask),
        net(values, known, c_noise + 1, mask),
        net(values, known, c_noise, jnp.eye(5, dtype=bool)),
    ):
        assert np.max(np.abs(other - base)) > 1e-2


def test_dropout_needs_a_key_and_changes_with_it(key):
    net_key, input_key, one, two = jr.split(key, 4)
    net = TokenTransformer(range(5), 2, width=16, heads=2, dropout=0.5, key=net_key)
    net = eqx.tree_at(lambda net: net.output, net, replace_fn=lambda w: w + 1)
    told = inputs(input_key)
    assert not np.array_equal(net(*told, key=one), net(*told, key=two))
    np.testing.assert_array_equal(net(*told), net(*told))


def test_sizes_make_the_same_again(key):
    net = TokenTransformer([0, 1, 1], 2, 3, width=24, depth=1, heads=3, dropout=0.2, key=key)
    again = TokenTransformer(net.kinds, **net.sizes, key=jr.clone(key))
    assert eqx.tree_equal(net, again)


REFUSED = {
    "no token": (lambda key: TokenTransformer([], key=key), ValueError, "at least one token"),
    "width": (
        lambda key: TokenTransformer([0], width=10, heads=4, key=key),
        ValueError,
        "multiple",
    ),
    "dropout": (lambda key: TokenTransformer([0], dropout=1.0, key=key), ValueError, "below 1"),
    "size": (lambda key: TokenTransformer([0], 0, key=key), ValueError, "size must be at least 1"),
    "half a token": (lambda key: TokenTransformer([0.5], key=key), TypeError, "whole number"),
    "another shape": (
        lambda key: TokenTransformer([0], key=key)(
            jnp.zeros((1, 1)), jnp.zeros((1, 2)), jnp.zeros(()), jnp.ones((1, 1), bool)
        ),
        ValueError,
        "known must have the shape",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.usefixtures("unchecked")
def test_what_makes_no_transformer_is_refused(name, key):
    call, kind, words = REFUSED[name]
    with pytest.raises(kind, match=words):
        call(key)
