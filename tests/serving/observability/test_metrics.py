"""Metrics: exact numbers in the exposition. Several workers as one are in `test_processes`."""

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


def test_what_happens_is_counted_and_timed() -> None:
    metrics = Metrics()
    for seconds in (0.0031, 0.004, 0.9):
        metrics.request(ROUTE, "GET", 200, seconds)
    metrics.request(ROUTE, "BREW", 503, 0.0001)
    metrics.stage("ranking", 1.5)
    metrics.count("degraded.ranking")
    metrics.count("shed.queue_full")
    metrics.count("events.repeated", 2)
    metrics.count("reload.swapped")
    metrics.count("predictions.dropped", 7)
    metrics.in_flight(2)
    metrics.state_age(-3.0)
    metrics.state_age(59.0)
    found = exposed(metrics)
    assert value(found, "recsys_requests_total", route=ROUTE, method="GET", status="200") == 3
    assert value(found, "recsys_requests_total", route=ROUTE, method="other", status="503") == 1
    labels = {"route": ROUTE, "status_class": "2xx"}
    assert value(found, "recsys_request_seconds_sum", **labels) == pytest.approx(0.9071)
    assert value(found, "recsys_request_seconds_bucket", le="0.003", **labels) == 0
    assert value(found, "recsys_request_seconds_bucket", le="0.004", **labels) == 2, "a bound belongs to its bucket"
    assert value(found, "recsys_stage_seconds_sum", stage="ranking") == 0.0015
    assert value(found, "recsys_in_flight") == 2
    assert value(found, "recsys_user_state_age_seconds_sum") == 59.0, "an event of the future is 0 seconds old"
    assert value(found, "process_resident_memory_bytes") > 10e6
    assert value(found, "recsys_degraded_total", part="retrieval") == 0, "exposed before it happens"
    assert metrics.as_dict() == {
        "degraded.ranking": 1,
        "events.repeated": 2,
        "predictions.dropped": 7,
        "reload.swapped": 1,
        "shed.queue_full": 1,
    }


def test_one_model_is_served_and_its_moments_are_exposed() -> None:
    metrics = Metrics()
    assert not [name for name, _ in exposed(metrics) if name.startswith("recsys_model")], "without a model, no age"
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
