"""How long one user's answer takes in process, stage by stage, without HTTP and the store; the gate reads it."""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from recsys.features.state import StateBatch
from recsys.recommender import Recommender, RequestContext

TOTAL = "total"


@dataclass(frozen=True)
class Percentiles:
    """Each is one of the durations: nothing is interpolated."""

    p50_ms: float
    p95_ms: float
    p99_ms: float

    @classmethod
    def of(cls, durations_ms: Sequence[float]) -> "Percentiles":
        """
        >>> Percentiles.of([4.0, 1.0, 3.0, 2.0])
        Percentiles(p50_ms=2.0, p95_ms=4.0, p99_ms=4.0)
        """
        p50, p95, p99 = np.percentile(np.asarray(durations_ms, np.float64), (50, 95, 99), method="inverted_cdf")
        return cls(float(p50), float(p95), float(p99))


def measure_in_process(
    recommender: Recommender,
    batches_of_one: Sequence[StateBatch],
    context: RequestContext,
    k: int,
    *,
    n: int,
    warmup: int,
) -> dict[str, Percentiles]:
    """Percentiles over `n` answers after `warmup` unmeasured ones, users taken in turn: a key a stage, and "total"."""
    durations: dict[str, list[float]] = defaultdict(list)
    for i in range(warmup + n):
        states = batches_of_one[i % len(batches_of_one)]
        started = time.perf_counter()
        answer = recommender.recommend(states, context, k)
        total_ms = (time.perf_counter() - started) * 1e3
        if i >= warmup:
            for stage, ms in answer.timings_ms.items():
                durations[stage].append(ms)
            durations[TOTAL].append(total_ms)
    return {stage: Percentiles.of(values) for stage, values in durations.items()}


class Durations(NamedTuple):
    """Milliseconds of each call, by name, in the order of the rounds; `cpu_ms` is that of the calling thread."""

    wall_ms: dict[str, list[float]]
    cpu_ms: dict[str, list[float]]


def interleaved(calls: Mapping[str, Callable[[int], object]], *, n: int, warmup: int = 0) -> Durations:
    """`n` calls of each, after `warmup` unmeasured ones.

    In round i each is called with i, and each round begins one further: all meet the same inputs and the same other
    work of the machine, and none always runs behind the same other.
    """
    names = deque(calls)
    took = Durations({name: [] for name in names}, {name: [] for name in names})
    for i in range(warmup + n):
        for name in names:
            cpu, started = time.thread_time(), time.perf_counter()
            calls[name](i)
            wall_s, cpu_s = time.perf_counter() - started, time.thread_time() - cpu
            if i >= warmup:
                took.wall_ms[name].append(wall_s * 1e3)
                took.cpu_ms[name].append(cpu_s * 1e3)
        names.rotate(-1)
    return took
