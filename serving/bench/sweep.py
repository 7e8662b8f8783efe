"""The rate sweep: how much load the service stands, and where it bends.

Stage: serving (benchmark). In: a way to measure the open loop at a rate. Out: `Sweep`: the steps, the knee, saturation.
Absent: how a rate is measured (`load`), pictures (`pictures`).

A step is sustained where the service keeps up: at least KEPT_UP of what was offered came back as full answers, at most
LOST of the requests were shed, failed or answered without a part, and p99 did not explode. A rate that is not sustained
is measured once more, and the second figures count: the machine may have had other work, which one bad moment does not
tell from a service at its end. The knee is the highest sustained rate before the first that is not. Saturation is the
most full answers a second that any rate brought: beyond it, more requests bring no more answers.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from serving.bench.load import Load

KEPT_UP = 0.95
LOST = 0.01
EXPLODED = 5.0  # times the p99 of the calmest step, where that is more than the budget
FIRST, GROWTH = 0.3, 1.3  # of the closed loop's rate; from step to step
MORE = 1.03  # full answers that count as more than before
MOST_STEPS = 14
EASIER = 3  # times that the first rate is halved while it is not sustained
HALVINGS = 2  # of the gap between the last sustained rate and the first that was not


@dataclass(frozen=True)
class Step:
    """`offered`, `achieved` a second, `achieved` full answers only; shares of the requests; `why` empty where it is
    sustained. `first`: why it was not, when it was measured for the first time; empty where once was enough."""

    rate: float
    offered: float
    achieved: float
    p50_ms: float
    p99_ms: float
    shed: float
    degraded: float
    failed: float
    why: str = ""
    first: str = ""

    @property
    def sustained(self) -> bool:
        return not self.why


@dataclass(frozen=True)
class Sweep:
    """steps: in order of rate. knee: rate of the last sustained step before the first that is not; None where not even
    the first is. saturation: the most full answers a second of any step. reached: whether a step was not sustained."""

    steps: tuple[Step, ...]
    knee: float | None
    saturation: float
    reached: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def step_of(rate: float, load: Load, calm_p99_ms: float | None, budget_ms: float) -> Step:
    """What a measured rate says; `calm_p99_ms` None for the first step, which cannot explode."""
    requests = max(load.requests, 1)
    p50, p99 = (load.latency.get(name, float("inf")) for name in ("p50_ms", "p99_ms"))
    shed, degraded, failed = load.shed / requests, load.degraded_answers / requests, load.failed / requests
    reasons = []
    if load.achieved < KEPT_UP * load.offered:
        reasons.append(f"only {load.achieved / load.offered:.0%} of the requests became full answers in time")
    reasons += [
        f"{share:.1%} {name}"
        for share, name in ((shed, "shed"), (degraded, "degraded"), (failed, "failed"))
        if share > LOST
    ]
    limit = budget_ms if calm_p99_ms is None else max(EXPLODED * calm_p99_ms, budget_ms)
    if p99 > limit and calm_p99_ms is not None:
        reasons.append(f"p99 {p99:.0f} ms, calm it was {calm_p99_ms:.1f} ms")
    if not load.latency["n"]:
        p50 = p99 = 0.0  # no answer at all; JSON knows no infinity
    return Step(rate, load.offered, load.achieved, p50, p99, shed, degraded, failed, "; ".join(reasons))


def knee_of(steps: list[Step]) -> Sweep:
    """From steps in any order."""
    ordered = sorted(steps, key=lambda step: step.rate)
    last: Step | None = None
    for step in ordered:
        if not step.sustained:
            break
        last = step
    reached = any(not step.sustained for step in ordered)
    saturation = max((step.achieved for step in ordered), default=0.0)
    return Sweep(tuple(ordered), last.rate if last else None, saturation, reached)


def sweep(
    measure: Callable[[float], Load], closed_rate: float, budget_ms: float, report: Callable[[str], None]
) -> Sweep:
    """Raise the rate from FIRST of the closed loop's until a step is not sustained, and on until full answers grow no
    more; then close in on the knee."""
    steps: list[Step] = []

    def add(rate: float) -> Step:
        calm = steps[0].p99_ms if steps else None
        step = measured(rate, calm)
        if not step.sustained:
            step = replace(measured(rate, calm), first=step.why)
        steps.append(step)
        return step

    def measured(rate: float, calm: float | None) -> Step:
        step = step_of(rate, measure(rate), calm, budget_ms)
        shown = f"p50 {step.p50_ms:.1f} ms, p99 {step.p99_ms:.1f} ms"
        report(f"{step.offered:.0f}/s offered, {step.achieved:.0f}/s in full, {shown}" + (step.why and f": {step.why}"))
        return step

    rate = max(FIRST * closed_rate, 1.0)
    add(rate)
    for _ in range(EASIER):
        if steps[0].sustained:
            break
        rate /= 2
        steps.clear()
        add(rate)
    while steps[-1].sustained and len(steps) < MOST_STEPS:
        rate *= GROWTH
        add(rate)
    if len(steps) > 1 and not steps[-1].sustained:
        low, high = steps[-2].rate, steps[-1].rate
        while len(steps) < MOST_STEPS and steps[-1].achieved > MORE * max(step.achieved for step in steps[:-1]):
            rate *= GROWTH
            add(rate)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if add(middle).sustained else (low, middle)
    return knee_of(steps)
