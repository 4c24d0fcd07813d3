"""Preconditioning: the demands it must meet, rather than its formulas retyped."""

import math
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
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


def test_sigma_data_has_no_gradient():
    def c_out(sigma_data):
        return edm.EDMPreconditioning(sigma_data)(2.0).c_out

    assert jax.grad(c_out)(jnp.asarray(0.5)) == 0


MEASURED = jnp.array([[0.3, -0.7], [-0.3, 0.7]])
MADE = {
    "a number": lambda: edm.EDMPreconditioning(0.508),
    "an array": lambda: edm.EDMPreconditioning(jnp.array(0.508, jnp.float32)),
    "one per feature": lambda: edm.EDMPreconditioning(jnp.array([0.3, 0.7])),
    "from data": lambda: edm.EDMPreconditioning.from_data(MEASURED),
    "from data in jit": lambda: eqx.filter_jit(edm.EDMPreconditioning.from_data)(MEASURED),
}
# Returned from jit it is an array of integers. `is_array` takes that for a parameter, and optax
# refuses parameters without a gradient.
TRAINED = [(name, eqx.is_inexact_array) for name in MADE]
TRAINED += [(name, eqx.is_array) for name in MADE if name != "from data in jit"]


@pytest.mark.parametrize("name, of", TRAINED, ids=lambda value: getattr(value, "__name__", value))
def test_sigma_data_is_no_parameter_of_any_optimizer(key, name, of):
    """A training loop of one's own, with a weight decay that would take 5% off at each step."""
    net = eqx.nn.Linear(2, 2, key=key)
    model = edm.Denoiser(Plain(net), MADE[name]())
    before = np.asarray(model.preconditioning.sigma_data)
    optimizer = optax.adamw(0.1, weight_decay=0.5)
    state = optimizer.init(eqx.filter(model, of))

    @eqx.filter_jit
    def step(model, state):
        loss = lambda model: jnp.mean(jax.vmap(lambda x: model(x, 0.4))(MEASURED) ** 2)
        grads = eqx.filter_grad(loss)(model)
        updates, state = optimizer.update(grads, state, eqx.filter(model, of))
        return eqx.apply_updates(model, updates), state

    with jax.numpy_dtype_promotion("standard"):  # Adam mixes integer counts and floats
        for _ in range(3):
            model, state = step(model, state)
    assert np.all(model.network.net.weight != net.weight)
    np.testing.assert_array_equal(model.preconditioning.sigma_data, before)


class Plain(eqx.Module):
    """A trainable network that ignores the noise level."""

    net: eqx.nn.Linear

    def __call__(self, x, c_noise, cond=None, *, key=None):
        return self.net(x)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("shape", [(), (3,), (3, 1, 1)])
def test_sigma_data_is_kept_to_the_last_bit(dtype, shape):
    """Known, traced, batched, computed with, written and read: the number that was given."""
    value = jnp.asarray(np.linspace(0.1, 0.7, math.prod(shape)).reshape(shape), dtype)
    traced = eqx.filter_jit(edm.EDMPreconditioning)(value)
    assert traced.sigma_data.dtype == dtype and not eqx.is_inexact_array(jax.tree.leaves(traced)[0])
    for part in (edm.EDMPreconditioning(value), edm.EDMPreconditioning(value.tolist()), traced):
        assert np.shape(part.sigma_data) == shape
        np.testing.assert_array_equal(part.sigma_data, value)
        # c_out tends to sigma_data; 1e8 times as much noise leaves nothing else
        np.testing.assert_array_equal(part(jnp.asarray(1e12, dtype)).c_out, value)
    many = eqx.filter_vmap(edm.EDMPreconditioning)(jnp.stack([value, 2 * value]))
    c_out = eqx.filter_vmap(lambda part: part(jnp.asarray(1e12, dtype)).c_out)(many)
    np.testing.assert_array_equal(c_out, [value, 2 * value])


@pytest.mark.parametrize("name", MADE)
def test_preconditioning_is_written_and_read(tmp_path, name):
    part = MADE[name]()
    other = jax.tree.map(lambda leaf: leaf + 1, part)
    eqx.tree_serialise_leaves(tmp_path / "part.eqx", part)
    read = eqx.tree_deserialise_leaves(tmp_path / "part.eqx", other)
    np.testing.assert_array_equal(read.sigma_data, part.sigma_data)
    assert read == part and read != other


@pytest.mark.parametrize("name", MADE)
def test_preconditioning_prints_its_number(name):
    numbers = re.findall(r"\d\.\d+", repr(MADE[name]()))
    np.testing.assert_allclose(
        np.array(numbers, float), np.ravel(MADE[name]().sigma_data), rtol=1e-6
    )


@pytest.mark.parametrize("name", MADE)
def test_its_numbers_may_become_arrays(name):
    """As they do at the door of the sampler, so that another value compiles nothing anew."""
    part = MADE[name]()
    arrays = jax.tree.map(jnp.asarray, part)
    for c, exact in zip(eqx.filter_jit(arrays)(jnp.array(0.7)), part(0.7), strict=True):
        np.testing.assert_allclose(c, exact, rtol=1e-15)


def test_one_compilation_for_all_values():
    """Inside jit sigma_data is an array like any other."""
    compiled = []

    @eqx.filter_jit
    def c_skip(part):
        compiled.append(part)
        return part(0.5).c_skip

    make = eqx.filter_jit(edm.EDMPreconditioning)
    values = [float(c_skip(make(jnp.array(value)))) for value in (0.5, 1.0, 1.5)]
    np.testing.assert_allclose(values, [0.5, 0.8, 0.9], rtol=1e-14)
    assert len(compiled) == 1


@each
def test_nan_comes_out_as_nan(preconditioning):
    c = eqx.filter_jit(preconditioning)(jnp.array(math.nan))
    assert np.isnan(c.c_out)


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
    with pytest.raises(ValueError, match="levels=0"):
        edm.IDDPMPreconditioning(levels=0)
    with pytest.raises(ValueError, match="need c_1 and c_2 between 0 and 1"):
        edm.IDDPMPreconditioning(c_1=2.0)
    with pytest.raises(ValueError, match="levels must be at least 2"):
        edm.VPPreconditioning(levels=1)
