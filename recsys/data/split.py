"""The nested time split: which events each part of the system may learn from.

... <= T0      stage retrievers_t0: all retrievers, for candidates in the next window   (0.7)
(T0, T1]       the ranker's first window; chooses the two-tower model's epochs
... <= T1      stage retrievers_t1                                                      (0.8)
(T1, T2]       the ranker's second window
... <= T2      stage retrievers_t2, of the evaluated system                             (0.9)
(T2, end]      test; afterwards a window of the production ranker, with (T1, T2]
... <= end     stage retrievers_all, of the production bundle

The cutoffs are quantiles of the events' times: they move on when new ratings join.
"""

from dataclasses import dataclass

import numpy as np

from recsys.arrays import IntArray
from recsys.errors import DataError

TENTHS = (7, 8, 9)


@dataclass(frozen=True)
class Split:
    """Cutoffs in seconds UTC; an event at a cutoff belongs to the earlier side."""

    t0: int
    t1: int
    t2: int
    end: int


def split_by_time(timestamps: IntArray) -> Split:
    """T is the value at position floor(q * n) of the sorted timestamps. Raises DataError where a window would be empty.

    >>> split_by_time(np.arange(100, 120))
    Split(t0=114, t1=116, t2=118, end=119)
    """
    n = len(timestamps)
    if n == 0:
        raise DataError("There are no events to split.")
    ordered = np.sort(timestamps)
    t0, t1, t2 = (int(ordered[q * n // 10]) for q in TENTHS)
    end = int(ordered[-1])
    if not t0 < t1 < t2 < end:
        raise DataError(
            f"The {n} events cannot be split by time: the cutoffs at 70 %, 80 % and 90 % and the last event fall on "
            f"{t0}, {t1}, {t2} and {end} (seconds UTC), and each must lie after the one before. The data set is too "
            "small, or its timestamps are not real."
        )
    return Split(t0, t1, t2, end)
