"""What the checks of chapter 10 accept and refuse: forms of right answers, near misses."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_exercises_3_to_5 import FORMS

from edm_tutorial.book import exercises

LINES = [31, 1023, 0.6, 1 / 0.6]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_right_numbers_are_right_in_every_form(form):
    assert exercises.check("10.1", form(LINES))


def pulled(v, sigma, x, rho):
    """With precisions in place of variances."""
    told, noisy = 1 / (1 - rho**2), 1 / sigma**2
    return (told * rho * x + noisy * v) / (told + noisy)


def solved(v, sigma, x, rho):
    """By the network's own formula."""
    c_in = 1 / jnp.sqrt(1 + sigma**2)
    b = jnp.array([[1, c_in * rho], [c_in * rho, 1]])
    t = jnp.array([c_in * v, x])
    return c_in**2 * v + sigma**2 * c_in * (t - jnp.linalg.solve(b, t))[0]


def loops(depends):
    n = len(depends)
    mask = np.eye(n).tolist()
    for i in range(n):
        parents = [j for j in range(n) if depends[i, j]]
        for j in [i, *parents]:
            for k in [i, *parents]:
                mask[j][k] = 1.0
    return mask


def products(depends):
    arrows = (jnp.asarray(depends) | jnp.eye(len(depends), dtype=bool)).astype(float)
    return arrows.T @ arrows > 0


def evidence(joint, log_prior, theta, x):
    bayes = joint.likelihood(theta).log_prob(x) - joint.posterior(x).log_prob(theta)
    return jnp.array([bayes + log_prior(theta)])


def schur(times, noise):
    """The slope's precision, less what the unknown level takes of it."""
    times = jnp.asarray(times)
    level, both = 1 + len(times) / noise**2, times.sum() / noise**2
    return (1 + (times**2).sum() / noise**2 - both**2 / level) ** -0.5


RIGHT = [
    ("10.1", [31.0, 1023.0, 0.6, 1.667]),
    ("10.1", (jnp.array([31, 1023]), [0.6, 5 / 3])),
    ("10.2", pulled),
    ("10.2", solved),
    ("10.2", lambda *known: jnp.array([pulled(*known)])),
    ("10.3", 0.02),
    ("10.3", [1 / 50]),
    ("10.3", jnp.array(0.02)),
    ("10.3", np.float32(0.02)),
    ("10.4", loops),
    ("10.4", products),
    ("10.5", evidence),
    ("10.5", lambda *known: float(evidence(*known)[0])),
    ("10.6", schur),
    ("10.6", lambda times, noise: np.array([[float(schur(times, noise))]])),
]


@pytest.mark.parametrize("name, answer", RIGHT)
def test_right_answers(name, answer):
    assert exercises.check(name, answer)


def half_evidence(joint, log_prior, theta, x):
    return joint.likelihood(theta).log_prob(x) + log_prior(theta)


NEAR = [
    ("10.1", [32, 1024, 0.6, 1 / 0.6], "nothing to ask"),
    ("10.1", [31, 1023, 0.6, 0.6], "one picture"),
    ("10.1", [31, 1023, 1.667, 0.6], "the order"),
    ("10.1", [31, 1023, 0.6, 1.5], ""),
    ("10.2", lambda v, sigma, x, rho: x * rho, ""),
    ("10.2", lambda v, sigma, x, rho: rho * x + (v - rho * x) / (1 + sigma**2), "narrower"),
    ("10.2", lambda v, sigma, x, rho: v / (1 + sigma**2), "forgets"),
    ("10.2", lambda v, sigma, x, rho: pulled(v, sigma**0.5, x, rho), ""),
    ("10.3", 0.2, ""),
    ("10.3", 0.05, ""),
    ("10.3", 1 / 31, "equally"),
    ("10.3", 2, ""),
    ("10.4", lambda a: np.asarray(a) | np.asarray(a).T | np.eye(len(a), dtype=bool), "parents"),
    ("10.4", lambda a: products(np.asarray(a).T), "have to meet"),
    ("10.4", lambda a: np.asarray(products(a)) & ~np.eye(len(a), dtype=bool), "itself"),
    ("10.4", lambda a: np.ones(np.shape(a), bool), ""),
    ("10.5", half_evidence, "x and theta"),
    ("10.5", lambda j, prior, theta, x: evidence(j, prior, theta, x) - prior(theta), "prior"),
    ("10.5", lambda j, prior, theta, x: jnp.exp(evidence(j, prior, theta, x)), ""),
    ("10.6", lambda times, noise: schur(times, noise) ** 2, "variance"),
    ("10.6", lambda times, noise: schur(times, noise**0.5), "deviation"),
    ("10.6", lambda times, noise: (1 + np.square(times).sum() / noise**2) ** -0.5, "level"),
    ("10.6", lambda times, noise: noise / np.std(times) / len(times) ** 0.5, "prior"),
]


@pytest.mark.parametrize("name, answer, hint", NEAR)
def test_near_misses(name, answer, hint):
    verdict = exercises.check(name, answer)
    assert not verdict and hint in repr(verdict)
