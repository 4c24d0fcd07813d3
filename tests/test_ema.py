"""Averages of the weights against the reference numbers and against sums by hand."""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import edm_tutorial as edm

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
