r"""The width of posteriors, seen from pairs of simulations whose observations are close.

Their parameters are nearly two draws from one posterior. If it is Gaussian of standard deviation
w, a quarter of all $|\theta_i - \theta_j|$ are below $\sqrt 2\,\Phi^{-1}(5/8)\,w \approx
0.4506\,w$. What a straight line leaves of the parameters has that spread, too. Around a curved or
two-peaked posterior the line leaves more: half of the pairs are of one peak, and a quarter
of all differences lie below the median of those. In many dimensions of x no two simulations are
close; then the width comes out as the line's or larger, and nothing follows from it.
"""

import numpy as np
from jaxtyping import Float

QUERIES, OTHERS = 1_000, 10_000
QUARTILE = 0.4506  # the first, of the difference of two draws of N(0, 1) without its sign
NARROWEST = 0.1  # least ratio of the two widths


def narrowness(
    theta: Float[np.ndarray, "n d"], x: Float[np.ndarray, "n k"], spread: Float[np.ndarray, " d"]
) -> Float[np.ndarray, " d"]:
    """How much narrower posteriors are than what a linear fit leaves: 0.1 to 1, a parameter each.

    The bounds of `Chain` bend within its square times the spread of the linear fit.

    Arguments:
        theta, x: standardised parameters and observations; the first 1,000 are compared with
            their nearest among the first 10,000.
        spread: the standard deviation that a linear fit leaves of each parameter.
    """
    theta, x = theta[:OTHERS], x[:OTHERS].astype(np.float32)
    squares = np.sum(x**2, axis=1)
    distance = squares - 2 * x[:QUERIES] @ x.T  # up to what does not depend on the neighbour
    np.fill_diagonal(distance, np.inf)
    nearest = np.argmin(distance, axis=1)
    difference = np.abs(theta[:QUERIES] - theta[nearest])
    width = np.quantile(difference, 0.25, axis=0) / QUARTILE
    return np.clip(width / spread, NARROWEST, 1)
