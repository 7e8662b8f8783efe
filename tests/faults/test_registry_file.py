"""The file of Feast's registry is damaged, or gone.

Kept: a running service goes on, since it read the registry once. One that starts says what to do, and after doing that
every event of the log is in the states.
"""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from recsys.errors import StoreError
from recsys.feature_store import FeatureStore
from recsys.feature_store.registry_file import set_aside_if_damaged
from serving.observability.metrics import Metrics
from serving.service import Service
from tests.serving.serving_client import connected
from tests.serving.serving_world import ServingWorld


def _garbage(path: Path) -> None:
    path.write_bytes(b"\x13\x37" * 5_000)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [_garbage, _cut, _empty, _gone])
def test_a_damaged_registry(
    world: ServingWorld, tmp_path: Path, closing: list[Service], damage: Callable[[Path], None]
) -> None:
    registry = world.settings.feature_store.registry_file
    assert registry is not None
    kept = shutil.copy(registry, tmp_path / "registry.db")
    user = 31 + [_garbage, _cut, _empty, _gone].index(damage)
    service = Service.load(world.settings, Metrics())
    closing.append(service)
    try:
        with connected(world.settings, service) as client:
            damage(registry)
            answer = client.get(f"/v1/users/{user}/recommendations").json()
            assert answer["degraded"] == []
            body = {"user_id": user, "item_id": answer["items"][0]["item_id"], "rating": 4.0}
            assert client.post("/v1/events", json=body).json()["applied"] is True
            assert client.get(f"/v1/users/{user}/history").json()["n_events"] == 16
        with pytest.raises(StoreError, match="Run `recsys train"):
            Service.load(world.settings, Metrics())
        store = FeatureStore(world.settings.feature_store)  # what that command does
        store.apply()
        store.materialize()
        store.close()
        assert registry.with_name("registry.db.damaged").exists() == (damage in (_garbage, _cut))
        registry.with_name("registry.db.damaged").unlink(missing_ok=True)
        again = Service.load(world.settings, Metrics())
        closing.append(again)
        assert again.states.read(user).state.n_events == 16
    finally:
        shutil.copy(kept, registry)


def test_a_registry_in_use_is_not_taken_for_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "registry.db"
    assert set_aside_if_damaged(path) is False
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("CREATE TABLE projects (name TEXT)")
    assert set_aside_if_damaged(path) is False
    holder.execute("BEGIN EXCLUSIVE")
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda where: connect(where, timeout=0.01))
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        set_aside_if_damaged(path)
    holder.close()
    assert path.exists()
