"""The surprise of an observation: uniform for simulations, small for what was never simulated.

About a minute on one core.
"""

import inspect
import warnings
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import edm_tutorial as edm
from edm_tutorial import sbi
from edm_tutorial.sbi import surprise
from edm_tutorial.sbi.surprise import ObservationDensity, look_at

PLAIN = edm.Denoiser(lambda x, *_, key=None: x, edm.EDMPreconditioning(1.0))
RELEASE_0_1 = Path(__file__).parent / "release_0_1"
FRESH = 4000


def noise(rng, *shape):
    return rng.normal(size=shape)


def line(rng, n):
    return noise(rng, n, 1) + 0.1 * noise(rng, n, 2)


def ring(rng, n):
    angle = rng.uniform(0, 2 * np.pi, n)
    return np.stack([np.cos(angle), np.sin(angle)], 1) + 0.05 * noise(rng, n, 2)


def square(rng, n):
    first = noise(rng, n, 1)
    return np.concatenate([first, first**2 + 0.2 * noise(rng, n, 1)], 1)


def spectra(rng, n):
    return noise(rng, n, 3) @ np.random.default_rng(9).normal(size=(3, 100)) + noise(rng, n, 100)


def heavy(rng, n):
    return rng.standard_cauchy((n, 2))


def determined(rng, n):
    theta = noise(rng, n, 2)
    return np.concatenate([theta, theta.sum(1, keepdims=True)], 1)


def fitted(law, rng, n, held):
    """The density, and the map from data to what it was fitted to."""
    x = law(rng, n)
    mean, std = x.mean(0), x.std(0)
    scale = lambda x: ((np.asarray(x) - mean) / std).astype(np.float32)
    return ObservationDensity.fit(PLAIN, scale(x[held:]), scale(x[:held])), scale


@eqx.filter_jit
def judged(density, rows):
    one = lambda x: (density.p_value(x), density.extreme(x))
    return jax.lax.map(one, rows, batch_size=50)


@pytest.mark.parametrize("n, held", [(60, 15), (2000, 200)])
@pytest.mark.parametrize("law", [line, ring, square, spectra, heavy, determined])
def test_fresh_simulations_have_a_uniform_p_value_and_rarely_an_alarm(law, n, held):
    """In 60 simulations of 100 features too: ranks are uniform under any density."""
    rng = np.random.default_rng(n)
    density, scale = fitted(law, rng, n, held)
    p_value, extreme = map(np.asarray, judged(density, scale(law(rng, FRESH))))
    # Two empirical laws differ by 2.2 sqrt(1/m + 1/n) once in 10,000 (Smirnov); the p-value
    # has steps of 1/m.
    allowed = 2.2 * np.sqrt(1 / held + 1 / FRESH) + 1 / held
    assert np.max(np.abs(np.sort(p_value) - np.linspace(0, 1, FRESH))) < allowed
    # The probability beyond the largest of m has mean 1/(m + 1), and 7 times that once in 1,000.
    assert np.mean(extreme) < 7 / (held + 1)


def test_gaussian_observations_raise_no_alarm():
    """24/m^3 of them at m = 100: a tenth of one in 4,000."""
    rng = np.random.default_rng(1)
    for law in (line, spectra):
        density, scale = fitted(law, rng, 1000, 100)
        assert not np.any(judged(density, scale(law(rng, FRESH)))[1])


@pytest.mark.parametrize(
    "law, x_o, worst",
    [
        (line, [1.5, -1.5], None),
        (ring, [0.1, 0.0], None),
        (square, [0.0, 2.5], "x[1] given the other features"),
        (determined, [1.0, 1.0, 1.5], None),
        (heavy, [3e6, 0.0], "x[0]"),
        (line, [0.5, 40.0], "x[1]"),
    ],
)
def test_what_is_impossible_is_found_and_named(law, x_o, worst):
    """But for the last two, each feature is ordinary by itself."""
    rng = np.random.default_rng(2)
    density, scale = fitted(law, rng, 5000, 500)
    if worst != "x[0]" and max(x_o) < 40:
        assert np.all(np.mean(law(rng, FRESH) > np.array(x_o), axis=0) % 1 > 0.01)
    features = jnp.asarray(scale(x_o))
    assert density.p_value(features) < 0.01
    assert density.extreme(features) or law is square
    found = density.worst(features)
    assert found == (worst or found)
    assert found.endswith("given the other features") == (max(np.abs(features)) < 3)


def test_one_odd_channel_of_many_is_named():
    rng = np.random.default_rng(3)
    density, scale = fitted(spectra, rng, 5000, 500)
    x_o = spectra(rng, 1)[0]
    assert not density.extreme(jnp.asarray(scale(x_o)))
    x_o[41] += 10 * np.sign(x_o[41])  # ten standard deviations of its noise
    features = jnp.asarray(scale(x_o))
    assert density.p_value(features) < 0.01
    assert density.worst(features).startswith("x[41]")


def simulations(n=400, dtype=float):
    rng = np.random.default_rng(0)
    theta = rng.uniform(-1, 1, (n, 2))
    x = np.concatenate([theta, theta @ [[1.0], [1.0]]], 1) + 0.1 * noise(rng, n, 3)
    return theta.astype(dtype), x.astype(dtype)


@pytest.fixture(autouse=True)
def silent():
    """A warning about an observation that no test waits for is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", sbi.UnlikelyObservation)
        yield


@pytest.fixture(scope="module")
def posterior():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sbi.PoorFit)
        return sbi.fit_posterior(jr.key(0), *simulations(), steps=2, progress=False)


ORDINARY, IMPOSSIBLE = np.array([0.2, -0.3, 0.0]), np.array([0.5, 0.5, -1.0])


def test_a_posterior_warns_of_what_it_never_saw(posterior, key):
    assert posterior.surprise(ORDINARY).p_value > 0.1
    surprise = posterior.surprise(IMPOSSIBLE)
    assert surprise.p_value == 0
    # x[2] is the sum of the others: any of the three may be called odd, given the rest.
    assert surprise.worst in {f"x[{i}] given the other features" for i in range(3)}
    for ask in (
        lambda x_o: posterior.sample(jr.clone(key), x_o, 3),
        lambda x_o: posterior.log_prob(jnp.zeros(2), x_o),
    ):
        ask(ORDINARY)  # a warning is an error here
        with pytest.warns(sbi.UnlikelyObservation, match=r"x\[[0-2]\] given the other"):
            ask(IMPOSSIBLE)


def test_an_observation_in_a_transformation_is_not_looked_at(posterior, key):
    x_o = jnp.asarray(np.stack([ORDINARY, IMPOSSIBLE]))
    surprise = jax.vmap(posterior.surprise)(x_o)
    assert surprise.worst is None
    assert surprise.p_value[0] > 0.1 > surprise.p_value[1] == 0
    jax.jit(lambda x_o: posterior.sample(jr.clone(key), x_o, 3))(x_o[1])
    jax.vmap(lambda x_o: posterior.log_prob(jnp.zeros(2), x_o))(x_o)
    eqx.filter_jit(lambda p, x_o: p.log_prob(jnp.zeros(2), x_o))(posterior, x_o[1])


def test_it_is_saved_and_loaded(posterior, tmp_path):
    posterior.save(tmp_path / "posterior")
    loaded = sbi.Posterior.load(tmp_path / "posterior")
    for x_o in (ORDINARY, IMPOSSIBLE, np.array([0.4, 0.4, 0.5])):
        assert loaded.surprise(x_o) == posterior.surprise(x_o)


@pytest.mark.parametrize("n", [60, 400])
def test_with_an_embedding_no_feature_is_named(n, key):
    embedding = eqx.nn.Linear(3, 5, key=jr.key(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sbi.PoorFit)
        posterior = sbi.fit_posterior(
            key, *simulations(n), embedding=embedding, steps=2, progress=False
        )
    assert posterior.surprise(20 * IMPOSSIBLE) == (0, None)
    with pytest.warns(sbi.UnlikelyObservation, match="unlike all simulations, and"):
        posterior.sample(jr.clone(key), 20 * IMPOSSIBLE, 2)


def test_a_posterior_of_version_0_1_does_not_know(key):
    with pytest.warns(DeprecationWarning):
        posterior = sbi.Posterior.load(RELEASE_0_1 / "posterior")
    x_o = np.full(posterior.x_scale.mean.shape, 1e3)
    with pytest.raises(ValueError, match=r"not known.*version 0\.1\.0"):
        posterior.surprise(x_o)
    posterior.sample(key, x_o, 2)


@pytest.mark.parametrize("wrong", [0, np.int64(3), jr.split(jr.key(0), 2)])
def test_what_is_no_key_is_refused_by_name(posterior, wrong):
    theta, x = simulations()
    fit_posterior, sample = map(inspect.unwrap, (sbi.fit_posterior, sbi.Posterior.sample))
    with pytest.raises(TypeError, match="key must be one random key"):
        fit_posterior(wrong, theta, x, steps=1, progress=False)
    with pytest.raises(TypeError, match="key must be one random key"):
        sample(posterior, wrong, ORDINARY, 2)


def test_lists_of_numbers_will_do(posterior, key):
    x_o = ORDINARY.tolist()
    draws = posterior.sample(jr.clone(key), x_o, 2)
    np.testing.assert_array_equal(draws, posterior.sample(jr.clone(key), ORDINARY, 2))
    expected = posterior.log_prob(np.array([[0.0, 0.0], [0.0, 1.0]]), ORDINARY)
    np.testing.assert_array_equal(posterior.log_prob([[0, 0], [0, 1]], x_o), expected)
    assert posterior.log_prob([0, 0], x_o) == pytest.approx(float(expected[0]), abs=1e-10)
    assert posterior.surprise(x_o) == posterior.surprise(ORDINARY)
    with pytest.raises(ValueError, match="x_o must be finite"):
        posterior.sample(jr.clone(key), np.ma.masked_array(ORDINARY, [0, 0, 1]), 2)


def test_many_rows_are_whitened_by_their_own_covariance():
    """2,500 of 5,000 rows: each entry of a covariance is known to sqrt(2 / 2500)."""
    random = np.random.default_rng(4)
    mix = np.array([[1.0, 0.0, 0.0], [0.9, 0.3, 0.0], [-2.0, 1.0, 0.1]])
    rows = random.normal(size=(5_000, 3)) @ mix.T
    denoiser = edm.Denoiser(lambda *_, key=None: jnp.zeros(1), edm.EDMPreconditioning(1.0))
    density = ObservationDensity.fit(denoiser, rows, rows[:100])
    whitened = density.whiten @ mix @ mix.T @ density.whiten.T
    np.testing.assert_allclose(whitened, np.eye(3), atol=3 * np.sqrt(2 / 2_500))


def test_few_rows_of_many_features_are_shrunk_towards_independent_ones():
    """30 rows know nothing of 10 of 40 directions: without shrinkage 1e4 times too likely."""
    rows = np.random.default_rng(5).normal(size=(60, 40))
    denoiser = edm.Denoiser(lambda *_, key=None: jnp.zeros(1), edm.EDMPreconditioning(1.0))
    density = ObservationDensity.fit(denoiser, rows, rows[:10])
    widths = np.linalg.svd(np.asarray(density.whiten), compute_uv=False)
    assert 0.3 < widths.min() and widths.max() < 3


def test_what_is_far_outside_of_all_ranges_is_found_though_it_lies_along_the_correlation():
    rng = np.random.default_rng(6)
    law = lambda rng, n: rng.uniform(-1, 1, (n, 1)) + 0.01 * noise(rng, n, 2)
    density, scale = fitted(law, rng, 2000, 200)
    assert density.beyond(jnp.asarray(scale([3.0, 3.0]))).min() > 0.5
    with pytest.warns(sbi.UnlikelyObservation, match=r"most of all in x\[\d\],"):
        look_at(density, PLAIN, jnp.asarray(scale([3.0, 3.0])))
    for row in law(rng, 50):
        look_at(density, PLAIN, jnp.asarray(scale(row)))  # a warning is an error here


def test_one_feature_has_no_others():
    rng = np.random.default_rng(7)
    density, scale = fitted(lambda rng, n: noise(rng, n, 1), rng, 400, 40)
    assert density.worst(jnp.asarray(scale([2.0]))) == "x[0]"


def handmade(centers, held):
    """Features as they are and h = 1: -ln p is |f|^2 / 2 but for the logarithm of the count."""
    parts = jnp.zeros(2), jnp.eye(2), jnp.asarray(centers), jnp.asarray(1.0), jnp.asarray(held)
    return ObservationDensity(*parts)


def square_of(low, high, count=50):
    return np.repeat(np.linspace(low, high, count)[:, None], 2, axis=1)


def test_what_is_as_unlikely_as_a_held_out_simulation_counts_and_is_not_extreme():
    features = jnp.array([1.0, -2.0])
    nats = handmade(square_of(-3, 3), [0.0]).nats(features)
    np.testing.assert_allclose(nats, 5 / 2 - np.log(50), rtol=1e-12)
    density = handmade(square_of(-3, 3), np.full(3, nats))
    assert density.p_value(features) == 1 and not density.extreme(features)
    assert density.p_value(1.01 * features) == 0 and density.extreme(1.01 * features)
    spread = handmade(square_of(-3, 3), [0.0, 1.0, 2.0])  # up to 1 + 3 times 1
    beyond = lambda nats: jnp.array([np.sqrt(2 * (nats + np.log(50))), 0.0])
    assert not spread.extreme(beyond(3.99)) and spread.extreme(beyond(4.01))


def test_a_feature_is_odd_from_half_a_range_on_where_there_are_fifty_centers():
    density = handmade(square_of(0, 1), np.full(3, 1e6))
    np.testing.assert_allclose(density.beyond(jnp.array([-0.5, 1.75])), [0.5, 0.75])
    fewer = handmade(square_of(0, 1, 49), np.full(3, 1e6))
    np.testing.assert_array_equal(fewer.beyond(jnp.array([-0.5, 1.75])), 0)
    # At half a range -ln p decides: it is steepest along the second.
    assert density.worst(jnp.array([-0.5, 1.25])) == "x[1] given the other features"
    assert density.worst(jnp.array([-0.625, 1.25])) == "x[0]"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        look_at(density, PLAIN, jnp.array([-0.5, 0.5]))
    with pytest.warns(sbi.UnlikelyObservation, match=r"most of all in x\[0\],"):
        look_at(density, PLAIN, jnp.array([-0.625, 0.5]))


def test_a_feature_within_three_deviations_is_ordinary():
    density = handmade(square_of(-4, 4), [0.0])
    assert density.worst(jnp.array([3.0, 0.0])) == "x[0] given the other features"
    assert density.worst(jnp.array([-3.01, 0.0])) == "x[0]"


def test_a_warning_is_at_the_line_outside_of_the_package():
    """However deep inside it comes from."""
    warn = inspect.unwrap(surprise.warn)  # as users have it
    inside = {"__name__": "edm_tutorial.sbi.fit", "warn": warn, "kind": sbi.PoorFit}
    exec("def inner(): warn(kind, 'told')\ndef outer(): inner()", inside)
    with pytest.warns(sbi.PoorFit, match="told") as caught:
        inside["outer"]()
    assert caught[0].filename == __file__
