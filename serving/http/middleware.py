"""What every request passes before a route sees it, and every answer after.

Plain ASGI: Starlette's BaseHTTPMiddleware would cost a task and several hops for each request.
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

from serving.http.access import check_access
from serving.http.problems import ProblemError
from serving.observability import logs
from serving.observability.metrics import UNMATCHED, Metrics
from serving.observability.tracing import Tracing
from serving.settings import ServiceSettings

ANSWER_POLICY = "default-src 'none'; frame-ancestors 'none'"
PAGE_POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
# FastAPI's /docs is a page of Swagger UI with an inline script, whose parts come from these two hosts.
DOCS_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' https://cdn.jsdelivr.net; "
    "style-src 'self' 'unsafe-inline' https://cdn.jsdelivr.net; "
    "img-src 'self' data: https://fastapi.tiangolo.com; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer"}
REQUEST_ID = re.compile(r"[\w.\-]{1,64}", re.ASCII)  # another one than the caller's goes into no log
CLIENT_GONE = 499  # no answer was sent, as other servers count it
RETRY_AFTER_S = 1
BODY_S = 10.0  # a body must have arrived by then
LISTS_BYTES = 200_000  # a history of 1,000 events with 10,000 excluded ids, or 500 events
SMALL_BYTES = 4_000
DRAINED_BYTES = 2_000_000  # of a body that is refused
TAKES_LISTS = ("/v1/recommendations", "/v1/users/recommendations", "/v1/events")
log = logging.getLogger(__name__)


class RequestMiddleware:
    """A request id, headers on every answer, one measurement, HEAD answered as GET, and no failure without an answer.
    Who may not write, one request too many and a body that is too large or too slow are refused before a route runs.

    Routes read `request_id` and `started` from the request's state, and leave a RequestTrace there for the log.
    """

    def __init__(self, app: ASGIApp, settings: ServiceSettings, metrics: Metrics, tracing: Tracing | None) -> None:
        self._app, self._settings, self._metrics, self._tracing = app, settings, metrics, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        path = scope["path"]
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        logs.request_id.set(request_id)
        state: dict[str, Any] = scope.setdefault("state", {})
        started: float = state.get("received") or time.perf_counter()
        in_flight: int = state.get("in_flight", 0)
        state.update(request_id=request_id, started=started, trace=None)
        # uvicorn, which keeps the scope as it was, sends no body where the method is HEAD
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        status = 0  # until an answer begins
        self._metrics.in_flight(in_flight + 1)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(MutableHeaders(scope=message), path, request_id)
                if self._tracing is not None:
                    self._tracing.describe(request_id, time.perf_counter() - started, state["trace"])
            await send(message)

        try:
            if in_flight >= self._settings.max_in_flight and path not in logs.PROBES:
                self._metrics.count("shed.queue_full")
                text = f"Too many requests at once; try again in {RETRY_AFTER_S} s."
                raise ProblemError(503, "overloaded", text, retry_after=RETRY_AFTER_S)
            check_access(self._settings.api_key, scope["method"], path, headers)
            body = await _read_body(headers, receive, body_limit(path))
            await self._app(inner, body, send_with_headers)
        except ProblemError as problem:
            await problem.response(path)(inner, receive, send_with_headers)
        except _ClientGoneError:
            pass
        except Exception as error:
            log.error("%s: %s failed", request_id, path, exc_info=error)
            if status:
                raise  # half an answer is out: only closing the connection can say so
            text = "The service failed to answer; its log says why under this request_id."
            failed = ProblemError(HTTPStatus.INTERNAL_SERVER_ERROR, "about:blank", text, request_id=request_id)
            await failed.response(path)(inner, receive, send_with_headers)
        finally:
            route, seconds = getattr(inner.get("route"), "path", UNMATCHED), time.perf_counter() - started
            status = status or CLIENT_GONE
            self._metrics.request(route, scope["method"], status, seconds)
            self._metrics.in_flight(in_flight)
            degraded = state["trace"].degraded if state["trace"] else ()
            logs.log_request(route, scope["method"], status, seconds * 1e3, degraded)


def _add_headers(headers: MutableHeaders, path: str, request_id: str) -> None:
    headers["X-Request-ID"] = request_id
    for name, value in HEADERS.items():
        headers[name] = value
    static = path == "/" or path.startswith("/page/")
    documents = path.startswith(("/docs", "/openapi.json"))
    headers["Content-Security-Policy"] = PAGE_POLICY if static else DOCS_POLICY if documents else ANSWER_POLICY
    if not static and not documents:
        headers.setdefault("Cache-Control", "no-store")  # answers are about one person, or about this moment


def body_limit(path: str) -> int:
    """Bytes that a body may have at this path. What it costs to parse and to validate grows with its size: this is the
    bound on that cost too."""
    return LISTS_BYTES if path in TAKES_LISTS else SMALL_BYTES


async def _read_body(headers: Headers, receive: Receive, most_bytes: int) -> Receive:
    """`receive` with the body read already. A request without one passes untouched. Raises ProblemError 408 or 413.

    A body that is too large is read on for a while and forgotten: whoever is still sending when the connection closes
    never sees why it was refused.
    """
    length = headers.get("content-length", "0")
    if length == "0" and "transfer-encoding" not in headers:
        return receive
    declared = int(length) if length.isdecimal() else 0
    messages: list[Message] = []
    size, more = 0, True
    try:
        async with asyncio.timeout(BODY_S):
            while more and size <= DRAINED_BYTES:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _ClientGoneError
                size += len(message.get("body", b""))
                more = message.get("more_body", False)
                if max(size, declared) <= most_bytes:
                    messages.append(message)
    except TimeoutError:
        raise ProblemError(408, "body-too-slow", f"The body had not arrived after {BODY_S:g} s.") from None
    if max(size, declared) > most_bytes:
        raise ProblemError(413, "body-too-large", f"A body may have {most_bytes} bytes here.", limit=most_bytes)
    pending = iter(messages)

    async def replay() -> Message:
        return next(pending, None) or await receive()

    return replay


class _ClientGoneError(Exception):
    """The client left before its request was complete."""
