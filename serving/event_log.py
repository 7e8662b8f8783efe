"""The event log: what users did, on disk before anything else happens with it.

Stage: serving. In: events. Out: JSON lines, one file for each UTC day of reception, each line synced to disk before
`append` returns. Absent: reading, which batch steps do as well (`recsys.event_log`); deduplication (a client may send
an event twice; its key is user, movie and second) and the user's state.

A crash in the middle of a write leaves a torn line. It was never acknowledged: readers skip it, and the next append
begins on a new line, so that it spoils nothing else.
"""

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from recsys.event_log import LoggedEvent, read_log

__all__ = ["EventLog", "LoggedEvent"]


class EventLog:
    """Appends to and reads the files below one folder. Safe to share between threads, and between the
    processes of one machine: each line is one write at the end of the file, which the system does not mix."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()

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
                if _torn(handle):  # each time: another worker may have died in the middle of a line
                    line = b"\n" + line
                written = os.write(handle, line)
                if written != len(line):
                    raise OSError(f"only {written} of {len(line)} bytes could be written to {path}")
                os.fsync(handle)
            finally:
                os.close(handle)
            if new:
                _sync_folder(self.folder)

    def read(self) -> Iterator[LoggedEvent]:
        """All events, in the order in which they were received."""
        return read_log(self.folder)


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
