"""How two registered versions differ, and what may be concluded from it.

Stage: compare, promote. In: two VersionInfo with their parameters, and how to get the ranks of their test events. Out:
a Comparison with one verdict sentence. Absent: MLflow, and the decision to promote (`recsys.promotion_gate`).

Most of what makes NDCG@10 uncertain is which users the test window happens to hold, and that is the same for two
versions measured on the same events. So the verdict rests on the differences event by event, their 95 % interval from
a bootstrap over users (`recsys.evaluation.bootstrap`). Two intervals of means that overlap hide a drop that is real.
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
    """A metric of both; None where one lacks it. `difference` is b - a. `separate` says that the two intervals do
    not overlap: True is evidence, False is none either way; None where an interval is missing or the data differ."""

    name: str
    a: Interval | None
    b: Interval | None
    difference: float | None
    separate: bool | None


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
    """`comparable` is False where the two were measured on different data; then no difference means anything. `worse`
    is True where b is worse than a event by event, False where it is not, None where they could not be paired."""

    a: VersionInfo
    b: VersionInfo
    comparable: bool
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
    if not _same_data(a, b):
        return Pairing(problem="The two versions were measured on different data.")
    try:
        of_a, of_b = ranks(a.version), ranks(b.version)
    except (RegistryError, BundleError) as error:
        return Pairing(problem=str(error))
    try:
        differences = paired_difference(of_b, of_a, PAIRED)
    except ValueError as error:
        return Pairing(problem=str(error))
    if differences[NDCG].low is None:
        return Pairing(problem=f"The test events are of {differences[NDCG].n_users} user(s), too few for an interval.")
    return Pairing(differences)


def compare(
    a: VersionInfo,
    b: VersionInfo,
    a_parameters: Mapping[str, str],
    b_parameters: Mapping[str, str],
    pairing: Pairing,
) -> Comparison:
    """Metrics in the order of their names, and only those parameters that differ. The verdict is that of the pairing,
    and without one that of the two intervals."""
    comparable = _same_data(a, b)
    a_metrics, b_metrics = intervals(a.metrics), intervals(b.metrics)
    metrics = tuple(
        _metric(name, a_metrics.get(name), b_metrics.get(name), comparable) for name in sorted({*a_metrics, *b_metrics})
    )
    parameters = tuple(
        ParameterDifference(name, a_parameters.get(name), b_parameters.get(name))
        for name in sorted({*a_parameters, *b_parameters})
        if a_parameters.get(name) != b_parameters.get(name)
    )
    paired = pairing.differences.get(NDCG)
    verdict = _verdict(a, b, comparable, metrics) if paired is None else _paired_verdict(a, b, paired)
    return Comparison(a, b, comparable, metrics, parameters, pairing, verdict)


def _same_data(a: VersionInfo, b: VersionInfo) -> bool:
    return (a.dataset, a.fingerprint) == (b.dataset, b.fingerprint)


def _metric(name: str, a: Interval | None, b: Interval | None, comparable: bool) -> MetricDifference:
    if a is None or b is None:
        return MetricDifference(name, a, b, None, None)
    separate = None
    if comparable and a.low is not None and a.high is not None and b.low is not None and b.high is not None:
        separate = a.high < b.low or b.high < a.low
    return MetricDifference(name, a, b, b.mean - a.mean, separate)


def _paired_verdict(a: VersionInfo, b: VersionInfo, found: PairedDifference) -> str:
    rests_on = (
        f"NDCG@10 on {a.dataset_label} changes by {found.mean:+.4f} (95 % interval {found.low:+.4f} to"
        f" {found.high:+.4f}), paired over {found.n_events:,} events of {found.n_users:,} users."
    )
    if is_worse(found):
        return f"Version {b.version} is worse than version {a.version}: {rests_on}"
    if found.above_zero:
        return f"Version {b.version} is better than version {a.version}: {rests_on}"
    return f"Versions {a.version} and {b.version} cannot be told apart: {rests_on}"


def _verdict(a: VersionInfo, b: VersionInfo, comparable: bool, metrics: tuple[MetricDifference, ...]) -> str:
    if a.dataset != b.dataset:
        return (
            f"Not comparable: version {a.version} was measured on {a.dataset_label}, version {b.version} on"
            f" {b.dataset_label}."
        )
    if not comparable:
        return (
            f"Not comparable: both were measured on {a.dataset_label}, but version {a.version} on data"
            f" {a.fingerprint[:12]} and version {b.version} on data {b.fingerprint[:12]}; the differences say nothing."
        )
    ndcg = next((m for m in metrics if m.name == NDCG), None)
    if ndcg is None or ndcg.a is None or ndcg.b is None or ndcg.difference is None:
        return f"No verdict: NDCG@10 on {a.dataset_label} is not known of both versions."
    if ndcg.separate is None:
        return f"No verdict: NDCG@10 on {a.dataset_label} has no interval in at least one version."
    means = f"NDCG@10 on {a.dataset_label}: {ndcg.b.mean:.4f} against {ndcg.a.mean:.4f}"
    if not ndcg.separate:
        return f"Versions {a.version} and {b.version} cannot be told apart: their intervals overlap. {means}."
    return (
        f"Version {b.version} is {'better' if ndcg.difference > 0 else 'worse'} than version {a.version}: their"
        f" intervals do not overlap. {means}."
    )
