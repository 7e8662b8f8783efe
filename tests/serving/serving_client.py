"""A client over real HTTP: uvicorn on a thread of the test's process.

Stage: tests of serving. In: an app or a `Service`. Out: an `httpx.Client`. Absent: Starlette's TestClient, which warns
about the httpx that everything else here uses.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn
from fastapi import FastAPI

from serving.app import create_app
from serving.service import Service
from serving.settings import ServiceSettings


@contextmanager
def running(app: FastAPI) -> Iterator[httpx.Client]:
    """A client of the app, over real HTTP: uvicorn on a thread and a free port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False, lifespan="on"))
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
    """A client of an app around `service`, once it is ready."""
    with running(create_app(settings, lambda *_: service)) as client:
        until = time.monotonic() + 20
        while client.get("/readyz").status_code != 200:
            assert time.monotonic() < until
            time.sleep(0.005)
        yield client
