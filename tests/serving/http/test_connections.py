"""Connections that say nothing, half a head or too much, and bodies that are too large, too slow or too odd."""

import socket
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from recsys.limits import MOST_HISTORY
from serving.http import connections, middleware
from serving.http.connections import MOST_HEAD_BYTES

HALF_A_HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: "


@contextmanager
def raw(client: httpx.Client, *parts: bytes) -> Iterator[socket.socket]:
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=20) as connection:
        for part in parts:
            connection.sendall(part)
        yield connection


def ended(connection: socket.socket) -> bool:
    """Whether the other side has closed it, within the socket's limit of time."""
    try:
        while connection.recv(65_536):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("sent", [(), (HALF_A_HEAD,), (b"\r\n",), (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"G")])
def test_a_head_that_does_not_come_is_not_waited_for(
    client: httpx.Client, sent: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a first request, when uvicorn's keep-alive timer has been stopped by the first byte."""
    monkeypatch.setattr(connections, "HEAD_S", 0.3)
    with raw(client, *sent[:1]) as connection:
        if len(sent) > 1:
            assert connection.recv(4_096).startswith(b"HTTP/1.1 200")
            connection.sendall(sent[1])
        connection.settimeout(1.5)
        assert ended(connection)
    assert client.get("/healthz").status_code == 200


def test_an_endless_head_is_cut_off(client: httpx.Client) -> None:
    with raw(client, HALF_A_HEAD) as connection, pytest.raises(ConnectionError):
        connection.sendall(b"a" * 1_000 * MOST_HEAD_BYTES)


def test_the_longest_silent_connection_makes_room(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever pays and speaks is served: on a connection made before the flood, and on new ones."""
    monkeypatch.setattr(connections, "connection_limit", lambda: 20)
    with ExitStack() as stack:
        client.get("/healthz")
        silent = [stack.enter_context(raw(client, HALF_A_HEAD)) for _ in range(60)]
        for _ in range(10):
            assert client.get("/healthz").status_code == 200
        with httpx.Client(base_url=client.base_url, trust_env=False) as newcomer:
            assert newcomer.get("/healthz").status_code == 200
        for connection in silent:
            connection.settimeout(0.05)
        gone = [ended(connection) for connection in silent]
    assert gone[:40] == [True] * 40
    assert not any(gone[45:])


def test_silent_connections_cost_others_nothing(client: httpx.Client) -> None:
    def p99_ms() -> float:
        took = []
        for _ in range(100):
            began = time.perf_counter()
            assert client.get("/v1/users/5/recommendations").status_code == 200
            took.append(time.perf_counter() - began)
        return sorted(took)[-2] * 1e3

    p99_ms()
    alone = p99_ms()
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(raw(client))
        assert p99_ms() < 2 * alone + 20


JSON = {"Content-Type": "application/json"}
HOSTILE = {
    "empty entries": b'{"history":[' + b"{}," * 66_000 + b"{}]}",
    "valid entries": b'{"history":[' + b'{"item_id":1,"rating":1},' * 7_900 + b'{"item_id":1,"rating":1}]}',
    "unknown keys": b"{" + b",".join(b'"%x":1' % n for n in range(20_000)) + b"}",
    "unknown keys of an entry": b'{"history":[{' + b",".join(b'"%x":1' % n for n in range(20_000)) + b"}]}",
    "deep": b"[" * 90_000,
    "numbers": b'{"filters":{"exclude_ids":[' + b"-1," * 60_000 + b"1]}}",
    "a long number": b'{"k":' + b"9" * 190_000 + b"}",
}


@pytest.mark.parametrize("path", ["/v1/recommendations", "/v1/events", "/v1/users/recommendations"])
@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_body_is_refused_in_little_time_and_memory(client: httpx.Client, path: str, content: bytes) -> None:
    """The loop stands still for a fraction of a budget, though the body is as large as any that is read."""
    assert len(content) <= middleware.body_limit(path)
    times = []
    for _ in range(3):
        began = time.process_time()
        response = client.post(path, content=content, headers=JSON)
        times.append(time.process_time() - began)
        assert response.status_code in (400, 422), response.text[:200]
        assert len(response.json().get("errors", [])) <= 20
    assert min(times) < 0.1, "the process's own time, the client's included"
    tracemalloc.start()
    client.post(path, content=content, headers=JSON)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


@pytest.mark.parametrize("path", ["/v1/recommendations", "/v1/events", "/v1/admin/reload", "/v1/nothing"])
def test_bodies_beyond_the_bound_of_their_route_are_refused_declared_or_not(client: httpx.Client, path: str) -> None:
    large = b" " * (middleware.body_limit(path) + 1)
    for content in (large, (large[i : i + 65_536] for i in range(0, len(large), 65_536))):
        response = client.post(path, content=content, headers=JSON)
        assert (response.status_code, response.json()["type"]) == (413, "urn:recsys:problem:body-too-large")


def test_the_longest_history_with_the_longest_exclusions_fits_and_so_does_a_body_in_pieces(
    client: httpx.Client,
) -> None:
    history = [{"item_id": 1 + n % 80, "rating": 4.5, "timestamp": 1_000_000_000 + n} for n in range(MOST_HISTORY)]
    body = {"history": history, "filters": {"exclude_ids": [10_000_000 + n for n in range(10_000)]}}
    assert client.post("/v1/recommendations", json=body).status_code == 200
    chunked = (part for part in (b'{"k"', b": 3}"))
    assert len(client.post("/v1/recommendations", content=chunked, headers=JSON).json()["items"]) == 3


def test_a_body_that_never_arrives_is_given_up(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "BODY_S", 0.2)
    half = b"POST /v1/recommendations HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{"
    with raw(client, half) as connection:
        assert connection.recv(4_096).startswith(b"HTTP/1.1 408 ")
    with raw(client, half):
        pass
    assert client.get("/healthz").status_code == 200  # one that left does no harm
