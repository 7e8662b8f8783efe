"""What the routes do, without HTTP: recommend, find similar items, search, record an event, tell a history.

Stage: serving. In: typed requests. Out: answers as plain dicts. Absent: HTTP, and the fallbacks of an answer
(`answers`). A method reads `champion.model` once and stays with it to its end.
"""

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import numpy as np

from recsys.errors import StoreError
from recsys.feature_store import FeatureStore
from recsys.features.state import Event, UserState, state_after
from recsys.monitoring.prediction_log import PredictionLog, predictions_folder
from recsys.recommender import Filters
from serving.answers import STATE, Answers, Body, Call, Wanted, about
from serving.champion import Champion
from serving.event_log import EventIdError, EventLog, LoggedEvent
from serving.known import Known
from serving.model import ServedModel, freeze_gc
from serving.observability.metrics import Metrics
from serving.paging import Rest, decode, encode, key_of
from serving.problems import ProblemError
from serving.schemas import (
    EventBatch,
    EventRequest,
    FeedbackEvent,
    FilterBody,
    ListQuery,
    ManyRequest,
    Rated,
    RatingEvent,
    RecommendationRequest,
    SearchQuery,
)
from serving.schemas.fields import LARGEST_ID
from serving.settings import ServiceSettings
from serving.states import Outcome, UserStates

CLOCK_SKEW_S = 5  # how far a client's clock may be ahead
NO_USER: Body = {
    "type": "urn:recsys:problem:invalid-user",
    "title": "Invalid user",
    "status": 422,
    "detail": f"A user id is an integer from 0 to {LARGEST_ID}.",
}
log = logging.getLogger(__name__)


class Service:
    """Everything behind the routes. Safe to share between threads."""

    def __init__(
        self,
        settings: ServiceSettings,
        champion: Champion,
        store: FeatureStore,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings, self.champion, self.store, self.metrics = settings, champion, store, metrics
        self.event_log = EventLog(settings.home.events)
        self.states = UserStates(store, self.event_log, metrics)
        self.predictions = PredictionLog(
            predictions_folder(settings.home),
            share=settings.predictions_share,
            most_bytes=settings.predictions_bytes,
            most_days=settings.predictions_days,
            count=metrics.count,
            clock=clock,
        )
        self.answers = Answers(settings, metrics, self.predictions, clock)
        secret = settings.api_key
        self._key = key_of(settings.home.name, secret.get_secret_value() if secret else None)
        self._clock = clock

    @classmethod
    def load(cls, settings: ServiceSettings, metrics: Metrics) -> "Service":
        """The champion, its feature store, and the events that the store has not heard of."""
        store = FeatureStore(settings.feature_store)
        model = ServedModel.load(settings, store, int(time.time()))
        service = cls(settings, Champion(settings, store, metrics, model), store, metrics)
        service.event_log.recover()
        moved = service.states.catch_up()
        log.info("event log read, %d user state(s) moved forward", moved)
        service.states.open()
        freeze_gc()
        return service

    def recommend_user(self, call: Call, user_id: int, asked: ListQuery) -> Body:
        """For a user of the store; the cold-start answer for somebody unknown."""
        call.begin()
        model = self.champion.model
        k = self._size(asked.k)
        if asked.cursor is not None:
            rest = self._rest(asked.cursor, user_id)
            return self._page(model, call, rest, self._known(call, user_id).seen_ids, k)
        known = self._known(call, user_id)
        filters = _filters(asked, asked.genre)
        return self._list(model, call, user_id, known, _wanted(asked, k, filters))

    def recommend_history(self, call: Call, body: RecommendationRequest) -> Body:
        """For a history that the request brings along. It makes nobody a user; what was answered may be logged."""
        call.begin()
        model = self.champion.model
        k = self._size(body.k)
        limit = self.settings.max_history
        if len(body.history) > limit:
            detail = f"history has {len(body.history)} events; at most {limit} are read."
            raise ProblemError(422, "history-too-long", detail, limit=limit)
        seen = np.array([rated.item_id for rated in body.history], dtype=np.int64)
        if body.cursor is not None:
            return self._page(model, call, self._rest(body.cursor, None), seen, k)
        state = UserState(
            0, gender=body.profile.gender or "", age=body.profile.age or 0, occupation=body.profile.occupation or ""
        )
        for event in self._events(model, body.history):
            state = state_after(state, event)
        filters = _filters(body.filters, body.filters.genres)
        return self._list(model, call, None, Known(state, seen, stored=True), _wanted(body, k, filters))

    async def read_ahead(self, call: Call, user_id: int) -> None:
        """Where the user's state must be waited for, wait here, on the event loop, and not in the call's turn."""
        if self.states.at_hand:
            return
        began = call.elapsed_ms()
        try:
            call.ahead = await self.states.read_soon(user_id, self._state_limit_s)
        except StoreError as error:
            call.ahead = error  # counted where an answer goes without: this request may yet turn out to be a bad one
        call.timings_ms["state"] = call.elapsed_ms() - began

    def wanted(self, body: ManyRequest) -> Wanted:
        """What each of several users is to get."""
        return Wanted(self._size(body.k), _filters(body.filters, body.filters.genres), body.diversity)

    def recommend_one(self, call: Call, model: ServedModel, asked: int | str, wanted: Wanted) -> Body:
        """For one of several users of the store. Who cannot be a user gets a problem."""
        if not is_user(asked):
            return one_of_several(_shown(asked), problem=NO_USER)
        call.begin()
        known = self._known(call, asked)
        body, _ = self.answers.recommend(model, call, asked, known, wanted)
        return one_of_several(asked, body["cold_start"], body["items"], call.degraded)

    def similar(self, call: Call, item_id: int, k: int | None) -> Body:
        model = self.champion.model
        item_idx = self._idx(model, item_id, status=404)
        best, scores = model.similar(item_idx, self._size(k))
        facts = model.items.facts
        self.metrics.count("similar")
        return {
            "request_id": call.request_id,
            **about(model),
            "item": facts[item_idx],
            "items": [
                {**facts[idx], "rank": rank, "score": round(score, 6)}
                for rank, (idx, score) in enumerate(zip(best.tolist(), scores.tolist(), strict=True), start=1)
            ],
        }

    def item(self, call: Call, item_id: int) -> Body:
        model = self.champion.model
        item_idx = self._idx(model, item_id, status=404)
        n, stars = int(model.stats.n_ratings[item_idx]), float(model.stats.rating_sum[item_idx])
        return {
            "request_id": call.request_id,
            "dataset": about(model)["dataset"],
            "item": model.items.facts[item_idx],
            "n_ratings": n,
            "mean_rating": round(stars / n, 3) if n else None,
        }

    def search(self, call: Call, asked: SearchQuery) -> Body:
        model = self.champion.model
        k = self._size(asked.k)
        found = model.items.search(asked.q, model.stats.n_ratings)
        return {
            "request_id": call.request_id,
            "dataset": about(model)["dataset"],
            "found": len(found),
            "items": [model.items.facts[idx] for idx in found[:k].tolist()],
        }

    def record(self, call: Call, body: EventRequest, key: str | None) -> Body:
        """Append to the log, then move the users' states. `key`: of the request, for events without an id."""
        model = self.champion.model
        asked = body.events
        many = isinstance(body.root, EventBatch)
        keys = [f"{key}/{place}" if many and key else key for place in range(len(asked))]
        events = self._to_log(model, asked, keys)
        try:
            outcomes = self.states.record_all(events)
        except EventIdError as error:
            raise ProblemError(422, "event-id-reused", str(error)) from error
        except OSError as error:
            log.error("%s: %d event(s) not logged: %s", call.request_id, len(events), error)
            for _ in events:
                self.metrics.event("refused")
            what = "events" if many else "event"
            raise ProblemError(503, "event-not-stored", f"The {what} could not be stored; send it again.") from error
        told = [self._told(outcome) for outcome in outcomes]
        return {"request_id": call.request_id, **({"events": told} if many else told[0])}

    def _to_log(
        self, model: ServedModel, asked: Sequence[RatingEvent | FeedbackEvent], keys: Sequence[str | None]
    ) -> list[LoggedEvent]:
        """`keys`: by which events without an id go; a new one where even that is missing."""
        moment = self._clock()
        now = int(moment)
        events = []
        for event, key in zip(asked, keys, strict=True):
            self._idx(model, event.item_id, status=422)
            events.append(
                LoggedEvent(
                    event_id=event.event_id or key or uuid.uuid4().hex,
                    user_id=event.user_id,
                    item_id=event.item_id,
                    rating=event.rating if isinstance(event, RatingEvent) else None,
                    timestamp=self._past(event.timestamp, now) if event.timestamp is not None else now,
                    received=now,
                    bundle_id=model.bundle.facts.bundle_id,
                    kind=event.kind,
                    request_id=event.request_id,
                    received_us=int(moment * 1e6),
                )
            )
        return events

    def _told(self, outcome: Outcome) -> Body:
        """Count an event and say what became of it."""
        event = outcome.event
        self.metrics.event("repeated" if outcome.repeated else "stored")
        return {
            "event_id": event.event_id,
            "user_id": event.user_id,
            "item_id": event.item_id,
            "kind": event.kind,
            "timestamp": event.timestamp,
            "applied": outcome.applied,
            "repeated": outcome.repeated,
            "n_events": None if outcome.known is None else outcome.known.state.n_events,
        }

    def history(self, call: Call, user_id: int, n: int) -> Body:
        """The last events, newest first. Raises StoreError where the state cannot be read."""
        model = self.champion.model
        known = self.states.read(user_id)
        state = known.state
        idx = model.catalogue.to_idx(np.asarray(state.item_ids, dtype=np.int64)).tolist()
        events = [
            {**model.items.facts[i], "rating": rating, "timestamp": timestamp}
            for i, rating, timestamp in zip(idx, state.ratings, state.timestamps, strict=True)
            if i >= 0
        ]
        self.metrics.count("history")
        return {
            "request_id": call.request_id,
            "user_id": user_id,
            "known": known.stored,
            "n_events": state.n_events,
            "events": events[::-1][:n],
        }

    def card(self) -> Body:
        """What is served, since when, and what was counted."""
        card: dict[str, Any] = self.champion.model.card(self.metrics.as_dict()).model_dump()
        return {**card, "reload": self.champion.status()}

    def reload(self, call: Call) -> Body:
        """Look at the champion's alias now."""
        outcome = self.champion.reload()
        failure = self.champion.status()["last_failure"] if outcome in ("refused", "failed") else None
        served = about(self.champion.model)["model"]
        return {"request_id": call.request_id, "outcome": outcome, "model": served, "failure": failure}

    def close(self) -> None:
        self.states.close()
        self.predictions.close()

    # -- parts ----------------------------------------------------------------------------------------------------

    @property
    def _state_limit_s(self) -> float:
        return self.settings.budget_ms * self.settings.state_share / 1e3

    def _known(self, call: Call, user_id: int) -> Known:
        """What was read ahead, else one read of the store within its share of the budget, else what was known last."""
        try:
            if isinstance(call.ahead, StoreError):
                raise call.ahead
            return call.ahead or self.states.read(user_id, self._state_limit_s, at_once=True)
        except StoreError as error:
            self.answers.degrade(call, STATE, error)
            return self.states.last_known(user_id)

    def _list(self, model: ServedModel, call: Call, user_id: int | None, known: Known, wanted: Wanted) -> Body:
        body, rest = self.answers.recommend(model, call, user_id, known, wanted)
        if user_id is not None:
            self.champion.remember(known.state, known.seen_ids)
        return self._with_cursor(body, rest)

    def _page(self, model: ServedModel, call: Call, rest: Rest, seen: np.ndarray[Any, Any], k: int) -> Body:
        call.timings_ms["state"] = call.elapsed_ms() - call.timings_ms["queue"]
        return self._with_cursor(*self.answers.page(model, call, rest, seen, k))

    def _with_cursor(self, body: Body, rest: Rest | None) -> Body:
        if rest is not None:
            body["next_cursor"] = encode(rest, self._key)
        return body

    def _rest(self, cursor: str, user_id: int | None) -> Rest:
        rest = decode(cursor, self._key)
        if rest.header.user_id != user_id:
            raise ProblemError(422, "invalid-cursor", "The cursor belongs to the list of somebody else.")
        return rest

    # -- checks ---------------------------------------------------------------------------------------------------

    def _events(self, model: ServedModel, history: Sequence[Rated]) -> list[Event]:
        """Missing timestamps become the seconds before now, in the order given."""
        now = int(self._clock())
        events = []
        for place, rated in enumerate(history):
            self._idx(model, rated.item_id, status=422)
            default = now - len(history) + place
            events.append(
                Event(
                    rated.item_id,
                    rated.rating,
                    default if rated.timestamp is None else self._past(rated.timestamp, now),
                )
            )
        return events

    @staticmethod
    def _idx(model: ServedModel, item_id: int, status: int) -> int:
        item_idx = int(model.catalogue.to_idx(item_id))
        if item_idx < 0:
            detail = f"Item {item_id} is not in the catalogue of {model.bundle.facts.dataset.name}."
            raise ProblemError(status, "unknown-item", detail, item_id=item_id)
        return item_idx

    def _size(self, k: int | None) -> int:
        size = self.settings.default_k if k is None else k
        if not 1 <= size <= self.settings.max_k:
            detail = f"k is {size}; it must lie between 1 and {self.settings.max_k}."
            raise ProblemError(422, "invalid-request", detail, limit=self.settings.max_k)
        return size

    @staticmethod
    def _past(timestamp: int, now: int) -> int:
        if timestamp > now + CLOCK_SKEW_S:
            raise ProblemError(422, "future-event", f"timestamp {timestamp} lies in the future; it is {now} here.")
        return timestamp


def _filters(asked: FilterBody | ListQuery, genres: Sequence[str]) -> Filters:
    return Filters(tuple(genres), asked.year_from, asked.year_to, tuple(asked.exclude_ids), asked.min_ratings)


def _wanted(asked: ListQuery | RecommendationRequest, k: int, filters: Filters) -> Wanted:
    return Wanted(k, filters, asked.diversity, asked.explain, asked.paginate)


def is_user(asked: int | str) -> TypeGuard[int]:
    """Whether an entry of a list of users can be a user at all."""
    return isinstance(asked, int) and 0 <= asked <= LARGEST_ID


def one_of_several(
    user_id: int | str,
    cold: bool = False,
    items: Sequence[Body] = (),
    degraded: Sequence[str] = (),
    problem: Body | None = None,
) -> Body:
    """One of several answers."""
    return {"user_id": user_id, "cold_start": cold, "degraded": degraded, "items": items, "problem": problem}


def _shown(user_id: int | str) -> int | str:
    """As it was asked for; as text where JSON readers could not keep the number."""
    return user_id if isinstance(user_id, str) or abs(user_id) <= LARGEST_ID else str(user_id)[:100]
