"""Events: what users did after the data set was made, in one SQL table."""

from recsys.events.data_clock import DataClock
from recsys.events.engine import sqlite_url
from recsys.events.table import RATING_KIND, EventConflictError, EventTable, NewEvent, StoredEvent

__all__ = ["RATING_KIND", "DataClock", "EventConflictError", "EventTable", "NewEvent", "StoredEvent", "sqlite_url"]
