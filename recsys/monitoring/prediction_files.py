"""The files of the prediction log: parts are written, finished hours are merged, the oldest are removed.

Stage: serving. In: `Prediction`s, the present moment. Out: files as `prediction_log` describes them. Absent: when any
of it is done (`serving.prediction_log`), and reading.

Everything is written beside its place, synced and renamed: a file that has its name is whole. Several processes share a
folder. Their parts have names of their own; merging is done by whoever gets the lock, which is `flock` on the folder of
the parts, and waits for those who read (`prediction_log.unmerged`). Removing waits for nobody: the bounds hold whatever
else goes on. A process that dies between renaming an hour's file and removing its parts leaves both: the hour's file
names the parts that it holds, readers leave those out, and the next merge removes them.
"""

import fcntl
import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.atomic_io import locked_folder, replacing_file
from recsys.monitoring.prediction_log import MERGED_FROM, PARTS, SCHEMA, Prediction, hour_of, parts_in, to_table

GROUP_ROWS = 2_000  # rows of a row group of an hour's file; also what a merge holds in memory, about 40 MB
FORGOTTEN_S = 3_600  # a file that was begun so long ago and never renamed belongs to a process that died
UNREADABLE = ".unreadable"
# A dictionary pays for what repeats, statistics for what a reader selects by. With both for every column, a file takes
# 1.7 times as long to write and is no smaller.
REPEATING = [
    *("bundle_id", "filters"),
    *(f"{name}.list.element" for name in ("degraded", "retriever_names", "feature_names", "candidate_ids", "item_ids")),
    "candidate_ranks.list.element.list.element",
]
SELECTED = [field.name for field in SCHEMA if not pa.types.is_list(field.type)]
log = logging.getLogger(__name__)


class DamagedError(Exception):
    """A file of the log that cannot be read: `path`."""

    def __init__(self, path: Path, why: Exception) -> None:
        super().__init__(f"{path} cannot be read ({why})")
        self.path = path


def write_parts(folder: Path, predictions: Sequence[Prediction], name: str) -> list[Path]:
    """A file for each hour in which one of them was received; `name` must be new. Raises OSError; and whatever an
    answer that is no Parquet raises, before anything is written."""
    by_hour: dict[str, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        by_hour[hour_of(prediction.received_us)].append(prediction)
    tables = {
        folder / PARTS / f"predictions-{hour}-{name}.parquet": to_table(chosen) for hour, chosen in by_hour.items()
    }
    for path, table in tables.items():
        _write(path, iter([table]), SCHEMA)
    return list(tables)


def merge_finished_hours(folder: Path, now: float, grace_s: float) -> tuple[int, int]:
    """Make one file of the parts of each hour that ended more than `grace_s` ago (`now`: seconds UTC).

    Returns the hours merged, and what failed: files that could not be read, which are set aside under another name, and
    hours that could not be written, whose parts stay. One hour does not keep another from being merged. Does nothing
    where another process is at it, or reads.
    """
    by_hour: dict[str, list[Path]] = defaultdict(list)
    for path in sorted((folder / PARTS).glob("predictions-*.parquet")):
        by_hour[_hour(path)].append(path)
    ended = [hour for hour in sorted(by_hour) if _moment(hour) + 3_600 + grace_s <= now]
    if not ended:
        return 0, 0
    merged = failed = 0
    try:
        with locked_folder(folder / PARTS, fcntl.LOCK_EX | fcntl.LOCK_NB):
            for hour in ended:
                try:
                    failed += _merge(folder / f"predictions-{hour}.parquet", by_hour[hour])
                    merged += 1
                except Exception as error:  # a full disk, or a bug: the other hours need not wait for it
                    known = isinstance(error, OSError)
                    log.error("the answers of %s are not merged: %s", hour, error, exc_info=not known)
                    failed += 1
    except BlockingIOError:
        return 0, 0
    return merged, failed


def remove_oldest(folder: Path, now: float, most_bytes: int, most_days: float) -> int:
    """Remove the oldest files until the rest fits, and of those older than `most_days` the oldest hour; the number of
    files removed.

    One hour a call, because `now` may be wrong: a clock that is a year ahead for ten minutes, and ten calls, costs ten
    hours of the log and not all of it. By a clock that is right, one hour of it becomes too old in an hour.
    """
    begun = [p for at in (folder, folder / PARTS) for p in at.glob(".predictions-*.part")]
    for path in begun:
        if _size_and_age(path)[1] > FORGOTTEN_S:
            path.unlink(missing_ok=True)
    files = [*folder.glob("predictions-*"), *(folder / PARTS).glob("predictions-*")]
    files.sort(key=_hour)
    sizes = {path: _size_and_age(path)[0] for path in files}
    total, removed = sum(sizes.values()), 0
    oldest = now - timedelta(days=most_days).total_seconds()
    for path in files:
        too_old = _moment(_hour(path)) + 3_600 <= oldest and _hour(path) == _hour(files[0])
        if not too_old and total <= most_bytes:
            break
        path.unlink(missing_ok=True)
        total -= sizes[path]
        removed += 1
    return removed


def _merge(target: Path, parts: list[Path]) -> int:
    """The parts go behind what the hour's file already holds. Returns how many files could not be read: they are set
    aside as soon as that shows, which may be at their last page, and the others are merged."""
    damaged = 0
    while True:
        try:
            _merge_readable(target, [path for path in parts if path.exists()])
            return damaged
        except DamagedError as error:
            log.error("%s; it is set aside", error)
            error.path.rename(error.path.with_name(error.path.name + UNREADABLE))
            damaged += 1


def _merge_readable(target: Path, parts: list[Path]) -> None:
    """Raises DamagedError."""
    held: list[str] = []
    if target.exists():
        with _reading(target):
            held = parts_in(pq.read_schema(target))
    fresh = [path for path in parts if path.name not in held]
    if fresh:
        names = " ".join([*held, *(path.name for path in fresh)])
        tables = (table for path in [*([target] if target.exists() else []), *fresh] for table in _tables(path))
        _write(target, _grouped(tables), SCHEMA.with_metadata({MERGED_FROM: names.encode()}))
    for path in parts:
        path.unlink(missing_ok=True)


def _tables(path: Path) -> Iterator[Any]:
    with _reading(path), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(GROUP_ROWS):
            yield pa.table(batch).replace_schema_metadata(None).cast(SCHEMA)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raises DamagedError for what is wrong with the file; an OSError with a number is the machine's and stays one."""
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DamagedError(path, error) from error


def _grouped(tables: Iterator[Any]) -> Iterator[Any]:
    waiting: list[Any] = []
    for table in tables:
        waiting.append(table)
        if sum(t.num_rows for t in waiting) >= GROUP_ROWS:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _write(path: Path, tables: Iterator[Any], schema: Any) -> None:
    with replacing_file(path) as beside:
        with pq.ParquetWriter(
            beside, schema, compression="zstd", use_dictionary=REPEATING, write_statistics=SELECTED
        ) as writer:
            for table in tables:
                writer.write_table(table.cast(schema))
        handle = os.open(beside, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _hour(path: Path) -> str:
    """`2026-11-21T16` of a file's name."""
    return path.name.removeprefix("predictions-")[:13]


def _moment(hour: str) -> float:
    return datetime.strptime(hour, "%Y-%m-%dT%H").replace(tzinfo=UTC).timestamp()


def _size_and_age(path: Path) -> tuple[int, float]:
    """Bytes and seconds since the last change; (0, 0) where another process has just removed it."""
    try:
        facts = path.stat()
    except FileNotFoundError:
        return 0, 0.0
    return facts.st_size, time.time() - facts.st_mtime
