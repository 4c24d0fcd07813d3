"""The package's MLP in PyTorch, as one would write it there: equal weights, equal outputs.

The noise level is a number for the whole batch, so its embedding is computed once, as `vmap`
does it in the package.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

FREQUENCIES = torch.tensor(np.geomspace(1e-3, 8.0, 32), dtype=torch.float32)


class Layer:
    """A linear map with its weights from the file, under the name they have in the package."""

    def __init__(self, state, name):
        self.weight = torch.tensor(state[f"{name}.weight"])
        bias = state.get(f"{name}.bias")
        self.bias = None if bias is None else torch.tensor(bias)

    def __call__(self, h):
        return F.linear(h, self.weight, self.bias)


class Block:
    def __init__(self, state, name):
        self.norm = [torch.tensor(state[f"{name}.norm.{part}"]) for part in ("weight", "bias")]
        self.inner, self.context, self.outer = (
            Layer(state, f"{name}.{part}") for part in ("inner", "context", "outer")
        )

    def __call__(self, h, context):
        inside = self.inner(F.layer_norm(h, h.shape[-1:], *self.norm)) + self.context(context)
        return h + self.outer(F.silu(inside))


class MLP(nn.Module):
    """F(x, c_noise) for x of shape (batch, size) and one number c_noise."""

    def __init__(self, state):
        super().__init__()
        self.first, self.second = (Layer(state, f"embed_context.layers.{i}") for i in range(2))
        self.input, self.output = Layer(state, "embed_input"), Layer(state, "output")
        count = sum(name.endswith("inner.weight") for name in state)
        self.blocks = [Block(state, f"blocks.{i}") for i in range(count)]

    def forward(self, x, c_noise):
        angles = c_noise * FREQUENCIES
        context = F.silu(self.first(torch.cat([angles.cos(), angles.sin()])))
        context = F.silu(self.second(context))
        h = self.input(x)
        for block in self.blocks:
            h = block(h, context)
        return self.output(F.silu(h))


def denoiser(network, sigma_data):
    """EDM's preconditioning around it; sigma is a tensor without axes."""

    def denoise(x, sigma):
        total = torch.sqrt(sigma**2 + sigma_data**2)
        out = network(x / total, torch.log(sigma) / 4)
        return (sigma_data / total) ** 2 * x + sigma_data * sigma / total * out

    return denoise
