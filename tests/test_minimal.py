"""edm_minimal.py is the package in one file: the golden numbers, and the package's own."""

import ast
import importlib.util
import sys
from pathlib import Path
from unittest import mock

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from golden_cases import Case, assert_close, manifest, raw_network
from test_golden_samplers import RecordingMixture, build_churn, in_range, plain_loop

import edm_tutorial as edm

ROOT = Path(__file__).resolve().parents[1]


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


minimal = load(ROOT / "edm_minimal.py")
tool = load(ROOT / "tools/minimal.py")


def test_it_is_what_the_package_gives():
    assert tool.minimal() == tool.TARGET.read_text(), "run `make minimal`"


def test_it_needs_the_core_alone():
    """Of other libraries those of the heart, and of the package nothing."""
    tree = ast.parse(tool.TARGET.read_text())
    imported = {
        a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names
    }
    relative = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level]
    assert not relative
    imported |= {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    others = {name.split(".")[0] for name in imported} - set(sys.stdlib_module_names)
    assert others == {"jax", "equinox", "diffrax", "lineax", "jaxtyping", "numpy"}


def test_no_name_means_two_things(tmp_path, monkeypatch):
    """Files joined into one share their names; the tool refuses two of one name."""
    for name in tool.in_order(tool.HEART):
        (tmp_path / "edm_tutorial").mkdir(exist_ok=True)
        (tmp_path / f"edm_tutorial/{name}.py").write_text(tool.source(name))
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    tool.minimal()
    with (tmp_path / "edm_tutorial/grids.py").open("a") as file:
        file.write("\n\ndef as_float(value):\n    return value\n")
    with pytest.raises(SystemExit, match="two files define one name: .*as_float"):
        tool.minimal()


@pytest.mark.parametrize("name", manifest()["sampler_edm.npz"]["cases"])
def test_golden_samples(name):
    case = Case("sampler_edm.npz", name)
    params = case.params
    rho, limits = float(params.get("rho", 7)), in_range(params, 0.002, 80.0)
    sigmas = minimal.edm_sigmas(params["num_steps"], rho=rho, **limits)
    churn = build_churn(params, case["noise"], minimal.Churn)
    rounds = params["net_round"] != "identity"
    schedule = minimal.Rounded(minimal.Linear(), edm.iddpm_table()) if rounds else minimal.Linear()
    with jax.disable_jit(), mock.patch("jax.lax.scan", plain_loop):
        mixture, noise = RecordingMixture(params["gmm"]), jnp.asarray(case["latents"])
        x = minimal.sample(mixture, noise, sigmas, schedule=schedule, churn=churn, key=jr.key(0))
    assert_close(x, case["x_final"])


@pytest.mark.parametrize("name", ["edm_default", "edm_sd1.3"])
def test_golden_preconditioning(name):
    case = Case("precond.npz", name)
    sigma_data = case.params["kwargs"].get("sigma_data", 0.5)
    network = raw_network(**case.params["raw"])
    denoiser = minimal.Denoiser(network, minimal.EDMPreconditioning(sigma_data))
    x, sigma = jnp.asarray(case["x"]), jnp.asarray(case["D_sigma"])
    assert_close(jax.vmap(denoiser)(x, sigma), case["D"])


@pytest.mark.slow
def test_loss_and_likelihood_are_the_packages(key):
    data_key, net_key, loss_key, probe_key = jr.split(key, 4)
    data = jr.normal(data_key, (50, 2)) * 0.7
    network = edm.MLP(2, width=16, depth=1, key=net_key)
    network = eqx.tree_at(lambda net: net.output.weight, network, jnp.ones((2, 16)) / 4)
    losses, densities = [], []
    for m in (edm, minimal):
        denoiser = m.Denoiser(network, m.EDMPreconditioning.from_data(data))
        losses.append(
            m.denoising_loss(denoiser, data[0], sigma_dist=m.LogNormal(), key=jr.clone(loss_key))
        )
        exact = m.log_likelihood(denoiser, data[0])
        probed = m.log_likelihood(denoiser, data[0], probes=3, key=jr.clone(probe_key))
        densities.append(jnp.stack([*exact[:2], *probed[:2], *exact.latent]))
    np.testing.assert_array_equal(*losses)
    np.testing.assert_allclose(*densities, rtol=1e-12)
