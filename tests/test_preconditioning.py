"""Preconditioning: the demands it must meet, rather than its formulas retyped."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import edm_tutorial as edm

SIGMAS = jnp.asarray(np.geomspace(0.002, 80.0, 25))
PARTS = {
    "edm": edm.EDMPreconditioning(0.7),
    "ve": edm.VEPreconditioning(),
    "vp": edm.VPPreconditioning(),
    "iddpm": edm.IDDPMPreconditioning(),
}
each = pytest.mark.parametrize("preconditioning", PARTS.values(), ids=PARTS.keys())


@pytest.mark.parametrize("sigma_data", [0.25, 0.5, 3.0])
def test_edm_meets_its_three_demands(sigma_data):
    """Unit input, unit target, and no c_skip has a smaller c_out (paper, App. B.6)."""
    c = jax.vmap(edm.EDMPreconditioning(sigma_data))(SIGMAS)
    variance_in = c.c_in**2 * (sigma_data**2 + SIGMAS**2)
    np.testing.assert_allclose(variance_in, 1, rtol=1e-13)

    def square_of_c_out(c_skip):  # what a target of unit variance needs
        return (1 - c_skip) ** 2 * sigma_data**2 + c_skip**2 * SIGMAS**2

    np.testing.assert_allclose(c.c_out**2, square_of_c_out(c.c_skip), rtol=1e-11)
    for c_skip in (c.c_skip + 1e-3, c.c_skip - 1e-3):
        assert np.all(c.c_out**2 < square_of_c_out(c_skip))


@each
def test_weight_times_c_out_squared_is_one(preconditioning):
    weight = jax.vmap(preconditioning.loss_weight)(SIGMAS)
    c_out = jax.vmap(preconditioning)(SIGMAS).c_out
    np.testing.assert_allclose(weight * c_out**2, 1, rtol=1e-13)
    assert np.all(weight > 0)


@each
def test_dtype_follows_sigma(preconditioning):
    """And float32 loses nothing of the coefficients but its rounding."""
    single = jax.vmap(preconditioning)(SIGMAS.astype(jnp.float32))
    double = jax.vmap(preconditioning)(SIGMAS)
    for name, c in single._asdict().items():
        assert c.dtype == jnp.float32, name
        # c_noise of iDDPM is an index: near a tie float32 may pick the neighbour
        atol = 1 if isinstance(preconditioning, edm.IDDPMPreconditioning) else 1e-6
        np.testing.assert_allclose(c, getattr(double, name), rtol=3e-6, atol=atol)


def test_edm_labels_are_a_quarter_of_the_logarithm():
    label = edm.EDMPreconditioning(0.5)(math.exp(2.0)).c_noise
    assert float(label) == pytest.approx(0.5, rel=1e-14)


def test_edm_far_from_the_data():
    """Small noise: hand the input through. Large: predict the data. No overflow."""
    part = edm.EDMPreconditioning(0.5)
    low = part(jnp.asarray(1e-30, jnp.float32))
    high = part(jnp.asarray(1e30, jnp.float32))
    assert low.c_skip == 1 and high.c_out == 0.5 and high.c_skip == 0
    assert float(low.c_out) == pytest.approx(1e-30, rel=1e-6)
    assert float(high.c_in) == pytest.approx(1e-30, rel=1e-6)


def test_one_sigma_data_per_feature():
    scales = jnp.array([0.1, 1.0, 20.0])
    together = edm.EDMPreconditioning(scales)(0.3)
    for i, scale in enumerate(scales):
        alone = edm.EDMPreconditioning(float(scale))(0.3)
        for name in ("c_skip", "c_out", "c_in"):
            got, want = getattr(together, name)[i], getattr(alone, name)
            assert float(got) == pytest.approx(float(want), rel=1e-14)
    assert together.c_noise.shape == ()


def test_from_data_is_the_root_mean_square_about_zero():
    """A hand-made set: sqrt((1 + 9 + 16 + 0) / 4), not the standard deviation."""
    part = edm.EDMPreconditioning.from_data(jnp.array([[1.0, 3.0], [-4.0, 0.0]]))
    assert np.asarray(part.sigma_data) == pytest.approx(math.sqrt(6.5), rel=1e-14)


def test_sigma_data_is_not_trained():
    def c_out(sigma_data):
        return edm.EDMPreconditioning(sigma_data)(2.0).c_out

    assert jax.grad(c_out)(jnp.asarray(0.5)) == 0


def test_vp_label_is_the_time():
    schedule = edm.VariancePreserving(10.0, 0.2)
    part = edm.VPPreconditioning(schedule, levels=500)
    for t in (1e-3, 0.3, 1.0):
        label = part(schedule.sigma(t)).c_noise
        assert float(label) == pytest.approx(499 * t, rel=1e-10)


def test_iddpm_label_counts_levels_from_the_cleanest():
    """u_(M-1), the smallest positive level, is 0; sigma itself is not rounded."""
    part = edm.IDDPMPreconditioning(levels=20)
    table = edm.iddpm_table(20)
    labels = jax.vmap(part)(table[:-1]).c_noise
    np.testing.assert_array_equal(labels, np.arange(20)[::-1])
    near = part(table[3] * 1.001)
    assert near.c_noise == 16
    assert float(near.c_out) == pytest.approx(-1.001 * float(table[3]), rel=1e-14)


def test_ve_label():
    assert float(edm.VEPreconditioning()(2 * math.e).c_noise) == pytest.approx(1)


# What is refused


@pytest.mark.parametrize("bad", [0.0, -0.5, math.nan, math.inf, np.array([0.5, 0.0]), np.array([])])
def test_sigma_data_must_be_positive(bad):
    with pytest.raises(ValueError, match="sigma_data must be positive and finite, got"):
        edm.EDMPreconditioning(bad)


def test_sigma_data_has_no_default():
    with pytest.raises(TypeError, match="sigma_data"):
        edm.EDMPreconditioning(*[])


@pytest.mark.parametrize(
    "data, message",
    [
        (jnp.zeros((0, 2)), "x needs at least one example"),
        (jnp.zeros((4, 0)), "x needs at least one example"),
        (
            jnp.array([[1.0, math.nan], [math.inf, 0.0]]),
            "x has 2 entries that are not fin",
        ),
        (jnp.array([[1, 2]]), "x must be a floating-point array, got int64"),
        (jnp.zeros((5, 2)), "sigma_data must be positive and finite"),
    ],
)
def test_from_data_refuses(unchecked, data, message):
    with pytest.raises(ValueError, match=message):
        edm.EDMPreconditioning.from_data(data)


def test_discrete_models_need_levels():
    with pytest.raises(ValueError, match="need at least 1 noise level, got levels=0"):
        edm.IDDPMPreconditioning(levels=0)
    with pytest.raises(ValueError, match="need c_1 and c_2 between 0 and 1"):
        edm.IDDPMPreconditioning(c_1=2.0)
    with pytest.raises(ValueError, match="levels must be at least 2"):
        edm.VPPreconditioning(levels=1)
