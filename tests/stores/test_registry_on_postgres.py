"""The registry's own tests once more, with MLflow's tables in PostgreSQL; and what only a server can do wrong."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from recsys.errors import RegistryError
from recsys.registry import Registry
from recsys.registry.backend import Backend
from tests.registry.conftest import NAME, Make, make
from tests.registry.test_versions import (
    test_a_failure_while_registering_leaves_a_failed_run_and_no_version,
    test_judge_records_the_gate_and_promotes_nothing,
    test_promote_takes_the_challenger_alias_and_repeats_without_effect,
    test_rollback_goes_one_champion_back_each_time_and_then_refuses,
    test_rollback_skips_deleted_versions_and_what_a_crash_left,
    test_rollback_without_a_champion,
    test_unknown_versions_and_aliases_name_what_there_is,
    test_versions_are_newest_first_without_what_others_registered,
)

from .native import PostgresServer, close_registry

__all__ = [
    "make",
    "test_a_failure_while_registering_leaves_a_failed_run_and_no_version",
    "test_judge_records_the_gate_and_promotes_nothing",
    "test_promote_takes_the_challenger_alias_and_repeats_without_effect",
    "test_rollback_goes_one_champion_back_each_time_and_then_refuses",
    "test_rollback_skips_deleted_versions_and_what_a_crash_left",
    "test_rollback_without_a_champion",
    "test_unknown_versions_and_aliases_name_what_there_is",
    "test_versions_are_newest_first_without_what_others_registered",
]


@pytest.fixture(scope="module")
def mlflow_tables(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database with MLflow's empty tables, which take seconds to make; copied for every test."""
    address = postgres_server.database()
    backend = Backend(address, tmp_path_factory.mktemp("tables"))
    with backend.speaking("open"):
        assert backend.client is not None
    close_registry(backend)
    return address


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "a home" / "mlflow"


@pytest.fixture
def registry(home: Path, mlflow_tables: str, postgres_server: PostgresServer) -> Iterator[Registry]:
    registry = Registry(postgres_server.database(like=mlflow_tables), home, NAME)
    yield registry
    close_registry(registry._backend)


def test_two_registries_over_one_database_are_one(registry: Registry, make: Make, tmp_path: Path) -> None:
    """Two machines: each with a home of its own, and one database between them."""
    registry.register(make("b1"))
    other = Registry(registry._backend.uri, tmp_path / "elsewhere", NAME)
    assert other.resolve("challenger") == registry.resolve("challenger")
    other.promote(1)
    assert registry.resolve("champion").version == 1
    assert registry.download("champion", tmp_path / "copies").name == "b1"
    close_registry(other._backend)


def test_an_unreachable_database_is_an_error_that_keeps_the_password(tmp_path: Path) -> None:
    registry = Registry("postgresql+psycopg://somebody:hidden%20word@127.0.0.1:9/nothing", tmp_path, NAME)
    with pytest.raises(RegistryError, match="Could not") as raised:
        registry.resolve("champion")
    assert "hidden" not in str(raised.value)
    assert "postgresql+psycopg://***@127.0.0.1:9/nothing" in str(raised.value)
