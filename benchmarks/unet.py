"""U-Nets: the sampler and a training step against their limits, the layout, compile and memory.

    python -m benchmarks.unet [--peers]

`--peers` adds images a second beside PyTorch, in turn with it, in an environment made on first
use. On a CPU both then run on one core: with more, threads that wait for one another count as
work, and on a busy machine tell more about its other programs than about the two.
The limit of the sampler is NFE separate calls of the same jitted, batched network; that of a
training step is one jitted function written by hand for it: the loss of a whole batch, its
gradient, and Adam. On a CPU, seconds are those of the processor, which other programs on
the machine change least.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array

import edm_tutorial as edm
from benchmarks.environments import TORCH, Peer, in_turn
from benchmarks.timing import machine, medians, pin, read, save
from edm_tutorial.networks import UNet, song_unet
from edm_tutorial.networks.unet.layers import Conv, GroupNorm, xavier
from edm_tutorial.networks.unet.state_dict import state_names

if "--torch" in sys.argv:  # before JAX counts the cores
    pin()

SIZE, CHANNELS, BATCH = 16, 32, 16
LARGER = 32, 64  # size and channels of the other network beside PyTorch
CLOCK = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
SIGMA_DATA = 0.5


def network(size: int = SIZE, channels: int = CHANNELS) -> UNet:
    """A DDPM++ of about a million parameters, or of four million with `LARGER`."""
    return song_unet(
        size,
        3,
        3,
        model_channels=channels,
        channel_mult=(1, 2),
        num_blocks=2,
        attn_resolutions=(size // 2,),
        key=jr.key(0),
    )


def denoiser() -> edm.Denoiser:
    return edm.Denoiser(network(), edm.EDMPreconditioning(SIGMA_DATA))


def data(count: int = 64, size: int = SIZE) -> Array:
    return SIGMA_DATA * jr.normal(jr.key(1), (count, 3, size, size))


@eqx.filter_jit
def forward(model: edm.Denoiser, x: Array, sigma: Array) -> Array:
    return jax.vmap(model, in_axes=(0, None))(x, sigma)


def sampler_row(n: int = 6) -> dict[str, Any]:
    """`sample` under vmap against 2 n - 1 calls of the denoiser."""
    model, noise, sigma = denoiser(), data(BATCH), jnp.array(1.0)
    sigmas = edm.edm_sigmas(n)

    @eqx.filter_jit
    def draw(model: edm.Denoiser, noise: Array) -> Array:
        return jax.vmap(lambda z: edm.sample(model, z, sigmas))(noise)

    calls = lambda: [forward(model, noise, sigma) for _ in range(2 * n - 1)]
    ours, limit = medians([partial(draw, model, noise), calls], 7, CLOCK)
    return row("sampler, 11 evaluations", ours, limit)


def by_hand(optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    """One step on a whole batch, with nothing general about it."""

    @eqx.filter_jit
    def step(net: UNet, opt_state: Any, x: Array, key: Array) -> Any:
        sigma_key, noise_key = jr.split(key)
        sigma = jnp.exp(1.2 * jr.normal(sigma_key, (len(x), 1, 1, 1)) - 1.2)
        n = sigma * jr.normal(noise_key, x.shape)
        total = jnp.sqrt(sigma**2 + SIGMA_DATA**2)

        def loss(net: UNet) -> Array:
            out = jax.vmap(net)((x + n) / total, jnp.log(sigma[:, 0, 0, 0]) / 4)
            denoised = (SIGMA_DATA / total) ** 2 * (x + n) + sigma * SIGMA_DATA / total * out
            return jnp.mean((total / (sigma * SIGMA_DATA)) ** 2 * (denoised - x) ** 2)

        value, grads = jax.value_and_grad(loss)(net)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(net, updates), opt_state, value

    return step


def training_row(every: int = 4) -> dict[str, Any]:
    """`train`, in chunks of `every` steps, against as many steps written by hand."""
    x, optimizer = data(), optax.adam(1e-4)
    loss = partial(edm.denoising_loss, sigma_dist=edm.LogNormal())
    options: dict = dict(steps=10**6, batch_size=BATCH, key=jr.key(2), every=every)
    run = edm.train(denoiser(), loss, x, optimizer, **options)
    step, net = by_hand(optimizer), network()
    state = [net, optimizer.init(eqx.filter(net, eqx.is_array))]
    batch, keys = x[:BATCH], jr.split(jr.key(3), every)

    def steps() -> Array:
        for key in keys:
            state[0], state[1], value = step(state[0], state[1], batch, key)
        return value

    ours, limit = medians([lambda: next(run)[1], steps], 7, CLOCK)
    return row(f"training, {every} steps", ours, limit)


def row(what: str, ours: float, limit: float) -> dict[str, Any]:
    return {
        "what": what,
        "ours_s": round(ours, 3),
        "limit_s": round(limit, 3),
        "ratio": round(ours / limit, 3),
    }


def layout_rows(channels: int = 64) -> list[dict[str, Any]]:
    """Two convolutions with norm and SiLU between: channels last, as inside, and first."""
    keys = jr.split(jr.key(0), 3)
    convs = [Conv(channels, channels, 3, xavier, key=key) for key in keys[:2]]
    norm = GroupNorm(channels, 1e-6)
    x = jr.normal(keys[2], (BATCH, SIZE, SIZE, channels))

    def last(params: Any, x: Array) -> Array:
        first, norm, second = params
        return second(jax.nn.silu(norm(first(x))))

    def first(params: Any, x: Array) -> Array:
        (w0, b0), (gain, bias), (w1, b1) = params
        h = _conv_first(x, w0) + b0[:, None, None]
        groups = h.reshape(min(32, channels // 4), -1)
        centred = groups - jnp.mean(groups, axis=1, keepdims=True)
        spread = jax.lax.rsqrt(jnp.mean(centred**2, axis=1, keepdims=True) + norm.eps)
        h = (centred * spread).reshape(h.shape) * gain[:, None, None] + bias[:, None, None]
        return _conv_first(jax.nn.silu(h), w1) + b1[:, None, None]

    prepared = [(conv.weight.transpose(3, 2, 0, 1), conv.bias) for conv in convs]
    sides = {
        "last": (last, (convs[0], norm, convs[1]), x),
        "first": (
            first,
            (prepared[0], (norm.weight, norm.bias), prepared[1]),
            jnp.moveaxis(x, -1, 1),
        ),
    }
    outs = [jax.vmap(f, (None, 0))(params, x) for f, params, x in sides.values()]
    np.testing.assert_allclose(outs[0], jnp.moveaxis(outs[1], 1, -1), atol=1e-4)
    return [_layout_row(kind, sides) for kind in ("forward", "gradient", "gradient in a loop")]


def _conv_first(x: Array, weight: Array) -> Array:
    return jax.lax.conv_general_dilated(x[None], weight, (1, 1), [(1, 1)] * 2)[0]


def _layout_row(kind: str, sides: dict[str, Any]) -> dict[str, Any]:
    def timed(f: Callable[..., Array], params: Any, x: Array) -> Callable[[], Any]:
        batched = jax.vmap(f, (None, 0))
        loss = lambda params, x: jnp.mean(batched(params, x) ** 2)
        slopes = jax.grad(loss, argnums=(0, 1))

        def loop(params: Any, x: Array) -> Any:
            def body(carry: Any, _: None) -> Any:
                moved = jax.tree.map(lambda p, g: p - 1e-3 * g, carry, slopes(*carry))
                return moved, None

            return jax.lax.scan(body, (params, x), length=4)[0]

        run = jax.jit({"forward": batched, "gradient": slopes}.get(kind, loop))
        return lambda: run(params, x)

    first, last = (timed(*sides[name]) for name in ("first", "last"))
    slow, fast = medians([first, last], 5, CLOCK)
    return {
        "what": kind,
        "channels_first_s": round(slow, 4),
        "channels_last_s": round(fast, 4),
        "first_over_last": round(slow / fast, 2),
    }


def torch_rows(size: int, channels: int) -> list[dict[str, Any]]:
    """Images a second beside the same network in PyTorch, as many CPU cores as this process has.

    Where the training step loses its time: `book/benchmarks.md`.
    """
    net, x = network(size, channels), data(BATCH, size)
    net = jax.tree.map(lambda a: a + 0.02 * jr.normal(jr.key(5), a.shape), net)
    model = edm.Denoiser(net, edm.EDMPreconditioning(SIGMA_DATA))
    c_noise = jnp.linspace(-1.0, 0.5, BATCH)
    arrays = {
        name: np.asarray(a) for name, a in zip(state_names(net), jax.tree.leaves(net), strict=True)
    }
    arrays = {n: a.transpose(3, 2, 0, 1) if a.ndim == 4 else a for n, a in arrays.items()}
    peer = Peer("torch", [TORCH, "numpy"], "unet_torch", {"x": x, "c_noise": c_noise} | arrays)
    raw = partial(eqx.filter_jit(lambda *args: jax.vmap(args[0])(*args[1:])), net)
    np.testing.assert_allclose(raw(x, c_noise), peer.outputs["out"], rtol=0, atol=1e-4)

    loss = partial(edm.denoising_loss, sigma_dist=edm.LogNormal())
    options: dict = dict(steps=10**6, batch_size=BATCH, key=jr.key(2), every=1, ema=None)
    run = edm.train(model, loss, x, optax.adam(1e-4), **options)
    jobs = {"forward": lambda: raw(x, c_noise), "training step": lambda: next(run)[1]}
    rows = []
    for what, job in jobs.items():
        mine, theirs, spread = in_turn(job, peer, what)
        rows.append(
            {
                "size": f"{size}x{size}",
                "what": what,
                "cores": len(os.sched_getaffinity(0)),
                "ours_images_per_s": round(BATCH / mine, 1),
                "torch_images_per_s": round(BATCH / theirs, 1),
                "ours_over_torch": round(theirs / mine, 2),
                "torch": str(peer.outputs["version"]),
                "note": spread,
            }
        )
    peer.close()
    return rows


def cost_rows() -> list[dict[str, Any]]:
    """Seconds to compile, and the largest memory beside arguments and results."""
    model, x = denoiser(), data(BATCH)
    loss = partial(edm.denoising_loss, sigma_dist=edm.LogNormal())
    keys = jr.split(jr.key(4), BATCH)

    @eqx.filter_jit
    def slopes(model: edm.Denoiser, x: Array, keys: Array) -> Any:
        mean = lambda model: jnp.mean(jax.vmap(lambda x, k: loss(model, x, key=k))(x, keys))
        return eqx.filter_grad(mean)(model)

    rows = []
    for what, lowered in (
        ("forward", forward.lower(model, x, jnp.array(1.0))),
        ("loss and gradient", slopes.lower(model, x, keys)),
    ):
        start = time.perf_counter()
        compiled = lowered.compile()
        seconds = time.perf_counter() - start
        memory = compiled.compiled.memory_analysis()
        megabytes = round(memory.temp_size_in_bytes / 2**20, 1)
        rows.append({"what": what, "compile_s": round(seconds, 1), "temporary_MiB": megabytes})
    return rows


def record(name: str, rows: list[dict[str, Any]]) -> None:
    """Write `results/name.csv`: these rows, and those of other devices."""
    here = jax.default_backend()
    others = [old for old in read(name) if old["device"] != here]
    rows = [{"device": here} | row | {"machine": machine()} for row in rows] + others
    save(name, rows)
    for row in rows:
        print("  ".join(f"{key}={value}" for key, value in row.items() if key != "machine"))


if __name__ == "__main__" and "--torch" in sys.argv:
    record("unet_torch", torch_rows(SIZE, CHANNELS) + torch_rows(*LARGER))
elif __name__ == "__main__":
    record("unet_cost", cost_rows())  # first: later, nothing is left to compile
    record("unet_limit", [sampler_row(), training_row()])
    record("unet_layout", layout_rows())
    if "--peers" in sys.argv:
        subprocess.run([sys.executable, "-m", "benchmarks.unet", "--torch"], check=True)
