"""Where a registry lies: downloads, homes that move or cannot be written, servers and files that are none."""

import contextlib
import errno
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from recsys.atomic_io import replacing_folder
from recsys.errors import RegistryError
from recsys.registry import Registry, model_name_for
from recsys.registry.records import fingerprint_folder

from .conftest import NAME, Make


def test_data_sets_never_mix(registry: Registry, make: Make, home: Path) -> None:
    registry.register(make("b1"))
    assert Registry(None, home, model_name_for("ml-1m")).versions() == []


def test_download_equals_what_was_registered_and_is_reused(
    registry: Registry, make: Make, home: Path, tmp_path: Path
) -> None:
    registry.register(bundle := make("b1"))
    place = registry.download("challenger", tmp_path / "to")
    assert place == tmp_path / "to" / "b1"
    assert fingerprint_folder(place) == fingerprint_folder(bundle) == registry.resolve(1).bundle_sha256
    before = place.stat().st_ino
    assert registry.download(1, tmp_path / "to") == place
    assert place.stat().st_ino == before
    (place / "index" / "vectors.bin").write_bytes(b"altered")
    assert fingerprint_folder(registry.download(1, tmp_path / "to")) == fingerprint_folder(bundle)
    assert [p.name for p in (tmp_path / "to").iterdir()] == ["b1"]
    reader = Registry(f"sqlite:///{home}/mlflow.db", tmp_path / "reader", NAME)  # through MLflow
    assert fingerprint_folder(reader.download(1, tmp_path / "copies")) == fingerprint_folder(bundle)


def test_download_errors(registry: Registry, make: Make, home: Path, tmp_path: Path) -> None:
    info = registry.register(make("b1"))
    stored = home / "artifacts" / NAME / info.run_id / "artifacts" / "bundle"
    (stored / "index" / "vectors.bin").write_bytes(b"altered")
    with pytest.raises(RegistryError, match="was altered or is incomplete"):
        registry.download(1, tmp_path / "to")
    shutil.rmtree(stored)
    with pytest.raises(RegistryError, match="Could not fetch version 1 in the registry at"):
        registry.download(1, tmp_path / "to")
    assert list((tmp_path / "to").iterdir()) == []
    registry._backend.client.set_model_version_tag(NAME, "1", "recsys.bundle_id", "../../evil")
    with pytest.raises(RegistryError, match=r"names its bundle '\.\./\.\./evil': refused"):
        registry.download(1, tmp_path / "to")


def test_two_that_download_at_once_put_one_copy_there(
    registry: Registry, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has a copy is reading it by now: it is not replaced under them."""
    registry.register(make("b1"))
    copies: list[Path] = []
    second = threading.Barrier(2)

    def slowly(place: Path) -> contextlib.AbstractContextManager[Path]:
        copies.append(place)
        with contextlib.suppress(threading.BrokenBarrierError):
            second.wait(timeout=0.5)
        return replacing_folder(place)

    monkeypatch.setattr("recsys.registry.store.replacing_folder", slowly)
    with ThreadPoolExecutor(2) as two:
        places = set(two.map(lambda _: registry.download(1, tmp_path / "to"), range(2)))
    assert places == {tmp_path / "to" / "b1"}
    assert len(copies) == 1


@pytest.mark.parametrize("name", ["moved", "why?x", "a%41b"])
def test_a_home_that_was_moved_to_any_name_still_serves_and_registers(
    name: str, registry: Registry, make: Make, home: Path, tmp_path: Path
) -> None:
    first = make("b1")
    registry.register(first)
    moved = tmp_path / name
    home.rename(moved)
    before = {p.name for p in tmp_path.iterdir()}
    after = Registry(None, moved, NAME)
    assert fingerprint_folder(after.download(1, moved / "to")) == fingerprint_folder(first)
    info = after.register(make("b2"))
    assert (moved / "artifacts" / NAME / info.run_id / "artifacts" / "bundle" / "bundle.json").exists()
    assert {p.name for p in tmp_path.iterdir()} == before
    assert not home.exists()


def test_a_read_only_registry_is_read_and_not_written(
    registry: Registry, make: Make, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.register(make("b1"))
    registry.promote(1)

    def refused(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == ".lock":
            raise OSError(errno.EROFS, "Read-only file system", str(self))
        return opened(self, *arguments, **options)

    opened = Path.open
    monkeypatch.setattr(Path, "open", refused)
    reader = Registry(None, home, NAME)
    assert [v.aliases for v in reader.versions()] == [("champion",)]
    assert reader.download("champion", tmp_path / "to").name == "b1"


def test_an_unreachable_server_is_an_error_within_seconds(tmp_path: Path, make: Make) -> None:
    registry = Registry("http://user:secret@127.0.0.1:9", tmp_path / "unused", NAME)
    bundle = make("b1")
    started = time.monotonic()
    for call in (registry.versions, lambda: registry.register(bundle)):
        with pytest.raises(RegistryError, match=r"in the registry at http://\*\*\*@127\.0\.0\.1:9: ") as caught:
            call()
        assert "Check that the server runs" in str(caught.value)
        assert "secret" not in str(caught.value)
    assert time.monotonic() - started < 60  # not the minutes that MLflow would take
    assert not (tmp_path / "unused").exists()


def test_a_file_that_is_no_database_is_an_error_within_seconds(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"not a database, but long enough to look like one" * 50)
    started = time.monotonic()
    with pytest.raises(RegistryError, match=r"Could not list the versions in .*Check that .* can be written"):
        Registry(None, tmp_path, NAME).versions()
    assert time.monotonic() - started < 10


def test_the_error_of_a_model_that_cannot_be_read_is_not_taken_for_an_empty_registry(
    registry: Registry, make: Make, home: Path
) -> None:
    registry.register(make("b1"))
    with contextlib.closing(sqlite3.connect(home / "mlflow.db")) as connection:
        connection.execute("DROP TABLE registered_model_aliases")
    with pytest.raises(RegistryError, match="Could not list the versions"):
        registry.versions()


def test_opening_is_silent_and_without_telemetry(tmp_path: Path) -> None:
    """In a fresh process: importing the registry imports no MLflow; using it prints nothing and calls nobody."""
    code = f"""
import os, sys
from pathlib import Path
from recsys.registry import Registry
registry = Registry(None, Path({str(tmp_path)!r}), "recsys-demo")
assert "mlflow" not in sys.modules
with registry._backend.writing("open") as client:
    pass
from mlflow.telemetry import get_telemetry_client
assert get_telemetry_client() is None
assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "99", "what a person sets is kept"
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "PYTEST_CURRENT_TEST") and "MLFLOW" not in k}
    environment |= {"MLFLOW_DISABLE_TELEMETRY": "false", "MLFLOW_HTTP_REQUEST_TIMEOUT": "99"}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
