"""How far two samples of one feature lie apart: population stability index and Kolmogorov-Smirnov distance.

Stage: monitoring. In: a reference sample and a current one. Out: numbers. Absent: a verdict; users differ from those of
the past, and a distribution that moved is no error by itself.

A missing value (NaN) is a value of its own: how often a feature is missing may be what changed.

Shapes: n reference values, m current values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from recsys.arrays import DoubleArray, FloatArray

BINS: Final = 10
SMALLEST: Final = 1e-4  # share that an empty bin counts as; without it one empty bin would make PSI infinite


@dataclass(frozen=True)
class Drift:
    """psi      sum over bins of (q - p) ln(q / p), p and q the shares of reference and sample; below 0.1 is usually
             called stable, above 0.2 a shift
    ks       largest difference between the two distribution functions of the values that are there; NaN where one
             sample has none
    missing  shares of NaN in reference and sample
    edges    inner bounds of the bins, quantiles of the reference; expected, actual: shares of the bins, the last of NaN
    """

    psi: float
    ks: float
    missing: tuple[float, float]
    edges: tuple[float, ...]
    expected: tuple[float, ...]
    actual: tuple[float, ...]


def drift(reference: npt.ArrayLike, current: npt.ArrayLike, bins: int = BINS) -> Drift:
    """Raises ValueError for an empty sample.

    >>> drift([1, 2, 3, 4], [1, 2, 3, 4], bins=2).psi
    0.0
    >>> found = drift([1, 2, 3, 4], [1, 2, 2, 2], bins=2)
    >>> found.expected, found.actual, found.ks
    ((0.5, 0.5, 0.0), (1.0, 0.0, 0.0), 0.5)
    """
    p, q = np.asarray(reference, dtype=np.float64), np.asarray(current, dtype=np.float64)
    if not len(p) or not len(q):
        raise ValueError("drift needs a reference and a sample with at least one value each")
    there_p, there_q = np.sort(p[~np.isnan(p)]), np.sort(q[~np.isnan(q)])
    edges = _edges(there_p, bins)
    expected, actual = _shares(there_p, edges, len(p)), _shares(there_q, edges, len(q))
    low, high = np.maximum(expected, SMALLEST), np.maximum(actual, SMALLEST)
    psi = float(((high - low) * np.log(high / low)).sum())
    missing = (1 - len(there_p) / len(p), 1 - len(there_q) / len(q))
    return Drift(psi, _ks(there_p, there_q), missing, tuple(edges), tuple(expected.tolist()), tuple(actual.tolist()))


def drift_by_feature(reference: Mapping[str, FloatArray], current: Mapping[str, FloatArray]) -> dict[str, Drift]:
    """Of the features that both have, the largest PSI first."""
    found = {name: drift(values, current[name]) for name, values in reference.items() if name in current}
    return dict(sorted(found.items(), key=lambda pair: (-pair[1].psi, pair[0])))


def _edges(values: DoubleArray, bins: int) -> list[float]:
    """Distinct inner quantiles; values that are very frequent make fewer and wider bins."""
    if not len(values):
        return []
    inner = np.quantile(values, np.arange(1, bins) / bins, method="inverted_cdf")
    return [float(edge) for edge in np.unique(inner) if edge < values[-1]]


def _shares(values: DoubleArray, edges: list[float], size: int) -> DoubleArray:
    """Share of all `size` values in each bin (low, high], then that of the missing ones."""
    bins = np.searchsorted(edges, values, side="left")
    counts = np.append(np.bincount(bins, minlength=len(edges) + 1), size - len(values))
    return np.asarray(counts / size)


def _ks(p: DoubleArray, q: DoubleArray) -> float:
    if not len(p) or not len(q):
        return float("nan")
    both = np.concatenate([p, q])
    below_p = np.searchsorted(p, both, side="right") / len(p)
    below_q = np.searchsorted(q, both, side="right") / len(q)
    return float(np.abs(below_p - below_q).max())
