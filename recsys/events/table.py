"""The event table: one row an event, and an event is acknowledged once its row is committed.

Both tracks use it. The service appends to it and reads a user's latest events; the offline track reads all of it up to
a sequence number. SQLite by default, PostgreSQL by its URL, through SQLAlchemy Core.

`seq` grows with every event. In SQLite one writer commits at a time, so a reader that has seen `seq` n has seen every
smaller one. In PostgreSQL a smaller number may be committed after a larger one: `safe_seq` waits for the inserts under
way, so that nothing at or below its answer can appear later. A user's newest events are read by `after`, which needs no
such care: it never remembers how far it came.

What an event means for a user's state is not decided here (`recsys.features.state`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from recsys.errors import RecsysError, StoreError

RATING_KIND: Final = "rating"
BUSY_S: Final = 5.0  # how long SQLite waits for another writer, and PostgreSQL for a connection
ROWS_AT_ONCE: Final = 50_000  # rows that `read` holds in memory

_metadata = sa.MetaData()
EVENTS: Final = sa.Table(
    "events",
    _metadata,
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


@dataclass(frozen=True)
class NewEvent:
    """One thing that a user did.

    event_id      the caller's key, unique: an event sent again under it is stored once
    kind          "rating"; "watch", seen without a rating; "impression", shown to the user
    value         stars of a rating; None for every other kind
    occurred_at   when it happened, seconds UTC
    received_at   when the service heard of it, seconds UTC with fractions
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
    """An event with its place in the table. `repeated`: `append` found its id there already."""

    seq: int = 0
    repeated: bool = False


class EventConflictError(RecsysError):
    """An event id that the table holds for another event."""


class EventTable:
    """Safe to share between threads; any number of processes and, with PostgreSQL, machines use one table.

    Every failure of the database is a StoreError. The table is made on first use.
    """

    def __init__(self, url: sa.URL) -> None:
        """`url` as `sqlite_url` or `sqlalchemy.make_url` gives it. Nothing is opened yet."""
        self.url = url
        self._engine: sa.Engine | None = None

    def append(self, events: Sequence[NewEvent]) -> list[StoredEvent]:
        """Commit events, all or none, and return them in the order given.

        An id that is there already is not stored again: the first event comes back, marked `repeated`. Raises
        EventConflictError where that one is about another user, item, kind or value, and StoreError where the database
        fails; then none is stored.
        """
        if not events:
            return []
        with self._transaction() as connection:
            insert = sqlite.insert if self.url.get_backend_name() == "sqlite" else postgresql.insert
            statement = insert(EVENTS).on_conflict_do_nothing(index_elements=["event_id"])
            new: set[str] = set()
            for event in events:
                row = {column: getattr(event, column) for column in NewEvent.__dataclass_fields__}
                if connection.execute(statement, row).rowcount:
                    new.add(event.event_id)
            chosen = EVENTS.c.event_id.in_({event.event_id for event in events})
            stored = {event.event_id: event for event in _events(connection.execute(sa.select(EVENTS).where(chosen)))}
            out = []
            for event in events:
                found = stored[event.event_id]
                if _subject(found) != _subject(event):
                    raise EventConflictError(
                        f"Event id {event.event_id!r} was used for another event: user {found.user_id}, item "
                        f"{found.item_id}, {found.kind}. Send a new id with a new event."
                    )
                out.append(found if event.event_id in new else _repeated(found))
                new.discard(event.event_id)  # the same id twice in one call: the second is a repeat
            return out

    def after(self, user_id: int, seq: int) -> list[StoredEvent]:
        """The events of one user with a larger `seq`, in its order; one search in the index."""
        chosen = (EVENTS.c.user_id == user_id) & (EVENTS.c.seq > seq)
        with self._transaction() as connection:
            return list(_events(connection.execute(sa.select(EVENTS).where(chosen).order_by(EVENTS.c.seq))))

    def safe_seq(self) -> int:
        """A `seq` at or below which no event can appear any more; 0 for an empty table.

        In PostgreSQL it waits until the inserts under way have ended, and holds back new ones meanwhile (milliseconds).
        """
        with self._transaction() as connection:
            if self.url.get_backend_name() == "postgresql":
                connection.execute(sa.text("LOCK TABLE events IN SHARE MODE"))
            return int(connection.execute(sa.select(sa.func.max(EVENTS.c.seq))).scalar() or 0)

    def count(self, after: int = 0, through: int | None = None) -> int:
        """How many events there are with after < seq <= through."""
        with self._transaction() as connection:
            chosen = _between(after, through)
            return int(connection.execute(sa.select(sa.func.count()).select_from(EVENTS).where(chosen)).scalar() or 0)

    def read(self, after: int = 0, through: int | None = None) -> Iterator[StoredEvent]:
        """The events with after < seq <= through, in the order of `seq`, a part of the table in memory at a time."""
        while True:
            chosen = sa.select(EVENTS).where(_between(after, through)).order_by(EVENTS.c.seq).limit(ROWS_AT_ONCE)
            with self._transaction() as connection:
                part = list(_events(connection.execute(chosen)))
            yield from part
            if len(part) < ROWS_AT_ONCE:
                return
            after = part[-1].seq

    def close(self) -> None:
        """Close connections; the next call opens them again."""
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    def _transaction(self) -> "_Transaction":
        return _Transaction(self)

    def _opened(self) -> sa.Engine:
        if self._engine is None:
            engine = _engine(self.url)
            _metadata.create_all(engine)
            self._engine = engine
        return self._engine


class _Transaction:
    """A transaction whose failures are StoreErrors."""

    def __init__(self, table: EventTable) -> None:
        self._table = table
        self._began: Any = None

    def __enter__(self) -> sa.Connection:
        try:
            self._began = self._table._opened().begin()
            connection: sa.Connection = self._began.__enter__()
            return connection
        except SQLAlchemyError as error:
            raise _store_error(self._table.url, error) from error

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self._began.__exit__(kind, error, trace)
        except SQLAlchemyError as failure:
            raise _store_error(self._table.url, failure) from failure
        if isinstance(error, SQLAlchemyError):
            raise _store_error(self._table.url, error) from error


def sqlite_url(path: Path) -> sa.URL:
    """The URL of a file, whatever characters its path holds."""
    return sa.URL.create("sqlite", database=str(path))


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url, pool_pre_ping=True, pool_timeout=BUSY_S, connect_args={"connect_timeout": 3})
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_S})

    @sa.event.listens_for(engine, "connect")
    def _set_up(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")  # readers wait for no writer
        connection.execute("PRAGMA synchronous=FULL")  # committed is on disk

    return engine


def _store_error(url: sa.URL, error: SQLAlchemyError) -> StoreError:
    where = url.render_as_string(hide_password=True)
    cause = str(getattr(error, "orig", None) or error).splitlines()[0]
    return StoreError(f"The event table at {where} failed: {cause}. Check the database, or RECSYS_EVENTS_URL.")


def _between(after: int, through: int | None) -> sa.ColumnElement[bool]:
    chosen = EVENTS.c.seq > after
    return chosen if through is None else chosen & (EVENTS.c.seq <= through)


def _events(rows: Any) -> Iterator[StoredEvent]:
    for row in rows.mappings():
        yield StoredEvent(**row)


def _subject(event: NewEvent) -> tuple[int, int, str, float | None]:
    return event.user_id, event.item_id, event.kind, event.value


def _repeated(event: StoredEvent) -> StoredEvent:
    return StoredEvent(**{**event.__dict__, "repeated": True})
