"""Samplers against the reference: every state, and every input of the denoiser.

The batch of a case is one example here, of one more axis: nothing in a sampler mixes
the entries of an example except the denoiser, which is given the batch axis back.
Everything runs under `jax.disable_jit`, so that the denoiser can write down what it is
asked and the recorded noise can be handed out draw by draw.
"""

import itertools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import Case, assert_close, check_file, each_case

import edm_tutorial as edm

SCHEDULES = ("vp", "ve", "linear")


class RecordingMixture:
    """The denoiser of `gmm.npz`, in numpy, with a list of what it was asked."""

    def __init__(self, name: str):
        self.case = Case("gmm.npz", name)
        self.x: list[np.ndarray] = []
        self.sigma: list[float] = []

    def __call__(self, x, sigma, cond=None, *, key=None):
        self.x.append(np.asarray(x))
        self.sigma.append(float(sigma))
        return jnp.asarray(self.denoise(self.x[-1], self.sigma[-1]))

    def denoise(self, x: np.ndarray, sigma: float) -> np.ndarray:
        means, var, weights = self.case["means"], self.case["var"], self.case["weights"]
        total = var + sigma**2
        distance = ((x[:, None] - means) ** 2).reshape(len(x), len(var), -1).sum(axis=2)
        d = means[0].size
        log_r = np.log(weights) - d / 2 * np.log(total) - distance / (2 * total)
        r = np.exp(log_r - log_r.max(axis=1, keepdims=True))
        r /= r.sum(axis=1, keepdims=True)
        column = (-1, *[1] * means[0].ndim)
        pulled = var.reshape(column) * x[:, None] + sigma**2 * means
        return np.einsum("bk,bk...->b...", r / total, pulled)


@pytest.mark.parametrize("name", ["A", "B"])
def test_the_denoiser_of_the_cases(name):
    mixture = RecordingMixture(name)
    case = mixture.case
    rows = zip(case["test_x"], case["test_sigma"], strict=True)
    assert_close(np.concatenate([mixture.denoise(x[None], s) for x, s in rows]), case["test_D"])
    case.check_all_read()


def replay(rows: np.ndarray):
    """A `draw` for `Churn` that hands out the recorded noise in order."""
    rest = iter(rows)
    return lambda key, shape, dtype: jnp.asarray(next(rest), dtype).reshape(shape)


def build_churn(params: dict, noise: np.ndarray, churn: type = edm.Churn):
    names = {
        "S_churn": "s_churn",
        "S_min": "s_min",
        "S_max": "s_max",
        "S_noise": "s_noise",
    }
    given = {names[k]: float(v) for k, v in params.items() if k in names}
    return churn(**given, draw=replay(noise)) if given else None


def plain_loop(body, carry, xs):
    """What `lax.scan` is, and without jit does, but for compiling each of its slices."""
    rows, tree = jax.tree.flatten(jax.tree.map(np.asarray, xs))
    outs = []
    for row in zip(*rows, strict=True):
        carry, out = body(carry, jax.tree.unflatten(tree, map(jnp.asarray, row)))
        outs.append(out)
    return carry, None if outs[0] is None else jnp.asarray(np.stack(outs))


def run(case: "Case | Row", sigmas, schedule, solver, churn):
    """Sample the case; check the number of calls. Returns the path and the record."""
    mixture = RecordingMixture(case.params["gmm"])
    with jax.disable_jit(), mock.patch("jax.lax.scan", plain_loop):
        path = edm.sample_path(
            mixture,
            jnp.asarray(case["latents"]),
            sigmas,
            schedule=schedule,
            solver=solver,
            churn=churn,
            key=jax.random.key(0),
        )
    n = len(sigmas)
    assert len(mixture.x) == (n if isinstance(solver, edm.Euler) else 2 * n - 1)
    return np.asarray(path), np.stack(mixture.x), np.stack(mixture.sigma)


def in_range(params: dict, sigma_min: float, sigma_max: float) -> dict[str, float]:
    """The noise range of a case, cut to what its network was trained on."""
    low, high = params["net_sigma_min"], params["net_sigma_max"]
    if params["net_round"] != "identity":  # ours, not the same to the last digit
        theirs = low, high
        low, high = edm.iddpm_table()[-2], edm.iddpm_table()[0]
        np.testing.assert_allclose((low, high), theirs, rtol=1e-9)
    return {
        "sigma_min": float(max(params.get("sigma_min", sigma_min), low)),
        "sigma_max": float(min(params.get("sigma_max", sigma_max), high)),
    }


def rounded(params: dict, schedule: edm.AbstractSchedule) -> edm.AbstractSchedule:
    if params["net_round"] == "identity":
        return schedule
    assert params["net_round"] == "iddpm_default"
    return edm.Rounded(schedule, edm.iddpm_table())


def first_stages(sigma: np.ndarray, solver: edm.AbstractSolver) -> np.ndarray:
    """The noise level after churn, of each step."""
    return sigma if isinstance(solver, edm.Euler) else sigma[::2]


# Algorithm 2: `sampler_edm.npz`


def test_edm_file():
    check_file("sampler_edm.npz", {"edm_sampler": 10})


@each_case("sampler_edm.npz")
def test_edm(name):
    case = Case("sampler_edm.npz", name)
    params = case.params
    n = params["num_steps"]
    limits = in_range(params, 0.002, 80.0)
    sigmas = edm.edm_sigmas(n, rho=float(params.get("rho", 7)), **limits)
    schedule = rounded(params, edm.Linear())
    churn = build_churn(params, case["noise"])
    path, eval_x, eval_sigma = run(case, sigmas, schedule, edm.Heun(), churn)

    times = jax.vmap(schedule.time)(sigmas)
    assert_close(np.append(times, 0), case["t_steps"])
    assert_close(path, case["traj"])
    assert_close(path[-1], case["x_final"])
    assert_close(eval_x, case["eval_x"])
    assert_close(eval_sigma, case["eval_sigma"])
    assert_close(eval_sigma[::2], case["t_hat"])
    gamma = np.zeros(n)
    if churn is not None:
        gamma = np.stack([churn.gamma(t, n) for t in times])
    assert_close(gamma, case["gamma"])
    case.check_all_read()


# Algorithms 1 to 3 for any schedule: `sampler_ablation.npz`


def build_grid(params: dict, kind: str) -> tuple[jax.Array, tuple[float, float]]:
    """The noise levels of a case, and the VP parameters of their range."""
    n = params["num_steps"]
    defaults = {"vp": edm.vp_sigmas, "ve": edm.ve_sigmas, "edm": edm.edm_sigmas}
    if kind == "iddpm":
        limits = in_range(params, 0.002, 81.0)
        names = {"M": "levels", "C_1": "c_1", "C_2": "c_2"}
        given = {names[k]: v for k, v in params.items() if k in names}
        sigmas = edm.iddpm_sigmas(n, **limits, **given)
    else:
        low, high = np.asarray(defaults[kind](2))[::-1]  # the published range
        limits = in_range(params, low, high)
        sigmas = None if kind == "vp" else defaults[kind](n, **limits)
    vp = edm.VariancePreserving.from_range(**limits)
    betas = vp.beta_d, vp.beta_min
    return edm.vp_sigmas(n, 1e-3, *betas) if sigmas is None else sigmas, betas


def build_schedule(kind: str, betas: tuple[float, float]) -> edm.AbstractSchedule:
    if kind == "vp":
        return edm.VariancePreserving(*betas)
    return {"ve": edm.VarianceExploding(), "linear": edm.Linear()}[kind]


def build_solver(params: dict) -> edm.AbstractSolver:
    if params["solver"] == "euler":
        return edm.Euler()
    assert params["solver"] == "heun"
    return edm.Heun(float(params.get("alpha", 1)))


def check_schedule(schedule: edm.AbstractSchedule, sigmas, want) -> None:
    """Times, noise levels, scales; their derivatives by way of the forward SDE."""
    t = jax.vmap(schedule.time)(sigmas)
    sigma, s = jax.vmap(schedule.sigma)(t), jax.vmap(schedule.scale)(t)
    assert_close(np.append(t, 0), want["t_steps"])
    assert_close(np.append(sigma, schedule.sigma(0.0)), want["sigma_t"])
    assert_close(np.append(s, schedule.scale(0.0)), want["s_t"])
    drift, diffusion = edm.forward_sde(schedule)
    one = jnp.ones(1)
    rate = jax.vmap(lambda t: drift(t, one, None)[0])(t)
    g = jax.vmap(lambda t: diffusion(t, one, None).diagonal[0])(t)
    assert_close(rate * s, want["s_deriv_t"])  # f = s'/s
    assert_close((g / s) ** 2 / (2 * sigma), want["sigma_deriv_t"])  # g^2 = 2 s^2 sigma' sigma


def test_ablation_file():
    kinds = {"ablation_grid": 3, "ablation_sampler": 12}
    check_file("sampler_ablation.npz", kinds)


@each_case("sampler_ablation.npz", "ablation_grid")
@pytest.mark.slow
def test_ablation_grid(name):
    """24 combinations of grid, schedule and scaling: each a choice of its own."""
    case = Case("sampler_ablation.npz", name)
    params = case.params
    kinds = ("vp", "ve", "iddpm", "edm"), SCHEDULES, ("vp", "none")
    combos = list(itertools.product(*kinds))
    assert [tuple(combo) for combo in params["combos"]] == combos
    for row, (grid, time, scaling) in enumerate(combos):
        sigmas, betas = build_grid(params, grid)
        scaled = {"vp": edm.VarianceScaled, "none": edm.Unscaled}[scaling]
        schedule = scaled(build_schedule(time, betas))
        one = Row(case, row)
        assert_close(sigmas, one["sigma_steps"])
        assert_close(betas, one["vp_beta"])
        check_schedule(schedule, sigmas, one)
        path, eval_x, eval_sigma = run(one, sigmas, schedule, build_solver(params), None)
        assert_close(path[-1], one["x_final"])
        assert_close(eval_x, one["eval_x"])
        assert_close(eval_sigma, one["eval_sigma"])
    case.check_all_read()


class Row:
    """One of the combinations stacked in a grid case."""

    def __init__(self, case: Case, row: int):
        self.case, self.row, self.params = case, row, case.params

    def __getitem__(self, array: str) -> np.ndarray:
        return self.case[array][self.row]


@each_case("sampler_ablation.npz", "ablation_sampler")
@pytest.mark.slow
def test_ablation(name):
    case = Case("sampler_ablation.npz", name)
    params = case.params
    n = params["num_steps"]
    sigmas, betas = build_grid(params, params["discretization"])
    natural = {"vp": "vp", "ve": "none", "linear": "none"}
    assert params["scaling"] == natural[params["schedule"]]
    schedule = rounded(params, build_schedule(params["schedule"], betas))
    solver = build_solver(params)
    churn = build_churn(params, case["noise"] if "noise" in case else np.zeros(n))
    if "x_final_quiet" in case:  # ours must keep the noise out where gamma = 0
        churn = edm.Churn(0.0, draw=replay(case["noise"]))
    path, eval_x, eval_sigma = run(case, sigmas, schedule, solver, churn)
    times = jax.vmap(schedule.time)(sigmas)
    gamma = np.zeros(n)
    if churn is not None:
        gamma = np.stack([churn.gamma(schedule.sigma(t), n) for t in times])

    tolerance, tolerance_x = 1e-9, 1e-9
    if "x_final_f64" in case:  # as shipped, the reference computes abar_j in float32
        assert_close(sigmas, case["sigma_steps_f64"])
        assert_close(path[-1], case["x_final_f64"])
        tolerance = tolerance_x = 1e-3
    if "x_final_quiet" in case:  # its round-off in t_hat lets some noise through
        assert_close(path[-1], case["x_final_quiet"])
        assert case["noise"].any()
        tolerance_x = 1e-5
    if "u_index" in case:
        arguments = [params[k] for k in ("M", "C_1", "C_2") if k in params]
        table = np.asarray(edm.iddpm_table(*arguments))
        low, high = in_range(params, 0.002, 81.0).values()
        assert np.sum((low <= table) & (table <= high)) == case["u_filtered_len"]
        index = np.argmin(np.abs(table - np.asarray(sigmas)[:, None]), axis=1)
        np.testing.assert_array_equal(index, case["u_index"])

    assert_close(sigmas, case["sigma_steps"], tolerance)
    assert_close(betas, case["vp_beta"], tolerance)
    want = {a: case[a] for a in ("t_steps", "sigma_t", "s_t", "s_deriv_t", "sigma_deriv_t")}
    if tolerance == 1e-9:
        check_schedule(schedule, sigmas, want)
    assert_close(gamma, case["gamma"])
    sigma_hat = first_stages(eval_sigma, solver)
    assert_close([schedule.time(s) for s in sigma_hat], case["t_hat"], tolerance)
    assert_close(eval_sigma, case["eval_sigma"], tolerance)
    assert_close(eval_x, case["eval_x"], tolerance_x)
    assert_close(path, case["traj"], tolerance_x)
    assert_close(path[-1], case["x_final"], tolerance_x)
    case.check_all_read()
