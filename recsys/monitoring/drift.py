"""How far two samples of one feature lie apart: population stability index and Kolmogorov-Smirnov distance.

A missing value (NaN) is a value of its own, because how often a feature is missing may be what changed.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.stats import ks_2samp

from recsys.arrays import DoubleArray

BINS: Final = 10
SMALLEST: Final = 1e-4  # share that an empty bin counts as; without it one empty bin would make PSI infinite


@dataclass(frozen=True)
class Drift:
    """psi      sum over quantile bins of (q - p) ln(q / p), p and q the shares of reference and sample; below 0.1 is
             usually called stable, above 0.2 a shift
    ks       largest difference between the two distribution functions; None where a sample has no values
    missing  shares of NaN in reference and sample
    """

    psi: float
    ks: float | None
    missing: tuple[float, float]


def drift(reference: npt.ArrayLike, current: npt.ArrayLike, bins: int = BINS) -> Drift:
    """Raises ValueError for an empty sample.

    >>> drift([1, 2, 3, 4], [1, 2, 3, 4], bins=2)
    Drift(psi=0.0, ks=0.0, missing=(0.0, 0.0))
    >>> drift([1, 2, 3, 4], [1, 2, 2, 2], bins=2).ks
    0.5
    """
    p, q = np.asarray(reference, dtype=np.float64), np.asarray(current, dtype=np.float64)
    if not len(p) or not len(q):
        raise ValueError("drift needs a reference and a sample with at least one value each")
    there_p, there_q = np.sort(p[~np.isnan(p)]), np.sort(q[~np.isnan(q)])
    edges = np.unique(np.quantile(there_p, np.arange(1, bins) / bins, method="inverted_cdf")) if len(there_p) else p[:0]
    edges = edges[edges < there_p[-1:]] if len(edges) else edges
    low = np.maximum(_shares(there_p, edges, len(p)), SMALLEST)
    high = np.maximum(_shares(there_q, edges, len(q)), SMALLEST)
    missing = (1 - len(there_p) / len(p), 1 - len(there_q) / len(q))
    both = len(there_p) and len(there_q)
    ks = float(ks_2samp(there_p, there_q, method="asymp").statistic) if both else None
    return Drift(float(((high - low) * np.log(high / low)).sum()), ks, missing)


def _shares(values: DoubleArray, edges: DoubleArray, size: int) -> DoubleArray:
    """Share of all `size` values in each bin (low, high], then that of the missing ones."""
    counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)
    return np.append(counts, size - len(values)) / size
