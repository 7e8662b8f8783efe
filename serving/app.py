"""The FastAPI app, and uvicorn's ordinary processes around it.

A worker loads its model before it listens, so no connection ever reaches one that cannot answer.
"""

import gc
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Security
from fastapi.responses import FileResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles

from recsys.errors import RecsysError
from serving.http import problems, routes
from serving.http.connections import connection_limit
from serving.http.middleware import RequestMiddleware
from serving.observability import logs, tracing
from serving.observability.metrics import Metrics
from serving.recommending.service import Service
from serving.settings import ServiceSettings, hand_down

PAGE = Path(__file__).parent / "page"
BEARER = HTTPBearer(scheme_name="bearer", auto_error=False)  # for the OpenAPI document; `access` checks the key
KEEP_ALIVE_S = 30  # how long a connection may be idle
SHUTDOWN_S = 10  # after SIGTERM, what is in flight is given that long to end
FIRST_READ_S = 30.0
RESTART_PAUSE_S = 5.0  # before a worker that cannot start makes room for its successor
log = logging.getLogger(__name__)


def create_app(settings: ServiceSettings, service: Service) -> FastAPI:
    """An app around a service that is loaded."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for store in await service.snapshots.failing(FIRST_READ_S):
            log.error("the %s cannot be read; answers go on without what it holds, and say so", store)
        service.champion.start()
        yield
        service.close()
        if spans is not None:
            spans.close()

    app = FastAPI(
        title="recsys",
        summary="Two-stage item recommendations.",
        description="Errors are RFC 9457 problem details. Ids are those of the data set; times are seconds UTC.",
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    spans = tracing.build(app, settings.otel_endpoint, version("recsys"))
    problems.install(app)
    app.include_router(routes.api)
    app.include_router(routes.writes, dependencies=[Security(BEARER)] if settings.api_key else [])
    app.include_router(routes.health)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    app.add_middleware(RequestMiddleware, settings=settings, metrics=service.metrics, tracing=spans)
    return app


def create_app_from_environment() -> FastAPI:
    """What uvicorn calls in each worker process."""
    settings = ServiceSettings.from_environment()
    configure_logs(settings)
    if multiprocessing.parent_process() is None:
        return create_app(settings, _loaded(settings))
    threading.Thread(target=_stop_with_parent, name="watch-parent", daemon=True).start()
    try:
        return create_app(settings, _loaded(settings))
    except RecsysError as error:  # the others go on; uvicorn starts another in the place of this one
        log.error("this worker cannot start: %s", error)
        time.sleep(RESTART_PAUSE_S)
        sys.exit(1)


def run(options: Mapping[str, Any]) -> None:
    """Serve until SIGTERM or Ctrl-C; what is in flight then is answered. `options` are those of
    `ServiceSettings.choose`. Raises RecsysError where the champion cannot be served."""
    settings = ServiceSettings.choose(**options)
    configure_logs(settings)
    run_uvicorn = partial(
        uvicorn.run, "serving.app:create_app_from_environment", factory=True, **uvicorn_options(settings)
    )
    if settings.workers == 1:
        hand_down(options)
        run_uvicorn()
        return
    # Once for all workers; and a model that nobody can load ends the command, and not one worker after the other.
    hand_down({**options, "tried_bundle": Service.check(settings)})
    with tempfile.TemporaryDirectory(prefix="recsys-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # where the workers share their metrics
        run_uvicorn()


def uvicorn_options(settings: ServiceSettings) -> dict[str, Any]:
    return {
        "host": settings.host,
        "port": settings.port,
        "workers": settings.workers,
        "http": "serving.http.connections:LimitedProtocol",
        "ws": "none",
        "lifespan": "on",
        "backlog": connection_limit() // 2,  # what the kernel accepts at once must find descriptors
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,  # uvicorn would believe X-Forwarded-For of whoever connects from this machine
        "timeout_keep_alive": KEEP_ALIVE_S,
        "timeout_graceful_shutdown": SHUTDOWN_S,
        "timeout_worker_healthcheck": 30,
    }


def configure_logs(settings: ServiceSettings) -> None:
    secrets = [] if settings.api_key is None else [settings.api_key.get_secret_value()]
    logs.configure(settings.log_format, settings.log_level, secrets)


def _loaded(settings: ServiceSettings) -> Service:
    started = time.perf_counter()
    service = Service.load(settings, Metrics())
    gc.collect()
    gc.freeze()  # what is there stays, and need not be walked during requests
    log.info("ready after %.1f s", time.perf_counter() - started)
    return service


def _stop_with_parent() -> None:
    """A worker whose supervisor was killed must not go on alone, on a port that nobody owns."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        signal.raise_signal(signal.SIGTERM)
