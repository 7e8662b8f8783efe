"""Lists of items and their fallbacks, within the budget of a request.

An answer comes from `Recommender.recommend`, or from a list that the model made when it was loaded; nothing is ordered
here. It degrades rather than fails: first no explanation, then no state, then no ranking, then the cold-start list.
Each step is named in the answer, counted and logged.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isnan
from typing import Any

import numpy as np

from recsys.arrays import DoubleArray, IntArray
from recsys.errors import ConfigError, StoreError
from recsys.experiments.exploration import explore
from recsys.features.state import StateBatch, state_batch
from recsys.filters import Filters
from recsys.monitoring.prediction_log import SHOWN, AnsweredRequest, PredictionLog
from recsys.recommender import Recommendations, RequestContext
from serving.http.problems import ProblemError
from serving.model_lifecycle.live_traffic import Assignment
from serving.model_lifecycle.served_model import ServedModel
from serving.observability.metrics import Metrics
from serving.recommending.explain import add_contributions, explain
from serving.recommending.paging import LONGEST_LIST, ROW, Header, PageCursor, Rows, decode, encode, key_of
from serving.settings import ServiceSettings
from serving.user_state.snapshots import UserSnapshot

# Shares of the budget. By then ...
STATE_SHARE = 0.4  # the user's state is read, or the answer goes on without it
RETRIEVAL_SHARE = 0.85  # features begin, or the answer keeps the order of retrieval
EXPLAIN_SHARE = 0.8  # explanations are made; those that are not stay without contributions
LAST_SHARE = 0.8  # retrieval has begun, or the answer is the cold-start list
STATE, RANKING, RETRIEVAL, EXPLAIN = "user_state", "ranking", "retrieval", "explain"
FEW_RATINGS = 20  # an item with fewer may be explored
NO_TIME = "the budget is spent"
Body = dict[str, Any]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecommendationOptions:
    """paginate: make a list of LONGEST_LIST and show its first k; cursor: show the next k of the list that it
    carries, whatever the other options say."""

    k: int
    filters: Filters = field(default_factory=Filters)
    diversity: float = 0.0
    explain: bool = False
    paginate: bool = False
    cursor: PageCursor | None = None

    @property
    def length(self) -> int:
        return max(self.k, LONGEST_LIST) if self.paginate else self.k


@dataclass
class RequestTrace:
    """What one request carries through its stages. started: `time.perf_counter()` when it arrived, before it waited for
    anything; assignment: its model and settings, which stay to its end; degraded: the parts that the answer is given
    without; timings_ms: how long each stage took; role: SHADOW for a list that is made for the log alone."""

    request_id: str
    started: float
    assignment: Assignment
    degraded: list[str] = field(default_factory=list)
    timings_ms: dict[str, float] = field(default_factory=dict)
    role: str = SHOWN

    @property
    def model(self) -> ServedModel:
        return self.assignment.model

    def elapsed_ms(self) -> float:
        return (time.perf_counter() - self.started) * 1e3


class Answers:
    def __init__(
        self,
        settings: ServiceSettings,
        metrics: Metrics,
        predictions: PredictionLog,
        clock: Callable[[], float],
        now: Callable[[], int],
    ) -> None:
        """clock: when an answer was asked for; now: the same in the time of the data."""
        self._metrics, self._predictions, self._clock, self._now = metrics, predictions, clock, now
        self._budget_ms = settings.budget_ms
        secret = settings.api_key
        self._rng = np.random.default_rng()
        self._key = key_of(settings.home.name, secret.get_secret_value() if secret else None)

    def cursor(self, text: str | None, user_id: int | None) -> PageCursor | None:
        """Raises ProblemError 422 where it is damaged or belongs to somebody else's list."""
        if text is None:
            return None
        cursor = decode(text, self._key)
        if cursor.header.user_id != user_id:
            raise ProblemError(422, "invalid-cursor", "The cursor belongs to the list of somebody else.")
        return cursor

    def recommend(
        self, trace: RequestTrace, user_id: int | None, snapshot: UserSnapshot, options: RecommendationOptions
    ) -> Body:
        """Raises ConfigError where the filters name something that does not exist."""
        for failure in snapshot.failures:
            self._degrade(trace, STATE, failure)
        if options.cursor is not None:
            return self._page(trace, snapshot, options.k, options.cursor)
        model, state = trace.model, snapshot.state
        if user_id is not None and state.timestamps and trace.role == SHOWN:
            self._metrics.state_age(self._now() - state.timestamps[-1])
        # At least a second after the last event: what the state holds is known, even if it happened just now.
        now = max(self._now(), max(state.timestamps, default=0) + 1)
        states = state_batch(model.catalogue, [state], now)
        trace.timings_ms["state"] = trace.elapsed_ms() - trace.timings_ms["queue"]
        found = self._ranked(trace, states, options)
        propensity = None
        if found and trace.assignment.exploration and not options.paginate:
            found, propensity = self._explored(trace, found)
        rows = _ranked_rows(found) if found else _cold_start_rows(model, states.seen_idx[0], options)
        header = Header.model_construct(
            user_id=user_id,
            version=model.version,
            bundle_id=model.bundle.facts.bundle_id,
            cold_start=bool(states.cold[0]),
            degraded=list(trace.degraded),
            experiment=trace.assignment.experiment,
            arm=trace.assignment.arm,
            retriever_names=[retriever.name for retriever in model.recommender.retrievers],
            shown=0,
            n=len(rows),
        )
        shown = rows[: options.k]
        items = _items(model, shown, header)
        if options.explain:
            reordered = propensity is not None or options.diversity > 0
            self._explain(trace, states, found, reordered, items)
        self._count(trace, "requests")
        if header.cold_start:
            self._count(trace, "cold_start")
        more = options.paginate and len(rows) > options.k
        rest = PageCursor(header, rows).after(options.k, options.k) if more else None
        self._log(
            trace,
            header,
            shown,
            state_seq=None if snapshot.failures else state.through_seq,
            now=now,
            k=options.k,
            list_length=options.length,
            recommendations=found,
            feature_names=model.recommender.feature_names,
            diversity=options.diversity,
            filters=options.filters,
            degraded=tuple(trace.degraded),
            propensity=propensity,
        )
        return self._body(trace, header, items, rest)

    def _page(self, trace: RequestTrace, snapshot: UserSnapshot, k: int, cursor: PageCursor) -> Body:
        """The next k of a list that was made before, without what was seen since or is no longer in the catalogue."""
        trace.timings_ms["state"] = trace.elapsed_ms() - trace.timings_ms["queue"]
        header, item_ids = cursor.header, cursor.rows["item_id"]
        seen_ids = np.asarray(snapshot.state.seen_item_ids, dtype=np.int64)
        left = np.flatnonzero((trace.model.catalogue.to_idx(item_ids) >= 0) & ~np.isin(item_ids, seen_ids))
        end = int(left[k]) if len(left) > k else len(item_ids)
        shown = cursor.rows[left[:k]]
        self._count(trace, "pages")
        trace.degraded[:] = dict.fromkeys([*header.degraded, *trace.degraded])
        self._log(trace, header, shown, state_seq=None, now=self._now(), k=k, list_length=k)
        rest = cursor.after(end, len(shown)) if end < len(item_ids) else None
        return self._body(trace, header, _items(trace.model, shown, header), rest)

    def _ranked(
        self, trace: RequestTrace, states: StateBatch, options: RecommendationOptions
    ) -> Recommendations | None:
        """The full answer; without the ranker where that fails or time runs out; None where retrieval does too."""
        model = trace.model
        if trace.elapsed_ms() > self._budget_ms * LAST_SHARE:
            self._degrade(trace, RANKING, NO_TIME)
            self._degrade(trace, RETRIEVAL, NO_TIME)
            return None
        wanted = (options.length, options.filters, options.diversity)
        left_ms = max(self._budget_ms * RETRIEVAL_SHARE - trace.elapsed_ms(), 0.0)
        try:
            found = model.recommender.recommend(states, RequestContext(model.stats, left_ms), *wanted)
        except ConfigError:
            raise  # the filters name what does not exist: no fallback would change that
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

    def _explored(self, trace: RequestTrace, found: Recommendations) -> tuple[Recommendations, DoubleArray]:
        """The list with items of FEW_RATINGS in some of its slots, and (k,) how likely each item was to stand there."""
        ranking = found.position[0, found.item_ids[0] >= 0]
        item_idx = found.candidates.item_idx[0]
        depth = len(item_idx) if found.features is None else found.features.shape[1]
        few = (item_idx >= 0) & (trace.model.stats.n_ratings[item_idx] < FEW_RATINGS)
        pool = np.setdiff1d(np.flatnonzero(few[:depth]), ranking)
        shown = explore(ranking, pool, trace.assignment.exploration, len(ranking), self._rng)
        recommender = trace.model.recommender if found.features is not None else trace.model.retrieval_only
        return recommender.with_position(found, shown.item_idx[None, :]), shown.propensity

    def _explain(
        self,
        trace: RequestTrace,
        states: StateBatch,
        found: Recommendations | None,
        reordered: bool,
        items: list[Body],
    ) -> None:
        """Put an explanation into each item, as much of it as time allows."""
        if found is None:
            self._degrade(trace, EXPLAIN, "there is no ranking to explain")
            return
        began, until_ms = trace.elapsed_ms(), self._budget_ms * EXPLAIN_SHARE
        ranker = trace.model.recommender.ranker
        try:
            explanations = explain(trace.model, states, found, len(items), reordered)
            for item, explanation in zip(items, explanations, strict=True):
                item["explanation"] = explanation
            if ranker is None or not add_contributions(
                ranker, found, explanations, lambda: trace.elapsed_ms() < until_ms
            ):
                self._degrade(trace, EXPLAIN, "the ranker did not run" if found.features is None else NO_TIME)
        except Exception as error:  # an explanation must not cost the answer
            self._degrade(trace, EXPLAIN, error)
        trace.timings_ms["explain"] = trace.elapsed_ms() - began

    def _count(self, trace: RequestTrace, name: str) -> None:
        if trace.role == SHOWN:
            self._metrics.count(name)

    def _degrade(self, trace: RequestTrace, part: str, why: str | Exception) -> None:
        """Note that a part was left out: in the answer, the metrics and the log."""
        if part not in trace.degraded:
            trace.degraded.append(part)
        self._count(trace, f"degraded.{part}")
        cause = why if isinstance(why, Exception) and not isinstance(why, StoreError) else None
        log.warning("answered without %s: %s", part, why, exc_info=cause)

    def _log(self, trace: RequestTrace, header: Header, shown: Rows, **more: Any) -> None:
        elapsed_ms = trace.elapsed_ms()
        self._predictions.offer(
            AnsweredRequest(
                request_id=trace.request_id,
                user_id=header.user_id,
                received_at=self._clock() - elapsed_ms / 1e3,
                bundle_id=header.bundle_id,
                version=header.version,
                statistics_day=trace.model.stats.day,
                statistics_seq=trace.model.stats.through_seq,
                item_ids=shown["item_id"],
                first_position=header.shown + 1,
                experiment=header.experiment,
                arm=header.arm,
                role=trace.role,
                total_ms=elapsed_ms,
                **more,
            )
        )

    def _body(self, trace: RequestTrace, header: Header, items: list[Body], rest: PageCursor | None) -> Body:
        next_cursor = None if rest is None else encode(rest, self._key)
        trace.timings_ms["total"] = trace.elapsed_ms()
        if trace.role == SHOWN:
            for stage, ms in trace.timings_ms.items():
                self._metrics.stage(stage, ms)
        arm = None
        if header.experiment is not None and header.arm is not None:
            arm = {"name": header.experiment, "arm": header.arm}
            self._metrics.arm(header.experiment, header.arm, bool(trace.degraded))
        return {
            "request_id": trace.request_id,
            "user_id": header.user_id,
            "dataset": trace.model.dataset,
            "model": {"version": header.version, "bundle_id": header.bundle_id},
            "experiment": arm,
            "cold_start": header.cold_start,
            "degraded": trace.degraded,
            "items": items,
            "next_cursor": next_cursor,
            "timings_ms": {stage: round(ms, 3) for stage, ms in trace.timings_ms.items()},
        }


def _ranked_rows(found: Recommendations) -> Rows:
    """The one list of what was found, cut where the catalogue has no more."""
    n = int((found.item_ids[0] >= 0).sum())
    ranks = found.candidates.retriever_ranks[0, found.position[0, :n]]  # (n, retrievers)
    rows = np.empty(n, ROW)
    rows["item_id"], rows["score"] = found.item_ids[0, :n], found.scores[0, :n]
    rows["watch"], rows["like"] = found.watch_probability[0, :n], found.like_probability[0, :n]
    rows["retrievers"] = ((ranks > 0) << np.arange(ranks.shape[1])).sum(axis=1)
    return rows


def _cold_start_rows(model: ServedModel, seen_idx: IntArray, options: RecommendationOptions) -> Rows:
    """The list made at start, without what was seen or is not allowed."""
    idx = model.cold_start_idx
    keep = ~np.isin(idx, seen_idx)
    allowed = options.filters.allowed(model.catalogue, model.stats)
    if allowed is not None:
        keep &= allowed[idx]
    best = np.flatnonzero(keep)[: options.length]
    rows = np.empty(len(best), ROW)
    rows["item_id"], rows["score"] = model.catalogue.to_ids(idx[best]), model.cold_start_scores[best]
    rows["watch"] = rows["like"] = np.nan
    rows["retrievers"] = 0
    return rows


def _items(model: ServedModel, rows: Rows, header: Header) -> list[Body]:
    """As dicts, after those of earlier pages."""
    columns = zip(model.catalogue.to_idx(rows["item_id"]).tolist(), rows.tolist(), strict=True)
    return [
        {
            **model.facts[idx],
            "rank": rank,
            "score": round(score, 6),
            "watch_probability": None if isnan(watch) else round(watch, 6),
            "like_probability": None if isnan(like) else round(like, 6),
            "retrievers": [name for s, name in enumerate(header.retriever_names) if bits >> s & 1],
            "explanation": None,
        }
        for rank, (idx, (_, score, watch, like, bits)) in enumerate(columns, start=header.shown + 1)
    ]
