"""The FastAPI app: one factory, the model loaded while it runs.

Stage: serving. In: `ServiceSettings`. Out: an app. Absent: any global app and any work at import. No CORS header is
ever sent: a page of another origin cannot read an answer.

The model is loaded on a thread of its own, so that `/healthz` answers at once and `/readyz` as soon as it is true.
"""

import asyncio
import logging
import re
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio.to_thread
from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import problems, routes
from serving.problems import ProblemDetails, ProblemError, problem_response
from serving.service import Service
from serving.settings import ServiceSettings

PAGE = Path(__file__).parent / "page"
PAGE_POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"
log = logging.getLogger(__name__)


def create_app(
    settings: ServiceSettings,
    load: Callable[[ServiceSettings], Service] = Service.load,
    on_failure: Callable[[Exception], None] = lambda _: None,
) -> FastAPI:
    """`on_failure` hears why the model could not be loaded; the app itself then stays not ready."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = settings.threads

        def work() -> None:
            started = time.perf_counter()
            try:
                app.state.service = load(settings)
                log.info("ready after %.1f s", time.perf_counter() - started)
            except Exception as error:
                log.error("the model could not be loaded: %s", error)
                on_failure(error)

        loading = threading.Thread(target=work, name="load-model")
        loading.start()
        try:
            yield
        finally:
            await asyncio.to_thread(loading.join)
            if app.state.service is not None:
                app.state.service.close()

    app = FastAPI(
        title="recsys",
        summary="Two-stage movie recommendations.",
        description="Errors are RFC 9457 problem details. Ids are those of MovieLens; times are seconds UTC.",
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.service = None
    problems.install(app)
    app.include_router(routes.api)
    app.include_router(routes.health)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    _document_problems(app)
    app.add_middleware(Edge, max_body_bytes=settings.max_body_bytes)
    return app


class Edge:
    """The outermost layer: a request id, the moment of arrival, a bound on bodies, and headers for browsers.

    Plain ASGI; Starlette's BaseHTTPMiddleware would cost a task and several hops for each request.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app, self._max_body_bytes = app, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        asked = headers.get("x-request-id", "")
        request_id = asked if re.fullmatch(r"[\w.\-]{1,64}", asked, re.ASCII) else uuid.uuid4().hex
        scope.setdefault("state", {}).update(request_id=request_id, started=time.perf_counter())

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                out = MutableHeaders(scope=message)
                out["X-Request-ID"] = request_id
                out["X-Content-Type-Options"] = "nosniff"
                if scope["path"] == "/" or scope["path"].startswith("/page/"):
                    out["Content-Security-Policy"] = PAGE_POLICY
            await send(message)

        body = await self._body(headers, receive)
        if body is None:
            error = ProblemError(413, "body-too-large", f"A body may have {self._max_body_bytes} bytes at most.")
            await problem_response(scope["path"], error)(scope, receive, send_with_headers)
            return
        await self._app(scope, body, send_with_headers)

    async def _body(self, headers: Headers, receive: Receive) -> Receive | None:
        """`receive` with the body read already, None where it is too large. A request without one passes untouched."""
        length = headers.get("content-length", "0")
        if length == "0" and "transfer-encoding" not in headers:
            return receive
        if length.isdecimal() and int(length) > self._max_body_bytes:
            return None
        messages: list[Message] = []
        size = 0
        while True:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            if size > self._max_body_bytes:
                return None
            if not message.get("more_body", False):
                break

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        return replay


def _document_problems(app: FastAPI) -> None:
    """Put ProblemDetails among the schemas that the routes' problems refer to."""
    make = app.openapi

    def openapi() -> dict[str, object]:
        schema = make()
        schema["components"]["schemas"].setdefault("ProblemDetails", ProblemDetails.model_json_schema())
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
