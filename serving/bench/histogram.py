"""Durations in an HdrHistogram: percentiles up to p99.9 at a known precision, in constant memory.

Stage: serving (benchmark). In: seconds. Out: percentiles in milliseconds. Absent: how they were measured.

HdrHistogram keeps every duration to three significant digits, so that a percentile is at most 0.1 % off; nothing is
sampled and nothing interpolated. Source: G. Tene, hdrhistogram.org.
"""

from collections.abc import Iterable

from hdrh.histogram import HdrHistogram

PERCENTILES = (50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9)
LONGEST_US = 120_000_000
Counted = tuple[int, int]  # microseconds, and how often


def name_of(percentile: float) -> str:
    """
    >>> name_of(50.0), name_of(99.9)
    ('p50_ms', 'p99.9_ms')
    """
    return f"p{percentile:g}_ms"


class Durations:
    """Starts empty."""

    def __init__(self) -> None:
        self._histogram = HdrHistogram(1, LONGEST_US, 3)

    def __len__(self) -> int:
        return int(self._histogram.get_total_count())

    def add(self, seconds: float, count: int = 1) -> None:
        """Below a microsecond counts as one, above LONGEST_US as that."""
        self._histogram.record_value(min(max(round(seconds * 1e6), 1), LONGEST_US), count)

    def summary(self) -> dict[str, float]:
        """n, mean_ms, max_ms and a key a percentile; only n where there is nothing."""
        if not len(self):
            return {"n": 0}
        values = {name_of(p): self._histogram.get_value_at_percentile(p) / 1e3 for p in PERCENTILES}
        top = self._histogram.get_max_value() / 1e3
        return {"n": len(self), "mean_ms": self._histogram.get_mean_value() / 1e3, **values, "max_ms": top}

    def counted(self) -> list[Counted]:
        return [(i.value_iterated_to, i.count_added_in_this_iter_step) for i in self._histogram.get_recorded_iterator()]


def pooled(parts: Iterable[Iterable[Counted]]) -> Durations:
    """All of them together."""
    durations = Durations()
    for part in parts:
        for us, count in part:
            durations.add(us / 1e6, count)
    return durations
