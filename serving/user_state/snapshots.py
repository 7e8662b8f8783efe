"""What is known of a user at the moment of a request: the row of the online store, and the events since.

Rows change only when the pipeline makes features anew, and each says up to which event of the table it knows
(`through_seq`). An older row with its longer tail of events gives the same state, so rows are kept in memory and read
again only now and then, to keep the tails short. There is nothing to invalidate and nothing to catch up with: every
worker of every machine sees an event from the moment that its row of the table is committed.
"""

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from recsys.errors import StoreError
from recsys.events.data_clock import DataClock
from recsys.events.table import RATING_KIND, EventTable, StoredEvent
from recsys.feature_store import FeatureStore
from recsys.features.state import Event, UserState, fold
from recsys.limits import EARLIEST_TIME, HIGHEST_RATING, LOWEST_RATING, latest_time
from serving.user_state.circuit_breaker import CircuitBreaker

ROWS = 20_000  # users whose row stays in memory, about 2 kB each
ROW_AGE_S = 300.0
STORE_THREADS = 4
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UserSnapshot:
    """known: a row or an event of this user exists; failures: why the state may lack something, empty when it is
    whole."""

    state: UserState
    known: bool
    failures: tuple[StoreError, ...] = ()


class UserSnapshots:
    """Used on the event loop alone; reads that may have to wait go to threads of their own."""

    def __init__(
        self,
        store: FeatureStore,
        events: EventTable,
        count: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        data_clock: Callable[[], DataClock] = DataClock,
    ) -> None:
        self._store, self._events, self._clock, self._data_clock = store, events, clock, data_clock
        self._threads = ThreadPoolExecutor(STORE_THREADS, "store-read")
        # A search in SQLite's index takes less than handing it to a thread and back, and waits for no writer.
        embedded = events.url.get_backend_name() == "sqlite"
        self._online_store = CircuitBreaker("online store", self._threads, count)
        self._event_table = CircuitBreaker("event table", None if embedded else self._threads, count)
        self._rows: OrderedDict[int, tuple[UserState | None, float]] = OrderedDict()  # and when it was read

    async def read(self, user_id: int, limit_s: float) -> UserSnapshot:
        """Never raises: what cannot be read within `limit_s` is named in `failures`. A SQLite event table is read
        without a limit. A row in memory stands in for an online store that is away, without any loss."""
        until = self._clock() + limit_s
        failures: list[StoreError] = []
        row, read_at = self._rows.get(user_id, (None, -math.inf))
        if self._clock() - read_at > ROW_AGE_S:
            try:
                row = await self._online_store.read(partial(self._store.online_state, user_id), limit_s)
                self._keep(user_id, row)
            except StoreError as error:
                if user_id in self._rows:  # perhaps read for another request meanwhile
                    row, _ = self._rows[user_id]
                else:
                    failures.append(error)
        base = row or UserState(user_id)
        tail: Sequence[StoredEvent] = ()
        try:
            after = partial(self._events.after, user_id, base.through_seq)
            tail = await self._event_table.read(after, max(until - self._clock(), 0.0))
        except StoreError as error:
            failures.append(error)
        ratings = usable_ratings(tail, self._data_clock())
        state = fold(base, ratings) if ratings else base
        if tail:
            state = replace(state, through_seq=tail[-1].seq)
        return UserSnapshot(state, row is not None or bool(ratings), tuple(failures))

    async def failing(self, limit_s: float) -> list[str]:
        """Names of the stores that cannot be read now; also the first read of each, which is a slow one."""
        failing = []
        for store, work in (
            (self._online_store, partial(self._store.online_state, 0)),
            (self._event_table, partial(self._events.after, 0, 0)),
        ):
            try:
                await store.read(work, limit_s)
            except StoreError as error:
                log.warning("the %s cannot be read: %s", store.name, error)
                failing.append(store.name)
        return failing

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _keep(self, user_id: int, row: UserState | None) -> None:
        self._rows[user_id] = row, self._clock()
        self._rows.move_to_end(user_id)
        if len(self._rows) > ROWS:
            self._rows.popitem(last=False)


def usable_ratings(events: Sequence[StoredEvent], clock: DataClock) -> list[Event]:
    """The ratings among events of the table, for a state. The table may hold what no version of this service has
    written: what cannot be is left out, with a line in the log that names it."""
    latest, ratings = latest_time(time.time()), []
    for event in events:
        if event.kind != RATING_KIND:
            continue
        if event.value is None or not LOWEST_RATING <= event.value <= HIGHEST_RATING:
            log.warning("event %r is left out: its rating is %r", event.event_id, event.value)
        elif not EARLIEST_TIME <= event.occurred_at <= latest:
            log.warning("event %r is left out: it happened at %r", event.event_id, event.occurred_at)
        else:
            ratings.append(Event(event.item_id, event.value, clock.to_data(event.occurred_at)))
    return ratings
