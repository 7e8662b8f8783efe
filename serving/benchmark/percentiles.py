"""Percentiles of durations, from an HdrHistogram: each at most 0.1 % off, nothing sampled, nothing interpolated."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from hdrh.histogram import HdrHistogram


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


@dataclass(frozen=True)
class Percentiles:
    """Milliseconds, of `n` durations."""

    n: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float

    @classmethod
    def of(cls, durations_ms: Iterable[float]) -> Self | None:
        """None where there is no duration. Below a microsecond counts as one.

        >>> Percentiles.of([1.0] * 98 + [30.0] * 2).p99_ms
        30.015
        """
        histogram = HdrHistogram(1, longest_us := 120_000_000, 3)
        for ms in durations_ms:
            histogram.record_value(min(max(round(ms * 1e3), 1), longest_us))
        if not histogram.get_total_count():
            return None
        p50, p90, p99, p999 = (histogram.get_value_at_percentile(p) / 1e3 for p in (50, 90, 99, 99.9))
        return cls(int(histogram.get_total_count()), p50, p90, p99, p999, histogram.get_max_value() / 1e3)
