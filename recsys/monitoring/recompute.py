"""Logged answers computed again, by the path that serves, from what they should have been made from.

Stage: monitoring. In: `RawEvents`, the bundles that the answers name, `Prediction`s. Out: a `Recomputed` for each,
aligned with the items that were shown. Absent: judgement of the difference (`comparison`), and its causes
(`diagnosis`).

States are made for many answers at once, but each call runs through `Recommender.recommend` alone, with the batch that
it had: the last bit of a matrix product depends on the shape of the matrix, and the comparison is to the bit. One
thread, for the same reason (`recsys.monitoring.diagnosis` needs it as well).

Shapes: B users of a call, k items shown, F features.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from recsys.arrays import BoolArray, FloatArray, IntArray
from recsys.bundle import Bundle
from recsys.errors import RecsysError
from recsys.features.catalogue import Catalogue
from recsys.features.item_stats import HALF_LIVES_DAYS, ItemStats
from recsys.features.state import StateBatch, state_batch
from recsys.monitoring.prediction_log import Prediction
from recsys.monitoring.raw_events import RawEvents, Used
from recsys.recommender import Filters, Recommendations, Recommender, RequestContext

# Answers that no log could say enough of, however well the service does.
FURTHER_PAGE: Final = "a further page of a list"
HISTORY_GIVEN: Final = "its history came with the request and is not kept"
BY_DESIGN: Final = (FURTHER_PAGE, HISTORY_GIVEN)
Group = list[Prediction]  # the answers of one call


@dataclass(frozen=True)
class Hypothesis:
    """What may have gone wrong; the default is: nothing.

    day_shift      statistics of so many days later
    snapshot_shift statistics of the right day, made of events up to so many days later: a join that is off by a day
    log_in_stats   whether the logged events are in them; None is as the day says
    back           events by which the state was behind
    bundle_id      the bundle that answered, where it is not the one named
    rating_scale   factor on every rating of the user; of the window alone, of window and sums, or of the events before
                   they were counted (`scaled`)
    stats_scale    factor on the ratings in the statistics of items
    """

    says: str = "nothing"
    day_shift: int = 0
    snapshot_shift: int = 0
    log_in_stats: bool | None = None
    back: int = 0
    bundle_id: str | None = None
    rating_scale: float = 1.0
    scaled: str = "events"
    stats_scale: float = 1.0


@dataclass(frozen=True)
class Recomputed:
    """features (k, F) of the items shown, in the order of the log's feature names, NaN where this bundle has no such
    feature or did not rank the item; None where the answer was made without ranking, or has no features to compare
    with. ranked (k,): whether it did. feature_names: what the ranker is given, () without one. item_ids, scores, watch,
    like (k,): what it would have shown, as much as is logged; n_shown: how many items that would have been.
    retriever_names and candidate_* as in `Prediction`. n_events, last_event: of the state; day: of the statistics."""

    prediction: Prediction
    features: FloatArray | None
    ranked: BoolArray
    feature_names: tuple[str, ...]
    item_ids: IntArray
    scores: FloatArray
    watch: FloatArray
    like: FloatArray
    n_shown: int
    retriever_names: tuple[str, ...]
    candidate_ids: IntArray
    candidate_scores: FloatArray
    candidate_ranks: npt.NDArray[np.int32]
    n_events: int
    last_event: int | None
    day: int


def left_out(prediction: Prediction) -> str | None:
    """Why an answer cannot be computed again; None where it can."""
    if prediction.n_events is None:
        return FURTHER_PAGE
    if "retrieval" in prediction.degraded:
        return "the cold-start list, in place of an answer"
    if prediction.user_id is None:
        return HISTORY_GIVEN
    if "user_state" in prediction.degraded:
        return "answered without the user's state, as it says"
    if prediction.filters_given and prediction.filters is None:
        return "its filters were too long to keep"
    return None


def whole_calls(batches: Iterable[Sequence[Prediction]]) -> Iterator[Group]:
    """Answers grouped by call. What remains of calls whose other answers were dropped comes last, incomplete."""
    waiting: dict[tuple[str, int], Group] = {}
    for predictions in batches:
        for prediction in predictions:
            if prediction.batch == 1:
                yield [prediction]
                continue
            key = (prediction.request_id, prediction.received_us)
            group = waiting.setdefault(key, [])
            group.append(prediction)
            if len(group) == prediction.batch:
                yield sorted(waiting.pop(key), key=lambda p: p.row)
    yield from waiting.values()


class Recomputer:
    """Not for several threads. `load` gives a bundle by name and raises RecsysError where there is none."""

    def __init__(self, raw: RawEvents, load: Callable[[str], Bundle]) -> None:
        self.raw = raw
        self._load = load
        self._loaded: dict[str, tuple[Recommender, Recommender] | None] = {}

    def recommender(self, bundle_id: str) -> Recommender | None:
        """None where the bundle is gone, or is none that this code reads."""
        pair = self._pair(bundle_id)
        return None if pair is None else pair[0]

    def recompute(self, groups: Sequence[Group], wrong: Hypothesis | None = None) -> Iterator[list[Recomputed]]:
        """For each call, its answers. Every bundle must be there (`recommender`)."""
        wrong = wrong or Hypothesis()
        flat = [prediction for group in groups for prediction in group]
        in_events = wrong.rating_scale if wrong.scaled == "events" else 1.0
        used = self.raw.used_by(flat, back=wrong.back, rating_scale=in_events)
        start = 0
        for group in groups:
            yield self._call(group, used[start : start + len(group)], wrong)
            start += len(group)

    def _call(self, group: Group, used: list[Used], wrong: Hypothesis) -> list[Recomputed]:
        first = group[0]
        bundle_id = wrong.bundle_id or first.bundle_id
        pair = self._pair(bundle_id)
        assert pair is not None, bundle_id
        recommender = pair["ranking" in first.degraded]
        catalogue = recommender.catalogue
        states = state_batch(catalogue, [u.state for u in used], [u.seen_ids for u in used], [p.now for p in group])
        day = self.raw.day_for(first)
        stats = self._stats(bundle_id, catalogue, day, wrong)
        states = _scaled(states, wrong)
        found = recommender.recommend(
            states, RequestContext(stats), first.list_length, _filters(first), first.diversity
        )
        return [_aligned(p, recommender, states, found, row, day) for row, p in enumerate(group)]

    def _stats(self, bundle_id: str, catalogue: Catalogue, day: int, wrong: Hypothesis) -> ItemStats:
        with_log = self.raw.holds_log(day) if wrong.log_in_stats is None else wrong.log_in_stats
        shift = wrong.day_shift + wrong.snapshot_shift
        stats = self.raw.stats(bundle_id, catalogue, day + shift, with_log)
        if wrong.snapshot_shift:
            half_lives = np.asarray(HALF_LIVES_DAYS, dtype=np.float64)
            decayed = (stats.decayed * np.exp2(wrong.snapshot_shift / half_lives)).astype(np.float32)
            stats = replace(stats, day=day, decayed=decayed)
        if wrong.stats_scale != 1.0:
            stats = replace(stats, rating_sum=stats.rating_sum * np.float32(wrong.stats_scale))
        return stats

    def _pair(self, bundle_id: str) -> tuple[Recommender, Recommender] | None:
        """With the ranker, and without."""
        if bundle_id not in self._loaded:
            try:
                full = self._load(bundle_id).recommender
            except RecsysError:
                self._loaded[bundle_id] = None
            else:
                plain = Recommender(full.catalogue, full.retrievers, None, full.settings)
                self._loaded[bundle_id] = (full, plain)
        return self._loaded[bundle_id]


def _scaled(states: StateBatch, wrong: Hypothesis) -> StateBatch:
    if wrong.rating_scale == 1.0 or wrong.scaled == "events":
        return states
    states = replace(states, ratings=states.ratings * np.float32(wrong.rating_scale))
    if wrong.scaled == "window":
        return states
    return replace(
        states,
        rating_sum=states.rating_sum * wrong.rating_scale,
        rating_square_sum=states.rating_square_sum * wrong.rating_scale**2,
    )


def _filters(prediction: Prediction) -> Filters:
    if prediction.filters is None:
        return Filters()
    stored: dict[str, Any] = json.loads(prediction.filters)
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
    return Filters(**given)


def _aligned(
    prediction: Prediction, recommender: Recommender, states: StateBatch, found: Recommendations, row: int, day: int
) -> Recomputed:
    n = len(prediction.item_ids)
    features: FloatArray | None = None
    ranked = np.zeros(n, dtype=bool)
    candidates = found.candidates
    depth = candidates.item_idx.shape[1] if found.features is None else found.features.shape[1]
    there = int((candidates.item_idx[row, :depth] >= 0).sum())
    if prediction.features is not None and found.features is not None:
        place = {int(i): at for at, i in enumerate(candidates.item_idx[row, :there])}
        shown = [place.get(int(i), -1) for i in recommender.catalogue.to_idx(prediction.item_ids)]
        ranked = np.array(shown, dtype=np.int64) >= 0
        names = {name: column for column, name in enumerate(recommender.feature_names)}
        columns = [names.get(name, -1) for name in prediction.feature_names]
        features = found.features[row][np.ix_(shown, columns)]
        features[~ranked] = np.nan
        features[:, np.array(columns) < 0] = np.nan
    return Recomputed(
        prediction,
        features,
        ranked,
        () if found.features is None else recommender.feature_names,
        found.item_ids[row, :n],
        found.scores[row, :n],
        found.watch_probability[row, :n],
        found.like_probability[row, :n],
        min(prediction.k, int((found.item_ids[row] >= 0).sum())),
        candidates.retriever_names,
        recommender.catalogue.to_ids(candidates.item_idx[row, :there]),
        candidates.retriever_scores[row, :there],
        candidates.retriever_ranks[row, :there],
        int(states.n_events[row]),
        int(states.timestamps[row, -1]) if states.item_idx[row, -1] >= 0 else None,
        day,
    )
