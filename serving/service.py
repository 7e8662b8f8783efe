"""What the routes do, without HTTP: recommend, find similar movies, record an event, tell a history.

Stage: serving. In: typed requests. Out: typed answers. Absent: HTTP, and the fallbacks of an answer (`answers`).
"""

import logging
import time
import uuid
from collections.abc import Callable, Sequence

import numpy as np

from recsys.errors import StoreError
from recsys.feature_store import FeatureStore
from recsys.features.state import Event, UserState, state_after
from recsys.recommender import Filters
from serving.answers import STATE, Answers, Call, Counters
from serving.event_log import EventLog, LoggedEvent
from serving.model import ServedModel, settle
from serving.problems import ProblemError
from serving.schemas import (
    EventRequest,
    ModelCard,
    Rated,
    RatedMovie,
    RecommendationRequest,
    Recommended,
    Recorded,
    Similar,
    SimilarMovie,
    UserHistory,
)
from serving.settings import ServiceSettings
from serving.states import Known, UserStates

CLOCK_SKEW_S = 5  # how far a client's clock may be ahead
log = logging.getLogger(__name__)


class Service:
    """Everything behind the routes. Safe to share between threads."""

    def __init__(
        self, settings: ServiceSettings, model: ServedModel, store: FeatureStore, clock: Callable[[], float] = time.time
    ) -> None:
        self.settings, self.model, self.store = settings, model, store
        self.event_log = EventLog(settings.home.events)
        self.states = UserStates(store, self.event_log)
        self.counters = Counters()
        self.answers = Answers(settings, model, self.counters, clock)
        self._clock = clock

    @classmethod
    def load(cls, settings: ServiceSettings) -> "Service":
        """The champion, its feature store, and the events that the store has not heard of."""
        store = FeatureStore(settings.feature_store)
        model = ServedModel.load(settings, store, int(time.time()))
        service = cls(settings, model, store)
        moved = service.states.replay(service.event_log.read())
        log.info("event log read, %d user state(s) moved forward", moved)
        service.states.read(0)  # the first read opens the store
        settle()
        return service

    def recommend_user(self, call: Call, user_id: int, k: int | None) -> Recommended:
        """For a user of the store; the cold-start answer for somebody unknown."""
        size = self._size(k)
        try:
            known = self.states.read(user_id, self.settings.budget_ms * self.settings.state_share / 1e3)
        except StoreError as error:
            self.answers.degrade(call, STATE, error)
            known = self.states.last_known(user_id)
        return self.answers.recommend(call, user_id, known, size, Filters())

    def recommend_history(self, call: Call, body: RecommendationRequest) -> Recommended:
        """For a history that the request brings along; nothing is stored."""
        size = self._size(body.k)
        limit = self.settings.max_history
        if len(body.history) > limit:
            detail = f"history has {len(body.history)} events; at most {limit} are read."
            raise ProblemError(422, "history-too-long", detail, limit=limit)
        state = UserState(
            0, gender=body.profile.gender or "", age=body.profile.age or 0, occupation=body.profile.occupation or ""
        )
        for event in self._events(body.history):
            state = state_after(state, event)
        seen = np.array([rated.movie_id for rated in body.history], dtype=np.int64)
        chosen = body.filters
        filters = Filters(
            genres=tuple(chosen.genres),
            year_from=chosen.year_from,
            year_to=chosen.year_to,
            exclude_ids=tuple(chosen.exclude_ids),
            min_ratings=chosen.min_ratings,
        )
        return self.answers.recommend(call, None, Known(state, seen, stored=True), size, filters)

    def similar(self, call: Call, movie_id: int, k: int | None) -> Similar:
        item_idx = self._idx(movie_id, status=404)
        best, scores = self.model.similar(item_idx, self._size(k))
        items = [
            SimilarMovie(rank=rank, score=round(float(score), 6), **self.model.movie(int(idx)).model_dump())
            for rank, (idx, score) in enumerate(zip(best, scores, strict=True), start=1)
        ]
        self.counters.add("similar")
        return Similar(
            request_id=call.request_id,
            dataset=self.model.dataset(),
            model=self.model.info(),
            movie=self.model.movie(item_idx),
            items=items,
        )

    def record(self, call: Call, body: EventRequest) -> Recorded:
        """Append to the log, then move the user's state."""
        self._idx(body.movie_id, status=422)
        now = int(self._clock())
        timestamp = self._past(body.timestamp, now) if body.timestamp is not None else now
        event = LoggedEvent(
            event_id=uuid.uuid4().hex,
            user_id=body.user_id,
            item_id=body.movie_id,
            rating=body.rating,
            timestamp=timestamp,
            received=now,
            bundle_id=self.model.bundle.facts.bundle_id,
        )
        try:
            known, applied = self.states.record(event)
        except OSError as error:
            log.error("%s: event not logged: %s", call.request_id, error)
            self.counters.add("events.refused")
            raise ProblemError(503, "event-not-stored", "The event could not be stored; send it again.") from error
        self.counters.add("events" if applied else "events.pending")
        return Recorded(
            request_id=call.request_id,
            event_id=event.event_id,
            user_id=event.user_id,
            movie_id=event.item_id,
            timestamp=timestamp,
            applied=applied,
            n_events=known.state.n_events,
        )

    def history(self, call: Call, user_id: int, n: int) -> UserHistory:
        """The last events, newest first. Raises StoreError where the state cannot be read."""
        known = self.states.read(user_id)
        state = known.state
        idx = self.model.catalogue.to_idx(np.asarray(state.item_ids, dtype=np.int64)).tolist()
        events = [
            RatedMovie(rating=rating, timestamp=timestamp, **self.model.movie(i).model_dump())
            for i, rating, timestamp in zip(idx, state.ratings, state.timestamps, strict=True)
            if i >= 0
        ]
        return UserHistory(
            request_id=call.request_id,
            user_id=user_id,
            known=known.stored,
            n_events=state.n_events,
            events=events[::-1][:n],
        )

    def card(self) -> ModelCard:
        return self.model.card(self.counters.as_dict())

    def close(self) -> None:
        self.states.close()

    # -- checks ---------------------------------------------------------------------------------------------------

    def _events(self, history: Sequence[Rated]) -> list[Event]:
        """Missing timestamps become the seconds before now, in the order given."""
        now = int(self._clock())
        events = []
        for place, rated in enumerate(history):
            self._idx(rated.movie_id, status=422)
            default = now - len(history) + place
            events.append(
                Event(
                    rated.movie_id,
                    rated.rating,
                    default if rated.timestamp is None else self._past(rated.timestamp, now),
                )
            )
        return events

    def _idx(self, movie_id: int, status: int) -> int:
        item_idx = int(self.model.catalogue.to_idx(movie_id))
        if item_idx < 0:
            detail = f"Movie {movie_id} is not in the catalogue of {self.model.bundle.facts.dataset.name}."
            raise ProblemError(status, "unknown-movie", detail, movie_id=movie_id)
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
