"""Metrics: exact numbers in the exposition, bounded labels, several workers as one, and what an observation costs."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as ReferenceHistogram
from prometheus_client.parser import text_string_to_metric_families

from serving import metrics as names
from serving.instruments import LONGEST_LABEL, OTHER, Cells, Counter, Gauge, Histogram, live_pids
from serving.metrics import INFO, REQUEST_BOUNDS, SECONDS_PER_DAY, STAGE_BOUNDS, Metrics, mark_process_dead

ROUTE = "/v1/users/{user_id}/recommendations"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def exposed(metrics: Metrics) -> Samples:
    """Name and labels to value, as Prometheus reads them."""
    body, kind = metrics.exposition()
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    found: Samples = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, "a series twice"
            found[key] = sample.value
    return found


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def series(found: Samples, name: str) -> dict[frozenset[tuple[str, str]], float]:
    return {labels: number for (n, labels), number in found.items() if n == name}


def test_requests_are_counted_and_timed() -> None:
    metrics = Metrics()
    for seconds in (0.0031, 0.004, 0.9):
        metrics.request(ROUTE, "GET", 200, seconds)
    metrics.request(ROUTE, "GET", 503, 0.0001)
    found = exposed(metrics)
    assert value(found, "recsys_requests_total", route=ROUTE, method="GET", status="200") == 3
    assert value(found, "recsys_requests_total", route=ROUTE, method="GET", status="503") == 1
    labels = {"route": ROUTE, "status_class": "2xx"}
    assert value(found, "recsys_request_seconds_count", **labels) == 3
    assert value(found, "recsys_request_seconds_sum", **labels) == pytest.approx(0.9071)
    assert value(found, "recsys_request_seconds_bucket", le="0.003", **labels) == 0
    assert value(found, "recsys_request_seconds_bucket", le="0.004", **labels) == 2, "a bound belongs to its bucket"
    assert value(found, "recsys_request_seconds_bucket", le="0.5", **labels) == 2
    assert value(found, "recsys_request_seconds_bucket", le="+Inf", **labels) == 3
    assert value(found, "recsys_request_seconds_count", route=ROUTE, status_class="5xx") == 1


def test_a_histogram_is_the_one_of_prometheus_client() -> None:
    registry = CollectorRegistry()
    reference = ReferenceHistogram("x", "some text", ["stage"], registry=registry, buckets=STAGE_BOUNDS)
    ours = Histogram(Cells(None, 1), "x", "some text", STAGE_BOUNDS, ("stage",))
    for step in range(2_000):
        seconds = step / 1_700 * STAGE_BOUNDS[step % len(STAGE_BOUNDS)]
        reference.labels("ranking").observe(seconds)
        ours.observe(seconds, "ranking")
    for bound in STAGE_BOUNDS:
        reference.labels("ranking").observe(bound)
        ours.observe(bound, "ranking")
    (expected,) = reference.collect()
    wanted = {(s.name, frozenset(s.labels.items())): s.value for s in expected.samples if "_created" not in s.name}
    assert {(s.name, frozenset(s.labels.items())): s.value for s in ours.metric().samples} == wanted


def test_bounds_are_where_budgets_lie() -> None:
    for bounds in (REQUEST_BOUNDS, STAGE_BOUNDS):
        assert list(bounds) == sorted(set(bounds))
        assert 0.05 in bounds, "the default budget, so that the share within it is exact"
    assert len([b for b in REQUEST_BOUNDS if 0.001 <= b <= 0.1]) >= 15


def test_ages_of_states_go_from_seconds_to_decades() -> None:
    metrics = Metrics()
    assert value(exposed(metrics), "recsys_user_state_age_seconds_count") == 0, "there before the first state is read"
    for age in (-3.0, 1.0, 59.0, 30 * 365 * 86_400.0):
        metrics.state_age(age)
    found = exposed(metrics)
    buckets = series(found, "recsys_user_state_age_seconds_bucket")
    younger = {float(dict(labels)["le"]): number for labels, number in buckets.items()}
    years = 365 * 86_400.0
    assert (younger[1.0], younger[60.0], younger[10 * years], younger[40 * years]) == (2, 3, 3, 4)
    assert value(found, "recsys_user_state_age_seconds_sum") == 60.0 + 30 * 365 * 86_400


def test_everything_else_is_counted_by_its_name() -> None:
    metrics = Metrics()
    metrics.stage("ranking", 1.5)
    metrics.degraded("ranking")
    metrics.degraded("ranking")
    metrics.shed("queue_full")
    metrics.cold_start()
    metrics.event("applied")
    metrics.event("pending")
    metrics.reload("swapped")
    metrics.count("requests")
    metrics.count("similar")
    metrics.queue(3)
    metrics.in_flight(2)
    found = exposed(metrics)
    assert value(found, "recsys_stage_seconds_sum", stage="ranking") == 0.0015
    assert value(found, "recsys_stage_seconds_bucket", stage="ranking", le="0.001") == 0
    assert value(found, "recsys_stage_seconds_bucket", stage="ranking", le="0.0015") == 1
    assert value(found, "recsys_degraded_total", part="ranking") == 2
    assert value(found, "recsys_shed_total", reason="queue_full") == 1
    assert value(found, "recsys_cold_starts_total") == 1
    assert value(found, "recsys_events_total", outcome="applied") == 1
    assert value(found, "recsys_reloads_total", outcome="swapped") == 1
    assert value(found, "recsys_operations_total", operation="similar") == 1
    assert value(found, "recsys_queue_depth") == 3
    assert value(found, "recsys_in_flight") == 2
    assert metrics.as_dict() == {
        "cold_start": 1,
        "degraded.ranking": 2,
        "events": 1,
        "events.pending": 1,
        "reload.swapped": 1,
        "requests": 1,
        "shed.queue_full": 1,
        "similar": 1,
    }


def test_what_has_not_happened_is_there_at_zero_and_not_in_the_card() -> None:
    metrics = Metrics()
    found = exposed(metrics)
    for part in names.PARTS:
        assert value(found, "recsys_degraded_total", part=part) == 0
    for reason in names.SHED:
        assert value(found, "recsys_shed_total", reason=reason) == 0
    for stage in names.STAGES:
        assert value(found, "recsys_stage_seconds_count", stage=stage) == 0
    assert value(found, "recsys_queue_depth") == 0
    assert metrics.as_dict() == {}


def test_a_model_and_its_ages() -> None:
    metrics = Metrics()
    assert not series(exposed(metrics), "recsys_model_loaded_timestamp_seconds"), "no model is no age of 56 years"
    metrics.model(3, "one", "ml-100k", 893_286_638, 1_795_000_000.25, 10_338)
    metrics.model(4, "two", "ml-100k", 893_286_700, 1_795_000_100.25, 10_339)
    found = exposed(metrics)
    labels = frozenset({("version", "4"), ("bundle_id", "two"), ("dataset", "ml-100k")})
    assert series(found, INFO) == {labels: 1}, "one model is served"
    assert value(found, "recsys_model_loaded_timestamp_seconds") == 1_795_000_100.25
    assert value(found, "recsys_model_trained_through_timestamp_seconds") == 893_286_700
    assert value(found, "recsys_item_statistics_timestamp_seconds") == 10_339 * SECONDS_PER_DAY
    metrics.model(4, "two", "ml-100k", 893_286_700, 1_795_000_100.25, 10_340)
    found = exposed(metrics)
    assert series(found, INFO) == {labels: 1}, "new statistics are not a new model"
    assert value(found, "recsys_item_statistics_timestamp_seconds") == 10_340 * SECONDS_PER_DAY


def test_the_process_is_measured() -> None:
    found = exposed(Metrics())
    assert value(found, "process_resident_memory_bytes") > 10e6
    assert value(found, "process_cpu_seconds_total") > 0
    assert value(found, "process_open_fds") >= 3


def test_nobody_can_make_series_without_end() -> None:
    metrics = Metrics()
    for n in range(1_000):
        metrics.request(f"/v1/users/{n}/recommendations", "GET", 200, 0.001)
        metrics.degraded(f"part{n}")
    found = exposed(metrics)
    requests = series(found, "recsys_requests_total")
    assert len(requests) == 401
    assert sum(requests.values()) == 1_000
    assert value(found, "recsys_requests_total", route=OTHER, method=OTHER, status=OTHER) == 600
    parts = series(found, "recsys_degraded_total")
    assert sum(parts.values()) == 1_000
    assert len(parts) == 65
    assert metrics.as_dict()["degraded.other"] == 1_000 - (64 - len(names.PARTS))


def test_odd_methods_statuses_and_long_labels_are_other() -> None:
    metrics = Metrics()
    metrics.request(ROUTE, "BREW", 200, 0.001)
    metrics.request(ROUTE, "GET", 999, 0.001)
    metrics.degraded("x" * (LONGEST_LABEL + 1))
    found = exposed(metrics)
    assert value(found, "recsys_requests_total", route=ROUTE, method=OTHER, status="200") == 1
    assert value(found, "recsys_requests_total", route=ROUTE, method="GET", status=OTHER) == 1
    assert value(found, "recsys_request_seconds_count", route=ROUTE, status_class=OTHER) == 1
    assert value(found, "recsys_degraded_total", part=OTHER) == 1


def test_a_series_has_all_its_labels() -> None:
    family = Counter(Cells(None, 1), "x", "text", ("a", "b"))
    with pytest.raises(ValueError, match=r"x has the labels \('a', 'b'\), not \('1',\)"):
        family.add("1")


def test_threads_lose_nothing() -> None:
    metrics = Metrics()

    def work() -> None:
        for _ in range(3_000):
            metrics.request(ROUTE, "GET", 200, 0.001)
            metrics.count("requests")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert metrics.as_dict()["requests"] == 24_000
    found = exposed(metrics)
    assert value(found, "recsys_request_seconds_count", route=ROUTE, status_class="2xx") == 24_000
    assert value(found, "recsys_request_seconds_sum", route=ROUTE, status_class="2xx") == pytest.approx(24.0)


def test_two_instances_share_nothing() -> None:
    first, second = Metrics(), Metrics()
    first.count("similar")
    assert second.as_dict() == {}


# -- several workers --------------------------------------------------------------------------------------------------

WORKER = """
import sys
from pathlib import Path
from serving.metrics import Metrics

metrics = Metrics(Path(sys.argv[1]))
for _ in range(7):
    metrics.request("/v1/model", "GET", 200, 0.002)
    metrics.degraded("ranking")
metrics.stage("ranking", 1.0)
metrics.in_flight(5)
metrics.model(4, "two", "ml-100k", 100, 50.0, 3)
print("ready", flush=True)
sys.stdin.readline()
"""


def start(folder: Path) -> subprocess.Popen[str]:
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == "ready\n"
    return worker


def stop(worker: subprocess.Popen[str]) -> None:
    worker.communicate("done\n", timeout=20)


def test_two_processes_are_summed(tmp_path: Path) -> None:
    here = Metrics(tmp_path)
    here.request("/v1/model", "GET", 200, 0.2)
    here.degraded("ranking")
    here.in_flight(1)
    here.model(3, "one", "ml-100k", 200, 60.0, 2)
    here.model(4, "two", "ml-100k", 200, 60.0, 2)
    worker = start(tmp_path)
    try:
        found = exposed(here)
    finally:
        stop(worker)
    labels = {"route": "/v1/model", "status_class": "2xx"}
    assert value(found, "recsys_requests_total", route="/v1/model", method="GET", status="200") == 8
    assert value(found, "recsys_request_seconds_count", **labels) == 8
    assert value(found, "recsys_request_seconds_sum", **labels) == pytest.approx(0.2 + 7 * 0.002)
    assert value(found, "recsys_request_seconds_bucket", le="0.002", **labels) == 7
    assert value(found, "recsys_request_seconds_bucket", le="0.25", **labels) == 8
    assert value(found, "recsys_degraded_total", part="ranking") == 8
    assert value(found, "recsys_degraded_total", part="retrieval") == 0
    assert value(found, "recsys_in_flight") == 6
    assert value(found, INFO, version="4", bundle_id="two", dataset="ml-100k") == 2, "two workers serve it"
    assert len(series(found, INFO)) == 1
    assert value(found, "recsys_model_loaded_timestamp_seconds") == 50, "the oldest"
    assert value(found, "recsys_model_trained_through_timestamp_seconds") == 100
    assert value(found, "recsys_item_statistics_timestamp_seconds") == 2 * SECONDS_PER_DAY
    pids = {dict(labels)["pid"] for labels in series(found, "process_resident_memory_bytes")}
    assert pids == {str(os.getpid()), str(worker.pid)}
    assert here.as_dict() == {"degraded.ranking": 1}, "of this process alone"
    here.close()


def test_a_process_of_somebody_else_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "counter_1.db").touch()
    (tmp_path / "gauge_livesum_1.db").touch()

    def refuse(pid: int, signal: int) -> None:
        raise PermissionError(pid, signal)

    monkeypatch.setattr(os, "kill", refuse)
    assert live_pids(tmp_path) == [1]
    assert (tmp_path / "gauge_livesum_1.db").exists()


@pytest.mark.parametrize("told", [True, False], ids=["told", "found out by the next scrape"])
def test_what_a_dead_worker_counted_stays_and_what_it_was_doing_goes(tmp_path: Path, told: bool) -> None:
    here = Metrics(tmp_path)
    worker = start(tmp_path)
    stop(worker)
    if told:
        mark_process_dead(tmp_path, worker.pid)
        assert not list(tmp_path.glob(f"gauge_*_{worker.pid}.db"))
    found = exposed(here)
    assert not list(tmp_path.glob(f"gauge_*_{worker.pid}.db"))
    assert value(found, "recsys_degraded_total", part="ranking") == 7
    assert value(found, "recsys_in_flight") == 0
    assert not series(found, INFO)
    assert not series(found, "recsys_model_loaded_timestamp_seconds")
    assert len(series(found, "process_open_fds")) == 1
    here.close()


def test_a_process_number_that_comes_again_goes_on_counting(tmp_path: Path) -> None:
    for _ in range(2):
        cells = Cells(tmp_path, 1234)
        family = Counter(cells, "x", "text")
        family.add()
        cells.close()
    assert family.by_label() == {(): 2}


def test_a_process_number_that_comes_again_starts_with_empty_gauges(tmp_path: Path) -> None:
    for expected in (0, 0):
        metrics = Metrics(tmp_path)
        assert value(exposed(metrics), "recsys_queue_depth") == expected
        assert not series(exposed(metrics), INFO)
        metrics.queue(4)
        metrics.model(1, "one", "ml-100k", 1, 1.0, 1)
        metrics.close()


def test_files_and_memory_expose_the_same(tmp_path: Path) -> None:
    seen: list[Samples] = []
    for folder in (None, tmp_path):
        metrics = Metrics(folder)
        metrics.request(ROUTE, "GET", 200, 0.0031)
        metrics.degraded("ranking")
        metrics.model(3, "one", "ml-100k", 200, 60.0, 2)
        metrics.queue(3)
        seen.append({key: n for key, n in exposed(metrics).items() if not key[0].startswith("process_")})
        metrics.close()
    memory, files = seen
    assert memory == files


def test_the_shared_folder_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no folder"):
        Metrics(tmp_path / "missing")


def test_a_gauge_without_a_worker_is_not_exposed() -> None:
    gauge = Gauge(Cells(None, 1), "x", "text")
    assert gauge.metric().samples == []
    gauge.set(0.0)
    assert [s.value for s in gauge.metric().samples] == [0.0]


@pytest.mark.parametrize("shared", [False, True], ids=["memory", "files"])
def test_a_request_costs_microseconds(tmp_path: Path, shared: bool) -> None:
    """Everything that one full answer counts, the best of several rounds: the machine may be busy, the code is not."""
    metrics = Metrics(tmp_path if shared else None)
    rounds = []
    for _ in range(20):
        started = time.perf_counter()
        for _ in range(200):
            for stage in ("state", "retrieval", "features", "ranking", "ordering", "queue", "total"):
                metrics.stage(stage, 1.2)
            metrics.queue(0)
            metrics.in_flight(1)
            metrics.in_flight(0)
            metrics.count("requests")
            metrics.request(ROUTE, "GET", 200, 0.0031)
        rounds.append((time.perf_counter() - started) / 200)
    metrics.close()
    assert min(rounds) < (50e-6 if shared else 30e-6)
