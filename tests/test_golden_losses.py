"""Losses against the numbers of the reference implementation."""

import jax
import jax.numpy as jnp
from golden_cases import Case, assert_close, check_file, each_case, raw_network

import edm_tutorial as edm

FILE = "losses.npz"


def build(loss: str, kwargs: dict):
    """The law of the noise level of a case, and its preconditioning."""
    if loss == "EDMLoss":
        names = {"P_mean": "p_mean", "P_std": "p_std"}
        law = {names[k]: v for k, v in kwargs.items() if k in names}
        return edm.LogNormal(**law), edm.EDMPreconditioning(kwargs.get("sigma_data", 0.5))
    if loss == "VELoss":
        arguments = {k: float(v) for k, v in kwargs.items()}
        return edm.LogUniform(**arguments), edm.VEPreconditioning()
    assert loss == "VPLoss"
    betas = {k: v for k, v in kwargs.items() if k.startswith("beta")}
    schedule = edm.VariancePreserving(**betas)
    eps = {"eps": kwargs["epsilon_t"]} if "epsilon_t" in kwargs else {}
    return edm.UniformTime(schedule, **eps), edm.VPPreconditioning(schedule)


def test_file():
    check_file(FILE, {"loss": 6})


@each_case(FILE)
def test_case(name):
    case = Case(FILE, name)
    params = case.params
    sigma_dist, preconditioning = build(params["loss"], params["loss_kwargs"])
    denoiser = edm.Denoiser(raw_network(**params["raw"]), preconditioning)

    y, eps = jnp.asarray(case["y"]), jnp.asarray(case["eps"])
    sigma = jax.vmap(sigma_dist.from_variate)(jnp.asarray(case["rnd"]))
    n = sigma[:, None, None, None] * eps
    assert_close(sigma, case["sigma"])
    assert_close(n, case["n"])
    assert_close(jax.vmap(denoiser)(y + n, sigma), case["D_yn"])
    assert_close(jax.vmap(preconditioning.loss_weight)(sigma), case["weight"])

    # Ours is computed in network space, the reference's in denoiser space.
    loss = jax.vmap(lambda *args: edm.weighted_error(denoiser, *args))(y, sigma, n)
    assert_close(loss, case["loss"])
    assert_close(loss.sum() / len(y), case["scalar"])

    table = jax.vmap(sigma_dist.from_variate)(jnp.asarray(case["tab_rnd"]))
    assert_close(table, case["tab_sigma"])
    assert_close(jax.vmap(preconditioning.loss_weight)(table), case["tab_weight"])
    case.check_all_read()
