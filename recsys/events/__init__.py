"""Events: what users did after the data set was made, in one SQL table."""

from recsys.events.table import EventConflictError, EventTable, NewEvent, StoredEvent

__all__ = ["EventConflictError", "EventTable", "NewEvent", "StoredEvent"]
