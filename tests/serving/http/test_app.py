"""The app over HTTP: problems, ids, HEAD, paths, the page."""

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from serving.app import PAGE
from serving.http.problems import ProblemDetails
from serving.recommending.service import Service
from serving.settings import ServiceSettings
from tests.serving.in_memory_store import InMemoryStore
from tests.serving.serving_client import connected

LIST, HISTORY = "/v1/users/1/recommendations", "/v1/recommendations"


def problem(response: httpx.Response, status: int) -> dict[str, object]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    ProblemDetails.model_validate(body)
    assert (body["status"], body["instance"]) == (status, response.request.url.path)
    return dict(body)


def test_probes(client: httpx.Client, store: InMemoryStore, settings: ServiceSettings) -> None:
    assert client.get("/healthz").json() == {"status": "ok", "failing": []}
    assert client.get("/readyz").json() == {"status": "ready", "failing": []}
    store.failing = True
    assert client.get("/readyz").json() == {"status": "degraded", "failing": ["online store"]}
    settings.events.close()
    Path(str(settings.events.url.database)).write_bytes(b"no database at all" * 1_000)
    degraded = client.get("/readyz")
    assert (degraded.status_code, degraded.json()["failing"]) == (200, ["online store", "event table"])
    assert client.get(LIST).json()["degraded"] == ["user_state"]
    refused = client.post("/v1/events", json={"user_id": 1, "item_id": 2, "rating": 3})
    assert problem(refused, 503)["type"] == "urn:recsys:problem:event-not-stored"


def test_metrics_end_with_the_gauges_of_the_last_monitor_report(
    client: httpx.Client, settings: ServiceSettings
) -> None:
    settings.home.reports.mkdir(parents=True, exist_ok=True)
    (settings.home.reports / "monitor.prom").write_text("recsys_monitor_alarms 2.0\n")
    assert client.get("/metrics").text.endswith("\nrecsys_monitor_alarms 2.0\n")


@pytest.mark.parametrize("path", ["/", "/healthz", "/metrics", "/v1/model", LIST, "/page/app.js"])
def test_head_answers_as_get_without_a_body(client: httpx.Client, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


def test_more_requests_than_a_worker_takes_are_sent_away(
    settings: ServiceSettings, service: Service, store: InMemoryStore
) -> None:
    store.delay_s = 0.2
    few = settings.model_copy(update={"max_in_flight": 3})
    with connected(few, service) as client, ThreadPoolExecutor(12) as callers:
        answers = list(callers.map(lambda user: client.get(f"/v1/users/{user}/recommendations"), range(1, 13)))
        statuses = Counter(response.status_code for response in answers)
        assert set(statuses) == {200, 503}
        refused = next(response for response in answers if response.status_code == 503)
        assert problem(refused, 503)["type"] == "urn:recsys:problem:overloaded"
        assert refused.headers["retry-after"] == "1"
        assert service.metrics.as_dict()["shed.queue_full"] == statuses[503]
        assert client.get(LIST).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("GET", "/v1/users/x/recommendations", None, 422, "path.user_id"),
        ("GET", f"/v1/users/{2**63}/recommendations", None, 422, "path.user_id"),
        ("GET", f"{LIST}?k=0", None, 422, "query.k"),
        ("GET", f"{LIST}?k=101", None, 422, "query.k"),
        ("GET", f"{LIST}?genre=Opera", None, 422, "unknown genre 'Opera'"),
        ("GET", f"{LIST}?year_from=2000&year_to=1990", None, 422, "lies after"),
        ("GET", f"{LIST}?diversity=1.5", None, 422, "query.diversity"),
        ("GET", f"{LIST}?diversity=nan", None, 422, "query.diversity"),
        ("GET", f"{LIST}?colour=red", None, 422, "query.colour"),
        ("GET", f"{LIST}?{'exclude_ids=1&' * 201}", None, 422, "query.exclude_ids"),
        ("GET", "/v1/users/1/history?n=65", None, 422, "query.n"),
        ("GET", "/v1/nothing", None, 404, "nothing at /v1/nothing"),
        ("GET", "/v1/model/", None, 404, "nothing at /v1/model/"),
        ("GET", "/page/../app.py", None, 404, "nothing at"),
        ("DELETE", "/v1/model", None, 405, "DELETE is not possible"),
        ("OPTIONS", "/v1/events", None, 405, "OPTIONS is not possible"),
        ("POST", HISTORY, {"k": 500}, 422, "body.k"),
        ("POST", HISTORY, {"history": [{"item_id": 999, "rating": 4}]}, 422, "Item 999"),
        ("POST", HISTORY, {"history": [{"item_id": 9, "rating": 4}] * 1001}, 422, "body.history"),
        ("POST", HISTORY, {"history": [{"item_id": 9, "rating": 4, "timestamp": 9_000_000_000}]}, 422, "in the future"),
        ("POST", HISTORY, {"filters": {"genres": ["Opera"]}}, 422, "unknown genre 'Opera'"),
        ("POST", HISTORY, {"filters": {"year_from": 2000, "year_to": 1990}}, 422, "lies after"),
        ("POST", HISTORY, {"profile": {"age": 0}}, 422, "profile.age"),
        ("POST", HISTORY, {"histroy": []}, 422, "histroy"),
        ("POST", HISTORY, {str(n): n for n in range(99)}, 422, "unknown key '0'"),
    ],
)
def test_problems(client: httpx.Client, method: str, path: str, body: object, status: int, words: str) -> None:
    assert words in str(problem(client.request(method, path, json=body), status)["detail"])


def test_broken_json_and_other_types_of_body(client: httpx.Client) -> None:
    for content, kind in ((b"{", "application/json"), (b"{}", "text/plain"), (b"\xff\xfe", "application/json")):
        problem(client.post("/v1/events", content=content, headers={"Content-Type": kind}), 422)


def test_request_ids(client: httpx.Client) -> None:
    sent = client.get(LIST, headers={"X-Request-ID": "abc-1"})
    assert sent.headers["x-request-id"] == sent.json()["request_id"] == "abc-1"
    odd = client.get(LIST, headers={"X-Request-ID": "a b\t<script>"}).json()["request_id"]
    assert re.fullmatch(r"[0-9a-f]{32}", odd)


def test_the_page_is_self_contained_and_writes_text_only(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    for path in re.findall(r'(?:src|href)="(/page/[^"]+)"', page.text):
        assert client.get(path).status_code == 200
    whole = "".join(path.read_text(encoding="utf-8") for path in PAGE.iterdir())
    assert not re.search(r"https?://|//cdn", whole)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", whole)
    assert "synthetic" in page.text
    item = client.get("/v1/items/1/similar").json()["item"]
    assert item["title"] == '<b>Bold</b> & "Quoted" (1990)', "titles reach the page as they are"
