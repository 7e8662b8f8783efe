"""How long one user's answer takes, in process, stage by stage.

Stage: evaluate (the gate's latency check) and the service's benchmark. In: a `Recommender`, states of one user each, a
`Context`. Out: percentiles by stage. Absent: HTTP, the store, the machine's name; whoever reports adds those.
"""

import time
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from recsys.errors import ConfigError
from recsys.features.state import StateBatch
from recsys.recommender import Context, Recommender

PERCENTILES = (50, 95, 99)
TOTAL = "total"


def percentiles_ms(durations_ms: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99, each one of the durations (the smallest that so many do not exceed: nothing interpolated).

    >>> percentiles_ms([4.0, 1.0, 3.0, 2.0])
    {'p50_ms': 2.0, 'p95_ms': 4.0, 'p99_ms': 4.0}
    """
    values = np.percentile(np.asarray(durations_ms, dtype=np.float64), PERCENTILES, method="inverted_cdf")
    return {f"p{p}_ms": float(value) for p, value in zip(PERCENTILES, values, strict=True)}


def measure_in_process(
    recommender: Recommender, batches_of_one: Sequence[StateBatch], context: Context, k: int, *, n: int, warmup: int
) -> dict[str, dict[str, float]]:
    """Percentiles over `n` answers after `warmup` unmeasured ones, users taken in turn: a key a stage, and "total".

    Raises ConfigError where there is nothing to measure. A context with a budget measures degraded answers too; give
    one without for the full path.
    """
    if not batches_of_one or n < 1:
        raise ConfigError("latency: need at least one user state and n >= 1")
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
    return {stage: percentiles_ms(values) for stage, values in durations.items()}
