"""The command line: what it prints, and a run that is killed and goes on.

About 90 seconds, nearly all of it the slow test's three processes.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

from edm_tutorial.images import command_line as cli, data
from edm_tutorial.networks import small_unet
from edm_tutorial.training import checkpoint, init_state

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["train", "--width", "4", "--batch-size", "8", "--every", "5", "--sample-every", "20"]


def test_help_names_every_argument(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--help"])
    assert stop.value.code == 0
    told = capsys.readouterr().out
    for name in ("--data", "--out", "--steps", "--batch-size", "--augment", "--dry-run"):
        assert name in told
    assert "{digits,fashion-mnist,cifar10}" in told


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "the following arguments are required: command"),
        (["train"], "the following arguments are required: --out"),
        (["train", "--out", "x", "--steps", "0"], "--steps: must be at least 1, got 0"),
        (["train", "--out", "x", "--steps", "many"], "--steps: invalid"),
        (["train", "--out", "x", "--data", "mnist"], "--data: invalid choice: 'mnist'"),
        (["train", "--out", "x", "--epochs", "3"], "unrecognized arguments: --epochs 3"),
    ],
)
def test_bad_arguments(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name, count", [("digits", "1,797"), ("cifar10", "50,000")])
@pytest.mark.slow
def test_dry_run_says_what_would_be_done(capsys, tmp_path, name, count):
    out = tmp_path / "run"
    assert cli.main([*SMALL, "--data", name, "--out", str(out), "--dry-run"]) == 0
    told = capsys.readouterr().out
    network = small_unet(cli.SHAPES[name], label_dim=10, width=4, key=jax.random.key(0))
    size = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(network, eqx.is_array)))
    assert f"{size:,} parameters" in told
    assert f"{name}: {count} images of " + " x ".join(map(str, cli.SHAPES[name])) in told
    assert "2,000 steps of 8 images" in told
    assert jax.devices()[0].device_kind in told
    assert not out.exists()


def test_shapes_and_counts_are_those_of_the_data():
    digits = data.digits()
    assert digits.images.shape == (cli.COUNTS["digits"], *cli.SHAPES["digits"])


def test_another_run_in_the_same_folder_is_refused(capsys, tmp_path):
    args = [*SMALL, "--out", str(tmp_path), "--seed", "1"]
    (tmp_path / "settings.json").write_text('{"seed": 0, "data": "digits"}')
    assert cli.main(args) == 2
    told = capsys.readouterr().err
    assert "holds another run" in told and "seed was 0" in told and "data" not in told


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_read_back_by_another_decoder(key, tmp_path, channels):
    levels = np.asarray(jax.random.randint(key, (1, 1, channels, 32, 40), 0, 256))
    cli.picture(levels / 127.5 - 1).save(tmp_path / "image.png")
    read = np.rint(matplotlib.image.imread(tmp_path / "image.png") * 255).astype(int)
    expected = np.moveaxis(levels[0, 0], 0, -1)
    np.testing.assert_array_equal(read.reshape(expected.shape), expected)


def test_a_picture_places_rows_and_columns():
    images = np.zeros((2, 3, 1, 16, 16))
    images[1, 2, 0, 0, 15] = 1.0  # the top right pixel of the last image
    images[0, 0] = -2.0  # clipped to black
    picture = np.asarray(cli.picture(images))
    assert picture.shape == (64, 96)
    white = np.argwhere(picture == 255)
    np.testing.assert_array_equal(np.unique(white[:, 0]), [32, 33])
    np.testing.assert_array_equal(np.unique(white[:, 1]), [94, 95])
    assert np.all(picture[:32, :32] == 0) and picture[0, 40] == 128


def start(out, steps, cache):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiles faster, as conftest.py does
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, "-m", "edm_tutorial", *SMALL, "--out", str(out), "--steps", steps]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, "--augment", "0.2"], cwd=ROOT, env=environment, **pipes)


def final_state(out):
    args = cli.parser().parse_args([*SMALL, "--out", str(out), "--augment", "0.2"])
    with jax.enable_x64(False):
        digits = data.digits()
        setup = cli.build(args, jnp.asarray(digits.images - digits.images.mean(axis=0)))
        template = init_state(setup.denoiser, setup.optimizer)
        return checkpoint.restore(out / "checkpoints", template)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path):
    whole, broken, cache = tmp_path / "whole", tmp_path / "broken", tmp_path / "cache"
    process = start(whole, "40", cache)
    told, progress = process.communicate()
    assert process.returncode == 0, progress
    assert "starts    afresh" in told and "finished  40 steps" in told
    assert "loss=" in progress and re.search(r"40/40 \[\d\d:\d\d<00:00", progress)  # time left
    process = start(broken, "40", cache)
    while not any(folder.name.isdecimal() for folder in broken.glob("checkpoints/*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (broken / "samples-0000040.png").exists(), "killed too late to test anything"
    process = start(broken, "40", cache)
    told, progress = process.communicate()
    assert process.returncode == 0, progress
    assert re.search(r"starts    from step (5|10|15|20|25|30|35)\n", told)
    states = [
        jax.tree.leaves(eqx.filter(final_state(out), eqx.is_array)) for out in (whole, broken)
    ]
    for one, other in zip(*states, strict=True):
        np.testing.assert_array_equal(one, other)
    picture = matplotlib.image.imread(broken / "samples-0000040.png")
    assert picture.shape[:2] == (4 * 32, 10 * 32)
    np.testing.assert_array_equal(picture, matplotlib.image.imread(whole / "samples-0000040.png"))
