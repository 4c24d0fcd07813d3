"""Augmentation: every warp against a closed form, and labels that tell all.

About 15 seconds.
"""

from functools import partial
from itertools import combinations

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import edm_tutorial as edm
from edm_tutorial.images.augmentation import Augmentation, AugmentedLoss, inverse_matrix, warp
from edm_tutorial.networks import ImageCondition

LOSS_AT_80 = partial(edm.denoising_loss, sigma_dist=edm.LogNormal(np.log(80.0), 1e-3))
NAMES = ["mirror x", "mirror y", "scale", "cos", "sin", "stretch x", "stretch y", "right", "down"]


def labels(turn=0.0, **values):
    """Nine labels, given some by name and the angle of the turn."""
    values = {name.replace(" ", "_"): 0.0 for name in NAMES} | values
    values |= {"cos": np.cos(turn) - 1, "sin": np.sin(turn)}
    return jnp.array(list(values.values()))


def forward_matrix(a):
    """Mirror, scale, turn, stretch as matrices in coordinates (right, down), multiplied."""
    a = np.asarray(a)
    mirror = np.diag([1 - 2 * a[0], 1 - 2 * a[1]])
    turn = np.array([[1 + a[3], a[4]], [-a[4], 1 + a[3]]])  # counter-clockwise, down is plus
    u, beta = np.hypot(a[5], a[6]), -np.arctan2(a[6], a[5])
    axes = np.array([[np.cos(beta), -np.sin(beta)], [np.sin(beta), np.cos(beta)]])
    stretch = axes @ np.diag([2 ** (0.2 * u), 2 ** (-0.2 * u)]) @ axes.T
    return stretch @ turn @ (2 ** (0.2 * a[2]) * mirror)


def random_labels(key, count):
    always = Augmentation(p=1.0, p_mirror=0.5)
    return jax.vmap(always.labels)(jr.split(key, count))


@pytest.fixture
def image():
    return jr.normal(jr.key(0), (3, 6, 6))


@pytest.mark.slow
def test_probability_zero_changes_no_bit(key, image):
    augmented = Augmentation(p=0.0, p_mirror=0.0)(image, key=key)
    np.testing.assert_array_equal(augmented.image, image)
    np.testing.assert_array_equal(augmented.labels, np.zeros(9))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.slow
def test_labels_are_zero_exactly_where_nothing_was_done(key, image, dtype):
    image = image.astype(dtype)
    images, told = jax.vmap(lambda key: Augmentation(p=0.2)(image, key=key))(jr.split(key, 300))
    assert images.dtype == told.dtype == dtype
    untouched = np.all(np.asarray(images) == np.asarray(image), axis=(1, 2, 3))
    np.testing.assert_array_equal(untouched, np.all(np.asarray(told) == 0, axis=1))
    assert 0 < untouched.sum() < 300


@pytest.mark.parametrize("p, p_mirror", [(0.0, 1.0), (1.0, 0.0)])
def test_the_first_mirror_has_a_probability_of_its_own(p, p_mirror, key):
    """Left to right it is `p_mirror`, of top to bottom and all others `p`."""
    told = Augmentation(p=p, p_mirror=p_mirror).labels(key)
    np.testing.assert_array_equal(told[:2], [p_mirror, p])
    np.testing.assert_array_equal(told[2:] != 0, p == 1)


def test_each_warp_comes_with_its_probability(key):
    """All labels of a warp together, and any two warps independently of each other."""
    count = 4000
    told = np.asarray(jax.vmap(Augmentation(p=0.12).labels)(jr.split(key, count))) != 0
    groups = {(0,): 0.5} | dict.fromkeys([(1,), (2,), (3, 4), (5, 6), (7, 8)], 0.12)
    on = {group: told[:, group].all(axis=1) for group in groups}
    for group, p in groups.items():
        np.testing.assert_array_equal(on[group], told[:, group].any(axis=1))
        assert abs(on[group].mean() - p) < 4 * np.sqrt(p * (1 - p) / count), group
    for one, other in combinations(groups, 2):
        p = groups[one] * groups[other]
        both = np.mean(on[one] & on[other])
        assert abs(both - p) < 4 * np.sqrt(p * (1 - p) / count), (one, other)
    none, p = np.mean(~told.any(axis=1)), 0.5 * 0.88**5
    assert abs(none - p) < 4 * np.sqrt(p * (1 - p) / count)


def test_the_law_of_the_labels(key):
    told = np.asarray(random_labels(key, 4000))
    for column in (2, 7, 8):  # standard normal: variance of a sample variance is 2/n
        assert abs(told[:, column].mean()) < 4 / np.sqrt(4000)
        assert abs(told[:, column].var() - 1) < 4 * np.sqrt(2 / 4000)
    stretch = np.hypot(told[:, 5], told[:, 6])  # |N(0, 1)|, E u^2 = 1 and var u^2 = 2
    assert abs(np.mean(stretch**2) - 1) < 4 * np.sqrt(2 / 4000)
    turn = np.arctan2(told[:, 4], told[:, 3] + 1)  # uniform: E of cos and sin are 0
    assert abs(np.cos(turn).mean()) < 4 * np.sqrt(0.5 / 4000)
    assert abs(np.cos(2 * turn).mean()) < 4 * np.sqrt(0.5 / 4000)


def test_the_warps_do_not_depend_on_each_other(key):
    """No two labels are correlated, nor are their sizes, and all directions are as likely."""
    n = 4000
    told = np.asarray(random_labels(key, n))
    # every warp is on: mean 0, or a cosine and sine of a uniform angle
    columns = {name: told[:, i] for i, name in enumerate(NAMES) if i >= 2}
    columns["cos"] = columns["cos"] + 1
    u = np.hypot(told[:, 5], told[:, 6])
    columns |= {"stretch x": told[:, 5] / u, "stretch y": told[:, 6] / u, "length": u - u.mean()}
    one_of_each = {k: v**2 for k, v in columns.items() if k not in ("cos", "stretch y")}
    for table in (columns, one_of_each):  # the squares of a cosine and its sine sum to 1
        correlation = np.corrcoef(np.stack(list(table.values()))) - np.eye(len(table))
        assert np.abs(correlation).max() < 4.5 / np.sqrt(n)  # 28 pairs: once in 5000 seeds
    beta = np.arctan2(told[:, 6], told[:, 5])
    for turns in (1, 2, 3, 4):  # a law on part of the circle has a mean of one of these
        for wave in (np.cos, np.sin):
            assert abs(wave(turns * beta).mean()) < 4 * np.sqrt(0.5 / n), (turns, wave)


def test_flips_are_exact(key, image):
    flip_x, flip_y = labels(mirror_x=1.0), labels(mirror_y=1.0)
    np.testing.assert_array_equal(warp(image, flip_x), np.flip(image, axis=2))
    np.testing.assert_array_equal(warp(image, flip_y), np.flip(image, axis=1))
    np.testing.assert_array_equal(warp(warp(image, flip_x), flip_x), image)


@pytest.mark.parametrize("size", [5, 6])
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_are_exact(key, size, quarters):
    image = jr.normal(key, (2, size, size))
    turned = warp(image, labels(turn=quarters * np.pi / 2))
    # counter-clockwise; cos(pi/2) is 6e-17 in float64, times a few pixels and a slope of a few
    expected = np.rot90(image, quarters, axes=(1, 2))
    np.testing.assert_allclose(turned, expected, atol=1e-14)


@pytest.mark.parametrize("right, down", [(2, 0), (0, -1), (-3, 2)])
def test_whole_steps_move_pixels_and_mirror_the_edge(key, right, down):
    image = jr.normal(key, (1, 8, 8))  # powers of two: the shift is exact
    moved = warp(image, labels(right=float(right), down=float(down)))
    padded = np.pad(image, ((0, 0), (4, 4), (4, 4)), mode="reflect")
    expected = padded[:, 4 - down : 12 - down, 4 - right : 12 - right]
    np.testing.assert_array_equal(moved, expected)


def test_moves_are_in_parts_of_width_and_height(key):
    image = jr.normal(key, (1, 8, 16))
    moved = warp(image, labels(right=1.0, down=1.0))
    np.testing.assert_array_equal(moved[:, 1:, 2:], image[:, :-1, :-2])


@pytest.mark.slow
def test_a_ramp_stays_a_ramp(key):
    """Linear interpolation is exact on a + b x + c y wherever no edge is crossed."""
    half = 7.5
    x, y = np.meshgrid(np.arange(16) - half, np.arange(16) - half)
    ramp = lambda x, y: 0.3 + 1.7 * x - 0.9 * y
    seen, told = 0, random_labels(key, 20)
    images = jax.vmap(warp, (None, 0))(jnp.array(ramp(x, y))[None], told)[:, 0]
    for a, warped in zip(np.asarray(told), np.asarray(images), strict=True):
        places = np.stack([x - 2 * a[7], y - 2 * a[8]])  # 0.125 of 16 pixels
        source = np.einsum("ij,jhw->ihw", np.linalg.inv(forward_matrix(a)), places)
        inside = np.all(np.abs(source) <= half, axis=0)
        # 1e-12: float64, slopes and coordinates of order 10
        np.testing.assert_allclose(warped[inside], ramp(*source)[inside], atol=1e-12)
        seen += inside.sum()
    assert seen > 1000


def test_the_inverse_matrix_inverts_the_warps(key):
    told = random_labels(key, 20)
    for a, inverse in zip(told, jax.vmap(inverse_matrix)(told), strict=True):
        np.testing.assert_allclose(inverse @ forward_matrix(a), np.eye(2), atol=1e-13)


def test_the_labels_are_the_warp(key, image):
    """Nothing about the image is left untold: the labels alone repeat it."""
    augmented = Augmentation(p=1.0)(image, key=key)
    np.testing.assert_array_equal(warp(image, augmented.labels), augmented.image)


def test_labels_reach_the_network_and_classes_stay(key):
    seen = []

    def network(x, c_noise, cond, *, key=None):
        seen.append(cond)
        return x

    denoiser = edm.Denoiser(network, edm.EDMPreconditioning(0.5))
    augmentation = Augmentation(p=1.0)
    loss = AugmentedLoss(partial(edm.denoising_loss, sigma_dist=edm.LogNormal()), augmentation)
    one_hot, x = jax.nn.one_hot(3, 10), jnp.zeros((1, 4, 4))
    value = loss(denoiser, x, ImageCondition(one_hot), key=jr.clone(key))
    augment_key, loss_key = jr.split(key)
    image, told = augmentation(x, key=augment_key)
    np.testing.assert_array_equal(seen[0].augment_labels, told)
    np.testing.assert_array_equal(seen[0].class_labels, one_hot)
    assert np.all(told[2:] != 0)
    plain = edm.denoising_loss(denoiser, image, None, sigma_dist=edm.LogNormal(), key=loss_key)
    np.testing.assert_array_equal(value, plain)
    loss(denoiser, x, key=jr.key(1))
    assert seen[-1].class_labels is None and seen[-1].augment_labels.shape == (9,)


def test_a_warp_is_told_also_where_the_class_is_not(key):
    seen = []

    def network(x, c_noise, cond, *, key=None):
        seen.append(cond)
        return x

    denoiser, null = edm.Denoiser(network, edm.EDMPreconditioning(0.5)), ImageCondition(-1)
    drops = partial(edm.denoising_loss, sigma_dist=edm.LogNormal(), null=null, p_null=1.0)
    cond = ImageCondition(3, vector=jnp.ones(2))
    AugmentedLoss(drops, Augmentation(p=1.0))(denoiser, jnp.zeros((1, 4, 4)), cond, key=key)
    assert seen[0].class_labels == -1
    assert np.all(seen[0].augment_labels[2:] != 0) and np.all(seen[0].vector == 1)


class LinearInLabels(eqx.Module):
    """A network that sees its labels alone, or not even them."""

    weight: jax.Array
    looks: bool = eqx.field(static=True)

    def __call__(self, x, c_noise, cond, *, key=None):
        labels = cond.augment_labels if self.looks else jnp.zeros(9)
        return jnp.tensordot(self.weight, jnp.append(labels, 1.0), 1)


@pytest.mark.parametrize("looks", [True, False])
def test_a_network_that_is_told_does_not_leak(key, looks):
    """At high noise a denoiser returns the mean of the data, which are one image and mirrors.

    Asked for labels 0, a network that looks at them returns the image itself. One that does
    not returns the mean of the image and its mirror image, which were as likely in training.
    """
    image = jnp.arange(16.0).reshape(1, 4, 4) / 4 - 1.875
    start = LinearInLabels(jnp.zeros((1, 4, 4, 10)), looks)
    denoiser = edm.Denoiser(start, edm.EDMPreconditioning.from_data(image[None]))
    loss = AugmentedLoss(LOSS_AT_80, Augmentation(p=0.0, p_mirror=0.5))
    options = {"steps": 400, "batch_size": 64, "every": 400, "key": key}
    [(state, _)] = edm.train(denoiser, loss, image[None], optax.adam(0.03), **options)
    cond = ImageCondition(None, jnp.zeros(9))
    denoised = state.ema(jnp.zeros_like(image), 80.0, cond)
    expected = image if looks else (image + image[..., ::-1]) / 2
    # The share of mirrors in the average, over 1/20 of the training or 20 batches of 64, is
    # within 4 / sqrt(4 * 1280) = 0.056 of a half; an image and its mirror image differ by 0.75.
    np.testing.assert_allclose(denoised, expected, atol=0.056 * 0.75)
    assert np.abs(image - image[..., ::-1]).max() == 0.75


@pytest.mark.parametrize("fields", [{"p": -0.1}, {"p": 1.5}, {"p_mirror": float("nan")}])
def test_probabilities_are_checked(fields):
    with pytest.raises(ValueError, match=f"{next(iter(fields))} must be a probability"):
        Augmentation(**fields)


def test_images_are_checked(unchecked):
    with pytest.raises(ValueError, match="at least 2 x 2 pixels"):
        warp(jnp.zeros((1, 1, 8)), jnp.zeros(9))
    with pytest.raises(ValueError, match="image must be a floating-point array"):
        warp(jnp.zeros((1, 4, 4), int), jnp.zeros(9))


def test_conditions_are_checked(key, unchecked):
    loss = AugmentedLoss(partial(edm.denoising_loss, sigma_dist=edm.LogNormal()))
    with pytest.raises(ValueError, match="cond must be None or an ImageCondition"):
        loss(None, jnp.zeros((1, 4, 4)), jnp.zeros(10), key=key)
