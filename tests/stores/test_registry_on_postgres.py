"""The registry with MLflow's tables in PostgreSQL: two machines over one database, and no password in an error."""

from pathlib import Path

import pytest

from recsys.errors import RegistryError
from recsys.registry import Registry
from tests.registry.conftest import NAME, Make, make

from .native import PostgresServer, close_registry

__all__ = ["make"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "a home" / "mlflow"


def test_two_machines_over_one_database_register_promote_and_roll_back(
    postgres_server: PostgresServer, home: Path, make: Make, tmp_path: Path
) -> None:
    database = postgres_server.database()
    here, there = Registry(database, home, NAME), Registry(database, tmp_path / "elsewhere", NAME)
    for version, bundle in enumerate(("b1", "b2"), 1):
        here.register(make(bundle))
        assert there.resolve("challenger") == here.resolve("challenger")
        there.promote(version)
        assert here.resolve("champion").version == version
    assert there.download("champion", tmp_path / "copies").name == "b2"
    assert there.rollback().version == here.resolve("champion").version == 1
    for registry in (here, there):
        close_registry(registry._backend)


def test_an_unreachable_database_is_an_error_that_keeps_the_password(tmp_path: Path) -> None:
    registry = Registry("postgresql+psycopg://somebody:hidden%20word@127.0.0.1:9/nothing", tmp_path, NAME)
    with pytest.raises(RegistryError, match="Could not") as raised:
        registry.resolve("champion")
    assert "hidden" not in str(raised.value)
    assert "postgresql+psycopg://***@127.0.0.1:9/nothing" in str(raised.value)
