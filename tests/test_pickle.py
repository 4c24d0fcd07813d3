"""What a user keeps can be pickled, as joblib and multiprocessing do, and copied."""

import copy
import pickle
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import edm_tutorial as edm
from edm_tutorial import networks, sbi
from edm_tutorial.images.augmentation import Augmentation
from edm_tutorial.training import init_state

EDM = edm.EDMPreconditioning(0.5)
KEY = 0


def mlp():
    return networks.MLP(2, 3, width=4, depth=1, key=jr.key(KEY))


def own(activation):
    given = {"activation": activation, "final_activation": jax.nn.identity}
    return networks.adapt(eqx.nn.MLP(3, 2, 4, 1, **given, key=jr.key(KEY)))


def state(network):
    return init_state(edm.Denoiser(network, EDM), optax.adam(1e-3), edm.HalfLifeEMA())


def embedded():
    return networks.Embedded(mlp(), eqx.nn.Embedding(4, 3, key=jr.key(KEY)))


THINGS = {
    "MLP": mlp,
    "Embedded": embedded,
    "UNet": lambda: networks.small_unet((1, 8, 8), key=jr.key(KEY)),
    "song_unet": lambda: networks.song_unet(16, 1, 1, model_channels=4, key=jr.key(KEY)),
    "edm2_unet": lambda: networks.edm2_unet((1, 8, 8), model_channels=4, key=jr.key(KEY)),
    "Cast": lambda: networks.Cast(mlp(), jnp.bfloat16),
    "relu": lambda: own(jax.nn.relu),
    "gelu": lambda: own(jax.nn.gelu),
    "jnp.tanh": lambda: own(jnp.tanh),
    "TrainState": lambda: state(mlp()),
    "Guided": lambda: edm.Guided(edm.Denoiser(mlp(), EDM), edm.Denoiser(mlp(), EDM), 2.0),
    "from_ddpm": lambda: edm.from_ddpm(mlp(), np.linspace(0.99, 0.01, 10)),
    "from_flow_matching": lambda: edm.from_flow_matching(mlp()),
    "Churn": lambda: edm.Churn(3.0),
    "VariancePreserving": edm.VariancePreserving,
    "Augmentation": Augmentation,
    "PosteriorNoise": sbi.PosteriorNoise,
}


@pytest.mark.parametrize("name", THINGS)
def test_a_copy_is_the_same(name):
    thing = THINGS[name]()
    for copied in (pickle.loads(pickle.dumps(thing)), copy.deepcopy(thing)):
        assert eqx.tree_equal(copied, thing)


def test_a_pickled_posterior_draws_the_same(key):
    rng = np.random.default_rng(0)
    theta = rng.normal(size=(60, 2))
    x, kept = theta + 0.1 * rng.normal(size=theta.shape), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sbi.PoorFit)
        posterior = sbi.fit_posterior(key, theta, x, steps=2, progress=False, callback=kept.append)
    assert pickle.loads(pickle.dumps(kept[-1])).history == kept[-1].history
    loaded = pickle.loads(pickle.dumps(posterior))
    assert loaded.history == posterior.history
    assert loaded.surprise(x[0]) == posterior.surprise(x[0])
    draw = lambda posterior: posterior.sample(jr.clone(key), x[0], 5)
    np.testing.assert_array_equal(draw(loaded), draw(posterior))


def test_jitted_functions_without_a_name_are_copied_as_before():
    doubled = copy.deepcopy(jax.jit(lambda x: 2 * x))
    assert doubled(1.0) == 2.0
