"""What the service measures about itself: Prometheus metrics, and counts by name for /v1/model.

Labels are route templates and names from this code, so that the number of series is bounded. Names that are listed here
are exposed at zero from the start: the first failure is a step, not a new line.

Several workers share their numbers through files in PROMETHEUS_MULTIPROC_DIR, a variable of prometheus_client: an empty
folder, set before they import this module. Then a scrape of any worker answers for all: counts and histograms of every
worker that ever ran, gauges of those that still do.
"""

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
    values,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from recsys.features.item_stats import SECONDS_PER_DAY

STAGES: Final = ("state", "retrieval", "features", "ranking", "ordering", "explain", "queue", "total")
PARTS: Final = ("user_state", "retrieval", "ranking", "explain")
SHED: Final = ("queue_full",)
EVENTS: Final = ("stored", "repeated", "refused")
RELOADS: Final = ("swapped", "refused", "failed")
ANSWERS: Final = ("requests", "cold_start", "pages", "similar", "history")  # "requests": lists of recommendations
# reads of a store that its circuit breaker refused; times that it opened
STORE: Final = ("store.not_asked", "store.left_alone")
PREDICTIONS: Final = ("predictions.logged", "predictions.dropped", "predictions.failed", "predictions.files_removed")
# shadow lists made; requests whose shadow was left out, because another was waiting; lists that failed
SHADOWS: Final = ("shadow.made", "shadow.skipped", "shadow.failed")
COUNTS: Final = ANSWERS + STORE + PREDICTIONS + SHADOWS
MOMENTS: Final = ("loaded", "trained_through", "item_statistics")
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
UNMATCHED: Final = "unmatched"  # the route of a request that no route took

# Milliseconds. 50 ms, the default budget, is a bound, so that the share of answers within it is exact.
_REQUEST_MS = (0.5, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 12.5, 15, 20, 25, 30, 40, 50, 75, 100, 150, 250, 500, 1_000)
_STAGE_MS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 4, 5, 7.5, 10, 15, 20, 30, 50, 100, 250, 1_000)
_AGE_DAYS = (0.25, 1, 7, 30, 90, 365, 3_650)  # the users of MovieLens were last seen decades ago
REQUEST_BOUNDS: Final = tuple(ms / 1e3 for ms in _REQUEST_MS)
STAGE_BOUNDS: Final = tuple(ms / 1e3 for ms in _STAGE_MS)
AGE_BOUNDS: Final = (1.0, 10.0, 60.0, 600.0, 3_600.0, *(float(days * SECONDS_PER_DAY) for days in _AGE_DAYS))


class Metrics:
    """The metrics of one service in this process. Safe to share between threads."""

    def __init__(self) -> None:
        disable_created_metrics()
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        counter, histogram = partial(Counter, registry=registry), partial(Histogram, registry=registry)
        gauge = partial(Gauge, registry=registry)
        self._requests = counter("recsys_requests", "HTTP requests.", ("route", "method", "status"))
        text = "Time from a request's arrival to its response."
        self._seconds = histogram("recsys_request_seconds", text, ("route", "status_class"), buckets=REQUEST_BOUNDS)
        text = "Time spent in one stage of an answer."
        self._stages = histogram("recsys_stage_seconds", text, ("stage",), buckets=STAGE_BOUNDS)
        text = "Age of the newest event in the user state that an answer used."
        self._ages = histogram("recsys_user_state_age_seconds", text, buckets=AGE_BOUNDS)
        self._operations = counter("recsys_operations", "Operations of the service, by name.", ("operation",))
        self._families = {
            "degraded": counter("recsys_degraded", "Answers that had to leave out a part.", ("part",)),
            "shed": counter("recsys_shed", "Requests refused because of load.", ("reason",)),
            "events": counter("recsys_events", "Events received, by outcome.", ("outcome",)),
            "reload": counter("recsys_reloads", "Attempts to load a new model, by outcome.", ("outcome",)),
        }
        labels = ("experiment", "arm")
        self._arm_answers = counter("recsys_arm_answers", "Answers by arm of an experiment.", labels)
        text = "Answers by arm of an experiment that had to leave out a part."
        self._arm_degraded = counter("recsys_arm_degraded", text, labels)
        for family, names in (("degraded", PARTS), ("shed", SHED), ("events", EVENTS), ("reload", RELOADS)):
            for name in names:
                self.count(f"{family}.{name}", 0)
        for name in COUNTS:
            self.count(name, 0)
        for stage in STAGES:
            self._stages.labels(stage)
        self._in_flight = gauge("recsys_in_flight", "Requests being answered.", multiprocess_mode="livesum")
        text = "The model that is served; the value is the number of workers that serve it, 0 once it is replaced."
        about = ("version", "bundle_id", "dataset")
        self._info = gauge("recsys_model_info", text, about, multiprocess_mode="livesum")
        # A labelled gauge has no series before its first value: without a model there is no age of 56 years.
        text = "When the model was loaded, its newest training event, and the day of its item statistics."
        self._moments = gauge("recsys_model_timestamp_seconds", text, ("moment",), multiprocess_mode="livemin")
        self._served: tuple[str, str, str] | None = None

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """`route` is the template, never the path of the request."""
        self._requests.labels(route, method if method in METHODS else "other", str(status)).inc()
        self._seconds.labels(route, f"{status // 100}xx").observe(seconds)

    def stage(self, name: str, ms: float) -> None:
        self._stages.labels(name).observe(ms / 1e3)

    def state_age(self, seconds: float) -> None:
        self._ages.observe(max(seconds, 0.0))

    def count(self, name: str, times: int = 1) -> None:
        """One of COUNTS, or the family and the label of another counter: "degraded.ranking", "events.stored"."""
        family, _, label = name.partition(".")
        counter = self._families.get(family)
        (self._operations.labels(name) if counter is None else counter.labels(label)).inc(times)

    def arm(self, experiment: str, arm: str, degraded: bool) -> None:
        """An answer to somebody of this arm."""
        self._arm_answers.labels(experiment, arm).inc()
        self._arm_degraded.labels(experiment, arm).inc(degraded)

    def in_flight(self, n: int) -> None:
        self._in_flight.set(n)

    def model(
        self, version: int, bundle_id: str, dataset: str, trained_through: int, loaded_at: float, statistics_day: int
    ) -> None:
        """What is served from now on; moments are seconds UTC."""
        served = (str(version), bundle_id, dataset)
        if self._served not in (None, served):
            self._info.labels(*self._served).set(0)  # shared files have no way to drop a series
        self._info.labels(*served).set(1)
        self._served = served
        moments = (loaded_at, trained_through, statistics_day * SECONDS_PER_DAY)
        for moment, seconds in zip(MOMENTS, moments, strict=True):
            self._moments.labels(moment).set(seconds)

    def as_dict(self) -> dict[str, int]:
        """What this process counted, by the names of `count`, without zeros."""
        return {
            prefix + "".join(sample.labels.values()): int(sample.value)
            for prefix, counter in (("", self._operations), *((f"{f}.", c) for f, c in self._families.items()))
            for metric in counter.collect()
            for sample in metric.samples
            if sample.value
        }

    def exposition(self) -> tuple[bytes, str]:
        """Body and content type of GET /metrics."""
        registry = self._registry
        # Not by the variable alone: Feast sets it when it is imported, too late to change where values are kept.
        if values.ValueClass is not values.MutexValue:
            folder, registry = os.environ["PROMETHEUS_MULTIPROC_DIR"], CollectorRegistry()
            registry.register(_Workers(Path(folder)))
            MultiProcessCollector(registry, folder)
        return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4


class _Workers(Collector):
    """Memory, processor time and open files of each worker, by the label `pid`. Forgets the gauges of dead workers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        merged: dict[str, Metric] = {}
        for pid in sorted({int(path.stem.rpartition("_")[2]) for path in self._folder.glob("*.db")}):
            if not Path(f"/proc/{pid}").exists():
                mark_process_dead(pid, str(self._folder))
                continue
            for metric in ProcessCollector(pid=partial(int, pid), registry=None).collect():
                whole = merged.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                for sample in metric.samples:
                    whole.add_sample(sample.name, {**sample.labels, "pid": str(pid)}, sample.value)
        return merged.values()
