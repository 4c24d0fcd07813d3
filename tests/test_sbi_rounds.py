"""Rounds of simulations: what a truncation keeps, and that it is the prior otherwise."""

import warnings

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.stats import kstest, multivariate_normal
from test_sbi_posterior import X_O, gaussian, truth

from edm_tutorial.sbi import (
    NarrowTruncation,
    SetEmbedding,
    fit_posterior,
    fit_rounds,
    rounds,
    tasks,
)
from edm_tutorial.sbi.rounds import Region


@pytest.mark.parametrize("shift, wider", [(0.0, 1.0), (1.0, 1.0), (0.0, 1.4)])
def test_a_truncation_holds_the_posterior_of_a_fit_that_is_off(shift, wider, key):
    """At most 4 of 5,000 exact draws outside, where the fit is shifted or too narrow."""
    region_key, draw_key = jr.split(key)
    region = Region.around(gaussian(0.3), region_key, X_O)
    mean, std = truth(0.3)
    unit = np.asarray(jr.normal(draw_key, (5_000, 2)))
    exact = mean + np.array([shift, 0]) * std + wider * std * unit
    assert np.sum(region.depth(exact) < 0) <= 4
    # The radius that leaves out 1e-4 of the blurred normal is sqrt(2) sqrt(-2 ln 1e-4) = 6.1.
    angles = np.linspace(0, 2 * np.pi, 8)
    far = mean + 9 * std * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert np.all(region.depth(far) < 0)


def uniform(key, n):
    return jr.uniform(key, (n, 2), minval=-10.0, maxval=10.0)


def simulate(key, theta):
    return theta + jr.normal(key, theta.shape)


@pytest.fixture
def seen(monkeypatch):
    """The simulations of each round, where every fit gives one Gaussian."""
    calls = []

    def fit(key, theta, x, **options):
        calls.append((theta, x, options))
        return gaussian(0.8)

    monkeypatch.setattr(rounds, "fit_posterior", fit)
    monkeypatch.setattr(
        rounds, "PROPOSALS_AT_ONCE", 20_000
    )  # of which more lie inside than are asked for
    return calls


def test_what_is_simulated_is_the_prior_inside_the_truncation(seen, key):
    fit_rounds(key, uniform, simulate, X_O, rounds=2, simulations=1_000, steps=7)
    (first, _, _), (theta, x, options) = seen
    assert len(first) == 1_000 and options["steps"] == 7
    region = Region.around(gaussian(0.8), jr.key(0), X_O)
    # Another key makes another edge; the middle half of its depth is the same for both.
    assert np.all(region.depth(theta) > -3)
    old = [row for row in first.tolist() if row in theta.tolist()]
    assert len(theta) == 1_000 + len(old) and 0 < len(old) < 500
    outside = [row for row in first.tolist() if row not in theta.tolist()]
    assert np.all(region.depth(np.array(outside)) < 3)
    # Rows stay with their own simulation: x - theta is standard normal.
    assert kstest((x - theta).ravel(), "norm").pvalue > 1e-3
    # Uniform inside, whatever the density of the fit is there.
    mean, std = truth(0.8)
    white = np.abs((theta - mean) / std)
    inner = white[(white < 3).all(axis=1)]
    assert kstest(inner.ravel() / 3, "uniform").pvalue > 1e-3


def whole(key, n):
    """One of -2, -1, 0, 1 and 2, each as often."""
    return np.resize(np.arange(-2.0, 3.0), n)[:, None]


@pytest.fixture
def edges(monkeypatch):
    """A truncation whose edges are at -1 and 1, where its depth is exactly 0."""
    depth = lambda regions, theta: 1 - np.abs(np.asarray(theta)[:, 0])
    monkeypatch.setattr(rounds, "_depth_in_all", depth)
    monkeypatch.setattr(Region, "around", lambda posterior, key, x_o: None)


@pytest.mark.usefixtures("edges", "unchecked")
def test_what_lies_on_the_edge_of_a_truncation_is_inside(seen, key):
    """Of old rows and of new ones, in the prior's order and shares."""
    x_o = X_O[:1]
    fit_rounds(key, whole, simulate, x_o, rounds=2, simulations=30)
    _, (theta, _, _) = seen
    old, new = theta[:-30, 0], theta[-30:, 0]
    np.testing.assert_array_equal(old, np.tile([-1.0, 0.0, 1.0], 6))
    np.testing.assert_array_equal(new, np.tile([-1.0, 0.0, 1.0], 10))


@pytest.mark.usefixtures("edges")
def test_the_prior_is_asked_until_there_are_enough_and_no_longer(monkeypatch, key):
    """Twenty at a time, of which twelve lie inside: twelve are enough, and thirteen are not."""
    monkeypatch.setattr(rounds, "PROPOSALS_AT_ONCE", 20)
    asked = []
    prior = lambda key, n: asked.append(n) or whole(key, n)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows, _, share = rounds._truncated(prior, key, 12, [])
    assert asked == [20] and share == 12 / 20
    np.testing.assert_array_equal(rows, np.tile([[-1.0], [0.0], [1.0]], (4, 1)))
    rows, _, share = rounds._truncated(prior, jr.clone(key), 13, [])
    assert asked[1:] == [20, 20] and len(rows) == 13 and share == 24 / 40
    monkeypatch.setattr(rounds, "LEAST_SHARE", 13 / 20)
    with pytest.warns(NarrowTruncation, match="of 20 prior draws only 12 .* the 13 nearest"):
        rows, _, share = rounds._truncated(prior, jr.clone(key), 13, [])
    assert asked[3:] == [20] and len(rows) == 13 and share == 13 / 20


def test_where_the_nearest_are_taken_the_truncation_just_holds_them(monkeypatch, key):
    region_key, key = jr.split(key)
    monkeypatch.setattr(rounds, "LEAST_SHARE", 0.5)
    monkeypatch.setattr(rounds, "PROPOSALS_AT_ONCE", 400)
    region = Region.around(gaussian(0.8), region_key, X_O)
    with pytest.warns(NarrowTruncation):
        rows, wider, _ = rounds._truncated(uniform, key, 200, [region])
    depth = rounds._depth_in_all(wider, rows)
    np.testing.assert_allclose(depth.min(), 0, atol=1e-9)
    assert np.min(region.depth(rows)) < 0 < np.median(depth)


def test_kernels_are_unit_normals(rng):
    centers, rows = rng.normal(size=(3, 2)), 2 * rng.normal(size=(4, 2))
    laws = [multivariate_normal(center) for center in centers]
    exact = np.log(np.sum([law.pdf(rows) for law in laws], axis=0))
    found = rounds._log_kernels(jnp.asarray(centers), jnp.asarray(rows))
    np.testing.assert_allclose(np.diff(found), np.diff(exact), rtol=1e-10)


def test_an_observation_of_another_size_is_for_an_embedding_to_judge(key):
    """One of this package that takes it; not of other axes, nor by an embedding of one's own."""
    x, embed = np.zeros((9, 4, 2)), SetEmbedding(2, 3, key=key)
    rounds._check_observation(np.zeros((7, 2)), x, embed)
    for shape, embedding in [((7, 3), embed), ((7,), embed), ((7, 2), lambda x: x[0])]:
        with pytest.raises(ValueError, match=r"x_o must be one observation of shape \(4, 2\)"):
            rounds._check_observation(np.zeros(shape), x, embedding)


def test_one_round_is_a_fit_of_the_prior(seen, key):
    fit_rounds(key, uniform, simulate, X_O, rounds=1, simulations=200)
    ((theta, _, _),) = seen
    assert kstest(np.asarray(theta).ravel() / 20 + 0.5, "uniform").pvalue > 1e-3


def test_where_too_few_prior_draws_are_left_the_nearest_are_kept_and_it_says_so(
    seen, key, monkeypatch
):
    monkeypatch.setattr(rounds, "LEAST_SHARE", 0.5)
    monkeypatch.setattr(rounds, "PROPOSALS_AT_ONCE", 8_000)
    with pytest.warns(NarrowTruncation, match="prior draws only"):
        fit_rounds(key, uniform, simulate, X_O, rounds=2, simulations=4_000)
    first, _, _ = seen[0]
    theta, _, _ = seen[1]
    assert len(theta) >= 4_000
    mean, std = truth(0.8)
    near = lambda rows: np.quantile(np.linalg.norm((rows - mean) / std, axis=1), 0.9)
    assert near(theta) < 0.9 * near(first)


def test_simulators_in_numpy_are_taken(seen, key):
    random = np.random.default_rng(0)
    fit_rounds(
        key,
        lambda key, n: random.uniform(-10, 10, (n, 2)),
        lambda key, theta: theta + random.normal(size=theta.shape),
        X_O,
        rounds=2,
        simulations=300,
    )
    assert len(seen[1][0]) >= 300


def test_a_feature_that_is_constant_in_the_truncation_gets_a_little_noise(seen, key, monkeypatch):
    """As a count that is zero there, and is not elsewhere. What varies stays as it is."""
    mean, _ = truth(0.8)

    def with_count(key, theta):
        far = np.abs(np.asarray(theta) - mean).max(axis=1) > 8
        return np.column_stack([simulate(key, theta), 4.0 * far])

    around = Region.around  # the Gaussian in place of the fit is told no count
    two = lambda posterior, key, x_o: around(posterior, key, x_o[:2])
    monkeypatch.setattr(Region, "around", two)
    x_o = np.append(X_O, 0.0)
    fit_rounds(key, uniform, with_count, x_o, rounds=2, simulations=1_000)
    (_, first, _), (theta, x, _) = seen
    assert set(np.unique(first[:, 2])) == {0.0, 4.0}
    # 1 % of the first round's spread; 4 standard errors of 1,000 draws are 9 %.
    np.testing.assert_allclose(x[:, 2].std(), 0.01 * first[:, 2].std(), rtol=0.1)
    assert kstest((x[:, :2] - theta).ravel(), "norm").pvalue > 1e-3


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "change, told",
    [
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"simulations": 0}, "simulations must be at least 1"),
        (
            {"prior_sample": lambda key, n: jnp.zeros((n - 1, 2))},
            "prior_sample.key, n. must return",
        ),
        ({"prior_sample": lambda key, n: jnp.zeros(n)}, r"a row for each of n=100 .* \(100,\)"),
        ({"simulate": lambda key, theta: theta[:3]}, "simulate.key, theta. must return a row"),
        ({"x_o": np.array([0.0, np.nan])}, "x_o must be finite"),
        ({"x_o": np.zeros(3)}, r"x_o must be one observation of shape .2,., as simulate"),
    ],
)
def test_messages(change, told, key):
    given = {"prior_sample": uniform, "simulate": simulate, "x_o": X_O, "simulations": 100}
    given |= change
    functions = given.pop("prior_sample"), given.pop("simulate"), given.pop("x_o")
    with pytest.raises(ValueError, match=told):
        fit_rounds(key, *functions, **given)


# On trained fits


@pytest.mark.slow
@pytest.mark.usefixtures("single_precision", "optimized")
def test_a_truncation_holds_two_moons():
    """At most 4 of 5,000 exact draws outside that of a short fit, one ten-thousandth by design."""
    moons = tasks.two_moons()
    theta, x = tasks.draw(jr.key(1), moons, 2_000)
    fit = fit_posterior(
        jr.key(2), theta, x, prior_support=moons.prior_support, steps=400, progress=False
    )
    exact = jax.vmap(lambda key: moons.sample_posterior(key, jnp.zeros(2)))
    region = Region.around(fit, jr.key(3), jnp.zeros(2))
    assert np.sum(region.depth(exact(jr.split(jr.key(4), 5_000))) < 0) <= 4
    # And it does cut: the prior's box is far larger than what holds the moons.
    assert np.mean(region.depth(theta) >= 0) < 0.8
