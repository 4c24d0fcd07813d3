"""U-Nets of one, two and three axes: one network seen in another number of axes, and any size."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from hypothesis import Phase, given, settings, strategies as st
from scipy.special import ndtri

import edm_tutorial as edm
from edm_tutorial.networks import ImageCondition, edm2_unet, small_unet
from edm_tutorial.networks.unet.convolution import convolve
from edm_tutorial.networks.unet.layers import crop_image, pad_image
from edm_tutorial.training import NonFiniteLossWarning


def awake(shape, **options):
    """A small network with a random number in every array, in float64."""
    build = partial(small_unet, shape, width=4, **options)
    skeleton = eqx.filter_eval_shape(build, key=jr.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape)), skeleton)


def with_another_axis(network, shape):
    """The network of `shape`, of one axis more: its kernels are `network`'s in their middle."""
    skeleton = eqx.filter_eval_shape(partial(small_unet, shape, width=4), key=jr.key(0))

    def widened(leaf, like):
        if leaf.ndim == like.ndim:
            return leaf
        kernel = like.shape[0]
        return jnp.zeros(like.shape).at[kernel // 2].set(leaf)

    leaves = zip(jax.tree.leaves(network), jax.tree.leaves(skeleton), strict=True)
    return jax.tree.unflatten(jax.tree.structure(skeleton), [widened(*pair) for pair in leaves])


@pytest.mark.parametrize(
    "size, more", [((27,), 12), pytest.param((5, 9), 6, marks=pytest.mark.slow)]
)
def test_on_data_constant_along_an_axis_a_network_is_that_of_the_other_axes(size, more):
    """Row by row: with kernels one row wide, nothing that rows have in common sets them apart.

    Means over equal rows are those over one, pairs of equal rows average to themselves, and
    attention divides its weight among equal points. 27 is padded to 28, and 5 x 9 to 6 x 10.
    """
    network = awake((2, *size))
    wide = with_another_axis(network, (2, more, *size))
    assert len(wide.encoder) == len(network.encoder) >= 2
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, *size)))
    out = eqx.filter_jit(network)(x, jnp.array(0.3))
    rows = jnp.repeat(x[:, None], more, axis=1)
    # sums of some hundred terms in some twenty layers, good to 1e-16 each
    want = np.broadcast_to(out[:, None], rows.shape)
    np.testing.assert_allclose(eqx.filter_jit(wide)(rows, jnp.array(0.3)), want, atol=1e-11)
    assert np.std(out) > 0.05


@pytest.mark.parametrize("size", [(7,), (3, 4, 5)])
def test_convolution_and_derivatives_are_those_of_jax(size, key):
    """Along one and three axes: forwards, and backwards in both arguments, also in batches."""
    x_key, weight_key = jr.split(key)
    axes = {1: ("NWC", "WIO", "NWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}[len(size)]
    x, weight = jr.normal(x_key, (2, *size, 2)), jr.normal(weight_key, (*[3] * len(size), 2, 4))
    ours = jax.vmap(lambda x, w: convolve(x, w, 1), (0, None))
    plain = lambda x, w: jax.lax.conv_general_dilated(
        x, w, [1] * len(size), "SAME", dimension_numbers=axes
    )

    @partial(jax.jit, static_argnums=0)
    def everything(f, x, w):
        total = lambda x, w: jnp.sum(jnp.sin(f(x, w)))
        return f(x, w), jax.grad(total, argnums=(0, 1))(x, w)

    # sums of 6 to 240 terms of size 1
    close = partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12)
    jax.tree.map(close, *(everything(f, x, weight) for f in (ours, plain)))


@pytest.mark.parametrize(
    "size, levels",
    [
        ((24, 40), [(24, 40), (12, 20), (6, 10), (3, 5)]),
        ((27, 27), [(28, 28), (14, 14), (7, 7)]),
        ((100,), [(104,), (52,), (26,), (13,)]),
        ((16, 16, 16), [(16, 16, 16), (8, 8, 8), (4, 4, 4)]),
        ((5, 9), [(6, 10), (3, 5)]),
        ((5, 8), [(5, 8)]),
        ((40, 40, 40), [(40, 40, 40), (20, 20, 20), (10, 10, 10), (5, 5, 5)]),
    ],
)
def test_levels_of_a_small_unet(size, levels, key):
    network = eqx.filter_eval_shape(partial(small_unet, (3, *size), width=8), key=key)
    assert network.resolutions == levels
    attends = [block.qkv is not None for level in network.decoder for block in level.entry]
    assert attends == [True] + [False] * len(levels)
    assert all(block.qkv is None for level in network.encoder for block in level.blocks)


@pytest.mark.parametrize("size, attends", [((4, 256), True), ((4, 257), False), ((2, 999), False)])
def test_attention_is_over_1024_points_at_most(size, attends, key):
    network = eqx.filter_eval_shape(partial(small_unet, (1, *size), width=8), key=key)
    assert (network.decoder[0].entry[0].qkv is not None) == attends


@pytest.mark.parametrize("size", [(5,), (3, 4), (2, 3, 4)])
def test_padding_along_every_axis(size):
    """As NumPy pads, by reflection or, where the margin is too wide for that, by the edge."""
    x = np.random.default_rng(0).normal(size=(*size, 2))
    padded = pad_image(jnp.asarray(x), 4)
    for axis, n in enumerate(size):
        margin = [(0, 0)] * x.ndim
        missing = -n % 4
        margin[axis] = (missing // 2, missing - missing // 2)
        x = np.pad(x, margin, "reflect" if max(margin[axis]) < n else "edge")
    np.testing.assert_array_equal(padded, x)
    assert padded.shape[:-1] == tuple(-(-n // 4) * 4 for n in size)
    middle = crop_image(padded, size)
    np.testing.assert_array_equal(pad_image(middle, 4), padded)


SHAPES = st.one_of(
    st.tuples(st.integers(1, 2), st.integers(1, 20)),
    st.tuples(st.integers(1, 2), st.integers(1, 11), st.integers(1, 11)),
    st.tuples(st.just(1), st.integers(2, 6), st.integers(2, 6), st.integers(2, 6)),
)


@pytest.mark.slow
@given(SHAPES)
@settings(
    derandomize=True,
    deadline=None,
    max_examples=5,
    database=None,
    phases=[Phase.explicit, Phase.generate],
)
def test_any_shape(shape):
    """Untrained, F is 0; awake it is not, every entry matters, and every gradient is finite."""
    rng = np.random.default_rng(0)
    x, vector = jnp.asarray(rng.normal(size=shape)), jnp.array([0.3, -0.8])
    cond = ImageCondition(1, vector=vector)
    options = {"label_dim": 3, "vector_dim": 2}

    @eqx.filter_jit
    def run(network, x):
        def total(arguments):
            network, x = arguments
            out = network(x, jnp.array(0.3), cond)
            return jnp.sum(out**2), out

        return eqx.filter_grad(total, has_aux=True)((network, x))

    untrained = small_unet(shape, width=4, key=jr.key(1), **options)
    np.testing.assert_array_equal(run(untrained, x)[1], np.zeros(shape))
    gradients, out = run(awake(shape, **options), x)
    assert out.shape == shape and np.all(out != 0)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))
    assert np.all(gradients[1] != 0)


@pytest.mark.parametrize("dim", [0, 2])
def test_what_conditions_a_network(dim):
    """Class by number or by one-hot vector alike; -1, zeros and None for none; and a vector."""
    embedding = awake((1, 6), label_dim=3, vector_dim=dim).embedding
    told_of = lambda *args, **given: embedding(jnp.array(0.3), ImageCondition(*args, **given))
    one = told_of(1)
    np.testing.assert_array_equal(told_of(jnp.array(1)), one)
    np.testing.assert_array_equal(told_of(jax.nn.one_hot(1, 3)), one)
    for none in (told_of(-1), told_of(jnp.zeros(3))):
        np.testing.assert_array_equal(none, told_of())
    assert np.all(told_of() != one) and np.all(told_of(2) != one)
    if dim:
        vector = jnp.full(dim, 0.5)
        np.testing.assert_array_equal(told_of(1, vector=jnp.zeros(dim)), one)
        assert np.all(told_of(1, vector=vector) != one)


def test_a_network_takes_each_of_its_classes_by_number():
    """Called as it is, where the number can be looked at."""
    network = awake((1, 6), label_dim=3)
    run = lambda labels: network(jnp.ones((1, 6)), jnp.array(0.3), ImageCondition(labels))
    for label in range(3):
        np.testing.assert_array_equal(run(label), run(jax.nn.one_hot(label, 3)))
    np.testing.assert_array_equal(run(-1), run(None))


@pytest.mark.parametrize("build", [small_unet, edm2_unet])
def test_a_number_that_is_no_class_is_noticed_in_training_too(build, key):
    """One example of five has the class 3 of a network that knows 0, 1 and 2."""
    sizes = {"width": 4} if build is small_unet else {"model_channels": 4, "channel_mult": (1,)}
    network = build((1, 8, 8), label_dim=3, **sizes, key=key)
    run = jax.jit(
        jax.vmap(lambda k: network(jnp.ones((1, 8, 8)), jnp.array(0.3), ImageCondition(k)).sum())
    )
    found = run(jnp.array([-2, -1, 0, 2, 3]))
    np.testing.assert_array_equal(np.isnan(found), [True, False, False, False, True])

    data = jnp.ones((5, 1, 8, 8)), ImageCondition(jnp.array([0, 1, 2, 2, 3]))
    denoiser = edm.Denoiser(network, edm.EDMPreconditioning(1.0))
    loss = partial(edm.denoising_loss, sigma_dist=edm.LogNormal())
    plan = {"steps": 2, "batch_size": 16, "key": key, "every": 2}
    with pytest.warns(NonFiniteLossWarning):
        list(edm.train(denoiser, loss, data, optax.adam(1e-3), **plan))


def test_the_vector_enters_beside_the_classes():
    """In the sum that the embedding's layers see: a vector of weights W is worth the class W."""
    network = awake((1, 6), label_dim=2, vector_dim=2)
    embedding = network.embedding
    weight = np.sqrt(2) * embedding.map_label.weight
    embedding = eqx.tree_at(lambda e: e.map_vector.weight, embedding, weight)
    by_class = embedding(jnp.array(0.3), ImageCondition(1))
    by_vector = embedding(jnp.array(0.3), ImageCondition(vector=jnp.array([0.0, 1.0])))
    # one product more or less
    np.testing.assert_allclose(by_vector, by_class, rtol=1e-12)


# Networks that learn


def smooth_field(size, length):
    """The roots of a smooth Gaussian law's covariance along each axis, and its spectrum.

    The covariance falls as exp(-d^2 / 2 length^2) along each axis, with a little white noise; the
    roots are of variance 1/4 together.
    """
    roots, spectrum = [], np.array([0.25])
    for n in size:
        apart = np.subtract.outer(np.arange(n), np.arange(n))
        values, vectors = np.linalg.eigh(np.exp(-((apart / length) ** 2) / 2) + 1e-3 * np.eye(n))
        roots.append(0.25 ** (0.5 / len(size)) * vectors * np.sqrt(values))
        spectrum = np.outer(spectrum, values).ravel()
    return roots, spectrum


@pytest.mark.slow
@pytest.mark.usefixtures("single_precision")
@pytest.mark.parametrize(
    "size, length, steps", [((100,), 5.0, 50), ((12, 20), 2.0, 40)], ids=["series", "pictures"]
)
def test_a_small_network_learns(size, length, steps, key):
    """To below half of the way from the untrained loss, 1, to the ideal one, on fresh data.

    The ideal denoiser of a Gaussian law shrinks each direction of variance c by c / (c + sigma^2),
    with the error c sigma^2 / (c + sigma^2).
    """
    roots, spectrum = smooth_field(size, length)
    rng, sigma_data = np.random.default_rng(0), np.sqrt(spectrum.mean())
    white = rng.normal(size=(2064, *size))
    axes = {1: "nx,ax->na", 2: "nxy,ax,by->nab"}[len(size)]
    x = jnp.asarray(np.einsum(axes, white, *roots)[:, None], jnp.float32)
    net_key, train_key, loss_key = jr.split(key, 3)
    network = small_unet(x.shape[1:], width=8, key=net_key)
    denoiser = edm.Denoiser(network, edm.EDMPreconditioning(sigma_data))
    loss = partial(edm.denoising_loss, sigma_dist=edm.LogNormal())
    options = {"steps": steps, "batch_size": 32, "key": train_key, "every": steps}
    [(state, _)] = edm.train(denoiser, loss, x[:2000], optax.adam(3e-3), **options, ema=None)
    sigmas = np.exp(1.2 * ndtri((np.arange(16) + 0.5) / 16) - 1.2)  # even quantiles of LogNormal()
    ideal = np.mean(
        [np.mean(spectrum / (spectrum + s**2)) * (s**2 / sigma_data**2 + 1) for s in sigmas]
    )
    reached = float(
        eqx.filter_jit(edm.loss_by_sigma)(state.ema, x[2000:], sigmas, key=loss_key).mean()
    )
    assert ideal < reached < (1 + ideal) / 2, f"ideal {ideal:.3f}"
