"""EDM diffusion models in one file: denoiser, loss, sampler with churn, likelihood.

Generated from edm_tutorial 0.1.0 by `make minimal`; do not edit. The names, the arguments and
the numbers are the package's, and its tests hold this file to them. Left out are the checks of
arguments, other schedules and solvers, and the explanations. Licence: Apache-2.0.
https://github.com/edm-tutorial/edm-tutorial

    denoiser = Denoiser(network, EDMPreconditioning.from_data(x))   # F(x, c_noise, cond, *, key)
    loss = denoising_loss(denoiser, x[0], noise=LogNormal(), key=key)
    y = sample(denoiser, jax.random.normal(key, x[0].shape), edm_sigmas(18))
    log_prob = log_likelihood(denoiser, y).log_prob                 # nats
"""

import math
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

def as_float(value, like=None):
    """`value` as a floating array, in the dtype of `like` when that is given."""
    if like is not None:
        return jnp.asarray(value, jax.dtypes.canonicalize_dtype(like.dtype))
    array = jnp.asarray(value)
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)

class Linear(eqx.Module):
    r"""EDM's own: $\sigma(t) = t$ and $s(t) = 1$ (Table 1, column "Ours")."""

    def sigma(self, t):
        return as_float(t)

    def time(self, sigma):
        return as_float(sigma)

    def scale(self, t):
        return jnp.ones_like(as_float(t))

def edm_sigmas(n, sigma_min=0.002, sigma_max=80.0, rho=7.0):
    r"""Evenly spaced in $\sigma^{1/\rho}$ (Eq. 5): `rho` bends steps towards low noise."""
    ramp = jnp.linspace(0, 1, n)
    low, high = (sigma_min ** (1 / rho), sigma_max ** (1 / rho))
    return jnp.asarray((high + ramp * (low - high)) ** rho)

class Coefficients(NamedTuple):
    """The four functions of Eq. 7 at one noise level."""
    c_skip: Any
    c_out: Any
    c_in: Any
    c_noise: Any

class EDMPreconditioning(eqx.Module):
    """EDM's coefficients: unit variance in, unit variance out, least amplified errors."""
    sigma_data: Any

    @classmethod
    def from_data(cls, x):
        """Measure `sigma_data`: the root mean square of `x` about zero."""
        x = jnp.asarray(x)
        return cls(jnp.sqrt(jnp.mean(x ** 2)))

    def __call__(self, sigma):
        sigma = as_float(sigma)
        sigma_data = jax.lax.stop_gradient(as_float(self.sigma_data, sigma))
        total = jnp.hypot(sigma, sigma_data)
        return Coefficients(c_skip=(sigma_data / total) ** 2, c_out=sigma_data * (sigma / total),
                c_in=1 / total, c_noise=jnp.log(sigma) / 4)

class Denoiser(eqx.Module):
    """A network inside its preconditioning: $c_{skip} x + c_{out} F(c_{in} x; c_{noise})$."""
    network: Any
    preconditioning: Any

    def __call__(self, x, sigma, cond=None, *, key=None):
        c = self.preconditioning(as_float(sigma, x))
        output = self.network(c.c_in * x, c.c_noise, cond, key=key)
        return c.c_skip * x + c.c_out * output

class LogNormal(eqx.Module):
    r"""$\ln\sigma \sim N(P_{mean}, P_{std}^2)$ (Table 1, column "Ours"); `r` is N(0, 1)."""
    p_mean: float = -1.2
    p_std: float = 1.2

    def __call__(self, key):
        return self.from_variate(jr.normal(key))

    def from_variate(self, r):
        return jnp.exp(self.p_mean + self.p_std * as_float(r))

def weighted_error(denoiser, x, sigma, n, cond=None, *, key=None):
    r"""$\lambda(\sigma)\,(D(x+n;\sigma)-x)^2$ of one example, computed in network space."""
    network, preconditioning = (denoiser.network, denoiser.preconditioning)
    c = preconditioning(as_float(sigma, x))
    output = network(c.c_in * (x + n), c.c_noise, cond, key=key)
    target = ((1 - c.c_skip) * x - c.c_skip * n) / c.c_out
    return (output - target) ** 2

def denoising_loss(denoiser, x, cond=None, *, noise, key):
    """The training loss of one example: `weighted_error` at a random noise level, averaged."""
    sigma_key, noise_key, network_key = jr.split(key, 3)
    sigma = as_float(noise(sigma_key), x)
    n = sigma * jr.normal(noise_key, x.shape, x.dtype)
    return jnp.mean(weighted_error(denoiser, x, sigma, n, cond, key=network_key))

def with_derivative(f, t):
    """`f(t)` and its derivative, for a scalar `t`."""
    return jax.jvp(f, (t,), (jnp.ones_like(t),))

def probability_flow(denoiser, schedule=Linear()):
    """The ODE whose solutions have the marginals of the noised data (Eq. 4)."""

    def f(t, x, args):
        sigma, s, sigma_dot, s_dot = _at(schedule, t, x)
        denoised = denoiser(x / s, sigma, args)
        return s_dot / s * x + sigma_dot / sigma * (x - s * denoised)
    return f

def _at(schedule, t, x):
    t = as_float(t, x)
    sigma, sigma_dot = with_derivative(schedule.sigma, t)
    s, s_dot = with_derivative(schedule.scale, t)
    return (sigma, s, sigma_dot, s_dot)

def _tied(denoiser, t):
    weights, rest = eqx.partition(denoiser, eqx.is_inexact_array)
    weights, t = jax.lax.optimization_barrier((weights, t))
    return (eqx.combine(weights, rest), t)

class Flow(eqx.Module):
    """The ODE as a solver sees it: a denoiser and its condition in one schedule."""
    denoiser: Any
    schedule: Any
    cond: Any

    def velocity(self, t, x):
        """dx/dt (Eq. 4). One denoiser call."""
        denoiser, t = _tied(self.denoiser, t)
        return probability_flow(denoiser, self.schedule)(t, x, self.cond)

class Heun(eqx.Module):
    """Second order, two denoiser calls a step (Algorithm 1; Algorithm 3 for any alpha)."""
    alpha: float = 1.0

    def init(self, x):
        return None

    def step(self, flow, x, t, t_next, state):
        h = t_next - t
        first = flow.velocity(t, x)
        second = flow.velocity(t_next - (1 - self.alpha) * h, x + self.alpha * h * first)
        half = 1 / (2 * self.alpha)
        return (x + h * ((1 - half) * first + half * second), None)

    def last(self, flow, x, t, state):
        return _euler_to_zero(flow, x, t)

def _euler_to_zero(flow, x, t):
    return x - t * flow.velocity(t, x)

class Churn(eqx.Module):
    """Before each step, add noise and step from the raised level (Algorithm 2, lines 4-6)."""
    s_churn: Any
    s_min: Any = 0.0
    s_max: Any = float('inf')
    s_noise: Any = 1.0
    draw: Any = jr.normal

    def gamma(self, sigma, n):
        r"""$\min(S_{churn}/N, \sqrt2 - 1)$ inside the window, else 0, for `n` steps."""
        sigma = as_float(sigma)
        amount = jnp.minimum(as_float(self.s_churn, sigma) / n, math.sqrt(2) - 1)
        inside = (as_float(self.s_min, sigma) <= sigma) & (sigma <= as_float(self.s_max, sigma))
        return jnp.where(inside, amount, jnp.zeros_like(amount))

def sample(denoiser, noise, sigmas, cond=None, *, schedule=Linear(), solver=Heun(), churn=None,
        key=None):
    """Turn unit Gaussian `noise` into one sample of the data distribution."""
    sigmas = jnp.asarray(sigmas, noise.dtype)
    return _integrate(denoiser, noise, sigmas, cond, schedule, solver, churn, key)[0]

@eqx.filter_jit
def _integrate(denoiser, noise, sigmas, cond, schedule, solver, churn, key, keep=False):
    n = len(sigmas)
    times = jax.vmap(schedule.time)(jnp.asarray(sigmas, noise.dtype))
    flow = Flow(denoiser, schedule, cond)

    def raise_noise(i, x, t, state):
        if churn is None or key is None:
            return (x, t, state)
        x_hat, t_hat = _add_noise(churn, schedule, jax.random.fold_in(key, i), n, x, t)
        fresh = solver.init(x)
        state = jax.tree.map(lambda new, old: jnp.where(t_hat > t, new, old), fresh, state)
        return (x_hat, t_hat, state)

    def body(carry, step):
        x, state = carry
        i, t, t_next = step
        x_hat, t_hat, state = raise_noise(i, x, t, state)
        return (solver.step(flow, x_hat, t_hat, t_next, state), x if keep else None)
    x = noise * schedule.sigma(times[0]) * schedule.scale(times[0])
    carry: Any = (x, solver.init(x))
    path: Any = jnp.zeros((0, *x.shape), x.dtype)
    if n > 1:
        steps = (jnp.arange(n - 1), times[:-1], times[1:])
        carry, path = jax.lax.scan(body, carry, steps)
    x, state = carry
    path = jnp.concatenate([path, x[None]]) if keep else None
    x_hat, t_hat, state = raise_noise(n - 1, x, times[-1], state)
    return (solver.last(flow, x_hat, t_hat, state), path)

def _add_noise(churn, schedule, key, n, x, t):
    sigma = schedule.sigma(t)
    gamma = churn.gamma(sigma, n)
    t_hat = jnp.where(gamma > 0, schedule.time(sigma * (1 + gamma)), t)
    sigma_hat = schedule.sigma(t_hat)
    variance = (sigma_hat - sigma) * (sigma_hat + sigma)
    added = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)
    scale = schedule.scale(t_hat)
    unit = as_float(churn.s_noise, x) * churn.draw(key, x.shape, x.dtype)
    return (scale / schedule.scale(t) * x + added * scale * unit, t_hat)

class Likelihood(NamedTuple):
    """What `log_likelihood` returns for one example."""
    log_prob: Any
    std_error: Any
    latent: Any
    num_steps: Any
    ok: Any

@eqx.filter_jit
def log_likelihood(denoiser, x, cond=None, *, sigma_min=0.002, sigma_max=80.0, prior_mean=None,
        prior_std=None, probes=None, key=None, solver=diffrax.Dopri8(),
                stepsize_controller=diffrax.PIDController(rtol=1e-05, atol=1e-05),
                adjoint=diffrax.RecursiveCheckpointAdjoint(), max_steps=4096, throw=True):
    r"""$\ln p(x;\sigma_{min})$ of one example under a denoiser, in nats per example."""
    low, high = (as_float(sigma_min, x), as_float(sigma_max, x))
    solution = diffrax.diffeqsolve(diffrax.ODETerm(_flow), solver, low, high, None, (x,
            jnp.zeros(probes or 1, x.dtype)), (denoiser, cond, _directions(x, probes, key),
            probes is None), stepsize_controller=stepsize_controller, adjoint=adjoint,
            max_steps=max_steps, throw=False)
    end, gained = jax.tree.map(lambda leaf: leaf[-1], solution.ys)
    if prior_mean is None and prior_std is None and (probes is None):
        columns = _linearise(denoiser, end, high, cond, _directions(x, None, None))
        terminal = _matched_log_prob(end, *columns, high)
    else:
        terminal = _gaussian_log_prob(end, prior_mean, prior_std, high)
    log_probs = terminal + gained
    result = (jnp.mean(log_probs), _std_error(log_probs, probes), end / high)
    ok = (solution.result == diffrax.RESULTS.successful) & jnp.isfinite(result[0])
    result = jax.tree.map(lambda leaf: jnp.where(ok, leaf, jnp.nan), result)
    if throw:
        result = eqx.error_if(result, ~ok, _FAILED)
    log_prob, std_error, latent = result
    return Likelihood(log_prob, std_error, latent, solution.stats['num_accepted_steps'], ok)

_FAILED = 'log_likelihood failed, most likely because the ODE solver ran out of steps before sigma_max: raise max_steps or loosen the tolerances of stepsize_controller. A denoiser or a prior that is NaN fails here too, and so do data that are far from Gaussian at sigma_max: raise it. Pass throw=False to get NaN with ok=False.'

def _flow(sigma, state, args):
    x, _ = state
    denoiser, cond, directions, exact = args
    denoised, columns = _linearise(denoiser, x, sigma, cond, directions)
    traces = jnp.sum(directions * columns, axis=range(1, columns.ndim))
    traces = jnp.sum(traces, keepdims=True) if exact else traces
    return ((x - denoised) / sigma, (x.size - traces) / sigma)

def _linearise(denoiser, x, sigma, cond, directions):
    denoised, jvp = jax.linearize(lambda x: denoiser(x, sigma, cond), x)
    return (denoised, jax.vmap(jvp)(directions))

def _directions(x, probes, key):
    if probes is None or key is None:
        return jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)
    return jr.rademacher(key, (probes, *x.shape), x.dtype)

def _matched_log_prob(x, denoised, columns, sigma):
    jacobian = columns.reshape(x.size, x.size).T
    precision = jnp.eye(x.size, dtype=x.dtype) - jacobian
    residual = (x - denoised).ravel()
    square = residual @ jnp.linalg.solve(precision, residual) / sigma ** 2
    sign, log_det = jnp.linalg.slogdet(precision)
    log_det = jnp.where(sign > 0, log_det, jnp.nan)
    return (log_det - square - x.size * jnp.log(2 * jnp.pi * sigma ** 2)) / 2

def _gaussian_log_prob(x, mean, std, sigma):
    mean, std = (as_float(0.0 if part is None else part, x) for part in (mean, std))
    std = eqx.error_if(std, jnp.any(std < 0), 'prior_std must not be negative')
    variance = jnp.broadcast_to(std ** 2 + sigma ** 2, x.shape)
    offset = x - jnp.broadcast_to(mean, x.shape)
    return -jnp.sum(offset ** 2 / variance + jnp.log(2 * jnp.pi * variance)) / 2

def _std_error(log_probs, probes):
    if probes is None:
        return jnp.zeros_like(log_probs[0])
    if probes == 1:
        return jnp.full_like(log_probs[0], jnp.inf)
    return jnp.std(log_probs, ddof=1) / math.sqrt(probes)
