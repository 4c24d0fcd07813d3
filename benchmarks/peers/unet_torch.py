"""A DDPM++ in PyTorch, as one would write it there: the same weights, outputs and training.

    python unet_torch.py INPUT.npz OUTPUT.npz

`INPUT.npz` holds the weights under the names that they have here, a batch and its noise labels.
"""

import math
import os
import sys

import torch
from rounds import load, serve
from torch.nn import functional as F


def norm(state, name, h):
    groups = min(32, h.shape[1] // 4)
    return F.group_norm(h, groups, state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)


def conv(state, name, h):
    weight = state[f"{name}.weight"]
    return F.conv2d(h, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)


def linear(state, name, h):
    return F.linear(h, state[f"{name}.weight"], state[f"{name}.bias"])


def attend(state, name, h):
    n, c, height, width = h.shape
    qkv = conv(state, f"{name}.qkv", norm(state, f"{name}.norm2", h))
    q, k, v = qkv.reshape(n, 1, c, 3, height * width).transpose(2, 4).unbind(3)
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(h.shape)
    return (conv(state, f"{name}.proj", mixed) + h) * math.sqrt(0.5)


def block(state, name, x, emb, dropout=0.0):
    resample = lambda h: h
    if name.endswith("down"):
        resample = lambda h: F.avg_pool2d(h, 2)
    if name.endswith("up"):
        resample = lambda h: F.interpolate(h, scale_factor=2, mode="nearest")
    h = conv(state, f"{name}.conv0", resample(F.silu(norm(state, f"{name}.norm0", x))))
    h = h + linear(state, f"{name}.affine", emb)[:, :, None, None]
    h = F.dropout(F.silu(norm(state, f"{name}.norm1", h)), dropout)
    h = conv(state, f"{name}.conv1", h)
    x = resample(x)
    skip = conv(state, f"{name}.skip", x) if f"{name}.skip.weight" in state else x
    h = (h + skip) * math.sqrt(0.5)
    return attend(state, name, h) if f"{name}.qkv.weight" in state else h


def unet(state, x, c_noise, labels=None, dropout=0.0):
    """The parts in the order of their names in the file, which is that of the network."""
    size = state["map_layer0.weight"].shape[1] // 2
    angles = c_noise[:, None] * 10000.0 ** (-torch.arange(size, device=x.device) / (size - 1))
    emb = torch.cat([angles.sin(), angles.cos()], dim=1)
    if labels is not None:
        emb = emb + F.linear(labels, state["map_augment.weight"])
    emb = F.silu(linear(state, "map_layer0", emb))
    emb = F.silu(linear(state, "map_layer1", emb))
    parts = list(dict.fromkeys(".".join(name.split(".")[:2]) for name in state if "x" in name))
    h, skips = x, []
    for name in parts:
        if name.startswith("enc"):
            h = (
                conv(state, name, h)
                if name.endswith("conv")
                else block(state, name, h, emb, dropout=dropout)
            )
            skips.append(h)
        elif "block" in name:
            h = block(state, name, torch.cat([h, skips.pop()], dim=1), emb, dropout=dropout)
        elif "aux" not in name:
            h = block(state, name, h, emb, dropout=dropout)
    (last,) = (name for name in parts if name.endswith("aux_norm"))
    return conv(state, last.replace("norm", "conv"), F.silu(norm(state, last, h)))


def main(source, target):
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    arrays = {name: torch.tensor(array) for name, array in load(source).items()}
    x, c_noise = arrays.pop("x"), arrays.pop("c_noise")

    @torch.no_grad()
    def forward():
        return unet(arrays, x, c_noise)

    out = forward().numpy()
    for array in arrays.values():
        array.requires_grad_()
    optimizer = torch.optim.Adam(arrays.values(), lr=1e-4)

    def step():
        sigma = torch.exp(1.2 * torch.randn(len(x), 1, 1, 1) - 1.2)
        noisy, total = x + sigma * torch.randn_like(x), torch.sqrt(sigma**2 + 0.25)
        raw = unet(arrays, noisy / total, sigma[:, 0, 0, 0].log() / 4)
        denoised = 0.25 / total**2 * noisy + 0.5 * sigma / total * raw
        loss = ((total / (0.5 * sigma)) ** 2 * (denoised - x) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    outputs = {"out": out, "version": torch.__version__}
    serve(target, outputs, {"forward": forward, "training step": step})


if __name__ == "__main__":
    main(*sys.argv[1:])
