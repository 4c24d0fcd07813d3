"""What version 0.1.0 wrote: run on its last commit, then pack the checkpoints in one archive."""

import pathlib
import shutil
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

import edm_tutorial as edm
from edm_tutorial import checkpoint
from edm_tutorial.sbi import default_plan, fit_posterior

out = pathlib.Path("tests/release_0_1")
shutil.rmtree(out, ignore_errors=True)
out.mkdir()
rng = np.random.default_rng(0)
theta = rng.uniform(-1, 1, (400, 2)).astype(np.float32)
x = (theta + 0.3 * rng.normal(size=(400, 2))).astype(np.float32)
small = default_plan(400)._replace(width=16, depth=1, batch_size=32).lasting(40)
post = fit_posterior(
    jr.key(0),
    theta,
    x,
    prior_support=(np.full(2, -1, np.float32), np.full(2, 1, np.float32)),
    plan=small,
)
post.save(out / "posterior")
x_o = jnp.array([0.2, -0.4], jnp.float32)
draws = np.asarray(post.sample(jr.key(1), x_o, 8))
lp = np.asarray(jax.vmap(lambda t: post.log_prob(t, x_o))(jnp.asarray(draws)))
sets = (theta[:, None] + rng.normal(size=(400, 6, 2))).astype(np.float32)
emb = lambda x: x.mean(axis=0)
post2 = fit_posterior(
    jr.key(2), theta, sets, embedding=emb, plan=small._replace(steps=4, every=2, patience=4)
)
post2.save(out / "posterior_embedded")
s_o = jnp.asarray(sets[0])
draws2 = np.asarray(post2.sample(jr.key(3), s_o, 8))
res = dict(x_o=x_o, draws=draws, log_prob=lp, set_o=s_o, draws_embedded=draws2)
for name, pre in {
    "measured": edm.EDMPreconditioning.from_data(jnp.asarray(x)),
    "number": edm.EDMPreconditioning(0.5),
    "features": edm.EDMPreconditioning(jnp.array([0.5, 0.7])),
}.items():
    den = edm.Denoiser(edm.MLP(2, width=8, depth=1, key=jr.key(4)), pre)
    loss = partial(edm.denoising_loss, noise=edm.LogNormal())
    states = list(
        edm.train(
            den,
            loss,
            jnp.asarray(x),
            optax.adam(1e-3),
            steps=6,
            batch_size=8,
            key=jr.key(5),
            every=3,
        )
    )
    checkpoint.save(out / f"checkpoint_{name}", states[0][0])
    res[f"checkpoint_{name}"] = np.concatenate(
        [
            np.asarray(leaf).ravel()
            for leaf in jax.tree.leaves(eqx.filter(states[0][0].ema.network, eqx.is_inexact_array))
        ]
    )
    res[f"next_{name}"] = np.asarray(states[1][1])
np.savez(out / "expected.npz", **res)
