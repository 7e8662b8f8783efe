"""Latency measured in process, against a recommender whose clock is known."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest

from recsys.evaluation import latency
from recsys.evaluation.latency import Percentiles, interleaved, measure_in_process


class Clocked:
    """Answers whose stages take what `durations_ms` says, on a clock of their own."""

    def __init__(self, durations_ms: Sequence[float], patch: pytest.MonkeyPatch) -> None:
        self.durations_ms = durations_ms
        self.requests: list[Any] = []
        self.now_s = 0.0
        patch.setattr(latency.time, "perf_counter", lambda: self.now_s)

    def recommend(self, states: Any, context: Any, k: int) -> Any:
        took = self.durations_ms[len(self.requests)]
        self.requests.append((states, context, k))
        self.now_s += took / 1e3
        return SimpleNamespace(timings_ms={"retrieval": took / 4, "ranking": took / 2})


def test_the_warm_up_does_not_count_and_users_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    recommender: Any = Clocked([900.0, 800.0, 4.0, 8.0, 12.0], monkeypatch)
    users: Any = ["a", "b"]
    measured = measure_in_process(recommender, users, "context", 10, n=3, warmup=2)  # type: ignore[arg-type]
    assert recommender.requests == [(user, "context", 10) for user in "ababa"]
    assert list(measured) == ["retrieval", "ranking", "total"]
    assert asdict(measured["total"]) == pytest.approx({"p50_ms": 8.0, "p95_ms": 12.0, "p99_ms": 12.0})
    assert measured["retrieval"] == Percentiles(2.0, 3.0, 3.0)


def test_calls_are_measured_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, calls = 0.0, []
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now_s)
    monkeypatch.setattr(latency.time, "thread_time", lambda: now_s / 2)  # somebody else has the processor half the time

    def takes(name: str, ms: float) -> Callable[[int], None]:
        def call(i: int) -> None:
            nonlocal now_s
            calls.append((name, i))
            now_s += (ms + i) / 1e3

        return call

    took = interleaved({"a": takes("a", 10.0), "b": takes("b", 20.0)}, n=3, warmup=1)
    assert calls == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2), ("b", 3), ("a", 3)]
    assert took.wall_ms["b"] == pytest.approx([21.0, 22.0, 23.0])
    assert took.cpu_ms["a"] == pytest.approx([5.5, 6.0, 6.5])
