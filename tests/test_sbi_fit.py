"""Fits that can be checked: a linear-Gaussian model, invariances, early stopping, resuming.

About 90 seconds on one core; nearly all of it is compilation.
"""

import dataclasses
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.stats import norm

import edm_tutorial as edm
from edm_tutorial.sbi import PoorFit, default_settings, fit, fit_posterior, tasks
from edm_tutorial.sbi.early_stopping import FitState
from edm_tutorial.sbi.fit import StratifiedLoss, optimizer_of
from edm_tutorial.sbi.noise_levels import HeldOut, LikelihoodNoise, PosteriorNoise
from edm_tutorial.sbi.settings import ROWS
from edm_tutorial.sbi.simulations import checked
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


def test_weight_decay_falls_over_half_the_steps():
    """Without a gradient, a step shrinks the weights by learning rate times decay."""
    settings = SMALL._replace(steps=100, weight_decay=1.0)
    optimizer = optimizer_of(settings)
    weights = jnp.ones(1)
    state = optimizer.init(weights)
    shrunk = []
    for _ in range(90):
        with jax.numpy_dtype_promotion("standard"):  # Adam mixes integer counts and floats
            updates, state = optimizer.update(jnp.zeros(1), state, weights)
        shrunk.append(-float(updates[0]) / settings.learning_rate)
    steps = np.arange(90)
    rate = np.minimum(steps / 2, 0.5 + 0.5 * np.cos(np.pi * (steps - 2) / 98))
    np.testing.assert_allclose(shrunk, rate * 3e-3 ** np.minimum(steps / 50, 1), rtol=1e-5)


def test_settings_are_rows_and_what_lies_between_them():
    """Interpolated in logarithms, constant beyond the ends; each number moves one way."""
    for count, row in ROWS.items():
        assert default_settings(count) == pytest.approx(row, rel=1e-12)
    assert default_settings(1) == default_settings(1_000)
    assert default_settings(10**8) == default_settings(100_000)
    between = default_settings(round(10**3.5))
    np.testing.assert_allclose(between.weight_decay, np.sqrt(2.0 * 0.2), rtol=1e-3)
    assert between.steps == pytest.approx(np.sqrt(8_400 * 12_800), rel=0.01)
    every = [default_settings(round(count)) for count in np.geomspace(1e3, 1e5, 41).tolist()]
    column = lambda name: np.array([getattr(row, name) for row in every])
    for name in ("weight_decay", "dropout", "learning_rate"):
        assert np.all(np.diff(column(name)) <= 0), name
    for name in ("steps", "width"):
        assert np.all(np.diff(column(name)) >= 0), name


@pytest.mark.slow
def test_training_stops_where_the_validation_loss_has_not_fallen_for_long(key):
    """A learning rate that rises the loss again: the result is the minimum of the history."""
    theta, _ = uniform(3, 200)  # of two signs that x does not tell, which no line can say
    x = theta**2 + np.float32(0.1) * np.random.default_rng(3).normal(size=(200, 2)).astype("f")
    settings = SMALL.with_steps(400)._replace(learning_rate=0.03, dropout=0.0)
    states = []
    given = {"prior_support": BOX, "settings": settings}
    posterior = fit_posterior(key, theta, x, callback=states.append, **given)
    held_out, step = posterior.history.held_out, posterior.history.step
    best = int(np.argmin(held_out))
    assert 0 < best < len(held_out) - 1
    assert step[-1] - step[best] == settings.patience == 100 and step[-1] < 400


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


@pytest.mark.parametrize("std", [0.05, 0.02])
def test_sampling_ends_below_the_posterior_width(std, key):
    """By a fourteenth: (1/14)^2 of the variance is 0.5 %; levels are 1.4 apart."""
    stds = jnp.array([1.0, std])
    held_out, _ = held_out_of(key, stds)
    denoiser = edm.Denoiser(_Gaussian(stds), edm.EDMPreconditioning(1.0))
    sigma_min = held_out.smallest_sigma(denoiser, 1e-3)
    assert std / 14 / 1.41 < sigma_min < std / 13


@pytest.mark.slow
def test_noise_laws_have_the_densities_they_claim():
    r = (np.arange(100_000) + 0.5) / 100_000
    law = LikelihoodNoise(1e-2, 50.0)
    sigma = np.asarray(jax.vmap(law.from_variate)(r))
    weight = lambda log: 1 / (1 + np.exp(2 * log))
    grid = np.linspace(np.log(1e-2), np.log(50.0), 20_001)
    mass = np.trapezoid(weight(grid), grid)
    np.testing.assert_allclose(law.mass(), mass, rtol=1e-7)
    for cut in (0.03, 0.5, 3.0):
        part = grid[grid < np.log(cut)]
        share = np.trapezoid(weight(part), part) / mass
        np.testing.assert_allclose(np.mean(sigma < cut), share, atol=1e-3)
    mixed = np.log(jax.vmap(PosteriorNoise(0.25, law).from_variate)(r))
    quarter = jax.vmap(law.from_variate)(4 * r[:25_000])
    np.testing.assert_allclose(np.exp(mixed[:25_000]), quarter, rtol=1e-9)
    np.testing.assert_allclose(
        [mixed[25_000:].mean(), mixed[25_000:].std()], [-1.2, 1.2], atol=1e-2
    )


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
def test_few_simulations_of_many_features_are_not_overconfident(key):
    """150 simulations of 100 features: 90 % intervals once covered 34 %."""
    fit_key, key = jr.split(key)
    with pytest.warns(PoorFit, match="untrained linear fit"):
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
    with pytest.raises(ValueError, match="0 < share < 1"):
        PosteriorNoise(share=1.0)


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
