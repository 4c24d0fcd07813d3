r"""A denoiser that is told what was measured: linear inverse problems with any prior.

Data $x_0$ were measured as $y = A x_0 + s n$ with unit noise $n$. Bayes' rule for what is left
of $x_0$ at noise level $\sigma$ adds a score to the prior's, and so a term to its denoiser:

$$\begin{aligned}
  D_y(x) &= D(x) + \sigma^2\,\nabla_x \ln p(y \mid x), \\
  p(y \mid x) &\approx N(A D,\; s^2 I + A C A^T), \\
  C &= \sigma^2\,\partial D/\partial x.
\end{aligned}$$

$C$ is the covariance of $x_0$ given $x$ (Tweedie's second formula), so mean and covariance are
right, for every prior; that the law is Gaussian is the one approximation (Boys et al. 2023,
TMPD; Rozet et al. 2024, MMPS). For Gaussian data it is none, and $D_y$ is the posterior's own
denoiser. With $J = \partial D/\partial x$ and $C = \sigma^2 J^T$ the term becomes

$$\begin{gathered}
  D_y = D + J^T A^T v, \\
  \big((s/\sigma)^2 I + A J^T A^T\big)\, v = y - A D.
\end{gathered}$$

Nothing of size d x d is formed: each iteration of the solver is one product with $J^T$.
"""

from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._checks import check_callable, check_finite, check_floating, check_scalar, concrete, whole
from ._types import Condition, DenoiserFn, PRNGKey, Scalar, as_float


@final
class Linearised(eqx.Module):
    """A measurement that is not linear, for `Measured`: replaced by its tangent at D(x; sigma).

    Gauss-Newton: as sigma falls, D moves to the answer, and so does the tangent. How far
    off the draws are depends on how much `function` bends over the width of the posterior.

    Arguments:
        function: from one example to what is measured, differentiable.

    Raises:
        TypeError: `function` is not callable.
    """

    function: Callable[[Array], Array]

    def __check_init__(self):
        check_callable("function", self.function)

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*measured"]:
        """The measurement of `x` without noise."""
        return self.function(x)


@final
class Measured(eqx.Module):
    r"""The denoiser of $p(x \mid y)$ for $y = A x + s n$, from the denoiser of $p(x)$.

    A denoiser like any other: samplers, churn, `log_likelihood` and `Guided` take it. Exact
    for Gaussian data; for others the draws are near the posterior, not from it, and
    importance weights by `log_likelihood` repair what is left in few dimensions.

    A call costs one call of `denoiser` and `iterations` + 1 products with the transpose of its
    Jacobian, of about two calls each. Exact arithmetic needs at most as many iterations as
    numbers were measured; the default is the fewest whose error was below a tenth of a posterior's
    width on digits and on a mixture in 16 dimensions. In single precision, ill-conditioned systems
    (little noise, many correlated numbers) need more.

    With `noise_std` 0 the draws have A x = y, where A has full row rank. Where it has not,
    numbers of y that contradict each other are fitted by least squares.

    Arguments:
        denoiser: of the data before anything was measured; gets the condition and the key.
        operator: A, from one example to an array shaped like y: a linear function (see
            `operators`), with or without a constant, or `Linearised(f)`.
        y: what was measured.
        noise_std: s, one number or one for each entry of y, in the units of y.
        iterations: of the solver, at each call.

    Raises:
        TypeError: `denoiser` or `operator` is not callable, or `iterations` no whole number.
        ValueError: y is not floating or not finite, `noise_std` is negative or has another
            shape, or there are no iterations.
    """

    denoiser: DenoiserFn
    operator: Callable[[Array], Array]
    y: Float[Array, "*measured"]
    noise_std: Float[Array, "..."] = eqx.field(converter=as_float)
    iterations: int = eqx.field(static=True, default=5)

    def __check_init__(self):
        check_callable("denoiser", self.denoiser)
        check_callable("operator", self.operator)
        check_finite("y", self.y)
        _check_noise(self.noise_std, self.y)
        whole("iterations", self.iterations)

    def __call__(
        self,
        x: Float[Array, "*shape"],
        sigma: Scalar,
        cond: Condition = None,
        *,
        key: PRNGKey | None = None,
    ) -> Float[Array, "*shape"]:
        """The mean of the data given y and `x` at noise level `sigma`, in data units.

        Raises:
            ValueError: `x` is not floating, `sigma` has axes, or what the operator makes of x
                is not shaped like y.
            TypeError: the operator is not linear, and not `Linearised`.
        """
        check_floating("x", x)
        check_scalar("sigma", sigma)
        _check_operator(self.operator, x, self.y)
        y, ratio = as_float(self.y, x), as_float(self.noise_std, x) / as_float(sigma, x)

        def predict(x: Array) -> tuple[Array, Array]:
            given = {} if key is None else {"key": key}
            denoised = self.denoiser(x, sigma, cond, **given)
            return self.operator(denoised), denoised

        predicted, pull, denoised = jax.vjp(predict, x, has_aux=True)  # pull: J^T A^T
        push = jax.linearize(self.operator, denoised)[1]  # A
        spread = lambda v: ratio**2 * v + push(*pull(v))
        solve = lambda spread, gap: _solve(spread, gap, ratio**2, self.iterations)
        v = jax.lax.custom_linear_solve(spread, y - predicted, solve, symmetric=True)
        return denoised + pull(v)[0]


def _solve(matrix: Callable[[Array], Array], b: Array, least: Array, iterations: int) -> Array:
    """v with matrix(v) near b: conjugate residuals, the minimal-residual conjugate gradients.

    The residual r never grows, also where the matrix is not quite symmetric, and where no v
    fits it ends at least squares. A covariance cannot bring r * matrix(r) below its part from
    the noise, `least` * r * r. The Jacobian of a trained network can: there the iterations end.
    """
    dot = lambda a, b: jnp.sum(a * b)
    norm = lambda a: jnp.sqrt(dot(a, a))
    small = 10 * float(jnp.finfo(b.dtype).eps)

    def step(carry: Any, _: None) -> tuple[Any, None]:
        v, r, p, image_p, size, more = carry
        image_r = matrix(r)
        beta = _ratio(dot(image_r, image_p), dot(image_p, image_p))
        p, image_p = r - beta * p, image_r - beta * image_p
        size = jnp.maximum(size, _ratio(norm(image_p), norm(p)))
        more &= dot(r, image_r) > dot(least * r, r) - small * norm(r) * norm(image_r)
        more &= norm(image_p) > small * size * norm(p)  # else it is round-off that is left
        alpha = _ratio(dot(r, image_p), dot(image_p, image_p))
        new = v + alpha * p, r - alpha * image_p, p, image_p, size, more
        return jax.tree.map(lambda new, old: jnp.where(more, new, old), new, carry), None

    zero = jnp.zeros_like(b)
    carry = zero, b, zero, zero, jnp.zeros((), b.dtype), jnp.array(True)
    return jax.lax.scan(step, carry, length=iterations)[0][0]


def _ratio(a: Array, b: Array) -> Array:
    """a / b, and 0 where b is 0: there is nothing left to do."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)


def _check_noise(noise_std: Any, y: Array) -> None:
    """Refuse a noise that is negative, not finite, or not one number (or one for each of y)."""
    if np.shape(noise_std) not in ((), y.shape):
        raise ValueError(
            f"noise_std must be one number or have the shape of y, {y.shape}, "
            f"got shape {np.shape(noise_std)}"
        )
    if concrete(noise_std):
        numbers = np.asarray(noise_std, float)
        if not (np.all(np.isfinite(numbers)) and np.all(numbers >= 0)):
            raise ValueError(f"noise_std must be finite and not negative, got {noise_std}")


def _check_operator(operator: Callable[[Array], Array], x: Array, y: Array) -> None:
    """Refuse an operator that is not linear: one that JAX cannot transpose."""
    made = jax.eval_shape(operator, x)
    if getattr(made, "shape", None) != y.shape:
        raise ValueError(
            f"operator(x) must be one array with the shape of y, {y.shape}, "
            f"got {made} from x of shape {x.shape}"
        )
    if isinstance(operator, Linearised):
        return
    try:
        jax.linear_transpose(operator, x)(jnp.zeros(made.shape, made.dtype))
    except Exception as error:
        raise TypeError(
            f"operator must be linear in x: {error}. "
            "Pass Linearised(operator) to replace it by its tangent"
        ) from None
