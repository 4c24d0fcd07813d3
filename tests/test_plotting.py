"""Pictures hold the numbers that they were given."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

from edm_tutorial.book import plotting

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def drawn(images, **options):
    """What each panel shows, in order, and its range."""
    figure = plotting.plot_images(images, **options)
    shown = [ax.images[0] for ax in figure.axes]
    return [image.get_array() for image in shown], {image.get_clim() for image in shown}


def test_one_channel_is_grey():
    images = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    for given in (images, images[:, :, None]):
        arrays, ranges = drawn(given, limit=2.0)
        np.testing.assert_array_equal(np.stack(arrays), images.reshape(6, 4, 5))
        assert ranges == {(-2.0, 2.0)}


def test_three_channels_are_red_green_and_blue():
    """-limit is dark, limit is full, channels come last; what is beyond is cut off."""
    images = np.zeros((1, 2, 3, 4, 4))
    images[0, 1, 0, 1, 2] = 1.0  # reddish, row 1, column 2 of the second image
    images[0, 1, 2, 3, 0] = -7.0  # no blue, row 3, column 0
    arrays, _ = drawn(images, limit=2.0)
    np.testing.assert_array_equal(arrays[0], np.full((4, 4, 3), 0.5))
    np.testing.assert_array_equal(arrays[1][1, 2], [0.75, 0.5, 0.5])
    np.testing.assert_array_equal(arrays[1][3, 0], [0.5, 0.5, 0.0])


@pytest.mark.parametrize("shape", [(4, 4), (2, 3, 2, 4, 4), (1, 1, 1, 1, 4, 4)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="images must have shape .*got"):
        plotting.plot_images(np.zeros(shape))
