"""The routes: HTTP in, HTTP out, one line of work each.

Answers are plain dicts, written once. `response_model` documents them; tests hold every answer against it, requests do
not pay for that. Everything here is `async`, dependencies included: FastAPI would give a plain function to a thread.
"""

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response

from recsys.limits import LARGEST_ID
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
from serving.http.responses import (
    Health,
    ItemDetails,
    ItemSearch,
    ManyRecommended,
    ModelCard,
    Recommended,
    Recorded,
    Reloaded,
    Similar,
    UserHistory,
)
from serving.recommending.options import RequestTrace
from serving.recommending.service import Service

READ_S = 1.0  # /readyz waits that long for a store
UserId = Annotated[int, Path(ge=0, le=LARGEST_ID, description="as in the data set", examples=[42])]
ItemId = Annotated[int, Path(ge=0, le=LARGEST_ID, description="as in the data set", examples=[260])]
IdempotencyKey = Annotated[
    Key | None,
    Header(
        description="for an event without `event_id`; for those of a batch, with /0, /1 and so on behind it",
        examples=["a1"],
    ),
]


class Json(Response):
    """Written by orjson, from values that the service made."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _trace(request: Request) -> RequestTrace:
    return RequestTrace(request.state.request_id, request.state.started)


async def _request_id(request: Request) -> str:
    request_id: str = request.state.request_id
    return request_id


Using = Annotated[Service, Depends(_service)]
Traced = Annotated[RequestTrace, Depends(_trace)]
RequestId = Annotated[str, Depends(_request_id)]

api = APIRouter(prefix="/v1", responses=documented(422, 429, 500, 503))


def _list(request: Request, trace: RequestTrace, body: dict[str, Any]) -> Json:
    request.state.timings_ms, request.state.degraded = trace.timings_ms, trace.degraded
    return Json(body)


@api.get("/users/{user_id}/recommendations", tags=["recommend"], response_model=Recommended)
async def recommend_user(
    request: Request, service: Using, trace: Traced, user_id: UserId, query: Annotated[ListQuery, Query()]
) -> Json:
    """The k best items that this user has not rated, best first. Somebody unknown gets the cold-start answer."""
    return _list(request, trace, await service.recommend_user(trace, user_id, query))


@api.post("/recommendations", tags=["recommend"], response_model=Recommended, responses=documented(400, 413))
async def recommend_history(request: Request, service: Using, trace: Traced, body: RecommendationRequest) -> Json:
    """The same for somebody who is not stored: the history comes in the body, and makes nobody a user."""
    return _list(request, trace, service.recommend_history(trace, body))


@api.post("/users/recommendations", tags=["recommend"], response_model=ManyRecommended, responses=documented(400, 413))
async def recommend_many(request: Request, service: Using, trace: Traced, body: ManyUsersRequest) -> Json:
    """Lists for several stored users, in the order asked."""
    return _list(request, trace, await service.recommend_many(trace, body))


@api.get("/items/{item_id}/similar", tags=["items"], response_model=Similar, responses=documented(404))
async def similar(service: Using, request_id: RequestId, item_id: ItemId, k: Annotated[K, Query()] = DEFAULT_K) -> Json:
    """The items whose vectors point in the same direction."""
    return Json(service.similar(request_id, item_id, k))


@api.get("/items/{item_id}", tags=["items"], response_model=ItemDetails, responses=documented(404))
async def item(service: Using, request_id: RequestId, item_id: ItemId) -> Json:
    """Title, year, genres, and how it was rated."""
    return Json(service.item(request_id, item_id))


@api.get("/items", tags=["items"], response_model=ItemSearch)
async def search(service: Using, request_id: RequestId, query: Annotated[SearchQuery, Query()]) -> Json:
    """Items by words of their titles, or beginnings of words; those rated most first."""
    return Json(service.search(request_id, query))


@api.post("/events", status_code=201, tags=["events"], response_model=Recorded, responses=documented(400, 401, 413))
async def record(
    service: Using, request_id: RequestId, body: EventRequest, idempotency_key: IdempotencyKey = None
) -> Json:
    """A user has rated, watched or been shown an item; or several events, `{"events": [...]}`, all or none.

    When this returns, they are on disk, and the users' next answers know their ratings. Send them again, with the same
    `event_id` or Idempotency-Key, if no answer comes: they are stored once, and answered as `repeated`. A user's later
    rating of the same item takes the place of the one before.
    """
    return Json(await service.record(request_id, body, idempotency_key), status_code=201)


@api.get("/users/{user_id}/history", tags=["events"], response_model=UserHistory)
async def history(
    service: Using,
    request_id: RequestId,
    user_id: UserId,
    n: Annotated[int, Query(ge=1, le=64, description="events at most", examples=[20])] = 20,
) -> Json:
    """What this user rated last, newest first."""
    return Json(await service.history(request_id, user_id, n))


@api.get("/model", tags=["service"], response_model=ModelCard)
async def model(service: Using) -> Json:
    """What is being served, on what it was trained, how good it was measured to be, and what was counted."""
    return Json(service.card())


@api.post("/admin/reload", tags=["service"], response_model=Reloaded, responses=documented(401))
async def reload(service: Using, request_id: RequestId) -> Json:
    """Serve what the registry's champion alias names now, and the newest statistics of items."""
    return Json(await service.reload(request_id))


health = APIRouter(tags=["service"])


@health.get("/healthz", response_model=Health)
async def healthz() -> Json:
    """The process lives."""
    return Json({"status": "ok", "failing": []})


@health.get("/readyz", response_model=Health)
async def readyz(service: Using) -> Json:
    """Answers are given. "degraded" where a store cannot be read: they lack what it holds."""
    failing = await service.snapshots.failing(READ_S)
    return Json({"status": "degraded" if failing else "ready", "failing": failing})


@health.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(service: Using) -> Response:
    """What was measured, in the text format of Prometheus."""
    content, media_type = service.metrics.exposition()
    return Response(content, media_type=media_type)
