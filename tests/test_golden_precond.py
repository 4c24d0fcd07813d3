"""Preconditioning against the numbers of the reference implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import Case, assert_close, check_file, each_case, raw_network

import edm_tutorial as edm

FILE = "precond.npz"


def build(cls: str, kwargs: dict):
    """The preconditioning of a case, and the law of the noise that trains it."""
    if cls == "EDMPrecond":
        return edm.EDMPreconditioning(kwargs.get("sigma_data", 0.5)), edm.LogNormal()
    if cls == "VEPrecond":
        return edm.VEPreconditioning(), edm.LogUniform()
    if cls == "VPPrecond":
        betas = {k: v for k, v in kwargs.items() if k.startswith("beta")}
        eps = {"eps": kwargs["epsilon_t"]} if "epsilon_t" in kwargs else {}
        levels = {"levels": kwargs["M"]} if "M" in kwargs else {}
        schedule = edm.VariancePreserving(**betas)
        return (
            edm.VPPreconditioning(schedule, **levels),
            edm.UniformTime(schedule, **eps),
        )
    assert cls == "iDDPMPrecond"
    names = {"M": "levels", "C_1": "c_1", "C_2": "c_2"}
    arguments = {names[k]: v for k, v in kwargs.items()}
    return edm.IDDPMPreconditioning(**arguments), edm.UniformLevels(**arguments)


def test_file():
    check_file(FILE, {"precond": 7})


@each_case(FILE)
def test_case(name):
    case = Case(FILE, name)
    params = case.params
    preconditioning, sigma_dist = build(params["cls"], params["kwargs"])

    coefficients = jax.vmap(preconditioning)(jnp.asarray(case["sigma"]))
    for field, value in coefficients._asdict().items():
        assert_close(value, case[field])

    denoiser = edm.Denoiser(raw_network(**params["raw"]), preconditioning)
    x = jnp.asarray(case["x"])
    assert_close(jax.vmap(denoiser)(x, jnp.asarray(case["D_sigma"])), case["D"])
    at_one = [denoiser(example, params["D_scalar_sigma"]) for example in x]
    assert_close(np.stack(at_one), case["D_scalar"])

    # The range of the reference's object is the support of its training noise.
    ends = [(0.0, 1.0), (-jnp.inf, jnp.inf)][params["cls"] == "EDMPrecond"]
    support = sorted(float(sigma_dist.from_variate(r)) for r in ends)
    assert support[0] == pytest.approx(case["sigma_min"][()], rel=1e-9)
    assert support[1] == pytest.approx(case["sigma_max"][()], rel=1e-9)

    if isinstance(preconditioning, edm.VPPreconditioning):
        schedule = preconditioning.schedule
        assert_close(jax.vmap(schedule.sigma)(jnp.asarray(case["t"])), case["sigma_of_t"])
        t = jax.vmap(schedule.time)(jnp.asarray(case["sigma"]))
        assert_close(t, case["t_of_sigma"])
    if isinstance(preconditioning, edm.IDDPMPreconditioning):
        check_table(case, preconditioning)
    for field, value in in_float32(case, preconditioning, sigma_dist).items():
        assert_as_good(value, case[f"{field}_f32"], case[field])
    case.check_all_read()


def check_table(case: Case, preconditioning: edm.IDDPMPreconditioning) -> None:
    p = preconditioning
    u = edm.iddpm_table(p.levels, p.c_1, p.c_2)
    assert_close(u, case["u"])

    # u_j^2 + 1 is 1 / abar_j up to a factor, wherever C_1 did not clip: from j = 1 on.
    j, alpha_bar = case["alpha_bar_j"], case["alpha_bar"]
    assert j[0] == 0 and alpha_bar[0] == 0 and len(j) > 4
    total = np.sin(np.pi / 2 / (1 + p.c_2)) ** 2
    assert_close(total / (1 + np.asarray(u)[j[1:]] ** 2), alpha_bar[1:])

    queries = jnp.asarray(case["round_in"])
    index = p.levels - 1 - jax.vmap(p)(queries).c_noise
    np.testing.assert_array_equal(index, case["round_index"])
    rounded = edm.Rounded(edm.Linear(), u)
    assert_close(jax.vmap(rounded.time)(queries), case["round_out"])
    table = jax.vmap(jax.vmap(rounded.time))(queries[:6].reshape(2, 3))
    assert_close(table, case["round_out_shape23"])


def in_float32(case: Case, preconditioning, sigma_dist) -> dict:
    """Everything that the reference also computed in float32, computed here in float32."""
    single = lambda array: jnp.asarray(array, jnp.float32)
    sigma, x, params = single(case["sigma"]), single(case["x"]), case.params
    denoiser = edm.Denoiser(raw_network(**params["raw"]), preconditioning)
    ends = [(0.0, 1.0), (-jnp.inf, jnp.inf)][params["cls"] == "EDMPrecond"]
    found = jax.vmap(preconditioning)(sigma)._asdict()
    found["D"] = jax.vmap(denoiser)(x, single(case["D_sigma"]))
    found["D_scalar"] = jax.vmap(denoiser, (0, None))(x, single(params["D_scalar_sigma"]))
    support = jnp.sort(jnp.stack([sigma_dist.from_variate(single(r)) for r in ends]))
    found["sigma_min"], found["sigma_max"] = support
    if isinstance(preconditioning, edm.VPPreconditioning):
        schedule = preconditioning.schedule
        found["sigma_of_t"] = jax.vmap(schedule.sigma)(single(case["t"]))
        found["t_of_sigma"] = jax.vmap(schedule.time)(sigma)
    if isinstance(preconditioning, edm.IDDPMPreconditioning):
        p, queries = preconditioning, single(case["round_in"])
        found["u"] = u = single(edm.iddpm_table(p.levels, p.c_1, p.c_2))
        total = np.float32(np.sin(np.pi / 2 / (1 + p.c_2)) ** 2)
        at = total / (1 + u[case["alpha_bar_j"][1:]] ** 2)
        found["alpha_bar"] = jnp.concatenate([jnp.zeros(1, at.dtype), at])
        found["round_out"] = jax.vmap(edm.Rounded(edm.Linear(), u).time)(queries)
        index = p.levels - 1 - jax.vmap(p)(queries).c_noise
        np.testing.assert_array_equal(index, case["round_index_f32"])
    assert {value.dtype for value in found.values()} == {jnp.dtype(jnp.float32)}
    return found


def assert_as_good(got, shipped, exact) -> None:
    """Float32 here errs no more than the reference as shipped does, but for ten roundings.

    No formula has more than ten operations that round, each by 2^-24 of its result. The reference
    may err much more: by a few per cent in VP at small t, where it takes exp(.) - 1.
    """
    got, shipped = np.asarray(got, float), np.asarray(shipped, float)
    assert got.shape == shipped.shape == exact.shape
    known = np.isfinite(exact)
    np.testing.assert_array_equal(got[~known], exact[~known])
    got, shipped, exact = got[known], shipped[known], exact[known]
    size = np.maximum(np.abs(exact), 1e-3 * np.max(np.abs(exact), initial=0))
    allowed = np.abs(shipped - exact) + 10 * 2.0**-24 * size
    assert np.all(np.abs(got - exact) <= allowed), np.max(np.abs(got - exact) / allowed)
