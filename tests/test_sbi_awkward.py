"""Awkward but sensible use of posteriors: right, or refused by name."""

import dataclasses
import json
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from exact import single_precision

from edm_tutorial import sbi
from edm_tutorial.sbi import Posterior, fit, fit_posterior
from edm_tutorial.sbi.simulations import checked
from edm_tutorial.sbi.surprise import Surprise

N = 400
SMALL = sbi.default_settings(N)._replace(width=16, depth=1).with_steps(40)
OPTIONS = {"settings": SMALL, "progress": False}


@pytest.fixture(scope="module")
def pairs():
    random = np.random.default_rng(0)
    theta = random.normal(size=(N, 1))
    return theta, theta + 0.3 * random.normal(size=(N, 1))


def quiet(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sbi.PoorFit)
        return fit_posterior(*args, **(OPTIONS | options))


@pytest.mark.usefixtures("unchecked")
def test_a_state_goes_on_only_with_its_own_bounds_rows_and_network(pairs):
    """Each changes the coordinates, what was held out, or what is trained."""
    theta, x = pairs
    kept: list = []
    quiet(jr.key(0), theta, x, callback=kept.append)
    quiet(jr.key(0), theta, x, state=kept[-1])  # the same again
    for message, key, options in (
        ("another prior_support", 0, {"prior_support": ([-9.0], [9.0])}),
        ("another key", 1, {}),
        ("of another network", 0, {"settings": SMALL._replace(width=32)}),
    ):
        with pytest.raises(ValueError, match=message):
            quiet(jr.key(key), theta, x, state=kept[-1], **options)
    with pytest.raises(TypeError, match="state must be an instance of FitState"):
        quiet(jr.key(0), theta, x, state="kept")
    with pytest.raises(TypeError, match="settings must be an instance of Settings"):
        quiet(jr.key(0), theta, x, settings={"width": 3})


@pytest.mark.parametrize("side", [-1, 1])
def test_a_far_bound_without_another_is_none(side):
    """In float32, ln(theta + 1e6) knows theta to 0.06 only."""
    theta = np.random.default_rng(1).normal(size=(N, 1)).astype(np.float32)
    far, near = np.array([side * 1e6]), np.array([side * 10.0])
    for bound, counts in ((far, False), (near, True)):
        support = (bound, None) if side < 0 else (None, bound)
        bounds = checked(theta, theta + 1, support, structured=False, invalid="raise").bounds
        z = jax.vmap(bounds.forward)(jnp.asarray(theta))
        again = jax.vmap(bounds.inverse)(z)
        np.testing.assert_allclose(again, theta, atol=1e-5)
        assert np.isfinite(bounds.low if side < 0 else bounds.high).all() == counts
    box = checked(theta, theta + 1, (-abs(far), abs(far)), structured=False, invalid="raise")
    assert np.isfinite(box.bounds.low).all()  # a box loses nothing


@pytest.mark.filterwarnings("ignore::edm_tutorial.sbi.DuplicatedSimulations")
@pytest.mark.parametrize("side", [-1, 1])
def test_rows_on_an_only_bound_are_as_far_from_it_as_the_nearest(side):
    theta = side * np.abs(np.random.default_rng(2).normal(size=(N, 1)))
    theta[:5] = 0.0
    support = ([0.0], None) if side > 0 else (None, [0.0])
    given = checked(theta, theta + 1, support, structured=False, invalid="raise")
    nearest = side * np.abs(theta[5:]).min()
    np.testing.assert_allclose(given.theta[:5], nearest)
    np.testing.assert_array_equal(given.theta[5:], theta[5:])


@pytest.mark.parametrize("scale", [1e40, 1e-42])
@pytest.mark.parametrize("name", ["theta", "x"])
def test_what_float32_cannot_hold_is_refused_by_name(pairs, name, scale):
    scaled = dict(zip(("theta", "x"), pairs, strict=True))
    scaled[name] = scaled[name] * scale
    with single_precision(), pytest.raises(ValueError, match=f"^{name} is too large or varies"):
        checked(*scaled.values(), None, structured=False, invalid="raise")


@pytest.mark.usefixtures("unchecked")
def test_observations_of_any_kind(pairs):
    posterior = quiet(jr.key(0), *pairs)
    plain = posterior.sample(jr.key(1), [0.5], 3)
    for x_o in (np.array([0.5], object), np.array([0.5], np.float16), jnp.array([0.5])):
        np.testing.assert_array_equal(posterior.sample(jr.key(1), x_o, 3), plain)
    with pytest.warns(sbi.UnlikelyObservation):
        posterior.mode([1e3])
    with pytest.raises(ValueError, match="x must be a floating-point array, got object: convert"):
        quiet(jr.key(0), pairs[0], pairs[1].astype(object))


def test_structured_observations_may_have_entries_that_never_vary(pairs):
    """Such as a mask without a gap, or the border of an image."""
    theta, x = pairs
    masked = np.stack([x, np.ones_like(x)], axis=1)
    given = checked(theta, masked, None, structured=True, invalid="raise")
    np.testing.assert_allclose(given.x, masked)


def test_in_float32_an_observation_may_be_too_large(pairs):
    with single_precision():
        posterior = quiet(jr.key(0), *pairs)
        with pytest.raises(ValueError, match="x_o is too large for float32"):
            posterior.sample(jr.key(1), np.array([1e39]), 3)


def test_a_number_that_has_lost_its_digits_is_refused(pairs):
    theta, x = pairs
    with single_precision():
        posterior = quiet(jr.key(0), theta + 1e9, x + 1e12)
        assert posterior.x_offset and posterior.theta_offset
        draws = posterior.sample(jr.key(1), np.array([1e12 + 0.5]), 200)
        assert abs(np.mean(draws) - 1e9) < 1.0
        for wrong in (jnp.array([1e12 + 0.5]), np.array([1e12], np.float32)):
            with pytest.raises(ValueError, match="x_o has an offset that float32 cannot hold"):
                posterior.sample(jr.key(1), wrong, 3)
        with pytest.raises(ValueError, match="theta has an offset"):
            posterior.log_prob(jnp.array([1e9 + 0.5]), np.array([1e12 + 0.5]))


def test_a_posterior_of_float64_is_not_loaded_in_float32(pairs, tmp_path):
    posterior = quiet(jr.key(0), *pairs)
    assert posterior.dtype == np.float64
    posterior.save(tmp_path / "posterior")
    with single_precision(), pytest.raises(ValueError, match="was fitted in float64"):
        Posterior.load(tmp_path / "posterior")


def test_a_file_whose_first_line_lacks_something_is_refused(pairs, tmp_path):
    path = tmp_path / "posterior"
    quiet(jr.key(0), *pairs).save(path)
    line, _, body = path.read_bytes().partition(b"\n")
    for name in ("size", "linear", "sigmas", "history", "offsets"):
        less = {key: value for key, value in json.loads(line).items() if key != name}
        path.write_bytes(json.dumps(less).encode() + b"\n" + body)
        with pytest.raises(ValueError, match=f"its first line lacks .*{name}"):
            Posterior.load(path)


def test_a_fit_that_ignores_x_still_knows_what_is_unlikely():
    """Also with an embedding, by whose features it is judged."""
    random = np.random.default_rng(3)
    theta, x = random.normal(size=(N, 1)), random.normal(size=(N, 3))
    embedding = eqx.nn.Linear(3, 2, key=jr.key(3))
    fitted = quiet(jr.key(0), theta, x, embedding=embedding)
    history = fitted.history._replace(held_out=(9.0,), untrained=8.0, prior=5.0)
    worse = dataclasses.replace(fitted, history=history)
    given = checked(theta, x, None, structured=True, invalid="raise")
    with pytest.warns(sbi.PoorFit, match="A fit that ignores x is returned"):
        posterior = fit._no_worse_than_the_prior(worse, given, np.arange(N))
    seen, odd = posterior.surprise(x[0]), posterior.surprise(100 * x[0])
    assert isinstance(seen, Surprise) and seen.p_value > 0.02 > odd.p_value
