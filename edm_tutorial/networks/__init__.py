"""Networks to put inside a `Denoiser`: called as `F(x, c_noise, cond=None, *, key=None)`."""

from edm_tutorial.networks.configurations import dhariwal_unet as dhariwal_unet
from edm_tutorial.networks.configurations import small_unet as small_unet
from edm_tutorial.networks.configurations import song_unet as song_unet
from edm_tutorial.networks.embedding import ImageCondition as ImageCondition
from edm_tutorial.networks.mlp import MLP as MLP
from edm_tutorial.networks.mlp import Embedded as Embedded
from edm_tutorial.networks.precision import Cast as Cast
from edm_tutorial.networks.state_dict import from_state_dict as from_state_dict
from edm_tutorial.networks.unet import UNet as UNet
