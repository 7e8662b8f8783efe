"""The short way to an alias says what MLflow says, or leaves the answer to MLflow."""

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from recsys.errors import RegistryError
from recsys.registry import Registry, alias
from recsys.registry.alias import quick_look

from .conftest import NAME, write_bundle


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with two versions; the first is the champion."""
    folder = tmp_path_factory.mktemp("registry") / "a home"
    registry = Registry(None, folder, NAME)
    for bundle_id in ("one", "two"):
        registry.register(write_bundle(tmp_path_factory.mktemp("built"), bundle_id))
    registry.promote(1)
    return folder


@pytest.fixture
def home(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "a home"))


@pytest.fixture
def registry(home: Path) -> Registry:
    return Registry(None, home, NAME)


def test_it_says_what_mlflow_says(registry: Registry, home: Path) -> None:
    database = home / "mlflow.db"
    for name in ("champion", "challenger"):
        assert quick_look(database, NAME, name) == registry.resolve(name) == registry.look_up(name)
    registry.promote(2)
    assert quick_look(database, NAME, "champion") == registry.resolve("champion")
    assert quick_look(database, NAME, "champion").aliases == ("champion",)  # type: ignore[union-attr]
    assert quick_look(database, NAME, "challenger") is None
    assert quick_look(database, "recsys-other", "champion") is None
    with pytest.raises(RegistryError, match="no version called 'challenger'"):
        registry.look_up("challenger")


def test_what_it_found_can_be_fetched_without_asking_again(registry: Registry, tmp_path: Path) -> None:
    found = registry.look_up("champion")
    assert registry.download(found, tmp_path / "here") == registry.download("champion", tmp_path / "here")


@pytest.mark.parametrize(
    "break_it",
    [
        "UPDATE alembic_version SET version_num = 'of the future'",
        "DELETE FROM alembic_version",
        "DROP TABLE model_version_tags",
        "DELETE FROM model_versions",
        "UPDATE model_version_tags SET value = 'no json' WHERE key = 'recsys.synthetic'",
        "DELETE FROM model_version_tags WHERE key = 'recsys.dataset'",
        "DELETE FROM model_version_tags",
    ],
)
def test_what_it_does_not_know_is_left_to_mlflow(home: Path, break_it: str) -> None:
    database = home / "mlflow.db"
    assert quick_look(database, NAME, "champion") is not None
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute(break_it)
    connection.close()
    assert quick_look(database, NAME, "champion") is None


def test_no_database_and_no_database_file(tmp_path: Path) -> None:
    assert quick_look(tmp_path / "none.db", NAME, "champion") is None
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "text.db").write_text("not a database, but long enough to be read as one" * 40)
    assert quick_look(tmp_path / "text.db", NAME, "champion") is None


def test_the_installed_mlflow_is_known(home: Path) -> None:
    """After an upgrade of MLflow: look at its tables, then add its revision to KNOWN_REVISIONS."""
    connection = sqlite3.connect(home / "mlflow.db")
    assert {row[0] for row in connection.execute("SELECT version_num FROM alembic_version")} <= alias.KNOWN_REVISIONS
    connection.close()


def test_looking_up_imports_no_mlflow(home: Path) -> None:
    code = f"""
import sys, json
from pathlib import Path
from recsys.registry import Registry
found = Registry(None, Path({str(home)!r}), {NAME!r}).look_up("champion")
print(json.dumps([found.version, found.bundle_id, "mlflow" in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [1, "one", False]
