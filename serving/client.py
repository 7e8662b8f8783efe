"""A small typed client of the service.

Stage: whoever asks for recommendations. In: the address of a service. Out: the models of `serving.schemas`. Absent:
anything that the HTTP interface does not offer, and the heavy libraries behind it: this needs httpx and pydantic.

    with Client("http://127.0.0.1:8000") as client:
        for item in client.recommend(42, k=5, genres=["Drama"]).items:
            print(item.title, item.like_probability)

An error arrives as `ServiceError` with the problem that the service told. 503 and 429 are asked again, after as long
as the service says, a bounded number of times; an event that was answered so was not taken. Where no answer comes at
all, only events are sent again, under the id that each is given: the service takes an id once.
"""

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import httpx
from pydantic import BaseModel

from serving.schemas import (
    EventBatch,
    FeedbackEvent,
    FilterBody,
    ItemSearch,
    ManyRecommended,
    ManyRequest,
    ModelCard,
    Profile,
    Rated,
    RatingEvent,
    RecommendationRequest,
    Recommended,
    RecordedEvent,
    RecordedMany,
    RecordedOne,
    Similar,
    UserHistory,
)

AGAIN = (429, 503)
LONGEST_PAUSE_S = 30.0
FIRST_PAUSE_S = 0.5  # where the service does not say how long; doubled each time

Model = TypeVar("Model", bound=BaseModel)


class ServiceError(Exception):
    """What the service refused, or could not do.

    status    of HTTP
    problem   the RFC 9457 object as it came; empty where the answer was none of the service's (a proxy's, say)
    """

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        self.status, self.problem = status, problem
        super().__init__(f"{status} {problem.get('title', '')}: {problem.get('detail', 'no problem details')}")

    @property
    def kind(self) -> str:
        """The last part of the problem's type, "unknown-item" for example; "" where there is none."""
        return str(self.problem.get("type", "")).rpartition(":")[2]


class Client:
    """Safe to share between threads, as httpx's client is. Close it, or use it with `with`."""

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout_s: float = 10.0,
        retries: int = 2,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`retries`: how often a 503 or 429 is asked again. A service that tells to wait longer than LONGEST_PAUSE_S
        is not waited for."""
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._http = httpx.Client(base_url=base_url, headers=headers, timeout=timeout_s, transport=transport)
        self._retries, self._sleep = retries, sleep

    def recommend(
        self,
        user_id: int,
        k: int | None = None,
        *,
        genres: Sequence[str] = (),
        year_from: int | None = None,
        year_to: int | None = None,
        exclude_ids: Sequence[int] = (),
        min_ratings: int = 0,
        diversity: float = 0.0,
        explain: bool = False,
        paginate: bool = False,
        cursor: str | None = None,
    ) -> Recommended:
        """The k best items for a stored user. With `cursor`, give nothing else but `k`."""
        asked = {
            "k": k,
            "genre": list(genres),
            "year_from": year_from,
            "year_to": year_to,
            "exclude_ids": list(exclude_ids),
            "min_ratings": min_ratings or None,
            "diversity": diversity or None,
            "explain": explain or None,
            "paginate": paginate or None,
            "cursor": cursor,
        }
        return self._get(f"/v1/users/{user_id}/recommendations", Recommended, asked)

    def recommend_for_history(
        self,
        history: Sequence[Rated],
        k: int | None = None,
        *,
        profile: Profile | None = None,
        filters: FilterBody | None = None,
        diversity: float = 0.0,
        explain: bool = False,
        paginate: bool = False,
    ) -> Recommended:
        """For somebody who is not stored; `history` oldest first."""
        body = RecommendationRequest(
            history=list(history),
            profile=profile or Profile(),
            k=k,
            filters=filters or FilterBody(),
            diversity=diversity,
            explain=explain,
            paginate=paginate,
        )
        return self._post("/v1/recommendations", Recommended, body)

    def recommend_many(
        self,
        user_ids: Sequence[int],
        k: int | None = None,
        *,
        filters: FilterBody | None = None,
        diversity: float = 0.0,
    ) -> ManyRecommended:
        """For several stored users at once, in this order."""
        body = ManyRequest(user_ids=list(user_ids), k=k, filters=filters or FilterBody(), diversity=diversity)
        return self._post("/v1/users/recommendations", ManyRecommended, body)

    def pages(self, first: Recommended, k: int | None = None) -> Iterator[Recommended]:
        """`first`, asked for with `paginate`, and the pages after it until the list ends; k items each."""
        page = first
        yield page
        while page.next_cursor is not None:
            if first.user_id is None:
                body = RecommendationRequest(k=k, cursor=page.next_cursor)
                page = self._post("/v1/recommendations", Recommended, body)
            else:
                page = self.recommend(first.user_id, k, cursor=page.next_cursor)
            yield page

    def similar(self, item_id: int, k: int | None = None) -> Similar:
        return self._get(f"/v1/items/{item_id}/similar", Similar, {"k": k})

    def search(self, text: str, k: int | None = None) -> ItemSearch:
        """Items by words of their titles."""
        return self._get("/v1/items", ItemSearch, {"q": text, "k": k})

    def record(
        self,
        user_id: int,
        item_id: int,
        rating: float | None = None,
        timestamp: int | None = None,
        *,
        kind: Literal["rating", "watch", "impression"] = "rating",
        event_id: str | None = None,
        request_id: str | None = None,
    ) -> RecordedOne:
        """A user has rated an item, or with another `kind` watched it or been shown it. It happened when the service
        hears of it, unless `timestamp` (seconds UTC) says when. `request_id`: of the answer that showed it."""
        more = {"user_id": user_id, "item_id": item_id, "timestamp": timestamp, "request_id": request_id}
        more["event_id"] = event_id or uuid.uuid4().hex
        if kind == "rating":
            event: RatingEvent | FeedbackEvent = RatingEvent.model_validate({**more, "rating": rating})
        else:
            event = FeedbackEvent.model_validate({**more, "kind": kind})
        return self._post("/v1/events", RecordedOne, event, repeatable=True)

    def record_many(self, events: Sequence[RatingEvent | FeedbackEvent]) -> list[RecordedEvent]:
        """Several events at once, all or none. Those without an `event_id` are given one."""
        named = [
            event if event.event_id else event.model_copy(update={"event_id": uuid.uuid4().hex}) for event in events
        ]
        return self._post("/v1/events", RecordedMany, EventBatch(events=named), repeatable=True).events

    def history(self, user_id: int, n: int = 20) -> UserHistory:
        """What a user rated last, newest first."""
        return self._get(f"/v1/users/{user_id}/history", UserHistory, {"n": n})

    def model(self) -> ModelCard:
        """What is being served."""
        return self._get("/v1/model", ModelCard, {})

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- parts ----------------------------------------------------------------------------------------------------

    def _get(self, path: str, model: type[Model], asked: dict[str, Any]) -> Model:
        given = {name: value for name, value in asked.items() if value is not None and value != []}
        return self._asked("GET", path, model, params=given)

    def _post(self, path: str, model: type[Model], body: BaseModel, repeatable: bool = False) -> Model:
        content = body.model_dump(mode="json", exclude_defaults=True)
        return self._asked("POST", path, model, repeatable, json=content)

    def _asked(self, method: str, path: str, model: type[Model], repeatable: bool = False, **request: Any) -> Model:
        """Raises ServiceError for what is not a success in the end, httpx.HTTPError where no answer comes."""
        for again in range(self._retries + 1):
            try:
                response = self._http.request(method, path, **request)
            except httpx.TransportError:
                if not repeatable or again == self._retries:
                    raise
                self._sleep(FIRST_PAUSE_S * 2.0**again)
                continue
            if response.is_success:
                return model.model_validate_json(response.content)
            pause_s = _pause_s(response, again)
            if response.status_code not in AGAIN or again == self._retries or pause_s > LONGEST_PAUSE_S:
                break
            self._sleep(pause_s)
        raise ServiceError(response.status_code, _problem(response))


def _pause_s(response: httpx.Response, again: int) -> float:
    """As long as Retry-After says, in seconds; a date, which the service never sends, counts as nothing said."""
    said = response.headers.get("retry-after", "")
    return float(said) if said.isdecimal() else FIRST_PAUSE_S * 2.0**again


def _problem(response: httpx.Response) -> dict[str, Any]:
    if response.headers.get("content-type", "").partition(";")[0] != "application/problem+json":
        return {}
    problem: dict[str, Any] = response.json()
    return problem
