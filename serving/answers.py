"""One answer and its fallbacks.

Stage: serving. In: what is known of a user, k, filters, a `Call`. Out: `Recommended`. Absent: HTTP, the store, and
any ordering of movies of its own: an answer comes from `Recommender.recommend`, or from a list that it made at start.

An answer degrades rather than fails: first no state, then no ranking, then the cold-start list. Each step is named in
the answer, counted and logged.
"""

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from recsys.errors import ConfigError, StoreError
from recsys.features.state import StateBatch, state_batch
from recsys.recommender import Context, Filters, Recommendations
from serving.model import ServedModel, single_threaded
from serving.schemas import Recommended, RecommendedMovie
from serving.settings import ServiceSettings
from serving.states import Known

STATE, RANKING, RETRIEVAL = "user_state", "ranking", "retrieval"
NO_TIME = "the budget is spent"
log = logging.getLogger(__name__)


class Counters:
    """Counts by name, shared between threads."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1

    def as_dict(self) -> dict[str, int]:
        with self._lock:
            return dict(sorted(self._counts.items()))


@dataclass
class Call:
    """One request. `started`: `time.perf_counter()` when it arrived, before it waited for a thread."""

    request_id: str
    started: float
    degraded: list[str] = field(default_factory=list)

    def elapsed_ms(self) -> float:
        return (time.perf_counter() - self.started) * 1e3


class Answers:
    """Safe to share between threads."""

    def __init__(
        self, settings: ServiceSettings, model: ServedModel, counters: Counters, clock: Callable[[], float]
    ) -> None:
        self._settings, self._model, self._counters, self._clock = settings, model, counters, clock

    def recommend(self, call: Call, user_id: int | None, known: Known, k: int, filters: Filters) -> Recommended:
        """Raises ConfigError where the filters name something that does not exist."""
        model = self._model
        # At least a second after the last event: what the state holds is known, even if it happened just now.
        now = max(int(self._clock()), max(known.state.timestamps, default=0) + 1)
        states = state_batch(model.catalogue, [known.state], [known.seen_ids], now)
        timings = {"state": call.elapsed_ms()}
        found = self._ranked(call, states, k, filters)
        if found is not None:
            timings |= found.timings_ms
            items = self._items(found)
        else:
            items = self._stranger_items(states.seen_idx[0], k, filters)
        timings["total"] = call.elapsed_ms()
        cold = bool(states.cold[0])
        self._counters.add("requests")
        if cold:
            self._counters.add("cold_start")
        return Recommended(
            request_id=call.request_id,
            user_id=user_id,
            dataset=model.dataset(),
            model=model.info(),
            cold_start=cold,
            degraded=call.degraded,
            items=items,
            timings_ms={stage: round(ms, 3) for stage, ms in timings.items()},
        )

    def degrade(self, call: Call, part: str, why: str | Exception) -> None:
        """Note that a part was left out: in the answer, the counters and the log."""
        call.degraded.append(part)
        self._counters.add(f"degraded.{part}")
        unexpected = isinstance(why, Exception) and not isinstance(why, StoreError)
        log.warning("%s answered without %s: %s", call.request_id, part, why, exc_info=unexpected)

    def _ranked(self, call: Call, states: StateBatch, k: int, filters: Filters) -> Recommendations | None:
        """The full answer; without the ranker where that fails or time runs out; None where retrieval does too."""
        budget_ms = self._settings.budget_ms
        stats = self._model.stats
        if call.elapsed_ms() > budget_ms * self._settings.last_share:
            self.degrade(call, RANKING, NO_TIME)
            self.degrade(call, RETRIEVAL, NO_TIME)
            return None
        single_threaded()
        left_ms = max(budget_ms * self._settings.retrieval_share - call.elapsed_ms(), 0.0)
        try:
            found = self._model.recommender.recommend(states, Context(stats, left_ms), k, filters)
        except ConfigError:
            raise  # what was asked for does not exist: no fallback would change that
        except Exception as error:
            self.degrade(call, RANKING, error)
        else:
            for part in found.degraded:
                self.degrade(call, part, NO_TIME)
            return found
        try:
            return self._model.retrieval_only.recommend(states, Context(stats), k, filters)
        except Exception as error:
            self.degrade(call, RETRIEVAL, error)
            return None

    def _items(self, found: Recommendations) -> list[RecommendedMovie]:
        names = np.array(found.candidates.source_names)
        idx = self._model.catalogue.to_idx(found.item_ids[0])
        out = []
        for place, (i, position) in enumerate(zip(idx, found.position[0], strict=True)):
            if i < 0:
                break  # the catalogue has no more; the rest is empty too
            sources = names[found.candidates.source_ranks[0, position] > 0].tolist()
            watch, like = (float(p[0, place]) for p in (found.watch_probability, found.like_probability))
            out.append(self._item(int(i), place + 1, float(found.scores[0, place]), sources, watch, like))
        return out

    def _stranger_items(self, seen_idx: npt.NDArray[np.int64], k: int, filters: Filters) -> list[RecommendedMovie]:
        """The list made at start, without what was seen or is not allowed."""
        idx, scores = self._model.stranger_idx, self._model.stranger_scores
        keep = ~np.isin(idx, seen_idx)
        allowed = filters.allowed(self._model.catalogue, self._model.stats)
        if allowed is not None:
            keep &= allowed[idx]
        best = np.flatnonzero(keep)[:k]
        return [self._item(int(idx[p]), rank, float(scores[p]), []) for rank, p in enumerate(best, start=1)]

    def _item(
        self,
        item_idx: int,
        rank: int,
        score: float,
        sources: list[str],
        watch: float = math.nan,
        like: float = math.nan,
    ) -> RecommendedMovie:
        """`watch`, `like`: probabilities, NaN where there is none."""
        movie = self._model.movie(item_idx).model_dump()
        return RecommendedMovie(
            rank=rank,
            score=round(score, 6),
            watch_probability=None if math.isnan(watch) else round(watch, 6),
            like_probability=None if math.isnan(like) else round(like, 6),
            sources=sources,
            **movie,
        )
