"""The rate sweep: the highest rate that a service serves within bounds.

A rate that is not served is measured once more, and the second figures count; and two rates in a row must fail before
the sweep ends. The machine may have had other work, which one bad moment does not tell from a service at its end.
"""

from collections.abc import Callable
from dataclasses import dataclass

from serving.benchmark.load import Load

Say = Callable[[str], None]  # tells the user how far it is
LOST = 0.01  # the share of the requests that may get no full answer
FIRST, GROWTH, MOST_STEPS = 0.3, 1.3, 14  # of the closed loop's rate; from rate to rate
EASIER = 3  # times that the first rate is halved while it is not served
CLOSER = 2  # halvings of the gap above the highest rate served


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


def sweep(measure: Callable[[float], Load], closed_rate: float, limit_ms: float, say: Say) -> Sweep:
    """Raise the rate from FIRST of the closed loop's until two in a row are not served; then close in. `limit_ms`: what
    p99 may be."""
    steps: list[Step] = []

    def try_rate(rate: float) -> bool:
        for _ in range(2):
            load = measure(rate)
            if not (why := why_not_served(load, limit_ms)):
                break
        steps.append(Step(rate, load, why))
        say(f"{rate:.0f}/s: {why or 'served'}")
        return not why

    rate = max(FIRST * closed_rate, 1.0)
    for _ in range(EASIER):
        if try_rate(rate):
            break
        rate /= 2
    while len(steps) < MOST_STEPS and not (len(steps) > 1 and steps[-1].why and steps[-2].why):
        rate *= GROWTH
        try_rate(rate)
    served = max((step.rate for step in steps if not step.why), default=0.0)
    if steps[-1].why and served:
        failing = min(step.rate for step in steps if step.rate > served)
        for _ in range(CLOSER):
            middle = (served + failing) / 2
            served, failing = (middle, failing) if try_rate(middle) else (served, middle)
    return Sweep(tuple(sorted(steps, key=lambda step: step.rate)), served)
