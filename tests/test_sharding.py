"""A training on many devices is the training on one: the same sums in another order."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import edm_tutorial as edm
from edm_tutorial.training.sharding import automatic, data_parallel, replicate, split

SCRIPT = str(Path(__file__).with_name("sharded_run.py"))


def start(folder, devices, *arguments):
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling is all the time there is
    }
    command = [sys.executable, SCRIPT, str(folder), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors


def assert_one_training(result):
    for data in ("arrays", "stream"):
        for name in ("losses", "state"):
            many, one = (result[f"{data}/{where}/{name}"] for where in ("all", "one"))
            assert many.dtype == np.float32
            # float32 sums in another order; Adam's division passes them on to the weights
            np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-5)
        assert len(result[f"{data}/all/losses"]) == 20
        assert result[f"{data}/restored"]
    # two trainings, not one: arrays and stream differ in their batches
    assert np.all(result["arrays/all/losses"] != result["stream/all/losses"])


@pytest.mark.slow
def test_eight_devices_are_one(tmp_path):
    finish(start(tmp_path, 8))
    result = np.load(tmp_path / "0.npz")
    assert result["devices"] == 8
    assert_one_training(result)


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path):
    """Joined over the loopback; each sees all batches and the same weights come out."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [start(tmp_path, 1, address, 2, i) for i in range(2)]
    for process in processes:
        finish(process)
    first, second = (np.load(tmp_path / f"{i}.npz") for i in range(2))
    assert first["processes"] == second["processes"] == first["devices"] == 2
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    assert_one_training(first)


def test_all_devices_share_a_batch():
    sharding = data_parallel()
    assert sharding.mesh.devices.size == len(jax.devices())
    batch = {"x": np.arange(2.0 * len(jax.devices())), "label": np.arange(2 * len(jax.devices()))}
    placed = split(batch, sharding)
    for name, array in placed.items():
        np.testing.assert_array_equal(array, batch[name])
        assert len(array.addressable_shards) == len(jax.devices())
        assert all(shard.data.shape == (2,) for shard in array.addressable_shards)


def test_replicate_copies_arrays_and_leaves_the_rest(key):
    tree = {"w": jax.numpy.ones(3), "key": key, "f": np.sin, "n": 3}
    copy = replicate(tree, data_parallel())
    assert copy["f"] is np.sin and copy["n"] == 3
    assert copy["w"].sharding.is_fully_replicated
    np.testing.assert_array_equal(jax.random.key_data(copy["key"]), jax.random.key_data(key))


ON_EIGHT = """
import equinox as eqx, jax, jax.numpy as jnp, jax.random as jr, numpy as np, optax, pytest
import edm_tutorial as edm
from edm_tutorial.training import BatchLoss
from edm_tutorial.training.batches import load
from edm_tutorial.training.sharding import automatic, data_parallel, replicate, split

everywhere = automatic(data_parallel(), 24)
assert everywhere.shard_shape((24,)) == (3,)
with pytest.raises(ValueError, match="multiple of the 8 devices it is split over, got 20"):
    automatic(data_parallel(), 20)

def parts(array):
    assert len(array.addressable_shards) == 8
    return {shard.data.shape for shard in array.addressable_shards}

batch = split({"x": np.arange(48.0).reshape(24, 2)}, everywhere)
assert parts(batch["x"]) == {(3, 2)}
rows = [float(shard.data[0, 0]) for shard in batch["x"].addressable_shards]
np.testing.assert_array_equal(sorted(rows), np.arange(0.0, 48.0, 6))
assert parts(replicate(jnp.ones((24, 2)), everywhere)) == {(24, 2)}

data = (np.ones((40, 2)), {"label": np.arange(40.0)})
examples = load(data, 24, everywhere)
assert parts(examples.data.x) == {(40, 2)}
drawn = eqx.filter_jit(lambda e, key: e.draw(key, 24, everywhere))(examples, jr.key(0))
assert parts(drawn.x) == {(3, 2)} and parts(drawn.cond["label"]) == {(3,)}

seen = []

class Weight(eqx.Module):
    weight: jax.Array

def loss(model, x, cond, *, key):
    jax.debug.inspect_array_sharding(x, callback=seen.append)
    return jnp.sum(model.weight * x)

for source in (data, lambda step: np.ones((24, 2))):
    options = dict(steps=2, batch_size=24, key=jr.key(1), every=2, sharding=data_parallel())
    [(state, _)] = edm.train(
        Weight(jnp.ones(2)), BatchLoss(loss), source, optax.sgd(1.0), **options
    )
    assert parts(state.denoiser.weight) == {(2,)}
    assert len(seen) > 0 and all(found.shard_shape((24, 2)) == (3, 2) for found in seen), seen
    seen.clear()
"""


def test_each_of_eight_devices_takes_its_part_of_every_batch():
    """By the shapes of the parts, given and drawn, also inside the compiled training."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", ON_EIGHT], env=os.environ | flags, check=True)


@pytest.mark.slow
def test_another_kind_of_sharding_is_refused(key, unchecked):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with pytest.raises(TypeError, match="sharding must be a NamedSharding, got SingleDevice"):
        automatic(one, 8)
    denoiser = edm.Denoiser(edm.MLP(2, width=8, depth=1, key=key), edm.EDMPreconditioning(1.0))
    with pytest.raises(TypeError, match="NamedSharding"):
        edm.train(
            denoiser,
            lambda model, x, cond, *, key: x[0],
            jax.numpy.ones((4, 2)),
            optax.sgd(0.1),
            steps=1,
            batch_size=4,
            key=jax.random.key(0),
            sharding=one,
        )


def test_axes_of_any_type_become_automatic():
    """`jax.make_mesh` has made explicit axes, which gathering does not allow."""
    mesh = jax.make_mesh((len(jax.devices()),), ("batch",))
    given = NamedSharding(mesh, PartitionSpec("batch"))
    made = automatic(given, 8)
    assert isinstance(made.mesh, Mesh) and made.spec == given.spec
    assert all(kind == jax.sharding.AxisType.Auto for kind in made.mesh.axis_types)
