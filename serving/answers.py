"""Lists of items and their fallbacks.

Stage: serving. In: a model, what is known of users, a `Call`. Out: answers as plain dicts, ready for JSON. Absent:
HTTP, the store, and any ordering of items of its own: an answer comes from `Recommender.recommend`, or from a list
that the model made when it was loaded.

An answer degrades rather than fails: first no explanation, then no state, then no ranking, then the cold-start list.
Each step is named in the answer, counted and logged.

Shapes: n items of a list, S retrievers.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.arrays import FloatArray, IntArray
from recsys.errors import ConfigError, StoreError
from recsys.features.state import StateBatch, state_batch
from recsys.monitoring.prediction_log import AnsweredRequest, PredictionLog
from recsys.recommender import Filters, Recommendations, RequestContext
from serving.explain import Explainer
from serving.known import Known
from serving.model import ServedModel
from serving.observability.metrics import Metrics
from serving.paging import LONGEST_LIST, Header, Rest
from serving.settings import ServiceSettings

STATE, RANKING, RETRIEVAL, EXPLAIN = "user_state", "ranking", "retrieval", "explain"
NO_TIME = "the budget is spent"
Body = dict[str, Any]
log = logging.getLogger(__name__)


@dataclass
class Call:
    """One request. `started`: `time.perf_counter()` when it arrived, before it waited for its turn; `ahead`: what came
    of reading the user before it, if that was tried."""

    request_id: str
    started: float
    ahead: Known | StoreError | None = None
    degraded: list[str] = field(default_factory=list)
    timings_ms: dict[str, float] = field(default_factory=dict)

    def elapsed_ms(self) -> float:
        return (time.perf_counter() - self.started) * 1e3

    def begin(self) -> None:
        """Its turn has come: what passed so far, but for a read ahead of it, was the queue."""
        self.timings_ms["queue"] = self.elapsed_ms() - self.timings_ms.get("state", 0.0)


@dataclass(frozen=True)
class Wanted:
    """k: items shown; paginate: make a list of LONGEST_LIST and show its first k."""

    k: int
    filters: Filters = field(default_factory=Filters)
    diversity: float = 0.0
    explain: bool = False
    paginate: bool = False

    @property
    def length(self) -> int:
        return max(self.k, LONGEST_LIST) if self.paginate else self.k


@dataclass(frozen=True)
class ItemList:
    """One user's list, best first. watch, like: NaN where there is no probability; retrievers: bit s for retriever
    s."""

    item_idx: IntArray
    scores: FloatArray
    watch: FloatArray
    like: FloatArray
    retrievers: npt.NDArray[np.uint32]
    cold: bool


class Answers:
    """Safe to share between threads."""

    def __init__(
        self, settings: ServiceSettings, metrics: Metrics, predictions: PredictionLog, clock: Callable[[], float]
    ) -> None:
        self._settings, self._metrics, self._predictions, self._clock = settings, metrics, predictions, clock
        self._explainer = Explainer()

    def recommend(
        self, model: ServedModel, call: Call, user_id: int | None, known: Known, wanted: Wanted
    ) -> tuple[Body, Rest | None]:
        """The answer, and what is left of the list for further pages. Raises ConfigError where the filters name
        something that does not exist."""
        if user_id is not None:
            self._age(known)
        states, found, (ranked,) = self._lists(model, call, [known], wanted)
        items = self._items(model, ranked, wanted.k)
        if wanted.explain:
            self._explain(model, call, states, found, wanted, items)
        self._predictions.offer(
            AnsweredRequest(
                request_id=call.request_id,
                user_id=user_id,
                state_seq=known.state.through_seq,
                received_at=self._clock() - call.elapsed_ms() / 1e3,
                now=int(states.now[0]),
                bundle_id=model.bundle.facts.bundle_id,
                version=model.version,
                statistics_day=model.stats.day,
                item_ids=model.catalogue.to_ids(ranked.item_idx[: wanted.k]),
                k=wanted.k,
                list_length=wanted.length,
                recommendations=found,
                feature_names=model.recommender.feature_names,
                diversity=wanted.diversity,
                filters=wanted.filters,
                degraded=tuple(call.degraded),
            )
        )
        self._count(ranked.cold)
        rest = None
        if wanted.paginate and len(ranked.item_idx) > wanted.k:
            rest = self._rest(model, call, user_id, ranked).after(wanted.k, wanted.k)
        body = {
            "request_id": call.request_id,
            "user_id": user_id,
            **about(model),
            "cold_start": ranked.cold,
            "degraded": call.degraded,
            "items": items,
            "next_cursor": None,
            "timings_ms": self.timings(call),
        }
        return body, rest

    def page(self, model: ServedModel, call: Call, rest: Rest, seen_ids: IntArray, k: int) -> tuple[Body, Rest | None]:
        """The next k of a list that was made before, without what was seen since or is no longer in the catalogue."""
        header = rest.header
        idx = model.catalogue.to_idx(rest.item_ids)
        shown = np.flatnonzero((idx >= 0) & ~np.isin(rest.item_ids, seen_ids))
        end = int(shown[k]) if len(shown) > k else len(idx)
        shown = shown[:k]
        items = ItemList(
            idx[shown],
            rest.scores[shown],
            rest.watch[shown],
            rest.like[shown],
            rest.retrievers[shown],
            header.cold_start,
        )
        self._predictions.offer(
            AnsweredRequest(
                request_id=call.request_id,
                user_id=header.user_id,
                state_seq=None,
                received_at=self._clock() - call.elapsed_ms() / 1e3,
                now=int(self._clock()),
                bundle_id=header.bundle_id,
                version=header.version,
                statistics_day=model.stats.day,
                item_ids=rest.item_ids[shown],
                k=k,
                list_length=k,
                first_position=header.shown + 1,
            )
        )
        self._metrics.count("pages")
        body = {
            "request_id": call.request_id,
            "user_id": header.user_id,
            **about(model),
            "model": {"version": header.version, "bundle_id": header.bundle_id},
            "cold_start": header.cold_start,
            "degraded": list(dict.fromkeys([*header.degraded, *call.degraded])),
            "items": self._items(model, items, k, tuple(header.retriever_names), header.shown),
            "next_cursor": None,
            "timings_ms": self.timings(call),
        }
        return body, rest.after(end, len(shown)) if end < len(idx) else None

    def degrade(self, call: Call, part: str, why: str | Exception) -> None:
        """Note that a part was left out: in the answer, the metrics and the log."""
        if part not in call.degraded:
            call.degraded.append(part)
        self._metrics.degraded(part)
        cause = why if isinstance(why, Exception) and not isinstance(why, StoreError) else None
        log.warning("answered without %s: %s", part, why, exc_info=cause)

    def timings(self, call: Call) -> dict[str, float]:
        """The stages so far and the total, measured and rounded for the answer."""
        call.timings_ms["total"] = call.elapsed_ms()
        for stage, ms in call.timings_ms.items():
            self._metrics.stage(stage, ms)
        return {stage: round(ms, 3) for stage, ms in call.timings_ms.items()}

    def _age(self, known: Known) -> None:
        """How old what the store told of a user is. Nothing for somebody without events."""
        if known.state.timestamps:
            self._metrics.state_age(self._clock() - known.state.timestamps[-1])

    # -- the list -------------------------------------------------------------------------------------------------

    def _lists(
        self, model: ServedModel, call: Call, knowns: Sequence[Known], wanted: Wanted
    ) -> tuple[StateBatch, Recommendations | None, list[ItemList]]:
        # At least a second after the last event: what the state holds is known, even if it happened just now.
        now = int(self._clock())
        moments = [max(now, max(known.state.timestamps, default=0) + 1) for known in knowns]
        states = state_batch(
            model.catalogue, [known.state for known in knowns], [known.seen_ids for known in knowns], moments
        )
        call.timings_ms["state"] = call.elapsed_ms() - call.timings_ms.get("queue", 0.0)
        found = self._ranked(model, call, states, wanted)
        cold = states.cold.tolist()
        if found is None:
            rows = range(len(knowns))
            return states, None, [self._cold_start_list(model, states.seen_idx[r], cold[r], wanted) for r in rows]
        call.timings_ms |= found.timings_ms
        return states, found, _item_lists(model, found, cold)

    def _ranked(self, model: ServedModel, call: Call, states: StateBatch, wanted: Wanted) -> Recommendations | None:
        """The full answer; without the ranker where that fails or time runs out; None where retrieval does too.
        Several users in one call have as many budgets."""
        budget_ms = self._settings.budget_ms * len(states)
        asked = (wanted.length, wanted.filters, wanted.diversity)
        if call.elapsed_ms() > budget_ms * self._settings.last_share:
            self.degrade(call, RANKING, NO_TIME)
            self.degrade(call, RETRIEVAL, NO_TIME)
            return None
        left_ms = max(budget_ms * self._settings.retrieval_share - call.elapsed_ms(), 0.0)
        try:
            found = model.recommender.recommend(states, RequestContext(model.stats, left_ms), *asked)
        except ConfigError:
            raise  # what was asked for does not exist: no fallback would change that
        except Exception as error:
            self.degrade(call, RANKING, error)
        else:
            for part in found.degraded:
                self.degrade(call, part, NO_TIME)
            return found
        try:
            return model.retrieval_only.recommend(states, RequestContext(model.stats), *asked)
        except Exception as error:
            self.degrade(call, RETRIEVAL, error)
            return None

    def _cold_start_list(self, model: ServedModel, seen_idx: IntArray, cold: bool, wanted: Wanted) -> ItemList:
        """The list made at start, without what was seen or is not allowed."""
        idx = model.cold_start_idx
        keep = ~np.isin(idx, seen_idx)
        allowed = wanted.filters.allowed(model.catalogue, model.stats)
        if allowed is not None:
            keep &= allowed[idx]
        best = np.flatnonzero(keep)[: wanted.length]
        none = np.full(len(best), np.nan, dtype=np.float32)
        nobody = np.zeros(len(best), dtype=np.uint32)
        return ItemList(idx[best], model.cold_start_scores[best], none, none, nobody, cold)

    # -- what is told of it ---------------------------------------------------------------------------------------

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
        facts = model.items.facts
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
                **facts[item_idx],
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
        call: Call,
        states: StateBatch,
        found: Recommendations | None,
        wanted: Wanted,
        items: list[Body],
    ) -> None:
        """Put an explanation into each item, as much of it as time allows."""
        began = call.elapsed_ms()
        left_ms = self._settings.budget_ms * self._settings.explain_share - began
        if found is None or left_ms <= 0:
            self.degrade(call, EXPLAIN, "there is no ranking to explain" if found is None else NO_TIME)
            return
        try:
            explained = self._explainer.explain(model, states, found, len(items), wanted.diversity, left_ms)
        except Exception as error:
            self.degrade(call, EXPLAIN, error)
            return
        for item, explanation in zip(items, explained.explanations, strict=True):
            item["explanation"] = explanation
        if explained.missing is not None:
            self.degrade(call, EXPLAIN, explained.missing)
        call.timings_ms["explain"] = call.elapsed_ms() - began

    def _rest(self, model: ServedModel, call: Call, user_id: int | None, items: ItemList) -> Rest:
        header = Header(
            user_id=user_id,
            version=model.version,
            bundle_id=model.bundle.facts.bundle_id,
            cold_start=items.cold,
            degraded=[part for part in call.degraded if part != EXPLAIN],
            retriever_names=[retriever.name for retriever in model.recommender.retrievers],
            shown=0,
            n=len(items.item_idx),
        )
        ids = model.catalogue.to_ids(items.item_idx)
        return Rest(header, ids, items.scores, items.watch, items.like, items.retrievers)

    def _count(self, cold: bool) -> None:
        self._metrics.count("requests")
        if cold:
            self._metrics.count("cold_start")


def about(model: ServedModel) -> Body:
    """Data set and model of an answer."""
    facts = model.bundle.facts
    info = facts.dataset
    return {
        "dataset": {"name": info.name, "synthetic": info.synthetic, "label": info.label},
        "model": {"version": model.version, "bundle_id": facts.bundle_id},
    }


def _item_lists(model: ServedModel, found: Recommendations, cold: list[bool]) -> list[ItemList]:
    """One list a row, cut where the catalogue has no more."""
    rows = np.arange(len(cold))[:, None]
    ranks = found.candidates.retriever_ranks[rows, np.maximum(found.position, 0)]  # (B, n, S)
    bits = ((ranks > 0) << np.arange(ranks.shape[2])).sum(axis=2).astype(np.uint32)  # (B, n)
    item_idx = model.catalogue.to_idx(found.item_ids)
    ends = (item_idx >= 0).sum(axis=1).tolist()
    return [
        ItemList(
            item_idx[row, :end],
            found.scores[row, :end],
            found.watch_probability[row, :end],
            found.like_probability[row, :end],
            bits[row, :end],
            cold[row],
        )
        for row, end in enumerate(ends)
    ]
