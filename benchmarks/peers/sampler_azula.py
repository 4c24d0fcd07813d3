"""Heun's method of the package `azula` on the same network and the same noise levels.

    python sampler_azula.py INPUT.npz OUTPUT.npz

Its sampler ends at the last positive level, so one call of its denoiser follows, as in EDM.
"""

import sys
from importlib.metadata import version

import torch
from azula.denoise import KarrasDenoiser
from azula.noise import Schedule
from azula.sample import HeunSampler
from rounds import load, serve
from torch_mlp import MLP


class Karras(Schedule):
    """EDM's levels, evenly spaced in sigma^(1/7), as a function of a time from 0 to 1."""

    def __init__(self, low, high):
        self.low, self.high = low ** (1 / 7), high ** (1 / 7)

    def __call__(self, t):
        return torch.ones_like(t), (self.low + t * (self.high - self.low)) ** 7


class Quarter(torch.nn.Module):
    """The network; azula's label is ln sigma, EDM's a quarter of it."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.parameter = torch.nn.Parameter(torch.zeros(()))  # azula asks for the dtype of one

    def forward(self, x, label):
        return self.network(x, label / 4)


def main(source, target):
    torch.set_num_threads(1)
    data = load(source)
    noise, sigmas = torch.tensor(data["noise"]), data["sigmas"]
    schedule = Karras(float(sigmas[-1]), float(sigmas[0]))
    denoise = KarrasDenoiser(Quarter(MLP(data)), schedule)
    sampler = HeunSampler(denoise, steps=len(sigmas) - 1, silent=True)

    @torch.inference_mode()
    def draw():
        return denoise(sampler(noise * float(sigmas[0])), torch.tensor(0.0)).mean

    serve(target, {"out": draw().numpy(), "version": version("azula")}, {"Heun": draw})


if __name__ == "__main__":
    main(*sys.argv[1:])
