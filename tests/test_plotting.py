"""Pictures hold the numbers that they were given."""

import base64
import io
import re

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

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


def test_a_film_ends_on_its_poster_above_a_strip_for_the_controls():
    """Every frame is drawn, the poster is the last; a browser's buttons cover no label."""
    figure, [ax] = plotting.panels(size=(3.0, 2.0))
    ax.set(xlabel="x", ylabel="y")
    [line] = ax.plot([0, 1], [0, 1], color="red")
    seen = []

    def draw(frame):
        seen.append(frame)
        line.set_color("lime" if frame == 2 else "red")

    html = plotting.film(figure, draw, 3, alt="a < b", caption="c & d")
    poster, film = (base64.b64decode(x) for x in re.findall('base64,([^"]*)"', html))
    picture = np.asarray(Image.open(io.BytesIO(poster)).convert("RGB"), int)
    assert sorted(set(seen)) == [0, 1, 2] and film[4:8] == b"ftyp"
    assert "a &lt; b" in html and "c &amp; d" in html
    assert picture.shape == (250, 300, 3)
    assert picture[-45:].min() > 240  # half an inch
    assert picture[-80:-45].min() < 100  # the label
    red, green, _ = picture.reshape(-1, 3).T
    assert np.any(green - red > 150) and not np.any(red - green > 150)


def test_ticks_of_a_logarithmic_axis_are_numbers_of_full_size():
    """Exponents are drawn at 0.7 of the size, which a phone does not show."""
    with matplotlib.rc_context():
        plotting.use_style()
        figure, ax = plt.subplots()
        ax.set(xscale="log", xlim=(1e-5, 1e2))
        ax.set_xticks([1e-5, 1e-2, 1.0, 1e2])
        figure.draw_without_rendering()
        shown = [text.get_text() for text in ax.get_xticklabels()]
    assert "10^{-5}" in shown[0]
    assert [re.sub(r"\$\\mathdefault{(.*)}\$", r"\1", text) for text in shown[1:]] == [
        "0.01",
        "1",
        "100",
    ]
