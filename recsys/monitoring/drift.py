"""How far two samples of one feature lie apart. A missing value (NaN) is a value of its own: how often a feature is
missing may be what changed."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.stats import ks_2samp

from recsys.arrays import DoubleArray

SMALLEST: Final = 1e-4  # share that an empty bin counts as; without it one empty bin would make PSI infinite


@dataclass(frozen=True)
class Drift:
    """psi  population stability index: sum over quantile bins of (q - p) ln(q / p), p and q the shares of reference and
         sample; below 0.1 is usually called stable, above 0.2 a shift
    ks   Kolmogorov-Smirnov: largest difference between both distribution functions; None where a sample has no values
    """

    psi: float
    ks: float | None


def drift(reference: npt.ArrayLike, current: npt.ArrayLike, bins: int = 10) -> Drift:
    """Raises ValueError for an empty sample.

    >>> drift([1, 2, 3, 4], [1, 2, 3, 4], bins=2)
    Drift(psi=0.0, ks=0.0)
    >>> drift([1, 2, 3, 4], [1, 2, 2, 2], bins=2).ks
    0.5
    """
    samples = [np.asarray(values, dtype=np.float64) for values in (reference, current)]
    if not all(map(len, samples)):
        raise ValueError("drift needs a reference and a sample with at least one value each")
    present, other = (values[~np.isnan(values)] for values in samples)
    edges = (
        np.unique(np.quantile(present, np.arange(1, bins) / bins, method="inverted_cdf")) if len(present) else present
    )
    edges = edges[edges < present.max(initial=-np.inf)]

    def shares(values: DoubleArray) -> DoubleArray:
        """In each bin (low, high], and last that of the missing values, which sort behind all others."""
        in_bin = np.where(np.isnan(values), len(edges) + 1, np.searchsorted(edges, values))
        return np.maximum(np.bincount(in_bin, minlength=len(edges) + 2) / len(values), SMALLEST)

    p, q = map(shares, samples)
    ks = float(ks_2samp(present, other, method="asymp").statistic) if len(present) and len(other) else None
    return Drift(float(((q - p) * np.log(q / p)).sum()), ks)
