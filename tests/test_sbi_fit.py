"""Fits that can be checked: a linear-Gaussian model, invariances, early stopping, resuming.

About 90 seconds on one core; nearly all of it is compilation.
"""

import dataclasses
import warnings
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

import edm_tutorial as edm
from edm_tutorial.sbi import PoorFit, default_settings, fit, fit_posterior, noise_levels, tasks
from edm_tutorial.sbi.early_stopping import FitState, History, until_stale
from edm_tutorial.sbi.embeddings import SetEmbedding
from edm_tutorial.sbi.fit import StratifiedLoss
from edm_tutorial.sbi.noise_levels import HeldOut, LikelihoodNoise, PosteriorNoise
from edm_tutorial.sbi.posterior import Posterior
from edm_tutorial.sbi.settings import POSTERIOR_ROWS
from edm_tutorial.sbi.simulations import checked
from edm_tutorial.sbi.surprise import WideScales
from edm_tutorial.sbi.transforms.bounds import Bounds
from edm_tutorial.sbi.transforms.chain import Chain
from edm_tutorial.training import TrainState

SMALL = default_settings(400)._replace(width=16, depth=1, batch_size=32).with_steps(40)
BOX = (np.full(2, -1.0, np.float32), np.full(2, 1.0, np.float32))


def linear_gaussian(seed, n, dtype=np.float32):
    """theta ~ N(m, V) with scales 1 : 1000, x = G theta + noise; and the exact posterior."""
    rng = np.random.default_rng(seed)
    prior_mean, prior_std = np.array([2.0, -500.0]), np.array([1.0, 1000.0])
    g, noise = np.array([[1.0, 0.0], [0.5, 2e-3], [0.0, -1e-3]]), np.array([0.5, 0.3, 0.4])
    theta = prior_mean + prior_std * rng.normal(size=(n, 2))
    x = theta @ g.T + noise * rng.normal(size=(n, 3))

    def posterior(x_o):
        precision = np.diag(prior_std**-2) + g.T @ np.diag(noise**-2) @ g
        cov = np.linalg.inv(precision)
        return cov @ (prior_mean / prior_std**2 + g.T @ (x_o / noise**2)), cov

    return theta.astype(dtype), x.astype(dtype), posterior


def uniform(seed, n):
    rng = np.random.default_rng(seed)
    theta = rng.uniform(-1, 1, (n, 2)).astype(np.float32)
    x = theta + np.where(rng.uniform(size=(n, 1)) < 0.5, 0.5, 0.1) * rng.normal(size=(n, 2))
    return theta, x.astype(np.float32)


def same(a, b):
    return eqx.tree_equal(eqx.filter(a, eqx.is_array), eqx.filter(b, eqx.is_array))


@pytest.mark.slow
def test_linear_gaussian_posterior(key):
    """Mean and covariance of the truth, from parameters of scales 1 and 1000 and correlated."""
    theta, x, truth = linear_gaussian(0, 3000)
    fit_key, draw_key = jr.split(key)
    posterior = fit_posterior(fit_key, theta, x, settings=SMALL)
    for x_o in ([2.0, 0.0, 0.5], [3.0, 2.0, 0.0]):
        mean, cov = truth(np.array(x_o))
        draws = np.asarray(posterior.sample(draw_key, jnp.asarray(x_o, jnp.float32), 4000), float)
        draw_key = jr.fold_in(draw_key, 1)
        root = np.linalg.cholesky(cov)
        white = np.linalg.solve(root, (draws - mean).T)
        # 12 regression coefficients from 2700 simulations: 0.04 of a posterior width for x_o
        # at one spread from the mean; 4000 draws add 0.016. Four of both together.
        np.testing.assert_allclose(white.mean(axis=1), 0, atol=0.17)
        # A covariance from 2700 simulations errs by sqrt(2 / 2700) = 0.027, from draws 0.022.
        np.testing.assert_allclose(np.cov(white), np.eye(2), atol=0.14)
    mean, cov = truth(np.array(x_o))
    theta_o = jnp.asarray(mean + root @ [0.5, -1.0], jnp.float32)
    exact = -np.log(2 * np.pi) - np.log(np.diag(root)).sum() - (0.5**2 + 1.0) / 2
    # d ln q is mean shift times z plus the trace of the covariance's error: 0.17 * 1.1 at most.
    got = posterior.log_prob(theta_o, jnp.asarray(x_o, jnp.float32))
    np.testing.assert_allclose(got, exact, atol=0.25)


@pytest.mark.slow
def test_powers_of_two_leave_every_bit(key):
    theta, x = uniform(1, 400)
    b, d = np.array([4.0, 2.0**-6], np.float32), np.array([2.0**-3, 32.0], np.float32)
    one = fit_posterior(key, theta, x, prior_support=BOX, settings=SMALL)
    bounds = tuple(side * b for side in BOX)
    two = fit_posterior(jr.clone(key), theta * b, x * d, prior_support=bounds, settings=SMALL)
    assert same(one.denoiser, two.denoiser)
    draws = [
        np.asarray(fit.sample(jr.clone(key), jnp.asarray(x[0] * scale), 50)) / factor
        for fit, scale, factor in ((one, 1, 1), (two, d, b))
    ]
    np.testing.assert_array_equal(*draws)
    ours = one.log_prob(jnp.asarray(theta[0]), jnp.asarray(x[0]))
    shift = two.log_prob(jnp.asarray(theta[0] * b), jnp.asarray(x[0] * d)) - ours
    np.testing.assert_allclose(shift, -np.log(b).sum(), atol=1e-4)  # float32


@pytest.mark.slow
def test_shifted_and_scaled_units_fit_alike(key):
    """Other numbers round otherwise, so training differs in its last digits.

    The losses here cross 0, where 1 % is nothing: 1e-4 nats are 1 % of the mean of their sizes.
    """
    theta, x = uniform(2, 400)
    a, b, c, d = (np.array(pair, np.float32) for pair in ((3, -1), (0.3, 7), (5, 0), (11, 0.1)))
    one = fit_posterior(key, theta, x, prior_support=BOX, settings=SMALL)
    bounds = tuple(a + b * side for side in BOX)
    two = fit_posterior(
        jr.clone(key), a + b * theta, c + d * x, prior_support=bounds, settings=SMALL
    )
    shift = np.log(np.abs(b)).sum()
    np.testing.assert_allclose(
        np.array(two.history.held_out) - shift, one.history.held_out, rtol=0.01, atol=1e-4
    )


NARROW = 0.03  # the width of a posterior, in parts of the prior's


class Watched(eqx.Module):
    """The exact network of z ~ N(x + NARROW shift, NARROW^2), which tells what it is told.

    `shift` starts at 1: what there is to learn is that it is 0.
    """

    shift: jax.Array
    tell: Callable

    def __call__(self, z, c_noise, x, *, key=None):
        def write(x, number):  # of a whole batch, for which its result is zeros
            self.tell(key is not None, np.asarray(x), np.asarray(number))
            return np.zeros_like(x)

        number = jnp.zeros(2, jnp.uint32) if key is None else jr.key_data(key)
        told = jax.lax.stop_gradient((x, number))
        zeros = jax.pure_callback(write, x, *told, vmap_method="broadcast_all")
        sigma = jnp.exp(4 * c_noise)
        c = edm.EDMPreconditioning(1.0)(sigma)
        noisy, mean = z / c.c_in, x + zeros + NARROW * self.shift
        denoised = (NARROW**2 * noisy + sigma**2 * mean) / (NARROW**2 + sigma**2)
        return (denoised - c.c_skip * noisy) / c.c_out


class Fit(NamedTuple):
    posterior: Posterior
    theta: np.ndarray
    x: np.ndarray
    states: list
    told: dict
    held_out: HeldOut


@pytest.fixture(scope="module")
def watched():
    """A fit of 200 simulations whose network and validation are looked at.

    It stops after some 27 of 40 steps of 64, which never draw one of the 150 rows to train on
    with a probability of 150 e^-11.
    """
    rng = np.random.default_rng(0)
    theta = (3 * rng.normal(size=(200, 1))).astype(np.float32)
    x = theta[:, None] + np.float32(3 * NARROW) * rng.normal(size=(200, 1, 1)).astype(np.float32)
    states, made, told = [], [], {True: [], False: []}
    draw = HeldOut.draw
    settings = SMALL._replace(batch_size=64, learning_rate=0.1, weight_decay=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise_levels, "PAIRS", 1000)  # a call of the host each fifty
        patch.setattr(fit.HeldOut, "draw", lambda *a, **k: made.append(draw(*a, **k)) or made[-1])
        posterior = fit_posterior(
            jr.key(0),
            theta,
            x,
            network=Watched(jnp.ones((), jnp.float32), lambda *a: told[a[0]].append(a[1:])),
            embedding=jnp.ravel,
            settings=settings,
            callback=states.append,
        )
    jax.effects_barrier()
    [held_out] = made
    return Fit(posterior, theta, x, states, told, held_out)


def rows_of(watched, training):
    """Which simulations the network was told: the nearest ones, as all are different."""
    x = np.concatenate([x.reshape(-1) for x, _ in watched.told[training]])
    raw = np.unique(x) * np.asarray(watched.posterior.x_scale.std).item()
    raw = raw + np.asarray(watched.posterior.x_scale.mean).item()
    distance = np.abs(raw[:, None] - watched.x.reshape(-1))
    assert distance.min(axis=1).max() < 1e-5
    return set(distance.argmin(axis=1).tolist())


def test_simulations_held_out_are_never_trained_on(watched):
    """And all others are; a quarter of few simulations is held out."""
    trained, held = rows_of(watched, True), rows_of(watched, False)
    assert len(held) == 50 and trained == set(range(200)) - held
    kept = watched.x[sorted(trained)].astype(float)
    scale = watched.posterior.x_scale
    np.testing.assert_allclose(scale.mean, [[kept.mean()]], atol=1e-6)
    np.testing.assert_allclose(scale.std, [[kept.std()]], rtol=1e-6)


def test_every_example_in_training_has_a_key_of_its_own(watched):
    keys = np.concatenate([number.reshape(-1, 2) for _, number in watched.told[True]])
    assert len(keys) == 64 * 4 * len(watched.states) == len(np.unique(keys, axis=0))


def test_validation_is_of_the_averaged_weights_and_the_best_are_kept(watched):
    """To the last bit, chunk by chunk of 4 steps; it stops 10 steps later, at the next look.

    Nats of what ignores x are those of a Gaussian.
    """
    history, states = watched.posterior.history, watched.states
    steps, best = history.step, int(np.argmin(history.held_out))
    assert steps == tuple(range(4, 4 * len(states) + 1, 4))
    assert steps[-1] - steps[best] == 12 < steps[-1] < 40
    assert history.held_out == tuple(watched.held_out(state.train.ema) for state in states)
    assert watched.held_out(states[5].train.denoiser) != history.held_out[5]
    assert same(watched.posterior.denoiser, states[best].train.ema)
    held = watched.theta[sorted(rows_of(watched, False))].astype(float)
    kept = watched.theta[sorted(rows_of(watched, True))].astype(float)
    exact = -norm.logpdf(held, kept.mean(), kept.std()).mean()
    np.testing.assert_allclose(history.prior, exact, rtol=1e-5)


def test_sampling_of_a_narrow_posterior_goes_on_to_a_thirtieth_of_its_width(watched):
    """Of 0.03, where it would end at 0.02 for a wide one; candidates are 1.4 apart."""
    posterior = watched.posterior
    assert NARROW / 32 / 1.41 < posterior.sigma_min < NARROW / 29
    assert posterior.steps == round(5.5 * np.log(20.0 / posterior.sigma_min))


@pytest.mark.parametrize(
    "nats, told",
    [
        ((1.0, 2.0, 3.0), None),
        ((2.0, 1.0, 3.0), "The untrained linear fit is returned"),
        ((3.0, 1.0, 2.0), "The untrained linear fit is returned"),
        ((2.0, 3.0, 1.0), "A fit that ignores x is returned"),
        ((3.0, 2.0, 1.0), "A fit that ignores x is returned"),
        ((2.0, 2.0, 3.0), "The untrained linear fit is returned"),
        ((2.0, 3.0, 2.0), "A fit that ignores x is returned"),
        ((3.0, 2.0, 2.0), "A fit that ignores x is returned"),
    ],
)
def test_what_is_best_on_held_out_simulations_is_returned(watched, nats, told):
    """Of a trained fit, an untrained one, and one that ignores x, in this order."""
    trained, untrained, prior = nats
    history = History((1, 2), (1.0, 1.0), (9.0, trained), untrained, prior)
    posterior = dataclasses.replace(watched.posterior, history=history)
    given = checked(watched.theta, watched.x, None, structured=True, invalid="raise")
    kept = np.arange(100)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        best = fit._no_worse_than_the_prior(posterior, given, kept)
    assert [told in str(warning.message) for warning in caught] == ([] if told is None else [True])
    if told is None or "untrained" in told:
        assert best is posterior
        return
    rows = watched.theta[kept].astype(float)
    at = jnp.asarray(rows.mean(axis=0) + rows.std(axis=0), jnp.float32)
    z = best.transform.forward(at)
    np.testing.assert_allclose(z, [1.0], rtol=1e-5)
    assert float(best.denoiser.network.network.shift) == 0 and best.sigma_min == 0.02


def test_simulations_are_transformed_in_parts(monkeypatch):
    """Seven at a time of twenty: the last part is shorter, and none is left out."""
    monkeypatch.setattr(fit, "ROWS_AT_ONCE", 7)
    theta, x = uniform(0, 20)
    chain = Chain.fit(theta, x, Bounds.of((-2 * np.ones(2), 2 * np.ones(2)), theta))
    z, log_det = fit._transformed(chain, theta, x)
    rows = jax.vmap(lambda theta, x: (chain.forward(theta, x), chain.log_det(theta, x)))
    for got, wanted in zip((z, log_det), rows(theta, x), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_batches_too_large_for_the_device_are_drawn_by_the_step(monkeypatch, key):
    """Pairs stay pairs; another step has another batch, the same step the same one."""
    z = np.arange(30.0)[:, None]
    monkeypatch.setattr(fit, "ON_DEVICE", 2 * z.nbytes)
    assert fit._batches(key, z, -z, 64)[0] is z  # just small enough
    monkeypatch.setattr(fit, "ON_DEVICE", 2 * z.nbytes - 1)
    batch = fit._batches(key, z, -z, 64)
    drawn = [batch(step) for step in range(10)]
    for rows, x in drawn:
        assert rows.shape == (64, 1)
        np.testing.assert_array_equal(rows, -x)
    assert set(np.concatenate([rows for rows, _ in drawn]).ravel()) == set(range(30))
    np.testing.assert_array_equal(batch(3)[0], drawn[3][0])
    assert all(np.any(drawn[0][0] != rows) for rows, _ in drawn[1:])
    np.testing.assert_array_equal(fit._batches(jr.clone(key), z, -z, 64)(3)[0], drawn[3][0])


def test_batches_and_their_steps_have_keys_of_their_own(monkeypatch, key):
    """Both fold the step into theirs: of one key, batches and noise would be of one stream."""
    keys = []

    def stop(*_, key, **__):
        keys.append(key)
        raise StopIteration

    monkeypatch.setattr(fit, "train", stop)
    monkeypatch.setattr(fit, "_batches", lambda key, *_: keys.append(key))
    theta, x = uniform(1, 100)
    with pytest.raises(StopIteration):
        fit_posterior(key, theta, x, settings=SMALL)
    of_batches, of_steps = map(jr.key_data, keys)
    assert np.any(of_batches != of_steps)


@pytest.mark.parametrize(
    "part, faster", [(4, 2.0), (9, 3.0), (16, 3.0), (1, 1.0), (0.5, 1.0), (None, 1.0)]
)
def test_fewer_steps_go_with_a_higher_learning_rate(part, faster):
    """By the square root of what they are fewer, three times at most; more steps change nothing."""
    whole = SMALL._replace(steps=7200)
    settings = whole.with_steps(None if part is None else int(7200 / part))
    assert settings.steps == 7200 / (part or 1)
    np.testing.assert_allclose(settings.learning_rate, faster * whole.learning_rate, rtol=1e-12)
    assert settings._replace(steps=0, learning_rate=0) == whole._replace(steps=0, learning_rate=0)


@pytest.mark.parametrize(
    "steps, every", [(5, 1), (40, 4), (400, 40), (1000, 100), (4000, 100), (12_800, 320)]
)
def test_the_validation_loss_is_looked_at_ten_to_forty_times(steps, every):
    assert SMALL._replace(steps=steps).every == every


def test_settings_are_rows_and_what_lies_between_them():
    """Interpolated in logarithms, constant beyond the ends; each number moves one way."""
    for count, row in POSTERIOR_ROWS.items():
        assert default_settings(count) == pytest.approx(row, rel=1e-12)
    assert default_settings(1) == default_settings(1_000)
    assert default_settings(10**8) == default_settings(100_000)
    between = default_settings(round(10**3.5))
    np.testing.assert_allclose(between.weight_decay, np.sqrt(2.0 * 0.2), rtol=1e-3)
    assert between.steps == pytest.approx(np.sqrt(8_400 * 22_400), rel=0.01)
    every = [default_settings(round(count)) for count in np.geomspace(1e3, 1e5, 41).tolist()]
    column = lambda name: np.array([getattr(row, name) for row in every])
    for name in ("weight_decay", "dropout", "learning_rate"):
        assert np.all(np.diff(column(name)) <= 0), name
    for name in ("steps", "width"):
        assert np.all(np.diff(column(name)) >= 0), name


def test_through_an_embedding_there_are_at_most_6000_steps_unless_settings_are_given():
    whole, fewer = (fit._settings(None, 5_000, structured=s) for s in (False, True))
    assert whole == default_settings(5_000)
    assert fewer == whole._replace(steps=6_000, learning_rate=1.4e-3)
    assert fit._settings(whole, 5_000, structured=True) == whole
    assert fit._settings(None, 60, structured=True).steps <= 6_000


@pytest.mark.slow
def test_training_stops_where_the_validation_loss_has_not_fallen_for_long(key, rng):
    """First the two signs are learned, then x, which says nothing, by heart."""
    theta = 0.6 * rng.choice([-1.0, 1.0], (200, 2)) + rng.uniform(-0.1, 0.1, (200, 2))
    theta, x = theta.astype(np.float32), rng.normal(size=(200, 20)).astype(np.float32)
    overfits = {"learning_rate": 0.01, "dropout": 0.0, "batch_size": 100}
    settings = SMALL.with_steps(400)._replace(**overfits)
    posterior = fit_posterior(key, theta, x, prior_support=BOX, settings=settings)
    held_out, step = posterior.history.held_out, posterior.history.step
    best = int(np.argmin(held_out))
    assert 0 < best < len(held_out) - 1
    assert (settings.patience, settings.every) == (100, 40)
    assert step[-1] - step[best] == 120 and step[-1] < 400


def test_training_stops_as_soon_as_its_patience_is_over():
    """A quarter of eight steps after the lowest loss, of which the first is kept."""
    average = lambda step: TrainState(step, step, None, jnp.array(step), jnp.array(0))
    chunks = ((average(step), jnp.ones(1)) for step in range(1, 9))
    losses = dict(zip(range(1, 9), (3.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0), strict=True))
    start, settings = FitState.start(average(0), 3.0, 4.0, 7), SMALL._replace(steps=8)
    how = {"progress": False, "callback": None}
    last = until_stale(chunks, start, losses.__getitem__, settings, **how)
    assert last.history.step == (1, 2, 3, 4) and last.best == 2
    assert last.history.train == (1.0,) * 4


def test_the_average_of_the_lowest_validation_loss_is_kept():
    """Also against the untrained fit, which is a candidate."""
    average = lambda step: TrainState(-step, float(step), None, jnp.array(step), jnp.array(0))
    state = FitState.start(average(0), 3.5, 4.0, 7)
    kept = []
    for step, loss in zip(range(10, 60, 10), (3.9, 3.2, 3.0, 3.1, 3.3), strict=True):
        state = state.then(average(step), jnp.ones(10), loss)
        kept.append((state.best, state.stale))
    assert kept == [(0.0, 0), (20.0, 0), (30.0, 0), (30.0, 10), (30.0, 20)]
    assert state.history.held_out == (3.9, 3.2, 3.0, 3.1, 3.3) and state.history.untrained == 3.5
    with pytest.raises(ValueError, match="validation loss is nan"):
        state.then(average(60), jnp.ones(10), float("nan"))


@pytest.mark.parametrize("on_device", [True, False])
@pytest.mark.slow
def test_resumed_gives_the_same_bits(on_device, key, monkeypatch):
    """Also where the data are fetched step by step."""
    monkeypatch.setattr(fit, "ON_DEVICE", 2**30 if on_device else 0)
    theta, x = uniform(4, 200)
    states = []
    given = {"prior_support": BOX, "settings": SMALL}
    whole = fit_posterior(key, theta, x, callback=states.append, **given)
    resumed = fit_posterior(jr.clone(key), theta, x, state=states[len(states) // 2], **given)
    assert same(whole, resumed) and whole.history == resumed.history
    with pytest.raises(ValueError, match="state is of other simulations"):
        fit_posterior(jr.clone(key), theta, x + 1, state=states[0], **given)


@pytest.mark.slow
def test_an_embedding_makes_structured_observations_a_vector(key, tmp_path):
    """Sets of 6 draws through a mean; saved and loaded with it."""
    rng = np.random.default_rng(5)
    theta = rng.uniform(-1, 1, (200, 2)).astype(np.float32)
    x = (theta[:, None] + rng.normal(size=(200, 6, 2))).astype(np.float32)
    mean = lambda x: x.mean(axis=0)
    given = {"prior_support": BOX, "embedding": mean}
    posterior = fit_posterior(key, theta, x, settings=SMALL.with_steps(4), **given)
    draws = posterior.sample(jr.clone(key), jnp.asarray(x[0]), 3)
    again = posterior.sample(jr.clone(key), jnp.asarray(x[0, ::-1]), 3)
    np.testing.assert_allclose(draws, again, rtol=1e-4)  # the order of a set says nothing
    posterior.save(tmp_path / "set")
    with pytest.raises(ValueError, match="with an embedding"):
        type(posterior).load(tmp_path / "set")
    loaded = type(posterior).load(tmp_path / "set", embedding=mean)
    np.testing.assert_array_equal(loaded.sample(jr.clone(key), jnp.asarray(x[0]), 3), draws)


@pytest.mark.slow
def test_a_network_of_your_own(key):
    theta, x = uniform(6, 200)
    network = edm.MLP(2, 2, width=8, depth=1, key=jr.clone(key))
    posterior = fit_posterior(key, theta, x, network=network, settings=SMALL.with_steps(2))
    assert isinstance(posterior.denoiser.network, edm.MLP)


class _Gaussian(eqx.Module):
    """The exact network of z ~ N(0, std^2), one std a feature."""

    std: jax.Array

    def __call__(self, z, c_noise, x, *, key=None):
        sigma = jnp.exp(4 * c_noise)
        c = edm.EDMPreconditioning(1.0)(sigma)
        return z / c.c_in * (self.std**2 / (self.std**2 + sigma**2) - c.c_skip) / c.c_out


def held_out_of(key, std, n=2000):
    z_key, key = jr.split(key)
    z = jr.normal(z_key, (n, len(std))) @ jnp.diag(std)
    return HeldOut.draw(
        key, z, jnp.zeros((n, 1)), jnp.full(n, 0.7), LikelihoodNoise(1e-3, 100.0)
    ), z


def test_the_held_out_loss_is_the_negative_log_likelihood(key):
    """Of an exact denoiser: the integral over the noise against the Gaussian's own density."""
    std = jnp.array([1.0, 0.2])
    held_out, z = held_out_of(key, std)
    denoiser = edm.Denoiser(_Gaussian(std), edm.EDMPreconditioning(1.0))
    exact = -norm.logpdf(z, 0, std).sum(axis=1) - 0.7
    # Over eight seeds the error is 0.014 +- 0.031, the largest 0.056; the whole gain is 1.14.
    np.testing.assert_allclose(held_out(denoiser), exact.mean(), atol=0.14)
    untrained = edm.Denoiser(lambda z, *_, key=None: 0 * z, edm.EDMPreconditioning(1.0))
    normal = -norm.logpdf(z, 0, 1).sum(axis=1).mean() - 0.7
    np.testing.assert_allclose(held_out(untrained), normal, rtol=1e-12)


@pytest.mark.parametrize("std", [0.1, 0.05])
def test_sampling_ends_below_the_posterior_width(std, key):
    """By a thirtieth: (1/32)^2 of the variance is 0.1 %; levels are 1.4 apart."""
    stds = jnp.array([1.0, std])
    held_out, _ = held_out_of(key, stds)
    denoiser = edm.Denoiser(_Gaussian(stds), edm.EDMPreconditioning(1.0))
    sigma_min = held_out.smallest_sigma(denoiser, 1e-3)
    assert std / 32 / 1.41 < sigma_min < std / 29


def test_noise_laws_have_the_densities_they_claim():
    r"""Shares of the mass below a level, by quadrature of 1/(1 + sigma^2) over ln sigma."""
    law = LikelihoodNoise(1e-2, 50.0)
    below = lambda top: quad(lambda log: 1 / (1 + np.exp(2 * log)), np.log(1e-2), np.log(top))[0]
    np.testing.assert_allclose(law.mass(), below(50.0), rtol=1e-9)
    cuts = np.array([0.03, 0.5, 3.0])
    share = np.array([below(cut) for cut in cuts]) / below(50.0)
    np.testing.assert_allclose(jax.vmap(law.from_variate)(share), cuts, rtol=1e-8)
    mixed = jax.vmap(PosteriorNoise(0.25, law).from_variate)
    np.testing.assert_allclose(mixed(share / 4), cuts, rtol=1e-8)
    z = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])  # of the rest ln sigma is N(-1.2, 1.2^2)
    np.testing.assert_allclose(mixed(0.25 + 0.75 * norm.cdf(z)), np.exp(-1.2 + 1.2 * z), rtol=1e-8)
    ends = mixed(jnp.array([0.0, 0.25, 1.0]))  # no draw is infinite, nor without noise
    assert ends[0] == pytest.approx(1e-2) and np.all((ends > 0) & (ends < 1e6))
    assert PosteriorNoise() == PosteriorNoise(0.35, LikelihoodNoise(1e-3, 20.0))


def test_levels_of_validation_are_those_of_the_law_each_once_and_in_no_order(key):
    """So that a row is not always seen at low noise, and the mass is that of the bound."""
    held_out, _ = held_out_of(key, jnp.ones(2))
    count = held_out.sigmas.size
    levels = jax.vmap(LikelihoodNoise(1e-3, 100.0).from_variate)((np.arange(count) + 0.5) / count)
    np.testing.assert_allclose(np.sort(held_out.sigmas, axis=None), levels, rtol=1e-12)
    ranks = np.argsort(np.argsort(held_out.sigmas, axis=None)).reshape(held_out.sigmas.shape)
    for axis, size in enumerate(ranks.shape):  # of `size` means, each of count / size ranks
        means = ranks.mean(axis=1 - axis) / count - 0.5
        assert np.abs(means).max() < 5.5 * np.sqrt(size / 12 / count)  # 2,009: once in 10^4 seeds
        line = np.corrcoef(np.arange(size), means)[0, 1]
        assert abs(line) < 4 / np.sqrt(size - 1) or size < 20
    mass = 2 * quad(lambda log: 1 / (1 + np.exp(2 * log)), np.log(1e-3), np.log(100.0))[0]
    np.testing.assert_allclose(held_out.mass, mass, rtol=1e-9)


def test_the_batch_loss_is_the_stratified_denoising_loss(key):
    """By hand, level by level, one from each part of the noise distribution."""
    law, n = PosteriorNoise(), 16
    keys = jr.split(key, 3)
    z, x = jr.normal(keys[0], (n, 2)), jr.normal(keys[1], (n, 3))
    network = edm.MLP(2, 3, width=8, depth=1, key=keys[2])
    network = eqx.tree_at(lambda net: net.output.bias, network, jnp.array([0.3, -0.2]))
    denoiser = edm.Denoiser(network, edm.EDMPreconditioning(1.0))
    loss_key = jr.fold_in(key, 7)
    got = StratifiedLoss(law)(denoiser, z, x, key=loss_key)
    level_key, noise_key, _ = jr.split(jr.clone(loss_key), 3)
    strata = (jnp.arange(n, dtype=float) + jr.uniform(level_key, (n,))) / n
    sigmas = [law.from_variate(r) for r in strata]
    noise = jr.normal(noise_key, z.shape)
    by_hand = [
        np.mean((denoiser(z[i] + s * noise[i], s, x[i]) - z[i]) ** 2) * (1 + 1 / s**2)
        for i, s in enumerate(sigmas)
    ]
    np.testing.assert_allclose(got, np.mean(by_hand), rtol=1e-10)


def test_a_noise_law_made_from_normal_draws_is_stratified_too():
    law = edm.LogNormal(-0.7, 1.3)
    r = jnp.asarray((np.arange(1000) + 0.5) / 1000)
    logs = np.log(jax.vmap(law.from_uniform)(r))
    np.testing.assert_allclose([logs.mean(), logs.std()], [-0.7, 1.3], rtol=0.01)


def hundred_features(seed, n):
    """theta ~ N(0, I), x = A theta + 3 noise: 100 features of two parameters."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(9).normal(size=(2, 100))
    theta = rng.normal(size=(n, 2))
    x = theta @ mix + 3 * rng.normal(size=(n, 100))
    return theta.astype(np.float32), x.astype(np.float32)


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_few_simulations_of_many_features_are_not_overconfident(key):
    """150 simulations of 100 features: 90 % intervals once covered 34 %."""
    fit_key, key = jr.split(key)
    with warnings.catch_warnings():  # whether training helps at all here depends on the machine
        warnings.simplefilter("ignore", PoorFit)
        posterior = fit_posterior(fit_key, *hundred_features(0, 150), steps=100)
    theta, x = hundred_features(77, 200)
    draw = lambda key, x: posterior.sample(key, x, 100)
    draws = np.asarray(jax.jit(jax.vmap(draw))(jr.split(key, 200), x))
    low, high = np.quantile(draws, [0.05, 0.95], axis=1)
    assert 0.8 < np.mean((low < theta) & (theta < high)) < 0.97


@pytest.mark.slow
def test_where_held_out_simulations_prefer_the_prior_it_is_returned(key):
    """A Gaussian fitted to theta alone, which is also what the prior's nats are of."""
    rng = np.random.default_rng(3)
    theta = rng.normal(2.0, 3.0, (120, 1)).astype(np.float32)
    x = rng.normal(size=(120, 40)).astype(np.float32)
    fit_key, key = jr.split(key)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PoorFit)
        posterior = fit_posterior(fit_key, theta, x, settings=SMALL.with_steps(2))
    exact = np.log(3.0) + 0.5 * np.log(2 * np.pi * np.e)
    np.testing.assert_allclose(posterior.history.prior, exact, atol=0.5)  # of 30 held out
    history = posterior.history._replace(held_out=(9.0,), untrained=8.0, prior=5.0)
    worse = dataclasses.replace(posterior, history=history)
    given = checked(theta, x, None, structured=False, invalid="raise")
    with pytest.warns(PoorFit, match="A fit that ignores x is returned"):
        prior = fit._no_worse_than_the_prior(worse, given, np.arange(120))
    draws = np.asarray(prior.sample(key, jnp.asarray(x[0]), 4000))
    np.testing.assert_allclose(draws.mean(), theta.mean(), atol=4 * 3 / np.sqrt(4000))
    np.testing.assert_allclose(draws.std(), theta.std(), rtol=4 / np.sqrt(8000))
    untrained = dataclasses.replace(worse, history=history._replace(untrained=4.0))
    with pytest.warns(PoorFit, match="The untrained linear fit is returned"):
        assert fit._no_worse_than_the_prior(untrained, given, np.arange(120)) is untrained


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_draws_do_not_pile_up_on_a_bound(key):
    """Where the posterior lies beside a bound, as with few simulations of a hard problem."""
    task = tasks.slcp()
    data_key, fit_key, draw_key = jr.split(key, 3)
    theta, x = tasks.draw(data_key, task, 1000)
    posterior = fit_posterior(fit_key, theta, x, prior_support=task.prior_support, steps=600)
    _, x_o = tasks.draw(jr.fold_in(data_key, 1), task, 20)
    draw = lambda key, x: posterior.sample(key, x, 200)
    draws = np.asarray(jax.jit(jax.vmap(draw))(jr.split(draw_key, 20), x_o))
    low, high = (np.asarray(side) for side in task.prior_support)
    margin = 1e-3 * (high - low)
    # A uniform posterior has 0.2 % of each of five parameters there; one that piles up, a third.
    assert np.mean(np.any((draws < low + margin) | (draws > high - margin), axis=2)) < 0.05


def test_messages(key, unchecked):
    theta, x = uniform(7, 60)
    with pytest.raises(ValueError, match="at least 50 simulations, got 49"):
        fit_posterior(jr.clone(key), theta[:49], x[:49])
    with pytest.raises(ValueError, match=r"\(60, 2\) and \(59, 2\)"):
        fit_posterior(jr.clone(key), theta, x[:59])
    with pytest.raises(ValueError, match="pass embedding="):
        fit_posterior(jr.clone(key), theta, x[:, None])
    with pytest.raises(ValueError, match="x is constant in 1 of 2 columns"):
        fit_posterior(jr.clone(key), theta, x * np.array([1, 0], np.float32))
    with pytest.raises(ValueError, match="theta leaves prior_support"):
        fit_posterior(jr.clone(key), 2 * theta, x, prior_support=BOX)
    with pytest.raises(
        ValueError, match=r"x is not finite in 1 of 60 simulations \(first in row 3\)"
    ):
        fit_posterior(jr.clone(key), theta, np.where(x == x[3, 1], np.nan, x))
    with pytest.raises(TypeError, match="epochs"):
        fit_posterior(jr.clone(key), theta, x, epochs=3)
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        LikelihoodNoise(2.0, 1.0)
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        LikelihoodNoise(0.0, 1.0)
    with pytest.raises(ValueError, match="0 < share < 1"):
        PosteriorNoise(share=1.0)
    with pytest.raises(ValueError, match="0 < share < 1"):
        PosteriorNoise(share=0.0)


def test_an_embedding_that_keeps_a_state_is_refused_by_name(key):
    norm = eqx.nn.BatchNorm(2, "batch", mode="batch")
    embedding = eqx.nn.Sequential([norm, eqx.nn.Linear(2, 2, key=jr.key(1))])
    x = np.random.default_rng(0).normal(size=(60, 2))
    for refused in (
        lambda: fit_posterior(key, x, x + 1, embedding=embedding, steps=1, progress=False),
        lambda: edm.networks.Embedded(lambda *_, key: 0, embedding),
    ):
        with pytest.raises(TypeError, match="embedding has a layer that keeps a state.*GroupNorm"):
            refused()


def test_more_simulations_go_on_from_the_weights_of_an_embedded_fit(key):
    """The weights that the message names are those that the next fit starts from."""
    theta, x, _ = linear_gaussian(0, 400, float)
    options = {"settings": SMALL, "progress": False}
    kept, embedding = [], eqx.nn.Linear(3, 2, key=jr.key(1))
    first = lambda: fit_posterior(
        jr.clone(key), theta[:300], x[:300], embedding=embedding, callback=kept.append, **options
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PoorFit)
        first()
        with pytest.raises(ValueError, match="network=state.best.network.network and embedding="):
            fit_posterior(jr.clone(key), theta, x, embedding=embedding, state=kept[-1], **options)
        trained, seen = kept[-1].best.network, []
        given = {"network": trained.network, "embedding": trained.embedding}
        fit_posterior(jr.clone(key), theta, x, callback=seen.append, steps=1, **given, **options)
    before, after = (tree.embedding.weight for tree in (trained, seen[0].train.denoiser.network))
    # One step of Adam moves a weight by the learning rate at most.
    np.testing.assert_allclose(after, before, atol=0.02)
    assert np.max(np.abs(after - embedding.weight)) > 0


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        ({"embedding": SetEmbedding}, TypeError, "embedding must be an instance, got the class"),
        ({"embedding": lambda x: (x, x)}, TypeError, "embedding must return one vector, got a tup"),
        ({"embedding": lambda x: np.sort(x)}, TypeError, "embedding must be written in JAX"),
        ({"sigma_dist": 0.5}, TypeError, "sigma_dist must be an instance"),
        ({"settings": SMALL._replace(learning_rate=-1.0)}, ValueError, "settings.learning_rate"),
        ({"settings": SMALL._replace(learning_rate=np.nan)}, ValueError, "settings.learning_rate"),
        ({"settings": SMALL._replace(weight_decay="1")}, TypeError, "settings.weight_decay must"),
    ],
)
def test_choices_that_cannot_be_are_refused_by_name(change, kind, told, key, unchecked):
    with pytest.raises(kind, match=told):
        fit_posterior(key, *uniform(7, 60), **change, progress=False)


def test_columns_of_unlike_spread_before_an_embedding_of_ones_own_warn():
    theta, x = uniform(7, 60)
    embedding = eqx.nn.Linear(2, 2, key=jr.key(1))
    signs = np.resize([-1.0, 1.0], (60, 1)) * np.array([1.0, 1000.0])  # as unlike as may be
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit._scaled(x, np.arange(50), embedding)
        fit._scaled(signs, np.arange(50), embedding)
    with pytest.warns(WideScales, match="factor of more than 1000,"):
        fit._scaled(signs * np.array([1.0, 1.001]), np.arange(50), embedding)
    with pytest.warns(WideScales, match="divide each column by its standard deviation"):
        fit._scaled(x * np.float32([1, 1e4]), np.arange(50), embedding)
