"""The app over HTTP: problems, ids, HEAD, paths, OpenAPI, the page."""

import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from serving.app import PAGE
from serving.http import requests, responses
from serving.http.problems import ProblemDetails
from serving.recommending.service import Service
from serving.settings import ServiceSettings
from tests.serving.in_memory_store import InMemoryStore
from tests.serving.serving_client import connected


def problem(response: httpx.Response, status: int) -> dict[str, object]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    ProblemDetails.model_validate(body)
    assert body["status"] == status
    assert body["instance"] == response.request.url.path
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
    assert client.get("/v1/users/1/recommendations").json()["degraded"] == ["user_state"]
    refused = client.post("/v1/events", json={"user_id": 1, "item_id": 2, "rating": 3})
    assert problem(refused, 503)["type"] == "urn:recsys:problem:event-not-stored"


PATHS = (
    "/",
    "/healthz",
    "/readyz",
    "/metrics",
    "/v1/model",
    "/v1/items/2",
    "/v1/users/1/recommendations",
    "/page/app.js",
)


@pytest.mark.parametrize("path", PATHS)
def test_head_answers_as_get_without_a_body(client: httpx.Client, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


def test_a_slash_at_the_end_is_another_path_and_nobody_is_sent_elsewhere(client: httpx.Client) -> None:
    for path in ("/v1/items/", "/v1/model/", "/v1/users/1/history/"):
        response = client.get(path, headers={"Host": "elsewhere.example"})
        assert response.status_code in (404, 422)
        assert "location" not in response.headers


def test_more_requests_than_a_worker_takes_are_told_to_come_back(
    settings: ServiceSettings, service: Service, store: InMemoryStore
) -> None:
    store.delay_s = 0.2
    few = settings.model_copy(update={"max_in_flight": 3})
    with connected(few, service) as client, ThreadPoolExecutor(12) as callers:
        told = list(callers.map(lambda user: client.get(f"/v1/users/{user}/recommendations"), range(1, 13)))
        statuses = Counter(response.status_code for response in told)
        assert set(statuses) == {200, 503}
        refused = next(response for response in told if response.status_code == 503)
        assert problem(refused, 503)["type"] == "urn:recsys:problem:overloaded"
        assert refused.headers["retry-after"] == "1"
        assert service.metrics.as_dict()["shed.queue_full"] == statuses[503]
        assert client.get("/v1/users/1/recommendations").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("GET", "/v1/users/x/recommendations", None, 422, "path.user_id"),
        ("GET", f"/v1/users/{2**63}/recommendations", None, 422, "path.user_id"),
        ("GET", "/v1/users/1/recommendations?k=0", None, 422, "query.k"),
        ("GET", "/v1/users/1/recommendations?k=101", None, 422, "query.k"),
        ("GET", "/v1/users/1/history?n=65", None, 422, "query.n"),
        ("GET", "/v1/items/999/similar", None, 404, "Item 999"),
        ("GET", "/v1/nothing", None, 404, "nothing at /v1/nothing"),
        ("GET", "/page/../app.py", None, 404, "nothing at"),
        ("DELETE", "/v1/model", None, 405, "DELETE is not possible"),
        ("POST", "/v1/recommendations", {"k": 500}, 422, "body.k"),
        ("POST", "/v1/recommendations", {"history": [{"item_id": 999, "rating": 4}]}, 422, "Item 999"),
        ("POST", "/v1/recommendations", {"history": [{"item_id": 9, "rating": 4}] * 1001}, 422, "body.history"),
        (
            "POST",
            "/v1/recommendations",
            {"history": [{"item_id": 9, "rating": 4, "timestamp": 9_000_000_000}]},
            422,
            "in the future",
        ),
        ("POST", "/v1/recommendations", {"filters": {"genres": ["Opera"]}}, 422, "unknown genre 'Opera'"),
        ("POST", "/v1/recommendations", {"filters": {"year_from": 2000, "year_to": 1990}}, 422, "lies after"),
        ("POST", "/v1/recommendations", {"profile": {"age": 0}}, 422, "profile.age"),
        ("POST", "/v1/recommendations", {"histroy": []}, 422, "histroy"),
        ("POST", "/v1/recommendations", {str(n): n for n in range(99)}, 422, "unknown key '0'"),
    ],
)
def test_problems(client: httpx.Client, method: str, path: str, body: object, status: int, said: str) -> None:
    found = problem(client.request(method, path, json=body), status)
    assert said in str(found["detail"])


def test_broken_json_and_other_types_of_body(client: httpx.Client) -> None:
    headers = {"Content-Type": "application/json"}
    problem(client.post("/v1/events", content=b"{", headers=headers), 422)
    problem(client.post("/v1/events", content=b"{}", headers={"Content-Type": "text/plain"}), 422)
    problem(client.post("/v1/events", content=b"\xff\xfe", headers=headers), 422)


def test_request_ids(client: httpx.Client) -> None:
    sent = client.get("/v1/users/1/recommendations", headers={"X-Request-ID": "abc-1"})
    assert sent.headers["x-request-id"] == sent.json()["request_id"] == "abc-1"
    odd = client.get("/v1/users/1/recommendations", headers={"X-Request-ID": "a b\t<script>"}).json()["request_id"]
    assert re.fullmatch(r"[0-9a-f]{32}", odd)


def test_other_origins_get_no_permission(client: httpx.Client) -> None:
    response = client.get("/v1/model", headers={"Origin": "https://elsewhere.example"})
    assert "access-control-allow-origin" not in response.headers
    problem(client.options("/v1/events", headers={"Origin": "https://elsewhere.example"}), 405)


def test_openapi_examples_are_valid_and_answers_fit_their_schema(client: httpx.Client) -> None:
    api = client.get("/openapi.json").json()
    checked = []
    for name, schema in api["components"]["schemas"].items():
        model = getattr(requests, name, None) or getattr(responses, name, None)
        for example in schema.get("examples", []):
            model = ProblemDetails if name == "ProblemDetails" else model
            assert model is not None
            assert model.model_validate(example).model_dump(exclude_unset=True) == example
            checked.append(name)
    assert {"Recommended", "RecommendationRequest", "EventRequest", "ModelCard", "ProblemDetails"} <= set(checked)
    assert "#/components/schemas/HTTPValidationError" not in json.dumps(api["paths"])
    assert set(api["paths"]) == {
        "/v1/users/{user_id}/recommendations",
        "/v1/recommendations",
        "/v1/users/recommendations",
        "/v1/items",
        "/v1/items/{item_id}",
        "/v1/items/{item_id}/similar",
        "/v1/events",
        "/v1/users/{user_id}/history",
        "/v1/model",
        "/v1/admin/reload",
        "/healthz",
        "/readyz",
        "/metrics",
    }


def test_the_page_is_self_contained_and_writes_text_only(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    assert page.headers["x-content-type-options"] == "nosniff"
    for path in re.findall(r'(?:src|href)="(/page/[^"]+)"', page.text):
        assert client.get(path).status_code == 200
    whole = "".join(path.read_text(encoding="utf-8") for path in PAGE.iterdir())
    assert not re.search(r"https?://|//cdn", whole)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", whole)
    assert "synthetic" in page.text


def test_titles_reach_the_page_as_they_are(client: httpx.Client) -> None:
    item = client.get("/v1/items/1/similar").json()["item"]
    assert item["title"] == '<b>Bold</b> & "Quoted" (1990)'
