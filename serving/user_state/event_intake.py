"""Events as callers send them, checked and brought into the event table. Committed is acknowledged."""

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import anyio.to_thread

from recsys.errors import StoreError
from recsys.events.table import EventConflictError, EventTable, NewEvent, StoredEvent
from recsys.features.catalogue import Catalogue
from recsys.limits import latest_time
from serving.http.problems import ProblemError
from serving.http.requests import EventBatch, EventRequest, UserEvent
from serving.observability.metrics import Metrics

WRITERS = 4  # at once; SQLite lets one of them at a time
log = logging.getLogger(__name__)


class EventIntake:
    def __init__(self, events: EventTable, metrics: Metrics, clock: Callable[[], float] = time.time) -> None:
        self._events, self._metrics, self._clock = events, metrics, clock
        self._writers = anyio.CapacityLimiter(WRITERS)

    async def record(
        self, catalogues: Sequence[Catalogue], request_id: str, body: EventRequest, key: str | None
    ) -> dict[str, Any]:
        """Commit one event, or several all or none. `key`: of the request, for events without an id of their own.

        Raises ProblemError, with nothing stored: 422 for an item that no catalogue holds, a moment in the
        future or an event id that stands for another event; 503 where the table cannot be written.
        """
        many = isinstance(body.root, EventBatch)
        keys = [f"{key}/{place}" if many and key else key for place in range(len(body.events))]
        new = [self._new(catalogues, event, key) for event, key in zip(body.events, keys, strict=True)]
        try:
            stored = await anyio.to_thread.run_sync(self._events.append, new, limiter=self._writers)
        except EventConflictError as error:
            text = f"{str(error).partition(':')[0]}. Send a new id with a new event."  # not whose event it was
            raise ProblemError(422, "event-id-reused", text) from error
        except StoreError as error:
            log.error("%s: %d event(s) not stored: %s", request_id, len(new), error)
            self._metrics.count("events.refused", len(new))
            text = "What was sent is not stored; send it again."
            raise ProblemError(503, "event-not-stored", text) from error
        recorded = [self._recorded(event) for event in stored]
        return {"request_id": request_id, **({"events": recorded} if many else recorded[0])}

    def _new(self, catalogues: Sequence[Catalogue], event: UserEvent, key: str | None) -> NewEvent:
        now = self._clock()
        # The newer version of a trial may show what the champion does not know.
        holding = (c for c in catalogues if int(c.to_idx(event.item_id)) >= 0)
        check_item(next(holding, catalogues[0]), event.item_id)
        return NewEvent(
            event_id=event.event_id or key or uuid.uuid4().hex,
            user_id=event.user_id,
            item_id=event.item_id,
            kind=event.kind,
            value=event.rating,
            occurred_at=int(now) if event.timestamp is None else check_past(event.timestamp, int(now)),
            received_at=now,
            request_id=event.request_id,
        )

    def _recorded(self, event: StoredEvent) -> dict[str, Any]:
        self._metrics.count("events.repeated" if event.repeated else "events.stored")
        return {
            "event_id": event.event_id,
            "user_id": event.user_id,
            "item_id": event.item_id,
            "kind": event.kind,
            "timestamp": event.occurred_at,
            "repeated": event.repeated,
        }


def check_item(catalogue: Catalogue, item_id: int, status: int = 422) -> int:
    """Row number of an item. Raises ProblemError where the catalogue does not hold it."""
    item_idx = int(catalogue.to_idx(item_id))
    if item_idx < 0:
        raise ProblemError(status, "unknown-item", f"Item {item_id} is not in the catalogue.", item_id=item_id)
    return item_idx


def check_past(timestamp: int, now: int) -> int:
    """Raises ProblemError for a moment in the future."""
    if timestamp > latest_time(now):
        raise ProblemError(422, "future-event", f"timestamp {timestamp} lies in the future; it is {now} here.")
    return timestamp
