"""A small training that saves as it goes, to be killed and started again.

    python kill_run.py FOLDER RESULT

Prints the step it starts from, then each step it has saved. The batches are a function of
the step, the network has dropout, and the state has all that a state can have.
"""

import sys
from functools import partial

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
import optax

import edm_tutorial as edm
from edm_tutorial.training import checkpoint, init_state
from edm_tutorial.training.averages import PowerEMA
from edm_tutorial.training.optimizers import clean_gradients, ramp_up

STEPS, EVERY = 300, 3


class Network(eqx.Module):
    """Two layers with dropout between them."""

    first: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear

    def __init__(self, key):
        first_key, last_key = jr.split(key)
        self.first = eqx.nn.Linear(3, 8, key=first_key)
        self.dropout = eqx.nn.Dropout(0.1)
        self.last = eqx.nn.Linear(8, 2, key=last_key)

    def __call__(self, x, c_noise, cond=None, *, key=None):
        hidden = jax.nn.silu(self.first(jax.numpy.append(x, c_noise)))
        return self.last(self.dropout(hidden, key=key, inference=key is None))


def batch(step):
    return np.random.default_rng(step).normal(size=(16, 2)).astype(np.float32)


def main(folder, result):
    denoiser = edm.Denoiser(Network(jr.key(1)), edm.EDMPreconditioning(1.0))
    rate = ramp_up(3e-3, 1000, batch_size=16)
    optimizer = optax.chain(clean_gradients(), optax.adam(rate))
    rules = (edm.HalfLifeEMA(500.0), PowerEMA(5.0))
    start = checkpoint.restore(folder, init_state(denoiser, optimizer, rules))
    print(0 if start is None else int(start.step), flush=True)
    loss = partial(edm.denoising_loss, sigma_dist=edm.LogNormal())
    plan = {"steps": STEPS, "every": EVERY, "batch_size": 16, "key": jr.key(2), "ema": rules}
    for state, _ in edm.train(denoiser, loss, batch, optimizer, state=start, **plan):
        checkpoint.save(folder, state)
        print(int(state.step), flush=True)
    np.savez(result, *jax.tree.leaves(eqx.filter(state, eqx.is_array)))


if __name__ == "__main__":
    main(*sys.argv[1:])
