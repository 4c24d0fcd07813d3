"""Averages of the weights against the reference numbers and against sums by hand."""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import edm_tutorial as edm
from edm_tutorial.training import averages
from edm_tutorial.training.averages import PowerEMA, Snapshot, reconstruct, reconstruction_weights

GOLDEN = np.load(Path(__file__).parent / "golden" / "train_schedule.npz")


class Model(eqx.Module):
    weights: Any
    count: Any = None
    name: str = "model"


def test_decay_equals_the_reference():
    case = {name: GOLDEN[f"ema_beta/{name}"] for name in ("cur_nimg", "batch_size")}
    case |= {name: GOLDEN[f"ema_beta/{name}"] for name in ("halflife_kimg", "rampup_ratio")}
    rows = zip(*case.values(), strict=True)
    decays = []
    for seen, batch_size, kimg, ratio in rows:
        ema = edm.HalfLifeEMA(1000 * kimg, None if np.isnan(ratio) else ratio)
        decays.append(ema.decay(seen, batch_size))
    np.testing.assert_allclose(decays, GOLDEN["ema_beta/ema_beta"], rtol=1e-12, atol=1e-300)


def test_sequence_equals_the_reference():
    ema = edm.HalfLifeEMA(500_000.0, 0.05)
    net, expected = GOLDEN["ema_sequence/net"], GOLDEN["ema_sequence/ema"]
    average = Model(jnp.array(net[0]))
    for k, (weights, row) in enumerate(zip(net[1:], expected, strict=True)):
        average = ema.update(average, Model(jnp.array(weights)), k * 256, 256)
        np.testing.assert_allclose(average.weights, row, rtol=1e-12, atol=1e-14)


def influence(ema, steps, batch_size):
    """The shares in the average of the initial weights and of those after each step."""
    average = Model(jnp.eye(steps + 1)[0])
    for k in range(steps):
        average = ema.update(average, Model(jnp.eye(steps + 1)[k + 1]), k * batch_size, batch_size)
    return np.array(average.weights)


def test_the_initial_weights_are_forgotten_and_the_rest_sums_to_one():
    shares = influence(edm.HalfLifeEMA(), 20, 64)
    assert shares[0] == 0
    assert np.all(shares[1:] > 0)
    np.testing.assert_allclose(shares.sum(), 1, rtol=1e-14)


def test_a_constant_half_life_halves_the_past_after_that_many_examples():
    shares = influence(edm.HalfLifeEMA(half_life=640.0, rampup_ratio=None), 10, 64)
    np.testing.assert_allclose(shares[0], 0.5, rtol=1e-13)
    np.testing.assert_allclose(shares.sum(), 1, rtol=1e-14)


def test_half_life_is_counted_in_examples_not_in_steps():
    ema = edm.HalfLifeEMA(half_life=1000.0, rampup_ratio=None)
    few, many = influence(ema, 5, 128)[0], influence(ema, 20, 32)[0]
    np.testing.assert_allclose(few, many, rtol=1e-13)


def test_ramp_up_ends_where_the_half_life_is_reached():
    ema = edm.HalfLifeEMA(half_life=1000.0, rampup_ratio=0.1)
    np.testing.assert_allclose(ema.decay(5000, 500), 0.5, rtol=1e-14)  # h = 500
    np.testing.assert_allclose(ema.decay(10_000, 500), 0.5**0.5, rtol=1e-14)  # h = 1000
    np.testing.assert_allclose(ema.decay(10**8, 500), 0.5**0.5, rtol=1e-14)


def test_only_floating_arrays_are_averaged():
    ema = edm.HalfLifeEMA(half_life=100.0, rampup_ratio=None)
    old = Model({"a": jnp.zeros(2), "f32": jnp.zeros(1, jnp.float32)}, jnp.array(3), "old")
    new = Model({"a": jnp.ones(2), "f32": jnp.ones(1, jnp.float32)}, jnp.array(8), "new")
    average = ema.update(old, new, 1000, 100)
    np.testing.assert_allclose(average.weights["a"], 0.5, rtol=1e-15)
    assert average.weights["f32"].dtype == jnp.float32
    assert int(average.count) == 8 and average.name == "new"
    assert average.count.dtype == new.count.dtype


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.float32, jnp.float64])
def test_decay_of_any_number_type(dtype):
    decay = edm.HalfLifeEMA(1000.0, 0.1).decay(jnp.array(5000, dtype), 500)
    np.testing.assert_allclose(decay, 0.5, rtol=1e-6)


def power_shares(gamma, steps):
    """The closed form: (k^(gamma+1) - (k-1)^(gamma+1)) / t^(gamma+1) for k = 1..t."""
    powers = np.arange(steps + 1.0) ** (gamma + 1)
    return np.diff(powers) / powers[-1]


@pytest.mark.parametrize("gamma", [0.0, 0.7, 6.94, 16.97])
def test_power_ema_has_the_closed_form_and_forgets_the_start(gamma):
    shares = influence(PowerEMA(gamma), 30, 64)
    assert shares[0] == 0
    np.testing.assert_allclose(shares[1:], power_shares(gamma, 30), rtol=1e-11, atol=1e-300)
    np.testing.assert_allclose(shares.sum(), 1, rtol=1e-14)


def test_power_ema_does_not_count_in_examples():
    few, many = influence(PowerEMA(5.0), 8, 1), influence(PowerEMA(5.0), 8, 4096)
    np.testing.assert_allclose(few, many, rtol=1e-13)


def test_sigma_rel_is_the_spread_of_the_profile():
    """The law of density (gamma+1) u^gamma on (0, 1) is a Beta law: moments by scipy."""
    for sigma_rel in (0.01, 0.05, 0.1, 0.15, 0.25, 12**-0.5):
        ema = PowerEMA.from_sigma_rel(sigma_rel)
        spread = stats.beta(ema.gamma + 1, 1).std()
        np.testing.assert_allclose(spread, sigma_rel, rtol=1e-9)
        np.testing.assert_allclose(ema.sigma_rel, sigma_rel, rtol=1e-9)
    # the published pair of EDM2, to the digits printed there
    np.testing.assert_allclose(PowerEMA.from_sigma_rel(0.05).gamma, 16.97, atol=5e-3)
    np.testing.assert_allclose(PowerEMA.from_sigma_rel(0.10).gamma, 6.94, atol=5e-3)
    assert PowerEMA.from_sigma_rel(12**-0.5).gamma < 1e-9


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.3, float("nan")])
def test_sigma_rel_out_of_range(sigma_rel):
    with pytest.raises(ValueError, match="need 0 < sigma_rel <= 0.2887, got"):
        PowerEMA.from_sigma_rel(sigma_rel)


@pytest.mark.parametrize("gamma", [-0.5, float("nan"), float("inf")])
def test_power_out_of_range(gamma):
    with pytest.raises(ValueError, match="gamma must be positive and finite, got"):
        PowerEMA(gamma)


PAIR = (PowerEMA.from_sigma_rel(0.05), PowerEMA.from_sigma_rel(0.10))


def history(rules, steps, at):
    """Averages of a training whose weights after step k are the k-th unit vector."""
    averages = {rule: Model(jnp.zeros(steps), jnp.array(0)) for rule in rules}
    kept = []
    for k in range(steps):
        weights = Model(jnp.eye(steps)[k], jnp.array(k + 1))
        for rule in rules:
            averages[rule] = rule.update(averages[rule], weights, k * 32, 32)
            if k + 1 in at:
                kept.append(Snapshot(rule, k + 1, averages[rule]))
    return kept


@pytest.mark.parametrize("gamma, step", [(3.0, 20), (0.0, 20), (40.0, 20), (9.5, 13)])
def test_reconstruction_is_exact_where_the_snapshots_span_it(gamma, step):
    """Kept at every step, the averages span all averages: the answer is the direct one."""
    kept = history(PAIR, 20, range(1, 21))
    direct = history([PowerEMA(gamma)], step, [step])[0].model.weights
    got = reconstruct(kept, PowerEMA(gamma), step)
    np.testing.assert_allclose(got.weights, np.pad(direct, (0, 20 - step)), atol=1e-6)
    np.testing.assert_allclose(reconstruction_weights(kept, PowerEMA(gamma), step).sum(), 1)
    assert int(got.count) == 20  # what is not averaged is that of the last snapshot


def test_a_length_that_was_kept_is_returned_as_it_was():
    kept = history(PAIR, 24, [8, 16, 24])
    for i, snapshot in enumerate(kept):
        weights = reconstruction_weights(kept, snapshot.ema, snapshot.step)
        np.testing.assert_allclose(weights, np.eye(6)[i], atol=1e-10)


def test_reconstruction_is_the_least_squares_one_and_gets_better_with_snapshots():
    """Against all weights of sum 1 by an independent solver, and the error in the profile."""
    target = power_shares(PowerEMA.from_sigma_rel(0.13).gamma, 64)
    errors = []
    for count in (2, 4, 8, 16):
        at = range(64 // count, 65, 64 // count)
        kept = history(PAIR, 64, at)
        x = reconstruction_weights(kept, PowerEMA.from_sigma_rel(0.13))
        profiles = np.stack([snapshot.model.weights for snapshot in kept])
        np.testing.assert_allclose(x.sum(), 1, rtol=1e-12)
        # the normal equations with a multiplier for the sum
        n = len(kept)
        system = np.block([[profiles @ profiles.T, np.ones((n, 1))], [np.ones((1, n)), 0]])
        expected = np.linalg.solve(system, np.append(profiles @ target, 1))[:n]
        np.testing.assert_allclose(x @ profiles, expected @ profiles, atol=1e-9)
        errors.append(np.linalg.norm(x @ profiles - target) / np.linalg.norm(target))
    assert np.all(np.diff(errors) < 0) and errors[-1] < 0.02


def test_large_weights_of_both_signs_do_not_round():
    """Snapshots in float32 that are all the same: so is their combination, to half a unit."""
    snapshots = [Snapshot(rule, step, None) for step in range(990, 1001, 2) for rule in PAIR]
    short = PowerEMA(100.0)
    assert np.abs(reconstruction_weights(snapshots, short)).sum() > 200  # float32 loses 2 digits
    model = Model(jnp.array([0.1, 7.7], jnp.float32))
    average = reconstruct([s._replace(model=model) for s in snapshots], short)
    np.testing.assert_allclose(average.weights, model.weights, rtol=6e-8)


def test_long_trainings_go_by_blocks(monkeypatch):
    kept = [Snapshot(rule, step, None) for rule in PAIR for step in (300, 700, 1000)]
    whole = reconstruction_weights(kept, PowerEMA(4.0), 900)
    monkeypatch.setattr(averages, "BLOCK", 64)
    np.testing.assert_allclose(reconstruction_weights(kept, PowerEMA(4.0), 900), whole, rtol=1e-8)


def test_a_reconstruction_is_summed_in_float64():
    """Weights that alternate and are large: float32 would lose two digits, this loses none."""
    kept = [Snapshot(rule, step, None) for rule in PAIR for step in (300, 302, 304)]
    weights = reconstruction_weights(kept, PowerEMA(100.0))
    assert np.abs(weights).max() > 50 and weights.min() < 0
    rng = np.random.default_rng(0)
    leaves = (rng.normal(size=50) + 1e-3 * rng.normal(size=(6, 50))).astype(np.float32)
    models = [
        snap._replace(model=Model(jnp.asarray(x))) for snap, x in zip(kept, leaves, strict=True)
    ]
    got = np.asarray(reconstruct(models, PowerEMA(100.0)).weights)
    exact = weights @ leaves.astype(float)
    assert got.dtype == np.float32
    ulp = np.spacing(np.abs(exact).astype(np.float32))
    assert np.all(np.abs(got - exact) <= 0.51 * ulp)
    short = sum(np.float32(w) * x for w, x in zip(weights, leaves, strict=True))
    assert np.abs((short - exact) / ulp).max() > 10


def test_one_snapshot_is_its_own_reconstruction():
    [kept] = history(PAIR[:1], 5, [5])
    np.testing.assert_array_equal(reconstruction_weights([kept], PowerEMA(1.0)), [1.0])
    half = Model(jnp.ones(3, jnp.bfloat16))
    got = reconstruct([kept._replace(model=half)], PowerEMA(1.0)).weights
    assert got.dtype == jnp.bfloat16


def test_the_average_after_the_first_step_is_that_of_the_first_snapshot():
    kept = history(PAIR[:1], 4, [1, 4])
    np.testing.assert_allclose(reconstruction_weights(kept, PAIR[0], 1), [1, 0], atol=1e-12)
    np.testing.assert_allclose(reconstruction_weights(kept, PAIR[0], 4), [0, 1], atol=1e-12)


@pytest.mark.parametrize(
    "steps, step, message",
    [
        ([], None, r"need snapshots, each of step 1 or later, got the steps \[\]"),
        ([0, 4], None, r"got the steps \[0, 4\]"),
        ([2, 4], 5, "step must be one that the snapshots reached, 1 to 4; got 5"),
        ([2, 4], 0, "1 to 4; got 0"),
    ],
)
def test_what_cannot_be_reconstructed(steps, step, message):
    kept = [Snapshot(PAIR[0], k, Model(jnp.ones(2))) for k in steps]
    with pytest.raises(ValueError, match=message):
        reconstruct(kept, PowerEMA(1.0), step)
