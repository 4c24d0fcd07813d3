"""The same work in other packages, side by side in one run.

    python -m benchmarks.beside
    python -m benchmarks.beside torch torchdiffeq  # these peers; the rows of others are kept

Each peer has an environment of its own, made on first use, and code written for it as one would
there (`peers/`). All run on one core, in turn; seconds are CPU seconds, medians over five starts
of the peer, each of three runs.
Samplers turn the same 10,000 noises into the same points by the same 35 calls of a network
with the same weights; ours 1,000 at a time, as `sample` advises. Log-likelihoods are compared at
the same error: on each side the cheapest of its solvers and tolerances, or levels, that stays
below it.
"""

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array

import edm_tutorial as edm
from benchmarks.environments import TORCH, Missing, Peer, in_turn
from benchmarks.likelihood import mixture
from benchmarks.timing import pin, read, seconds, write
from edm_tutorial.networks.mlp import cast_floating
from edm_tutorial.sbi.flow import in_pieces

BATCH, PIECE, STEPS, CHURN = 10_000, 1_000, 18, 10.0
POINTS, ENDS = 500, (0.002, 80.0)
TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6)
LEVELS, NARROW, POINTS_AT_ONCE = (22, 24, 28), 0.02, 125  # in place of a tolerance
OURS = {"Dopri8": diffrax.Dopri8(), "Tsit5": diffrax.Tsit5(), "Dopri5": diffrax.Dopri5()}
# In float32 its dopri8 takes tiny steps at 1e-6, for no smaller error.
THEIRS = {"dopri5": TOLERANCES, "dopri8": TOLERANCES[:3]}
NATS = {"mixture": 1e-4, "MLP": 1e-3}  # the largest error that is allowed over the points
TARGETS = {"sampler, torch loop": 1.5, "mixture": 3.0, "MLP": 2.0}


def weights(network: edm.MLP) -> dict[str, np.ndarray]:
    """Every array of the network under its path, such as `blocks.0.inner.weight`."""
    leaves = jax.tree.leaves_with_path(eqx.filter(network, eqx.is_array))
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(a) for path, a in leaves
    }


def disturbed(network: edm.MLP) -> edm.MLP:
    """With no zero in it: an untrained network is nothing to compare."""
    leaves, tree = jax.tree.flatten(network)
    keys = jr.split(jr.key(9), len(leaves))
    moved = [
        a + 0.05 * jr.normal(k, a.shape) if eqx.is_inexact_array(a) else a
        for a, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, moved)


def row(what: str, peer: str, ours: float, theirs: float, **rest: Any) -> dict[str, Any]:
    cells = {"what": what, "peer": peer, "ours_cpu_s": round(ours, 4)}
    cells |= {"peer_cpu_s": round(theirs, 4), "times_faster": round(theirs / ours, 2)}
    cells |= {"target": "", "note": ""} | rest
    return cells


def missing(what: str, peer: str, error: Missing) -> dict[str, Any]:
    cells = dict.fromkeys(("ours_cpu_s", "peer_cpu_s", "times_faster", "target"), "")
    return {"what": what, "peer": peer} | cells | {"note": f"not measured: {error}"}


def sampler(model: edm.Denoiser, noise: Array, churn: edm.Churn | None) -> Callable[[], Array]:
    """All draws, as one jitted call, a piece at a time."""
    sigmas = edm.edm_sigmas(STEPS)

    @eqx.filter_jit
    def draw(model: edm.Denoiser, noise: Array, keys: Array) -> Array:
        one = lambda given: edm.sample(model, given[0], sigmas, churn=churn, key=given[1])
        return jax.lax.map(one, (noise, keys), batch_size=PIECE)

    return partial(draw, model, noise, jr.split(jr.key(2), len(noise)))


def samplers(peer_name: str, script: str, packages: list[str], sigma_data: float) -> Iterator[dict]:
    """Rows of one peer's sampler; its draws must be ours."""
    network, noise = disturbed(edm.MLP(2, key=jr.key(0))), jr.normal(jr.key(1), (BATCH, 2))
    model = edm.Denoiser(network, edm.EDMPreconditioning(sigma_data))
    what = f"sampler: Heun, N = {STEPS}, MLP, batch {BATCH:,}"
    given = {"noise": noise, "sigmas": edm.edm_sigmas(STEPS), "sigma_data": np.float32(sigma_data)}
    try:
        packs = weights(network) | given | {"s_churn": np.float32(CHURN)}
        peer = Peer(script.split("_")[1], packages, script, packs)
        label = f"{peer_name} {peer.outputs['version']}"
        plain = sampler(model, noise, None)
        np.testing.assert_allclose(plain(), peer.outputs["out"], rtol=0, atol=2e-3)
        goal = TARGETS["sampler, torch loop"] if "torch" in script else ""
        *times, spread = in_turn(plain, peer, "Heun")
        yield row(what, label, *times, target=goal, note=f"{PIECE:,} at a time; {spread}")
        if "torch" in script:
            churned = sampler(model, noise, edm.Churn(CHURN))
            *times, spread = in_turn(churned, peer, "Heun with churn")
            note = f"{PIECE:,} at a time; {spread}"
            yield row(f"{what}, with churn", label, *times, target=goal, note=note)
        peer.close()
    except Missing as error:
        yield missing(what, peer_name, error)


def trained(data: edm.GaussianMixture, sigma_data: float) -> edm.Denoiser:
    """A network that has learned the mixture roughly: its flow is as stiff as a real one's."""
    x = jax.vmap(data.sample)(jr.split(jr.key(3), 10_000))
    model = edm.Denoiser(edm.MLP(2, key=jr.key(4)), edm.EDMPreconditioning(sigma_data))
    loss = partial(edm.denoising_loss, sigma_dist=edm.LogNormal())
    options: dict = dict(steps=2_000, batch_size=256, key=jr.key(5), every=500)
    *_, (state, _) = edm.train(model, loss, x, optax.adam(1e-3), **options)
    return state.ema


@eqx.filter_jit
def log_probs(model: Any, x: Array, law: Any, solver: Any, steps: dict[str, Any]) -> Array:
    prior = {"prior_mean": law[0], "prior_std": law[1]}

    def one(x: Array) -> Array:
        return edm.log_likelihood(model, x, solver=solver, throw=False, **prior, **steps).log_prob

    return in_pieces(one, x, POINTS_AT_ONCE if "sigmas" in steps else POINTS)


def within(tolerance: float) -> dict[str, Any]:
    controller = diffrax.PIDController(rtol=jnp.array(tolerance), atol=jnp.array(tolerance))
    return {"stepsize_controller": controller, "sigma_min": ENDS[0], "sigma_max": ENDS[1]}


def on(levels: int) -> dict[str, Any]:
    """Levels that all points share: evenly in sigma below NARROW, in ln sigma above."""
    low, high = np.arcsinh(np.divide(ENDS, NARROW))
    return {"sigmas": jnp.asarray(NARROW * np.sinh(np.linspace(high, low, levels)), jnp.float32)}


def settings() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name, solver and steps: by tolerance, or from level to level."""
    for name, solver in OURS.items():
        for tolerance in TOLERANCES:
            yield f"{name} {tolerance:.0e}", solver, within(tolerance)
        for levels in LEVELS:
            yield f"{name} on {levels} levels", solver, on(levels)


def cheapest(error: dict[str, float], cost: Callable[[str], float], allowed: float) -> str:
    """The setting of least cost among those that are right enough."""
    right = [name for name, value in error.items() if value <= allowed]
    if not right:
        raise Missing(f"no setting is right within {allowed:.0e} nats: {error}")
    return min(right, key=cost)


def truth(model: Any, x: Array, law: Any) -> np.ndarray:
    """In float64, at a tolerance where only the terminal density is approximate."""
    with jax.enable_x64(True):
        model, x, law = cast_floating((model, x, law), jnp.float64)
        return np.asarray(log_probs(model, x, law, solver=diffrax.Dopri8(), steps=within(1e-10)))


def likelihoods() -> Iterator[dict]:
    data = mixture("off centre")
    x = jax.vmap(data.sample)(jr.split(jr.key(1), POINTS))
    mean = data.weights @ data.means
    cov = jnp.einsum("k,kij->ij", data.weights, data.covs) + jnp.cov(data.means.T, ddof=0)
    law = (mean, jnp.sqrt(jnp.diag(cov)))
    model = trained(data, 1.0)
    what = {name: f"log-likelihood: {name}, {POINTS:,} points" for name in NATS}
    inputs = weights(model.network) | {
        "x": x,
        "ends": np.float32(ENDS),
        "mean": law[0],
        "std": law[1],
        "sigma_data": np.float32(1.0),
        "weights": data.weights,
        "means": data.means,
        "covs": data.covs,
        "methods": [method for method, tolerances in THEIRS.items() for _ in tolerances],
        "tolerances": [tolerance for tolerances in THEIRS.values() for tolerance in tolerances],
    }
    inputs = {k: np.float32(v) if k != "methods" else v for k, v in inputs.items()}
    try:
        packages = [TORCH, "numpy", "torchdiffeq"]
        peer = Peer("torchdiffeq", packages, "likelihood_torchdiffeq", inputs)
        jobs: dict[str, tuple[str, float]] = {}
        denoisers = {"mixture": data.denoise, "MLP": model}
        exact = {name: truth(denoise, x, law) for name, denoise in denoisers.items()}
        for name in denoisers:  # before any restart, which knows one job only
            found = {job: out for job, out in peer.outputs.items() if job.startswith(name)}
            error = {job: largest(out, exact[name]) for job, out in found.items()}
            job = cheapest(error, peer.seconds, NATS[name])
            jobs[name] = job, error[job]
        for name, denoise in denoisers.items():
            runs = {
                label: partial(log_probs, denoise, x, law, solver=solver, steps=steps)
                for label, solver, steps in settings()
            }
            job, theirs = jobs[name]
            beside = {"peer": peer, "job": job, "theirs": theirs}
            yield likelihood_row(what[name], name, runs, exact[name], **beside)
        peer.close()
    except Missing as error:
        yield missing(what["MLP"], "torchdiffeq", error)


def largest(value: Any, exact: np.ndarray) -> float:
    return float(np.abs(np.asarray(value, float) - exact).max())


def likelihood_row(
    what: str,
    name: str,
    runs: dict[str, Callable[[], Any]],
    exact: np.ndarray,
    peer: Peer,
    job: str,
    theirs: float,
) -> dict:
    mine = {label: largest(run(), exact) for label, run in runs.items()}
    cost = lambda label: seconds(runs[label], time.process_time)
    best = cheapest(mine, cost, NATS[name])
    method, tolerance = job.removeprefix(name).split()
    chosen = {"methods": [method], "tolerances": np.float32([tolerance])}
    *times, spread = in_turn(runs[best], peer, job, **chosen)
    note = f"error {mine[best]:.0e} nats by {best} against {theirs:.0e} by {method} {tolerance}; "
    note += f"allowed {NATS[name]:.0e}; {spread}"
    label = f"torchdiffeq {peer.outputs['version']}"
    return row(what, label, *times, target=TARGETS[name], note=note)


PEERS = {
    "torch": partial(samplers, "torch", "sampler_torch", [TORCH, "numpy"], 0.5),
    "azula": partial(samplers, "azula", "sampler_azula", [TORCH, "numpy", "azula"], 1.0),
    "torchdiffeq": likelihoods,
}

if __name__ == "__main__":
    pin()
    chosen, kept = sys.argv[1:] or list(PEERS), read("peers")
    of = lambda peer: (row for row in kept if row["peer"].split()[0] == peer)
    write("peers", chain(*(PEERS[p]() if p in chosen else of(p) for p in PEERS)))
