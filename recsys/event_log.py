"""The event log as its readers see it: what users did after the data set was made.

Stage: serving writes it (`serving.event_log`); the feature tables, the rebuilding of a state and the checks read it.
In: the folder `home.events`. Out: `LoggedEvent`s, and the position up to which a reader has come. Absent: writing, and
what two events of one key mean (`recsys.features.state_merge`).

The log is compact JSON lines in files that only grow, `events-*.jsonl`. A line without its end is a write that broke
off: it was never acknowledged. Readers count and skip it. One at the end of a file may be a write under way: a position
never lies behind it, nor behind lines that are not yet known to be on disk (`end_of`).

Only ratings move a user's state. A reader that folds leaves out events without a rating; `read_log` gives all kinds.
"""

import fcntl
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from recsys.atomic_io import locked_folder
from recsys.columns import ITEM_ID, RATING, TIMESTAMP, USER_ID

Position = Mapping[str, int]  # bytes read of each file, by its name; empty is the beginning
BEGINNING: Final[Position] = {}
PATTERN: Final = "events-*.jsonl"
RATING_KIND: Final = "rating"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoggedEvent:
    """One line.

    event_id     the caller's key, or one that the service made; the writer lets none in twice that it remembers
    rating       of an event of kind "rating"; None of every other
    timestamp    when it happened, seconds UTC
    received     when the service heard of it, seconds UTC
    bundle_id    what was served at that time
    kind         "rating"; "watch", seen without a rating; "impression", shown to the user
    request_id   of the answer that showed the item, where the caller told it
    received_us  `received` in microseconds; None in lines of older versions
    """

    event_id: str
    user_id: int
    item_id: int
    rating: float | None
    timestamp: int
    received: int
    bundle_id: str
    kind: str = RATING_KIND
    request_id: str | None = None
    received_us: int | None = None


def end_of(folder: Path) -> Position:
    """Where the log ends now: behind the last whole line of every file.

    Waits for a write under way (milliseconds), because the writer takes back what it could not put on disk: a position
    that lay behind such lines would hide what is written in their place.
    """
    return {name: end for name, (end, _) in _ends(folder).items()}


def _ends(folder: Path) -> dict[str, tuple[int, int]]:
    """Of every file, the end of its last whole line, and its size: more, where a write broke off."""
    with locked_folder(folder, fcntl.LOCK_SH):
        paths = sorted(folder.glob(PATTERN))
        return {path.name: (end_of_last_line(path), path.stat().st_size) for path in paths}


def read_log(
    folder: Path, *, after: Position = BEGINNING, through: Position | None = None, user_id: int | None = None
) -> Iterator[LoggedEvent]:
    """The events between two positions, file by file in the order of their names; `through` None is the present end.

    `user_id` restricts them to one user: tens of milliseconds for a hundred thousand lines, which are not parsed.
    Broken lines are skipped, and counted in the program's log.
    """
    ends = _ends(folder) if through is None else {name: (end, end) for name, end in through.items()}
    for name in sorted(ends):
        path, start, (end, size) = folder / name, after.get(name, 0), ends[name]
        skipped = int(size > end)
        for line in _lines(path, start, end) if user_id is None else _lines_naming(user_id, path, start, end):
            event = parse(line)
            if event is None:
                skipped += bool(line.strip())
            elif user_id is None or event.user_id == user_id:
                yield event
        if skipped:
            log.warning("%s: %d torn line(s) skipped; such events were never acknowledged", path, skipped)


def _lines(path: Path, start: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as handle:
        handle.seek(start)
        while start < end and (line := handle.readline()):
            start += len(line)
            yield line


def _lines_naming(user_id: int, path: Path, start: int, end: int, block: int = 1 << 22) -> Iterator[bytes]:
    """The lines that may be a user's: the writer puts no space into its JSON, so that the bytes can be searched for."""
    wanted = f'"{USER_ID}":{user_id}'.encode()
    rest = b""
    with path.open("rb") as handle:
        handle.seek(start)
        while start < end and (read := handle.read(min(block, end - start))):
            start += len(read)
            whole, newline, rest = (rest + read).rpartition(b"\n")
            lines = whole + newline
            at = lines.find(wanted)
            while at >= 0:
                after = at + len(wanted)
                if not lines[after : after + 1].isdigit():  # or it is the beginning of another's number
                    line_end = lines.find(b"\n", after) + 1
                    yield lines[lines.rfind(b"\n", 0, at) + 1 : line_end]
                    after = line_end
                at = lines.find(wanted, after)


def parse(line: bytes) -> LoggedEvent | None:
    """One line with its end; None for anything that is not a whole event."""
    if not line.endswith(b"\n"):
        return None
    try:
        stored = orjson.loads(line)
        kind = stored.get("kind") or RATING_KIND
        request_id, received_us = stored.get("request_id"), stored.get("received_us")
        return LoggedEvent(
            event_id=str(stored["event_id"]),
            user_id=int(stored[USER_ID]),
            item_id=int(stored[ITEM_ID]),
            rating=float(stored[RATING]) if kind == RATING_KIND else None,
            timestamp=int(stored[TIMESTAMP]),
            received=int(stored["received"]),
            bundle_id=str(stored["bundle_id"]),
            kind=str(kind),
            request_id=None if request_id is None else str(request_id),
            received_us=None if received_us is None else int(received_us),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def end_of_last_line(path: Path, block: int = 1 << 16) -> int:
    """Bytes up to and with the last line end; 0 where there is none."""
    with path.open("rb") as handle:
        high = handle.seek(0, 2)
        while high > 0:
            low = max(0, high - block)
            handle.seek(low)
            found = handle.read(high - low).rfind(b"\n")
            if found >= 0:
                return low + found + 1
            high = low
    return 0
