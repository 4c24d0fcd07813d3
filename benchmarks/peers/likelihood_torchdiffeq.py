"""Exact log-likelihoods by `torchdiffeq`: the flow of the point and its density, one batch.

    python likelihood_torchdiffeq.py INPUT.npz OUTPUT.npz

The trace is exact: one backward pass a dimension through the same forward pass, which is the
usual way in PyTorch. Jobs are called "MODEL METHOD TOLERANCE". A tolerance at which the solver
gives up is not a number in the output.
"""

import math
import sys
from functools import partial
from importlib.metadata import version

import torch
from rounds import load, serve
from torch_mlp import MLP, denoiser
from torchdiffeq import odeint


def mixture(weights, means, covs):
    """The ideal denoiser of a Gaussian mixture, by the eigenvectors of its covariances."""
    variances, axes = torch.linalg.eigh(covs)

    def denoise(x, sigma):
        local = torch.einsum("kij,nki->nkj", axes, x[:, None] - means)
        total = variances + sigma**2
        exponent = (local**2 / total + torch.log(total)).sum(-1)
        share = torch.softmax(weights.log() - exponent / 2, dim=1)
        parts = means + torch.einsum("kij,nkj->nki", axes, local * variances / total)
        return torch.einsum("nk,nki->ni", share, parts)

    return denoise


def flow(denoise, sigma, state):
    """d/dsigma of the points (n, d) and of what their log-densities have gained (n,)."""
    x = state[0].detach().requires_grad_()
    with torch.enable_grad():
        denoised = denoise(x, sigma)
        trace = torch.zeros(len(x))
        for i in range(x.shape[1]):
            (slope,) = torch.autograd.grad(denoised[:, i].sum(), x, retain_graph=True)
            trace = trace + slope[:, i]
    return (x - denoised).detach() / sigma, (x.shape[1] - trace) / sigma


def log_prob(denoise, x, ends, mean, std, method, tolerance):
    start = (x, torch.zeros(len(x)))
    with torch.no_grad():
        path, gained = odeint(
            partial(flow, denoise), start, ends, rtol=tolerance, atol=tolerance, method=method
        )
    variance = std**2 + ends[-1] ** 2
    square = ((path[-1] - mean) ** 2 / variance + torch.log(2 * math.pi * variance)).sum(1)
    return gained[-1] - square / 2


def main(source, target):
    torch.set_num_threads(1)
    data = load(source)
    settings = zip(data["methods"], data["tolerances"], strict=True)
    data = {k: torch.tensor(v) for k, v in data.items() if v.dtype.kind == "f"}
    models = {
        "mixture": mixture(*(data[name] for name in ("weights", "means", "covs"))),
        "MLP": denoiser(MLP({k: v.numpy() for k, v in data.items()}), data["sigma_data"]),
    }
    jobs, outputs = {}, {"version": version("torchdiffeq")}
    rest = [data[name] for name in ("x", "ends", "mean", "std")]
    for method, tolerance in list(settings):
        for name, denoise in models.items():
            options = {"method": str(method), "tolerance": float(tolerance)}
            job = f"{name} {method} {tolerance:.0e}"
            jobs[job] = partial(log_prob, denoise, *rest, **options)
            try:
                outputs[job] = jobs[job]().numpy()
            except AssertionError:  # torchdiffeq's own: its step became too small
                outputs[job] = torch.full((len(data["x"]),), math.nan).numpy()
    serve(target, outputs, jobs)


if __name__ == "__main__":
    main(*sys.argv[1:])
