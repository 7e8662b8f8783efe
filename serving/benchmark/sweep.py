"""The rate sweep: the highest rate that a service serves within bounds.

A rate that is not served is measured once more, and the second figures count: the machine may have had other work.
"""

from collections.abc import Callable
from dataclasses import dataclass

from serving.benchmark.load import Load

LOST = 0.01  # the share of the requests that may get no full answer
FIRST, GROWTH, MOST_STEPS = 0.3, 1.3, 14  # of the closed loop's rate; from rate to rate
CLOSER = 3  # halvings of the gap between the highest rate served and the lowest that was not


@dataclass(frozen=True)
class Step:
    """`why` it was not served within bounds; empty where it was."""

    rate: float
    load: Load
    why: str


@dataclass(frozen=True)
class Sweep:
    """steps: in order of rate. saturation: the highest rate served within bounds; 0 where none was."""

    steps: tuple[Step, ...]
    saturation: float


def why_not_served(load: Load, limit_ms: float) -> str:
    """Empty where the load was served within bounds. A service that falls behind shows it in p99."""
    reasons = []
    if load.lost_share > LOST:
        reasons.append(f"{load.degraded} degraded, {load.shed} shed, {load.failed} failed of {load.requests}")
    if load.latency and load.latency.p99_ms > limit_ms:
        reasons.append(f"p99 {load.latency.p99_ms:.0f} ms, over {limit_ms:.0f}")
    return "; ".join(reasons)


def sweep(
    measure: Callable[[float], Load], closed_rate: float, limit_ms: float, report: Callable[[str], None]
) -> Sweep:
    """Raise the rate from FIRST of the closed loop's until one is not served; then close in. `limit_ms`: what p99 may
    be."""
    steps: list[Step] = []

    def is_served(rate: float) -> bool:
        for _ in range(2):
            load = measure(rate)
            if not (why := why_not_served(load, limit_ms)):
                break
        steps.append(Step(rate, load, why))
        report(f"{rate:.0f}/s: {why or 'served'}")
        return not why

    served, rate = 0.0, max(FIRST * closed_rate, 1.0)
    while len(steps) < MOST_STEPS and is_served(rate):
        served, rate = rate, rate * GROWTH
    if steps[-1].why:
        for _ in range(CLOSER):
            middle = (served + rate) / 2
            served, rate = (middle, rate) if is_served(middle) else (served, middle)
    return Sweep(tuple(sorted(steps, key=lambda step: step.rate)), served)
