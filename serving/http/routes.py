"""The routes: HTTP in, HTTP out, one line of work each.

Answers are plain dicts, written once; `response_model` only documents them. Everything here is `async`, dependencies
included: FastAPI would give a plain function to a thread.
"""

from contextlib import suppress
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response

from recsys.limits import LARGEST_ID
from serving.http import responses
from serving.http.problems import documented
from serving.http.requests import (
    DEFAULT_K,
    EventRequest,
    K,
    Key,
    ListQuery,
    ManyUsersRequest,
    RecommendationRequest,
    SearchQuery,
)
from serving.model_lifecycle.live_traffic import Assignment
from serving.recommending.answers import RequestTrace
from serving.recommending.service import Service

READ_S = 1.0  # /readyz waits that long for a store
UserId = Annotated[int, Path(ge=0, le=LARGEST_ID, description="as in the data set", examples=[42])]
ItemId = Annotated[int, Path(ge=0, le=LARGEST_ID, description="as in the data set", examples=[260])]
KEY_IS = "for an event without `event_id`; for those of a batch, with /0, /1 and so on behind it"


class Json(Response):
    """Written by orjson, from values that the service made."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Using = Annotated[Service, Depends(_service)]


async def _trace(request: Request, service: Using) -> RequestTrace:
    state = request.state
    trace = state.trace = RequestTrace(state.request_id, state.started, Assignment(service.champion.model))
    return trace


Traced = Annotated[RequestTrace, Depends(_trace)]

api = APIRouter(prefix="/v1", responses=documented(422, 500, 503))
# These need the key, where there is one.
writes = APIRouter(prefix="/v1", responses=documented(401, 422, 500, 503))
health = APIRouter(tags=["service"])


@api.get("/users/{user_id}/recommendations", tags=["recommend"], response_model=responses.Recommended)
async def recommend_user(service: Using, trace: Traced, user_id: UserId, query: Annotated[ListQuery, Query()]) -> Json:
    """The k best items that this user has not rated, best first. Somebody unknown gets the cold-start answer."""
    return Json(await service.recommend_user(trace, user_id, query))


@api.post("/recommendations", tags=["recommend"], response_model=responses.Recommended, responses=documented(400, 413))
async def recommend_history(service: Using, trace: Traced, body: RecommendationRequest) -> Json:
    """The same for somebody who is not stored: the history comes in the body, and makes nobody a user."""
    return Json(service.recommend_history(trace, body))


@api.post(
    "/users/recommendations",
    tags=["recommend"],
    response_model=responses.ManyRecommended,
    responses=documented(400, 413),
)
async def recommend_many(service: Using, trace: Traced, body: ManyUsersRequest) -> Json:
    """Lists for several stored users, in the order of the request."""
    return Json(await service.recommend_many(trace, body))


@api.get("/items/{item_id}/similar", tags=["items"], response_model=responses.Similar, responses=documented(404))
async def similar(service: Using, trace: Traced, item_id: ItemId, k: Annotated[K, Query()] = DEFAULT_K) -> Json:
    """The items whose vectors point in the same direction."""
    return Json(service.similar(trace, item_id, k))


@api.get("/items/{item_id}", tags=["items"], response_model=responses.ItemDetails, responses=documented(404))
async def item(service: Using, trace: Traced, item_id: ItemId) -> Json:
    """Title, year, genres, and how it was rated."""
    return Json(service.item(trace, item_id))


@api.get("/items", tags=["items"], response_model=responses.ItemSearch)
async def search(service: Using, trace: Traced, query: Annotated[SearchQuery, Query()]) -> Json:
    """Items by words of their titles, or beginnings of words; those rated most first."""
    return Json(service.search(trace, query))


@writes.post(
    "/events",
    status_code=201,
    tags=["events"],
    response_model=responses.RecordedOne | responses.RecordedMany,
    responses=documented(400, 413),
)
async def record(
    service: Using,
    trace: Traced,
    body: EventRequest,
    idempotency_key: Annotated[Key | None, Header(description=KEY_IS, examples=["a1"])] = None,
) -> Json:
    """A user has rated, watched or been shown an item; or several events, `{"events": [...]}`, all or none.

    When this returns, they are on disk, and the users' next answers know their ratings. Send them again, with the same
    `event_id` or Idempotency-Key, if no answer comes: they are stored once, and answered as `repeated`. A user's later
    rating of the same item takes the place of the one before.
    """
    return Json(await service.record(trace, body, idempotency_key), status_code=201)


@api.get("/users/{user_id}/history", tags=["events"], response_model=responses.UserHistory)
async def history(
    service: Using,
    trace: Traced,
    user_id: UserId,
    n: Annotated[int, Query(ge=1, le=64, description="events at most", examples=[20])] = 20,
) -> Json:
    """What this user rated last, newest first."""
    return Json(await service.history(trace, user_id, n))


@api.get("/model", tags=["service"], response_model=responses.ModelCard)
async def model(service: Using) -> Json:
    """What is being served, on what it was trained, how good it was measured to be, and what was counted."""
    return Json(service.card())


@writes.post("/admin/reload", tags=["service"], response_model=responses.Reloaded)
async def reload(service: Using, trace: Traced) -> Json:
    """Serve what the registry's champion alias names now, and the newest statistics of items."""
    return Json(await service.reload(trace.request_id))


@health.get("/healthz", response_model=responses.Health)
async def healthz() -> Json:
    """The process lives."""
    return Json({"status": "ok", "failing": []})


@health.get("/readyz", response_model=responses.Health)
async def readyz(service: Using) -> Json:
    """Answers are given. "degraded" where a store cannot be read: they lack what it holds."""
    failing = await service.snapshots.failing(READ_S)
    return Json({"status": "degraded" if failing else "ready", "failing": failing})


@health.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(service: Using) -> Response:
    """What was measured, in the text format of Prometheus, and the gauges of the last `recsys monitor`."""
    content, media_type = service.metrics.exposition()
    with suppress(FileNotFoundError):
        content += (service.settings.home.reports / "monitor.prom").read_bytes()
    return Response(content, media_type=media_type)
