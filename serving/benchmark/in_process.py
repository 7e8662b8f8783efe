"""The answer without HTTP: percentiles by stage, and the bare library calls of the same run beside it.

A full answer is everything between a user's id and the bytes but HTTP: the state is read, turned into arrays,
recommended for, and the answer is serialised. overhead = its median / the sum of the medians of the bare calls.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import orjson

from recsys.evaluation.latency import TOTAL, Durations, interleaved
from recsys.features.item_stats import ItemStats
from recsys.features.state import StateBatch, UserState, state_batch
from recsys.recommender import Recommendations, Recommender, RequestContext
from serving.benchmark.bare import BareLibraries
from serving.benchmark.load import Percentiles

USERS, K = 50, 10  # users whose bare calls are prepared; items an answer


@dataclass(frozen=True)
class InProcess:
    """stages: "state" (its read, and arrays), the recommender's own, and "total". bare_ms: medians of the bare calls.
    overhead: in time on the clock; in processor time, which other work on the machine hardly changes; on the clock
    with the read of the store left out on both sides."""

    ranked: int
    stages: dict[str, Percentiles]
    bare_ms: dict[str, float]
    bare_sum_ms: float
    overhead: float
    overhead_cpu: float
    overhead_without_store: float


@dataclass(frozen=True)
class Model:
    """What answers in this process, as the service loads it. `read` reads a user's state from the online store."""

    folder: Path
    recommender: Recommender
    stats: ItemStats
    read: Callable[[int], UserState | None]
    now: int

    def states(self, *user_ids: int) -> StateBatch:
        states = [self.read(user_id) or UserState(user_id) for user_id in user_ids]
        return state_batch(self.recommender.catalogue, states, self.now)

    def recommend(self, states: StateBatch) -> Recommendations:
        return self.recommender.recommend(states, RequestContext(self.stats), K)


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def body_of(made: Recommendations) -> dict[str, object]:
    """What is sent, in essence."""
    columns = (made.item_ids, made.scores, made.watch_probability, made.like_probability)
    return {"items": [values[0].tolist() for values in columns], "timings_ms": made.timings_ms}


def measure_stages(
    model: Model, user_ids: list[int], beside: Mapping[str, Callable[[int], object]], *, n: int, warm_up: int
) -> tuple[dict[str, Percentiles], Durations]:
    """Percentiles by stage of `n` answers, with the calls `beside` in turn, round after round with the same number."""
    stages: dict[str, list[float]] = defaultdict(list)

    def answer(i: int) -> bytes:
        begun = time.perf_counter()
        states = model.states(user_ids[i % len(user_ids)])
        read_ms = (time.perf_counter() - begun) * 1e3
        made = model.recommend(states)
        for stage, ms in {"state": read_ms, **made.timings_ms}.items():
            stages[stage].append(ms)
        return orjson.dumps(body_of(made))

    took = interleaved({TOTAL: answer, **beside}, n=n, warmup=warm_up)
    measured = {**{stage: values[warm_up:] for stage, values in stages.items()}, TOTAL: took.wall_ms[TOTAL]}
    return {stage: of for stage, values in measured.items() if (of := Percentiles.of(values))}, took


def measure(model: Model, user_ids: list[int], *, n: int, warm_up: int) -> InProcess:
    """Full answers and bare calls. The model has a ranker."""
    libraries, prepared, user_ids = BareLibraries(model.folder, model.recommender), [], user_ids[:USERS]
    for user_id in user_ids:
        states = model.states(user_id)
        made = model.recommend(states)
        assert made.features is not None
        prepared.append(libraries.calls(partial(model.read, user_id), states, made.features[0], body_of(made)))
    beside = {name: lambda i, name=name: prepared[i % len(prepared)][name]() for name in prepared[0]}
    stages, took = measure_stages(model, user_ids, beside, n=n, warm_up=warm_up)
    wall_ms, cpu_ms = ({name: median(values) for name, values in by.items()} for by in took)
    total_ms, total_cpu_ms = wall_ms.pop(TOTAL), cpu_ms.pop(TOTAL)
    bare_sum_ms, feast_ms = sum(wall_ms.values()), wall_ms["feast"]
    return InProcess(
        ranked=model.recommender.settings.rank,
        stages=stages,
        bare_ms=wall_ms,
        bare_sum_ms=bare_sum_ms,
        overhead=total_ms / bare_sum_ms,
        overhead_cpu=total_cpu_ms / sum(cpu_ms.values()),
        overhead_without_store=(total_ms - feast_ms) / (bare_sum_ms - feast_ms),
    )
