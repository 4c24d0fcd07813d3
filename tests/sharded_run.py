"""Twenty steps on all devices and on one, alone or as one of several processes.

    python sharded_run.py FOLDER [ADDRESS PROCESSES ID]

Writes FOLDER/<id>.npz: losses and weights of each run, and whether the sharded state came
back from a checkpoint bit for bit.
"""

import sys
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
import optax

if len(sys.argv) > 2:  # before anything asks for devices
    jax.distributed.initialize(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))

import edm_tutorial as edm
from edm_tutorial.training import checkpoint
from edm_tutorial.training.sharding import data_parallel

STEPS, BATCH = 20, 64
LABELS = np.random.default_rng(1).normal(size=(512, 1)).astype(np.float32)
X = np.random.default_rng(0).normal(size=(512, 2)).astype(np.float32) * [0.3, 1.5] + LABELS
DATA = (np.float32(X), LABELS)


def stream(step):
    index = np.random.default_rng(step).integers(0, 512, BATCH)
    return DATA[0][index], DATA[1][index]


def run(data, sharding):
    network = edm.MLP(2, 1, width=8, depth=1, key=jr.key(0))
    denoiser = edm.Denoiser(network, edm.EDMPreconditioning(1.0))
    loss = partial(edm.denoising_loss, sigma_dist=edm.LogNormal())
    options = {"steps": STEPS, "every": STEPS, "batch_size": BATCH, "key": jr.key(3)}
    [(state, losses)] = edm.train(
        denoiser, loss, data, optax.adam(3e-3), sharding=sharding, **options
    )
    return state, losses


def flat(state):
    leaves = jax.tree.leaves(eqx.filter(state, eqx.is_inexact_array))
    return np.concatenate([np.ravel(leaf) for leaf in leaves])


def main(folder):
    result = {"devices": len(jax.devices()), "processes": jax.process_count()}
    everywhere = data_parallel()
    for name, data in (("arrays", tuple(map(jax.numpy.asarray, DATA))), ("stream", stream)):
        for where, sharding in (("all", everywhere), ("one", None)):
            state, losses = run(data, sharding)
            result |= {f"{name}/{where}/losses": losses, f"{name}/{where}/state": flat(state)}
            if sharding is not None:
                checkpoint.save(folder / name, state)
                back = checkpoint.restore(folder / name, state)
                result[f"{name}/restored"] = np.array_equal(flat(back), flat(state))
    np.savez(folder / f"{jax.process_index()}.npz", **result)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
