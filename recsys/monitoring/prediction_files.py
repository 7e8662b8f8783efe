"""The files of the prediction log: parts are written, finished hours are merged, the oldest are removed.

Stage: serving. In: `Prediction`s, the present moment. Out: files as `prediction_log` describes them. Absent: when any
of it is done (`serving.prediction_log`), and reading.

Everything is written beside its place, synced and renamed: a file that has its name is whole. Several processes share a
folder. Their parts have names of their own; merging is done by whoever gets the lock. A process that dies between
renaming an hour's file and removing its parts leaves both: the hour's file names the parts that it holds, readers leave
those out, and the next merge removes them.
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

from recsys.artefacts import replacing_file
from recsys.errors import DataError
from recsys.monitoring.prediction_log import MERGED_FROM, PARTS, SCHEMA, Prediction, hour_of, merged_from, to_table

GROUP_ROWS = 2_000  # rows of a row group of an hour's file; also what a merge holds in memory, about 40 MB
FORGOTTEN_S = 3_600  # a file that was begun so long ago and never renamed belongs to a process that died
UNREADABLE = ".unreadable"
log = logging.getLogger(__name__)


def write_parts(folder: Path, predictions: Sequence[Prediction], name: str) -> list[Path]:
    """A file for each hour in which one of them was received; `name` must be new. Raises OSError."""
    by_hour: dict[str, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        by_hour[hour_of(prediction.received_us)].append(prediction)
    written = []
    for hour, chosen in by_hour.items():
        path = folder / PARTS / f"predictions-{hour}-{name}.parquet"
        _write(path, iter([to_table(chosen)]), SCHEMA)
        written.append(path)
    return written


def merge_finished_hours(folder: Path, now: float, grace_s: float) -> tuple[int, int]:
    """Make one file of the parts of each hour that ended more than `grace_s` ago (`now`: seconds UTC).

    Returns the hours merged and the parts that could not be read; these are set aside under another name. Does nothing
    where another process is at it. Raises OSError where the folder cannot be written; the parts then stay.
    """
    by_hour: dict[str, list[Path]] = defaultdict(list)
    for path in sorted((folder / PARTS).glob("predictions-*.parquet")):
        by_hour[_hour(path)].append(path)
    ended = [hour for hour in sorted(by_hour) if _moment(hour) + 3_600 + grace_s <= now]
    if not ended:
        return 0, 0
    with _alone(folder / PARTS / ".merging") as ours:
        if not ours:
            return 0, 0
        unreadable = sum(_merge(folder / f"predictions-{hour}.parquet", by_hour[hour]) for hour in ended)
    return len(ended), unreadable


def remove_oldest(folder: Path, now: float, most_bytes: int, most_days: float) -> int:
    """Remove what is older than `most_days`, then the oldest until the rest fits; the number of files removed."""
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
        if _moment(_hour(path)) + 3_600 > oldest and total <= most_bytes:
            break
        path.unlink(missing_ok=True)
        total -= sizes[path]
        removed += 1
    return removed


def _merge(target: Path, parts: list[Path]) -> int:
    """The parts go behind what the hour's file already holds. Returns how many could not be read."""
    held = merged_from(target) if target.exists() else []
    fresh, unreadable = [], 0
    for path in parts:
        if path.name in held:
            continue
        try:
            merged_from(path)  # opens it
            fresh.append(path)
        except DataError as error:
            log.error("%s", error)
            path.rename(path.with_name(path.name + UNREADABLE))
            unreadable += 1
    if fresh:
        names = " ".join([*held, *(path.name for path in fresh)])
        tables = (table for path in [*([target] if target.exists() else []), *fresh] for table in _tables(path))
        _write(target, _grouped(tables), SCHEMA.with_metadata({MERGED_FROM: names.encode()}))
    for path in parts:
        path.unlink(missing_ok=True)
    return unreadable


def _tables(path: Path) -> Iterator[Any]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(GROUP_ROWS):
            yield pa.table(batch).replace_schema_metadata(None)


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
        with pq.ParquetWriter(beside, schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table.cast(schema))
        handle = os.open(beside, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Whether no other process holds this lock; held until the end, and released with the process."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o640)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
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
