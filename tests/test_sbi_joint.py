"""Every conditional by one network: against joint Gaussians, whose conditionals are known."""

import dataclasses
import json
import pickle
import warnings
import zlib
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats
from scipy.integrate import trapezoid
from scipy.special import expit

import edm_tutorial as edm
from edm_tutorial import sbi
from edm_tutorial.losses import weighted_error
from edm_tutorial.networks import TokenTransformer
from edm_tutorial.sbi.early_stopping import FitState, History
from edm_tutorial.sbi.joint import fit as joint_fit, hidden
from edm_tutorial.sbi.joint.graph import neighbours
from edm_tutorial.sbi.joint.network import INDEPENDENT, GaussianPreconditioning, JointNetwork, Told
from edm_tutorial.sbi.settings import JOINT_ROWS
from edm_tutorial.sbi.transforms.bounds import Bounds
from edm_tutorial.sbi.transforms.chain import Chain
from edm_tutorial.sbi.transforms.standardize import Standardizer

EDM1 = edm.EDMPreconditioning(1.0)
COUNT, NUMBERS = 2, 5
MEAN, STD = np.arange(5.0), 1 + np.arange(5.0) / 2
SMALL = sbi.Settings(2, 64, 1e-3, 0.1, 16, 1, 0.0)


def correlation(rng, n=NUMBERS):
    root = rng.normal(size=(n, n))
    cov = root @ root.T / n + 0.2 * np.eye(n)
    width = np.sqrt(np.diag(cov))
    return cov / np.outer(width, width)


def exact(rng, *, bounds=None, x_shape=(3,)):
    """A joint Gaussian in standardised numbers: an untrained network whose correlation is known."""
    corr = correlation(rng)
    transformer = TokenTransformer(range(NUMBERS), 2, width=8, heads=2, depth=1, key=jr.key(0))
    mask = jnp.ones((NUMBERS, NUMBERS), bool)
    network = JointNetwork(GaussianPreconditioning(jnp.asarray(corr)), transformer, mask, COUNT)
    free = jnp.full(NUMBERS, jnp.inf)
    box = Bounds(-free, free, jnp.ones(NUMBERS)) if bounds is None else bounds
    transform = Chain((box, Standardizer(jnp.asarray(MEAN), jnp.asarray(STD))))
    denoiser = edm.Denoiser(network, EDM1)
    return sbi.Joint(denoiser, transform, 5e-3, 40.0, COUNT, x_shape), corr


def random_weights(network, key):
    """The same network with a transformer that does something."""
    transformer = network.transformer
    output = 0.3 * jr.normal(key, transformer.output.shape)
    return eqx.tree_at(lambda net: net.transformer.output, network, output)


def conditional(corr, known, z):
    """Mean and covariance of the unknown numbers of N(0, corr), given the known z."""
    u, k = np.flatnonzero(~known), np.flatnonzero(known)
    gain = corr[np.ix_(u, k)] @ np.linalg.inv(corr[np.ix_(k, k)])
    return gain @ z[k], corr[np.ix_(u, u)] - gain @ corr[np.ix_(k, u)]


def test_untrained_it_is_the_denoiser_of_every_conditional_of_a_gaussian(rng):
    """D(v) = m + S (S + sigma^2)^-1 (v - m), with the mean m and covariance S given the known."""
    joint, corr = exact(rng)
    for _ in range(25):
        known = rng.random(NUMBERS) < 0.5
        known[rng.integers(NUMBERS)] = False
        z, sigma = rng.normal(size=NUMBERS), 10 ** rng.uniform(-2, 1.5)
        given = joint.given(MEAN + STD * z, known)
        mean, cov = conditional(corr, known, z)
        v = mean + rng.normal(size=len(mean)) * np.sqrt(1 + sigma**2)
        pull = cov @ np.linalg.inv(cov + sigma**2 * np.eye(len(mean)))
        found = given.denoiser(jnp.asarray(v), sigma)
        np.testing.assert_allclose(found, mean + pull @ (v - mean), atol=1e-11)


def test_draws_and_densities_of_posterior_likelihood_and_any_other(rng, key):
    joint, corr = exact(rng)
    z = rng.normal(size=NUMBERS)
    values = MEAN + STD * z
    some = np.array([True, False, True, False, False])
    every = [
        (joint.posterior(values[COUNT:]), np.arange(NUMBERS) >= COUNT),
        (joint.likelihood(values[:COUNT]), np.arange(NUMBERS) < COUNT),
        (joint.given(values, some), some),
    ]
    for i, (given, known) in enumerate(every):
        mean, cov = conditional(corr, known, z)
        mean, cov = MEAN[~known] + STD[~known] * mean, cov * np.outer(STD[~known], STD[~known])
        draws = np.asarray(given.sample(jr.fold_in(key, i), 4000))
        off = (draws.mean(0) - mean) / np.sqrt(np.diag(cov) / 4000)
        assert np.max(np.abs(off)) < 4.5  # 4 standard errors, and some for the solver
        np.testing.assert_allclose(np.cov(draws.T), cov, atol=0.12 * np.max(np.diag(cov)))
        points = draws[:20]
        truth = stats.multivariate_normal(mean, cov).logpdf(points)
        # What is left is the solver's error, far below that in the tails.
        np.testing.assert_allclose(given.log_prob(points), truth, atol=0.02)
    np.testing.assert_allclose(given.log_prob(points[0]), truth[0], atol=0.02)


def test_a_bound_adds_its_log_determinant(rng):
    """The density of a parameter between -1 and 2, given all else, integrates to 1."""
    low, high = np.full(NUMBERS, -np.inf), np.full(NUMBERS, np.inf)
    low[0], high[0] = -1.0, 2.0
    bounds = Bounds(jnp.asarray(low), jnp.asarray(high), jnp.full(NUMBERS, 0.1))
    joint, _ = exact(rng, bounds=bounds)
    given = joint.given(MEAN + 0.1, np.arange(NUMBERS) > 0)
    grid = -1 + 3 * expit(np.linspace(-25, 25, 801))[:, None]  # fine towards the bounds
    density = np.exp(np.asarray(given.log_prob(grid))).ravel()
    # The solver's error in the tails, and that of the trapezoidal rule.
    assert abs(trapezoid(density, grid[:, 0]) - 1) < 0.02
    assert given.log_prob(np.array([2.1])) == -np.inf
    with pytest.raises(ValueError, match="inside prior_support"):
        joint.likelihood(np.array([2.1, 0.0]))


def told(rng, *, missing=0):
    known = rng.random(NUMBERS) < 0.5
    known[-1] = False
    present = np.ones(NUMBERS, bool)
    present[:missing] = False
    return Told(jnp.asarray(rng.normal(size=NUMBERS)), jnp.asarray(known), jnp.asarray(present))


def network(rng, key):
    return random_weights(exact(rng)[0].denoiser.network, key)


def test_what_is_not_known_may_be_nan_and_the_noise_of_the_known_does_not_matter(rng, key):
    """To the last bit."""
    net, given = eqx.filter_jit(network(rng, key)), told(rng)
    x, c_noise = jnp.asarray(rng.normal(size=NUMBERS)), jnp.asarray(0.2)
    found = net(x, c_noise, given)
    nan = given._replace(values=jnp.where(given.known, given.values, jnp.nan))
    np.testing.assert_array_equal(net(x, c_noise, nan), found)
    other = jnp.where(given.known, 1e6, x)
    np.testing.assert_array_equal(net(other, c_noise, given), found)
    np.testing.assert_array_equal(found[given.known], 0)
    slope = jax.jacobian(lambda x: net(x, c_noise, nan))(x)
    assert np.all(np.isfinite(slope)) and np.all(slope[:, given.known] == 0)


def test_what_is_missing_reaches_nothing_and_nothing_is_asked_of_it(rng, key):
    net, given = eqx.filter_jit(network(rng, key)), told(rng, missing=2)
    x, c_noise = jnp.asarray(rng.normal(size=NUMBERS)), jnp.asarray(0.2)
    found = net(x, c_noise, given)
    gone = given._replace(values=given.values.at[:2].set(jnp.nan))
    np.testing.assert_array_equal(net(x.at[:2].set(99.0), c_noise, gone), found)
    np.testing.assert_array_equal(found[:2], 0)


def test_a_missing_number_leaves_the_marginal_of_the_others(rng):
    """For a Gaussian it is the same whether a number is marginalised or was never there."""
    net = exact(rng)[0].denoiser.network
    given = told(rng, missing=1)
    smaller = GaussianPreconditioning(net.preconditioning.correlation[1:, 1:])
    t, sigma = jnp.asarray(rng.normal(size=NUMBERS)).at[0].set(0.0), jnp.asarray(0.7)
    less = Told(given.values[1:], given.known[1:], given.present[1:])
    for one, other in zip(
        net.preconditioning(t, sigma, given), smaller(t[1:], sigma, less), strict=True
    ):
        np.testing.assert_allclose(one[1:], other, atol=1e-12)


@pytest.mark.usefixtures("quiet")
def test_groups_that_do_not_depend_on_each_other_never_meet(rng, key):
    """The Jacobian across two groups is exactly zero, for weights that are anything but."""
    theta, x = rng.normal(size=(200, 2)), rng.normal(size=(200, 2))
    x += theta  # x[0] from theta[0], x[1] from theta[1], and all correlated by chance
    depends = np.zeros((4, 4), bool)
    depends[2, 0] = depends[3, 1] = True
    fit_key, weight_key = jr.split(key)
    fit = sbi.fit_joint(fit_key, theta, x, depends=depends, settings=SMALL, progress=False)
    net = random_weights(fit.denoiser.network, weight_key)
    given = Told(jnp.zeros(4), jnp.zeros(4, bool), jnp.ones(4, bool))
    slope = jax.jacobian(lambda x: net(x, jnp.asarray(0.1), given))(jnp.arange(4.0))
    together = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]], bool)
    np.testing.assert_array_equal(slope != 0, together)


def test_neighbours_are_parents_children_and_parents_of_a_common_child():
    """theta[0] -> x[0] <- theta[1] -> theta[2] -> x[1]."""
    depends = np.zeros((5, 5), bool)
    depends[3, [0, 1]] = depends[2, 1] = depends[4, 2] = True
    edges = [(0, 3), (1, 3), (0, 1), (1, 2), (2, 4)]
    truth = np.eye(5, dtype=bool)
    for i, j in edges:
        truth[i, j] = truth[j, i] = True
    np.testing.assert_array_equal(neighbours(depends, 3, 5), truth)
    np.testing.assert_array_equal(neighbours(None, 3, 5), True)


@pytest.mark.parametrize("kind", range(4))
def test_what_each_game_hides(kind, key):
    known = np.asarray(hidden.draw_known(key, jnp.full(4000, kind), COUNT, NUMBERS))
    theta = np.arange(NUMBERS) < COUNT
    if kind == hidden.ANY:
        assert not known.all(axis=1).any()
        # Shown with probability 1/2, but for the one in five that is always hidden.
        np.testing.assert_allclose(known.mean(axis=0), 0.4, atol=4 * 0.5 / np.sqrt(4000))
        assert 0.2 < np.corrcoef(known[:, 0], known[:, 1:].mean(axis=1))[0, 1]  # one p a row
    else:
        truth = {hidden.POSTERIOR: ~theta, hidden.LIKELIHOOD: theta, hidden.EVERYTHING: 0 * theta}
        np.testing.assert_array_equal(known, np.tile(truth[kind], (4000, 1)))


def test_settings_are_those_of_training_with_shares():
    whole = joint_fit._settings(None, 10_000, None)
    assert whole == sbi.JointSettings(sbi.default_settings(10_000, JOINT_ROWS))
    assert joint_fit._settings(SMALL, 10_000, None) == sbi.JointSettings(SMALL)
    given = sbi.JointSettings(SMALL, (1.0, 0.0, 0.0, 0.0))
    assert joint_fit._settings(given, 10_000, 7) == given._replace(training=SMALL.with_steps(7))
    with pytest.raises(TypeError, match="settings must be an instance of Settings"):
        joint_fit._settings({"steps": 7}, 10_000, None)


def test_games_are_played_in_their_shares(key):
    kinds = np.asarray(hidden.draw_kinds(key, 200, (0.5, 0.25, 0.0, 0.25)))
    np.testing.assert_array_equal(np.bincount(kinds, minlength=4), [100, 50, 0, 50])
    assert np.any(np.diff(kinds) < 0)  # in no order, as noise levels are in order


def test_a_question_that_was_never_asked_in_training_warns(rng):
    """The posterior with a number missing, and one parameter given the rest: of the last kind."""
    joint, _ = exact(rng)
    only = dataclasses.replace(joint, shares=(1.0, 0.0, 0.0, 0.0))
    x_o, theta = np.zeros(NUMBERS - COUNT), np.zeros(COUNT)
    part = np.where(np.arange(len(x_o)) == 0, np.nan, x_o)
    nothing, one = np.zeros(NUMBERS, bool), np.arange(NUMBERS) != 1
    questions = [
        (1, lambda fit: fit.likelihood(theta)),
        (2, lambda fit: fit.given(np.zeros(NUMBERS), nothing)),
        (3, lambda fit: fit.posterior(part)),
        (3, lambda fit: fit.given(np.zeros(NUMBERS), one)),
    ]
    for _, ask in questions:
        with pytest.warns(sbi.UntrainedQuestion, match=r"shares .* are \(1.0, 0.0, 0.0, 0.0\)"):
            ask(only)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        only.posterior(x_o)
        for kind, ask in questions:
            for asked in {kind, 3}:
                ask(dataclasses.replace(joint, shares=tuple(np.eye(4)[asked].tolist())))


def test_the_loss_is_the_mean_error_of_what_is_hidden(rng, key):
    """By hand, from the keys that the loss splits."""
    weight_key, loss_key = jr.split(key)
    net = network(rng, weight_key)
    denoiser, shares = edm.Denoiser(net, EDM1), (0.0, 1.0, 0.0, 0.0)
    z = jnp.asarray(rng.normal(size=(4, NUMBERS)))
    present = jnp.ones((4, NUMBERS), bool).at[0, 2].set(False).at[1, 2:].set(False)
    z = jnp.where(present, z, 0)
    loss = hidden.HiddenLoss(sbi.PosteriorNoise(), COUNT, shares)
    found = loss(denoiser, z, present, key=jr.clone(loss_key))
    _, _, level_key, noise_key, _ = jr.split(loss_key, 5)
    strata = jnp.arange(4.0) + jr.uniform(level_key, (4,))
    sigmas = jax.vmap(sbi.PosteriorNoise().from_uniform)(strata / 4)
    noise = sigmas[:, None] * jr.normal(noise_key, z.shape)
    known = jnp.arange(NUMBERS) < COUNT
    total = 0.0
    for i in range(4):
        error = weighted_error(denoiser, z[i], sigmas[i], noise[i], Told(z[i], known, present[i]))
        asked = np.asarray(present[i] & ~known)
        total += np.asarray(error)[asked].sum() / max(asked.sum(), 1)
    np.testing.assert_allclose(found, total / 4, rtol=1e-12)


def test_held_out_nats_are_those_of_the_conditionals(rng, key):
    """Under N(0, C) the bound is tight: the mean entropy of what was hidden."""
    joint, corr = exact(rng)
    z = rng.multivariate_normal(np.zeros(NUMBERS), corr, 2000)
    ones = np.ones(z.shape, bool)
    shares = (1.0, 0.0, 0.0, 0.0)
    held = hidden.held_out(key, z, ones, np.zeros(z.shape), COUNT, shares)
    _, cov = conditional(corr, np.arange(NUMBERS) >= COUNT, z[0])
    entropy = stats.multivariate_normal(np.zeros(COUNT), cov).entropy()
    alone = stats.multivariate_normal(np.zeros(COUNT), np.eye(COUNT)).entropy()
    # 4 standard errors of a mean of 2,000 squares, and of the levels below 0.001.
    assert abs(held.untrained - alone) < 4 * np.sqrt(COUNT / 2 / 2000)
    assert abs(held(joint.denoiser) - entropy) < 0.1


def simulated(rng, n=300):
    theta = rng.uniform(-1, 1, size=(n, 2))
    return theta, theta @ rng.normal(size=(2, 3)) + 0.3 * rng.normal(size=(n, 3))


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sbi.FitWarning)
        yield


@pytest.mark.usefixtures("quiet")
def test_a_fit_with_missing_numbers_saves_loads_and_pickles(rng, key, tmp_path):
    theta, x = simulated(rng)
    x[rng.random(x.shape) < 0.2] = np.nan
    x[np.isnan(x).all(axis=1)] = 0.0
    box = (-np.ones(2), np.ones(2))
    fit_key, draw_key, other_key = jr.split(key, 3)
    fit = sbi.fit_joint(fit_key, theta, x, prior_support=box, settings=SMALL, progress=False)
    x_o = np.array([0.1, np.nan, -0.2])
    draws = fit.posterior(x_o).sample(jr.clone(draw_key), 50)
    with pytest.warns(sbi.UnlikelyObservation, match="unlike all simulations"):
        fit.posterior(np.array([0.0, 60.0, 0.0]))
    assert draws.shape == (50, 3)  # two parameters, then what is missing
    assert np.all(np.isfinite(draws)) and np.max(np.abs(draws[:, :2])) <= 1
    assert fit.likelihood(theta[0]).sample(other_key, 4).shape == (4, 3)
    fit.save(tmp_path / "joint")
    for again in (sbi.Joint.load(tmp_path / "joint"), pickle.loads(pickle.dumps(fit))):
        assert again.history == fit.history and again.offset == fit.offset
        assert eqx.tree_equal(again.density, fit.density)
        same = again.posterior(x_o).sample(jr.clone(draw_key), 50)
        np.testing.assert_array_equal(same, draws)
    raw = bytearray((tmp_path / "joint").read_bytes())
    raw[-5] ^= 1
    (tmp_path / "damaged").write_bytes(raw)
    with pytest.raises(ValueError, match="checksum"):
        sbi.Joint.load(tmp_path / "damaged")
    with pytest.raises(ValueError, match="is not a joint fit that `save` wrote"):
        (tmp_path / "foreign").write_bytes(b"PNG")
        sbi.Joint.load(tmp_path / "foreign")


def test_one_digit_of_the_first_line_turned_is_noticed(rng, tmp_path):
    """And the version before, with a checksum of the numbers only, is read."""
    joint, _ = exact(rng)
    path = tmp_path / "joint"
    joint.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"sigmas": [0.005,', b'"sigmas": [0.004,'))
    with pytest.raises(ValueError, match="joint is damaged: its checksum"):
        sbi.Joint.load(path)
    line, _, body = whole.partition(b"\n")
    old = json.loads(line) | {"version": 1, "checksum": zlib.crc32(body)}
    path.write_bytes(json.dumps(old).encode() + b"\n" + body)
    assert eqx.tree_equal(sbi.Joint.load(path), joint)
    for wrong in ({"kinds": 3}, {"sizes": 2}, {"shares": 1}):
        path.write_bytes(json.dumps(old | wrong).encode() + b"\n" + body)
        with pytest.raises(ValueError, match="joint is damaged: its first line"):
            sbi.Joint.load(path)


@pytest.mark.parametrize("trained, warns", [(1.9, False), (2.0, True), (2.1, True), (None, True)])
def test_training_that_lowers_no_loss_is_said(trained, warns):
    """Also where it changes nothing; with the three losses in nats."""
    held_out = () if trained is None else (2.5, trained)
    state = FitState(None, None, History((), (), held_out, untrained=2.0, prior=3.0), 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        joint_fit._look_at_losses(state)
    told = f"is {trained or np.inf:.3f} nats, 2.000 untrained, and 3.000 if all"
    assert [told in str(warning.message) for warning in caught] == [True] * warns


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kept, held, enough", [(50, 13, True), (49, 13, False), (50, 12, False)])
def test_fifty_whole_observations_have_a_density(kept, held, enough, monkeypatch):
    """Four times the held-out ones count as well; one row with a missing number counts as none."""
    monkeypatch.setattr(joint_fit.ObservationDensity, "fit", lambda *rows: len(rows[1]))
    present = np.ones((kept + held + 1, 2), bool)
    present[-1, 0] = False
    rows = {"kept": np.append(np.arange(kept), kept + held), "held": np.arange(kept, kept + held)}
    density: Any = joint_fit._density
    found = density(None, np.zeros(present.shape), present, **rows)
    assert found == (kept if enough else None)


def test_a_question_may_be_asked_inside_jit_and_on_a_bound(rng):
    low, high = np.full(NUMBERS, -np.inf), np.full(NUMBERS, np.inf)
    low[0], high[0] = -1.0, 2.0
    bounds = Bounds(jnp.asarray(low), jnp.asarray(high), jnp.full(NUMBERS, 0.1))
    joint, _ = exact(rng, bounds=bounds, x_shape=(3, 1))
    z, x_o = jnp.array([0.3, -0.1]), jnp.asarray(rng.normal(size=(3, 1)))
    ask = lambda x_o: joint.posterior(x_o).denoiser(z, 0.7)
    np.testing.assert_allclose(jax.jit(ask)(x_o), ask(x_o), rtol=1e-12)
    for end in (-1.0, 2.0):
        joint.likelihood(np.array([end, 0.0]))


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
def test_a_fit_goes_on_where_it_stopped(rng, key):
    """Two steps and two more are four, to the last bit; another network is refused."""
    theta, x = simulated(rng)
    key = jr.fold_in(key, 1)  # all four steps of which lower the held-out loss
    four, states = SMALL._replace(steps=4), []
    fit = partial(sbi.fit_joint, theta=theta, x=x, settings=four, progress=False)
    whole = fit(jr.clone(key), callback=states.append)
    again = fit(jr.clone(key), state=states[1])
    assert [state.history.step[-1] for state in states] == [1, 2, 3, 4]
    assert eqx.tree_equal(again, whole)
    with pytest.raises(ValueError, match="state is of another network"):
        fit(jr.clone(key), settings=four._replace(width=8), state=states[1])
    with pytest.raises(ValueError, match="state is of other simulations"):
        fit(jr.clone(key), theta=theta + 1, state=states[1])


@pytest.mark.usefixtures("quiet")
def test_points_have_no_order(rng, key):
    """(n, m, k): the posterior is the same for every order of the points, in float64."""
    theta = rng.normal(size=(200, 1))
    x = theta[:, None] + rng.normal(size=(200, 4, 2))
    fit_key, weight_key, draw_key = jr.split(key, 3)
    fit = sbi.fit_joint(fit_key, theta, x, settings=SMALL, progress=False)
    net = random_weights(fit.denoiser.network, weight_key)
    fit = eqx.tree_at(lambda fit: fit.denoiser.network, fit, net)
    one, other = (fit.posterior(points).denoiser for points in (x[0], x[0][[2, 0, 3, 1]]))
    z = jnp.asarray([0.3])
    np.testing.assert_allclose(one(z, 0.5), other(z, 0.5), atol=1e-12)
    likelihood = fit.likelihood(theta[0])
    assert likelihood.sample(draw_key, 3).shape == (3, 4, 2)
    assert likelihood.log_prob(x[0]).shape == () and likelihood.log_prob(x[:3]).shape == (3,)
    moved = fit.likelihood(theta[0]).log_prob(x[0][[3, 1, 0, 2]])
    np.testing.assert_allclose(likelihood.log_prob(x[0]), moved, atol=1e-8)


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
def test_an_offset_beyond_float32_is_kept(rng, key, single_precision):
    """A date of 2.4 million days, known to a second."""
    theta, x = simulated(rng)
    date = 2_460_000.5
    fit_key, draw_key = jr.split(key)
    fit = sbi.fit_joint(jr.clone(fit_key), theta + [date, 0.0], x, settings=SMALL, progress=False)
    assert fit.offset[0] == pytest.approx(date, abs=1.0)
    x_o = x[0]
    draws = np.asarray(fit.posterior(x_o).sample(draw_key, 200))
    assert draws.dtype == np.float64 and 0.05 < draws[:, 0].std() < 1
    near = fit.posterior(x_o).log_prob(draws[:5])
    other = sbi.fit_joint(fit_key, theta, x, settings=SMALL, progress=False)
    less = other.posterior(x_o).log_prob(draws[:5] - [date, 0.0])
    np.testing.assert_allclose(near, less, atol=0.02)


def test_failed_simulations_are_not_missing_numbers(rng, key):
    theta, x = simulated(rng)
    x[7] = np.nan
    with pytest.raises(ValueError, match=r"x is not finite in 1 of 300 .*row 7"):
        sbi.fit_joint(jr.clone(key), theta, x)
    x[7], x[9, 1] = 0.0, np.inf
    with pytest.raises(ValueError, match=r"x is not finite in 1 of 300 .*row 9"):
        sbi.fit_joint(jr.clone(key), theta, x)
    x[9, 1], theta[3, 0] = np.nan, np.nan
    with pytest.raises(ValueError, match=r"theta is not finite in 1 of 300 .*row 3"):
        sbi.fit_joint(jr.clone(key), theta, x)
    theta[3, 0], x[:, 2] = 0.0, np.nan
    with pytest.raises(ValueError, match="x is missing throughout in 1 of 3 columns"):
        sbi.fit_joint(jr.clone(key), theta, x)


REFUSED = {
    "wrong shape": (np.zeros((3, 3), bool), ValueError, r"\[2:, :2\] set to True"),
    "transposed": (np.eye(5, k=2, dtype=bool), ValueError, r"theta\[0\] is simulated from x\[0\]"),
    "a circle": (np.array([[0, 1], [1, 0]]), ValueError, "circle"),
    "numbers": (np.zeros((5, 5)), TypeError, "True and False"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.usefixtures("unchecked")
def test_a_wrong_graph_is_refused(name, rng, key):
    depends, kind, words = REFUSED[name]
    if name == "a circle":
        corner, depends = depends, np.zeros((5, 5), bool)
        depends[:2, :2] = corner
    with pytest.raises(kind, match=words):
        sbi.fit_joint(key, *simulated(rng), depends=depends)


@pytest.mark.usefixtures("unchecked")
def test_questions_that_make_no_sense_are_refused(rng):
    joint, _ = exact(rng)
    ask = [
        (lambda: joint.posterior(np.zeros(2)), r"x_o must have shape \(3,\), got \(2,\)"),
        (lambda: joint.posterior(np.full(3, np.nan)), "nothing is observed"),
        (lambda: joint.posterior([0.0, np.inf, 0.0]), "must be finite"),
        (lambda: joint.likelihood([0.0, np.nan]), "must be finite"),
        (lambda: joint.given(np.zeros(5), np.ones(5, bool)), "at least one to draw"),
        (lambda: joint.given(np.zeros(5), np.ones(4, bool)), "each of 5 numbers"),
        (lambda: joint.posterior(np.zeros(3)).log_prob(np.zeros(3)), r"shaped \(2,\)"),
        (lambda: joint.posterior(np.zeros(3)).log_prob([0.0, np.nan]), "must not be NaN"),
    ]
    for call, words in ask:
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(TypeError, match="True and False"):
        joint.given(np.zeros(5), np.ones(5))
    with pytest.raises(TypeError, match="churn must be .*such as Churn"):
        joint.posterior(np.zeros(3)).sample(jr.key(0), 2, churn=3.0)


def test_draws_are_those_of_heun_steps_with_all_the_churn_there_can_be(rng, key):
    """As many calls as a log-density has noise levels; without churn another draw."""
    joint, _ = exact(rng)
    given = joint.posterior(MEAN[COUNT:])
    draw = lambda **how: np.asarray(given.sample(jr.clone(key), 5, **how))
    half = (given.steps + 1) // 2
    same = draw(solver=edm.Heun(), churn=edm.Churn((2**0.5 - 1) * half), steps=half)
    np.testing.assert_allclose(draw(), same, rtol=1e-9)
    assert np.abs(draw(churn=None) - same).min() > 1e-3
    np.testing.assert_array_equal(draw(churn=None), draw(churn=None, steps=half))


def test_correlation_is_that_of_the_simulations_and_of_points_without_order(rng):
    z = rng.normal(size=(50, 5)) @ rng.normal(size=(5, 5))
    z = (z - z.mean(0)) / z.std(0)
    full = np.ones((5, 5), bool)
    found = GaussianPreconditioning.fit(z, full, 1, None).correlation
    truth = np.corrcoef(z.T)
    off = ~np.eye(5, dtype=bool)
    np.testing.assert_allclose(found[off], (1 - INDEPENDENT) * truth[off], atol=1e-12)
    swapped = np.concatenate([z, z[:, [0, 3, 4, 1, 2]]])  # both orders of two points of two
    both = GaussianPreconditioning.fit(z, full, 1, 2).correlation
    moments = (1 - INDEPENDENT) * swapped.T @ swapped / 100
    np.testing.assert_allclose(both[off], moments[off], atol=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("quiet", "optimized")
def test_random_questions_to_a_trained_fit_of_a_gaussian(rng, key):
    """Means within 0.4 exact widths, widths within 20 %, densities within 0.4 nats; medians half.

    Twice what `benchmarks/joint.py` holds itself to with 50,000 simulations. About 60 CPU seconds.
    """
    corr = correlation(rng, 6)
    rows = rng.multivariate_normal(np.zeros(6), corr, 20_000)
    settings = sbi.Settings(400, 128, 2e-3, 0.1, 16, 1, 0.0)
    fit_key, draw_key = jr.split(key)
    fit = sbi.fit_joint(fit_key, rows[:, :3], rows[:, 3:], settings=settings, progress=False)
    assert fit.history.step[-1] >= 100  # it did train, and found nothing that the line leaves
    errors = []
    for i in range(20):
        known = rng.permutation(6) < 2 + i % 3  # compiled three times, not twenty
        values = rng.multivariate_normal(np.zeros(6), corr)
        mean, cov = conditional(corr, known, values)
        given, width = fit.given(values, known), np.sqrt(np.diag(cov))
        draws = np.asarray(given.sample(jr.fold_in(draw_key, i), 2000))
        points = rng.multivariate_normal(mean, cov, 20)
        truth = stats.multivariate_normal(mean, cov).logpdf(points)
        errors.append(
            [
                np.max(np.abs(draws.mean(0) - mean) / width) / 0.4,
                np.max(np.abs(draws.std(0) / width - 1)) / 0.2,
                np.max(np.abs(np.asarray(given.log_prob(points)) - truth)) / 0.4,
            ]
        )
    assert np.max(errors) < 1 and np.max(np.median(errors, axis=0)) < 0.5
