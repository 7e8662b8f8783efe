"""Latency measured in process, against a recommender whose clock is known."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest

from recsys.evaluation import latency
from recsys.evaluation.latency import Percentiles, interleaved, measure_in_process
from recsys.features.state import StateBatch
from recsys.recommender import RequestContext
from tests import planted


class Clocked:
    """Answers whose stages take what `durations_ms` says, on a clock of their own."""

    def __init__(self, durations_ms: Sequence[float], patch: pytest.MonkeyPatch) -> None:
        self.durations_ms = durations_ms
        self.asked: list[Any] = []
        self.now_s = 0.0
        patch.setattr(latency.time, "perf_counter", lambda: self.now_s)

    def recommend(self, states: Any, context: Any, k: int) -> Any:
        took = self.durations_ms[len(self.asked)]
        self.asked.append((states, context, k))
        self.now_s += took / 1e3
        return SimpleNamespace(timings_ms={"retrieval": took / 4, "ranking": took / 2})


def measured(recommender: Any, users: Sequence[Any], n: int, warmup: int) -> dict[str, Percentiles]:
    return measure_in_process(recommender, users, "context", 10, n=n, warmup=warmup)  # type: ignore[arg-type]


def test_the_warm_up_does_not_count_and_users_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    recommender = Clocked([900.0, 800.0, 4.0, 8.0, 12.0], monkeypatch)
    found = measured(recommender, ["a", "b"], n=3, warmup=2)
    assert [states for states, _, _ in recommender.asked] == ["a", "b", "a", "b", "a"]
    assert {(context, k) for _, context, k in recommender.asked} == {("context", 10)}
    assert list(found) == ["retrieval", "ranking", "total"]
    assert asdict(found["total"]) == pytest.approx({"p50_ms": 8.0, "p95_ms": 12.0, "p99_ms": 12.0})
    assert found["retrieval"] == Percentiles(2.0, 3.0, 3.0)
    assert found["ranking"] == Percentiles(4.0, 6.0, 6.0)


def test_the_real_path_names_every_stage() -> None:
    moment = planted.planted_split().end + 1
    states: list[StateBatch] = [planted.planted_histories().states_at([user], moment) for user in (101, 103, 999)]
    context = RequestContext(planted.planted_timeline().as_of(moment // planted.DAY))
    found = measure_in_process(planted.planted_recommender(), states, context, 5, n=6, warmup=1)
    assert list(found) == ["retrieval", "features", "ranking", "ordering", "total"]
    for values in found.values():
        assert 0 < values.p50_ms <= values.p95_ms <= values.p99_ms
    assert found["total"].p99_ms >= max(found[stage].p99_ms for stage in found if stage != "total")


def test_calls_are_measured_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, asked = 0.0, []
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now_s)
    monkeypatch.setattr(latency.time, "thread_time", lambda: now_s / 2)  # somebody else has the processor half the time

    def takes(name: str, ms: float) -> Callable[[int], None]:
        def call(i: int) -> None:
            nonlocal now_s
            asked.append((name, i))
            now_s += (ms + i) / 1e3

        return call

    found = interleaved({"a": takes("a", 10.0), "b": takes("b", 20.0)}, n=3, warmup=1)
    assert asked == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2), ("b", 3), ("a", 3)]
    assert found.wall_ms["a"] == pytest.approx([11.0, 12.0, 13.0])
    assert found.wall_ms["b"] == pytest.approx([21.0, 22.0, 23.0])
    assert found.cpu_ms["a"] == pytest.approx([5.5, 6.0, 6.5])
    assert found.cpu_ms["b"] == pytest.approx([10.5, 11.0, 11.5])
