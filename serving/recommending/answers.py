"""Lists of items and their fallbacks.

An answer comes from `Recommender.recommend`, or from a list that the model made when it was loaded; nothing is ordered
here. It degrades rather than fails: first no explanation, then no state, then no ranking, then the cold-start list.
Each step is named in the answer, counted and logged.

Shapes: n items of a list, S retrievers.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.arrays import FloatArray, IntArray
from recsys.errors import ConfigError, StoreError
from recsys.features.state import StateBatch, state_batch
from recsys.monitoring.prediction_log import AnsweredRequest, PredictionLog
from recsys.recommender import Recommendations, RequestContext
from serving.model_lifecycle.served_model import ServedModel
from serving.observability.metrics import Metrics
from serving.recommending.explain import add_contributions, explain
from serving.recommending.options import RecommendationOptions, RequestTrace
from serving.recommending.paging import Header, PageCursor
from serving.settings import ServiceSettings
from serving.user_state.snapshots import UserSnapshot

STATE, RANKING, RETRIEVAL, EXPLAIN = "user_state", "ranking", "retrieval", "explain"
NO_TIME = "the budget is spent"
Body = dict[str, Any]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ItemList:
    """One user's list, best first. watch, like: NaN where there is no probability; retrievers: bit s for retriever
    s."""

    item_idx: IntArray
    scores: FloatArray
    watch: FloatArray
    like: FloatArray
    retrievers: npt.NDArray[np.uint32]


class Answers:
    def __init__(
        self, settings: ServiceSettings, metrics: Metrics, predictions: PredictionLog, clock: Callable[[], float]
    ) -> None:
        self._settings, self._metrics, self._predictions, self._clock = settings, metrics, predictions, clock

    def recommend(
        self,
        model: ServedModel,
        trace: RequestTrace,
        user_id: int | None,
        snapshot: UserSnapshot,
        options: RecommendationOptions,
    ) -> tuple[Body, PageCursor | None]:
        """The answer, and what is left of the list for further pages. Raises ConfigError where the filters name
        something that does not exist."""
        for failure in snapshot.failures:
            self._degrade(trace, STATE, failure)
        if user_id is not None and snapshot.state.timestamps:
            self._metrics.state_age(self._clock() - snapshot.state.timestamps[-1])
        # At least a second after the last event: what the state holds is known, even if it happened just now.
        now = max(int(self._clock()), max(snapshot.state.timestamps, default=0) + 1)
        states = state_batch(model.catalogue, [snapshot.state], now)
        trace.timings_ms["state"] = trace.elapsed_ms() - trace.timings_ms["queue"]
        cold = bool(states.cold[0])
        found = self._ranked(model, trace, states, options)
        ranked = _item_list(model, found) if found else _cold_start_list(model, states.seen_idx[0], options)
        items = self._items(model, ranked, options.k)
        if options.explain:
            self._explain(model, trace, states, found, options, items)
        self._predictions.offer(
            AnsweredRequest(
                request_id=trace.request_id,
                user_id=user_id,
                state_seq=None if snapshot.failures else snapshot.state.through_seq,
                received_at=self._clock() - trace.elapsed_ms() / 1e3,
                now=now,
                bundle_id=model.bundle.facts.bundle_id,
                version=model.version,
                statistics_day=model.stats.day,
                statistics_seq=model.stats.through_seq,
                item_ids=model.catalogue.to_ids(ranked.item_idx[: options.k]),
                k=options.k,
                list_length=options.length,
                recommendations=found,
                feature_names=model.recommender.feature_names,
                diversity=options.diversity,
                filters=options.filters,
                degraded=tuple(trace.degraded),
            )
        )
        self._metrics.count("requests")
        if cold:
            self._metrics.count("cold_start")
        cursor = None
        if options.paginate and len(ranked.item_idx) > options.k:
            cursor = self._cursor(model, trace, user_id, ranked, cold).after(options.k, options.k)
        body = {
            "request_id": trace.request_id,
            "user_id": user_id,
            **model.about(),
            "cold_start": cold,
            "degraded": trace.degraded,
            "items": items,
            "next_cursor": None,
            "timings_ms": self._timings(trace),
        }
        return body, cursor

    def page(
        self, model: ServedModel, trace: RequestTrace, cursor: PageCursor, snapshot: UserSnapshot, k: int
    ) -> tuple[Body, PageCursor | None]:
        """The next k of a list that was made before, without what was seen since or is no longer in the catalogue."""
        for failure in snapshot.failures:
            self._degrade(trace, STATE, failure)
        trace.timings_ms["state"] = trace.elapsed_ms() - trace.timings_ms["queue"]
        header = cursor.header
        idx = model.catalogue.to_idx(cursor.item_ids)
        seen_ids = np.asarray(snapshot.state.seen_item_ids, dtype=np.int64)
        shown = np.flatnonzero((idx >= 0) & ~np.isin(cursor.item_ids, seen_ids))
        end = int(shown[k]) if len(shown) > k else len(idx)
        shown = shown[:k]
        items = ItemList(
            idx[shown], cursor.scores[shown], cursor.watch[shown], cursor.like[shown], cursor.retrievers[shown]
        )
        self._predictions.offer(
            AnsweredRequest(
                request_id=trace.request_id,
                user_id=header.user_id,
                state_seq=None,
                received_at=self._clock() - trace.elapsed_ms() / 1e3,
                now=int(self._clock()),
                bundle_id=header.bundle_id,
                version=header.version,
                statistics_day=model.stats.day,
                statistics_seq=model.stats.through_seq,
                item_ids=cursor.item_ids[shown],
                k=k,
                list_length=k,
                first_position=header.shown + 1,
            )
        )
        self._metrics.count("pages")
        body = {
            "request_id": trace.request_id,
            "user_id": header.user_id,
            **model.about(),
            "model": {"version": header.version, "bundle_id": header.bundle_id},
            "cold_start": header.cold_start,
            "degraded": list(dict.fromkeys([*header.degraded, *trace.degraded])),
            "items": self._items(model, items, k, tuple(header.retriever_names), header.shown),
            "next_cursor": None,
            "timings_ms": self._timings(trace),
        }
        return body, cursor.after(end, len(shown)) if end < len(idx) else None

    # -- the list -------------------------------------------------------------------------------------------------

    def _ranked(
        self, model: ServedModel, trace: RequestTrace, states: StateBatch, options: RecommendationOptions
    ) -> Recommendations | None:
        """The full answer; without the ranker where that fails or time runs out; None where retrieval does too."""
        budget_ms = self._settings.budget_ms
        if trace.elapsed_ms() > budget_ms * self._settings.last_share:
            self._degrade(trace, RANKING, NO_TIME)
            self._degrade(trace, RETRIEVAL, NO_TIME)
            return None
        wanted = (options.length, options.filters, options.diversity)
        left_ms = max(budget_ms * self._settings.retrieval_share - trace.elapsed_ms(), 0.0)
        try:
            found = model.recommender.recommend(states, RequestContext(model.stats, left_ms), *wanted)
        except ConfigError:
            raise  # what was asked for does not exist: no fallback would change that
        except Exception as error:
            self._degrade(trace, RANKING, error)
            try:
                found = model.retrieval_only.recommend(states, RequestContext(model.stats), *wanted)
            except Exception as second:
                self._degrade(trace, RETRIEVAL, second)
                return None
        for part in found.degraded:
            self._degrade(trace, part, NO_TIME)
        trace.timings_ms |= found.timings_ms
        return found

    def _degrade(self, trace: RequestTrace, part: str, why: str | Exception) -> None:
        """Note that a part was left out: in the answer, the metrics and the log."""
        if part not in trace.degraded:
            trace.degraded.append(part)
        self._metrics.degraded(part)
        cause = why if isinstance(why, Exception) and not isinstance(why, StoreError) else None
        log.warning("answered without %s: %s", part, why, exc_info=cause)

    def _timings(self, trace: RequestTrace) -> dict[str, float]:
        """The stages so far and the total, counted, and rounded for the answer."""
        trace.timings_ms["total"] = trace.elapsed_ms()
        for stage, ms in trace.timings_ms.items():
            self._metrics.stage(stage, ms)
        return {stage: round(ms, 3) for stage, ms in trace.timings_ms.items()}

    # -- what is shown of it --------------------------------------------------------------------------------------

    def _items(
        self,
        model: ServedModel,
        items: ItemList,
        k: int,
        retriever_names: tuple[str, ...] | None = None,
        shown: int = 0,
    ) -> list[Body]:
        """The first k as dicts; `shown` items came before them on earlier pages."""
        names = retriever_names or tuple(retriever.name for retriever in model.recommender.retrievers)
        columns = zip(
            items.item_idx[:k].tolist(),
            items.scores[:k].tolist(),
            items.watch[:k].tolist(),
            items.like[:k].tolist(),
            items.retrievers[:k].tolist(),
            strict=True,
        )
        return [
            {
                **model.facts[item_idx],
                "rank": rank,
                "score": round(score, 6),
                "watch_probability": None if isnan(watch) else round(watch, 6),
                "like_probability": None if isnan(like) else round(like, 6),
                "retrievers": [name for s, name in enumerate(names) if bits >> s & 1],
                "explanation": None,
            }
            for rank, (item_idx, score, watch, like, bits) in enumerate(columns, start=shown + 1)
        ]

    def _explain(
        self,
        model: ServedModel,
        trace: RequestTrace,
        states: StateBatch,
        found: Recommendations | None,
        options: RecommendationOptions,
        items: list[Body],
    ) -> None:
        """Put an explanation into each item, as much of it as time allows."""
        began = trace.elapsed_ms()
        until_ms = self._settings.budget_ms * self._settings.explain_share
        ranker = model.recommender.ranker
        if found is None:
            self._degrade(trace, EXPLAIN, "there is no ranking to explain")
            return
        try:
            explanations = explain(model, states, found, len(items), options.diversity)
            for item, explanation in zip(items, explanations, strict=True):
                item["explanation"] = explanation
            if ranker is None or not add_contributions(
                ranker, found, explanations, lambda: trace.elapsed_ms() < until_ms
            ):
                self._degrade(trace, EXPLAIN, "the ranker did not run" if found.features is None else NO_TIME)
        except Exception as error:  # an explanation must not cost the answer
            self._degrade(trace, EXPLAIN, error)
        trace.timings_ms["explain"] = trace.elapsed_ms() - began

    @staticmethod
    def _cursor(
        model: ServedModel, trace: RequestTrace, user_id: int | None, items: ItemList, cold: bool
    ) -> PageCursor:
        header = Header(
            user_id=user_id,
            version=model.version,
            bundle_id=model.bundle.facts.bundle_id,
            cold_start=cold,
            degraded=[part for part in trace.degraded if part != EXPLAIN],
            retriever_names=[retriever.name for retriever in model.recommender.retrievers],
            shown=0,
            n=len(items.item_idx),
        )
        ids = model.catalogue.to_ids(items.item_idx)
        return PageCursor(header, ids, items.scores, items.watch, items.like, items.retrievers)


def _item_list(model: ServedModel, found: Recommendations) -> ItemList:
    """The one row of what was found, cut where the catalogue has no more."""
    item_idx = model.catalogue.to_idx(found.item_ids[0])
    end = int((item_idx >= 0).sum())
    ranks = found.candidates.retriever_ranks[0, found.position[0, :end]]  # (n, S)
    bits = ((ranks > 0) << np.arange(ranks.shape[1])).sum(axis=1).astype(np.uint32)
    return ItemList(
        item_idx[:end],
        found.scores[0, :end],
        found.watch_probability[0, :end],
        found.like_probability[0, :end],
        bits,
    )


def _cold_start_list(model: ServedModel, seen_idx: IntArray, options: RecommendationOptions) -> ItemList:
    """The list made at start, without what was seen or is not allowed."""
    idx = model.cold_start_idx
    keep = ~np.isin(idx, seen_idx)
    allowed = options.filters.allowed(model.catalogue, model.stats)
    if allowed is not None:
        keep &= allowed[idx]
    best = np.flatnonzero(keep)[: options.length]
    none = np.full(len(best), np.nan, dtype=np.float32)
    return ItemList(idx[best], model.cold_start_scores[best], none, none, np.zeros(len(best), dtype=np.uint32))
