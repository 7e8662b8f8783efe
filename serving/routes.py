"""The routes: HTTP in, HTTP out, one line of work each.

Stage: serving. In: requests. Out: typed answers. Absent: what they say (`service`), how errors look (`problems`).

Every endpoint is a plain `def`: FastAPI runs it on a worker thread, so that computing never blocks the event loop.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from serving.answers import Call
from serving.problems import ProblemError, documented
from serving.schemas import (
    EventRequest,
    Health,
    ModelCard,
    RecommendationRequest,
    Recommended,
    Recorded,
    Similar,
    UserHistory,
)
from serving.service import Service

LARGEST_ID = 2**63 - 1

UserId = Annotated[int, Path(ge=0, le=LARGEST_ID, examples=[42])]
MovieId = Annotated[int, Path(ge=0, le=LARGEST_ID, examples=[260])]
K = Annotated[int | None, Query(ge=1, description="how many; the service's default if not given")]


def _call(request: Request) -> Call:
    return Call(request.state.request_id, request.state.started)


def _service(request: Request) -> Service:
    """Raises a 503 until the model is loaded."""
    service: Service | None = request.app.state.service
    if service is None:
        raise ProblemError(503, "not-ready", "The model is still being loaded; try again in a few seconds.")
    return service


Ready = Annotated[Service, Depends(_service)]
Asking = Annotated[Call, Depends(_call)]

api = APIRouter(prefix="/v1", responses=documented(422, 500, 503))


@api.get("/users/{user_id}/recommendations", tags=["recommend"])
def recommend_user(service: Ready, call: Asking, user_id: UserId, k: K = None) -> Recommended:
    """The k best movies that this user has not rated, best first. Somebody unknown gets the cold-start answer."""
    return service.recommend_user(call, user_id, k)


@api.post("/recommendations", tags=["recommend"])
def recommend_history(service: Ready, call: Asking, body: RecommendationRequest) -> Recommended:
    """The same for somebody who is not stored: the history comes in the body, and is forgotten afterwards."""
    return service.recommend_history(call, body)


@api.get("/movies/{movie_id}/similar", tags=["recommend"], responses=documented(404))
def similar(service: Ready, call: Asking, movie_id: MovieId, k: K = None) -> Similar:
    """The movies whose vectors point in the same direction."""
    return service.similar(call, movie_id, k)


@api.post("/events", status_code=201, tags=["events"])
def record(service: Ready, call: Asking, body: EventRequest) -> Recorded:
    """A user has rated a movie. When this returns, the event is on disk and the user's next answer knows it."""
    return service.record(call, body)


@api.get("/users/{user_id}/history", tags=["events"])
def history(service: Ready, call: Asking, user_id: UserId, n: Annotated[int, Query(ge=1, le=64)] = 20) -> UserHistory:
    """What this user rated last, newest first."""
    return service.history(call, user_id, n)


@api.get("/model", tags=["service"])
def model(service: Ready) -> ModelCard:
    """What is being served, on what it was trained, how good it was measured to be, and what was counted."""
    return service.card()


health = APIRouter(tags=["service"])


@health.get("/healthz")
async def healthz() -> Health:
    """The process lives."""
    return Health(status="ok")


@health.get("/readyz", responses=documented(503))
async def readyz(_service: Ready, response: Response) -> Health:
    """The model is loaded and warm; 503 before."""
    response.headers["Cache-Control"] = "no-store"
    return Health(status="ready")
