"""The event log: what users did, on disk before anything else happens with it.

Stage: serving writes; retraining and the skew check read. In: events. Out: JSON lines, one file for each UTC day of
reception, each line synced to disk before `append` returns. Absent: deduplication (a client may send an event twice;
its key is user, movie and second) and the user's state.

A crash in the middle of a write leaves a torn line. It was never acknowledged: readers count and skip it, and the
next append begins on a new line, so that it spoils nothing else.
"""

import json
import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from recsys.columns import ITEM_ID, RATING, TIMESTAMP, USER_ID

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoggedEvent:
    """One line. `timestamp`: when it happened; `received`: when the service heard of it; both seconds UTC.
    `bundle_id`: what was served at that time."""

    event_id: str
    user_id: int
    item_id: int
    rating: float
    timestamp: int
    received: int
    bundle_id: str


class EventLog:
    """Appends to and reads the files below one folder. Safe to share between threads; one process writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._checked: Path | None = None  # the file whose end is known to be whole

    def append(self, event: LoggedEvent) -> None:
        """Returns once the line is on disk; an OSError means that it may not be."""
        day = datetime.fromtimestamp(event.received, UTC).date().isoformat()
        path = self.folder / f"events-{day}.jsonl"
        line = json.dumps(asdict(event), separators=(",", ":")).encode() + b"\n"
        with self._lock:
            self.folder.mkdir(parents=True, exist_ok=True)
            new = not path.exists()
            handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o640)
            try:
                if self._checked != path and _torn(handle):
                    line = b"\n" + line
                self._checked = None
                written = os.write(handle, line)
                if written != len(line):
                    raise OSError(f"only {written} of {len(line)} bytes could be written to {path}")
                os.fsync(handle)
                self._checked = path
            finally:
                os.close(handle)
            if new:
                _sync_folder(self.folder)

    def read(self) -> Iterator[LoggedEvent]:
        """All events, in the order in which they were received. Torn lines are skipped, and counted in the log."""
        for path in sorted(self.folder.glob("events-*.jsonl")):
            skipped = 0
            with path.open("rb") as handle:
                for line in handle:
                    event = _parse(line)
                    if event is not None:
                        yield event
                    elif line.strip():
                        skipped += 1
            if skipped:
                log.warning("%s: %d torn line(s) skipped; such events were never acknowledged", path, skipped)


def _parse(line: bytes) -> LoggedEvent | None:
    if not line.endswith(b"\n"):
        return None
    try:
        stored = json.loads(line)
        return LoggedEvent(
            event_id=str(stored["event_id"]),
            user_id=int(stored[USER_ID]),
            item_id=int(stored[ITEM_ID]),
            rating=float(stored[RATING]),
            timestamp=int(stored[TIMESTAMP]),
            received=int(stored["received"]),
            bundle_id=str(stored["bundle_id"]),
        )
    except (ValueError, KeyError, TypeError):
        return None


def _torn(handle: int) -> bool:
    """Whether the file ends in the middle of a line."""
    size = os.fstat(handle).st_size
    return size > 0 and os.pread(handle, 1, size - 1) != b"\n"


def _sync_folder(folder: Path) -> None:
    """A new file's name is durable only once its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
