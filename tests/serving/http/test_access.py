"""Who may write, how often one may ask, which pages may read; and the headers of every answer."""

import logging
import socket
from collections.abc import Iterator

import httpx
import pytest
from pydantic import SecretStr

from recsys.errors import ConfigError
from recsys.settings import Settings
from serving.app import create_app
from serving.http import access
from serving.http.access import Buckets
from serving.recommending.service import Service
from serving.settings import ServiceSettings, is_loopback
from tests.serving.serving_client import connected
from tests.serving.serving_world import ServingWorld

KEY = "a-long-random-text-0123456789"
EVENT = {"user_id": 3, "item_id": 4, "rating": 4.0}


@pytest.fixture
def keyed(settings: ServiceSettings, service: Service) -> Iterator[httpx.Client]:
    with connected(settings.model_copy(update={"api_key": SecretStr(KEY)}), service) as client:
        yield client


def test_writes_need_the_key_and_reads_do_not(keyed: httpx.Client, service: Service) -> None:
    for headers in ({}, {"X-API-Key": KEY[:-1]}, {"Authorization": f"Basic {KEY}"}, {"X-API-Key": "schlüssel"}):
        encoded = {name: value.encode() for name, value in headers.items()}
        refused = keyed.post("/v1/events", json=EVENT, headers=encoded)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert refused.json()["type"] == "urn:recsys:problem:key-needed"
        assert KEY not in refused.text
    assert "events.stored" not in service.metrics.as_dict()
    for headers in ({"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}, {"Authorization": f"bearer {KEY}"}):
        assert keyed.post("/v1/events", json=EVENT, headers=headers).status_code == 201
    assert keyed.get("/v1/users/3/recommendations").status_code == 200
    assert keyed.post("/v1/recommendations", json={}).status_code == 200


def test_no_spelling_of_a_path_passes_by_the_key(keyed: httpx.Client, service: Service) -> None:
    for path in ("/v1/events%0A", "/v1/events/", "/v1/admin/reload", "/v1/admin/reload%0A", "/v1/admin/nothing"):
        assert keyed.post(path, json=EVENT).status_code == 401, path
    assert "events.stored" not in service.metrics.as_dict()


def test_every_route_that_changes_something_is_protected(settings: ServiceSettings, service: Service) -> None:
    """A new route with another method than GET has to be added here, or to `access.PROTECTED`."""
    asking = {"/v1/recommendations", "/v1/users/recommendations"}
    paths = create_app(settings, service).openapi()["paths"]
    changing = {path for path, methods in paths.items() if set(methods) - {"get"}}
    assert {path for path in changing if not path.startswith(access.PROTECTED)} == asking


def test_without_a_key_pages_of_other_origins_may_not_write(client: httpx.Client) -> None:
    host = client.base_url.netloc.decode()
    foreign = (
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
        {"Origin": "http://[broken"},
        {"Host": "rebound.example"},
    )
    for headers in foreign:
        for path in ("/v1/events", "/v1/admin/reload"):
            refused = client.post(path, json=EVENT, headers=headers)
            assert refused.status_code == 403, headers
            assert refused.json()["type"] == "urn:recsys:problem:foreign-origin"
    assert client.post("/v1/events", json=EVENT, headers={"Origin": f"http://{host}"}).status_code == 201


def build(world: ServingWorld, **options: object) -> ServiceSettings:
    return ServiceSettings.build(Settings(home=world.home.root.parent), world.home, **options)


def test_a_service_that_a_network_reaches_needs_a_key(world: ServingWorld) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.7", "example.org"):
        with pytest.raises(ConfigError, match=f"listen on {host}, beyond this machine.*RECSYS_API_KEY"):
            build(world, host=host)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *((host, True) for host in ("127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost")),
        *((host, False) for host in ("0.0.0.0", "localhost.example.org", "", "10.0.0.1")),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_the_key_is_never_told(
    keyed: httpx.Client, settings: ServiceSettings, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        keyed.post("/v1/events", json=EVENT, headers={"X-API-Key": KEY})
        answers = [keyed.get(path).text for path in ("/v1/model", "/metrics", "/openapi.json", "/v1/nothing")]
    keyed_settings = settings.model_copy(update={"api_key": SecretStr(KEY)})
    assert KEY not in "".join([*answers, caplog.text, repr(keyed_settings), str(keyed_settings.model_dump())])


# -- rates --------------------------------------------------------------------------------------------------------


def test_a_bucket_gives_a_burst_and_then_a_rate() -> None:
    now = [100.0]
    buckets = Buckets(rate=2.0, burst=3, clock=lambda: now[0])
    assert [buckets.take("a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert buckets.take("b") == 0.0
    now[0] += 0.25
    assert buckets.take("a") == 0.25
    now[0] += 0.25
    assert [buckets.take("a"), buckets.take("a")] == [0.0, 0.5]
    now[0] += 1_000
    assert [buckets.take("a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


def test_the_number_of_buckets_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "CLIENTS", 3)
    buckets = Buckets(rate=1.0, burst=1, clock=lambda: 0.0)
    for client in ("a", "b", "c", "a", "d"):  # b asked longest ago
        buckets.take(client)
    assert len(buckets) == 3
    assert [buckets.take("a"), buckets.take("b")] == [1.0, 0.0]


def test_a_client_beyond_its_rate_is_told_to_wait(settings: ServiceSettings, service: Service) -> None:
    limits = {"rate_per_s": 0.01, "burst": 5, "api_key": SecretStr(KEY)}
    with connected(settings.model_copy(update=limits), service) as client:
        statuses = [client.get("/v1/items/2").status_code for _ in range(7)]
        assert statuses == [200] * 5 + [429] * 2
        refused = client.get("/v1/items/2")
        assert refused.json()["type"] == "urn:recsys:problem:rate-limited"
        assert int(refused.headers["retry-after"]) > 50
        assert service.metrics.as_dict()["shed.rate_limit"] == 3
        for path in ("/healthz", "/readyz", "/metrics"):
            assert client.get(path).status_code == 200
        wrong = {"X-API-Key": "wrong"}  # no bucket of its own for each wrong key
        assert client.get("/v1/items/2", headers=wrong).status_code == 429
        assert client.get("/v1/items/2", headers={"X-API-Key": KEY}).status_code == 200


def test_beyond_this_machine_there_is_a_rate_without_asking_for_one(
    settings: ServiceSettings, service: Service
) -> None:
    exposed = settings.model_copy(update={"host": "0.0.0.0", "api_key": SecretStr(KEY)})
    with connected(exposed, service) as client:
        statuses = {client.get("/v1/nothing").status_code for _ in range(access.BURST_BEYOND_LOOPBACK * 5)}
    assert statuses == {404, 429}


def test_on_this_machine_there_is_none(client: httpx.Client) -> None:
    assert {client.get("/v1/nothing").status_code for _ in range(300)} == {404}


# -- headers ------------------------------------------------------------------------------------------------------


def test_every_answer_has_the_headers_that_browsers_heed(
    client: httpx.Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(service, "search", broken)
    asked = {
        "/": 200,
        "/docs": 200,
        "/v1/users/1/recommendations": 200,
        "/v1/nothing": 404,
        "/v1/users/x/recommendations": 422,
        "/v1/items?q=film": 500,
        "/metrics": 200,
        "/healthz": 200,
    }
    for path, status in asked.items():
        response = client.get(path)
        assert response.status_code == status, path
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
        assert len(response.headers["x-request-id"]) == 32
        assert "access-control-allow-origin" not in response.headers
        personal = path.startswith("/v1")
        assert (response.headers.get("cache-control") == "no-store") or not personal
    timing = client.get("/v1/users/1/recommendations").headers["server-timing"]
    assert {part.split(";")[0].strip() for part in timing.split(",")} >= {"state", "retrieval", "ranking", "total"}


def test_origins_that_are_named_may_read(settings: ServiceSettings, service: Service) -> None:
    shared = settings.model_copy(update={"allowed_origins": ("https://shop.example",)})
    with connected(shared, service) as client:
        allowed = client.get("/v1/items/2", headers={"Origin": "https://shop.example"})
        assert allowed.headers["access-control-allow-origin"] == "https://shop.example"
        for other in ("https://shop.example.evil", "http://shop.example", "null"):
            assert "access-control-allow-origin" not in client.get("/v1/items/2", headers={"Origin": other}).headers
        asking = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
        own = "authorization,content-type,idempotency-key,x-api-key,x-request-id"
        assert (
            client.options("/v1/events", headers={**asking, "Access-Control-Request-Headers": own}).status_code == 200
        )
        assert client.options("/v1/recommendations", headers=asking).status_code == 200
        too_large = client.post("/v1/recommendations", content=b"x" * 1_100_000, headers=asking)
        assert (too_large.status_code, too_large.headers["access-control-allow-origin"]) == (413, asking["Origin"])


def test_origins_are_scheme_and_host(world: ServingWorld) -> None:
    build(world, allowed_origins=["https://example.org", "http://localhost:3000"])
    for wrong in ("*", "example.org", "https://example.org/", "ftp://example.org", "https://"):
        with pytest.raises(ConfigError, match=r"is no origin; write it as https://example\.org"):
            build(world, allowed_origins=[wrong])


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /v1/items/%00%ff%0a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://127.0.0.1/v1/items/2?k=%zz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
        b"POST /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"BREW /v1/model HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/model HTTP/1.1\r\nHost: x\r\nX-Request-ID: \xff\xfe\r\nAuthorization: \xff\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST /v1/recommendations HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n\xff\xff",
    ],
)
def test_odd_requests_are_the_caller_s_fault(client: httpx.Client, raw: bytes) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=20) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(4_096)
    assert b" 500 " not in answer.split(b"\r\n")[0]
    assert client.get("/healthz").status_code == 200
