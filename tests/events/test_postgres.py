"""What only PostgreSQL can do to the event table: commit out of order, wait, and go away."""

import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace

import pytest
import sqlalchemy as sa

from recsys.errors import StoreError
from recsys.events import EventTable
from recsys.events.table import EVENTS
from tests.stores.native import PostgresServer

from .test_table import event


@pytest.fixture
def url(postgres_server: PostgresServer) -> sa.URL:
    return sa.make_url(postgres_server.database())


@pytest.fixture
def late(url: sa.URL, table: EventTable) -> Iterator[sa.Connection]:
    """A writer that has inserted an event and not committed it."""
    table.append([event(1)])
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        connection.execute(sa.insert(EVENTS).values(asdict(replace(event(7), event_id="late"))))
        yield connection
    engine.dispose()


def test_a_safe_seq_waits_for_a_writer_that_commits_late(table: EventTable, late: sa.Connection) -> None:
    (newer,) = table.append([event(2)])  # is committed, although a smaller seq is not
    answers: list[int] = []
    asking = threading.Thread(target=lambda: answers.append(table.safe_seq()))
    asking.start()
    time.sleep(0.3)
    assert not answers
    late.commit()
    asking.join(timeout=10)
    assert answers == [newer.seq]
    assert [e.event_id for e in table.read(through=newer.seq)] == ["event-1", "late", "event-2"]


def test_between_base_and_tail_no_event_is_lost(table: EventTable, late: sa.Connection) -> None:
    late.rollback()
    through = table.safe_seq()
    (after,) = table.append([event(3)])
    assert after.seq > through
    assert [e.event_id for e in [*table.read(through=through), *table.after(1, through)]] == ["event-1", "event-3"]


def test_a_writer_that_never_ends_is_an_error(
    table: EventTable, late: sa.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recsys.events.table.LOCK_WAIT_S", 0.2)
    with pytest.raises(StoreError, match=r"failed: canceling statement due to lock timeout"):
        table.safe_seq()
    late.rollback()
    assert table.safe_seq() > 0


def test_an_address_without_a_server_is_an_error_without_its_password() -> None:
    table = EventTable(sa.make_url("postgresql+psycopg://somebody:secret@127.0.0.1:1/events"))
    with pytest.raises(StoreError, match=r"somebody:\*\*\*@127.0.0.1:1/events failed: .*RECSYS_EVENTS_URL"):
        table.safe_seq()
