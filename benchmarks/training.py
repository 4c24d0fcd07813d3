"""Training steps a second against a loop written by hand for this one problem.

    python -m benchmarks.training

The limit is one jitted `scan` over the loss of a whole batch, its gradient and Adam, with nothing
general about it: the MLP of the package on points of the plane. `train` does the
same in chunks of as many steps. CPU seconds on one core, medians of seven, in turn.
"""

import time
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array

import edm_tutorial as edm
from benchmarks.timing import medians, pin, write

EXAMPLES, CHUNK, SIGMA_DATA = 10_000, 100, 0.5


def by_hand(network: edm.MLP, optimizer: optax.GradientTransformation, x: Array, batch_size: int):
    """`CHUNK` steps as one function of the weights, the optimizer's state and a key."""
    weights, static = eqx.partition(network, eqx.is_inexact_array)

    def mean_loss(weights: Any, key: Array) -> Array:
        net = eqx.combine(weights, static)
        which_key, sigma_key, noise_key = jr.split(key, 3)
        y = x[jr.randint(which_key, (batch_size,), 0, len(x))]
        sigma = jnp.exp(1.2 * jr.normal(sigma_key, (batch_size, 1)) - 1.2)
        n = sigma * jr.normal(noise_key, y.shape)
        total = jnp.sqrt(sigma**2 + SIGMA_DATA**2)
        out = jax.vmap(net)((y + n) / total, jnp.log(sigma[:, 0]) / 4)
        denoised = (SIGMA_DATA / total) ** 2 * (y + n) + sigma * SIGMA_DATA / total * out
        return jnp.mean((total / (sigma * SIGMA_DATA)) ** 2 * (denoised - y) ** 2)

    def step(carry: Any, key: Array) -> tuple[Any, Array]:
        weights, state = carry
        value, grads = jax.value_and_grad(mean_loss)(weights, key)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(weights, updates), state), value

    @jax.jit
    def steps(carry: Any, key: Array) -> Any:
        return jax.lax.scan(step, carry, jr.split(key, CHUNK))

    return steps, (weights, optimizer.init(weights))


def measure(batch_size: int, ema: edm.HalfLifeEMA | None) -> dict[str, Any]:
    x = SIGMA_DATA * jr.normal(jr.key(1), (EXAMPLES, 2))
    network, optimizer = edm.MLP(2, key=jr.key(0)), optax.adam(1e-3)
    model = edm.Denoiser(network, edm.EDMPreconditioning(SIGMA_DATA))
    loss = partial(edm.denoising_loss, sigma_dist=edm.LogNormal())
    options: dict = dict(steps=10**6, batch_size=batch_size, key=jr.key(2), every=CHUNK, ema=ema)
    run = edm.train(model, loss, x, optimizer, **options)
    steps, first = by_hand(network, optimizer, x, batch_size)
    keys, live = iter(jr.split(jr.key(3), 100)), [first]

    def hand() -> Array:
        live[0], losses = steps(live[0], next(keys))
        return losses

    ours, limit = medians([lambda: next(run)[1], hand], 7, time.process_time)
    return {
        "batch": batch_size,
        "average": "none" if ema is None else "half-life",
        "train_steps_per_s": round(CHUNK / ours),
        "by_hand_steps_per_s": round(CHUNK / limit),
        "ratio": round(ours / limit, 3),
    }


if __name__ == "__main__":
    pin()
    cases = ((64, None), (512, None), (512, edm.HalfLifeEMA()))
    write("training", (measure(*case) for case in cases))
