"""Networks to put inside a `Denoiser`: called as `F(x, c_noise, cond=None, *, key=None)`."""

from .adapt import adapt as adapt
from .edm2.layers import forced_norms as forced_norms
from .edm2.network import edm2_unet as edm2_unet
from .mlp import MLP as MLP, Embedded as Embedded
from .precision import Cast as Cast
from .tokens import TokenTransformer as TokenTransformer
from .unet.configurations import (
    dhariwal_unet as dhariwal_unet,
    small_unet as small_unet,
    song_unet as song_unet,
)
from .unet.embedding import ImageCondition as ImageCondition
from .unet.network import UNet as UNet
from .unet.state_dict import from_state_dict as from_state_dict
