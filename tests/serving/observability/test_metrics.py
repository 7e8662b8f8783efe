"""Metrics: exact numbers in the exposition and several workers as one."""

import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from recsys.features.item_stats import SECONDS_PER_DAY
from serving.observability import metrics as names
from serving.observability.metrics import Metrics

ROUTE = "/v1/users/{user_id}/recommendations"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Samples:
    """Name and labels to value, as Prometheus reads them."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
    assert len(found) == len(samples), "a series twice"
    return found


def exposed(metrics: Metrics) -> Samples:
    body, kind = metrics.exposition()
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    return parsed(body.decode())


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def test_requests_are_counted_and_timed() -> None:
    metrics = Metrics()
    for seconds in (0.0031, 0.004, 0.9):
        metrics.request(ROUTE, "GET", 200, seconds)
    metrics.request(ROUTE, "BREW", 503, 0.0001)
    found = exposed(metrics)
    assert value(found, "recsys_requests_total", route=ROUTE, method="GET", status="200") == 3
    assert value(found, "recsys_requests_total", route=ROUTE, method="other", status="503") == 1
    labels = {"route": ROUTE, "status_class": "2xx"}
    assert value(found, "recsys_request_seconds_count", **labels) == 3
    assert value(found, "recsys_request_seconds_sum", **labels) == pytest.approx(0.9071)
    assert value(found, "recsys_request_seconds_bucket", le="0.003", **labels) == 0
    assert value(found, "recsys_request_seconds_bucket", le="0.004", **labels) == 2, "a bound belongs to its bucket"
    assert value(found, "recsys_request_seconds_count", route=ROUTE, status_class="5xx") == 1


def test_everything_else_is_counted_by_its_name() -> None:
    metrics = Metrics()
    metrics.stage("ranking", 1.5)
    metrics.degraded("ranking")
    metrics.degraded("ranking")
    metrics.shed("queue_full")
    metrics.event("repeated")
    metrics.reload("swapped")
    metrics.count("cold_start")
    metrics.count("predictions.dropped", 7)
    metrics.in_flight(2)
    metrics.state_age(-3.0)
    metrics.state_age(59.0)
    found = exposed(metrics)
    assert value(found, "recsys_stage_seconds_sum", stage="ranking") == 0.0015
    assert value(found, "recsys_degraded_total", part="ranking") == 2
    assert value(found, "recsys_shed_total", reason="queue_full") == 1
    assert value(found, "recsys_events_total", outcome="repeated") == 1
    assert value(found, "recsys_reloads_total", outcome="swapped") == 1
    assert value(found, "recsys_operations_total", operation="predictions.dropped") == 7
    assert value(found, "recsys_in_flight") == 2
    assert value(found, "recsys_user_state_age_seconds_sum") == 59.0, "an event of the future is 0 seconds old"
    assert value(found, "process_resident_memory_bytes") > 10e6
    assert metrics.as_dict() == {
        "cold_start": 1,
        "degraded.ranking": 2,
        "events.repeated": 1,
        "predictions.dropped": 7,
        "reload.swapped": 1,
        "shed.queue_full": 1,
    }


def test_what_has_not_happened_is_exposed_at_zero() -> None:
    found = exposed(Metrics())
    assert all(value(found, "recsys_degraded_total", part=part) == 0 for part in names.PARTS)
    assert all(value(found, "recsys_shed_total", reason=reason) == 0 for reason in names.SHED)
    assert all(value(found, "recsys_operations_total", operation=name) == 0 for name in names.COUNTS)
    assert not [name for name, _ in found if name.startswith("recsys_model")], "without a model it has no age"
    assert Metrics().as_dict() == {}


def test_one_model_is_served_and_its_moments_are_exposed() -> None:
    metrics = Metrics()
    metrics.model(3, "one", "ml-100k", 893_286_638, 1_795_000_000.25, 10_338)
    metrics.model(4, "two", "ml-100k", 893_286_700, 1_795_000_100.25, 10_339)
    found = exposed(metrics)
    assert value(found, "recsys_model_info", version="3", bundle_id="one", dataset="ml-100k") == 0
    assert value(found, "recsys_model_info", version="4", bundle_id="two", dataset="ml-100k") == 1
    moments = {moment: value(found, "recsys_model_timestamp_seconds", moment=moment) for moment in names.MOMENTS}
    assert moments == {
        "loaded": 1_795_000_100.25,
        "trained_through": 893_286_700,
        "item_statistics": 10_339 * SECONDS_PER_DAY,
    }


WORKER = """
import sys
from serving.observability.metrics import Metrics

metrics, n = Metrics(), int(sys.argv[1])
for _ in range(n):
    metrics.request("/v1/model", "GET", 200, 0.002)
    metrics.degraded("ranking")
metrics.in_flight(n)
metrics.model(3, "one", "ml-100k", 100, 50.0, 3)
metrics.model(4, "two", "ml-100k", 100 + n, 50.0, 3)
for _ in sys.stdin:
    body = metrics.exposition()[0].decode()
    print(len(body.splitlines()), body, f"{metrics.as_dict()['degraded.ranking']} here", sep="\\n", flush=True)
"""


def start(folder: Path, n: int) -> subprocess.Popen[str]:
    """A worker that counts n requests, and prints its exposition for each line that it is given."""
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(n)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PROMETHEUS_MULTIPROC_DIR": str(folder), "PYTHONPATH": ":".join(sys.path)},
    )


def scraped(worker: subprocess.Popen[str]) -> tuple[Samples, str]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("\n")
    worker.stdin.flush()
    lines = [worker.stdout.readline() for _ in range(int(worker.stdout.readline()))]
    assert worker.stdout.readline() == "\n"
    return parsed("".join(lines)), worker.stdout.readline().strip()


def test_a_scrape_of_one_worker_answers_for_all_and_the_counts_of_a_dead_one_stay(tmp_path: Path) -> None:
    first, second = start(tmp_path, 1), start(tmp_path, 7)
    try:
        scraped(second)
        found, here = scraped(first)
        assert here == "1 here", "the card of a model counts its own process"
        assert value(found, "recsys_requests_total", route="/v1/model", method="GET", status="200") == 8
        assert value(found, "recsys_request_seconds_count", route="/v1/model", status_class="2xx") == 8
        assert value(found, "recsys_degraded_total", part="ranking") == 8
        assert value(found, "recsys_degraded_total", part="retrieval") == 0
        assert value(found, "recsys_in_flight") == 8
        assert value(found, "recsys_model_info", version="4", bundle_id="two", dataset="ml-100k") == 2
        assert value(found, "recsys_model_timestamp_seconds", moment="trained_through") == 101, "the oldest"
        for worker in (first, second):
            assert value(found, "process_resident_memory_bytes", pid=str(worker.pid)) > 10e6
        second.communicate()
        found, _ = scraped(first)
        assert value(found, "recsys_degraded_total", part="ranking") == 8
        assert value(found, "recsys_in_flight") == 1
        assert value(found, "recsys_model_info", version="4", bundle_id="two", dataset="ml-100k") == 1
        assert ("process_resident_memory_bytes", frozenset({("pid", str(second.pid))})) not in found
    finally:
        first.communicate()
        second.communicate()
