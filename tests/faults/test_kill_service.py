"""kill -9 in the middle of event writes, with two workers, on SQLite and on PostgreSQL. Kept: every acknowledged event,
once, in the table and in what every worker answers.

TESTS_KILLS says how many kills; `python -m tests.faults.kill_service --times 200` is the same with figures.
"""

import os
from pathlib import Path

import pytest
import sqlalchemy as sa

from recsys.events import EventTable, sqlite_url
from tests.stores.native import PostgresServer, postgres_server

from .kill_service import run

__all__ = ["postgres_server"]

KILLS = int(os.environ.get("TESTS_KILLS", "3"))


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_every_acknowledged_event_is_there_once(tmp_path: Path, database: str, request: pytest.FixtureRequest) -> None:
    url = sqlite_url(tmp_path / "events.db")
    if database == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres_server")
        url = sa.make_url(server.database())
    table = EventTable(url)
    figures = run(tmp_path / "home", table, KILLS)
    table.close()
    print(figures)
    assert figures.kills == KILLS
    assert figures.acknowledged > 10 * KILLS
    assert (figures.lost, figures.twice) == (0, 0)
    assert figures.stored == figures.acknowledged
