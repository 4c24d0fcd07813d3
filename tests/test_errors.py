"""Bad input to the training half is refused, by name, before anything is computed.

One row for each: what is called, which error, and the words its message must contain.
These are the messages of a user without run-time type checks, hence `unchecked`.
"""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import edm_tutorial
from edm_tutorial import networks

# Called wrongly on purpose, which a type checker would be right to refuse.
edm: Any = edm_tutorial
MLP: Any = networks.MLP
Embedded: Any = networks.Embedded

NAN, INF = float("nan"), float("inf")
KEY = jr.key(0)
X = jnp.array([0.5, -1.0])
DATA = jnp.array([[0.5, -1.0], [1.0, 2.0], [0.0, -1.0]])
WHOLE = jnp.array([1, 2])  # integers cannot hold noise


def zero(z, c_noise, cond=None, *, key=None):
    return jnp.zeros_like(z)


def short(z, c_noise, cond=None, *, key=None):
    return z[:1]


EDM = edm.EDMPreconditioning(0.5)
DENOISER = edm.Denoiser(zero, EDM)
MIXTURE = edm.GaussianMixture(jnp.ones(1), jnp.zeros((1, 2)), jnp.eye(2)[None])
IDEAL = edm.EmpiricalDenoiser(DATA)


def key():
    return jr.clone(KEY)


def mixture(weights=(0.5, 0.5), means=((0.0,), (1.0,)), covs=(((1.0,),), ((1.0,),))):
    return edm.GaussianMixture(*(jnp.array(value) for value in (weights, means, covs)))


def mlp(size=2, cond_size=0, **options: Any):
    return MLP(size, cond_size, **({"width": 4, "depth": 1, "key": key()} | options))


def by_sigma(x=DATA, sigmas: Any = (1.0,), cond: Any = None, denoiser=DENOISER):
    return edm.loss_by_sigma(denoiser, x, jnp.array(sigmas), cond, key=key())


def train(data: Any = DATA, **options: Any):
    loss = partial(edm.denoising_loss, noise=edm.LogNormal())
    options = {"steps": 1, "batch_size": 1, "key": key()} | options
    denoiser = edm.Denoiser(mlp(), EDM)
    return edm.train(denoiser, loss, data, optax.sgd(0.1), **options)


def loss(denoiser=DENOISER, x=X):
    return edm.denoising_loss(denoiser, x, noise=edm.LogNormal(), key=key())


BAD = {
    "mixture: weights and means": (
        lambda: mixture(weights=(1.0,)),
        "weights, means and covs",
    ),
    "mixture: one mean": (lambda: mixture(means=(0.0, 1.0)), "weights, means and covs"),
    "mixture: stds for covs": (lambda: mixture(covs=((1.0,), (1.0,))), "covs"),
    "mixture: no component": (
        lambda: edm.GaussianMixture(jnp.ones(0), jnp.ones((0, 1)), jnp.ones((0, 1, 1))),
        "weights",
    ),
    "mixture: weights sum": (
        lambda: mixture(weights=(0.5, 0.6)),
        "weights must .* sum to 1",
    ),
    "mixture: weight zero": (
        lambda: mixture(weights=(0.0, 1.0)),
        "weights must be positive",
    ),
    "mixture: weight negative": (
        lambda: mixture(weights=(-1.0, 2.0)),
        "weights must be pos",
    ),
    "mixture: weight nan": (lambda: mixture(weights=(NAN, 1.0)), "weights"),
    "mixture: mean nan": (
        lambda: mixture(means=((NAN,), (0.0,))),
        "means and covs .* finite",
    ),
    "mixture: cov inf": (
        lambda: mixture(covs=(((INF,),), ((1.0,),))),
        "covs .* finite",
    ),
    "mixture: cov negative": (
        lambda: mixture(covs=(((-1.0,),), ((1.0,),))),
        "covs .* negative",
    ),
    "mixture: cov skew": (
        lambda: edm.GaussianMixture(
            jnp.ones(1), jnp.zeros((1, 2)), jnp.array([[[1.0, 0.5], [0.0, 1.0]]])
        ),
        "covs must be symmetric",
    ),
    "log_prob: a batch": (lambda: MIXTURE.log_prob(DATA), "x must have shape .*vmap"),
    "log_prob: integers": (lambda: MIXTURE.log_prob(WHOLE), "x must be a floating"),
    "log_prob: sigma negative": (
        lambda: MIXTURE.log_prob(X, -1.0),
        "sigma must be positive",
    ),
    "score: another size": (
        lambda: MIXTURE.score(jnp.ones(3), 1.0),
        "x must have shape",
    ),
    "score: sigma nan": (lambda: MIXTURE.score(X, NAN), "sigma must be positive"),
    "denoise: integers": (lambda: MIXTURE.denoise(WHOLE, 1.0), "x must be a floating"),
    "denoise: many sigmas": (lambda: MIXTURE.denoise(X, X), "sigma must be one number"),
    "denoise: sigma inf": (lambda: MIXTURE.denoise(X, INF), "sigma must be positive"),
    "empirical: no data": (
        lambda: edm.EmpiricalDenoiser(jnp.ones((0, 2))),
        "data needs at le",
    ),
    "empirical: a number": (
        lambda: edm.EmpiricalDenoiser(jnp.array(1.0)),
        "data needs at le",
    ),
    "empirical: nan": (
        lambda: edm.EmpiricalDenoiser(DATA.at[0].set(NAN)),
        "data has 2 entries",
    ),
    "empirical: another shape": (
        lambda: IDEAL(jnp.ones(3), 1.0),
        "x must have the shape",
    ),
    "empirical: integer x": (lambda: IDEAL(WHOLE, 1.0), "x must be a floating"),
    "empirical: sigma zero": (lambda: IDEAL(X, 0.0), "sigma must be positive"),
    "empirical: many sigmas": (lambda: IDEAL.weights(X, X), "sigma must be one number"),
    "denoiser: integers": (lambda: DENOISER(WHOLE, 1.0), "x must be a floating"),
    "denoiser: a list": (
        lambda: DENOISER([1.0, 2.0], 1.0),
        "x must be a floating.*list",
    ),
    "denoiser: sigma zero": (lambda: DENOISER(X, 0.0), "sigma must be positive"),
    "denoiser: sigma negative": (lambda: DENOISER(X, -1.0), "sigma must be positive"),
    "denoiser: sigma nan": (
        lambda: DENOISER(X, NAN),
        "sigma must be positive and finite",
    ),
    "denoiser: many sigmas": (lambda: DENOISER(X, X), "sigma must be one number.*vmap"),
    "denoiser: network's shape": (
        lambda: edm.Denoiser(short, EDM)(X, 1.0),
        r"network's output must have the shape of x, \(2,\), got \(1,\)",
    ),
    "guided: interval turned": (
        lambda: edm.Guided(DENOISER, DENOISER, 2.0, (3.0, 1.0)),
        "interval must be",
    ),
    "guided: interval nan": (
        lambda: edm.Guided(DENOISER, DENOISER, 2.0, (NAN, 1.0)),
        "interval must be",
    ),
    "guided: interval of three": (
        lambda: edm.Guided(DENOISER, DENOISER, 2.0, (0.0, 1.0, 2.0)),
        "interval must be",
    ),
    "lognormal: std zero": (lambda: edm.LogNormal(0.0, 0.0), "p_std must be positive"),
    "lognormal: swapped": (lambda: edm.LogNormal(1.2, -1.2), "p_std must be positive"),
    "lognormal: mean nan": (lambda: edm.LogNormal(NAN, 1.0), "p_mean must be finite"),
    "loguniform: turned": (lambda: edm.LogUniform(2.0, 1.0), "sigma_min < sigma_max"),
    "loguniform: from zero": (lambda: edm.LogUniform(0.0, 1.0), "0 < sigma_min"),
    "loguniform: to infinity": (lambda: edm.LogUniform(0.1, INF), "sigma_max, got"),
    "uniform time: eps zero": (lambda: edm.UniformTime(eps=0.0), "eps=0.0"),
    "uniform time: eps one": (lambda: edm.UniformTime(eps=1.0), "eps=1.0"),
    "uniform levels: none": (lambda: edm.UniformLevels(levels=0), "levels=0"),
    "uniform levels: c_2": (lambda: edm.UniformLevels(c_2=-1.0), "c_2"),
    "error: no parts": (
        lambda: edm.weighted_error(zero, X, 1.0, X),
        r"Denoiser\(network, preconditioning\)",
    ),
    "error: integers": (
        lambda: edm.weighted_error(DENOISER, WHOLE, 1.0, X),
        "x must be a flo",
    ),
    "error: one noise": (
        lambda: edm.weighted_error(DENOISER, X, 1.0, jnp.array(0.1)),
        r"n must have the shape of x, \(2,\), got \(\)",
    ),
    "error: sigma zero": (
        lambda: edm.weighted_error(DENOISER, X, 0.0, X),
        "sigma must be pos",
    ),
    "error: network's shape": (
        lambda: edm.weighted_error(edm.Denoiser(short, EDM), X, 1.0, X),
        "network's output must have the shape of x",
    ),
    "loss: integers": (lambda: loss(x=WHOLE), "x must be a floating"),
    "loss: no parts": (lambda: loss(denoiser=IDEAL), "preconditioning"),
    "by sigma: no parts": (lambda: by_sigma(denoiser=IDEAL), "pass preconditioning="),
    "by sigma: no data": (lambda: by_sigma(jnp.ones((0, 2))), "x needs at least one"),
    "by sigma: nan": (lambda: by_sigma(DATA.at[0, 0].set(NAN)), "x has 1 entries"),
    "by sigma: integers": (
        lambda: by_sigma(jnp.ones((3, 2), int)),
        "x must be a floating",
    ),
    "by sigma: zero": (lambda: by_sigma(sigmas=(1.0, 0.0)), "sigmas must be positive"),
    "by sigma: negative": (lambda: by_sigma(sigmas=(-1.0,)), "sigmas must be positive"),
    "by sigma: nan level": (lambda: by_sigma(sigmas=(NAN,)), "sigmas must be positive"),
    "by sigma: no level": (lambda: by_sigma(sigmas=()), "sigmas must be positive"),
    "by sigma: conditions": (
        lambda: by_sigma(cond=jnp.ones((2, 1))),
        "needs its condition",
    ),
    "by sigma: one condition": (
        lambda: by_sigma(cond=jnp.array(1.0)),
        "needs its condition",
    ),
    "initial loss: sigma zero": (
        lambda: edm.initial_loss(EDM, 0.0, 1.0),
        "sigma must be pos",
    ),
    "initial loss: square": (
        lambda: edm.initial_loss(EDM, 1.0, -1.0),
        "mean_square must be",
    ),
    "initial loss: squares": (
        lambda: edm.initial_loss(EDM, 1.0, X),
        "mean_square must be one",
    ),
    "check: one example": (
        lambda: edm.check_initial_loss(DENOISER, DATA[:1]),
        "at least 2",
    ),
    "check: no data": (
        lambda: edm.check_initial_loss(DENOISER, DATA[:0]),
        "x needs at least",
    ),
    "check: infinite": (
        lambda: edm.check_initial_loss(DENOISER, DATA.at[1].set(INF)),
        "x has 2 entries that are not finite",
    ),
    "check: sigma negative": (
        lambda: edm.check_initial_loss(DENOISER, DATA, sigmas=jnp.array([-1.0])),
        "sigmas must be positive",
    ),
    "check: conditions": (
        lambda: edm.check_initial_loss(DENOISER, DATA, jnp.ones(7)),
        "needs its condition: 3 examples, and cond of shape",
    ),
    "check: missing condition": (
        lambda: edm.check_initial_loss(edm.Denoiser(mlp(2, 3), EDM), DATA),
        r"cond must have shape \(3,\), got None",
    ),
    "check: no parts": (lambda: edm.check_initial_loss(IDEAL, DATA), "preconditioning"),
    "train: no data": (lambda: train(DATA[:0]), "data needs at least one"),
    "train: a list": (lambda: train([1.0, 2.0]), "data must be a floating.* list"),
    "train: integers": (
        lambda: train(jnp.ones((3, 2), int)),
        "data must be a floating",
    ),
    "train: nan": (lambda: train(DATA.at[0, 0].set(NAN)), "data has 1 entries"),
    "train: three parts": (
        lambda: train((DATA, DATA, DATA)),
        "data must be x or a pair",
    ),
    "train: conditions": (
        lambda: train((DATA, jnp.ones((4, 1)))),
        "needs its condition",
    ),
    "train: condition nan": (
        lambda: train((DATA, DATA.at[0].set(NAN))),
        "cond has 2 entries",
    ),
    "train: no steps": (lambda: train(steps=0), "steps must be at least 1, got 0"),
    "train: no batch": (lambda: train(batch_size=-2), "batch_size must be at least 1"),
    "train: no chunk": (lambda: train(every=0), "every must be at least 1"),
    "train: missing condition": (
        lambda: next(
            edm.train(
                edm.Denoiser(mlp(2, 3), EDM),
                partial(edm.denoising_loss, noise=edm.LogNormal()),
                DATA,
                optax.sgd(0.1),
                steps=1,
                batch_size=1,
                key=key(),
            )
        ),
        r"cond must have shape \(3,\), got None",
    ),
    "ema: half-life zero": (lambda: edm.HalfLifeEMA(0.0), "half_life must be positive"),
    "ema: half-life nan": (lambda: edm.HalfLifeEMA(NAN), "half_life must be positive"),
    "ema: ratio negative": (
        lambda: edm.HalfLifeEMA(1.0, -0.1),
        "rampup_ratio must be pos",
    ),
    "ema: seen negative": (
        lambda: edm.HalfLifeEMA().decay(-1, 1),
        "seen must be positive",
    ),
    "ema: empty batch": (
        lambda: edm.HalfLifeEMA().decay(1, 0),
        "batch_size must be positive",
    ),
    "mlp: size zero": (lambda: mlp(0), "need size, width and depth"),
    "mlp: cond negative": (lambda: mlp(2, -1), "cond_size of at least 0"),
    "mlp: width zero": (lambda: mlp(width=0), "need size, width and depth"),
    "mlp: depth zero": (lambda: mlp(depth=0), "need size, width and depth"),
    "mlp: another size": (
        lambda: mlp()(jnp.ones(3), jnp.array(0.0)),
        r"x must have shape \(2,",
    ),
    "mlp: integers": (lambda: mlp()(WHOLE, jnp.array(0.0)), "x must be a floating"),
    "mlp: no condition": (
        lambda: mlp(2, 1)(X, jnp.array(0.0)),
        r"cond must have shape \(1,\)",
    ),
    "mlp: extra condition": (
        lambda: mlp()(X, jnp.array(0.0), X),
        "cond must have shape None",
    ),
    "mlp: wrong condition": (
        lambda: mlp(2, 1)(X, jnp.array(0.0), X),
        "cond must have shape",
    ),
    "embedded: wrong size": (
        lambda: Embedded(mlp(2, 1), lambda cond: cond)(X, jnp.array(0.0), X),
        r"cond must have shape \(1,\), got \(2,\)",
    ),
    "preconditioning: zero": (
        lambda: edm.EDMPreconditioning(0.0),
        "sigma_data must be positive",
    ),
    "from_data: nothing": (
        lambda: edm.EDMPreconditioning.from_data(DATA[:0]),
        "x needs at le",
    ),
    "from_data: zeros": (
        lambda: edm.EDMPreconditioning.from_data(0 * DATA),
        "sigma_data must",
    ),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        call()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["steps", "batch_size", "every"])
def test_counts_must_be_whole_numbers(name):
    with pytest.raises(TypeError, match=f"{name} must be a whole number, got 1.5"):
        train(**{name: 1.5})
    train(**{name: np.int64(1)})


UNKNOWN = {
    "denoising_loss": lambda: edm.denoising_loss(
        DENOISER, X, noise=edm.LogNormal(), key=key(), sigma_data=0.5
    ),
    "loss_by_sigma": lambda: edm.loss_by_sigma(DENOISER, DATA, X, key=key(), weight=1.0),
    "weighted_error": lambda: edm.weighted_error(DENOISER, X, 1.0, X, sigma_data=0.5),
    "train": lambda: train(epochs=3),
    "LogNormal": lambda: edm.LogNormal(P_mean=-1.2),
    "MLP": lambda: mlp(hidden=3),
    "Denoiser": lambda: edm.Denoiser(zero, EDM, sigma_data=0.5),
    "EDMPreconditioning": lambda: edm.EDMPreconditioning(),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", UNKNOWN)
def test_signatures_are_strict(name):
    with pytest.raises(TypeError, match="argument"):
        UNKNOWN[name]()


def test_bad_input_is_refused_before_the_first_step_is_asked_for():
    """`train` is a generator, but its checks do not wait for the loop."""
    with pytest.raises(ValueError, match="data has"):
        edm.train(DENOISER, zero, DATA * NAN, optax.sgd(0.1), steps=1, batch_size=1, key=key())


def test_checks_leave_traced_values_alone():
    """Inside jit, vmap and grad nobody knows the numbers; the same calls must work."""
    sigmas = jnp.array([0.3, 2.0])
    for denoiser in (DENOISER, MIXTURE.denoise, IDEAL):
        eqx.filter_jit(denoiser)(X, sigmas[0])
        assert jax.vmap(lambda sigma, d=denoiser: d(X, sigma))(sigmas).shape == (2, 2)
    slope = jax.grad(lambda sigma: edm.initial_loss(EDM, sigma, 1.0))(1.0)
    # d/ds of (s^2 + 1/16) / ((s^2 + 1/4) / 4) at s = 1
    np.testing.assert_allclose(slope, 4 * (2 * 1.25 - 2 * 1.0625) / 1.25**2, rtol=1e-12)
