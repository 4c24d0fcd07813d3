"""Jobs of `benchmarks.gpu` that ask whether a device computes the right numbers.

The reference numbers are those of the tests, read by their own code, which needs pytest.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

import edm_tutorial as edm
from benchmarks.timing import machine

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))


def precise(bits: int, matmul: str = "highest") -> str:
    """Set the precision of this process; returns it in words, for the note of a row."""
    jax.config.update("jax_enable_x64", bits == 64)
    jax.config.update("jax_default_matmul_precision", matmul)
    return f"matmul precision {matmul}"


class Mixture(eqx.Module):
    """The denoiser of `gmm.npz` for a batch, as the reference had it."""

    means: Array
    var: Array
    log_weights: Array

    def __call__(self, x, sigma, cond=None, *, key=None):
        flat, means = x.reshape(len(x), -1), self.means.reshape(len(self.means), -1)
        total = self.var + sigma**2
        distance = jnp.sum((flat[:, None] - means) ** 2, axis=2)
        log_r = self.log_weights - flat.shape[1] / 2 * jnp.log(total) - distance / (2 * total)
        r = jax.nn.softmax(log_r, axis=1)
        pulled = self.var[:, None] * flat[:, None] + sigma**2 * means
        return jnp.einsum("bk,bkd->bd", r / total, pulled).reshape(x.shape)


class Replay(eqx.Module):
    """Recorded noise, found again by the key of its step."""

    keys: Array
    rows: Array

    def __call__(self, key, shape, dtype):
        same = jnp.all(self.keys == jr.key_data(key), axis=1)
        return self.rows[jnp.argmax(same)].reshape(shape).astype(dtype)


def relative(got: Any, want: np.ndarray) -> float:
    """The error as `golden_cases.assert_close` measures it."""
    size = np.maximum(np.abs(want), 1e-3 * np.max(np.abs(want)))
    return float(np.max(np.abs(np.asarray(got, np.float64) - want) / (size + 1e-300)))


def golden(say: Any, bits: int, tiny: bool) -> None:
    """Losses, then every state of every sampler."""
    note = precise(bits)
    import golden_cases as cases
    import test_golden_losses as losses

    errors: list[float] = []
    record = lambda got, want, tolerance=0.0: errors.append(relative(got, want))
    names = list(cases.manifest()["losses.npz"]["cases"])
    with mock.patch.object(losses, "assert_close", record):
        for name in names[: 1 if tiny else None]:
            losses.test_case(name)
    told = {"note": f"{note}, {len(errors)} arrays", "machine": machine()}
    say(what=f"golden losses, float{bits}", value=float(f"{max(errors):.2g}"), **told)
    errors, skipped = [], 0
    for file, kind in (("sampler_edm.npz", None), ("sampler_ablation.npz", "ablation_sampler")):
        entries = cases.manifest()[file]["cases"].items()
        names = [name for name, entry in entries if kind in (None, entry["kind"])]
        for name in names[: 1 if tiny else None]:
            case = cases.Case(file, name)
            # In float32 a level may round to its neighbour in a table: not an error of size.
            if bits == 32 and case.params["net_round"] != "identity":
                skipped += 1
                continue
            errors.append(sampler_error(case, kind, bits))
    note = f"{note}, {len(errors)} paths" + (f", {skipped} with rounding left out" * (skipped > 0))
    value = float(f"{max(errors):.2g}")
    say(what=f"golden samplers, float{bits}", value=value, note=note, machine=machine())


def sampler_error(case: Any, kind: str | None, bits: int) -> float:
    """Of all states of one path, compiled, with the recorded noise."""
    import test_golden_samplers as tests

    params, n = case.params, case.params["num_steps"]
    if kind is None:
        limits = tests.in_range(params, 0.002, 80.0)
        sigmas = edm.edm_sigmas(n, rho=float(params.get("rho", 7)), **limits)
        schedule, solver = edm.Linear(), edm.Heun()
    else:
        sigmas, betas = tests.build_grid(params, params["discretization"])
        schedule = tests.build_schedule(params["schedule"], betas)
        solver = tests.build_solver(params)
    keys = jax.vmap(lambda i: jr.key_data(jr.fold_in(jr.key(0), i)))(jnp.arange(n))
    noise = case["noise"] if "noise" in case else np.zeros((n, *case["latents"].shape))
    churn = tests.build_churn(params, noise)
    if churn is not None:
        churn = eqx.tree_at(lambda c: c.draw, churn, Replay(keys, jnp.asarray(noise)))
    mixture = tests.Case("gmm.npz", params["gmm"])
    weights = jnp.log(jnp.asarray(mixture["weights"]))
    denoiser = Mixture(jnp.asarray(mixture["means"]), jnp.asarray(mixture["var"]), weights)
    path = edm.sample_path(
        denoiser,
        jnp.asarray(case["latents"]),
        sigmas,
        schedule=tests.rounded(params, schedule),
        solver=solver,
        churn=churn,
        key=jr.key(0),
    )
    quiet, shipped = "x_final_quiet" in case, "x_final_f64" in case
    name = "x_final_quiet" if quiet else "x_final_f64" if shipped else "traj"
    return relative(path if name == "traj" else path[-1], case[name])


@eqx.filter_jit
def evaluate(net: Any, x: Array, c_noise: Array, cond: Any) -> Array:
    return jax.vmap(net)(x, c_noise, cond)


@eqx.filter_jit
def with_gradient(net: Any, x: Array, c_noise: Array, cond: Any) -> tuple[Array, Array]:
    def total(x: Array) -> tuple[Array, Array]:
        out = jax.vmap(net)(x, c_noise, cond)
        return jnp.sum(out**2), out

    gradient, out = jax.grad(total, has_aux=True)(x)
    return out, gradient


def networks(say: Any, bits: int, tiny: bool) -> None:
    """Whole networks of the reference, one evaluation each; the row after each."""
    import golden_networks as known

    files = ["net_song_skip.npz"] if tiny else known.NETWORKS
    for matmul in ("highest", "default")[: 1 + (bits == 32)]:
        note, errors = precise(bits, "highest" if matmul == "highest" else "tensorfloat32"), []
        for file in files if matmul == "highest" else files[:2]:
            case, dtype = known.Case(file, "e0"), jnp.dtype(f"float{bits}")
            x = jnp.asarray(case["x"], dtype)
            c_noise = jnp.broadcast_to(jnp.asarray(case["noise_labels"], dtype), x.shape[:1])
            got = evaluate(known.network(file), x, c_noise, known.condition(case, dtype))
            errors.append(of_largest(got, case[f"out_f{bits}"]))
            what = f"float{bits}" if matmul == "highest" else "TF32"
            told = {"note": f"{note}, {len(errors)} networks", "machine": machine()}
            say(what=f"golden networks, {what}", value=float(f"{max(errors):.2g}"), **told)


def drawn_networks(say: Any, tiny: bool) -> None:
    """Random configurations in float64, with the gradient towards the image."""
    note, errors = precise(64), []
    import golden_networks as known

    for name in ["netx_106"] if tiny else known.drawn_configs():
        net, arrays = known.drawn_network(name)
        labels = [arrays.get(label) for label in ("class_labels", "augment_labels")]
        cond = known.ImageCondition(*(a if a is None else jnp.asarray(a, float) for a in labels))
        x, c_noise = (jnp.asarray(arrays[n], float) for n in ("x", "noise_labels"))
        got = with_gradient(net, x, jnp.broadcast_to(c_noise, x.shape[:1]), cond)
        errors += map(of_largest, got, (arrays["out_f64"], arrays["grad_x_f64"]))
        told = {"note": f"{note}, {len(errors) // 2} networks", "machine": machine()}
        value = float(f"{max(errors):.2g}")
        say(what="drawn networks with gradients, float64", value=value, **told)


def of_largest(got: Any, want: np.ndarray) -> float:
    return float(np.max(np.abs(np.asarray(got) - want)) / np.max(np.abs(want)))


def likelihood(say: Any, bits: int) -> None:
    """Points of a Gaussian in 4 dimensions and of a mixture in 2: densities in closed form."""
    note = precise(bits)
    factor = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    cov = factor @ np.diag([0.05, 0.3, 1.0, 2.0]) @ factor.T
    laws = {"Gaussian": edm.GaussianMixture(np.ones(1), np.full((1, 4), 0.3), cov[None])}
    angles = 2 * np.pi * np.arange(4) / 4
    means = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    laws["mixture"] = edm.GaussianMixture(np.full(4, 0.25), means, np.stack([0.04 * np.eye(2)] * 4))
    controller = diffrax.PIDController(*[1e-9 if bits == 64 else 1e-5] * 2)

    @eqx.filter_jit
    def errors(law: edm.GaussianMixture, x: Array) -> tuple[Array, Array]:
        density = lambda x: edm.log_likelihood(law.denoise, x, stepsize_controller=controller)
        exact = lambda x: law.log_prob(x, 0.002)
        return jax.vmap(lambda x: density(x).log_prob)(x), jax.vmap(exact)(x)

    for name, law in laws.items():
        x = jax.vmap(law.sample)(jr.split(jr.key(1), 64))
        got, exact = errors(law, x)
        error = float(jnp.max(jnp.abs(got - exact)))
        told = {"note": f"{note}, 64 points", "machine": machine()}
        say(what=f"log-likelihood, {name}, float{bits}", value=float(f"{error:.2g}"), **told)


def fit(say: Any, tiny: bool) -> None:
    """Nats on fresh simulations, seconds, and C2ST over observations, which needs sklearn."""
    note = precise(32)
    from edm_tutorial.sbi import default_settings, fit_posterior, tasks

    problem, what = tasks.two_moons(), "two moons, 1,000 simulations"
    theta, x = tasks.draw(jr.fold_in(jr.key(1), 1000), problem, 1000)
    small = default_settings(200).with_steps(40)._replace(width=32, depth=1)
    options: dict = {"settings": small} if tiny else {}
    start = time.perf_counter()
    posterior = fit_posterior(
        jr.key(101), theta, x, prior_support=problem.prior_support, progress=False, **options
    )
    jax.block_until_ready(eqx.filter(posterior, eqx.is_array))
    seconds, told = time.perf_counter() - start, {"note": note, "machine": machine()}
    say(what=f"{what}, fit", value=round(seconds, 1), **told)
    fresh = tasks.draw(jr.key(999), problem, 20 if tiny else 2000)
    nats = -float(jnp.mean(jax.jit(jax.vmap(posterior.log_prob))(*fresh)))
    say(what=what, value=round(nats, 3), **told)
    from benchmarks.sbi import c2st, reference

    known, scores = reference("two_moons"), []
    for i in range(1 if tiny else 2):
        truth = known["reference_samples"][i, : 200 if tiny else None]
        draws = posterior.sample(jr.fold_in(jr.key(1), i), known["observation"][i], len(truth))
        scores.append(c2st(truth, np.asarray(draws)))
    note = f"{note}, {len(scores)} observations"
    say(what=f"{what}, C2ST", value=round(float(np.mean(scores)), 3), note=note, machine=machine())


def kill_and_resume(say: Any) -> None:
    """A training that is killed after some steps ends with the weights of one that was not."""
    import orbax.checkpoint  # noqa: F401  # or the row says that it is not there

    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, str(TESTS / "kill_run.py")]
        run = lambda *names: [*command, *(str(Path(home) / name) for name in names)]
        whole = subprocess.Popen(run("whole", "whole.npz"), stdout=subprocess.DEVNULL)
        doomed = subprocess.Popen(run("cut", "cut.npz"), stdout=subprocess.PIPE, text=True)
        assert doomed.stdout
        steps = [int(doomed.stdout.readline()) for _ in range(5)]
        doomed.send_signal(signal.SIGKILL)
        doomed.wait()
        done = subprocess.run(run("cut", "cut.npz"), stdout=subprocess.PIPE, text=True, check=True)
        if whole.wait():
            raise RuntimeError("the training that was not killed failed")
        resumed = int(done.stdout.split()[0])
        if resumed < steps[-1]:
            raise RuntimeError(f"it resumed at {resumed}, killed after {steps[-1]}")
        with np.load(f"{home}/whole.npz") as one, np.load(f"{home}/cut.npz") as other:
            difference = max(float(np.max(np.abs(one[k] - other[k].astype(float)))) for k in one)
    note = f"killed after step {steps[-1]} of 300"
    say(what="killed and resumed", value=difference, note=note, machine=machine())


def chapter(say: Any, file: str) -> None:
    """The code of a chapter, run as one script in a folder of its own."""
    cells = json.loads(Path(file).read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    kept = [line for cell in sources for line in cell.splitlines() if line[:1] not in ("%", "!")]
    with tempfile.TemporaryDirectory() as home:
        script = Path(home) / "chapter.py"
        script.write_text("\n".join(kept))
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(script)], cwd=home, env=os.environ, capture_output=True, text=True
        )
        seconds = time.perf_counter() - start
    if done.returncode:
        print(done.stderr)
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    say(what=f"chapter {Path(file).stem[:2]}", value=round(seconds, 1), machine=machine())
