"""Training reaches what can be computed by hand, and is a function of its key."""

import io
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from tqdm import tqdm

import edm_tutorial as edm
from edm_tutorial.networks import MLP
from edm_tutorial.training import BatchLoss, NonFiniteLossWarning, loop
from edm_tutorial.training.averages import HalfLifeEMA, PowerEMA
from edm_tutorial.training.batches import load
from edm_tutorial.training.memory import step_memory
from edm_tutorial.training.optimizers import Cleaned, clean_gradients, cleaned, ramp_up
from edm_tutorial.training.state import add_examples, differences, init_state

GOLDEN = np.load(Path(__file__).parent / "golden" / "train_schedule.npz")

NOISE = edm.LogNormal(-0.5, 1.0)
LOSS = partial(edm.denoising_loss, sigma_dist=NOISE)
STDS = np.array([0.3, 1.5])
ADAM = optax.adam(3e-3)  # one object: another one would be compiled for anew


def gaussian_run(seed, *, loss=LOSS, optimizer=ADAM, steps=24, sigma_data=None, **options):
    """A small run on a Gaussian with independent entries of standard deviation STDS."""
    data_key, net_key, train_key = jr.split(jr.clone(seed), 3)
    data = STDS[None] * jr.normal(data_key, (4096, 2))
    preconditioning = edm.EDMPreconditioning.from_data(data)
    if sigma_data is not None:
        preconditioning = edm.EDMPreconditioning(sigma_data)
    network = MLP(2, width=options.pop("width", 8), depth=1, key=net_key)
    denoiser = edm.Denoiser(network, preconditioning)
    options = {"batch_size": 16, "every": 8, "key": train_key} | options
    return edm.train(denoiser, loss, data, optimizer, steps=steps, **options)


def leaves(tree):
    return [np.array(leaf) for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array))]


def assert_identical(one, other):
    for a, b in zip(leaves(one), leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_reaches_the_loss_and_the_denoiser_of_the_optimum(key):
    """For independent Gaussian entries both are known, at every noise level.

    D_j = x_j c_j^2 / (c_j^2 + sigma^2), and the least loss at sigma is the mean over j
    of c_j^2 / (c_j^2 + sigma^2) (sigma^2 + sigma_data^2) / sigma_data^2.
    """
    run = gaussian_run(
        key, width=32, steps=1500, batch_size=256, every=500, optimizer=optax.adam(5e-3)
    )
    *_, (state, losses) = run
    assert int(state.step) == 1500
    sigma_data = float(state.denoiser.preconditioning.sigma_data)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    sigma = np.exp(NOISE.p_mean + NOISE.p_std * nodes)[:, None]
    shrink = STDS**2 / (STDS**2 + sigma**2)
    at_sigma = (shrink * (sigma**2 + sigma_data**2) / sigma_data**2).mean(axis=1)
    floor = at_sigma @ weights / weights.sum()
    assert floor < 0.8  # an untrained network scores 1: there is something to learn
    # 4 standard errors of 500 steps, and what 1500 steps leave to be learnt
    spread = 4 * float(losses.std()) / np.sqrt(len(losses))
    excess = float(losses.mean()) - floor
    assert -spread < excess < spread + 0.02 * floor
    denoise = jax.jit(jax.vmap(state.ema))
    for sigma in (0.1, 0.5, 2.0):
        total = np.sqrt(STDS**2 + sigma**2)
        x = total * np.random.default_rng(0).normal(size=(500, 2))
        exact = x * STDS**2 / total**2
        got = denoise(jnp.array(x), jnp.full(500, sigma))
        error = np.sqrt(np.mean((got - exact) ** 2))
        posterior = np.sqrt(np.mean((STDS * sigma / total) ** 2))
        # an error of 15% of the posterior's own spread is an excess loss of 2%
        assert error < 0.15 * posterior


@pytest.mark.slow
def test_same_key_same_weights_other_key_others(key):
    first, again = list(gaussian_run(key)), list(gaussian_run(key))
    assert_identical(first[-1][0], again[-1][0])
    np.testing.assert_array_equal(first[-1][1], again[-1][1])
    other = list(gaussian_run(key, key=jr.fold_in(key, 5)))
    assert np.all(first[-1][1] != other[-1][1])


def test_chunks_change_nothing(key):
    """Losses of all steps in order, and the weights, bit for bit."""
    eights, fives = (list(gaussian_run(key, every=every)) for every in (8, 5))
    assert [int(state.step) for state, _ in eights] == [8, 16, 24]
    assert [len(losses) for _, losses in fives] == [5, 5, 5, 5, 4]
    one, other = (np.concatenate([losses for _, losses in run]) for run in (eights, fives))
    np.testing.assert_array_equal(one, other)
    assert_identical(eights[-1][0], fives[-1][0])
    ones = list(gaussian_run(key, every=1))  # no loop, another program: equal but for rounding
    np.testing.assert_allclose(np.concatenate([losses for _, losses in ones]), one, rtol=1e-10)
    for a, b in zip(leaves(ones[-1][0]), leaves(eights[-1][0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_resumed_is_uninterrupted(key):
    whole = list(gaussian_run(key))
    stopped = next(gaussian_run(key))[0]
    assert int(stopped.step) == 8
    resumed = list(gaussian_run(key, state=stopped))
    assert len(resumed) == 2
    for (state, losses), (expected, expected_losses) in zip(resumed, whole[1:], strict=True):
        assert_identical(state, expected)
        np.testing.assert_array_equal(losses, expected_losses)
    assert list(gaussian_run(key, state=whole[-1][0])) == []


def test_a_yielded_state_is_a_snapshot(key):
    """Early stopping keeps the state it liked best; training on must not change it."""
    run = gaussian_run(key)
    kept, _ = next(run)
    before = [leaf.copy() for leaf in leaves(kept)]
    rest = list(run)
    for then, now in zip(before, leaves(kept), strict=True):
        np.testing.assert_array_equal(then, now)
    changed = [np.any(a != b) for a, b in zip(before, leaves(rest[-1][0]), strict=True)]
    assert sum(changed) > len(before) / 2
    # and what was kept can be used: sampled from, resumed
    assert np.all(np.isfinite(kept.ema(jnp.ones(2), 0.5)))
    assert len(list(gaussian_run(key, state=kept))) == 2


def test_ema_is_the_average_of_the_weights_after_each_step(key):
    """By hand from the states of single steps: beta is 0, then 2^(-B / half-life)."""
    ema = edm.HalfLifeEMA(half_life=50.0, rampup_ratio=0.5)
    batch = 16
    average = None
    for step, (state, _) in enumerate(gaussian_run(key, steps=10, every=1, ema=ema)):
        half_life = min(50.0, 0.5 * step * batch)
        beta = 0.0 if step == 0 else 0.5 ** (batch / half_life)
        live = leaves(state.denoiser.network)
        average = live if average is None else average
        average = [new + beta * (old - new) for old, new in zip(average, live, strict=True)]
        for got, expected in zip(leaves(state.ema.network), average, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
def test_without_ema_the_average_is_the_weights(key):
    state, _ = next(gaussian_run(key, ema=None))
    assert_identical(state.ema, state.denoiser)
    state, _ = next(gaussian_run(key))
    assert np.any(state.ema.network.output.weight != state.denoiser.network.output.weight)


@pytest.mark.slow
def test_the_number_of_examples_seen_does_not_overflow(key):
    """Past 2^31 examples; an overflow would reset the average."""
    state = next(gaussian_run(key))[0]
    assert int(state.seen) == 8 * 16
    late = state._replace(seen=jnp.array(2**31 - 8, jnp.uint32))
    after = next(gaussian_run(key, state=late, steps=9))[0]
    old, new = state.ema.network.output.weight, after.denoiser.network.output.weight
    expected = new + 0.5 ** (16 / 500_000) * (old - new)
    np.testing.assert_allclose(after.ema.network.output.weight, expected, rtol=1e-12)
    assert int(after.seen) == 2**31 + 8


@pytest.mark.parametrize("dtype", [jnp.uint32, jnp.uint64])
def test_the_count_of_examples_stops_at_the_largest_number(dtype):
    most = jnp.iinfo(dtype).max
    for before, after in ((0, 16), (most - 17, most - 1), (most - 16, most), (most - 3, most)):
        seen = add_examples(jnp.array(before, dtype), 16)
        assert int(seen) == after and seen.dtype == dtype


def test_averages_count_examples_across_batch_sizes(key):
    """20 steps of 512, then 1 of 8: beta is 2^(-8 / (0.05 * 20 * 512)) = 0.989.

    Were examples counted as steps times the present batch size, it would be 0.50.
    """
    run = partial(
        edm.train,
        Recorder(jnp.array(0.0)),
        lambda model, x, cond, *, key: -model.weight,  # each step adds 1 to the weight
        jnp.ones((3, 1)),
        optax.sgd(1.0),
        key=key,
    )
    [(before, _)] = run(steps=20, batch_size=512)
    [(after, _)] = run(steps=21, batch_size=8, state=before)
    assert (int(before.seen), int(after.seen)) == (10_240, 10_248)
    beta = 2 ** (-8 / 512)
    expected = 21 + beta * (before.ema.weight - 21)
    np.testing.assert_allclose(after.ema.weight, expected, rtol=1e-13)
    assert abs(beta - 0.989) < 5e-4


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_preconditioning_is_never_trained(name, key):
    """sigma_data is an array here; weight decay would eat it, were it a parameter."""
    optimizer = {
        "adamw": optax.adamw(1e-2, weight_decay=10.0),
        "sgd": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9)),
    }[name]
    sigma_data = jnp.array([0.4, 1.2])
    state, _ = next(gaussian_run(key, optimizer=optimizer, sigma_data=sigma_data))
    for model in (state.denoiser, state.ema):
        np.testing.assert_array_equal(model.preconditioning.sigma_data, sigma_data)
        assert np.abs(model.network.output.weight).max() > 1e-3  # it was zero


class Recorder(eqx.Module):
    """Something with one weight, for losses that look at the batch alone."""

    weight: jax.Array


def test_conditions_stay_with_their_examples(key):
    """Example i has condition -i: a loss of x + cond is 0 only for the right pairs."""
    x = jnp.arange(1.0, 301.0)[:, None]
    cond = {"minus": -x[:, 0], "label": jnp.arange(1, 301)}

    def loss(model, x, cond, *, key):
        pair = jnp.abs(x[0] + cond["minus"]) + jnp.abs(x[0] - cond["label"].astype(float))
        return pair + model.weight * 0

    model = Recorder(jnp.array(1.0))
    run = edm.train(
        model, loss, (x, cond), optax.sgd(1.0), steps=5, batch_size=64, key=key, every=5
    )
    np.testing.assert_array_equal(next(run)[1], np.zeros(5))


def test_batches_are_uniform_draws_of_all_examples(key):
    """Each step sees other examples; their mean and spread are those of the data."""
    x = jnp.linspace(-1.0, 1.0, 101)[:, None]
    model = Recorder(jnp.array(1.0))

    def value(model, x, cond, *, key):
        return x[0] + 0 * model.weight

    run = edm.train(model, value, x, optax.sgd(0.0), steps=400, batch_size=25, key=key, every=400)
    means = np.array(next(run)[1])
    spread = float(x.std()) / 5
    assert len(np.unique(np.round(means, 9))) > 200  # means of 25 on a grid of 1/1250
    assert abs(means.mean()) < 4 * spread / np.sqrt(400)
    assert abs(means.std() / spread - 1) < 4 / np.sqrt(2 * 400)


@pytest.mark.parametrize("end", [jnp.max, jnp.min])
def test_the_first_and_the_last_example_are_drawn_too(end, key):
    """10,000 draws of 101 examples miss a given one with probability e^-99."""
    x = jnp.linspace(-1.0, 1.0, 101)[:, None]
    loss = BatchLoss(lambda model, x, cond, *, key: end(x) + 0 * model.weight)
    options = {"steps": 400, "batch_size": 25, "key": key, "every": 400}
    [(_, found)] = edm.train(Recorder(jnp.array(1.0)), loss, x, optax.sgd(0.0), **options)
    assert end(found) == end(x)


def test_every_example_of_a_step_has_noise_of_its_own(key):
    x = jnp.zeros((3, 1))
    model = Recorder(jnp.array(1.0))

    def draw(model, x, cond, *, key):
        return jr.normal(key) + 0 * model.weight

    run = edm.train(model, draw, x, optax.sgd(0.0), steps=400, batch_size=25, key=key, every=400)
    means = np.array(next(run)[1])
    # Were noise shared within a batch, these means would have a std of 1, not 1/5.
    assert abs(5 * means.std() - 1) < 4 / np.sqrt(2 * 400)


def test_one_step_of_gradient_descent_by_hand(key):
    """loss (w - x)^2 from w = 0 at rate 1/4 moves w halfway to the batch mean of x."""
    x = jnp.full((7, 1), 3.0)
    run = edm.train(
        Recorder(jnp.array(0.0)),
        lambda model, x, cond, *, key: (model.weight - x[0]) ** 2,
        x,
        optax.sgd(0.25),
        steps=3,
        batch_size=4,
        key=key,
        every=1,
    )
    weights, losses = zip(*[(float(s.denoiser.weight), float(y[0])) for s, y in run], strict=True)
    np.testing.assert_allclose(weights, [1.5, 2.25, 2.625], rtol=1e-14)
    np.testing.assert_allclose(losses, [9.0, 2.25, 0.5625], rtol=1e-14)


def test_tqdm_shows_the_loss(key):
    screen = io.StringIO()
    with tqdm(gaussian_run(key), total=3, file=screen, mininterval=0) as bar:
        for _, losses in bar:
            bar.set_postfix(loss=float(losses.mean()))
    assert "3/3" in screen.getvalue() and "loss=" in screen.getvalue()


@pytest.mark.slow
def test_float32_stays_float32(key):
    data_key, net_key, train_key = jr.split(key, 3)
    data = jr.normal(data_key, (64, 2), jnp.float32)
    network = MLP(2, width=8, depth=1, key=net_key)
    cast = lambda a: a.astype(jnp.float32) if eqx.is_inexact_array(a) else a
    network = jax.tree.map(cast, network)
    denoiser = edm.Denoiser(network, edm.EDMPreconditioning.from_data(data))
    run = edm.train(denoiser, LOSS, data, optax.adam(1e-3), steps=2, batch_size=8, key=train_key)
    state, losses = next(run)
    assert losses.dtype == jnp.float32
    for model in (state.denoiser, state.ema):
        assert all(leaf.dtype == np.float32 for leaf in leaves(model))


def batch_of(step):
    """Sixteen examples that are a function of the step, on the host."""
    return STDS * np.random.default_rng(step).normal(size=(16, 2))


def stream_run(seed, data, **options):
    net_key, train_key = jr.split(jr.clone(seed))
    network = MLP(2, width=8, depth=1, key=net_key)
    denoiser = edm.Denoiser(network, edm.EDMPreconditioning(1.0))
    options = {"steps": 6, "batch_size": 16, "every": 4, "key": train_key} | options
    return edm.train(denoiser, LOSS, data, ADAM, **options)


def test_batches_as_a_function_of_the_step_resume_exactly(key):
    asked = []

    def batch(step):
        asked.append(step)
        return batch_of(step)

    whole = list(stream_run(key, batch))
    assert asked == list(range(6)) and [len(losses) for _, losses in whole] == [4, 2]
    [(resumed, losses)] = stream_run(key, batch, state=whole[0][0])
    assert asked[6:] == [4, 5]
    assert_identical(resumed, whole[1][0])
    np.testing.assert_array_equal(losses, whole[1][1])
    # an iterator of the same batches, handed over at the batch of the step
    iterated = list(stream_run(key, map(batch_of, range(6))))
    assert_identical(iterated[1][0], whole[1][0])
    [(resumed, _)] = stream_run(key, map(batch_of, range(4, 6)), state=whole[0][0])
    assert_identical(resumed, whole[1][0])


def test_a_given_batch_is_used_as_it_is(key):
    """The loss of step i is the mean of the batch of step i, with its conditions."""
    model = Recorder(jnp.array(1.0))

    def pairs(step):
        x = np.arange(3.0)[:, None] + 10 * step
        return x, {"same": x[:, 0]}

    def loss(model, x, cond, *, key):
        return x[0] + 100 * jnp.abs(x[0] - cond["same"]) + 0 * model.weight

    run = edm.train(model, loss, pairs, optax.sgd(1.0), steps=5, batch_size=3, key=key, every=5)
    np.testing.assert_array_equal(next(run)[1], 1.0 + 10 * np.arange(5))


BAD_BATCHES = {
    "too few": (lambda step: np.ones((15, 2)), "of step 0 must have batch_size=16.*got 15"),
    "a list": (lambda step: [1.0, 2.0], "the batch of step 0 must be a floating.*got list"),
    "a list for a pair": (
        lambda step: [np.ones((16, 2)), np.ones(16)],
        r"the batch of step 0 must be .* a tuple \(x, cond\), got list",
    ),
    "nan": (lambda step: np.full((16, 2), np.nan), "the batch of step 0 has 32 entries"),
    "three parts": (lambda step: 3 * (np.ones((16, 2)),), "batch of step 0 .*got 3 parts"),
    "conditions": (lambda step: (np.ones((16, 2)), np.ones(4)), "16 examples, and cond of"),
    "an iterator's end": (iter([]), "ended before step 0: itertools.cycle"),
}


@pytest.mark.parametrize("name", BAD_BATCHES)
def test_bad_batches(name, key):
    data, message = BAD_BATCHES[name]
    with pytest.raises(ValueError, match=message):
        next(stream_run(key, data))


def test_learning_rate_equals_the_reference():
    case = {name: GOLDEN[f"lr/{name}"] for name in ("cur_nimg", "base_lr", "rampup_kimg", "lr")}
    for seen, base, kimg, expected in zip(*case.values(), strict=True):
        rate = ramp_up(base, 1000 * kimg, batch_size=1)
        np.testing.assert_allclose(rate(seen), expected, rtol=1e-14, atol=0)
    steps = jnp.arange(5)  # in steps of 512 examples, up to 1024
    rate = ramp_up(2.0, 1024, batch_size=512)
    np.testing.assert_array_equal(jax.vmap(rate)(steps), [0.0, 1.0, 2.0, 2.0, 2.0])
    late = rate(jnp.array(2**30, jnp.int32))  # examples beyond any int32
    assert float(late) == 2.0


def test_the_ramp_up_reaches_the_weights(key):
    """Gradient -1 at rates 0, 1/2, 1, 1: the weight is the sum of the rates so far."""
    run = edm.train(
        Recorder(jnp.array(0.0)),
        lambda model, x, cond, *, key: -model.weight,
        jnp.ones((3, 1)),
        optax.sgd(ramp_up(1.0, 8, batch_size=4)),
        steps=4,
        batch_size=4,
        key=key,
        every=1,
    )
    weights = [float(state.denoiser.weight) for state, _ in run]
    np.testing.assert_allclose(weights, [0.0, 0.5, 1.5, 2.5], rtol=1e-14)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0.0, 10, 4), "learning_rate must be positive"),
        ((1.0, -10, 4), "examples must be positive"),
        ((1.0, 10, 0), "batch_size must be positive"),
    ],
)
def test_ramp_up_refuses(arguments, message):
    rate, examples, batch_size = arguments
    with pytest.raises(ValueError, match=message):
        ramp_up(rate, examples, batch_size=batch_size)


def test_gradients_that_are_not_finite_are_cleaned_and_counted(key):
    """Batch k has the gradient x_k for w: nan and inf are steps of 0 and -+1e5."""
    gradients = [1.0, np.nan, 2.0, np.inf, -np.inf, 3.0]

    def loss(model, x, cond, *, key):
        value = jnp.array(gradients)[x[0].astype(int)]
        return (value * model.weight).sum()

    run = edm.train(
        Recorder(jnp.zeros(2)),
        loss,
        lambda step: np.full((1, 1), float(step)),
        optax.chain(clean_gradients(), optax.sgd(1.0)),
        steps=6,
        batch_size=1,
        key=key,
        every=1,
    )
    moves, counts, last = [], [], np.zeros(2)
    for state, losses in run:
        weight = np.array(state.denoiser.weight)
        moves.append(last - weight)
        last = weight
        counts.append(tuple(map(int, cleaned(state))))
        assert np.isfinite(losses[0]) == np.isfinite(gradients[int(state.step) - 1])
    np.testing.assert_allclose(moves, np.outer([1, 0, 2, 1e5, -1e5, 3], [1, 1]), atol=1e-9)
    assert counts == [(0, 0), (1, 2), (1, 2), (2, 4), (3, 6), (3, 6)]


def test_the_count_of_cleaned_entries_does_not_overflow():
    cleaner = clean_gradients()
    most = jnp.iinfo(jnp.int32).max
    state = Cleaned(jnp.array(7, jnp.int32), jnp.array(most - 1, jnp.int32))
    _, state = cleaner.update(jnp.full(3, jnp.nan), state)
    assert (int(state.steps), int(state.entries)) == (8, most)


def test_cleaning_errors():
    with pytest.raises(ValueError, match="bound must be positive and finite, got 0"):
        clean_gradients(0.0)
    state = optax.adam(1e-3).init(jnp.ones(2))
    with pytest.raises(ValueError, match=r"need one clean_gradients\(\).*, got 0"):
        cleaned(state)
    twice = optax.chain(clean_gradients(), clean_gradients()).init(jnp.ones(2))
    with pytest.raises(ValueError, match=r"got 2"):
        cleaned(twice)


@pytest.mark.slow
def test_several_averages_at_once(key):
    """Each is the one it would be alone."""
    rules = (edm.HalfLifeEMA(200.0), PowerEMA(3.0))
    both = next(gaussian_run(key, ema=rules))[0]
    for rule, average in zip(rules, both.ema, strict=True):
        assert_identical(average, next(gaussian_run(key, ema=rule))[0].ema)
    with pytest.raises(ValueError, match="one average for each of the 2 rules, got 1"):
        gaussian_run(key, ema=rules, state=both._replace(ema=both.ema[:1]))
    with pytest.raises(ValueError, match="one average for each of the 2 rules"):
        gaussian_run(key, ema=rules, state=both._replace(ema=both.denoiser))


class Told(eqx.Module):
    """A network that writes down the keys and conditions it is called with."""

    weight: jax.Array
    tell: Any = eqx.field(static=True)

    def __call__(self, x, c_noise, cond=None, *, key=None):
        jax.debug.callback(self.tell, jr.key_data(key), cond)
        return self.weight * x


def test_dropout_keys_and_augmentation_labels_reach_the_network(key):
    """A key of its own for every example of every step, and the labels of a wrapped loss."""
    heard = []
    denoiser = edm.Denoiser(
        Told(jnp.array(0.1), lambda *told: heard.append(told)), edm.EDMPreconditioning(1.0)
    )

    def mirrored(denoiser, x, cond, *, key):
        flip_key, loss_key = jr.split(key)
        sign = jr.rademacher(flip_key, (), x.dtype)
        return LOSS(denoiser, sign * x, {"label": cond, "sign": sign}, key=loss_key)

    x = jnp.ones((5, 2))
    run = edm.train(
        denoiser, mirrored, (x, x[:, 0] * 7), optax.sgd(0.0), steps=6, batch_size=8, key=key
    )
    next(run)
    jax.effects_barrier()
    keys = {tuple(np.ravel(data)) for data, _ in heard}
    assert len(keys) == 48
    assert all(cond["label"] == 7 for _, cond in heard)
    signs = {float(cond["sign"]) for _, cond in heard}
    assert signs == {-1.0, 1.0}


def test_a_loss_of_the_batch_equals_the_mean_of_its_examples(key):
    """The same keys for the same examples: the training is the same but for rounding."""

    def mean(denoiser, x, cond, *, key):
        keys = jr.split(key, len(x))
        return jnp.mean(jax.vmap(partial(LOSS, denoiser))(x, cond, key=keys))

    one, other = (list(gaussian_run(key, loss=loss)) for loss in (LOSS, BatchLoss(mean)))
    for (a, losses), (b, others) in zip(one, other, strict=True):
        np.testing.assert_allclose(losses, others, rtol=1e-12)
        for left, right in zip(leaves(a), leaves(b), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-12)


def test_a_loss_of_the_batch_sees_all_of_it(key):
    """Strata: the i-th of n examples has its number from [i, i + 1) / n, which one cannot know."""

    def strata(model, x, cond, *, key):
        u = (jnp.arange(len(x), dtype=float) + jr.uniform(key, (len(x),))) / len(x)
        return jnp.mean(u) + 0 * model.weight

    model, x = Recorder(jnp.array(1.0)), jnp.zeros((3, 1))
    run = edm.train(
        model, BatchLoss(strata), x, optax.sgd(0.0), steps=100, batch_size=25, key=key, every=100
    )
    means = np.array(next(run)[1])
    # Each of 25 is uniform over 1/25, so their mean has std 1 / (25 sqrt(12 * 25)), not five
    # times 1/25 as for independent numbers; 4 standard errors of a std from 100 of them.
    assert abs(means.std() * 25 * np.sqrt(12 * 25) - 1) < 4 / np.sqrt(2 * 100)


def test_numpy_integers_are_counts(key, unchecked):
    """`epochs * np.ceil(n / batch)` is one; the last chunk is shorter than the others."""
    count = np.int64
    run = gaussian_run(key, steps=5 * np.ceil(1.5).astype(int), every=count(8), batch_size=count(4))
    assert [len(losses) for _, losses in run] == [8, 2]


def quadratic(model, x, cond, *, key):
    """(w - 3)^2 / 2 in two dimensions of curvature 1 and 9."""
    return jnp.sum(jnp.array([0.5, 4.5]) * (model.weight - 3) ** 2) + 0 * x[0]


def simple_run(optimizer, loss=quadratic, *, weight=(0.0, 0.0), data=None, **options):
    x = jnp.ones((3, 1)) if data is None else data
    options = {"steps": 6, "batch_size": 1, "every": 6, "key": jr.key(0), "ema": None} | options
    return edm.train(Recorder(jnp.array(weight)), loss, x, optimizer, **options)


def test_an_optimizer_that_asks_for_the_loss_gets_it():
    """The loss is 5 for good: after each `patience` steps on this plateau the rate halves."""
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=2)
    loss = lambda model, x, cond, *, key: (
        5.0 + jnp.sum(model.weight - jax.lax.stop_gradient(model.weight))
    )
    run = simple_run(optax.chain(optax.sgd(1.0), plateau), loss, every=1)
    rates = [float(state.opt_state[1].scale) for state, _ in run]
    np.testing.assert_array_equal(rates, [1, 1, 0.5, 0.5, 0.25, 0.25])


def test_what_an_optimizer_is_told_is_the_loss_of_the_batch():
    """The loss, its gradient, and the loss as a function, at w = (0, 0) and (1, 0) by hand."""

    def update(updates, state, params, *, value, grad, value_fn, **rest):
        elsewhere = Recorder(params.weight.at[0].set(1.0))
        told = jnp.array([value, *grad.weight, value_fn(params), value_fn(elsewhere)])
        return updates, told

    init = lambda params: jnp.zeros(5)
    optimizer = optax.GradientTransformationExtraArgs(init, update)
    with jax.debug_key_reuse(False):  # the loss as a function has the noise of the batch
        [(state, _)] = simple_run(optax.chain(optimizer, optax.sgd(0.1)), steps=1)
    np.testing.assert_allclose(state.opt_state[0], [45, -3, -27, 45, 42.5], rtol=1e-14)


def test_lbfgs_searches_along_its_lines():
    """A quadratic in two dimensions is solved in a few steps; steepest descent is far from it."""
    with jax.debug_key_reuse(False):  # every point of a line has the batch's own noise
        [(state, losses)] = simple_run(optax.lbfgs())
    # each step of the line search ends at a slope of 0.9 of the first or less; the loss is
    # below rounding where L-BFGS has seen both curvatures
    assert float(losses[0]) == 45 and float(losses[-1]) < 1e-8
    np.testing.assert_allclose(state.denoiser.weight, [3, 3], rtol=1e-6)
    [(_, slow)] = simple_run(optax.sgd(0.1))
    assert float(slow[-1]) > 0.5


def test_an_optimizer_that_asks_for_more_is_refused():
    def update(updates, state, params=None, *, hessian, **rest):
        return updates, state

    optimizer = optax.GradientTransformationExtraArgs(optax.identity().init, update)
    run = simple_run(optax.chain(optimizer, optax.sgd(0.1)))
    with pytest.raises(TypeError, match="cannot be used in train: .*'hessian'"):
        next(run)


def test_any_optimizer_trains(unchecked):
    """Also one that is no tuple of functions, and a state with numbers of its own."""
    for optimizer in (
        optax.MultiSteps(optax.sgd(0.1), 2),
        optax.inject_hyperparams(optax.adam)(optax.linear_schedule(0.1, 0.0, 6)),
        optax.contrib.schedule_free_sgd(0.1),
    ):
        [(state, losses)] = simple_run(optimizer)
        assert np.isfinite(state.denoiser.weight).all() and losses[-1] < losses[0]


OTHER_OPTIMIZERS = {
    "adam for sgd": (
        optax.adam(0.1),
        optax.sgd(0.1),
        r"\[0\].count is int32\[\], here missing; \[0\].mu.weight is float64\[2\], here missing",
    ),
    "sgd for adam": (optax.sgd(0.1), optax.adam(0.1), r"\[0\].count is missing, here int32\[\]"),
    "a schedule": (
        optax.adam(0.1),
        optax.adam(optax.constant_schedule(0.1)),
        r"\[1\].count is missing, here int32\[\]",
    ),
    "no leaf of its own": (
        optax.sgd(0.1),
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
        "nested otherwise",
    ),
}


@pytest.mark.parametrize("name", OTHER_OPTIMIZERS)
def test_the_state_of_another_optimizer_is_refused(name):
    before, after, message = OTHER_OPTIMIZERS[name]
    [(state, _)] = simple_run(before, steps=2)
    with pytest.raises(ValueError, match=f"state.opt_state is of another optimizer: .*{message}"):
        simple_run(after, state=state)
    assert len(list(simple_run(before, state=state))) == 1


@pytest.mark.parametrize("count, more", [(3, ""), (4, "; and 1 more"), (6, "; and 3 more")])
def test_three_differences_are_told(count, more):
    found = {name: "1" for name in "abcdef"[:count]}
    told = "; ".join(f"{name} is 1, here missing" for name in "abc")
    assert differences(found, {}) == told + more
    assert differences(found, found) == ""


def test_the_state_of_another_model_is_refused():
    [(state, _)] = simple_run(optax.adam(0.1), steps=2)
    other = state._replace(denoiser=Recorder(jnp.zeros(3)))
    with pytest.raises(ValueError, match=r"mu.weight is float64\[2\], here float64\[3\]"):
        simple_run(optax.adam(0.1), state=other)
    with pytest.raises(ValueError, match="state.ema must be an average for one rule"):
        simple_run(optax.adam(0.1), state=state._replace(ema=(state.ema,)))


def diverging(model, x, cond, *, key):
    """NaN, with its gradient, in every step whose batch is negative."""
    return jnp.where(x[0] < 0, jnp.nan, 1.0) * jnp.sum(model.weight)


def signs(*values):
    return lambda step: np.full((1, 1), values[step])


def test_a_loss_that_is_not_finite_is_said_once():
    run = simple_run(optax.sgd(0.1), diverging, data=signs(1.0, 1.0, 1.0, -1.0, 1.0, -1.0), every=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        next(run)  # all is well so far
    message = "the loss of step 3 is nan, and 1 of 2 losses .*clean_gradients"
    with pytest.warns(NonFiniteLossWarning, match=message) as caught:
        next(run)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        _, losses = next(run)
    assert np.isnan(losses).all()  # the weights are lost


def test_a_loss_that_is_not_finite_is_not_said_where_it_is_repaired():
    repaired = optax.chain(clean_gradients(), optax.sgd(0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        [(state, losses)] = simple_run(repaired, diverging, data=signs(*[1.0, -1.0] * 3))
    assert np.isnan(losses).sum() == 3 and int(cleaned(state).steps) == 3


@pytest.mark.parametrize("every, bad, before", [(3, 5, 3), (1, 10, 10)])
def test_a_training_of_repaired_steps_only_is_said(every, bad, before):
    """Nothing is learned, and nothing else would tell; a few bad steps are repaired in silence."""
    repaired = optax.chain(clean_gradients(), optax.sgd(0.1))
    run = simple_run(repaired, diverging, data=signs(1.0, *[-1.0] * 11), steps=12, every=every)
    message = rf"none of the last {bad} losses is finite.*clean_gradients"
    seen = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", NonFiniteLossWarning)
        with pytest.raises(NonFiniteLossWarning, match=message):
            for state, _ in run:
                seen = int(state.step)
    assert seen == before  # said before the next chunk is yielded


def test_the_warning_can_be_silenced_alone():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", NonFiniteLossWarning)
        list(simple_run(optax.sgd(0.1), diverging, data=signs(*[-1.0] * 6)))


class Normalised(eqx.Module):
    """A denoiser of one's own, with a layer that has a state."""

    norm: eqx.nn.BatchNorm

    def __call__(self, x, sigma, cond=None, *, key=None):
        return x


NOTHING_TO_TRAIN = {
    "a lambda": lambda z, c_noise, cond=None, *, key=None: z * jnp.ones(2),
    "a partial": partial(lambda w, z, c_noise, cond=None, *, key=None: w * z, jnp.ones(2)),
}


@pytest.mark.parametrize("name", NOTHING_TO_TRAIN)
def test_a_network_whose_weights_are_out_of_reach_is_refused(name, key):
    denoiser = edm.Denoiser(NOTHING_TO_TRAIN[name], edm.EDMPreconditioning(jnp.ones(2)))
    with pytest.raises(ValueError, match="nothing to train.*make the network an eqx.Module"):
        edm.train(denoiser, LOSS, jnp.ones((3, 2)), ADAM, steps=1, batch_size=1, key=key)


def test_a_layer_with_a_state_is_refused(key):
    norm, _ = eqx.nn.make_with_state(eqx.nn.BatchNorm)(2, "batch", mode="batch")
    with pytest.raises(ValueError, match="layers with a state, such as eqx.nn.BatchNorm"):
        edm.train(Normalised(norm), LOSS, jnp.ones((3, 2)), ADAM, steps=1, batch_size=1, key=key)


@pytest.mark.parametrize(
    "optimizer",
    [optax.lookahead(optax.sgd(0.1), 5, 0.5), optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05))],
    ids=["lookahead", "sam"],
)
def test_an_optimizer_that_needs_more_than_gradients_is_refused_by_name(optimizer):
    loss = lambda denoiser, x, cond, *, key: jnp.sum((denoiser(x, 1.0) - x) ** 2)
    network = edm.networks.MLP(2, width=4, depth=1, key=jr.key(0))
    start = edm.Denoiser(network, edm.EDMPreconditioning(1.0))
    run = edm.train(start, loss, jnp.ones((4, 2)), optimizer, steps=1, batch_size=2, key=jr.key(1))
    with pytest.raises(TypeError, match="this optimizer cannot be used in train"):
        next(run)


def test_a_loss_that_is_no_scalar_is_refused_by_name():
    denoiser = edm.Denoiser(
        edm.MLP(2, width=8, depth=1, key=jr.key(0)), edm.EDMPreconditioning(0.5)
    )
    loss = lambda denoiser, x, cond, key: denoiser(x, 1.0) ** 2
    with pytest.raises(
        ValueError, match=r"loss must return a scalar for one example, got shape \(2,\)"
    ):
        next(
            edm.train(
                denoiser,
                loss,
                jnp.ones((8, 2)),
                optax.adam(1e-3),
                steps=1,
                batch_size=4,
                key=jr.key(1),
            )
        )


class _Convolution(eqx.Module):
    layer: eqx.nn.Conv1d
    preconditioning: Any

    def __call__(self, x, sigma, cond=None, *, key=None):
        return self.layer(x[None])[0]


def test_convolutions_are_stepped_outside_of_a_loop_on_a_cpu(key, monkeypatch):
    """Where compiled loops make them slow; the results are those of the loop."""
    model = _Convolution(eqx.nn.Conv1d(1, 1, 3, padding=1, key=jr.key(0)), None)
    loss = lambda model, x, cond, *, key: jnp.mean((model(x, 0.0) - jr.normal(key, x.shape)) ** 2)
    data = jr.normal(jr.key(1), (20, 8))

    def run():
        given = {"steps": 6, "batch_size": 4, "key": jr.clone(key), "every": 3}
        return list(edm.train(model, loss, data, optax.adam(1e-2), **given))

    monkeypatch.setattr(loop, "is_loop", lambda *_: True)
    looped = run()
    monkeypatch.undo()
    if jax.default_backend() == "cpu":
        monkeypatch.setattr(loop, "scan_steps", None)  # not called
    stepped = run()
    for (one, losses), (other, expected) in zip(stepped, looped, strict=True):
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
        for a, b in zip(leaves(one), leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("parts", [2, 8])
@pytest.mark.parametrize("optimizer", [ADAM, optax.lbfgs(linesearch=None)], ids=["adam", "lbfgs"])
def test_a_batch_in_parts_is_the_whole_batch(parts, optimizer, key):
    """The same examples, levels and noise, so only the order of additions differs."""
    whole, split = (
        list(gaussian_run(key, optimizer=optimizer, accumulate=k, every=12)) for k in (1, parts)
    )
    for (one, losses), (other, expected) in zip(split, whole, strict=True):
        np.testing.assert_allclose(losses, expected, rtol=1e-9)  # L-BFGS jumps once, to 450
        for a, b in zip(leaves(one), leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-11)


def test_a_part_keeps_its_conditions_and_its_keys(key):
    """The loss of an example is a function of its condition, its data and its key."""

    def loss(model, x, cond, *, key):
        return model.weight * (x[0] * cond + jr.normal(key))

    x, model = jnp.arange(1.0, 9.0)[:, None], Recorder(jnp.array(1.0))
    batch = lambda step: (x, 10.0 ** x[:, 0])
    whole, split = (
        next(edm.train(model, loss, batch, optax.sgd(0.1), **given, accumulate=k))
        for k, given in [(k, {"steps": 1, "batch_size": 8, "key": jr.clone(key)}) for k in (1, 4)]
    )
    np.testing.assert_allclose(split[1], whole[1], rtol=1e-13)
    np.testing.assert_allclose(split[0].denoiser.weight, whole[0].denoiser.weight, rtol=1e-13)


def test_a_batch_in_parts_needs_the_memory_of_one(key):
    network = MLP(2, width=64, depth=2, key=key)
    denoiser = edm.Denoiser(network, edm.EDMPreconditioning(0.5))
    given = (denoiser, LOSS, jnp.ones((4096, 2)), ADAM)
    whole, split = (step_memory(*given, batch_size=4096, accumulate=k) for k in (1, 16))
    fixed = step_memory(*given, batch_size=1)
    # What is kept for the gradient is a 16th; the batch itself, and its keys, are drawn whole.
    assert split - fixed < (whole - fixed) / 8
    # Two hidden layers of 64 numbers an example are kept at the least, in float64.
    assert whole - fixed > 2 * 64 * 8 * 4096
    single = step_memory(*given, batch_size=4096, every=1)
    np.testing.assert_allclose(whole, single, rtol=0.3)  # a loop keeps no more than a step


def test_what_was_compiled_to_foretell_memory_is_not_compiled_again(key, caplog):
    network = MLP(2, width=8, depth=1, key=key)
    denoiser, x = edm.Denoiser(network, edm.EDMPreconditioning(0.5)), jnp.ones((64, 2))
    step_memory(denoiser, LOSS, x, ADAM, batch_size=16, every=7)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        next(edm.train(denoiser, LOSS, x, ADAM, steps=7, every=7, batch_size=16, key=jr.clone(key)))
        next(edm.train(denoiser, LOSS, x, ADAM, steps=5, every=5, batch_size=16, key=jr.clone(key)))
    compiled = [line for line in caplog.messages if "XLA compilation of jit(scan_steps)" in line]
    assert len(compiled) == 1, caplog.messages  # that of five steps


def test_a_batch_in_parts_counts_its_data_from_any_source(key):
    denoiser = edm.Denoiser(MLP(2, width=8, depth=1, key=key), edm.EDMPreconditioning(0.5))
    x = jnp.ones((64, 2))
    asked = []
    drawn, given = (
        step_memory(denoiser, LOSS, data, ADAM, batch_size=64)
        for data in (x, lambda step: asked.append(step) or x)
    )
    assert asked == [0]
    np.testing.assert_allclose(drawn, given, rtol=0.2)  # drawing keeps the batch beside the data


def test_a_chunk_does_not_meet_the_host(key):
    """No callback is compiled into it, and between its start and end nothing is handed over."""
    chunks = gaussian_run(key, steps=32, every=16)
    state, _ = next(chunks)  # compiled
    given = MLP(2, width=8, depth=1, key=key)
    denoiser = edm.Denoiser(given, edm.EDMPreconditioning(0.5))
    run = loop.Run(LOSS, ADAM, jr.key(0), HalfLifeEMA(), 16, 1, None)
    start, source = init_state(denoiser, ADAM, HalfLifeEMA()), load(jnp.ones((64, 2)), 16, None)
    text = loop.scan_steps.lower(start, source, run, 16).compile().compiled.as_text()
    for meeting in ("callback", "infeed", "outfeed", "send(", "recv("):
        assert meeting not in text, meeting
    with jax.transfer_guard_host_to_device("disallow"):
        next(chunks)
    assert int(state.step) == 16
