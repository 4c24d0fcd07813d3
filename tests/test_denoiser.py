"""Denoisers made of others: Eq. 7 with a known network, fixed conditions, guidance."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import edm_tutorial as edm

LEVELS, VP_BETAS = 1000, (19.9, 0.1)


def wavy(z, c_noise, cond=None, *, key=None):
    """A network that uses all it is told, and whose label matters."""
    shift = 0.0 if cond is None else cond
    return jnp.sin(z + 0.1 * c_noise) + 0.3 * z + shift


def vp_label(sigma):
    """(M - 1) t, where ln(1 + sigma^2) = beta_d t^2 / 2 + beta_min t, by bisection."""
    low, high = 0.0, 2.0
    for _ in range(80):
        t = (low + high) / 2
        rises = VP_BETAS[0] * t**2 / 2 + VP_BETAS[1] * t > np.log1p(sigma**2)
        low, high = (low, t) if rises else (t, high)
    return (LEVELS - 1) * low


def iddpm_label(sigma):
    table = np.array(edm.iddpm_table(LEVELS))
    return LEVELS - 1 - np.argmin(np.abs(table - sigma))


def edm_row(sigma, sigma_data):
    total = sigma**2 + sigma_data**2
    return (
        sigma_data**2 / total,
        sigma * sigma_data / np.sqrt(total),
        1 / np.sqrt(total),
        np.log(sigma) / 4,
    )


# Table 1, "Network and preconditioning": c_skip, c_out, c_in, c_noise in NumPy.
TABLE = {
    "EDM": (edm.EDMPreconditioning(0.5), lambda s: edm_row(s, 0.5)),
    "VE": (edm.VEPreconditioning(), lambda s: (1, s, 1, np.log(s / 2))),
    "VP": (
        edm.VPPreconditioning(),
        lambda s: (1, -s, 1 / np.sqrt(1 + s**2), vp_label(s)),
    ),
    "iDDPM": (
        edm.IDDPMPreconditioning(),
        lambda s: (1, -s, 1 / np.sqrt(1 + s**2), iddpm_label(s)),
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_denoiser_is_equation_7(name):
    preconditioning, row = TABLE[name]
    denoiser = eqx.filter_jit(edm.Denoiser(wavy, preconditioning))
    x, cond = np.array([0.3, -2.0, 7.0]), 0.4
    for sigma in (0.002, 0.05, 0.7, 3.0, 80.0):
        c_skip, c_out, c_in, c_noise = row(sigma)
        z = c_in * x
        exact = c_skip * x + c_out * (np.sin(z + 0.1 * c_noise) + 0.3 * z + cond)
        got = denoiser(jnp.array(x), jnp.array(sigma), jnp.array(cond))
        np.testing.assert_allclose(got, exact, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", TABLE)
def test_the_network_sees_the_label_once_everywhere(name):
    """In the denoiser and in the loss: c_noise, not sigma and not a label's label."""
    preconditioning, row = TABLE[name]
    sigma = 0.7

    def label(z, c_noise, cond=None, *, key=None):
        return jnp.full_like(z, c_noise)

    denoiser = edm.Denoiser(label, preconditioning)
    nothing = jnp.zeros(1)
    _, c_out, _, c_noise = row(sigma)
    np.testing.assert_allclose(denoiser(nothing, sigma), [c_out * c_noise], rtol=1e-12)
    # x = n = 0: the target is 0 and the weighted error is the output squared
    error = edm.weighted_error(denoiser, nothing, sigma, nothing)
    np.testing.assert_allclose(error, [c_noise**2], rtol=1e-12)


@pytest.mark.parametrize("shape", [(2,), (2, 1, 1)])
def test_sigma_data_per_feature_is_one_denoiser_per_feature(shape):
    """(d,) for vectors, (C, 1, 1) for images: each feature has its own coefficients."""
    sigma_data, sigma = np.array([0.2, 3.0]), 0.6
    x = np.random.default_rng(0).normal(size=(2, *(4 for _ in shape[1:])))
    denoiser = edm.Denoiser(wavy, edm.EDMPreconditioning(sigma_data.reshape(shape)))
    got = denoiser(jnp.array(x), sigma)
    for feature in range(2):
        alone = edm.Denoiser(wavy, edm.EDMPreconditioning(sigma_data[feature]))
        np.testing.assert_allclose(got[feature], alone(jnp.array(x[feature]), sigma), rtol=1e-14)
    from_float32 = denoiser(jnp.array(x, jnp.float32), sigma)
    assert from_float32.dtype == jnp.float32
    np.testing.assert_allclose(from_float32, got, rtol=1e-5, atol=1e-6)


def test_scale_equivariance_up_to_the_label():
    """(c x, c sigma, c sigma_data) gives c D, if the label is shifted by -ln(c) / 4."""
    c, x, sigma = 7.3, jnp.array([0.4, -1.0]), 0.35

    def shifted(z, c_noise, cond=None, *, key=None):
        return wavy(z, c_noise - jnp.log(c) / 4, cond)

    small = edm.Denoiser(wavy, edm.EDMPreconditioning(0.5))
    large = edm.Denoiser(shifted, edm.EDMPreconditioning(0.5 * c))
    np.testing.assert_allclose(large(c * x, c * sigma), c * small(x, sigma), rtol=1e-12)


@pytest.mark.parametrize("schedule", [edm.VarianceExploding(), edm.VariancePreserving()])
def test_no_sampler_touches_the_preconditioning(schedule):
    """A trained denoiser and the same one hidden in a function give the same sample."""
    denoiser = edm.Denoiser(wavy, edm.EDMPreconditioning(0.5))
    noise, sigmas = jnp.array([0.7, -1.1]), edm.edm_sigmas(6, 0.1, 10.0)
    hidden = edm.sample(lambda *args: denoiser(*args), noise, sigmas, schedule=schedule)
    got = edm.sample(denoiser, noise, sigmas, schedule=schedule)
    np.testing.assert_allclose(got, hidden, rtol=1e-13)


def test_key_is_handed_to_the_network(key):
    def noisy(z, c_noise, cond=None, *, key=None):
        return jnp.zeros_like(z) if key is None else jr.normal(key, z.shape)

    denoiser = edm.Denoiser(noisy, edm.VEPreconditioning())
    x, sigma = jnp.zeros(3), 2.0
    expected = sigma * jr.normal(jr.clone(key), (3,))
    np.testing.assert_array_equal(denoiser(x, sigma, key=jr.clone(key)), expected)
    np.testing.assert_array_equal(denoiser(x, sigma), x)
    pinned = edm.Pinned(denoiser, None)
    np.testing.assert_array_equal(pinned(x, sigma, key=key), expected)


def test_pinned_ignores_the_condition_it_is_called_with():
    denoiser = edm.Denoiser(wavy, edm.EDMPreconditioning(0.5))
    x, observed, other = jnp.array([0.3]), jnp.array(1.5), jnp.array(-9.0)
    pinned = edm.Pinned(denoiser, observed)
    exact = denoiser(x, 0.4, observed)
    assert np.all(exact != denoiser(x, 0.4, other))
    np.testing.assert_array_equal(pinned(x, 0.4), exact)
    np.testing.assert_array_equal(pinned(x, 0.4, other), exact)


def main(x, sigma, cond=None, *, key=None):
    return 3.0 * x + sigma + (0.0 if cond is None else cond)


def guide(x, sigma, cond=None, *, key=None):
    return x - 2.0 * sigma


X, SIGMA, COND = jnp.array([1.0, -0.5]), jnp.array(0.5), jnp.array(0.25)


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0, 2.5])
def test_guidance_is_guide_plus_weighted_difference(weight):
    by_hand = (1 - weight) * np.array([0.0, -1.5]) + weight * np.array([3.75, -0.75])
    got = edm.Guided(main, guide, weight)(X, SIGMA, COND)
    np.testing.assert_allclose(got, by_hand, rtol=1e-14)
    swept = jax.vmap(lambda w: edm.Guided(main, guide, w)(X, SIGMA, COND))
    np.testing.assert_allclose(swept(jnp.array([weight]))[0], by_hand, rtol=1e-14)


def test_weight_one_is_main_and_zero_is_guide():
    np.testing.assert_allclose(
        edm.Guided(main, guide, 1.0)(X, SIGMA, COND), main(X, SIGMA, COND), rtol=1e-15
    )
    np.testing.assert_array_equal(
        edm.Guided(main, guide, 0.0)(X, SIGMA, COND), guide(X, SIGMA, COND)
    )


def test_guidance_acts_inside_its_interval_both_ends_included():
    guided = edm.Guided(main, guide, 2.0, (0.25, 4.0))
    everywhere = edm.Guided(main, guide, 2.0)
    for sigma, acts in ((0.2499, 0), (0.25, 1), (1.0, 1), (4.0, 1), (4.0001, 0)):
        level = jnp.array(sigma)
        expected = (everywhere if acts else main)(X, level, COND)
        np.testing.assert_array_equal(guided(X, level, COND), expected)


def test_guidance_at_a_single_level():
    """An interval may be a point: both its ends are included."""
    guided, level = edm.Guided(main, guide, 2.0, (1.0, 1.0)), jnp.array(1.0)
    np.testing.assert_array_equal(
        guided(X, level, COND), edm.Guided(main, guide, 2.0)(X, level, COND)
    )
    np.testing.assert_array_equal(guided(X, 1.01 * level, COND), main(X, 1.01 * level, COND))


def test_classifier_free_guidance_pins_the_guide():
    denoiser = edm.Denoiser(wavy, edm.EDMPreconditioning(0.5))
    null = jnp.array(0.0)
    guided = edm.Guided(denoiser, edm.Pinned(denoiser, null), 3.0)
    told, untold = denoiser(X, SIGMA, COND), denoiser(X, SIGMA, null)
    np.testing.assert_allclose(guided(X, SIGMA, COND), untold + 3 * (told - untold), rtol=1e-13)


def test_guided_splits_its_key(key):
    """Key reuse is an error in these tests: one key handed to both would be refused."""

    def noisy(x, sigma, cond, *, key):
        return jr.normal(key, x.shape)

    difference = edm.Guided(noisy, noisy, 2.0)(X, SIGMA, key=key)
    main_part = edm.Guided(noisy, noisy, 1.0)(X, SIGMA, key=jr.clone(key))
    guide_part = edm.Guided(noisy, noisy, 0.0)(X, SIGMA, key=jr.clone(key))
    assert np.all(main_part != guide_part)
    np.testing.assert_allclose(difference, 2 * main_part - guide_part, rtol=1e-12)


def test_a_plain_function_is_a_denoiser_everywhere(key):
    """It draws nothing, so it has no parameter `key`; Gaussian data of standard deviation 1/2."""
    plain = lambda x, sigma, cond=None: x * 0.25 / (0.25 + sigma**2)
    pinned, guided = edm.Pinned(plain, COND), edm.Guided(plain, plain, 2.0)
    noise, exact = jnp.array([0.7, -1.1]), edm.sample(plain, X, edm.edm_sigmas(9))
    for denoiser in (pinned, guided):
        np.testing.assert_allclose(edm.sample(denoiser, X, edm.edm_sigmas(9)), exact, rtol=1e-12)
    for denoiser in (plain, pinned, guided):
        np.testing.assert_allclose(edm.score(denoiser, noise, 1.0), -noise / 1.25, rtol=1e-12)
        # N(0, 1/4 + sigma_min^2) in two dimensions
        variance = 0.25 + 0.002**2
        log_prob = -np.sum(noise**2) / (2 * variance) - np.log(2 * np.pi * variance)
        got = edm.log_likelihood(denoiser, noise).log_prob
        np.testing.assert_allclose(got, log_prob, atol=1e-4)  # the solver's tolerance is 1e-5
    with pytest.raises(TypeError, match="key"):  # given one, it is handed on
        pinned(X, SIGMA, key=key)


def test_both_stages_of_heun_are_guided_and_conditioned():
    """Each of the 2 N - 1 evaluations calls main and guide, both with the condition."""
    calls = []

    def watched(name):
        def denoiser(x, sigma, cond=None, *, key=None):
            calls.append((name, float(sigma), cond))
            return x / (1 + sigma**2)

        return denoiser

    guided = edm.Guided(watched("main"), watched("guide"), 1.7)
    with jax.disable_jit():
        edm.sample(guided, X, np.array([3.0, 1.0, 0.1]), COND)
    expected = [3.0, 1.0, 1.0, 0.1, 0.1]
    for name in ("main", "guide"):
        levels = [level for who, level, _ in calls if who == name]
        np.testing.assert_allclose(levels, expected, rtol=1e-12)
    assert all(cond is COND for *_, cond in calls)


def test_guided_sampling_equals_sampling_the_combined_denoiser():
    """A guided pair of linear denoisers is one linear denoiser, at every stage."""

    def linear(gain):
        return lambda x, sigma, cond=None, *, key=None: gain * x / (1 + sigma**2)

    pair = edm.Guided(linear(1.0), linear(0.8), 1.5)
    noise, sigmas = jnp.array([0.7, -1.1]), edm.edm_sigmas(12)
    together = edm.sample(linear(0.8 + 1.5 * 0.2), noise, sigmas)
    np.testing.assert_allclose(edm.sample(pair, noise, sigmas), together, rtol=1e-12)


def test_guidance_is_not_bayes():
    """theta ~ N(0, 1) seen once with variance 1/4, as 1: guided by w = 2 with the prior as guide.

    Widths of Gaussians multiply as s_m^w s_g^(1-w), so the guided law has the standard deviation
    0.2. That of the posterior is 0.2^(1/2), that of the likelihood squared times the prior 1/3.
    """
    prior = edm.GaussianMixture([1.0], [[0.0]], [[[1.0]]])
    posterior = edm.GaussianMixture([1.0], [[0.8]], [[[0.2]]])
    guided = edm.Guided(posterior.denoise, prior.denoise, 2.0)
    draw = jax.vmap(lambda z: edm.sample(guided, z, edm.edm_sigmas(128)))
    low, middle, high = draw(jnp.array([[-1.0], [0.0], [1.0]]))[:, 0]  # the map is affine
    np.testing.assert_allclose((high - low) / 2, 0.2, rtol=0.01)  # Heun's error at 128 steps
    assert not np.isclose(middle, 0.8, atol=0.1) and not np.isclose(middle, 8 / 9, atol=0.1)
