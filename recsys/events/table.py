"""The event table: one row an event, acknowledged once it is committed. SQLite by default, PostgreSQL by its URL.

`seq` grows with every event. SQLite commits in its order; in PostgreSQL a smaller number may be committed after a
larger one, so that `safe_seq` waits for the inserts under way. `after` needs no such care: it remembers nothing.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from recsys.errors import RecsysError, StoreError
from recsys.events.data_clock import DataClock
from recsys.events.engine import is_deadlock, open_engine

RATING_KIND: Final = "rating"
ROWS_AT_ONCE: Final = 50_000  # rows that `read` holds in memory
DEADLOCK_TRIES: Final = 5
SUBJECT: Final = ("user_id", "item_id", "kind", "value")  # what an event with the same id must agree in
LOCK_WAIT_S: Final = 20  # how long `safe_seq` waits for inserts under way

EVENTS: Final = sa.Table(
    "events",
    sa.MetaData(),
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("event_id", sa.String(256), nullable=False, unique=True),
    sa.Column("user_id", sa.BigInteger, nullable=False),
    sa.Column("item_id", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("value", sa.Float(53)),
    sa.Column("occurred_at", sa.BigInteger, nullable=False),
    sa.Column("received_at", sa.Float(53), nullable=False),
    sa.Column("request_id", sa.String(256)),
    sa.Index("events_by_user", "user_id", "seq"),
    sqlite_autoincrement=True,
)

# Built once: every request reads with it, and to build it takes as long as to run it.
_OF_USER_AFTER: Final = (
    sa.select(EVENTS)
    .where(EVENTS.c.user_id == sa.bindparam("user"), EVENTS.c.seq > sa.bindparam("after"))
    .order_by(EVENTS.c.seq)
)


@dataclass(frozen=True)
class NewEvent:
    """One thing that a user did.

    event_id      the caller's key: an event sent again under it is stored once
    kind          "rating"; "watch", seen without a rating; "impression", shown to the user
    value         stars of a rating; None for every other kind
    occurred_at, received_at   seconds UTC; the second is when the service heard of it
    request_id    of the answer that showed the item, where the caller knows it
    """

    event_id: str
    user_id: int
    item_id: int
    kind: str
    value: float | None
    occurred_at: int
    received_at: float
    request_id: str | None = None


@dataclass(frozen=True)
class StoredEvent(NewEvent):
    """`repeated`: `append` found the id there already."""

    seq: int = 0
    repeated: bool = False


class EventConflictError(RecsysError):
    """An event id that the table holds for another event."""


class EventTable:
    """Safe to share between threads, processes and, with PostgreSQL, machines. The table is made on first use.

    Every failure of the database is a StoreError.
    """

    def __init__(self, url: sa.URL | str) -> None:
        self.url = sa.make_url(url)
        self._engine: sa.Engine | None = None
        self._opening = threading.Lock()

    def append(self, events: Sequence[NewEvent]) -> list[StoredEvent]:
        """Commit some thousand events at most, all or none, and return them in the order given.

        An id that is there already is not stored again: the first event comes back, marked `repeated`. Raises
        EventConflictError where that one is about another user, item, kind or value.
        """
        if not events:
            return []
        with self._failing():
            for _ in range(DEADLOCK_TRIES - 1):
                try:
                    return self._append(events)
                except OperationalError as error:  # two batches hold the same new ids in different orders
                    if not is_deadlock(error):
                        raise
            return self._append(events)

    def _append(self, events: Sequence[NewEvent]) -> list[StoredEvent]:
        insert = sqlite.insert if self._opened().dialect.name == "sqlite" else postgresql.insert
        statement = insert(EVENTS).on_conflict_do_nothing(index_elements=["event_id"]).returning(EVENTS.c.event_id)
        chosen = EVENTS.c.event_id.in_({event.event_id for event in events})
        with self._opened().begin() as connection:
            new = set(connection.execute(statement, [asdict(event) for event in events]).scalars())
            stored = {event.event_id: event for event in _events(connection.execute(sa.select(EVENTS).where(chosen)))}
            out = []
            for event in events:
                first = stored[event.event_id]
                if any(getattr(first, name) != getattr(event, name) for name in SUBJECT):
                    raise EventConflictError(
                        f"Event id {event.event_id!r} was used for another event: user {first.user_id}, item "
                        f"{first.item_id}, {first.kind}. Send a new id with a new event."
                    )
                out.append(replace(first, repeated=event.event_id not in new))
                new.discard(event.event_id)  # the same id twice in one call: the second is a repeat
            return out

    def after(self, user_id: int, seq: int) -> list[StoredEvent]:
        """The events of one user with a larger `seq`, in its order."""
        with self._transaction() as connection:
            return list(_events(connection.execute(_OF_USER_AFTER, {"user": user_id, "after": seq})))

    def safe_seq(self) -> int:
        """A `seq` at or below which no event can appear any more; 0 for an empty table.

        In PostgreSQL it waits until the inserts under way have ended, and holds back new ones meanwhile.
        """
        with self._transaction() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.text(f"SET LOCAL lock_timeout = '{LOCK_WAIT_S}s'"))
                connection.execute(sa.text("LOCK TABLE events IN SHARE MODE"))
            return int(connection.execute(sa.select(sa.func.max(EVENTS.c.seq))).scalar() or 0)

    def read(self, after: int = 0, through: int | None = None) -> Iterator[StoredEvent]:
        """The events with after < seq <= through, in the order of `seq`, a part of the table in memory at a time."""
        while True:
            chosen = sa.select(EVENTS).where(EVENTS.c.seq > after).order_by(EVENTS.c.seq).limit(ROWS_AT_ONCE)
            if through is not None:
                chosen = chosen.where(EVENTS.c.seq <= through)
            with self._transaction() as connection:
                part = list(_events(connection.execute(chosen)))
            yield from part
            if len(part) < ROWS_AT_ONCE:
                return
            after = part[-1].seq

    def first_received_at(self) -> float | None:
        """When the first event of all was received, seconds UTC; None for an empty table."""
        with self._transaction() as connection:
            return connection.execute(sa.select(EVENTS.c.received_at).order_by(EVENTS.c.seq).limit(1)).scalar()

    def data_clock(self, last_recorded: int | None, now: float) -> DataClock:
        """The clock of a data set whose last event was `last_recorded`; `now` counts while the table is empty."""
        first = self.first_received_at()
        return DataClock.following(last_recorded, now if first is None else first)

    def close(self) -> None:
        """The next call opens it again."""
        with self._opening:
            if self._engine is not None:
                self._engine.dispose()
                self._engine = None

    def _opened(self) -> sa.Engine:
        with self._opening:
            if self._engine is None:
                self._engine = open_engine(self.url, EVENTS)
            return self._engine

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        with self._failing(), self._opened().begin() as connection:
            yield connection

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, OSError) as error:
            where = self.url.render_as_string(hide_password=True)
            cause = str(getattr(error, "orig", None) or error).splitlines()[0]
            raise StoreError(
                f"The event table at {where} failed: {cause}. Check that database, or RECSYS_EVENTS_URL."
            ) from error


def _events(rows: Any) -> Iterator[StoredEvent]:
    for row in rows.mappings():
        yield StoredEvent(**row)
