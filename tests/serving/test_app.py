"""The edge of the app: readiness, problems, limits, OpenAPI, the page."""

import json
import re
import threading

import httpx
import pytest

from recsys.errors import RegistryError
from serving import schemas
from serving.app import PAGE, create_app
from serving.problems import ProblemDetails
from serving.service import Service

from .serving_client import running
from .serving_world import ServingWorld


def problem(response: httpx.Response, status: int) -> dict[str, object]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    ProblemDetails.model_validate(body)
    assert body["status"] == status
    assert body["instance"] == response.request.url.path
    return dict(body)


def test_not_ready_until_loaded(world: ServingWorld, service: Service) -> None:
    go = threading.Event()

    def load(*_: object) -> Service:
        go.wait(20)
        return service

    with running(create_app(world.settings, load)) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        for path in ("/readyz", "/v1/users/1/recommendations", "/v1/model"):
            assert problem(client.get(path), 503)["type"] == "urn:recsys:problem:not-ready"
        assert client.get("/readyz").headers["retry-after"] == "5"
        go.set()
        for _ in range(2_000):
            if client.get("/readyz").status_code == 200:
                break
        assert client.get("/readyz").json() == {"status": "ready"}
        assert client.get("/v1/model").status_code == 200


def test_a_model_that_cannot_be_loaded_is_told(world: ServingWorld) -> None:
    told: list[Exception] = []

    def load(*_: object) -> Service:
        raise RegistryError("no version yet")

    with running(create_app(world.settings, load, told.append)) as client:
        problem(client.get("/readyz"), 503)
    assert [str(error) for error in told] == ["no version yet"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("GET", "/v1/users/x/recommendations", None, 422, "path.user_id"),
        ("GET", f"/v1/users/{2**63}/recommendations", None, 422, "path.user_id"),
        ("GET", "/v1/users/1/recommendations?k=0", None, 422, "query.k"),
        ("GET", "/v1/users/1/recommendations?k=101", None, 422, "between 1 and 100"),
        ("GET", "/v1/users/1/history?n=65", None, 422, "query.n"),
        ("GET", "/v1/items/999/similar", None, 404, "Item 999"),
        ("GET", "/v1/nothing", None, 404, "nothing at /v1/nothing"),
        ("GET", "/page/../app.py", None, 404, "nothing at"),
        ("DELETE", "/v1/model", None, 405, "DELETE is not possible"),
        ("POST", "/v1/recommendations", {"k": 500}, 422, "between 1 and 100"),
        ("POST", "/v1/recommendations", {"history": [{"item_id": 999, "rating": 4}]}, 422, "Item 999"),
        ("POST", "/v1/recommendations", {"history": [{"item_id": 9, "rating": 4}] * 1001}, 422, "at most 1000"),
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


def test_large_bodies_are_refused_declared_or_not(client: httpx.Client) -> None:
    large = b"[" + b"1," * 600_000 + b"1]"
    headers = {"Content-Type": "application/json"}
    for content in (large, (large[i : i + 65_536] for i in range(0, len(large), 65_536))):
        response = client.post("/v1/recommendations", content=content, headers=headers)
        assert problem(response, 413)["type"] == "urn:recsys:problem:body-too-large"
    chunked = (part for part in (b'{"k"', b": 3}"))
    assert len(client.post("/v1/recommendations", content=chunked, headers=headers).json()["items"]) == 3


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
        model = getattr(schemas, name, ProblemDetails if name == "ProblemDetails" else None)
        for example in schema.get("examples", []):
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
