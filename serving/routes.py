"""The routes: HTTP in, HTTP out, one line of work each.

Stage: serving. In: requests. Out: JSON. Absent: what it says (`service`), how errors look (`problems`), who may ask
(`access`).

Answers are computed in turn, by `admission`, as plain dicts, and written once. `response_model` documents
them; tests hold every answer against it, requests do not pay for that. Everything here is `async`, dependencies
included: FastAPI would give a plain function to a thread of its own pool first.
"""

import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any, Concatenate, ParamSpec

import orjson
from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response

from serving.admission import Admission
from serving.answers import Body, Call, about
from serving.problems import ProblemError, documented
from serving.schemas import (
    EventRequest,
    Health,
    ItemDetails,
    ItemSearch,
    ListQuery,
    ManyRecommended,
    ManyRequest,
    ModelCard,
    RecommendationRequest,
    Recommended,
    Recorded,
    Reloaded,
    SearchQuery,
    Similar,
    UserHistory,
)
from serving.schemas.asked import K_IS, Key
from serving.schemas.fields import LARGEST_ID
from serving.service import Service, is_user, one_of_several

P = ParamSpec("P")

UserId = Annotated[int, Path(ge=0, le=LARGEST_ID, description="as in the data set", examples=[42])]
ItemId = Annotated[int, Path(ge=0, le=LARGEST_ID, description="as in the data set", examples=[260])]
IdempotencyKey = Annotated[
    Key | None,
    Header(
        description="for an event without `event_id`; for those of a batch, with /0, /1 and so on behind it",
        examples=["a1"],
    ),
]
K = Annotated[int | None, Query(ge=1, description=K_IS, examples=[10])]


class Json(Response):
    """Written by orjson, from values that the service made."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


async def _service(request: Request) -> Service:
    """Raises a 503 until the model is loaded."""
    service: Service | None = request.app.state.service
    if service is None:
        raise ProblemError(503, "not-ready", "The model is still being loaded; try again in a few seconds.")
    return service


Ready = Annotated[Service, Depends(_service)]

api = APIRouter(prefix="/v1", responses=documented(422, 429, 500, 503))


async def _computed(
    request: Request, work: Callable[Concatenate[Call, P], Body], *args: P.args, **more: P.kwargs
) -> Json:
    """The answer of a method of the service that needs the processor alone."""
    return _told(request, await _admission(request).answers.run(work, _call(request), *args, **more))


async def _waited(
    request: Request, work: Callable[Concatenate[Call, P], Body], *args: P.args, **more: P.kwargs
) -> Body:
    """The answer of a method that waits for a disk or a store, on a thread that computes nothing."""
    return await _admission(request).io.run(work, _call(request), *args, **more)


def _told(request: Request, body: Body) -> Json:
    request.state.timings_ms, request.state.degraded = body.get("timings_ms"), body.get("degraded", ())
    return Json(body)


@api.get("/users/{user_id}/recommendations", tags=["recommend"], response_model=Recommended)
async def recommend_user(
    request: Request, service: Ready, user_id: UserId, asked: Annotated[ListQuery, Query()]
) -> Json:
    """The k best items that this user has not rated, best first. Somebody unknown gets the cold-start answer."""
    call, lane = _call(request), _admission(request).answers
    async with lane.place():
        await service.read_ahead(call, user_id)
        return _told(request, await lane.turn(service.recommend_user, call, user_id, asked))


@api.post("/recommendations", tags=["recommend"], response_model=Recommended, responses=documented(400, 413))
async def recommend_history(request: Request, service: Ready, body: RecommendationRequest) -> Json:
    """The same for somebody who is not stored: the history comes in the body, and makes nobody a user."""
    return await _computed(request, service.recommend_history, body)


@api.post("/users/recommendations", tags=["recommend"], response_model=ManyRecommended, responses=documented(400, 413))
async def recommend_many(request: Request, service: Ready, body: ManyRequest) -> Json:
    """Lists for several stored users, in the order asked. Each takes a turn of its own, so that a long call holds up
    nobody; whose turn is refused under load gets that as a problem in place of a list."""
    lane = _admission(request).answers
    model, wanted = service.champion.model, service.wanted(body)
    found: dict[int | str, Body] = {}
    for asked in dict.fromkeys(body.user_ids):
        call = Call(request.state.request_id, time.perf_counter())
        try:
            async with lane.place():
                if is_user(asked):
                    await service.read_ahead(call, asked)
                found[asked] = await lane.turn(service.recommend_one, call, model, asked, wanted)
        except ProblemError as error:
            if error.status != HTTPStatus.SERVICE_UNAVAILABLE or not found:
                raise
            found[asked] = one_of_several(asked, problem=error.as_dict())
    degraded = dict.fromkeys(part for one in found.values() for part in one["degraded"])
    total_ms = (time.perf_counter() - request.state.started) * 1e3
    request.state.timings_ms, request.state.degraded = {"total": total_ms}, list(degraded)
    return Json(
        {
            "request_id": request.state.request_id,
            **about(model),
            "degraded": list(degraded),
            "answers": [found[asked] for asked in body.user_ids],
            "timings_ms": {"total": round(total_ms, 3)},
        }
    )


@api.get("/items/{item_id}/similar", tags=["items"], response_model=Similar, responses=documented(404))
async def similar(request: Request, service: Ready, item_id: ItemId, k: K = None) -> Json:
    """The items whose vectors point in the same direction."""
    return await _computed(request, service.similar, item_id, k)


@api.get("/items/{item_id}", tags=["items"], response_model=ItemDetails, responses=documented(404))
async def item(request: Request, service: Ready, item_id: ItemId) -> Json:
    """Title, year, genres, and how it was rated."""
    return Json(service.item(_call(request), item_id))


@api.get("/items", tags=["items"], response_model=ItemSearch)
async def search(request: Request, service: Ready, asked: Annotated[SearchQuery, Query()]) -> Json:
    """Items by words of their titles, or beginnings of words; those rated most first."""
    return await _computed(request, service.search, asked)


@api.post("/events", status_code=201, tags=["events"], response_model=Recorded, responses=documented(400, 401, 413))
async def record(request: Request, service: Ready, body: EventRequest, idempotency_key: IdempotencyKey = None) -> Json:
    """A user has rated, watched or been shown an item; or several events, `{"events": [...]}`, all or none.

    When this returns, they are on disk, and the users' next answers know their ratings. Send them again, with the same
    `event_id` or Idempotency-Key, if no answer comes: they are logged once, and answered as `repeated`. The same item,
    rated by the same user in the same second, counts once whatever its id.
    """
    return Json(await _waited(request, service.record, body, idempotency_key), status_code=201)


@api.get("/users/{user_id}/history", tags=["events"], response_model=UserHistory)
async def history(
    request: Request,
    service: Ready,
    user_id: UserId,
    n: Annotated[int, Query(ge=1, le=64, description="events at most", examples=[20])] = 20,
) -> Json:
    """What this user rated last, newest first."""
    return Json(await _waited(request, service.history, user_id, n))


@api.get("/model", tags=["service"], response_model=ModelCard)
async def model(service: Ready) -> Json:
    """What is being served, on what it was trained, how good it was measured to be, and what was counted."""
    return Json(service.card())


@api.post("/admin/reload", tags=["service"], response_model=Reloaded, responses=documented(401))
async def reload(request: Request, service: Ready) -> Json:
    """Serve what the registry's champion alias names now, and the newest statistics of items."""
    return Json(await _waited(request, service.reload))


health = APIRouter(tags=["service"])


@health.get("/healthz", response_model=Health)
async def healthz() -> Json:
    """The process lives."""
    return Json({"status": "ok"})


@health.get("/readyz", response_model=Health, responses=documented(503))
async def readyz(request: Request, _service: Ready) -> Json:
    """The model is loaded and warm; 503 before, and once the service is being stopped."""
    if request.app.state.draining:
        raise ProblemError(503, "stopping", "The service is being stopped.")
    return Json({"status": "ready"})


@health.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """What was measured, in the text format of Prometheus; also before the model is ready."""
    content, media_type = request.app.state.metrics.exposition()
    return Response(content, media_type=media_type)


def _admission(request: Request) -> Admission:
    admission: Admission = request.app.state.admission
    return admission


def _call(request: Request) -> Call:
    return Call(request.state.request_id, request.state.started)
