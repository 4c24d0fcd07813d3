"""Bad input is refused by name, and before anything is computed.

One row for each: what is called, and the words its message must contain. These are the
messages of a user without run-time type checks, hence `unchecked`.
"""

import ast
import inspect
import re
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import edm_tutorial
from edm_tutorial import networks, sbi, training
from edm_tutorial.images import augmentation, data
from edm_tutorial.networks.edm2 import loss as edm2_loss
from edm_tutorial.training import BatchLoss, checkpoint, sharding, step_memory

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
Z = lambda x: x  # the simplest measurement


def key():
    return jr.clone(KEY)


def mixture(weights=(0.5, 0.5), means=((0.0,), (1.0,)), covs=(((1.0,),), ((1.0,),))):
    return edm.GaussianMixture(*(jnp.array(value) for value in (weights, means, covs)))


def mlp(size=2, cond_size=0, **options: Any):
    return MLP(size, cond_size, **({"width": 4, "depth": 1, "key": key()} | options))


def by_sigma(x=DATA, sigmas: Any = (1.0,), cond: Any = None, denoiser=DENOISER):
    return edm.loss_by_sigma(denoiser, x, jnp.array(sigmas), cond, key=key())


def train(data: Any = DATA, loss: Any = None, **options: Any):
    loss = loss or partial(edm.denoising_loss, sigma_dist=edm.LogNormal())
    options = {"steps": 1, "batch_size": 1, "key": key()} | options
    denoiser = edm.Denoiser(mlp(), EDM)
    return edm.train(denoiser, loss, data, optax.sgd(0.1), **options)


def loss(denoiser=DENOISER, x=X):
    return edm.denoising_loss(denoiser, x, sigma_dist=edm.LogNormal(), key=key())


SIGMAS = jnp.array([80.0, 1.0])
LINEAR = edm.Linear()


def sample(
    noise: Any = X, sigmas: Any = SIGMAS, denoiser: Any = DENOISER, cond: Any = None, **options: Any
):
    return edm.sample(denoiser, noise, sigmas, cond, **options)


def likelihood(x: Any = X, **options: Any):
    return edm.log_likelihood(DENOISER, x, **options)


def typed(dtype: Any):
    return lambda x, sigma, cond=None, *, key=None: x.astype(dtype)


def returns(output: Any):
    return lambda x, sigma, cond=None, *, key=None: output


FAR = edm.Rounded(LINEAR, jnp.array([80.0, 1.0, 0.0]))

SAMPLING = {
    "noise integers": (lambda: sample(WHOLE), "noise must be a floating-point array, got int"),
    "noise a list": (lambda: sample([0.5, 1.0]), "noise must be a floating-point array, got list"),
    "noise nan": (lambda: sample(X * NAN), "noise must be finite"),
    "sigmas empty": (
        lambda: sample(sigmas=jnp.ones(0)),
        r"sigmas must be a 1-D .* got shape \(0,\)",
    ),
    "sigmas a number": (lambda: sample(sigmas=1.0), r"sigmas must be a 1-D array"),
    "sigmas a matrix": (lambda: sample(sigmas=SIGMAS[None]), r"sigmas must be a 1-D array"),
    "sigmas rising": (lambda: sample(sigmas=SIGMAS[::-1]), "sigmas must be .* descending"),
    "sigmas equal": (lambda: sample(sigmas=jnp.ones(2)), "sigmas must be .* descending"),
    "sigmas to zero": (lambda: sample(sigmas=jnp.array([1.0, 0.0])), "sigmas must be positive"),
    "sigmas negative": (lambda: sample(sigmas=-SIGMAS[::-1]), "sigmas must be positive"),
    "sigmas nan": (lambda: sample(sigmas=SIGMAS * NAN), "sigmas must be positive, finite"),
    "sigmas infinite": (lambda: sample(sigmas=jnp.array([INF, 1.0])), "sigmas must be .*finite"),
    "sigmas beyond the dtype": (
        lambda: sample(X.astype(jnp.float16), jnp.array([1e6, 1.0])),
        "sigmas must be .*finite .* in float16",
    ),
    "sigmas equal in the dtype": (
        lambda: sample(X.astype(jnp.float16), jnp.array([1.00001, 1.0])),
        "sigmas must be .* descending in float16",
    ),
    "key a seed": (
        lambda: sample(churn=edm.Churn(30.0), key=3),
        "key must be one random key.*got 3",
    ),
    "keys": (
        lambda: sample(churn=edm.Churn(30.0), key=jr.split(key(), 2)),
        "key must be one random key",
    ),
    "key a seed, no churn": (lambda: sample(key=0), "key must be one random key.*got 0"),
    "sigmas rising, a list": (lambda: sample(sigmas=[1.0, 80]), "sigmas must be .* descending"),
    "sigmas a list of lists": (lambda: sample(sigmas=[[80.0], [1.0]]), "sigmas must be a 1-D"),
    "churn without key": (lambda: sample(churn=edm.Churn(30.0)), "churn .* pass key="),
    "churn a number": (lambda: sample(churn=30.0, key=key()), "churn must be .*Churn.*got 30.0"),
    "solver a class": (lambda: sample(solver=edm.Heun), "solver must be .*AbstractSolver"),
    "solver a name": (lambda: sample(solver="heun"), "solver must be .*got 'heun'"),
    "schedule a class": (lambda: sample(schedule=edm.Linear), "schedule must be"),
    "schedule a grid": (lambda: sample(schedule=SIGMAS), "schedule must be"),
    "rounded to one level": (
        lambda: sample(sigmas=jnp.array([1.5, 1.0]), schedule=FAR),
        "sigmas must lead to distinct, positive times",
    ),
    "rounded to zero": (
        lambda: sample(sigmas=jnp.array([80.0, 0.1]), schedule=FAR),
        "sigmas must lead to .*positive times",
    ),
    "rounded inside scaled": (
        lambda: sample(sigmas=jnp.array([1.5, 1.0]), schedule=edm.VarianceScaled(FAR)),
        "sigmas must lead to distinct, positive times",
    ),
    "rounded inside unscaled": (
        lambda: sample(
            sigmas=jnp.array([1.5, 1.0]), schedule=edm.Unscaled(edm.VarianceScaled(FAR))
        ),
        "sigmas must lead to distinct, positive times",
    ),
    "missing condition": (
        lambda: sample(denoiser=edm.Denoiser(mlp(2, 3), EDM)),
        r"cond must have shape \(3,\), got None",
    ),
    "condition's shape": (
        lambda: sample(denoiser=edm.Denoiser(mlp(2, 3), EDM), cond=X),
        r"cond must have shape \(3,\), got \(2,\)",
    ),
    "pinned condition's shape": (
        lambda: sample(denoiser=edm.Pinned(edm.Denoiser(mlp(2, 3), EDM), X)),
        r"cond must have shape \(3,\), got \(2,\)",
    ),
    "another size": (lambda: sample(jnp.ones(3), denoiser=MIXTURE.denoise), "x must have shape"),
}
for solver in (edm.Euler(), edm.Heun(), edm.DPMSolverPP2M()):
    for n in (1, 2):
        SAMPLING |= {
            f"denoiser's shape, {type(solver).__name__}, {n}": (
                lambda s=solver, n=n: sample(
                    denoiser=returns(jnp.ones(1)), solver=s, sigmas=SIGMAS[:n]
                ),
                r"denoiser's output must have the shape of x, \(2,\), got \(1,\)",
            ),
            f"denoiser's dtype, {type(solver).__name__}, {n}": (
                lambda s=solver, n=n: sample(
                    X.astype(jnp.float32), denoiser=typed(jnp.float16), solver=s, sigmas=SIGMAS[:n]
                ),
                "denoiser's output must have the dtype of x, float32, got float16",
            ),
        }
SAMPLING |= {
    "path: noise": (lambda: edm.sample_path(DENOISER, WHOLE, SIGMAS), "noise must be a floating"),
    "path: sigmas": (lambda: edm.sample_path(DENOISER, X, -SIGMAS), "sigmas must be positive"),
    "path: churn": (
        lambda: edm.sample_path(DENOISER, X, SIGMAS, churn=edm.Churn(1.0)),
        "churn .* pass key=",
    ),
    "path: denoiser": (
        lambda: edm.sample_path(returns(jnp.ones((2, 1))), X, SIGMAS),
        "denoiser's output must have the shape of x",
    ),
    "churn: negative": (lambda: edm.Churn(-1.0), "s_churn, .* must not be negative"),
    "churn: nan": (lambda: edm.Churn(NAN), "s_churn, .* must not be negative"),
    "churn: window": (lambda: edm.Churn(1.0, 2.0, 1.0), "s_min <= s_max, got 2.0 and 1.0"),
    "churn: s_min": (lambda: edm.Churn(1.0, -2.0), "s_min.* must not be negative"),
    "churn: s_noise": (lambda: edm.Churn(1.0, s_noise=INF), "s_noise must be finite, got inf"),
    "heun: zero": (lambda: edm.Heun(0.0), "alpha must be positive"),
    "heun: alphas": (lambda: edm.Heun(X), "alpha must be one number"),
    "heun: nan": (lambda: edm.Heun(NAN), "alpha must be positive"),
}

SCHEDULES = {
    "vp: nan": (lambda: edm.VariancePreserving(NAN), "beta_d"),
    "vp: falling": (lambda: edm.VariancePreserving(-1.0), "beta_min . beta_d"),
    "vp: no noise": (lambda: edm.VariancePreserving(0.0, 0.0), "beta_min . beta_d"),
    "range: turned": (
        lambda: edm.VariancePreserving.from_range(80.0, 0.002),
        "0 < sigma_min < sigma_max",
    ),
    "range: infinite": (
        lambda: edm.VariancePreserving.from_range(0.002, INF),
        "sigma_min < sigma_max",
    ),
    "range: eps": (lambda: edm.VariancePreserving.from_range(0.002, 80.0, 1.0), "eps=1.0"),
    "range: eps zero": (
        lambda: edm.VariancePreserving.from_range(0.002, 80.0, 0.0),
        "eps=0.0",
    ),
    "range: none": (
        lambda: edm.VariancePreserving.from_range(1.0, 1.1, 1e-3),
        "no variance-preserving schedule has sigma",
    ),
    "rounded: none": (lambda: edm.Rounded(LINEAR, jnp.ones(0)), "levels must be a 1-D"),
    "rounded: negative": (lambda: edm.Rounded(LINEAR, -SIGMAS), "levels .* not negative"),
    "rounded: nan": (lambda: edm.Rounded(LINEAR, SIGMAS * NAN), "levels .* finite"),
    "rounded: a matrix": (lambda: edm.Rounded(LINEAR, SIGMAS[None]), "levels must be a 1-D"),
    "scaled: not a schedule": (lambda: edm.VarianceScaled(1.0), "schedule must be"),
    "unscaled: a class": (lambda: edm.Unscaled(edm.Linear), "schedule must be"),
    "rounded: not a schedule": (lambda: edm.Rounded(SIGMAS, SIGMAS), "schedule must be"),
}

PRECONDITIONING = {
    "edm: negative": (lambda: edm.EDMPreconditioning(-0.5), "sigma_data must be positive"),
    "edm: nan": (lambda: edm.EDMPreconditioning(NAN), "sigma_data must be positive and finite"),
    "edm: none": (lambda: edm.EDMPreconditioning(jnp.ones(0)), "sigma_data must be positive"),
    "edm: a zero": (lambda: edm.EDMPreconditioning(jnp.array([1.0, 0.0])), "sigma_data must be"),
    "from_data: nan": (lambda: edm.EDMPreconditioning.from_data(DATA * NAN), "x has 6 entries"),
    "from_data: integers": (
        lambda: edm.EDMPreconditioning.from_data(WHOLE),
        "x must be a floating",
    ),
    "vp: one level": (lambda: edm.VPPreconditioning(levels=1), "levels"),
    "iddpm: no levels": (lambda: edm.IDDPMPreconditioning(levels=0), "levels=0"),
    "iddpm: c_1": (lambda: edm.IDDPMPreconditioning(c_1=1.0), "c_1 and c_2"),
    "denoiser: sigma_data": (lambda: edm.Denoiser(zero, 0.5), "preconditioning must be"),
    "denoiser: turned": (lambda: edm.Denoiser(EDM, zero), "preconditioning must be"),
    "denoiser: no network": (lambda: edm.Denoiser(None, EDM), "network must be callable, got None"),
    "pinned: not a denoiser": (lambda: edm.Pinned(X, X), "denoiser must be callable"),
    "guided: main": (lambda: edm.Guided(1.0, DENOISER, 2.0), "main must be callable"),
    "guided: guide": (lambda: edm.Guided(DENOISER, 3.0, 2.0), "guide must be callable"),
    "guided: weight nan": (lambda: edm.Guided(DENOISER, DENOISER, NAN), "weight must be finite"),
    "measured: no denoiser": (lambda: edm.Measured(1.0, Z, X, 1.0), "denoiser must be callable"),
    "measured: no operator": (lambda: edm.Measured(DENOISER, 1.0, X, 1.0), "operator must be call"),
    "measured: y nan": (lambda: edm.Measured(DENOISER, Z, X * NAN, 1.0), "y must be finite"),
    "measured: noise below 0": (
        lambda: edm.Measured(DENOISER, Z, X, -1.0),
        "noise_std must be finite and not negative",
    ),
    "measured: noises": (
        lambda: edm.Measured(DENOISER, Z, X, jnp.ones(3)),
        "noise_std must be one number or have the shape of y",
    ),
    "measured: a square": (
        lambda: edm.Measured(DENOISER, lambda x: x**2, X, 1.0)(X, 1.0),
        r"operator must be linear in x: .* Pass Linearised\(operator\)",
    ),
    "linearised: a number": (lambda: edm.Linearised(1.0), "function must be callable"),
    "inpaint: no mask": (lambda: edm.inpaint([1.0, 0.0]), "mask must be boolean"),
    "blur: kernel nan": (lambda: edm.blur(jnp.array([NAN, 1.0])), "kernel must be finite"),
    "downsample: a half": (lambda: edm.downsample(0.5), "k must be a whole number"),
    "partial_fourier: nowhere": (
        lambda: edm.partial_fourier([[False, False]]),
        "mask must be boolean and True somewhere",
    ),
    "guided: one weight nan": (
        lambda: edm.Guided(DENOISER, DENOISER, jnp.array([1.0, NAN])),
        "weight must be finite",
    ),
}

GRIDS = {
    f"{grid.__name__}: {what}": (lambda grid=grid, args=args: grid(*args), message)
    for grid in (edm.edm_sigmas, edm.ve_sigmas, edm.iddpm_sigmas)
    for what, args, message in (
        ("none", (0,), "n must be at least 1, got n=0"),
        ("negative", (-3,), "n must be at least 1, got n=-3"),
        ("a float", (1e3,), "n must be a whole number, got 1000.0"),
        ("a list", ([5],), r"n must be a whole number, got \[5\]"),
        ("sigma_min a list", (5, [0.1], 1.0), "sigma_min must be one number"),
        ("turned", (5, 80.0, 0.002), "0 < sigma_min < sigma_max"),
        ("from zero", (5, 0.0, 80.0), "0 < sigma_min"),
        ("negative level", (5, -1.0, 80.0), "0 < sigma_min"),
        ("nan", (5, NAN, 80.0), "0 < sigma_min"),
        ("infinite", (5, 0.002, INF), "sigma_max, got"),
    )
} | {
    "edm: rho zero": (lambda: edm.edm_sigmas(5, rho=0.0), "rho must be positive"),
    "edm: rho nan": (lambda: edm.edm_sigmas(5, rho=NAN), "rho must be positive"),
    "vp: none": (lambda: edm.vp_sigmas(0), "n=0"),
    "vp: eps zero": (lambda: edm.vp_sigmas(5, eps=0.0), "eps=0.0"),
    "vp: eps one": (lambda: edm.vp_sigmas(5, eps=1.0), "eps=1.0"),
    "vp: falling": (lambda: edm.vp_sigmas(5, beta_d=-1.0), "beta_d=-1.0"),
    "vp: nan": (lambda: edm.vp_sigmas(5, beta_min=NAN), "beta_min=nan"),
    "vp: no noise": (lambda: edm.vp_sigmas(5, beta_d=0.0, beta_min=0.0), "beta_d=0.0"),
    "edm: traced": (
        lambda: jax.jit(lambda top: edm.edm_sigmas(5, sigma_max=top))(1.0),
        "sigma_max must be known outside jit",
    ),
    "iddpm: too many": (lambda: edm.iddpm_sigmas(993), "992 levels .* got n=993"),
    "iddpm: nothing inside": (lambda: edm.iddpm_sigmas(2, 1.0, 1.0001), "got n=2"),
    "table: none": (lambda: edm.iddpm_table(0), "levels=0"),
    "table: c_1": (lambda: edm.iddpm_table(c_1=0.0), "c_1 and c_2"),
    "table: c_2": (lambda: edm.iddpm_table(c_2=0.0), "c_1 and c_2"),
    "table: c_2 nan": (lambda: edm.iddpm_table(c_2=NAN), "c_1 and c_2"),
}

LAWS = {
    "lognormal: key a seed": (lambda: edm.LogNormal()(3), "key"),
    "loguniform: no key": (lambda: edm.LogUniform()(None), "key"),
    "time: key a seed": (lambda: edm.UniformTime()(3), "key"),
    "levels: key a float": (lambda: edm.UniformLevels()(3.0), "key"),
    "levels: c_1": (lambda: edm.UniformLevels(c_1=NAN), "c_1 and c_2"),
}

DYNAMICS = {
    "score: integers": (lambda: edm.score(DENOISER, WHOLE, 1.0), "x must be a floating"),
    "score: sigmas": (lambda: edm.score(DENOISER, X, X), "sigma must be one number"),
    "score: shape": (lambda: edm.score(returns(X[:1]), X, 1.0), "denoiser's output must have the"),
    "score: dtype": (
        lambda: edm.score(typed(jnp.float32), X, 1.0),
        "denoiser's output must have the dtype of x, float64, got float32",
    ),
    "ode: shape": (
        lambda: edm.probability_flow(returns(X[:1]))(1.0, X, None),
        "denoiser's output must have the shape",
    ),
    "ode: a class": (lambda: edm.probability_flow(DENOISER, edm.Linear), "schedule must be"),
    "forward: a class": (lambda: edm.forward_sde(edm.Linear), "schedule must be an instance"),
    "reverse: a number": (lambda: edm.reverse_sde(DENOISER, 1.0), "schedule must be .*got 1.0"),
    "reverse: shape": (
        lambda: edm.reverse_sde(returns(X[:1]))[0](1.0, X, None),
        "denoiser's output must have the shape",
    ),
    "reverse: beta negative": (
        lambda: edm.reverse_sde(DENOISER, beta=-1.0),
        "beta must be positive",
    ),
    "reverse: beta nan": (lambda: edm.reverse_sde(DENOISER, beta=NAN), "beta must be positive"),
    "reverse: betas": (lambda: edm.reverse_sde(DENOISER, beta=X), "beta must be one number"),
    "ode: missing condition": (
        lambda: edm.probability_flow(edm.Denoiser(mlp(2, 3), EDM))(1.0, X, None),
        r"cond must have shape \(3,\), got None",
    ),
}

LIKELIHOOD = {
    "x integers": (lambda: likelihood(WHOLE), "x must be a floating"),
    "range turned": (lambda: likelihood(sigma_min=2.0, sigma_max=1.0), "0 < sigma_min < sigma_max"),
    "from zero": (lambda: likelihood(sigma_min=0.0), "0 < sigma_min"),
    "from nan": (lambda: likelihood(sigma_min=NAN), "0 < sigma_min"),
    "to infinity": (lambda: likelihood(sigma_max=INF), "sigma_max, got"),
    "no probes": (lambda: likelihood(probes=0, key=key()), "probes must be at least 1"),
    "probes without key": (lambda: likelihood(probes=1), "pass key="),
    "half probes": (lambda: likelihood(probes=1e3, key=key()), "probes must be a whole number"),
    "key a seed": (lambda: likelihood(probes=2, key=0), "key must be one random key.*got 0"),
    "steps": (lambda: likelihood(max_steps=1e3), "max_steps must be a whole number, got 1000.0"),
    "float16": (
        lambda: likelihood(X.astype(jnp.float16)),
        r"x must be .* float32 or float64, got float16: cast it with x.astype\(jnp.float32\)",
    ),
    "bfloat16": (lambda: likelihood(X.astype(jnp.bfloat16)), "float32 or float64, got bfloat16"),
    "x a list": (lambda: likelihood([0.5, 1.0]), "x must be .* got list"),
    "many ends": (lambda: likelihood(sigma_max=SIGMAS), "sigma_max must be one number"),
    "x nan": (lambda: likelihood(X * NAN), "x must be finite"),
    "prior_std infinite": (lambda: likelihood(prior_std=INF), "prior_std must be finite, got inf"),
    "prior_std nan": (lambda: likelihood(prior_std=NAN), "prior_std must be finite, got nan"),
    "prior_mean nan": (
        lambda: likelihood(prior_mean=[0.0, NAN]),
        r"prior_mean must be finite, got \[0.0, nan\]",
    ),
    "denoiser returns nothing": (
        lambda: edm.log_likelihood(returns(None), X),
        "denoiser's output must have the shape of x, .* got None",
    ),
    "grid rising": (lambda: likelihood(sigmas=SIGMAS[::-1]), "sigmas must be .* descending"),
    "grid of one": (lambda: likelihood(sigmas=[80.0]), "1-D array of at least 2 noise levels"),
    "prior_std negative": (lambda: likelihood(prior_std=-1.0), "prior_std must"),
    "bits: no shape": (lambda: edm.bits_per_dim(X, (0,)), "shape"),
    "bits: no bins": (lambda: edm.bits_per_dim(X, (2,), bins=0), "bins"),
    "bits: scale": (lambda: edm.bits_per_dim(X, (2,), scale=-1.0), "scale"),
    "bits: scale nan": (lambda: edm.bits_per_dim(X, (2,), scale=NAN), "scale"),
}

CONVERT = {
    name: (lambda args=args: edm.convert(*args, source=edm.parameterisations.epsilon), message)
    for name, args, message in (
        ("integers", (X, WHOLE, 1.0), "x must be a floating"),
        ("another shape", (X[:1], X, 1.0), r"prediction must have the shape of x, \(2,\), got"),
        ("sigma zero", (X, X, 0.0), "sigma must be positive"),
        ("sigma nan", (X, X, NAN), "sigma must be positive and finite"),
        ("many sigmas", (X, X, X), "sigma must be one number"),
    )
}

edm2 = partial(
    networks.edm2_unet,
    (1, 1, 1),
    label_dim=3,
    model_channels=4,
    channel_mult=(1,),
    num_blocks=1,
    key=jr.key(1),
)
NET = eqx.nn.MLP(3, 2, 4, 1, key=jr.key(1))
NORM = eqx.nn.Sequential([eqx.nn.Linear(2, 2, key=jr.key(1)), eqx.nn.BatchNorm(2, "a", mode="ema")])
ALPHA_BAR = np.array([0.9, 0.5, 0.1])
NETWORKS = {
    "another signature": (
        lambda: edm.Denoiser(NET, EDM),
        r"F\(x, c_noise, cond, \*, key=None\) .*got MLP .*networks.adapt\(network\)",
    ),
    "no condition": (lambda: edm.Denoiser(lambda x, c: x, EDM), "networks.adapt"),
    "no key": (lambda: edm.Denoiser(lambda x, c, cond: x, EDM), "'key'.*networks.adapt"),
    "a state": (lambda: edm.Denoiser(NORM, EDM), "keeps a state.*BatchNorm.*LayerNorm"),
    "a pair": (
        lambda: edm.Denoiser(lambda x, c, cond, key: (x, c), EDM)(X, 1.0),
        "must return one array, shaped like x, got a tuple: networks.adapt",
    ),
    "a pair in the loss": (
        lambda: loss(edm.Denoiser(lambda x, c, cond, key: (x, c), EDM)),
        "got a tuple: networks.adapt",
    ),
    "nothing returned": (
        lambda: edm.Denoiser(lambda x, c, cond, key: None, EDM)(X, 1.0),
        r"the network's output must have the shape of x, \(2,\), got None",
    ),
    "adapt: nothing returned": (
        lambda: edm.Denoiser(networks.adapt(lambda x, c: None), EDM)(X, 1.0),
        "the network must return an array shaped like x, got None",
    ),
    "adapt: a number": (lambda: networks.adapt(3.0), "network must be callable, got 3.0"),
    "adapt: another size": (
        lambda: edm.Denoiser(networks.adapt(NET), EDM)(jnp.ones(3), 1.0),
        "one vector of length 4: 3 of x and 1 of c_noise and 0 of cond",
    ),
    "cast: no network": (lambda: networks.Cast(3), "network must be callable, got 3"),
    "cast: integers": (
        lambda: networks.Cast(zero, jnp.int32),
        "dtype must be floating.*got .*int32",
    ),
    "unet: not square": (
        lambda: networks.song_unet((24, 40), 1, 1, key=key()),
        r"img_resolution must be one whole number: images are square, got \(24, 40\)",
    ),
    "unet: not halved": (
        lambda: networks.song_unet(12, 1, 1, channel_mult=(1, 1, 1, 1), key=key()),
        "img_resolution must be a multiple of 8.*got 12: pad the images, or give channel_mult",
    ),
    "unet: half a factor": (
        lambda: networks.song_unet(8, 1, 1, channel_mult=(1, 1.5), model_channels=8, key=key()),
        "model_channels times channel_mult must be a whole number, got 12.0",
    ),
    "unet: one factor": (
        lambda: networks.song_unet(8, 1, 1, channel_mult=2, key=key()),
        r"channel_mult must be a tuple of numbers, got 2: write \(2,\)",
    ),
    "unet: one resolution": (
        lambda: networks.song_unet(8, 1, 1, attn_resolutions=4, key=key()),
        r"attn_resolutions must be a tuple of numbers, got 4: write \(4,\)",
    ),
    "unet: one tap": (
        lambda: networks.song_unet(8, 1, 1, attn_resolutions=(), resample_filter=2, key=key()),
        r"resample_filter must be a tuple of numbers, got 2: write \(2,\)",
    ),
    "adm: one factor": (
        lambda: networks.dhariwal_unet(8, 1, 1, channel_mult=2, key=key()),
        r"channel_mult must be a tuple of numbers, got 2: write \(2,\)",
    ),
    "adm: one resolution": (
        lambda: networks.dhariwal_unet(8, 1, 1, attn_resolutions=8, key=key()),
        r"attn_resolutions must be a tuple of numbers, got 8: write \(8,\)",
    ),
    "adm: unequal heads": (
        lambda: networks.dhariwal_unet(
            8,
            1,
            1,
            model_channels=8,
            channel_mult=(1, 2),
            attn_resolutions=(4,),
            channels_per_head=3,
            key=key(),
        ),
        "channels_per_head=3 makes 5 heads of 16 channels, which are not equal: .* divisor of 16",
    ),
    "unet: key a seed": (lambda: networks.song_unet(32, 1, 1, key=3), "key must be one random key"),
    "adm: half a head": (
        lambda: networks.dhariwal_unet(64, 1, 1, channels_per_head=0.5, key=key()),
        "channels_per_head must be a whole number, got 0.5",
    ),
    "small unet: no axis": (
        lambda: networks.small_unet((8,), key=key()),
        r"shape must be \(channels, length\), .* got \(8,\)",
    ),
    "small unet: a number": (
        lambda: networks.small_unet(28, key=key()),
        r"shape must be a tuple of numbers, got 28: write \(channels, length\), ",
    ),
    "small unet: half a vector": (
        lambda: networks.small_unet((1, 8), vector_dim=0.5, key=key()),
        "vector_dim must be a whole number, got 0.5",
    ),
    "pictures: none": (
        lambda: data.from_folder(Path(__file__).parent / "nowhere"),
        "nowhere has no pictures in it: looked for .png",
    ),
    **{
        f"image condition: class {k}": (
            lambda k=k: networks.small_unet((1, 8), label_dim=3, width=4, key=key())(
                jnp.zeros((1, 8)), jnp.zeros(()), networks.ImageCondition(k)
            ),
            f"class_labels must be from 0 to 2, or -1 for none, got {k}",
        )
        for k in (3, -2)
    },
    "edm2: a batch": (
        lambda: networks.edm2_unet((8, 1, 8, 8), key=key()),
        r"shape must be \(channels, height, width\), got \(8, 1, 8, 8\)",
    ),
    "edm2: not halved": (
        lambda: networks.edm2_unet((1, 12, 8), key=key()),
        r"height and width must be multiples of 8.*got shape \(1, 12, 8\): pad the images",
    ),
    "edm2: no level": (
        lambda: networks.edm2_unet((1, 8, 8), channel_mult=(), key=key()),
        "the length of channel_mult must be at least 1",
    ),
    "edm2: half a channel": (
        lambda: networks.edm2_unet((1, 8, 8), model_channels=0.5, key=key()),
        "model_channels must be a whole number, got 0.5",
    ),
    "edm2: uneven heads": (
        lambda: networks.edm2_unet((1, 8, 8), model_channels=129, channel_mult=(1,), key=key()),
        "must fall into 2 equal heads of attention, got 129",
    ),
    "edm2: key a seed": (
        lambda: networks.edm2_unet((1, 8, 8), key=3),
        "key must be one random key",
    ),
    "edm2: another shape": (
        lambda: edm2()(jnp.zeros((1, 2, 2)), 0.0),
        r"x must have shape \(1, 1, 1\), got \(1, 2, 2\); use jax.vmap",
    ),
    "edm2: a class number": (lambda: edm2()(jnp.zeros((1, 1, 1)), 0.0, 3), "ImageCondition"),
    "edm2: augmented": (
        lambda: edm2()(jnp.zeros((1, 1, 1)), 0.0, networks.ImageCondition(None, jnp.zeros(2))),
        "augment_labels must be None: this network has none",
    ),
    "edm2: ten classes": (
        lambda: edm2()(jnp.zeros((1, 1, 1)), 0.0, networks.ImageCondition(jnp.zeros(10))),
        r"class_labels must have shape \(3,\), or be an integer .*; got shape \(10,\)",
    ),
    "edm2: no rows": (
        lambda: networks.forced_norms().init({"weight": X}),
        "needs a network with magnitude-preserving layers.*leave it out",
    ),
    "edm2: no params": (
        lambda: networks.forced_norms().update({"weight": X}, optax.EmptyState()),
        "needs params",
    ),
    "edm2: no loss weight": (lambda: edm2_loss.Weighted(DENOISER, 3.0), "u must be callable"),
    "edm2: half a feature": (
        lambda: edm2_loss.LossWeight(0.5, key=key()),
        "num_channels must be a whole number, got 0.5",
    ),
    "state dict: class": (
        lambda: networks.from_state_dict("UNet", {}),
        "cls must be one of SongUNet, DhariwalUNet, got 'UNet'",
    ),
    "ddpm: no network": (lambda: edm.from_ddpm(None, ALPHA_BAR), "eps_network must be callable"),
    "ddpm: turned": (
        lambda: edm.from_ddpm(zero, ALPHA_BAR[::-1]),
        "alphas_cumprod must be .* descending",
    ),
    "ddpm: the betas": (lambda: edm.from_ddpm(zero, [1e-4, 0.02]), "alphas_cumprod must be"),
    "ddpm: no noise": (lambda: edm.from_ddpm(zero, [1.0, 0.5]), "strictly between 1 and 0"),
    "ddpm: no data": (lambda: edm.from_ddpm(zero, [0.5, 0.0]), "strictly between 1 and 0"),
    "ddpm: two alike": (lambda: edm.from_ddpm(zero, [0.9, 0.5, 0.5]), "descending strictly"),
    "ddpm: nan": (lambda: edm.from_ddpm(zero, ALPHA_BAR * NAN), "strictly between 1 and 0"),
    "ddpm: one step": (lambda: edm.from_ddpm(zero, ALPHA_BAR[:1]), "at least 2 numbers"),
    "ddpm: no condition": (
        lambda: edm.from_ddpm(lambda x, t: x, ALPHA_BAR),
        r"eps_network is called as eps_network\(x_t, t, cond\).*signature \(x, t\) .*write "
        r"lambda x_t, t, cond: model\(x_t, t\)",
    ),
    "ddpm: many sigmas": (
        lambda: edm.from_ddpm(zero, ALPHA_BAR)(X, X),
        "sigma must be one number",
    ),
    "ddpm: shape": (
        lambda: edm.from_ddpm(lambda x, t, cond: x[:1], ALPHA_BAR)(X, 1.0),
        "network's output must have the shape of x",
    ),
    "denoising loss: null of another shape": (
        lambda: edm.denoising_loss(
            DENOISER, X, jnp.ones(3), sigma_dist=edm.LogNormal(), null=0.0, key=key()
        ),
        r"null must be shaped like cond, in whose place it stands, \(3,\), got \(\)",
    ),
    "flow: no network": (lambda: edm.from_flow_matching(1.0), "velocity must be callable"),
    "flow: no condition": (
        lambda: edm.from_flow_matching(lambda x, t: x),
        r"velocity is called as velocity\(x_t, t, cond\).*write lambda x_t, t, cond: model",
    ),
    "flow: integers": (lambda: edm.from_flow_matching(zero)(WHOLE, 1.0), "x must be a floating"),
}

DESIGNS = {
    "edm: zero": (lambda: edm.designs.edm(0.0), "sigma_data must be positive"),
    "edm: nan": (lambda: edm.designs.edm(NAN), "sigma_data must be positive"),
}


TRAINING = {
    "mixture: key a seed": (lambda: MIXTURE.sample(3), "key"),
    "loss: key a seed": (
        lambda: edm.denoising_loss(DENOISER, X, sigma_dist=edm.LogNormal(), key=3),
        "key",
    ),
    "train: key a seed": (lambda: train(key=3), r"key must be one random key, .* got 3"),
    "train: many keys": (lambda: train(key=jr.split(key(), 3)), "key must be one random key"),
    "by sigma: key a seed": (
        lambda: edm.loss_by_sigma(DENOISER, DATA, (1.0,), key=3),
        "key must be one random key",
    ),
    "mlp: key a seed": (lambda: mlp(key=3), "key"),
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
    "score: another size": (
        lambda: MIXTURE.score(jnp.ones(3), 1.0),
        "x must have shape",
    ),
    "denoise: integers": (lambda: MIXTURE.denoise(WHOLE, 1.0), "x must be a floating"),
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
        r"x must have shape \(2,\), got \(3,\)",
    ),
    "empirical: integer x": (lambda: IDEAL(WHOLE, 1.0), "x must be a floating"),
    "denoiser: integers": (lambda: DENOISER(WHOLE, 1.0), "x must be a floating"),
    "denoiser: a list": (
        lambda: DENOISER([1.0, 2.0], 1.0),
        "x must be a floating.*list",
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
    "guided: interval a number": (
        lambda: edm.Guided(DENOISER, DENOISER, 2.0, 3.0),
        "interval must be .* got 3.0",
    ),
    "guided: interval of words": (
        lambda: edm.Guided(DENOISER, DENOISER, 2.0, ("low", 1.0)),
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
    "error: network's shape": (
        lambda: edm.weighted_error(edm.Denoiser(short, EDM), X, 1.0, X),
        "network's output must have the shape of x",
    ),
    "loss: integers": (lambda: loss(x=WHOLE), "must be a float"),
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
    "by sigma: one level": (lambda: by_sigma(sigmas=1.0), "sigmas must be a 1-D array"),
    "by sigma: a list of conditions": (
        lambda: by_sigma(cond=[[1.0], [2.0], [3.0]]),
        r"cond must be made of arrays, got 1.0: use jnp.asarray\(cond\)",
    ),
    "by sigma: a list": (lambda: by_sigma([[1.0, 2.0]]), "x must be a floating.* list"),
    "check: key a seed": (
        lambda: edm.check_initial_loss(DENOISER, DATA, key=0),
        "key must be one random key, jax.random.key.seed., got 0",
    ),
    "by sigma: conditions": (
        lambda: by_sigma(cond=jnp.ones((2, 1))),
        "needs its condition",
    ),
    "by sigma: one condition": (
        lambda: by_sigma(cond=jnp.array(1.0)),
        "needs its condition",
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
    "train: nan": (
        lambda: train(DATA.at[1, 0].set(NAN)),
        r"data has 1 entries that are not finite, in 1 of 3 rows \(first in row 1\): remove or",
    ),
    "train: a denoiser for a state": (
        lambda: train(state=edm.Denoiser(mlp(), EDM)),
        "state must be an instance of TrainState, got Denoiser",
    ),
    "train: a loss and more": (
        lambda: next(train(loss=lambda denoiser, x, cond, key: (jnp.sum(denoiser(x, 1.0)), x))),
        "loss must return a scalar for one example, got a tuple: return the loss alone",
    ),
    "train: no loss returned": (
        lambda: next(train(loss=lambda denoiser, x, cond, key: None)),
        "loss must return a scalar for one example, got None",
    ),
    "train: losses of a batch": (
        lambda: next(train(loss=BatchLoss(lambda denoiser, x, cond, key: jnp.sum(x, axis=1)))),
        r"loss must return a scalar for a batch, got shape \(1,\): take its mean",
    ),
    "train: a loss of a batch and more": (
        lambda: next(train(loss=BatchLoss(lambda denoiser, x, cond, key: (jnp.sum(x), x)))),
        "loss must return a scalar for a batch, got a tuple: return the loss alone",
    ),
    "train: three parts": (
        lambda: train((DATA, DATA, DATA)),
        "data must be x or a pair",
    ),
    "train: conditions": (
        lambda: train((DATA, jnp.ones((4, 1)))),
        "needs its condition",
    ),
    "train: condition nan": (
        lambda: train((DATA, DATA.at[2].set(NAN))),
        r"cond has 2 entries that are not finite, in 1 of 3 rows \(first in row 2\)",
    ),
    "train: no steps": (lambda: train(steps=0), "steps must be at least 1, got steps=0"),
    "train: no batch": (lambda: train(batch_size=-2), "batch_size must be at least 1"),
    "train: no parts": (lambda: train(accumulate=0), "accumulate must be at least 1"),
    "train: uneven parts": (
        lambda: train(batch_size=6, accumulate=4),
        "accumulate must divide batch_size=6, got 4",
    ),
    "train: parts of a loss of the batch": (
        lambda: edm.train(
            edm.Denoiser(mlp(), EDM),
            BatchLoss(zero),
            DATA,
            optax.sgd(0.1),
            steps=1,
            batch_size=4,
            accumulate=2,
            key=key(),
        ),
        "accumulate must be 1 with a BatchLoss, which sees its whole batch, got 2",
    ),
    "step_memory: an iterator": (
        lambda: step_memory(
            edm.Denoiser(mlp(), EDM), zero, iter([DATA]), optax.sgd(0.1), batch_size=4
        ),
        "an iterator would lose its first batch, got list_iterator",
    ),
    "train: no chunk": (lambda: train(every=0), "every must be at least 1"),
    "train: a list for a pair": (
        lambda: train([DATA, DATA]),
        r"data must be .* a tuple \(x, cond\), got list: write a tuple",
    ),
    "train: an iterable of batches": (
        lambda: train(range(3)),
        r"data must be .* got range: .* pass iter\(\.\.\.\)",
    ),
    "train: no optimizer": (
        lambda: edm.train(
            edm.Denoiser(mlp(), EDM), zero, DATA, 1e-3, steps=1, batch_size=1, key=key()
        ),
        "optimizer must be one of Optax's.* got 0.001",
    ),
    "train: no loss": (
        lambda: edm.train(
            edm.Denoiser(mlp(), EDM), None, DATA, optax.sgd(1.0), steps=1, batch_size=1, key=key()
        ),
        "loss must be callable, got None",
    ),
    "train: missing condition": (
        lambda: next(
            edm.train(
                edm.Denoiser(mlp(2, 3), EDM),
                partial(edm.denoising_loss, sigma_dist=edm.LogNormal()),
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
    "mlp: size zero": (lambda: mlp(0), "^size must be at least 1, got size=0"),
    "mlp: cond negative": (lambda: mlp(2, -1), "^cond_size must be at least 0, got cond_size=-1"),
    "mlp: octaves negative": (lambda: mlp(octaves=-1), "^octaves must be at least 0"),
    "mlp: half an octave": (lambda: mlp(octaves=0.5), "^octaves must be a whole number, got 0.5"),
    "mlp: width zero": (lambda: mlp(width=0), "^width must be at least 1"),
    "mlp: depth zero": (lambda: mlp(depth=0), "^depth must be at least 1"),
    "mlp: half a feature": (lambda: mlp(1.5), "^size must be a whole number, got 1.5"),
    "mlp: cond size whole": (lambda: mlp(2, 1.0), "^cond_size must be a whole number, got 1.0"),
    "mlp: half a width": (lambda: mlp(width=4.5), "^width must be a whole number, got 4.5"),
    "mlp: depth text": (lambda: mlp(depth="3"), "^depth must be a whole number, got '3'"),
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
    "embedded: no network": (lambda: Embedded(3, zero), "network must be callable, got 3"),
    "embedded: no embedding": (lambda: Embedded(zero, None), "embedding must be callable"),
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

AROUND_TRAINING = {
    "power negative": (lambda: edm.PowerEMA(-1.0), "gamma must be positive"),
    "power nan": (lambda: edm.PowerEMA(NAN), "gamma must be positive and finite"),
    "width zero": (lambda: edm.PowerEMA.from_sigma_rel(0.0), "sigma_rel <= 0.2887, got 0.0"),
    "width too large": (lambda: edm.PowerEMA.from_sigma_rel(0.3), "sigma_rel <= 0.2887, got 0.3"),
    "no snapshots": (lambda: edm.reconstruct([], edm.PowerEMA(1.0)), "need snapshots"),
    "rate zero": (lambda: edm.ramp_up(0.0, 10, batch_size=1), "learning_rate must be positive"),
    "ramp negative": (lambda: edm.ramp_up(1.0, -1, batch_size=1), "examples must be positive"),
    "no batch": (lambda: edm.ramp_up(1.0, 10, batch_size=0), "batch_size must be positive"),
    "bound infinite": (lambda: edm.clean_gradients(INF), "bound must be positive and finite"),
    "not cleaned": (lambda: edm.cleaned(optax.sgd(0.1).init(X)), "need one clean_gradients"),
}
GROUPS = {
    "sample": SAMPLING,
    "schedules": SCHEDULES,
    "preconditioning": PRECONDITIONING,
    "grids": GRIDS,
    "noise": LAWS,
    "dynamics": DYNAMICS,
    "likelihood": LIKELIHOOD,
    "convert": CONVERT,
    "networks": NETWORKS,
    "designs": DESIGNS,
    "training": TRAINING,
    "around training": AROUND_TRAINING,
}
BAD = {f"{group}: {name}": row for group, rows in GROUPS.items() for name, row in rows.items()}

# Public names that have no argument to be wrong, or hold what others have checked.
TAKE_NOTHING = {"Coefficients", "Likelihood", "TrainState", "Design", "ODE", "Snapshot"}
TAKE_NOTHING |= {"data_parallel", "init_state", "VarianceExploding"}
TAKE_NOTHING |= {name for name in vars(edm_tutorial) if name.startswith("Abstract")}


# What a TypeError says: an object is of another kind. All else is a ValueError.
ANOTHER_KIND = re.compile(
    r"must be (a whole number, got|one whole number:|one number, got [^s]|one random key|callable|"
    r"a tuple of|an instance of|one of Optax's|known outside jit|linear in x)|PRNG key|"
    r"is called as|that keeps a state"
)
# Whose docstring leaves what is raised to another, and to whom.
LEFT_TO = {
    **dict.fromkeys(["LogNormal", "LogUniform", "UniformTime", "UniformLevels"], "jax.random"),
    **dict.fromkeys(["GaussianMixture.sample", "denoising_loss"], "jax.random, where it is a key"),
    "sample_path": "sample",
    "probability_flow.<locals>.f": "the denoiser",
    "Embedded.__call__": "its network",
    "a function without a name": "from_ddpm and from_flow_matching: the denoiser",
}


def documented(error: BaseException) -> tuple[str, str]:
    """The first public function that `error` passed through, and what it says it raises."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module, names = frame.f_globals["__name__"], frame.f_code.co_qualname.split(".")
        hidden = module == "edm_tutorial._checks" or names[0][0] == "_" or names[0] == "renamed"
        if module.startswith("edm_tutorial") and not hidden:
            found, said = frame.f_globals[names[0]], []
            for name in (*names[1:], None):
                said.append((getattr(found, "__doc__", None) or "").partition("Raises:")[2])
                found = getattr(found, name, None) if name else None
            return ".".join(names), "".join(said)
    return "a function without a name", ""


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("call, message", BAD.values(), ids=BAD)
def test_bad_input_is_refused_by_name(call, message):
    """By an error of exactly the type that the docstring states."""
    with pytest.raises((ValueError, TypeError), match=f"(?s){message}") as caught:
        call()
    kind = TypeError if ANOTHER_KIND.search(str(caught.value)) else ValueError
    assert caught.type is kind
    function, raises = documented(caught.value)
    left = function in LEFT_TO or function.removesuffix(".__call__") in LEFT_TO
    assert f" {kind.__name__}" in raises or left, function


def test_every_public_function_has_a_row():
    """Named in this file is not tested, but what is not named is certainly missing."""
    text = Path(__file__).read_text()
    public = {k for k, v in vars(edm_tutorial).items() if k[0] != "_" and not inspect.ismodule(v)}
    missing = public - TAKE_NOTHING
    assert {name for name in missing if not re.search(rf"\b{name}\b[.(,]", text)} == set()


def test_what_says_that_it_raises_is_seen_to():
    """In the subpackages too: it is named where a test, or a table of tests, expects an error."""
    tried = set()
    for file in Path(__file__).parent.glob("test_*.py"):
        lines, last = file.read_text().splitlines(), 0
        for node in ast.parse("\n".join(lines)).body:
            part, last = "\n".join(lines[last : node.end_lineno]), node.end_lineno  # decorators too
            if "raises(" in part or isinstance(node, ast.Assign):
                tried |= set(re.findall(r"\w+", part))
    for space in (networks, sbi, training, augmentation, data, checkpoint, sharding):
        public = {k: v for k, v in vars(space).items() if k != "old_name"}
        for value in filter(inspect.isclass, [*public.values()]):
            public |= vars(value)
        for name, found in public.items():
            kind = inspect.isroutine(found) or inspect.isclass(found)
            if kind and name[0] != "_" and "Raises:" in (found.__doc__ or ""):
                assert name in tried, f"{space.__name__}: {name}"


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["steps", "batch_size", "every", "accumulate"])
def test_counts_must_be_whole_numbers(name):
    for wrong in (1.5, 1e3, np.float64(2.0), "3", None):
        with pytest.raises(
            TypeError, match=f"{name} must be a whole number, got {re.escape(repr(wrong))}"
        ):
            train(**{name: wrong})
    next(train(**{name: np.int64(1)}))


# Behind the doors stands raw mathematics, the same inside jit and outside.
RAW = {
    "denoiser": lambda: DENOISER(X, NAN),
    "denoiser, x": lambda: DENOISER(X * NAN, 1.0),
    "pinned": lambda: edm.Pinned(DENOISER, X)(X, NAN),
    "mixture": lambda: MIXTURE.denoise(X, NAN),
    "mixture's score": lambda: MIXTURE.score(X, NAN),
    "mixture's density": lambda: MIXTURE.log_prob(X * NAN),
    "empirical": lambda: IDEAL(X, NAN),
    "error": lambda: edm.weighted_error(DENOISER, X, NAN, X),
    "loss": lambda: loss(x=X * NAN),
    "initial loss": lambda: edm.initial_loss(EDM, NAN, 1.0),
    "edm": lambda: EDM(NAN).c_skip,
    "ve": lambda: edm.VEPreconditioning().loss_weight(NAN),
    "iddpm": lambda: edm.IDDPMPreconditioning()(NAN).c_out,
    "lognormal": lambda: edm.LogNormal().from_variate(NAN),
    "loguniform": lambda: edm.LogUniform().from_variate(NAN),
    "uniform levels": lambda: edm.UniformLevels().from_variate(NAN),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", RAW)
def test_nan_comes_out_as_nan(name):
    assert np.all(np.isnan(RAW[name]()))


UNKNOWN = {
    "denoising_loss": lambda: edm.denoising_loss(
        DENOISER, X, sigma_dist=edm.LogNormal(), key=key(), sigma_data=0.5
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


@pytest.mark.slow
def test_checks_leave_traced_values_alone():
    """Inside jit, vmap and grad nobody knows the numbers; the same calls must work."""
    sigmas = jnp.array([0.3, 2.0])
    for denoiser in (DENOISER, MIXTURE.denoise, IDEAL):
        eqx.filter_jit(denoiser)(X, sigmas[0])
        assert jax.vmap(lambda sigma, d=denoiser: d(X, sigma))(sigmas).shape == (2, 2)
    slope = jax.grad(lambda sigma: edm.initial_loss(EDM, sigma, 1.0))(1.0)
    # d/ds of (s^2 + 1/16) / ((s^2 + 1/4) / 4) at s = 1
    np.testing.assert_allclose(slope, 4 * (2 * 1.25 - 2 * 1.0625) / 1.25**2, rtol=1e-12)


@eqx.filter_jit
def _log_prob(low, high):
    return edm.log_likelihood(MIXTURE.denoise, X, sigma_min=low, sigma_max=high).log_prob


def test_ends_known_only_inside_jit_are_checked_on_use():
    assert np.isfinite(_log_prob(jnp.array(0.5), jnp.array(1.0)))
    for low, high in ((1.0, 1.0), (2.0, 1.0), (0.0, 1.0), (-1.0, 1.0), (NAN, 1.0)):
        with pytest.raises(RuntimeError, match="0 < sigma_min < sigma_max"):
            _log_prob(jnp.array(low), jnp.array(high))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("count", [np.int64(4), np.uint8(4), jnp.array(4)], ids=str)
def test_whole_numbers_of_every_library_are_sizes(count):
    for grid in (edm.edm_sigmas, edm.ve_sigmas, edm.vp_sigmas, edm.iddpm_sigmas):
        np.testing.assert_array_equal(grid(count), grid(4))
    assert len(edm.iddpm_table(count)) == 5
    options = {"key": key(), "sigma_min": 0.5, "sigma_max": 1.0, "max_steps": np.int64(256)}
    assert np.isfinite(likelihood(probes=count, **options).std_error)


# What lies just inside of what the tables above refuse.
ALLOWED = {
    "a key of the old kind": lambda: sample(churn=edm.Churn(30.0), key=jr.PRNGKey(0)),
    "churn at one level": lambda: edm.Churn(1.0, 2.0, 2.0),
    "an end known only inside jit": lambda: jax.jit(
        lambda top: edm.Churn(1.0, 0.5, top).gamma(0.7, 10)
    )(1.0),
    "two levels of VP": lambda: edm.VPPreconditioning(levels=2),
    "a point for a prior": lambda: likelihood(sigma_min=0.5, sigma_max=1.0, prior_std=0.0).log_prob,
    "one bin of one number": lambda: edm.bits_per_dim(jnp.zeros(()), (1,), bins=1),
    "augmented always and never": lambda: augmentation.Augmentation(1.0, 0.0),
    "the smallest image": lambda: augmentation.warp(jnp.ones((1, 2, 2)), jnp.zeros(9)),
    "one level of an iDDPM": lambda: edm.iddpm_table(1),
    "all of one class": lambda: networks.small_unet((1, 4), label_dim=1, width=4, key=key()),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ALLOWED)
def test_the_last_that_is_allowed_is(name):
    assert all(np.isfinite(leaf).all() for leaf in map(np.asarray, numbers(ALLOWED[name]())))


def numbers(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if eqx.is_array_like(leaf)]


@pytest.mark.usefixtures("unchecked")
def test_lists_of_numbers_are_arrays():
    """As noise levels, conditions, and moments of the prior."""
    as_list = sample(sigmas=[80, 1.0])
    np.testing.assert_array_equal(as_list, sample(sigmas=SIGMAS))
    np.testing.assert_array_equal(as_list, sample(sigmas=(80.0, 1.0)))
    conditional = edm.Denoiser(mlp(2, 2), EDM)
    got, want = (sample(denoiser=conditional, cond=c) for c in ([0.5, 2], jnp.array([0.5, 2.0])))
    np.testing.assert_array_equal(got, want)
    given = {"sigmas": [2.0, 1.0, 0.5], "prior_mean": [0.0, 1.0], "prior_std": [1.0, 2.0]}
    arrays = {name: jnp.array(value) for name, value in given.items()}
    np.testing.assert_array_equal(likelihood(**given).log_prob, likelihood(**arrays).log_prob)
