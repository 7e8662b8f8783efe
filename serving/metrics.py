"""What the service measures about itself, for Prometheus and for /v1/model.

Stage: serving. In: one call for each thing that happens. Out: the text of GET /metrics; counts by name. Absent: HTTP,
and how numbers are kept and merged (`instruments`). Nothing here knows a user, an item or a key: labels are route
templates and names from this code.

A label value that is not listed below is taken as it comes until a metric has a bounded number of series, then counted
as "other". Listed values are exposed at zero from the start, so that the first failure is a step and not a new line.
`as_dict` is of this process alone; `exposition` is of all workers that share `multiprocess_dir`.
"""

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from serving.instruments import OTHER, Cells, Counter, Family, Gauge, Histogram, forget, live_pids, merged

STAGES = ("state", "retrieval", "features", "ranking", "ordering", "explain", "queue", "total")
PARTS = ("user_state", "retrieval", "ranking", "explain")
SHED = ("queue_full", "budget", "rate_limit")
EVENTS = ("applied", "pending", "refused", "repeated", "logged")
RELOADS = ("swapped", "refused", "failed")
ANSWERS = ("requests", "pages", "similar", "history")  # "requests": answers with recommendations
# reads that the circuit refused; times that it opened; calls with events that were too many to keep
STORE = ("store.not_asked", "store.left_alone", "store.left_out")
PREDICTIONS = ("predictions.logged", "predictions.dropped", "predictions.failed", "predictions.files_removed")
COUNTS = ANSWERS + STORE + PREDICTIONS
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
UNMATCHED = "unmatched"  # the route of a request that no route took

# Seconds. Dense where budgets lie (1 to 100 ms); 50 ms, the default budget, is a bound, so that the share within it is
# exact rather than interpolated.
REQUEST_BOUNDS = tuple(
    ms / 1e3
    for ms in (0.5, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 12.5, 15, 20, 25, 30, 40, 50, 75, 100, 150, 250, 500, 1_000)
)
STAGE_BOUNDS = tuple(
    ms / 1e3
    for ms in (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 4, 5, 7.5, 10, 15, 20, 30, 40, 50, 75, 100, 250, 1_000)
)
SECONDS_PER_DAY = 86_400
# Seconds, from just now to decades, which is how old the users of MovieLens are.
DAYS = (0.25, 1, 7, 30, 90, 365, 3_650, 14_600)
AGE_BOUNDS = tuple(float(s) for s in (1, 10, 60, 600, 3_600, *(days * SECONDS_PER_DAY for days in DAYS)))
INFO = "recsys_model_info"


class Metrics(Collector):
    """Safe to share between threads. One of them in each process; several processes share `multiprocess_dir`, an
    existing folder which whoever starts them empties before."""

    def __init__(self, multiprocess_dir: Path | None = None) -> None:
        """Raises FileNotFoundError where there is no such folder."""
        if multiprocess_dir is not None and not multiprocess_dir.is_dir():
            raise FileNotFoundError(f"{multiprocess_dir}, where workers share their metrics, is no folder.")
        self._folder = multiprocess_dir
        cells = self._cells = Cells(multiprocess_dir, os.getpid())
        text = "HTTP requests by route template, method and status."
        self._requests = Counter(cells, "recsys_requests", text, ("route", "method", "status"), most=400)
        text = "From the arrival of a request to its answer, by class of status."
        self._seconds = Histogram(
            cells, "recsys_request_seconds", text, REQUEST_BOUNDS, ("route", "status_class"), most=120
        )
        text = "Time of a stage of one answer."
        self._stages = Histogram(cells, "recsys_stage_seconds", text, STAGE_BOUNDS, ("stage",), most=24)
        text = "From the last event that a stored user's state holds to the list that is made with it."
        self._ages = Histogram(cells, "recsys_user_state_age_seconds", text, AGE_BOUNDS)
        self._counts = Counter(cells, "recsys_operations", "What was done, by name.", ("operation",))
        self._cold = Counter(cells, "recsys_cold_starts", "Answers to somebody nothing is known of.")
        self._degraded = Counter(cells, "recsys_degraded", "Parts that an answer was given without.", ("part",))
        self._shed = Counter(cells, "recsys_shed", "Requests turned away, by reason.", ("reason",))
        self._events = Counter(cells, "recsys_events", "Events received, by what became of them.", ("outcome",))
        self._reloads = Counter(cells, "recsys_reloads", "Attempts to change the model, by outcome.", ("outcome",))
        self._queue = Gauge(cells, "recsys_queue_depth", "Requests that wait for their turn.")
        self._flying = Gauge(cells, "recsys_in_flight", "Requests that are being answered.")
        text = "Which model is served; the value is how many workers serve it."
        self._info = Gauge(cells, INFO, text, ("version", "bundle_id", "dataset"), most=10_000)
        text = "When the model was loaded (of several workers, the oldest)."
        self._loaded = Gauge(cells, "recsys_model_loaded_timestamp_seconds", text, across="min")
        text = "The last event that the model was trained on."
        self._trained = Gauge(cells, "recsys_model_trained_through_timestamp_seconds", text, across="min")
        text = "Moment as of which the statistics of items are (of several workers, the oldest)."
        self._statistics = Gauge(cells, "recsys_item_statistics_timestamp_seconds", text, across="min")
        self.families: tuple[Family, ...] = (
            *(self._requests, self._seconds, self._stages, self._counts, self._cold, self._degraded, self._shed),
            *(self._ages, self._events, self._reloads, self._queue, self._flying),
            *(self._info, self._loaded, self._trained, self._statistics),
        )
        listed: tuple[tuple[Family, tuple[str, ...]], ...] = (
            *((self._stages, STAGES), (self._counts, COUNTS), (self._degraded, PARTS)),
            *((self._shed, SHED), (self._events, EVENTS), (self._reloads, RELOADS)),
        )
        for family, names in listed:
            for name in names:
                family.declare(name)
        for plain in (self._ages, self._cold, self._queue, self._flying):  # the model's moments begin with the model
            plain.declare()
        self._served: tuple[str, str, str] | None = None
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    # -- what happens ---------------------------------------------------------------------------------------------

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """One HTTP request, `route` being the template; paths as they were asked must never get here."""
        valid = 100 <= status <= 599
        self._requests.add(route, method if method in METHODS else OTHER, str(status) if valid else OTHER)
        self._seconds.observe(seconds, route, f"{status // 100}xx" if valid else OTHER)

    def stage(self, name: str, ms: float) -> None:
        self._stages.observe(ms / 1e3, name)

    def state_age(self, seconds: float) -> None:
        """A list is made with a state whose last event is so old; one that a clock says is yet to come is 0 old."""
        self._ages.observe(max(seconds, 0.0))

    def degraded(self, part: str) -> None:
        self._degraded.add(part)

    def shed(self, reason: str) -> None:
        self._shed.add(reason)

    def cold_start(self) -> None:
        self._cold.add()

    def event(self, outcome: str) -> None:
        self._events.add(outcome)

    def reload(self, outcome: str) -> None:
        self._reloads.add(outcome)

    def count(self, name: str) -> None:
        """Anything else, "requests" (an answer with recommendations) among it."""
        self._counts.add(name)

    def queue(self, depth: int) -> None:
        self._queue.set(depth)

    def in_flight(self, n: int) -> None:
        self._flying.set(n)

    def model(
        self,
        version: int,
        bundle_id: str,
        dataset: str,
        trained_through: int,
        loaded_at: float,
        item_statistics_day: int,
    ) -> None:
        """What is served from now on. `trained_through` and `loaded_at`: seconds UTC; `item_statistics_day`: number
        of a UTC day, whose start is the moment as of which the statistics are."""
        served = (str(version), bundle_id, dataset)
        if self._served is not None and self._served != served:
            self._info.set(0, *self._served)  # files have no way to drop a series; `collect` leaves zeros out
        self._info.set(1, *served)
        self._served = served
        self._loaded.set(loaded_at)
        self._trained.set(trained_through)
        self._statistics.set(item_statistics_day * SECONDS_PER_DAY)

    # -- what is told ---------------------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, int]:
        """What this process counted, by name, without zeros; "events" are those applied."""
        named = {name: n for (name,), n in self._counts.by_label().items()}
        named["cold_start"] = self._cold.by_label()[()]
        prefixed = (("degraded", self._degraded), ("shed", self._shed), ("reload", self._reloads))
        for prefix, family in (*prefixed, ("events", self._events)):
            for values, n in family.by_label().items():
                named[".".join((prefix, *values))] = n
        named["events"] = named.pop("events.applied")
        return {name: int(n) for name, n in sorted(named.items()) if n}

    def exposition(self) -> tuple[bytes, str]:
        """Body and content type of GET /metrics."""
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4

    def collect(self) -> Iterable[Metric]:
        """For the registry; of all workers where they share a folder. Processes are told apart by the label `pid`."""
        if self._folder is None:
            yield from (_without_zeros(family.metric()) for family in self.families)
            yield from ProcessCollector(registry=None).collect()
            return
        pids = live_pids(self._folder)
        yield from (_without_zeros(metric) for metric in merged(self._folder))
        processes: dict[str, Metric] = {}
        for pid in pids:
            for metric in ProcessCollector(pid=partial(int, pid), registry=None).collect():
                whole = processes.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                for sample in metric.samples:
                    whole.add_sample(sample.name, {**sample.labels, "pid": str(pid)}, sample.value)
        yield from processes.values()

    def close(self) -> None:
        """Let go of the shared files. Nothing may be counted afterwards."""
        self._cells.close()


def mark_process_dead(multiprocess_dir: Path, pid: int) -> None:
    """Remove what a worker that ended was doing at the time; what it counted stays. Scrapes do so too."""
    forget(multiprocess_dir, pid)


def _without_zeros(metric: Metric) -> Metric:
    """A model that nobody serves any more is no line of its metric."""
    if metric.name == INFO:
        metric.samples = [sample for sample in metric.samples if sample.value]
    return metric
