"""What the routes do, without HTTP: recommend, find similar items, search, record events, show a history.

Lists are computed right on the event loop: a few
milliseconds of one processor each, which a hand-over to a thread and back would only add to.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

import numpy as np

from recsys.bundle import try_bundle
from recsys.columns import CHAMPION
from recsys.feature_store import FeatureStore
from recsys.features.state import Event, UserState, fold
from recsys.limits import LARGEST_ID
from recsys.monitoring.prediction_log import PredictionLog, predictions_folder
from serving.http.problems import ProblemError
from serving.http.requests import (
    EventRequest,
    ListQuery,
    ManyUsersRequest,
    RatedItem,
    RecommendationRequest,
    SearchQuery,
)
from serving.model_lifecycle.champion import Champion
from serving.model_lifecycle.served_model import ServedModel, registry_of
from serving.observability.metrics import Metrics
from serving.recommending.answers import STATE_SHARE, Answers, Body, RecommendationOptions, RequestTrace
from serving.recommending.shadow import ShadowScoring
from serving.settings import ServiceSettings
from serving.user_state.event_intake import EventIntake, check_item, check_past
from serving.user_state.snapshots import UserSnapshot, UserSnapshots

OF_EACH_USER = ("user_id", "model", "experiment", "cold_start", "degraded", "items")
HISTORY_LIMIT_S = 2.0  # for whoever has no budget
NO_USER = ProblemError(422, "invalid-user", f"A user id is an integer from 0 to {LARGEST_ID}.").as_dict(
    "/v1/users/recommendations"
)


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
        self.snapshots = UserSnapshots(store, settings.events, metrics.count, data_clock=lambda: champion.data_clock)
        self.intake = EventIntake(settings.events, metrics, clock)
        self.predictions = PredictionLog(
            predictions_folder(settings.home), share=settings.predictions_share, count=metrics.count, clock=clock
        )
        self.answers = Answers(settings, metrics, self.predictions, clock, champion.now)
        self.shadow = ShadowScoring(settings.shadow_share, self.answers, metrics)
        self._clock = clock

    @classmethod
    def load(cls, settings: ServiceSettings, metrics: Metrics) -> "Service":
        """With the registry's champion. Raises RecsysError where there is none or it cannot be served."""
        store = FeatureStore(settings.feature_store)
        registry = registry_of(settings)
        model = ServedModel.load(settings, store, registry, registry.resolve(CHAMPION), int(time.time()))
        champion = Champion(settings, store, metrics, model)
        champion.look_at_traffic()  # the first answer already is that of the user's arm
        return cls(settings, champion, store, metrics)

    @staticmethod
    def check(settings: ServiceSettings) -> str:
        """SHA-256 of the champion's bundle. Raises RecsysError where it cannot be loaded; it is not loaded here."""
        registry = registry_of(settings)
        info = registry.resolve(CHAMPION)
        try_bundle(registry.download(info, to=settings.home.bundles))
        return info.bundle_sha256

    async def recommend_user(self, trace: RequestTrace, user_id: int, query: ListQuery) -> Body:
        """For a user of the store; the cold-start answer for somebody unknown."""
        live = self.champion.traffic
        trace.assignment = live.assign(user_id, trace.model)
        options = self._options(trace, query, user_id)
        snapshot = await self._snapshot(trace, user_id)
        body = self.answers.recommend(trace, user_id, snapshot, options)
        self.shadow.after(trace, live.shadow, user_id, snapshot, options)
        return body

    def recommend_history(self, trace: RequestTrace, body: RecommendationRequest) -> Body:
        """For a history that the request brings along. It makes nobody a user; what was answered may be logged."""
        trace.timings_ms["queue"] = trace.elapsed_ms()
        profile = body.profile
        state = UserState(0, gender=profile.gender or "", age=profile.age or 0, occupation=profile.occupation or "")
        snapshot = UserSnapshot(fold(state, self._events(trace.model, body.history)), known=True)
        return self.answers.recommend(trace, None, snapshot, self._options(trace, body, None))

    async def recommend_many(self, trace: RequestTrace, body: ManyUsersRequest) -> Body:
        """Lists for several stored users, in the order of the request. Between two of them others are answered."""
        live = self.champion.traffic
        answers: dict[int | str, Body] = {}
        for user_id in dict.fromkeys(body.user_ids):
            if not isinstance(user_id, int) or not 0 <= user_id <= LARGEST_ID:
                nothing: Body = {"model": None, "experiment": None, "cold_start": False, "degraded": [], "items": []}
                answers[user_id] = {"user_id": _as_sent(user_id), **nothing, "problem": NO_USER}
                continue
            # each has a budget of its own
            own = RequestTrace(trace.request_id, time.perf_counter(), live.assign(user_id, trace.model))
            options = RecommendationOptions(body.k, body.filters.to_filters(), _diversity(own, body))
            whole = self.answers.recommend(own, user_id, await self._snapshot(own, user_id), options)
            answers[user_id] = {name: whole[name] for name in OF_EACH_USER} | {"problem": None}
            await asyncio.sleep(0)
        trace.degraded += dict.fromkeys(part for answer in answers.values() for part in answer["degraded"])
        trace.timings_ms["total"] = trace.elapsed_ms()
        return {
            "request_id": trace.request_id,
            "dataset": trace.model.dataset,
            "model": trace.model.name,
            "degraded": trace.degraded,
            "answers": [answers[user_id] for user_id in body.user_ids],
            "timings_ms": {"total": round(trace.timings_ms["total"], 3)},
        }

    def similar(self, trace: RequestTrace, item_id: int, k: int) -> Body:
        model = trace.model
        item_idx = check_item(model.catalogue, item_id, status=404)
        best, scores = model.similar(item_idx, k)
        self.metrics.count("similar")
        items = [
            {**model.facts[idx], "rank": rank, "score": round(score, 6)}
            for rank, (idx, score) in enumerate(zip(best.tolist(), scores.tolist(), strict=True), start=1)
        ]
        about = {"request_id": trace.request_id, "dataset": model.dataset, "model": model.name}
        return {**about, "item": model.facts[item_idx], "items": items}

    def item(self, trace: RequestTrace, item_id: int) -> Body:
        model = trace.model
        item_idx = check_item(model.catalogue, item_id, status=404)
        n, stars = int(model.stats.n_ratings[item_idx]), float(model.stats.rating_sum[item_idx])
        about = {"request_id": trace.request_id, "dataset": model.dataset, "item": model.facts[item_idx]}
        return {**about, "n_ratings": n, "mean_rating": round(stars / n, 3) if n else None}

    def search(self, trace: RequestTrace, query: SearchQuery) -> Body:
        model = trace.model
        found = model.search.search(query.q, model.stats.n_ratings)
        items = [model.facts[idx] for idx in found[: query.k].tolist()]
        return {"request_id": trace.request_id, "dataset": model.dataset, "found": len(found), "items": items}

    async def record(self, trace: RequestTrace, body: EventRequest, key: str | None) -> Body:
        models = (trace.model, *self.champion.traffic.models.values())
        return await self.intake.record([model.catalogue for model in models], trace.request_id, body, key)

    async def history(self, trace: RequestTrace, user_id: int, n: int) -> Body:
        """The last events, newest first. Raises StoreError where they cannot be read whole."""
        model = trace.model
        snapshot = await self.snapshots.read(user_id, HISTORY_LIMIT_S)
        if snapshot.failures:
            raise snapshot.failures[0]
        state, clock = snapshot.state, self.champion.data_clock
        idx = model.catalogue.to_idx(np.asarray(state.item_ids, dtype=np.int64)).tolist()
        events = [
            {**model.facts[i], "rating": rating, "timestamp": clock.to_live(timestamp)}
            for i, rating, timestamp in zip(idx, state.ratings, state.timestamps, strict=True)
            if i >= 0
        ]
        self.metrics.count("history")
        about = {"request_id": trace.request_id, "user_id": user_id, "known": snapshot.known}
        return {**about, "n_events": state.n_events, "events": events[::-1][:n]}

    def card(self) -> Body:
        """What is served, since when, and what was counted."""
        counters, reload = self.metrics.as_dict(), self.champion.status()
        return {**self.champion.model.card(), "counters": counters, "reload": reload}

    async def reload(self, request_id: str) -> Body:
        """Look at the champion's alias now."""
        outcome = await asyncio.to_thread(self.champion.reload)
        failure = self.champion.status()["last_failure"] if outcome in ("refused", "failed") else None
        return {"request_id": request_id, "outcome": outcome, "model": self.champion.model.name, "failure": failure}

    def close(self) -> None:
        self.champion.close()
        self.snapshots.close()
        self.predictions.close()
        self.settings.events.close()
        self.store.close()

    async def _snapshot(self, trace: RequestTrace, user_id: int) -> UserSnapshot:
        trace.timings_ms["queue"] = trace.elapsed_ms()
        return await self.snapshots.read(user_id, self.settings.budget_ms * STATE_SHARE / 1e3)

    def _options(
        self, trace: RequestTrace, request: ListQuery | RecommendationRequest, user_id: int | None
    ) -> RecommendationOptions:
        cursor = self.answers.cursor(request.cursor, user_id)
        return RecommendationOptions(
            request.k, request.to_filters(), _diversity(trace, request), request.explain, request.paginate, cursor
        )

    def _events(self, model: ServedModel, history: Sequence[RatedItem]) -> list[Event]:
        """Missing timestamps become the seconds before now, in the order given."""
        now, clock = int(self._clock()), self.champion.data_clock
        item_idx = model.catalogue.to_idx(np.array([rated.item_id for rated in history], dtype=np.int64))
        for place in np.flatnonzero(item_idx < 0)[:1].tolist():
            check_item(model.catalogue, history[place].item_id)
        return [
            Event(
                rated.item_id,
                rated.rating,
                clock.to_data(
                    now - len(history) + place if rated.timestamp is None else check_past(rated.timestamp, now)
                ),
            )
            for place, rated in enumerate(history)
        ]


def _diversity(trace: RequestTrace, request: ListQuery | RecommendationRequest | ManyUsersRequest) -> float:
    """As the request says, or else as the user's arm does."""
    return request.diversity if "diversity" in request.model_fields_set else trace.assignment.diversity


def _as_sent(user_id: int | str) -> int | str:
    """As text where JSON readers could not keep the number."""
    return user_id if isinstance(user_id, str) or abs(user_id) <= LARGEST_ID else str(user_id)[:100]
