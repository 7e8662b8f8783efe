"""The FastAPI app: one factory, the model loaded while it runs.

Stage: serving. In: `ServiceSettings`. Out: an app. Absent: any global app and any work at import.

The model is loaded on a thread of its own, so that `/healthz` answers at once and `/readyz` as soon as it is true.
Other origins get no CORS permission unless `allowed_origins` names them.
"""

import asyncio
import gc
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.middleware.cors import CORSMiddleware

from serving import problems, routes
from serving.access import Access
from serving.admission import Admission
from serving.edge import Edge, Gate
from serving.observability import tracing
from serving.observability.metrics import Metrics
from serving.openapi import completed
from serving.service import Service
from serving.settings import ServiceSettings

PAGE = Path(__file__).parent / "page"
log = logging.getLogger(__name__)


def create_app(
    settings: ServiceSettings,
    load: Callable[[ServiceSettings, Metrics], Service] = Service.load,
    on_failure: Callable[[Exception], None] = lambda _: None,
    metrics: Metrics | None = None,
) -> FastAPI:
    """`on_failure` hears why the model could not be loaded; the app itself then stays not ready.

    Raises ConfigError for settings that would open writes to a network without a key.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        def work() -> None:
            started = time.perf_counter()
            gc.disable()  # it would walk what is loaded a dozen times; `freeze_gc` does once
            try:
                service = load(settings, app.state.metrics)
                app.state.metrics = service.metrics
                app.state.service = service
                service.champion.start()
                log.info("ready after %.1f s", time.perf_counter() - started)
            except Exception as error:
                log.error("the model could not be loaded: %s", error)
                on_failure(error)
            finally:
                gc.enable()

        loading = threading.Thread(target=work, name="load-model")
        loading.start()
        try:
            yield
        finally:
            await asyncio.to_thread(loading.join)
            app.state.admission.close()
            if app.state.service is not None:
                await asyncio.to_thread(app.state.service.champion.close)
                app.state.service.close()
            if app.state.tracing is not None:
                await asyncio.to_thread(app.state.tracing.close)

    app = FastAPI(
        title="recsys",
        summary="Two-stage item recommendations.",
        description="Errors are RFC 9457 problem details. Ids are those of MovieLens; times are seconds UTC.",
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.service = None
    app.state.draining = False
    app.state.tracing = tracing.build(app, settings.otel_endpoint, version("recsys"))
    app.state.metrics = metrics or Metrics()
    app.state.admission = Admission(
        threads=settings.threads,
        io_threads=settings.io_threads,
        max_queue=settings.max_queue,
        max_wait_ms=settings.budget_ms * settings.last_share,  # who is let in shall be answered in full
        metrics=lambda: app.state.metrics,
    )
    problems.install(app)
    app.include_router(routes.api)
    app.include_router(routes.health)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    app.openapi = completed(app.openapi, settings)  # type: ignore[method-assign]
    access = Access(settings, lambda: app.state.metrics)
    app.add_middleware(Gate, access=access, max_body_bytes=settings.max_body_bytes, body_s=settings.body_s)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.allowed_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "X-API-Key", "X-Request-ID"],
            expose_headers=["Retry-After", "Server-Timing", "X-Request-ID"],
        )
    # Added last, so outermost.
    app.add_middleware(Edge, tracing=app.state.tracing)
    return app
