"""What the routes do, without HTTP: recommend, find similar items, search, record events, show a history.

A method reads `champion.model` once and stays with it to its end. Lists are computed right on the event loop: a few
milliseconds of one processor each, which a hand-over to a thread and back would only add to.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

import numpy as np

from recsys.bundle import try_bundle
from recsys.columns import CHAMPION
from recsys.feature_store import FeatureStore
from recsys.features.state import Event, UserState, fold
from recsys.filters import Filters
from recsys.limits import LARGEST_ID
from recsys.monitoring.prediction_log import PredictionLog, predictions_folder
from serving.http.problems import ProblemError
from serving.http.requests import (
    EventRequest,
    FilterBody,
    ListQuery,
    ManyUsersRequest,
    RatedItem,
    RecommendationRequest,
    SearchQuery,
)
from serving.model_lifecycle.champion import Champion
from serving.model_lifecycle.served_model import ServedModel, registry_of
from serving.observability.metrics import Metrics
from serving.recommending.answers import Answers, Body
from serving.recommending.options import RecommendationOptions, RequestTrace
from serving.recommending.paging import PageCursor, decode, encode, key_of
from serving.settings import ServiceSettings
from serving.user_state.event_intake import EventIntake, check_item, check_past
from serving.user_state.snapshots import UserSnapshot, UserSnapshots

HISTORY_LIMIT_S = 2.0  # for whoever has no budget
NO_USER: Body = {
    "type": "urn:recsys:problem:invalid-user",
    "title": "Invalid user",
    "status": 422,
    "detail": f"A user id is an integer from 0 to {LARGEST_ID}.",
}
log = logging.getLogger(__name__)


class Service:
    """Everything behind the routes of one worker."""

    def __init__(
        self,
        settings: ServiceSettings,
        champion: Champion,
        store: FeatureStore,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings, self.champion, self.store, self.metrics = settings, champion, store, metrics
        self.snapshots = UserSnapshots(store, settings.events, metrics.count)
        self.intake = EventIntake(settings.events, metrics, clock)
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
        """With the registry's champion. Raises RecsysError where there is none or it cannot be served."""
        store = FeatureStore(settings.feature_store)
        registry = registry_of(settings)
        model = ServedModel.load(settings, store, registry, registry.resolve(CHAMPION), int(time.time()))
        return cls(settings, Champion(settings, store, metrics, model), store, metrics)

    @staticmethod
    def check(settings: ServiceSettings) -> str:
        """SHA-256 of the champion's bundle. Raises RecsysError where it cannot be loaded; it is not loaded here."""
        registry = registry_of(settings)
        info = registry.resolve(CHAMPION)
        try_bundle(registry.download(info, to=settings.home.bundles))
        return info.bundle_sha256

    async def recommend_user(self, trace: RequestTrace, user_id: int, query: ListQuery) -> Body:
        """For a user of the store; the cold-start answer for somebody unknown."""
        model = self.champion.model
        cursor = None if query.cursor is None else self._cursor(query.cursor, user_id)
        snapshot = await self._snapshot(trace, user_id)
        if cursor is not None:
            return self._with_cursor(*self.answers.page(model, trace, cursor, snapshot, query.k))
        options = _options(query, _filters(query, query.genre))
        return self._with_cursor(*self.answers.recommend(model, trace, user_id, snapshot, options))

    def recommend_history(self, trace: RequestTrace, body: RecommendationRequest) -> Body:
        """For a history that the request brings along. It makes nobody a user; what was answered may be logged."""
        trace.timings_ms["queue"] = trace.elapsed_ms()
        model = self.champion.model
        profile = body.profile
        state = UserState(0, gender=profile.gender or "", age=profile.age or 0, occupation=profile.occupation or "")
        snapshot = UserSnapshot(fold(state, self._events(model, body.history)), known=True)
        if body.cursor is not None:
            return self._with_cursor(
                *self.answers.page(model, trace, self._cursor(body.cursor, None), snapshot, body.k)
            )
        options = _options(body, _filters(body.filters, body.filters.genres))
        return self._with_cursor(*self.answers.recommend(model, trace, None, snapshot, options))

    async def recommend_many(self, trace: RequestTrace, body: ManyUsersRequest) -> Body:
        """Lists for several stored users, in the order asked. Between two of them others are answered."""
        model = self.champion.model
        options = RecommendationOptions(body.k, _filters(body.filters, body.filters.genres), body.diversity)
        found: dict[int | str, Body] = {}
        for user_id in dict.fromkeys(body.user_ids):
            if not isinstance(user_id, int) or not 0 <= user_id <= LARGEST_ID:
                found[user_id] = _one_of_several(_shown(user_id), problem=NO_USER)
                continue
            own = RequestTrace(trace.request_id, time.perf_counter())  # each has a budget of its own
            snapshot = await self._snapshot(own, user_id)
            answer, _ = self.answers.recommend(model, own, user_id, snapshot, options)
            found[user_id] = _one_of_several(user_id, answer["cold_start"], answer["items"], own.degraded)
            await asyncio.sleep(0)
        trace.degraded += dict.fromkeys(part for one in found.values() for part in one["degraded"])
        trace.timings_ms["total"] = trace.elapsed_ms()
        return {
            "request_id": trace.request_id,
            **model.about(),
            "degraded": trace.degraded,
            "answers": [found[user_id] for user_id in body.user_ids],
            "timings_ms": {"total": round(trace.timings_ms["total"], 3)},
        }

    def similar(self, request_id: str, item_id: int, k: int) -> Body:
        model = self.champion.model
        item_idx = check_item(model.catalogue, item_id, status=404)
        best, scores = model.similar(item_idx, k)
        self.metrics.count("similar")
        return {
            "request_id": request_id,
            **model.about(),
            "item": model.facts[item_idx],
            "items": [
                {**model.facts[idx], "rank": rank, "score": round(score, 6)}
                for rank, (idx, score) in enumerate(zip(best.tolist(), scores.tolist(), strict=True), start=1)
            ],
        }

    def item(self, request_id: str, item_id: int) -> Body:
        model = self.champion.model
        item_idx = check_item(model.catalogue, item_id, status=404)
        n, stars = int(model.stats.n_ratings[item_idx]), float(model.stats.rating_sum[item_idx])
        return {
            "request_id": request_id,
            "dataset": model.about()["dataset"],
            "item": model.facts[item_idx],
            "n_ratings": n,
            "mean_rating": round(stars / n, 3) if n else None,
        }

    def search(self, request_id: str, query: SearchQuery) -> Body:
        model = self.champion.model
        found = model.search.search(query.q, model.stats.n_ratings)
        return {
            "request_id": request_id,
            "dataset": model.about()["dataset"],
            "found": len(found),
            "items": [model.facts[idx] for idx in found[: query.k].tolist()],
        }

    async def record(self, request_id: str, body: EventRequest, key: str | None) -> Body:
        return await self.intake.record(self.champion.model.catalogue, request_id, body, key)

    async def history(self, request_id: str, user_id: int, n: int) -> Body:
        """The last events, newest first. Raises StoreError where they cannot be read whole."""
        model = self.champion.model
        snapshot = await self.snapshots.read(user_id, HISTORY_LIMIT_S)
        if snapshot.failures:
            raise snapshot.failures[0]
        state = snapshot.state
        idx = model.catalogue.to_idx(np.asarray(state.item_ids, dtype=np.int64)).tolist()
        events = [
            {**model.facts[i], "rating": rating, "timestamp": timestamp}
            for i, rating, timestamp in zip(idx, state.ratings, state.timestamps, strict=True)
            if i >= 0
        ]
        self.metrics.count("history")
        return {
            "request_id": request_id,
            "user_id": user_id,
            "known": snapshot.known,
            "n_events": state.n_events,
            "events": events[::-1][:n],
        }

    def card(self) -> Body:
        """What is served, since when, and what was counted."""
        return {
            **self.champion.model.card(),
            "counters": self.metrics.as_dict(),
            "reload": self.champion.status(),
        }

    async def reload(self, request_id: str) -> Body:
        """Look at the champion's alias now."""
        outcome = await asyncio.to_thread(self.champion.reload)
        failure = self.champion.status()["last_failure"] if outcome in ("refused", "failed") else None
        served = self.champion.model.about()["model"]
        return {"request_id": request_id, "outcome": outcome, "model": served, "failure": failure}

    def close(self) -> None:
        self.champion.close()
        self.snapshots.close()
        self.predictions.close()
        self.settings.events.close()
        self.store.close()

    # -- parts ----------------------------------------------------------------------------------------------------

    async def _snapshot(self, trace: RequestTrace, user_id: int) -> UserSnapshot:
        trace.timings_ms["queue"] = trace.elapsed_ms()
        return await self.snapshots.read(user_id, self.settings.budget_ms * self.settings.state_share / 1e3)

    def _with_cursor(self, body: Body, cursor: PageCursor | None) -> Body:
        if cursor is not None:
            body["next_cursor"] = encode(cursor, self._key)
        return body

    def _cursor(self, text: str, user_id: int | None) -> PageCursor:
        cursor = decode(text, self._key)
        if cursor.header.user_id != user_id:
            raise ProblemError(422, "invalid-cursor", "The cursor belongs to the list of somebody else.")
        return cursor

    def _events(self, model: ServedModel, history: Sequence[RatedItem]) -> list[Event]:
        """Missing timestamps become the seconds before now, in the order given."""
        now = int(self._clock())
        item_idx = model.catalogue.to_idx(np.array([rated.item_id for rated in history], dtype=np.int64))
        for place in np.flatnonzero(item_idx < 0)[:1].tolist():
            check_item(model.catalogue, history[place].item_id)
        return [
            Event(
                rated.item_id,
                rated.rating,
                now - len(history) + place if rated.timestamp is None else check_past(rated.timestamp, now),
            )
            for place, rated in enumerate(history)
        ]


def _filters(given: FilterBody | ListQuery, genres: Sequence[str]) -> Filters:
    return Filters(tuple(genres), given.year_from, given.year_to, tuple(given.exclude_ids), given.min_ratings)


def _options(given: ListQuery | RecommendationRequest, filters: Filters) -> RecommendationOptions:
    return RecommendationOptions(given.k, filters, given.diversity, given.explain, given.paginate)


def _one_of_several(
    user_id: int | str,
    cold: bool = False,
    items: Sequence[Body] = (),
    degraded: Sequence[str] = (),
    problem: Body | None = None,
) -> Body:
    return {"user_id": user_id, "cold_start": cold, "degraded": degraded, "items": items, "problem": problem}


def _shown(user_id: int | str) -> int | str:
    """As it was asked for; as text where JSON readers could not keep the number."""
    return user_id if isinstance(user_id, str) or abs(user_id) <= LARGEST_ID else str(user_id)[:100]
