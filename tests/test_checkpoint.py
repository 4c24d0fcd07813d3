"""A run that is killed goes on as if it had not been, and a bad checkpoint is never used."""

import inspect
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import warnings
import zlib
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from processes import environment

import edm_tutorial as edm
from edm_tutorial.training import checkpoint, init_state

SCRIPT = str(Path(__file__).with_name("kill_run.py"))
UNFINISHED = "*.orbax-checkpoint-tmp*"  # how Orbax calls what it has not finished


def model(key, width=4, sigma_data=1.0):
    network = edm.MLP(2, width=width, depth=1, key=jr.clone(key))
    return edm.Denoiser(network, edm.EDMPreconditioning(sigma_data))


@pytest.fixture
def state(key):
    """A state with something of every kind in it."""
    optimizer = optax.chain(optax.add_noise(0.1, 0.1, 7), optax.adam(1e-3))
    state = init_state(model(key), optimizer, (edm.HalfLifeEMA(), edm.HalfLifeEMA()))
    half = jnp.array([0.1, -0.0, jnp.inf], jnp.bfloat16)
    return state._replace(ema=(*state.ema, {"half": half, "none": jnp.zeros((0, 3))}))


def at(state, step):
    """The state at another step, with other weights."""
    add = lambda leaf: leaf + jnp.asarray(step, leaf.dtype)
    params, static = eqx.partition(state.denoiser, eqx.is_inexact_array)
    denoiser = eqx.combine(jax.tree.map(add, params), static)
    return state._replace(denoiser=denoiser, step=jnp.array(step))


def assert_identical(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        if eqx.is_array(a) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            assert jr.key_impl(a) == jr.key_impl(b)
            a, b = jr.key_data(a), jr.key_data(b)
        if eqx.is_array(a):
            assert a.dtype == b.dtype and np.array(a).tobytes() == np.array(b).tobytes()
        else:
            assert a == b


def steps(folder):
    return sorted(int(path.name) for path in Path(folder).iterdir())


def files(folder):
    return [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]


def test_what_is_restored_is_what_was_saved(state, tmp_path):
    assert checkpoint.restore(tmp_path / "none", state) is None
    saved = at(state, 5)
    checkpoint.save(tmp_path / "a" / "b", saved)
    assert_identical(checkpoint.restore(tmp_path / "a" / "b", state), saved)
    assert_identical(checkpoint.restore(str(tmp_path / "a" / "b"), at(state, 9)), saved)


def test_keeps_the_last_ones_and_the_best(state, tmp_path):
    for step, metric in {10: 3.0, 20: 1.0, 30: None, 40: 2.0, 50: 1.5}.items():
        checkpoint.save(tmp_path, at(state, step), keep=2, metric=metric)
    assert steps(tmp_path) == [20, 40, 50]
    assert_identical(checkpoint.restore(tmp_path, state), at(state, 50))
    assert_identical(checkpoint.restore(tmp_path, state, best=True), at(state, 20))
    checkpoint.save(tmp_path, at(state, 60), keep=1, metric=0.5)
    assert steps(tmp_path) == [60]


def test_without_a_metric_there_is_no_best(state, tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, at(state, step), keep=1)
    assert steps(tmp_path) == [3]
    assert checkpoint.restore(tmp_path, state, best=True) is None


def test_a_checkpoint_of_the_same_step_is_replaced(state, tmp_path):
    checkpoint.save(tmp_path, state._replace(step=jnp.array(4)))
    checkpoint.save(tmp_path, at(state, 4))
    assert_identical(checkpoint.restore(tmp_path, state), at(state, 4))


def test_what_a_killed_write_has_left_is_removed(state, tmp_path):
    checkpoint.save(tmp_path, at(state, 1))
    left = tmp_path / "2.orbax-checkpoint-tmp-7"
    left.mkdir()
    (left / "half").write_bytes(b"123")
    assert int(checkpoint.restore(tmp_path, state).step) == 1
    checkpoint.save(tmp_path, at(state, 2))
    assert steps(tmp_path) == [1, 2] and not list(tmp_path.glob(UNFINISHED))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_a_checksum_is_of_every_byte(dtype):
    """Any bit of any of 300 numbers, whatever the order in memory."""
    array = np.asarray(jnp.arange(300).reshape(3, 100).astype(dtype))
    whole = checkpoint._checksum(array)
    assert whole == zlib.crc32(array.tobytes()) == checkpoint._checksum(np.asfortranarray(array))
    for i in (0, 64, 65, 299 * array.itemsize, array.nbytes - 1):
        other = np.frombuffer(turned(array.tobytes(), i), array.dtype).reshape(3, 100)
        assert checkpoint._checksum(other) != whole


def turned(whole, i):
    return bytes([*whole[:i], whole[i] ^ 16, *whole[i + 1 :]])


# After one failed read Orbax closes its event loop; reads still under way then find it closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_any_damaged_file_is_noticed(state, tmp_path):
    """Each file in turn cut in half, emptied, removed or with one bit turned.

    Either what is restored is what was saved (not every byte of Orbax's files is needed),
    or the checkpoint is refused and the one before it is used. Never anything else.
    """
    checkpoint.save(tmp_path, at(state, 1))
    checkpoint.save(tmp_path, at(state, 2))
    pristine = tmp_path.with_name("pristine")
    shutil.copytree(tmp_path / "2", pristine)
    refused = []
    damages = {
        "cut": lambda whole: whole[: len(whole) // 2],
        "empty": lambda whole: b"",
        "turned": lambda whole: turned(whole, len(whole) // 2),
        "turned elsewhere": lambda whole: turned(whole, len(whole) // 4),
    }
    for path in files(tmp_path / "2"):
        whole = path.read_bytes()
        for damage in damages.values():
            path.write_bytes(damage(whole))
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                got = checkpoint.restore(tmp_path, state)
            said = [str(w.message) for w in caught if "is refused" in str(w.message)]
            assert len(said) == (int(got.step) == 1)
            reasons = "cannot be read|another checksum|not an edm|another model"
            assert all(re.search(reasons, why) for why in said)
            refused += [*said]
            assert_identical(got, at(state, int(got.step)))
        path.write_bytes(whole)
    assert len(refused) >= 10  # page, arrays, manifests
    assert any("another checksum" in said for said in refused)  # where Orbax does not look
    assert steps(tmp_path) == [1, 2]


def test_going_on_after_a_refusal(state, tmp_path):
    """The bad one is not in the way of saving, and is replaced when its step comes."""
    for step in (10, 20):
        checkpoint.save(tmp_path, at(state, step))
    for path in files(tmp_path / "20"):
        os.truncate(path, path.stat().st_size // 2)
    with pytest.warns(UserWarning, match="20 is refused: it cannot be read"):
        assert int(checkpoint.restore(tmp_path, state).step) == 10
    checkpoint.save(tmp_path, at(state, 15))
    with pytest.warns(UserWarning, match="20 is refused"):
        assert_identical(checkpoint.restore(tmp_path, state), at(state, 15))
    checkpoint.save(tmp_path, at(state, 20))
    assert_identical(checkpoint.restore(tmp_path, state), at(state, 20))


FOREIGN = {
    "another width": (lambda key: model(key, width=5), r"float64\[4, 2\], here float64\[5, 2\]"),
    "another sigma_data": (
        lambda key: model(key, sigma_data=0.5),
        "preconditioning._sigma_data is 1.0, here 0.5",
    ),
    "one more weight": (lambda key: (model(key), jnp.ones(3)), "and [0-9]+ more"),
    "another dtype": (
        lambda key: jax.tree.map(
            lambda a: a.astype(jnp.float32) if eqx.is_inexact_array(a) else a, model(key)
        ),
        r"is float64\[4, 2\], here float32\[4, 2\]",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_checkpoint_of_another_model_is_refused(name, key, tmp_path):
    make, message = FOREIGN[name]
    optimizer = optax.sgd(0.1)
    ours = init_state(model(key), optimizer)
    theirs = init_state(make(key), optimizer)
    checkpoint.save(tmp_path, at(ours, 3))
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=f"another model: .*{message}"):
        checkpoint.restore(tmp_path, theirs)
    checkpoint.save(tmp_path, at(theirs, 2))  # the foreign one is not in the way
    with pytest.warns(UserWarning, match="3 is refused: it is of another model"):
        assert int(checkpoint.restore(tmp_path, theirs).step) == 2


def test_what_is_not_our_checkpoint_is_refused(state, tmp_path):
    import orbax.checkpoint as ocp

    checkpoint.save(tmp_path, at(state, 1))
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "weights.bin").write_bytes(b"123")
    (tmp_path / "3").write_text("a file")
    (tmp_path / "notes").mkdir()  # no step: not looked at
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as other:
        page = ocp.args.JsonSave({"kind": "another program"})
        other.save(tmp_path / "4", ocp.args.Composite(page=page))
    with pytest.warns(UserWarning) as caught:
        restore = inspect.unwrap(checkpoint.restore)  # without the checks that tests add
        assert_identical(restore(tmp_path, state), at(state, 1))
    caught = [w for w in caught if "refused" in str(w.message)]
    assert {w.filename for w in caught} == {__file__}
    said = [str(w.message) for w in caught]
    assert len(said) == 3
    assert "4 is refused: it is not an edm_tutorial checkpoint 2" in said[0]
    assert "3 is refused: it cannot be read" in said[1]
    assert "2 is refused: it cannot be read" in said[2]


def test_all_refused_is_an_error_that_says_why(state, tmp_path):
    for step in (1, 2):
        (tmp_path / str(step)).mkdir()
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="2 is refused(.|\n)*1 is ref"):
        checkpoint.restore(tmp_path, state)


def test_a_run_from_the_start_does_not_hide_behind_a_later_one(state, tmp_path):
    checkpoint.save(tmp_path, at(state, 100))
    with pytest.raises(ValueError, match="later checkpoint of this model, of step 100: restore"):
        checkpoint.save(tmp_path, at(state, 10))
    assert steps(tmp_path) == [100]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"keep": 0}, "keep must be at least 1, got keep=0"),
        ({"metric": float("nan")}, "metric must be finite, got nan"),
        ({"metric": float("inf")}, "metric must be finite, got inf"),
    ],
)
def test_what_save_refuses(options, message, state, tmp_path):
    with pytest.raises(ValueError, match=message):
        checkpoint.save(tmp_path, state, **options)
    assert not steps(tmp_path)


RELEASE_0_1 = Path(__file__).parent / "release_0_1"


@pytest.fixture
def release_0_1(tmp_path, single_precision):
    """Checkpoints that version 0.1.0 wrote, what they held, and the losses of its next steps.

    In single precision, as they were made.
    """
    with tarfile.open(RELEASE_0_1 / "checkpoints.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path, dict(np.load(RELEASE_0_1 / "expected.npz"))


def of_release_0_1(name):
    """The training of tests/release_0_1/make.py, as one writes it now."""
    rng = np.random.default_rng(0)
    theta = rng.uniform(-1, 1, (400, 2)).astype(np.float32)
    x = jnp.asarray((theta + 0.3 * rng.normal(size=(400, 2))).astype(np.float32))
    preconditioning = {
        "measured": lambda: edm.EDMPreconditioning.from_data(x),
        "number": lambda: edm.EDMPreconditioning(0.5),
        "features": lambda: edm.EDMPreconditioning(jnp.array([0.5, 0.7], jnp.float32)),
    }[name]()
    network = edm.MLP(2, width=8, depth=1, key=jr.key(4))
    return edm.Denoiser(network, preconditioning), x, optax.adam(1e-3)


@pytest.mark.parametrize("name", ["measured", "number", "features"])
def test_a_checkpoint_of_version_0_1_goes_on(release_0_1, name):
    """Its weights to the bit, its sigma_data, the examples it had seen, and its next losses."""
    folder, expected = release_0_1
    denoiser, x, optimizer = of_release_0_1(name)
    template = init_state(denoiser, optimizer)
    state = checkpoint.restore(folder / f"checkpoint_{name}", template, batch_size=8)
    assert (int(state.step), int(state.seen), state.seen.dtype) == (3, 24, np.uint32)
    weights = jax.tree.leaves(eqx.filter(state.ema.network, eqx.is_inexact_array))
    found = np.concatenate([np.ravel(leaf) for leaf in weights])
    np.testing.assert_array_equal(found, expected[f"checkpoint_{name}"])
    assert state.denoiser.preconditioning == denoiser.preconditioning
    loss = partial(edm.denoising_loss, sigma_dist=edm.LogNormal())
    options = {"steps": 6, "batch_size": 8, "key": jr.key(5), "every": 3, "state": state}
    [(after, losses)] = edm.train(denoiser, loss, x, optimizer, **options)
    # float32, here by a compiler that is told not to optimise
    np.testing.assert_allclose(losses, expected[f"next_{name}"], rtol=1e-5)
    assert int(after.seen) == 48
    # and what is saved from now on is of today, beside the old one
    checkpoint.save(folder / f"checkpoint_{name}", after)
    assert_identical(checkpoint.restore(folder / f"checkpoint_{name}", template), after)


def test_a_checkpoint_of_version_0_1_needs_its_batch_size(release_0_1):
    """It did not count examples, and averages go on by their count."""
    folder, _ = release_0_1
    denoiser, _, optimizer = of_release_0_1("number")
    template = init_state(denoiser, optimizer)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="0.1.0.*pass batch_size"):
        checkpoint.restore(folder / "checkpoint_number", template)
    early = template._replace(step=jnp.array(1))  # but it is in the way as any other
    with pytest.raises(ValueError, match="later checkpoint of this model, of step 3"):
        checkpoint.save(folder / "checkpoint_number", early)


@pytest.mark.parametrize("name, other", [("number", "features"), ("measured", "number")])
def test_another_sigma_data_of_version_0_1_is_refused(release_0_1, name, other):
    folder, _ = release_0_1
    denoiser, _, optimizer = of_release_0_1(other)
    template = init_state(denoiser, optimizer)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="_sigma_data(.0.)? is"):
        checkpoint.restore(folder / f"checkpoint_{name}", template, batch_size=8)


def test_a_number_measured_on_another_machine_may_round_otherwise(key, tmp_path):
    """sigma_data is measured anew for the template; the stored number is the model's."""
    optimizer = optax.sgd(0.1)
    ours = init_state(model(key, sigma_data=0.7), optimizer)
    checkpoint.save(tmp_path, ours)
    near = init_state(model(key, sigma_data=0.7 * (1 + 1e-6)), optimizer)
    assert_identical(checkpoint.restore(tmp_path, near), ours)
    far = init_state(model(key, sigma_data=0.7 * (1 + 1e-4)), optimizer)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="_sigma_data is 0.7, here 0.7"):
        checkpoint.restore(tmp_path, far)


class Killed:
    """One life of the run, ended at a moment that `chance` chooses."""

    def __init__(self, folder, result, chance, writing):
        self.folder = folder
        command = [sys.executable, SCRIPT, str(folder), str(result)]
        self.said = result.with_suffix(".stderr")
        with self.said.open("w") as said:
            self.process = subprocess.Popen(
                command,
                env=environment(result.with_name("compiled")),
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            )
        self.start = self.step()
        for _ in range(chance.randint(1, 5)):  # then it is after the first checkpoint
            self.step()
        while writing and not self.unfinished() and self.process.poll() is None:
            pass  # a write takes some 50 ms
        time.sleep(0 if writing else chance.uniform(0, 0.1))
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait() == -signal.SIGKILL
        self.process.stdout.close()
        self.writing = bool(self.unfinished())

    def step(self):
        """The next step that it prints."""
        line = self.process.stdout.readline()
        if not line:
            self.process.communicate()
            pytest.fail(f"it ended before it was killed: {self.said.read_text()}")
        return int(line)

    def unfinished(self):
        return list(self.folder.glob(UNFINISHED))


def finish(folder, result):
    command = [sys.executable, SCRIPT, str(folder), str(result)]
    compiled = environment(result.with_name("compiled"))
    done = subprocess.run(command, env=compiled, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[0])


def test_a_run_that_ends_by_itself_says_why(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("print(0, flush=True)\nraise ValueError('no such thing')")
    monkeypatch.setitem(globals(), "SCRIPT", str(tmp_path / "broken.py"))
    with pytest.raises(pytest.fail.Exception, match="killed: (?s:.*)ValueError: no such thing"):
        Killed(tmp_path, tmp_path / "run.npz", random.Random(0), writing=False)


@pytest.mark.slow
def test_killed_ten_times_it_gives_the_same_weights_to_the_bit(tmp_path):
    chance = random.Random(11)
    killed, lives = tmp_path / "killed", []
    killed.mkdir()
    # A write can end between seeing it and the kill; then another life makes up for it.
    while len(lives) < 10 or sum(life.writing for life in lives) < 2:
        assert len(lives) < 16
        aim = len(lives) % 5 == 3 or len(lives) >= 10
        lives.append(Killed(killed, tmp_path / "killed.npz", chance, writing=aim))
    starts = [life.start for life in lives] + [finish(killed, tmp_path / "killed.npz")]
    assert starts[0] == 0 and all(a < b for a, b in zip(starts, starts[1:], strict=False))
    assert not list(killed.glob(UNFINISHED))
    assert finish(tmp_path / "whole", tmp_path / "whole.npz") == 0
    one, other = np.load(tmp_path / "killed.npz"), np.load(tmp_path / "whole.npz")
    assert one.files == other.files and len(one.files) > 20
    for name in one.files:
        assert one[name].tobytes() == other[name].tobytes()
    assert any(np.any(one[name] == 300) for name in one.files)  # the step: it came to the end
