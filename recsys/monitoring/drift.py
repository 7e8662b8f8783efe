"""How far two samples of one feature lie apart, and whether chance explains it. A missing value (NaN) is a value of its
own: how often a feature is missing may be what changed.

The rows of one user hang together, so users and not rows are the independent units. The null distribution of PSI is
that of a Pearson statistic from a sample of clusters, a weighted sum of chi-squares, by Satterthwaite's approximation
with the covariance between users (Rao and Scott 1984, "On chi-squared tests for multiway contingency tables with cell
proportions estimated from survey data").

Shapes: n rows of G users; b bins, the last of them for missing values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.stats import f as f_distribution
from scipy.stats import ks_2samp

from recsys.arrays import DoubleArray

SMALLEST: Final = 1e-4  # share that an empty bin counts as; without it one empty bin would make PSI infinite


@dataclass(frozen=True)
class Drift:
    """psi  population stability index: sum over quantile bins of (q - p) ln(q / p), p and q the shares of reference and
         sample; below 0.1 is usually called stable, above 0.2 a shift
    ks   Kolmogorov-Smirnov: largest difference between both distribution functions; None where a sample has no values
    p_value   that users of one population differ so much
    missing_before, missing   shares of reference and sample
    """

    psi: float
    ks: float | None
    p_value: float
    missing_before: float
    missing: float


@dataclass(frozen=True)
class Sample:
    """Both (n,): the values of one feature, and whose they are."""

    values: npt.ArrayLike
    users: npt.ArrayLike


def drift(reference: Sample, current: Sample, bins: int = 10) -> Drift:
    """Raises ValueError for a sample of fewer than two users.

    >>> users = [1, 2, 3, 4]
    >>> same = drift(Sample([1, 2, 3, 4], users), Sample([1, 2, 3, 4], users), bins=2)
    >>> same.psi, same.ks, same.p_value
    (0.0, 0.0, 1.0)
    >>> drift(Sample([1, 2, 3, 4], users), Sample([1, 2, 2, 2], users), bins=2).ks
    0.5
    """
    samples = [np.asarray(sample.values, dtype=np.float64) for sample in (reference, current)]
    present, other = (values[~np.isnan(values)] for values in samples)
    edges = (
        np.unique(np.quantile(present, np.arange(1, bins) / bins, method="inverted_cdf")) if len(present) else present
    )
    edges = edges[edges < present.max(initial=-np.inf)]

    def counts(values: DoubleArray, users: npt.ArrayLike) -> DoubleArray:
        """(G, b) rows of each user in each bin (low, high], and last those of missing values, which sort behind."""
        user = np.unique(users, return_inverse=True)[1]
        in_bin = np.where(np.isnan(values), len(edges) + 1, np.searchsorted(edges, values))
        n_users, width = int(user.max(initial=-1)) + 1, len(edges) + 2
        return np.bincount(user * width + in_bin, minlength=n_users * width).reshape(n_users, width).astype(np.float64)

    tables = [counts(values, sample.users) for values, sample in zip(samples, (reference, current), strict=True)]
    if min(map(len, tables)) < 2:
        raise ValueError("drift needs a reference and a sample of at least two users each")
    p, q = (table.sum(axis=0) / table.sum() for table in tables)
    low_p, low_q = np.maximum(p, SMALLEST), np.maximum(q, SMALLEST)
    ks = float(ks_2samp(present, other, method="asymp").statistic) if len(present) and len(other) else None
    psi = float(((low_q - low_p) * np.log(low_q / low_p)).sum())
    return Drift(psi, ks, _p_value(tables[0], tables[1]), float(p[-1]), float(q[-1]))


def holm(p_values: Mapping[str, float], alpha: float) -> set[str]:
    """The names of the hypotheses to reject so that any is rejected falsely with probability `alpha` at most (Holm
    1979, "A simple sequentially rejective multiple test procedure").

    >>> sorted(holm({"a": 0.001, "b": 0.02, "c": 0.04}, 0.05))
    ['a', 'b', 'c']
    >>> sorted(holm({"a": 0.001, "b": 0.03, "c": 0.04}, 0.05))
    ['a']
    """
    rejected = set[str]()
    for n, (name, p) in enumerate(sorted(p_values.items(), key=lambda pair: pair[1])):
        if p > alpha / (len(p_values) - n):
            break
        rejected.add(name)
    return rejected


def _p_value(reference: DoubleArray, current: DoubleArray) -> float:
    """(G, b) counts of both samples."""
    shares = [table.sum(axis=0) / table.sum() for table in (reference, current)]
    middle = np.maximum((shares[0] + shares[1]) / 2, SMALLEST)
    covariance = np.zeros((len(middle), len(middle)))
    for table, share in zip((reference, current), shares, strict=True):
        z = (table - table.sum(axis=1, keepdims=True) * share) / table.sum() / np.sqrt(middle)
        covariance += z.T @ z * len(table) / (len(table) - 1)
    statistic, expected = float(((shares[1] - shares[0]) ** 2 / middle).sum()), float(np.trace(covariance))
    if expected == 0:
        return 1.0 if statistic == 0 else 0.0
    freedom = expected**2 / float((covariance**2).sum())
    n_users = min(len(reference), len(current))
    return float(f_distribution.sf(statistic / expected, freedom, n_users - 1))
