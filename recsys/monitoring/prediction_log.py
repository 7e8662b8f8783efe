"""The prediction log: what every answer was made from and what it showed, as Parquet files by the hour.

    HOME/<dataset>/predictions/2026-11-21T16/<writer>-000001.parquet     a row for each item shown

A row holds what is known of the answer, the item with its position, score and probabilities, and the features that the
ranker saw, each a column of its own name.

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
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.arrays import DoubleArray, FloatArray, IntArray
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
CAPACITY: Final = 5_000  # answers that may wait, some 5 kB each
FLUSH_ANSWERS, FLUSH_S = 1_000, 60.0  # a part is written at whichever comes first
LOOK_S, TIDY_S = 0.2, 60.0  # how often the thread looks at the buffer, and at the bounds of the folder
NONE: Final = -1  # stands for a missing user_id, state_seq or statistics_seq in what `read_answers` returns
HOUR: Final = "%Y-%m-%dT%H"
log = logging.getLogger(__name__)

SHOWN: Final = "shown"
SHADOW: Final = "shadow"  # made beside an answer by a version that is shown to nobody
_TEXTS: Final = ("request_id", "bundle_id", "filters", "degraded", "experiment", "arm", "role")
_NUMBERS: Final = ("now", USER_ID, "state_seq", "version", "statistics_day", "statistics_seq", "k", "list_length")
PER_ANSWER: Final = pa.schema(
    [(name, pa.string()) for name in _TEXTS]
    + [("received", pa.timestamp("us", tz="UTC")), ("diversity", pa.float64()), ("total_ms", pa.float64())]
    + [(name, pa.int64()) for name in _NUMBERS]
)
SCORES: Final = ("score", "watch_probability", "like_probability")
PER_ITEM: Final = pa.schema(
    [(name, pa.int64()) for name in (ITEM_ID, "position")] + [(name, pa.float32()) for name in (*SCORES, "propensity")]
)
ANSWER: Final = ["request_id", USER_ID, "received", "role"]  # columns that tell answers apart
COLUMNS: Final = (*PER_ANSWER.names, *PER_ITEM.names)  # every other column of a part is a feature


@dataclass(frozen=True, slots=True)
class AnsweredRequest:
    """One user's answer, as the service hands it over. Moments are seconds UTC.

    user_id          None where the request brought its history along: nothing of that is kept
    state_seq        the newest event of the event table in the user's state, 0 for none; None where the answer was made
                     without that state, or is a further page of a list
    now              moment that the state was used for
    statistics_seq   the last event of the event table that the item statistics may hold; None where unknown
    list_length      how long a list was made, for the k items and further pages
    degraded         parts that the answer was given without
    experiment, arm  that the user belongs to, None for none; role: SHOWN or SHADOW
    total_ms         from the request's arrival until the list was made
    item_ids         (k,) what was shown, best first, from position `first_position` of the list
    recommendations  what `Recommender.recommend` returned for this user; None for a cold-start list or a further page
    propensity       (k,) how likely each item was to be shown in its place; None for certain
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
    experiment: str | None = None
    arm: str | None = None
    role: str = SHOWN
    total_ms: float | None = None
    propensity: DoubleArray | None = None


class _Rows(NamedTuple):
    """An answer without its recommendations, and copies of what was shown: its arrays are larger, and may change."""

    answer: AnsweredRequest
    scores: FloatArray  # (k, 3) of SCORES
    features: FloatArray | None  # (k, F)


class PredictionLog:
    """Safe to share between threads; each worker has its own, over one folder.

    share                   of the answers to log; 0 logs none
    most_bytes, most_days   bounds of the folder; the oldest files go first
    count                   gets the names above and how often: `Metrics.count`
    """

    def __init__(
        self,
        folder: Path,
        *,
        share: float = 1.0,
        most_bytes: int = 2 * 1024**3,
        most_days: float = 30.0,
        count: Callable[[str, int], None] = lambda _name, _times: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder, self._share, self._count, self._clock = folder, share, count, clock
        self._most_bytes, self._most_days = most_bytes, most_days
        # Not a `queue.Queue`, whose lock and wake-ups cost a request milliseconds under load. Appending is atomic.
        self._waiting: deque[_Rows] = deque()
        self._writer = f"{os.getpid()}-{time.time_ns():x}"  # process numbers come again, in containers always
        self._parts = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def offer(self, answer: AnsweredRequest) -> bool:
        """Hand over an answer; False where it is not in the sample or the buffer is full. Never waits."""
        if not sampled(answer.request_id, self._share):
            return False
        if len(self._waiting) >= CAPACITY:
            self._count(DROPPED, 1)
            return False
        self._waiting.append(_copied_rows(answer))
        return True

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what waits, within the time, then stop."""
        self._closing.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        flushed = tidied = time.monotonic()
        closing = False
        while not closing:
            closing = self._closing.wait(LOOK_S)
            now = time.monotonic()
            due = closing or now - flushed >= FLUSH_S
            while self._waiting and (due or len(self._waiting) >= FLUSH_ANSWERS):
                self._flush()
            flushed = now if not self._waiting else flushed
            if closing or now - tidied >= TIDY_S:
                tidied = now
                try:
                    removed = remove_oldest(self._folder, self._clock(), self._most_bytes, self._most_days)
                    self._count(REMOVED, removed)
                except OSError as error:
                    log.error("the oldest files of the prediction log were not removed: %s", error)

    def _flush(self) -> None:
        """Write up to FLUSH_ANSWERS answers: a part for each hour and each set of features among them."""
        groups: dict[tuple[str, tuple[str, ...]], list[_Rows]] = defaultdict(list)
        for _ in range(min(FLUSH_ANSWERS, len(self._waiting))):
            rows = self._waiting.popleft()
            hour = datetime.fromtimestamp(rows.answer.received_at, UTC).strftime(HOUR)
            groups[hour, rows.answer.feature_names if rows.features is not None else ()].append(rows)
        for (hour, feature_names), group in groups.items():
            self._parts += 1
            try:
                _write_part(self._folder / hour / f"{self._writer}-{self._parts:06}.parquet", group, feature_names)
                self._count(LOGGED, len(group))
            except Exception as error:  # a bug of ours must not end the thread, and with it the log
                cause = None if isinstance(error, OSError) else error
                log.error("%d answers are not in the prediction log: %s", len(group), error, exc_info=cause)
                self._count(FAILED, len(group))


def predictions_folder(home: DatasetWorkspace) -> Path:
    return home.root / "predictions"


def sampled(request_id: str, share: float) -> bool:
    """Whether an answer belongs to the sample; a smaller share is part of a larger one."""
    return share >= 1.0 or zlib.crc32(request_id.encode()) < share * 2**32


def remove_oldest(folder: Path, now: float, most_bytes: int, most_days: float) -> int:
    """Remove the oldest files until the rest fits, and the oldest hour if it is too old; returns how many.

    One hour a call, because a clock may be wrong: a year ahead for ten minutes, it costs ten hours of the log.
    """
    files = sorted(folder.glob("*/*"))
    sizes = [path.stat().st_size for path in files]
    total, removed = sum(sizes), 0
    for path, size in zip(files, sizes, strict=True):
        too_old = path.parent == files[0].parent and _hour_end(path) <= now - most_days * 86_400
        if not too_old and total <= most_bytes:
            break
        path.unlink(missing_ok=True)
        total, removed = total - size, removed + 1
        with suppress(OSError):  # it holds more, or another worker was faster
            path.parent.rmdir()
    return removed


def read_answers(folder: Path, *, since: float = 0.0) -> pd.DataFrame:
    """The logged rows received since a moment (seconds UTC), an hour after another; some 400 bytes of memory a row.

    Missing ids are NONE; features that a row was not ranked by are NaN. Raises DataError for an unreadable file.
    """
    parts = [pa.unify_schemas([PER_ANSWER, PER_ITEM]).empty_table()]
    for path in sorted(path for path in folder.glob("*/*.parquet") if _hour_end(path) > since):
        try:
            parts.append(pq.read_table(path, partitioning=None))
        except FileNotFoundError:
            log.warning("%s has been removed meanwhile; its answers are left out", path)
        except (OSError, pa.ArrowException) as error:
            advice = "Move it out of the folder to go on without its answers."
            raise DataError(f"{path} cannot be read ({error}). {advice}") from error
    table = pa.concat_tables(parts, promote_options="default")
    for name in (USER_ID, "state_seq", "statistics_seq"):
        table = table.set_column(table.schema.get_field_index(name), name, table[name].fill_null(NONE))
    rows: pd.DataFrame = table.to_pandas()
    rows["role"] = rows["role"].fillna(SHOWN)  # files of earlier versions have no such column
    return rows[rows["received"] >= pd.Timestamp(since, unit="s", tz="UTC")].reset_index(drop=True)


def feature_columns(rows: pd.DataFrame) -> list[str]:
    """The columns of `read_answers` that are features."""
    return [name for name in rows.columns if name not in COLUMNS]


def filters_of(text: str) -> Filters:
    """What a row holds in `filters`."""
    given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in json.loads(text).items()}
    return Filters(**given)


def _copied_rows(answer: AnsweredRequest) -> _Rows:
    made, k = answer.recommendations, len(answer.item_ids)
    answer = replace(answer, recommendations=None, item_ids=answer.item_ids.copy())
    if made is None:
        return _Rows(answer, np.full((k, len(SCORES)), np.nan, dtype=np.float32), None)
    scores = np.stack([made.scores[0, :k], made.watch_probability[0, :k], made.like_probability[0, :k]], axis=1)
    features = None
    if made.features is not None:
        position = made.position[0, :k]
        features = made.features[0].take(position, axis=0, mode="clip")  # a copy
        features[position >= made.features.shape[1]] = np.nan  # further down than the ranker looks
    return _Rows(answer, scores, features)


def _write_part(path: Path, group: Sequence[_Rows], feature_names: tuple[str, ...]) -> None:
    """Some answers that were ranked by the same features, as one synced file."""
    answers = [rows.answer for rows in group]
    table = pa.Table.from_pylist([_facts(answer) for answer in answers], schema=PER_ANSWER)
    table = table.take(np.repeat(np.arange(len(answers)), [len(answer.item_ids) for answer in answers]))
    columns = {
        ITEM_ID: np.concatenate([answer.item_ids for answer in answers]),
        "position": np.concatenate([answer.first_position + np.arange(len(answer.item_ids)) for answer in answers]),
        **dict(zip(SCORES, np.concatenate([rows.scores for rows in group]).T, strict=True)),
        # Without exploration an answer is a function of its inputs.
        "propensity": np.concatenate(
            [np.ones(len(a.item_ids)) if a.propensity is None else a.propensity for a in answers]
        ).astype(np.float32),
    }
    if feature_names:
        features = np.concatenate([rows.features for rows in group if rows.features is not None])
        columns |= dict(zip(feature_names, features.T, strict=True))
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    with replacing_file(path) as beside:
        pq.write_table(table, beside, compression="zstd")
        with beside.open("rb") as handle:
            os.fsync(handle.fileno())


def _facts(answer: AnsweredRequest) -> dict[str, Any]:
    filters = json.dumps({} if answer.filters == Filters() else asdict(answer.filters))
    return {name: getattr(answer, name, None) for name in PER_ANSWER.names} | {
        "received": round(answer.received_at * 1e6),
        "filters": filters if len(filters) <= LONGEST_FILTERS else None,
        "degraded": ",".join(answer.degraded),
    }


def _hour_end(path: Path) -> float:
    """When the hour of a file's folder ends, seconds UTC; a folder of another name has no end, and its files stay."""
    try:
        return datetime.strptime(f"{path.parent.name}+0000", f"{HOUR}%z").timestamp() + 3_600
    except ValueError:
        return float("inf")
