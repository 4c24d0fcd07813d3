"""Embeddings of sets, series and images, against what is known of them without training."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from edm_tutorial.sbi import (
    ImageEmbedding,
    SeriesEmbedding,
    SetEmbedding,
    default_settings,
    fit_posterior,
)


def test_a_set_has_no_order(key):
    embed = SetEmbedding(2, 5, key=key)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(7, 2)))
    np.testing.assert_allclose(embed(x[::-1]), embed(x), rtol=1e-12, atol=1e-12)
    assert np.abs(embed(x[:6]) - embed(x)).max() > 1e-3


def test_absent_points_are_as_if_they_were_not_there(key):
    """Whatever stands in them."""
    embed = SetEmbedding(3, 5, masked=True, key=key)
    x = np.random.default_rng(1).normal(size=(6, 3))
    x[:, -1] = 1
    padded = np.concatenate([x, [[9.0, 1e6, 0.0]]])[[0, 6, 1, 2, 6, 3, 4, 5]]
    np.testing.assert_allclose(embed(jnp.asarray(padded)), embed(jnp.asarray(x)), rtol=1e-9)


def test_how_many_points_are_present_is_told(key):
    """Attention and averages alone would not tell one point from two copies of it."""
    embed = SetEmbedding(2, 5, masked=True, key=key)
    one = jnp.array([[0.3, 1.0]])
    assert np.abs(embed(jnp.concatenate([one, one])) - embed(one)).max() > 1e-3


def test_an_empty_set_and_equal_points_have_a_finite_gradient(key):
    embed = SetEmbedding(2, 5, masked=True, key=key)
    for present in (0.0, 1.0):
        x = jnp.full((4, 2), 0.5).at[:, -1].set(present)
        gradient = eqx.filter_grad(lambda net, x=x: jnp.sum(net(x)))(embed)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_a_series_and_an_image_have_an_order_and_a_place(key):
    """A peak elsewhere is another observation, in every part of the range."""
    random = np.random.default_rng(2)
    keys = jr.split(key)
    series, image = SeriesEmbedding(1, 6, key=keys[0]), ImageEmbedding(1, 6, key=keys[1])
    peak = jnp.asarray(random.normal(size=(1, 40)))
    assert np.abs(series(jnp.roll(peak, 9)) - series(peak)).max() > 1e-3
    spot = jnp.asarray(random.normal(size=(1, 12, 12)))
    assert np.abs(image(jnp.swapaxes(spot, 1, 2)) - image(spot)).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, short, long",
    [
        (SetEmbedding, (4, 2), (9, 2)),
        (SeriesEmbedding, (2, 20), (2, 31)),
        (ImageEmbedding, (2, 9, 7), (2, 12, 16)),
    ],
)
def test_another_number_of_points_is_taken_by_a_fit(kind, short, long, key):
    random = np.random.default_rng(3)
    theta = random.normal(size=(120, 1)).astype(np.float32)
    shape = (1,) * len(short)
    x = (theta.reshape(-1, *shape) + random.normal(size=(120, *short))).astype(np.float32)
    settings = default_settings(100)._replace(width=8, depth=1, batch_size=8).with_steps(2)
    fit_key, network_key, draw_key = jr.split(key, 3)
    embed = kind(2, 5, key=network_key)
    posterior = fit_posterior(fit_key, theta, x, embedding=embed, settings=settings)
    draws = posterior.sample(draw_key, np.ones(long, np.float32), 3, steps=3)
    assert draws.shape == (3, 1) and np.isfinite(draws).all()
    with pytest.raises(ValueError, match="x_o must be one observation of shape"):
        posterior.sample(jr.clone(draw_key), np.ones(long[:-1], np.float32), 3)


def test_each_channel_has_a_scale_and_a_mask_has_none(key):
    random = np.random.default_rng(4)
    units = np.array([1e-3, 1.0, 500.0])
    points = random.normal(size=(50, 6, 3)) * units + 2 * units
    present = random.integers(0, 2, (50, 6, 1))
    x = np.concatenate([np.where(present == 1, points, 1e9), present], axis=2)
    keys = jr.split(key, 3)
    scale = SetEmbedding(4, 2, masked=True, key=keys[0]).scale(x)
    seen = points[present[..., 0] == 1]
    np.testing.assert_allclose(scale.mean[0, :3], seen.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(scale.std[0, :3], seen.std(axis=0), rtol=1e-6)
    np.testing.assert_array_equal([scale.mean[0, 3], scale.std[0, 3]], [0, 1])
    series = np.moveaxis(points, 2, 1)
    scale = SeriesEmbedding(3, 2, key=keys[1]).scale(series)
    np.testing.assert_allclose(scale.std[:, 0], points.std(axis=(0, 1)), rtol=1e-6)
    z = scale.forward(jnp.asarray(series[0]))
    np.testing.assert_allclose(scale.inverse(z), series[0], rtol=1e-6)
    image = ImageEmbedding(3, 2, key=keys[2]).scale(series.reshape(50, 3, 2, 3))
    np.testing.assert_allclose(image.mean[:, 0, 0], points.mean(axis=(0, 1)), rtol=1e-6)


def test_questions_are_of_unit_length_and_blocks_are_two(key):
    """So that a softmax starts neither flat nor at one point; 4 standard errors of 256 squares."""
    embed = SetEmbedding(2, 3, key=key)
    assert embed.pool.questions.shape == (8, 32) and len(embed.blocks) == 2
    squares = np.asarray(embed.pool.questions) ** 2
    np.testing.assert_allclose(squares.mean() * 32, 1, atol=4 * np.sqrt(2 / 256))


def test_a_channel_that_never_varies_keeps_its_units(key):
    x = np.random.default_rng(4).normal(size=(50, 2, 6))
    x[:, 1] = 3.0
    scale = SeriesEmbedding(2, 2, key=key).scale(x)
    np.testing.assert_allclose(scale.mean, [[x[:, 0].mean()], [0]])
    np.testing.assert_allclose(scale.std, [[x[:, 0].std()], [1]])


def gaussian_sets(random, n):
    """theta ~ N(0, 1); 1 to 10 of ten points of N(theta, 0.5^2) are present."""
    theta = random.normal(size=(n, 1))
    x = theta[:, None] + 0.5 * random.normal(size=(n, 10, 1))
    count = random.integers(1, 11, (n, 1, 1))
    present = np.arange(10)[:, None] < count
    return theta.astype(np.float32), np.concatenate(
        [x, np.broadcast_to(present, x.shape)], 2
    ).astype(np.float32)


@pytest.mark.slow
@pytest.mark.usefixtures("single_precision", "optimized")
def test_one_fit_combines_any_number_of_observations(key):
    """With the exact posterior: precision 1 + 4 N, mean 4 sum(x) / (1 + 4 N)."""
    random = np.random.default_rng(5)
    theta, x = gaussian_sets(random, 4_000)
    fit_key, network_key, key = jr.split(key, 3)
    embed = SetEmbedding(2, 16, masked=True, key=network_key)
    settings = default_settings(4_000)._replace(width=64, depth=2).with_steps(800)
    posterior = fit_posterior(fit_key, theta, x, embedding=embed, settings=settings)
    for count in (1, 3, 10):
        shifts, widths = [], []
        for i in range(10):
            _, x_o = gaussian_sets(np.random.default_rng([6, i]), 1)
            x_o = x_o[0]
            x_o[:, 1] = np.arange(10) < count
            draws = np.asarray(posterior.sample(jr.fold_in(key, 10 * count + i), x_o, 2_000), float)
            std = (1 + 4 * count) ** -0.5
            mean = 4 * x_o[:count, 0].sum() * std**2
            shifts.append((draws.mean() - mean) / std)
            widths.append(draws.std() / std)
        # Here the root mean square of the shifts is 0.07 to 0.14, the widths 0.96 to 1.02.
        assert np.sqrt(np.mean(np.square(shifts))) < 0.4
        assert 0.9 < np.mean(widths) < 1.2


@pytest.mark.parametrize(
    "build, told",
    [
        (lambda key: SetEmbedding(0, 3, key=key), "point_size must be at least 1"),
        (lambda key: SetEmbedding(1, 3, masked=True, key=key), "point_size must be at least 2"),
        (lambda key: SeriesEmbedding(1, 0, key=key), "size must be at least 1"),
        (lambda key: SetEmbedding(2, 3, key=key)(jnp.ones((4, 3))), "shape .points, point_size."),
        (lambda key: SeriesEmbedding(2, 3, key=key)(jnp.ones(8)), "shape .channels, length."),
        (lambda key: ImageEmbedding(2, 3, key=key)(jnp.ones((3, 8, 8))), "channels, height, width"),
        (
            lambda key: SetEmbedding(2, 3, masked=True, key=key).scale(np.full((60, 4, 2), 0.5)),
            r"embedding: of SetEmbedding.masked=True.*such as 0\.5",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_messages(build, told, key):
    with pytest.raises(ValueError, match=told):
        build(key)


# Several observations of one theta


def sets(key, n, most=10):
    """ln s ~ N(0, 0.7^2), and N draws of N(0, s^2), N from 1 to `most`, as the chapter has them."""
    scale_key, value_key, count_key = jr.split(key, 3)
    log_s = 0.7 * jr.normal(scale_key, (n, 1))
    values = jnp.exp(log_s) * jr.normal(value_key, (n, most))
    counts = jr.randint(count_key, (n, 1), 1, most + 1)
    there = jnp.where(jnp.arange(most)[None] < counts, 1.0, 0.0).astype(values.dtype)
    return log_s, jnp.stack([values, there], axis=-1)


@pytest.mark.slow
@pytest.mark.usefixtures("single_precision", "optimized")
def test_one_masked_set_fit_answers_for_one_to_ten_observations():
    """Against the exact posterior on a grid, for every N: mean and width of ln s.

    Of 4,000 simulations and 600 steps; the worst of ten shifts was 0.40 widths, and widths were
    0.94 to 1.15 of the exact ones.
    """
    settings = default_settings(4_000)._replace(width=64, depth=2).with_steps(600)
    posterior = fit_posterior(
        jr.key(1),
        *sets(jr.key(2), 4_000),
        embedding=SetEmbedding(2, 8, masked=True, key=jr.key(3)),
        settings=settings,
        progress=False,
    )
    values = np.exp(0.5) * np.random.default_rng(4).normal(size=10)
    grid = np.linspace(-4, 4, 4_001)
    for n in range(1, 11):
        log_p = -((grid / 0.7) ** 2) / 2 - n * grid
        log_p -= np.exp(-2 * grid) * np.sum(values[:n] ** 2) / 2
        p = np.exp(log_p - log_p.max())
        mean = p @ grid / p.sum()
        width = np.sqrt(p @ (grid - mean) ** 2 / p.sum())
        there = (np.arange(10) < n).astype(np.float32)
        draws = np.asarray(
            posterior.sample(jr.key(5), np.stack([values * there, there], -1), 2_000), float
        )
        assert abs(draws.mean() - mean) < 0.6 * width
        assert 0.75 < draws.std() / width < 1.3
