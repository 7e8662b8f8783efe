"""Errors as RFC 9457 problem details, worded for the caller; tracebacks go to the log alone."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from recsys.errors import ConfigError, RecsysError, StoreError

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 5
MOST_ERRORS = 20  # shown for one request
log = logging.getLogger(__name__)


class ProblemDetails(BaseModel):
    """RFC 9457. `type` names the kind of problem and never changes; `detail` is for people."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:recsys:problem:unknown-item",
                    "title": "Unknown item",
                    "status": 422,
                    "detail": "Item 999999 is not in the catalogue of ml-100k.",
                    "instance": "/v1/events",
                    "item_id": 999999,
                }
            ]
        },
    )

    type: str
    title: str
    status: int
    detail: str
    instance: str


class ProblemError(Exception):
    """Raised by routes and by the service; `more` goes into the answer as it is.

    `retry_after`: seconds, for the header Retry-After; RETRY_AFTER_S for a 503 that gives none.
    """

    def __init__(self, status: int, kind: str, detail: str, *, retry_after: int | None = None, **more: Any) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail, self.more = status, kind, detail, more
        self.retry_after = retry_after

    def as_dict(self) -> dict[str, Any]:
        """As RFC 9457 has it, without where it happened. `kind` "about:blank" takes the status' own phrase as title."""
        blank = self.kind == "about:blank"
        return {
            "type": self.kind if blank else f"urn:recsys:problem:{self.kind}",
            "title": HTTPStatus(self.status).phrase if blank else self.kind.replace("-", " ").capitalize(),
            "status": self.status,
            "detail": self.detail,
        }

    def headers(self) -> dict[str, str]:
        if self.status == HTTPStatus.UNAUTHORIZED:
            return {"WWW-Authenticate": "Bearer"}
        seconds = self.retry_after
        if seconds is None and self.status == HTTPStatus.SERVICE_UNAVAILABLE:
            seconds = RETRY_AFTER_S
        return {} if seconds is None else {"Retry-After": str(seconds)}


def answer(request: Request, error: ProblemError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return problem_response(request.url.path, error, headers)


def problem_response(path: str, error: ProblemError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    body = {**error.as_dict(), "instance": path, **error.more}
    return JSONResponse(body, error.status, {**error.headers(), **(headers or {})}, MEDIA_TYPE)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: the problems that it can answer."""
    reference = {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}
    return {s: {"description": HTTPStatus(s).phrase, "content": {MEDIA_TYPE: reference}} for s in statuses}


def install(app: FastAPI) -> None:
    """Every error of the app leaves as a problem; one that nobody expected is answered by `middleware`.

    The handlers are `async`: Starlette would give a plain one to a thread, which costs most under overload.
    """

    @app.exception_handler(ProblemError)
    async def _problem(request: Request, error: ProblemError) -> JSONResponse:
        return answer(request, error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        errors = error.errors()
        shown = [{"where": ".".join(map(str, e["loc"])), "message": str(e["msg"])} for e in errors[:MOST_ERRORS]]
        first = f"{shown[0]['where']}: {shown[0]['message']}" if shown else "The request is not valid."
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        return answer(request, ProblemError(422, "invalid-request", first + more, errors=shown))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        detail = str(error.detail)
        if error.status_code == HTTPStatus.NOT_FOUND:
            detail = f"There is nothing at {request.url.path}. /openapi.json lists what there is."
        elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            detail = f"{request.method} is not possible at {request.url.path}."
        return answer(request, ProblemError(error.status_code, "about:blank", detail), error.headers)

    @app.exception_handler(RecsysError)
    async def _ours(request: Request, error: RecsysError) -> JSONResponse:
        if isinstance(error, ConfigError):  # a filter that cannot be met, say: the caller's to mend
            return answer(request, ProblemError(422, "invalid-request", str(error)))
        log.error("%s: %s", request.url.path, error)
        kind = "store-unavailable" if isinstance(error, StoreError) else "model-unavailable"
        text = "The service cannot reach what it needs for this; try again later."
        return answer(request, ProblemError(503, kind, text))
