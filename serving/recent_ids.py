"""Where the lines of recent events are, by their ids: how an event that is sent again is recognised.

Stage: serving. In: the files of the event log. Out: the event that was first logged under an id. Absent: the files'
writing, and what a repeated id is answered with (`event_log`).

The index is made of the log alone, so that it survives a restart, and holds what other processes wrote as well. It is
bounded: MOST ids, and at the start what the last MOST_BYTES of the log hold. An id of an older event is a new one.
"""

import re
from pathlib import Path
from typing import Final

from recsys.event_log import LoggedEvent, end_of_last_line, parse

MOST: Final = 50_000  # ids, about 250 bytes each
MOST_BYTES: Final = 16 * 1024**2  # read at the start: some 90,000 lines, about a second
NAME: Final = re.compile(r"events-(\d{4}-\d\d-\d\d)(?:_(\d{4,}))?\.jsonl")


def files_of(folder: Path) -> list[Path]:
    """The log's files, oldest first: by day, and within a day by part."""
    return sorted(path for path in folder.iterdir() if NAME.fullmatch(path.name))


class RecentIds:
    """Not safe to share between threads; used with the log's lock held."""

    def __init__(self, folder: Path, most: int = MOST, most_bytes: int = MOST_BYTES) -> None:
        self._folder, self._most, self._most_bytes = folder, most, most_bytes
        self._at: dict[str, tuple[Path, int]] = {}  # id -> file, first byte of its line; oldest first
        self._read: tuple[Path, int] | None = None  # file, bytes of it read; those before it are read

    def refresh(self) -> None:
        """Learn what was appended since the last time, by whomever."""
        files = files_of(self._folder)
        if self._read is not None and (self._read[0] not in files or self._read[0].stat().st_size < self._read[1]):
            self._at.clear()  # the log was taken away, or put back from a copy
            self._read = None
        start = self._read or self._beginning(files)
        for path in files:
            if start is None or path < start[0]:
                continue
            begin = start[1] if path == start[0] else 0
            self._read = (path, self._learn(path, begin))

    def find(self, event_id: str) -> LoggedEvent | None:
        """The event of an id, read from the log."""
        if event_id not in self._at:
            return None
        path, begin = self._at[event_id]
        with path.open("rb") as handle:
            handle.seek(begin)
            return parse(handle.readline())

    def __len__(self) -> int:
        return len(self._at)

    def _beginning(self, files: list[Path]) -> tuple[Path, int] | None:
        """From where on the last `most_bytes` of the log are; in the middle of a line, perhaps."""
        left = self._most_bytes
        for path in reversed(files):
            size = path.stat().st_size
            if size >= left:
                return path, size - left
            left -= size
        return (files[0], 0) if files else None

    def _learn(self, path: Path, begin: int) -> int:
        """Index the whole lines from `begin` on; the end of the last one."""
        end = end_of_last_line(path) if path.stat().st_size > begin else begin
        with path.open("rb") as handle:
            handle.seek(begin)
            while begin < end:
                line = handle.readline()
                event = parse(line)
                if event is not None and event.event_id not in self._at:
                    self._at[event.event_id] = (path, begin)
                    if len(self._at) > self._most:
                        del self._at[next(iter(self._at))]
                begin += len(line)
        return max(begin, end)
