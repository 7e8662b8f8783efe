"""Latency of the path itself: one user at a time, in process, stage by stage.

Stage: evaluate, bench. In: a recommender and states of single users. Out: percentiles in milliseconds a stage. Absent:
HTTP and the feature store, which the service's benchmark adds.
"""

import time
from collections.abc import Sequence

import numpy as np

from recsys.features.state import StateBatch
from recsys.recommender import Context, Recommender

PERCENTILES = (50, 95, 99)


def measure_in_process(
    recommender: Recommender, states: Sequence[StateBatch], context: Context, k: int, *, n: int, warmup: int
) -> dict[str, dict[str, float]]:
    """Percentiles of `n` requests after `warmup` more, over `states` (each of one user) in turn.

    Returns {stage: {"p50_ms", "p95_ms", "p99_ms"}} for every stage and "total", the whole call as its caller sees it.
    Raises ValueError without states or with n below 1.
    """
    if not states or n < 1:
        raise ValueError(f"latency needs at least one state and one request, got {len(states)} and n = {n}")
    spent: dict[str, list[float]] = {}
    for request in range(warmup + n):
        started = time.perf_counter()
        answer = recommender.recommend(states[request % len(states)], context, k)
        total = (time.perf_counter() - started) * 1e3
        if request >= warmup:
            for stage, milliseconds in {**answer.timings_ms, "total": total}.items():
                spent.setdefault(stage, []).append(milliseconds)
    return {
        stage: {f"p{p}_ms": float(np.percentile(values, p)) for p in PERCENTILES} for stage, values in spent.items()
    }
