"""Posterior draws of a mixture given linear data, by the methods of the package `azula`.

    python inverse_azula.py INPUT.npz OUTPUT.npz

The denoiser is the exact one of the mixture, in torch; the sampler's levels are given. DPS takes
the norm of the residual over the whole batch, so its strength is multiplied by the batch's root.
"""

import sys
import time
from importlib.metadata import version

import torch
from azula.denoise import Denoiser, DiracPosterior
from azula.guidance.dps import DPSSampler
from azula.guidance.mmps import MMPSDenoiser
from azula.guidance.pgdm import PGDMSampler
from azula.guidance.tds import TDSSampler
from azula.linalg.covariance import IsotropicCovariance
from azula.sample import HeunSampler
from rounds import load, serve
from sampler_azula import Karras


class Mixture(Denoiser):
    """The exact denoiser of a mixture of Gaussians."""

    def __init__(self, data, schedule):
        super().__init__()
        self.schedule = schedule
        self.parameter = torch.nn.Parameter(torch.zeros(()))  # azula asks for the dtype of one
        for name in ("weights", "means", "covs"):
            self.register_buffer(name, torch.tensor(data[name], dtype=torch.float32))
        self.variances, self.axes = torch.linalg.eigh(self.covs)

    def forward(self, x_t, t):
        _, sigma = self.schedule(t)
        local = torch.einsum("kij,nki->nkj", self.axes, x_t[:, None] - self.means)
        total = self.variances + sigma**2
        exponent = (local**2 / total + torch.log(total)).sum(-1) / 2
        share = torch.softmax(torch.log(self.weights) - exponent, dim=-1)
        shrunk = local * self.variances / total
        each = self.means + torch.einsum("kij,nkj->nki", self.axes, shrunk)
        return DiracPosterior(mean=(share[..., None] * each).sum(1))


def main(source, target):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = load(source)
    noise = torch.tensor(data["noise"], dtype=torch.float32)
    sigmas, s = data["sigmas"], float(data["noise_std"])
    matrix = torch.tensor(data["matrix"], dtype=torch.float32)
    y = torch.tensor(data["y"], dtype=torch.float32).expand(len(noise), -1)
    inverse = torch.linalg.pinv(matrix)
    denoise = Mixture(data, Karras(float(sigmas[-1]), float(sigmas[0])))
    steps = {"steps": len(sigmas) - 1, "silent": True}
    forward, back = (lambda x: x @ matrix.T), (lambda y: y @ inverse.T)
    told = MMPSDenoiser(denoise, y, forward, IsotropicCovariance(s**2), iterations=len(matrix))

    def twist(x_hat, sigma):  # the law of y with the covariance sigma^2 / (1 + sigma^2)
        spread = s**2 * torch.eye(len(matrix)) + sigma**2 / (1 + sigma**2) * matrix @ matrix.T
        law = torch.distributions.MultivariateNormal(y[:1], spread)
        return law.log_prob(forward(x_hat))

    samplers = {
        "azula MMPS": HeunSampler(told, **steps),
        "azula TDS": TDSSampler(denoise, twist, **steps),
        "azula PGDM": PGDMSampler(denoise, y, forward, back, eta=1.0, **steps),
        "azula DPS": DPSSampler(denoise, y, forward, zeta=len(noise) ** 0.5, **steps),
    }
    outputs = {"version": version("azula")}
    for name, sampler in samplers.items():
        start = time.process_time()
        last = sampler(noise * float(sigmas[0]))
        final = told if name == "azula MMPS" else denoise
        outputs[name] = final(last, torch.tensor(0.0)).mean.detach().numpy()
        outputs[f"{name} seconds"] = time.process_time() - start
    serve(target, outputs, {})


if __name__ == "__main__":
    main(*sys.argv[1:])
