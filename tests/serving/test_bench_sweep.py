"""The rate sweep: which steps are sustained, and where the knee is, on services whose curve is known."""

import json
from types import SimpleNamespace

import pytest

from serving.bench import latency
from serving.bench.load import Load, Plan
from serving.bench.sweep import EASIER, FIRST, GROWTH, HALVINGS, MOST_STEPS, knee_of, step_of, sweep

BUDGET_MS = 50.0


def load(
    offered: float = 100.0,
    achieved: float | None = None,
    p99_ms: float = 10.0,
    shed: int = 0,
    degraded: int = 0,
    errors: int = 0,
) -> Load:
    """Of 1000 requests."""
    return Load(
        seconds=10.0,
        requests=1000,
        latency={"n": 1000 - shed - errors, "p50_ms": p99_ms / 2, "p99_ms": p99_ms},
        late={"n": 1000},
        statuses={"200": 1000 - shed - errors, "503": shed},
        degraded={},
        degraded_answers=degraded,
        errors={"TimeoutError": errors} if errors else {},
        counted=[],
        inside={},
        offered=offered,
        achieved=offered if achieved is None else achieved,
        cpu_us=100.0,
    )


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        (load(), ""),
        (load(achieved=95.0), ""),
        (load(achieved=94.0), "only 94%"),
        (load(shed=10), ""),
        (load(shed=11), "1.1% shed"),
        (load(degraded=11), "1.1% degraded"),
        (load(errors=11), "1.1% failed"),
        (load(p99_ms=50.0), ""),
        (load(p99_ms=51.0), "p99 51 ms, calm it was 5.0 ms"),
    ],
)
def test_what_is_sustained(measured: Load, said: str) -> None:
    step = step_of(100.0, measured, 5.0, BUDGET_MS)
    assert step.sustained == (said == "")
    assert said in step.why


def test_the_first_step_cannot_explode_and_a_calm_one_sets_the_scale() -> None:
    assert step_of(1.0, load(p99_ms=500.0), None, BUDGET_MS).sustained
    assert step_of(1.0, load(p99_ms=99.0), 20.0, BUDGET_MS).sustained
    assert not step_of(1.0, load(p99_ms=101.0), 20.0, BUDGET_MS).sustained


def test_a_rate_without_any_answer_is_not_sustained() -> None:
    nothing = load(shed=1000, achieved=0.0)
    step = step_of(100.0, Load(**{**vars(nothing), "latency": {"n": 0}}), 5.0, BUDGET_MS)
    assert not step.sustained
    assert step.p99_ms == 0.0  # JSON knows no infinity
    json.dumps(vars(step), allow_nan=False)


def server(capacity: float):  # type: ignore[no-untyped-def]
    """A queue: the wait grows as load nears capacity, beyond which answers are missing."""

    def measure(rate: float) -> Load:
        asked.append(rate)
        if rate > capacity:
            return load(rate, capacity, 5_000.0, shed=round(1000 * (1 - capacity / rate)))
        return load(rate, rate, 4.0 / (1.001 - rate / capacity))

    asked: list[float] = []
    measure.asked = asked  # type: ignore[attr-defined]
    return measure


@pytest.mark.parametrize("capacity", [40.0, 100.0, 333.0])
def test_the_knee_is_found_close_to_where_it_is(capacity: float) -> None:
    measure = server(capacity)
    said: list[str] = []
    found = sweep(measure, capacity * 0.8, BUDGET_MS, said.append)
    assert found.reached
    assert found.knee is not None
    # p99 exceeds 50 ms from 92 % of capacity on; the last gap is GROWTH - 1 of the rate, halved HALVINGS times
    assert 0.92 * capacity * (1 - (GROWTH - 1) / 2**HALVINGS) <= found.knee <= 0.922 * capacity
    assert found.saturation == pytest.approx(capacity, rel=1e-9)  # what every rate beyond it brings
    assert sum(step.achieved == capacity for step in found.steps) <= 2 + HALVINGS  # it does not climb for nothing
    assert [step.rate for step in found.steps] == sorted(set(measure.asked))
    assert len(said) == len(measure.asked)
    for step in found.steps:  # whatever is not sustained is measured twice
        assert measure.asked.count(step.rate) == (1 if step.sustained else 2)
    assert measure.asked[0] == pytest.approx(FIRST * 0.8 * capacity)


def test_a_first_rate_that_is_too_high_is_lowered() -> None:
    measure = server(50.0)
    found = sweep(measure, 400.0, BUDGET_MS, lambda _: None)
    assert measure.asked[:5] == [120.0, 120.0, 60.0, 60.0, 30.0]
    assert found.knee is not None
    assert 30.0 <= found.knee < 50.0


def test_a_service_that_sustains_nothing_has_no_knee() -> None:
    measure = server(1.0)
    found = sweep(measure, 1_000.0, BUDGET_MS, lambda _: None)
    assert (found.knee, found.saturation, found.reached) == (None, 1.0, True)
    assert len(measure.asked) == 2 * (1 + EASIER)
    assert len(found.steps) == 1


def test_one_disturbance_does_not_end_the_sweep() -> None:
    measure, disturbed = server(100.0), []

    def with_a_bad_moment(rate: float) -> Load:
        if rate > 40.0 and not disturbed:
            disturbed.append(rate)
            return load(rate, 0.5 * rate, 400.0, shed=500)
        return measure(rate)  # type: ignore[no-any-return]

    found = sweep(with_a_bad_moment, 80.0, BUDGET_MS, lambda _: None)
    calm = sweep(server(100.0), 80.0, BUDGET_MS, lambda _: None)
    assert (found.knee, found.saturation) == (calm.knee, calm.saturation)
    (step,) = [step for step in found.steps if step.rate in disturbed]
    assert (step.why, step.achieved) == ("", step.rate)
    assert "50.0% shed" in step.first


def test_one_disturbance_of_the_open_loop_is_told_and_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    measure, open_s = server(100.0), 20.0
    bad = [load(60.0, 45.0, 90.0, shed=250)]

    def generate(plan: Plan) -> Load:
        assert plan.rate is not None
        return bad.pop() if plan.seconds == open_s and bad else measure(plan.rate)  # type: ignore[no-any-return]

    monkeypatch.setattr(latency, "generate", generate)
    target, progress = SimpleNamespace(url="http://127.0.0.1:1"), SimpleNamespace(begin=print, note=print)
    asked = (target, ("/",), latency.Options(open_s=open_s), BUDGET_MS, {"closed": {"1": {"achieved": 80.0}}}, progress)
    found = [latency._opened(*asked)["open"] for _ in range(2)]  # type: ignore[arg-type]
    assert [one["latency"] for one in found] == [measure(60.0).latency] * 2
    assert found[0]["first"]["p99_ms"] == 90.0
    assert "25.0% shed" in found[0]["first"]["why"]
    assert found[1]["first"] is None


def test_a_service_that_stands_everything_ends_the_sweep() -> None:
    measure = server(1e9)
    found = sweep(measure, 100.0, BUDGET_MS, lambda _: None)
    assert len(found.steps) == MOST_STEPS
    assert not found.reached
    assert found.knee == pytest.approx(30.0 * GROWTH ** (MOST_STEPS - 1))


def test_the_knee_lies_before_the_first_bend_and_not_after() -> None:
    """A step that happens to be sustained beyond one that was not does not count."""
    steps = [step_of(r, load(r, a), 5.0, BUDGET_MS) for r, a in ((30.0, 30.0), (10.0, 10.0), (20.0, 5.0))]
    found = knee_of(steps)
    assert (found.knee, found.saturation) == (10.0, 30.0)
    assert [step.rate for step in found.steps] == [10.0, 20.0, 30.0]
