"""Jobs of `benchmarks.gpu` that are timed: DDPM++ beside PyTorch, and what is small.

A training step is all of `train`: batches drawn on the device, augmentation, noise, network
with dropout, gradient, Adam, EMA. The peak is that of one large product of matrices in the
same precision; the operations of a step are counted as three forward passes.
"""

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array

import edm_tutorial as edm
from benchmarks.timing import machine, seconds
from edm_tutorial.images.augmentation import AugmentedLoss
from edm_tutorial.networks import Cast, dhariwal_unet, from_state_dict, small_unet, song_unet
from edm_tutorial.networks.unet.state_dict import state_names

SMALL: dict[str, Any] = dict(img_resolution=8, in_channels=3, out_channels=3, augment_dim=9)
SMALL |= dict(model_channels=16, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,))
TINY = SMALL | dict(img_resolution=4, model_channels=8, channel_mult=(1,), attn_resolutions=())
DDPMPP: dict[str, Any] = dict(img_resolution=32, in_channels=3, out_channels=3, augment_dim=9)
DDPMPP |= dict(channel_mult=(2, 2, 2), dropout=0.13)
ADM: dict[str, Any] = dict(img_resolution=64, in_channels=3, out_channels=3, augment_dim=9)
MATMUL = {"bfloat16": "tensorfloat32", "TF32": "tensorfloat32", "float32": "float32"}
PEERS = Path(__file__).parent / "peers"


def config(tiny: bool, adm: bool = False) -> tuple[str, dict[str, Any]]:
    """Class and keywords of the network that is timed."""
    if adm:
        return "DhariwalUNet", TINY if tiny else ADM
    return "SongUNet", TINY if tiny else DDPMPP


def weights(cls: str, keywords: dict[str, Any]) -> dict[str, np.ndarray]:
    """Random weights of the network in the layout of the reference, the same everywhere."""
    make = {"SongUNet": song_unet, "DhariwalUNet": dhariwal_unet}[cls]
    net = eqx.filter_eval_shape(partial(make, **keywords), key=jr.key(0))
    rng, state = np.random.default_rng(0), {}
    for name, leaf in zip(state_names(net), jax.tree.leaves(net), strict=True):
        shape = leaf.shape
        shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape
        drawn = rng.standard_normal(shape, dtype=np.float32)
        spread = 1 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.02
        one = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        state[name] = np.float32(one) + drawn * np.float32(spread)
    return state


def denoiser(precision: str, tiny: bool, adm: bool = False) -> tuple[edm.Denoiser, int]:
    """The network with EDM's preconditioning, and how many weights it has."""
    jax.config.update("jax_default_matmul_precision", MATMUL[precision])
    cls, keywords = config(tiny, adm)
    state = weights(cls, keywords)
    net: Any = from_state_dict(cls, state, **keywords)
    net = Cast(net) if precision == "bfloat16" else net
    count = sum(array.size for array in state.values())
    return edm.Denoiser(net, edm.EDMPreconditioning(0.5)), count


def peak(precision: str, tiny: bool) -> float:
    """FLOP/s of a product of matrices, the best of nine."""
    n = 256 if tiny else 8192
    a = jr.normal(jr.key(0), (n, n), jnp.bfloat16 if precision == "bfloat16" else jnp.float32)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    return 2 * n**3 / min(seconds(lambda: product(a)) for _ in range(9))


def forward_flops(model: edm.Denoiser, shape: tuple[int, ...]) -> float:
    """Operations of one forward pass on one image, counted in the program for a CPU.

    The plugin for NVIDIA's devices counts none before compilation.
    """
    weights, static = eqx.partition(model, eqx.is_array)
    place = SingleDeviceSharding(jax.devices("cpu")[0])
    there = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
    image = there(jax.ShapeDtypeStruct(shape, jnp.float32))
    call = jax.jit(lambda weights, x: eqx.combine(weights, static)(x, jnp.ones((), x.dtype)))
    cost = call.lower(jax.tree.map(there, weights), image).cost_analysis()
    return float((cost[0] if isinstance(cost, list) else cost)["flops"])


def memory() -> float:
    """GiB at the worst moment of this process; 0 where the device does not tell, as a CPU."""
    stats = jax.devices()[0].memory_stats() or {}
    return round(stats["peak_bytes_in_use"] / 2**30, 2) if "peak_bytes_in_use" in stats else 0.0


def train_rows(say: Any, batch: int, precision: str, tiny: bool, adm: bool = False) -> None:
    """Images a second of `train`, in chunks of compiled steps."""
    model, count = denoiser(precision, tiny, adm)
    side = config(tiny, adm)[1]["img_resolution"]
    x = 0.5 * jr.normal(jr.key(1), (4 * batch, 3, side, side))
    every = 2 if tiny else max(2, 2560 // batch)
    loss = AugmentedLoss(partial(edm.denoising_loss, sigma_dist=edm.LogNormal()))
    plan: dict = dict(steps=10**6, batch_size=batch, every=every, key=jr.key(2))
    run = edm.train(model, loss, x, optax.adam(1e-3), **plan)
    chunk = lambda: next(run)[1]
    what, note = f"training, {precision}, batch {batch}", f"{count:,} weights, {every} steps a time"
    tell = partial(say, machine=machine())
    tell(what=f"{what}: first chunk", value=round(seconds(chunk), 1), note="compilation counts")
    rate = batch * every / statistics.median(seconds(chunk) for _ in range(1 if tiny else 5))
    tell(what=what, value=round(rate, 1), note=note)
    tell(what=f"{what}: peak memory", value=memory())
    best = peak(precision, tiny)
    tell(what=f"{what}: matrix peak", value=round(best / 1e12, 2))
    flops = 3 * forward_flops(model, x.shape[1:])
    note = f"{flops / 1e9:.1f} GFLOP an image, three forward passes"
    value = float(f"{100 * rate * flops / best:.3g}")
    tell(what=f"{what}: of the measured peak", value=value, note=note)


def sample_rows(say: Any, batch: int, tiny: bool) -> None:
    """Images a second of the deterministic sampler with 18 steps of Heun."""
    model, _ = denoiser("bfloat16", tiny)
    model = eqx.nn.inference_mode(model)
    side = config(tiny)[1]["img_resolution"]
    noise, sigmas = jr.normal(jr.key(1), (batch, 3, side, side)), edm.edm_sigmas(18)

    @eqx.filter_jit
    def draw(model: edm.Denoiser, noise: Array) -> Array:
        return jax.vmap(lambda z: edm.sample(model, z, sigmas))(noise)

    what = f"sampling, bfloat16, 35 calls, batch {batch}"
    first = seconds(lambda: draw(model, noise))
    took = statistics.median(seconds(lambda: draw(model, noise)) for _ in range(1 if tiny else 3))
    tell, note = partial(say, machine=machine()), f"the first took {first:.0f} s"
    tell(what=what, value=round(batch / took, 1), note=note)
    tell(what=f"{what}: peak memory", value=memory())


def torch_rows(say: Any, batch: int, tiny: bool, first: bool) -> None:
    """The same training in PyTorch; weights and shapes come from the network here."""
    sys.path.insert(0, str(PEERS))
    import ddpmpp_torch as peer

    jax.config.update("jax_platforms", "cpu")  # the device is PyTorch's
    jax.config.update("jax_default_matmul_precision", "highest")
    tell = partial(say, machine=peer.machine())
    if first:
        state = weights("SongUNet", SMALL)
        net = from_state_dict("SongUNet", state, **SMALL)
        rng = np.random.default_rng(1)
        x, c_noise, labels = (rng.normal(size=s).astype("f4") for s in ((2, 3, 8, 8), (2,), (2, 9)))
        cond = edm.networks.ImageCondition(None, labels)
        mine = jax.vmap(net)(jnp.asarray(x), jnp.asarray(c_noise), cond)
        error = float(np.max(np.abs(np.asarray(mine) - peer.output(state, x, c_noise, labels))))
        tell(what="output beside JAX's, small network", value=float(f"{error:.2g}"))
    cls, keywords = config(tiny)
    state, dropout = weights(cls, keywords), keywords.get("dropout", 0.0)
    runs = peer.prepare(state, batch, side=keywords["img_resolution"], dropout=dropout, tiny=tiny)
    if first:
        sys.stdin.readline()  # until the device is free
    for how, run in runs.items():
        rate, gibibytes, note = run()
        what = f"training, {how}, bfloat16, batch {batch}"
        if rate is None:
            tell(what=what, note=note)
            tell(what=f"{what}: peak memory", note=note)
            continue
        count = sum(array.size for array in state.values())
        tell(what=what, value=round(rate, 1), note=f"{count:,} weights, {note}")
        tell(what=f"{what}: peak memory", value=round(gibibytes, 2))


def timed(f: Callable[[], Any], tiny: bool) -> float:
    f_once = lambda: jax.block_until_ready(f())
    f_once()
    return statistics.median(seconds(f_once) for _ in range(1 if tiny else 7))


def sampler_row(say: Any, tiny: bool) -> None:
    """`sample` of an MLP over as many separate calls."""
    from benchmarks.sampler import calls, denoiser as mlp, sampler

    model, noise = mlp(), jr.normal(jr.key(1), (100 if tiny else 10_000, 2))
    draw, sigma = sampler(edm.Heun(), 18), jnp.array(1.0)
    whole = timed(lambda: draw(model, noise), tiny)
    limit = timed(lambda: calls(model, noise, sigma, nfe=35), tiny)
    note = f"{whole:.4f} s over {limit:.4f} s, {len(noise)} points"
    what = "sampler of an MLP over its 35 calls"
    say(what=what, value=round(whole / limit, 3), note=note, machine=machine())


def likelihood_rows(say: Any, tiny: bool) -> None:
    """On a fixed grid of 64 levels, exact trace for the MLP, one probe for the U-Net."""
    import diffrax

    sigmas = edm.edm_sigmas(4 if tiny else 64)
    shape = (1, 4, 4) if tiny else (3, 32, 32)
    mlp, unet = edm.MLP(2, key=jr.key(0)), small_unet(shape, width=8 if tiny else 32, key=jr.key(0))
    runs = {
        "log-likelihood of an MLP, 2 dimensions": (mlp, (100 if tiny else 10_000, 2), None),
        "log-likelihood of a U-Net, 1 probe": (unet, (4 if tiny else 64, *shape), 1),
    }
    for what, (net, size, probes) in runs.items():
        model = edm.Denoiser(net, edm.EDMPreconditioning(0.5))
        known: dict = dict(sigmas=sigmas, solver=diffrax.Heun(), probes=probes)

        @eqx.filter_jit
        def evaluate(model: edm.Denoiser, x: Array, keys: Any, known: dict = known) -> Array:
            one = lambda x, key: edm.log_likelihood(model, x, key=key, **known).log_prob
            return jax.vmap(one)(x, keys)

        x = 0.5 * jr.normal(jr.key(1), size)
        keys = jr.split(jr.key(2), len(x)) if probes else None
        took = timed(lambda m=model, x=x, k=keys, f=evaluate: f(m, x, k), tiny)
        note = f"{len(sigmas)} levels, Heun, {len(x)} at once"
        say(what=what, value=round(len(x) / took, 1), note=note, machine=machine())


def fit_row(say: Any, tiny: bool) -> None:
    """Seconds of a whole fit, compilation included."""
    from edm_tutorial.sbi import default_settings, fit_posterior, tasks

    problem, count = tasks.two_moons(), 200 if tiny else 100_000
    theta, x = tasks.draw(jr.key(1), problem, count)
    small = default_settings(200).with_steps(40)._replace(width=32, depth=1)
    options: dict = {"settings": small} if tiny else {}
    start = time.perf_counter()
    posterior = fit_posterior(
        jr.key(2), theta, x, prior_support=problem.prior_support, progress=False, **options
    )
    jax.block_until_ready(eqx.filter(posterior, eqx.is_array))
    what = f"fit_posterior, two moons, {count:,} simulations"
    say(what=what, value=round(time.perf_counter() - start, 1), machine=machine())
