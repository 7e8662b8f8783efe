"""The rate sweep: what is served within bounds, and what it finds of services whose curve is known."""

from collections.abc import Callable

import pytest

from serving.benchmark.load import Load, Percentiles
from serving.benchmark.sweep import CLOSER, FIRST, GROWTH, MOST_STEPS, sweep, why_not_served

LIMIT_MS = 50.0


def load(rate: float = 100.0, p99_ms: float = 10.0, degraded: int = 0, shed: int = 0) -> Load:
    """Ten seconds."""
    n = round(10 * rate)
    latency = Percentiles(n - degraded - shed, p99_ms / 2, p99_ms, p99_ms, p99_ms, p99_ms)
    return Load(n, 10.0, latency if latency.n else None, degraded, shed, 0)


@pytest.mark.parametrize(
    ("measured", "why"),
    [
        (load(), ""),
        (load(shed=10), ""),
        (load(shed=11), "0 degraded, 11 shed, 0 failed of 1000"),
        (load(degraded=11), "11 degraded"),
        (load(shed=1_000), "1000 shed"),
        (load(p99_ms=50.0), ""),
        (load(p99_ms=51.0), "p99 51 ms, over 50"),
    ],
)
def test_what_is_served_within_bounds(measured: Load, why: str) -> None:
    said = why_not_served(measured, LIMIT_MS)
    assert why in said
    assert bool(said) == bool(why)


def service(capacity: float, rates: list[float]) -> Callable[[float], Load]:
    """A queue: the wait grows as the rate nears capacity, beyond which the rest is shed."""

    def measure(rate: float) -> Load:
        rates.append(rate)
        if rate > capacity:
            return load(rate, 5_000.0, shed=round(10 * (rate - capacity)))
        return load(rate, 4.0 / (1.001 - rate / capacity))

    return measure


@pytest.mark.parametrize("capacity", [40.0, 100.0, 333.0])
def test_saturation_is_found_close_to_where_it_is(capacity: float) -> None:
    rates: list[float] = []
    result = sweep(service(capacity, rates), capacity * 0.8, LIMIT_MS, lambda _: None)
    assert result.steps[-1].why
    # p99 exceeds 50 ms from 92 % of capacity on; the last gap is GROWTH - 1 of the rate, halved CLOSER times
    assert 0.92 * capacity * (1 - (GROWTH - 1) / 2**CLOSER) <= result.saturation <= 0.922 * capacity
    assert rates[0] == FIRST * 0.8 * capacity
    assert [step.rate for step in result.steps] == sorted(set(rates))
    assert all(rates.count(step.rate) == (2 if step.why else 1) for step in result.steps)


def test_a_bad_moment_does_not_end_the_sweep() -> None:
    calm = service(100.0, [])
    disturbed: list[float] = []

    def measure(rate: float) -> Load:
        if rate > 35.0 and not disturbed:
            disturbed.append(rate)
            return load(rate, 400.0, shed=round(5 * rate))
        return calm(rate)

    undisturbed = sweep(calm, 80.0, LIMIT_MS, lambda _: None)
    assert sweep(measure, 80.0, LIMIT_MS, lambda _: None).saturation == undisturbed.saturation
    assert disturbed


def test_a_first_rate_that_is_too_high_is_halved_and_may_leave_nothing() -> None:
    rates: list[float] = []
    result = sweep(service(50.0, rates), 400.0, LIMIT_MS, lambda _: None)
    assert rates[:5] == [120.0, 120.0, 60.0, 60.0, 30.0], "what fails is tried again"
    assert 30.0 <= result.saturation < 50.0
    assert sweep(service(1.0, []), 1_000.0, LIMIT_MS, lambda _: None).saturation == 0.0


def test_a_service_that_stands_everything_ends_the_sweep() -> None:
    result = sweep(service(1e9, []), 100.0, LIMIT_MS, lambda _: None)
    assert not any(step.why for step in result.steps)
    assert result.saturation == pytest.approx(FIRST * 100.0 * GROWTH ** (MOST_STEPS - 1))
