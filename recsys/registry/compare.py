"""How two registered versions differ, and what may be concluded from it.

Most of what makes NDCG@10 uncertain is which users the test window happens to hold, and that is the same for two
versions measured on the same events. So the verdict rests on the differences event by event, their 95 % interval from
a bootstrap over users (`recsys.evaluation.bootstrap`). Without them there is none: two intervals of means that overlap
hide a drop that is real.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import pandas as pd

from recsys.errors import BundleError, RegistryError
from recsys.evaluation.bootstrap import PairedDifference, paired_difference
from recsys.promotion_gate import NDCG, Interval, intervals, is_worse
from recsys.registry.records import VersionInfo

PAIRED: Final = (NDCG, "hr@10")  # the verdict is that of the first: two chances to be wrong would be more than 5 %


@dataclass(frozen=True)
class MetricDifference:
    """A metric of both; None where one lacks it. `difference` is b - a."""

    name: str
    a: Interval | None
    b: Interval | None
    difference: float | None


@dataclass(frozen=True)
class ParameterDifference:
    name: str
    a: str | None
    b: str | None


@dataclass(frozen=True)
class Pairing:
    """`differences`: b minus a over the same events, for each metric of PAIRED. Empty where the two cannot be paired;
    `problem` is then a sentence that says why."""

    differences: Mapping[str, PairedDifference] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class Comparison:
    """`worse` is True where b is worse than a event by event, False where it is not, None where that is unknown."""

    a: VersionInfo
    b: VersionInfo
    metrics: tuple[MetricDifference, ...]
    parameters: tuple[ParameterDifference, ...]
    pairing: Pairing
    verdict: str

    @property
    def worse(self) -> bool | None:
        found = self.pairing.differences.get(NDCG)
        return None if found is None else is_worse(found)


def pair(a: VersionInfo, b: VersionInfo, ranks: Callable[[int], pd.DataFrame]) -> Pairing:
    """b minus a over the same test events. `ranks` gives those of a version by its number; what it raises is the
    pairing's problem, not the caller's: the metrics can still be read side by side."""
    if (a.dataset, a.fingerprint) != (b.dataset, b.fingerprint):
        of_a, of_b = (f"{v.dataset_label} (data {v.fingerprint[:12]})" for v in (a, b))
        return Pairing(problem=f"version {a.version} was measured on {of_a}, version {b.version} on {of_b}")
    try:
        differences = paired_difference(ranks(b.version), ranks(a.version), PAIRED)
    except (RegistryError, BundleError, ValueError) as error:
        return Pairing(problem=str(error))
    if differences[NDCG].low is None:
        return Pairing(problem=f"The test events are of {differences[NDCG].n_users} user(s), too few for an interval.")
    return Pairing(differences)


def compare(
    a: VersionInfo, b: VersionInfo, a_parameters: Mapping[str, str], b_parameters: Mapping[str, str], pairing: Pairing
) -> Comparison:
    """Metrics in the order of their names, and only those parameters that differ."""
    a_metrics, b_metrics = intervals(a.metrics), intervals(b.metrics)
    metrics = tuple(_metric(n, a_metrics.get(n), b_metrics.get(n)) for n in sorted({*a_metrics, *b_metrics}))
    parameters = tuple(
        ParameterDifference(name, a_parameters.get(name), b_parameters.get(name))
        for name in sorted({*a_parameters, *b_parameters})
        if a_parameters.get(name) != b_parameters.get(name)
    )
    return Comparison(a, b, metrics, parameters, pairing, _verdict(a, b, pairing))


def _metric(name: str, a: Interval | None, b: Interval | None) -> MetricDifference:
    return MetricDifference(name, a, b, None if a is None or b is None else b.mean - a.mean)


def _verdict(a: VersionInfo, b: VersionInfo, pairing: Pairing) -> str:
    found = pairing.differences.get(NDCG)
    if found is None:
        return f"No verdict, because the two cannot be compared event by event: {pairing.problem}"
    rests_on = (
        f"NDCG@10 on {a.dataset_label} changes by {found.mean:+.4f} (95 % interval {found.low:+.4f} to"
        f" {found.high:+.4f}), paired over {found.n_events:,} events of {found.n_users:,} users."
    )
    if is_worse(found):
        return f"Version {b.version} is worse than version {a.version}: {rests_on}"
    if found.above_zero:
        return f"Version {b.version} is better than version {a.version}: {rests_on}"
    return f"Versions {a.version} and {b.version} cannot be told apart: {rests_on}"
