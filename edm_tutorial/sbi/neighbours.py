r"""How wide the posterior is, seen from pairs of simulations whose observations are close.

The parameters of two such simulations are nearly two draws from one posterior. If it is Gaussian
of standard deviation w, a quarter of all $|\theta_i - \theta_j|$ are below
$\sqrt 2\,\Phi^{-1}(5/8)\,w \approx 0.4506\,w$. What a straight line leaves of the parameters has
the same spread if the posterior is Gaussian of one width around that line. Around a curved or
two-peaked one the line leaves more: half of the pairs are of one peak, and a quarter below the
median of those.
"""

import numpy as np
from jaxtyping import Float

QUERIES, OTHERS = 1_000, 10_000
QUARTILE = 0.4506  # the first, of the difference of two draws of N(0, 1) without its sign


def width_by_neighbours(
    theta: Float[np.ndarray, "n d"], x: Float[np.ndarray, "n k"]
) -> Float[np.ndarray, " d"]:
    """w of each parameter, in its units; `x` should be standardised.

    From the first 1,000 simulations and their nearest among the first 10,000.
    """
    theta, x = theta[:OTHERS], x[:OTHERS].astype(np.float32)
    squares = np.sum(x**2, axis=1)
    distance = squares - 2 * x[:QUERIES] @ x.T  # up to what does not depend on the neighbour
    np.fill_diagonal(distance, np.inf)
    nearest = np.argmin(distance, axis=1)
    difference = np.abs(theta[:QUERIES] - theta[nearest])
    return np.quantile(difference, 0.25, axis=0) / QUARTILE
