"""Official checkpoints: read without running their code, refused where they do not fit."""

import io
import json
import pickle
import re
import shlex
import subprocess
import sys
import zipfile
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import Case, check_file, manifest
from golden_networks import condition, config, state

import edm_tutorial as edm
from edm_tutorial.networks import dhariwal_unet, from_state_dict, song_unet
from edm_tutorial.networks.unet import official
from edm_tutorial.networks.unet.official import edm_denoiser, read_state
from edm_tutorial.networks.unet.state_dict import state_names

WRAPPED = sorted(file for file in manifest() if file.startswith("pnet_"))
PRECONDITIONINGS = {
    "EDMPrecond": edm.EDMPreconditioning,
    "VPPrecond": edm.VPPreconditioning,
    "iDDPMPrecond": edm.IDDPMPreconditioning,
}
PRECISIONS = [(jnp.float64, "_f64", 1e-10), (jnp.float32, "_f32", 2e-5)]
SMALL = "net_ddpmpp_c.npz"


@eqx.filter_jit
def denoise(denoiser, x, sigma, cond):
    return jax.vmap(denoiser)(x, sigma, cond)


@pytest.mark.parametrize("file", WRAPPED)
@pytest.mark.slow
def test_official_denoiser(file):
    """D(x; sigma), with labels and without, one sigma a batch, in both precisions.

    1e-10 and 2e-5 of the largest value: round-off of some thirty layers.
    """
    assert len(WRAPPED) == 3
    check_file(file, {"precond_network": 3, "state_dict": 1})
    cls, keywords = config(file)
    denoiser = edm_denoiser(cls, state(file), **keywords)
    assert isinstance(denoiser.preconditioning, PRECONDITIONINGS[cls])
    assert (
        sum(leaf.size for leaf in jax.tree.leaves(denoiser.network))
        == (Case(file, "state").params["num_params"])
    )
    for name in ("e0", "e1_nolabel", "e2_scalar_sigma"):
        case = Case(file, name)
        for dtype, suffix, tolerance in PRECISIONS:
            x = jnp.asarray(case["x"], dtype)
            sigma = jnp.broadcast_to(jnp.asarray(case["sigma"], dtype), x.shape[:1])
            out = denoise(denoiser, x, sigma, condition(case, dtype))
            want = case["D" + suffix]
            assert out.dtype == dtype
            np.testing.assert_allclose(out, want, rtol=0, atol=tolerance * np.abs(want).max())
        case.check_all_read()


@pytest.mark.slow
def test_ve_checkpoint():
    """VE has no golden network: the same weights, D = x + sigma F(x; ln(sigma / 2))."""
    cls, keywords = config(SMALL)
    network = from_state_dict(cls, state(SMALL), **keywords)
    size, channels = keywords.pop("img_resolution"), keywords.pop("in_channels")
    assert keywords.pop("out_channels") == channels
    denoiser = edm_denoiser(
        "VEPrecond",
        state(SMALL),
        img_resolution=size,
        img_channels=channels,
        model_type=cls,
        **keywords,
    )
    x = jnp.asarray(Case(SMALL, "e0")["x"][0], jnp.float64)
    want = x + 3.0 * eqx.filter_jit(network)(x, jnp.log(jnp.array(3.0) / 2))
    np.testing.assert_allclose(eqx.filter_jit(denoiser)(x, 3.0), want, atol=1e-12)


# Full size: CIFAR-10's networks know augmentation labels, ImageNet-64's does not.

CIFAR = dict(img_resolution=32, in_channels=3, out_channels=3, augment_dim=9, model_channels=128,
             channel_mult=(2, 2, 2))  # fmt: skip
NCSNPP = dict(embedding_type="fourier", encoder_type="residual", channel_mult_noise=2,
              resample_filter=(1, 3, 3, 1))  # fmt: skip
IMAGENET = dict(img_resolution=64, in_channels=3, out_channels=3, label_dim=1000)


@pytest.mark.parametrize(
    "cls, keywords, count",
    [
        ("SongUNet", CIFAR, 55_733_891),
        ("SongUNet", CIFAR | {"label_dim": 10}, 55_735_299),
        ("SongUNet", CIFAR | NCSNPP, 56_397_827),
        ("SongUNet", CIFAR | NCSNPP | {"label_dim": 10}, 56_400_643),
        ("DhariwalUNet", IMAGENET, 295_899_267),
    ],
)
def test_networks_of_full_size(cls, keywords, count):
    """Counted, and loaded from a state dict whose i-th array is full of i: none is misplaced."""
    build = {"SongUNet": song_unet, "DhariwalUNet": dhariwal_unet}[cls]
    skeleton = eqx.filter_eval_shape(partial(build, **keywords), key=jax.random.key(0))
    names, leaves = state_names(skeleton), jax.tree.leaves(skeleton)
    assert len(names) == len(set(names)) == len(leaves)
    sizes = dict(zip(names, (leaf.size for leaf in leaves), strict=True))
    sizes.pop("map_noise.freqs", None)  # a buffer
    assert sum(sizes.values()) == count
    arrays = {}
    for i, (name, leaf) in enumerate(zip(names, leaves, strict=True)):
        arrays[name] = np.broadcast_to(np.float32(i), official_shape(leaf.shape))
    network = from_state_dict(cls, arrays, **keywords)
    for i, (leaf, loaded) in enumerate(zip(leaves, jax.tree.leaves(network), strict=True)):
        assert loaded.shape == leaf.shape and np.all(np.asarray(loaded) == i), names[i]


def official_shape(shape):
    """Of a convolution, channels come first there."""
    return shape if len(shape) < 4 else (shape[3], shape[2], *shape[:2])


def official_state(keywords):
    """A state dict of random numbers in the official naming, filters included."""
    skeleton = eqx.filter_eval_shape(partial(song_unet, **keywords), key=jax.random.key(0))
    rng, arrays = np.random.default_rng(0), {}
    for name, leaf in zip(state_names(skeleton), jax.tree.leaves(skeleton), strict=True):
        arrays[f"model.{name}"] = rng.standard_normal(official_shape(leaf.shape), np.float32)
    taps = np.asarray(keywords.get("resample_filter", (1, 1)), np.float32)
    for size, kind in ((16, "enc.16x16_down"), (32, "dec.32x32_up")):
        for conv in ("conv0", "skip"):
            name = f"model.{kind}.{conv}.resample_filter"
            arrays[name] = (np.outer(taps, taps) / taps.sum() ** 2)[None, None]
            assert name.replace("resample_filter", "weight") in arrays, size
    return arrays


@pytest.mark.slow
def test_full_size_checkpoint_from_a_file(tmp_path):
    """CIFAR-10's conditional DDPM++ through a file; its weights where they belong."""
    arrays = official_state(CIFAR | {"label_dim": 10})
    np.savez(tmp_path / "network.npz", **arrays)
    example = re.search(r"denoiser = (edm_denoiser\(.*?\]\))", official.__doc__, re.DOTALL)
    example = example[1].replace('"network.npz"', "path")
    names = {"edm_denoiser": edm_denoiser, "read_state": read_state}
    denoiser = eval(example, names | {"path": tmp_path / "network.npz"})
    net = denoiser.network
    assert denoiser.preconditioning == edm.EDMPreconditioning(0.5)
    assert sum(leaf.size for leaf in jax.tree.leaves(net)) == 55_735_299
    for ours, name in (
        (net.encoder[1].blocks[3].qkv.weight, "enc.16x16_block3.qkv.weight"),
        (net.decoder[0].entry[1].conv1.weight, "dec.8x8_in1.conv1.weight"),
        (net.decoder[2].blocks[4].skip.weight, "dec.32x32_block4.skip.weight"),
        (net.decoder[2].output.conv.weight, "dec.32x32_aux_conv.weight"),
    ):
        np.testing.assert_array_equal(ours, arrays["model." + name].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(net.embedding.map_label.bias, arrays["model.map_label.bias"])


# What does not fit


def test_every_mismatch_in_one_message():
    cls, keywords = config(SMALL)
    arrays = dict(state(SMALL))
    del arrays["map_layer0.bias"]
    arrays["enc.16x16_conv.weight"] = np.zeros((8, 3, 5, 5))
    arrays["enc.16x16_extra.weight"] = np.zeros(2)
    arrays["dec.16x16_up.conv0.resample_filter"] = np.full((1, 1, 4, 4), 1 / 16)
    with pytest.raises(ValueError) as raised:
        from_state_dict(cls, arrays, **keywords)
    lines = str(raised.value).splitlines()[1:]
    assert [line.strip() for line in lines] == [
        "dec.16x16_up.conv0.resample_filter: not the resample_filter (1, 1)",
        "enc.16x16_conv.weight: shape (8, 3, 5, 5), needed (8, 3, 3, 3)",
        "enc.16x16_extra.weight: unknown, shape (2,)",
        "map_layer0.bias: missing, shape (32,)",
    ]


def test_refused_names_and_keywords():
    cls, keywords = config(SMALL)
    with pytest.raises(TypeError, match="channel_mul"):
        from_state_dict(cls, state(SMALL), **keywords, channel_mul=(1, 2))
    with pytest.raises(TypeError, match="channels_per_head"):
        from_state_dict(cls, state(SMALL), **keywords, channels_per_head=8)
    with pytest.raises(ValueError, match="SongUNet, DhariwalUNet"):
        from_state_dict("UNet", {}, **keywords)
    shape = dict(img_resolution=16, img_channels=3, model_type=cls)
    with pytest.raises(ValueError, match="VPPrecond"):
        edm_denoiser("DDPMPrecond", {}, **shape)
    with pytest.raises(TypeError, match="sigma_data"):  # VP's denoiser has none
        edm_denoiser("VPPrecond", state(SMALL), **shape, sigma_data=0.5)
    with pytest.raises(TypeError, match="sigma_min"):  # nor a range of its own
        edm_denoiser("iDDPMPrecond", state(SMALL), **shape, sigma_min=0.0)
    with pytest.raises(TypeError, match="use_fp61"):
        edm_denoiser("EDMPrecond", state(SMALL), **shape, use_fp61=True)


# What the reference's own training writes into its checkpoints: the precision and the dropout
# of training, and what a caller may have set of the sampler's range.
RANGES = {
    "EDMPrecond": {"sigma_min": 0.0, "sigma_max": float("inf"), "sigma_data": 0.5},
    "VPPrecond": {"epsilon_t": 1e-5, "beta_d": 19.9, "beta_min": 0.1, "M": 1000},
    "VEPrecond": {"sigma_min": 0.02, "sigma_max": 100},
    "iDDPMPrecond": {"C_1": 0.001, "C_2": 0.008, "M": 1000},
}


@pytest.mark.parametrize("cls", RANGES)
def test_official_keywords_without_effect(cls):
    """All `init_kwargs` of a checkpoint are accepted; those that do not change D do not."""
    file = "pnet_iddpm_adm_u.npz" if cls == "iDDPMPrecond" else "pnet_edm_ddpmpp_c.npz"
    _, keywords = config(file)
    arrays = {k.removeprefix("model."): v for k, v in state(file).items()}
    plain = edm_denoiser(cls, arrays, **keywords)
    given = {"use_fp16": True, "label_dropout": 0.1, "dropout": 0.13} | RANGES[cls]
    whole = edm_denoiser(cls, arrays, **keywords, **given)
    assert whole.preconditioning == plain.preconditioning
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(one, other)


def test_preconditioning_keywords_reach_it():
    file = "pnet_vp_ddpmpp_u.npz"
    cls, keywords = config(file)
    denoiser = edm_denoiser(cls, state(file), **keywords, beta_d=15.0, beta_min=0.25, M=800)
    schedule = edm.VariancePreserving(15.0, 0.25)
    assert denoiser.preconditioning == edm.VPPreconditioning(schedule, 800)


@pytest.mark.parametrize("wrong", [{"M": 500}, {"C_2": 0.012}])
def test_iddpm_levels_of_another_model(wrong):
    file = "pnet_iddpm_adm_u.npz"
    cls, keywords = config(file)
    with pytest.raises(ValueError, match="give the M, C_1 and C_2 of the checkpoint"):
        edm_denoiser(cls, state(file), **keywords, **wrong)


# Files


def write_safetensors(path, arrays, metadata=None):
    """The format as published: length, JSON header, numbers."""
    kinds = {"float32": "F32", "float64": "F64", "float16": "F16", "bfloat16": "BF16"}
    header, data = {} if metadata is None else {"__metadata__": metadata}, b""
    for name, array in arrays.items():
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": kinds[str(array.dtype)], "shape": list(array.shape)}
        header[name]["data_offsets"] = offsets
        data += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_files_hold_the_same_numbers(tmp_path):
    arrays = state(SMALL)
    np.savez(tmp_path / "a.npz", **arrays)
    write_safetensors(tmp_path / "a.safetensors", arrays, {"format": "pt"})
    for name in ("a.npz", "a.safetensors"):
        read = read_state(tmp_path / name)
        assert read.keys() == arrays.keys()
        for key, array in arrays.items():
            assert read[key].dtype == array.dtype
            np.testing.assert_array_equal(read[key], array)


def test_short_numbers_become_float32(tmp_path):
    value = np.array([[1.5, -2.0]])
    short = {"h": value.astype(np.float16), "b": np.asarray(jnp.asarray(value, jnp.bfloat16))}
    write_safetensors(tmp_path / "a.safetensors", short)
    for array in read_state(tmp_path / "a.safetensors").values():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, value)


def whole_file(path):
    """A file of two arrays, by its suffix."""
    arrays = {"a": np.arange(3.0), "b": np.ones((2, 2), np.float32)}
    write_safetensors(path, arrays) if path.suffix == ".safetensors" else np.savez(path, **arrays)
    return path, arrays, path.read_bytes()


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_files_that_are_not_whole(suffix, tmp_path):
    """Empty, cut anywhere, or of another kind: refused by the file's name."""
    path, _, data = whole_file(tmp_path / f"weights{suffix}")
    cuts = {data[:keep] for keep in [0, 1, 5, 40, *range(60, len(data), 37), len(data) - 1]}
    array = io.BytesIO()
    np.save(array, np.ones(3))
    _, _, foreign = whole_file(tmp_path / ("o.npz" if suffix != ".npz" else "o.safetensors"))
    for wrong in cuts | {foreign, array.getvalue(), pickle.dumps([1]), b"<html></html>"}:
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=f"weights{suffix} is not a whole {suffix} file"):
            read_state(path)
    with pytest.raises(FileNotFoundError, match="missing"):
        read_state(tmp_path / f"missing{suffix}")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_flipped_bits(suffix, tmp_path):
    """Wherever a bit flips, the file is refused with its name, or its arrays can be read."""
    path, arrays, data = whole_file(tmp_path / f"weights{suffix}")
    refused = 0
    for i in range(len(data)):
        path.write_bytes(data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1 :])
        try:
            read = read_state(path)
        except ValueError as error:
            assert f"weights{suffix}" in str(error)
            refused += 1
        else:
            # The checksums of a .npz cover every number; a .safetensors file has none.
            same = [np.array_equal(read[k], arrays[k]) for k in arrays.keys() & read.keys()]
            assert all(same) or suffix == ".safetensors"
    assert refused > len(data) / 4


class Bomb:
    def __reduce__(self):
        return print, ("a pickle was opened",)


def test_nothing_is_ever_unpickled(tmp_path, capsys):
    """Neither a checkpoint as it is, nor one dressed up as numbers."""
    official = tmp_path / "network.pkl"
    official.write_bytes(pickle.dumps({"ema": Bomb()}))
    with pytest.raises(ValueError, match="runs code when it is opened"):
        read_state(official)
    np.savez(tmp_path / "bomb.npz", a=np.array([Bomb()], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_state(tmp_path / "bomb.npz")
    with zipfile.ZipFile(tmp_path / "bomb.npz") as stored:
        assert b"a pickle was opened" in stored.read("a.npy")
    assert capsys.readouterr().out == ""


REFERENCE = """
import numpy


class Tensor:
    def __init__(self, array):
        self.array = array

    def cpu(self):
        return self

    def numpy(self):
        return self.array


class EDMPrecond:
    init_kwargs = {"img_resolution": 32}

    def state_dict(self):
        return {"model.map_layer0.bias": Tensor(numpy.arange(3.0))}
"""


def test_export_line(tmp_path):
    """The line in the docstring, run where a stand-in for the reference is importable."""
    line = re.search(r"python -c .*?pkl network\.npz", official.__doc__, re.DOTALL)[0]
    command = shlex.split(line)
    assert command[:2] == ["python", "-c"] and command[-1] == "network.npz"
    compile(command[2], "export", "exec")
    (tmp_path / "reference.py").write_text(REFERENCE)
    make = "import pickle, reference, sys; file = open(sys.argv[1], 'wb'); "
    make += "pickle.dump({'ema': reference.EDMPrecond()}, file)"
    run = partial(subprocess.run, cwd=tmp_path, check=True, capture_output=True, text=True)
    run([sys.executable, "-c", make, command[3]])
    out = run([sys.executable, *command[1:]]).stdout
    assert out.split(maxsplit=1) == ["EDMPrecond", "{'img_resolution': 32}\n"]
    (array,) = read_state(tmp_path / "network.npz").values()
    np.testing.assert_array_equal(array, [0, 1, 2])
