"""The event table on both databases."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from recsys.events import EventTable, sqlite_url
from tests.stores.native import postgres_server

__all__ = ["postgres_server"]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> sa.URL:
    """Of a database that is still empty."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "home" / "events.db")
    return sa.make_url(request.getfixturevalue("postgres_server").database())


@pytest.fixture
def table(url: sa.URL) -> Iterator[EventTable]:
    opened = EventTable(url)
    yield opened
    opened.close()
