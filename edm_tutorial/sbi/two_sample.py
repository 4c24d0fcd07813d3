r"""Can a classifier tell two samples apart? Its accuracy on held-out rows says how well.

0.5 means that it cannot, 1 that it always can. The settings are those of the public
benchmark `sbibm`, so that numbers compare: both samples are scaled by the mean and the standard
deviation of the reference; a network with two hidden layers of 10 d units; five folds.

Needs `pip install "edm-tutorial[sbi]"`.
"""

import numpy as np
from jaxtyping import ArrayLike, Float
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier


def c2st(
    reference: Float[ArrayLike, "n d"],
    samples: Float[ArrayLike, "m d"],
    *,
    seed: int = 1,
    folds: int = 5,
) -> float:
    """The mean accuracy over folds of a classifier between `reference` and `samples`.

    A sample of the reference's own law scores 0.5, give or take 0.5 / sqrt(n + m). Use as many
    rows of each: the larger class alone is already an accuracy. Its power is that of the best
    classifier at most: a Gaussian in two dimensions that is 20 % too narrow scores 0.58, one
    that is 5 % too narrow 0.52, which takes 10,000 rows of each to tell from 0.5, and fewer
    rows look better than they are. On narrow or curved posteriors a classifier sometimes ends
    a fold at chance, so one score may be low: average over observations.

    Arguments:
        reference: draws of the truth, one a row.
        samples: draws to judge.
        seed: of the folds and of the classifier's weights.

    Raises:
        ValueError: not two tables with the same columns, fewer rows than `folds`, fewer than
            two folds, an entry that is not finite, or a column of `reference` that is constant.
    """
    first, second = np.asarray(reference, float), np.asarray(samples, float)
    _check(first, second, folds)
    mean, std = first.mean(axis=0), first.std(axis=0, ddof=1)
    if not np.all(std > 0):
        columns = np.flatnonzero(std == 0).tolist()
        raise ValueError(f"reference is constant in columns {columns}: leave them out")
    # In float32, as there.
    rows = ((np.concatenate([first, second]) - mean) / std).astype(np.float32)
    labels = np.repeat([0, 1], [len(first), len(second)])
    width = 10 * rows.shape[1]
    classifier = MLPClassifier((width, width), max_iter=10_000, random_state=seed)
    split = KFold(folds, shuffle=True, random_state=seed)
    return float(np.mean(cross_val_score(classifier, rows, labels, cv=split)))


def _check(first: np.ndarray, second: np.ndarray, folds: int) -> None:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(
            "reference and samples must be tables with the same columns, got shapes "
            f"{first.shape} and {second.shape}"
        )
    if folds < 2 or min(len(first), len(second)) < folds:
        raise ValueError(
            f"need at least 2 folds and a row of each sample for every fold, got {folds} folds, "
            f"{len(first)} and {len(second)} rows"
        )
    for name, rows in (("reference", first), ("samples", second)):
        if not np.all(np.isfinite(rows)):
            raise ValueError(f"{name} must be finite: remove the rows that are not")
