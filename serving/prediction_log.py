"""The writer of the prediction log: answers are handed over without waiting, a thread brings them to disk.

Stage: serving. In: `offer`, once an answer. Out: files as `recsys.monitoring.prediction_log` describes them. Absent:
the files (`recsys.monitoring.prediction_files`), who reads them, and any promise that an answer is logged: an answer
never waits for its log.

What can be lost, and is counted under the names below:
- a full queue (`capacity` answers wait): the answer is dropped;
- a part that cannot be written, as on a full disk: its answers are dropped, the next part is tried again;
- a process that is killed: what was offered within the last `flush_s` seconds, at most `flush_rows` answers and what
  waits in the queue. `close` loses nothing.
"""

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import numpy as np

from recsys.arrays import FloatArray, IntArray
from recsys.features.state import StateBatch
from recsys.monitoring.prediction_files import merge_finished_hours, remove_oldest, write_parts
from recsys.monitoring.prediction_log import MICROSECONDS, Prediction, sampled
from recsys.recommender import Filters, Recommendations

if TYPE_CHECKING:
    from serving.model import ServedModel

LOGGED: Final = "predictions.logged"  # on disk
DROPPED: Final = "predictions.dropped"  # the queue was full
FAILED: Final = "predictions.failed"  # the disk refused an answer or an hour, or a file could not be read again
REMOVED: Final = "predictions.files_removed"  # by the bounds on bytes and days

LONGEST_FILTERS: Final = (
    4_000  # characters of JSON; longer ones are not kept, and the skew check leaves such answers out
)
LOOK_S: Final = 0.1  # how often the thread looks for answers
TIDY_S: Final = 60.0
GRACE_S: Final = 60.0  # an hour is merged so long after its end, when every worker has flushed
Offered = tuple[Prediction, Filters | None]
_NO_IDS: Final = np.empty(0, dtype=np.int64)
_NO_SCORES: Final = np.empty((0, 0), dtype=np.float32)
_NO_FILTERS: Final = Filters()
_NO_RANKS: Final = np.empty((0, 0), dtype=np.int32)
log = logging.getLogger(__name__)


class Answered(Protocol):
    """What is read of `serving.answers.Call`."""

    request_id: str
    degraded: list[str]

    def elapsed_ms(self) -> float: ...


class Asked(Protocol):
    """What is read of `serving.answers.Wanted`: items shown, filters, diversity, length of the list that was made."""

    @property
    def k(self) -> int: ...
    @property
    def filters(self) -> Filters: ...
    @property
    def diversity(self) -> float: ...
    @property
    def length(self) -> int: ...


class PageOf(Protocol):
    """What is read of `serving.paging.Header`: whose list it is, and what made it."""

    user_id: int | None
    version: int
    bundle_id: str


class PredictionLog:
    """Safe to share between threads; each worker process has its own, over one folder.

    share            of the answers, chosen by a hash of the request id (`sampled`); 0 logs nothing
    capacity         answers that may wait, about 25 kB each with six retrievers and 300 candidates
    flush_rows, flush_s   a part is written at whichever comes first
    most_bytes, most_days   bounds of the folder; the oldest files go first
    count            told the names above, once an answer or file: `Metrics.count`
    clock            seconds UTC: when an answer was received, and which hours have ended
    """

    def __init__(
        self,
        folder: Path,
        *,
        share: float = 1.0,
        capacity: int = 2_000,
        flush_rows: int = 500,
        flush_s: float = 10.0,
        most_bytes: int = 2 * 1024**3,
        most_days: float = 30.0,
        count: Callable[[str], None] = lambda _name: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder = folder
        self._share, self._flush_rows, self._flush_s = share, flush_rows, flush_s
        self._most_bytes, self._most_days = most_bytes, most_days
        self._count, self._clock = count, clock
        self._capacity = capacity
        # Not a `queue.Queue`: its lock and its waking of the thread hand the interpreter back and forth, which cost a
        # request milliseconds under load. Appending is atomic; the thread looks in every LOOK_S.
        self._queue: deque[Offered] = deque()
        self._name = f"{os.getpid()}-{time.time_ns():x}"  # a process number comes again, in containers always
        self._n_parts = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def offer(
        self,
        call: Answered,
        model: "ServedModel",
        user_ids: Sequence[int | None],
        states: StateBatch,
        found: Recommendations | None,
        shown: Sequence[IntArray],
        wanted: Asked,
        propensities: Sequence[FloatArray] | None = None,
    ) -> bool:
        """Hand over the answers of one call, one for each of its B users; False where they are not in the sample or the
        queue is full. Never waits.

        `shown`: for each user row numbers of the items that were shown, best first, the beginning of the list that
        was made; `found` is None where that was the cold-start list. `propensities` (k,) each come from a policy that
        draws; without them they are 1. Copies the rows that were shown and the candidates' ids, scores and ranks,
        because the arrays of an answer are larger and may be used again.
        """
        if not sampled(call.request_id, self._share):
            return False
        received_us = self._received_us(call)
        for row, user_id in enumerate(user_ids):
            p = _constants(len(shown[row])).ones if propensities is None else propensities[row].copy()
            prediction = _prediction(received_us, call, model, user_id, states, found, shown[row], wanted, row, p)
            if not self._put(prediction, wanted.filters):
                return False
        return True

    def offer_page(self, call: Answered, page_of: PageOf, item_ids: IntArray, first_position: int, k: int) -> bool:
        """The same for a further page of a list: which items stood where. Their features were not kept."""
        if not sampled(call.request_id, self._share):
            return False
        constants = _constants(len(item_ids))
        received_us = self._received_us(call)
        prediction = Prediction(
            request_id=call.request_id,
            now=received_us // MICROSECONDS,
            received_us=received_us,
            user_id=page_of.user_id,
            bundle_id=page_of.bundle_id,
            version=page_of.version,
            item_statistics_day=0,
            row=0,
            batch=1,
            k=k,
            list_length=k,
            diversity=0.0,
            filters_given=False,
            filters=None,
            degraded=tuple(call.degraded),
            n_events=None,
            last_event=None,
            retriever_names=(),
            feature_names=(),
            candidate_ids=_NO_IDS,
            candidate_scores=_NO_SCORES,
            candidate_ranks=_NO_RANKS,
            item_ids=item_ids.copy(),
            positions=np.arange(first_position, first_position + len(item_ids)),
            scores=constants.nothing,
            watch_probabilities=constants.nothing,
            like_probabilities=constants.nothing,
            propensities=constants.ones,
            features=None,
        )
        return self._put(prediction, None)

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what waits, then stop. What cannot be written within the time is lost."""
        self._closing.set()
        self._thread.join(timeout_s)

    def _received_us(self, call: Answered) -> int:
        return int(self._clock() * MICROSECONDS - call.elapsed_ms() * 1e3)

    def _put(self, prediction: Prediction, filters: Filters | None) -> bool:
        if len(self._queue) >= self._capacity:  # several threads may pass this at once: a few more than that may wait
            self._count(DROPPED)
            return False
        self._queue.append((prediction, filters))
        return True

    # -- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        waiting: list[Offered] = []
        oldest = tidied = time.monotonic()
        while True:
            closing = self._closing.wait(LOOK_S)
            oldest = oldest if waiting else time.monotonic()
            while self._queue:
                waiting.append(self._queue.popleft())
                if len(waiting) >= self._flush_rows:
                    self._flush(waiting)
                    waiting = []
            if waiting and (closing or time.monotonic() - oldest >= self._flush_s):
                self._flush(waiting)
                waiting = []
            if closing or time.monotonic() - tidied >= TIDY_S:
                self._tidy()
                tidied = time.monotonic()
            if closing:
                return

    def _flush(self, waiting: list[Offered]) -> None:
        """One part. An answer that cannot be written as Parquet is looked for and left out, alone."""
        self._n_parts += 1
        outcome = LOGGED
        try:
            predictions = [_with_filters(*offered) for offered in waiting]
            write_parts(self.folder, predictions, f"{self._name}-{self._n_parts:06}")
        except OSError as error:
            log.error("%d answers are not in the prediction log: %s", len(waiting), error)
            outcome = FAILED
        except Exception:  # a bug of ours must not end the thread, and with it the log
            if len(waiting) > 1:
                middle = len(waiting) // 2
                self._flush(waiting[:middle])
                self._flush(waiting[middle:])
                return
            log.exception("an answer is not in the prediction log")
            outcome = FAILED
        self._count_each(outcome, len(waiting))

    def _tidy(self) -> None:
        """Removing comes first: a merge needs room. Each is tried, whatever became of the other."""
        now = self._clock()
        try:
            removed = remove_oldest(self.folder, now, self._most_bytes, self._most_days)
        except Exception:
            self._not_tidied("the oldest files of the prediction log were not removed")
        else:
            self._count_each(REMOVED, removed)
        try:
            _, failed = merge_finished_hours(self.folder, now, GRACE_S)
        except Exception:
            self._not_tidied("the hours of the prediction log were not merged")
        else:
            self._count_each(FAILED, failed)

    def _not_tidied(self, what: str) -> None:
        log.exception("%s; it is tried again in %.0f s", what, TIDY_S)
        self._count(FAILED)

    def _count_each(self, name: str, times: int) -> None:
        for _ in range(times):
            self._count(name)


def _prediction(
    received_us: int,
    call: Answered,
    model: "ServedModel",
    user_id: int | None,
    states: StateBatch,
    found: Recommendations | None,
    shown: IntArray,
    asked: Asked,
    row: int,
    propensities: FloatArray,
) -> Prediction:
    n = len(shown)
    constants = _constants(n)
    ids = model.catalogue.item_ids  # shown and candidates are items of the catalogue: `to_ids` would look for others
    features = None
    if found is not None:
        candidates = found.candidates
        depth = candidates.item_idx.shape[1] if found.features is None else found.features.shape[1]
        # candidates that the ranker was given, or all where it did not run; where there are fewer, the end is -1
        there = int(np.count_nonzero(candidates.item_idx[row, :depth] >= 0))
        features = _features(found, row, n)
    return Prediction(
        request_id=call.request_id,
        now=int(states.now[row]),
        received_us=received_us,
        user_id=user_id,
        bundle_id=model.bundle.facts.bundle_id,
        version=model.version,
        item_statistics_day=model.stats.day,
        row=row,
        batch=len(states),
        k=asked.k,
        list_length=asked.length,
        diversity=asked.diversity,
        filters_given=asked.filters != _NO_FILTERS,
        filters=None,
        degraded=tuple(call.degraded),
        n_events=int(states.n_events[row]),
        last_event=int(states.timestamps[row, -1]) if states.item_idx[row, -1] >= 0 else None,
        retriever_names=() if found is None else found.candidates.retriever_names,
        feature_names=() if features is None else model.recommender.feature_names,
        candidate_ids=_NO_IDS if found is None else ids[candidates.item_idx[row, :there]],
        candidate_scores=_NO_SCORES if found is None else candidates.retriever_scores[row, :there].copy(),
        candidate_ranks=_NO_RANKS if found is None else candidates.retriever_ranks[row, :there].copy(),
        item_ids=ids[shown],
        positions=constants.positions,
        scores=constants.nothing if found is None else found.scores[row, :n].copy(),
        watch_probabilities=constants.nothing if found is None else found.watch_probability[row, :n].copy(),
        like_probabilities=constants.nothing if found is None else found.like_probability[row, :n].copy(),
        propensities=propensities,
        features=features,
    )


class _Constants(NamedTuple):
    """(k,) each, for answers of k items: places 1 to k, propensities of 1, NaN where there is no value."""

    positions: IntArray
    ones: FloatArray
    nothing: FloatArray


@cache
def _constants(k: int) -> _Constants:
    constants = _Constants(np.arange(1, k + 1), np.ones(k, dtype=np.float32), np.full(k, np.nan, dtype=np.float32))
    for array in constants:
        array.flags.writeable = False  # answers share them
    return constants


def _features(found: Recommendations, row: int, n_shown: int) -> FloatArray | None:
    """(k, F) rows of what was shown; NaN for an item further down than the ranker looks."""
    if found.features is None:
        return None
    depth = found.features.shape[1]
    position = found.position[row, :n_shown]
    rows: FloatArray = found.features[row].take(position, axis=0, mode="clip")  # a copy
    rows[position >= depth] = np.nan
    return rows


def _with_filters(prediction: Prediction, filters: Filters | None) -> Prediction:
    if filters is None or not prediction.filters_given:
        return prediction
    text = json.dumps(asdict(filters), sort_keys=True)
    return replace(prediction, filters=text if len(text) <= LONGEST_FILTERS else None)
