"""The prediction log: what every answer was made from and what it showed, as Parquet by the hour.

Stage: serving writes (`serving.prediction_log`); the join with later events and the skew check read. In: one
`Prediction` an answer. Out: an Arrow schema, files, and `Prediction`s back, equal to the bit. Absent: the thread that
writes, the features' meaning, what happened afterwards.

    HOME/<dataset>/predictions/
      predictions-2026-11-21T16.parquet          one finished hour (UTC), a row an answer
      parts/predictions-2026-11-21T16-*.parquet  what has been flushed of hours that are not finished

Lists that belong together have the same length, so that pandas (`explode`) and DuckDB (`unnest`) open them in parallel:
`item_ids`, `scores`, `features`, ... have an element for each item shown; `candidate_*` one for each ranked candidate.

Shapes: k items shown, K ranked candidates, S retrievers, F features.
"""

import fcntl
import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.arrays import FloatArray, IntArray
from recsys.atomic_io import locked_folder
from recsys.columns import USER_ID
from recsys.errors import DataError
from recsys.workspace import DatasetWorkspace

PARTS: Final = "parts"
MERGED_FROM: Final = b"recsys.parts"  # file metadata: names of the parts that an hour's file holds
MICROSECONDS: Final = 1_000_000
log = logging.getLogger(__name__)

_FLOATS = pa.list_(pa.float32())
SCHEMA: Final = pa.schema(
    [
        ("request_id", pa.string()),
        ("now", pa.int64()),
        ("received", pa.timestamp("us", tz="UTC")),
        (USER_ID, pa.int64()),
        ("bundle_id", pa.string()),
        ("version", pa.int64()),
        ("item_statistics_day", pa.int64()),
        ("row", pa.int64()),
        ("batch", pa.int64()),
        ("k", pa.int64()),
        ("list_length", pa.int64()),
        ("diversity", pa.float64()),
        ("filters_given", pa.bool_()),
        ("filters", pa.string()),
        ("degraded", pa.list_(pa.string())),
        ("n_events", pa.int64()),
        ("last_event", pa.int64()),
        ("retriever_names", pa.list_(pa.string())),
        ("feature_names", pa.list_(pa.string())),
        ("candidate_ids", pa.list_(pa.int64())),
        ("candidate_scores", pa.list_(_FLOATS)),
        ("candidate_ranks", pa.list_(pa.list_(pa.int32()))),
        ("item_ids", pa.list_(pa.int64())),
        ("positions", pa.list_(pa.int64())),
        ("scores", _FLOATS),
        ("watch_probabilities", _FLOATS),
        ("like_probabilities", _FLOATS),
        ("propensities", _FLOATS),
        ("features", pa.list_(_FLOATS)),
    ]
)


@dataclass(slots=True)  # not frozen, which would make it four times as long to make, and requests make it
class Prediction:
    """One answer. Nobody changes one.

    now                   moment that the state was used for, seconds UTC
    received_us           when the request arrived, microseconds UTC
    user_id               None where the request brought its history along: nothing of that is kept
    item_statistics_day   the day that the statistics of items were said to be of
    row, batch            place among the users that were answered in one call, and their number: floats may differ in
                          the last bit between batches of different sizes
    k, list_length        items asked for, and how long a list was made for it and for further pages
    filters               as JSON, None where none were given or where they are too long to keep
    degraded              what was left out; then `features` or the candidates may be missing
    n_events, last_event  of the state that was used, last_event in seconds UTC and None for a cold user; both None for
                          a further page of a list, which has no features and no candidates either
    candidate_ids (K,), candidate_scores (K, S), candidate_ranks (K, S), 0 where a retriever did not return the item:
                          the ranker was given, in merged order; K = 0 where retrieval was left out
    item_ids, scores, watch_probabilities, like_probabilities   (k,) what was shown, best first; NaN where unknown
    positions             (k,) place of each shown item in the list, 1 is first
    propensities          (k,) probability with which the policy shows this item at this position; 1 as long as the
                          answer is a function of its inputs
    features              (k, F) float32, exactly what the ranker saw of what was shown; None where it did not run
    """

    request_id: str
    now: int
    received_us: int
    user_id: int | None
    bundle_id: str
    version: int
    item_statistics_day: int
    row: int
    batch: int
    k: int
    list_length: int
    diversity: float
    filters_given: bool
    filters: str | None
    degraded: tuple[str, ...]
    n_events: int | None
    last_event: int | None
    retriever_names: tuple[str, ...]
    feature_names: tuple[str, ...]
    candidate_ids: IntArray
    candidate_scores: FloatArray
    candidate_ranks: npt.NDArray[np.int32]
    item_ids: IntArray
    positions: IntArray
    scores: FloatArray
    watch_probabilities: FloatArray
    like_probabilities: FloatArray
    propensities: FloatArray
    features: FloatArray | None


def predictions_folder(home: DatasetWorkspace) -> Path:
    return home.root / "predictions"


def sampled(request_id: str, share: float) -> bool:
    """Whether an answer belongs to the sample: decided by its id alone, so that a smaller share is part of a larger.

    >>> [sampled("5b1f0c9e", share) for share in (0.0, 0.1, 0.5, 1.0)]
    [False, False, False, True]
    """
    if share >= 1.0:
        return True  # a request's time for nothing
    digest = hashlib.blake2b(request_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def hour_of(received_us: int) -> str:
    """As in the names of the files.

    >>> hour_of(1_795_276_800_000_000)
    '2026-11-21T16'
    """
    return datetime.fromtimestamp(received_us // MICROSECONDS, UTC).strftime("%Y-%m-%dT%H")


def to_table(predictions: Sequence[Prediction]) -> Any:
    """An Arrow table with SCHEMA, a row for each."""
    arrays = {
        name: pa.array([getattr(p, name) for p in predictions], SCHEMA.field(name).type)
        for name in PLAIN
        if name not in NAMES
    }
    for name in NAMES:
        arrays[name] = _repeated([getattr(p, name) for p in predictions], SCHEMA.field(name).type)
    arrays["received"] = pa.array([p.received_us for p in predictions], SCHEMA.field("received").type)
    for name in LISTS:
        arrays[name] = _lists([getattr(p, name) for p in predictions], SCHEMA.field(name).type.value_type)
    for name in MATRICES:
        arrays[name] = _matrices([getattr(p, name) for p in predictions], SCHEMA.field(name).type.value_type.value_type)
    return pa.table([arrays[name] for name in SCHEMA.names], schema=SCHEMA)


def from_table(table: Any) -> list[Prediction]:
    """The way back. Floats are equal to the bit."""
    parts: dict[str, list[Any]] = {name: table[name].to_pylist() for name in PLAIN}
    parts["received_us"] = table["received"].cast(pa.int64()).to_pylist()
    for name in ("degraded", "retriever_names", "feature_names"):
        parts[name] = [tuple(values) for values in parts[name]]
    for name in LISTS:
        parts[name] = _unlisted(table[name])
    for name in MATRICES:
        width = "retriever_names" if name.startswith("candidate") else "feature_names"
        parts[name] = _unmatrixed(table[name], [len(names) for names in parts[width]])
    names = [field.name for field in fields(Prediction)]
    return [Prediction(**{n: parts[n][row] for n in names}) for row in range(table.num_rows)]


@contextmanager
def unmerged(folder: Path) -> Iterator[None]:
    """While it lasts no hour is merged, so that every answer stays where `log_files` found it. Waits for a merge under
    way. Files may go all the same, the oldest first, because the bounds of the folder wait for nobody."""
    with locked_folder(folder / PARTS, fcntl.LOCK_SH):
        yield


def log_files(folder: Path) -> list[Path]:
    """Every file with answers, finished hours and parts that no finished hour holds yet, by name."""
    hours = sorted(folder.glob("predictions-*.parquet"))
    held = {name for path in hours for name in merged_from(path)}
    parts = [path for path in (folder / PARTS).glob("predictions-*.parquet") if path.name not in held]
    return sorted([*hours, *parts], key=lambda path: path.name)


def merged_from(hour: Path) -> list[str]:
    """Names of the parts that an hour's file was made of."""
    with _opened(hour) as file:
        return [] if file is None else parts_in(file.schema_arrow)


def parts_in(schema: Any) -> list[str]:
    """The same of a file's schema."""
    return str((schema.metadata or {}).get(MERGED_FROM, b"").decode()).split()


def n_logged(folder: Path) -> int:
    """Answers in the log, from the files' own counts."""
    total = 0
    with unmerged(folder):
        for path in log_files(folder):
            with _opened(path) as file:
                total += 0 if file is None else int(file.metadata.num_rows)
    return total


def read_predictions(
    folder: Path, *, since_us: int = 0, until_us: int = 2**62, batch: int = 500
) -> Iterator[list[Prediction]]:
    """The logged answers received in [since, until), file by file, at most `batch` in memory at once.

    Nothing is merged until the last one was read (`unmerged`). Raises DataError for a file that cannot be read.
    """
    with unmerged(folder):
        for path in log_files(folder):
            with _opened(path) as file:
                for part in () if file is None else file.iter_batches(batch):
                    chosen = from_table(pa.table(part))
                    yield [p for p in chosen if since_us <= p.received_us < until_us]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """None where the file has been removed since it was listed. Raises DataError where it cannot be read."""
    file = None
    try:
        try:
            file = pq.ParquetFile(path)
        except FileNotFoundError:
            log.warning("%s has been removed; its answers are left out", path)
        yield file
    except (OSError, pa.ArrowException, KeyError) as error:
        advice = "move it out of the folder to go on without its answers."
        raise DataError(f"{path} cannot be read ({error}); {advice}") from error
    finally:
        if file is not None:
            file.close()


LISTS: Final = (
    *("candidate_ids", "item_ids", "positions", "scores"),
    *("watch_probabilities", "like_probabilities", "propensities"),
)
MATRICES: Final = ("candidate_scores", "candidate_ranks", "features")
NAMES: Final = ("retriever_names", "feature_names")  # the same in nearly every row
PLAIN: Final = tuple(name for name in SCHEMA.names if name not in (*LISTS, *MATRICES, "received"))


def _repeated(rows: Sequence[tuple[str, ...]], kind: Any) -> Any:
    """Few distinct values, each converted once."""
    distinct = {row: place for place, row in enumerate(dict.fromkeys(rows))}
    return pa.array([list(row) for row in distinct], kind).take(pa.array([distinct[row] for row in rows], pa.int64()))


def _lists(rows: Sequence[npt.NDArray[Any]], value: Any) -> Any:
    offsets = np.append(0, np.cumsum([len(row) for row in rows])).astype(np.int32)
    flat = np.concatenate(rows) if rows else np.empty(0)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, value))


def _matrices(rows: Sequence[npt.NDArray[Any] | None], value: Any) -> Any:
    """Lists of lists; None becomes null."""
    given = [row for row in rows if row is not None]
    widths = np.repeat([row.shape[1] for row in given], [len(row) for row in given]) if given else np.empty(0)
    flat = np.concatenate([row.reshape(-1) for row in given]) if given else np.empty(0)
    inner_offsets = pa.array(np.append(0, np.cumsum(widths)).astype(np.int32))
    inner = pa.ListArray.from_arrays(inner_offsets, pa.array(flat, value))
    offsets = np.append(0, np.cumsum([0 if row is None else len(row) for row in rows])).astype(np.int32)
    missing = pa.array([row is None for row in rows], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets), inner, mask=missing)


def _unlisted(column: Any) -> list[npt.NDArray[Any]]:
    column = column.combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return np.split(flat, np.cumsum(column.value_lengths().to_numpy())[:-1]) if len(column) else []


def _unmatrixed(column: Any, widths: Sequence[int]) -> list[npt.NDArray[Any] | None]:
    column = column.combine_chunks()
    flat = column.flatten().flatten().to_numpy(zero_copy_only=False)
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    out: list[npt.NDArray[Any] | None] = []
    start = 0
    for row, (length, width) in enumerate(zip(lengths, widths, strict=True)):
        end = start + int(length) * width
        out.append(flat[start:end].reshape(int(length), width) if column[row].is_valid else None)
        start = end
    return out
