"""The service's event log as one table, for joins over many events.

Stage: monitoring. In: the folder `home.events`. Out: a data frame, a row an event, in the order of reception. Absent:
the fold of events into a state, and the writer.

A line may name its kind and the answer that it came from; lines that do not are ratings.
"""

import logging
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
import pandas as pd

from recsys.columns import ITEM_ID, RATING, TIMESTAMP, USER_ID
from recsys.event_log import PATTERN

RATED: Final = "rating"
WATCHED: Final = "watch"
SEEN: Final = "impression"
KIND, REQUEST_ID, RECEIVED_US = "kind", "request_id", "received_us"
log = logging.getLogger(__name__)


def logged_events(folder: Path) -> pd.DataFrame:
    """user_id, item_id, rating (NaN where the event is none), timestamp (seconds UTC), received_us (when the service
    heard of it, microseconds UTC), kind, request_id ("" where unknown). Lines that are no whole event were never
    acknowledged: they are left out, and counted in the program's log.

    `received_us` has the resolution of the log; where that is a second, it is the start of that second.
    """
    rows: list[tuple[Any, ...]] = []
    skipped = 0
    for path in sorted(folder.glob(PATTERN)):
        with path.open("rb") as handle:
            for line in handle:
                row = _row(line)
                if row is not None:
                    rows.append(row)
                skipped += row is None and bool(line.strip())
    if skipped:
        log.warning("%s: %d line(s) skipped that are no whole event", folder, skipped)
    columns = (USER_ID, ITEM_ID, RATING, TIMESTAMP, RECEIVED_US, KIND, REQUEST_ID)
    types = {USER_ID: np.int64, ITEM_ID: np.int64, RATING: np.float32, TIMESTAMP: np.int64, RECEIVED_US: np.int64}
    frame = pd.DataFrame(rows, columns=list(columns)).astype(types)
    return frame.sort_values(RECEIVED_US, kind="stable", ignore_index=True)


def ratings_of(events: pd.DataFrame) -> pd.DataFrame:
    """The events that move a user's state."""
    return events[events[KIND] == RATED]


def _row(line: bytes) -> tuple[Any, ...] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        stored = orjson.loads(line)
        rating = stored.get(RATING)
        return (
            int(stored[USER_ID]),
            int(stored[ITEM_ID]),
            np.nan if rating is None else float(rating),
            int(stored[TIMESTAMP]),
            int(stored.get(RECEIVED_US, int(stored["received"]) * 1_000_000)),
            str(stored.get(KIND) or RATED),
            str(stored.get(REQUEST_ID) or ""),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
