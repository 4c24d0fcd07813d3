"""NPE and NPSE of the package `sbi`, with its defaults, on simulations handed over as a file.

    python sbi_runner.py METHOD SEED INPUT.npz OUTPUT.npz

Run by `benchmarks.sbi` with the interpreter of an environment that has `sbi` and torch and nothing
of this repository. Writes the draws, and CPU seconds of the process, all threads together.
Densities are evaluated at the first observation only: for NPSE each is the solution of an ODE.
"""

import sys
import time

import numpy as np
import sbi
import torch
from sbi.inference import NPE, NPSE
from sbi.utils import BoxUniform

DRAWS, POINTS = 10_000, 1_000


def trainer(method: str, prior):
    if method == "sbi NPE":
        return NPE(prior, density_estimator="nsf", show_progress_bars=False)
    return NPSE(prior, sde_type="ve", show_progress_bars=False)


def law(data):
    """The prior: a box where it has ends, else a Gaussian with its mean and width."""
    if np.isfinite(data["low"]).all():
        return BoxUniform(torch.tensor(data["low"]), torch.tensor(data["high"]))
    mean, std = torch.tensor(data["mean"]), torch.tensor(data["std"])
    return torch.distributions.MultivariateNormal(mean, torch.diag(std**2))


def cpu(call):
    start = time.process_time()
    value = call()
    return value, time.process_time() - start


def main(method: str, seed: str, source: str, target: str) -> None:
    torch.manual_seed(int(seed))
    data = dict(np.load(source))
    inference = trainer(method, law(data))
    inference.append_simulations(torch.tensor(data["theta"]), torch.tensor(data["x"]))
    _, train = cpu(inference.train)
    posterior = inference.build_posterior()
    options = {"show_progress_bars": False}
    draws, sample = [], []
    for x_o in torch.tensor(data["observation"]):
        value, seconds = cpu(lambda x_o=x_o: posterior.sample((DRAWS,), x=x_o, **options))
        draws.append(value.numpy())
        sample.append(seconds)
    x_o, points = torch.tensor(data["observation"][0]), torch.tensor(data["points"][0, :POINTS])
    _, log_prob = cpu(lambda: posterior.log_prob(points, x=x_o))
    np.savez(
        target,
        draws=np.stack(draws),
        train=train,
        sample=np.median(sample),
        log_prob=log_prob,
        versions=f"sbi {sbi.__version__}, torch {torch.__version__}",
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
