"""The loss against Eq. 2 in denoiser space, and the noise levels against their laws."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import edm_tutorial as edm

PRECONDITIONINGS = {
    "EDM": edm.EDMPreconditioning(0.5),
    "EDM per feature": edm.EDMPreconditioning(np.array([0.3, 1.0, 2.5])),
    "VE": edm.VEPreconditioning(),
    "VP": edm.VPPreconditioning(),
    "iDDPM": edm.IDDPMPreconditioning(),
}


def table_weight(name, sigma):
    """lambda(sigma) as printed in Table 1, row "Loss weighting"."""
    if not name.startswith("EDM"):
        return 1 / sigma**2
    sigma_data = np.asarray(PRECONDITIONINGS[name].sigma_data)
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def wavy(z, c_noise, cond=None, *, key=None):
    """A network that uses all it is told."""
    shift = 0.0 if cond is None else cond
    return jnp.sin(z) * jnp.cos(c_noise) + 0.3 * z + shift


def zero(z, c_noise, cond=None, *, key=None):
    return jnp.zeros_like(z)


@pytest.mark.parametrize("name", PRECONDITIONINGS)
def test_weighted_error_is_equation_2_in_denoiser_space(name):
    denoiser = edm.Denoiser(wavy, PRECONDITIONINGS[name])
    rng = np.random.default_rng(0)
    cond = jnp.array(0.7)
    in_network_space = eqx.filter_jit(edm.weighted_error)
    denoise = eqx.filter_jit(denoiser)
    for sigma in jnp.array([0.002, 0.01, 0.3, 1.0, 80.0]):
        x, n = rng.normal(size=3), float(sigma) * rng.normal(size=3)
        got = in_network_space(denoiser, jnp.array(x), sigma, jnp.array(n), cond)
        error = np.array(denoise(jnp.array(x + n), sigma, cond)) - x
        # D - x is of order sigma: it has lost |x| / sigma of its 16 digits, at most 3
        np.testing.assert_allclose(got, table_weight(name, float(sigma)) * error**2, rtol=1e-11)


@pytest.mark.parametrize("name", PRECONDITIONINGS)
def test_gradients_are_those_of_equation_2(name):
    """The same function of the weights: training sees no difference."""
    preconditioning = PRECONDITIONINGS[name]
    x, n, sigma = jnp.array([0.4, -1.0, 0.1]), jnp.array([0.2, 0.1, -0.3]), 0.25
    weight = table_weight(name, sigma)

    def scaled(gain):
        return edm.Denoiser(lambda *args, key=None: gain * wavy(*args), preconditioning)

    def direct(gain):
        return jnp.sum(weight * (scaled(gain)(x + n, sigma) - x) ** 2)

    def ours(gain):
        return jnp.sum(edm.weighted_error(scaled(gain), x, sigma, n))

    np.testing.assert_allclose(
        jax.jit(jax.grad(ours))(1.3), jax.jit(jax.grad(direct))(1.3), rtol=1e-11
    )


def test_the_weight_is_neither_clamped_nor_applied_twice():
    """At sigma = 0.002 and sigma_data = 0.5 it is 250,004 exactly, in both dtypes."""
    preconditioning = edm.EDMPreconditioning(0.5)
    np.testing.assert_allclose(preconditioning.loss_weight(0.002), 250_004, rtol=1e-14)

    def one(z, c_noise, cond=None, *, key=None):
        return jnp.ones_like(z)

    for dtype, rtol in ((jnp.float64, 1e-14), (jnp.float32, 1e-6)):
        nothing = jnp.zeros(1, dtype)
        # x = n = 0 makes the target 0: what is left is the network's output, squared.
        error = edm.weighted_error(edm.Denoiser(one, preconditioning), nothing, 0.002, nothing)
        assert error.dtype == dtype
        np.testing.assert_allclose(error, [1.0], rtol=rtol)
        # F = 0: lambda ((c_skip - 1) x + c_skip n)^2 with x = 1/2, n = sigma = 1/500
        error = edm.weighted_error(
            edm.Denoiser(zero, preconditioning),
            jnp.array([0.5], dtype),
            0.002,
            jnp.array([0.002], dtype),
        )
        exact = 250_004 * ((0.002 * 0.25 - 4e-6 * 0.5) / 0.250004) ** 2
        np.testing.assert_allclose(error, [exact], rtol=1e3 * rtol)


def test_denoising_loss_is_the_mean_over_features(key):
    """With c_skip = 1, F = 0 (VE) the loss is the mean of eps^2: 1, not d."""
    denoiser = edm.Denoiser(zero, edm.VEPreconditioning())
    d, n = 10, 4000

    def loss(key):
        return edm.denoising_loss(denoiser, jnp.ones(d), sigma_dist=edm.LogUniform(), key=key)

    losses = jax.jit(jax.vmap(loss))(jr.split(key, n))
    # a chi-square of d degrees over d has variance 2/d; 4 standard errors
    assert abs(float(losses.mean()) - 1) < 4 * np.sqrt(2 / (d * n))
    # whose own standard error is sqrt((2 + 12/d) / n) of it
    assert abs(float(losses.var()) / (2 / d) - 1) < 4 * np.sqrt((2 + 12 / d) / n)


class Unit(edm.AbstractPreconditioning):
    """Shows the network x + n and sigma themselves; the target is x."""

    def __call__(self, sigma):
        sigma = jnp.asarray(sigma)
        one = jnp.ones_like(sigma)
        return edm.Coefficients(c_skip=0 * one, c_out=one, c_in=one, c_noise=sigma)


class Probe(eqx.Module):
    """A denoiser in parts: the log of its loss is one of the three random draws."""

    which: int
    preconditioning: Any = Unit()

    def network(self, z, c_noise, cond, *, key):
        draw = (jnp.log(c_noise), z / c_noise, jr.normal(key, z.shape))[self.which]
        output = jnp.sqrt(z.size) * jnp.exp(draw / 2)
        return jnp.where(jnp.arange(z.size).reshape(z.shape) == 0, output, 0)


@pytest.mark.parametrize("shape", [(1,), (2, 3)])
def test_level_noise_and_network_draw_from_different_keys(shape, key):
    """No draw is correlated with another; a key used twice would give 1."""
    n = 4000
    law = edm.LogNormal(0.0, 1.0)

    def draw(which, key):
        loss = edm.denoising_loss(Probe(which), jnp.zeros(shape), sigma_dist=law, key=key)
        return jnp.log(loss)

    def draws(key):
        return jnp.stack([draw(which, jr.clone(key)) for which in range(3)])

    level, eps, own = np.array(jax.jit(jax.vmap(draws))(jr.split(key, n))).T
    for values in (level, eps, own):  # each is N(0, 1)
        assert abs(values.mean()) < 4 / np.sqrt(n)
        assert abs(values.std() - 1) < 4 / np.sqrt(2 * n)
    for one, other in ((level, eps), (level, own), (eps, own)):
        assert abs(np.corrcoef(one, other)[0, 1]) < 4 / np.sqrt(n)


def test_condition_and_dtype_reach_the_network():
    def told(z, c_noise, cond, *, key=None):
        return z * 0 + cond["shift"]

    denoiser = edm.Denoiser(told, edm.VEPreconditioning())
    for dtype in (jnp.float32, jnp.float64):
        x = jnp.zeros(2, dtype)
        cond = {"shift": jnp.array([3.0, -2.0], dtype)}
        error = edm.weighted_error(denoiser, x, 0.5, x, cond)
        assert error.dtype == dtype
        np.testing.assert_allclose(error, [9.0, 4.0], rtol=1e-6)


NULLS = {  # of the condition {"label": 3, "other": (0.5, 0.5)}: what is seen when it is dropped
    "whole": ({"label": -1, "other": (0.0, 2.0)}, {"label": -1, "other": (0.0, 2.0)}),
    "part": ({"label": -1, "other": None}, {"label": -1, "other": (0.5, 0.5)}),
}


@pytest.mark.parametrize("name", NULLS)
def test_a_share_of_the_examples_is_told_nothing(name, key):
    """600 draws: 4 standard errors of a share of 0.3 are 0.075."""
    seen = []

    def spy(x, c_noise, cond, *, key):
        seen.append(cond)
        return x

    denoiser = edm.Denoiser(spy, edm.EDMPreconditioning(0.5))
    cond = {"label": 3, "other": jnp.full(2, 0.5)}
    null, dropped = NULLS[name]
    null = null | {"other": None if null["other"] is None else jnp.array(null["other"])}
    loss = partial(edm.denoising_loss, sigma_dist=edm.LogNormal(), null=null, p_null=0.3)

    def told(key):
        loss(denoiser, jnp.zeros(1), cond, key=key)
        return seen.pop()

    told = jax.vmap(told)(jr.split(key, 600))
    other = np.broadcast_to(told["other"], (600, 2))
    pairs = {(int(k), tuple(v)) for k, v in zip(told["label"], other.tolist(), strict=True)}
    assert pairs == {(3, (0.5, 0.5)), (dropped["label"], dropped["other"])}
    assert abs(np.mean(np.asarray(told["label"]) == -1) - 0.3) < 0.075


def test_without_a_null_condition_nothing_is_drawn_for_it(key):
    """The loss is that of the same key split for the drop by hand, and of p_null = 0 alike."""
    denoiser, cond = edm.Denoiser(wavy, edm.EDMPreconditioning(0.5)), jnp.ones(3)
    loss = partial(edm.denoising_loss, denoiser, jnp.ones(3), cond, sigma_dist=edm.LogNormal())
    never = loss(null=jnp.zeros(3), p_null=0.0, key=jr.clone(key))
    np.testing.assert_array_equal(never, loss(key=jr.split(key)[1]))


def test_denoising_loss_follows_the_dtype_of_x(key):
    denoiser = edm.Denoiser(wavy, edm.EDMPreconditioning(0.5))
    x = jnp.ones(3, jnp.float32)
    loss = edm.denoising_loss(denoiser, x, sigma_dist=edm.LogNormal(), key=key)
    assert loss.dtype == jnp.float32 and loss.shape == ()


def test_the_old_name_of_sigma_dist_warns(key):
    """`noise` gives the same loss; both names at once are one too many."""
    denoiser, x, law = edm.Denoiser(wavy, edm.VEPreconditioning()), jnp.ones(3), edm.LogNormal()
    loss = edm.denoising_loss(denoiser, x, sigma_dist=law, key=jr.clone(key))
    with pytest.warns(DeprecationWarning, match="noise=. is now called sigma_dist="):
        old = edm.denoising_loss(denoiser, x, noise=law, key=jr.clone(key))  # type: ignore[call-arg]
    assert loss == old
    with pytest.raises(TypeError, match="unexpected keyword argument 'noise'"):
        edm.denoising_loss(denoiser, x, sigma_dist=law, noise=law, key=key)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="missing .* argument: 'sigma_dist'"):
        edm.denoising_loss(denoiser, x, key=key)  # type: ignore[call-arg]


def test_lognormal_is_exp_of_p_mean_plus_p_std_r():
    """Off-default numbers, by position: a swap and a flipped sign both show."""
    noise = edm.LogNormal(-0.4, 1.7)
    for r in (-2.0, 0.0, 1.0, 2.5):
        exact = np.exp(-0.4 + 1.7 * r)
        np.testing.assert_allclose(noise.from_variate(r), exact, rtol=1e-14)
    default = edm.LogNormal()
    np.testing.assert_allclose(default.from_variate(0.0), np.exp(-1.2), rtol=1e-14)
    np.testing.assert_allclose(default.from_variate(1.0), 1.0, rtol=1e-14)


@pytest.mark.parametrize("p_mean, p_std", [(-1.2, 1.2), (0.5, 0.3)])
def test_lognormal_draws_have_its_mean_and_std(p_mean, p_std, key):
    n = 20_000
    noise = edm.LogNormal(p_mean=p_mean, p_std=p_std)
    level = np.log(np.array(jax.jit(jax.vmap(noise))(jr.split(key, n))))
    assert abs(level.mean() - p_mean) < 4 * p_std / np.sqrt(n)
    assert abs(level.std() - p_std) < 4 * p_std / np.sqrt(2 * n)


def vp_sigma(t, beta_d=19.9, beta_min=0.1):
    return np.sqrt(np.expm1(beta_d * t**2 / 2 + beta_min * t))


NOISES = {
    # noise distribution, standard normal r?, its levels at r = 0 and r = 1
    "LogNormal": (edm.LogNormal(0.3, 0.8), True, None),
    "LogUniform": (edm.LogUniform(0.005, 30.0), False, (0.005, 30.0)),
    "UniformTime": (edm.UniformTime(eps=1e-3), False, (vp_sigma(1.0), vp_sigma(1e-3))),
    "UniformLevels": (edm.UniformLevels(levels=50), False, None),
}


@pytest.mark.parametrize("name", NOISES)
def test_from_variate_and_call_are_one_distribution(name, key):
    """Draws by key fall below the level at quantile q in a fraction q of cases."""
    noise, normal, ends = NOISES[name]
    n = 10_000
    draws = np.array(jax.jit(jax.vmap(noise))(jr.split(key, n)))
    q = np.array([0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98])
    r = np.array(jax.scipy.stats.norm.ppf(q)) if normal else q
    levels = np.array(jax.vmap(noise.from_variate)(jnp.array(r)))
    rising = name.startswith("Log")
    steps = np.diff(levels) if rising else -np.diff(levels)
    assert np.all(steps > 0)
    below = [np.mean(draws < level if rising else draws > level) for level in levels]
    # 4 standard errors; r = q can only be met to 1/50 where there are 50 levels
    allowed = 4 * np.sqrt(q * (1 - q) / n) + (1 / 50 if name == "UniformLevels" else 0)
    assert np.all(np.abs(below - q) < allowed)
    if ends is not None:
        got = [noise.from_variate(0.0), noise.from_variate(1.0)]
        np.testing.assert_allclose(got, ends, rtol=1e-13)
        assert min(ends) < draws.min() and draws.max() < max(ends)


def test_uniform_levels_draws_every_positive_level_equally(key):
    levels, n = 8, 16_000
    noise = edm.UniformLevels(levels=levels)
    table = np.array(edm.iddpm_table(levels))
    draws = np.array(jax.jit(jax.vmap(noise))(jr.split(key, n)))
    assert set(draws) == set(table[:-1])  # u_M = 0 is no training level
    counts = (draws[:, None] == table[:-1]).sum(axis=0)
    p = 1 / levels
    assert np.all(np.abs(counts / n - p) < 4 * np.sqrt(p * (1 - p) / n))
    for r, index in ((0.0, 0), (0.124, 0), (0.126, 1), (0.99, 7), (1.0, 7)):
        assert noise.from_variate(r) == table[index]


# loss_by_sigma: for Gaussian data every per-feature error is Gaussian, so the loss is a
# chi-square over its degrees of freedom, and its standard error sqrt(2 / (n d)) of it.
SIGMAS = np.array([0.01, 0.2, 0.5, 1.0, 5.0, 60.0])
N, D = 10_000, 2
FOUR_ERRORS = 4 * np.sqrt(2 / (N * D))


def gaussian_data(key, std):
    return std * jr.normal(key, (N, D))


@pytest.mark.parametrize("std, sigma_data", [(0.5, 0.5), (0.7, 0.5), (0.2, 0.5)])
def test_loss_by_sigma_of_the_ideal_denoiser(std, sigma_data, key):
    """lambda times the posterior variance s^2 sigma^2 / (s^2 + sigma^2)."""
    data_key, loss_key = jr.split(key)

    def ideal(x, sigma, cond=None, *, key=None):
        return x * std**2 / (std**2 + sigma**2)

    loss = edm.loss_by_sigma(
        ideal,
        gaussian_data(data_key, std),
        SIGMAS,
        key=loss_key,
        preconditioning=edm.EDMPreconditioning(sigma_data),
    )
    variance = std**2 * SIGMAS**2 / (std**2 + SIGMAS**2)
    exact = variance * (SIGMAS**2 + sigma_data**2) / (SIGMAS * sigma_data) ** 2
    np.testing.assert_allclose(loss, exact, rtol=FOUR_ERRORS)


@pytest.mark.parametrize("std, sigma_data", [(0.5, 0.5), (1.0, 0.5), (0.25, 0.5)])
def test_loss_by_sigma_of_a_zero_network(std, sigma_data, key):
    """(sigma^2 s^2 + sigma_data^4) / ((sigma^2 + sigma_data^2) sigma_data^2)."""
    data_key, loss_key = jr.split(key)
    denoiser = edm.Denoiser(zero, edm.EDMPreconditioning(sigma_data))
    x = gaussian_data(data_key, std)
    loss = edm.loss_by_sigma(denoiser, x, SIGMAS, key=loss_key)
    total = SIGMAS**2 + sigma_data**2
    exact = (SIGMAS**2 * std**2 + sigma_data**4) / (total * sigma_data**2)
    np.testing.assert_allclose(loss, exact, rtol=FOUR_ERRORS)
    if std == sigma_data:
        np.testing.assert_allclose(exact, 1, rtol=1e-14)


def test_loss_by_sigma_is_one_number_by_both_routes(key):
    """A Denoiser in network space, and the same as a plain callable with lambda."""
    data_key, loss_key = jr.split(key)
    preconditioning = edm.EDMPreconditioning(np.array([0.3, 0.8]))
    denoiser = edm.Denoiser(wavy, preconditioning)
    x = gaussian_data(data_key, 0.5)[:20]
    cond = jnp.linspace(-1.0, 1.0, 20)
    inside = edm.loss_by_sigma(denoiser, x, SIGMAS, cond, key=jr.clone(loss_key))
    outside = edm.loss_by_sigma(
        lambda *args, key=None: denoiser(*args, key=key),
        x,
        SIGMAS,
        cond,
        key=loss_key,
        preconditioning=preconditioning,
    )
    np.testing.assert_allclose(inside, outside, rtol=1e-10)


def test_loss_by_sigma_calls_without_a_key(key):
    """As a sampler does: so a plain function needs no `key`, and dropout is off."""

    def dropping(z, c_noise, cond=None, *, key=None):
        return wavy(z, c_noise) if key is None else jnp.full_like(z, jnp.nan)

    x, sigmas = jnp.zeros((3, 2)), np.array([0.5, 2.0])
    denoiser = edm.Denoiser(dropping, edm.EDMPreconditioning(0.5))
    inside = edm.loss_by_sigma(denoiser, x, sigmas, key=jr.clone(key))
    plain = lambda x, sigma, cond=None: denoiser(x, sigma)
    outside = edm.loss_by_sigma(plain, x, sigmas, key=key, preconditioning=denoiser.preconditioning)
    assert np.all(np.isfinite(inside))
    np.testing.assert_allclose(outside, inside, rtol=1e-10)


@pytest.mark.usefixtures("unchecked")
def test_loss_by_sigma_takes_numpy_arrays_and_lists_of_levels(key):
    denoiser = edm.Denoiser(wavy, edm.EDMPreconditioning(0.5))
    x, cond = np.random.default_rng(0).normal(size=(3, 2)), np.arange(3.0)
    loss = partial(edm.loss_by_sigma, denoiser, key=key)
    jax_arrays = loss(jnp.asarray(x), jnp.array([0.5, 2.0]), jnp.asarray(cond), key=jr.clone(key))
    numpy_arrays = loss(x, [0.5, 2.0], cond)
    np.testing.assert_array_equal(numpy_arrays, jax_arrays)


def test_loss_by_sigma_uses_fresh_noise_for_each_example_and_level(key):
    """VE with F = 0 has error eps^2: equal values would betray one noise used twice."""
    denoiser = edm.Denoiser(zero, edm.VEPreconditioning())
    x = jnp.zeros((1, 1))
    losses = edm.loss_by_sigma(denoiser, x, np.full(500, 0.3), key=jr.clone(key))
    assert len(np.unique(losses)) == 500
    assert abs(float(losses.mean()) - 1) < 4 * np.sqrt(2 / 500)
    # one level, 500 examples: if they shared a noise, the mean would be one chi-square
    losses = edm.loss_by_sigma(denoiser, jnp.zeros((500, 1)), np.ones(1), key=key)
    assert abs(float(losses[0]) - 1) < 4 * np.sqrt(2 / 500)
