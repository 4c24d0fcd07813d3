r"""The simulator's graph: the tokens that each token may look at.

Given its parents, its children and its children's other parents, a number is independent of all
others. These are its neighbours once every two parents of a common child are joined ("moralised")
and directions are forgotten.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool


def neighbours(depends: Any, parameters: int, tokens: int) -> Bool[np.ndarray, "tokens tokens"]:
    """The tokens that each token (a row) may look at: itself and its neighbours; all if not told.

    Arguments:
        depends: `depends[i, j]`: token i is simulated from token j; or None.
        parameters: the number of parameters, which come first.
        tokens: of the parameters and of x.

    Raises:
        ValueError: another shape, a parameter simulated from x, or a circle.
        TypeError: not made of True and False.
    """
    if depends is None:
        return np.ones((tokens, tokens), bool)
    depends = np.asarray(depends)
    if depends.dtype != bool:
        raise TypeError(f"depends must be made of True and False, got {depends.dtype}")
    if depends.shape != (tokens, tokens):
        raise ValueError(
            f"depends needs a row and a column for each of {tokens} tokens, {parameters} "
            f"parameters and then x, got shape {depends.shape}: where every x[i] is simulated from "
            f"all parameters, it is zeros(({tokens}, {tokens}), bool) with "
            f"[{parameters}:, :{parameters}] set to True"
        )
    if depends[:parameters, parameters:].any():
        i, j = np.argwhere(depends[:parameters, parameters:])[0]
        raise ValueError(
            f"depends says that theta[{i}] is simulated from x[{j}]. depends[i, j] is True where i "
            "is simulated from j, so the rows of x and the columns of theta are filled: pass "
            "depends.T if it is the other way round"
        )
    edges = depends & ~np.eye(tokens, dtype=bool)
    if connected(edges, directed=True).diagonal().any():
        raise ValueError("depends goes in a circle: a token is simulated from itself by others")
    parents = edges.astype(int)
    return (parents + parents.T + parents.T @ parents > 0) | np.eye(tokens, dtype=bool)


def connected(
    edges: Bool[np.ndarray, "tokens tokens"], *, directed: bool = False
) -> Bool[np.ndarray, "tokens tokens"]:
    """The pairs of tokens that a path of one edge or more joins, along its direction if `directed`.

    A token is joined to itself only where such a path leads back to it.
    """
    reached = (edges if directed else edges | edges.T).astype(int)
    for _ in range(len(edges).bit_length()):
        reached = ((reached + reached @ reached) > 0).astype(int)
    return reached > 0
