"""The prediction log: what every answer was made from and what it showed, as Parquet files by the hour.

    HOME/<dataset>/predictions/2026-11-21T16/<writer>-000001.parquet     a row for each item shown

A row holds what is known of the answer, the item with its position, score and probabilities, and the features that the
ranker saw, each a column of its own name. Any reader of Parquet opens the folder as one table.

An answer never waits for its log: `offer` appends to a bounded buffer, and a thread writes a part once a minute. Lost,
and counted, are answers that find the buffer full and parts that the disk refuses. A killed process loses what it had
not written yet; `close` loses nothing.
"""

import json
import logging
import os
import threading
import time
import zlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.arrays import FloatArray, IntArray
from recsys.atomic_io import replacing_file
from recsys.columns import ITEM_ID, USER_ID
from recsys.errors import DataError
from recsys.filters import Filters
from recsys.recommender import Recommendations
from recsys.workspace import DatasetWorkspace

LOGGED: Final = "predictions.logged"  # on disk
DROPPED: Final = "predictions.dropped"  # the buffer was full
FAILED: Final = "predictions.failed"  # the disk refused a part
REMOVED: Final = "predictions.files_removed"  # by the bounds on bytes and days

LONGEST_FILTERS: Final = 4_000  # characters of JSON; longer filters are not kept, and the skew check skips the answer
LOOK_S, TIDY_S = 0.2, 60.0  # how often the thread looks at the buffer, and at the bounds of the folder
ROWS_AT_ONCE: Final = 20_000  # rows that `read_answers` holds in memory
NONE: Final = -1  # stands for a missing user_id, state_seq or statistics_seq in what `read_answers` returns
HOUR: Final = "%Y-%m-%dT%H"
log = logging.getLogger(__name__)

_OF_ANSWER: Final = (
    ("request_id", pa.string()),
    ("received", pa.timestamp("us", tz="UTC")),
    ("now", pa.int64()),
    (USER_ID, pa.int64()),
    ("state_seq", pa.int64()),
    ("bundle_id", pa.string()),
    ("version", pa.int64()),
    ("statistics_day", pa.int64()),
    ("statistics_seq", pa.int64()),
    ("k", pa.int64()),
    ("list_length", pa.int64()),
    ("diversity", pa.float64()),
    ("filters", pa.string()),
    ("degraded", pa.string()),
)
_OF_ITEM: Final = (
    (ITEM_ID, pa.int64()),
    ("position", pa.int64()),
    ("score", pa.float32()),
    ("watch_probability", pa.float32()),
    ("like_probability", pa.float32()),
    ("propensity", pa.float32()),
)
SCORES: Final = {"score": "scores"} | {name: name for name in ("watch_probability", "like_probability")}
COLUMNS: Final = tuple(name for name, _ in (*_OF_ANSWER, *_OF_ITEM))  # every other column of a part is a feature


@dataclass(frozen=True, slots=True)
class AnsweredRequest:
    """One user's answer, as the service hands it over. Moments are seconds UTC.

    user_id          None where the request brought its history along: nothing of that is kept
    state_seq        the newest event of the event table that the user's state knew, 0 for none; None where the answer
                     was made without the user's state, or is a further page of a list
    now              moment that the state was used for
    statistics_seq   the last event of the event table that the item statistics may hold; None where unknown
    k, list_length   items asked for, and how long a list was made for it and for further pages
    degraded         parts that the answer was given without
    item_ids         (k,) what was shown, best first, from position `first_position` of the list
    recommendations  what `Recommender.recommend` returned for this user; None for a cold-start list or a further page
    """

    request_id: str
    user_id: int | None
    state_seq: int | None
    received_at: float
    now: int
    bundle_id: str
    version: int
    statistics_day: int
    item_ids: IntArray
    k: int
    list_length: int
    recommendations: Recommendations | None = None
    feature_names: tuple[str, ...] = ()
    statistics_seq: int | None = None
    diversity: float = 0.0
    filters: Filters = field(default_factory=Filters)
    degraded: tuple[str, ...] = ()
    first_position: int = 1


@dataclass(slots=True)
class _Kept:
    """An answer with copies of its rows: its arrays are larger than that, and may be used again."""

    answer: AnsweredRequest
    scores: dict[str, FloatArray]  # (k,) of each name in SCORES
    features: FloatArray | None  # (k, F)


class PredictionLog:
    """Safe to share between threads; each worker has its own, over one folder.

    share                    of the answers to log; 0 logs none
    capacity                 answers that may wait, some 5 kB each
    flush_answers, flush_s   a part is written at whichever comes first
    most_bytes, most_days    bounds of the folder; the oldest files go first
    count                    told the names above and how often: `Metrics.count`
    """

    def __init__(
        self,
        folder: Path,
        *,
        share: float = 1.0,
        capacity: int = 5_000,
        flush_answers: int = 1_000,
        flush_s: float = 60.0,
        most_bytes: int = 2 * 1024**3,
        most_days: float = 30.0,
        count: Callable[[str, int], None] = lambda _name, _times: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder, self._share, self._capacity = folder, share, capacity
        self._flush_answers, self._flush_s = flush_answers, flush_s
        self._most_bytes, self._most_days = most_bytes, most_days
        self._count, self._clock = count, clock
        # Not a `queue.Queue`, whose lock and wake-ups cost a request milliseconds under load. Appending is atomic.
        self._waiting: deque[_Kept] = deque()
        self._writer = f"{os.getpid()}-{time.time_ns():x}"  # process numbers come again, in containers always
        self._parts = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def offer(self, answer: AnsweredRequest) -> bool:
        """Hand over an answer; False where it is not in the sample or the buffer is full. Never waits."""
        if not sampled(answer.request_id, self._share):
            return False
        if len(self._waiting) >= self._capacity:
            self._count(DROPPED, 1)
            return False
        self._waiting.append(_kept(answer))
        return True

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what waits, within the time, then stop."""
        self._closing.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        flushed = tidied = time.monotonic()
        while True:
            closing = self._closing.wait(LOOK_S)
            now = time.monotonic()
            while self._waiting and (closing or self._full() or now - flushed >= self._flush_s):
                self._flush()
            flushed = now if not self._waiting else flushed
            if closing or now - tidied >= TIDY_S:
                self._tidy()
                tidied = now
            if closing:
                return

    def _full(self) -> bool:
        return len(self._waiting) >= self._flush_answers

    def _flush(self) -> None:
        """Write up to `flush_answers` answers: a part for each hour and each set of features among them."""
        groups: dict[tuple[str, tuple[str, ...]], list[_Kept]] = defaultdict(list)
        for _ in range(min(self._flush_answers, len(self._waiting))):
            kept = self._waiting.popleft()
            hour = datetime.fromtimestamp(kept.answer.received_at, UTC).strftime(HOUR)
            groups[hour, kept.answer.feature_names if kept.features is not None else ()].append(kept)
        for (hour, names), kept_ones in groups.items():
            self._parts += 1
            try:
                _write_part(self._folder / hour / f"{self._writer}-{self._parts:06}.parquet", kept_ones, names)
                self._count(LOGGED, len(kept_ones))
            except Exception as error:  # a bug of ours must not end the thread, and with it the log
                cause = None if isinstance(error, OSError) else error
                log.error("%d answers are not in the prediction log: %s", len(kept_ones), error, exc_info=cause)
                self._count(FAILED, len(kept_ones))

    def _tidy(self) -> None:
        try:
            if removed := remove_oldest(self._folder, self._clock(), self._most_bytes, self._most_days):
                self._count(REMOVED, removed)
        except OSError as error:
            log.error("the oldest files of the prediction log were not removed: %s", error)


def predictions_folder(home: DatasetWorkspace) -> Path:
    return home.root / "predictions"


def sampled(request_id: str, share: float) -> bool:
    """Whether an answer belongs to the sample; a smaller share is part of a larger one.

    >>> [sampled("5b1f0c9e", share) for share in (0.0, 0.1, 0.5, 1.0)]
    [False, False, False, True]
    """
    return share >= 1.0 or zlib.crc32(request_id.encode()) < share * 2**32


def remove_oldest(folder: Path, now: float, most_bytes: int, most_days: float) -> int:
    """Remove the oldest files until the rest fits, and the oldest hour if it is too old; returns how many.

    One hour a call, because a clock may be wrong: a year ahead for ten minutes, it costs ten hours of the log.
    """
    files = sorted(folder.glob("*/*"))
    sizes = [path.stat().st_size for path in files]
    total, removed = sum(sizes), 0
    for path, size in zip(files, sizes, strict=True):
        oldest = path.parent == files[0].parent and _began(path.parent) + 3_600 <= now - most_days * 86_400
        if not oldest and total <= most_bytes:
            break
        path.unlink(missing_ok=True)
        total, removed = total - size, removed + 1
        with suppress(OSError):  # it holds more, or another worker was faster
            path.parent.rmdir()
    return removed


def _write_part(path: Path, kept: Sequence[_Kept], feature_names: tuple[str, ...]) -> None:
    """Some answers that were ranked by the same features, as one synced file."""
    answers = [each.answer for each in kept]
    lengths = [len(answer.item_ids) for answer in answers]
    rows = pa.array(np.repeat(np.arange(len(answers)), lengths))
    columns: dict[str, list[Any]] = {
        "received": [round(answer.received_at * 1e6) for answer in answers],
        "filters": [_as_text(answer.filters) for answer in answers],
        "degraded": [",".join(answer.degraded) for answer in answers],
    }
    table = {
        name: pa.array(columns.get(name) or [getattr(answer, name) for answer in answers], kind).take(rows)
        for name, kind in _OF_ANSWER
    }
    table[ITEM_ID] = pa.array(np.concatenate([answer.item_ids for answer in answers]), pa.int64())
    positions = [answer.first_position + np.arange(length) for answer, length in zip(answers, lengths, strict=True)]
    table["position"] = pa.array(np.concatenate(positions), pa.int64())
    for name in SCORES:
        table[name] = pa.array(np.concatenate([each.scores[name] for each in kept]), pa.float32())
    # Every item is shown with certainty, as long as an answer is a function of its inputs.
    table["propensity"] = pa.array(np.ones(sum(lengths), dtype=np.float32))
    if feature_names:
        features = np.concatenate([each.features for each in kept if each.features is not None])
        table |= {name: pa.array(features[:, column]) for column, name in enumerate(feature_names)}
    with replacing_file(path) as beside:
        pq.write_table(pa.table(table), beside, compression="zstd")
        with beside.open("rb") as handle:
            os.fsync(handle.fileno())


def read_answers(folder: Path, *, since: float = 0.0) -> Iterator[pd.DataFrame]:
    """The logged rows received since a moment (seconds UTC), in parts of whole answers, an hour after another.

    Missing ids are NONE; features that a row was not ranked by are NaN. Raises DataError for an unreadable file.
    """
    waiting: list[pd.DataFrame] = []
    for path in sorted(folder.glob("*/*.parquet")):
        if _began(path.parent) + 3_600 <= since:
            continue
        try:
            table = pq.read_table(path, partitioning=None)
        except FileNotFoundError:
            log.warning("%s has been removed meanwhile; its answers are left out", path)
            continue
        except (OSError, pa.ArrowException) as error:
            advice = "Move it out of the folder to go on without its answers."
            raise DataError(f"{path} cannot be read ({error}). {advice}") from error
        for name in (USER_ID, "state_seq", "statistics_seq"):
            table = table.set_column(table.schema.get_field_index(name), name, table[name].fill_null(NONE))
        frame = table.to_pandas()
        waiting.append(frame[frame["received"] >= pd.Timestamp(since, unit="s", tz="UTC")])
        if sum(map(len, waiting)) >= ROWS_AT_ONCE:
            yield pd.concat(waiting, ignore_index=True)
            waiting = []
    if any(map(len, waiting)):
        yield pd.concat(waiting, ignore_index=True)


def feature_columns(frame: pd.DataFrame) -> list[str]:
    """The columns of `read_answers` that are features."""
    return [name for name in frame.columns if name not in COLUMNS]


def filters_of(text: str) -> Filters:
    """What a row holds in `filters`."""
    given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in json.loads(text).items()}
    return Filters(**given)


def _as_text(filters: Filters) -> str | None:
    """JSON; None where it is too long to keep."""
    text = json.dumps({} if filters == Filters() else asdict(filters))
    return text if len(text) <= LONGEST_FILTERS else None


def _kept(answer: AnsweredRequest) -> _Kept:
    found, n = answer.recommendations, len(answer.item_ids)
    answer = replace(answer, recommendations=None, item_ids=answer.item_ids.copy())
    if found is None:
        return _Kept(answer, dict.fromkeys(SCORES, np.full(n, np.nan, dtype=np.float32)), None)
    features = None
    if found.features is not None:
        position = found.position[0, :n]
        features = found.features[0].take(position, axis=0, mode="clip")  # a copy
        features[position >= found.features.shape[1]] = np.nan  # further down than the ranker looks
    return _Kept(answer, {name: getattr(found, field)[0, :n].copy() for name, field in SCORES.items()}, features)


def _began(hour: Path) -> float:
    """When the hour of a folder began, seconds UTC; a folder of another name is taken to be of now, and stays."""
    try:
        return datetime.strptime(f"{hour.name}+0000", f"{HOUR}%z").timestamp()
    except ValueError:
        return float("inf")
