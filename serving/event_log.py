"""The event log: what users did, on disk before anything else happens with it.

Stage: serving. In: events. Out: JSON lines in files that only grow. Absent: reading, which batch steps do as well
(`recsys.event_log`), and the user's state (`states`).

When is an event safe: `append` returns after the line was written and `fsync` of the file (and of its folder, where the
file is new) has returned. Events that arrive while one `fsync` runs are written together by the next one, so that their
number a second is not bounded by the disk's. No timer is involved: an event that comes alone is written at once.

All or nothing: several events of one call are one write and one `fsync`. If either fails, for a full disk say, what was
written is taken back, the error goes to every caller of that write, and the next append begins where the last good line
ends. A crash leaves the lines that got as far as the file, the last one torn, perhaps. None of them was acknowledged;
whole ones count all the same, as if the answer had been lost, and the torn end is cut off by the next writer.

Once: an id that the log remembers (`recent_ids`) is not written again; the caller gets the event first logged, and an
EventIdError if that is about something else.

Files: `events-<day>.jsonl`, by UTC day of reception, then `events-<day>_0002.jsonl` and so on, of `most_bytes` each.
New lines go to the last of them even if the clock has gone back to an earlier day, so that the order of the files'
names and lines is the order of reception.

Processes of one machine share the log: whoever writes holds its lock, `flock` on the folder, from looking at the end
to `fsync`.
"""

import contextlib
import fcntl
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import orjson

from recsys.atomic_io import locked_folder
from recsys.event_log import LoggedEvent, end_of_last_line, read_log
from serving.recent_ids import NAME, RecentIds, files_of

__all__ = ["EventIdError", "EventLog", "LoggedEvent"]

MOST_BYTES = 256 * 1024**2  # of a file; about a million events
log = logging.getLogger(__name__)


class EventIdError(ValueError):
    """An id that the log has for another event."""


class EventLog:
    """Appends to and reads the files below one folder. Safe to share between threads, and between the
    processes of one machine."""

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self.folder, self._most_bytes = folder, most_bytes
        self._recent = RecentIds(folder)
        self._arriving, self._writing = threading.Lock(), threading.Lock()
        self._waiting: list[_Call] = []

    def append(self, *events: LoggedEvent) -> list[LoggedEvent]:
        """Returns once all of them are on disk: each as the log has it, which is the first one of its id.

        Raises OSError where they could not be written, EventIdError where an id is taken; none of them is logged then.
        """
        call = _Call(events)
        with self._arriving:
            self._waiting.append(call)
        with self._writing:  # whoever comes first writes for all who wait; the others find it done
            if not call.done:
                with self._arriving:
                    group, self._waiting = self._waiting, []
                self._commit(group)
        if call.error is not None:
            raise call.error
        return call.logged

    def recover(self) -> None:
        """What the first append would do as well: cut off torn ends, and learn the recent ids. Raises OSError."""
        with self._writing, locked_folder(self.folder, fcntl.LOCK_EX) as folder:
            if folder is not None:
                for path in files_of(self.folder):
                    _repair(path)
                self._recent.refresh()

    def read(self) -> Iterator[LoggedEvent]:
        """All events, of every kind, in the order in which they were received."""
        return read_log(self.folder)

    def _commit(self, group: Sequence["_Call"]) -> None:
        """Decide about every call of the group."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked_folder(self.folder, fcntl.LOCK_EX) as folder:
                assert folder is not None
                path = self._newest()
                if path is not None:
                    _repair(path)  # each time: another worker may have died in the middle of a line
                self._recent.refresh()
                fresh: dict[str, LoggedEvent] = {}
                for call in group:
                    self._look_up(call, fresh)
                if fresh:
                    path = self._target(path, max(event.received for event in fresh.values()))
                if path is not None:  # repeats alone: the worker that wrote the first may have died before its fsync
                    _write(path, b"".join(_line(event) for event in fresh.values()), folder)
        except Exception as error:  # whatever it is, every caller must hear of it
            for call in group:
                call.error = call.error or error
        finally:
            for call in group:
                call.done = True

    def _look_up(self, call: "_Call", fresh: dict[str, LoggedEvent]) -> None:
        """Fill in `call.logged`, and add to `fresh` what is to be written; nothing, if one of its ids is taken."""
        own: dict[str, LoggedEvent] = {}
        for event in call.events:
            key = event.event_id
            first = own.get(key) or fresh.get(key) or self._recent.find(key)
            if first is None:
                first = own[key] = event
            elif _about(first) != _about(event):
                call.error = EventIdError(f"The id {key!r} was used before, for another event.")
                return
            call.logged.append(first)
        fresh |= own

    def _newest(self) -> Path | None:
        files = files_of(self.folder)
        return files[-1] if files else None

    def _target(self, newest: Path | None, received: int) -> Path:
        """The file for lines of this moment, seconds UTC."""
        day = datetime.fromtimestamp(received, UTC).date().isoformat()
        match = NAME.fullmatch(newest.name) if newest is not None else None
        if newest is None or match is None or match[1] < day:
            return self.folder / f"events-{day}.jsonl"
        if newest.stat().st_size < self._most_bytes:
            return newest
        return self.folder / f"events-{match[1]}_{int(match[2] or 1) + 1:04}.jsonl"


class _Call:
    """One `append` under way."""

    def __init__(self, events: Sequence[LoggedEvent]) -> None:
        self.events = events
        self.logged: list[LoggedEvent] = []
        self.error: Exception | None = None
        self.done = False


def _about(event: LoggedEvent) -> tuple[object, ...]:
    """What two events of one id must agree in. Not the moment: whoever gives none gets another one each time."""
    return event.user_id, event.item_id, event.kind, event.rating


def _line(event: LoggedEvent) -> bytes:
    """Compact, as readers search for ids in the bytes; without what is None."""
    fields: Mapping[str, object] = asdict(event)
    return orjson.dumps({name: value for name, value in fields.items() if value is not None}) + b"\n"


def _write(path: Path, data: bytes, folder: int) -> None:
    """Append and sync. Raises OSError with the file as it was, as far as the system lets us."""
    new = not path.exists()
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o640)
    try:
        before = os.fstat(handle).st_size
        try:
            written = os.write(handle, data) if data else 0
            if written != len(data):
                raise OSError(f"only {written} of {len(data)} bytes could be written to {path}")
            os.fsync(handle)
            if new:  # a file's name is durable only once its folder is
                os.fsync(folder)
        except OSError:
            with contextlib.suppress(OSError):  # what is left of a line is cut off by the next append
                os.ftruncate(handle, before)
            raise
    finally:
        os.close(handle)


def _repair(path: Path) -> None:
    """Cut off the end of a file behind its last whole line; with the lock held, it is nobody's write under way."""
    size, end = path.stat().st_size, end_of_last_line(path)
    if end < size:
        os.truncate(path, end)
        log.warning("%s: %d bytes of a torn line cut off; that event was never acknowledged", path, size - end)
