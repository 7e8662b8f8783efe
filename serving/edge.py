"""The outermost layers of the app: what every request passes before a route sees it, and every answer after.

Stage: serving. In: ASGI messages. Out: the same with a request id, headers for browsers and measurements; refusals
(`access`) and bodies that are too large as problems. Absent: what a request asks for.

Plain ASGI; Starlette's BaseHTTPMiddleware would cost a task and several hops for each request.
"""

import asyncio
import logging
import re
import time
import uuid
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.access import Access
from serving.observability import logs
from serving.observability.tracing import Tracing
from serving.problems import ProblemError, problem_response

ANSWER_POLICY = "default-src 'none'; frame-ancestors 'none'"
PAGE_POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
# FastAPI's /docs is a page of Swagger UI with an inline script, whose parts come from these two hosts.
DOCS_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' https://cdn.jsdelivr.net; "
    "style-src 'self' 'unsafe-inline' https://cdn.jsdelivr.net; "
    "img-src 'self' data: https://fastapi.tiangolo.com; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer"}
ID = re.compile(r"[\w.\-]{1,64}", re.ASCII)  # of a request; another one than the caller's goes into no log
UNMATCHED = "unmatched"
CLIENT_GONE = 499  # no answer was sent, as other servers count it
log = logging.getLogger(__name__)


class Edge:
    """A request id, the moment of arrival, headers on every answer, one measurement, and no failure without an answer.

    Routes read `request_id` and `started` from the request's state, and leave `timings_ms` there for Server-Timing and
    `degraded` for the log.
    """

    def __init__(self, app: ASGIApp, tracing: Tracing | None) -> None:
        self._app, self._tracing = app, tracing
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = Headers(scope=scope)
        asked = headers.get("x-request-id", "")
        request_id = asked if ID.fullmatch(asked) else uuid.uuid4().hex
        logs.request_id.set(request_id)
        state: dict[str, Any] = scope.setdefault("state", {})
        state.update(request_id=request_id, started=started)
        status = 0  # until an answer begins
        self._in_flight += 1
        scope["app"].state.metrics.in_flight(self._in_flight)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                _complete(out, scope["path"], request_id, state.get("timings_ms"))
                if scope["app"].state.draining:
                    out["Connection"] = "close"
                if self._tracing is not None:
                    timings, degraded = state.get("timings_ms") or {}, state.get("degraded") or ()
                    self._tracing.describe(request_id, time.perf_counter() - started, timings, degraded)
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:
            log.error("%s: %s failed", request_id, scope["path"], exc_info=error)
            if status:
                raise  # half an answer is out: only closing the connection can say so
            text = "The service failed to answer; its log says why under this request_id."
            failed = ProblemError(HTTPStatus.INTERNAL_SERVER_ERROR, "about:blank", text, request_id=request_id)
            await problem_response(scope["path"], failed)(scope, receive, send_with_headers)
        finally:
            self._in_flight -= 1
            scope["app"].state.metrics.in_flight(self._in_flight)
            route, seconds = getattr(scope.get("route"), "path", UNMATCHED), time.perf_counter() - started
            status = status or CLIENT_GONE
            scope["app"].state.metrics.request(route, scope["method"], status, seconds)
            logs.log_request(route, scope["method"], status, seconds * 1e3, state.get("degraded") or ())


def _complete(headers: MutableHeaders, path: str, request_id: str, timings_ms: dict[str, float] | None) -> None:
    headers["X-Request-ID"] = request_id
    for name, value in HEADERS.items():
        headers[name] = value
    static = path == "/" or path.startswith("/page/")
    documents = path.startswith(("/docs", "/openapi.json"))
    headers["Content-Security-Policy"] = PAGE_POLICY if static else DOCS_POLICY if documents else ANSWER_POLICY
    if not static and not documents:
        headers.setdefault("Cache-Control", "no-store")  # answers are about one person, or about this moment
    if timings_ms:
        headers["Server-Timing"] = ", ".join(f"{stage};dur={ms:.3f}" for stage, ms in timings_ms.items())


class Gate:
    """Refuses whom `Access` refuses, and bodies beyond the bound, before a route runs."""

    def __init__(self, app: ASGIApp, access: Access, max_body_bytes: int, body_s: float) -> None:
        self._app, self._access = app, access
        self._max_body_bytes, self._body_s = max_body_bytes, body_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._access.check(scope, headers)
            async with asyncio.timeout(self._body_s):
                body = await self._body(headers, receive)
        except _Gone:
            return
        except TimeoutError:
            text = f"The body had not arrived after {self._body_s:g} s."
            await problem_response(scope["path"], ProblemError(408, "body-too-slow", text))(scope, receive, send)
        except ProblemError as error:
            await problem_response(scope["path"], error)(scope, receive, send)
        else:
            await self._app(scope, body, send)

    async def _body(self, headers: Headers, receive: Receive) -> Receive:
        """`receive` with the body read already. A request without one passes untouched. Raises a 413."""
        length = headers.get("content-length", "0")
        if length == "0" and "transfer-encoding" not in headers:
            return receive
        if length.isdecimal() and int(length) > self._max_body_bytes:
            raise self._too_large()
        messages: list[Message] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            messages.append(message)
            size += len(message.get("body", b""))
            if size > self._max_body_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                break
        pending = iter(messages)

        async def replay() -> Message:
            return next(pending, None) or await receive()

        return replay

    def _too_large(self) -> ProblemError:
        text = f"A body may have {self._max_body_bytes} bytes at most."
        return ProblemError(413, "body-too-large", text, limit=self._max_body_bytes)


class _Gone(Exception):  # noqa: N818 - a client that went away is no error
    """The client left before its request was complete."""
