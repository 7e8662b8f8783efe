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

    model_config = ConfigDict(extra="allow")

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
        self.retry_after = RETRY_AFTER_S if retry_after is None and status == 503 else retry_after

    def as_dict(self, path: str) -> dict[str, Any]:
        """As RFC 9457 has it. `kind` "about:blank" takes the status' own phrase as title."""
        blank = self.kind == "about:blank"
        return {
            "type": self.kind if blank else f"urn:recsys:problem:{self.kind}",
            "title": HTTPStatus(self.status).phrase if blank else self.kind.replace("-", " ").capitalize(),
            "status": self.status,
            "detail": self.detail,
            "instance": path,
            **self.more,
        }

    def response(self, path: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
        own = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == HTTPStatus.UNAUTHORIZED:
            own["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.as_dict(path), self.status, {**own, **(headers or {})}, MEDIA_TYPE)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: the problems that it can answer."""
    reference = {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}
    return {s: {"description": HTTPStatus(s).phrase, "content": {MEDIA_TYPE: reference}} for s in statuses}


def install(app: FastAPI) -> None:
    """Every error of the app leaves as a problem; one that nobody expected is answered by `middleware`.

    The handlers are `async`: Starlette would give a plain one to a thread, which costs most under overload.
    """
    make = app.openapi  # keeps the document that it made

    def openapi() -> dict[str, Any]:
        document = make()
        document["components"]["schemas"]["ProblemDetails"] = ProblemDetails.model_json_schema()
        return document

    app.openapi = openapi  # type: ignore[method-assign]

    @app.exception_handler(ProblemError)
    async def _problem(request: Request, error: ProblemError) -> JSONResponse:
        return error.response(request.url.path)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        errors = error.errors()
        shown = [{"where": ".".join(map(str, e["loc"])), "message": str(e["msg"])} for e in errors[:MOST_ERRORS]]
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        detail = f"{shown[0]['where']}: {shown[0]['message']}{more}"
        return ProblemError(422, "invalid-request", detail, errors=shown).response(request.url.path)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        path, detail = request.url.path, str(error.detail)
        if error.status_code == HTTPStatus.NOT_FOUND:
            detail = f"There is nothing at {path}. /openapi.json lists what there is."
        elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            detail = f"{request.method} is not possible at {path}."
        return ProblemError(error.status_code, "about:blank", detail).response(path, error.headers)

    @app.exception_handler(RecsysError)
    async def _ours(request: Request, error: RecsysError) -> JSONResponse:
        path = request.url.path
        if isinstance(error, ConfigError):  # a filter that cannot be met, say: the caller's to mend
            return ProblemError(422, "invalid-request", str(error)).response(path)
        log.error("%s: %s", path, error)
        kind = "store-unavailable" if isinstance(error, StoreError) else "model-unavailable"
        text = "The service cannot reach what it needs for this; try again later."
        return ProblemError(503, kind, text).response(path)
