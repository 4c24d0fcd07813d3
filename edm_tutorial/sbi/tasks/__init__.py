"""Inference problems: a prior and a simulator, most with a known posterior."""

from .base import (
    AbstractPrior as AbstractPrior,
    AbstractTask as AbstractTask,
    LogNormalPrior as LogNormalPrior,
    NormalPrior as NormalPrior,
    UniformPrior as UniformPrior,
    draw as draw,
)
from .benchmark import (
    gaussian_linear as gaussian_linear,
    gaussian_linear_uniform as gaussian_linear_uniform,
    gaussian_mixture as gaussian_mixture,
    slcp as slcp,
)
from .glm import bernoulli_glm as bernoulli_glm
from .ode import lotka_volterra as lotka_volterra, sir as sir
from .two_moons import two_moons as two_moons
