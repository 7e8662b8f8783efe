"""Who may write; and the headers of every answer."""

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
    for value in ("", f"Bearer {KEY[:-1]}", f"Basic {KEY}", "Bearer schlüssel", KEY):
        refused = keyed.post("/v1/events", json=EVENT, headers={"Authorization": value.encode()})
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert refused.json()["type"] == "urn:recsys:problem:key-needed"
    for path in ("/v1/events%0A", "/v1/events/", "/v1/admin/reload", "/v1/admin/reload%0A", "/v1/admin/nothing"):
        assert keyed.post(path, json=EVENT).status_code == 401, path
    assert "events.stored" not in service.metrics.as_dict()
    for scheme in ("Bearer", "bearer"):
        headers = {"Authorization": f"{scheme} {KEY}"}
        assert keyed.post("/v1/events", json=EVENT, headers=headers).status_code == 201
    assert keyed.get("/v1/users/3/recommendations").status_code == 200
    assert keyed.post("/v1/recommendations", json={}).status_code == 200


def test_every_route_that_changes_something_is_protected(settings: ServiceSettings, service: Service) -> None:
    """A new route with another method than GET has to be added here, or to `access.PROTECTED`."""
    reading = {"/v1/recommendations", "/v1/users/recommendations"}
    paths = create_app(settings, service).openapi()["paths"]
    changing = {path for path, methods in paths.items() if set(methods) - {"get"}}
    assert {path for path in changing if not path.startswith(access.PROTECTED)} == reading


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
        {"Origin": "http://[broken"},
        {"Host": "rebound.example"},
    ],
)
def test_without_a_key_pages_of_other_origins_may_not_write(client: httpx.Client, headers: dict[str, str]) -> None:
    for path in ("/v1/events", "/v1/admin/reload"):
        refused = client.post(path, json=EVENT, headers=headers)
        assert (refused.status_code, refused.json()["type"]) == (403, "urn:recsys:problem:foreign-origin")
    own = {"Origin": f"http://{client.base_url.netloc.decode()}"}
    assert client.post("/v1/events", json=EVENT, headers=own).status_code == 201


def test_a_service_that_a_network_reaches_needs_a_key(world: ServingWorld) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.7", "example.org"):
        with pytest.raises(ConfigError, match=f"listen on {host}, beyond this machine.*RECSYS_API_KEY"):
            ServiceSettings.build(Settings(home=world.home.root.parent), world.home, host=host)


def test_loopback() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "localhost.example.org", "", "10.0.0.1"))


def test_the_key_is_never_shown(
    keyed: httpx.Client, settings: ServiceSettings, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        keyed.post("/v1/events", json=EVENT, headers={"Authorization": f"Bearer {KEY}"})
        answers = [keyed.get(path).text for path in ("/v1/model", "/metrics", "/openapi.json", "/v1/nothing")]
    keyed_settings = settings.model_copy(update={"api_key": SecretStr(KEY)})
    assert KEY not in "".join([*answers, caplog.text, repr(keyed_settings), str(keyed_settings.model_dump())])


def test_every_answer_has_the_headers_that_browsers_heed(
    client: httpx.Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(service, "search", broken)
    statuses = {"/": 200, "/docs": 200, "/v1/users/1/recommendations": 200, "/v1/nothing": 404, "/metrics": 200}
    for path, status in (statuses | {"/v1/users/x/recommendations": 422, "/v1/items?q=film": 500}).items():
        response = client.get(path, headers={"Origin": "https://elsewhere.example"})
        assert response.status_code == status, path
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
        assert len(response.headers["x-request-id"]) == 32
        assert "access-control-allow-origin" not in response.headers
        assert (response.headers.get("cache-control") == "no-store") or not path.startswith("/v1")


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /v1/items/%00%ff%0a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
        b"POST /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v1/model HTTP/1.1\r\nHost: x\r\nX-Request-ID: \xff\xfe\r\nAuthorization: \xff\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST /v1/recommendations HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n\xff\xff",
    ],
)
def test_odd_requests_are_the_caller_s_fault(client: httpx.Client, raw: bytes) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=20) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        assert b" 500 " not in connection.recv(4_096).split(b"\r\n")[0]
    assert client.get("/healthz").status_code == 200
