"""Networks to put inside a `Denoiser`: called as `F(x, c_noise, cond=None, *, key=None)`."""

from edm_tutorial.networks.mlp import MLP as MLP
from edm_tutorial.networks.mlp import Embedded as Embedded
