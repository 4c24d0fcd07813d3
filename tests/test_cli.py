"""The command line: what it prints, and a run that is killed and goes on.

About 90 seconds, nearly all of it the slow test's three processes.
"""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.image
import numpy as np
import optax
import PIL.Image
import pytest
from exact import single_precision
from processes import environment

import edm_tutorial as edm
from edm_tutorial.images import command_line as cli, data
from edm_tutorial.images.augmentation import Augmentation, AugmentedLoss
from edm_tutorial.losses import denoising_loss
from edm_tutorial.networks import Cast, ImageCondition, UNet, small_unet
from edm_tutorial.training import checkpoint, clean_gradients, cleaned, init_state

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["train", "--width", "4", "--batch-size", "8", "--every", "5", "--sample-every", "20"]


def test_help_names_every_argument(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--help"])
    assert stop.value.code == 0
    told = capsys.readouterr().out
    for name in ("--data", "--out", "--steps", "--batch-size", "--augment", "--dry-run"):
        assert name in told
    assert "{digits,fashion-mnist,cifar10}" in told.replace("\n", "").replace(" ", "")
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "--run runs/digits --class 3 --out threes.png" in capsys.readouterr().out


def test_a_run_is_described_by_its_numbers():
    """1,797 digits are seen 4.0 times in 900 steps of 8."""
    told = cli.describe(parsed("--steps", "900", "--bfloat16"), DIGITS).splitlines()
    assert told[0] == "data      digits: 1,797 images of 1 x 8 x 8, 10 classes"
    assert re.fullmatch(r"network   U-Net of width 4: [\d,]+ parameters, bfloat16, .*", told[1])
    assert told[2] == "training  900 steps of 8 images, 4.0 passes over the data"
    assert told[4] == "output    x: a checkpoint every 5 steps, samples every 20"


def test_a_sample_is_drawn_at_18_levels_by_heun_without_guidance():
    """Unless told: 35 calls, as published for small pictures."""
    args = cli.parser().parse_args(["sample", "--run", "x", "--out", "y"])
    assert (args.steps, args.solver, args.guidance, args.seed) == (18, "heun", 1.0, 0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "the following arguments are required: command"),
        (["train"], "the following arguments are required: --out"),
        (["train", "--out", "x", "--steps", "0"], "--steps: must be at least 1, got 0"),
        (["train", "--out", "x", "--steps", "many"], "--steps: invalid"),
        (["train", "--out", "x", "--data", "mnist"], "--data: must be digits,"),
        (
            ["sample", "--run", "x", "--out", "y", "--solver", "rk"],
            "--solver: invalid choice: 'rk'",
        ),
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
    """Of digits by looking; of the others by what their loaders say, in words."""
    digits = data.digits()
    assert digits.images.shape == (cli.COUNTS["digits"], *cli.SHAPES["digits"])
    for name, load in {"fashion-mnist": data.fashion_mnist, "cifar10": data.cifar10}.items():
        said = load.__doc__
        assert f"{cli.COUNTS[name]:,}" in said
        assert " x ".join(map(str, cli.SHAPES[name])) in said


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10"])
def test_the_data_are_those_asked_for(monkeypatch, unchecked, name):
    monkeypatch.setattr(data, name, lambda cache: (name, cache))
    args = ["--data", name.replace("_", "-"), "--cache", "there"]
    assert cli._load(parsed(*args)) == (name, "there")


def parsed(*arguments):
    return cli.parser().parse_args([*SMALL, "--out", "x", *arguments])


DIGITS = cli.About((1, 8, 8), 10, 1797)


def built(*arguments):
    return cli.build(parsed(*arguments), DIGITS, 0.5)


def test_flags_reach_the_network():
    plain = built().denoiser.network
    assert isinstance(plain, UNet)
    short = built("--bfloat16").denoiser.network
    assert isinstance(short, Cast) and short.dtype == jnp.bfloat16
    dropped = eqx.tree_pformat(built("--dropout", "0.37").denoiser.network)
    assert "dropout=0.37" in dropped and "dropout=0.37" not in eqx.tree_pformat(plain)
    weights = lambda net: jnp.concatenate(
        [leaf.ravel() for leaf in jax.tree.leaves(eqx.filter(net, eqx.is_inexact_array))]
    )
    assert np.any(weights(built("--seed", "1").denoiser.network) != weights(plain))
    assert weights(built("--width", "8").denoiser.network).size > 2 * weights(plain).size


def test_flags_reach_the_optimizer():
    """Adam's steps on a constant gradient are as long as the rate, which ramps up."""
    for ramp, share in (("0", 1.0), ("32", 0.25)):  # in batches of 8
        optimizer = built("--learning-rate", "0.25", "--ramp-up", ramp).optimizer
        state, weight = optimizer.init(jnp.ones(())), jnp.ones(())
        for _ in range(2):
            with jax.numpy_dtype_promotion("standard"):
                update, state = optimizer.update(jnp.ones(()), state, weight)
        np.testing.assert_allclose(update, -0.25 * share, rtol=1e-6)
    assert int(cleaned(state).steps) == 0


def test_the_width_of_the_data_is_measured(tmp_path):
    images = np.asarray(data.digits().images, float)
    centred = images - images.mean(axis=0)
    prepared = cli._prepare(cli.parser().parse_args([*SMALL, "--out", str(tmp_path)]))
    sigma_data = prepared.setup.denoiser.preconditioning.sigma_data
    np.testing.assert_allclose(sigma_data, np.sqrt(np.mean(centred**2)), rtol=1e-5)


def test_flags_reach_the_training(monkeypatch, tmp_path):
    """A stub in place of the training: what it is given, and what is written as it goes."""
    given, saved = [], []

    def train(*args, **options):
        given.append(options)
        for step in (4, 8, 12):
            yield options["state"]._replace(step=jnp.array(step)), np.zeros(4)

    monkeypatch.setattr(cli, "train", train)
    monkeypatch.setattr(checkpoint, "save", lambda folder, state: saved.append(int(state.step)))
    monkeypatch.setattr(cli, "draw", lambda d, mean, labels, key: np.zeros((len(labels), 1, 8, 8)))
    setup = cli.Setup(SaysItsClass(jnp.array(0.0)), None, optax.sgd(1.0))
    flags = ["--steps", "12", "--every", "4", "--batch-size", "16", "--sample-every", "8"]
    flags += ["--accumulate", "2"]
    for seed in ("3", "4"):
        start = init_state(setup.denoiser, setup.optimizer)
        args = parsed(*flags, "--seed", seed, "--out", str(tmp_path))
        examples = None, ImageCondition(jnp.arange(10))
        state = cli._run(args, cli.Prepared(setup, examples, start, np.zeros((1, 8, 8))))
        assert int(state.step) == 12
    one, other = (options.pop("key") for options in given)
    assert np.any(jax.random.key_data(one) != jax.random.key_data(other))
    for options in given:
        asked = {"steps": 12, "every": 4, "batch_size": 16, "accumulate": 2}
        assert asked.items() <= options.items()
        assert (options["sharding"] is None) == (jax.device_count() == 1)
    assert saved == 2 * [4, 8, 12]
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pictures == [f"samples-{step:07d}.png" for step in (4, 8, 12)]


SETUP = cli.Setup(None, None, optax.sgd(1.0))


def test_flags_reach_the_loss():
    plain = built().loss  # keeps every class, and tells no augmentation
    assert plain.func is denoising_loss and plain.keywords == {"sigma_dist": edm.LogNormal()}
    loss = built("--augment", "0.3").loss
    assert isinstance(loss, AugmentedLoss) and loss.loss.func is denoising_loss
    assert loss.augmentation == Augmentation(p=0.3, p_mirror=0.3)
    for flags, labels in (((), None), (("--augment", "0.3"), 9)):
        layer = built(*flags).denoiser.network.embedding.map_augment
        assert (layer and layer.weight.shape[1]) == labels
    assert built("--augment", "0.9").loss.augmentation == Augmentation(p=0.9, p_mirror=0.5)


EXAMPLES = None, ImageCondition(jnp.arange(10))


class SaysItsClass(eqx.Module):
    """A denoiser whose every pixel is `weight` plus a tenth of the class."""

    weight: jax.Array

    def __call__(self, x, sigma, cond=None, *, key=None):
        label = jnp.asarray(cond.class_labels).astype(x.dtype)
        return jnp.full_like(x, 0.1) * label + self.weight.astype(x.dtype)


def test_label_dropout_hides_the_asked_for_share_of_the_classes(key):
    """600 draws: 4 standard errors of a share of 0.3 are 0.075."""
    loss, seen = built("--label-dropout", "0.3").loss, []

    def spy(x, label, cond, *, key):
        seen.append(cond.class_labels)
        return x

    denoiser = edm.Denoiser(spy, edm.EDMPreconditioning(0.5))
    image, cond = jnp.zeros((1, 8, 8)), ImageCondition(jnp.array(3))

    def labels(key):
        loss(denoiser, image, cond, key=key)
        return seen.pop()

    shown = np.asarray(jax.vmap(labels)(jr.split(key, 600)))
    assert set(shown.tolist()) == {3, -1}
    assert abs(np.mean(shown == -1) - 0.3) < 0.075


def test_a_run_from_before_some_flags_goes_on(tmp_path):
    args = cli.parser().parse_args([*SMALL, "--out", str(tmp_path)])
    settings = cli._settings(args)
    del settings["label_dropout"], settings["size"]
    (tmp_path / cli.SETTINGS).write_text(json.dumps(settings))
    cli._check_folder(tmp_path, args)  # raises nothing


def test_samples_are_of_their_classes_around_the_mean():
    mean, labels = np.random.default_rng(0).normal(size=(1, 8, 8)), np.array([3, 0, 3, 9])
    drawn = cli.draw(SaysItsClass(jnp.array(0.0)), mean, labels, key=jr.key(0))
    # a constant denoiser ends where it says: the last step returns D itself
    expected = labels[:, None, None, None] / 10 + mean
    np.testing.assert_allclose(drawn, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("classes, columns", [(1, [0] * 10), (3, [0, 1, 2]), (12, list(range(10)))])
def test_columns_are_classes(monkeypatch, tmp_path, classes, columns):
    """The first ten of many; ten of the same where there is one."""
    pictured = []
    monkeypatch.setattr(cli, "picture", lambda images: pictured.append(images) or Blank())
    args = parsed("--every", "5", "--out", str(tmp_path))
    cli._draw_due(args, stepped(5), np.zeros((1, 2, 2)), classes, 5)
    expected = np.broadcast_to(np.array(columns)[:, None, None, None] / 10, pictured[0].shape)
    np.testing.assert_allclose(pictured[0], expected, atol=1e-6)
    assert pictured[0].shape[:2] == (4, len(columns))


def stepped(step, weight=0.0):
    """The state of a stub after some steps."""
    state = init_state(SaysItsClass(jnp.array(weight)), optax.sgd(1.0))
    return state._replace(step=jnp.array(step))


class Blank:
    """A picture that can be saved."""

    def save(self, file, *kind):
        file.write_bytes(b"blank")


def test_what_was_due_when_a_run_was_killed_is_drawn(monkeypatch, tmp_path):
    """At the first checkpoint, every 20 steps and at the end, once, and nothing in between."""
    monkeypatch.setattr(cli, "picture", lambda images: Blank())
    monkeypatch.setattr(cli, "draw", lambda d, mean, labels, key: np.zeros((len(labels), 1, 1, 1)))
    args = parsed("--steps", "43", "--every", "5", "--out", str(tmp_path))
    for step in [*range(0, 41, 5), 43]:
        cli._draw_due(args, stepped(step), np.zeros((1, 1, 1)), 1, 5)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"samples-{step:07d}.png" for step in (5, 20, 40, 43)]
    kept = tmp_path / names[0]
    kept.write_bytes(b"mine")
    cli._draw_due(args, stepped(5), np.zeros((1, 1, 1)), 1, 5)
    assert kept.read_bytes() == b"mine"
    begun = []

    def train(*args, state, **options):
        begun.append(sorted(path.name for path in tmp_path.iterdir()))
        return iter(())

    monkeypatch.setattr(cli, "train", train)
    (tmp_path / names[1]).unlink()
    cli._run(args, cli.Prepared(SETUP, EXAMPLES, stepped(20), np.zeros((1, 1, 1))))
    assert (tmp_path / names[1]).exists()


def test_what_is_trained_and_drawn(monkeypatch, tmp_path):
    """A whole run with a stub for the network: its loss sees every image with its own class.

    The gradient is -1 and the rate 1, so the weight counts the steps, and the average of the
    weights, of which pictures are drawn, lags behind it.
    """
    seen, pictured = [], []

    def loss(denoiser, x, cond, *, key):
        jax.debug.callback(lambda *told: seen.append(told), x, cond.class_labels)
        return -denoiser.weight

    def build(args, about, sigma_data):
        optimizer = optax.chain(clean_gradients(), optax.sgd(1.0))
        return cli.Setup(SaysItsClass(jnp.array(0.0)), loss, optimizer)

    def picture(images):
        pictured.append(images)
        return PIL.Image.new("L", (1, 1))

    monkeypatch.setattr(cli, "build", build)
    monkeypatch.setattr(cli, "picture", picture)
    out = ["--out", str(tmp_path), "--steps", "10"]
    assert cli.main([*SMALL, *out]) == 0  # 8 a step, a checkpoint every 5
    jax.effects_barrier()
    digits = data.digits()
    mean = digits.images.mean(axis=0)
    classes = {}
    for image, label in zip(digits.images - mean, digits.labels, strict=True):
        classes.setdefault(image.tobytes(), set()).add(int(label))
    assert len(seen) == 80
    for x, label in seen:
        assert int(label) in classes[np.asarray(x).tobytes()]
    assert len({int(label) for _, label in seen}) > 5
    template = init_state(SaysItsClass(jnp.array(0.0)), build(None, None, None).optimizer)
    state = checkpoint.restore(tmp_path / "checkpoints", template)
    assert float(state.denoiser.weight) == 10 and float(state.ema.weight) < 9.9
    _, images = pictured  # at the first checkpoint and at the end: 10 is less than --sample-every
    expected = np.broadcast_to(0.3 + float(state.ema.weight) + mean, images[:, 3].shape)
    np.testing.assert_allclose(images[:, 3], expected, rtol=1e-5)
    names = sorted(path.name for path in tmp_path.glob("*.png"))
    assert names == ["samples-0000005.png", "samples-0000010.png"]


# What is drawn from a run, and data of one's own


@pytest.fixture
def run(monkeypatch, tmp_path):
    """The folder of a run of 2 x 3 images in two classes, of which stubs drew and remember."""
    built, stub = [], SaysItsClass(jnp.array(0.25))

    def build(args, about, sigma_data):
        built.append((args.width, about.shape, about.classes, sigma_data))
        return cli.Setup(stub, None, optax.sgd(1.0))

    monkeypatch.setattr(cli, "build", build)
    folder = tmp_path / "run"
    args = [*SMALL, "--out", str(folder), "--label-dropout", "0.1"]
    checkpoint.save(folder / "checkpoints", stepped(7, 0.25))
    settings = cli._settings(cli.parser().parse_args(args))
    (folder / cli.SETTINGS).write_text(json.dumps(settings))
    mean = np.arange(6.0).reshape(1, 2, 3) / 10
    np.savez(folder / cli.DATA, mean=mean, sigma_data=0.75, classes=2)
    return folder, built, mean


def test_samples_of_a_run(run, tmp_path, capsys):
    """The stub returns a tenth of the class, -1 for none, and 0.25; guidance extrapolates.

    With weight 3, 3 (k / 10) - 2 (-1 / 10) = 0.3 k + 0.2.
    """
    folder, built, mean = run
    drawn = {}
    flags_of = {"turn": [], "ones": ["--class", "1"], "far": ["--guidance", "3"]}
    flags_of |= {"zeros": ["--class", "0"]}
    for name, flags in flags_of.items():
        file = tmp_path / f"{name}.npz"
        sample = ["sample", "--run", str(folder), "--out", str(file), "--count", "3"]
        assert cli.main([*sample, "--steps", "4", *flags]) == 0
        with np.load(file) as stored:
            drawn[name] = dict(stored)
    assert "3 images at step 7" in capsys.readouterr().out
    assert built == 4 * [(4, (1, 2, 3), 2, 0.75)]
    shift = {"turn": [0, 0.1, 0], "ones": [0.1] * 3, "far": [0.2, 0.5, 0.2], "zeros": [0] * 3}
    for name, values in shift.items():
        wanted = mean + 0.25 + np.array(values)[:, None, None, None]
        np.testing.assert_allclose(drawn[name]["images"], wanted, rtol=1e-6, atol=1e-6)
    assert drawn["turn"]["labels"].tolist() == [0, 1, 0]
    assert drawn["ones"]["labels"].tolist() == [1, 1, 1]


def test_sampling_flags_reach_the_sampler(run, monkeypatch, tmp_path):
    folder, _, mean = run
    given = []

    def draw(denoiser, mean, labels, **options):
        given.append(options)
        return np.zeros((len(labels), *mean.shape))

    monkeypatch.setattr(cli, "draw", draw)
    sample = ["sample", "--run", str(folder), "--out", str(tmp_path / "new" / "one" / "some.png")]
    assert cli.main([*sample, "--steps", "9", "--solver", "euler", "--seed", "5"]) == 0
    assert given[0]["steps"] == 9 and given[0]["solver"] == edm.Euler()
    np.testing.assert_array_equal(jr.key_data(given[0]["key"]), jr.key_data(jr.key(5)))
    # 40 grey images of 2 x 3, ten times as large, ten in a row
    picture = matplotlib.image.imread(tmp_path / "new" / "one" / "some.png")
    assert picture.shape == (4 * 20, 10 * 30) and np.all(np.abs(picture - 128 / 255) < 1e-6)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--class", "2"], "--class must be from 0 to 1, got 2"),
        (["--class", "-1"], "--class must be from 0 to 1, got -1"),
        (["--out", "picture.jpg"], "--out must end in .png or .npz, got picture.jpg"),
        (["--run", "nowhere"], "nowhere holds no run: give the --out of a training"),
    ],
)
def test_samples_that_cannot_be_drawn(run, capsys, flags, message):
    folder, *_ = run
    assert cli.main(["sample", "--run", str(folder), "--out", "x.png", *flags]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(message)


def test_a_guide_must_have_been_trained(run, capsys):
    folder, *_ = run
    (folder / cli.SETTINGS).write_text("{}")
    assert cli.main(["sample", "--run", str(folder), "--out", "x.png", "--guidance", "2"]) == 2
    assert "needs a run that was trained with --label-dropout" in capsys.readouterr().err


def test_a_failed_download_ends_in_one_line(monkeypatch, capsys, tmp_path):
    def load(cache):
        raise OSError("the archive could not be downloaded:\n  no route to host")

    monkeypatch.setattr(data, "cifar10", load)
    assert cli.main([*SMALL, "--data", "cifar10", "--out", str(tmp_path / "run")]) == 2
    told = capsys.readouterr()
    assert told.err == "the archive could not be downloaded: no route to host\n"
    assert "50,000 images" in told.out and not (tmp_path / "run").exists()


def test_a_folder_of_ones_own_is_described_and_loaded(capsys, tmp_path):
    """Two classes of 2 x 3 pixels in RGB, cut to squares of 2: what is told, what is trained."""
    for index, name in enumerate(("cats", "dogs", "dogs")):
        (tmp_path / "own" / name).mkdir(parents=True, exist_ok=True)
        pixels = np.full((2, 3, 3), 60 * index, np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / "own" / name / f"{index}.png")
    args = [*SMALL, "--data", str(tmp_path / "own"), "--size", "2", "--out", str(tmp_path / "run")]
    prepared = cli._prepare(cli.parser().parse_args(args))
    assert "3 images of 3 x 2 x 2, 2 classes" in capsys.readouterr().out
    x, cond = prepared.examples
    assert cond.class_labels.tolist() == [0, 1, 1]
    levels = np.array([0, 60, 120]) / 127.5 - 1
    expected = np.broadcast_to(levels[:, None, None, None], (3, 3, 2, 2))
    np.testing.assert_allclose(np.asarray(x) + prepared.mean, expected, atol=1e-6)
    assert prepared.setup.denoiser.network.shape == (3, 2, 2)


def test_the_cost_is_that_of_the_first_steps():
    assert cli._cost(30.0, 100, 2000) == (
        "time      100 steps and compiling took 30 s: 10.0 min at most"
    )


WITHOUT = """
import runpy, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {module!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
sys.argv[1:] = ["train", "--help"]
runpy.run_module("edm_tutorial", run_name="__main__")
"""


@pytest.mark.parametrize("module", ["tqdm", "PIL", "orbax"])
def test_a_missing_extra_is_named(module):
    script = WITHOUT.format(module=module)
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1 and run.stdout == ""
    [line] = run.stderr.splitlines()
    assert f"needs {module}" in line and 'pip install "edm-tutorial[train]"' in line


def test_a_run_that_cannot_start_leaves_its_folder_free(monkeypatch, capsys, tmp_path):
    """What fails before the first step is no run: with better settings the folder will do."""
    monkeypatch.setattr(cli, "_run", lambda args, prepared: prepared.state)
    args = [*SMALL, "--out", str(tmp_path / "run")]
    assert cli.main([*args, "--width", "6"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "choose widths that are multiples of 4" in line
    assert cli.main(args) == 0
    assert (tmp_path / "run" / "settings.json").exists()
    (tmp_path / "file").write_text("")
    assert cli.main([*SMALL, "--out", str(tmp_path / "file")]) == 2
    assert "is a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flag, value",
    [
        *(("--learning-rate", "-1"), ("--learning-rate", "0"), ("--steps", "0")),
        *(("--dropout", "2"), ("--dropout", "-0.1"), ("--augment", "3")),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_done(flag, value, capsys, tmp_path):
    with pytest.raises(SystemExit):
        cli.main([*SMALL, "--out", str(tmp_path / "run"), "--dry-run", flag, value])
    assert f"argument {flag}: must be" in capsys.readouterr().err


def test_numbers_at_the_ends_of_their_range_are_taken():
    """As 0 turns off, and 1 is always."""
    args = parsed("--augment", "0", "--label-dropout", "1", "--steps", "1", "--dropout", "0")
    assert (args.augment, args.label_dropout, args.steps, args.dropout) == (0, 1, 1, 0)


@pytest.mark.parametrize("steps, told", [("5", True), ("4", False)])
def test_the_memory_of_a_run_of_one_chunk_is_told(steps, told, monkeypatch, capsys, tmp_path):
    """Of steps that are compiled for it; a run shorter than a chunk compiles others."""
    monkeypatch.setattr(cli, "_memory", lambda *args: "7 MiB")
    args = ["--every", "5", "--steps", steps, "--out", str(tmp_path / "new" / "run")]
    cli._prepare(cli.parser().parse_args([*SMALL, *args]))
    assert ("memory    7 MiB while it trains" in capsys.readouterr().out) == told


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
    command = [sys.executable, "-m", "edm_tutorial", *SMALL, "--out", str(out), "--steps", steps]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [*command, "--augment", "0.2"], cwd=ROOT, env=environment(cache), **pipes
    )


def final_state(out):
    args = cli.parser().parse_args([*SMALL, "--out", str(out), "--augment", "0.2"])
    with single_precision():
        digits = data.digits()
        centred = digits.images - digits.images.mean(axis=0)
        setup = cli.build(args, DIGITS, float(np.sqrt(np.mean(centred.astype(float) ** 2))))
        template = init_state(setup.denoiser, setup.optimizer)
        return checkpoint.restore(out / "checkpoints", template)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path):
    whole, broken, cache = tmp_path / "whole", tmp_path / "broken", tmp_path / "cache"
    process = start(whole, "40", cache)
    told, progress = process.communicate()
    assert process.returncode == 0, progress
    assert "starts    afresh" in told and "finished  40 steps" in told
    # A few thousand weights, their average and Adam's two: less than 1 MiB; the digits: 0.4.
    assert 1 <= int(re.findall(r"memory    (\d+) MiB while it trains", told)[0]) < 100
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
