"""Linear measurements of images, each beside NumPy's or SciPy's own and a transpose by hand."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.signal import convolve2d

import edm_tutorial as edm

KERNEL = np.array([[0.0, 1.0, 0.5], [0.25, 2.0, -1.0]])


@pytest.fixture
def image(key):
    return jr.normal(key, (6, 8))


def test_the_mask_is_true_where_the_image_is_known(image):
    mask = np.zeros((6, 8), bool)
    mask[1:3, 2:] = True
    np.testing.assert_array_equal(edm.inpaint(mask)(image), np.asarray(image)[mask])


def test_blur_is_a_convolution_with_zeros_outside(image):
    truth = convolve2d(np.asarray(image), KERNEL, mode="same")
    np.testing.assert_allclose(edm.blur(KERNEL)(image), truth, atol=1e-14)
    stack = jnp.stack([image, 2 * image])
    np.testing.assert_allclose(edm.blur(KERNEL)(stack), [truth, 2 * truth], atol=1e-14)
    series = np.convolve(np.asarray(image)[0], [1.0, -2.0, 0.5], mode="same")
    np.testing.assert_allclose(edm.blur([1.0, -2.0, 0.5])(image[0]), series, atol=1e-14)


def test_downsample_is_the_mean_of_blocks(image):
    truth = [
        [np.asarray(image)[i : i + 2, j : j + 2].mean() for j in range(0, 8, 2)]
        for i in range(0, 6, 2)
    ]
    np.testing.assert_allclose(edm.downsample(2)(image), truth, rtol=1e-14)
    np.testing.assert_array_equal(edm.downsample(1)(image[None]), image[None])


def test_fourier_coefficients_are_those_of_the_waves(image):
    """Each against its definition: the sum of the image times a wave."""
    mask = np.zeros((6, 8), bool)
    mask[0, 0] = mask[1, 3] = mask[5, 2] = True
    rows, columns = np.mgrid[:6, :8]
    waves = [np.exp(-2j * np.pi * (k * rows / 6 + m * columns / 8)) for k, m in np.argwhere(mask)]
    truth = np.array([np.sum(np.asarray(image) * wave) for wave in waves]) / np.sqrt(48)
    measured = edm.partial_fourier(mask)(image)
    np.testing.assert_allclose(measured, [truth.real, truth.imag], atol=1e-13)
    colours = edm.partial_fourier(mask)(jnp.stack([image, -image, image]))
    assert colours.shape == (2, 3, 3)
    np.testing.assert_allclose(colours[:, 1], -measured, atol=1e-13)


MASK = np.arange(48).reshape(6, 8) % 5 == 0
ALL = {
    "inpaint": edm.inpaint(MASK),
    "blur": edm.blur(KERNEL),
    "downsample": edm.downsample(2),
    "partial_fourier": edm.partial_fourier(MASK),
}


@pytest.mark.parametrize("name", ALL)
def test_one_compilation_serves_all_of_a_kind_and_both_dtypes(name, image):
    operator = ALL[name]
    again = jax.tree.map(lambda leaf: leaf + 0, operator)
    assert jax.tree.structure(again) == jax.tree.structure(operator)
    single = operator(image.astype(jnp.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, operator(image), atol=1e-5)


def test_what_is_refused(image, unchecked):
    for mask in (np.ones((6, 8)), np.zeros((6, 8), bool)):
        for operator in (edm.inpaint, edm.partial_fourier):
            with pytest.raises(ValueError, match="mask must be boolean and True somewhere"):
                operator(mask)
    for operator in (edm.inpaint, edm.partial_fourier):
        with pytest.raises(ValueError, match=r"mask has shape \(8, 6\), which does not fit x"):
            operator(np.ones((8, 6), bool))(image)
    with pytest.raises(ValueError, match="kernel must be finite"):
        edm.blur([1.0, np.nan])
    with pytest.raises(TypeError, match="k must be a whole number"):
        edm.downsample(2.0)
    with pytest.raises(ValueError, match="k must be at least 1"):
        edm.downsample(0)
    with pytest.raises(ValueError, match="multiples of 4, got shape"):
        edm.downsample(4)(image)
