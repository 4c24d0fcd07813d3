"""The four columns: their published numbers, and that training and sampling are apart."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import edm_tutorial as edm
from edm_tutorial import designs

COLUMNS = {
    "vp": designs.vp(),
    "ve": designs.ve(),
    "iddpm": designs.iddpm(),
    "edm": designs.edm(sigma_data=0.8),
}
MEAN, STD = 0.3, 0.8


def test_published_values():
    """Table 1 of the paper, row by row."""
    four: list[Any] = [designs.vp(), designs.ve(), designs.iddpm(), designs.edm()]
    vp, ve, iddpm, ours = four

    kinds = [type(design.solver) for design in four]
    assert kinds == [edm.Euler, edm.Euler, edm.Euler, edm.Heun]
    assert ours.solver.alpha == 1

    kinds = [type(design.schedule) for design in four]
    clocks = [edm.VariancePreserving, edm.VarianceExploding, edm.Linear, edm.Linear]
    assert kinds == clocks
    assert (vp.schedule.beta_d, vp.schedule.beta_min) == (19.9, 0.1)

    ends = [tuple(np.asarray(design.grid(2))) for design in four]
    table = np.asarray(edm.iddpm_table(1000, 0.001, 0.008))
    vp_ends = [float(vp.schedule.sigma(t)) for t in (1.0, 1e-3)]
    assert ends[0] == pytest.approx(vp_ends, rel=1e-12)
    assert ends[1] == pytest.approx((100, 0.02), rel=1e-12)
    assert ends[2] == pytest.approx((table[8], table[999]), rel=1e-12)  # j_0 = 8
    assert ends[3] == pytest.approx((80, 0.002), rel=1e-12)

    assert vp.preconditioning.levels == iddpm.preconditioning.levels == 1000
    assert (iddpm.preconditioning.c_1, iddpm.preconditioning.c_2) == (0.001, 0.008)
    assert ours.preconditioning.sigma_data == 0.5

    assert vp.sigma_dist.eps == 1e-5
    assert (ve.sigma_dist.sigma_min, ve.sigma_dist.sigma_max) == (0.02, 100)
    assert iddpm.sigma_dist.levels == 1000
    assert (ours.sigma_dist.p_mean, ours.sigma_dist.p_std) == (-1.2, 1.2)


@pytest.mark.parametrize("design", COLUMNS.values(), ids=COLUMNS)
def test_training_and_sampling_agree_about_the_noise(design):
    """The network is trained on all the noise levels that its own sampler visits."""
    sigmas = np.asarray(design.grid(100))
    low, high = (-6.0, 6.0) if isinstance(design.sigma_dist, edm.LogNormal) else (0.0, 1.0)
    trained = sorted(float(design.sigma_dist.from_variate(r)) for r in (low, high))
    assert trained[0] <= sigmas[-1] * (1 + 1e-9)
    assert trained[1] >= sigmas[0] * (1 - 1e-9)


def ideal_network(preconditioning):
    """The network that makes its `Denoiser` exact for N(MEAN, STD^2).

    It sees no sigma: it reads the noise level from c_noise, each design in its own way,
    and so answers nonsense when it is given another design's label.
    """
    if isinstance(preconditioning, edm.EDMPreconditioning):
        read = lambda label: jnp.exp(4 * label)
    elif isinstance(preconditioning, edm.VEPreconditioning):
        read = lambda label: 2 * jnp.exp(label)
    elif isinstance(preconditioning, edm.VPPreconditioning):
        read = lambda label: preconditioning.schedule.sigma(label / 999)
    else:
        table = edm.iddpm_table()
        # Label -1, below the lowest level, stands for u_M = 0: take the limit.
        read = lambda label: jnp.maximum(table[999 - label.astype(int)], 1e-9)

    def network(z, label, cond=None, *, key=None):
        sigma = read(label)
        c = preconditioning(sigma)
        x = z / c.c_in
        shrink = STD**2 / (STD**2 + sigma**2)
        return (MEAN + shrink * (x - MEAN) - c.c_skip * x) / c.c_out

    return network


@pytest.mark.parametrize("own_solver", [False, True], ids=["heun", "own"])
@pytest.mark.parametrize("name", COLUMNS)
def test_train_in_one_design_and_sample_in_another(name, own_solver):
    """All four denoisers in one sampler, against the exact end of its own noise range.

    A sample is a z + b for noise z; z = 0 and z = 1 give the mean b and the std |a|.
    The four run as the rows of one array, so that there is one compilation a design.
    VE as published takes four times the steps: Euler in its clock is 7 % off at 256.
    """
    sampler = COLUMNS[name]
    n = 1024 if own_solver and name == "ve" else 256
    denoisers = [
        edm.Denoiser(ideal_network(design.preconditioning), design.preconditioning)
        for design in COLUMNS.values()
    ]

    def all_four(x, sigma, cond=None):
        return jnp.stack([d(row, sigma) for d, row in zip(denoisers, x, strict=True)])

    noise = jnp.broadcast_to(jnp.array([0.0, 1.0]), (4, 2))
    sigmas = sampler.grid(n)
    solver = sampler.solver if own_solver else edm.Heun()
    options = {"schedule": sampler.schedule, "solver": solver}
    ends = np.asarray(edm.sample(all_four, noise, sigmas, **options))
    assert np.all(np.isfinite(ends))

    gain = STD / math.hypot(STD, float(sigmas[0]))
    exact_mean, exact_std = MEAN * (1 - gain), float(sigmas[0]) * gain
    np.testing.assert_allclose(ends[:, 0], exact_mean, atol=0.02 * exact_std)
    np.testing.assert_allclose(ends[:, 1] - ends[:, 0], exact_std, rtol=0.02)


def test_a_design_hands_its_parts_to_the_sampler(key):
    """The pieces fit together as printed in the book: EDM from its own column."""
    design = designs.edm(sigma_data=0.8)
    denoiser = edm.Denoiser(ideal_network(design.preconditioning), design.preconditioning)
    noise = jax.random.normal(key, (5,))
    run = functools.partial(edm.sample, denoiser, noise, design.grid(64))
    got = run(schedule=design.schedule, solver=design.solver)
    exact = MEAN + (80 * np.asarray(noise) - MEAN) * STD / math.hypot(STD, 80)
    np.testing.assert_allclose(got, exact, atol=6e-3)


def test_edm_needs_a_valid_sigma_data():
    with pytest.raises(ValueError, match="sigma_data must be positive and finite"):
        designs.edm(sigma_data=-1.0)
    with pytest.raises(TypeError):
        designs.edm(**{"sigma": 0.5})
