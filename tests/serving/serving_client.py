"""A client over real HTTP: uvicorn, as `recsys serve` configures it, on a thread of the test's process."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from serving.app import create_app, uvicorn_options
from serving.recommending.service import Service
from serving.settings import ServiceSettings


@contextmanager
def running(app: FastAPI, settings: ServiceSettings) -> Iterator[httpx.Client]:
    """A client of the app on a free port."""
    options = uvicorn_options(settings) | {"host": "127.0.0.1", "port": 0, "workers": 1, "timeout_keep_alive": 2}
    server = uvicorn.Server(uvicorn.Config(app, **options))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < until
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def connected(settings: ServiceSettings, service: Service) -> Iterator[httpx.Client]:
    with running(create_app(settings, service), settings) as client:
        yield client


def recommendations(client: httpx.Client, user_id: int = 7, **parameters: Any) -> dict[str, Any]:
    """The body of a list that is answered."""
    response = client.get(f"/v1/users/{user_id}/recommendations", params=parameters)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def shown(body: dict[str, Any]) -> list[int]:
    return [item["item_id"] for item in body["items"]]
