"""How two registered versions differ, and what may be concluded from it.

Stage: compare, promote. In: two VersionInfo with their parameters. Out: a Comparison with one verdict sentence.
Absent: MLflow, and the decision to promote (`recsys.gate`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from recsys.gate import NDCG, Interval, intervals
from recsys.registry.records import VersionInfo


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
class Comparison:
    """`comparable` is False where the two were measured on different data; then no difference means anything."""

    a: VersionInfo
    b: VersionInfo
    comparable: bool
    metrics: tuple[MetricDifference, ...]
    parameters: tuple[ParameterDifference, ...]
    verdict: str


def compare(
    a: VersionInfo, b: VersionInfo, a_parameters: Mapping[str, str], b_parameters: Mapping[str, str]
) -> Comparison:
    """Metrics in the order of their names, and only those parameters that differ."""
    comparable = (a.dataset, a.fingerprint) == (b.dataset, b.fingerprint)
    a_metrics, b_metrics = intervals(a.metrics), intervals(b.metrics)
    metrics = tuple(
        _metric(name, a_metrics.get(name), b_metrics.get(name), comparable) for name in sorted({*a_metrics, *b_metrics})
    )
    parameters = tuple(
        ParameterDifference(name, a_parameters.get(name), b_parameters.get(name))
        for name in sorted({*a_parameters, *b_parameters})
        if a_parameters.get(name) != b_parameters.get(name)
    )
    return Comparison(a, b, comparable, metrics, parameters, _verdict(a, b, comparable, metrics))


def _metric(name: str, a: Interval | None, b: Interval | None, comparable: bool) -> MetricDifference:
    if a is None or b is None:
        return MetricDifference(name, a, b, None, None)
    separate = None
    if comparable and a.low is not None and a.high is not None and b.low is not None and b.high is not None:
        separate = a.high < b.low or b.high < a.low
    return MetricDifference(name, a, b, b.mean - a.mean, separate)


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
