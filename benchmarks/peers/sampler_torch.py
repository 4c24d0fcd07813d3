"""Algorithm 2 of Karras et al. (2022) in PyTorch, as a plain loop over the steps.

python sampler_torch.py INPUT.npz OUTPUT.npz
"""

import math
import sys

import torch
from rounds import load, serve
from torch_mlp import MLP, denoiser


@torch.inference_mode()
def sample(denoise, noise, sigmas, s_churn=0.0):
    x = noise * sigmas[0]
    for i, sigma in enumerate(sigmas):
        sigma_next = sigmas[i + 1] if i + 1 < len(sigmas) else torch.tensor(0.0)
        gamma = min(s_churn / len(sigmas), math.sqrt(2) - 1)
        sigma_hat = sigma * (1 + gamma)
        if gamma > 0:
            x = x + sigma * math.sqrt(gamma * (2 + gamma)) * torch.randn_like(x)
        slope = (x - denoise(x, sigma_hat)) / sigma_hat
        ahead = x + (sigma_next - sigma_hat) * slope
        if i + 1 < len(sigmas):
            slope = (slope + (ahead - denoise(ahead, sigma_next)) / sigma_next) / 2
            ahead = x + (sigma_next - sigma_hat) * slope
        x = ahead
    return x


def main(source, target):
    torch.set_num_threads(1)
    data = load(source)
    denoise = denoiser(MLP(data), float(data["sigma_data"]))
    noise, sigmas = torch.tensor(data["noise"]), torch.tensor(data["sigmas"])
    jobs = {
        "Heun": lambda: sample(denoise, noise, sigmas),
        "Heun with churn": lambda: sample(denoise, noise, sigmas, float(data["s_churn"])),
    }
    serve(target, {"out": jobs["Heun"]().numpy(), "version": torch.__version__}, jobs)


if __name__ == "__main__":
    main(*sys.argv[1:])
