"""Recorded results of every public path, at fixed keys, in float32 and float64.

    python tests/recorded.py    # writes tests/recorded.npz from the package as it is

A rewrite that should change nothing is held to them. They are no truth: the other tests are.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array

import edm_tutorial as edm
from edm_tutorial import networks

FILE = Path(__file__).with_suffix(".npz")
DTYPES = ("float32", "float64")
COVS = np.array([[[0.3, 0.1], [0.1, 0.2]], [[0.1, -0.02], [-0.02, 0.05]]])


def mixture(dtype: str) -> edm.GaussianMixture:
    means = np.array([[-1.0, 0.5], [0.8, -0.4]])
    weights = np.array([0.3, 0.7])
    return edm.GaussianMixture(*(jnp.asarray(p, dtype) for p in (weights, means, COVS)))


def points(dtype: str, n: int = 5) -> Array:
    """Numbers made on the host, so that both dtypes see the same ones."""
    return jnp.asarray(np.random.default_rng(0).normal(size=(n, 2)), dtype)


def network(dtype: str, seed: int = 1, **options: Any) -> Any:
    """An MLP whose last layer is not zero."""
    build = partial(edm.MLP, 2, width=16, depth=2, **options)
    skeleton = eqx.filter_eval_shape(build, key=jr.key(0))
    rng = np.random.default_rng(seed)
    draw = lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), dtype)
    is_shape = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    return jax.tree.map(lambda leaf: draw(leaf) if is_shape(leaf) else leaf, skeleton)


def trained(dtype: str) -> edm.Denoiser:
    return edm.Denoiser(network(dtype), edm.EDMPreconditioning(0.7))


def sampling(dtype: str) -> Iterator[tuple[str, Any]]:
    noise, exact = points(dtype), mixture(dtype).denoise
    schedules = {
        "linear": edm.Linear(),
        "ve": edm.VarianceExploding(),
        "vp": edm.VariancePreserving(),
        "scaled": edm.VarianceScaled(edm.Linear()),
        "rounded": edm.Rounded(edm.Linear(), edm.iddpm_table()),
    }
    solvers = {"euler": edm.Euler(), "heun": edm.Heun(0.5), "dpm": edm.DPMSolverPP2M()}
    for name, schedule in schedules.items():
        for which, solver in solvers.items():
            run = partial(edm.sample, exact, sigmas=edm.edm_sigmas(9, 0.03), schedule=schedule)
            yield f"sample {name} {which}", jax.vmap(partial(run, solver=solver))(noise)
    grids = {
        "edm": edm.edm_sigmas,
        "ve": edm.ve_sigmas,
        "vp": edm.vp_sigmas,
        "iddpm": edm.iddpm_sigmas,
    }
    for name, grid in grids.items():
        yield f"path {name}", edm.sample_path(trained(dtype), noise[0], grid(7))
    churn = edm.Churn(20.0, 0.05, 50.0, 1.003)
    keys = jr.split(jr.key(3), len(noise))
    run = lambda z, key: edm.sample(exact, z, edm.edm_sigmas(9), churn=churn, key=key)
    if dtype == "float32":  # random bits differ between dtypes, and with the default dtype
        return
    yield "sample churn", jax.vmap(run)(noise, keys)


def likelihood(dtype: str) -> Iterator[tuple[str, Any]]:
    for name, denoiser in {"exact": mixture(dtype).denoise, "network": trained(dtype)}.items():
        run = lambda x, d=denoiser: edm.log_likelihood(d, x, sigma_min=0.05, sigma_max=20.0)
        result = jax.vmap(run)(points(dtype))
        yield f"log_likelihood {name}", result.log_prob
        yield f"latent {name}", result.latent
    x = points(dtype)[0]
    run = partial(edm.log_likelihood, trained(dtype), sigma_min=0.05, prior_std=0.7)
    result = run(x, probes=3, key=jr.key(4))
    yield "log_likelihood probes", jnp.stack([result.log_prob, result.std_error])


def losses(dtype: str) -> Iterator[tuple[str, Any]]:
    x, denoiser = points(dtype), trained(dtype)
    n = points(dtype)[::-1]
    yield "weighted_error", jax.vmap(lambda x, n: edm.weighted_error(denoiser, x, 0.4, n))(x, n)
    yield "score", edm.score(denoiser, x[0], jnp.asarray(0.3, dtype))
    levels = np.geomspace(0.01, 20.0, 4)
    yield "loss_by_sigma", edm.loss_by_sigma(denoiser, x, levels, key=jr.key(5))
    guided = edm.Guided(denoiser, mixture(dtype).denoise, 1.7, (0.1, 10.0))
    yield "guided", jnp.stack([guided(x[0], sigma) for sigma in (0.05, 1.0)])
    empirical = edm.EmpiricalDenoiser(x)
    yield "empirical", jnp.stack([empirical(n[1], sigma) for sigma in (0.05, 1.0)])
    mixed = mixture(dtype)
    yield "mixture", jnp.stack([mixed.log_prob(x[i], 0.3 * i) for i in range(3)])
    for law in (edm.LogNormal(), edm.LogUniform(), edm.UniformTime(), edm.UniformLevels()):
        r = jnp.asarray(np.linspace(0.1, 0.9, 3), dtype)
        yield f"law {type(law).__name__}", jax.vmap(law.from_variate)(r)
    for name, p in {
        "edm": edm.EDMPreconditioning(0.5),
        "vp": edm.VPPreconditioning(),
        "ve": edm.VEPreconditioning(),
        "iddpm": edm.IDDPMPreconditioning(),
    }.items():
        at = [jnp.asarray(s, dtype) for s in (0.003, 0.4, 60.0)]
        yield f"coefficients {name}", jnp.array([[*p(s), p.loss_weight(s)] for s in at])


def training(dtype: str) -> Iterator[tuple[str, Any]]:
    """The losses of 20 steps, and the weights and averages they lead to."""
    x = points(dtype, 50)
    law = edm.LogNormal(-1.0, 1.0)
    loss = partial(edm.denoising_loss, sigma_dist=law)
    for name, ema in {"half-life": edm.HalfLifeEMA(), "power": edm.PowerEMA(6.94)}.items():
        given = {"steps": 20, "batch_size": 8, "key": jr.key(6), "every": 7, "ema": ema}
        chunks = list(edm.train(trained(dtype), loss, x, optax.adam(1e-2), **given))
        yield f"train losses {name}", np.concatenate([losses for _, losses in chunks])
        state, _ = chunks[-1]
        leaves = jax.tree.leaves(eqx.filter(state.ema, eqx.is_inexact_array))
        yield f"train ema {name}", jnp.stack([jnp.sum(leaf) for leaf in leaves])


def images(dtype: str) -> Iterator[tuple[str, Any]]:
    """A small U-Net with numbers in every array, and its gradient."""
    build = partial(networks.small_unet, (1, 8, 8), label_dim=3, width=8)
    skeleton = eqx.filter_eval_shape(build, key=jr.key(0))
    rng = np.random.default_rng(2)
    fill = lambda leaf: jnp.asarray(0.1 * rng.normal(size=leaf.shape), dtype)
    is_shape = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    unet = jax.tree.map(lambda leaf: fill(leaf) if is_shape(leaf) else leaf, skeleton)
    x = jnp.asarray(rng.normal(size=(1, 8, 8)), dtype)
    cond = networks.ImageCondition(jax.nn.one_hot(1, 3, dtype=dtype))
    c_noise = jnp.asarray(0.3, dtype)
    run = eqx.filter_jit(lambda unet, x: unet(x, c_noise, cond))
    yield "unet", run(unet, x)
    total = lambda x, unet: jnp.sum(unet(x, c_noise, cond) ** 2)
    yield "unet gradient", eqx.filter_jit(eqx.filter_grad(total))(x, unet)


PATHS: tuple[Callable[[str], Iterator[tuple[str, Any]]], ...] = (
    sampling,
    likelihood,
    losses,
    training,
    images,
)


def record(path: Callable[[str], Iterator[tuple[str, Any]]]) -> dict[str, np.ndarray]:
    """Every result of a path, by name and dtype."""
    return {f"{dtype} {name}": np.asarray(value) for dtype in DTYPES for name, value in path(dtype)}


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    np.savez_compressed(FILE, **{k: v for path in PATHS for k, v in record(path).items()})
    print(f"wrote {FILE}", file=sys.stderr)
