"""The image networks against the reference: layer by layer, and whole with their gradients."""

import dataclasses
import re
from functools import cache, partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from golden_cases import Case, assert_close, check_file, each_case, manifest
from golden_networks import (
    NETWORKS,
    condition,
    config,
    drawn_configs,
    drawn_network,
    network,
)
from hypothesis import Phase, given, settings, strategies as st

import edm_tutorial as edm
from edm_tutorial.networks import (
    MLP,
    Cast,
    ImageCondition,
    TokenTransformer,
    dhariwal_unet,
    edm2_unet,
    small_unet,
    song_unet,
)
from edm_tutorial.networks.mlp import PosteriorMLP
from edm_tutorial.networks.unet.blocks import DHARIWAL, SONG, AuxSkip, Block, _joined
from edm_tutorial.networks.unet.convolution import convolve
from edm_tutorial.networks.unet.embedding import (
    DhariwalEmbedding,
    Fourier,
    Positional,
    SongEmbedding,
)
from edm_tutorial.networks.unet.layers import (
    Conv,
    Dense,
    Down,
    GroupNorm,
    Up,
    attention_weights,
    crop_image,
    pad_image,
    xavier,
)
from edm_tutorial.networks.unet.state_dict import state_names
from edm_tutorial.sbi import SeriesEmbedding, SetEmbedding

LAYERS = "layers.npz"


def last(image):
    """Channels last, as inside a network."""
    return np.moveaxis(image, -3, -1)


def filled(module, arrays):
    """A module with the arrays of a state dict, by name."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(module)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    flat = [arrays[name] for name in names]
    flat = [a.transpose(2, 3, 1, 0) if a.ndim == 4 else a for a in flat]
    assert [a.shape for a in flat] == [leaf.shape for _, leaf in leaves]
    return jax.tree.unflatten(structure, [jnp.asarray(a) for a in flat])


def test_files():
    kinds = {"pos_embed": 2, "fourier_embed": 1, "groupnorm": 2, "conv": 18, "linear": 1}
    check_file(LAYERS, kinds | {"attn": 2, "block": 8})
    evaluations = {file: 3 if "noaug" in str(manifest()[file]) else 2 for file in NETWORKS}
    assert len(NETWORKS) == 9 and sum(evaluations.values()) == 21
    for file, count in evaluations.items():
        check_file(file, {"network": count, "state_dict": 1})


@each_case(LAYERS, "pos_embed")
def test_positional_embedding(name):
    case = Case(LAYERS, name)
    assert case.params["max_positions"] == 10000
    embed = Positional(case.params["num_channels"], case.params["endpoint"])
    assert_close(jax.vmap(embed)(jnp.asarray(case["c"])), case["out"])
    case.check_all_read()


def test_fourier_embedding():
    case = Case(LAYERS, "fourier_embed")
    embed = filled(Fourier(case.params["num_channels"], jr.key(0)), {"freqs": case["freqs"]})
    assert_close(jax.vmap(embed)(jnp.asarray(case["c"])), case["out"])
    case.check_all_read()


def test_linear():
    case = Case(LAYERS, "linear")
    size = case["weight"].shape
    layer = filled(Dense(size[1], size[0], xavier, key=jr.key(0)), case)
    assert_close(jax.vmap(layer)(jnp.asarray(case["x"])), case["out"])
    case.check_all_read()


@each_case(LAYERS, "groupnorm")
def test_group_norm(name):
    case = Case(LAYERS, name)
    norm = filled(GroupNorm(case.params["num_channels"], case.params["eps"]), case)
    assert_close(jax.vmap(norm)(jnp.asarray(last(case["x"]))), last(case["out"]))
    case.check_all_read()


@each_case(LAYERS, "conv")
def test_convolution_and_resampling(name):
    case = Case(LAYERS, name)
    p, x = case.params, jnp.asarray(last(case["x"][0]))
    taps = tuple(p["resample_filter"])
    margin = (len(taps) - 1) // 2
    conv = lambda x, extra=0: x
    if p["kernel"]:
        out, into, size, _ = case["weight"].shape
        conv = filled(Conv(into, out, size, xavier, key=jr.key(0)), case)
    if p["down"] and p["fused_resample"]:
        y = Down(taps)(conv(x, extra=margin), pad=0)
    elif p["up"] and p["fused_resample"]:
        # The zeros around the image that the convolution needs are those between its
        # entries: enlarge a wider image, and keep one row more than twice the image has.
        wide = Up(taps)(jnp.pad(x, ((1, 1), (1, 1), (0, 0))))
        y = conv(wide, extra=-1)[1:-1, 1:-1]
        assert p["kernel"] == 3 and len(taps) in (2, 4)
    else:
        y = conv((Up(taps) if p["up"] else Down(taps) if p["down"] else lambda x: x)(x))
    assert_close(y, last(case["out"][0]))
    case.check_all_read()


@pytest.mark.parametrize("size", [1, 3])
def test_extra_zeros_widen_the_result(size, key):
    """Their frame of one pixel is a convolution as well, of zeros where size is 1."""
    conv_key, x_key = jr.split(key)
    conv = Conv(2, 4, size, xavier, key=conv_key)
    conv = eqx.tree_at(lambda conv: conv.bias, conv, jnp.arange(4.0))
    x = jr.normal(x_key, (5, 3, 2))
    wide = conv(x, extra=1)
    assert_close(wide, np.asarray(conv(jnp.pad(x, ((1, 1), (1, 1), (0, 0))))))
    assert_close(wide[1:-1, 1:-1], np.asarray(conv(x)))


@each_case(LAYERS, "attn")
def test_attention_weights(name):
    case = Case(LAYERS, name)
    heads = case.params["num_heads"]
    q, k = (case[n].reshape(-1, heads, *case[n].shape[1:]) for n in "qk")
    q, k = (jnp.asarray(a.transpose(0, 3, 1, 2)) for a in (q, k))
    weights = jax.vmap(attention_weights)(q, k)
    assert_close(weights.reshape(case["w"].shape), case["w"])
    case.check_all_read()


@each_case(LAYERS, "block")
def test_block(name):
    case = Case(LAYERS, name)
    p = case.params
    style = DHARIWAL
    if "skip_scale" in p:
        style = SONG
        assert (p["eps"], p["skip_scale"]) == (SONG.eps, SONG.skip_scale)
        assert (p["adaptive_scale"], p["resample_proj"]) == (
            SONG.adaptive_scale,
            SONG.resample_proj,
        )
    if "channels_per_head" in p:
        style = style._replace(channels_per_head=p["channels_per_head"])
    taps = tuple(p.get("resample_filter", (1, 1)))
    resample = Up(taps) if p.get("up") else Down(taps) if p.get("down") else None
    block = Block(
        p["in_channels"],
        p["out_channels"],
        p["emb_channels"],
        style,
        resample=resample,
        attends=p.get("attention", False),
        key=jr.key(0),
    )
    assert p["resolved_heads"] == (block.qkv is not None) * style.heads(p["out_channels"])
    entries = [e for e in manifest()[LAYERS]["cases"][name]["arrays"] if e.startswith("state.")]
    stored = {e.removeprefix("state."): case[e] for e in entries}
    block = filled(block, stored)
    for filter_name in [n for n in stored if n.endswith("resample_filter")]:
        outer = np.outer(taps, taps) / sum(taps) ** 2
        assert_close(outer[None, None], stored[filter_name])

    @jax.jit
    def run(x, emb):
        total = lambda x, emb: (lambda y: (jnp.sum(y**2), y))(jax.vmap(block)(x, emb))
        return jax.grad(total, argnums=(0, 1), has_aux=True)(x, emb)

    (grad_x, grad_emb), out = run(jnp.asarray(last(case["x"])), jnp.asarray(case["emb"]))
    assert_close(out, last(case["out"]))
    assert_close(grad_x, last(case["grad_x"]))
    assert_close(grad_emb, case["grad_emb"])
    case.check_all_read()


@eqx.filter_jit
def evaluate(net, x, c_noise, cond):
    return jax.vmap(net)(x, c_noise, cond)


@eqx.filter_jit
def evaluate_with_gradient(net, x, c_noise, cond):
    def total(x):
        out = jax.vmap(net)(x, c_noise, cond)
        return jnp.sum(out**2), out

    gradient, out = jax.grad(total, has_aux=True)(x)
    return out, gradient


def inputs(case, dtype):
    x = jnp.asarray(case["x"], dtype)
    labels = jnp.broadcast_to(jnp.asarray(case["noise_labels"], dtype), x.shape[:1])
    return x, labels, condition(case, dtype)


# 1e-10 and 2e-5 of the largest entry: sums of some hundred terms in some thirty layers,
# good to 1e-16 and 6e-8 each. Outputs are of size 1 to 3, gradients likewise.
PRECISIONS = {jnp.float64: ("_f64", 1e-10), jnp.float32: ("_f32", 2e-5)}


def check(file, case, dtype):
    """One evaluation in one precision, with its gradient where the reference has one."""
    suffix, tolerance = PRECISIONS[dtype]
    run, wanted = evaluate, [case["out" + suffix]]
    if "grad_x" + suffix in case:
        run, wanted = evaluate_with_gradient, [*wanted, case["grad_x" + suffix]]
    got = run(network(file), *inputs(case, dtype))
    for array, want in zip(got if len(wanted) == 2 else [got], wanted, strict=True):
        assert array.dtype == dtype
        np.testing.assert_allclose(array, want, rtol=0, atol=tolerance * np.abs(want).max())


@pytest.mark.parametrize("file", NETWORKS)
@pytest.mark.slow
def test_network(file):
    """Of one noise label for a batch, and without augmentation labels where there are any."""
    net, (_, keywords) = network(file), config(file)
    is_fourier = keywords.get("embedding_type") == "fourier"
    buffers = net.embedding.map_noise.freqs.size if is_fourier else 0
    count = sum(leaf.size for leaf in jax.tree.leaves(net)) - buffers
    assert count == Case(file, "state").params["num_params"]
    for name in ("e1_noaug", "e2_onesigma"):
        if name in manifest()[file]["cases"]:
            case = Case(file, name)
            for dtype in PRECISIONS:
                check(file, case, dtype)
            case.check_all_read()


WITH_SKIPS = "net_song_skip.npz"  # of the image, in the encoder and in the decoder


@pytest.mark.parametrize(
    "file", [pytest.param(n, marks=[pytest.mark.slow] * (n != WITH_SKIPS)) for n in NETWORKS]
)
def test_network_and_gradient(file):
    """With every input, in both precisions; gradients towards x for four of the networks."""
    case = Case(file, "e0")
    for dtype in PRECISIONS:
        check(file, case, dtype)
    case.check_all_read()


def test_gradients_there_are():
    stored = [file for file in NETWORKS if "grad_x_f64" in Case(file, "e0")]
    assert len(stored) == 4


FAST = "netx_106"  # labels, a residual encoder, and levels of 24, 12 and 24 channels


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n != FAST)) for n in drawn_configs()]
)
def test_network_of_a_random_configuration(name):
    """Outputs and gradients in float64, to 1e-10 of the largest entry as above."""
    assert len(drawn_configs()) == 7
    net, arrays = drawn_network(name)
    unread = set(arrays) - {"class_labels", "augment_labels"}
    labels = [arrays.get(label) for label in ("class_labels", "augment_labels")]
    cond = ImageCondition(*(None if a is None else jnp.asarray(a, float) for a in labels))
    x, c_noise = (jnp.asarray(arrays[n], float) for n in ("x", "noise_labels"))
    got = evaluate_with_gradient(net, x, jnp.broadcast_to(c_noise, x.shape[:1]), cond)
    for array, want in zip(got, (arrays["out_f64"], arrays["grad_x_f64"]), strict=True):
        np.testing.assert_allclose(array, want, rtol=0, atol=1e-10 * np.abs(want).max())
    assert unread == {"x", "noise_labels", "out_f64", "grad_x_f64"}


def test_input_skip_adds_the_smaller_image():
    """Block means of the image, times a 1x1 convolution, are added to the level's input."""
    conv = Conv(1, 4, 1, xavier, key=jr.key(0))
    conv = eqx.tree_at(lambda conv: conv.weight, conv, jnp.arange(1.0, 5)[None, None, None])
    image, h = jnp.arange(16.0).reshape(4, 4, 1), jnp.ones((2, 2, 4))
    out, smaller = AuxSkip(conv, Down((1, 1)))(h, image)
    means = np.array([[2.5, 4.5], [10.5, 12.5]])
    np.testing.assert_allclose(smaller[..., 0], means)
    np.testing.assert_allclose(out, 1 + means[..., None] * np.arange(1.0, 5), rtol=1e-12)


# The convolution and its derivatives


def plain(x, weight, pad):
    """The same by JAX's own convolution."""
    pads, axes = [(pad, pad)] * 2, ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, weight, (1, 1), pads, dimension_numbers=axes)


@pytest.mark.parametrize("size, pad", [(3, 0), (3, 1), (3, 2), (1, 0)])
def test_convolution_and_derivatives_are_those_of_jax(size, pad, key):
    """Forwards, backwards in both arguments, and the Hessian times a vector."""
    keys = jr.split(key, 4)
    x, dx = (jr.normal(k, (3, 5, 4, 2)) for k in keys[:2])
    weight, dweight = (jr.normal(k, (size, size, 2, 4)) for k in keys[2:])
    ours = lambda x, w: jax.vmap(convolve, (0, None, None))(x, w, pad)
    total = lambda f, x, w: jnp.sum(jnp.sin(f(x, w)))

    @partial(jax.jit, static_argnums=0)
    def everything(f, x, w, dx, dw):
        gradient = jax.grad(partial(total, f), argnums=(0, 1))
        return f(x, w), jax.jvp(gradient, (x, w), (dx, dw))

    got = everything(ours, x, weight, dx, dweight)
    want = everything(lambda x, w: plain(x, w, pad), x, weight, dx, dweight)
    # sums of 18 to 240 terms of size 1
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12), got, want)


def test_convolution_of_every_pairing_of_batches(key):
    """One example and its own weight gradient; an ensemble of weights; both at once."""
    x, weights = jr.normal(key, (2, 4, 4, 2)), jr.normal(jr.fold_in(key, 1), (2, 3, 3, 2, 4))
    one = lambda x, w: jnp.sum(jnp.sin(convolve(x, w, 1)))
    whole = lambda w: jnp.sum(jnp.sin(plain(x, w, 1)))
    each = jax.vmap(jax.grad(one, argnums=1), (0, None))(x, weights[0])
    np.testing.assert_allclose(each.sum(0), jax.grad(whole)(weights[0]), atol=1e-12)
    for axes in ((None, 0), (0, 0)):
        many = jax.vmap(lambda x, w: convolve(x, w, 1), axes)(
            x[0] if axes[0] is None else x, weights
        )
        for i, out in enumerate(many):
            image = x[0] if axes[0] is None else x[i]
            np.testing.assert_allclose(out, plain(image[None], weights[i], 1)[0], atol=1e-12)


def test_convolutions_in_a_loop_have_their_axes_in_order(key):
    """XLA on CPU is slow, by a factor of 20, at any other order inside a loop."""
    if jax.default_backend() != "cpu":
        pytest.skip("a matter of XLA on CPU")
    x, weight = jr.normal(key, (4, 8, 8, 8)), jr.normal(jr.fold_in(key, 1), (3, 3, 8, 8))

    @jax.jit
    def descend(x, weight):
        loss = lambda x, w: jnp.sum(jax.vmap(convolve, (0, None, None))(x, w, 1) ** 2)

        def body(carry, _):
            slopes = jax.grad(loss, argnums=(0, 1))(*carry)
            return jax.tree.map(lambda a, b: a - 1e-3 * b, carry, slopes), None

        return jax.lax.scan(body, (x, weight), length=3)[0]

    text = descend.lower(x, weight).compile().as_text()
    orders = set(re.findall(r"dim_labels=(\S+?->\w+)", text))
    assert orders == {"b01f_01io->b01f"}


@pytest.mark.pinned
def test_the_gradient_of_weights_of_a_single_entry_is_a_product_in_order(key):
    """Of shape (in, out); XLA on CPU is slow, by a factor of 2 to 3, at its transpose."""
    if jax.default_backend() != "cpu":
        pytest.skip("a matter of XLA on CPU")
    x, weight = jr.normal(key, (4, 8, 8, 6)), jr.normal(jr.fold_in(key, 1), (1, 1, 6, 10))
    loss = lambda x, w: jnp.sum(jax.vmap(convolve, (0, None, None))(x, w, 0) ** 2)
    text = jax.jit(jax.grad(loss, argnums=1)).lower(x, weight).compile().as_text()
    assert set(re.findall(r"f64\[(\d+,\d+)\]\S* dot\(", text)) == {"256,10", "6,10"}


@pytest.mark.parametrize("scale", [1.0, np.sqrt(0.5)])
def test_the_sum_of_branch_and_skip_is_scaled(scale, key):
    branch, skip = (jr.normal(k, (16, 8)) for k in jr.split(key))
    joined = jax.jit(lambda a, b: _joined(a, b, scale))
    np.testing.assert_allclose(joined(branch, skip), (branch + skip) * scale, rtol=1e-15)


@pytest.mark.pinned
def test_the_sum_of_branch_and_skip_is_computed_once():
    """By a division, which XLA on CPU neither repeats in every use nor turns into a product."""

    def uses(a, b):
        y = _joined(a, b, np.sqrt(0.5))
        return jnp.sum(y, axis=0), jnp.max(y, axis=1), y @ y.T

    if jax.default_backend() == "cpu":
        text = jax.jit(uses).lower(jnp.ones((16, 8)), jnp.ones((16, 8))).compile().as_text()
        assert text.count(" divide(") == 1


def test_group_norm_and_derivatives_are_those_of_its_formula(key):
    """Forwards, backwards in every argument, and the Hessian times a vector."""
    shapes = [(5, 4, 8), (8,), (8,)]
    primals, tangents = (
        tuple(jr.normal(jr.fold_in(k, i), shape) for i, shape in enumerate(shapes))
        for k in jr.split(key)
    )

    def ours(x, weight, bias):
        where = lambda norm: (norm.weight, norm.bias)
        return eqx.tree_at(where, GroupNorm(8, 0.1), (weight, bias))(x)

    def formula(x, weight, bias):
        groups = x.reshape(20, 2, 4)
        mean, variance = (f(groups, axis=(0, 2), keepdims=True) for f in (jnp.mean, jnp.var))
        normal = ((groups - mean) / jnp.sqrt(variance + 0.1)).reshape(x.shape)
        return normal * weight[None, None] + bias[None, None]

    @partial(jax.jit, static_argnums=0)
    def everything(f, primals, tangents):
        total = lambda *arguments: jnp.sum(jnp.sin(f(*arguments)))
        gradient = jax.grad(total, argnums=(0, 1, 2))
        return f(*primals), jax.jvp(gradient, primals, tangents)

    # sums of 80 terms of size 1
    close = partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12)
    jax.tree.map(close, *(everything(f, primals, tangents) for f in (ours, formula)))


# Networks of our own


@cache
def tiny(size=8, halvings=1, **options):
    """A small network with a random number in every array: nothing is quiet, float32."""
    build = partial(song_unet, size, 1, 1, label_dim=3, augment_dim=2, model_channels=8,
                    channel_mult=(1, 2)[: halvings + 1], num_blocks=1, attn_resolutions=(),
                    **options)  # fmt: skip
    skeleton = eqx.filter_eval_shape(build, key=jr.key(0))
    rng = np.random.default_rng(0)
    fill = lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32)
    return jax.tree.map(fill, skeleton)


IMAGE = jnp.asarray(np.linspace(-1, 1, 64).reshape(1, 8, 8) ** 3, jnp.float32)
LABEL = jnp.float32(-0.3)
COND = ImageCondition(jnp.array([0.0, 1.0, 0.0]), jnp.array([0.5, -1.0]))


@pytest.mark.parametrize("build", [song_unet, dhariwal_unet])
@pytest.mark.slow
def test_untrained_network_scores_one_at_every_noise_level(build, key):
    """It returns exactly 0: so does the reference, but for Song's factor 1e-5 in its last layer."""
    net_key, data_key = jr.split(key)
    build = partial(build, 4, 2, 2, model_channels=8, channel_mult=(1,), num_blocks=1,
                    attn_resolutions=())  # fmt: skip
    net = build(key=net_key)
    x = jr.normal(data_key, (256, 2, 4, 4))
    np.testing.assert_array_equal(evaluate(net, x, jnp.linspace(-1.5, 1.0, 256), None), 0)
    denoiser = edm.Denoiser(net, edm.EDMPreconditioning(1.0))
    edm.check_initial_loss(denoiser, x, sigmas=jnp.array([10.0, 0.5, 0.01]))


@pytest.mark.parametrize(
    "style, bound, bias, quiet",
    [
        (SONG, lambda i, o: np.sqrt(6 / (i + o)), 0, 1e-5),
        (DHARIWAL, lambda i, o: i**-0.5, 1, 0),
    ],
)
def test_initial_weights_follow_the_two_families(style, bound, bias, quiet, key):
    """Uniform: Xavier's bound and no bias (Song), 1/sqrt(fan_in) for both (Dhariwal)."""
    block = eqx.filter_jit(partial(Block, 32, 64, 16, style))(key=key)
    limit = bound(9 * 32, 9 * 64)
    # the largest of 18,432 uniform draws is short of its bound by 1e-4 or so
    assert 0.999 * limit < np.abs(block.conv0.weight).max() <= limit
    # ... and of 64 by a few per cent
    assert 0.8 * bias * limit <= np.abs(block.conv0.bias).max() <= bias * limit
    end = quiet * bound(9 * 64, 9 * 64)
    assert 0.999 * end <= np.abs(block.conv1.weight).max() <= end


LABELS = {"label_dim": 3, "augment_dim": 2, "vector_dim": 2}
UNTRAINED = {
    "small": partial(small_unet, (1, 8, 8), width=4, **LABELS),
    "dhariwal": partial(dhariwal_unet, 4, 1, 1, model_channels=4, label_dim=3, augment_dim=2,
                        channel_mult=(1, 1), num_blocks=1, attn_resolutions=(4,)),
    "edm2": partial(edm2_unet, (1, 4, 4), label_dim=3, model_channels=4, channel_mult=(1, 1),
                    num_blocks=1),
    "mlp": partial(MLP, 2, 3, width=4, depth=2),
    "posterior": partial(PosteriorMLP, 2, 3, width=4, depth=2, dropout=0.0),
    "tokens": partial(TokenTransformer, range(3), width=4, depth=2, heads=2),
    "set": partial(SetEmbedding, 2, 3, masked=True),
    "series": partial(SeriesEmbedding, 2, 3),
}  # fmt: skip


@pytest.mark.parametrize("name", UNTRAINED)
def test_every_layer_starts_from_random_numbers_of_its_own(name, key):
    """From one key for two layers, one would start as a multiple of the other."""
    seen = []
    for leaf in jax.tree.leaves(eqx.filter(UNTRAINED[name](key=key), eqx.is_inexact_array)):
        first = np.ravel(leaf)[:3]
        if len(set(first.tolist())) == 3:
            seen.append(tuple(np.round(first[1:] / first[0], 6).tolist()))
    assert len(seen) == len(set(seen)) > 5


def test_initial_weights_of_the_embeddings(key):
    """Frequencies N(0, 16^2); Dhariwal's class vectors of unit variance; no word of augmentation.

    Four standard errors: the square of a normal has variance 2, of a uniform number 0.8.
    """
    freq_key, class_key, song_key = jr.split(key, 3)
    freqs = Fourier(40_000, freq_key).freqs
    np.testing.assert_allclose(freqs.std(), 16, rtol=4 / np.sqrt(2 * 20_000))
    sizes = {"noise_channels": 16, "emb_channels": 5000, "label_dim": 4, "augment_dim": 2}
    sizes["vector_dim"] = 0
    dhariwal = DhariwalEmbedding(**sizes, key=class_key)
    classes = dhariwal.map_label.weight
    np.testing.assert_allclose(np.mean(classes**2), 1, rtol=4 * np.sqrt(0.8 / classes.size))
    assert np.abs(classes).max() <= 3**0.5 and not np.any(dhariwal.map_augment.weight)
    song = SongEmbedding(Positional(16, endpoint=True), **sizes, key=song_key)
    for layer, inputs in ((song.map_label, 4), (song.map_augment, 2), (song.map_layer0, 16)):
        bound = np.sqrt(6 / sum(layer.weight.shape))
        assert layer.weight.shape[1] == inputs
        assert 0.9 * bound < np.abs(layer.weight).max() <= bound


@pytest.mark.slow
def test_every_input_matters():
    net = eqx.filter_jit(tiny())
    wake = net(IMAGE, LABEL, COND)
    others = [
        net(IMAGE.at[0, 3, 5].add(0.1), LABEL, COND),
        net(IMAGE, LABEL + 0.1, COND),
        *(net(IMAGE, LABEL, COND._replace(class_labels=jnp.eye(3)[i])) for i in (0, 2)),
        *(net(IMAGE, LABEL, COND._replace(augment_labels=a)) for a in jnp.eye(2)),
    ]
    for other in others:
        assert np.mean(np.abs(other - wake) > 1e-5) > 0.9


def test_no_label_is_a_label_of_zeros():
    net = eqx.filter_jit(tiny(4, 0))
    x, zeros = IMAGE[:, :4, :4], ImageCondition(jnp.zeros(3), jnp.zeros(2))
    np.testing.assert_array_equal(net(x, LABEL), net(x, LABEL, zeros))


def test_dropout_only_with_a_key(key):
    net, other_net = (eqx.filter_jit(tiny(4, 0, dropout=rate)) for rate in (0.4, 0.0))
    x = IMAGE[:, :4, :4]
    np.testing.assert_allclose(net(x, LABEL), other_net(x, LABEL), rtol=1e-6)
    one, other = (net(x, LABEL, key=k) for k in jr.split(key))
    assert np.mean(np.abs(one - other) > 1e-3) > 0.9


def test_dropout_keeps_the_mean(key):
    """Entries survive with probability 0.6 and are divided by it."""
    block = tiny(4, 0, dropout=0.4).encoder[0].blocks[0]
    dropped = block._drop(jnp.ones((100, 100, 4)), key)
    np.testing.assert_allclose(np.unique(dropped), [0, 1 / 0.6])
    # 40,000 draws: the standard error of the mean is sqrt(0.4 / 0.6 / 40,000) = 0.004
    np.testing.assert_allclose(dropped.mean(), 1, atol=0.016)


@pytest.mark.slow
def test_bfloat16_inside_float32_outside():
    net, x = tiny(4, 0), IMAGE[:, :4, :4]
    half = Cast(net, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype(jnp.float32)}
    preconditioning, sigma = edm.EDMPreconditioning(0.5), jnp.float32(0.4)

    @eqx.filter_jit
    def slopes(net, label):
        def loss(net):
            denoiser = edm.Denoiser(net, preconditioning)
            error = edm.weighted_error(denoiser, x, sigma, sigma * x[:, ::-1], COND)
            return jnp.mean(error), net(x, label, COND)

        (value, out), gradient = eqx.filter_value_and_grad(loss, has_aux=True)(net)
        return value, out, gradient

    value, out, gradient = slopes(half, LABEL)
    _, want, exact = slopes(net, LABEL)
    assert value.dtype == out.dtype == jnp.float32
    error = np.linalg.norm(out - want) / np.linalg.norm(want)
    assert 1e-4 < error < 0.03  # each of a dozen layers errs by 2^-9: not float32 in disguise
    sizes = []
    for got, leaf in zip(jax.tree.leaves(gradient), jax.tree.leaves(exact), strict=True):
        assert got.dtype == jnp.float32
        sizes.append((np.linalg.norm(got - leaf), np.linalg.norm(leaf)))
    # forwards and backwards through as many layers
    assert np.linalg.norm([e for e, _ in sizes]) < 0.1 * np.linalg.norm([s for _, s in sizes])
    # Noise labels keep their digits: one number in bfloat16, two here.
    assert jnp.bfloat16(998) == jnp.bfloat16(999)
    near, far = (slopes(half, jnp.float32(label))[1] for label in (998, 999))
    assert np.any(near != far)


@pytest.mark.slow
def test_frequencies_are_not_trained():
    net, x = tiny(4, 0, embedding_type="fourier"), IMAGE[:, :4, :4]
    total = eqx.filter_grad(lambda net: jnp.sum(net(x, LABEL) ** 2))
    slopes = eqx.filter_jit(total)(net)
    np.testing.assert_array_equal(slopes.embedding.map_noise.freqs, 0)
    assert np.any(slopes.embedding.map_layer0.weight != 0, axis=1).all()


@pytest.mark.parametrize(
    "size, levels",
    [
        *[(1, [1]), (4, [4]), (5, [5]), (7, [7]), (8, [8, 4]), (12, [12, 6, 3])],
        *[(28, [28, 14, 7]), (32, [32, 16, 8, 4]), (64, [64, 32, 16, 8])],
        *[(9, [10, 5]), (27, [28, 14, 7]), (30, [32, 16, 8, 4]), (100, [104, 52, 26, 13])],
        *[(16, [16, 8, 4]), (128, [128, 64, 32, 16]), (200, [208, 104, 52, 26, 13])],
    ],
)
def test_levels_of_a_small_unet(size, levels, key):
    """Halved where it can be, padded where not; the lowest level alone attends."""
    net = eqx.filter_eval_shape(partial(small_unet, (3, size, size), width=8), key=key)
    assert len(net.encoder) == len(levels) and net.resolutions == [(n, n) for n in levels]
    widths = [level.blocks[-1].conv1.bias.size for level in net.encoder]
    assert widths == [8, *[16] * (len(levels) - 1)]  # twice as many below
    names = state_names(net)
    for level in levels:
        assert any(name.startswith(f"dec.{level}x{level}_block0") for name in names)
    attends = {name.split(".")[1] for name in names if "qkv" in name}
    assert attends == {f"{levels[-1]}x{levels[-1]}_in0"} and levels[-1] ** 2 <= 256
    x = jax.ShapeDtypeStruct((3, size, size), jnp.float32)
    out = eqx.filter_eval_shape(net, x, jax.ShapeDtypeStruct((), jnp.float32))
    assert out.shape == x.shape and out.dtype == x.dtype


def test_padding():
    """Reflection, the wider margin last; along an axis that is too short, the edge repeated."""
    x = jnp.arange(1.0, 13).reshape(3, 4, 1)
    padded = pad_image(x, 4)[..., 0]
    np.testing.assert_array_equal(padded, [*x[..., 0], x[1, :, 0]])
    wide = pad_image(x, 10)[..., 0]
    reflected = np.pad(x[..., 0], ((0, 0), (3, 3)), "reflect")
    np.testing.assert_array_equal(wide, np.pad(reflected, ((3, 4), (0, 0)), "edge"))
    np.testing.assert_array_equal(crop_image(pad_image(x, 10), (3, 4)), x)
    assert pad_image(x, 1) is x
    # A margin of 3 before and 4 behind is too wide for 4 pixels; one of 3 and 3 is not.
    far = pad_image(x, 11)[..., 0]
    np.testing.assert_array_equal(far, np.pad(x[..., 0], ((4, 4), (3, 4)), "edge"))


def test_levels_of_unlike_sides(key):
    """The longest decides, unless both are even; no attention over more than 1,024 points."""
    for size, levels in {(8, 7): 1, (9, 7): 2, (8, 6): 2, (6, 4): 1}.items():
        build = partial(small_unet, (1, *size), width=8)
        assert len(eqx.filter_eval_shape(build, key=jr.clone(key)).encoder) == levels
    for size, attends in {(256, 4): True, (257, 4): False}.items():
        build = partial(small_unet, (1, *size), width=8)
        names = state_names(eqx.filter_eval_shape(build, key=jr.clone(key)))
        assert any("qkv" in name for name in names) == attends


@pytest.mark.slow
def test_an_image_that_cannot_be_halved_is_padded_and_cropped():
    """The network of 9 pixels a side is that of 10 on a reflected image; all pixels matter."""
    skeleton = eqx.filter_eval_shape(partial(small_unet, (1, 9, 9), width=8), key=jr.key(0))
    rng = np.random.default_rng(0)
    net = jax.tree.map(lambda a: jnp.asarray(0.3 * rng.standard_normal(a.shape)), skeleton)
    whole = dataclasses.replace(net, shape=(1, 10, 10))
    x, c_noise = rng.standard_normal((1, 9, 9)), jnp.array(0.3)
    wide = np.concatenate([x, x[:, -2:-1]], axis=1)
    wide = np.concatenate([wide, wide[:, :, -2:-1]], axis=2)
    out, gradient = evaluate_with_gradient(net, jnp.asarray(x)[None], c_noise[None], None)
    want = evaluate(whole, jnp.asarray(wide)[None], c_noise[None], None)
    np.testing.assert_allclose(out, want[..., :9, :9], rtol=1e-12, atol=1e-12)
    assert np.all(gradient != 0)


@st.composite
def configurations(draw, levels):
    """A constructor and keywords of a small network: every option, widths that go up and down."""
    size = draw(st.sampled_from([2, 3, 4])) * 2 ** (levels - 1)
    resolutions = [size >> i for i in range(levels)]
    small = st.integers(1, 3)
    keywords = {
        "img_resolution": size,
        "in_channels": draw(small),
        "out_channels": draw(small),
        "label_dim": draw(st.sampled_from([0, 3])),
        "augment_dim": draw(st.sampled_from([0, 2])),
        "model_channels": draw(st.sampled_from([4, 8])),
        "channel_mult": draw(st.permutations([1, 2, 2, 3]))[:levels],
        "channel_mult_emb": draw(small),
        "num_blocks": draw(st.integers(1, levels - 1)),
        "attn_resolutions": sorted(draw(st.sets(st.sampled_from(resolutions)))),
        "dropout": draw(st.sampled_from([0.0, 0.2])),
    }
    if draw(st.integers(0, 3)) == 3:
        return dhariwal_unet, keywords | {"channels_per_head": draw(st.sampled_from([4, 64]))}
    return song_unet, keywords | {
        "embedding_type": draw(st.sampled_from(["positional", "fourier"])),
        "channel_mult_noise": draw(small),
        "encoder_type": draw(st.sampled_from(["standard", "residual", "skip"])),
        "decoder_type": draw(st.sampled_from(["standard", "skip"])),
        "resample_filter": draw(st.sampled_from([(1, 1), (1, 3, 3, 1)])),
    }


def drawn(max_examples):
    """The same examples in every run; a smaller failure is not worth minutes of compilation."""
    phases = [Phase.explicit, Phase.generate]
    return settings(
        derandomize=True, deadline=None, max_examples=max_examples, database=None, phases=phases
    )


def example(keywords):
    """An input of a network, its label and its condition."""
    rng = np.random.default_rng(0)
    side = keywords["img_resolution"]
    x = jnp.asarray(rng.standard_normal((keywords["in_channels"], side, side)), jnp.float32)
    labels = (keywords[n] for n in ("label_dim", "augment_dim"))
    cond = ImageCondition(*(jnp.ones(n) / n if n else None for n in labels))
    return x, jnp.float32(0.4), cond


@pytest.mark.slow
@given(configurations(levels=3))
@drawn(15)
def test_shapes_of_any_configuration(configuration):
    """The image comes back in its size, and every array has a name of its own."""
    build, keywords = configuration
    net = eqx.filter_eval_shape(partial(build, **keywords), key=jr.key(0))
    names = state_names(net)
    assert len(set(names)) == len(names) == len(jax.tree.leaves(net))
    x, c_noise, cond = example(keywords)
    out = eqx.filter_eval_shape(lambda net: net(x, c_noise, cond, key=jr.key(1)), net)
    assert out.shape == (keywords["out_channels"], *x.shape[1:]) and out.dtype == x.dtype


@pytest.mark.slow
@given(configurations(levels=2))
@drawn(2)
def test_values_of_any_configuration(configuration):
    """Untrained, F is 0; with numbers in every array it is not, and all gradients are finite."""
    build, keywords = configuration
    x, c_noise, cond = example(keywords)

    @eqx.filter_jit
    def run(net, x):
        def total(arguments):
            net, x = arguments
            out = net(x, c_noise, cond, key=jr.key(2))
            return jnp.sum(out**2), out

        return eqx.filter_grad(total, has_aux=True)((net, x))

    net = build(**keywords, key=jr.key(1))
    net = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), net)
    np.testing.assert_array_equal(run(net, x)[1], 0)
    rng = np.random.default_rng(1)
    awake = jax.tree.map(lambda a: jnp.float32(0.3 * rng.standard_normal(a.shape)), net)
    gradients, out = run(awake, x)
    assert np.all(out != 0)
    for leaf in jax.tree.leaves(gradients):
        assert np.all(np.isfinite(leaf))
    assert np.all(gradients[1] != 0)  # every pixel matters


REFUSED = {
    "multiple of 4": dict(img_resolution=10, channel_mult=(1, 1, 1)),
    "attn_resolutions must be among": dict(attn_resolutions=(5,)),
    "even number of taps": dict(resample_filter=(1, 2, 1)),
    "dropout must be in": dict(dropout=1.0),
    "num_blocks must be at least 1": dict(num_blocks=0),
    "channel_mult must be at least 1": dict(channel_mult=()),
    "in_channels must be at least 1": dict(in_channels=0),
    "equal groups": dict(model_channels=6),
    "embedding_type must be one of": dict(embedding_type="sine"),
    "encoder_type must be one of": dict(encoder_type="none"),
    "decoder_type must be one of": dict(decoder_type="residual"),
    "even number of channels": dict(channel_mult_noise=0),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message, key):
    options = dict(img_resolution=8, in_channels=1, out_channels=1, model_channels=8,
                   channel_mult=(1, 2), num_blocks=1, attn_resolutions=())  # fmt: skip
    with pytest.raises(ValueError, match=message):
        song_unet(**(options | REFUSED[message]), key=key)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "build, message",
    [
        (partial(song_unet, (24, 40), 1, 1), r"img_resolution .* square, got \(24, 40\)"),
        (partial(dhariwal_unet, 8.0, 1, 1), "img_resolution must be a whole number, got 8.0"),
        (partial(song_unet, 8, 1, 1, label_dim=0.5), "label_dim must be a whole number, got 0.5"),
        (partial(song_unet, 8, 1, 1.5), "out_channels must be a whole number, got 1.5"),
        (partial(small_unet, (1, 8.5, 8.5)), "number in shape must be a whole number, got 8.5"),
    ],
)
def test_sizes_are_whole_numbers(build, message, key):
    with pytest.raises(TypeError, match=message):
        build(key=key)


@pytest.mark.usefixtures("unchecked")
def test_counts_below_the_least(key):
    with pytest.raises(ValueError, match="augment_dim must be at least 0, got augment_dim=-1"):
        small_unet((1, 8, 8), augment_dim=-1, key=key)
    with pytest.raises(ValueError, match="channels_per_head must be at least 1"):
        dhariwal_unet(8, 1, 1, attn_resolutions=(), channels_per_head=0, key=key)
    with pytest.raises(ValueError, match="every number in shape must be at least 1"):
        small_unet((1, 0, 0), key=key)


@pytest.mark.usefixtures("unchecked")
def test_sizes_of_numpy(key):
    """Counts that come out of NumPy are numbers like others, and stay outside of JAX."""
    one = lambda n: np.array([n])[0]
    given = dict(label_dim=one(3), augment_dim=one(2), dropout=one(0.1))
    builds = [
        partial(small_unet, (one(1), one(9), one(9)), width=one(8), **given),
        partial(
            dhariwal_unet,
            *(one(9), one(1), one(1)),
            model_channels=one(8),
            channel_mult=np.array([1]),
            num_blocks=one(1),
            attn_resolutions=np.array([9]),
            channels_per_head=one(8),
            **given,
        ),
        partial(
            song_unet,
            *(9, 1, 1),
            model_channels=8,
            channel_mult=(1,),
            attn_resolutions=(),
            channel_mult_noise=one(1),
            resample_filter=np.array([1.0, 3.0, 3.0, 1.0]),
        ),
    ]
    for build in builds:
        net = eqx.filter_eval_shape(build, key=jr.clone(key))
        assert net.shape == (1, 9, 9) and {type(n) for n in net.shape} == {int}
        out = eqx.filter_eval_shape(net, jnp.zeros((1, 9, 9)), jnp.array(0.3))
        assert out.shape == (1, 9, 9)


def test_unknown_keywords_are_refused(key):
    with pytest.raises(TypeError, match="model_chanels"):
        song_unet(8, 1, 1, model_chanels=8, key=key)
    with pytest.raises(ValueError, match=r"shape must be \(channels, length\), .* got \(8,\)"):
        small_unet((8,), key=key)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "x, cond, message",
    [
        (IMAGE[:, :7], None, "x must have shape"),
        (IMAGE.astype(int), None, "floating"),
        (IMAGE, jnp.zeros(3), r"got ArrayImpl: class k is ImageCondition\(k\)"),
        (IMAGE, 2, r"got int: class k is ImageCondition\(k\)"),
        (IMAGE, ImageCondition(2.0), r"\(3,\), or be an integer for the class; got shape \(\)"),
        (IMAGE, ImageCondition(3), "class_labels must be from 0 to 2, or -1 for none, got 3"),
        (IMAGE, ImageCondition(vector=jnp.zeros(2)), "vector must be None: this network has none"),
        (IMAGE, ImageCondition(jnp.zeros(4)), r"class_labels must have shape \(3,\)"),
        (IMAGE, ImageCondition(None, jnp.zeros((1, 2))), r"augment_labels must have shape \(2,\);"),
    ],
)
def test_refused_calls(x, cond, message):
    with pytest.raises(ValueError, match=message):
        tiny()(x, LABEL, cond)


@pytest.mark.usefixtures("unchecked")
def test_labels_for_a_network_without_any(key):
    net = eqx.filter_eval_shape(partial(small_unet, (1, 8, 8), width=8), key=key)
    with pytest.raises(ValueError, match="class_labels must be None"):
        eqx.filter_eval_shape(net, IMAGE, LABEL, ImageCondition(jnp.zeros(3)))
    with pytest.raises(ValueError, match="class_labels must be None"):
        eqx.filter_eval_shape(net, IMAGE, LABEL, ImageCondition(jnp.zeros(0)))


def test_a_network_may_have_a_single_class(key):
    net = eqx.filter_eval_shape(partial(small_unet, (1, 8, 8), width=8, label_dim=1), key=key)
    told = eqx.filter_eval_shape(net, IMAGE[:1, :8, :8], LABEL, ImageCondition(jnp.ones(1)))
    assert told.shape == (1, 8, 8)


def test_a_cast_network_has_the_leaves_of_the_network_alone():
    net = tiny(4, 0)
    assert eqx.tree_equal(jax.tree.leaves(Cast(net, jnp.bfloat16)), jax.tree.leaves(net))
